"""Cross-entropy as csrc/include/sumexp/losses.hpp states it, in NumPy's longdouble; and the linear layer under it."""

import numpy as np

wide = np.longdouble


def log_softmax(z):
    with np.errstate(all="ignore"):
        z = z - z.max(axis=-1, keepdims=True)
        return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))




def cross_entropy(
    x, target, *, weight=None, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, softcap=None, temperature=1.0,
    token_weight=None, reduction="mean", denominator=None, on_empty="nan",
):
    """(loss, gradient of x, row losses, {name: array}) of logits (N, V)."""
    x = np.asarray(x, wide)
    rows, classes = x.shape
    w = np.ones(classes, wide) if weight is None else np.asarray(weight, wide)
    tokens = np.ones(rows, wide) if token_weight is None else np.asarray(token_weight, wide)
    y = np.zeros((rows, classes), wide)
    if isinstance(target, tuple):
        index, share = (np.asarray(t).reshape(rows, -1) for t in target)
        for i, k in np.ndindex(index.shape):
            if index[i, k] != ignore_index:
                y[i, index[i, k]] += share[i, k]
        kept = (index != ignore_index).any(axis=1)
        parts = tokens
    elif np.asarray(target).dtype.kind in "iu":
        target = np.asarray(target).reshape(rows)
        kept = target != ignore_index
        y[kept, target[kept]] = 1
        parts = tokens * np.where(kept, w[np.where(kept, target, 0)], 0)
    else:
        y[...], kept, parts = np.asarray(target, wide).reshape(rows, classes), np.ones(rows, bool), tokens
    x = np.where(kept[:, None], x, 0)
    z, slope = x, np.ones_like(x)
    if softcap is not None:
        t = np.tanh(x / softcap)
        z, slope = softcap * t, 1 - t * t
    z, slope = z / temperature, slope / temperature
    log_p = log_softmax(z)
    p = np.exp(log_p)
    lse = z.max(axis=1) - log_p.max(axis=1)
    a = w * ((1 - label_smoothing) * y + wide(label_smoothing) / classes)
    losses = tokens * (-(a * log_p).sum(axis=1) + z_loss * lse**2)
    gradient = ((a.sum(axis=1) + 2 * z_loss * lse)[:, None] * p - a) * slope * tokens[:, None]
    losses, gradient = np.where(kept, losses, 0), np.where(kept[:, None], gradient, 0)
    info = {
        "lse": lse,
        "log_prob": (y * log_p).sum(axis=1),
        "entropy": -(p * log_p).sum(axis=1),
        "z_loss": z_loss * lse**2,
        "predicted": z.argmax(axis=1),
        "correct": z.argmax(axis=1) == y.argmax(axis=1),
    }
    info = {n: np.where(kept, v, -1 if n == "predicted" else 0) for n, v in info.items()}
    loss = losses
    if reduction != "none":
        loss = losses.sum()
    if reduction == "mean":
        divisor = np.where(kept, parts, 0).sum() if denominator is None else wide(denominator)
        with np.errstate(all="ignore"):
            zero = divisor == 0 and on_empty == "zero"
            loss = wide(0) if zero else loss / divisor
            gradient = gradient * 0 if zero else gradient / divisor
    return loss, gradient, losses, info


def linear_cross_entropy(x, w, target, bias=None, **options):
    """(loss, dx, dw, dbias, info), with x (N, D)."""
    x, w = np.asarray(x, wide), np.asarray(w, wide)
    z = x @ w.T + (0 if bias is None else np.asarray(bias, wide))
    loss, g, _, info = cross_entropy(z, target, **options)
    return loss, g @ w, g.T @ x, g.sum(axis=0), info
