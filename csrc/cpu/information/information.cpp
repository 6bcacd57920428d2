// log_prob, entropy and kl_div: checks, rows, threads. Every row is on one thread.
#include "../../include/sumexp/information.hpp"

#include <cstring>
#include <new>

#include "../drivers/tile_rows.hpp"
#include "../isa.hpp"
#include "../kernels/information.hpp"
#include "../status.hpp"
#include "../threads/floating_point.hpp"
#include "check.hpp"

namespace sumexp {

namespace {

using cpu::fail;

constexpr std::int64_t kTaskElements = 1 << 16;
constexpr std::int64_t kResidentBytes = 512 << 10;  // of a row in scratch, for a gradient: half of a 1 MB L2
constexpr std::int64_t kTileRow = 256;              // longer rows, one after the other, go one by one

using cpu::kAbsent, cpu::kFull, cpu::kOneARow, cpu::kPicked;
using Arguments = cpu::Argument[cpu::kOperands];  // by operand

// A plan of rows along one axis. Merges neighbouring batch dimensions that all operands walk as one.
Status plan_rows(const LogitsRows& rows, const Arguments& arguments, cpu::Plan& plan) {
  cpu::RowShape shape;
  const Status status = cpu::check_rows(rows, arguments, cpu::kOperands, shape);
  if (!status.ok()) return status;
  const int axis = shape.axis;
  plan = cpu::Plan{};
  plan.dtype = rows.dtype, plan.temperature = rows.temperature;
  plan.rows = shape.rows, plan.n = shape.n;
  for (int k = 0; k < cpu::kOperands; ++k) {
    const cpu::Argument& argument = arguments[k];
    if (argument.kind == kAbsent) continue;
    plan.data[k] = argument.view->data;
    plan.row[0].stride[k] = argument.kind == kOneARow ? 0 : argument.view->strides[axis];
  }
  plan.row_dims = 1;
  plan.row[0].size = plan.n;
  for (int d = 0; d < rows.ndim; ++d) {
    if (d == axis || rows.shape[d] == 1) continue;
    cpu::Dim& dim = plan.batch[plan.batch_dims++];
    dim.size = rows.shape[d];
    for (int k = 0; k < cpu::kOperands; ++k) dim.stride[k] = arguments[k].kind ? arguments[k].view->strides[d] : 0;
    if (plan.batch_dims < 2) continue;
    cpu::Dim& outer = plan.batch[plan.batch_dims - 2];
    bool joined = true;
    for (int k = 0; joined && k < cpu::kOperands; ++k) joined = outer.stride[k] == dim.stride[k] * dim.size;
    if (!joined) continue;
    dim.size *= outer.size;
    outer = dim;
    --plan.batch_dims;
  }
  return Status{};
}

Status check_indices(const LogitsRows& rows, const cpu::Plan& plan) {
  for (std::int64_t r = 0; r < plan.rows && rows.picks; ++r) {
    const char* at = static_cast<const char*>(plan.data[cpu::kPicks]) + plan.row_offsets(r).at[cpu::kPicks];
    for (std::int64_t k = 0; k < rows.picks; ++k, at += plan.row[0].stride[cpu::kPicks]) {
      std::int64_t index;
      std::memcpy(&index, at, sizeof(index));
      if (index < 0 || index >= plan.n)
        return fail(Code::invalid_argument, "index is %lld for row %lld, accepted: indices from 0 below %lld",
                    static_cast<long long>(index), static_cast<long long>(r), static_cast<long long>(plan.n));
    }
  }
  return Status{};
}

// What all rows of a call have in common, and runs of them on one thread.
struct Work {
  const cpu::Plan& plan;
  const cpu::Moves& moves;
  cpu::InformationKernel::Function kernel;
  std::int64_t picks;
  int sides;  // rows of logits: 1 or 2
  bool distances, full_result;
  std::int64_t step = 0;  // rows of a task
  std::int64_t item = cpu::item_size(plan.dtype), wide = plan.dtype == DType::f64 ? 8 : 4;
  cpu::Order order = cpu::order_of(static_cast<int>(wide));

  std::int64_t in_lines(std::int64_t elements) const { return (elements * wide + 63) / 64 * 64; }
  std::int64_t apart(int operand) const { return plan.inner().stride[operand]; }
  // Operands that have the rows' elements, one of each side: logits, and results, if these are full.
  int of_logits(int side) const { return side ? int{cpu::kOther} : int{cpu::kLogits}; }
  int of_result(int side) const { return side ? int{cpu::kExtra} : int{cpu::kResult}; }
  bool side_by_side() const {
    bool every = plan.row[0].stride[cpu::kLogits] != item;
    for (int s = 0; s < sides; ++s) every &= apart(of_logits(s)) == item && (!full_result || apart(of_result(s)) == item);
    return every;
  }
  // Short rows, and rows side by side, go V::W at a time.
  bool tiled() const { return kernel.tile && plan.n > 0 && plan.n <= (side_by_side() ? order.chunk : kTileRow); }

  void run(std::int64_t i, cpu::Workspace& workspace) const {
    const std::int64_t chunks = (plan.n + order.chunk - 1) / order.chunk;
    cpu::InformationRow row = {plan, moves, {}, picks, {}, false, distances, {}, {}, {}};
    row.resident = full_result && 2 * sides * in_lines(chunks * order.chunk) <= kResidentBytes;
    const std::int64_t place = in_lines(row.resident ? chunks * order.chunk : order.chunk), maxima = in_lines(chunks);
    const std::int64_t tile = tiled() ? in_lines((plan.n + moves.width - 1) / moves.width * moves.width * moves.width) : 0;
    workspace.reset();
    char* scratch = static_cast<char*>(workspace.take_bytes(static_cast<std::size_t>(sides * (2 * place + maxima + 2 * tile))));
    const auto take = [&](std::int64_t bytes) {
      char* const p = scratch;
      scratch += bytes;
      return p;
    };
    for (int s = 0; s < sides; ++s) {
      row.direct[s] = item == wide && plan.row[0].stride[s] == item && plan.temperature == 1.0;
      row.packed[s] = take(place), row.terms[s] = take(place), row.maxima[s] = take(maxima);
    }
    cpu::Tile tiles[2] = {};
    for (int s = 0; s < sides; ++s) tiles[s].in[0] = take(tile), tiles[s].terms = take(tile);
    const std::int64_t end = (i + 1) * step < plan.rows ? (i + 1) * step : plan.rows;
    const std::int64_t inner = plan.inner().size;
    for (std::int64_t r = i * step; r < end;) {
      std::int64_t together = inner - r % inner;
      if (together > end - r) together = end - r;
      if (together > moves.width) together = moves.width;
      place_row(row, r);
      const bool enough = together * 2 >= moves.width || (together > 1 && plan.n <= 2 * moves.width);
      if (tile && enough && run_tiles(row, static_cast<int>(together), tiles)) {
        r += together;
        continue;
      }
      for (const std::int64_t last = tile ? r + together : r + 1; r < last; ++r) {
        place_row(row, r);
        kernel.row(row);
      }
    }
  }

 private:
  void place_row(cpu::InformationRow& row, std::int64_t r) const {
    const cpu::Offsets offsets = plan.row_offsets(r);
    for (int k = 0; k < cpu::kOperands; ++k)
      row.at[k] = plan.data[k] ? static_cast<char*>(plan.data[k]) + offsets.at[k] : nullptr;
  }
  bool run_tiles(const cpu::InformationRow& row, int rows, cpu::Tile* tiles) const {
    const int n = static_cast<int>(plan.n);
    const std::int64_t elements = std::int64_t{n} * moves.width;
    const auto of = [&](int k) { return cpu::TileRows{moves, plan, k, item, wide, n}; };
    std::int64_t step[cpu::kOperands];
    for (int k = 0; k < cpu::kOperands; ++k) step[k] = apart(k);
    for (int s = 0; s < sides; ++s) {
      const int k = of_logits(s);
      void* const to = tiles[s].in[0];
      of(k).load(row.at[k], rows, to);
      if (plan.temperature != 1.0 && !moves.divide(plan.temperature, elements, to)) return false;
      tiles[s].count = n, tiles[s].rows = rows;
    }
    if (!kernel.tile(row, tiles, step)) return false;
    for (int s = 0; full_result && s < sides; ++s) {
      const int k = of_result(s);
      void* const from = tiles[s].in[0];
      if (plan.temperature != 1.0) moves.divide(plan.temperature, elements, from);
      of(k).store(row.at[k], rows, from);
    }
    return true;
  }
};
static_assert(cpu::kLogits == 0 && cpu::kOther == 1, "the rows of logits are the first operands");

Status run_all(Work work) {
  const cpu::Plan& plan = work.plan;
  work.step = kTaskElements / (plan.n ? plan.n : 1);
  if (work.step < 1) work.step = 1;
  if (work.tiled()) work.step = (work.step + work.moves.width - 1) / work.moves.width * work.moves.width;
  return cpu::with_scratch([&] {
    cpu::run_parts(
        (plan.rows + work.step - 1) / work.step, cpu::threads_for(plan.rows * plan.n * work.sides),
        [](void* context, std::int64_t i, cpu::Workspace& workspace) { static_cast<const Work*>(context)->run(i, workspace); },
        &work);
  });
}

struct Tables {
  const cpu::Moves& moves;
  const cpu::InformationKernel& kernel;
};
Tables tables_for(DType dtype) {
  const int isa = cpu::isa_in_use(), code = static_cast<int>(dtype);
  return {*SUMEXP_AT(cpu::kernels_, isa).moves[code], SUMEXP_AT(cpu::information_kernels_, isa).rows[code]};
}

constexpr View kNothing;

}  // namespace

Status log_prob_and_entropy(const LogitsRows& rows, const View& logits, const View& index, const View& log_prob,
                            const View& entropy) noexcept {
  const cpu::DefaultFloatingPoint mode;
  const bool picked = cpu::is_given(index) || cpu::is_given(log_prob), wanted = cpu::is_given(entropy);
  cpu::Plan plan;
  Arguments arguments = {{"logits", &logits, kFull},
                         {"index", &index, picked ? kPicked : kAbsent},
                         {"log_prob", &log_prob, picked ? kPicked : kAbsent},
                         {"", &kNothing, kAbsent},
                         {"entropy", &entropy, wanted ? kOneARow : kAbsent},
                         {"", &kNothing, kAbsent}};
  Status status = plan_rows(rows, arguments, plan);
  if (status.ok() && picked) status = check_indices(rows, plan);
  if (!status.ok() || plan.rows == 0) return status;
  const Tables tables = tables_for(rows.dtype);
  return run_all({plan, tables.moves, tables.kernel.log_prob, rows.picks, 1, wanted, false});
}

Status log_prob_and_entropy_vjp(const LogitsRows& rows, const View& g_log_prob, const View& g_entropy, const View& logits,
                                const View& index, const View& out) noexcept {
  const cpu::DefaultFloatingPoint mode;
  const bool picked = cpu::is_given(index) || cpu::is_given(g_log_prob), wanted = cpu::is_given(g_entropy);
  cpu::Plan plan;
  Arguments arguments = {{"logits", &logits, kFull},
                         {"index", &index, picked ? kPicked : kAbsent},
                         {"g_log_prob", &g_log_prob, picked ? kPicked : kAbsent},
                         {"g_entropy", &g_entropy, wanted ? kOneARow : kAbsent},
                         {"out", &out, kFull},
                         {"", &kNothing, kAbsent}};
  Status status = plan_rows(rows, arguments, plan);
  if (status.ok() && picked) status = check_indices(rows, plan);
  if (!status.ok() || plan.rows == 0) return status;
  const Tables tables = tables_for(rows.dtype);
  return run_all({plan, tables.moves, tables.kernel.log_prob_vjp, rows.picks, 1, wanted, true});
}

Status kl_div(const LogitsRows& rows, const View& p_logits, const View& q_logits, const View& out) noexcept {
  const cpu::DefaultFloatingPoint mode;
  cpu::Plan plan;
  Arguments arguments = {{"p_logits", &p_logits, kFull}, {"q_logits", &q_logits, kFull}, {"", &kNothing, kAbsent},
                         {"", &kNothing, kAbsent},       {"out", &out, kOneARow},        {"", &kNothing, kAbsent}};
  Status status = plan_rows(rows, arguments, plan);
  if (status.ok()) status = cpu::check_no_temperature(rows, "kl_div");
  if (!status.ok() || plan.rows == 0) return status;
  const Tables tables = tables_for(rows.dtype);
  return run_all({plan, tables.moves, tables.kernel.kl_div, 0, 2, false, false});
}

Status kl_div_vjp(const LogitsRows& rows, const View& g, const View& p_logits, const View& q_logits, const View& out_p,
                  const View& out_q) noexcept {
  const cpu::DefaultFloatingPoint mode;
  cpu::Plan plan;
  Arguments arguments = {{"p_logits", &p_logits, kFull}, {"q_logits", &q_logits, kFull},
                         {"", &kNothing, kAbsent},       {"g", &g, kOneARow},
                         {"out_p", &out_p, kFull},       {"out_q", &out_q, kFull}};
  Status status = plan_rows(rows, arguments, plan);
  if (status.ok()) status = cpu::check_no_temperature(rows, "kl_div_vjp");
  if (!status.ok() || plan.rows == 0) return status;
  const Tables tables = tables_for(rows.dtype);
  return run_all({plan, tables.moves, tables.kernel.kl_div_vjp, 0, 2, false, true});
}

}  // namespace sumexp
