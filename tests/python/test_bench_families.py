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
sys.path.insert(0, str(BENCH))
try:
    from harness import formulas
finally:
    sys.path.remove(str(BENCH))


@pytest.mark.parametrize("family", formulas.CELLS)
def test_every_formula_is_checked_and_runs(family):
    for peer in formulas.CELLS[family][3]:
        formulas.build(peer, family, quick=True)()


def test_a_formula_of_other_values_is_no_peer(monkeypatch):
    monkeypatch.setitem(formulas.CELLS["entropy"][3], "torch", lambda x: -formulas.softmax_entropy(x))
    with pytest.raises(AssertionError, match="not close"):
        formulas.build("torch", "entropy", quick=True)


def run_and_read(path, program, *options):
    run = subprocess.run([sys.executable, str(BENCH / program), *options, "--rounds", "1", "--json", str(path)],
                         capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    return json.loads(path.read_text())["records"]


def test_peers_take_turns(tmp_path):
    records = run_and_read(tmp_path / "figures.json", "families.py", "--quick", "--families", "entropy", "logaddexp")
    assert all(len(r["seconds"]) == 1 and r["seconds"][0] > 0 for r in records)
    assert [r["family"] + " " + r["peer"] for r in records] == ["entropy sumexp", "entropy torch", "logaddexp sumexp",
                                                                "logaddexp torch"]


@pytest.mark.skipif(sys.platform != "linux", reason="its memory is read from /proc")
def test_the_softmax_layer(tmp_path):
    records = run_and_read(tmp_path / "figures.json", "linear.py", "64x16x200")
    assert {"sumexp", "plain", "torch", "NumPy"} <= {r["way"] for r in records}
    assert all(r["seconds"][0] > 0 for r in records)
