#include SUMEXP_SIMD
//
#include "transposed.hpp"

namespace sumexp::SUMEXP_NS {

template <class Terms, class V, bool kApart, bool kStore>
bool transposed_states(const cpu::Tile* tiles, int count, TileState<V>* states) {
  Transposed<V, 1> rows[kTiles];
  for (int t = 0; t < count; ++t) rows[t] = Transposed<V, 1>(tiles[t]);
  return tile_states<Terms, kApart, kStore>(rows, count, states);
}

#define SUMEXP_TILES(Terms, V)                                                                   \
  template bool transposed_states<Terms, V, false, true>(const cpu::Tile*, int, TileState<V>*);  \
  template bool transposed_states<Terms, V, false, false>(const cpu::Tile*, int, TileState<V>*); \
  template bool transposed_states<Terms, V, true, false>(const cpu::Tile*, int, TileState<V>*);  \
  template bool transposed_states<Terms, V, true, true>(const cpu::Tile*, int, TileState<V>*);

SUMEXP_TILES(FullTerms, F32)
SUMEXP_TILES(FullTerms, F64)
SUMEXP_TILES(ShortTerms, F32)

}  // namespace sumexp::SUMEXP_NS
