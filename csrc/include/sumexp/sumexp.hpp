// sumexp: the sum of exponentials. Public C++ API.
//
// Everything is described by plain pointers, shapes, byte strides and codes; nothing here throws,
// prints or allocates on behalf of the caller. One POD, `Call`, describes any operation; `run`
// carries it out on the CPU; the named functions below it fill a Call for the common cases.
//
//   float x[6] = {1, 2, 3, 1, 2, 1000}, y[6];
//   std::int64_t shape[2] = {2, 3};
//   sumexp::Status st = sumexp::softmax(x, y, sumexp::DType::f32, 2, shape, /*axis=*/-1);
//   if (!st.ok()) std::puts(st.message);
//
// Promise (per output, any n, any finite input): softmax, log_softmax <= 2 ulp; logsumexp <= 1 ulp
// of max(|result|, |maximum|) and <= 2 ulp of the result when the maximum is 0; f16/bf16 <= 0.51 ulp.
// A row's result depends on that row's values alone: never on batch, strides, threads or ISA.
//
// Every function may be called from several threads at once. The threads of the pool serve one call at a time: a
// call that finds them busy computes alone, on its caller's thread.
#pragma once

#include <cstddef>
#include <cstdint>

#define SUMEXP_API __attribute__((visibility("default")))

namespace sumexp {

inline constexpr int kMaxDims = 64;
inline constexpr int kMaxInputs = 3;

enum class DType : std::int32_t { f16 = 0, bf16 = 1, f32 = 2, f64 = 3 };

// The table of operations. `in` lists the inputs in order; "row" inputs and outputs have length 1
// along every reduced axis (keepdims form), all others have the full shape. Derivatives list the saved y last,
// but logsumexp_vjp and logsumexp_jvp take x, first.
enum class Op : std::int32_t {
  // softmax
  softmax = 0,      // in: x        out: full   temperature, where
  softmax_vjp = 3,  // in: g, y     out: full   temperature  y = softmax(x); also the JVP
  softmax_hvp = 8,  // in: g, v, y  out: full   temperature  y = softmax(x)
  // log_softmax
  log_softmax = 1,      // in: x        out: full   temperature, where
  log_softmax_vjp = 4,  // in: g, y     out: full   temperature  y = log_softmax(x)
  log_softmax_jvp = 5,  // in: t, y     out: full   temperature  y = log_softmax(x)
  log_softmax_hvp = 9,  // in: g, v, y  out: full   temperature  y = log_softmax(x)
  // logsumexp
  logsumexp = 2,      // in: x           out: row    where
  logsumexp_vjp = 6,  // in: x, g (row)  out: full
  logsumexp_jvp = 7,  // in: x, t        out: row
  weighted_logsumexp =
      10,  // in: x, b        out: row    where  log |sum b e^x|; extra: its sign, -1, 0, 1 or NaN. Without extra
           //                             a negative sum gives NaN
  // cross_entropy. target (row): std::int64_t whatever the dtype, the index of an element of the row
  cross_entropy = 11,            // in: x, target   out: row    -log softmax(x)[target]
  cross_entropy_with_grad = 12,  // in: x, target   out: full   its gradient with respect to x; extra: the loss itself
};
inline constexpr int kOpCount = 13;

enum class Code : std::int32_t {
  ok = 0,
  invalid_argument = 1,
  out_of_memory = 2,
  unsupported = 3,
  device_error = 4,  // of sumexp/cuda.hpp only, as the next
  needs_workspace = 5,
};

// Outcome of a call. On failure `message` names the argument, what was given and what is accepted, and nothing
// has been written; but out may be partly written where scratch space (out_of_memory) or a device (device_error) failed.
struct Status {
  Code code = Code::ok;
  char message[240];
  Status() { message[0] = '\0'; }
  bool ok() const { return code == Code::ok; }
};

// A strided array. `strides` are in bytes, one per dimension, and may be zero or negative.
struct View {
  void* data = nullptr;
  const std::int64_t* strides = nullptr;
};

struct Call {
  Op op = Op::softmax;
  DType dtype = DType::f32;  // of every input and output but indices
  int ndim = 0;              // 0 .. kMaxDims; 0 is one row of one element
  const std::int64_t* shape = nullptr;
  std::uint64_t axes = 0;    // bit d set: dimension d is reduced. A row's elements run over the
                             // reduced dimensions in C order; no bit set: rows of one element.
  View in[kMaxInputs];       // as the table above says; absent inputs have data == nullptr
  View where;                // optional mask, one byte an element, 0 = left out, for ops that say so above; same
                             // shape rules as in[0]
  View out;                  // may be exactly one of the inputs (same data and strides), else disjoint
  View extra;                // a second result, one value a row, of ops that have one (above); may be absent
  double temperature = 1.0;  // > 0: the operation is applied to x / temperature; infinity: every finite x is 0
};

// Carries out a call on the CPU, on up to get_num_threads() threads.
SUMEXP_API Status run(const Call& call) noexcept;

// -- explicit matrices, over the last axis of a C-contiguous batch of `rows` rows of n --------------
enum class Matrix : std::int32_t {
  softmax_jacobian = 0,      // y = softmax(x)      -> diag(y) - y y^T
  log_softmax_jacobian = 1,  // y = log_softmax(x)  -> I - 1 exp(y)^T
  logsumexp_hessian = 2,     // y = softmax(x)      -> the same matrix as softmax_jacobian
};
// dtype is f32 or f64; f16 and bf16 are unsupported.
SUMEXP_API Status matrix(Matrix which, DType dtype, const void* y, void* out, std::int64_t rows, std::int64_t n) noexcept;

// -- threads and configuration -----------------------------------------------------------------------
SUMEXP_API Status set_num_threads(int n) noexcept;  // n >= 1
// Until it is set: SUMEXP_NUM_THREADS, else the CPUs of the process's affinity, or fewer where a container's quota allows no
// more of them (control groups v1 and v2, rounded up).
SUMEXP_API int get_num_threads() noexcept;
// Results of this size and more are written around the cache, with non-temporal stores: SUMEXP_STREAM_BYTES, else half of the
// L3 cache that the machine reports, but from 16 to 48 MB; along another axis than the last, of f32 and f64, 16 MB at most.
// Read once; the bytes of results do not depend on it.
SUMEXP_API std::int64_t stream_bytes() noexcept;
// Asks for pages of 2 MB for memory that nobody has written to yet, of kLargePagesFrom bytes or more: to be given it 4 KB at a
// time takes longer than most kernels. The system decides, and nothing fails; NumPy asks for its own arrays.
inline constexpr std::size_t kLargePagesFrom = std::size_t{4} << 20;
SUMEXP_API void prefer_large_pages(void* first, std::size_t bytes) noexcept;
SUMEXP_API const char* isa() noexcept;            // "scalar", "avx2", "avx512" or "neon", in use
SUMEXP_API const char* compiled_isas() noexcept;  // comma-separated, in this build
SUMEXP_API const char* usable_isas() noexcept;    // comma-separated, in this build and on this CPU
// For tests and benchmarks; also SUMEXP_ISA. "portable": the scalar kernels that any CPU runs ("scalar" may take those with
// FMA).
SUMEXP_API Status set_isa(const char* name) noexcept;
SUMEXP_API const char* version() noexcept;

// -- named functions ---------------------------------------------------------------------------------------
// x, y and out are C-contiguous with `shape`; a negative axis counts from the last.
SUMEXP_API Status softmax(const void* x, void* out, DType dtype, int ndim, const std::int64_t* shape, int axis,
                          double temperature = 1.0) noexcept;
SUMEXP_API Status log_softmax(const void* x, void* out, DType dtype, int ndim, const std::int64_t* shape, int axis,
                              double temperature = 1.0) noexcept;
SUMEXP_API Status logsumexp(const void* x, void* out, DType dtype, int ndim, const std::int64_t* shape, int axis) noexcept;

}  // namespace sumexp
