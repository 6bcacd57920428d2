// The driver of short rows that fill no vectors: transposes `width` rows at a time into a tile, runs a tile kernel, transposes
// back. Rows of whole vectors, and a few rows, are left to panels.
#pragma once

#include "driver.hpp"

namespace sumexp::cpu {

bool tiles_serve(const Job& job, std::int64_t rows);
void run_tiles(const Job& job, std::int64_t begin, std::int64_t end, Workspace& workspace);

}  // namespace sumexp::cpu
