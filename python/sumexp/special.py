"""scipy.special's softmax, log_softmax and logsumexp: the same signatures, dtypes and conventions.

    from sumexp import special          # in place of: from scipy import special

Real floating dtypes up to 64 bits are computed by sumexp, within its bounds; complex numbers and
longdouble, which have no kernels, by the NumPy formulas at the end of this file. Where SciPy 1.17 departs
from its own conventions, this module keeps to them:

- an empty array gives an empty softmax (SciPy raises);
- small and unsigned integers do not wrap around (SciPy's softmax([0, 1], uint8) is [nan, 0]);
- log_softmax of a row with +inf, or of -inf alone, is NaN as softmax is (SciPy: a mixture);
- a weight of 0 removes its element, and a negative sum is NaN, also where the result is not finite (SciPy
  takes it from the unscaled sum then: 0 * inf and inf - inf are NaN, exp(-1e4) is 0).
"""

import operator

import numpy as np

from . import _core
from ._arrays import is_foreign, is_torch

__all__ = ["log_softmax", "logsumexp", "softmax"]

KERNELS = "efd"  # float16, float32, float64: straight to the kernels
LARGEST_WEIGHT = 1e200  # that the kernel for float64 takes


def softmax(x, axis=None):
    """exp(x) / sum(exp(x)), as scipy.special.softmax.

    Parameters
    ----------
    x : array_like
    axis : int, tuple of ints or None
        The axes to normalise over; None, the default, is all of them.

    Returns
    -------
    An array of x's shape, within 2 ulp; see sumexp.softmax.
    """
    if type(x) is not np.ndarray or x.dtype.char not in KERNELS:
        x = _prepare(x)
        if not _has_kernel(x):
            return _generic_softmax(x, axis)
    return _core.softmax(x, axis)


def log_softmax(x, axis=None):
    """log(softmax(x)), as scipy.special.log_softmax.

    Parameters and result are those of softmax; see sumexp.log_softmax for the bound.
    """
    if type(x) is not np.ndarray or x.dtype.char not in KERNELS:
        x = _prepare(x)
        if not _has_kernel(x):
            return _generic_log_softmax(x, axis)
    return _core.log_softmax(x, axis)


def logsumexp(a, axis=None, b=None, keepdims=False, return_sign=False):
    """log(sum(b * exp(a))), as scipy.special.logsumexp.

    Parameters
    ----------
    a : array_like
        Real or complex.
    axis : int, tuple of ints or None
        The axes to sum over; None, the default, is all of them.
    b : array_like, broadcastable with a
        Weights. An element of weight 0 adds nothing, whatever a is there.
    keepdims : bool
        Keep the reduced axes with length 1.
    return_sign : bool
        Return (log(abs(sum)), sign of the sum); the sign of a complex sum is its phase factor.

    Returns
    -------
    The result, and with return_sign the pair. Without it, a negative real sum gives NaN.
    """
    if any(is_torch(v) or is_foreign(v) for v in (a, b)):
        return _core.logsumexp(a, axis, b=b, keepdims=keepdims, return_sign=return_sign)
    for name, value in (("a", a), ("b", b)):
        if isinstance(value, np.ma.MaskedArray) or (name == "a" and value is None):
            raise TypeError(f"logsumexp: {name} is a {type(value).__name__}, accepted: an array_like of numbers")
    # SciPy's promotion: among the arguments, with Python numbers weak, and at least to the default float.
    dtype = np.result_type(*(v if isinstance(v, (int, float, complex)) else np.asarray(v)
                             for v in (a, b, 1.0) if v is not None))
    a = np.atleast_1d(np.asarray(a, dtype))
    if b is not None:
        b = np.atleast_1d(np.asarray(b, dtype))
    if _has_kernel(a) and (b is None or (np.abs(b) <= min(LARGEST_WEIGHT, float(np.finfo(b.dtype).max))).all()):
        result = _core.logsumexp(a, axis, b=b, keepdims=keepdims, return_sign=return_sign)
    else:
        result = _generic_logsumexp(a, b, axis, keepdims, return_sign)
    if return_sign and a.dtype.kind == "f" and (a.size == 0 or (b is not None and b.size == 0)):
        return result[0], np.sign(result[0])  # SciPy's sign of an empty sum: that of -inf
    return result


def _prepare(x):
    """x with SciPy's result dtype: integers as np.exp promotes them."""
    if type(x) is not np.ndarray and (is_torch(x) or is_foreign(x)):
        return x
    x = x if isinstance(x, np.ndarray) else np.asarray(x)
    if x.dtype.kind in "iu":
        return x.astype({1: np.float16, 2: np.float32}.get(x.dtype.itemsize, np.float64))
    return x


def _has_kernel(x):
    return not (isinstance(x, np.ndarray) and (x.dtype.kind == "c" or (x.dtype.kind == "f" and x.dtype.itemsize > 8)))


def _generic_softmax(x, axis):
    if x.size == 0:
        return np.exp(x)
    with np.errstate(invalid="ignore"):
        e = np.exp(x - np.max(x, axis=axis, keepdims=True))
        return e / np.sum(e, axis=axis, keepdims=True)


def _generic_log_softmax(x, axis):
    if x.size == 0:
        return np.exp(x)
    with np.errstate(divide="ignore", invalid="ignore"):
        shifted = x - np.max(x, axis=axis, keepdims=True)
        return shifted - np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True))


def _generic_logsumexp(a, b, axis, keepdims, return_sign):
    """log sum b exp(a) in NumPy: for complex and longdouble, which have no kernels, and for weights too large for one.

    The element with the largest real part is factored out and kept out of the sum of the others:
    log|sum| = Re top + log|w| + log|1 + rest|, with w its weight.
    """
    b = np.ones(1, a.dtype) if b is None else b
    a, b = np.broadcast_arrays(a, b)
    axis = tuple(range(a.ndim)) if axis is None else axis if isinstance(axis, tuple) else operator.index(axis)
    axes = np.lib.array_utils.normalize_axis_tuple(axis, a.ndim)
    shape = [1 if d in axes else n for d, n in enumerate(a.shape)]
    kept = [d for d in range(a.ndim) if d not in axes]
    row_shape = [a.shape[d] for d in kept]
    if a.size:
        log_abs, phase = _complex_rows(*(np.transpose(v, kept + list(axes)).reshape(row_shape + [-1]) for v in (a, b)))
    else:
        log_abs, phase = np.full(row_shape, -np.inf, a.real.dtype), np.zeros(row_shape, a.dtype)

    if return_sign:
        results = [log_abs, phase if a.dtype.kind == "c" else phase.real]
    elif a.dtype.kind == "c":
        angle = np.angle(phase)
        results = [log_abs + 1j * np.where(angle == -np.pi, np.pi, angle)]  # the branch (-pi, pi]
    else:
        results = [np.where(phase.real < 0, np.nan, log_abs).astype(a.dtype)]
    results = [r.reshape(shape) if keepdims else r[()] for r in results]
    return tuple(results) if return_sign else results[0]


def _complex_rows(a, b):
    """(log|sum|, sum/|sum|) of sum b exp(a) over the last axis of two arrays of one shape."""
    with np.errstate(all="ignore"):
        direct = np.sum(b * np.exp(a), axis=-1)  # right where the result is not finite
        a = np.where(b == 0, -np.inf, a)
        first = np.argmax(a.real, axis=-1)[..., None]
        top, weight = np.take_along_axis(a, first, -1), np.take_along_axis(b, first, -1)
        terms = b / weight * np.exp(a - top)
        np.put_along_axis(terms, first, 0, -1)
        terms[b == 0] = 0
        rest = np.sum(terms, axis=-1)
        x, y = rest.real, rest.imag
        # NumPy's complex log1p loses small arguments: |1 + rest|^2 - 1 = x (x + 2) + y^2.
        log1p = np.where(np.abs(rest) < 0.5, np.log1p(x * (x + 2) + y * y) / 2, np.log(np.abs(1 + rest)))
        top, weight = top[..., 0], weight[..., 0]
        log_abs = top.real + np.log(np.abs(weight)) + log1p
        total = (1 + rest) * weight * np.exp(1j * top.imag)
        finite = np.isfinite(log_abs) & np.isfinite(total)
        log_abs = np.where(finite, log_abs, np.log(np.abs(direct)))
        return log_abs, np.sign(np.where(finite, total, direct))
