"""Shared by all tests: the oracle on the path, settings put back, the table of accuracy at the end."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sumexp as se
from oracle import accuracy
from sumexp import _core

# {entry of oracle.bounds: {format: worst error seen}}, filled by test_ulp.py
measured = pytest.StashKey()


def pytest_configure(config):
    config.addinivalue_line("markers", "large: needs several gigabytes of memory")
    config.addinivalue_line("markers", "gpu: needs an NVIDIA GPU")
    config.stash[measured] = {}


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):  # this is a process of pytest-xdist: its errors go to the one that prints
        worst = session.config.stash[measured]
        session.config.workeroutput["measured"] = {entry: {f: float(v) for f, v in row.items()} for entry, row in worst.items()}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    for entry, row in getattr(node, "workeroutput", {}).get("measured", {}).items():
        kept = node.config.stash[measured].setdefault(entry, {})
        kept.update({fmt: max(kept.get(fmt, 0.0), value) for fmt, value in row.items()})


def pytest_terminal_summary(terminalreporter, config):
    if config.stash[measured]:
        terminalreporter.section("accuracy: worst error (promised)")
        terminalreporter.write(accuracy.markdown(config.stash[measured]))


@pytest.fixture
def record_accuracy(request):
    """record_accuracy(fmt, {entry: worst}) puts numbers into the table printed at the end."""
    return lambda fmt, worst: accuracy.merge(request.config.stash[measured], fmt, worst)


@pytest.fixture(autouse=True)
def _settings_restored():
    isa, threads = _core.get_isa(), se.get_num_threads()
    yield
    _core.set_isa(isa)
    se.set_num_threads(threads)
