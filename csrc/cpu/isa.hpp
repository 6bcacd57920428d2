// Which instruction set runs, and the tables of kernels that each offers. A family of kernels has one table an instruction set,
// `const Table& <prefix><isa>()`, defined in the namespace of a file that is compiled for it; SUMEXP_IN_USE(prefix) is the one
// to call, SUMEXP_AT(prefix, isa) the one of a place: where several must be of one instruction set, whatever set_isa says
// meanwhile.
#pragma once

namespace sumexp::cpu {

// The place of the instruction set in use, in the order of SUMEXP_OF_ISAS.
int isa_in_use();

#if defined(SUMEXP_HAVE_scalar_fma)
#define SUMEXP_OF_SCALAR(prefix) prefix##scalar, prefix##scalar_fma
#else
#define SUMEXP_OF_SCALAR(prefix) prefix##scalar
#endif
#if defined(SUMEXP_HAVE_avx2)
#define SUMEXP_OF_AVX2(prefix) , prefix##avx2
#else
#define SUMEXP_OF_AVX2(prefix)
#endif
#if defined(SUMEXP_HAVE_avx512)
#define SUMEXP_OF_AVX512(prefix) , prefix##avx512
#else
#define SUMEXP_OF_AVX512(prefix)
#endif
#if defined(SUMEXP_HAVE_neon)
#define SUMEXP_OF_NEON(prefix) , prefix##neon
#else
#define SUMEXP_OF_NEON(prefix)
#endif
// The names of all instruction sets of this build after a prefix, the best last.
#define SUMEXP_OF_ISAS(prefix) SUMEXP_OF_SCALAR(prefix) SUMEXP_OF_AVX2(prefix) SUMEXP_OF_AVX512(prefix) SUMEXP_OF_NEON(prefix)
#define SUMEXP_AT(prefix, isa)                                                       \
  ([](int place) -> const auto& {                                                    \
    static constexpr decltype(&prefix##scalar) kTables[] = {SUMEXP_OF_ISAS(prefix)}; \
    return kTables[place]();                                                         \
  }(isa))
#define SUMEXP_IN_USE(prefix) SUMEXP_AT(prefix, ::sumexp::cpu::isa_in_use())

// For `elements` that cost about as much as those of a softmax: how many threads are worth waking, at most get_num_threads().
int threads_for(long long elements);

}  // namespace sumexp::cpu
