"""Whether the kernels leave the upper parts of vector registers clean. usage: check_vzeroupper.py OBJECT...

Where they are left in use, on Intel's CPUs each SSE instruction of the code that follows, the caller's too, waits for the
vector instructions before it: softmax_vjp on rows of 16 floats took 1.6 of its time. The compiler puts vzeroupper at the end
of functions, but GCC 12 forgets it in one that is given a vector by value, and in those that call it. So each function that
uses such a register has to have one, unless it returns a vector.
"""

import re
import shutil
import subprocess
import sys

SKIPPED = 77


def unclean(path):
    """(functions of an object file that use the first 16 vector registers, which are SSE's, and have no vzeroupper; how many
    have one)"""
    command = ["objdump", "--disassemble", "--demangle", "--no-show-raw-insn", path]
    code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found, clean = [], 0
    for function in re.split(r"^[0-9a-f]+ <(?=.*>:$)", code, flags=re.M)[1:]:
        name, body = function.split("\n", 1)
        returns_vector = re.match(r"sumexp::\w+::F(32|64) ", name)
        if "vzeroupper" in body:
            clean += 1
        elif re.search(r"%[yz]mm(\d|1[0-5])\b", body) and not returns_vector:
            found.append(name.removesuffix(">:"))
    return found, clean


def main():
    if not shutil.which("objdump"):
        print("not checked: there is no objdump")
        return SKIPPED
    total = 0
    bad = []
    for path in sys.argv[1:]:
        found, clean = unclean(path)
        total += clean
        bad += found
    for name in bad:
        print("no vzeroupper:", name[:300])
    print(f"{total} functions end with vzeroupper, {len(bad)} do not")
    return 1 if bad or not total else 0


if __name__ == "__main__":
    sys.exit(main())
