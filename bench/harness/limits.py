"""limits.cpp as callables: compiled for this machine when bench starts, called through ctypes."""

import ctypes
import os
import pathlib
import shlex
import shutil
import subprocess

SOURCE = pathlib.Path(__file__).parents[1] / "limits.cpp"
NAMES = ("copy", "copy_nt", "read", "exp_add", "triad", "triad_nt")
VARIABLE = "SUMEXP_BENCH_LIMITS"  # where workers find the compiled library


def compile_into(folder):
    """The path of the compiled library, or None where there is no C++ compiler: then no limits are shown."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        return None
    library = pathlib.Path(folder) / "limits.so"
    flags = ["-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread"]
    built = subprocess.run([*shlex.split(compiler), *flags, "-o", library, SOURCE], capture_output=True, text=True)
    return library if built.returncode == 0 else None


def load(threads):
    library = ctypes.CDLL(os.environ[VARIABLE])
    library.limits_exp_add.restype = ctypes.c_double
    library.limits_threads(ctypes.c_int(threads))
    return library


def loop(library, name, arrays):
    """The limit `name` over arrays of equal size, as a callable without arguments."""
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in arrays]
    size = ctypes.c_int64(arrays[0].nbytes)
    function = getattr(library, "limits_" + name)
    if name == "read":
        return lambda: function(pointers[0], size)
    if name == "exp_add":
        item = ctypes.c_int(arrays[0].itemsize)
        return lambda: function(pointers[0], size, item)
    return lambda: function(*pointers, size)
