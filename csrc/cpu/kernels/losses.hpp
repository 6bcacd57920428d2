// Cross-entropy of one row, for each instruction set: csrc/cpu/losses/losses.cpp plans, this computes.
#pragma once

#include "../../include/sumexp/losses.hpp"
#include "table.hpp"
#include "tables.hpp"

namespace sumexp::cpu {

struct TargetPart {
  std::int64_t index;
  double weight;
};

// What all rows of a call share. Of `plan`, strides along the row: kIn0 the logits, kIn1 probabilities, kOut the gradient.
struct LossJob {
  const Plan* plan;
  const Moves* moves;
  int item;                   // bytes of a logit
  int storage;                // a dtype, or kWidened
  const Moves* target_moves;  // of the probabilities' dtype; null: targets are indices
  int target_wide;            // bytes of what target_moves packs to
  bool target_in_place;       // they are T and contiguous
  const void* weight;         // T, of classes; or null
  double smoothing, z_loss, softcap, temperature;
  bool in_place;             // logits are T and contiguous, and z is x: they are read where they lie
  bool stores;               // gradients are contiguous
  bool stream;               // ... and go around the cache
  bool keeps_terms;          // between the sweeps
  bool overlaps;             // gradients may be written while the next row is summed, from terms that are kept
  std::int64_t ahead;        // elements to what is read next
  std::int64_t terms_pitch;  // bytes from a row's terms to the next one's, of panels; 0: rows go one by one
  bool finds_class;          // of the largest logit
  // Of the gradient of some classes alone, from what rows have `saved`: the first and their number; else 0, n.
  std::int64_t first_class, classes;
  bool from_saved;
};

// One row. Results: each as far as there is a place for it, in T.
struct LossRow {
  const char *logits, *probabilities;
  char* gradient;
  const TargetPart* parts;  // of a target of indices
  std::int64_t part_count;
  double loss_factor, gradient_factor;
  void *loss, *lse, *log_prob, *entropy, *z_loss;
  std::int64_t* predicted;
  std::uint8_t* correct;
  void* saved;  // what the second sweep has of the first: saved_bytes; or null
};

// Scratch, of T: chunks of logits, of dense weights, of terms, of results, of slopes; the terms of a row, or null, and the
// maxima of its chunks, of this row and of the one that waits.
struct LossScratch {
  static constexpr int kWaitingBytes = 512;

  void *z, *dense, *terms, *out, *slopes, *row_terms[2] = {}, *maxima[2] = {};
  int row = 0;         // which of the two is this row's
  bool waits = false;  // the row before has its sums, but not all of its gradient
  alignas(16) char waiting[kWaitingBytes];
};

// By dtype, and behind these for rows of 16 bits that are copied to float: so are their gradients.
constexpr int kWidened = 4, kLossStorages = 5;

struct LossKernels {
  int width[kLossStorages];  // rows of a panel, by storage; 1: there are none
  void (*row[kLossStorages])(const LossJob&, LossScratch&, const LossRow&);
  // Up to `width` rows of one chunk, evenly apart, whose logits and gradients have no gaps. False, with nothing written, where
  // one is special. scratch.row_terms: of all rows.
  bool (*panel[kLossStorages])(const LossJob&, LossScratch&, const LossRow* rows, int count);
  // Up to a vector of rows, transposed (loss_tile), by dtype. False as above; null: not offered.
  bool (*tile[4])(const LossJob&, const Tile&, const LossRow* rows);
  void (*write_waiting)(const LossJob&, LossScratch&);  // the gradient of the last row, where that overlaps
  std::int64_t (*saved_bytes[4])(std::int64_t n);
  void (*flush_subnormal[4])(char* at, std::int64_t count, std::int64_t stride);  // numbers, by dtype: subnormal ones become 0
};

SUMEXP_DECLARE_TABLES(LossKernels, loss_kernels_)

}  // namespace sumexp::cpu
