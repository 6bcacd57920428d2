// csrc/cuda/rows/row.cuh: rows of any length and layout through a block, the tree of chunks as the CPU has it. The kernel here
// takes logsumexp, by the functions that the families' kernels call, and copies the row.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../csrc/ops/logsumexp.hpp"
#include "exp_chunk.cuh"
#include "machine/machine.hpp"
#include "machine/memory.hpp"
#include "numbers.hpp"
#include "rows/row.cuh"
#include "sumexp/sumexp.hpp"

namespace sumexp::SUMEXP_NS {

enum { kX, kCopy, kResult, kViews };

template <class S, int kRows>
void logsumexp_rows(cuda::RowViews<kViews> views) {
  using T = Compute<S>;
  auto& board = *arch::dynamic_shared<RowBoard<ExpState<T>>>();
  const std::int64_t chunks = chunk_count<T>(views.n);
  each_row(views.rows, [&](std::int64_t row) {
    char* at[kViews];
    place_row(views, row, at);
    T v[kRows][Tile<S>::kValues];
    const auto load = [&](std::int64_t c) {
      const std::int64_t from = c * Geometry<T>::kChunk * views.stride[kX];
      load_chunk<S, kRows>(at[kX] + from, views.stride[kX], chunk_size<S>(views.n, c), v, -Limits<T>::infinity);
    };
    const auto state = reduce_row(chunks, board, [&](std::int64_t c) {
      load(c);
      return exp_chunk<S, true, false>(v);
    });
    for (std::int64_t c = arch::warp(); c < chunks; c += warps()) {
      load(c);
      const std::int64_t to = c * Geometry<T>::kChunk * views.stride[kCopy];
      store_chunk<S, kRows>(at[kCopy] + to, views.stride[kCopy], chunk_size<S>(views.n, c), v);
    }
    if (threadIdx.x != 0) return;
    const bool number = !is_nan(state.R) && is_finite(state.m);
    const T result =
        number ? LogSumExp::emit(LogSumExp::finish(row_sum(state), T(0))) : LogSumExp::special(state.m, is_nan(state.R));
    *reinterpret_cast<S*>(at[kResult]) = Narrow<S>::from(result);
  });
}

}  // namespace sumexp::SUMEXP_NS

namespace {

using namespace sumexp;

// (2, 3, n) rows, or (2, n, 3), of which the first `skip` elements of memory are left out.
template <class S>
void check(DType dtype, std::int64_t n, bool side, std::size_t skip, bool specials) {
  namespace gpu = sumexp::SUMEXP_NS;
  using T = gpu::Compute<S>;
  const std::int64_t rows = 6, item = sizeof(S);
  simt::Buffer<S> x(std::size_t(rows * n), simt::Place::back, "x", skip),
      copy(std::size_t(rows * n), simt::Place::front, "copy", skip);
  simt::Buffer<S> result(std::size_t(rows), simt::Place::back, "result");
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = gpu::Narrow<S>::from(T(30 * uniform() - (i % 5 ? 15 : 200)));
  if (specials) {
    for (std::int64_t i = 0; i < n; ++i) x[std::size_t(i)] = gpu::Narrow<S>::from(-gpu::Limits<T>::infinity);
    x[x.size() - 1] = gpu::Narrow<S>::from(gpu::Limits<T>::nan());
  }
  const std::int64_t shape[] = {2, side ? n : 3, side ? 3 : n}, step[] = {3 * n * item, (side ? 3 : n) * item, item};
  const std::int64_t of_rows[] = {3 * item, side ? 0 : item, side ? item : 0};
  std::vector<S> want(static_cast<std::size_t>(rows));
  Call call;
  call.op = Op::logsumexp, call.dtype = dtype, call.ndim = 3, call.shape = shape, call.axes = side ? 2u : 4u;
  call.in[0] = {x.data(), step}, call.out = {want.data(), of_rows};
  if (!run(call).ok()) std::printf("FAILED: %s\n", run(call).message), ++failures;

  const View given[] = {{x.data(), step}, {copy.data(), step}, {result.data(), of_rows}};
  cuda::RowViews<gpu::kViews> views;
  if (!cuda::lay_rows(3, shape, side ? 1 : 2, given, views).ok()) ++failures;
  const auto how = gpu::launch_of_rows<gpu::ExpState<T>>(rows, gpu::chunk_count<T>(n), nullptr);
  cudaError_t error = cudaSuccess;
  if (n <= gpu::Geometry<T>::kLanes) error = arch::launch(gpu::logsumexp_rows<S, 1>, how, views);
  else error = arch::launch(gpu::logsumexp_rows<S, 8>, how, views);
  ++checks;
  const bool same = std::memcmp(want.data(), result.data(), want.size() * sizeof(S)) == 0 &&
                    std::memcmp(x.data(), copy.data(), x.size() * sizeof(S)) == 0;
  if (error == cudaSuccess && same && copy.intact() && result.intact()) return;
  ++failures;
  std::printf("FAILED rows of %lld, dtype %d, side %d, skip %d: %s\n", static_cast<long long>(n), int(dtype), side, int(skip),
              error == cudaSuccess ? same ? "wrote beside the result" : "other bytes" : arch::error_text(error));
}

}  // namespace

int main() {
  for (const std::int64_t n : {1, 7, 16, 255, 256, 257, 512, 513, 2048, 2049, 5000, 16384, 16385, 40961})
    for (const int option : {0, 1, 2, 3}) {
      const bool side = option == 1, specials = option == 3;
      const std::size_t skip = option == 2 ? 1 : 0;
      check<float>(DType::f32, n, side, skip, specials);
      check<double>(DType::f64, n, side, skip, specials);
      check<sumexp::gpu::f16>(DType::f16, n, side, skip, specials);
      check<sumexp::gpu::bf16>(DType::bf16, n, side, skip, specials);
    }
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
