// One operation on one storage type: from a plan to kernel launches. instance.cu instantiates it.
#pragma once

#include "kernels.cuh"
#include "run.hpp"

namespace sumexp::SUMEXP_NS {

inline constexpr std::size_t kAlign = 256;
constexpr std::size_t aligned(std::size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

// Workspace of the streaming kernels: states, scratch, finished rows.
template <class Op>
struct Workspace {
  typename Op::State *states, *scratch;
  typename Op::Row* rows;
  std::size_t bytes;

  Workspace(const Job& job, void* at) {
    const std::size_t n = std::size_t(job.rows);
    const std::size_t a = aligned(n * std::size_t(job.chunks) * sizeof(*states));
    const std::size_t b = aligned(n * std::size_t(scratch_states(job.chunks)) * sizeof(*states));
    auto* p = static_cast<char*>(at);
    states = reinterpret_cast<typename Op::State*>(p);
    scratch = reinterpret_cast<typename Op::State*>(p + a);
    rows = reinterpret_cast<typename Op::Row*>(p + a + b);
    bytes = a + b + aligned(n * sizeof(*rows));
  }
};

template <class S, class Op, bool kPacked>
struct Launcher {
  using State = typename Op::State;
  using Row = typename Op::Row;
  static constexpr int kLaneRows = Geometry<Compute<S>>::kLaneRows;

  const Job& job;
  arch::Launch how;

  // The stage of a kernel that holds `rows` lane rows.
  template <int rows>
  void stage() {
    how.dynamic_shared = Travel<S, false, kPacked, rows>::stage_bytes(int(how.block.x) / arch::lane_count);
  }

  template <int pass>
  cudaError_t stream_pass(const Workspace<Op>& w) {
    const State* states = w.states;
    const Row* rows = w.rows;
    stage<kLaneRows>();
    const cudaError_t error = arch::launch(reduce_chunks<S, Op, pass, kPacked>, how, job, w.states, rows);
    if (error != cudaSuccess) return error;
    arch::Launch merging;
    merging.stream = how.stream;
    merging.grid = dim3(unsigned(job.rows));
    merging.block = dim3(kMergeThreads);
    return arch::launch(merge_rows<S, Op, pass>, merging, job, states, w.scratch, w.rows);
  }

  cudaError_t stream_rows(const Workspace<Op>& w) {
    cudaError_t error = stream_pass<0>(w);
    if constexpr (Op::kPasses > 1) {
      if (error == cudaSuccess) error = stream_pass<1>(w);
    }
    if constexpr (!Op::kRowOutput) {
      const State* states = w.states;
      const Row* rows = w.rows;
      if (error == cudaSuccess) error = arch::launch(map_chunks<S, Op, kPacked>, how, job, states, rows);
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
};

template <class S, class Op, bool kPacked>
cudaError_t run_access(const Job& job, const cuda::Choice& choice, void* workspace, const arch::Launch& how) {
  Launcher<S, Op, kPacked> launcher{job, how};
  switch (choice.path) {
    case cuda::Path::warp:
      if (choice.lane_rows == 1) return launcher.template warp_per_row<1>();
      if constexpr (kPacked) {
        if (choice.lane_rows == 2) return launcher.template warp_per_row<2>();
        if (choice.lane_rows == 4) return launcher.template warp_per_row<4>();
      }
      return launcher.template warp_per_row<8>();
    case cuda::Path::block:
    case cuda::Path::cluster: return launcher.block_per_row();
    default: return launcher.stream_rows(Workspace<Op>(job, workspace));
  }
}

template <class S, class Op>
void Run<S, Op>::describe(cuda::Row& row) {
  row.max_warps = Op::kMaxWarps;
  row.one_read = Op::kKept == Op::kInputs;
  row.row_output = Op::kRowOutput;
}

template <class S, class Op>
std::size_t Run<S, Op>::workspace(const Job& job) {
  return Workspace<Op>(job, nullptr).bytes;
}

template <class S, class Op>
bool Run<S, Op>::can_cluster(const Job& job, const cuda::Choice& choice) {
  arch::Launch how;
  how.grid = dim3(unsigned(choice.cluster));
  how.block = dim3(unsigned(arch::lane_count * choice.warps));
  how.cluster = unsigned(choice.cluster);
  return job.access == Access::packed ? Launcher<S, Op, true>{job, how}.can_cluster()
                                      : Launcher<S, Op, false>{job, how}.can_cluster();
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
  return job.access == Access::packed ? run_access<S, Op, true>(job, choice, workspace, how)
                                      : run_access<S, Op, false>(job, choice, workspace, how);
}

}  // namespace sumexp::SUMEXP_NS
