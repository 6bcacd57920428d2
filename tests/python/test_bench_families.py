"""bench/families.py and bench/linear.py: small and quick, no claim about speed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
if not BENCH.exists():
    pytest.skip("bench/ is not here", allow_module_level=True)
pytest.importorskip("torch")


def run_and_read(path, program, *options):
    run = subprocess.run([sys.executable, str(BENCH / program), *options, "--rounds", "1", "--json", str(path)],
                         capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    return json.loads(path.read_text())["records"]


def test_every_cell_is_checked_and_timed(tmp_path):
    records = run_and_read(tmp_path / "figures.json", "families.py", "--quick")
    assert all(len(r["seconds"]) == 1 and r["seconds"][0] > 0 for r in records)
    assert {"cross_entropy", "sample", "logmatmulexp"} <= {r["family"] for r in records}


@pytest.mark.skipif(sys.platform != "linux", reason="its memory is read from /proc")
def test_the_softmax_layer(tmp_path):
    records = run_and_read(tmp_path / "figures.json", "linear.py", "64x16x200")
    assert {"sumexp", "plain", "torch", "NumPy"} <= {r["way"] for r in records}
    assert all(r["seconds"][0] > 0 for r in records)
