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

// A block a row.
template <class S>
struct LossRows {
  static cudaError_t launch(const LossJob& job, cudaStream_t stream);
};

}  // namespace sumexp::SUMEXP_NS
