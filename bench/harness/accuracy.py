"""Errors in ulp on adversarial rows, for this library and its peers alike.

The oracle computes in numpy.longdouble (64 or 113 bits), where x - m is carried as an unrounded pair, so that
float64 results can be judged too. An error is |got - exact| over the spacing of the dtype at the exact value,
subnormal spacing included, so that 0.5 is a correctly rounded result. logsumexp is counted in ulp of
max(|result|, |maximum|), which is what a sum whose terms cancel the maximum can be held to. Results that are
NaN, infinite or zero where the exact one is not count as such errors: "inf" is infinitely many ulp.
"""

import numpy as np

from . import cells

OPS = ("softmax", "log_softmax", "logsumexp")
PEERS = ("sumexp", "numpy", "scipy", "torch", "onnxruntime", "jax", "numba")
LONG = np.longdouble


def rows(dtype):
    """{name: row}: what softmax meets in practice, and what breaks it."""
    rng = np.random.default_rng(7)
    item = cells.ITEM[dtype]
    deep = {"float64": 740, "float16": 16}.get(dtype, 100)  # down to subnormal probabilities
    margin, loser = (9, -9.0) if dtype == "float16" else (30, -50.0)  # e^loser is a normal number
    huge = 6e4 if dtype == "float16" else 1e30
    made = {
        "logits of a classifier, 4 N(0, 1)": 4 * rng.standard_normal(4096),
        "logits in (-100, 100)": rng.uniform(-100, 100, 1000),
        "large offset": 5000 + rng.uniform(-8, 8, 1000) if item > 2 else 500 + rng.uniform(-8, 8, 1000),
        "confident, margin 17": np.r_[17.0, np.zeros(9)],
        f"confident, margin {margin} over 1000": np.r_[rng.uniform(-1, 1, 999), margin],
        f"maximum 0 and {loser:g}": np.array([0.0, loser]),
        "subnormal probabilities": np.r_[0.0, -rng.uniform(0.85 * deep, deep, 500)],
        "all equal, 65536": np.full(65536, 3.0),
        "long, a million in (0, 1)": rng.uniform(0, 1, 1_000_000),
        "one huge": np.r_[huge, rng.uniform(-1, 1, 99)],
    }
    return {name: row.astype(cells.numpy_dtype(dtype)) for name, row in made.items()}


def oracle(op, x):
    """The exact results for one row, in longdouble."""
    x = x.astype(np.float64 if x.dtype != np.float64 else x.dtype).astype(LONG)
    m = x.max()
    d = x - m
    back = d - x  # d + rest is x - m without rounding (two-sum)
    rest = (x - (d - back)) - (m + back)
    e = np.exp(d) * (1 + rest)
    top = int(np.argmax(x))
    others = np.sum(np.delete(e, top))  # the maximum's own term is 1: kept out, so that log1p sees the rest
    if op == "softmax":
        return e / (1 + others)
    log_sum = np.log1p(others)
    return m + log_sum if op == "logsumexp" else (d - log_sum) + rest


def spacing(exact, dtype):
    bits, low = {"float32": (24, -149), "float64": (53, -1074), "float16": (11, -24), "bfloat16": (8, -133)}[dtype]
    _, exponent = np.frexp(exact)
    exponent = np.where(exact == 0, low, exponent - bits)  # frexp has 0 for 0
    return np.ldexp(LONG(1), np.maximum(exponent, low))


def errors(op, x, got, dtype):
    exact = np.atleast_1d(oracle(op, x))
    size = np.abs(exact)
    if op == "logsumexp":
        size = np.maximum(size, np.abs(LONG(np.float64(x.max()))))
    wide = np.atleast_1d(np.asarray(got)).astype(np.float64).astype(LONG)
    with np.errstate(invalid="ignore"):
        error = np.abs(wide - exact) / spacing(size, dtype)
    return np.where(np.isfinite(wide), error, np.inf).astype(np.float64)


def measure(peer, op, dtype):
    """{"max": ulp, "mean": ulp over rows of the mean over a row, "worst": name of the row, "by_row": {name: max}}"""
    if np.finfo(LONG).nmant < 63 and dtype == "float64":
        from .peers import Unsupported

        raise Unsupported("no long double on this platform to judge float64 by")
    found, means = {}, []
    for name, row in rows(dtype).items():
        x = cells.empty((1, row.size), dtype)
        x[0] = row
        cell = cells.Cell(op, dtype, "last", 1, row.size, 1)
        out = cells.empty((1,) if op == "logsumexp" else (1, row.size), dtype)
        call = peer.build(cell, (x,), out)
        with np.errstate(all="ignore"):
            result = call()
        got = np.asarray(getattr(call, "result", result)).reshape(-1)
        error = errors(op, row, got, dtype)
        found[name] = float(error.max())
        means.append(float(error.mean()))
    worst = max(found, key=found.get)
    return {"max": found[worst], "mean": float(np.mean(means)), "worst": worst, "by_row": found}
