// Cross-entropy with its options: every array between pages that may not be touched, at both ends of them, rows last and side
// by side; the bytes of the portable kernels on ordinary memory; tanh.   usage: test_losses [ISA]
#include <sumexp/losses.hpp>

#include <sys/mman.h>
#include <unistd.h>
#include <cmath>
#include <csignal>

#include "../../csrc/numerics/tanh.hpp"
#include "cases.hpp"

using namespace cases;
using sumexp::CrossEntropyCall;
using sumexp::IndexType;
using sumexp::LossReduction;
using sumexp::TargetKind;

namespace {

char g_doing[200];
void on_fault(int) {
  if (write(1, "FAILED: touched memory outside of its arrays: ", 46) < 0 || write(1, g_doing, std::strlen(g_doing)) < 0)
    _exit(2);
  _exit(1);
}

// An array of the test: ordinary memory, or up against a page that may not be touched.
class Array {
 public:
  enum Place { kAnywhere, kAfterGuard, kBeforeGuard };
  Array(std::size_t bytes, Place place) : bytes_(bytes) {
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    mapped_ = (bytes + page - 1) / page * page + 2 * page;
    base_ = static_cast<unsigned char*>(mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED) std::abort();
    std::memset(base_, 0x5a, mapped_);
    data_ = place == kBeforeGuard ? base_ + mapped_ - page - bytes : base_ + page;
    if (place != kAnywhere) {
      mprotect(base_, page, PROT_NONE);
      mprotect(base_ + mapped_ - page, page, PROT_NONE);
    }
  }
  ~Array() { munmap(base_, mapped_); }
  Array(const Array&) = delete;
  unsigned char* data() const { return data_; }
  Bytes bytes() const { return Bytes(data_, data_ + bytes_); }

 private:
  std::size_t bytes_, mapped_;
  unsigned char *base_, *data_;
};

struct Options {
  TargetKind kind;
  IndexType index_type;
  bool weights, smooth, scaled, statistics;
  LossReduction reduction;
};

// All results of one call, one after the other. `columns`: the classes lie along dimension 0.
Bytes results(const DTypeCase& type, const Options& o, std::int64_t rows, std::int64_t n, bool columns, bool in_place,
              Array::Place place) {
  constexpr std::int64_t kPairs = 3;
  const std::int64_t wide = type.size == 8 ? 8 : 4, index_size = o.index_type == IndexType::i64 ? 8 : 1;
  const auto array = [&](std::int64_t bytes) { return Array(static_cast<std::size_t>(bytes), place); };
  const Array x = array(rows * n * type.size), gradient = array(rows * n * type.size);
  const Array y = array(rows * n * type.size), index = array(rows * kPairs * index_size),
              share = array(rows * kPairs * type.size);
  const Array weight = array(n * wide), token = array(rows * 8),
              loss = array((o.reduction == LossReduction::none ? rows : 1) * type.size);
  const Array row_loss = array(rows * wide), lse = array(rows * wide), log_prob = array(rows * wide),
              entropy = array(rows * wide);
  const Array z_loss = array(rows * wide), predicted = array(rows * 8), correct = array(rows);
  Random random(static_cast<std::uint64_t>(n * 64 + rows));
  const std::int64_t shape[2] = {columns ? n : rows, columns ? rows : n};
  std::int64_t along[2], of_rows[2], of_pairs[2], of_shares[2];
  const int row = columns ? 1 : 0, axis = 1 - row;
  along[row] = columns ? type.size : n * type.size, along[axis] = columns ? rows * type.size : type.size;
  of_rows[row] = 8, of_rows[axis] = 0;
  of_pairs[row] = (o.kind == TargetKind::pairs ? kPairs : 1) * index_size,
  of_pairs[axis] = o.kind == TargetKind::pairs ? index_size : 0;
  of_shares[row] = kPairs * type.size, of_shares[axis] = type.size;
  const DType number = wide == 8 ? DType::f64 : DType::f32;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t j = 0; j < n; ++j) {
      const std::int64_t at = r * along[row] + j * along[axis];
      put(type.dtype, x.data() + at, random.normal() * 4.0);
      put(type.dtype, y.data() + at, random.uniform());
    }
    const double token_weight = random.uniform();
    std::memcpy(token.data() + r * 8, &token_weight, 8);
    for (std::int64_t k = 0; k < kPairs; ++k) {
      put(type.dtype, share.data() + (r * kPairs + k) * type.size, random.uniform());
      const std::int64_t t = r == 1 ? -100 : random.below(n < 100 ? n : 100);
      if (o.kind == TargetKind::pairs || k == 0)
        std::memcpy(index.data() + r * of_pairs[row] + k * of_pairs[axis], &t, static_cast<std::size_t>(index_size));
    }
  }
  for (std::int64_t j = 0; j < n; ++j) put(number, weight.data() + j * wide, random.uniform());

  CrossEntropyCall call;
  call.dtype = type.dtype, call.ndim = 2, call.shape = shape, call.axis = axis;
  call.logits = {x.data(), along};
  call.kind = o.kind, call.index_type = o.index_type, call.target_dtype = type.dtype;
  if (o.kind == TargetKind::probabilities) call.target = {y.data(), along};
  else call.target = {index.data(), of_pairs};
  if (o.kind == TargetKind::pairs) call.target_weight = {share.data(), of_shares}, call.pairs = kPairs;
  if (o.weights) call.weight = weight.data(), call.token_weight = {token.data(), of_rows};
  if (o.smooth) call.label_smoothing = 0.1, call.z_loss = o.statistics ? 0.01 : 0.0;
  if (o.scaled) call.softcap = 9.0, call.temperature = 1.5;
  call.reduction = o.reduction;
  call.dlogits = in_place ? call.logits : sumexp::View{gradient.data(), along};
  call.loss = loss.data();
  if (o.statistics) {
    call.row_loss = row_loss.data(), call.lse = lse.data(), call.log_prob = log_prob.data(), call.entropy = entropy.data();
    call.z_loss_part = z_loss.data(), call.correct = correct.data();
    call.predicted = reinterpret_cast<std::int64_t*>(predicted.data());
  }
  const Status status = cross_entropy(call);
  CHECK(status.ok(), "%s: %s", g_doing, status.message);
  Bytes all;
  for (const Array* a :
       {&loss, in_place ? &x : &gradient, &row_loss, &lse, &log_prob, &entropy, &z_loss, &predicted, &correct}) {
    const Bytes bytes = a->bytes();
    all.insert(all.end(), bytes.begin(), bytes.end());
  }
  return all;
}

void check_bytes(const char* isa) {
  constexpr Options kOptions[] = {
      {TargetKind::index, IndexType::i64, false, false, false, false, LossReduction::mean},
      {TargetKind::index, IndexType::i64, false, false, false, false, LossReduction::none},
      {TargetKind::index, IndexType::i64, true, false, false, false, LossReduction::sum},
      {TargetKind::index, IndexType::i8, true, true, true, true, LossReduction::mean},
      {TargetKind::probabilities, IndexType::i64, false, false, false, true, LossReduction::mean},
      {TargetKind::probabilities, IndexType::i64, true, true, true, true, LossReduction::none},
      {TargetKind::pairs, IndexType::i8, true, true, false, true, LossReduction::mean},
      {TargetKind::pairs, IndexType::i64, false, false, true, true, LossReduction::none},
      {TargetKind::index, IndexType::i64, false, true, false, false, LossReduction::none},
      {TargetKind::index, IndexType::i8, true, true, false, false, LossReduction::mean},
      {TargetKind::probabilities, IndexType::i64, false, false, false, false, LossReduction::sum},
      {TargetKind::probabilities, IndexType::i64, true, true, false, false, LossReduction::none},
  };
  constexpr std::int64_t kSizes[] = {1, 2, 7, 16, 65, 513, 2049, 4500};
  int number = 0;
  for (const DTypeCase& type : kDTypes)
    for (const Options& o : kOptions)
      for (std::int64_t n : kSizes)
        for (bool columns : {false, true}) {
          if (++number % 4 && check::emulated()) continue;
          const std::int64_t rows = n > 1000 ? 3 : n == 7 || n == 513 ? 80 : 19;  // 80: whole vectors and lines
          std::snprintf(g_doing, sizeof(g_doing), "%s, options %d, %lld rows of %lld%s", type.name, int(&o - kOptions),
                        static_cast<long long>(rows), static_cast<long long>(n), columns ? " side by side" : "");
          sumexp::set_isa("portable");
          const Bytes expected = results(type, o, rows, n, columns, false, Array::kAnywhere);
          sumexp::set_isa(isa);
          for (Array::Place place : {Array::kAfterGuard, Array::kBeforeGuard})
            for (bool in_place : {false, true})
              CHECK(results(type, o, rows, n, columns, in_place, place) == expected, "%s: other bytes%s", g_doing,
                    in_place ? ", in place" : "");
        }
}

// tanh and its derivative against long double, and what is exact.
template <class T>
void check_tanh(double eps) {
  namespace numerics = sumexp::SUMEXP_NS;
  double worst = 0.0, worst_slope = 0.0;
  for (int e = -40; e <= 5; ++e)
    for (int i = 0; i < 400; ++i) {
      const T u = static_cast<T>((1.0 + i / 400.0) * check::power_of_two(e));
      const auto t = numerics::tanh_of(u);
      const auto back = numerics::tanh_of(-u);
      const long double exactly = std::tanh(static_cast<long double>(u)), c = std::cosh(static_cast<long double>(u));
      const double off = static_cast<double>(std::fabs(static_cast<long double>(t.value) / exactly - 1.0L));
      const double slope = static_cast<double>(std::fabs(static_cast<long double>(t.slope) * c * c - 1.0L));
      if (off > worst) worst = off;
      if (u < T(40) && slope > worst_slope) worst_slope = slope;
      CHECK(back.value == -t.value && back.slope == t.slope, "tanh is odd at %g", static_cast<double>(u));
      CHECK(t.value <= T(1), "tanh(%g) is above 1", static_cast<double>(u));
    }
  std::printf("tanh: %.2f eps, its derivative %.2f eps\n", worst / eps, worst_slope / eps);
  CHECK(worst <= 3.3 * eps && worst_slope <= 5.0 * eps, "tanh: %g eps, its derivative %g eps", worst / eps, worst_slope / eps);
  const T infinity = numerics::Limits<T>::infinity;
  CHECK(numerics::tanh_of(infinity).value == T(1) && numerics::tanh_of(infinity).slope == T(0), "tanh(inf)");
  CHECK(numerics::capped(infinity, T(2)).value == infinity && numerics::capped(-infinity, T(2)).value == -infinity,
        "capped(inf)");
  CHECK(std::isnan(numerics::tanh_of(numerics::Limits<T>::nan()).value), "tanh(NaN)");
}

void check_refusals() {
  float x[6] = {1, 2, 3, 4, 5, 6}, loss = 7;
  std::int32_t t[2] = {0, 3};
  const std::int64_t shape[2] = {2, 3}, strides[2] = {12, 4}, steps[2] = {4, 0};
  CrossEntropyCall good;
  good.ndim = 2, good.shape = shape, good.logits = {x, strides}, good.target = {t, steps}, good.index_type = IndexType::i32;
  good.loss = &loss, good.dlogits = {x, strides};
  const auto refused = [&](const char* word, CrossEntropyCall call) {
    const Status status = cross_entropy(call);
    CHECK(status.code == sumexp::Code::invalid_argument && std::strstr(status.message, word), "%s: '%s'", word, status.message);
    CHECK(loss == 7 && x[0] == 1 && x[5] == 6, "%s: something was written", word);
  };
  refused("target is 3 for row 1, accepted: indices from 0 below 3", good);
  t[1] = 2;
  const auto with = [&](auto change) {
    CrossEntropyCall call = good;
    change(call);
    return call;
  };
  refused("axis", with([](CrossEntropyCall& c) { c.axis = 2; }));
  refused("dtype", with([](CrossEntropyCall& c) { c.dtype = static_cast<DType>(4); }));
  refused("label_smoothing", with([](CrossEntropyCall& c) { c.label_smoothing = -0.1; }));
  refused("softcap", with([](CrossEntropyCall& c) { c.softcap = -1.0; }));
  refused("temperature", with([](CrossEntropyCall& c) { c.temperature = 0.0; }));
  refused("z_loss", with([](CrossEntropyCall& c) { c.z_loss = NAN; }));
  refused("logits", with([](CrossEntropyCall& c) { c.logits.data = nullptr; }));
  refused("target", with([](CrossEntropyCall& c) { c.target.data = nullptr; }));
  refused("pairs", with([](CrossEntropyCall& c) { c.kind = TargetKind::pairs; }));
  refused("denominator", with([](CrossEntropyCall& c) { c.given_denominator = true, c.reduction = LossReduction::sum; }));
  CHECK(cross_entropy(good).ok() && loss != 7, "what is right is computed");
}

// The gradient of some classes from what a call has saved: its bytes, and nothing beside it is written.
void check_gradient_part() {
  constexpr std::int64_t kRows = 3, kClasses = 70, kFirst = 16, kCount = 33;
  float x[kRows * kClasses], whole[kRows * kClasses], part[kRows * kCount];
  Random random(12);
  for (float& v : x) v = static_cast<float>(random.normal());
  std::int64_t target[kRows] = {20, -100, 3};
  const std::int64_t shape[2] = {kRows, kClasses}, strides[2] = {4 * kClasses, 4}, steps[2] = {8, 0},
                     of_part[2] = {4 * kCount, 4};
  Bytes saved(static_cast<std::size_t>(kRows * sumexp::cross_entropy_saved_bytes(DType::f32, kClasses)));
  struct Results {
    float loss[kRows], rows[5][kRows];
    std::int64_t predicted[kRows];
    std::uint8_t correct[kRows];
  } results;
  for (const LossReduction reduction : {LossReduction::none, LossReduction::mean, LossReduction::sum}) {
    CrossEntropyCall call;
    call.ndim = 2, call.shape = shape, call.logits = {x, strides}, call.target = {target, steps}, call.reduction = reduction;
    call.saved = saved.data(), call.loss = results.loss, call.row_loss = results.rows[0], call.lse = results.rows[1];
    call.log_prob = results.rows[2], call.entropy = results.rows[3], call.z_loss_part = results.rows[4];
    call.predicted = results.predicted, call.correct = results.correct, call.dlogits = {whole, strides};
    CHECK(cross_entropy(call).ok(), "a call that saves");
    std::memset(&results, 0x5a, sizeof(results));
    const Results before = results;
    call.logits = {x + kFirst, strides}, call.dlogits = {part, of_part};
    const Status status = cross_entropy_gradient_part(call, kFirst, kCount);
    CHECK(status.ok(), "a part: %s", status.message);
    for (std::int64_t r = 0; r < kRows; ++r)
      CHECK(check::equal_bytes(part + r * kCount, whole + r * kClasses + kFirst, 4 * kCount), "row %d of a part", int(r));
    CHECK(check::equal_bytes(&results, &before, sizeof(results)), "a part of reduction %d wrote beside its gradient",
          int(reduction));
    call.saved = nullptr, call.logits.data = call.dlogits.data = nullptr;
    CHECK(cross_entropy_gradient_part(call, kFirst, 0).ok(), "a part of no class");
    CHECK(check::equal_bytes(&results, &before, sizeof(results)), "a part of no class wrote");
  }
  for (const DType dtype : {DType::f16, DType::f32, DType::f64})
    CHECK(sumexp::cross_entropy_saved_bytes(dtype, INT64_MAX) == 0, "bytes of more than there can be: %lld",
          static_cast<long long>(sumexp::cross_entropy_saved_bytes(dtype, INT64_MAX)));
}

}  // namespace

int main(int argc, char** argv) {
  const char* const isa = argc > 1 ? argv[1] : sumexp::isa();
  if (!sumexp::set_isa(isa).ok()) return check::kSkipped;
  std::signal(SIGSEGV, on_fault), std::signal(SIGBUS, on_fault);
  sumexp::set_num_threads(2);
  check_tanh<float>(0x1p-24);
  check_tanh<double>(0x1p-53);
  check_refusals();
  check_gradient_part();
  check_bytes(isa);
  return check::finish();
}
