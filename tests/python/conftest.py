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
