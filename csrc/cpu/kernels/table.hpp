// What an instruction set offers to the drivers: leaf functions on a chunk, a panel of rows, a tile or a block of columns,
// reached through a table. Drivers know sizes of elements, states and finished rows, never an op or a vector; kernels know
// values, never where rows lie. Only plain data crosses.
//
// T is the type that is computed in: float for 16-bit and float arrays, double for double. V::W, `width` below, is how many T a
// vector holds. Functions that read or write rows come twice, by Elements: rows of T in scratch, or rows of the caller's own
// elements, contiguous, where they lie.
#pragma once

#include "../plan.hpp"
#include "tables.hpp"

namespace sumexp::cpu {

inline constexpr int kTiles = 4;      // panels or tiles taken together at most, to hide the latencies of each
inline constexpr int kShortRow = 64;  // up to this long it pays
inline constexpr int kWidestVector = 16;
inline constexpr int kLineBytes = 64;  // of a cache line

enum Elements { kScratch, kStored };

// The fixed order of summation in numbers (numerics/geometry.hpp), by the size of T.
struct Order {
  int group, lanes, chunk;
};
constexpr Order order_of(int wide_bytes) { return wide_bytes == 8 ? Order{8, 64, 512} : Order{16, 256, 2048}; }

// Row 0 and the bytes from one row to the next.
struct RowsAt {
  char* first;
  std::int64_t step;
};

// One chunk of one row.
struct Chunk {
  const void* in[kMaxInputs];
  void* out;
  void* terms;         // T: left by reduce for map; null: map makes them again
  void* maximum;       // T: the chunk's, left by reduce for map
  std::int64_t first;  // of its elements in the row
  int count;
  std::int64_t ahead;  // elements from one to what is read a row, or a chunk, later
  bool stream;         // results go around the cache
};

// The row input of ops with an index, where the plan is scaled: elements of the result are multiplied by the factor, and what
// an op gives a row, such as a loss, is a T.
struct ScaledIndex {
  std::int64_t index;
  double factor;
};

// What finish takes besides the state.
struct RowContext {
  double factor;         // that the temperature gives a derivative
  const void* input;     // the row input, of stored type, or an index; null where the op has none
  const void* at_index;  // T: the element of input 0 at that index
  bool scaled = false;   // Plan::scaled
};

// Up to `width` rows of one chunk, each where it lies.
struct Panel {
  RowsAt in[kMaxInputs], terms, out, row_input, extra;  // extra.first: null where no second result is wanted
  int count, rows;
  std::int64_t ahead;
  bool stream, scaled = false;  // scaled: as Plan has it
  mutable bool rare = true;     // a kernel's own: whether what it has looked for was absent from the panel before this
};

// Up to `width` rows of one chunk, transposed: element j of all rows of input k is the vector at in[k] + j. Results take the
// place of input 0; of ops with one value a row they go to `out`. So do terms, but of ops that keep the maximum apart (OpInfo)
// they have a place of their own.
struct Tile {
  void* in[kMaxInputs];
  void* terms;
  void* top;           // a vector: the largest element of each row of input 0
  std::int64_t first;  // of its elements in their rows
  int count, rows;
  RowsAt out, row_input, extra;
  bool scaled = false;
};

// Tiles of rows that lie side by side in the caller's arrays.
struct Columns {
  char* data[kOperands];           // element 0 of the first row
  std::int64_t stride[kOperands];  // bytes from an element to the next
  std::int64_t n, ahead;           // of a row; elements to what is prefetched
  int tiles;
  double temperature;  // that elements of input 0 are divided by; 1: they are not
  bool stream;
  // Rows that the last tile lacks, of stored types that are T. As its elements count 0, and -inf of input `log`.
  int absent = 0, log = -1;

  int whole_tiles() const { return absent ? tiles - 1 : tiles; }
};

struct Kernel {
  int state_bytes, row_bytes;  // of the state of a chunk, and of what a finished row holds
  int sums;                    // of a pass, of an op that starts from saved outputs
  int log;                     // its input that is a logarithm, or -1
  void (*empty)(void* state);  // of no element
  void (*merge)(const void* a, const void* b, void* to);
  void (*finish[2])(const void* state, const RowContext&, void* row);  // by pass
  // One chunk. The second pass finds the row as the first has finished it. Null: packed rows only.
  void (*reduce[2][2])(const Chunk&, const void* row, void* state);  // by pass and Elements
  void (*map[2])(const Chunk&, const void* row);
  // reduce of a chunk as it is stored, and map of the same chunk of another row, which goes around the cache. Null: not
  // offered.
  void (*reduce_over)(const Chunk&, void* state, const Chunk& other, const void* other_row);
  void (*emit)(const void* row, char* out, char* extra);  // results of one value a row; out: null where that is not one
  // Up to kTiles panels or tiles to their results. False, with nothing written, where a row is special: its maximum is not
  // finite or large, or it has a NaN that the form does not serve. The row driver then takes these rows. Null: not offered.
  bool (*panels[2])(const Panel*, int panels, double factor);
  bool (*tiles)(const Tile*, int tiles, double factor);
  // Rows of many chunks side by side; states and rows are of `width` rows. False as above.
  bool (*tile_states)(const Tile&, bool keep_terms, void* maximum, void* states);
  void (*column_sums[2])(const Columns&, std::int64_t first, int count, void* lanes, const void* rows, void* states);
  // From a tile's terms, or logits, to results in place; from memory to memory, or false where a chunk is far below its row's
  // maximum: then by term_tile and map_tile.
  void (*term_tile)(const Tile&, const void* maximum);
  void (*map_tile)(const Tile&, const void* maximum, const void* rows);
  bool (*map_columns)(const Columns&, std::int64_t first, int count, const void* maximum, const void* rows);
};

// How elements of one dtype move between the caller's arrays and scratch.
struct Moves {
  int width;
  void (*pack_row)(const Plan&, int operand, const char* row, std::int64_t first, int count, void* to);
  void (*unpack_row)(const Plan&, int operand, char* row, std::int64_t first, int count, const void* from);
  // Of packed elements those that the row's mask leaves out become `value`.
  void (*leave_out)(const Plan&, const char* mask, std::int64_t first, int count, double value, void* x);
  // By a temperature; false where a quotient overflows. divide_apart: of what is less than the row's maximum, a T.
  bool (*divide)(double temperature, std::int64_t count, void* x);
  void (*divide_apart)(double temperature, const void* maximum, std::int64_t count, void* x);
  void (*largest)(const void* x, std::int64_t count, void* maximum);
  // Rows side by side, at most those of one line, to rows of T, `pitch` elements apart, and back.
  void (*pack_columns)(const char* first_row, std::int64_t stride, int rows, int count, void* to, std::int64_t pitch);
  void (*unpack_columns)(char* first_row, std::int64_t stride, int rows, int count, const void* from, std::int64_t pitch,
                         bool stream);
  // leave_out of such rows, whose masks are `step` bytes apart.
  void (*leave_out_of_columns)(const char* mask, std::int64_t stride, std::int64_t step, int rows, int count, double value,
                               void* x, std::int64_t pitch);
  // Null from here on without registers.
  // `count` rows of n elements to a tile, through a transposition in registers, and back.
  void (*load_tile)(RowsAt rows, std::int64_t stride, int count, int n, void* to);
  void (*store_tile)(RowsAt rows, std::int64_t stride, int count, int n, const void* from, bool stream);
  // Rows side by side to tiles, `pitch` vectors apart, and back. tops: for a vector a tile, its largest elements; or null.
  void (*load_columns)(const Columns&, int operand, std::int64_t first, int count, void* to, std::int64_t pitch, void* tops);
  void (*store_columns)(const Columns&, std::int64_t first, int count, const void* from, std::int64_t pitch);
};

struct Kernels {
  const Moves* moves[4];  // by dtype
  const Kernel* ops[kOpCount][4];
};

SUMEXP_DECLARE_TABLES(Kernels, kernels_)

}  // namespace sumexp::cpu
