"""Sums over the dimensions that an argument was broadcast along: what its gradient is."""

import numpy as np


def summed_to(x, shape):
    """An array summed, in float64, to the shape that was broadcast to x's."""
    return x if x.shape == shape else sum_by_halves(x.astype(np.float64), shape, np.concatenate).astype(x.dtype)


def sum_by_halves(wide, shape, join):
    """An array or tensor of float64 summed to this shape: dimensions are added by halves, so that the order is the same for
    both. join: concatenate, of its library."""
    lead = wide.ndim - len(shape)
    for axis, size in enumerate(wide.shape):
        if axis >= lead and (shape[axis - lead] != 1 or size == 1):
            continue
        left = wide.swapaxes(0, axis)
        if size == 0:
            left = left.sum(0, keepdims=True)
        while left.shape[0] > 1:
            half = left.shape[0] // 2
            pairs, last = left[:half] + left[half : 2 * half], left[2 * half :]
            left = join([pairs, last]) if left.shape[0] % 2 else pairs
        wide = left.swapaxes(0, axis)
    return wide.reshape(shape)
