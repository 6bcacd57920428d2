// Elementwise functions of the log domain: arrays are walked piece by piece, in double, whatever their strides.
#include "elementwise.hpp"

#include <algorithm>
#include <new>

#include "../kernels/elementwise.hpp"
#include "../threads/floating_point.hpp"
#include "../threads/workspace.hpp"

namespace sumexp {

namespace {

constexpr LogDomainArity kArity[kLogDomainOps] = {{2, 1}, {2, 1}, {1, 1}, {1, 1}, {3, 2},
                                                  {3, 2}, {2, 1}, {2, 1}, {4, 1}, {4, 1}};
constexpr std::int64_t kTask = 1 << 14;  // elements

struct Job : cpu::ElementwiseArrays {
  const cpu::ElementwiseKernels* kernels;
  int op, dtype;
};

// Calls use(done, offset, run) for the runs along the innermost dimension of places [first, first + count).
template <class Use>
void each_run(const cpu::Walk& walk, int k, std::int64_t first, int count, Use use) {
  const int inner = walk.ndim - 1;
  if (inner < 0) return use(0, std::int64_t{0}, count, std::int64_t{0});
  for (int done = 0; done < count;) {
    const std::int64_t place = first + done, left = walk.extent[inner] - place % walk.extent[inner];
    const int run = static_cast<int>(std::min<std::int64_t>(left, count - done));
    use(done, walk.offset(k, place), run, walk.stride[k][inner]);
    done += run;
  }
}

void run_task(void* context, std::int64_t task, cpu::Workspace&) {
  const Job& job = *static_cast<const Job*>(context);
  alignas(64) double pieces[kLogDomainInputs + kLogDomainOutputs][cpu::kPiece] = {};
  const double* in[kLogDomainInputs];
  double* out[kLogDomainOutputs];
  for (int k = 0; k < job.inputs; ++k) in[k] = pieces[k];
  for (int k = 0; k < job.outputs; ++k) out[k] = pieces[kLogDomainInputs + k];
  const std::int64_t end = std::min(job.walk.size, (task + 1) * kTask);
  for (std::int64_t first = task * kTask; first < end; first += cpu::kPiece) {
    const int count = static_cast<int>(std::min<std::int64_t>(cpu::kPiece, end - first));
    for (int k = 0; k < job.inputs; ++k)
      each_run(job.walk, k, first, count, [&](int done, std::int64_t offset, int run, std::int64_t stride) {
        job.kernels->load[job.dtype](job.data[k] + offset, stride, run, pieces[k] + done);
      });
    job.kernels->map[job.op][job.dtype == 3](in, out, count);
    for (int k = 0; k < job.outputs; ++k)
      if (char* const data = job.data[job.inputs + k])
        each_run(job.walk, job.inputs + k, first, count, [&](int done, std::int64_t offset, int run, std::int64_t stride) {
          job.kernels->store[job.dtype](data + offset, stride, run, out[k] + done);
        });
  }
}

}  // namespace

LogDomainArity arity(LogDomain op) noexcept {
  return static_cast<unsigned>(op) < kLogDomainOps ? kArity[static_cast<int>(op)] : LogDomainArity{0, 0};
}

Status cpu::lay_out(LogDomain op, DType dtype, int ndim, const std::int64_t* shape, const View* in, const View* out,
                    ElementwiseArrays& to) {
  to.walk.size = 0;
  if (static_cast<unsigned>(op) >= kLogDomainOps)
    return fail(Code::invalid_argument, "op is %d, accepted: 0 to %d", static_cast<int>(op), kLogDomainOps - 1);
  bool empty = false;
  if (Status status = cpu::check_shape(dtype, ndim, shape, &empty); !status.ok()) return status;
  if (empty) return Status{};  // of nothing, which may lie nowhere
  if (!in || !out) return fail(Code::invalid_argument, "%s is missing", in ? "out" : "in");
  const LogDomainArity n = arity(op);
  to.inputs = n.inputs, to.outputs = n.outputs;
  to.walk.operands = n.inputs + n.outputs;
  const std::int64_t* strides[Walk::kMost];
  for (int k = 0; k < to.walk.operands; ++k) {
    const bool result = k >= n.inputs;
    const View& view = result ? out[k - n.inputs] : in[k];
    const char* const name = result ? "out" : "in";
    const bool optional = result && n.outputs > 1;  // one of two derivatives may be left out
    if (!view.data && !optional)
      return fail(Code::invalid_argument, "%s[%d] has no data, accepted: an array", name, result ? k - n.inputs : k);
    if (ndim > 0 && !view.strides && view.data)
      return fail(Code::invalid_argument, "%s[%d] has no strides, accepted: %d", name, result ? k - n.inputs : k, ndim);
    to.data[k] = static_cast<char*>(view.data);
    strides[k] = view.data || !optional ? view.strides : out[1 - (k - n.inputs)].strides;
  }
  if (n.outputs > 1 && !out[0].data && !out[1].data) return Status{};
  to.walk.size = 1;
  for (int d = 0; d < ndim; ++d) {
    std::int64_t step[Walk::kMost];
    for (int k = 0; k < to.walk.operands; ++k) step[k] = strides[k][d];
    to.walk.add(shape[d], step);
  }
  if (to.walk.size > 0) to.walk.arrange();
  return Status{};
}

Status elementwise(LogDomain op, DType dtype, int ndim, const std::int64_t* shape, const View* in, const View* out) noexcept {
  Job job;
  if (Status status = cpu::lay_out(op, dtype, ndim, shape, in, out, job); !status.ok() || job.walk.size == 0) return status;
  job.op = static_cast<int>(op), job.dtype = static_cast<int>(dtype);
  job.kernels = &SUMEXP_IN_USE(cpu::elementwise_kernels_);
  const cpu::DefaultFloatingPoint mode;
  const std::int64_t tasks = (job.walk.size + kTask - 1) / kTask;
  const int threads = tasks > 1 ? cpu::threads_for(job.walk.size * 8) : 1;
  return cpu::with_scratch([&] { cpu::run_parts(tasks, threads, run_task, &job); });
}

}  // namespace sumexp
