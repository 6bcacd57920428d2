"""The arguments of segments, of arrays and of tensors alike: their checks."""

from typing import NamedTuple

import numpy as np

from . import _arrays, _core
from ._devices import is_torch
from ._scalars import integer


class Operation(NamedTuple):
    op: int  # sumexp::Op
    row_result: bool = False  # one value a segment
    row_gradient: bool = False  # so has the gradient g
    x_first: bool = False  # the kernel takes x before g or t, as it starts from logits


OPS = {
    "segment_softmax": Operation(0),
    "segment_log_softmax": Operation(1),
    "segment_logsumexp": Operation(2, row_result=True),
    "segment_softmax_vjp": Operation(3),
    "segment_softmax_jvp": Operation(3),
    "segment_log_softmax_vjp": Operation(4),
    "segment_log_softmax_jvp": Operation(5),
    "segment_logsumexp_vjp": Operation(6, row_gradient=True, x_first=True),
    "segment_logsumexp_jvp": Operation(7, row_result=True, x_first=True),
}


def check_offsets(function, elements, offsets, ids, num_segments):
    """Contiguous int64 offsets, from arrays or tensors: checked with the call, of ids here."""
    if (offsets is None) == (ids is None):
        given = "both" if ids is not None else "neither"
        raise TypeError(f"{function}: got {given} of offsets and ids, accepted: one of them")
    if offsets is not None:
        offsets = _int64(function, "offsets", offsets)
        if offsets.ndim != 1 or len(offsets) < 1:
            raise ValueError(f"{function}: offsets has shape {offsets.shape}, accepted: one dimension, num_segments + 1")
        if num_segments is not None and count(function, num_segments) != len(offsets) - 1:
            accepted = f"{len(offsets) - 1}, as offsets has it, or None"
            raise ValueError(f"{function}: num_segments is {num_segments}, accepted: {accepted}")
        return offsets
    ids = _int64(function, "ids", ids)
    if ids.shape != (elements,):
        raise ValueError(f"{function}: ids has shape {ids.shape}, accepted: {(elements,)}, one for each element")
    if num_segments is None:
        segments = max(int(ids.max()) + 1, 0) if elements else 0
    else:
        segments = count(function, num_segments)
    try:
        made = np.empty(segments + 1, np.int64)
    except (MemoryError, ValueError):
        given = f"ids has {segments - 1}" if num_segments is None else f"num_segments is {segments}"
        raise MemoryError(f"{function}: {given}, and there is no memory for so many segments") from None
    _core._segment_offsets(function, ids, made)
    return made


def count(function, value):
    return integer(function, "num_segments", value, "an int from 0, or None", 0)


def _int64(function, argument, value):
    array = _arrays.integers(function, argument, value.cpu().numpy() if is_torch(value) else value)
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{function}: {argument} has {array.max()}, accepted: integers that int64 has")
    return np.require(array, np.int64, ["C", "ALIGNED"])


def flat(array, first):
    """(first, features): a view where the features can be one dimension."""
    return array.reshape(first, int(np.prod(array.shape[1:], dtype=np.int64)))


def check_elements(function, argument, array):
    if array.ndim == 0:
        raise ValueError(f"{function}: {argument} has shape (), accepted: at least one dimension")
