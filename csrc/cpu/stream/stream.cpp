// Rows that come in pieces (include/sumexp/stream.hpp): their chunks are reduced by the kernels of logsumexp and softmax, and
// merge as the tree over the whole row has it.
#include "../../include/sumexp/stream.hpp"

#include <new>
#include <vector>

#include "../../ops/logsumexp.hpp"
#include "../drivers/driver.hpp"
#include "../isa.hpp"
#include "../status.hpp"
#include "../threads/floating_point.hpp"

namespace sumexp {

namespace {

using namespace cpu;
namespace def = SUMEXP_NS;

constexpr std::int64_t kSegment = 32;                          // chunks of a task: an aligned block of the tree
constexpr std::int64_t kMostElements = std::int64_t{1} << 62;  // of a row
constexpr std::int64_t kTaskElements = 1 << 16;
constexpr int kMostStates = 16;  // of a segment
static_assert(sizeof(SumState) == 96, "bindings hand states over as 12 numbers of 64 bits");

// -- which elements a state is of --------------------------------------------------------------------------

struct Span {
  std::int64_t first, count;
  std::int64_t end() const { return first + count; }
};

int chunk_of(DType dtype) { return order_of(dtype == DType::f64 ? 8 : 4).chunk; }

// Neighbours that merge: two parts of one chunk, or the two halves of a node of the tree.
bool join(Span a, Span b, std::int64_t chunk) {
  if (a.end() != b.first) return false;
  if (a.first / chunk == (b.end() - 1) / chunk) return true;
  const std::int64_t chunks = a.count / chunk;
  return a.count == b.count && a.count % chunk == 0 && (chunks & (chunks - 1)) == 0 && a.first % (2 * a.count) == 0;
}

// The spans that [first, first + n) is made of: a part of a chunk, nodes as large as possible, a part of a chunk.
template <class Use>
int each_span(std::int64_t chunk, std::int64_t first, std::int64_t n, Use use) {
  int spans = 0;
  for (std::int64_t end = first + n; first < end; ++spans) {
    std::int64_t count = chunk - first % chunk;
    if (count > end - first) count = end - first;
    if (first % chunk == 0)
      while (count % chunk == 0 && count <= (end - first) / 2 && first % (2 * count) == 0) count *= 2;
    use(Span{first, count});
    first += count;
  }
  return spans;
}
int spans_of(std::int64_t chunk, std::int64_t first, std::int64_t n) {
  return each_span(chunk, first, n, [](Span) {});
}

// -- states as kernels have them, and as plain data --------------------------------------------------------------

template <class T>
def::Wide<T> wide(const double (&pair)[2]);
template <>
double wide<float>(const double (&pair)[2]) {
  return pair[0];
}
template <>
def::DD<double> wide<double>(const double (&pair)[2]) {
  return {pair[0], pair[1]};
}
void put(double w, double (&pair)[2]) { pair[0] = w, pair[1] = 0.0; }
void put(def::DD<double> w, double (&pair)[2]) { pair[0] = w.hi, pair[1] = w.lo; }

// The state of kernels without and with weights: the first is at the beginning of the second.
template <class T>
def::WeightedState<T> unpacked(const SumState& s, bool all) {
  const double none[2] = {0.0, 0.0};
  return {{static_cast<T>(s.maximum), s.exponent, wide<T>(all ? none : s.at_maximum), wide<T>(all ? s.all : s.others)},
          s.special};
}
template <class T>
void pack(const def::WeightedState<T>& state, bool all, SumState& s) {
  s.maximum = static_cast<double>(state.sum.m), s.exponent = state.sum.N;
  put(state.sum.R, all ? s.all : s.others);
  if (all) return;
  put(state.sum.c, s.at_maximum);
  s.special = state.special;
}

// The kernels that serve states of a dtype.
class Family {
 public:
  const std::int32_t sums;
  const int item, wide;  // bytes of a stored element, and of what is computed in
  const Order order;
  const Moves& moves;

  Family(DType dtype, std::int32_t sums) : Family(dtype, sums, SUMEXP_IN_USE(kernels_)) {}

  const Kernel& kernel(Op op) const { return *kernels_.ops[static_cast<int>(op)][code_]; }
  const Kernel& apart() const { return kernel(sums & kSumWeighted ? Op::weighted_logsumexp : Op::logsumexp); }
  const Kernel& all() const { return kernel(Op::softmax); }

  void merge(const SumState& a, const SumState& b, SumState& to) const {
    if (wide == 8) merge_as<double>(a, b, to);
    else merge_as<float>(a, b, to);
  }
  // Of one chunk: what `reduce` of the kernels leaves of it, called with a place for a state.
  template <class Reduce>
  void reduce(Reduce reduce, SumState& to) const {
    if (wide == 8) reduce_as<double>(reduce, to);
    else reduce_as<float>(reduce, to);
  }
  // The row that finish of `kernel` makes of all states of a row, `step` states apart.
  void finish(const Kernel& kernel, bool all, const SumState* states, std::int64_t count, std::int64_t step, void* row) const {
    if (wide == 8) finish_as<double>(kernel, all, states, count, step, row);
    else finish_as<float>(kernel, all, states, count, step, row);
  }

 private:
  template <class T>
  void merge_as(const SumState& a, const SumState& b, SumState& to) const {
    SumState merged = {};
    merged.first = a.first, merged.count = a.count + b.count;
    merged.dtype = a.dtype, merged.sums = a.sums & b.sums;
    for (const bool all : {false, true}) {
      if (!(merged.sums & (all ? kSumAll : kSumApart | kSumWeighted))) continue;
      const auto x = unpacked<T>(a, all), y = unpacked<T>(b, all);
      def::WeightedState<T> sum = x;
      (all ? this->all() : apart()).merge(&x, &y, &sum);
      pack<T>(sum, all, merged);
    }
    to = merged;
  }
  template <class T, class Reduce>
  void reduce_as(Reduce reduce, SumState& to) const {
    for (const bool all : {false, true}) {
      if (!(sums & (all ? kSumAll : kSumApart | kSumWeighted))) continue;
      auto state = def::WeightedState<T>::empty();
      reduce(all ? this->all() : apart(), &state);
      pack<T>(state, all, to);
    }
  }
  template <class T>
  void finish_as(const Kernel& kernel, bool all, const SumState* states, std::int64_t count, std::int64_t step,
                 void* row) const {
    auto sum = def::WeightedState<T>::empty();
    kernel.empty(&sum);
    if (count) sum = unpacked<T>(states[(count - 1) * step], all);
    for (std::int64_t i = count - 2; i >= 0; --i) {
      const auto lower = unpacked<T>(states[i * step], all);
      kernel.merge(&lower, &sum, &sum);
    }
    kernel.finish[0](&sum, {1.0, nullptr, nullptr}, row);
  }

  Family(DType dtype, std::int32_t sums, const Kernels& kernels)
      : sums(sums),
        item(static_cast<int>(item_size(dtype))),
        wide(dtype == DType::f64 ? 8 : 4),
        order(order_of(wide)),
        moves(*kernels.moves[static_cast<int>(dtype)]),
        kernels_(kernels),
        code_(static_cast<int>(dtype)) {}

  const Kernels& kernels_;
  int code_;
};

// Adds a state after `count` others, which lie `step` apart, of `rows` rows side by side, and joins what belongs together.
// Returns how many there are then; the new one is at place `count`.
std::int64_t settle(const Family& family, SumState* states, std::int64_t count, std::int64_t step, std::int64_t rows) {
  const auto span = [&](std::int64_t i) { return Span{states[i * step].first, states[i * step].count}; };
  for (; count > 0 && join(span(count - 1), span(count), family.order.chunk); --count)
    for (std::int64_t r = 0; r < rows; ++r) {
      SumState& left = states[(count - 1) * step + r];
      family.merge(left, states[count * step + r], left);
    }
  return count + 1;
}

// -- checks ------------------------------------------------------------------------------------------------------

bool sums_are_known(std::int32_t sums) { return sums == kSumWeighted || (sums >= kSumApart && sums <= (kSumApart | kSumAll)); }

// The rows of a call, as Moves takes them.
Status make_rows(const StreamCall& call, const View& out, bool has_out, Plan& plan) {
  bool none = false;
  if (const Status status = check_shape(call.dtype, call.ndim, call.shape, -1, &none); !status.ok()) return status;
  if (!sums_are_known(call.sums))
    return fail(Code::invalid_argument, "sums is %d, accepted: 1, 2 and 3, or 4 with weights", call.sums);
  if (call.first < 0)
    return fail(Code::invalid_argument, "first is %lld, accepted: numbers from 0", static_cast<long long>(call.first));
  plan = Plan{};
  plan.dtype = call.dtype, plan.rows = 1, plan.batch_dims = call.ndim - 1, plan.row_dims = 1;
  const bool weighted = call.sums == kSumWeighted;
  if (call.b.data && !weighted)
    return fail(Code::invalid_argument, "b is given, accepted: weights of reduce_states with sums = 4");
  const View* views[kOperands] = {&call.x, weighted ? &call.b : nullptr, nullptr, nullptr, has_out ? &out : nullptr, nullptr};
  for (int d = 0; d < call.ndim; ++d) {
    Dim& dim = d == call.ndim - 1 ? plan.row[0] : plan.batch[d];
    dim.size = call.shape[d];
    if (d < call.ndim - 1) plan.rows *= dim.size;
    for (int k = 0; k < kOperands; ++k) dim.stride[k] = views[k] && views[k]->strides ? views[k]->strides[d] : 0;
  }
  plan.n = call.shape[call.ndim - 1];
  std::int64_t end;
  if (__builtin_add_overflow(call.first, plan.n, &end) || end > kMostElements)
    return fail(Code::invalid_argument, "first is %lld, accepted: numbers by which a row ends at 2^62 at most",
                static_cast<long long>(call.first));
  constexpr const char* kNames[kOperands] = {"x", "b", "", "", "out", ""};
  for (int k = 0; k < kOperands; ++k) {
    if (!views[k]) continue;
    plan.data[k] = views[k]->data;
    if (!none && !views[k]->data) return fail(Code::invalid_argument, "%s is missing", kNames[k]);
    if (!none && !views[k]->strides) return fail(Code::invalid_argument, "%s has no strides", kNames[k]);
  }
  return Status{};
}

// Whether states are those of rows of one row, in order; what they have in common goes to dtype and sums.
Status check_states(const SumState* states, std::int64_t count, std::int64_t rows, DType& dtype, std::int32_t& sums) {
  if (count < 0 || rows < 0)
    return fail(Code::invalid_argument, "%s is negative, accepted: sizes from 0", count < 0 ? "count" : "rows");
  sums = kSumApart | kSumAll | kSumWeighted;
  if (!count || !rows) return Status{};
  if (!states) return fail(Code::invalid_argument, "states is missing");
  dtype = static_cast<DType>(states->dtype);
  if (!is_dtype(dtype)) return bad_dtype("dtype", dtype);
  for (std::int64_t i = 0; i < count; ++i)
    for (std::int64_t r = 0; r < rows; ++r) {
      const SumState &s = states[i * rows + r], &of_row = states[i * rows];
      if (!sums_are_known(s.sums))
        return fail(Code::invalid_argument, "states: sums is %d, accepted: 1, 2 and 3, or 4 with weights", s.sums);
      if (s.dtype != states->dtype || (s.sums ^ states->sums) & kSumWeighted)
        return fail(Code::invalid_argument, "states are of different dtypes, or some with weights, accepted: states of a kind");
      std::int64_t end;
      if (s.first < 0 || s.count < 1 || __builtin_add_overflow(s.first, s.count, &end) || end > kMostElements)
        return fail(Code::invalid_argument, "states: one is of %lld elements from %lld on, accepted: 1 or more from 0 on",
                    static_cast<long long>(s.count), static_cast<long long>(s.first));
      if (s.first != of_row.first || s.count != of_row.count)
        return fail(Code::invalid_argument, "states: rows differ in their elements, accepted: rows with the same");
      sums &= s.sums;
      if (i && states[(i - 1) * rows].first + states[(i - 1) * rows].count > s.first)
        return fail(Code::invalid_argument, "states: one of elements from %lld on and one before overlap or are not in order",
                    static_cast<long long>(s.first));
    }
  if (!sums)
    return fail(Code::invalid_argument,
                "states: some are for softmax only, some for logarithms only, accepted: states of a kind");
  return Status{};
}

// -- chunks ------------------------------------------------------------------------------------------------------

// Reduces and maps the chunks of some rows, which lie side by side where there are several.
class Rows {
 public:
  Rows(const Family& family, const Plan& plan, const StreamCall& call, Workspace& workspace, int most)
      : family_(family), plan_(plan), call_(call), wide_(family.wide), inputs_(call.sums == kSumWeighted ? 2 : 1) {
    workspace.reset();
    pitch_ = family.order.chunk + 64 / wide_;
    for (int k = 0; k < inputs_; ++k) packed_[k] = take<char>(workspace, most * pitch_ * wide_);
    terms_ = take<char>(workspace, family.order.chunk * wide_);
    state_ = take<char>(workspace, sizeof(def::WeightedState<double>));
  }

  // Elements [first, first + count) of the call's rows from r on, which are of one chunk.
  void reduce(std::int64_t r, int rows, std::int64_t first, int count, SumState* to) {
    const bool direct = plan_.row[0].stride[kIn0] == family_.item && rows == 1 && inputs_ == 1;
    load(r, rows, first, count, direct);
    for (int b = 0; b < rows; ++b) {
      SumState& state = to[b] = SumState{};
      state.first = call_.first + first, state.count = count;
      state.dtype = static_cast<std::int32_t>(call_.dtype), state.sums = call_.sums;
      family_.reduce(
          [&](const Kernel& kernel, void* place) {
            const bool stored = direct && kernel.reduce[0][kStored];
            if (direct && !stored) load(r, rows, first, count, false);
            const Chunk chunk = chunk_at(b, count, stored ? address(kIn0, r) + first * family_.item : nullptr);
            kernel.reduce[0][stored ? kStored : kScratch](chunk, nullptr, place);
          },
          state);
    }
  }

  // The same elements, mapped by finished rows, which lie `step` apart.
  void map(Op op, std::int64_t r, int rows, std::int64_t first, int count, const char* finished, std::int64_t step) {
    load(r, rows, first, count, false);
    const Kernel& kernel = family_.kernel(op);
    for (int b = 0; b < rows; ++b) {
      Chunk chunk = chunk_at(b, count, nullptr);
      chunk.terms = terms_, chunk.out = packed_[0] + b * pitch_ * family_.wide;
      if (op_info(op).probabilities) kernel.reduce[0][kScratch](chunk, nullptr, state_);  // its terms and their maximum
      kernel.map[kScratch](chunk, finished + b * step);
    }
    const std::int64_t stride = plan_.row[0].stride[kOut];
    if (rows > 1)
      family_.moves.unpack_columns(address(kOut, r) + first * stride, stride, rows, count, packed_[0], pitch_, false);
    else family_.moves.unpack_row(plan_, kOut, address(kOut, r), first, count, packed_[0]);
  }

 private:
  char* address(int k, std::int64_t r) const { return static_cast<char*>(plan_.data[k]) + plan_.row_offsets(r).at[k]; }

  void load(std::int64_t r, int rows, std::int64_t first, int count, bool direct) {
    if (direct) return;
    for (int k = 0; k < inputs_; ++k) {
      const std::int64_t stride = plan_.row[0].stride[k];
      if (rows > 1) family_.moves.pack_columns(address(k, r) + first * stride, stride, rows, count, packed_[k], pitch_);
      else family_.moves.pack_row(plan_, k, address(k, r), first, count, packed_[k]);
    }
  }
  Chunk chunk_at(int b, int count, char* x) {
    Chunk chunk = {};
    chunk.in[0] = x;
    for (int k = 0; k < inputs_ && !x; ++k) chunk.in[k] = packed_[k] + b * pitch_ * wide_;
    chunk.maximum = &maximum_;
    chunk.count = count;
    chunk.ahead = x ? family_.order.chunk : 0;
    return chunk;
  }

  const Family& family_;
  const Plan& plan_;
  const StreamCall& call_;
  int wide_, inputs_;
  std::int64_t pitch_;
  char *packed_[2], *terms_, *state_;
  double maximum_ = 0.0;  // or a float
};

// What the tasks of one call share: groups of rows, and segments of them.
struct Grid {
  std::int64_t inner, per_stretch, groups, segments, first_segment, step;
  int most;  // rows of a group

  Grid(const Family& family, const Plan& plan, std::int64_t first) {
    const std::int64_t chunk = family.order.chunk, span = kSegment * chunk;
    inner = plan.inner().size;
    most = 1;
    if (plan.batch_dims && plan.row[0].stride[kIn0] != family.item) {
      bool beside = true;
      for (int k = 0; k < kOperands; ++k)
        if (plan.data[k] && plan.inner().stride[k] != family.item) beside = false;
      if (beside) most = kLineBytes / family.item;
    }
    per_stretch = (inner + most - 1) / most;
    groups = plan.rows / (inner ? inner : 1) * per_stretch;
    first_segment = first / span;
    segments = (first + plan.n - 1) / span - first_segment + 1;
    const std::int64_t elements = most * (plan.n < span ? plan.n : span);
    step = kTaskElements / (elements ? elements : 1);
    if (step < 1) step = 1;
  }
  std::int64_t row_of(std::int64_t group) const { return group / per_stretch * inner + group % per_stretch * most; }
  int rows_of(std::int64_t group) const {
    const std::int64_t left = inner - group % per_stretch * most;
    return static_cast<int>(left < most ? left : most);
  }
};

template <class Body>
void each_task(const Grid& grid, const Plan& plan, Body body) {
  struct Work {
    const Grid& grid;
    Body& body;
  } work = {grid, body};
  const std::int64_t all = grid.groups * grid.segments;
  run_parts((all + grid.step - 1) / grid.step, threads_for(plan.rows * plan.n),
            [](void* context, std::int64_t task, Workspace& workspace) {
              const Work& work = *static_cast<Work*>(context);
              const Grid& grid = work.grid;
              for (std::int64_t i = task * grid.step; i < (task + 1) * grid.step && i < grid.groups * grid.segments; ++i)
                work.body(i / grid.segments, i % grid.segments, workspace);
            },
            &work);
}

// Elements [begin, end) of a call that are of segment s.
Span part_of(const Grid& grid, const Plan& plan, std::int64_t chunk, std::int64_t first, std::int64_t s) {
  const std::int64_t span = kSegment * chunk, at = (grid.first_segment + s) * span;
  const std::int64_t begin = at > first ? at - first : 0, end = at + span - first < plan.n ? at + span - first : plan.n;
  return {begin, end - begin};
}

void reduce_all(const StreamCall& call, const Plan& plan, SumState* out) {
  const Family family(call.dtype, call.sums);
  const std::int64_t chunk = family.order.chunk, first = call.first, rows = plan.rows;
  const Grid grid(family, plan, first);
  std::vector<std::int64_t> place(static_cast<std::size_t>(grid.segments) + 1);  // of a segment's states
  for (std::int64_t s = 0; s < grid.segments; ++s) {
    const Span part = part_of(grid, plan, chunk, first, s);
    place[s + 1] = place[s] + spans_of(chunk, first + part.first, part.count);
  }
  std::vector<SumState> scratch;
  if (grid.segments > 1) scratch.resize(static_cast<std::size_t>(place.back() * rows));
  SumState* const to = grid.segments > 1 ? scratch.data() : out;

  each_task(grid, plan, [&](std::int64_t group, std::int64_t s, Workspace& workspace) {
    const std::int64_t r = grid.row_of(group);
    const int count = grid.rows_of(group);
    Rows chunks(family, plan, call, workspace, grid.most);
    auto* const stack = take<SumState>(workspace, kMostStates * count);
    const Span part = part_of(grid, plan, chunk, first, s);
    std::int64_t states = 0;
    for (std::int64_t i = part.first; i < part.end();) {
      std::int64_t size = chunk - (first + i) % chunk;
      if (size > part.end() - i) size = part.end() - i;
      chunks.reduce(r, count, i, static_cast<int>(size), stack + states * count);
      states = settle(family, stack, states, count, count);
      i += size;
    }
    for (std::int64_t i = 0; i < states; ++i)
      for (int b = 0; b < count; ++b) to[(place[s] + i) * rows + r + b] = stack[i * count + b];
  });
  if (grid.segments == 1) return;
  std::int64_t states = 0;
  for (std::int64_t i = 0; i < place.back(); ++i) {
    if (i != states) std::copy(to + i * rows, to + (i + 1) * rows, to + states * rows);
    states = settle(family, to, states, rows, rows);
  }
  std::copy(to, to + states * rows, out);
}

void map_all(Op op, const SumState* states, std::int64_t count, const StreamCall& call, const Plan& plan) {
  const Family family(call.dtype, call.sums);
  const Kernel& kernel = family.kernel(op);
  const bool all = op == Op::softmax;
  const std::int64_t chunk = family.order.chunk, first = call.first, rows = plan.rows;
  const Grid grid(family, plan, first);
  std::vector<char> finished(static_cast<std::size_t>(rows * kernel.row_bytes));
  for (std::int64_t r = 0; r < rows; ++r) family.finish(kernel, all, states + r, count, rows, &finished[r * kernel.row_bytes]);
  each_task(grid, plan, [&](std::int64_t group, std::int64_t s, Workspace& workspace) {
    const std::int64_t r = grid.row_of(group);
    Rows chunks(family, plan, call, workspace, grid.most);
    const Span part = part_of(grid, plan, chunk, first, s);
    for (std::int64_t i = part.first; i < part.end();) {
      std::int64_t size = chunk - (first + i) % chunk;
      if (size > part.end() - i) size = part.end() - i;
      chunks.map(op, r, grid.rows_of(group), i, static_cast<int>(size), &finished[r * kernel.row_bytes], kernel.row_bytes);
      i += size;
    }
  });
}

}  // namespace

int count_states(DType dtype, std::int64_t first, std::int64_t n) noexcept {
  if (!is_dtype(dtype) || first < 0 || n < 0 || __builtin_add_overflow(first, n, &n)) return 0;
  return spans_of(chunk_of(dtype), first, n - first);
}

Status reduce_states(const StreamCall& call, SumState* out) noexcept {
  const DefaultFloatingPoint mode;
  Plan plan;
  const Status status = make_rows(call, {}, false, plan);
  if (!status.ok() || plan.n == 0 || plan.rows == 0) return status;
  if (!out) return fail(Code::invalid_argument, "out is missing");
  return cpu::with_scratch([&] { reduce_all(call, plan, out); });
}

Status join_states(SumState* states, std::int64_t count, std::int64_t rows, std::int64_t* joined) noexcept {
  const DefaultFloatingPoint mode;
  DType dtype = DType::f32;
  std::int32_t sums = 0;
  const Status status = check_states(states, count, rows, dtype, sums);
  if (!status.ok()) return status;
  if (!joined) return fail(Code::invalid_argument, "joined is missing");
  *joined = count;
  if (!rows || !count) return status;
  const Family family(dtype, sums);
  std::int64_t kept = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    if (i != kept) std::copy(states + i * rows, states + (i + 1) * rows, states + kept * rows);
    kept = settle(family, states, kept, rows, rows);
  }
  *joined = kept;
  return status;
}

Status finish_states(const SumState* states, std::int64_t count, std::int64_t rows, DType dtype, void* out,
                     void* sign) noexcept {
  const DefaultFloatingPoint mode;
  DType of_states = dtype;
  std::int32_t sums = 0;
  Status status = check_states(states, count, rows, of_states, sums);
  if (status.ok() && !is_dtype(dtype)) status = bad_dtype("dtype", dtype);
  if (!status.ok() || !rows) return status;
  if (of_states != dtype)
    return fail(Code::invalid_argument, "dtype is code %d; the states are of code %d", static_cast<int>(dtype),
                static_cast<int>(of_states));
  if (!(sums & (kSumApart | kSumWeighted)))
    return fail(Code::invalid_argument, "states are for softmax only, accepted: those with the maximum apart");
  if (sign && !(sums & kSumWeighted))
    return fail(Code::invalid_argument, "sign: the states have no weights, accepted: null, all sums being positive");
  if (!out) return fail(Code::invalid_argument, "out is missing");
  return cpu::with_scratch([&] {
    const Family family(dtype, sums & kSumWeighted ? kSumWeighted : kSumApart);
    const Kernel& kernel = family.apart();
    std::vector<char> row(static_cast<std::size_t>(kernel.row_bytes));
    for (std::int64_t r = 0; r < rows; ++r) {
      family.finish(kernel, false, states + r, count, rows, row.data());
      kernel.emit(row.data(), static_cast<char*>(out) + r * family.item,
                  sign ? static_cast<char*>(sign) + r * family.item : nullptr);
    }
  });
}

Status map_states(Op op, const SumState* states, std::int64_t count, const StreamCall& call, View out) noexcept {
  const DefaultFloatingPoint mode;
  if (op != Op::softmax && op != Op::log_softmax)
    return fail(Code::invalid_argument, "op is code %d, accepted: %d and %d (softmax, log_softmax)", static_cast<int>(op),
                static_cast<int>(Op::softmax), static_cast<int>(Op::log_softmax));
  StreamCall used = call;
  used.sums = op == Op::softmax ? kSumAll : kSumApart;
  Plan plan;
  Status status = make_rows(used, out, true, plan);
  if (!status.ok()) return status;
  DType dtype = call.dtype;
  std::int32_t sums = 0;
  status = check_states(states, count, plan.rows, dtype, sums);
  if (!status.ok() || plan.rows == 0 || plan.n == 0) return status;
  if (dtype != call.dtype)
    return fail(Code::invalid_argument, "dtype is code %d; the states are of code %d", static_cast<int>(call.dtype),
                static_cast<int>(dtype));
  if (!(sums & used.sums))
    return fail(Code::invalid_argument, "states: lack the sum for %s", op == Op::softmax ? "softmax" : "log_softmax");
  return cpu::with_scratch([&] { map_all(op, states, count, used, plan); });
}

}  // namespace sumexp
