"""Exact values for the tests of the log domain, and errors in ulp."""

import mpmath
import numpy as np

mpmath.mp.prec = 400
mpf = mpmath.mpf
DTYPES = ["float16", "bfloat16", "float32", "float64"]


def dtype_of(name):
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, name) if name == "bfloat16" else name)


def exact(x):
    return mpf(float(x))


def ulp(value, dtype):
    """The distance between numbers of dtype next to `value`."""
    digits, lowest = {"float16": (10, -14), "bfloat16": (7, -126), "float32": (23, -126), "float64": (52, -1022)}[dtype.name]
    size = abs(value)
    exponent = max(mpmath.frexp(size)[1] - 1 if size else lowest, lowest)
    return mpf(2) ** (exponent - digits)


def errors(results, expected, dtype, scale=None):
    """|result - expected| in ulp of the scale, or of what is expected: the largest. What is not finite must be equal."""
    worst = mpf(0)
    for i, (y, e) in enumerate(zip(np.ravel(results), expected)):
        y = float(y)
        if not mpmath.isfinite(e):
            assert y == float(e) or (y != y and mpmath.isnan(e)), (i, y, e)
            continue
        worst = max(worst, abs(mpf(y) - e) / ulp(e if scale is None else scale[i], dtype))
    return float(worst)
