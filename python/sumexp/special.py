"""scipy.special's softmax, log_softmax and logsumexp: the same signatures, dtypes and conventions.

    from sumexp import special          # in place of: from scipy import special

Real floating dtypes up to 64 bits are computed by sumexp, within its bounds; complex numbers and longdouble, which
have no kernels, by the formulas of _array_api.py, in NumPy or in the array library that they come from. Where
SciPy 1.17 departs from its own conventions, this module keeps to them:

- an empty array gives an empty softmax (SciPy raises);
- small and unsigned integers do not wrap around (SciPy's softmax([0, 1], uint8) is [nan, 0]);
- log_softmax of a row with +inf, or of -inf alone, is NaN as softmax is (SciPy: a mixture);
- a weight of 0 removes its element, and a negative sum is NaN, also where the result is not finite (SciPy
  takes it from the unscaled sum then: 0 * inf and inf - inf are NaN, exp(-1e4) is 0);
- a masked array is refused (SciPy takes its data and drops the mask);
- the sign of an infinite complex sum is that of its logarithm, exp(1j * imag) (SciPy: NaN).
"""

import numpy as np

from . import _array_api, _core
from ._array_api import is_complex
from ._arrays import as_array, carrier
from ._devices import is_foreign, is_torch

__all__ = ["log_softmax", "logsumexp", "softmax"]

KERNELS = "efd"  # float16, float32, float64: straight to the kernels


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
            return _generic("softmax", x, axis)
    return _core.softmax(x, axis)


def log_softmax(x, axis=None):
    """log(softmax(x)), as scipy.special.log_softmax.

    Parameters and result are those of softmax; see sumexp.log_softmax for the bound.
    """
    if type(x) is not np.ndarray or x.dtype.char not in KERNELS:
        x = _prepare(x)
        if not _has_kernel(x):
            return _generic("log_softmax", x, axis)
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
        if is_complex(a) or is_complex(b):
            return _foreign_logsumexp(a, b, axis, keepdims, return_sign)
        a, b = _promoted(a, b)
        return _core.logsumexp(a, axis, b=b, keepdims=keepdims, return_sign=return_sign)
    for name, value in (("a", a), ("b", b)):
        if isinstance(value, np.ma.MaskedArray) or (name == "a" and value is None):
            raise TypeError(f"logsumexp: {name} is a {type(value).__name__}, accepted: an array_like of numbers")
    a, b = (v if v is None or isinstance(v, (int, float, complex)) else _numbers(n, v) for n, v in (("a", a), ("b", b)))
    # SciPy's promotion: among the arguments, with Python numbers weak, and at least to the default float.
    dtype = np.result_type(*(v for v in (a, b, 1.0) if v is not None))
    a = np.atleast_1d(np.asarray(a, dtype))
    if b is not None:
        b = np.atleast_1d(np.asarray(b, dtype))
    if _has_kernel(a):
        result = _core.logsumexp(a, axis, b=b, keepdims=keepdims, return_sign=return_sign)
    else:
        result = _array_api.logsumexp(np, a, b, axis, keepdims, return_sign)
    if return_sign and a.dtype.kind == "f" and (a.size == 0 or (b is not None and b.size == 0)):
        return result[0], np.sign(result[0])  # SciPy's sign of an empty sum: that of -inf
    return result


def _numbers(argument, value):
    array = as_array("logsumexp", argument, value)
    if array.dtype.kind not in "biufc" and array.dtype.name != "bfloat16":
        raise TypeError(f"logsumexp: {argument} has dtype {array.dtype}, accepted: real and complex numbers")
    return array


def _prepare(x):
    """x with SciPy's result dtype: integers as np.exp promotes them."""
    if type(x) is not np.ndarray and (is_torch(x) or is_foreign(x)):
        return x
    x = x if isinstance(x, np.ndarray) else np.asarray(x)
    if x.dtype.kind in "iu":
        return x.astype({1: np.float16, 2: np.float32}.get(x.dtype.itemsize, np.float64))
    return x


def _has_kernel(x):
    if not isinstance(x, np.ndarray):
        return not is_complex(x)
    return x.dtype.kind != "c" and (x.dtype.kind != "f" or x.dtype.itemsize <= 8)


def _generic(name, x, axis):
    xp = _array_api.namespace(x)
    if xp is None:  # a library that lends its memory and has no functions of the standard
        return carrier(x)(_generic(name, np.from_dlpack(x), axis))
    result = getattr(_array_api, name)(xp, x, axis)
    return result[()] if xp is np else result


def _promoted(a, b):
    """Real arrays of another library with its own common dtype: jax's of float32 and int32 is float32."""
    if b is None or any(map(is_torch, (a, b))) or getattr(a, "dtype", None) == getattr(b, "dtype", None):
        return a, b
    xp = _array_api.namespace(a if is_foreign(a) else b)
    return (a, b) if xp is None else _array_api.promoted(xp, a, b)


def _foreign_logsumexp(a, b, axis, keepdims, return_sign):
    main = a if is_torch(a) or is_foreign(a) else b
    xp = _array_api.namespace(main)
    if xp is None:
        home = carrier(main)
        a, b = (np.from_dlpack(v) if is_foreign(v) else v for v in (a, b))
        result = logsumexp(a, axis, b, keepdims, return_sign)
        return tuple(map(home, result)) if return_sign else home(result)
    a, b = _array_api.promoted(xp, a, b) if b is not None else (*_array_api.promoted(xp, a), None)
    a, b = (xp.reshape(v, (1,)) if v is not None and v.ndim == 0 else v for v in (a, b))
    return _array_api.logsumexp(xp, a, b, axis, keepdims, return_sign)
