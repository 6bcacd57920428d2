// Rows of log-probabilities, entropies and divergences, and their gradients: what an instruction set offers to
// cpu/information. Only plain data crosses.
#pragma once

#include "table.hpp"
#include "tables.hpp"

namespace sumexp::cpu {

// Which operand of a plan is what.
enum InformationOperand { kLogits = kIn0, kPicks = kIn1, kOther = kIn1, kOfPicks = kIn2, kOfRow = kWhere, kResult = kOut };

// One row. Operands of one value a row, or of one for each of its indices, have in the row's dimension the step from one of
// these to the next. Absent ones are null.
struct InformationRow {
  const Plan& plan;
  const Moves& moves;
  char* at[kOperands];
  std::int64_t picks;  // indices
  bool direct[2];      // logits (of both rows) are read where they lie
  bool resident;       // all of a row's chunks stay in scratch; else the place is for one
  bool distances;      // the entropy is wanted, or has a gradient
  void* packed[2];     // T: where logits that are not direct go
  void* terms[2];      // T
  void* maxima[2];     // T: of the chunks
};

// What is done with a row, or with the rows of a tile.
struct InformationKernel {
  struct Function {
    void (*row)(const InformationRow&);
    // Transposed (Tile in table.hpp): logits in in[0] of one tile, or two, each with room for as much at terms. The row is the
    // first of them; `step` is from one to the next, by operand. Gradients take the place of their logits. False, with nothing
    // written, where a row is special. Null without registers.
    bool (*tile)(const InformationRow&, const Tile* tiles, const std::int64_t* step) = nullptr;
  };
  Function log_prob;      // kLogits, kPicks (indices, std::int64_t) -> kOfPicks their log-probabilities, kResult the entropy
  Function log_prob_vjp;  // kLogits, kPicks, kOfPicks and kOfRow (gradients of the two) -> kResult the gradient
  Function kl_div;        // kLogits, kOther -> kResult
  Function kl_div_vjp;    // kLogits, kOther, kOfRow (the gradient) -> kResult and kExtra, the gradients of the two
};

struct InformationKernels {
  InformationKernel rows[4];  // by dtype
};

SUMEXP_DECLARE_TABLES(InformationKernels, information_kernels_)

}  // namespace sumexp::cpu
