// What the CPU's segments and a GPU's check alike: everything but the offsets, which may be in a device's memory.
#pragma once

#include "../../include/sumexp/ragged.hpp"

namespace sumexp::cpu {

Status check_segments(const SegmentsCall& call);

}  // namespace sumexp::cpu
