// One row of any length and strides through the kernels of an op, chunk by chunk: what drivers/rows.cpp does for the rows of a
// plan, for rows that come one by one.
#pragma once

#include "../drivers/driver.hpp"
#include "../kernels/ragged_table.hpp"

namespace sumexp::cpu {

// What an op and a dtype say, and their kernels.
struct RaggedJob {
  Op op;
  DType dtype;
  const OpInfo& info;
  const Kernel& kernel;
  const Moves& moves;
  const RaggedMoves& ragged;
  int item, wide;  // bytes of a stored element, and of T
  Order order;

  RaggedJob(Op op, DType dtype);
  RaggedJob(Op op, DType dtype, int isa);
  std::int64_t chunks_of(std::int64_t n) const { return (n + order.chunk - 1) / order.chunk; }
};

// pack_row and unpack_row for one row, which they know as that of a plan.
class RowMoves {
 public:
  explicit RowMoves(const RaggedJob& job) : job_(job) { plan_.row_dims = 1; }
  void pack(const char* row, std::int64_t stride, std::int64_t first, int count, void* to) {
    plan_.row[0].stride[0] = stride;
    job_.moves.pack_row(plan_, 0, row, first, count, to);
  }
  void unpack(char* row, std::int64_t stride, std::int64_t first, int count, const void* from) {
    plan_.row[0].stride[0] = stride;
    job_.moves.unpack_row(plan_, 0, row, first, count, from);
  }

 private:
  const RaggedJob& job_;
  Plan plan_;
};

struct OpRow {
  RaggedRow in[2], out;  // elementwise; out: of ops with one value a row, where that goes
  const char* input;     // the row input
};

class RowRunner {
 public:
  explicit RowRunner(const RaggedJob& job) : job_(job), kernel_(job.kernel), moves_(job) {}
  // The whole row.
  void run(const OpRow& row, Workspace& workspace);

  // A part of a row, for several runners at once; maxima: a T for each of the row's chunks.
  void begin_part(const OpRow& row, Workspace& workspace, char* maxima) { begin(row, workspace, maxima); }
  void reduce(std::int64_t c0, std::int64_t c1, void* state);
  void map(std::int64_t c0, std::int64_t c1, const void* finished);
  void finish(const OpRow& row, const void* state, void* finished) const;
  void emit(const OpRow& row, const void* finished) const;

 private:
  void begin(const OpRow& row, Workspace& workspace, char* maxima);
  Chunk chunk_at(std::int64_t c);
  void pack(std::int64_t c);

  const RaggedJob& job_;
  const Kernel& kernel_;
  RowMoves moves_;
  OpRow row_;
  Elements elements_;
  bool resident_;
  std::int64_t n_, chunks_, packed_through_;
  char *packed_[2], *terms_, *maxima_, *state_, *finished_;
  StateTree tree_;
};

}  // namespace sumexp::cpu
