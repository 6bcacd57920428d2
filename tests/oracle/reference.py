"""The operations over the last axis, in numpy.longdouble: about 2^-60 relative, far below what is measured.

Forward operations take arrays of any format and treat their values as exact. Derivatives return the pair
(value, scale): scale is the sum of the magnitudes that the value is the difference of, which is what an error
has to be measured against where the difference cancels. In those of log_softmax an element's own share counts by what is
left of it, |g_i| (1 - s_i), so that scale vanishes with the value where one element has all of the probability.
Probabilities that the implementation has to compute count as at least `tiny`, the smallest normal number of its
arithmetic: below it rounding is absolute.

forward_mp is the three forward operations in mpmath, slow, for checking the references themselves.
"""

import mpmath
import numpy as np

from .formats import exact, longdouble


def _shifted(x):
    """(hi, lo, m): x - m = hi + lo to twice the precision, m the maximum of the row."""
    x = exact(x)
    m = np.max(x, axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        hi = x - m
        back = hi + m
        lo = (x - back) + (m - (back - hi))
    return hi, np.where(np.isfinite(hi), lo, 0), m


def _sums(x):
    hi, lo, m = _shifted(x)
    e = np.exp(hi) * (1 + lo)
    winner = (hi == 0) & (lo == 0)
    count = np.sum(winner, axis=-1, keepdims=True)
    others = np.sum(np.where(winner, longdouble(0), e), axis=-1, keepdims=True)
    return hi, lo, m, e, count, others


def forward(x):
    """(softmax, log_softmax, logsumexp with keepdims, maximum) of finite or -inf x with a finite maximum."""
    hi, lo, m, e, count, others = _sums(x)
    L = np.log1p((count - 1) + others)
    return e / (count + others), hi - L + lo, m + L, m


def softmax(x):
    return forward(x)[0]


def log_softmax(x):
    return forward(x)[1]


def logsumexp(x):
    return forward(x)[2]


def weighted_sum(x, b):
    """(sum_j b_j e^(x_j - m), sum_j |b_j| e^(x_j - m), m), m the maximum where b is not 0."""
    b = exact(b)
    x = np.where(b != 0, exact(x), -np.inf)
    hi, lo, m = _shifted(x)
    e = np.exp(hi) * (1 + lo)
    return np.sum(b * e, axis=-1, keepdims=True), np.sum(np.abs(b) * e, axis=-1, keepdims=True), m


def _dot(a, b):
    return np.sum(a * b, axis=-1, keepdims=True)


def _others(a, winner):
    """sum_{j != i} a_j for every i, without cancellation where i is the winner."""
    rest = np.sum(np.where(winner, longdouble(0), a), axis=-1, keepdims=True)
    return np.where(winner, rest, np.sum(a, axis=-1, keepdims=True) - a)


def softmax_vjp(g, y, tiny=0):
    g, y = exact(g), exact(y)
    return y * (g - _dot(y, g)), (np.abs(y) + tiny) * (np.abs(g) + _dot(np.abs(y), np.abs(g)))


def _log_probabilities(y):
    """(e^y, 1 - e^y, where the winner is)."""
    y = exact(y)
    return np.exp(y), -np.expm1(y), y >= -0.5625


def log_softmax_vjp(g, y, tiny=0):
    g, (s, rest, winner) = exact(g), _log_probabilities(y)
    return g * rest - s * _others(g, winner), np.abs(g) * (rest + tiny) + (s + tiny) * _others(np.abs(g), winner)


def log_softmax_jvp(t, y, tiny=0):
    t, (s, rest, winner) = exact(t), _log_probabilities(y)
    return t * rest - _others(s * t, winner), np.abs(t) * (rest + tiny) + _others((s + tiny) * np.abs(t), winner)


def logsumexp_vjp(g, x, tiny=0):
    g, s = exact(g), softmax(x)
    return g * s, np.abs(g) * (s + tiny)


def logsumexp_jvp(t, x, tiny=0):
    s, t = softmax(x), exact(t)
    return _dot(s, t), _dot(s + tiny, np.abs(t))


def softmax_hvp(g, v, y, tiny=0):
    g, v, y = exact(g), exact(v), exact(y)
    w = (v - _dot(y, v)) * (g - _dot(y, g))
    size = (np.abs(v) + _dot(np.abs(y), np.abs(v))) * (np.abs(g) + _dot(np.abs(y), np.abs(g)))
    return y * (w - _dot(y, w)), (np.abs(y) + tiny) * (size + _dot(np.abs(y), size))


def log_softmax_hvp(g, v, y, tiny=0):
    g, s = exact(g), np.exp(exact(y))
    change, scale = log_softmax_jvp(v, y, tiny)
    total, size = np.sum(g, axis=-1, keepdims=True), np.sum(np.abs(g), axis=-1, keepdims=True)
    return -total * s * change, size * ((s + tiny) * scale + tiny)


# -- mpmath -------------------------------------------------------------------------------------------------


def _to_longdouble(value):
    """An mpf to longdouble: its leading 53 bits, then the rest, brought to [1/2, 1) first."""
    fraction, exponent = mpmath.frexp(value)
    high = float(fraction)
    return np.ldexp(longdouble(high) + longdouble(float(fraction - high)), max(exponent, -20_000))


def forward_mp(row):
    """forward() of one row, by the definition and 60 digits (or as many as the range of x asks for)."""
    values = [float(v) for v in np.asarray(row).astype(np.float64)]
    spread = max((abs(v) for v in values if np.isfinite(v)), default=0.0)
    with mpmath.workdps(60 + int(max(np.log10(spread + 1), 0))):
        x = [mpmath.mpf(v) for v in values]
        m = max(x)
        # no exp(x_j) alone: x_j may be 1e300; the difference is exact at this precision
        e = [mpmath.exp(v - m) if v - m > -20000 else mpmath.mpf(0) for v in x]
        winners = sum(1 for v in x if v == m)
        others = mpmath.fsum(t for t, v in zip(e, x) if v != m)
        L = mpmath.log1p((winners - 1) + others)
        S = winners + others
        convert = _to_longdouble
        return (np.array([convert(t / S) for t in e]),
                np.array([convert(v - m - L) if mpmath.isfinite(v) else -np.inf for v in x], longdouble),
                np.array([convert(m + L)]), np.array([convert(m)]))
