// Segments: rows of many lengths, one after the other in one array. Threads get equal shares of elements, whatever segments
// these belong to; a very long segment is shared out among them, in aligned blocks of chunks, as drivers/split.cpp has it.
// Short rows of similar lengths go as tiles, one row to a SIMD lane, with nothing (-inf, or a factor of 0) behind their ends.
#include <algorithm>
#include <limits>
#include <new>
#include <utility>
#include <vector>

#include "../../include/sumexp/ragged.hpp"
#include "../isa.hpp"
#include "../status.hpp"
#include "../threads/floating_point.hpp"
#include "row.hpp"
#include "segments.hpp"

namespace sumexp {

namespace {

using namespace cpu;

constexpr std::int64_t kTaskElements = 1 << 15;
constexpr std::int64_t kSegmentCost = 8;  // in elements
constexpr std::int64_t kLongSegment = std::int64_t{1} << 18;
constexpr int kWindow = 512;  // short rows that are sorted by length together
// The longest rows of tiles: of 512-bit vectors 128 elements where exponentials are shared, else 64 floats or 16 doubles; of
// narrower ones in proportion. One thread (Zen 5, 2026-11), ns per element as rows and as tiles: softmax of 64 floats 1.57 ->
// 0.71, of 128 0.97 -> 0.62, of 64 doubles 2.2 -> 1.4 to 2.0; log_softmax's VJP of 33 floats 1.70 -> 1.18, of 96 0.77 -> 0.85.
constexpr int kLongestShort = 128;
constexpr int kBlockLevel = 5;
constexpr std::int64_t kBlock = std::int64_t{1} << kBlockLevel;

class Segments {
 public:
  Segments(const SegmentsCall& call, const RaggedJob& job) : call_(call), job_(job) {
    const int width = job.moves.width;
    if (!job.kernel.tiles || !job.ragged.load_tile) return;
    if (call.features >= width) longest_ = job.order.chunk;
    else if (job.info.logits) longest_ = kLongestShort * width * job.wide / 64;
    else longest_ = (job.wide == 4 ? 4 : 2) * width;
  }

  // Segments [s0, s1) but the long ones.
  void run(std::int64_t s0, std::int64_t s1, std::int64_t too_long, Workspace& workspace) {
    RowRunner runner(job_);
    Short window[kWindow];
    int waiting = 0;
    for (std::int64_t s = s0; s < s1; ++s) {
      const std::int64_t n = call_.offsets[s + 1] - call_.offsets[s];
      if (n >= too_long) continue;
      for (std::int64_t f = 0; f < call_.features; ++f) {
        if (n == 0) {
          nothing(s, f);
        } else if (n > longest_) {
          runner.run(row_of(s, f), workspace);
        } else {
          window[waiting++] = {s, f, static_cast<int>(n)};
          if (waiting == kWindow) short_rows(window, waiting, runner, workspace), waiting = 0;
        }
      }
    }
    short_rows(window, waiting, runner, workspace);
  }

  // A segment, over all threads.
  void split(std::int64_t s, int threads) {
    for (std::int64_t f = 0; f < call_.features; ++f) split_row(row_of(s, f), threads);
  }

 private:
  struct Short {
    std::int64_t s, f;
    int n;
  };

  OpRow row_of(std::int64_t s, std::int64_t f) const {
    OpRow row = {};
    const std::int64_t first = call_.offsets[s], n = call_.offsets[s + 1] - first;
    const auto at = [&](const View& view, std::int64_t i) {
      return static_cast<char*>(view.data) + i * view.strides[0] + f * view.strides[1];
    };
    for (int k = 0; k < job_.info.inputs; ++k) row.in[k] = {at(call_.in[k], first), call_.in[k].strides[0], n};
    if (job_.info.row_input >= 0) row.input = at(call_.in[job_.info.row_input], s);
    row.out = {at(call_.out, job_.info.row_output ? s : first), call_.out.strides[0], n};
    return row;
  }
  // log 0 of an empty sum, whose derivative is 0
  void nothing(std::int64_t s, std::int64_t f) const {
    if (!job_.info.row_output) return;
    const double value = job_.op == Op::logsumexp ? -std::numeric_limits<double>::infinity() : 0.0;
    job_.ragged.fill(row_of(s, f).out.first, job_.item, 1, value);
  }

  double absent(int k) const {
    const bool logits = job_.info.logits ? k == 0 : (job_.op != Op::softmax_vjp && k == 1);
    return logits ? -std::numeric_limits<double>::infinity() : 0.0;
  }

  void short_rows(const Short* rows, int count, RowRunner& runner, Workspace& workspace) {
    if (count == 0) return;
    // By length, stably: rows of one segment stay side by side.
    int order[kWindow];
    if (longest_ <= kLongestShort) {
      int begin[kLongestShort + 1] = {};
      for (int i = 0; i < count; ++i) ++begin[rows[i].n];
      for (int n = 0, sum = 0; n <= kLongestShort; ++n) sum += std::exchange(begin[n], sum);
      for (int i = 0; i < count; ++i) order[begin[rows[i].n]++] = i;
    } else {
      for (int i = 0; i < count; ++i) order[i] = i;
      std::stable_sort(order, order + count, [&](int a, int b) { return rows[a].n < rows[b].n; });
    }
    const int width = job_.moves.width, inputs = job_.info.inputs, input = job_.info.row_input;
    const std::int64_t vector_bytes = std::int64_t{width} * job_.wide;
    for (int first = 0; first < count;) {
      const int last = std::min(first + kTiles * width, count);
      const std::int64_t tile_bytes = rows[order[last - 1]].n * vector_bytes;
      workspace.reset();
      char* const buffer = take<char>(workspace, kTiles * inputs * tile_bytes);
      char* const single = take<char>(workspace, 2 * kTiles * vector_bytes);  // row inputs, results
      Tile tiles[kTiles];
      RaggedRow out[kTiles][kWidestVector];
      int tile_count = 0;
      for (int at = first; at < last; at += width, ++tile_count) {
        Tile& tile = tiles[tile_count];
        tile.rows = std::min(width, last - at);
        tile.count = rows[order[at + tile.rows - 1]].n;
        tile.first = 0, tile.top = nullptr;
        RaggedRow in[2][kWidestVector];
        tile.row_input = {single + tile_count * vector_bytes, job_.item};
        tile.out = {single + (kTiles + tile_count) * vector_bytes, job_.item};
        tile.extra = {nullptr, 0};
        for (int b = 0; b < tile.rows; ++b) {
          const OpRow row = row_of(rows[order[at + b]].s, rows[order[at + b]].f);
          for (int k = 0; k < inputs; ++k) in[k][b] = row.in[k];
          out[tile_count][b] = row.out;
          if (input >= 0) std::memcpy(tile.row_input.first + b * job_.item, row.input, static_cast<std::size_t>(job_.item));
        }
        for (int k = 0; k < inputs; ++k) {
          tile.in[k] = buffer + (k * kTiles + tile_count) * tile_bytes;
          job_.ragged.load_tile(in[k], tile.rows, tile.count, absent(k), tile.in[k]);
        }
        tile.terms = tile.in[0];
      }
      if (!job_.kernel.tiles(tiles, tile_count, 1.0)) {
        for (int i = first; i < last; ++i) runner.run(row_of(rows[order[i]].s, rows[order[i]].f), workspace);
      } else {
        for (int t = 0; t < tile_count; ++t) {
          if (!job_.info.row_output) {
            job_.ragged.store_tile(out[t], tiles[t].rows, tiles[t].count, tiles[t].in[0]);
          } else {
            for (int b = 0; b < tiles[t].rows; ++b)
              std::memcpy(out[t][b].first, tiles[t].out.first + b * job_.item, static_cast<std::size_t>(job_.item));
          }
        }
      }
      first = last;
    }
  }

  void split_row(const OpRow& row, int threads) {
    const Kernel& kernel = job_.kernel;
    const std::int64_t chunks = job_.chunks_of(row.in[0].n), blocks = (chunks + kBlock - 1) / kBlock,
                       state = kernel.state_bytes;
    std::vector<char> own(
        static_cast<std::size_t>(blocks * state + StateTree::kLevels * state + kernel.row_bytes + chunks * job_.wide + 2 * 64));
    char* const states = reinterpret_cast<char*>((reinterpret_cast<std::uintptr_t>(own.data()) + 63) / 64 * 64);
    StateTree tree = {states + blocks * state};
    char* const finished = tree.stack + StateTree::kLevels * state;
    struct Work {
      const RaggedJob& job;
      const OpRow& row;
      char *states, *maxima, *finished;
      std::int64_t chunks;
    } work = {job_, row, states, finished + (kernel.row_bytes + 63) / 64 * 64, finished, chunks};
    run_parts(
        blocks, threads,
        [](void* context, std::int64_t i, Workspace& workspace) {
          const Work& work = *static_cast<Work*>(context);
          RowRunner runner(work.job);
          runner.begin_part(work.row, workspace, work.maxima);
          runner.reduce(i * kBlock, std::min((i + 1) * kBlock, work.chunks), work.states + i * work.job.kernel.state_bytes);
        },
        &work);
    for (std::int64_t i = 0; i < blocks - 1; ++i) tree.push(kernel, states + i * state, kBlockLevel);
    char* const root = states + (blocks - 1) * state;
    tree.finish(kernel, root);
    RowRunner runner(job_);
    runner.finish(row, root, finished);
    if (!job_.info.row_output)
      run_parts(
          blocks, threads,
          [](void* context, std::int64_t i, Workspace& workspace) {
            const Work& work = *static_cast<Work*>(context);
            RowRunner runner(work.job);
            runner.begin_part(work.row, workspace, work.maxima);
            runner.map(i * kBlock, std::min((i + 1) * kBlock, work.chunks), work.finished);
          },
          &work);
    runner.emit(row, finished);
  }

  const SegmentsCall& call_;
  const RaggedJob& job_;
  int longest_ = 0;
};

void run_segments(const SegmentsCall& call, const std::vector<std::int64_t>& long_segments) {
  const RaggedJob job(call.op, call.dtype);
  Segments segments(call, job);
  const auto cost = [&](std::int64_t s) { return (call.offsets[s] + kSegmentCost * s) * call.features; };
  const std::int64_t total = cost(call.segments);
  const int threads = threads_for(total);
  if (threads < 2) return segments.run(0, call.segments, std::numeric_limits<std::int64_t>::max(), thread_workspace());
  const std::int64_t tasks = std::max<std::int64_t>(total / kTaskElements, threads);
  // first[i]: the first segment of task i, those whose cost begins in its share
  std::vector<std::int64_t> first(static_cast<std::size_t>(tasks) + 1, call.segments);
  std::int64_t s = 0;
  for (std::int64_t i = 0; i < tasks; ++i) {
    const std::int64_t from = total / tasks * i;
    std::int64_t low = s, high = call.segments;
    while (low < high) {
      const std::int64_t middle = low + (high - low) / 2;
      if (cost(middle) < from) low = middle + 1;
      else high = middle;
    }
    first[static_cast<std::size_t>(i)] = s = low;
  }
  struct Work {
    Segments& segments;
    const std::int64_t* first;
  } work = {segments, first.data()};
  run_parts(
      tasks, threads,
      [](void* context, std::int64_t i, Workspace& workspace) {
        const Work& work = *static_cast<Work*>(context);
        work.segments.run(work.first[i], work.first[i + 1], kLongSegment, workspace);
      },
      &work);
  for (const std::int64_t s : long_segments) segments.split(s, threads);
}

}  // namespace

Status segment_offsets(const std::int64_t* ids, std::int64_t elements, std::int64_t segments, std::int64_t* offsets) noexcept {
  if (elements < 0 || segments < 0)
    return fail(Code::invalid_argument, "%s is negative, accepted: sizes from 0", elements < 0 ? "elements" : "segments");
  if (!offsets || (elements && !ids)) return fail(Code::invalid_argument, "%s is missing", offsets ? "ids" : "offsets");
  std::int64_t s = 0;
  for (std::int64_t i = 0; i < elements; ++i) {
    const std::int64_t id = ids[i];
    if (id < 0 || id >= segments)
      return fail(Code::invalid_argument, "ids has %lld at %lld, accepted: 0 to %lld (num_segments - 1)",
                  static_cast<long long>(id), static_cast<long long>(i), static_cast<long long>(segments - 1));
    if (id < s)
      return fail(Code::invalid_argument, "ids has %lld at %lld after %lld, accepted: ids that do not fall (sort them)",
                  static_cast<long long>(id), static_cast<long long>(i), static_cast<long long>(s));
    s = id;
  }
  s = 0, offsets[0] = 0;
  for (std::int64_t i = 0; i < elements; ++i)
    while (s < ids[i]) offsets[++s] = i;
  while (s < segments) offsets[++s] = elements;
  return Status{};
}

Status cpu::check_segments(const SegmentsCall& call) {
  const int op = static_cast<int>(call.op);
  constexpr Op kServed[] = {Op::softmax,         Op::log_softmax,   Op::logsumexp,       Op::softmax_vjp,
                            Op::log_softmax_vjp, Op::logsumexp_vjp, Op::log_softmax_jvp, Op::logsumexp_jvp};
  if (std::find(std::begin(kServed), std::end(kServed), call.op) == std::end(kServed))
    return fail(Code::unsupported, "op is code %d, accepted: softmax, log_softmax, logsumexp and their VJPs and JVPs", op);
  const OpInfo& info = op_info(call.op);
  if (!is_dtype(call.dtype)) return bad_dtype("dtype", call.dtype);
  if (call.elements < 0 || call.features < 0 || call.segments < 0)
    return fail(Code::invalid_argument, "%s is negative, accepted: sizes from 0",
                call.elements < 0   ? "elements"
                : call.features < 0 ? "features"
                                    : "segments");
  if (!is_countable(item_size(call.dtype), {std::max(call.elements, call.segments), call.features}))
    return fail(Code::invalid_argument, "elements, segments, features: have more bytes than 63 bits can count");
  if (!call.offsets) return fail(Code::invalid_argument, "offsets is missing");
  if (call.segments == 0 || call.features == 0) return Status{};
  const int inputs = info.inputs + (info.row_input >= 0 ? 1 : 0);
  for (int k = 0; k < inputs; ++k)
    if ((call.elements > 0 && !call.in[k].data) || !call.in[k].strides)
      return fail(Code::invalid_argument, "in[%d] is missing; %s takes %d inputs", k, info.name, inputs);
  if (((call.elements > 0 || info.row_output) && !call.out.data) || !call.out.strides)
    return fail(Code::invalid_argument, "out is missing");
  return Status{};
}

Status segments(const SegmentsCall& call) noexcept {
  const DefaultFloatingPoint mode;
  if (const Status status = check_segments(call); !status.ok()) return status;
  if (call.offsets[0] != 0 || call.offsets[call.segments] != call.elements)
    return fail(Code::invalid_argument, "offsets has %lld to %lld, accepted: offsets from 0 to the %lld elements",
                static_cast<long long>(call.offsets[0]), static_cast<long long>(call.offsets[call.segments]),
                static_cast<long long>(call.elements));
  return with_scratch([&]() -> Status {
    std::vector<std::int64_t> long_segments;
    for (std::int64_t s = 0; s < call.segments; ++s) {
      if (call.offsets[s + 1] < call.offsets[s])
        return fail(Code::invalid_argument, "offsets has %lld at %lld after %lld, accepted: offsets that do not fall",
                    static_cast<long long>(call.offsets[s + 1]), static_cast<long long>(s + 1),
                    static_cast<long long>(call.offsets[s]));
      if (call.offsets[s + 1] - call.offsets[s] >= kLongSegment) long_segments.push_back(s);
    }
    if (call.segments > 0 && call.features > 0) run_segments(call, long_segments);
    return Status{};
  });
}

}  // namespace sumexp
