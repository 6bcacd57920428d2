#include "check.hpp"

#include "../status.hpp"

namespace sumexp::cpu {

Status check_draws(const SampleCall& call, const std::int64_t* counts, const std::int64_t* strides, bool reads) {
  bool empty = false;
  if (const Status status = check_shape(call.dtype, call.ndim, call.shape, call.axis, &empty); !status.ok()) return status;
  if (reads && !empty && !call.logits.data) return fail(Code::invalid_argument, "logits is missing");
  if (call.logits.data && !call.logits.strides) return fail(Code::invalid_argument, "logits has no strides");
  if (call.where.data && !call.where.strides) return fail(Code::invalid_argument, "where has no strides");
  if (counts && !strides) return fail(Code::invalid_argument, "counts has no strides");
  if (const Status status = check_order(call.order); !status.ok()) return status;
  const int power = counts ? 53 : 48;  // of draws of a row, 2^48: the counter of random bits has room for so many
  if (call.num_samples < 0 || call.num_samples > std::int64_t{1} << power)
    return fail(Code::invalid_argument, "num_samples is %lld, accepted: integers from 0 to 2^%d",
                static_cast<long long>(call.num_samples), power);
  return Status{};
}

Status check_order(FilterOrder order) {
  if (order == FilterOrder::vllm || order == FilterOrder::hf || order == FilterOrder::llama_cpp) return Status{};
  return fail(Code::invalid_argument, "order is code %d, accepted: 0 to 2 (vllm, hf, llama_cpp)", static_cast<int>(order));
}

Status check_plain(const SampleCall& call, const char* function) {
  if (!call.replacement) return fail(Code::invalid_argument, "replacement is false; %s draws with replacement", function);
  const char* const given = call.top_k.data          ? "top_k"
                            : call.top_p.data        ? "top_p"
                            : call.min_p.data        ? "min_p"
                            : call.log_prob          ? "log_prob"
                            : call.filtered_log_prob ? "filtered_log_prob"
                            : call.kept              ? "kept"
                            : call.cut_logit         ? "cut_logit"
                            : call.cut_index         ? "cut_index"
                                                     : nullptr;
  if (!given) return Status{};
  return fail(Code::invalid_argument, "%s is given; %s has no filters, and tells of draws alone", given, function);
}

namespace {

Status check_places(const SampleCall& call, const void* states, const void* classes) {
  if (call.where.data) return fail(Code::invalid_argument, "where is given; rows in pieces have no mask");
  if (!states || (call.num_samples && !classes))
    return fail(Code::invalid_argument, "%s is missing", states ? "classes" : "states");
  return Status{};
}

}  // namespace

Status check_piece(const SampleCall& call, std::int64_t chunk, std::int64_t own, std::int64_t chunks, const void* states,
                   const void* classes) {
  if (chunk < 0 || own > chunks || chunk > chunks - own)
    return fail(Code::invalid_argument, "chunk is %lld for a piece of %lld chunks, accepted: 0 to %lld",
                static_cast<long long>(chunk), static_cast<long long>(own), static_cast<long long>(chunks - own));
  return check_places(call, states, classes);
}
Status check_finish(const SampleCall& call, std::int64_t own, std::int64_t chunks, const void* states, const void* classes) {
  if (chunks != own)
    return fail(Code::invalid_argument, "chunks is %lld, accepted: %lld", static_cast<long long>(chunks),
                static_cast<long long>(own));
  if (call.num_samples && !call.out) return fail(Code::invalid_argument, "out is missing");
  return check_places(call, states, classes);
}

Status check_noise(const PerRow<std::uint64_t>& seed, std::int64_t rows, std::int64_t n, const double* out) {
  if (rows < 0 || n < 0) return fail(Code::invalid_argument, "%s is negative, accepted: sizes from 0", rows < 0 ? "rows" : "n");
  if (!is_countable(sizeof(double), {rows, n}))
    return fail(Code::invalid_argument, "rows, n: have more bytes than 63 bits can count");
  if (rows && n && (!seed.data || !out)) return fail(Code::invalid_argument, "%s is missing", out ? "seed" : "out");
  return Status{};
}

}  // namespace sumexp::cpu
