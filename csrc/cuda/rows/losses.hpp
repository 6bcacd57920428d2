// What the kernels of cross-entropy are told, passed by value, and where they are launched: defined in losses.cuh.
#pragma once

#include "../../cpu/losses/call.hpp"
#include "../../ops/losses.hpp"
#include "../arch/arch.hpp"
#include "row_views.hpp"

namespace sumexp::SUMEXP_NS {

struct LossJob {
  cuda::RowViews<cpu::kOperands> rows;  // by the operands of cpu/losses/call.hpp
  LossOptions options;
  TargetKind kind;
  IndexType index_type;
  DType target_dtype;
  std::int64_t pairs, ignore_index;
  const void* weight;  // T, of classes; or null
  double softcap;
  bool mean, zero_if_empty;
  const double* denominator_at;  // or null, where it is `denominator`
  double denominator;
  // Results, each as far as there is a place for it.
  void *loss, *row_loss, *lse, *log_prob, *entropy, *z_loss;
  std::int64_t* predicted;
  std::uint8_t* correct;

  // Whether rows take more than logits and an index.
  bool takes_more() const {
    return kind != TargetKind::index || options.has_dense() || entropy || softcap != 0.0 || options.temperature != 1.0;
  }
};

// The job of a call, checked.
Status job_of(const CrossEntropyCall& call, LossJob& job);
// Of the sums that blocks make of so many rows.
std::size_t parts_bytes(std::int64_t rows);
// The reduction of `rows` contiguous losses, row_loss, to the call's loss.
cudaError_t reduce_losses(const CrossEntropyCall& call, std::int64_t rows, void* parts, cudaStream_t stream);

// Whether nothing is left of a row, whose target is here.
SUMEXP_DEVICE bool is_ignored(const LossJob& job, const char* target) {
  if (job.kind == TargetKind::probabilities) return false;
  const std::int64_t count = job.kind == TargetKind::pairs ? job.pairs : 1;
  for (std::int64_t k = 0; k < count; ++k) {
    const Index t = read_index(job.index_type, target + k * job.rows.stride[cpu::kTarget]);
    if (t.huge || t.value != job.ignore_index) return false;
  }
  return true;
}

// A block a row.
template <class S>
struct LossRows {
  static cudaError_t launch(const LossJob& job, cudaStream_t stream);
};

}  // namespace sumexp::SUMEXP_NS
