"""The budget of a build: where its time went, how large it is, how many CUDA kernels it has.

usage: check_build.py [BUILD] [--package PATH]   BUILD: a tree built by Ninja; default: pip's for this Python
       check_build.py --run COMMAND...           runs a compiler and notes its CPU-seconds beside the object file

With --package, a wheel or the folder of an installed package, sizes are those of its module and of the wheel.

Prints the seconds of each translation unit, and of each target. Wall seconds are in Ninja's log; CPU-seconds are known
where the compiler was run through this file:

    CMAKE_CXX_COMPILER_LAUNCHER="python3;$PWD/tests/check_build.py;--run" pip install .

Times are not judged, as machines differ. The status is 1 where the module, the wheel or the number of kernels is past LIMITS.
"""

import argparse
import collections
import pathlib
import re
import resource
import subprocess
import sys
import tempfile
import zipfile

HERE = pathlib.Path(__file__).resolve().parent

# Bytes of the installed module, by the number of GPU architectures in it; and kernels of one architecture. One more
# operation may raise them by its own budget, and no more: 150 KB an instruction set, 1.5 MB and its kernels an architecture.
# PTX comes with any number of architectures and is as large as the machine code of one.
# (Before there were losses, sampling, masked rows, segments and the log domain: 6 MB, 35 MB with three, 542 kernels.)
MB = 1_000_000
LIMITS = {
    "module": {0: 6.6 * MB, 1: 25.4 * MB, 2: 35.4 * MB, 3: 45.4 * MB},
    "kernels": 801,
}


def run(command):
    """Runs a compiler; FILE.cpu beside its output then holds the CPU-seconds."""
    status = subprocess.call(command)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    if "-o" in command[:-1]:
        pathlib.Path(command[command.index("-o") + 1] + ".cpu").write_text(f"{used.ru_utime + used.ru_stime:.3f}\n")
    return status if status >= 0 else 128 - status


# -- time -----------------------------------------------------------------------------------------------------


def compiled(build):
    """[(target, translation unit, CPU-seconds or None, wall seconds)] of a tree, by what took longest."""
    log = build / ".ninja_log"
    last = {}  # a file compiled again has another line, further down
    for line in log.read_text().splitlines()[1:] if log.exists() else []:
        start, end, _, output, _ = line.split("\t")
        last[output] = (int(end) - int(start)) / 1000
    found = []
    for output, wall in last.items():
        parts = re.fullmatch(r"(.*/)?CMakeFiles/(.+?)\.dir/(.+)\.o", output)
        if parts:
            noted = build / f"{output}.cpu"
            found.append((parts[2], (parts[1] or "") + parts[3],
                          float(noted.read_text()) if noted.exists() else None, wall))
    return sorted(found, key=lambda unit: -(unit[2] or unit[3]))


def seconds(value):
    return "" if value is None else f"{value:.1f}"


def print_times(units):
    targets = collections.defaultdict(list)
    for target, unit, cpu, wall in units:
        targets[target].append((unit, cpu, wall))
    rows = []

    def total(of):
        known = [cpu for _, cpu, _ in of if cpu is not None]
        return sum(known) if len(known) == len(of) else None, sum(wall for _, _, wall in of)

    for target, members in sorted(targets.items(), key=lambda item: -total(item[1])[1]):
        rows.append((target, f"{len(members)} units", *map(seconds, total(members))))
        rows += [("", unit, seconds(cpu), seconds(wall)) for unit, cpu, wall in members]
    rows.append(("all", f"{len(units)} units", *map(seconds, total([unit[1:] for unit in units]))))
    width = max(len(unit) for _, unit, _, _ in rows)
    wide = max(len(target) for target, _, _, _ in rows)
    print(f"{'target':{wide}}  {'translation unit':{width}}    CPU s   wall s")
    for target, unit, cpu, wall in rows:
        print(f"{target:{wide}}  {unit:{width}}  {cpu:>7}  {wall:>7}")


# -- size -----------------------------------------------------------------------------------------------------


def stripped(module):
    """Bytes of a module as it is installed: without symbols."""
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / "module.so"
        try:
            subprocess.run(["strip", "-o", copy, module], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return module.stat().st_size
        return copy.stat().st_size


def of_package(path):
    """Bytes of the module in a package, and of the package as a wheel."""
    if path.is_dir():
        with tempfile.TemporaryDirectory() as folder:
            wheel = pathlib.Path(folder) / "sumexp.whl"
            with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
                for file in path.rglob("*"):
                    if file.is_file() and file.suffix != ".pyc":
                        archive.write(file, pathlib.Path("sumexp") / file.relative_to(path))
            return of_package(wheel)
    with zipfile.ZipFile(path) as archive:
        module = sum(f.file_size for f in archive.infolist() if re.fullmatch(r"sumexp/_core\..*so", f.filename))
    return module, path.stat().st_size


def kernels(build):
    """{architecture: number of kernels} by the reports of ptxas in the tree."""
    sys.path.insert(0, str(HERE / "simt"))
    try:
        import check_resources
    finally:
        sys.path.pop(0)
    return collections.Counter(arch for arch, *_ in check_resources.kernels(build))


def limit_of_module(architectures):
    known = LIMITS["module"]
    most = max(known)
    return known.get(architectures) or known[most] + (architectures - most) * (known[most] - known[most - 1])


def check_sizes(build, package):
    """Prints sizes beside their limits; returns how many are past them."""
    found = kernels(build)
    if package:
        module, wheel = of_package(package)
    else:
        module, wheel = max(map(stripped, build.glob("csrc/bindings/_core*.so")), default=0), None
    if not module:
        print(f"{package or build}: has no module sumexp._core")
        return 1
    built = " ".join(sorted(found)) or "none"
    allowed = limit_of_module(len(found))
    rows = [(f"module, MB (GPU architectures: {built})", module / MB, allowed / MB)]
    if wheel:
        rows.append(("wheel, MB", wheel / MB, allowed / MB))
    rows += [(f"kernels of {arch}", count, LIMITS["kernels"]) for arch, count in sorted(found.items())]
    width = max(len(what) for what, _, _ in rows)
    past = 0
    for what, value, limit in rows:
        past += value > limit
        text = f"{value:.1f}" if isinstance(value, float) else value
        print(f"{what:{width}}  {text:>6}, at most {limit:g}{'   PAST THE LIMIT' if value > limit else ''}")
    return past


def main(arguments):
    if arguments[:1] == ["--run"]:
        return run(arguments[1:])
    parser = argparse.ArgumentParser(usage=__doc__.split("usage: ")[1].split("\n\n")[0], description=__doc__.split("\n")[0])
    parser.add_argument("build", nargs="?", type=pathlib.Path)
    parser.add_argument("--package", type=pathlib.Path)
    options = parser.parse_args(arguments)
    build = options.build
    if build is None:
        python = f"cp{sys.version_info[0]}{sys.version_info[1]}"
        trees = sorted((HERE.parent / "build").glob(f"{python}-{python}{sys.abiflags}-*"))
        if not trees:
            parser.error(f"build/ has no tree of {python}: run pip install . or name a build tree")
        build = trees[0]
    for path in (build, options.package):
        if path and not path.exists():
            parser.error(f"{path}: is not there")
    units = compiled(build)
    if units:
        print_times(units)
        print()
    else:
        print(f"{build}: has no times, as it has no .ninja_log with compiled files")
    return 1 if check_sizes(build, options.package) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
