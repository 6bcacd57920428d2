// The filters of sampling on rows and scratch memory that end, or begin, at pages that may not be touched, on every instruction
// set of this CPU: cuts are those of a plain sort, in counts, and the same everywhere, in masses.
#include "../../csrc/cpu/sampling/filters.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "../../csrc/ops/filters.hpp"
#include "check.hpp"

namespace {

using namespace sumexp;

// Memory with a guard page on either side.
class Arena {
 public:
  explicit Arena(std::size_t bytes) : page_(static_cast<std::size_t>(sysconf(_SC_PAGESIZE))) {
    size_ = (bytes + page_ - 1) / page_ * page_;
    void* base = mmap(nullptr, size_ + 2 * page_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) std::abort();
    begin_ = static_cast<char*>(base) + page_;
    if (mprotect(begin_, size_, PROT_READ | PROT_WRITE) != 0) std::abort();
  }
  ~Arena() { munmap(begin_ - page_, size_ + 2 * page_); }
  Arena(const Arena&) = delete;

  char* first() { return begin_; }
  char* last(std::size_t bytes) { return begin_ + size_ - bytes; }

 private:
  std::size_t page_, size_;
  char* begin_;
};

std::vector<std::string> isas() {
  std::vector<std::string> names;
  if (!check::slow()) names.emplace_back("portable");  // there it is "scalar"
  for (const char* p = usable_isas(); *p; p += *p == ',') {
    names.emplace_back();
    while (*p && *p != ',') names.back() += *p++;
  }
  return names;
}

template <class T>
std::vector<T> row(check::Random& random, int kind, std::int64_t n) {
  std::vector<T> x(static_cast<std::size_t>(n));
  for (T& v : x) {
    v = static_cast<T>(random.normal() * (kind == 0 ? 1 : 4));
    if (kind == 1) v = static_cast<T>(static_cast<int>(v));  // ties
    if (kind == 2 && random.below(3) == 0) v = -std::numeric_limits<T>::infinity();
  }
  if (n) x[static_cast<std::size_t>(random.below(n))] = T(0.5);
  return x;
}

template <class T>
void on_guarded_memory(Arena& rows, Arena& scratches, const std::vector<std::string>& names, std::int64_t n, int kind) {
  check::Random random(static_cast<std::uint64_t>(3 * n + kind));
  const std::vector<T> x = row<T>(random, kind, n);
  std::vector<std::int64_t> order(x.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return x[static_cast<std::size_t>(a)] > x[static_cast<std::size_t>(b)];
  });
  const auto finite = std::count_if(x.begin(), x.end(), [](T v) { return v > -std::numeric_limits<T>::infinity(); });
  const std::size_t bytes = x.size() * sizeof(T), wanted = cpu::filter_scratch<T>(n);
  void* const scratch = scratches.last(wanted);
  check::that(wanted % 64 == 0, __FILE__, __LINE__, "scratch of %zu bytes", wanted);
  for (const Filters& filters : {Filters{}, Filters{1 + n / 20}, Filters{1 + n / 2}, Filters{0, 0.8}, Filters{n / 3, 0.5, 1e-3},
                                 Filters{n / 3, 0.9, 0.02, FilterOrder::hf}, Filters{0, 0.999999}}) {
    cpu::Cut<T> want{};
    for (std::size_t i = 0; i < names.size(); ++i) {
      set_isa(names[i].c_str());
      for (char* const at : {rows.first(), rows.last(bytes)}) {
        check::copy(at, x.data(), bytes);
        const auto cut = cpu::filter_cut(reinterpret_cast<const T*>(at), n, filters, scratch);
        if (i == 0 && at == rows.first()) want = cut;
        CHECK(cut.logit == want.logit && cut.index == want.index && cut.kept == want.kept, "%s n=%lld kind %d: another cut",
              names[i].c_str(), static_cast<long long>(n), kind);
      }
    }
    if (filters.top_p < 1 || filters.min_p > 0) continue;
    const std::int64_t kept = filters.top_k >= 1 && filters.top_k < finite ? filters.top_k : finite;
    CHECK(want.kept == kept && want.index == (kept ? order[static_cast<std::size_t>(kept - 1)] : -1),
          "n=%lld kind %d: the first %lld", static_cast<long long>(n), kind, static_cast<long long>(kept));
  }
}

// The finite elements of a row by a sort, and their masses, added one after the other for a cut.
template <class T>
class Sorted {
 public:
  explicit Sorted(const std::vector<T>& x) : x_(x) {
    for (std::size_t j = 0; j < x.size(); ++j)
      if (x[j] > -SUMEXP_NS::Limits<T>::infinity) order_.push_back(static_cast<std::int64_t>(j));
    std::stable_sort(order_.begin(), order_.end(), [&](std::int64_t a, std::int64_t b) {
      return x[static_cast<std::size_t>(a)] > x[static_cast<std::size_t>(b)];
    });
    const SUMEXP_NS::Base<T> base = SUMEXP_NS::base_of(at(0));
    for (std::size_t i = 0; i < order_.size(); ++i)
      masses_.push_back(SUMEXP_NS::mass_of_term(SUMEXP_NS::mass_term(at(i), base.anchor, base.reduce)));
  }

  cpu::Cut<T> cut(const Filters& filters) const {
    using namespace SUMEXP_NS;
    std::size_t kept = order_.size();
    const auto by_min_p = [&] {
      if (!(filters.min_p > 0)) return;
      const T bound = lowest_kept(at(0), filters.min_p);
      while (kept > 1 && at(kept - 1) < bound) --kept;
    };
    if (filters.order == FilterOrder::vllm) by_min_p();
    if (filters.top_k >= 1) kept = std::min(kept, static_cast<std::size_t>(filters.top_k));
    if (filters.top_p < 1) {
      Mass total = 0, sum = 0;
      for (std::size_t i = 0; i < kept; ++i) total += masses_[i];
      const Mass target = ceil_product(filters.top_p, total);
      for (kept = 0; sum < target; ++kept) sum += masses_[kept];
    }
    if (filters.order != FilterOrder::vllm) by_min_p();
    return {at(kept - 1) + T(0), order_[kept - 1], static_cast<std::int64_t>(kept)};
  }

 private:
  T at(std::size_t place) const { return x_[static_cast<std::size_t>(order_[place])]; }

  const std::vector<T>& x_;
  std::vector<std::int64_t> order_;
  std::vector<Mass> masses_;
};

// Long rows, where a sample says where to look: also rows that a sample is wrong about.
template <class T>
void long_rows(const std::vector<std::string>& names) {
  std::vector<std::int64_t> lengths = {16'384, 16'385, 40'000, 128'256};
  if (check::slow()) lengths = {16'385, 40'000};
  for (const std::int64_t n : lengths)
    for (int kind = 0; kind < 9; ++kind) {
      check::Random random(static_cast<std::uint64_t>(n + kind));
      std::vector<T> x = row<T>(random, kind, n);
      for (std::int64_t j = 0; j < n; ++j) {
        T& v = x[static_cast<std::size_t>(j)];
        if (kind == 3 && j % 512 >= 64) v += 9;               // the sample sees none of these
        if (kind == 4 && j % 512 < 64) v += 9;                // the sample sees these alone
        if (kind == 5 && random.below(10'000) == 0) v += 25;  // a few have all of the mass
        if (kind == 6) v = T(1.25);
        if (kind == 8) v = j % 10 < 3 ? T(1.25) : T(-60);  // at half of the mass an element more or less by p's last bit
        if (kind == 7) v = static_cast<T>(-30.0 * static_cast<double>(j) / static_cast<double>(n));
      }
      const std::size_t bytes = x.size() * sizeof(T), wanted = cpu::filter_scratch<T>(n);
      Arena rows(bytes), scratches(wanted);
      const T* const at = static_cast<const T*>(std::memcpy(rows.last(bytes), x.data(), bytes));
      void* const scratch = scratches.last(wanted);
      const Sorted<T> sorted(x);
      const std::int64_t k = n * 3 / 10;
      for (const Filters& filters :
           {Filters{0, 0.9}, Filters{0, 0.3}, Filters{0, 0.5}, Filters{0, 0.5 + 0x1p-52}, Filters{0, 0.9999}, Filters{0, 1e-9},
            Filters{0, 1 - 0x1p-53}, Filters{k}, Filters{n - 7}, Filters{n / 7}, Filters{k, 0.9}, Filters{n - 2, 0.7},
            Filters{k, 0.99, 1e-3}, Filters{2000, 0.5, 1e-3, FilterOrder::hf}}) {
        const cpu::Cut<T> want = sorted.cut(filters);
        for (const std::string& name : names) {
          set_isa(name.c_str());
          const auto cut = cpu::filter_cut(at, n, filters, scratch);
          CHECK(cut.logit == want.logit && cut.index == want.index && cut.kept == want.kept,
                "%s n=%lld kind %d top_k %lld top_p %.17g: (%.9g, %lld, %lld), by sorting (%.9g, %lld, %lld)", name.c_str(),
                static_cast<long long>(n), kind, static_cast<long long>(filters.top_k), filters.top_p,
                static_cast<double>(cut.logit), static_cast<long long>(cut.index), static_cast<long long>(cut.kept),
                static_cast<double>(want.logit), static_cast<long long>(want.index), static_cast<long long>(want.kept));
        }
      }
    }
}

template <class T>
void all_lengths(const std::vector<std::string>& names) {
  std::vector<std::int64_t> lengths(71);
  std::iota(lengths.begin(), lengths.end(), 0);
  for (const std::int64_t n : {127, 128, 129, 255, 257, 511, 512, 513, 700, 1023, 1025, 2049, 4100, 10'007})
    lengths.push_back(n);
  Arena rows(10'007 * sizeof(T)), scratches(cpu::filter_scratch<T>(10'007));
  for (const std::int64_t n : lengths)
    for (int kind = 0; kind < 3; ++kind)
      if (!check::slow() || n < 20 || n > 62 || kind == n % 3) on_guarded_memory<T>(rows, scratches, names, n, kind);
}

// The mass of a term by integers is what adding it as two doubles makes of it.
template <class T>
void mass_of_terms() {
  using namespace SUMEXP_NS;
  using F = MassFormat<T>;
  check::Random random(sizeof(T));
  const auto agrees = [](T t) {
    MassSum<T, double> sum;
    sum.add(t);
    CHECK(mass_of_term(t) == mass_of<T>(sum.high_part(), sum.low), "a term of %a", static_cast<double>(t));
  };
  agrees(T(0));
  for (int e = 0; e <= 64; ++e)
    for (int i = 0; i < 400; ++i) {
      const double digits = i == 0 ? 1.0 : i == 1 ? 2.0 - 0x1p-52 : 1.0 + random.uniform();
      const double few = static_cast<double>(static_cast<std::int64_t>(digits * (1 << (20 + i % 9))));  // halves of a unit
      for (const double m : {digits, few / (1 << (20 + i % 9))})
        if (const T t = static_cast<T>(m * check::power_of_two(e) * F::least); t <= T(1.42 * 0x1p64) * F::least) agrees(t);
    }
}

void ties() {
  check::Random random(5);
  for (int i = 0; i < 20000; ++i) {
    const Mass each = 1 | (static_cast<Mass>(random.next()) << 25) >> random.below(89);
    const Mass count = 1 + static_cast<Mass>(random.next() >> (25 + random.below(39)));
    const auto got = [&](Mass target) { return static_cast<Mass>(SUMEXP_NS::ties_that_reach(target, each)); };
    CHECK(got(count * each) == count, "%d: so many reach themselves", i);
    CHECK(got(count * each + 1) == count + 1, "%d: one more is needed", i);
    CHECK(got((count - 1) * each + 1) == count, "%d: the last is needed", i);
  }
}

}  // namespace

int main() {
  ties();
  mass_of_terms<float>();
  mass_of_terms<double>();
  const std::vector<std::string> names = isas();
  all_lengths<float>(names);
  all_lengths<double>(names);
  long_rows<float>(names);
  long_rows<double>(names);
  return check::finish();
}
