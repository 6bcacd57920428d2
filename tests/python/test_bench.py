"""bench/cpu.py and bench/compare.py: small and quick, no claim about speed."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"
if not BENCH.exists():
    pytest.skip("bench/ is not here", allow_module_level=True)
pytest.importorskip("tqdm")
sys.path.insert(0, str(BENCH))
try:
    main, compare = map(importlib.import_module, ("cpu", "compare"))
    from harness import accuracy, bars, cells, peers, rounds, stats, tables
finally:
    sys.path.remove(str(BENCH))


def bench(*arguments):
    return subprocess.run([sys.executable, str(BENCH / "cpu.py"), *map(str, arguments)], capture_output=True,
                          text=True, timeout=600, env=dict(os.environ))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A run over two peers that are always there."""
    folder = tmp_path_factory.mktemp("bench")
    run = bench("--speed", "--overhead", "--peers", "sumexp", "numpy", "--ops", "softmax", "logsumexp", "softmax_vjp",
                "--lengths", 128, "--megabytes", 1, "--rounds", 2, "--no-pictures", "--out", folder)
    assert run.returncode == 0, run.stdout + run.stderr
    return run, folder / "bench.json"


def test_prints_and_writes(measured):
    run, path = measured
    document = json.loads(path.read_text())
    found = {(r["op"], r["peer"]) for r in document["records"]}
    assert {(op, p) for op in ("softmax", "logsumexp", "softmax_vjp") for p in ("sumexp", "numpy")} <= found
    assert all(len(r["seconds"]) == 2 and min(r["seconds"]) > 0 for r in document["records"])
    assert {r["peer"] for r in document["overhead"]} >= {"sumexp", "numpy"}
    assert any(r["peer"] == "limit:copy" for r in document["records"]) == bool(shutil.which("c++") or os.environ.get("CXX"))
    assert "softmax 2048 x 128" in run.stdout and "on 16 floats" in run.stdout
    assert "cells" in run.stderr  # the progress bar


def test_adds_to_a_file_and_shows_it_again(measured, tmp_path):
    _, path = measured
    copy = tmp_path / "figures.json"
    copy.write_text(path.read_text())
    run = bench("--bars", "scalar", "--ops", "softmax", "--dtypes", "float32", "--lengths", 128, "--megabytes", 1,
                "--rounds", 2, "--json", copy)
    assert run.returncode == 0, run.stdout + run.stderr
    groups = [tuple(r["groups"]) for r in json.loads(copy.read_text())["records"]]
    assert ("speed",) in groups and ("scalar",) in groups
    again = bench("--from", copy, "--bars", "scalar")
    assert again.returncode == 0 and "scalar: NumPy / sumexp" in again.stdout
    assert again.stdout.splitlines()[-1] == run.stdout.splitlines()[-1]


def test_readme_tables(measured, tmp_path):
    document = json.loads(measured[1].read_text())
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- bench:speed -->\nold\n<!-- /bench:speed -->\nafter\n")
    assert tables.write_readme(page, document) == ["speed"]
    text = page.read_text()
    assert "| softmax 2048 x 128 |" in text and "old" not in text
    assert text.startswith("before\n") and text.endswith("after\n")
    tables.write_readme(page, document)
    assert page.read_text() == text
    page.write_text("no markers\n")
    with pytest.raises(SystemExit, match="bench:speed"):
        tables.write_readme(page, document)


RESULTS = BENCH / "results"
SPEED = "2026-11-29-epyc-zen5-speed"
needs_results = pytest.mark.skipif(not RESULTS.exists(), reason="bench/results is not here")


@needs_results
@pytest.mark.parametrize("page, files, names, blocks", [
    ("README.md", [SPEED], (), {"summary"}),
    ("bench/results/README.md", [SPEED], (), {"speed", "accuracy"}),
    ("bench/results/README.md", ["2026-12-01-epyc-zen4-bars", "2026-12-01-epyc-zen4-torch"], bars.NAMES, {"bars"}),
])
def test_committed_pages_are_what_the_files_say(page, files, names, blocks, tmp_path):
    """The commands in bench/results/README.md change nothing."""
    document = main.load([RESULTS / f"{name}.json" for name in files])
    copy = tmp_path / "page.md"
    copy.write_text((ROOT / page).read_text())
    assert set(tables.write_readme(copy, document, names)) == blocks
    assert copy.read_text() == (ROOT / page).read_text()


@needs_results
def test_summary_is_a_dozen_rows():
    document = main.load([RESULTS / f"{SPEED}.json"])
    summary = tables.readme_blocks(document)["summary"]
    assert len(re.findall(r"^\| \w+ \d+ x \d+ \|", summary, re.M)) == len(tables.SUMMARY) == 12
    assert document["machine"]["cpu"] in summary and document["date"] in summary


@needs_results
def test_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    run = bench("--from", RESULTS / f"{SPEED}.json", "--out", tmp_path)
    assert run.returncode == 0, run.stderr
    for name in ("throughput.png", "accuracy.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG") and (RESULTS / name).exists()


def test_grid_sizes():
    grid = cells.grid(["softmax"], ["float32", "bfloat16"], ["first"], [16, "all"], [1])
    assert {c.bytes for c in grid} == {64 << 20}
    assert cells.grid(["softmax"], ["float32"], ["last"], ["all"], [1], None)[0].shape == (1, 1 << 24)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("axis", cells.AXES)
@pytest.mark.parametrize("op", cells.OPS)
def test_check_accepts_the_library_and_no_mistake(op, axis, dtype):
    cell = cells.Cell(op, dtype, axis, 5, 300, 1)
    inputs, out = cells.arrays_for(cell)
    assert out.ctypes.data % 64 == 0
    result = peers.Sumexp(1).build(cell, inputs, out)()
    cells.check(cell, inputs, result)
    with pytest.raises(ArithmeticError, match=op):
        cells.check(cell, inputs, np.asarray(result) * 1.1 + 0.01)
    if op == "softmax" and dtype != "float16":
        zeroed = np.where(np.asarray(result) < 1e-7, 0, np.asarray(result))
        with pytest.raises(ArithmeticError, match=op):
            cells.check(cell, inputs, zeroed)


def test_check_accepts_what_overflows():
    cell = cells.Cell("log_softmax_vjp", "float16", "last", 1, 4, 1)
    inputs = (np.full((1, 4), 3e4, np.float16), np.log(np.float16([[0.97, 0.01, 0.01, 0.01]])))
    cells.check(cell, inputs, np.float16([[-np.inf, 28794, 28794, 28794]]))


def test_ratio_intervals():
    rng = np.random.default_rng(1)
    slow = 1 + 0.5 * rng.random(9)  # the machine's moods, shared by both
    low, ratio, high = stats.ratio_interval(2 * slow, slow)
    assert low == pytest.approx(2) and ratio == pytest.approx(2) and high == pytest.approx(2)
    assert stats.geometric_mean([1, 4]) == pytest.approx(2)
    assert stats.ratio_interval([1, 2, 3], [1, 1, 2]) == (0.5, 2, 3)  # too few to claim more than their range


def test_bars_are_judged():
    def record(peer, seconds, n, group):
        cell = {"op": "softmax", "dtype": "float32", "axis": "last", "rows": 2, "n": n, "threads": 1, "isa": "best"}
        return {**cell, "peer": peer, "seconds": [seconds] * 3, "groups": [group]}

    records = [record("sumexp", 1.0, n, g) for n in (16, 128) for g in ("torch", "limits")]
    records += [record("torch", 4.0, 16, "torch"), record("torch", 0.9, 128, "torch")]
    records += [record("limit:copy", 0.6, 16, "limits"), record("limit:copy", 0.6, 128, "limits")]
    every, mean = bars.judge(records, [], ["torch"])
    assert not every.met and every.figure.startswith("0.90") and [f for _, f in every.failing] == [0.9]
    assert not mean.met and mean.figure == "1.90"
    by_name = {v.bar: v for v in bars.judge(records, [], ["limits"])}
    assert by_name["softmax / memcpy, n = 16"].met
    assert by_name["softmax / memcpy, n = 128 to 16384"].met is False
    assert by_name["logsumexp / max(1.15 exp-and-add, 1.3 read)"].met is None
    assert "NOT MET" in tables.verdicts([every, mean])
    assert every.beyond == 1 and every.word == "NOT MET"


def test_bars_tell_noise_and_missing_cells():
    cell = {"op": "softmax", "dtype": "float32", "axis": "last", "rows": 2, "threads": 1, "isa": "best", "groups": ["torch"]}
    times = {16: ([1.0] * 5, [4.0] * 5), 128: ([1.0] * 5, [0.9, 0.9, 0.9, 2, 2]), 1024: ([1.0] * 5, [])}
    records = [{**cell, "n": n, "peer": p, "seconds": s}
               for n, both in times.items() for p, s in zip(("sumexp", "torch"), both)]
    every = bars.judge(records, [], ["torch"])[0]
    assert (every.cells, every.missing, every.beyond) == (2, 1, 0)
    assert every.word == "NOT MET (noise), 1 cells not measured"
    assert bars.judge(records[:2] + records[4:], [], ["torch"])[0].word == "met, 1 cells not measured"


def test_verdicts_in_a_page(tmp_path):
    cell = {"op": "softmax", "dtype": "float32", "axis": "last", "rows": 2, "n": 16, "threads": 1, "isa": "best"}
    records = [{**cell, "groups": ["torch"], "peer": p, "seconds": [s] * 5} for p, s in (("sumexp", 1.0), ("torch", 3.0))]
    document = {"records": records, "overhead": [], "memory": [], "accuracy": []}
    page = tmp_path / "README.md"
    page.write_text("<!-- bench:bars -->\n<!-- /bench:bars -->\n")
    assert tables.write_readme(page, document, ["torch"]) == ["bars"]
    assert "| torch / sumexp, every cell | 1 of 1 | 3.00 [3.00, 3.00] | at least 1 | met |" in page.read_text()


@pytest.mark.parametrize("arguments, message", [
    (["--rounds", "0"], "'0', accepted: integers from 1"),
    (["--lengths", "abc"], "'abc', accepted: integers from 1"),
    (["--megabytes", "-1"], "accepted: integers from 1"),
    (["--threads", "4096"], "4096, accepted: 1 to"),
    (["--from", "nowhere.json"], "nowhere.json"),
    (["--from", __file__], "test_bench.py"),
])
def test_refuses_with_a_reason(arguments, message):
    run = bench(*arguments)
    assert run.returncode and message in run.stderr and "Traceback" not in run.stderr


def test_a_measured_cell_replaces_one_that_could_not_be():
    cell = {"op": "softmax", "n": 16, "peer": "torch", "groups": ["torch"]}
    document = {"records": [{**cell, "seconds": [], "skip": "its process ended"}]}
    main.add(document, "records", [{**cell, "seconds": [1.0]}])
    assert document["records"] == [{**cell, "seconds": [1.0]}]


def test_figures_of_another_run_stay_alone(measured, tmp_path):
    document = json.loads(measured[1].read_text())
    document["versions"]["numpy"] = "1.0"
    path = tmp_path / "figures.json"
    path.write_text(json.dumps(document))
    run = bench("--accuracy", "--peers", "numpy", "--json", path)
    assert run.returncode and "versions" in run.stderr and json.loads(path.read_text()) == document


def test_environment_of_the_user_does_not_reach_a_peer(monkeypatch):
    for name in ("ATEN_CPU_CAPABILITY", "NPY_DISABLE_CPU_FEATURES", "OMP_NUM_THREADS", "SUMEXP_ISA"):
        monkeypatch.setenv(name, "scalar")
    worker = rounds.Worker("numpy", 1)
    assert "ready" in worker.hear()
    with open(f"/proc/{worker.process.pid}/environ") as file:
        environment = dict(pair.split("=", 1) for pair in file.read().split("\0") if "=" in pair)
    worker.close()
    assert "scalar" not in environment.values() and environment["OMP_NUM_THREADS"] == "1"


def test_why_a_peer_is_absent(monkeypatch):
    notes = []
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with rounds.Fleet(1, note=notes.append) as fleet:
        assert fleet.start(["numpy"]) == [] and notes == ["numpy left out: its process ended"]
    monkeypatch.undo()
    monkeypatch.setenv("PYTHONHOME", "/nowhere")  # says so on standard error, and ends
    with rounds.Fleet(1, note=notes.append) as fleet:
        assert fleet.start(["numpy"]) == [] and notes[1].startswith("numpy left out: its process ended: ")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_oracle_against_mpmath(dtype):
    mp = pytest.importorskip("mpmath")
    if np.finfo(np.longdouble).nmant < 63:
        pytest.skip("no long double here")
    made = accuracy.rows(dtype)
    with mp.workdps(60):
        for name in ("logits in (-100, 100)", "confident, margin 17", "maximum 0 and -50", "large offset", "one huge"):
            row = made[name]
            x = [mp.mpf(float(v)) for v in row]
            top = max(x)
            total = mp.fsum(mp.exp(v - top) for v in x)
            log = mp.log(total)
            exact = {"softmax": [mp.exp(v - top) / total for v in x], "log_softmax": [v - top - log for v in x],
                     "logsumexp": [top + log]}
            for op, want in exact.items():
                got = np.atleast_1d(accuracy.oracle(op, row))
                size = np.abs(got) if op != "logsumexp" else np.maximum(np.abs(got), abs(np.longdouble(row.max())))
                gaps = accuracy.spacing(size, dtype)
                for g, w, gap in zip(got, want, gaps):
                    head = float(g)  # a long double goes into mpmath in two parts
                    error = abs(mp.mpf(head) + mp.mpf(float(g - np.longdouble(head))) - w)
                    assert error <= mp.mpf(float(gap)) / 100, (name, op)


@pytest.mark.parametrize("op", accuracy.OPS)
def test_accuracy_measures_the_promise(op):
    assert accuracy.measure(peers.Sumexp(1), op, "float32")["max"] <= (1 if op == "logsumexp" else 2)
    half = accuracy.measure(peers.Sumexp(1), op, "float16")
    assert half["max"] <= 0.51 and half["by_row"]["subnormal probabilities"] > 1e-3
    assert accuracy.errors("softmax", np.float32([0, -200]), np.float32([1, 1e-9]), "float32")[1] > 1e30
    assert accuracy.measure(peers.Numpy(1), "log_softmax", "float32")["max"] > 1000


def test_compare(tmp_path):
    rng = np.random.default_rng(2)

    def write(name, medians):
        runs = [{"run_name": k, "run_type": "iteration", "real_time": m * (1 + 0.01 * rng.random()), "time_unit": "us"}
                for k, m in medians.items() for _ in range(9)]
        path = tmp_path / name
        path.write_text(json.dumps({"context": {"num_cpus": 2, "date": "2026-01-01"}, "benchmarks": runs}))
        return str(path)

    before = write("before.json", {"a": 100, "b": 100, "c": 100})
    assert compare.main([before, write("after.json", {"a": 101, "b": 80, "c": 99})]) == 0
    assert compare.main([before, write("after.json", {"a": 101, "b": 80, "c": 130})]) == 1
    assert compare.main([before, write("after.json", {"a": 101, "b": 99})]) == 1  # c is gone
    failed = json.loads((tmp_path / "before.json").read_text())
    for run in failed["benchmarks"][:9]:
        run["error_occurred"] = True
    (tmp_path / "failed.json").write_text(json.dumps(failed))
    assert compare.main([before, str(tmp_path / "failed.json")]) == 1
    assert compare.verdict(0.9, 1.2, 0.03) == "UNSURE" and compare.verdict(0.99, 1.01, 0.03) == "SAME"


def test_small_calls_record_a_gradient_where_they_say_so():
    torch = pytest.importorskip("torch")
    with torch.enable_grad():  # the peers turn the mode on and off: put back at the end
        for name in ("torch", "sumexp-tensor"):
            peer = peers.make(name, torch.get_num_threads())
            for recorded in (True, False):
                call = peer.tiny("softmax", np.ones((4, 16), np.float32), recorded=recorded)
                assert call().requires_grad == recorded
