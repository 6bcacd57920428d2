"""softmax, log_softmax and logsumexp in the operations of the array API standard, in any library that has them.

For what has no kernels: complex numbers and longdouble (sumexp.special serves them), and weights too large for one.
"""

import functools
import sys

import numpy as np

from ._devices import is_foreign, is_torch
from ._row_shapes import check_axes, row_shape

# Weights outside of these go into the exponent: the quotient of two others can be formed in every dtype.
SMALLEST_WEIGHT, LARGEST_WEIGHT = 2.0**-30, 2.0**30


class _Torch:
    """What torch calls otherwise than the standard does."""

    def __init__(self, torch):
        self._torch = torch
        self.broadcast_arrays, self.permute_dims, self.sign = torch.broadcast_tensors, torch.permute, torch.sgn
        self.__name__ = "torch"
        self.max, self.min, self.result_type = torch.amax, torch.amin, torch.promote_types

    def __getattr__(self, name):
        return getattr(self._torch, name)


def is_complex(value):
    """Whether an array of any library, or a number, is complex."""
    return isinstance(value, complex) or "complex" in str(getattr(value, "dtype", ""))


def is_inexact(array):
    return is_complex(array) or "float" in str(array.dtype)


def namespace(value):
    """The array API of an array's library; None where there is no such thing."""
    if is_torch(value):
        return _Torch(sys.modules["torch"])
    if not is_foreign(value):
        return np
    if hasattr(value, "__array_namespace__"):
        return value.__array_namespace__()
    return sys.modules.get("cupy") if type(value).__module__.partition(".")[0] == "cupy" else None


def promoted(xp, *operands):
    """The operands as arrays of one inexact dtype. Python's numbers are of the others' dtype, as far as it has room."""
    first = next(v for v in operands if is_torch(v) or is_foreign(v))
    place = {"device": first.device} if hasattr(first, "device") and xp.__name__ != "cupy" else {}
    weak = [isinstance(v, (int, float, complex)) for v in operands]
    arrays = [v if is_torch(v) or is_foreign(v) else xp.asarray(v, **place) for v in operands]
    strong = [v for v, is_weak in zip(arrays, weak) if not is_weak]
    default = xp.asarray(1.0).dtype
    try:
        dtype = functools.reduce(xp.result_type, [v.dtype for v in strong])
    except TypeError:  # the standard has no common dtype of integers and others
        strong = [v if is_inexact(v) else xp.asarray(v, dtype=default) for v in strong]
        dtype = functools.reduce(xp.result_type, [v.dtype for v in strong])
    if not any(map(is_inexact, strong)):
        dtype = default
    if any(map(is_complex, arrays)):
        dtype = xp.result_type(dtype, xp.complex64)
    return [xp.asarray(v, dtype=dtype) for v in arrays]


def _axes(name, axis, ndim):
    """axis as a tuple of axes counted from 0. A 0-d array takes 0 and -1 too, as NumPy's reductions do."""
    axes = check_axes(name, axis, ndim)
    return axes if ndim else ()


def _shifted(xp, x, axes):
    """x less its largest element: of complex numbers the one of the largest real, then imaginary part."""
    if not is_complex(x):
        return x - xp.max(x, axis=axes, keepdims=True)
    low = xp.full_like(xp.imag(x), -np.inf)
    real = xp.max(xp.real(x), axis=axes, keepdims=True)
    imag = xp.max(xp.where(xp.real(x) == real, xp.imag(x), low), axis=axes, keepdims=True)
    return x - (real + 1j * imag)


def softmax(xp, x, axis):
    axes = _axes("softmax", axis, x.ndim)
    if 0 in x.shape:
        return xp.exp(x)
    with np.errstate(invalid="ignore"):
        if not axes:
            return xp.exp(x - x)
        e = xp.exp(_shifted(xp, x, axes))
        return e / xp.sum(e, axis=axes, keepdims=True)


def log_softmax(xp, x, axis):
    axes = _axes("log_softmax", axis, x.ndim)
    if 0 in x.shape:
        return xp.exp(x)
    with np.errstate(divide="ignore", invalid="ignore"):
        if not axes:
            return x - x
        shifted = _shifted(xp, x, axes)
        return shifted - xp.log(xp.sum(xp.exp(shifted), axis=axes, keepdims=True))


def logsumexp(xp, a, b, axis, keepdims, return_sign):
    """log sum b exp(a), of arrays of one dtype; b may be None."""
    if b is not None:
        a, b = xp.broadcast_arrays(a, b)
    axes = _axes("logsumexp", axis, a.ndim)
    kept = [d for d in range(a.ndim) if d not in axes]
    shape, one_each = row_shape(a.shape, axes), row_shape(a.shape, axes, False)

    def rows(v):
        return None if v is None else xp.reshape(xp.permute_dims(v, (*kept, *axes)), (*one_each, -1))

    if 0 in a.shape:
        zero = xp.sum(xp.reshape(a, (-1,)))  # of the dtype, where the array is
        log_abs = xp.real(zero) if is_complex(a) else zero
        log_abs, phase = log_abs - np.inf + xp.zeros(one_each, dtype=log_abs.dtype), zero + xp.zeros(one_each, dtype=a.dtype)
        log_sum = xp.asarray(log_abs, dtype=a.dtype)
    else:
        log_abs, phase, log_sum = _rows(xp, rows(a), rows(b))
    if return_sign:
        results = [log_abs, phase]
    elif is_complex(a):
        results = [log_sum]
    else:
        results = [xp.where(phase < 0, xp.full_like(log_abs, np.nan), log_abs)]
    results = [xp.reshape(r, shape) if keepdims else r for r in results]
    if xp is np:
        results = [r[()] for r in results]
    return tuple(results) if return_sign else results[0]


def _rows(xp, a, b):
    """(log|sum|, sum/|sum|, log of the sum) of sum b exp(a) over the last axis; the last is None for reals.

    The largest element, w exp(top), is factored out, and kept out of the sum of the others:
    log|sum| = Re top + log|w| + log|1 + rest|. Where an element or a weight is not finite, the sum itself says what
    the result is, by the rules of C99's complex exp and log.
    """
    with np.errstate(all="ignore"):
        is_z = is_complex(a)
        none = xp.zeros_like(a)
        if b is None:
            real = xp.real(a) if is_z else a
            plain_sum = xp.sum(xp.exp(a), axis=-1)
            size, unit, key, used = none, none + 1, real, none == 0
        else:
            used = b != 0
            a = xp.where(used, a, none - np.inf)
            real = xp.real(a) if is_z else a
            plain_sum = xp.sum(xp.where(used, b * xp.exp(a), none), axis=-1)
            magnitude = xp.abs(b)
            moderate = (magnitude >= SMALLEST_WEIGHT) & (magnitude <= LARGEST_WEIGHT)
            log_b = xp.log(xp.where(used, magnitude, magnitude + 1))
            size = xp.where(moderate, xp.zeros_like(log_b), log_b)
            # By a power of two first: 1 / magnitude, which a complex division takes, may overflow or be subnormal.
            power = 2.0 ** (60 if float(xp.finfo(b.dtype).max) < 1e40 else 200)
            lift = xp.where(magnitude < 1, xp.zeros_like(log_b) + power, xp.zeros_like(log_b) + 1 / power)
            unit = xp.where(moderate | ~used, b, b * lift / (magnitude * lift))
            key = real + log_b
        is_first = _first_of(xp, key, a.device if hasattr(a, "device") else None)

        def of_first(v):
            return xp.sum(xp.where(is_first, v, xp.zeros_like(v)), axis=-1, keepdims=True)

        top, top_unit, top_size = of_first(a), of_first(unit), of_first(size)
        terms = unit / top_unit * xp.exp((a - top) + (size - top_size))
        rest = xp.sum(xp.where(is_first | ~used, none, terms), axis=-1)
        top, top_unit, top_size = top[..., 0], top_unit[..., 0], top_size[..., 0]

        magnitude, total = xp.abs(rest), (1 + rest) * top_unit
        if is_z:
            x, y = xp.real(rest), xp.imag(rest)
            # The complex log1p of libraries loses small arguments: |1 + rest|^2 - 1 = x (x + 2) + y^2.
            log1p = xp.where(magnitude < 0.5, xp.log1p(x * (x + 2) + y * y) / 2, xp.log(xp.abs(1 + rest)))
            total = total * xp.exp(1j * xp.imag(top))
            top, top_size = xp.real(top), xp.real(top_size) if is_complex(top_size) else top_size
        else:
            log1p = xp.where(magnitude < 0.5, xp.log1p(rest), xp.log(xp.abs(1 + rest)))
        log_abs = top + xp.log(xp.abs(top_unit)) + top_size + log1p
        finite = xp.isfinite(log_abs) | (xp.isfinite(top) & xp.isfinite(top_size) & ~xp.isnan(log_abs))
        total = xp.where(finite, total, plain_sum)
        if not is_z:
            return xp.where(finite, log_abs, xp.log(xp.abs(plain_sum))), xp.sign(total), None
        log_sum = xp.log(total)
        log_abs = xp.where(finite, log_abs, xp.real(log_sum))
        angle = xp.imag(log_sum)
        phase = xp.where(xp.isfinite(xp.abs(total)), xp.sign(total), xp.exp(1j * angle))
        angle = xp.where(angle == -np.pi, -angle, angle)  # the branch (-pi, pi]
        return log_abs, phase, xp.where(xp.isfinite(angle), log_abs + 1j * angle, log_sum)


def _first_of(xp, key, device):
    """Where the first of the largest is along the last axis, as a mask."""
    n = key.shape[-1]
    known = {} if xp is np or device is None or xp.__name__ == "cupy" else {"device": device}
    place = xp.arange(n, **known)
    is_largest = key == xp.max(key, axis=-1, keepdims=True)
    return place == xp.min(xp.where(is_largest, place, xp.full_like(place, n)), axis=-1, keepdims=True)
