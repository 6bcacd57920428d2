"""Products of matrices in the log domain."""

from typing import Any

import numpy as np

from . import _core
from ._arrays import result, together
from ._broadcast import summed_to
from ._devices import is_torch


def logmatmulexp(a, b, *, out=None) -> Any:
    """log(exp(a) @ exp(b)): out_ij = log sum_k e^(a_ik + b_kj), of matrices or broadcast batches of them.

    Parameters
    ----------
    a : array (..., M, K)
    b : array (..., K, N)
        Of one floating dtype, or promoted to one by NumPy's rules. An array of one dimension is a row, or a column, and the
        result lacks it, as in numpy.matmul.
    out : array (..., M, N), optional
        Where the result is written to, apart from a and b.

    Returns
    -------
    array (..., M, N)
        Right for every finite input, however far apart: within 2 ulp of max(abs(result), abs(largest a_ik + b_kj)), float16 and
        bfloat16 within 0.51 ulp; what is beyond the largest number is inf. -inf is a term of 0, and a sum of nothing
        else is -inf; +inf and NaN are those of the sum.
        The bytes depend on nothing but the row of a and the column of b.

    Raises
    ------
    TypeError, ValueError
        Of dtypes and shapes that do not fit; `out` is untouched then.

    Notes
    -----
    The maxima of a row of a and a column of b are shifts in the exponents of the factors, which are multiplied in float64 (of
    float64 as pairs); what lies so far below both that this loses it, or so near 0 that its error counts, is computed from the
    terms. Nothing of size M x K x N is formed.
    """
    if _are_plain(a, b):  # at once: small products are called often
        made = apart("logmatmulexp", out, (len(a), b.shape[1]), a, b)
        _core._logmatmulexp(a, b, made)
        return made if out is None else out
    if is_torch(a) or is_torch(b) or is_torch(out):
        from .torch import _logmatmul

        return _logmatmul.of_arrays(a, b, out)
    (a, b), back = together("logmatmulexp", a=a, b=b)
    rows, columns, shape = matrices("logmatmulexp", a, b)
    made = apart("logmatmulexp", out, shape, a, b)
    _core._logmatmulexp(rows, columns, expanded(made, a, b))
    return back(made) if out is None else out


def logmatmulexp_vjp(g, a, b) -> Any:
    """The gradients (da, db) of sum(g * logmatmulexp(a, b)).

    da_ik = sum_j g_ij w_ijk and db_kj = sum_i g_ij w_ijk with the weights w_ijk = e^(a_ik + b_kj - out_ij), by two products
    more and nothing of size M x K x N; summed over the dimensions that a or b is broadcast along.

    Parameters
    ----------
    g : array (..., M, N)
        The gradient that comes back, of the shape of ``logmatmulexp(a, b)``.
    a, b : array
        As there.

    Returns
    -------
    tuple of arrays
        Of the shapes of a and b, within (264 + n / 256) eps of sum |g w|, n = max(M, K, N), eps = 2**-53 for float64, and less
        than an ulp of float32 for the others. Where a term is far below its row's and column's maxima (more than 485),
        2 abs(out) eps is added. Weights below 1e-180 may be 0. A result of -inf, a sum of nothing, gives 0; NaN and +inf
        among the terms give NaN.
    """
    if any(map(is_torch, (g, a, b))):
        from .torch import _logmatmul

        return _logmatmul.vjp(g, a, b)
    (g, a, b), back = together("logmatmulexp_vjp", g=g, a=a, b=b)
    rows, columns, shape = matrices("logmatmulexp_vjp", a, b)
    if g.shape != shape:
        raise ValueError(f"logmatmulexp_vjp: g has shape {g.shape}, accepted: {shape}, the shape of the result")
    made = [np.zeros(x.shape, x.dtype) for x in (rows, columns)]
    if g.size:
        _core._logmatmulexp_vjp(expanded(g, a, b), rows, columns, *made)
    return tuple(back(summed_to(m, x.shape[:-2] + m.shape[-2:]).reshape(x.shape)) for m, x in zip(made, (a, b)))


def logmatmulexp_jvp(ta, tb, a, b, *, out=None) -> Any:
    """The derivative of logmatmulexp(a, b) along (ta, tb): sum_k w_ijk (ta_ik + tb_kj), w_ijk = e^(a_ik + b_kj - out_ij).

    Parameters
    ----------
    ta, tb : array
        Of the shapes of a and b.
    a, b : array
        As in logmatmulexp.
    out : array (..., M, N), optional
        Where the result is written to, apart from the others.

    Returns
    -------
    array (..., M, N)
        Within the bound of logmatmulexp_vjp, of sum w (|ta| + |tb|). 0 where the result is -inf, NaN where a term is
        +inf or NaN.
    """
    if any(map(is_torch, (ta, tb, a, b, out))):
        from .torch import _logmatmul

        return _logmatmul.jvp(ta, tb, a, b, out)
    (ta, tb, a, b), back = together("logmatmulexp_jvp", ta=ta, tb=tb, a=a, b=b)
    rows, columns, shape = matrices("logmatmulexp_jvp", a, b)
    for name, t, of, x in (("ta", ta, "a", a), ("tb", tb, "b", b)):
        if t.shape != x.shape:
            raise ValueError(f"logmatmulexp_jvp: {name} has shape {t.shape}, accepted: {x.shape}, the shape of {of}")
    t_rows, t_columns, _ = matrices("logmatmulexp_jvp", ta, tb)
    made = apart("logmatmulexp_jvp", out, shape, ta, tb, a, b)
    _core._logmatmulexp_jvp(t_rows, t_columns, rows, columns, expanded(made, a, b))
    return back(made) if out is None else out


# -- shapes ------------------------------------------------------------------------------------------------


def _are_plain(a, b):
    """Two matrices that fit, as the kernels take them."""
    if type(a) is not np.ndarray or type(b) is not np.ndarray or a.ndim != 2 or b.ndim != 2 or a.dtype.char not in "fd":
        return False
    return a.dtype is b.dtype and a.dtype.isnative and a.flags.aligned and b.flags.aligned and a.shape[1] == b.shape[0]


def matrices(function, a, b):
    """(a and b as batches of matrices of one batch shape, the result's shape)."""
    for name, x in (("a", a), ("b", b)):
        if x.ndim == 0:
            raise ValueError(f"{function}: {name} has shape (), accepted: one dimension or more")
    rows, columns = a[None, :] if a.ndim == 1 else a, b[:, None] if b.ndim == 1 else b
    if rows.shape[-1] != columns.shape[-2]:
        raise ValueError(f"{function}: b has shape {b.shape}, accepted: {rows.shape[-1]} rows, the columns of a, {a.shape}")
    try:
        batch = np.broadcast_shapes(rows.shape[:-2], columns.shape[:-2])
    except ValueError:
        raise ValueError(f"{function}: b has shape {b.shape}, accepted: one that broadcasts with a's, {a.shape}") from None
    rows = np.broadcast_to(rows, batch + rows.shape[-2:])
    columns = np.broadcast_to(columns, batch + columns.shape[-2:])
    return rows, columns, batch + rows.shape[-2:-1] * (a.ndim > 1) + columns.shape[-1:] * (b.ndim > 1)


def expanded(x, a, b):
    """A view of a result-shaped array with both dimensions of its matrices."""
    if b.ndim == 1:
        x = x[..., None]
    return x[..., None, :] if a.ndim == 1 else x


def apart(function, out, shape, *inputs):
    """`out`, or a new array, of this shape and the inputs' dtype, which shares no memory with them."""
    return result(function, out, shape, inputs[0].dtype, apart=inputs)
