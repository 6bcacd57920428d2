#include "tiles.hpp"

#include "rows.hpp"

namespace sumexp::cpu {

bool tiles_serve(const Job& job, std::int64_t rows) {
  const Plan& plan = job.plan;
  const int width = job.moves.width;
  const std::int64_t longest = 2 * width;  // longer rows keep a vector busy by themselves (panels)
  if (!job.kernel.tiles || plan.n < 1 || plan.n > longest || plan.row_dims > 1 || plan.data[kWhere]) return false;
  if (!plan.direct) return rows > 1;
  // A tile costs as much as its elements, a panel as its rows, and sums little beside a transposition, so that half a vector
  // will do. Parts of 16-bit vectors cannot be loaded.
  const bool parts = job.item == job.wide, sums = !job.info.logits;
  return plan.n % width != 0 && !(parts && (2 * rows <= plan.n || (sums && 2 * plan.n > width)));
}

void run_tiles(const Job& job, std::int64_t begin, std::int64_t end, Workspace& workspace) {
  const Plan& plan = job.plan;
  const int width = job.moves.width, n = static_cast<int>(plan.n), inputs = job.info.inputs, input = job.info.row_input;
  const int buffers = inputs + job.own_terms;
  const std::int64_t vector_bytes = std::int64_t{width} * job.wide, tile_bytes = (n + width - 1) / width * width * vector_bytes;
  std::int64_t stride[kOperands], step[kOperands];
  for (int k = 0; k < kOperands; ++k) {
    stride[k] = plan.row_dims ? plan.row[0].stride[k] : 0;
    step[k] = plan.inner().stride[k];
  }
  for (std::int64_t r = begin; r < end;) {
    workspace.reset();
    char* const buffer = take<char>(workspace, kTiles * buffers * tile_bytes);
    Tile tiles[kTiles];
    RowsAt out[kTiles];
    int count = 0;
    bool serves = true;
    std::int64_t next = r;
    for (; count < kTiles && next < end; ++count) {
      Tile& tile = tiles[count];
      tile.rows = block_rows(job, next, end, width);
      tile.count = n;
      tile.first = 0;
      tile.top = nullptr;
      const Offsets first = plan.row_offsets(next);
      const auto rows_of = [&](int k) { return RowsAt{static_cast<char*>(plan.data[k]) + first.at[k], step[k]}; };
      for (int k = 0; k < inputs; ++k) {
        tile.in[k] = buffer + (k * kTiles + count) * tile_bytes;
        job.moves.load_tile(rows_of(k), stride[k], tile.rows, n, tile.in[k]);
      }
      if (job.divide) serves &= job.moves.divide(plan.temperature, n * std::int64_t{width}, tile.in[0]);
      if (input >= 0) tile.row_input = rows_of(input);
      tile.scaled = plan.scaled;
      tile.terms = job.own_terms ? buffer + (inputs * kTiles + count) * tile_bytes : tile.in[0];
      tile.out = out[count] = rows_of(kOut);
      tile.extra = plan.data[kExtra] ? rows_of(kExtra) : RowsAt{nullptr, 0};
      next += tile.rows;
    }
    if (!serves || !job.kernel.tiles(tiles, count, job.factor)) {
      RowDriver(job, workspace).run(r, next);
    } else if (!job.info.row_output) {
      for (int t = 0; t < count; ++t) job.moves.store_tile(out[t], stride[kOut], tiles[t].rows, n, tiles[t].in[0], plan.stream);
    }
    r = next;
  }
}

}  // namespace sumexp::cpu
