#include "row.hpp"

#include "../isa.hpp"

namespace sumexp::cpu {

namespace {

// What the copy of a row, or its terms, may take to stay in the cache: half of a 1 MB L2.
constexpr std::int64_t kResidentBytes = 512 << 10;

}  // namespace

RaggedJob::RaggedJob(Op op, DType dtype) : RaggedJob(op, dtype, isa_in_use()) {}
RaggedJob::RaggedJob(Op op, DType dtype, int isa)
    : op(op),
      dtype(dtype),
      info(op_info(op)),
      kernel(*SUMEXP_AT(kernels_, isa).ops[static_cast<int>(op)][static_cast<int>(dtype)]),
      moves(*SUMEXP_AT(kernels_, isa).moves[static_cast<int>(dtype)]),
      ragged(SUMEXP_AT(ragged_kernels_, isa).by_dtype[static_cast<int>(dtype)]),
      item(static_cast<int>(item_size(dtype))),
      wide(item == 8 ? 8 : 4),
      order(order_of(wide)) {}

void RowRunner::begin(const OpRow& row, Workspace& workspace, char* maxima) {
  row_ = row;
  n_ = row.in[0].n;
  chunks_ = job_.chunks_of(n_);
  packed_through_ = -1;
  const bool whole = job_.info.row_output;
  bool direct = kernel_.reduce[0][kStored] && (whole || row.out.stride == job_.item);
  for (int k = 0; k < job_.info.inputs; ++k) direct = direct && row.in[k].stride == job_.item;
  elements_ = direct ? kStored : kScratch;
  const bool parts = maxima != nullptr, keep = job_.info.probabilities && !parts;
  const std::int64_t bytes = n_ * job_.wide;
  resident_ = !direct && !parts && bytes * job_.info.inputs <= kResidentBytes;
  const std::int64_t pitch = (resident_ ? chunks_ : 1) * job_.order.chunk * job_.wide;
  workspace.reset();
  for (int k = 0; k < job_.info.inputs; ++k) packed_[k] = direct ? nullptr : take<char>(workspace, pitch);
  // Terms go where the results will, if that is a place for T, but not in place of elements that map reads again.
  terms_ = nullptr;
  if (keep && direct && job_.item == job_.wide) terms_ = row.out.first;
  else if (keep && direct && bytes <= kResidentBytes) terms_ = take<char>(workspace, bytes);
  else if (keep && resident_) terms_ = packed_[0];
  maxima_ = parts ? maxima : take<char>(workspace, (job_.info.probabilities ? chunks_ : 1) * job_.wide);
  state_ = take<char>(workspace, kernel_.state_bytes);
  finished_ = take<char>(workspace, kernel_.row_bytes);
  tree_.stack = chunks_ > 1 ? take<char>(workspace, StateTree::kLevels * std::int64_t{kernel_.state_bytes}) : nullptr;
}

void RowRunner::pack(std::int64_t c) {
  if (elements_ == kStored || packed_through_ == c || (resident_ && c < packed_through_)) return;
  packed_through_ = c;
  const std::int64_t first = c * job_.order.chunk, left = n_ - first;
  const int count = static_cast<int>(left < job_.order.chunk ? left : job_.order.chunk);
  for (int k = 0; k < job_.info.inputs; ++k)
    moves_.pack(row_.in[k].first, row_.in[k].stride, first, count, packed_[k] + (resident_ ? first * job_.wide : 0));
}

Chunk RowRunner::chunk_at(std::int64_t c) {
  pack(c);
  Chunk chunk;
  chunk.first = c * job_.order.chunk;
  const std::int64_t left = n_ - chunk.first;
  chunk.count = static_cast<int>(left < job_.order.chunk ? left : job_.order.chunk);
  const std::int64_t at = resident_ ? chunk.first * job_.wide : 0;
  for (int k = 0; k < job_.info.inputs; ++k)
    chunk.in[k] = elements_ == kStored ? row_.in[k].first + chunk.first * job_.item : packed_[k] + at;
  chunk.out = elements_ == kStored ? row_.out.first + chunk.first * job_.item : packed_[0] + at;
  chunk.terms = terms_ ? terms_ + chunk.first * job_.wide : nullptr;
  chunk.maximum = maxima_ + (job_.info.probabilities ? c * job_.wide : 0);
  chunk.ahead = elements_ == kStored ? job_.order.chunk : 0;
  chunk.stream = false;
  return chunk;
}

void RowRunner::reduce(std::int64_t c0, std::int64_t c1, void* state) {
  if (c0 >= c1) return kernel_.empty(state);
  tree_.filled = 0;
  for (std::int64_t c = c0; c < c1; ++c) {
    kernel_.reduce[0][elements_](chunk_at(c), nullptr, state);
    if (c < c1 - 1) tree_.push(kernel_, state);
    else if (c > c0) tree_.finish(kernel_, state);
  }
}

void RowRunner::map(std::int64_t c0, std::int64_t c1, const void* finished) {
  for (std::int64_t c = c0; c < c1; ++c) {
    const Chunk chunk = chunk_at(c);
    kernel_.map[elements_](chunk, finished);
    if (elements_ == kScratch) moves_.unpack(row_.out.first, row_.out.stride, chunk.first, chunk.count, chunk.out);
  }
}

void RowRunner::finish(const OpRow& row, const void* state, void* finished) const {
  const double at_index = 0.0;
  kernel_.finish[0](state, {1.0, row.input, &at_index}, finished);
}
void RowRunner::emit(const OpRow& row, const void* finished) const {
  if (kernel_.emit) kernel_.emit(finished, job_.info.row_output ? row.out.first : nullptr, nullptr);
}

void RowRunner::run(const OpRow& row, Workspace& workspace) {
  begin(row, workspace, nullptr);
  reduce(0, chunks_, state_);
  finish(row, state_, finished_);
  if (!job_.info.row_output) map(0, chunks_, finished_);
  emit(row, finished_);
}

}  // namespace sumexp::cpu
