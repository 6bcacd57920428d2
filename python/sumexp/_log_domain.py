"""Functions of the log domain on NumPy arrays: elementwise ones, running sums, means, and derivatives of sums with weights.

The kernels are csrc/cpu/log_domain; csrc/numerics/README.md derives their errors.
"""

import numpy as np

from . import _arrays, _core
from ._broadcast import summed_to
from ._devices import is_torch
from ._operations import LOG_DOMAIN as OPS
from ._row_shapes import check_axes, check_axis, row_shape


def _for_torch(function, *values):
    """The function of that name for tensors, where there is one among the values."""
    if not any(map(is_torch, values)):
        return None
    from .torch import _log_domain

    return getattr(_log_domain, "numpy_" + function)


def _broadcast(function, **arrays):
    values = [*arrays.values()]
    if all(a.shape == values[0].shape for a in values):
        return values
    try:
        return np.broadcast_arrays(*arrays.values())
    except ValueError:
        given = ", ".join(f"{n} has shape {a.shape}" for n, a in arrays.items())
        raise ValueError(f"{function}: {given}, accepted: shapes that broadcast together") from None


def _elementwise(function, out=None, **given):
    arrays, back = _arrays.together(function, **given)
    arrays = _broadcast(function, **dict(zip(given, arrays)))
    made = _arrays.result(function, out, arrays[0].shape, arrays[0].dtype, *arrays)
    _core._elementwise(function, OPS[function], tuple(arrays), (made,))
    return back(made) if out is None else out


def _pair_vjp(function, g, a, b):
    (g, a, b), back = _arrays.together(function, g=g, a=a, b=b)
    shape = _broadcast(function, a=a, b=b)[0].shape
    if g.shape != shape:
        raise ValueError(f"{function}: g has shape {g.shape}, accepted: {shape}, the shape of the result")
    inputs = (g, np.broadcast_to(a, shape), np.broadcast_to(b, shape))
    da, db = np.empty(shape, g.dtype), np.empty(shape, g.dtype)
    _core._elementwise(function, OPS[function], inputs, (da, db))
    return back(summed_to(da, a.shape)), back(summed_to(db, b.shape))


def logaddexp(a, b, *, out=None):
    """log(e^a + e^b), elementwise.

    Parameters
    ----------
    a, b : array_like
        Arrays that broadcast together, of the floating dtypes, integers or bools; NumPy's promotion gives the dtype.
    out : ndarray, optional
        Of the result's shape and dtype; may be exactly one of the inputs.

    Returns
    -------
    ndarray or scalar
        Within 2 ulp of the exact value, next to 0 too (where e^a + e^b is next to 1); of float64 results below 2^-44
        that are the difference of larger numbers, within 2^-96. Two -inf give -inf.

    Raises
    ------
    TypeError, ValueError
        For dtypes, shapes and an `out` that do not fit, before anything is written.
    NotImplementedError
        For arrays on CUDA devices that are not torch's tensors. Those have the bytes of the CPU.
    """
    if f := _for_torch("logaddexp", a, b, out):
        return f(a, b, out=out)
    return _elementwise("logaddexp", out, a=a, b=b)


def logsubexp(a, b, *, out=None):
    """log(e^a - e^b), elementwise: NaN where a < b, -inf where a = b, and a where b is -inf.

    Arguments, accuracy and errors are those of `logaddexp`.
    """
    if f := _for_torch("logsubexp", a, b, out):
        return f(a, b, out=out)
    return _elementwise("logsubexp", out, a=a, b=b)


def log1mexp(x, *, out=None):
    """log(1 - e^-|x|), elementwise: of a log-probability x <= 0 that of the complement; -inf at 0.

    TensorFlow Probability's definition. For x >= 0 it is what JAX and R call log1mexp, for x <= 0 Stan's log1m_exp. Within
    2 ulp of the exact value. `out` and errors as in `logaddexp`.
    """
    if f := _for_torch("log1mexp", x, out):
        return f(x, out=out)
    return _elementwise("log1mexp", out, x=x)


def softplus(x, *, out=None):
    """log(1 + e^x), elementwise, within 2 ulp of the exact value. `out` and errors as in `logaddexp`."""
    if f := _for_torch("softplus", x, out):
        return f(x, out=out)
    return _elementwise("softplus", out, x=x)


def logaddexp_vjp(g, a, b):
    """(da, db), the gradients of sum(g * logaddexp(a, b)), each of its argument's shape.

    g has the shape of the result. da = g e^a / (e^a + e^b), db likewise, within 2 ulp each before the sum over dimensions that
    were broadcast, which is in float64. 0 where both arguments are -inf.
    """
    if f := _for_torch("logaddexp_vjp", g, a, b):
        return f(g, a, b)
    return _pair_vjp("logaddexp_vjp", g, a, b)


def logsubexp_vjp(g, a, b):
    """(da, db), the gradients of sum(g * logsubexp(a, b)): da = g e^a / (e^a - e^b), db = -g e^b / (e^a - e^b).

    As `logaddexp_vjp`. Infinite where a = b, but 0 where both are -inf; NaN where a < b.
    """
    if f := _for_torch("logsubexp_vjp", g, a, b):
        return f(g, a, b)
    return _pair_vjp("logsubexp_vjp", g, a, b)


def logaddexp_jvp(ta, tb, a, b, *, out=None):
    """The derivative of logaddexp(a, b) along (ta, tb), within 1 ulp of the sum of its terms' sizes (float64: 2 ulp)."""
    if f := _for_torch("logaddexp_jvp", ta, tb, a, b, out):
        return f(ta, tb, a, b, out=out)
    return _elementwise("logaddexp_jvp", out, ta=ta, tb=tb, a=a, b=b)


def logsubexp_jvp(ta, tb, a, b, *, out=None):
    """The derivative of logsubexp(a, b) along (ta, tb), as `logaddexp_jvp`."""
    if f := _for_torch("logsubexp_jvp", ta, tb, a, b, out):
        return f(ta, tb, a, b, out=out)
    return _elementwise("logsubexp_jvp", out, ta=ta, tb=tb, a=a, b=b)


def log1mexp_vjp(g, x, *, out=None):
    """g sign(x) / (e^|x| - 1), elementwise, within 2 ulp: the gradient of sum(g * log1mexp(x)); at 0 that from above."""
    if f := _for_torch("log1mexp_vjp", g, x, out):
        return f(g, x, out=out)
    return _elementwise("log1mexp_vjp", out, g=g, x=x)


def softplus_vjp(g, x, *, out=None):
    """g / (1 + e^-x), elementwise, within 2 ulp: the gradient of sum(g * softplus(x))."""
    if f := _for_torch("softplus_vjp", g, x, out):
        return f(g, x, out=out)
    return _elementwise("softplus_vjp", out, g=g, x=x)


# -- running sums --------------------------------------------------------------------------------------------


def _along(function, given, x, axis, reverse, exclusive, out, jvp=False):
    (given, x), back = _arrays.together(function, **{"t" if jvp else "g": given}, x=x)
    if given is not None and given.shape != x.shape:
        name = "t" if jvp else "g"
        raise ValueError(f"{function}: {name} has shape {given.shape}, accepted: {x.shape}, the shape of x")
    axis = check_axis(function, axis, x.ndim)
    inputs = [x] if given is None else [given, x]
    made = _arrays.result(function, out, x.shape, x.dtype, *inputs)
    views = [a if a is None or x.ndim else a.reshape(1) for a in (given, x, made)]
    _core._running(function, *views, axis, bool(reverse), bool(exclusive), jvp)
    return back(made) if out is None else out


def logcumsumexp(x, axis=-1, *, reverse=False, exclusive=False, out=None):
    """log of the running sum of e^x along an axis.

    y_i = log sum_{j <= i} e^(x_j); with `reverse` the sum is over j >= i, with `exclusive` it leaves out i itself (and is -inf
    where nothing is left).

    Parameters
    ----------
    x : array_like
        Of the floating dtypes, integers or bools (which become float64).
    axis : int
    out : ndarray, optional
        Of x's shape and dtype; may be x.

    Returns
    -------
    ndarray
        Of x's shape. Every prefix within 2 ulp of the exact value (float16 and bfloat16 0.51), next to 0 as well: an
        absolute error of 2^-96 shows where large terms cancel to less than 2^-44. The bytes do not depend on strides, threads
        or the instruction set.

    Raises
    ------
    TypeError for dtypes that are not real numbers, an axis that is no int, and an out of another dtype; numpy's AxisError for
    an axis that x has not; ValueError for an out of another shape, or that overlaps x and is not x.
    """
    if f := _for_torch("logcumsumexp", x, out):
        return f(x, axis, reverse=reverse, exclusive=exclusive, out=out)
    return _along("logcumsumexp", None, x, axis, reverse, exclusive, out)


def logcumsumexp_vjp(g, x, axis=-1, *, reverse=False, exclusive=False, out=None):
    """The gradient of sum(g * logcumsumexp(x)): dx_j = sum_i g_i e^(x_j - y_i) over the i whose sums have x_j.

    It takes x, not y, and computes the sums anew: within 4 eps of sum_i |g_i| e^(x_j - y_i). 0 where x_j is -inf.
    """
    if f := _for_torch("logcumsumexp_vjp", g, x, out):
        return f(g, x, axis, reverse=reverse, exclusive=exclusive, out=out)
    return _along("logcumsumexp_vjp", g, x, axis, reverse, exclusive, out)


def logcumsumexp_jvp(t, x, axis=-1, *, reverse=False, exclusive=False, out=None):
    """The derivative of logcumsumexp(x) along t: dy_i = sum_j t_j e^(x_j - y_i) over the j in its sum; 0 where y_i is -inf.

    Within 4 eps of sum_j |t_j| e^(x_j - y_i).
    """
    if f := _for_torch("logcumsumexp_jvp", t, x, out):
        return f(t, x, axis, reverse=reverse, exclusive=exclusive, out=out)
    return _along("logcumsumexp_jvp", t, x, axis, reverse, exclusive, out, jvp=True)


# -- rows with weights -----------------------------------------------------------------------------------------


def _as_rows(x, axes):
    """x with the dimensions `axes` last and made one."""
    x = x.reshape(1) if x.ndim == 0 else x
    rest = [d for d in range(x.ndim) if d not in axes]
    shape = [x.shape[d] for d in rest]
    return x.transpose(*rest, *sorted(axes)).reshape(*shape, int(np.prod([x.shape[d] for d in axes], dtype=np.int64)))


def _from_rows(rows, axes, shape):
    """What _as_rows made, in the shape it was made of."""
    ndim = max(len(shape), 1)
    rest = [d for d in range(ndim) if d not in axes]
    order = [*rest, *sorted(axes)]
    sizes = shape or (1,)
    return rows.reshape([sizes[d] for d in order]).transpose(np.argsort(order)).reshape(shape)


def _kept(function, where, shape):
    if where is None:
        return None
    try:
        return np.broadcast_to(_arrays._mask(function, where), shape)
    except ValueError:
        given = np.shape(where)
        raise ValueError(f"{function}: where has shape {given}, accepted: {shape}, or what broadcasts to it") from None


def logmeanexp(x, axis=None, *, b=None, keepdims=False, return_sign=False, where=None, out=None):
    """log of the mean of e^x over an axis, some or all: log(sum_j b_j e^(x_j) / n).

    Parameters
    ----------
    x : array_like
    axis : int, tuple of ints or None
    b : array_like, optional
        Weights, broadcast with x, of any sign. n is the number of elements, not the sum of the weights.
    keepdims, return_sign, out
        As in `logsumexp`. Without return_sign a negative mean gives NaN.
    where : array_like of bool, optional
        What to take; n counts those.

    Returns
    -------
    ndarray or scalar, or (log |mean|, sign)
        Rounded once: within 1 ulp of max(|result|, |the maximum|) and, as for `logsumexp`, relative to the sum of the sizes of
        the terms where weights cancel. The mean of nothing is NaN. Its derivatives are those of `logsumexp`.

    Raises
    ------
    TypeError for dtypes and axes that are none, numpy's AxisError for an axis that x has not, ValueError for shapes that do not
    broadcast and for out, as `logsumexp`.
    """
    if f := _for_torch("logmeanexp", x, b, out):
        return f(x, axis, b=b, keepdims=keepdims, return_sign=return_sign, where=where, out=out)
    options = {"axis": axis, "keepdims": keepdims, "return_sign": return_sign, "where": where}
    if wide := _arrays.with_room("logmeanexp", logmeanexp, b, {"x": x}, options, out):
        return wide if return_sign else wide[0]
    (x, b), back = _arrays.together("logmeanexp", x=x, b=b)
    if b is not None:
        x, b = _broadcast("logmeanexp", x=x, b=b)
    axes = check_axes("logmeanexp", axis, x.ndim)
    shape = row_shape(x.shape, axes, keepdims)
    kept = _kept("logmeanexp", where, x.shape)
    count = None
    if kept is not None:
        count = np.require(np.count_nonzero(_as_rows(kept, axes), axis=-1), np.float64)
        x = np.where(kept, x, x.dtype.type(-np.inf))
        b = b if b is None else np.where(kept, b, b.dtype.type(0))
    made = _arrays.result("logmeanexp", out, shape, x.dtype, x, b)
    rows, weights = _as_rows(x, axes), None if b is None else _as_rows(b, axes)
    value = np.empty(rows.shape[:-1], x.dtype)
    sign = np.empty_like(value) if return_sign or b is not None else None
    _core._weighted_rows("logmeanexp", 0, rows, weights, (count, value, sign))
    if sign is not None and not return_sign:
        value[sign < 0] = np.nan
    made[...] = value.reshape(shape)
    result = back(made) if out is None else out
    return (result, back(sign.reshape(shape))) if return_sign else result


def weighted(name, args, kwargs):
    """logsumexp_vjp or logsumexp_jvp with b, as they were called."""
    if kwargs.get("b") is None:
        raise TypeError(f"{name}: t_b is given without b, accepted: both, or t_b=None")
    given = dict(zip(("g" if name == "logsumexp_vjp" else "t", "x", "axis"), args), **kwargs)
    tensors = [given[n] for n in ("g", "t", "x", "b", "t_b") if n in given]
    function = {"logsumexp_vjp": weighted_vjp, "logsumexp_jvp": weighted_jvp}[name]
    return (_for_torch(function.__name__, *tensors) or function)(**given)


def weighted_vjp(g, x, axis=None, *, b, keepdims=False, out=None):
    """logsumexp_vjp with weights: (dx, db), each of its argument's shape."""
    name = "logsumexp_vjp"
    if out is not None:
        raise TypeError(f"{name}: out is a {type(out).__name__}, accepted: None, with b, as there are two results")
    if wide := _arrays.with_room(name, weighted_vjp, b, {"g": g, "x": x}, {"axis": axis, "keepdims": keepdims}):
        return wide
    (g, x, b), back = _arrays.together(name, g=g, x=x, b=b)
    full = _broadcast(name, x=x, b=b)
    axes = check_axes(name, axis, full[0].ndim)
    shape = row_shape(full[0].shape, axes, keepdims)
    if g.shape != shape:
        raise ValueError(f"{name}: g has shape {g.shape}, accepted: {shape}, the shape of the result of logsumexp")
    rows, weights = (_as_rows(a, axes) for a in full)
    dx, db = np.empty(rows.shape, x.dtype), np.empty(rows.shape, x.dtype)
    _core._weighted_rows(name, 1, rows, weights, (g.reshape(rows.shape[:-1]), dx, db))
    dx, db = (_from_rows(d, axes, full[0].shape) for d in (dx, db))
    return back(summed_to(dx, x.shape)), back(summed_to(db, b.shape))


def weighted_jvp(t, x, axis=None, *, b, t_b=None, keepdims=False, out=None):
    """logsumexp_jvp with weights."""
    name = "logsumexp_jvp"
    options = {"axis": axis, "t_b": t_b, "keepdims": keepdims}
    if wide := _arrays.with_room(name, weighted_jvp, b, {"t": t, "x": x}, options, out):
        return wide[0]
    (t, x, b, t_b), back = _arrays.together(name, t=t, x=x, b=b, t_b=t_b)
    for argument, tangent, of, shape in (("t", t, "x", x.shape), ("t_b", t_b, "b", b.shape)):
        if tangent is not None and tangent.shape != shape:
            raise ValueError(f"{name}: {argument} has shape {tangent.shape}, accepted: {shape}, the shape of {of}")
    full = _broadcast(name, x=x, b=b)[0].shape
    axes = check_axes(name, axis, len(full))
    rows, weights, t, t_b = (None if a is None else _as_rows(np.broadcast_to(a, full), axes) for a in (x, b, t, t_b))
    shape = row_shape(full, axes, keepdims)
    made = _arrays.result(name, out, shape, x.dtype, x, b)
    value = np.empty(rows.shape[:-1], x.dtype)
    _core._weighted_rows(name, 2, rows, weights, (t, t_b, value))
    made[...] = value.reshape(shape)
    return back(made) if out is None else out
