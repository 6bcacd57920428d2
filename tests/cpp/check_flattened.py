"""Whether all that kernels call is part of them. usage: check_flattened.py FOLDER_OF_KERNELS OBJECT...

In files that define SUMEXP_FLATTEN (numerics/platform.hpp) a kernel without its SUMEXP_KERNEL calls what others have inlined.
It is slower then, and nothing else would tell.
"""

import pathlib
import re
import shutil
import subprocess
import sys

SKIPPED = 77


def name_of(symbol):
    """f of "void a::b<c>::f<d>(e)"."""
    plain, count = symbol.replace("(anonymous namespace)::", ""), 1
    while count:
        plain, count = re.subn(r"<[^<>]*>", "", plain)
    return re.split(r"::|\s", plain.split("(")[0].strip())[-1]


def main():
    if not shutil.which("nm"):
        print("not checked: there is no nm")
        return SKIPPED
    folder = pathlib.Path(sys.argv[1])
    text = "".join(path.read_text() for path in sorted(folder.iterdir()))
    kernels = set(re.findall(r"SUMEXP_KERNEL [^;{(]*?(\w+)\(", text))
    functions, bad = 0, []
    for path in sys.argv[2:]:
        source = folder / pathlib.Path(path).stem  # sums.cpp of sums.cpp.o
        if "#define SUMEXP_FLATTEN" not in source.read_text():
            continue
        listed = subprocess.run(["nm", "--demangle", "--defined-only", path], capture_output=True, text=True, check=True).stdout
        found = re.findall(r"^\w+ [tTW] (.*)$", listed, flags=re.M)
        functions += len(found)
        bad += [f"{path}: {symbol}" for symbol in found if name_of(symbol) not in kernels]
    print(f"{functions} functions, {len(bad)} that are not marked as kernels")
    print(*bad, sep="\n")
    return 1 if bad or not functions else 0


if __name__ == "__main__":
    sys.exit(main())
