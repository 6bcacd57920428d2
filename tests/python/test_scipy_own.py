"""SciPy's own tests of softmax, log_softmax and logsumexp, run with sumexp.special's functions in place of SciPy's.

SciPy installs them. Here they run on NumPy arrays, and in a process of their own on the other array libraries that are
here and that SciPy tests with: SciPy wants to be told of those before it is imported.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sumexp import special

scipy_tests = pytest.importorskip(
    "scipy.special.tests.test_logsumexp", reason="this SciPy was installed without its tests", exc_type=ImportError
)
for name in special.__all__:
    setattr(scipy_tests, name, getattr(special, name))

ALL_LIBRARIES = os.environ.get("SCIPY_ARRAY_API") == "1"
if ALL_LIBRARIES:
    from scipy.conftest import devices, xp
else:

    @pytest.fixture
    def xp():
        from scipy._lib._array_api import np_compat

        return np_compat

    @pytest.fixture
    def devices():
        return ["cpu", None]


# SciPy's tests that this module fails on purpose, {(class, test): reason}. There are none.
DEPARTURES = {}


def adopted(cls):
    """A class of SciPy's tests as one of this file, its departures marked."""

    def marked(name, test):
        reason = DEPARTURES.get((cls.__name__, name))
        return pytest.mark.xfail(reason=reason, strict=True)(test) if reason else test

    tests = {n: marked(n, getattr(cls, n)) for n in dir(cls) if n.startswith("test_")}
    return type(cls.__name__, (cls,), {**tests, "__module__": __name__})


TestLogSumExp = adopted(scipy_tests.TestLogSumExp)
TestSoftmax = adopted(scipy_tests.TestSoftmax)
TestLogSoftmax = adopted(scipy_tests.TestLogSoftmax)


@pytest.mark.skipif(ALL_LIBRARIES, reason="this is that process")
def test_in_other_libraries():
    pytest.importorskip("array_api_strict")
    # Dask's arrays become NumPy's in sumexp.special; sumexp.dask has functions for them.
    command = [sys.executable, "-m", "pytest", "-q", "-k", "not dask", "-p", "no:cacheprovider"]
    command += ["-W", "ignore::pytest.PytestUnknownMarkWarning"]
    done = subprocess.run(
        [*command, str(Path(__file__))], env={**os.environ, "SCIPY_ARRAY_API": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-5000:]
