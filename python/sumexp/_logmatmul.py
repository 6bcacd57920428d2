"""Products of matrices in the log domain."""

import numpy as np

from . import _core
from ._arrays import result, together


def logmatmulexp(a, b, *, out=None):
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
        bfloat16 within 0.51 ulp. -inf is a term of 0, and a sum of nothing else is -inf; +inf and NaN are those of the sum.
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
    (a, b), back = together("logmatmulexp", a=a, b=b)
    rows, columns, shape = matrices("logmatmulexp", a, b)
    made = result("logmatmulexp", out, shape, a.dtype, a, b)
    if out is not None and any(np.may_share_memory(made, x) and np.shares_memory(made, x) for x in (a, b)):
        raise ValueError("logmatmulexp: out overlaps an input, accepted: memory of its own")
    _core._logmatmulexp(rows, columns, expanded(made, a, b))
    return back(made) if out is None else out


# -- shapes ------------------------------------------------------------------------------------------------


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
