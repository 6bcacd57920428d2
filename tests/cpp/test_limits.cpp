// What the machine grants: quotas of control groups and the size of the L3, read from trees of files made for it; the rule for
// non-temporal stores; integers in the environment.
#include "../../csrc/cpu/threads/machine.hpp"

#include <sched.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <sumexp/sumexp.hpp>

#include "check.hpp"

namespace {

using namespace sumexp::cpu;
using Files = std::vector<std::pair<std::string, std::string>>;

// A root directory with these files, gone at the end.
class Tree {
 public:
  explicit Tree(const Files& files) {
    char name[] = "/tmp/sumexp_machine_XXXXXX";
    root_ = mkdtemp(name);
    for (const auto& [path, text] : files) {
      const std::filesystem::path file = root_ + path;
      std::filesystem::create_directories(file.parent_path());
      std::ofstream(file) << text;
    }
  }
  ~Tree() { std::filesystem::remove_all(root_); }
  const char* root() const { return root_.c_str(); }

 private:
  std::string root_;
};

constexpr const char* kGroup = "/proc/self/cgroup";
constexpr const char* kMounts = "/proc/self/mountinfo";
const std::string kOther = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw\n";
const std::string kV2 = kOther + "30 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
const std::string kV1 = kOther +
                        "32 31 0:29 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
                        "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n";

void quota(const char* what, int expected, const Files& files) {
  const Tree tree(files);
  const int got = quota_cpus(tree.root());
  CHECK(got == expected, "%s: a quota of %d CPUs, expected %d", what, got, expected);
}

void quotas() {
  quota("no files", 0, {});
  quota("no mounts", 0, {{kGroup, "0::/a\n"}});
  quota("no group", 0, {{kMounts, kV2}, {"/sys/fs/cgroup/cpu.max", "100000 100000\n"}});

  const auto v2 = [](const std::string& max) {
    return Files{{kGroup, "0::/a/b\n"}, {kMounts, kV2}, {"/sys/fs/cgroup/a/b/cpu.max", max}};
  };
  quota("v2, no limit", 0, v2("max 100000\n"));
  quota("v2, no file", 0, {{kGroup, "0::/a/b\n"}, {kMounts, kV2}});
  quota("v2, 2 CPUs", 2, v2("200000 100000\n"));
  quota("v2, 2.1 CPUs", 3, v2("210000 100000\n"));
  quota("v2, 1.5 CPUs of another period", 2, v2("15000 10000\n"));
  quota("v2, a hundredth", 1, v2("1000 100000\n"));
  quota("v2, more than ints count", std::numeric_limits<int>::max(), v2("9223372036854775807 1\n"));
  for (const char* wrong : {"", "\n", "200000", "200000 0\n", "0 100000\n", "-1 100000\n", "many 100000\n"})
    quota(wrong, 0, v2(wrong));

  const auto above = [](const char* a, const char* b, const char* root) {
    return Files{{kGroup, "0::/a/b\n"},
                 {kMounts, kV2},
                 {"/sys/fs/cgroup/a/b/cpu.max", b},
                 {"/sys/fs/cgroup/a/cpu.max", a},
                 {"/sys/fs/cgroup/cpu.max", root}};
  };
  quota("v2, the group above has less", 2, above("200000 100000", "400000 100000", "max 100000"));
  quota("v2, the group above has more", 4, above("800000 100000", "400000 100000", "max 100000"));
  quota("v2, limited above alone", 3, above("max 100000", "max 100000", "300000 100000"));
  // in a namespace of its own, beside it, and named as from outside
  for (const char* name : {"0::/\n", "0::/../x\n", "0::/docker/1f\n"})
    quota(name, 3, {{kGroup, name}, {kMounts, kV2}, {"/sys/fs/cgroup/cpu.max", "300000 100000\n"}});
  quota("a mount point with a space", 3,
        {{kGroup, "0::/a\n"},
         {kMounts, "30 22 0:26 / /my\\040groups rw - cgroup2 cgroup2 rw\n"},
         {"/my groups/a/cpu.max", "300000 100000\n"}});

  const std::string groups = "12:cpuset:/other\n4:cpu,cpuacct:/a\n1:name=systemd:/x\n0::/x\n";
  const auto v1 = [&](const char* quota_us, const char* period_us) {
    return Files{{kGroup, groups},
                 {kMounts, kV1},
                 {"/sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", quota_us},
                 {"/sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us", period_us}};
  };
  quota("v1, no limit", 0, v1("-1\n", "100000\n"));
  quota("v1, half a CPU", 1, v1("50000\n", "100000\n"));
  quota("v1, 2.5 CPUs", 3, v1("250000\n", "100000\n"));
  quota("v1, no period", 0, v1("250000\n", ""));
  Files both = v1("300000\n", "100000\n");
  both.push_back({"/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "200000\n"});
  both.push_back({"/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"});
  quota("v1, the group above has less", 2, both);
  quota("v1 in a container that is named as from outside, its mount beginning at it", 2,
        {{kGroup, "4:cpu,cpuacct:/docker/1f\n"},
         {kMounts, "33 31 0:30 /docker/1f /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n"},
         {"/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "200000\n"},
         {"/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"}});
  quota("v1, below the mounted group", 2,
        {{kGroup, "4:cpu:/docker/1f/x\n"},
         {kMounts, "33 31 0:30 /docker/1f /cpu ro - cgroup cgroup rw,cpu\n"},
         {"/cpu/x/cpu.cfs_quota_us", "200000\n"},
         {"/cpu/x/cpu.cfs_period_us", "100000\n"}});
  Files hybrid = v1("300000\n", "100000\n");
  hybrid[1].second += "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
  quota("v1 with v2 beside it", 3, hybrid);
  hybrid.push_back({"/sys/fs/cgroup/unified/x/cpu.max", "200000 100000\n"});
  quota("the smaller of v1 and v2", 2, hybrid);
}

void cpus() {
  cpu_set_t set;
  const int affinity = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
  const auto with = [](const char* max) {
    const Tree tree({{kGroup, "0::/\n"}, {kMounts, kV2}, {"/sys/fs/cgroup/cpu.max", max}});
    return usable_cpus(tree.root());
  };
  CHECK(with("max 100000") == affinity, "no quota: %d CPUs, expected %d", with("max 100000"), affinity);
  CHECK(with("100000 100000") == 1, "a quota of one: %d CPUs", with("100000 100000"));
  CHECK(with("10000 100000") == 1, "a quota of a tenth: %d CPUs", with("10000 100000"));
  CHECK(with("99900000 100000") == affinity, "a quota of 999: %d CPUs, expected %d", with("99900000 100000"), affinity);
  CHECK(usable_cpus() >= 1 && usable_cpus() <= affinity, "%d CPUs here, of %d", usable_cpus(), affinity);
}

constexpr std::int64_t kMegabyte = std::int64_t(1) << 20;

void caches() {
  const std::string index = "/sys/devices/system/cpu/cpu0/cache/index";
  const auto size_of = [&](const char* size) {
    const Tree tree({{index + "0/level", "1\n"},
                     {index + "0/size", "48K\n"},
                     {index + "2/level", "2\n"},
                     {index + "2/size", "1024K\n"},
                     {index + "3/level", "3\n"},
                     {index + "3/size", size}});
    return l3_bytes(tree.root());
  };
  CHECK(size_of("32768K\n") == 32 * kMegabyte, "32768K: %lld bytes", static_cast<long long>(size_of("32768K\n")));
  CHECK(size_of("96M\n") == 96 * kMegabyte, "96M: %lld bytes", static_cast<long long>(size_of("96M\n")));
  CHECK(size_of("1048576\n") == kMegabyte, "1048576: %lld bytes", static_cast<long long>(size_of("1048576\n")));
  for (const char* wrong : {"", "\n", "K\n", "-1K\n"}) CHECK(size_of(wrong) == 0, "'%s' is the size of no L3", wrong);
  const Tree without({{index + "0/level", "1\n"}, {index + "0/size", "48K\n"}});
  CHECK(l3_bytes(without.root()) == 0, "%lld bytes of no L3", static_cast<long long>(l3_bytes(without.root())));

  const std::int64_t rule[][2] = {{0, 16}, {8, 16}, {32, 16}, {48, 24}, {64, 32}, {96, 48}, {480, 48}};  // MB: L3, threshold
  for (const auto& [l3, expected] : rule) {
    const std::int64_t got = stream_bytes_for(l3 * kMegabyte);
    CHECK(got == expected * kMegabyte, "an L3 of %lld MB: %lld bytes", static_cast<long long>(l3), static_cast<long long>(got));
  }
}

void environment() {
  constexpr const char* kName = "SUMEXP_STREAM_BYTES";
  const auto value = [&](const char* text) {
    setenv(kName, text, 1);
    return environment_integer(kName, 0, 1 << 30, -7);
  };
  for (const char* wrong : {"", "many", "1e3", "16M", "-1", "1073741825", "99999999999999999999", "5 "})
    CHECK(value(wrong) == -7, "'%s' is taken for %lld", wrong, static_cast<long long>(value(wrong)));
  CHECK(value("0") == 0 && value("1073741824") == 1 << 30, "the limits are refused");
  unsetenv(kName);
  CHECK(environment_integer(kName, 0, 1, -7) == -7, "nothing is taken for something");
  setenv(kName, "12345678", 1);
  CHECK(sumexp::stream_bytes() == 12345678, "%s=12345678: %lld", kName, static_cast<long long>(sumexp::stream_bytes()));
  setenv(kName, "1", 1);
  CHECK(sumexp::stream_bytes() == 12345678, "%s is read again", kName);
}

}  // namespace

int main() {
  quotas();
  cpus();
  caches();
  environment();
  return check::finish();
}
