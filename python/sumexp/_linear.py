"""Cross-entropy of logits x W^T + bias that never exist whole: for NumPy arrays.

Tokens go in chunks. A chunk's logits are a product of NumPy's matmul; one sweep over them makes its losses and writes the
gradient over them, of which two more products make dx and its share of dW. Rows that are ignored are left out before the
first product. Matrices of 16 bits are widened block by block, and everything is added up in float32.
"""

import math

import numpy as np

from . import _arrays, _core
from ._chunks import BLOCK, PARTS, blocks, chunk_rows
from ._devices import is_torch
from ._loss_arguments import RAW_INFO, known_names
from ._losses import Call

BESIDE = BLOCK * 3 // 2  # elements that a product, and what is added to dw, take beside a chunk's logits


def linear_cross_entropy(
    x, w, target, *, bias=None, weight=None, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, softcap=None, temperature=1.0,
    token_weight=None, reduction="mean", denominator=None, on_empty="nan", info=(), out=None, chunk_size=None,
):
    """cross_entropy(x @ w.T + bias, target, ...) without the logits ever being whole.

    Parameters
    ----------
    x : array (..., D)
        Of float16, bfloat16, float32 or float64; a row a token.
    w : array (V, D)
        A row a class.
    target : integers (...), probabilities (..., V), or a pair (indices, weights) of shape (..., K)
    bias : array (V,)
    weight, ignore_index, label_smoothing, z_loss, softcap, temperature, token_weight, reduction, denominator, on_empty, info
        As in cross_entropy.
    out : array
        For the loss: of its shape and dtype.
    chunk_size : int
        How many tokens' logits exist at a time; None chooses from the shapes: some 4 % of them, but 2^20 logits at least, and
        no more tokens than have these or 512, whichever is more.

    Returns
    -------
    The loss, of the arrays' dtype: a number, or with reduction="none" an array (...). With info, (loss, {name: array}).
    A token's loss has the bytes of cross_entropy on the same logits. Those are NumPy's products; of 16-bit arrays they are
    computed, and stay, in float32, as do the tokens' losses until the result is rounded.

    Raises
    ------
    TypeError and ValueError as cross_entropy, and for shapes of x, w and bias that do not fit together; nothing is written.
    """
    return _run("linear_cross_entropy", **locals())


def linear_cross_entropy_with_grad(
    x, w, target, *, bias=None, weight=None, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, softcap=None, temperature=1.0,
    token_weight=None, reduction="mean", denominator=None, on_empty="nan", info=(), need=("x", "w", "bias"), out_dw=None,
    chunk_size=None,
):
    """linear_cross_entropy and its gradients, from one sweep.

    Parameters
    ----------
    need : sequence of "x", "w", "bias"
        Which gradients are wanted; the others cost nothing and are None. (So is that of a bias of None.)
    out_dw : array (V, D)
        The gradient of w is added to it, in its dtype: that of w, or float32 where w has 16 bits. It is then returned as dw.
    others
        As in linear_cross_entropy.

    Returns
    -------
    (loss, dx, dw, dbias), and {name: array} as a fifth with info. With reduction="none" the gradients are those of the sum of
    the losses. dw and dbias are added up over the chunks in float32 or float64, and rounded once. Subnormal numbers in the
    gradient over the logits count as 0: some CPUs take a hundred cycles for a product with one.

    Raises
    ------
    As linear_cross_entropy, and ValueError for other names in need, TypeError and ValueError for out_dw.
    """
    return _run("linear_cross_entropy_with_grad", **locals())


def linear_cross_entropy_vjp(
    g, x, w, target, *, bias=None, weight=None, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, softcap=None,
    temperature=1.0, token_weight=None, reduction="mean", denominator=None, on_empty="nan", need=("x", "w", "bias"),
    out_dw=None, chunk_size=None,
):
    """The gradients of linear_cross_entropy with respect to x, w and bias, for a gradient g of its loss.

    g is a number, or with reduction="none" an array that broadcasts to the tokens. All else is as in
    linear_cross_entropy_with_grad, whose (dx, dw, dbias) these are for g = 1.
    """
    return _run("linear_cross_entropy_vjp", **locals())


def _run(function, x, w, target, bias, *, need=(), out_dw=None, info=(), out=None, **options):
    with_grad, with_g = function == "linear_cross_entropy_with_grad", "g" in options
    if is_torch(x) or is_torch(options.get("g")):
        from .torch import _linear

        if with_grad or with_g:
            return _linear.with_grad(function, x, w, target, bias, need=need, out_dw=out_dw, info=info, **options)
        return _linear.from_package(function, x, w, target, bias, out=out, info=info, **options)
    need = known_names(function, "need", need, PARTS)
    *results, found = _swept(function, x, w, target, bias, need, out_dw, out, info=info, **options)
    if with_g:
        return tuple(results[1:])
    results = (*(results if with_grad else results[:1]), *((found,) if found else ()))
    return results if len(results) > 1 else results[0]


def _swept(function, x, w, target, bias, need, out_dw, out, *, chunk_size, **options):
    """(loss, dx, dw, dbias, info)"""
    (x, w, bias), back = _arrays.together(function, x=x, w=w, bias=bias)
    if w.ndim != 2:
        raise ValueError(f"{function}: w has shape {w.shape}, accepted: (V, D)")
    classes, width = w.shape
    if x.ndim == 0 or x.shape[-1] != width:
        raise ValueError(f"{function}: x has shape {x.shape}, accepted: (..., {width}), as w has shape {w.shape}")
    if bias is not None and bias.shape != (classes,):
        raise ValueError(f"{function}: bias has shape {bias.shape}, accepted: ({classes},), as w has shape {w.shape}")
    dtype, batch = x.dtype, x.shape[:-1]
    work = np.dtype(np.float32) if dtype.itemsize == 2 else dtype  # of logits and sums
    losses = Losses(function, target, batch, classes, work, **options)
    total = x.reshape(math.prod(batch), width)
    kept = losses.kept()
    chunk = chunk_rows(function, chunk_size, len(kept), classes, BESIDE)
    of_loss = None
    if out is not None:
        of_loss = _arrays.result(function, out, losses.shape, dtype, x, w, bias, *losses.inputs())
    need_x, need_w, need_bias = "x" in need, "w" in need, "bias" in need and bias is not None
    dw, given = None, None
    if need_w:
        dw, given = _place_for_dw(function, out_dw, w, work, (x, w, bias))
    dx = np.empty((len(total), width), dtype) if need_x else None
    if need_x and len(kept) < len(total):
        dx[...] = 0
    db = np.zeros(classes, work) if need_bias else None

    buffer = np.empty((chunk, classes), work)
    for start in range(0, len(kept), chunk):
        rows = kept[start : start + chunk]
        if rows[-1] - rows[0] == len(rows) - 1:
            rows = slice(rows[0], rows[-1] + 1)
        part = np.require(total[rows], work)
        z = buffer[: len(part)]
        product(part, w, z)
        if bias is not None:
            z += bias
        losses.sweep(z, rows, gradient=need_x or need_w or need_bias)
        if need_x:
            place = dx[rows] if type(rows) is slice and dtype == work else None
            made = product_back(z, w, place)
            if made is not place:
                dx[rows] = made
        if need_w:
            add_product(z, part, dw, start == 0 and given is None)
        if need_bias:
            db += z.sum(axis=0)
    if need_w and len(kept) == 0 and given is None:
        dw[...] = 0
    loss = np.asarray(losses.reduced()).astype(dtype, copy=False)
    info = {n: back(a.reshape(batch)) for n, a in losses.info.items()}
    if need_w and given is not None and dw is not given:
        given += dw
    dw = out_dw if out_dw is not None and need_w else None if dw is None else back(dw.astype(dtype, copy=False))
    db = None if db is None else back(db.astype(dtype, copy=False))
    if of_loss is not None:
        of_loss[...] = loss
    return back(loss) if out is None else out, None if dx is None else back(dx.reshape(x.shape)), dw, db, info


def _place_for_dw(function, out, w, work, inputs):
    """(where dw is added up, the array of the caller's that it ends in or None)"""
    if out is None:
        return np.empty(w.shape, work), None
    dtype = np.asarray(out).dtype if isinstance(out, np.ndarray) else w.dtype
    given = _arrays.result(function, out, w.shape, work if dtype == work else w.dtype, name="out_dw", apart=inputs)
    return (given, given) if given.dtype == work else (np.zeros(w.shape, work), given)


class Losses:
    """The rows of a batch (N of them) as cross-entropy sees them: targets, options, and places for what is computed of each."""

    def __init__(self, function, target, batch, classes, work, g=None, **options):
        like = np.broadcast_to(np.zeros((), work), (*batch, classes))
        call = Call(function, like, target, -1, **options)
        arguments = call.arguments
        self.batch, self.reduction, self.zero_if_empty = batch, call.reduction, arguments["zero_if_empty"]
        self.ignore_index = arguments["ignore_index"]
        names = ("target_weight", "weight", "token_weight", "ignore_index", "function")
        of_denominator = {n: arguments[n] for n in names}
        found = _core._cross_entropy_denominator(like, call.target, -1, **of_denominator)  # checks the targets as well
        self.denominator = found if arguments["denominator"] is None else arguments["denominator"]
        if self.reduction == "mean":
            arguments["denominator"] = np.asarray(self.denominator, np.float64)  # of negative weights negative, too
        of_rows = {"target": call.target, "target_weight": arguments.pop("target_weight")}
        of_rows["token_weight"] = arguments.pop("token_weight")
        of_rows["g"] = None if g is None else call.of_loss("g", g)
        rows = math.prod(batch)
        self.of_rows = {n: a.reshape(rows, *a.shape[len(batch) :]) for n, a in of_rows.items() if a is not None}
        self.arguments = arguments
        self.row_loss = np.zeros(rows, work)
        dtypes = {"predicted": np.int64, "correct": np.bool_}
        self.info = {n: np.full(rows, -1 if n == "predicted" else 0, dtypes.get(n, work)) for n in call.info}

    @property
    def shape(self):
        """Of the loss."""
        return self.batch if self.reduction == "none" else ()

    def inputs(self):
        return *self.of_rows.values(), self.arguments["weight"]

    def kept(self):
        """The rows that are not ignored, in order."""
        target = self.of_rows["target"]
        if target.dtype.kind not in "iu":
            return np.arange(len(target))
        kept = target != self.ignore_index
        return np.flatnonzero(kept if kept.ndim == 1 else kept.any(axis=1))

    def sweep(self, z, rows, gradient):
        """Computes of the logits z of some rows (a slice, or indices) what was asked for; the gradient goes over z."""
        places = {"row_loss": self.row_loss, **{RAW_INFO[n]: a for n, a in self.info.items()}}
        made = {n: a[rows] for n, a in places.items()}  # views of slices, else arrays of their own
        of_rows = {n: a[rows] for n, a in self.of_rows.items()}
        dlogits = z if gradient else None
        _core._cross_entropy(z, axis=1, dlogits=dlogits, flush_subnormal=True, **self.arguments, **of_rows, **made)
        if type(rows) is not slice:
            for n, a in made.items():
                places[n][rows] = a

    def reduced(self):
        if self.reduction == "none":
            return self.row_loss.reshape(self.batch)
        total = _core._sum_rows(self.row_loss)
        if self.reduction == "sum":
            return total
        if self.denominator == 0:
            return 0.0 if self.zero_if_empty else np.nan
        return total / self.denominator


# -- products ---------------------------------------------------------------------------------------------------------


def _is_plain(w, work):
    """Whether matmul takes w as it is: of dtype work, and rows or columns without gaps."""
    return w.dtype == work and any(s == w.itemsize for s in w.strides)


def product(x, w, out):
    """out = x w^T."""
    if _is_plain(w, out.dtype):
        np.matmul(x, w.T, out=out)
        return
    for block in blocks(*w.shape):
        out[:, block] = x @ np.ascontiguousarray(w[block], out.dtype).T


def product_back(z, w, out=None):
    """z w, in `out` or a new array."""
    if _is_plain(w, z.dtype):
        return np.matmul(z, w, out=out)
    if out is None:
        out = np.empty((len(z), w.shape[1]), z.dtype)
    out[...] = 0
    for block in blocks(*w.shape):
        out += z[:, block] @ np.ascontiguousarray(w[block], z.dtype)
    return out


def add_product(z, x, to, first):
    """to += z^T x, or to = z^T x of the first chunk."""
    if first and to.flags.c_contiguous:
        np.matmul(z.T, x, out=to)
        return
    if first:
        to[...] = 0
    for block in blocks(*to.shape):
        to[block] += z[:, block].T @ x
