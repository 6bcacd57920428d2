#define SUMEXP_FLATTEN
#include SUMEXP_SIMD
//
#include "panel.hpp"

namespace sumexp::SUMEXP_NS {

namespace {

template <class Terms, class V, bool kApart, bool kStore, class E, class Count>
__attribute__((noinline)) SUMEXP_KERNEL bool states_of(const cpu::Panel* panels, int count, TileState<V>* states, Count n) {
  PanelRows<V, E, 1, Count> rows[kTiles];
  for (int t = 0; t < count; ++t) rows[t] = {panels + t, n};
  return tile_states<Terms, kApart, kStore>(rows, count, states);
}

}  // namespace

template <class Terms, class V, bool kApart, bool kStore, class E>
SUMEXP_KERNEL bool panel_states(const cpu::Panel* panels, int count, TileState<V>* states) {
  constexpr int kGroup = Geometry<ElementOf<V>>::kGroup;  // known to the compiler, a row of one group has no loop left
  if (panels->count == kGroup)
    return states_of<Terms, V, kApart, kStore, E>(panels, count, states, std::integral_constant<int, kGroup>());
  return states_of<Terms, V, kApart, kStore, E>(panels, count, states, panels->count);
}

#define SUMEXP_PANELS(Terms, V, E)                                                             \
  template bool panel_states<Terms, V, false, true, E>(const cpu::Panel*, int, TileState<V>*); \
  template bool panel_states<Terms, V, true, false, E>(const cpu::Panel*, int, TileState<V>*); \
  template bool panel_states<Terms, V, true, true, E>(const cpu::Panel*, int, TileState<V>*);

SUMEXP_PANELS(FullTerms, F32, float)
SUMEXP_PANELS(FullTerms, F64, double)
SUMEXP_PANELS(ShortTerms, F32, float)
SUMEXP_PANELS(ShortTerms, F32, f16)
SUMEXP_PANELS(ShortTerms, F32, bf16)

}  // namespace sumexp::SUMEXP_NS
