"""tests/check_build.py on trees that are made up: times, sizes, kernels, and the limits on them."""

import importlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))
try:
    check_build = importlib.import_module("check_build")
finally:
    sys.path.remove(str(TESTS))

MODULE = "csrc/bindings/_core.cpython-311-x86_64-linux-gnu.so"
LOG = """# ninja log v7
0\t9000\t1\tcsrc/CMakeFiles/sumexp.dir/cpu/plan.cpp.o\tabc
9000\t9100\t1\tlibsumexp.a\tabc
5\t1505\t2\tcsrc/CMakeFiles/sumexp.dir/cpu/plan.cpp.o\tabc
0\t4000\t2\tcsrc/bindings/CMakeFiles/_core.dir/module.cpp.o\tabc
"""
REPORT = """ptxas info    : Compiling entry function 'k{0}' for '{1}'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, 400 bytes cmem[0]
"""


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "csrc/CMakeFiles/sumexp.dir/cpu").mkdir(parents=True)
    (tmp_path / "csrc/CMakeFiles/sumexp.dir/cpu/plan.cpp.o.cpu").write_text("1.250\n")
    (tmp_path / ".ninja_log").write_text(LOG)
    (tmp_path / "csrc/bindings").mkdir()
    (tmp_path / MODULE).write_bytes(bytes(2_000_000))
    return tmp_path


def test_times_are_those_of_the_last_build(tree):
    assert check_build.compiled(tree) == [
        ("_core", "csrc/bindings/module.cpp", None, 4.0), ("sumexp", "csrc/cpu/plan.cpp", 1.25, 1.5)]


def test_prints_and_accepts(tree, capsys):
    assert check_build.main([str(tree)]) == 0
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines()]
    assert ["csrc/cpu/plan.cpp", "1.2", "1.5"] in lines and ["all", "2", "units", "5.5"] in lines
    assert "module, MB (GPU architectures: none)     2.0, at most 6.6" in printed


def test_no_log_is_said(tree, capsys):
    (tree / ".ninja_log").unlink()
    assert check_build.main([str(tree)]) == 0
    assert "has no times" in capsys.readouterr().out


def test_a_module_past_its_limit(tree, capsys):
    (tree / MODULE).write_bytes(bytes(7_100_000))
    assert check_build.main([str(tree)]) == 1
    assert "7.1, at most 6.6   PAST THE LIMIT" in capsys.readouterr().out
    (tree / "0.ptxas").write_text(REPORT.format(0, "sm_90"))
    assert check_build.main([str(tree)]) == 0  # with a GPU architecture it may have more


def test_kernels_past_their_limit(tree, capsys):
    most = check_build.LIMITS["kernels"]
    (tree / "a.ptxas").write_text("".join(REPORT.format(k, "sm_80") + REPORT.format(k, "sm_90") for k in range(most)))
    assert check_build.main([str(tree)]) == 0
    (tree / "b.ptxas").write_text(REPORT.format(most, "sm_90"))
    assert check_build.main([str(tree)]) == 1
    printed = capsys.readouterr().out
    lines = {line.split("  ")[0]: line for line in printed.splitlines()}
    assert "PAST" not in lines["kernels of sm_80"] and f"{most + 1}, at most {most}   PAST" in lines["kernels of sm_90"]


@pytest.mark.parametrize("installed", [False, True])
def test_the_module_of_a_package(tree, tmp_path, capsys, installed):
    package = tmp_path / "sumexp.whl"
    with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("sumexp/_core.cpython-311-x86_64-linux-gnu.so", bytes(8_000_000))
        archive.writestr("sumexp/special.py", "x = 1\n")
    if installed:
        with zipfile.ZipFile(package) as archive:
            archive.extractall(tmp_path / "site")
        package = tmp_path / "site" / "sumexp"
    assert check_build.main([str(tree), "--package", str(package)]) == 1
    printed = capsys.readouterr().out
    assert "8.0, at most 6.6   PAST" in printed and "wheel, MB" in printed and printed.count("PAST") == 1


def test_a_tree_without_a_module_fails(tree, capsys):
    (tree / MODULE).unlink()
    assert check_build.main([str(tree)]) == 1
    assert "has no module" in capsys.readouterr().out


def test_limits_of_more_architectures():
    assert [check_build.limit_of_module(n) / 1e6 for n in range(5)] == [6.6, 25.4, 35.4, 45.4, 55.4]


def run(*arguments):
    return subprocess.run([sys.executable, str(TESTS / "check_build.py"), *map(str, arguments)], capture_output=True, text=True,
                          env=dict(os.environ), timeout=60)


def test_launcher(tmp_path):
    busy = "import sys, time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass\nsys.exit(3)"
    assert run("--run", sys.executable, "-c", busy, "-o", tmp_path / "x.o").returncode == 3
    assert 0.3 <= float((tmp_path / "x.o.cpu").read_text()) < 5
    assert run("--run", sys.executable, "-c", "pass").returncode == 0


def test_a_tree_that_is_not_there(tmp_path):
    done = run(tmp_path / "nowhere")
    assert done.returncode == 2 and "nowhere: is not there" in done.stderr
