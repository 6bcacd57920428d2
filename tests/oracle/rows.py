"""Families of rows on which implementations go wrong. Each is a function (rng, fmt, rows, n) -> (rows, n) array
of fmt's dtype, or None where the format cannot hold it. FAMILIES lists them by name."""

import ml_dtypes
import numpy as np

FAMILIES = {}


def family(name):
    def register(function):
        def make(rng, fmt, rows, n):
            values = function(rng, fmt, rows, n)
            return None if values is None else np.ascontiguousarray(cast(values, fmt))

        FAMILIES[name] = make
        return function

    return register


def cast(values, fmt):
    """To fmt's dtype, finite values clipped to its range."""
    values = np.asarray(values, np.float64)
    values = np.where(np.isinf(values), values, np.clip(values, -fmt.largest, fmt.largest))
    return values.astype(np.float32).astype(fmt.dtype) if fmt.dtype == ml_dtypes.bfloat16 else values.astype(fmt.dtype)


for _scale in (1, 4, 100):
    family(f"normal x {_scale}")(lambda rng, fmt, rows, n, s=_scale: rng.standard_normal((rows, n)) * s)


@family("uniform +-1e4")
def _(rng, fmt, rows, n):
    return rng.uniform(-1e4, 1e4, (rows, n))


@family("offset 1e6")
def _(rng, fmt, rows, n):
    return None if fmt.name == "f16" else rng.standard_normal((rows, n)) * 4 + 1e6


@family("offset -1e6")
def _(rng, fmt, rows, n):
    return None if fmt.name == "f16" else rng.standard_normal((rows, n)) * 4 - 1e6


@family("offset +-1e30")
def _(rng, fmt, rows, n):
    if fmt.name == "f16":
        return None
    sign = np.where(np.arange(rows) % 2, -1.0, 1.0)[:, None]
    return sign * 1e30 * (1 + rng.integers(-2, 3, (rows, n)) * 2.0 ** -(fmt.digits - 1))


@family("offsets 2^5 to 2^60")
def _(rng, fmt, rows, n):
    # around every place where an implementation may change its way of reducing
    power = 2.0 ** rng.integers(5, 16 if fmt.name == "f16" else 61, (rows, 1))
    return np.where(rng.integers(0, 2, (rows, 1)), 1, -1) * power + rng.standard_normal((rows, n)) * 3


def _winner(rng, rows, n, others, top):
    x = np.broadcast_to(others, (rows, n)).copy()
    x[np.arange(rows), rng.integers(0, n, rows)] = top
    return x


@family("one winner, margin 1 to 200")
def _(rng, fmt, rows, n):
    # the maximum is 0: what is left of the result is the others' sum alone
    margin = rng.uniform(1, 200, (rows, 1))
    return _winner(rng, rows, n, -margin + 0.01 * rng.standard_normal((rows, n)), 0.0)


@family("one winner at 7.3, margin 1 to 200")
def _(rng, fmt, rows, n):
    margin = rng.uniform(1, 200, (rows, 1))
    return _winner(rng, rows, n, 7.3 - margin + 0.01 * rng.standard_normal((rows, n)), 7.3)


@family("one winner, exact margin")
def _(rng, fmt, rows, n):
    margin = 1 + np.arange(rows)[:, None] % 200
    return _winner(rng, rows, n, -np.broadcast_to(margin, (rows, n)).astype(float), 0.0)


@family("one winner per chunk")
def _(rng, fmt, rows, n):
    x = rng.standard_normal((rows, n)) * 0.5 - rng.uniform(8, 60, (rows, 1))
    x[:, :: fmt.chunk] = -rng.integers(0, 40, x[:, :: fmt.chunk].shape)
    return x


@family("ties")
def _(rng, fmt, rows, n):
    return rng.integers(-3, 4, (rows, n)) * rng.choice([0.25, 1, 17.5], (rows, 1))


@family("all equal")
def _(rng, fmt, rows, n):
    return np.broadcast_to(rng.standard_normal((rows, 1)) * 10, (rows, n))


@family("two winners")
def _(rng, fmt, rows, n):
    x = rng.standard_normal((rows, n)) - rng.uniform(5, 90, (rows, 1))
    x[:, 0] = x[:, -1] = 3.25
    return x


@family("down to underflow")
def _(rng, fmt, rows, n):
    floor = max(fmt.underflow, -800.0) if fmt.itemsize == 8 else -105.0
    return rng.permuted(np.broadcast_to(np.linspace(0, floor, n), (rows, n)), axis=1)


@family("past underflow")
def _(rng, fmt, rows, n):
    return rng.uniform(-2000.0 if fmt.itemsize == 8 else -250.0, 0, (rows, n))


@family("around underflow")
def _(rng, fmt, rows, n):
    lowest = fmt.underflow if fmt.itemsize >= 4 else -103.3
    return _winner(rng, rows, n, lowest + rng.uniform(-3, 20, (rows, n)), rng.uniform(-1, 1, rows))


@family("chunks far apart")
def _(rng, fmt, rows, n):
    step = 300.0 if fmt.itemsize == 8 else 45.0
    level = np.arange(n) // fmt.chunk % 4
    return rng.standard_normal((rows, n)) * 4 - step * (level + rng.integers(0, 2, (rows, 1))) % (4 * step)


@family("normalised log-probabilities")
def _(rng, fmt, rows, n):
    x = rng.standard_normal((rows, n)) * rng.choice([1, 4, 30], (rows, 1))
    x -= x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@family("tiny values")
def _(rng, fmt, rows, n):
    return rng.standard_normal((rows, n)) * 2.0 ** rng.integers(-40, 1, (rows, n)) * 2.0 ** rng.integers(-1000, 1, (rows, 1))


@family("multiples of ln 2 / 2")
def _(rng, fmt, rows, n):
    # where rint(x log2 e) changes, and where the reduced argument is next to 0
    steps = rng.integers(-40, 41, (rows, n)) * (np.log(2) / 2)
    return steps * (1 + rng.integers(-2, 3, (rows, n)) * 2.0 ** -(fmt.digits - 1))


@family("whole range")
def _(rng, fmt, rows, n):
    exponent = rng.uniform(-20, np.log2(fmt.largest), (rows, n))
    return np.where(rng.integers(0, 2, (rows, n)), 1, -1) * 2.0**exponent


@family("with -inf")
def _(rng, fmt, rows, n):
    x = cast(rng.standard_normal((rows, n)) * 5, fmt).astype(np.float64)
    x[rng.random((rows, n)) < 0.3] = -np.inf
    x[:, n // 2] = 1.5
    return x
