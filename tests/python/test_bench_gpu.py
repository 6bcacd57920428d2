"""bench/gpu.py without a GPU: cells, byte model, time budget, turns, checks, aims, tables and files."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "bench" / "gpu.py").exists():
    pytest.skip("bench/ is not here", allow_module_level=True)
torch = pytest.importorskip("torch")
pytest.importorskip("tqdm")
sys.path.insert(0, str(ROOT / "bench"))
try:
    gpu, gpu_peers, gpu_report = map(importlib.import_module, ("gpu", "gpu_peers", "gpu_report"))
finally:
    sys.path.remove(str(ROOT / "bench"))

Cell, K, M = gpu_report.Cell, gpu_report.K, gpu_report.M


def bench(*arguments, **environment):
    return subprocess.run([sys.executable, str(ROOT / "bench" / "gpu.py"), *map(str, arguments)], capture_output=True,
                          text=True, timeout=300, env={**os.environ, **environment})


def records_of(cell, **microseconds):
    return [gpu_report.record(cell, peer, seconds=[t * 1e-6 * k for k in (0.9, 1.0, 1.2)])
            for peer, t in microseconds.items()]


def document_of(records):
    return {"device": "NVIDIA Pretend", "driver": "1.2", "date": "2026-01-31",
            "versions": {"torch": "2", "triton": None}, "kernels": "90", "left_out": {"triton": "not here"},
            "wrong": [], "records": records}


# -- cells and their bytes -----------------------------------------------------------------------------------


def test_byte_model():
    moved = {op: Cell(op, "bf16", 3, 100).moved for op in gpu_report.OPS}
    assert moved == {"softmax": 1200, "log_softmax": 1200, "logsumexp": 600, "softmax_vjp": 1800,
                     "log_softmax_vjp": 1800}
    assert Cell("softmax", "f32", 3, 100).moved == 2400
    cell = Cell("softmax", "f32", 1000, 1000)
    (figures,) = gpu_report.index(records_of(cell, sumexp=4.0, copy=3.0)).values()
    assert gpu_report.gigabytes(cell, figures) == pytest.approx(2000)  # 8 MB in 4 us
    assert gpu_report.ratio(figures, "copy") == pytest.approx(0.75)


def test_grid():
    cells = gpu_report.grid()
    shapes = {(c.rows, c.n) for c in cells}
    assert len(cells) == len(set(cells)) == len(shapes) * 10
    assert {(32 * K, 256), (32 * K, 64 * K), (8 * K, 256 * K), (1, 32 * K), (32, 16 * M)} <= shapes
    assert set(gpu_report.COMPILED) <= shapes
    assert max(c.rows * c.n for c in cells) == 1 << 31
    assert all(c.n * c.rows * 2 > 1 << 15 for c in cells)
    assert {str(c) for c in gpu_report.grid(only="^softmax_vjp bf16 .* x 2K")} == {"softmax_vjp bf16 32K x 2K"}
    assert len(gpu_report.grid(quick=True)) < 30


def test_time_budget():
    available = ["copy", "sumexp", "torch", "compile", "triton"]
    cell = Cell("softmax", "bf16", 32 * K, K)
    assert gpu_report.choose(cell, available, 1000, 100) == (available, {})
    kept = [len(gpu_report.choose(cell, available, seconds, 100)[0]) for seconds in (1000, 90, 60, 10, 1, 0)]
    assert kept == [5, 4, 3, 2, 2, 0]
    assert gpu_report.choose(cell, available, 90, 100)[1] == {"compile": gpu_report.NO_TIME}
    assert gpu_report.choose(Cell("softmax", "bf16", 1, 16 * M), available, 1000, 1)[1] == {
        "compile": gpu_report.FEW_SHAPES, "triton": gpu_report.TOO_LONG}
    assert gpu_report.rounds_of(1e-4, 100, 100) == 40 and gpu_report.rounds_of(1.0, 100, 100) == 5
    assert gpu_report.rounds_of(0.02, 100, 100) == 16


# -- measuring, with a clock that needs no device ------------------------------------------------------------


class PretendClock:
    """Time is what a call appends to it."""

    flush_seconds = 1e-3

    def __init__(self):
        self.log = []

    def host(self, call):
        return 1e-6

    def queue(self, call, host):
        call()
        self.log.append(call)
        return len(self.log)

    def read(self, queued):
        return [1e-6 * at for at in queued]


def test_peers_take_turns():
    clock, calls = PretendClock(), {name: lambda: None for name in "abc"}
    asked = []
    found = gpu.take_turns(calls, clock, lambda one: asked.append(one) or 4)
    assert asked == [pytest.approx(3 * (1e-3 + 2e-6) + (1 + 2 + 3) * 1e-6)]
    order = "".join(next(name for name in calls if calls[name] is call) for call in clock.log)
    assert order == "abc" + "abc" + "bca" + "cab" + "abc"
    assert {len(samples) for samples, _ in found.values()} == {4}
    assert found["b"][0] == pytest.approx([5e-6, 7e-6, 12e-6, 14e-6])


CELLS = [Cell(op, dtype, 5, 5000) for op in gpu_report.OPS for dtype in gpu_report.ITEM]


def measured(cells=CELLS, rivals=("torch",), seconds=1000.0, memory=1 << 40):
    document, saved = document_of([]), []
    document["left_out"] = {}
    gpu.measure(document, cells, rivals, seconds, lambda: saved.append(len(document["records"])), PretendClock(),
                lambda: memory, "cpu")
    assert saved[-1] == len(document["records"])
    return document


def test_measures_every_cell():
    document = measured()
    assert not document["wrong"] and not document["left_out"]
    table = gpu_report.index(document["records"])
    assert list(table) == CELLS
    for cell, peers in table.items():
        assert list(peers) == ["copy", "sumexp", "torch"], cell
        assert all(len(r["seconds"]) >= 5 for r in peers.values())
    assert "logsumexp f32 5 x 5000" in gpu_report.report(document)


def test_a_wrong_result_is_not_timed(monkeypatch):
    def one_ulp(x):
        y = gpu_peers.se.softmax(x)
        y[x.shape[0] // 2, 7] = torch.nextafter(y[x.shape[0] // 2, 7], torch.tensor(9.0))
        return y if x.shape[0] == 5 else gpu_peers.se.softmax(x)  # the reference is of the sampled rows

    def unwritten(x):
        y = gpu_peers.se.softmax(x)
        y[3, 4999] = float("nan")
        return y

    cell = Cell("softmax", "f32", 5, 5000)
    for wrong, said in ((one_ulp, "differ from the CPU's"), (unwritten, "1 elements of the result are NaN")):
        want = gpu_peers.expected(cell, gpu_peers.inputs_for(cell, torch.Generator()))
        assert want.shape == (3, 5000)
        with monkeypatch.context() as patch:
            patch.setitem(gpu_peers.SUMEXP, "softmax", wrong)
            patch.setattr(gpu_peers, "expected", lambda c, i: gpu_peers.se.softmax(i[0][gpu_peers.sampled(c)]))
            document = measured([cell])
        assert len(document["wrong"]) == 1 and said in document["wrong"][0]
        (peers,) = gpu_report.index(document["records"]).values()
        assert "seconds" not in peers["sumexp"] and "seconds" in peers["torch"]
        assert "WRONG: softmax f32" in gpu_report.report(document)


def test_peers_that_fail_or_do_not_fit(monkeypatch):
    monkeypatch.setitem(gpu_peers.TORCH, "softmax", lambda x: torch.softmax(1.1 * x, -1))
    cells = [Cell("softmax", "f32", rows, 400) for rows in range(4, 9)]
    document = measured(cells)
    assert "failed three times" in document["left_out"]["torch"] and "is off by" in document["left_out"]["torch"]
    assert not document["wrong"]
    words = [gpu_report.why(peers, "torch") for peers in gpu_report.index(document["records"]).values()]
    assert words == ["failed", "failed", "failed", "", ""]
    document = measured(cells, memory=100)
    assert {gpu_report.why(p, "sumexp") for p in gpu_report.index(document["records"]).values()} == {"memory"}
    document = measured(cells, seconds=0)
    assert {gpu_report.why(p, "sumexp") for p in gpu_report.index(document["records"]).values()} == {"time"}


@pytest.mark.parametrize("dtype", gpu_report.ITEM)
@pytest.mark.parametrize("op", gpu_report.OPS)
def test_peers_compute_the_same(op, dtype):
    cell = Cell(op, dtype, 6, 700)
    inputs = gpu_peers.inputs_for(cell, torch.Generator().manual_seed(0))
    want = gpu_peers.expected(cell, inputs)
    largest = gpu_peers.scale(cell, inputs, want)
    for functions in (gpu_peers.TORCH, gpu_peers.COMPILED):
        result = functions[op](*inputs)
        gpu_peers.check_close(cell, "torch", lambda: result, want, largest)
        for mistake in (result * 1.1, -result, result * float("nan"), result.roll(1, 0)):
            with pytest.raises(ArithmeticError, match=op):
                gpu_peers.check_close(cell, "torch", lambda: mistake, want, largest)


def test_inputs_are_fresh_and_have_outliers():
    cell, generator = Cell("softmax", "bf16", 1, 409_900), torch.Generator().manual_seed(0)
    (x,), (again,) = (gpu_peers.inputs_for(cell, generator) for _ in range(2))
    assert not torch.equal(x, again)
    assert abs(float(x[0, 7::4099].float().mean()) - 20) < 2 and abs(float(x.float().median())) < 0.1


def test_triton_kernels():
    """In Triton's interpreter, which needs no GPU."""
    pytest.importorskip("triton")
    code = ("import sys; sys.path[:0] = [sys.argv[1]]\n"
            "import torch, gpu_peers, gpu_report, gpu_triton\n"
            "for dtype in gpu_report.ITEM:\n"
            "    for op in gpu_report.OPS:\n"
            "        for n in (256, 1000):\n"
            "            cell = gpu_report.Cell(op, dtype, 5, n)\n"
            "            inputs = gpu_peers.inputs_for(cell, torch.Generator())\n"
            "            call = gpu_peers.build('triton', cell, inputs)\n"
            "            want = gpu_peers.expected(cell, inputs)\n"
            "            gpu_peers.check_close(cell, 'triton', call, want, gpu_peers.scale(cell, inputs, want))\n")
    done = subprocess.run([sys.executable, "-c", code, str(ROOT / "bench")], capture_output=True, text=True,
                          timeout=300, env={**os.environ, "TRITON_INTERPRET": "1"})
    assert done.returncode == 0, done.stderr


# -- aims, tables, files -------------------------------------------------------------------------------------


def test_aims_are_judged():
    records = []
    for cell, copy, torchs in ((Cell("softmax", "bf16", 32 * K, 256), 74.0, 150.0),
                               (Cell("softmax", "bf16", 32 * K, K), 76.0, 150.0),
                               (Cell("softmax", "bf16", 32 * K, 2 * K), 91.0, 99.0),
                               (Cell("softmax", "bf16", 8 * K, 256 * K), 90.1, 150.0),
                               (Cell("softmax", "bf16", 1, 32 * K), 10.0, 150.0),
                               (Cell("softmax", "bf16", 8, M), 80.1, 150.0)):
        records += records_of(cell, sumexp=100.0, copy=copy, torch=torchs)
    found = {v.aim.split(":")[0]: (v.cells, v.met) for v in gpu_report.judge(records)}
    assert list(found.values()) == [(2, 2), (2, 1), (1, 1), (6, 5), (0, 0), (0, 0)]
    text = gpu_report.summary(records)
    assert text.count("NOT MET") == 2 and text.count("not measured") == 2
    assert "  0.99  softmax bf16 32K x 2K" in text and "  0.74  softmax bf16 32K x 256" in text


def test_table_and_file(tmp_path):
    cell, other = Cell("softmax", "f32", 1000, 1000), Cell("softmax", "f32", 1, M)
    records = records_of(cell, copy=3.0, sumexp=4.0, torch=6.0)
    records.append(gpu_report.record(cell, "triton", left_out="failed: RuntimeError: no time for this memory"))
    records.append(gpu_report.record(cell, "compile", left_out=gpu_report.FEW_SHAPES))
    records += [gpu_report.record(other, p, left_out=gpu_report.NO_TIME) for p in gpu_report.PEERS]
    _, (row, empty) = gpu_report.table(records)
    assert row[1:] == ["4.00", "±8%", "2000", "75%", "1.50", "", "failed"]
    assert empty[1] == "time"
    path = tmp_path / "deep" / "figures.json"
    gpu_report.write(path, document_of(records))
    assert json.loads(path.read_text())["records"] == records
    assert len(path.read_text().splitlines()) == len(records)
    shown = bench("--from", path)
    assert shown.returncode == 0, shown.stderr
    assert "softmax f32 1000 x 1000" in shown.stdout and "left out: triton: not here" in shown.stdout
    assert shown.stdout.strip() == gpu_report.report(document_of(records)).strip()
    assert gpu_report.file_name("2026-01-31", "NVIDIA H200 NVL") == "2026-01-31-nvidia-h200-nvl-gpu.json"


def test_builds_for_this_device_alone():
    command = gpu.build_command(9, 0)
    assert "--config-settings=cmake.define.SUMEXP_CUDA_ARCHITECTURES=90" in command
    assert "--config-settings=cmake.define.SUMEXP_CUDA=ON" in command and command[-1] == str(ROOT)
    assert gpu.progress_of("[12/57] Building CUDA object softmax.cu.o") == (12, 57)
    assert gpu.progress_of("  [  7%] Building CUDA object") == (7, 100)
    assert gpu.progress_of("Installing collected packages: sumexp") is None
    assert gpu.seconds_left(300, spent=60) == 300 and gpu.seconds_left(300, spent=200) == gpu.WHOLE_SECONDS - 200
    assert gpu.seconds_left(300, spent=450) == 75


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_says_where_no_gpu_is():
    done = bench()
    assert done.returncode == 2 and "no usable GPU" in done.stderr
    assert bench("--peers", "numpy").returncode == 2  # argparse's
