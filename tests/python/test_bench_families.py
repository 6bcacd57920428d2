"""bench/families.py: small and quick, no claim about speed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
if not BENCH.exists():
    pytest.skip("bench/ is not here", allow_module_level=True)
pytest.importorskip("torch")


def test_every_cell_is_checked_and_timed(tmp_path):
    path = tmp_path / "figures.json"
    run = subprocess.run([sys.executable, str(BENCH / "families.py"), "--quick", "--rounds", "1", "--json", str(path)],
                         capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    records = json.loads(path.read_text())["records"]
    assert all(len(r["seconds"]) == 1 and r["seconds"][0] > 0 for r in records)
    assert {"cross_entropy", "sample", "logmatmulexp"} <= {r["family"] for r in records}
