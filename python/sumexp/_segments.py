"""Segments: softmax, log_softmax and logsumexp of rows of many lengths that lie one after the other."""


import numpy as np

from . import _arrays, _core
from ._devices import is_torch
from ._segment_arguments import OPS, check_elements, check_offsets, flat

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
    functions on plain rows; NotImplementedError for arrays on CUDA devices that are not torch's tensors.
    """


def _document(function, plain, shape, more):
    in_place = " or exactly x" if shape == "x's shape" else ""
    function.__doc__ = f"""{plain} over the first axis of each segment, for each of the trailing features alone.

    Parameters
    ----------
    x : array of float16, bfloat16, float32 or float64, (elements, ...)
        Integers and bools become float64.{_SEGMENTS}
    out : array
        Where to write: of the result's shape and dtype, apart from the other arrays{in_place}.

    Returns
    -------
    An array of {shape}, in the library of x, with the bytes of {plain} of each segment alone, and its bound.
    {more}
{_RAISES}"""
    return function


def _document_derivative(function, what, names, shape, more=""):
    first, second = names
    in_place = "" if shape.startswith("shape") else " or exactly x" if names == ("g", "x") else " or exactly one of them"
    function.__doc__ = f"""{what}

    Parameters
    ----------
    {first} : array
        {"Of one value a segment" if first == "g" and second == "x" else f"Of {second}'s shape"}.
    {second} : array, (elements, ...)
        {"The argument" if second == "x" else "The result"} of the function.{_SEGMENTS}
    out : array
        Where to write: of the result's shape and dtype, apart from the other arrays{in_place}.

    Returns
    -------
    An array of {shape}, with the bytes of the derivative of each segment alone.{more}
{_RAISES}"""
    return function


def _call(function, names, arrays, offsets, ids, num_segments, out=None):
    if any(is_torch(v) for v in (*arrays, out)):
        from .torch import _segments

        return _segments.call(function, names, arrays, offsets, ids, num_segments, out)
    made, back = _arrays.together(function, **dict(zip(names, arrays)))
    op = OPS[function]
    full = made[-1]
    check_elements(function, names[-1], full)
    offsets = check_offsets(function, full.shape[0], offsets, ids, num_segments)
    segments = len(offsets) - 1
    per_row = (segments, *full.shape[1:])
    if len(made) == 2:
        accepted = per_row if op.row_gradient else full.shape
        if made[0].shape != accepted:
            raise ValueError(f"{function}: {names[0]} has shape {made[0].shape}, accepted: {accepted}")
    # A segment's result is written where another has its input, unless both are of its elements.
    apart = made if op.row_result else made[:1] if op.row_gradient else ()
    result = _arrays.result(function, out, per_row if op.row_result else full.shape, full.dtype, *made, apart=apart)
    target = flat(result, len(result))
    first, second = (flat(a, len(a)) for a in made) if len(made) == 2 else (flat(full, len(full)), None)
    if op.x_first:
        first, second = second, first
    _core._segments(function, op.op, first, second, offsets, target)
    if not np.may_share_memory(target, result):  # `out` has features that are no one dimension
        result[...] = target.reshape(result.shape)
    return back(result) if out is None else out


def segment_softmax(x, *, offsets=None, ids=None, num_segments=None, out=None):
    return _call("segment_softmax", ("x",), (x,), offsets, ids, num_segments, out)


def segment_log_softmax(x, *, offsets=None, ids=None, num_segments=None, out=None):
    return _call("segment_log_softmax", ("x",), (x,), offsets, ids, num_segments, out)


def segment_logsumexp(x, *, offsets=None, ids=None, num_segments=None, out=None):
    return _call("segment_logsumexp", ("x",), (x,), offsets, ids, num_segments, out)


def segment_softmax_vjp(g, y, *, offsets=None, ids=None, num_segments=None, out=None):
    return _call("segment_softmax_vjp", ("g", "y"), (g, y), offsets, ids, num_segments, out)


def segment_softmax_jvp(t, y, *, offsets=None, ids=None, num_segments=None, out=None):
    return _call("segment_softmax_jvp", ("t", "y"), (t, y), offsets, ids, num_segments, out)


def segment_log_softmax_vjp(g, y, *, offsets=None, ids=None, num_segments=None, out=None):
    return _call("segment_log_softmax_vjp", ("g", "y"), (g, y), offsets, ids, num_segments, out)


def segment_log_softmax_jvp(t, y, *, offsets=None, ids=None, num_segments=None, out=None):
    return _call("segment_log_softmax_jvp", ("t", "y"), (t, y), offsets, ids, num_segments, out)


def segment_logsumexp_vjp(g, x, *, offsets=None, ids=None, num_segments=None, out=None):
    return _call("segment_logsumexp_vjp", ("g", "x"), (g, x), offsets, ids, num_segments, out)


def segment_logsumexp_jvp(t, x, *, offsets=None, ids=None, num_segments=None, out=None):
    return _call("segment_logsumexp_jvp", ("t", "x"), (t, x), offsets, ids, num_segments, out)


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
