// What is refused of a call of include/sumexp/sampling.hpp before anything is done, on any device.
#pragma once

#include "../../include/sumexp/sampling.hpp"

namespace sumexp::cpu {

// counts, strides: of sample_counts. reads: logits are wanted.
Status check_draws(const SampleCall& call, const std::int64_t* counts, const std::int64_t* strides, bool reads);
Status check_order(FilterOrder order);
// Of functions that draw from all classes, with replacement, and tell of draws alone.
Status check_plain(const SampleCall& call, const char* function);
// `own` chunks from `chunk` on, of a row of `chunks`; and all of them, at the end.
Status check_piece(const SampleCall& call, std::int64_t chunk, std::int64_t own, std::int64_t chunks, const void* states,
                   const void* classes);
Status check_finish(const SampleCall& call, std::int64_t own, std::int64_t chunks, const void* states, const void* classes);
Status check_noise(const PerRow<std::uint64_t>& seed, std::int64_t rows, std::int64_t n, const double* out);

}  // namespace sumexp::cpu
