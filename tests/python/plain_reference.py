"""What the functions should return, in NumPy, float64 and the plain formulas. Small inputs only."""

import numpy as np


def logsumexp(x, axis=None, b=None, keepdims=False, where=None):
    """(log abs(sum), sign) of sum b exp(x)."""
    x = np.asarray(x, np.float64)
    b = np.ones_like(x) if b is None else np.asarray(b, np.float64)
    x, b = np.broadcast_arrays(x, b)
    kept = (b != 0) & (True if where is None else where)
    x = np.where(kept, x, -np.inf)
    axis = tuple(range(x.ndim)) if axis is None else axis
    with np.errstate(all="ignore"):
        m = np.max(x, axis=axis, keepdims=True, initial=-np.inf)
        shift = np.where(np.isfinite(m), m, 0)
        total = np.sum(np.where(kept, b * np.exp(x - shift), 0), axis=axis, keepdims=True)
        lse, sign = shift + np.log(np.abs(total)), np.sign(total)
    return (lse, sign) if keepdims else (np.squeeze(lse, axis), np.squeeze(sign, axis))


def softmax(x, axis=-1, temperature=1.0, where=None):
    return np.exp(log_softmax(x, axis, temperature, where))


def log_softmax(x, axis=-1, temperature=1.0, where=None):
    x = np.asarray(x, np.float64) / temperature
    x = x if where is None else np.where(where, x, -np.inf)
    with np.errstate(all="ignore"):
        lse = logsumexp(x, axis, keepdims=True)[0]
        return x - np.where(np.isposinf(lse), np.nan, lse)  # +inf makes the whole row NaN


def _dot(a, b, axis):
    return np.sum(a * b, axis=axis, keepdims=True)


def softmax_vjp(g, y, axis=-1, temperature=1.0):
    g, y = np.float64(g), np.float64(y)
    return y * (g - _dot(y, g, axis)) / temperature


softmax_jvp = softmax_vjp


def log_softmax_vjp(g, y, axis=-1, temperature=1.0):
    g, y = np.float64(g), np.float64(y)
    return (g - np.exp(y) * np.sum(g, axis=axis, keepdims=True)) / temperature


def log_softmax_jvp(t, y, axis=-1, temperature=1.0):
    t, y = np.float64(t), np.float64(y)
    return (t - _dot(np.exp(y), t, axis)) / temperature


def logsumexp_vjp(g, x, axis=None, keepdims=False):
    g = np.asarray(g, np.float64)
    if not keepdims and np.ndim(x):
        g = np.expand_dims(g, tuple(range(np.ndim(x))) if axis is None else axis)
    return g * softmax(x, axis)


def logsumexp_jvp(t, x, axis=None, keepdims=False):
    return np.sum(softmax(x, axis) * np.float64(t), axis=axis, keepdims=keepdims)


def softmax_hvp(g, v, y, axis=-1, temperature=1.0):
    g, v, y = np.float64(g), np.float64(v), np.float64(y)
    gs, vs = _dot(g, y, axis), _dot(v, y, axis)
    return y * ((v - vs) * (g - gs) - (_dot(y, g * v, axis) - gs * vs)) / temperature**2


def log_softmax_hvp(g, v, y, axis=-1, temperature=1.0):
    g, v, s = np.float64(g), np.float64(v), np.exp(np.float64(y))
    return -np.sum(g, axis=axis, keepdims=True) * s * (v - _dot(s, v, axis)) / temperature**2
