// What a MaskedCall has to be, on any device; the lengths aside, which may be where the host cannot read them.
#pragma once

#include "../../include/sumexp/ragged.hpp"

namespace sumexp::cpu {

Status check_masked(const MaskedCall& call);
inline bool is_vjp(const MaskedCall& call) { return call.g.data || call.g.strides; }

}  // namespace sumexp::cpu
