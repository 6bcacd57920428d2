"""Checks of axes and shapes that functions of rows of logits share, of arrays and of tensors."""

import numpy as np

from ._scalars import index as index_of, integer


def row_axis(name, argument, shape, axis, called="axis"):
    """axis, which the function calls so, as a number from 0; a TypeError or AxisError otherwise."""
    number = integer(name, called, axis, "an int")
    if not shape:
        raise ValueError(f"{name}: {argument} has shape (), accepted: at least one dimension")
    if not -len(shape) <= number < len(shape):
        accepted = f"{-len(shape)} to {len(shape) - 1}, the dimensions of {argument}"
        raise np.exceptions.AxisError(f"{name}: {called} is {number}, accepted: {accepted}")
    return number % len(shape)


def check_axis(function, axis, ndim):
    """An axis of an array of ndim dimensions, counted from 0. One of none counts as one of one."""
    ndim, number = max(ndim, 1), integer(function, "axis", axis, "an int")
    if not -ndim <= number < ndim:
        raise np.exceptions.AxisError(number, ndim, function)
    return number % ndim


def check_axes(function, axis, ndim):
    """A tuple of axes, counted from 0, in the order given; None is all."""
    if axis is None:
        return tuple(range(max(ndim, 1)))
    try:
        axes = tuple(map(index_of, axis if isinstance(axis, tuple) else (axis,)))
    except TypeError:
        raise TypeError(f"{function}: axis is {axis!r}, accepted: an int, a tuple of ints or None") from None
    axes = tuple(check_axis(function, a, ndim) for a in axes)
    if len(set(axes)) < len(axes):
        raise ValueError(f"{function}: duplicate value in axis, which is {axis!r}, accepted: each axis once")
    return axes


def row_shape(shape, axes, keepdims=True):
    """The shape of one value a row, of rows along axes that count from either end."""
    axes = {d % len(shape) for d in axes} if shape else ()
    return tuple(1 if d in axes else n for d, n in enumerate(shape) if keepdims or d not in axes)


def without(shape, axis):
    return row_shape(shape, (axis,), False)


def same_shape(name, argument, given, accepted):
    if tuple(given) != tuple(accepted):
        raise ValueError(f"{name}: {argument} has shape {tuple(given)}, accepted: {tuple(accepted)}")


def check_unsigned(name, index, rows, classes):
    """Raises if an index of uint64, of rows of this shape, is of no class: int64, which kernels take, may not hold it."""
    wrong = np.flatnonzero(index >= np.uint64(classes))
    if wrong.size:
        row = wrong[0] if index.ndim == len(rows) else wrong[0] // index.shape[-1]
        accepted = f"accepted: indices from 0 below {classes}"
        raise ValueError(f"{name}: index is {index.flat[wrong[0]]} for row {row}, {accepted}")


def check_index(name, shape, rows):
    """Raises unless an index of this shape goes with rows of that one: one for each, or K in one dimension more."""
    if tuple(shape[: len(rows)]) != tuple(rows) or len(shape) not in (len(rows), len(rows) + 1):
        text = ", ".join(map(str, (*rows, "K")))
        raise ValueError(f"{name}: index has shape {tuple(shape)}, accepted: {tuple(rows)} or ({text})")
