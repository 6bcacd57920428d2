"""No kernel spills registers or uses local memory, by the compiler's own report.

usage: check_resources.py FOLDER      reads the *.ptxas files (ptxas -v) below it; prints a table of registers
"""
import collections
import pathlib
import re
import sys

# Kernels that may use a little stack: a pattern of "arch name", bytes, and why. More registers would cure it and halve the
# warps that hide the latency of memory.
ALLOWED = [
    (r"(LogSoftmax|LogSumExp)Op", 16, "the rare second look at a chunk spills one to four words where blocks are large"),
    (r"sm_80 .*WeightedLogSumExpOp", 72, "two inputs stay, at 255 registers; sm_90 and newer need none"),
]


def allowed(name, stack):
    return any(re.search(pattern, name) and stack <= most for pattern, most, _ in ALLOWED)


def main(folder):
    bad, kernels = [], 0
    registers = collections.defaultdict(list)
    for report in sorted(pathlib.Path(folder).rglob("*.ptxas")):
        name = arch = ""
        for line in report.read_text().splitlines():
            if match := re.search(r"Compiling entry function '(\S+)' for '(\S+)'", line):
                name, arch = match.groups()
                kernels += 1
            elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", line):
                if int(match[1]) and not allowed(f"{arch} {name}", int(match[1])):
                    bad.append(f"{arch} {name}: {line.strip()}")
            elif match := re.search(r"Used (\d+) registers", line):
                kind = re.search(r"warp_rows|block_rows|reduce_chunks|merge_rows|map_chunks", name)
                registers[arch, kind[0] if kind else "other"].append(int(match[1]))
    for (arch, kind), used in sorted(registers.items()):
        print(f"{arch:8} {kind:14} {len(used):4} kernels  {min(used):3} to {max(used):3} registers")
    print("\n".join(bad))
    print(f"{kernels} kernels, {len(bad)} with spills or local memory")
    return 1 if bad or not kernels else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
