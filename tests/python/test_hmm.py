"""demo hmm: forward and backward by logmatmulexp, against sums over all paths and hmmlearn."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from sumexp import demo_hmm


def small(states=3, symbols=3, seed=0):
    random = np.random.default_rng(seed)
    A, B = random.dirichlet(np.ones(states), states), random.dirichlet(np.ones(symbols), states)
    A[0, 1], B[2, 0] = 0, 0  # what cannot happen
    return random.dirichlet(np.ones(states)), A / A.sum(1, keepdims=True), B / B.sum(1, keepdims=True)


def test_all_paths():
    start, A, B = small()
    x = np.random.default_rng(1).integers(0, 3, (4, 6))
    lengths = np.array([6, 6, 6, 4])
    log_p, log_posterior = demo_hmm.posteriors(x, lengths, start, A, B)
    for line, n, found, states in zip(x, lengths, log_p, log_posterior):
        total, at = 0.0, np.zeros((n, 3))
        for path in itertools.product(range(3), repeat=n):
            p = start[path[0]] * np.prod(A[path[:-1], path[1:]]) * np.prod(B[path, line[:n]])
            total += p
            at[np.arange(n), path] += p
        np.testing.assert_allclose(found, np.log(total), rtol=1e-14)
        np.testing.assert_allclose(np.exp(states[:n]), at / total, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("implementation", ["log", "scaling"])
@pytest.mark.filterwarnings("ignore")
def test_hmmlearn(implementation):
    pytest.importorskip("hmmlearn", reason="hmmlearn is not installed")
    pytest.importorskip("sklearn")
    learnt, meant = demo_hmm.texts()
    start, A, B = demo_hmm.model(learnt)
    hit = demo_hmm.typed(meant[:2001], B)
    x, lengths = demo_hmm.lines(hit)
    log_p, log_posterior = demo_hmm.posteriors(x, lengths, start, A, B)
    other, states = demo_hmm.peer(implementation, start, A, B).score_samples(hit[:, None], lengths)
    assert abs(np.sum(log_p) - other) <= 1e-13 * abs(other)
    real = np.arange(x.shape[1]) < lengths[:, None]
    np.testing.assert_allclose(np.exp(log_posterior[real]), states, atol=1e-12)


def test_command():
    pytest.importorskip("sklearn")
    run = subprocess.run([sys.executable, "-m", "sumexp", "demo", "hmm"], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert "log-likelihood" in run.stdout and "letters right" in run.stdout
    assert subprocess.run([sys.executable, "-m", "sumexp", "demo", "hmm", "x"], capture_output=True).returncode == 2
