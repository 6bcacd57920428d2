// Every word of the SIMD vocabulary against its scalar meaning in numerics/, lane by lane and byte by byte,
// and the functions built from it (exp, log1p, the wide types) over vectors against the same over scalars.
// Compiled once per instruction set: -DSUMEXP_NS=<isa> -DSUMEXP_SIMD=<header> and the flags of that ISA.
#include SUMEXP_SIMD

#include <sys/mman.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <vector>

#include "../../csrc/cpu/kernels/lanes.hpp"
#include "../../csrc/numerics/state.hpp"
#include "../../csrc/ops/sums.hpp"
#include "check.hpp"

// Inside the namespace, so that fma and its kin mean the vocabulary's and not the C library's.
namespace sumexp::SUMEXP_NS {
namespace {

using check::Random;
using check::bits;
using check::bits_as;
using check::same;

bool cpu_has_this_isa() {
#if defined(__AVX512F__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
#elif defined(__AVX2__)
  unsigned a, b, c, d;  // clang's __builtin_cpu_supports does not know f16c
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
#elif defined(__FMA__)
  return __builtin_cpu_supports("fma");
#else
  return true;
#endif
}

// -- values -------------------------------------------------------------------------------------------

template <class T>
struct Bits;
template <>
struct Bits<float> {
  using U = std::uint32_t;
  static constexpr U one = 0x3f800000, infinity = 0x7f800000, normal = 0x00800000, sign = 0x80000000;
};
template <>
struct Bits<double> {
  using U = std::uint64_t;
  static constexpr U one = 0x3ff0000000000000, infinity = 0x7ff0000000000000, normal = 0x0010000000000000,
                     sign = 0x8000000000000000;
};

template <class T>
std::vector<T> special_values() {
  using B = Bits<T>;
  using U = typename B::U;
  std::vector<T> values;
  for (const U magnitude : {U(0), U(1), U(2), U(B::normal - 1), B::normal, U(B::normal + 1), U(B::one / 2), U(B::one - 1),
                            B::one, U(B::one + 1), U(B::one + B::normal), U(B::infinity - B::normal), U(B::infinity - 1),
                            B::infinity, U(B::infinity + B::normal / 2), U(B::infinity + B::normal / 2 + 5)})
    for (const U sign : {U(0), B::sign}) values.push_back(bits_as<T>(U(magnitude | sign)));
  return values;
}

// Specials, any bits at all, and numbers of everyday size, in turn.
template <class T>
T any_value(Random& random) {
  static const std::vector<T> specials = special_values<T>();
  switch (random.below(4)) {
    case 0: return specials[static_cast<std::size_t>(random.below(static_cast<std::int64_t>(specials.size())))];
    case 1: return bits_as<T>(static_cast<typename Bits<T>::U>(random.next()));
    default: return static_cast<T>(random.normal() * (random.below(2) ? 1.0 : 60.0));
  }
}

template <class V>
struct Lane {  // a vector and its lanes
  using T = ElementOf<V>;
  T at[V::W];
  Lane() = default;
  explicit Lane(const V& x) { V::store(at, x); }
  V vector() const { return V::load(at); }
  static Lane random(Random& random) {
    Lane l;
    for (T& x : l.at) x = any_value<T>(random);
    return l;
  }
};

// expected(i) on every lane of `got`
template <class V, class F>
void expect(const char* word, const V& got, F expected) {
  const Lane<V> lanes(got);
  for (int i = 0; i < V::W; ++i) {
    const ElementOf<V> want = expected(i);
    CHECK(same(lanes.at[i], want), "%s, lane %d of %d: %a, expected %a", word, i, V::W, double(lanes.at[i]), double(want));
  }
}
template <class V, class M, class F>
void expect_mask(const char* word, const M& mask, F expected) {
  using T = ElementOf<V>;
  int set = 0;
  for (int i = 0; i < V::W; ++i) set += expected(i);
  if constexpr (V::kRegister) {
    const std::uint64_t lanes = ::sumexp::SUMEXP_NS::bits(mask), one = ~std::uint64_t(0) >> (64 - V::kMaskBits);
    for (int i = 0; i < V::W; ++i) {
      const std::uint64_t lane = lanes >> (i * V::kMaskBits) & one, want = expected(i) ? one : 0;
      CHECK(lane == want, "bits(%s), lane %d: %llx, expected %llx", word, i, (unsigned long long)lane,
            (unsigned long long)want);
    }
    if constexpr (V::W * V::kMaskBits < 64)
      CHECK(lanes >> (V::W * V::kMaskBits) == 0, "bits(%s): more than %d lanes", word, V::W);
  }
  CHECK(::sumexp::SUMEXP_NS::count(mask) == set, "count(%s): %d, expected %d", word, ::sumexp::SUMEXP_NS::count(mask), set);
  expect(word, clear(mask, V(T(1))), [&](int i) { return expected(i) ? T(0) : T(1); });
}

// -- words of F32 and F64 -------------------------------------------------------------------------------

template <class V>
void test_arithmetic() {
  using T = ElementOf<V>;
  Random random(1);
  for (int round = 0; round < 20000; ++round) {
    const Lane<V> a = Lane<V>::random(random), b = Lane<V>::random(random), c = Lane<V>::random(random);
    const V x = a.vector(), y = b.vector(), z = c.vector();
    expect("+", x + y, [&](int i) { return a.at[i] + b.at[i]; });
    expect("-", x - y, [&](int i) { return a.at[i] - b.at[i]; });
    expect("*", x * y, [&](int i) { return a.at[i] * b.at[i]; });
    expect("/", x / y, [&](int i) { return a.at[i] / b.at[i]; });
    expect("fma", fma(x, y, z), [&](int i) { return fma(a.at[i], b.at[i], c.at[i]); });
    expect("larger", larger(x, y), [&](int i) { return a.at[i] > b.at[i] ? a.at[i] : b.at[i]; });
    expect("at_least", at_least(x, y), [&](int i) { return at_least(a.at[i], b.at[i]); });
    expect_mask<V>("equal", equal(x, y), [&](int i) { return equal(a.at[i], b.at[i]); });
    expect_mask<V>("equal to itself", equal(x, x), [&](int i) { return a.at[i] == a.at[i]; });
    expect_mask<V>("unordered", unordered(x), [&](int i) { return a.at[i] != a.at[i]; });
    expect_mask<V>("at_or_above", at_or_above(x, y), [&](int i) { return a.at[i] >= b.at[i]; });
    expect("clear", clear(equal(x, x), y), [&](int i) { return clear(a.at[i] == a.at[i], b.at[i]); });
    expect("pick", pick(at_or_above(x, y), y, z), [&](int i) { return a.at[i] >= b.at[i] ? b.at[i] : c.at[i]; });
    expect("set1", V(a.at[0]), [&](int) { return a.at[0]; });
    const Lane<V> field(pow2_field(x)), still(quiet(x));
    T most = -Limits<T>::infinity;
    Lane<V> ordered = a;
    for (int i = 0; i < V::W; ++i) {
      CHECK(bits(field.at[i]) == bits(pow2_field(a.at[i])), "pow2_field(%a), lane %d", double(a.at[i]), i);
      const T want = a.at[i] == a.at[i] ? a.at[i] : Limits<T>::nan();
      CHECK(bits(still.at[i]) == bits(want), "quiet(%a), lane %d", double(a.at[i]), i);
      if (ordered.at[i] != ordered.at[i]) ordered.at[i] = T(-1);
      most = ordered.at[i] > most ? ordered.at[i] : most;
    }
    CHECK(largest(ordered.vector()) == most, "largest: %a, expected %a", double(largest(ordered.vector())), double(most));
  }
  for (int winner = 0; winner < V::W; ++winner) {
    Lane<V> a(V(-Limits<T>::infinity));
    CHECK(largest(a.vector()) == -Limits<T>::infinity, "largest of -inf");
    a.at[winner] = T(-3);
    CHECK(largest(a.vector()) == T(-3), "largest in lane %d", winner);
  }
}

// n elements that end where the process may not read or write
template <class T>
class Fence {
 public:
  Fence() {
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    base_ = static_cast<char*>(mmap(nullptr, 3 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(base_, page, PROT_NONE);
    mprotect(base_ + 2 * page, page, PROT_NONE);
    begin_ = reinterpret_cast<T*>(base_ + page), end_ = reinterpret_cast<T*>(base_ + 2 * page);
    bytes_ = 3 * page;
  }
  ~Fence() { munmap(base_, bytes_); }
  T* first() { return begin_; }
  T* last(int n) { return end_ - n; }

 private:
  char* base_;
  T *begin_, *end_;
  std::size_t bytes_;
};

template <class V>
void test_memory() {
  using T = ElementOf<V>;
  constexpr int W = V::W;
  Random random(2);
  alignas(64) T from[3 * W], to[3 * W];
  Fence<T> fence;
  for (int round = 0; round < 2000; ++round) {
    for (T& x : from) x = any_value<T>(random);
    for (int shift = 0; shift < W; ++shift) {
      expect("load", V::load(from + shift), [&](int i) { return from[shift + i]; });
      std::memset(static_cast<void*>(to), 0x5a, sizeof(to));
      V::store(to + W + shift, V::load(from));
      for (int i = 0; i < 3 * W; ++i) {
        const bool inside = i >= W + shift && i < 2 * W + shift;
        T was;
        std::memset(&was, 0x5a, sizeof(T));
        CHECK(same(to[i], inside ? from[i - W - shift] : was), "store at %d: element %d", W + shift, i);
      }
    }
    V::stream(to + W, V::load(from));
    for (int i = 0; i < W; ++i) CHECK(same(to[W + i], from[i]), "stream: element %d", i);

    for (int n = 0; n <= W; ++n) {
      const T fill = round & 1 ? -Limits<T>::infinity : T(0);
      for (T* place : {fence.first(), fence.last(n)}) {
        for (int i = 0; i < n; ++i) place[i] = from[i];
        expect("load_part", V::load_part(place, n, fill), [&](int i) { return i < n ? from[i] : fill; });
        // what the compiler knows may be loaded in another way
        expect("load_part 0", V::load_part(place, n, T(0)), [&](int i) { return i < n ? from[i] : T(0); });
        expect("load_part -0", V::load_part(place, n, T(-0.0)), [&](int i) { return i < n ? from[i] : T(-0.0); });
        expect("load_part -inf", V::load_part(place, n, -Limits<T>::infinity),
               [&](int i) { return i < n ? from[i] : -Limits<T>::infinity; });
        V::store_part(place, V::load(from + W), n);
        for (int i = 0; i < n; ++i) CHECK(same(place[i], from[W + i]), "store_part of %d: element %d", n, i);
      }
      std::memset(static_cast<void*>(to), 0x5a, sizeof(to));
      V::store_part(to + 1, V::load(from), n);
      for (int i = 0; i < 3 * W; ++i) {
        T was;
        std::memset(&was, 0x5a, sizeof(T));
        CHECK(same(to[i], i >= 1 && i <= n ? from[i - 1] : was), "store_part of %d leaves element %d", n, i);
      }
    }
  }
}

template <class V>
void test_transpose() {
  using T = ElementOf<V>;
  T square[V::W][V::W];
  for (int i = 0; i < V::W; ++i)
    for (int j = 0; j < V::W; ++j) square[i][j] = T(100 * i + j);
  V r[V::W];
  for (int i = 0; i < V::W; ++i) r[i] = V::load(square[i]);
  transpose(r);
  for (int i = 0; i < V::W; ++i) expect("transpose", r[i], [&](int j) { return square[j][i]; });
}

template <class V, int h = V::W / 2>
void test_halves() {
  using T = ElementOf<V>;
  constexpr int W = V::W, quad = 16 / sizeof(T), block = h < quad ? quad : W;
  T from[2][W];
  for (int i = 0; i < W; ++i) from[0][i] = T(i), from[1][i] = T(100 + i);
  V half[2];
  halves<h>(V::load(from[0]), V::load(from[1]), half[0], half[1]);
  for (int upper = 0; upper < 2; ++upper)
    expect("halves", half[upper], [&](int i) {
      const int at = i % (block / 2);
      return from[i % block >= block / 2][i / block * block + at / h * 2 * h + upper * h + at % h];
    });
  if constexpr (h > 1) test_halves<V, h / 2>();
}

template <class V>
void test_fold_rows() {
  using T = ElementOf<V>;
  T square[V::W][V::W];
  V row[V::W];
  for (int b = 0; b < V::W; ++b) {
    for (int i = 0; i < V::W; ++i) square[b][i] = T(100 * b + i);
    row[b] = V::load(square[b]);
  }
  const V sum = fold_rows(row, [](V low, V high) { return low + high; });
  expect("fold_rows", sum, [](int b) { return T(V::W * (100 * b) + V::W * (V::W - 1) / 2); });
}

// -- 16-bit formats ---------------------------------------------------------------------------------------

template <class S>
void test_format(const char* name, S (*narrow)(float)) {
  constexpr int W = F32::W;
  for (int first = 0; first < 65536; first += W) {
    S h[W];
    for (int i = 0; i < W; ++i) h[i].bits = static_cast<std::uint16_t>(first + i);
    expect(name, F32::load(h), [&](int i) { return to_float(h[i]); });
  }
  const auto down = [&](const float(&x)[W]) {
    S h[W + 2];
    h[0].bits = h[W + 1].bits = 0x5a5a;
    F32::store(h + 1, F32::load(x));
    for (int i = 0; i < W; ++i)
      CHECK(h[1 + i].bits == narrow(x[i]).bits, "%s(%a), lane %d: %04x, expected %04x", name, double(x[i]), i,
            unsigned(h[1 + i].bits), unsigned(narrow(x[i]).bits));
    CHECK(h[0].bits == 0x5a5a && h[W + 1].bits == 0x5a5a, "%s: a store beside its %d elements", name, W);
  };
  // Every representable value, the middles between neighbours, and the floats next to both. The only NaN
  // that kernels store is the canonical one.
  float x[W];
  int filled = 0;
  const auto add = [&](std::uint32_t i) {
    float v = bits_as<float>(i);
    if (v != v) v = Limits<float>::nan();
    x[filled++] = v;
    if (filled == W) down(x), filled = 0;
  };
  for (unsigned pattern = 0; pattern < 65536; ++pattern) {
    S h;
    h.bits = static_cast<std::uint16_t>(pattern);
    const std::uint32_t at = bits_as<std::uint32_t>(to_float(h));
    S up = h;
    up.bits = static_cast<std::uint16_t>(pattern + 1);
    const float middle = static_cast<float>((double(to_float(h)) + double(to_float(up))) * 0.5);
    const std::uint32_t half = bits_as<std::uint32_t>(middle);
    for (const std::uint32_t i : {at - 1, at, at + 1, half - 1, half, half + 1}) add(i);
  }
  Random random(3);
  for (int i = 0; i < 400000; ++i) add(static_cast<std::uint32_t>(random.next()));
  for (const std::uint32_t i :
       {0x477fefffu, 0x477ff000u, 0x477ff001u, 0x7f7fffffu, 0x7f7f7fffu, 0x7f7f8000u, 0x33000000u, 0x33000001u, 0x32ffffffu,
        0x387fe000u, 0x387fefffu, 0x387ff000u, 0x00007fffu, 0x00008000u, 0x00008001u, 0x00018000u})
    add(i), add(i | 0x80000000u);
  while (filled) add(0);
}

// -- doubles, and what is built from the words ----------------------------------------------------------------

void test_doubles() {
  constexpr int W = F64::W;
  Random random(4);
  for (int round = 0; round < 20000; ++round) {
    const Lane<F64> a = Lane<F64>::random(random);
    const F64 x = a.vector();
    CHECK(same(lane0(x), a.at[0]), "lane0");
    F64 k;
    const Lane<F64> m(exponent_split(x, k)), power(k);
    for (int i = 0; i < W; ++i) {
      double want_k;
      const double want = exponent_split(a.at[i], want_k);
      CHECK(bits(m.at[i]) == bits(want) && bits(power.at[i]) == bits(want_k), "exponent_split(%a), lane %d", a.at[i], i);
    }
    const auto slid = [&](int h, const F64& got) {
      const Lane<F64> lanes(got);
      for (int i = 0; i < h; ++i) CHECK(same(lanes.at[i], a.at[i + h]), "slide_down<%d>, lane %d", h, i);
    };
    slid(1, slide_down<1>(x));
    if constexpr (W > 2) slid(2, slide_down<(W > 2 ? 2 : 1)>(x));
    if constexpr (W > 4) slid(4, slide_down<(W > 4 ? 4 : 1)>(x));
  }
}

void expect_pair(const char* word, const DD<F64>& got, const DD<double> (&want)[F64::W]) {
  expect(word, got.hi, [&](int i) { return want[i].hi; });
  expect(word, got.lo, [&](int i) { return want[i].lo; });
}
// What a vector of floats widens to: two vectors of doubles.
void expect_wide(const char* word, const Twin<F64>& got, const double (&want)[F32::W]) {
  expect(word, got.a, [&](int i) { return want[i]; });
  expect(word, got.b, [&](int i) { return want[F64::W + i]; });
}
Twin<F64> load_wide(const double* from) { return {F64::load(from), F64::load(from + F64::W)}; }

void test_wide_f64() {
  using O = WideOf<F64>;
  using S = WideOf<double>;
  constexpr int W = F64::W;
  Random random(5);
  DD<double> want[W];
  const auto lanes = [&](const char* word, const DD<F64>& got, auto expected) {
    for (int i = 0; i < W; ++i) want[i] = expected(i);
    expect_pair(word, got, want);
  };
  for (int round = 0; round < 5000; ++round) {
    Lane<F64> a, b, c;
    for (int i = 0; i < W; ++i) {
      a.at[i] = random.normal(), b.at[i] = random.normal() * 0x1p-20, c.at[i] = random.uniform() + 0.25;
      if (round % 8 == 0) a.at[i] = any_value<double>(random);
    }
    const DD<F64> x = O::from(a.vector(), b.vector()), y = O::from(c.vector(), b.vector());
    const auto sx = [&](int i) { return S::from(a.at[i], b.at[i]); };
    const auto sy = [&](int i) { return S::from(c.at[i], b.at[i]); };
    lanes("from", O::from(a.vector()), [&](int i) { return S::from(a.at[i]); });
    lanes("from(a, b)", x, sx);
    lanes("constant", O::constant(a.at[0]), [&](int) { return S::constant(a.at[0]); });
    lanes("scaled", O::scaled(x, 0x1p-300), [&](int i) { return S::scaled(sx(i), 0x1p-300); });
    lanes("pair +", x + y, [&](int i) { return sx(i) + sy(i); });
    lanes("pair *", x * y, [&](int i) { return sx(i) * sy(i); });
    lanes("pair /", x / y, [&](int i) { return sx(i) / sy(i); });
    lanes("log1p", log1p_wide(y), [&](int i) { return log1p_wide(sy(i)); });
    lanes("log1p of little", log1p_wide(O::from(b.vector())), [&](int i) { return log1p_wide(S::from(b.at[i])); });
    const DD<F64> rho = O::scaled(y, 0.25);
    lanes("exp", exp_wide(rho), [&](int i) { return exp_wide(S::scaled(sy(i), 0.25)); });
    lanes("remainder", remainder_wide(x, O::constant(7.0)), [&](int i) { return remainder_wide(sx(i), S::constant(7.0)); });
    F64 h, l;
    O::split(x, h, l);
    lanes("split", {h, l}, [&](int i) {
      DD<double> pair;
      S::split(sx(i), pair.hi, pair.lo);
      return pair;
    });
  }
}

void test_wide_f32() {
  using O = WideOf<F32>;
  using S = WideOf<float>;
  constexpr int W = F32::W;
  static_assert(F32::W == 2 * F64::W, "a vector of floats widens to two of doubles");
  Random random(6);
  double want[W];
  const auto lanes = [&](const char* word, const O::W& got, auto expected) {
    for (int i = 0; i < W; ++i) want[i] = expected(i);
    expect_wide(word, got, want);
  };
  for (int round = 0; round < 5000; ++round) {
    const Lane<F32> a = Lane<F32>::random(random), b = Lane<F32>::random(random);
    double wide[W], positive[W];
    for (int i = 0; i < W; ++i) {
      wide[i] = any_value<double>(random), positive[i] = random.uniform() + 0.01;
      // doubles that round to every kind of float: ties, subnormals, overflow
      if (round & 1) wide[i] = (double(a.at[i]) + double(b.at[i]) * 0x1p-24) * 0x1p-10;
    }
    const O::W w = load_wide(wide), u = load_wide(positive);
    lanes("from", O::from(a.vector()), [&](int i) { return S::from(a.at[i]); });
    lanes("from(a, b)", O::from(a.vector(), b.vector()), [&](int i) { return S::from(a.at[i], b.at[i]); });
    lanes("constant", O::constant(0x1p-72), [](int) { return 0x1p-72; });
    lanes("scaled", O::scaled(w, 0x1p-72), [&](int i) { return S::scaled(wide[i], 0x1p-72); });
    lanes("twin +", w + u, [&](int i) { return wide[i] + positive[i]; });
    lanes("twin *", w * u, [&](int i) { return wide[i] * positive[i]; });
    lanes("twin /", w / u, [&](int i) { return wide[i] / positive[i]; });
    lanes("log1p", log1p_wide(u), [&](int i) { return log1p_wide(positive[i]); });
    lanes("exp", exp_wide(O::scaled(u, 0.25)), [&](int i) { return exp_wide(positive[i] * 0.25); });
    lanes("remainder", remainder_wide(u, O::constant(5.0)), [&](int i) { return remainder_wide(positive[i], 5.0); });
    F32 h, l;
    O::split(w, h, l);
    float want_h[W], want_l[W];
    for (int i = 0; i < W; ++i) S::split(wide[i], want_h[i], want_l[i]);
    expect("split, high", h, [&](int i) { return want_h[i]; });
    expect("split, low", l, [&](int i) { return want_l[i]; });
    // and the two parts are the double: an optimiser that takes double(float(w)) for w makes the low one 0
    for (int i = 0; i < W; ++i) {
      const double whole = double(want_h[i]) + double(want_l[i]), off = whole - wide[i],
                   size = wide[i] < 0 ? -wide[i] : wide[i];
      if (size > 0x1p-70 && size < 0x1p120)
        CHECK(off <= size * 0x1p-47 && off >= -size * 0x1p-47, "split(%a) = %a + %a", wide[i], double(want_h[i]),
              double(want_l[i]));
    }
  }
}

template <class V>
void test_exp() {
  using T = ElementOf<V>;
  Random random(7);
  for (int round = 0; round < 20000; ++round) {
    Lane<V> a = Lane<V>::random(random);
    const T m = static_cast<T>(random.normal() * (round & 1 ? 10.0 : 1000.0));
    const Base<T> base = base_of(m);
    // Above the maximum the definition says nothing: the low bits of t leave their field.
    for (T& x : a.at) x = x > m ? m : x;
    const Reduction<V> reduce = {V(base.reduce.shift), V(base.reduce.floor)};
    expect("exp", term(exp_parts(a.vector(), reduce)), [&](int i) { return term(exp_parts(a.at[i], base.reduce)); });
    expect("e^y", probability_of_log(a.vector()).value, [&](int i) { return probability_of_log(a.at[i]).value; });
    expect("1 - e^y", probability_of_log(a.vector()).rest, [&](int i) { return probability_of_log(a.at[i]).rest; });
  }
}

int run() {
  if (!cpu_has_this_isa()) {
    std::printf("skipped: this CPU lacks the instructions\n");
    return check::kSkipped;
  }
  test_arithmetic<F32>();
  test_arithmetic<F64>();
  test_memory<F32>();
  test_memory<F64>();
  test_transpose<F32>();
  test_transpose<F64>();
  test_halves<F32>();
  test_halves<F64>();
  test_fold_rows<F32>();
  test_fold_rows<F64>();
  test_format<f16>("f16", to_f16);
  test_format<bf16>("bf16", to_bf16);
  // any NaN becomes the one that bf16 stores
  for (const std::uint32_t nan : {0x7fc00000u, 0xffc00000u, 0x7f800001u, 0xffffffffu}) {
    bf16 h[F32::W];
    float x[F32::W];
    for (float& v : x) v = bits_as<float>(nan);
    F32::store(h, F32::load(x));
    for (const bf16 v : h) CHECK(v.bits == 0x7fc0, "bf16 of NaN %08x: %04x", nan, unsigned(v.bits));
  }
  test_doubles();
  test_wide_f64();
  test_wide_f32();
  test_exp<F32>();
  test_exp<F64>();
  return check::finish();
}

}  // namespace
}  // namespace sumexp::SUMEXP_NS

int main() { return sumexp::SUMEXP_NS::run(); }
