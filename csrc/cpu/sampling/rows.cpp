#include "rows.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "../../numerics/state.hpp"
#include "../isa.hpp"
#include "../status.hpp"
#include "binomial.hpp"
#include "filters.hpp"

namespace sumexp::cpu {

using SUMEXP_NS::Branch;
using SUMEXP_NS::leaves_of;
using SUMEXP_NS::RowRandom;
using SUMEXP_NS::Walk;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int kSparse = 8;  // a row is, of which a smaller part is kept

template <class T>
T option(const PerRow<T>& values, std::int64_t row, T absent) {
  return values.data ? values.data[row * values.step] : absent;
}

using SUMEXP_NS::branch;
Branch branch(int wide, const SumNode& left, const SumNode& right) {
  return wide == 8 ? branch<double>(left, right) : branch<float>(left, right);
}

// Where the levels of the tree over chunks are among its nodes.
struct Levels {
  explicit Levels(std::int64_t chunks) {
    for (std::int64_t nodes = chunks, at = 0;; nodes = (nodes + 1) / 2) {
      size[count] = nodes, start[count] = at;
      at += nodes, ++count;
      if (nodes <= 1) return;
    }
  }
  std::int64_t size[64], start[64];
  int count = 0;
};

}  // namespace

SampleJob::SampleJob(const SampleCall& call, const Plan& plan, Wanted wanted) : SampleJob(call, plan, wanted, isa_in_use()) {}
SampleJob::SampleJob(const SampleCall& call, const Plan& plan, Wanted wanted, int isa)
    : call(call),
      plan(plan),
      draws(wanted == kDraws || wanted == kPieces),
      tables(SUMEXP_AT(sampling_kernels_, isa)),
      kernels(tables.of[plan.dtype == DType::f64]),
      moves(*SUMEXP_AT(kernels_, isa).moves[static_cast<int>(plan.dtype)]),
      item(static_cast<int>(item_size(plan.dtype))),
      wide(plan.dtype == DType::f64 ? 8 : 4),
      chunk(order_of(wide).chunk),
      chunks((plan.n + chunk - 1) / chunk),
      nodes(SUMEXP_NS::tree_nodes(chunks)),
      levels(SUMEXP_NS::tree_levels(chunks)),
      direct(plan.row_dims <= 1 && !plan.data[kWhere] && item == wide &&
             (plan.row_dims == 0 || plan.row[0].stride[kIn0] == item)),
      filtered((wanted == kDraws || wanted == kProbabilities) && (call.top_k.data || call.top_p.data || call.min_p.data)),
      alone(wanted == kDraws && chunks == 1 && call.num_samples == 1 && call.replacement && !call.log_prob &&
            !call.filtered_log_prob && !call.kept && !call.cut_logit && !call.cut_index),
      leaves(chunks == 1 ? leaves_of(static_cast<int>(plan.n)) : 0),
      together(alone && leaves <= chunk / 4 && !filtered ? std::min(kTogether, chunk / leaves) : 0) {
  std::int64_t bytes = 0;
  const auto place = [&](bool wanted, std::int64_t size) {
    const std::int64_t at = bytes;
    if (wanted) bytes += (size + 63) / 64 * 64;
    return at;
  };
  states_at = place(true, nodes * kernels.state_bytes);
  nodes_at = place(true, nodes * static_cast<std::int64_t>(sizeof(SumNode)));
  packed_at = place(filtered, plan.n * wide);
  taken_at = place(!call.replacement, (plan.n + 63) / 64 * 8);
  counts_at = place(wanted == kCounts, nodes * 8);
  raw_at = place(call.log_prob, nodes * (kernels.state_bytes + static_cast<std::int64_t>(sizeof(SumNode))));
  row_bytes = bytes;
}

Status Failure::status(const SampleJob& job) const {
  const std::int64_t first = first_.load();
  if (first == kNone) return Status{};
  const long long row = first / kKinds, draws = job.call.num_samples;
  switch (static_cast<Kind>(first % kKinds)) {
    case kNaN: return fail(Code::invalid_argument, "logits has a NaN in row %lld, accepted: numbers and -inf", row);
    case kInfinite:
      return fail(Code::invalid_argument,
                  "logits has +inf in row %lld (after the temperature), accepted: finite numbers and -inf", row);
    case kNothing:
      return fail(Code::invalid_argument, "logits has nothing to draw from in row %lld, accepted: rows with a logit above -inf",
                  row);
    case kOverflows:
      return fail(Code::invalid_argument,
                  "temperature is %g for row %lld, accepted in pieces: numbers by which its logits have finite quotients",
                  option(job.call.temperature, row, 1.0), row);
    default:
      return fail(Code::invalid_argument, "num_samples is %lld without replacement; row %lld has fewer classes to draw from",
                  draws, row);
  }
}

SampleScratch::SampleScratch(const SampleJob& job, Workspace& workspace, std::int64_t draws)
    : chunk(take<char>(workspace, job.chunk * job.wide)),
      other(take<char>(workspace, job.chunk * job.wide)),
      tree(take<double>(workspace, 2 * job.chunk)),
      counts(take<std::int64_t>(workspace, 2 * job.chunk)),
      order(take<std::int32_t>(workspace, draws)),
      starts(take<std::int32_t>(workspace, job.chunks + 2)),
      workspace(workspace) {}

// -- reading ---------------------------------------------------------------------------------------------------------------

SampleRow::SampleRow(const SampleJob& job, std::int64_t row, char* memory)
    : job_(job),
      row_(row),
      out_(job.draws && job.call.out ? job.call.out + row * job.call.num_samples : nullptr),
      random_{option(job.call.seed, row, std::uint64_t{0}), static_cast<std::uint64_t>(option(job.call.stream, row, row))},
      temperature_(option(job.call.temperature, row, 1.0)),
      cut_logit_(-kInfinity),
      states_(memory + job.states_at),
      raw_(memory + job.raw_at),
      nodes_(reinterpret_cast<SumNode*>(memory + job.nodes_at)),
      taken_(nullptr),
      counts_(reinterpret_cast<std::int64_t*>(memory + job.counts_at)) {
  const Offsets offsets = job.plan.row_offsets(row);
  base_ = static_cast<const char*>(job.plan.data[kIn0]) + offsets.at[kIn0];
  mask_ = static_cast<const char*>(job.plan.data[kWhere]) + offsets.at[kWhere];
  greedy_ = job.wide == 8 ? temperature_ == 0 : static_cast<float>(temperature_) == 0;
  divide_ = temperature_ != 1 && !greedy_;
  if (job.wide == 4 && temperature_ > std::numeric_limits<float>::max()) temperature_ = kInfinity;
  alone_ = job.alone && !greedy_;
  if (!job.call.replacement) {
    taken_ = reinterpret_cast<std::uint64_t*>(memory + job.taken_at);
    std::fill_n(taken_, (job.plan.n + 63) / 64, std::uint64_t{0});
  }
  if (job.filtered && !greedy_) copy_ = memory + job.packed_at;
}

const void* SampleRow::raw_chunk(std::int64_t c, char* to) const {
  const std::int64_t first = c * job_.chunk;
  if (job_.direct) return base_ + first * job_.item;
  const int count = job_.count_of(c);
  job_.moves.pack_row(job_.plan, kIn0, base_, first, count, to);
  if (job_.plan.data[kWhere]) job_.moves.leave_out(job_.plan, mask_, first, count, -kInfinity, to);
  return to;
}

// What is drawn from: `to` or where it lies.
const void* SampleRow::read(std::int64_t c, char* to) const {
  const int count = job_.count_of(c);
  const std::int64_t first = c * job_.chunk;
  const void* x = cut_ ? packed_ + first * job_.wide : raw_chunk(c, to);
  const auto own = [&] {  // a copy that may be changed
    if (x != to) std::memcpy(to, x, static_cast<std::size_t>(count) * job_.wide);
    x = to;
  };
  const bool late = job_.call.order == FilterOrder::llama_cpp;
  if (divide_ && !late && !cut_) own(), divide(count, to);
  if (cut_) {
    job_.kernels.keep(x, count, cut_logit_, tied_in(c), to);
    x = to;
  }
  if (divide_ && late) own(), divide(count, to);
  if (taken_) {
    for (int i = 0; i < count; i += 64) {
      std::uint64_t marks = taken_[(first + i) / 64];
      if (marks) own();
      for (; marks; marks &= marks - 1) {
        const int at = i + __builtin_ctzll(marks);
        if (job_.wide == 8) reinterpret_cast<double*>(to)[at] = -kInfinity;
        else reinterpret_cast<float*>(to)[at] = -std::numeric_limits<float>::infinity();
      }
    }
  }
  return x;
}

double SampleRow::logit(std::int64_t j) const {
  double wide;
  float narrow;
  job_.moves.pack_row(job_.plan, kIn0, base_, j, 1, job_.wide == 8 ? static_cast<void*>(&wide) : &narrow);
  return job_.wide == 8 ? wide : narrow;
}
double SampleRow::scaled(double x) const {
  double wide = x;
  float narrow = static_cast<float>(x);
  if (divide_) divide(1, job_.wide == 8 ? static_cast<void*>(&wide) : &narrow);
  return job_.wide == 8 ? wide : narrow;
}

void SampleRow::divide(int count, void* x) const {
  const float narrow = static_cast<float>(largest_logit_);
  const void* const m = job_.wide == 8 ? static_cast<const void*>(&largest_logit_) : &narrow;
  if (apart_) job_.moves.divide_apart(temperature_, m, count, x);
  else if (!job_.moves.divide(temperature_, count, x)) overflows_.store(true, std::memory_order_relaxed);
}
bool SampleRow::divide_apart(char* scratch) {
  if (apart_ || !overflows_) return false;
  double m = -kInfinity;
  for (std::int64_t c = 0; c < job_.chunks; ++c)
    if (!job_.kernels.largest(raw_chunk(c, scratch), job_.count_of(c), &m, nullptr)) return false;
  if (!(m < kInfinity)) return false;
  largest_logit_ = m;
  return apart_ = true;
}

// -- the tree ----------------------------------------------------------------------------------------------------------------

// The cut, of rows that have filters: found in a packed copy, which is then what chunks are read from.
void SampleRow::prepare(SampleScratch& scratch, Failure& failure) {
  const SampleCall& call = job_.call;
  if (!copy_) return;
  Filters filters;
  filters.top_k = option(call.top_k, row_, std::int64_t{0});
  filters.top_p = option(call.top_p, row_, 1.0);
  filters.min_p = option(call.min_p, row_, 0.0);
  filters.order = call.order;
  if (!filters.any()) return;
  const bool divide = divide_ && filters.order != FilterOrder::llama_cpp;
  char* const copy = copy_;
  packed_ = copy_;
  if (job_.direct && !divide) packed_ = base_;
  for (std::int64_t c = 0; c < job_.chunks && packed_ == copy; ++c) {
    const int count = job_.count_of(c);
    char* const to = copy + c * job_.chunk * job_.wide;
    const void* const x = raw_chunk(c, to);
    if (!divide) continue;
    if (x != to) std::memcpy(to, x, static_cast<std::size_t>(count) * job_.wide);
    this->divide(count, to);
    if (divide_apart(scratch.other)) c = -1;  // once more, from the first
  }
  const auto find = [&](auto zero) {
    using T = decltype(zero);
    if (!scratch.filters) scratch.filters = scratch.workspace.take_bytes(filter_scratch<T>(job_.plan.n));
    const ChunkMaxima maxima = {&nodes_[0].m, sizeof(SumNode) / sizeof(double), job_.chunk};  // until the tree grows
    const bool index = call.cut_index != nullptr;
    const Cut<T> cut = filter_cut(reinterpret_cast<const T*>(packed_), job_.plan.n, filters, scratch.filters, index, maxima);
    cut_logit_ = cut.logit, cut_index_ = cut.index;
    kept_ = cut.kept;
  };
  if (job_.wide == 8) find(0.0);
  else find(0.0f);
  if (cut_logit_ != cut_logit_) return failure.add(row_, Failure::kNaN);
  if (cut_logit_ == kInfinity) return failure.add(row_, Failure::kInfinite);
  if (kept_ == 0) return failure.add(row_, Failure::kNothing);
  cut_ = true;
}

void SampleRow::reduce(std::int64_t c0, std::int64_t c1, SampleScratch& scratch) {
  if (greedy_ || alone_) return;
  std::int64_t kept = 0;
  const bool late = divide_ && job_.call.order == FilterOrder::llama_cpp;
  const bool sparse = cut_ && !late && kept_ < job_.plan.n / kSparse;
  for (std::int64_t c = c0; c < c1; ++c) {
    if (cut_ && nodes_[c].m < cut_logit_) {  // nothing is kept
      job_.kernels.reduce(scratch.chunk, 0, states_ + c * job_.kernels.state_bytes);
      continue;
    }
    if (sparse) {
      const char* const x = packed_ + c * job_.chunk * job_.wide;
      if (job_.kernels.reduce_kept(x, job_.count_of(c), cut_logit_, tied_in(c), states_ + c * job_.kernels.state_bytes))
        continue;
    }
    const void* const x = read(c, scratch.chunk);
    job_.kernels.reduce(x, job_.count_of(c), states_ + c * job_.kernels.state_bytes);
    if (job_.call.kept && !cut_) kept += job_.kernels.keep(x, job_.count_of(c), -kInfinity, 0, scratch.other);
  }
  if (kept) kept_.fetch_add(kept, std::memory_order_relaxed);
}

void SampleRow::merge_states(Failure& failure) {
  if (job_.chunks == 0) return failure.add(row_, Failure::kNothing);
  root_ = job_.kernels.grow(states_, job_.chunks, nodes_);
  if (root_.kind == RowKind::nan) failure.add(row_, Failure::kNaN);
  if (root_.kind == RowKind::infinite) failure.add(row_, Failure::kInfinite);
  if (root_.kind == RowKind::nothing) failure.add(row_, Failure::kNothing);
}

void SampleRow::finish(SampleScratch& scratch, Failure& failure) {
  if (alone_) return;
  if (!greedy_) {
    if (divide_apart(scratch.other)) kept_ = cut_ ? kept_.load() : 0, reduce(0, job_.chunks, scratch);
    return merge_states(failure);
  }
  bool nan = false;
  largest_ = find_largest(scratch, &cut_logit_, &nan);
  if (nan) return failure.add(row_, Failure::kNaN);
  if (largest_ < 0) return failure.add(row_, Failure::kNothing);
  if (cut_logit_ == kInfinity) return failure.add(row_, Failure::kInfinite);
  cut_logit_ += 0;  // of -0 and +0 either may be the largest
  cut_index_ = largest_;
  kept_ = 1;
}

// The lowest index among the largest, of what is left; -1 where that is nothing.
std::int64_t SampleRow::find_largest(SampleScratch& scratch, double* value, bool* nan) const {
  double m = -kInfinity;
  std::int64_t place = -1;
  for (std::int64_t c = 0; c < job_.chunks; ++c) {
    int at;
    if (!job_.kernels.largest(read(c, scratch.chunk), job_.count_of(c), &m, &at)) return *nan = true, -1;
    if (at >= 0) place = c * job_.chunk + at;
  }
  *value = m;
  return place;
}

// -- draws -------------------------------------------------------------------------------------------------------------------

std::int64_t SampleRow::walk_chunks(Walk& walk) const {
  const SumNode* const root = nodes_ + job_.nodes - 1;
  return job_.wide == 8 ? walk.over_chunks<double>(root, job_.chunks, job_.levels)
                        : walk.over_chunks<float>(root, job_.chunks, job_.levels);
}

// Draws `draws` (or d0, d0 + 1, ...), which have come to chunk c. False where its sum is not a number above 0.
bool SampleRow::draw_from_chunk(std::int64_t c, const std::int32_t* draws, std::int64_t count, std::int64_t d0,
                                SampleScratch& scratch) {
  const int elements = job_.count_of(c), leaves = leaves_of(elements);
  job_.kernels.terms(read(c, scratch.chunk), elements, scratch.tree);
  if (!(scratch.tree[1] > 0 && scratch.tree[1] < kInfinity)) return false;
  for (std::int64_t k = 0; k < count; ++k) {
    const std::int64_t d = d0 + (draws ? draws[k] : k);
    Walk walk(random_, d);
    out_[d] = c * job_.chunk + walk.inside(scratch.tree, leaves);
  }
  return true;
}

void SampleRow::draw(std::int64_t d0, std::int64_t d1, SampleScratch& scratch, Failure& failure) {
  if (!in_blocks()) return draw_apart(scratch, failure);
  if (greedy_) return void(std::fill(out_ + d0, out_ + d1, largest_));
  if (job_.chunks == 1) {
    if (draw_from_chunk(0, nullptr, d1 - d0, d0, scratch) && !(alone_ && overflows_)) return;
    alone_ = false;  // a special row: its state says why
    reduce(0, 1, scratch);
    finish(scratch, failure);
    if (!failure.reached(row_)) draw_from_chunk(0, nullptr, d1 - d0, d0, scratch);
    return;
  }
  if (d1 - d0 == 1) {
    Walk walk(random_, d0);
    draw_from_chunk(walk_chunks(walk), nullptr, 1, d0, scratch);
    return;
  }
  // By chunk: each one's terms are made once.
  std::int32_t* const starts = scratch.starts;
  std::fill_n(starts, job_.chunks + 2, 0);
  for (std::int64_t d = d0; d < d1; ++d) {
    Walk walk(random_, d);
    ++starts[(out_[d] = walk_chunks(walk)) + 2];
  }
  for (std::int64_t c = 2; c < job_.chunks + 2; ++c) starts[c] += starts[c - 1];
  for (std::int64_t d = d0; d < d1; ++d) scratch.order[starts[out_[d] + 1]++] = static_cast<std::int32_t>(d - d0);
  for (std::int64_t c = 0; c < job_.chunks; ++c)
    if (const int count = starts[c + 1] - starts[c]) draw_from_chunk(c, scratch.order + starts[c], count, d0, scratch);
}

// Without replacement: what was drawn leaves its chunk, and the chunk's way up is merged again.
void SampleRow::draw_apart(SampleScratch& scratch, Failure& failure) {
  for (std::int64_t d = 0; d < job_.call.num_samples; ++d) {
    if (greedy_) {
      double value;
      bool nan;
      if ((out_[d] = find_largest(scratch, &value, &nan)) < 0) return failure.add(row_, Failure::kTooFew);
      take(out_[d]);
      continue;
    }
    Walk walk(random_, d);
    const std::int64_t c = walk_chunks(walk);
    draw_from_chunk(c, nullptr, 1, d, scratch);
    if (d + 1 == job_.call.num_samples) return;
    take(out_[d]);
    job_.kernels.reduce(read(c, scratch.chunk), job_.count_of(c), states_ + c * job_.kernels.state_bytes);
    if (job_.kernels.regrow(states_, job_.chunks, nodes_, c).kind == RowKind::nothing)
      return failure.add(row_, Failure::kTooFew);
  }
}

bool SampleRow::tree_alone(double* tree, SampleScratch& scratch) {
  if (!alone_) return false;
  job_.kernels.terms(read(0, scratch.chunk), job_.count_of(0), tree);
  return tree[1] > 0 && tree[1] < kInfinity && !overflows_;
}

// The optional results.
void SampleRow::tell(SampleScratch& scratch) {
  const SampleCall& call = job_.call;
  if (call.kept) call.kept[row_] = kept_;
  if (call.cut_logit) call.cut_logit[row_] = cut_logit_;
  if (call.cut_index) call.cut_index[row_] = cut_index_;
  const std::int64_t draws = call.num_samples;
  if (call.filtered_log_prob)
    for (std::int64_t d = 0; d < draws; ++d) {
      double* const to = call.filtered_log_prob + row_ * draws + d;
      *to = greedy_ ? (out_[d] == largest_ ? 0 : -kInfinity) : SUMEXP_NS::log_probability(scaled(logit(out_[d])), root_);
    }
  if (!call.log_prob) return;
  RowRoot raw = root_;
  if (divide_ || cut_ || greedy_) {
    for (std::int64_t c = 0; c < job_.chunks; ++c)
      job_.kernels.reduce(raw_chunk(c, scratch.chunk), job_.count_of(c), raw_ + c * job_.kernels.state_bytes);
    raw = job_.kernels.grow(raw_, job_.chunks, reinterpret_cast<SumNode*>(raw_ + job_.nodes * job_.kernels.state_bytes));
  }
  for (std::int64_t d = 0; d < draws; ++d)
    call.log_prob[row_ * draws + d] = raw.kind == RowKind::finite ? SUMEXP_NS::log_probability(logit(out_[d]), raw)
                                                                  : std::numeric_limits<double>::quiet_NaN();
}

// -- counts ------------------------------------------------------------------------------------------------------------------

namespace {

// `draws` between two sides.
struct Split {
  std::int64_t left, right;
};
Split split(std::int64_t draws, const Branch& b, const RowRandom& random, std::uint64_t node) {
  const std::int64_t fewer = cpu::binomial(draws, b.p, random, node);
  return b.left_is_smaller ? Split{fewer, draws - fewer} : Split{draws - fewer, fewer};
}

}  // namespace

// Node by node from the root, which is the last; level by level, so that a node's parent is split before it.
void SampleRow::count_chunks() {
  std::fill_n(counts_, job_.nodes, std::int64_t{0});
  if (greedy_) return;
  const Levels levels(job_.chunks);
  counts_[job_.nodes - 1] = job_.call.num_samples;
  for (int level = levels.count - 2; level >= 0; --level)
    for (std::int64_t i = 0; i < levels.size[level]; i += 2) {
      const std::int64_t parent = levels.start[level + 1] + i / 2, at = levels.start[level] + i;
      if (i + 1 == levels.size[level]) {
        counts_[at] = counts_[parent];
      } else if (counts_[parent]) {
        const Split s =
            split(counts_[parent], branch(job_.wide, nodes_[at], nodes_[at + 1]), random_, static_cast<std::uint64_t>(parent));
        counts_[at] = s.left, counts_[at + 1] = s.right;
      }
    }
}

void SampleRow::count_elements(std::int64_t c0, std::int64_t c1, SampleScratch& scratch) {
  char* const to = static_cast<char*>(job_.plan.data[kOut]) + job_.plan.row_offsets(row_).at[kOut];
  for (std::int64_t c = c0; c < c1; ++c) {
    const int elements = job_.count_of(c), leaves = leaves_of(elements);
    std::int64_t* const counts = scratch.counts;
    std::fill_n(counts, 2 * leaves, std::int64_t{0});
    if (greedy_ && largest_ / job_.chunk == c) counts[leaves + largest_ % job_.chunk] = job_.call.num_samples;
    if ((counts[1] = counts_[c])) {
      job_.kernels.terms(read(c, scratch.chunk), elements, scratch.tree);
      const double* const tree = scratch.tree;
      for (int h = 1; h < leaves; h *= 2)
        for (int v = h; v < 2 * h; ++v) {
          if (!counts[v]) continue;
          const std::uint64_t node = SUMEXP_NS::node_inside(c, v);
          const Split s = split(counts[v], branch(tree[v + h], tree[v + 2 * h]), random_, node);
          counts[v + h] = s.left, counts[v + 2 * h] = s.right;
        }
    }
    each_run(job_.plan, kOut, c * job_.chunk, elements,
             [&](std::int64_t offset, std::int64_t stride, std::int64_t i, std::int64_t run) {
               for (std::int64_t j = 0; j < run; ++j) std::memcpy(to + offset + j * stride, counts + leaves + i + j, 8);
             });
  }
}

void SampleRow::probabilities(double* to, SampleScratch& scratch) {
  if (greedy_) {
    std::fill_n(to, job_.plan.n, 0.0);
    to[largest_] = 1;
    return;
  }
  const auto share = [](double all, const Branch& b, double* left, double* right) {
    const double p = SUMEXP_NS::threshold_of(b.p).probability();
    (b.left_is_smaller ? *left : *right) = all * p;
    (b.left_is_smaller ? *right : *left) = all * (1 - p);
  };
  const Levels levels(job_.chunks);
  std::vector<double> node(static_cast<std::size_t>(job_.nodes));
  node.back() = 1;
  for (int level = levels.count - 2; level >= 0; --level)
    for (std::int64_t i = 0; i < levels.size[level]; i += 2) {
      const std::int64_t at = levels.start[level] + i;
      const double all = node[static_cast<std::size_t>(levels.start[level + 1] + i / 2)];
      double* const left = &node[static_cast<std::size_t>(at)];
      if (i + 1 == levels.size[level]) *left = all;
      else if (all > 0) share(all, branch(job_.wide, nodes_[at], nodes_[at + 1]), left, left + 1);
    }
  for (std::int64_t c = 0; c < job_.chunks; ++c) {
    const int elements = job_.count_of(c), leaves = leaves_of(elements);
    std::vector<double> inside(static_cast<std::size_t>(2 * leaves));
    inside[1] = node[static_cast<std::size_t>(c)];
    job_.kernels.terms(read(c, scratch.chunk), elements, scratch.tree);
    for (int h = 1; h < leaves; h *= 2)
      for (int v = h; v < 2 * h; ++v)
        if (inside[v] > 0)
          share(inside[v], branch(scratch.tree[v + h], scratch.tree[v + 2 * h]), &inside[v + h], &inside[v + 2 * h]);
    std::copy_n(inside.begin() + leaves, elements, to + c * job_.chunk);
  }
}

// -- pieces ------------------------------------------------------------------------------------------------------------------

void SampleRow::piece(char* states, std::int16_t* classes, SampleScratch& scratch, Failure& failure) {
  const std::int64_t draws = job_.call.num_samples;
  for (std::int64_t c = 0; c < job_.chunks; ++c) {
    const int elements = job_.count_of(c), leaves = leaves_of(elements);
    const void* const x = read(c, scratch.chunk);
    job_.kernels.reduce(x, elements, states + c * job_.kernels.state_bytes);
    job_.kernels.terms(x, elements, scratch.tree);
    double m = -kInfinity;
    const auto finite = [&] {
      return job_.kernels.largest(raw_chunk(c, scratch.other), elements, &m, nullptr) && m < kInfinity;
    };
    if (overflows_ && finite() && scaled(m) == kInfinity) return failure.add(row_, Failure::kOverflows);
    const bool any = scratch.tree[1] > 0 && scratch.tree[1] < kInfinity;
    for (std::int64_t d = 0; d < draws; ++d) {
      Walk walk(random_, d);
      classes[c * draws + d] = !any ? 0 : static_cast<std::int16_t>(walk.inside(scratch.tree, leaves));
    }
  }
}

void SampleRow::draw_pieces(const char* states, const std::int16_t* classes, Failure& failure) {
  std::memcpy(states_, states, static_cast<std::size_t>(job_.chunks) * job_.kernels.state_bytes);
  merge_states(failure);
  if (failure.reached(row_)) return;
  const std::int64_t draws = job_.call.num_samples;
  for (std::int64_t d = 0; d < draws; ++d) {
    Walk walk(random_, d);
    const std::int64_t c = walk_chunks(walk);
    out_[d] = c * job_.chunk + classes[c * draws + d];
  }
}

}  // namespace sumexp::cpu
