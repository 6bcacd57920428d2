"""Checks of axes and shapes that functions of rows of logits share, of arrays and of tensors."""

import operator

import numpy as np


def row_axis(name, argument, shape, axis):
    """axis as a number from 0; a TypeError or AxisError otherwise."""
    try:
        number = operator.index(axis)
    except TypeError:
        raise TypeError(f"{name}: axis is {axis!r}, accepted: an int") from None
    if not shape:
        raise ValueError(f"{name}: {argument} has shape (), accepted: at least one dimension")
    if not -len(shape) <= number < len(shape):
        accepted = f"{-len(shape)} to {len(shape) - 1}, the dimensions of {argument}"
        raise np.exceptions.AxisError(f"{name}: axis is {number}, accepted: {accepted}")
    return number % len(shape)


def without(shape, axis):
    return (*shape[:axis], *shape[axis + 1 :])


def same_shape(name, argument, given, accepted):
    if tuple(given) != tuple(accepted):
        raise ValueError(f"{name}: {argument} has shape {tuple(given)}, accepted: {tuple(accepted)}")


def check_unsigned(name, index, rows, classes):
    """Raises if an index of uint64, of rows of this shape, is of no class: int64, which kernels take, may not hold it."""
    wrong = np.flatnonzero(index >= np.uint64(classes))
    if wrong.size:
        row = wrong[0] if index.ndim == len(rows) else wrong[0] // index.shape[-1]
        accepted = f"accepted are indices from 0 below {classes}"
        raise ValueError(f"{name}: index: got {index.flat[wrong[0]]} for row {row}; {accepted}")


def check_index(name, shape, rows):
    """Raises unless an index of this shape goes with rows of that one: one for each, or K in one dimension more."""
    if tuple(shape[: len(rows)]) != tuple(rows) or len(shape) not in (len(rows), len(rows) + 1):
        text = ", ".join(map(str, (*rows, "K")))
        raise ValueError(f"{name}: index has shape {tuple(shape)}, accepted: {tuple(rows)} or ({text})")
