// A family's tables of kernels, one an instruction set: `const Table& <prefix><isa>()` in sumexp::cpu. ../isa.hpp has the one
// in use.
#pragma once

// Declares them all.
#define SUMEXP_DECLARE_TABLES(Table, prefix) \
  const Table& prefix##scalar();             \
  const Table& prefix##scalar_fma();         \
  const Table& prefix##avx2();               \
  const Table& prefix##avx512();             \
  const Table& prefix##neon();

// Defines that of the instruction set that a file is compiled for.
#define SUMEXP_DEFINE_TABLE(Table, prefix, value) SUMEXP_DEFINE_TABLE_(Table, prefix, SUMEXP_NS, value)
#define SUMEXP_DEFINE_TABLE_(Table, prefix, isa, value) SUMEXP_DEFINE_TABLE__(Table, prefix, isa, value)
#define SUMEXP_DEFINE_TABLE__(Table, prefix, isa, value) \
  namespace sumexp::cpu {                                \
  const Table& prefix##isa() { return value; }           \
  }
