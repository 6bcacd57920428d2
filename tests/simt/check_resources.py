"""No kernel but those of ALLOWED spills registers or uses local memory, and none declares more shared memory than launches
allow for, by the compiler's own report.

usage: check_resources.py FOLDER [CHIP]      reads the *.ptxas files (ptxas -v) below it

Prints, for each chip, kernel and storage type, the registers of a thread over all operations, the warps of an SM that
these allow, and the largest stack; then how many kernels there are, and the bytes of their object files. With CHIP, such as
sm_90, the operations one by one instead: of the kernels for rows that fill a warp, packed.
"""
import collections
import pathlib
import re
import sys

# Kernels that may use a little stack: a pattern of "arch name", bytes, and why. For any other, none.
ALLOWED = [
    # both inputs of a whole chunk stay in registers, 128 of 255, while e^y and 1 - e^y are made of one of them
    (r"(warp_rows|block_rows).*LogSoftmaxVjp", 48, "2 to 12 words"),
    (r"masked_rows_vjp", 48, "4 to 8 words: what a row keeps in which a logit overflows, beside a chunk"),
    (r"sm_80 .*chunk_segments.*LogSoftmaxE", 8, "2 words"),
    # the sums of a row, 12 or 19 words of doubles, which a loop hands on that may divide its logits in another way
    (r"loss_rows.*Lb1E", 152, "the sums of a row"),
    # a row's description is handed to a function that is compiled once; the terms of a binomial tail
    (r"draw_rows|draw_in_pieces", 448, "the description"),
    (r"count_rows", 640, "the description and 32 doubles"),
]
KINDS = "warp_rows|block_rows|reduce_chunks|reduce_apart|merge_rows|map_chunks"
KINDS += "|find_cuts_of_rows"
KINDS += "|masked_rows|masked_rows_vjp|masked_bias|masked_sink"
KINDS += "|short_segments|chunk_segments|merge_segments|map_segments|map_elements|weighted_rows"
KINDS += "|loss_rows|loss_sum|loss_weights|kept_rows|add_bias|add_columns"
KINDS += "|draw_rows|count_rows|draw_in_pieces|finish_pieces|gumbel_rows"
KINDS += "|log_prob_rows|kl_div_rows|kl_div_vjp_rows"
TYPES = {"NS0_3f16E": "f16", "NS0_4bf16E": "bf16", "f": "f32", "d": "f64"}
REGISTERS, MOST_WARPS = 65536, 64  # of an SM
STATIC_SHARED = 4096  # static_shared_limit of csrc/cuda/arch/arch.hpp; merge_rows has no dynamic shared memory


def kernels(folder):
    """(arch, mangled name, registers, bytes of stack, of static shared memory) of each."""
    entry = re.compile(
        r"entry function '(\S+)' for '(\S+)'.*?(\d+) bytes stack frame.*?Used (\d+) registers([^\n]*)", re.DOTALL
    )
    for report in sorted(pathlib.Path(folder).rglob("*.ptxas")):
        for name, arch, stack, registers, rest in entry.findall(report.read_text()):
            shared = re.search(r"(\d+) bytes smem", rest)
            yield arch, name, int(registers), int(stack), int(shared[1]) if shared else 0


def allowed(arch, name, stack):
    return any(re.search(pattern, f"{arch} {name}") and stack <= most for pattern, most, _ in ALLOWED)


def warps(registers):
    """Of an SM, as far as registers go: a thread has a multiple of 8."""
    return min(MOST_WARPS, REGISTERS // (32 * ((registers + 7) // 8 * 8)))


def summary(found):
    """{(chip, kernel, type): [(registers, stack)]} as a table."""
    print("| chip | kernel | type | kernels | registers | warps an SM holds | stack, bytes |\n|---|---|---|--:|--:|--:|--:|")
    for (arch, kind, storage), group in sorted(found.items()):
        used = sorted(registers for registers, _ in group)
        print(f"| {arch} | {kind} | {storage} | {len(group)} | {used[0]} to {used[-1]} | {warps(used[-1])} to "
              f"{warps(used[0])} | {max(stack for _, stack in group)} |")


def by_operation(folder, chip):
    cells = collections.defaultdict(dict)
    for arch, name, registers, stack, _ in kernels(folder):
        op = r"NS0_\d+(?:Sums|Logits|Weighted)OfI(?:f|d|S\d_|S_)NS0_\d+([A-Za-z]+?)EEE"
        match = re.search(rf"(warp_rows|block_rows)I({'|'.join(TYPES)}){op}(Li8E)?Lb1E", name)
        if arch == chip and match and (match[1] == "block_rows" or match[4]):
            used = f", stack {stack}" if stack else ""
            cells[match[3], TYPES[match[2]]][match[1]] = f"{registers} ({warps(registers)}{used})"
    types = ("f32", "f64", "bf16", "f16")
    print("| registers (warps an SM holds) | " + " | ".join(types) + " |\n|---|" + "--:|" * len(types))
    for op in sorted({op for op, _ in cells}):
        for kind in ("warp_rows", "block_rows"):
            print(f"| {op}, {kind} | " + " | ".join(cells[op, t].get(kind, "") for t in types) + " |")


def main(folder, chip=None):
    if chip:
        return by_operation(folder, chip)
    bad, groups = [], collections.defaultdict(list)
    for arch, name, registers, stack, shared in kernels(folder):
        found = re.search(rf"({KINDS})I({'|'.join(TYPES)})", name)
        if not found:
            bad.append(f"{arch} {name}: none of KINDS")
            continue
        kind, storage = found.groups()
        groups[arch, kind, TYPES[storage]].append((registers, stack))
        if stack and not allowed(arch, name, stack):
            bad.append(f"{arch} {name}: {registers} registers, {stack} bytes of stack")
        if shared > STATIC_SHARED and kind != "merge_rows":
            bad.append(f"{arch} {name}: {shared} bytes of shared memory, accepted: at most {STATIC_SHARED}")
    summary(groups)
    count = sum(map(len, groups.values()))
    size = sum(file.stat().st_size for file in pathlib.Path(folder).rglob("*.cu.o"))
    print("", *bad, f"{count} kernels, {len(bad)} with spills, local or shared memory that are not allowed for; "
          f"{size / 1e6:.1f} MB of objects", sep="\n")
    return 1 if bad or not count else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
