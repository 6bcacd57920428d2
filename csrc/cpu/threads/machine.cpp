#include "machine.hpp"

#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <limits>
#include <string>
#include <thread>

#include "../../include/sumexp/sumexp.hpp"

namespace sumexp::cpu {

namespace {

// Calls body(line) for every line of a file, without its end; for none where it cannot be read.
template <class Body>
void each_line(const std::string& path, Body body) {
  std::FILE* file = std::fopen(path.c_str(), "re");
  if (!file) return;
  char* line = nullptr;
  std::size_t room = 0;
  try {
    for (ssize_t length; (length = getline(&line, &room, file)) >= 0;) {
      if (length && line[length - 1] == '\n') --length;
      body(std::string(line, static_cast<std::size_t>(length)));
    }
  } catch (const std::exception&) {  // no memory
  }
  std::free(line);
  std::fclose(file);
}

std::string first_line(const std::string& path) {
  std::string first;
  bool read = false;
  each_line(path, [&](const std::string& line) {
    if (!read) first = line;
    read = true;
  });
  return first;
}

// The field of `text` with that index, fields being parted by `by`.
std::string field(const std::string& text, int index, char by) {
  std::size_t begin = 0;
  for (; index > 0; --index) {
    const std::size_t end = text.find(by, begin);
    if (end == std::string::npos) return "";
    begin = end + 1;
  }
  return text.substr(begin, text.find(by, begin) - begin);
}

bool lists(const std::string& list, const std::string& item) {
  return ("," + list + ",").find("," + item + ",") != std::string::npos;
}

std::string unescaped(const std::string& text) {  // mountinfo writes a space as \040
  std::string plain;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool code = text[i] == '\\' && i + 3 < text.size();
    plain += code ? static_cast<char>(std::strtol(text.substr(i + 1, 3).c_str(), nullptr, 8)) : text[i];
    if (code) i += 3;
  }
  return plain;
}

// Whole CPUs for `quota` of every `period` microseconds, rounded up; 0: no limit ("max" in v2, -1 in v1, no file).
int cpus_of(const std::string& quota, const std::string& period) {
  const long long q = std::strtoll(quota.c_str(), nullptr, 10), p = std::strtoll(period.c_str(), nullptr, 10);
  if (q <= 0 || p <= 0) return 0;
  return static_cast<int>(std::min<long long>((q - 1) / p + 1, std::numeric_limits<int>::max()));
}

int smaller(int a, int b) { return a && b ? std::min(a, b) : std::max(a, b); }  // 0: no limit

// The hierarchy of control groups that has the CPU's controller, of v1 or of v2.
struct Hierarchy {
  bool v2;
  std::string group = {}, mount_root = {}, mount_point = {};  // what is mounted, and where

  void find(const std::string& root) {
    bool grouped = false, mounted = false;
    each_line(root + "/proc/self/cgroup", [&](const std::string& line) {  // 4:cpu,cpuacct:/a/b, or 0::/a/b
      const std::string number = field(line, 0, ':'), controllers = field(line, 1, ':');
      if (grouped || !(v2 ? number == "0" && controllers.empty() : lists(controllers, "cpu"))) return;
      grouped = true;
      group = line.substr(number.size() + controllers.size() + 2);
    });
    if (!grouped) return;
    // 36 35 0:1 ROOT POINT rw ... - TYPE source OPTIONS
    each_line(root + "/proc/self/mountinfo", [&](const std::string& line) {
      const std::size_t dash = line.find(" - ");
      if (mounted || dash == std::string::npos) return;
      const std::string type = field(line.substr(dash + 3), 0, ' '), options = field(line.substr(dash + 3), 2, ' ');
      if (!(v2 ? type == "cgroup2" : type == "cgroup" && lists(options, "cpu"))) return;
      mounted = true;
      mount_root = unescaped(field(line, 3, ' '));
      mount_point = unescaped(field(line, 4, ' '));
    });
  }

  // The group's directory below the mount point. In a container the group may be named as from outside, and the mount
  // begin at it, or only one of the two.
  std::string below_mount() const {
    const std::string head = mount_root == "/" ? "" : mount_root;
    const bool inside = group.compare(0, head.size(), head) == 0 && (group.size() == head.size() || group[head.size()] == '/');
    const std::string below = inside ? group.substr(head.size()) : "";
    return below == "/" ? "" : below;
  }

  int cpus(const std::string& root) {
    find(root);
    if (mount_point.empty()) return 0;
    int least = 0;
    for (std::string below = below_mount();; below.resize(below.rfind('/'))) {  // a group has no more than those above it
      const std::string group_files = root + mount_point + below + "/";
      const std::string max = v2 ? first_line(group_files + "cpu.max") : "";
      const std::string quota = v2 ? field(max, 0, ' ') : first_line(group_files + "cpu.cfs_quota_us");
      const std::string period = v2 ? field(max, 1, ' ') : first_line(group_files + "cpu.cfs_period_us");
      least = smaller(least, cpus_of(quota, period));
      if (below.find('/') == std::string::npos) return least;
    }
  }
};

}  // namespace

int quota_cpus(const char* root) {
  try {
    return smaller(Hierarchy{true}.cpus(root), Hierarchy{false}.cpus(root));
  } catch (const std::exception&) {  // no memory
    return 0;
  }
}

int usable_cpus(const char* root) {
  cpu_set_t set;
  int cpus = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 0;
  if (cpus == 0) cpus = static_cast<int>(std::thread::hardware_concurrency());
  return std::max(1, smaller(cpus, quota_cpus(root)));
}

std::int64_t l3_bytes(const char* root) {
  try {
    for (int index = 0; index < 10; ++index) {
      const std::string cache = std::string(root) + "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/";
      if (first_line(cache + "level") != "3") continue;
      const std::string size = first_line(cache + "size");  // 32768K
      const std::int64_t number = std::strtoll(size.c_str(), nullptr, 10);
      const char unit = size.empty() ? ' ' : size.back();
      if (number > 0) return number << (unit == 'K' ? 10 : unit == 'M' ? 20 : unit == 'G' ? 30 : 0);
    }
  } catch (const std::exception&) {  // no memory
  }
#ifdef _SC_LEVEL3_CACHE_SIZE
  // Second choice: glibc multiplies what cpuid says, and on virtual machines may be an order of magnitude off (384 MB for 32).
  if (!*root) return std::max(0L, sysconf(_SC_LEVEL3_CACHE_SIZE));
#endif
  return 0;
}

// Half of the L3, within bounds, which fits the machines that were measured, for items of 2 and of 4 bytes:
// - Zen 4 with 32 MB of L3 (2026-11-22, float softmax, n = 4096, 2 threads, interleaved, medians of three): with plain stores a
//   call takes 0.96, 0.95, 1.29, 1.42, 1.29, 1.31 and 1.46 times as long at 4, 8, 16, 24, 32, 64 and 128 MB.
// - A Xeon of which a virtual machine has 2 CPUs and reports 480 MB (2026-11, softmax and its VJP, n = 32768, 2 threads,
//   medians): 0.5 times as long at 16 MB, 0.8 to 0.9 at 32 MB of bfloat16, 1 at 32 MB of float, 1.5 to 1.9 from 64 MB on.
// - Zen 5 with 32 MB (2026-11-28, n = 4096, 2 threads, medians of three): softmax of float 0.91 at 8 MB, 1.30 at 16, 1.26 at
//   128; of bfloat16 1.05, 1.41, 1.45; the VJP of float 1.07, 1.33, 1.18, of bfloat16 0.92, 0.90, 0.97.
// - A Xeon that reports 300 MB (Emerald Rapids, 2026-11-30, n = 4096, 2 threads, medians of nine): softmax of float 1.04 at
//   8 MB, 1.13 at 32, 1.31 at 64; its VJP 1.16, 1.43, 1.27; softmax of bfloat16 0.88, 0.95 and 1.05 at 4, 16 and 32.
constexpr std::int64_t kMegabyte = std::int64_t(1) << 20;
std::int64_t stream_bytes_for(std::int64_t l3) { return std::clamp(l3 / 2, 16 * kMegabyte, 48 * kMegabyte); }

// Of items of 4 and 8 bytes, whatever the cache: their lines lie in few of its sets. On the last of these Xeons plain stores
// took 1.15 to 1.5 times as long at 16 MB (double, n = 128 and 4096), 1.3 to 1.8 at 32 and 64 (float and double).
constexpr std::int64_t kStreamColumns = 16 * kMegabyte;

std::int64_t environment_integer(const char* name, std::int64_t lowest, std::int64_t highest, std::int64_t otherwise) {
  const char* text = std::getenv(name);
  if (!text) return otherwise;
  char* end = nullptr;
  const long long n = std::strtoll(text, &end, 10);
  return end != text && !*end && n >= lowest && n <= highest ? n : otherwise;
}

namespace {

std::int64_t stream_bytes_or(std::int64_t otherwise) {
  return environment_integer("SUMEXP_STREAM_BYTES", 0, std::numeric_limits<std::int64_t>::max(), otherwise);
}

}  // namespace

std::int64_t stream_bytes_of_columns(std::int64_t item) noexcept {
  static const std::int64_t bytes = stream_bytes_or(kStreamColumns);
  return item > 2 ? std::min(bytes, stream_bytes()) : stream_bytes();
}

}  // namespace sumexp::cpu

namespace sumexp {

std::int64_t stream_bytes() noexcept {
  static const std::int64_t bytes = cpu::stream_bytes_or(cpu::stream_bytes_for(cpu::l3_bytes()));
  return bytes;
}

void prefer_large_pages(void* first, std::size_t bytes) noexcept {
#ifdef MADV_HUGEPAGE
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE)), begin = reinterpret_cast<std::uintptr_t>(first);
  const std::uintptr_t lost = (page - begin % page) % page;
  if (bytes >= kLargePagesFrom) madvise(static_cast<char*>(first) + lost, (bytes - lost) / page * page, MADV_HUGEPAGE);
#else
  (void)first, (void)bytes;
#endif
}

}  // namespace sumexp
