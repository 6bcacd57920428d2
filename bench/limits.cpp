// What this machine can do at all: the loops beside which every kernel is reported.
//
//   copy          libc's memcpy, one part a thread          1 read, 1 write
//   copy_nt       the same with non-temporal stores         1 read, 1 write
//   read          64-byte loads folded by integer adds      1 read
//   exp_add       sum of exp(x), no maximum, no shift        1 read, one exponential an element
//   triad         out = a + b                               2 reads, 1 write
//   triad_nt      the same with non-temporal stores         2 reads, 1 write
//
// Compiled for the machine it runs on (-O3 -march=native): by bench/CMakeLists.txt into the C++ benchmark,
// and by harness/limits.py, when bench/cpu.py starts, into a shared library. It shares no code with
// sumexp, threads included. The loops are written in the compiler's vector extension, so that 64 bytes are
// one AVX-512 register, two of AVX2 or four of NEON.
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

typedef float F32 __attribute__((vector_size(64), aligned(4), may_alias));
typedef double F64 __attribute__((vector_size(64), aligned(8), may_alias));
typedef std::int32_t I32 __attribute__((vector_size(64), aligned(4), may_alias));
typedef std::int64_t I64 __attribute__((vector_size(64), aligned(8), may_alias));

// -- threads: a fixed team that sleeps between loops --------------------------------------------------------

class Team {
 public:
  explicit Team(int size) : size_(size) {
    for (int id = 1; id < size; ++id) threads_.emplace_back([this, id] { work(id); });
  }
  ~Team() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true, ++generation_;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  int size() const { return size_; }
  // task(id) for every id below size(); id 0 on the calling thread
  void run(const std::function<void(int)>& task) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      task_ = &task, left_ = size_ - 1, ++generation_;
    }
    wake_.notify_all();
    task(0);
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return left_ == 0; });
  }

 private:
  void work(int id) {
    for (std::uint64_t seen = 0;;) {
      const std::function<void(int)>* task;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return generation_ != seen; });
        seen = generation_;
        if (stop_) return;
        task = task_;
      }
      (*task)(id);
      std::lock_guard<std::mutex> lock(mutex_);
      if (--left_ == 0) done_.notify_one();
    }
  }
  const int size_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  const std::function<void(int)>* task_ = nullptr;
  int left_ = 0;
  std::uint64_t generation_ = 0;
  bool stop_ = false;
};

Team* g_team = nullptr;

// Part `id` of `bytes`, cut at multiples of 64.
struct Part {
  std::int64_t begin, size;
};
Part part_of(std::int64_t bytes, int id, int parts) {
  const std::int64_t begin = bytes / parts * id / 64 * 64;
  const std::int64_t end = id + 1 == parts ? bytes : bytes / parts * (id + 1) / 64 * 64;
  return {begin, end - begin};
}

template <class Body>
void each_part(std::int64_t bytes, Body body) {
  if (!g_team) g_team = new Team(1);
  const int parts = g_team->size();
  g_team->run([&](int id) {
    const Part part = part_of(bytes, id, parts);
    body(id, part.begin, part.size);
  });
}

// -- loops over one part ----------------------------------------------------------------------------------

void stream64(char* out, I64 value) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(out), reinterpret_cast<__m512i&>(value));
#elif defined(__AVX2__)
  const __m256i* half = reinterpret_cast<const __m256i*>(&value);
  _mm256_stream_si256(reinterpret_cast<__m256i*>(out), half[0]);
  _mm256_stream_si256(reinterpret_cast<__m256i*>(out) + 1, half[1]);
#else
  std::memcpy(out, &value, 64);  // no portable non-temporal store: the plain loop again
#endif
}
void fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

void copy_nt(const char* in, char* out, std::int64_t bytes) {
  std::int64_t i = static_cast<std::int64_t>(-reinterpret_cast<std::uintptr_t>(out) & 63);  // align the stores
  if (i > bytes) i = bytes;
  std::memcpy(out, in, i);
  for (; i + 64 <= bytes; i += 64) stream64(out + i, *reinterpret_cast<const I64*>(in + i));
  std::memcpy(out + i, in + i, bytes - i);
  fence();
}

std::int64_t read_all(const char* in, std::int64_t bytes) {
  I64 sum[8] = {};
  std::int64_t i = 0;
  for (; i + 512 <= bytes; i += 512)
    for (int k = 0; k < 8; ++k) sum[k] += *reinterpret_cast<const I64*>(in + i + 64 * k);
  for (; i + 64 <= bytes; i += 64) sum[0] += *reinterpret_cast<const I64*>(in + i);
  std::int64_t total = 0;
  for (const I64& s : sum)
    for (int k = 0; k < 8; ++k) total += s[k];
  return total;
}

// exp(x) = p(r) 2^n by the usual reduction; about 1 ulp, for finite x whose exponential is a normal number.
// a * b + c below becomes one fused instruction (-ffp-contract=fast).
inline F32 exp_of(F32 x) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const F32 t = x * 1.44269504088896341f + magic, n = t - magic;
  const F32 r = n * -1.42860682e-06f + (n * -0.693145752f + x);
  F32 p = r * 1.38888889e-03f + 8.33333333e-03f;
  p = p * r + 4.16666667e-02f;
  p = p * r + 1.66666667e-01f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return (F32)((I32)p + ((I32)t << 23));
}
inline F64 exp_of(F64 x) {
  const double magic = 6755399441055744.0;  // 1.5 * 2^52
  const F64 t = x * 1.4426950408889634074 + magic, n = t - magic;
  const F64 r = n * -1.90821492927058770002e-10 + (n * -6.93147180369123816490e-01 + x);
  F64 p = r * 1.6059043836821613e-10 + 2.0876756987868099e-09;
  for (double c :
       {2.5052108385441719e-08, 2.7557319223985891e-07, 2.7557319223985893e-06, 2.4801587301587302e-05, 1.9841269841269841e-04,
        1.3888888888888889e-03, 8.3333333333333333e-03, 4.1666666666666667e-02, 1.6666666666666667e-01, 0.5, 1.0, 1.0})
    p = p * r + c;
  return (F64)((I64)p + ((I64)t << 52));
}

template <class V, class T>
double exp_add(const char* in, std::int64_t bytes) {
  V sum[4] = {};
  std::int64_t i = 0;
  for (; i + 256 <= bytes; i += 256)
    for (int k = 0; k < 4; ++k) sum[k] += exp_of(*reinterpret_cast<const V*>(in + i + 64 * k));
  for (; i + 64 <= bytes; i += 64) sum[0] += exp_of(*reinterpret_cast<const V*>(in + i));
  V last = {};  // exp(0) of the absent elements is taken off again
  std::memcpy(&last, in + i, bytes - i);
  sum[0] += exp_of(last);
  double total = -static_cast<double>((64 - (bytes - i)) / static_cast<std::int64_t>(sizeof(T)));
  for (const V& s : sum)
    for (unsigned k = 0; k < 64 / sizeof(T); ++k) total += static_cast<double>(s[k]);
  return total;
}

template <bool stream>
void triad(const char* a, const char* b, char* out, std::int64_t bytes) {
  std::int64_t i = 0;
  if (reinterpret_cast<std::uintptr_t>(out) % 64 == 0 || !stream)
    for (; i + 64 <= bytes; i += 64) {
      const F32 sum = *reinterpret_cast<const F32*>(a + i) + *reinterpret_cast<const F32*>(b + i);
      if (stream) {
        stream64(out + i, (I64)sum);
      } else {
        *reinterpret_cast<F32*>(out + i) = sum;
      }
    }
  for (; i + 4 <= bytes; i += 4) {
    float x, y;
    std::memcpy(&x, a + i, 4), std::memcpy(&y, b + i, 4);
    x += y;
    std::memcpy(out + i, &x, 4);
  }
  if (stream) fence();
}

}  // namespace

// -- what limits.py and the C++ benchmark call; sizes in bytes, buffers aligned to 64 bytes -----------------

extern "C" {

__attribute__((visibility("default"))) void limits_threads(int threads) {
  delete g_team;
  g_team = new Team(threads < 1 ? 1 : threads);
}

__attribute__((visibility("default"))) void limits_copy(const char* in, char* out, std::int64_t bytes) {
  each_part(bytes, [=](int, std::int64_t at, std::int64_t size) { std::memcpy(out + at, in + at, size); });
}

__attribute__((visibility("default"))) void limits_copy_nt(const char* in, char* out, std::int64_t bytes) {
  each_part(bytes, [=](int, std::int64_t at, std::int64_t size) { copy_nt(in + at, out + at, size); });
}

__attribute__((visibility("default"))) std::int64_t limits_read(const char* in, std::int64_t bytes) {
  std::vector<std::int64_t> sums(static_cast<std::size_t>(g_team ? g_team->size() : 1));
  each_part(bytes, [&](int id, std::int64_t at, std::int64_t size) { sums[id] = read_all(in + at, size); });
  std::int64_t total = 0;
  for (std::int64_t sum : sums) total += sum;
  return total;
}

__attribute__((visibility("default"))) double limits_exp_add(const char* in, std::int64_t bytes, int item_size) {
  std::vector<double> sums(static_cast<std::size_t>(g_team ? g_team->size() : 1));
  each_part(bytes, [&](int id, std::int64_t at, std::int64_t size) {
    sums[id] = item_size == 8 ? exp_add<F64, double>(in + at, size) : exp_add<F32, float>(in + at, size);
  });
  double total = 0;
  for (double sum : sums) total += sum;
  return total;
}

__attribute__((visibility("default"))) void limits_triad(const char* a, const char* b, char* out, std::int64_t bytes) {
  each_part(bytes, [=](int, std::int64_t at, std::int64_t size) { triad<false>(a + at, b + at, out + at, size); });
}

__attribute__((visibility("default"))) void limits_triad_nt(const char* a, const char* b, char* out, std::int64_t bytes) {
  each_part(bytes, [=](int, std::int64_t at, std::int64_t size) { triad<true>(a + at, b + at, out + at, size); });
}

}  // extern "C"
