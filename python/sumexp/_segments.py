"""Segments: softmax, log_softmax and logsumexp of rows of many lengths that lie one after the other."""

import operator

import numpy as np

from . import _arrays, _core
from ._devices import is_torch

# sumexp::Op, and whether the result has one value a segment
OPS = {
    "segment_softmax": (0, False),
    "segment_log_softmax": (1, False),
    "segment_logsumexp": (2, True),
    "segment_softmax_vjp": (3, False),
    "segment_softmax_jvp": (3, False),
    "segment_log_softmax_vjp": (4, False),
    "segment_log_softmax_jvp": (5, False),
    "segment_logsumexp_vjp": (6, False),
    "segment_logsumexp_jvp": (7, True),
}

_SEGMENTS = """
    offsets : array of integers
        Segment s is elements offsets[s] to offsets[s + 1] of the first axis: from 0 to its length, and none falls (CSR).
    ids : array of integers
        In place of offsets, the segment of each element, sorted: 0 to num_segments - 1, and none falls.
    num_segments : int
        With ids: how many segments there are, those without elements too. None: one more than the largest id."""

_RAISES = """
    Raises
    ------
    ValueError for offsets or ids that fall, or lie outside, which names the first place; TypeError and ValueError as the
    functions on plain rows; NotImplementedError for arrays on CUDA devices.
    """


def _document(function, plain, shape, more):
    function.__doc__ = f"""{plain} over the first axis of each segment, for each of the trailing features alone.

    Parameters
    ----------
    x : array of float16, bfloat16, float32 or float64, (elements, ...)
        Integers and bools become float64.{_SEGMENTS}
    out : array
        Where to write: of the result's shape and dtype, apart from the other arrays or exactly x.

    Returns
    -------
    An array of {shape}, in the library of x, with the bytes of {plain} of each segment alone, and its bound.
    {more}
{_RAISES}"""
    return function


def _document_derivative(function, what, names, shape, more=""):
    first, second = names
    function.__doc__ = f"""{what}

    Parameters
    ----------
    {first} : array
        {"Of one value a segment" if first == "g" and second == "x" else f"Of {second}'s shape"}.
    {second} : array, (elements, ...)
        {"The argument" if second == "x" else "The result"} of the function.{_SEGMENTS}

    Returns
    -------
    An array of {shape}, with the bytes of the derivative of each segment alone.{more}
{_RAISES}"""
    return function


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
    made = np.empty(segments + 1, np.int64)
    _core._segment_offsets(function, ids, made)
    return made


def count(function, value):
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{function}: num_segments is {value!r}, accepted: an int or None") from None
    if number < 0:
        raise ValueError(f"{function}: num_segments is {number}, accepted: an int from 0")
    return number


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


def _call(function, names, arrays, offsets, ids, num_segments, out=None):
    if any(is_torch(v) for v in (*arrays, out)):
        from .torch import _segments

        return _segments.call(function, names, arrays, offsets, ids, num_segments, out)
    made, back = _arrays.together(function, **dict(zip(names, arrays)))
    op, row = OPS[function]
    full = made[-1]
    check_elements(function, names[-1], full)
    offsets = check_offsets(function, full.shape[0], offsets, ids, num_segments)
    segments = len(offsets) - 1
    per_row = (segments, *full.shape[1:])
    if len(made) == 2:
        accepted = per_row if op == 6 else full.shape
        if made[0].shape != accepted:
            raise ValueError(f"{function}: {names[0]} has shape {made[0].shape}, accepted: {accepted}")
    result = _arrays.result(function, out, per_row if row else full.shape, full.dtype, *made)
    target = flat(result, len(result))
    first, second = flat(full, len(full)), flat(made[0], len(made[0])) if len(made) == 2 else None
    if op in (3, 4, 5):
        first, second = second, first
    _core._segments(function, op, first, second, offsets, target)
    if not np.may_share_memory(target, result):  # `out` has features that are no one dimension
        result[...] = target.reshape(result.shape)
    return back(result) if out is None else out


def segment_softmax(x, *, offsets=None, ids=None, num_segments=None, out=None):
    return _call("segment_softmax", ("x",), (x,), offsets, ids, num_segments, out)


def segment_log_softmax(x, *, offsets=None, ids=None, num_segments=None, out=None):
    return _call("segment_log_softmax", ("x",), (x,), offsets, ids, num_segments, out)


def segment_logsumexp(x, *, offsets=None, ids=None, num_segments=None, out=None):
    return _call("segment_logsumexp", ("x",), (x,), offsets, ids, num_segments, out)


def segment_softmax_vjp(g, y, *, offsets=None, ids=None, num_segments=None):
    return _call("segment_softmax_vjp", ("g", "y"), (g, y), offsets, ids, num_segments)


def segment_softmax_jvp(t, y, *, offsets=None, ids=None, num_segments=None):
    return _call("segment_softmax_jvp", ("t", "y"), (t, y), offsets, ids, num_segments)


def segment_log_softmax_vjp(g, y, *, offsets=None, ids=None, num_segments=None):
    return _call("segment_log_softmax_vjp", ("g", "y"), (g, y), offsets, ids, num_segments)


def segment_log_softmax_jvp(t, y, *, offsets=None, ids=None, num_segments=None):
    return _call("segment_log_softmax_jvp", ("t", "y"), (t, y), offsets, ids, num_segments)


def segment_logsumexp_vjp(g, x, *, offsets=None, ids=None, num_segments=None):
    return _call("segment_logsumexp_vjp", ("g", "x"), (g, x), offsets, ids, num_segments)


def segment_logsumexp_jvp(t, x, *, offsets=None, ids=None, num_segments=None):
    return _call("segment_logsumexp_jvp", ("t", "x"), (t, x), offsets, ids, num_segments)


_SPECIAL = "Special values as there: a segment of -inf alone is NaN"
_document(segment_softmax, "softmax", "x's shape", f"{_SPECIAL}; one without elements has no results.")
_document(segment_log_softmax, "log_softmax", "x's shape", f"{_SPECIAL}; one without elements has no results.")
_document(segment_logsumexp, "logsumexp", "shape (num_segments, ...)", "A segment without elements, or of -inf alone, is -inf.")
_VJP, _JVP = "The gradient of {} passed back.", "The derivative of {} along a direction."
_document_derivative(segment_softmax_vjp, _VJP.format("segment_softmax"), ("g", "y"), "y's shape")
_document_derivative(segment_softmax_jvp, _JVP.format("segment_softmax"), ("t", "y"), "y's shape")
_document_derivative(segment_log_softmax_vjp, _VJP.format("segment_log_softmax"), ("g", "y"), "y's shape")
_document_derivative(segment_log_softmax_jvp, _JVP.format("segment_log_softmax"), ("t", "y"), "y's shape")
_document_derivative(segment_logsumexp_vjp, _VJP.format("segment_logsumexp"), ("g", "x"), "x's shape")
_document_derivative(segment_logsumexp_jvp, _JVP.format("segment_logsumexp"), ("t", "x"), "shape (num_segments, ...)",
                     " A segment without elements has 0.")
