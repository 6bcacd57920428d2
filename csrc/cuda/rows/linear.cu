// The softmax layer on a device, in chunks of tokens, as cpu/losses/linear.cpp. Which tokens are ignored is not known before:
// they have logits too, those of an x of zeros, and gradients that are zeros whatever they hold.
#include "../../cpu/losses/head.hpp"

#include <cstdint>

#include "../../cpu/status.hpp"
#include "../on_device.hpp"
#include "losses.hpp"
#include "row.cuh"

namespace sumexp::SUMEXP_NS {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kMostBlocks = 4096;

// Rows of `width` numbers from `from`, those of ignored tokens as zeros; from may be to.
template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    kept_rows(SUMEXP_PARAMETER LossJob job, const T* from, std::int64_t from_step, T* to, std::int64_t width) {
  each_row(job.rows.rows, [&](std::int64_t row) {
    char* at[cpu::kOperands];
    place_row(job.rows, row, at);
    const bool kept = !is_ignored(job, at[cpu::kTarget]);
#pragma unroll 1
    for (std::int64_t i = threadIdx.x; i < width; i += blockDim.x)
      to[row * width + i] = kept ? from[row * from_step + i] : T(0);
  });
}

// Adds the bias to rows of logits.
template <class T>
__global__ void __launch_bounds__(kThreads, 1) add_bias(T* logits, const T* bias, std::int64_t rows, std::int64_t classes) {
  each_row(rows, [&](std::int64_t row) {
#pragma unroll 1
    for (std::int64_t j = threadIdx.x; j < classes; j += blockDim.x)
      logits[row * classes + j] = logits[row * classes + j] + bias[j];
  });
}

// sums, or zeros at `first`, plus the rows, one after the other; a thread a column.
template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    add_columns(const T* rows, std::int64_t count, std::int64_t columns, bool first, T* sums) {
#pragma unroll 1
  for (std::int64_t j = blockIdx.x * std::int64_t(blockDim.x) + threadIdx.x; j < columns;
       j += gridDim.x * std::int64_t(blockDim.x)) {
    T sum = first ? T(0) : sums[j];
#pragma unroll 1
    for (std::int64_t r = 0; r < count; ++r) sum = sum + rows[r * columns + j];
    sums[j] = quiet(sum);
  }
}

arch::Launch launch_of(std::int64_t blocks, void* stream) {
  arch::Launch how;
  how.grid = dim3(unsigned(blocks < 1 ? 1 : blocks < kMostBlocks ? blocks : kMostBlocks)), how.block = dim3(kThreads);
  how.stream = static_cast<cudaStream_t>(stream);
  return how;
}
std::size_t aligned(std::int64_t bytes) { return (static_cast<std::size_t>(bytes) + 255) / 256 * 256; }

// One call. T: float or double.
template <class T>
class Head {
 public:
  Head(const LinearCrossEntropyCall& call, cuda::Target& target) : call_(call), target_(target) {}

  Status run() {
    const cuda::Current device(target_.device);  // for the products, too
    if (device.error() != cudaSuccess) return cuda::failure(device.error(), target_.device);
    const std::int64_t tokens = call_.tokens, d = call_.width, v = call_.classes, most = cpu::head_rows(call_, tokens);
    const bool sums = call_.loss.reduction != LossReduction::none;
    CrossEntropyCall all = cpu::loss_of_tokens(call_, 0, tokens, shape_);
    const bool counts = call_.loss.reduction == LossReduction::mean && !all.given_denominator;
    const std::size_t parts = sums ? parts_bytes(tokens) : 0, denominator = counts ? 256 : 0;
    const std::size_t losses = sums && !all.row_loss ? aligned(tokens * std::int64_t{sizeof(T)}) : 0;
    const std::size_t x = aligned(most * d * std::int64_t{sizeof(T)}), z = aligned(most * v * std::int64_t{sizeof(T)});
    Status status = cuda::check_workspace(target_, parts + denominator + losses + x + z);
    if (!status.ok()) return status;
    char* const at = static_cast<char*>(target_.workspace);
    if (counts) denominator_ = reinterpret_cast<double*>(at + parts);
    if (losses) row_loss_ = reinterpret_cast<T*>(at + parts + denominator);
    x_ = reinterpret_cast<T*>(at + parts + denominator + losses),
    z_ = reinterpret_cast<T*>(at + parts + denominator + losses + x);
    if (counts) {
      cuda::Target own = {target_.device, target_.stream, at, parts};
      status = cuda::cross_entropy_denominator(all, denominator_, own);
    }
    for (std::int64_t first = 0; first < tokens && status.ok(); first += most)
      status = sweep(first, tokens - first < most ? tokens - first : most);
    if (status.ok() && tokens == 0) status = clear();
    if (!status.ok() || !sums) return status;
    all = of_tokens(0, tokens);
    all.reduction = call_.loss.reduction, all.loss = call_.loss.loss;
    return reported(reduce_losses(all, tokens, at, static_cast<cudaStream_t>(target_.stream)));
  }

 private:
  Status reported(cudaError_t error) const { return error == cudaSuccess ? Status{} : cuda::failure(error, target_.device); }
  // The rows' losses alone, and with a mean's denominator.
  CrossEntropyCall of_tokens(std::int64_t first, std::int64_t count) {
    CrossEntropyCall loss = cpu::loss_of_tokens(call_, first, count, shape_);
    if (row_loss_) loss.row_loss = row_loss_ + first;
    if (loss.reduction != LossReduction::none) loss.loss = nullptr;
    if (denominator_) loss.given_denominator = true, loss.denominator_at = denominator_;
    return loss;
  }
  Status multiply(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k, const void* a,
                  std::int64_t a_step, const void* b, std::int64_t b_step, bool add, void* c, std::int64_t c_step) const {
    call_.gemm.multiply(call_.gemm.context, call_.loss.dtype, transpose_a, transpose_b, m, n, k, a, a_step, b, b_step, add, c,
                        c_step);
    return Status{};
  }
  template <class... Params, class... Args>
  Status launch(void (*kernel)(Params...), std::int64_t blocks, Args... args) const {
    return reported(arch::launch(kernel, launch_of(blocks, target_.stream), args...));
  }

  Status sweep(std::int64_t first, std::int64_t count) {
    const std::int64_t v = call_.classes, d = call_.width;
    CrossEntropyCall loss = of_tokens(first, count);
    LossJob job;
    Status status = job_of(loss, job);
    const T* const x = static_cast<const T*>(call_.x) + first * call_.x_step;
    if (status.ok()) status = launch(kept_rows<T>, count, job, x, call_.x_step, x_, d);
    if (status.ok()) status = multiply(false, true, count, v, d, x_, d, call_.w, call_.w_step, false, z_, v);
    if (status.ok() && call_.bias) status = launch(add_bias<T>, count, z_, static_cast<const T*>(call_.bias), count, v);
    if (!status.ok()) return status;
    const std::int64_t strides[] = {v * std::int64_t{sizeof(T)}, sizeof(T)};
    loss.logits = {z_, strides};
    if (call_.dx || call_.dw || call_.dbias) loss.dlogits = loss.logits;
    cuda::Target own = {target_.device, target_.stream, nullptr, 0};
    status = cuda::cross_entropy(loss, own);
    T* const dx = call_.dx ? static_cast<T*>(call_.dx) + first * d : nullptr;
    if (status.ok() && dx) status = multiply(false, false, count, d, v, z_, v, call_.w, call_.w_step, false, dx, d);
    if (status.ok() && dx) status = launch(kept_rows<T>, count, job, static_cast<const T*>(dx), d, dx, d);
    const bool begins = first == 0;
    if (status.ok() && call_.dw)
      status = multiply(true, false, v, d, count, z_, v, x_, d, call_.add_dw || !begins, call_.dw, d);
    if (status.ok() && call_.dbias)
      status = launch(add_columns<T>, (v + kThreads - 1) / kThreads, static_cast<const T*>(z_), count, v, begins,
                      static_cast<T*>(call_.dbias));
    return status;
  }
  // Of no tokens.
  Status clear() const {
    Status status;
    const T* const nothing = nullptr;
    const std::int64_t of_w = call_.classes * call_.width, none = 0;
    if (call_.dw && !call_.add_dw)
      status = launch(add_columns<T>, of_w / kThreads + 1, nothing, none, of_w, true, static_cast<T*>(call_.dw));
    if (status.ok() && call_.dbias)
      status = launch(add_columns<T>, call_.classes / kThreads + 1, nothing, none, call_.classes, true,
                      static_cast<T*>(call_.dbias));
    return status;
  }

  const LinearCrossEntropyCall& call_;
  cuda::Target& target_;
  std::int64_t shape_[2] = {};
  double* denominator_ = nullptr;
  T *row_loss_ = nullptr, *x_ = nullptr, *z_ = nullptr;
};

}  // namespace
}  // namespace sumexp::SUMEXP_NS

namespace sumexp::cuda {

Status linear_cross_entropy(const LinearCrossEntropyCall& call, Target& target) noexcept {
  Status status = cpu::check_head(call);
  if (!status.ok()) return status;
  return call.loss.dtype == DType::f64 ? SUMEXP_NS::Head<double>(call, target).run()
                                       : SUMEXP_NS::Head<float>(call, target).run();
}

}  // namespace sumexp::cuda
