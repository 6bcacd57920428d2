"""python -m sumexp bench: every function, its operands in the right places, and nothing but NumPy."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sumexp as se
from sumexp import _bench


def bench(*arguments):
    return subprocess.run([sys.executable, "-m", "sumexp", "bench", *arguments], capture_output=True, text=True,
                          timeout=300, env=dict(os.environ))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_prints_a_line_for_each_function(dtype):
    run = bench("--megabytes", "1", "--threads", "2", "--dtype", dtype)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"2 threads; {dtype}, arrays of 1 MB" in run.stdout and "a copy: " in run.stdout
    lines = {line.split()[0]: line for line in run.stdout.splitlines() if re.search(r" \d+ ns$", line)}
    assert list(lines) == list(_bench.FUNCTIONS)
    public = {name for name in se.__all__ if re.match(r"(log_)?softmax|logsumexp", name)}
    assert set(lines) == {name for name in public if not re.search(r"jacobian|hessian", name)}
    for line in lines.values():
        assert len(re.findall(r"\d+\.\d\d \(\d+%\)", line)) == len(_bench.LENGTHS) + 1


@pytest.mark.parametrize("function", _bench.FUNCTIONS)
def test_operands_are_the_functions(function):
    rng = np.random.default_rng(1)
    flat = {name: rng.standard_normal(60).astype(np.float32) for name in "xgt"}
    flat.update(y=np.zeros(60, np.float32), out=np.zeros(60, np.float32))
    arrays, out = _bench.operands(function, flat, 12)
    saved = "l" if function.startswith("log_softmax") else "p"
    letter = {"x": "x", "y": saved, "g": "r" if function == "logsumexp_vjp" else "g", "t": "g", "v": "t"}
    names = [name for name in inspect.signature(getattr(se, function)).parameters if name in letter]
    assert _bench.FUNCTIONS[function][0] == "".join(letter[name] for name in names)
    for array, name in zip(arrays, _bench.FUNCTIONS[function][0]):
        want = {"p": se.softmax(flat["x"].reshape(5, 12)), "l": se.log_softmax(flat["x"].reshape(5, 12)),
                "r": np.ones(5, np.float32)}
        assert np.array_equal(array, want[name] if name in want else flat[name].reshape(5, 12))
    got = getattr(se, function)(*arrays, axis=-1, out=out)
    assert got is out and np.array_equal(got, getattr(se, function)(*arrays, axis=-1))


def test_threads_are_put_back():
    before = se.get_num_threads()
    assert _bench.main(["--megabytes", "1", "--functions", "softmax", "--threads", str(before + 1)]) == 0
    assert se.get_num_threads() == before


@pytest.mark.parametrize("arguments, message", [
    (["--megabytes", "0"], "'0', accepted: integers from 1"),
    (["--functions", "sin"], "softmax_hvp"),
    (["--dtype", "int8"], "float16"),
])
def test_refuses_with_a_reason(arguments, message):
    run = bench(*arguments)
    assert run.returncode == 2 and message in run.stderr and "Traceback" not in run.stderr


def test_the_package_has_nothing_to_compile():
    names = {path.suffix for path in Path(_bench.__file__).parent.rglob("*") if path.is_file()}
    assert names <= {".py", ".pyi", ".pyc", ".so", ".typed"}
