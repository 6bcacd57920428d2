"""python -m sumexp demo hmm: a hidden Markov model reads text with typing errors, in the log domain.

The text is real: descriptions of data sets that come with scikit-learn. Half of it teaches which letter follows which; the
other half is typed by a hand that hits a neighbouring key one time in five. The hidden states are the letters that were meant.
Forward and backward messages of all lines go together, one product of matrices in the log domain a step:

    alpha_t = logmatmulexp(alpha_{t-1}, log A) + log B[:, x_t]          (lines, states) x (states, states)
    beta_t  = logmatmulexp(log B[:, x_{t+1}] + beta_{t+1}, log A^T)
    log p(x) = logsumexp(alpha_T),   p(state at t | x) = softmax(alpha_t + beta_t)
"""

import argparse
import re
import time

import numpy as np

from . import log_softmax, logmatmulexp, logsumexp

LETTERS = "abcdefghijklmnopqrstuvwxyz "
KEYS = ["qwertyuiop", "asdfghjkl", "zxcvbnm"]
LINE = 40
MISSED = 0.2  # how often a neighbouring key is hit
MISSING = "scikit-learn is not installed: pip install 'sumexp[demo]'"


def texts():
    """(what the model learns from, what is typed), letters as numbers."""
    from sklearn import datasets

    names = ["breast_cancer", "diabetes", "digits", "iris", "linnerud", "wine"]
    pages = [re.sub("[^a-z]+", " ", getattr(datasets, f"load_{n}")().DESCR.lower()) for n in names]
    codes = [np.array([LETTERS.index(c) for c in page]) for page in pages]
    return np.concatenate(codes[::2]), np.concatenate(codes[1::2])


def neighbours():
    """P(key that is hit | letter that is meant), (27, 27): zeros but for a letter's own key and those around it."""
    place = {c: (row, column + 0.5 * row) for row, keys in enumerate(KEYS) for column, c in enumerate(keys)}
    B = np.zeros((27, 27))
    for i, c in enumerate(LETTERS):
        near = [j for j, d in enumerate(LETTERS) if c != d and {c, d} <= set(place) and _distance(place[c], place[d]) < 1.2]
        B[i, near] = MISSED / max(len(near), 1)
        B[i, i] = 1 - MISSED * bool(near)
    return B


def _distance(a, b):
    return np.hypot(a[0] - b[0], a[1] - b[1])


def model(text):
    """(start, transitions, emissions), from the pairs of letters in a text."""
    A = np.full((27, 27), 0.05)
    np.add.at(A, (text[:-1], text[1:]), 1.0)
    start = np.bincount(text, minlength=27) + 0.05
    return start / start.sum(), A / A.sum(axis=1, keepdims=True), neighbours()


def typed(text, B, seed=0):
    """What is hit where `text` is meant."""
    random = np.random.default_rng(seed)
    return (random.random(len(text))[:, None] > np.cumsum(B, axis=1)[text]).sum(axis=1).clip(max=26)


def lines(x):
    """((lines, LINE), lengths): the last is filled up with spaces."""
    full = np.full(-(-len(x) // LINE) * LINE, 26)
    full[: len(x)] = x
    lengths = np.full(len(full) // LINE, LINE)
    lengths[-1] = len(x) - LINE * (len(lengths) - 1)
    return full.reshape(-1, LINE), lengths


def posteriors(x, lengths, start, A, B):
    """(log p of each line, log p(state | line) (lines, LINE, states)) of lines of observations, by forward and backward."""
    with np.errstate(divide="ignore"):
        log_start, log_A, log_B = np.log(start), np.log(A), np.log(B)
    seen = log_B.T[x.T]  # (LINE, lines, states): log p(observation | state)
    alpha, beta = np.empty_like(seen), np.zeros_like(seen)
    alpha[0] = log_start + seen[0]
    for t in range(1, len(seen)):
        logmatmulexp(alpha[t - 1], log_A, out=alpha[t])
        alpha[t] += seen[t]
    for t in range(len(seen) - 2, -1, -1):
        logmatmulexp(seen[t + 1] + beta[t + 1], log_A.T, out=beta[t])
        beta[t, t + 1 >= lengths] = 0.0  # a line has ended there
    ends = alpha[lengths - 1, np.arange(len(lengths))]
    return logsumexp(ends, axis=-1), log_softmax(alpha + beta).transpose(1, 0, 2)


def peer(implementation, start, A, B):
    """hmmlearn's model of the same numbers."""
    from hmmlearn import hmm

    made = hmm.CategoricalHMM(n_components=27, n_features=27, implementation=implementation)
    made.startprob_, made.transmat_, made.emissionprob_ = start, A, B
    return made


def timed(call, rounds=5):
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - begin)
    return result, sorted(times)[rounds // 2]


def main(argv):
    parser = argparse.ArgumentParser(prog="python -m sumexp demo hmm", description="read text with typing errors")
    parser.parse_args(argv)
    try:
        learnt, meant = texts()
    except ImportError:
        print(MISSING)
        return 1
    start, A, B = model(learnt)
    hit = typed(meant, B)
    x, lengths = lines(hit)
    (log_p, log_posterior), seconds = timed(lambda: posteriors(x, lengths, start, A, B))
    total = float(np.sum(log_p))
    real = np.arange(LINE) < lengths[:, None]
    read = log_posterior.argmax(axis=-1)[real]

    print(f"{len(meant):,} letters of scikit-learn's descriptions in {len(x)} lines, one key in five missed; 27 states")
    print(f"  sumexp              log-likelihood {total!r}   {1e3 * seconds:7.2f} ms, forward and backward")
    try:
        import hmmlearn
    except ImportError:
        print("  hmmlearn is not installed (pip install hmmlearn): nothing to compare with")
    else:
        for implementation in ("log", "scaling"):
            made = peer(implementation, start, A, B)
            with np.errstate(divide="ignore"):
                (other, states), took = timed(lambda: made.score_samples(hit[:, None], lengths))
            apart = float(np.abs(states - np.exp(log_posterior[real])).max())
            print(
                f"  hmmlearn {hmmlearn.__version__:5} {implementation:7} log-likelihood {float(other)!r}   "
                f"{1e3 * took:7.2f} ms, {took / seconds:.1f} times sumexp's; posteriors within {apart:.0e}"
            )
    print(f"  letters right: {(hit == meant).mean():.1%} as typed, {(read == meant).mean():.1%} as read")
    for name, codes in (("typed", hit), ("read", read), ("meant", meant)):
        print(f"  {name:5} | {''.join(LETTERS[c] for c in codes[200:300])}")
    return 0
