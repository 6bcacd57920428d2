// sumexp: losses. Cross-entropy of logits, with every option of training, and its gradient from the same sweep.
//
// With z = softcap tanh(x / softcap) / temperature (each as far as given; infinite logits stay infinite), p = softmax(z) and
// lse = log sum_j e^(z_j), over the C classes of a row:
//
//   loss     = token_weight ( sum_j a_j (lse - z_j) + z_loss lse^2 )
//   a_j      = w_j ( (1 - label_smoothing) y_j + label_smoothing / C ),   y the target
//   gradient = factor ( (sum_j a_j + 2 z_loss lse) p_j - a_j ) dz_j/dx_j
//
// Classes with a_j = 0 add nothing, whatever their logit. reduction: the rows' losses; their sum; or the sum over a
// denominator, which is, if none is given, the sum over the rows kept of token_weight w_t (of indices) or token_weight.
// factor: token_weight, over the denominator of a mean, times g.
//
// Rows are added as a binary tree over their index, in the wide type (csrc/numerics/README.md): the loss does not depend on
// threads. Every row's loss and gradient depend on that row alone.
#pragma once

#include "sumexp.hpp"

namespace sumexp {

// What a target is. index: the class of a row. probabilities: one number for each class. pairs: K classes of a row, each
// with a weight, the same class several times if need be.
enum class TargetKind : std::int32_t { index = 0, probabilities = 1, pairs = 2 };
enum class IndexType : std::int32_t { i8 = 0, i16 = 1, i32 = 2, i64 = 3, u8 = 4, u16 = 5, u32 = 6, u64 = 7 };
enum class LossReduction : std::int32_t { none = 0, mean = 1, sum = 2 };

// Views have a stride for each dimension of `shape`; those of one value a row are not moved along the class axis.
// T is float, or double where dtype is f64. "Rows": C-contiguous, one a row, in the order of the other dimensions.
struct CrossEntropyCall {
  DType dtype = DType::f32;
  int ndim = 0;  // 1 .. kMaxDims
  const std::int64_t* shape = nullptr;
  int axis = -1;  // of the classes
  View logits;

  TargetKind kind = TargetKind::index;
  IndexType index_type = IndexType::i64;  // of indices
  DType target_dtype = DType::f32;        // of probabilities, and of the weights of pairs
  View target;                            // one index a row; probabilities as logits; of pairs K indices along the class axis
  View target_weight;                     // of pairs
  std::int64_t pairs = 0;                 // K

  const void* weight = nullptr;      // w: T, one a class, contiguous; absent: 1
  View token_weight;                 // double, one a row; absent: 1
  std::int64_t ignore_index = -100;  // rows with this index are not read and have no loss and no gradient; pairs are left out,
                                     // and a row where no pair is left is ignored
  double label_smoothing = 0.0;      // in [0, 1]
  double z_loss = 0.0;               // finite, from 0
  double softcap = 0.0;              // finite, above 0; 0: none
  double temperature = 1.0;          // above 0; infinity: every finite logit is 0
  LossReduction reduction = LossReduction::mean;
  bool given_denominator = false;          // of a mean
  double denominator = 1.0;                // finite, from 0
  const double* denominator_at = nullptr;  // where it is instead, on the device of the call: any number, as it is
  bool zero_if_empty = false;              // a mean over a denominator of 0, and its gradient, are 0, not NaN

  View g;        // double, one a row: what the gradient is multiplied by; absent: 1
  View dlogits;  // the gradient, of dtype; may be the logits (same data and strides), else disjoint. Absent: not wanted
  // What is subnormal in the gradient becomes 0: for products with it, of which each takes some CPUs a hundred cycles. CPU
  bool flush_subnormal = false;
  // Results, each as far as there is a place for it. Of ignored rows 0, predicted -1.
  void* loss = nullptr;               // of dtype: rows, or one number
  void* row_loss = nullptr;           // T, rows: the losses before they are reduced
  void* lse = nullptr;                // T, rows
  void* log_prob = nullptr;           // T, rows: sum_j y_j log p_j
  void* entropy = nullptr;            // T, rows: -sum_j p_j log p_j
  void* z_loss_part = nullptr;        // T, rows: z_loss lse^2
  std::int64_t* predicted = nullptr;  // rows: the first of the classes with the largest z; -1 where the row has a NaN
  std::uint8_t* correct = nullptr;    // rows: 1 where that is the target's (first) class with the largest y, else 0
  void* saved = nullptr;              // rows of cross_entropy_saved_bytes: for cross_entropy_gradient_part. CPU
};

// Targets out of range are refused, with row and value, before anything is written.
SUMEXP_API Status cross_entropy(const CrossEntropyCall& call) noexcept;

// The gradient of some classes alone, of logits that exist (again) for these alone, in the bytes that the whole gradient has.
// `call` is that of a cross_entropy which has filled `saved`, with views `logits` and `dlogits` of `count` classes from `first`
// on. Nothing but the gradient is computed, and written.
SUMEXP_API Status cross_entropy_gradient_part(const CrossEntropyCall& call, std::int64_t first, std::int64_t count) noexcept;
// Of a row, a multiple of 16; 0 of no dtype, of less than no class, or of more than 63 bits can count the bytes of.
SUMEXP_API std::int64_t cross_entropy_saved_bytes(DType dtype, std::int64_t classes) noexcept;

// The denominator of the mean, from the shape, the target, weight, token_weight and ignore_index of a call.
SUMEXP_API Status cross_entropy_denominator(const CrossEntropyCall& call, double* denominator) noexcept;

// The sum of contiguous row losses (float of f16, bf16 and f32, else double) in the order of the reductions above.
SUMEXP_API Status sum_rows(const void* values, DType dtype, std::int64_t rows, double* sum) noexcept;

}  // namespace sumexp
