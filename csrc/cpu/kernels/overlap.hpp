// Results of one row that go around the cache while the next row is summed: the sum keeps the arithmetic busy, this the way to
// memory.
#pragma once

#include "../../ops/log_softmax.hpp"
#include "../../ops/probability.hpp"
#include "store.hpp"

namespace sumexp::SUMEXP_NS {

// A row's results: of its terms the probabilities, times a factor; a term that is the row's maximum has one of its own, which
// `common` leaves out.
template <class V>
struct OfTerms {
  TermScale<V> scale;
  V factor;

  SUMEXP_FN V common(V term) const { return factor * probability_of_others(term, scale); }
  SUMEXP_FN V operator()(V term) const { return factor * probability<FullTerms>(term, scale); }
  SUMEXP_FN bool has_top() const { return largest(scale.top_term) >= ElementOf<V>(0); }
  SUMEXP_FN bool is_top(V term) const { return any(equal(term, scale.top_term)); }
};
// Of its logits log_softmax.
template <class V>
struct OfLogits {
  LogSoftmax::Row<V> row;

  SUMEXP_FN V common(V x) const { return LogSoftmax::map(x, row); }
  SUMEXP_FN V operator()(V x) const { return LogSoftmax::map(x, row); }
  SUMEXP_FN bool has_top() const { return false; }
  SUMEXP_FN bool is_top(V) const { return false; }
};

// What exp_chunk takes of it, where kOverlaps: of terms if it stores terms. With the chunk's cache lines go as many of `to`,
// which are `skew` elements further on.
template <class V, class Value>
struct Overlap {
  const ElementOf<V>* from;
  ElementOf<V>* to;
  const Value& value;
  int count, skew;
  bool written = false;  // all whole cache lines

  // GCC clears an aggregate first, by an instruction that waits until all stores before it have gone to memory.
  SUMEXP_FN Overlap(const ElementOf<V>* from_, ElementOf<V>* to_, const Value& value_, int count_, int skew_)
      : from(from_), to(to_), value(value_), count(count_), skew(skew_) {}
};
template <class V, bool kStore>
using OverlapOf = Overlap<V, std::conditional_t<kStore, OfTerms<V>, OfLogits<V>>>;
template <class V, class E>
inline constexpr bool kOverlaps = (V::kRegister && std::is_same_v<E, float>);

// sum(overlap), which is to pass it on to exp_chunk, and `count` results to memory.
template <class V, class Value, class Sum>
SUMEXP_FN void write_while(const ElementOf<V>* from, ElementOf<V>* to, int count, const Value& value, Sum sum) {
  using T = ElementOf<V>;
  constexpr int kLine = 64 / sizeof(T);
  const std::uintptr_t past = reinterpret_cast<std::uintptr_t>(to) % 64;
  const int ahead = static_cast<int>((64 - past) % 64 / sizeof(T));
  const int skew = past % sizeof(T) || ahead > count ? count : ahead;  // count: no line is there, or none ever
  Overlap<V, Value> overlap(from, to, value, count, skew);
  sum(&overlap);
  const auto write = [&](int begin, int end, bool stream) {
    store_chunk<V>(to + begin, end - begin, stream,
                   [&](int i, auto memory) SUMEXP_INLINE { return value(memory.template load<V>(from + begin + i, T(0))); });
  };
  if (!overlap.written) return write(0, count, true);
  write(0, skew, false), write(count - (count - skew) % kLine, count, false);
  if (value.has_top())
    each_vector<V>(count, [&](int i, auto memory) SUMEXP_INLINE {
      const V v = memory.template load<V>(from + i, T(0));
      if (value.is_top(v)) memory.store(to + i, value(v));
    });
}

}  // namespace sumexp::SUMEXP_NS
