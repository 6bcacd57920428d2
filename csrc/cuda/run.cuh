// From a plan to kernel launches, for one operation on one storage type. operations.cmake says what is instantiated where.
#pragma once

#include "kernels.cuh"
#include "run.hpp"
#include "workspace.cuh"

namespace sumexp::SUMEXP_NS {

template <class S, class Op, bool kPacked>
struct Launcher {
  using Finish = typename Op::Finish;
  static constexpr int kLaneRows = Geometry<Compute<S>>::kLaneRows;

  const Job& job;
  arch::Launch how;

  // The stage of a kernel that holds `rows` lane rows.
  template <int rows>
  void stage() {
    how.dynamic_shared = IoOf<S, Op, rows, kPacked>::stage_bytes(int(how.block.x) / arch::lane_count);
  }

  template <int pass>
  cudaError_t stream_pass(void* workspace) {
    using Reduction = typename Op::Reduction;
    const Workspace<Finish> w(job, workspace);
    const auto* rows = reinterpret_cast<const typename Reduction::Row*>(w.rows);
    const cudaError_t error = arch::launch(reduce_chunks<S, Reduction, pass, kPacked>, how, job, w.states, rows);
    return error == cudaSuccess ? Merge<Finish>::run(job, pass, workspace, how.stream) : error;
  }
  // Rows in which a quotient overflows, once more.
  cudaError_t stream_apart(void* workspace) {
    const Workspace<Finish> w(job, workspace);
    const typename Finish::Row* rows = w.rows;
    arch::Launch each = how;
    each.grid = dim3(unsigned(job.rows));
    const cudaError_t error = arch::launch(reduce_apart<S, Op>, each, job, w.states, rows, w.tops);
    return error == cudaSuccess ? Merge<Finish>::run(job, 0, workspace, how.stream) : error;
  }

  cudaError_t stream_rows(void* workspace) {
    stage<kLaneRows>();
    cudaError_t error = stream_pass<0>(workspace);
    if constexpr (kDivided<Op, kPacked>) {
      if (error == cudaSuccess && job.overflow) error = stream_apart(workspace);
    }
    if constexpr (Op::kPasses > 1) {
      if (error == cudaSuccess) error = stream_pass<1>(workspace);
    }
    if constexpr (!Op::kRowOutput) {
      const Workspace<Finish> w(job, workspace);
      const typename Finish::State* states = w.states;
      const typename Finish::Row* rows = w.rows;
      const typename Finish::T* tops = job.overflow ? w.tops : nullptr;
      if (error == cudaSuccess) error = arch::launch(map_chunks<S, Op, kPacked>, how, job, states, rows, tops);
    }
    return error;
  }

  template <int rows>
  cudaError_t warp_per_row() {
    stage<rows>();
    return arch::launch(warp_rows<S, Op, rows, kPacked>, how, job);
  }
  cudaError_t block_per_row() {
    stage<kLaneRows>();
    return arch::launch(block_rows<S, Op, kPacked>, how, job);
  }
  bool can_cluster() {
    stage<kLaneRows>();
    return arch::can_cluster(block_rows<S, Op, kPacked>, how);
  }

  cudaError_t run(const cuda::Choice& choice, void* workspace) {
    switch (choice.path) {
      case cuda::Path::warp:
        if constexpr (Op::kKept > 0) {  // else the lane rows are a loop
          if (choice.lane_rows == 1) return warp_per_row<1>();
          if constexpr (kPacked) {
            if (choice.lane_rows == 2) return warp_per_row<2>();
            if (choice.lane_rows == 4) return warp_per_row<4>();
          }
        }
        return warp_per_row<kLaneRows>();
      case cuda::Path::block:
      case cuda::Path::cluster: return block_per_row();
      default: return stream_rows(workspace);
    }
  }
};

// `with` one of the two launchers; operations that can never be packed have no kernels for it.
template <class S, class Op, class With>
auto with_launcher(const Job& job, const arch::Launch& how, With with) {
  if constexpr (!Op::Inputs::kWeighted) {
    if (job.access == Access::packed) return with(Launcher<S, Op, true>{job, how});
  }
  return with(Launcher<S, Op, false>{job, how});
}

template <class S, class Op>
void Run<S, Op>::describe(cuda::Row& row) {
  row.max_warps = Op::kMaxWarps;
  row.one_read = Op::kKept == Op::kInputs;
  row.row_output = Op::kRowOutput;
  if (Op::Inputs::kWeighted) row.stage *= 2;
}

template <class S, class Op>
std::size_t Run<S, Op>::workspace(const Job& job) {
  return Workspace<typename Op::Finish>(job, nullptr).bytes;
}

template <class S, class Op>
bool Run<S, Op>::can_cluster(const Job& job, const cuda::Choice& choice) {
  arch::Launch how;
  how.grid = dim3(unsigned(choice.cluster));
  how.block = dim3(unsigned(arch::lane_count * choice.warps));
  how.cluster = unsigned(choice.cluster);
  return with_launcher<S, Op>(job, how, [](auto launcher) { return launcher.can_cluster(); });
}

template <class S, class Op>
cudaError_t Run<S, Op>::run(const Job& job, const cuda::Choice& choice, void* workspace, cudaStream_t stream) {
  const bool in_blocks = choice.path == cuda::Path::block || choice.path == cuda::Path::cluster;
  const std::int64_t side = job.access == Access::columns ? job.batch[job.batch_dims - 1].size : 0;
  const std::int64_t blocks = in_blocks ? job.rows * choice.cluster
                              : side    ? job.rows / side * ((side + choice.warps - 1) / choice.warps) * job.chunks
                                        : (job.rows * job.chunks + choice.warps - 1) / choice.warps;
  if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  arch::Launch how;
  how.stream = stream;
  how.grid = dim3(unsigned(blocks));
  how.block = dim3(unsigned(arch::lane_count * choice.warps));
  how.cluster = in_blocks ? unsigned(choice.cluster) : 1;
  return with_launcher<S, Op>(job, how, [&](auto launcher) { return launcher.run(choice, workspace); });
}

}  // namespace sumexp::SUMEXP_NS
