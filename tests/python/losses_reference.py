"""Cross-entropy by its definition, in mpmath: of one row, and of arrays with every option; and what its tests are given."""

import mpmath
import numpy as np

from oracle.formats import exact

INFO = ("lse", "log_prob", "entropy", "z_loss", "predicted", "correct")
MIXES = {
    "nothing": {},
    "smoothing": {"label_smoothing": 0.1},
    "all": {"label_smoothing": 0.1, "z_loss": 1e-3, "softcap": 20.0, "temperature": 1.3},
}

mpmath.mp.dps = 60


def numbers(values):
    return [mpmath.mpf(float(v)) for v in values]


def index_row(x, t):
    """(loss, gradient) of one row of finite numbers or -inf, against the index t."""
    x = numbers(x)
    m = max(x)
    e = [mpmath.exp(v - m) for v in x]
    total = mpmath.fsum(e)
    loss = mpmath.inf if x[t] == -mpmath.inf else mpmath.log(total) + m - x[t]
    others = mpmath.fsum(v for j, v in enumerate(e) if j != t)
    return loss, [-others / total if j == t else v / total for j, v in enumerate(e)]


def ulps(got, exactly, digits, tiny):
    """|got - exactly| in units of the last place of a format, per element."""
    worst = mpmath.mpf(0)
    for g, r in zip(np.asarray(got, np.float64).ravel(), exactly):
        if mpmath.isinf(r) or not np.isfinite(g):
            if g != float(r):
                return mpmath.inf
            continue
        exponent = mpmath.frexp(r)[1] if r else tiny
        worst = max(worst, abs(mpmath.mpf(float(g)) - r) / mpmath.mpf(2) ** max(exponent - digits, tiny))
    return worst


class Reference:
    """Every option in longdouble, for finite logits: loss, gradient, and the sums of absolute parts that bounds scale with."""

    def __init__(self, logits, target, axis=-1, *, weight=None, ignore_index=-100, label_smoothing=0.0, z_loss=0.0,
                 softcap=None, temperature=1.0, token_weight=None, reduction="mean", denominator=None):
        one = np.longdouble(1)
        x = np.moveaxis(exact(logits), axis, -1)
        rows, n = x.shape[:-1], x.shape[-1]
        x = x.reshape(-1, n)
        y, kept, indices = self.targets(target, axis, len(x), n, ignore_index)
        w = np.ones(n, np.longdouble) if weight is None else exact(weight)
        token = np.ones(len(x), np.longdouble)
        if token_weight is not None:
            token = np.broadcast_to(np.asarray(token_weight, np.longdouble), rows).reshape(-1)
        x = np.where(kept[:, None], x, 0)
        cap, T, eps = one * (softcap or 1), one * temperature, one * label_smoothing
        u = np.tanh(x / cap)
        z = (cap * u if softcap else x) / T
        slope = (1 / np.cosh(x / cap) ** 2 if softcap else np.ones_like(x)) / T
        m = z.max(1, keepdims=True)
        others = np.exp(z - m)
        total = others.sum(1, keepdims=True)
        others[np.arange(len(x)), z.argmax(1)] = 0
        L = np.log1p(others.sum(1, keepdims=True))
        lse, p = m + L, np.exp(z - m) / total
        distance = (m - z) + L
        a = w * ((1 - eps) * y + eps / n)
        zl = one * z_loss
        row = (a * distance).sum(1) + zl * lse[:, 0] ** 2
        parts = (np.abs(a) * distance).sum(1) + zl * lse[:, 0] ** 2
        wide = (np.abs(a) * (np.abs(z) + np.abs(lse))).sum(1)
        self.entropy, self.lse = (p * distance).sum(1).reshape(rows), lse.reshape(rows)
        self.log_prob = -(y * distance).sum(1).reshape(rows)
        dn = one
        if reduction == "mean":
            each = token * ((w * y).sum(1) if indices else 1) * kept
            dn = each.sum() if denominator is None else one * denominator
        f = np.where(kept, token / dn, 0)[:, None]
        of_lse = 2 * zl * lse
        g = ((a.sum(1, keepdims=True) + of_lse) * p - a) * slope * f
        scale = ((np.abs(a).sum(1, keepdims=True) + np.abs(of_lse)) * p + np.abs(a)) * slope * np.abs(f)

        def back(v):
            return np.moveaxis(v.reshape(*rows, n), -1, axis)

        self.gradient, self.gradient_parts = back(g), back(scale)
        self.gradient_wide = back(scale * (1 + np.abs(z) + np.abs(lse)))
        row, parts, wide = (np.where(kept, token * v, 0) for v in (row, parts, parts + wide))
        if reduction == "none":
            self.loss, self.parts, self.wide = row.reshape(rows), np.abs(parts).reshape(rows), np.abs(wide).reshape(rows)
        else:
            self.loss, self.parts, self.wide = row.sum() / dn, np.abs(parts).sum() / dn, np.abs(wide).sum() / dn

    @staticmethod
    def targets(target, axis, rows, n, ignore_index):
        y, kept = np.zeros((rows, n), np.longdouble), np.ones(rows, bool)
        if isinstance(target, tuple):
            index, weight = target[0].reshape(rows, -1), exact(target[1]).reshape(rows, -1)
            for r, k in np.ndindex(index.shape):
                if index[r, k] != ignore_index:
                    y[r, index[r, k]] += weight[r, k]
            return y, (index != ignore_index).any(1), False
        if target.dtype.kind in "iu":
            flat = target.reshape(-1)
            kept = flat != ignore_index
            y[np.nonzero(kept)[0], flat[kept].astype(np.int64)] = 1
            return y, kept, True
        return np.moveaxis(exact(target), axis, -1).reshape(rows, n), kept, False


def same(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def logits(rng, fmt, shape, scale=4.0):
    return (rng.standard_normal(shape) * scale).astype(fmt.dtype)


def targets(rng, fmt, kind, rows, n):
    if kind == "probabilities":
        return rng.dirichlet(np.ones(n), rows).astype(fmt.dtype)
    if kind == "pairs":
        index = rng.integers(0, n, (*rows, 3))
        index[..., 2] = index[..., 0]  # a class named twice
        index.reshape(-1, 3)[1, 1] = -100
        index.reshape(-1, 3)[2] = -100
        return index, rng.random((*rows, 3)).astype(fmt.dtype)
    t = rng.integers(0, n, rows)
    t.flat[2] = -100
    return t
