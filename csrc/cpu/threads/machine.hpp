// What the machine, and a container around the process, grant it: CPUs and cache. Linux says so in files, which are read below
// `root`: "" but in tests. Nothing here throws; what cannot be read limits nothing.
#pragma once

#include <cstdint>

namespace sumexp::cpu {

// The CPUs that the process may keep busy: those that its affinity names, or fewer where the quota of a control group
// (v1's cpu.cfs_quota_us, v2's cpu.max, its ancestors' among them) is smaller. At least 1.
int usable_cpus(const char* root = "");

// That quota in CPUs, 0 where there is none. Half a CPU more counts as one: the time is granted anew every period, 0.1 s
// as a rule, and what a call leaves of it is lost.
int quota_cpus(const char* root = "");

std::int64_t l3_bytes(const char* root = "");  // of one L3 cache, 0 where there is none or nothing tells

// The size from which on a result is taken to leave the cache, for an L3 of that size.
std::int64_t stream_bytes_for(std::int64_t l3);
// sumexp::stream_bytes() for rows that lie side by side, of items of that size.
std::int64_t stream_bytes_of_columns(std::int64_t item) noexcept;

// An integer from `lowest` to `highest` in the environment; `otherwise` where there is none or another text.
std::int64_t environment_integer(const char* name, std::int64_t lowest, std::int64_t highest, std::int64_t otherwise);

}  // namespace sumexp::cpu
