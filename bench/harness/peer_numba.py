"""The loops of the numba peer. Imported by its worker alone."""

import math

import numba
import numpy as np

parallel = numba.njit(parallel=True, fastmath=True, error_model="numpy")


@parallel
def softmax(x, y):
    rows, n = x.shape
    for r in numba.prange(rows):
        m = x[r, 0]
        for j in range(n):
            m = max(m, x[r, j])
        total = x.dtype.type(0)
        for j in range(n):
            y[r, j] = math.exp(x[r, j] - m)
            total += y[r, j]
        scale = x.dtype.type(1) / total
        for j in range(n):
            y[r, j] *= scale


@parallel
def log_softmax(x, y):
    rows, n = x.shape
    for r in numba.prange(rows):
        m = x[r, 0]
        for j in range(n):
            m = max(m, x[r, j])
        total = x.dtype.type(0)
        for j in range(n):
            total += math.exp(x[r, j] - m)
        shift = m + math.log(total)
        for j in range(n):
            y[r, j] = x[r, j] - shift


@parallel
def logsumexp(x, y):
    rows, n = x.shape
    for r in numba.prange(rows):
        m = x[r, 0]
        for j in range(n):
            m = max(m, x[r, j])
        total = x.dtype.type(0)
        for j in range(n):
            total += math.exp(x[r, j] - m)
        y[r] = m + math.log(total)


@parallel
def softmax_vjp(g, y, out):
    rows, n = g.shape
    for r in numba.prange(rows):
        dot = g.dtype.type(0)
        for j in range(n):
            dot += g[r, j] * y[r, j]
        for j in range(n):
            out[r, j] = y[r, j] * (g[r, j] - dot)


@parallel
def log_softmax_vjp(g, y, out):
    rows, n = g.shape
    for r in numba.prange(rows):
        total = np.sum(g[r])
        for j in range(n):
            out[r, j] = g[r, j] - math.exp(y[r, j]) * total
