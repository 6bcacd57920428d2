"""The arguments of masked rows, of arrays and of tensors alike: their checks."""

import numpy as np

from ._row_shapes import without
from ._scalars import integer

NAMES = ("where", "lengths", "causal", "bias", "softcap", "sink", "temperature", "empty")
OPS = {"masked_softmax": 0, "masked_log_softmax": 1, "masked_logsumexp": 2}


def result_shape(name, shape, axis):
    return without(shape, axis) if OPS[name] == 2 else tuple(shape)


def shape_error(function, argument, given, accepted):
    return ValueError(f"{function}: {argument} has shape {tuple(given)}, accepted: {accepted}")


def laid(function, argument, array, shape, axis=None):
    """An array as one of len(shape) dimensions, each as in `shape` or 1; along `axis` 1, where it has none."""
    if array is None:
        return None
    rest = tuple(shape) if axis is None else without(shape, axis)
    given = tuple(array.shape)
    padded = (1,) * (len(rest) - len(given)) + given
    if len(given) > len(rest) or any(a not in (1, n) for a, n in zip(padded, rest)):
        hint = "" if axis is None else ", the shape without the axis"
        raise shape_error(function, argument, given, f"{rest}{hint}, or what broadcasts to it")
    return array.reshape(padded if axis is None else (*padded[:axis], 1, *padded[axis:]))


def check_lengths(function, lengths, shape, axis):
    """A ValueError for one outside of the axis, as the kernel has it. `lengths` is an ndarray, laid."""
    others = without(shape, axis)
    rows = lengths.reshape(-1) if 0 not in others else lengths[:0].reshape(-1)  # none: no rows
    outside = np.flatnonzero((rows < 0) | (rows > shape[axis]))
    if outside.size:
        place = [i for d, i in enumerate(np.unravel_index(outside[0], lengths.shape)) if d != axis]
        row = np.ravel_multi_index(place, others) if others else 0
        accepted = f"accepted: 0 to {shape[axis]}, the length of the axis"
        raise ValueError(f"{function}: lengths has {rows[outside[0]]} for row {row}, {accepted}")


def check_causal(function, causal, ndim):
    """The offset, or None."""
    if str(getattr(causal, "dtype", "")).endswith("bool") and causal.ndim == 0:
        causal = bool(causal)
    if causal is None or causal is False:
        return None
    offset = 0 if causal is True else integer(function, "causal", causal, "an int or a bool")
    if ndim < 2:
        raise ValueError(f"{function}: causal with an x of {ndim} dimension, accepted: two or more")
    return max(min(offset, 2**62), -(2**62))


def check_empty(function, empty):
    if not isinstance(empty, str) or empty not in ("zero", "nan"):
        raise ValueError(f"{function}: empty is {empty!r}, accepted: 'zero' or 'nan'")
    return empty == "nan"
