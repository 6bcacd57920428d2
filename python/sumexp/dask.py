"""logsumexp, softmax and log_softmax of dask arrays, lazily, over any axes, which may be cut into blocks too.

    import sumexp.dask as sd
    l = sd.logsumexp(x, axis=0)                        # a dask array
    p = sd.softmax(x, axis=-1)

Each block becomes the states of its part of the rows (sumexp.LogSumExp), which dask.array.reduction brings together; softmax
and log_softmax then take another pass over the blocks. Results have the bytes of the functions of the whole array where its
blocks are cut at multiples of 2,048 elements of a row (512 of float64), on every scheduler; with other cuts they are right to
1 ulp of those. Of several axes a row's elements run in C order: parts of a row are in one piece where the first of the axes is
cut alone.
"""

import functools
import itertools
from typing import Any

import dask.array as da
import numpy as np

from ._row_shapes import check_axes
from ._stream import ALL, APART, LOG_SOFTMAX, SOFTMAX, STATE, LogSumExp, joined, mapped, reduced, rows_of

__all__ = ["log_softmax", "logsumexp", "softmax"]


def logsumexp(x, axis=None, *, keepdims=False, split_every=None) -> Any:
    """sumexp.logsumexp of a dask array, as a dask array.

    axis : int, tuple of ints or None
        None: all axes.
    split_every : int or dict, optional
        How many blocks are brought together at a time, as in dask.array.reduction.
    """
    given = np.ndim(x)
    x, axes = _prepared("logsumexp", x, axis)
    made = da.reduction(
        _states(x, axes, APART),
        functools.partial(_unchanged, dtype=x.dtype),
        functools.partial(_finished, dtype=x.dtype),
        combine=_combined,
        axis=axes,
        keepdims=keepdims,
        dtype=x.dtype,
        split_every=split_every,
        concatenate=False,
        meta=np.empty((0,) * (x.ndim if keepdims else x.ndim - len(axes)), x.dtype),
        name="sumexp-logsumexp",
    )
    return made if given else made.reshape(())


def softmax(x, axis=-1, *, split_every=None) -> Any:
    """sumexp.softmax of a dask array, as a dask array of the same blocks."""
    return _map("softmax", SOFTMAX, x, axis, ALL, split_every)


def log_softmax(x, axis=-1, *, split_every=None) -> Any:
    """sumexp.log_softmax of a dask array, as a dask array of the same blocks."""
    return _map("log_softmax", LOG_SOFTMAX, x, axis, APART, split_every)


# -- the graph ---------------------------------------------------------------------------------------------


def _prepared(function, x, axis):
    x = da.asarray(x)
    if x.dtype.kind in "biu":
        x = x.astype(np.float64)
    if isinstance(x._meta, np.ma.MaskedArray):
        raise TypeError(f"{function}: x is a masked array, accepted: dask.array.where(mask, -inf, its data)")
    x = x.astype(x.dtype.newbyteorder("="))
    if x.dtype.name not in ("float16", "bfloat16", "float32", "float64"):
        raise TypeError(f"{function}: x has dtype {x.dtype}, accepted: float16, bfloat16, float32, float64, integers and bools")
    if x.ndim == 0:
        x = x.reshape(1)
    axes = check_axes(function, axis, x.ndim)
    if any(np.isnan(n) for chunks in x.chunks for n in chunks):
        raise ValueError(f"{function}: x has blocks of unknown size, accepted: known ones, as after x.compute_chunk_sizes()")
    return x, tuple(sorted(axes))


def _starts(x, axes):
    """How many elements of its rows lie in blocks before each block, by the block's place along the axes."""
    blocks = [x.numblocks[a] for a in axes]
    sizes = [int(np.prod([x.chunks[a][i] for a, i in zip(axes, place)])) for place in itertools.product(*map(range, blocks))]
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)[:-1]]).astype(np.int64).reshape(blocks)


def _states(x, axes, sums):
    chunks = tuple((1,) * len(c) if a in axes else c for a, c in enumerate(x.chunks))
    return da.map_blocks(
        _reduced,
        x,
        axes=axes,
        starts=_starts(x, axes),
        sums=sums,
        chunks=chunks,
        dtype=STATE,
        meta=np.empty((0,) * x.ndim, STATE),
        name="sumexp-states-" + da.core.tokenize(x, axes, sums),
    )


def _map(function, operation, x, axis, sums, split_every):
    given = np.ndim(x)
    x, axes = _prepared(function, x, axis)
    totals = da.reduction(
        _states(x, axes, sums),
        functools.partial(_unchanged, dtype=STATE),
        _combined,
        combine=_combined,
        axis=axes,
        keepdims=True,
        dtype=STATE,
        split_every=split_every,
        concatenate=False,
        meta=np.empty((0,) * x.ndim, STATE),
        name="sumexp-total",
    )
    made = da.map_blocks(
        _mapped,
        x,
        totals,
        operation=operation,
        axes=axes,
        starts=_starts(x, axes),
        dtype=x.dtype,
        meta=np.empty((0,) * x.ndim, x.dtype),
        name=f"sumexp-{function}-" + da.core.tokenize(x, axes),
    )
    return made if given else made.reshape(())


# -- what its tasks do; a block of states is an array (subtrees, *rows), whatever its shape in the graph ------------


def _reduced(x, *, axes, starts, sums, block_id):
    rows, _ = rows_of("", _aligned(x), axes)
    return reduced(rows, None, int(starts[tuple(block_id[a] for a in axes)]), sums)


def _aligned(block):
    return np.require(block, None, ["ALIGNED", "ENSUREARRAY"])  # blocks from other processes may lie anywhere


def _unchanged(states, axis, keepdims, dtype, computing_meta=False):
    return np.empty(states.shape, dtype) if computing_meta else states  # a block's dtype is declared to be the result's


def _combined(blocks, axis, keepdims, computing_meta=False):
    flat = list(_flat(blocks))
    return functools.reduce(functools.partial(joined, "merge"), flat[1:], flat[0])


def _flat(blocks):
    return itertools.chain.from_iterable(map(_flat, blocks)) if isinstance(blocks, list) else [blocks]


def _finished(blocks, axis, keepdims, dtype, computing_meta=False):
    states = _combined(blocks, axis, keepdims)
    batch = states.shape[1:]
    out = np.asarray(LogSumExp.from_array(states).result()) if states.size else np.full(batch, -np.inf)
    out = out.astype(dtype, copy=False)
    return np.expand_dims(out, axis) if keepdims else out


def _mapped(x, states, *, operation, axes, starts, block_id):
    x = _aligned(x)
    rows, _ = rows_of("", x, axes)
    return mapped(operation, states, x, rows, axes, int(starts[tuple(block_id[a] for a in axes)]))
