"""log_prob, entropy and kl_div: what is known of a row of logits beyond its sum. sumexp.torch._information has tensors."""

import numpy as np

from . import _arrays, _core
from ._devices import is_torch
from ._row_shapes import check_index, check_unsigned, row_axis, same_shape, without
from ._scalars import temperature as checked_temperature


def log_prob(logits, index, axis=-1, *, temperature=1.0, out=None):
    """Log-probabilities of chosen classes: log_softmax(logits / temperature)[index], without the other classes' results.

    Parameters
    ----------
    logits : array of float16, bfloat16, float32 or float64, at least 1-d
        Any strides, and what softmax takes beside these.
    index : array of integers of any dtype
        Of the shape of logits without `axis`, one class for each row; or with one dimension more, the last: K classes for each
        row. From 0 below the length of a row; a class may be given twice. Of torch's tensors on a CUDA device an index that is
        of no class makes its row NaN, in place of an error for which the call would have to wait.
    axis : int
        Of the classes.
    temperature : float
        T > 0: the bytes are those for logits / T, or, in a row where that would overflow, for (logits - max(logits)) / T.
        An infinite T makes every finite logit 0.
    out : array
        Receives the result: of index's shape and the logits' dtype, apart from both.

    Returns
    -------
    An array of index's shape and the logits' dtype, in their library; a scalar for 0-d results.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what was given and what is accepted; for an index that is of no class, the first one, with its row.
        Nothing has been written by then.

    Notes
    -----
    Within 1 ulp of the exact value (float16, bfloat16: 0.51 ulp), however close to 0: -((m - x_i) + L), with m the maximum and
    L = log(sum_j exp(x_j)) - m, is a sum of two numbers of one sign in a wider type, rounded once. A class whose logit is -inf
    has -inf. A row with NaN or +inf, or nothing above -inf, gives NaN. Bytes depend on the row's values alone.
    """
    return _forward("log_prob", logits, index, axis, temperature, out)


def entropy(logits, axis=-1, *, temperature=1.0, out=None):
    """The entropy of softmax(logits / temperature), in nats: sum_j p_j (log(sum_k exp(x_k)) - x_j).

    Parameters
    ----------
    logits, axis, temperature : as for log_prob
    out : array
        Receives the result: of the shape of logits without `axis`, and of their dtype, apart from them.

    Returns
    -------
    An array of the shape of logits without `axis` and of their dtype, in their library. TypeError and ValueError as for
    log_prob.

    Notes
    -----
    Within 4 ulp of the exact value (float16, bfloat16: 0.51 ulp), of entropies next to 0 too: entropy([0, -30]) is 2.9e-12. It
    is L + sum_j p_j (m - x_j), in the terms of log_prob, of which no part is negative. Elements of probability 0, of logits of
    -inf too, count 0. A row with NaN or +inf, or nothing above -inf, gives NaN; one of no elements 0.

    The bound is derived in csrc/numerics/information.hpp.
    """
    return _forward("entropy", logits, None, axis, temperature, out)


def log_prob_and_entropy(logits, index, axis=-1, *, temperature=1.0):
    """(log_prob(logits, index), entropy(logits)), with the same bytes, from one sweep over the logits.

    Arguments and errors are those of log_prob.
    """
    return _forward("log_prob_and_entropy", logits, index, axis, temperature, None)


def log_prob_vjp(g, logits, index, axis=-1, *, temperature=1.0, out=None):
    """The gradient that log_prob passes back: (sum over k with index_k = j of g_k, less p_j sum(g)) / T.

    Parameters
    ----------
    g : array of index's shape
        The gradient with respect to the result (a broadcast view will do).
    logits, index, axis, temperature : as in the forward call
    out : array
        Receives the result; may be exactly the logits.

    Returns
    -------
    d <g, log_prob> / d logits, of the logits' shape and dtype. TypeError and ValueError as for log_prob.

    Notes
    -----
    For one index a row, within 4 eps of abs(g) (1 - p_j) for the class given, of abs(g) p_j for all others, which is next to
    nothing where the class has probability 1, as the gradient is (probabilities below the smallest normal number count as that
    number). For K indices, within (4 + r) eps of
    abs(G_j) (1 - p_j) + p_j sum over the others of abs(g) for the class of the maximum, and of the sum of abs(g) at j and
    p_j sum abs(g) for all others; r is how often j is given. eps is 2**-52 in float64 and 2**-23 in float32; float16 and
    bfloat16 are computed in float32 (their sums are shorter: 20 eps), and rounded once.
    """
    return _backward("log_prob_vjp", (g, None), logits, index, axis, temperature, out)


def entropy_vjp(g, logits, axis=-1, *, temperature=1.0, out=None):
    """The gradient that entropy passes back: -g p_j (log p_j + entropy) / T, which is 0 where p_j is.

    Parameters
    ----------
    g : array of the shape of entropy(logits, axis)
    logits, axis, temperature : as in the forward call
    out : array
        Receives the result; may be exactly the logits.

    Returns
    -------
    d <g, entropy> / d logits, of the logits' shape and dtype. TypeError and ValueError as for log_prob.

    Notes
    -----
    Within 5 eps of abs(g) p_j (d_j + A), with d_j = m - x_j the distance from the maximum and A = sum_k p_k d_k: computed as
    g p_j (d_j - A), so that for the maximum's own class, and wherever one class has nearly all probability, nothing cancels.
    eps, the least probabilities, and what 16 bits add, as for log_prob_vjp.
    """
    return _backward("entropy_vjp", (None, g), logits, None, axis, temperature, out)


def log_prob_and_entropy_vjp(g, logits, index, axis=-1, *, temperature=1.0, out=None):
    """The gradient that log_prob_and_entropy passes back, in one sweep more: g is the pair of both gradients.

    The sum of log_prob_vjp(g[0], ...) and entropy_vjp(g[1], ...), within the sum of their bounds; arguments and errors too.
    """
    name = "log_prob_and_entropy_vjp"
    if not isinstance(g, (tuple, list)) or len(g) != 2 or any(v is None for v in g):
        raise TypeError(f"{name}: g is a {type(g).__name__}, accepted: the pair (g of log_prob, g of entropy)")
    return _backward(name, tuple(g), logits, index, axis, temperature, out)


def kl_div(p_logits, q_logits, axis=-1, *, out=None):
    """The Kullback-Leibler divergence of softmax(q_logits) from softmax(p_logits), in nats: sum_j p_j (log p_j - log q_j).

    Parameters
    ----------
    p_logits, q_logits : arrays of one shape, as the logits of log_prob
    axis : int
        Of the classes.
    out : array
        Receives the result: of the shape of the logits without `axis`, and of their dtype, apart from them.

    Returns
    -------
    An array of the shape of the logits without `axis` and of their dtype. TypeError and ValueError as for log_prob.

    Notes
    -----
    Never negative, 0 for rows that are equal or differ by a constant, and within 20 eps of itself plus (eps / 8)**2: also of
    rows that are nearly equal, where the definition's terms cancel. It is computed as sum_j p_j (exp(-w_j) - 1 + w_j) with
    w = log p - log q, the same number, whose terms are not negative (Schulman's estimator k3, summed over all classes); long
    rows in parts, which join without a difference, so that memory is read once. eps is 2**-52 in float64 and 2**-23 in
    float32, in which float16 and bfloat16 are computed.

    A class with p = 0 counts nothing; one with q = 0 and p > 0, which logits of -inf alone make, gives +inf. Rows with NaN or
    +inf, or nothing above -inf, in either give NaN; rows of no elements 0.
    """
    name = "kl_div"
    if is_torch(p_logits) or is_torch(q_logits):
        return _torch().kl_div_out(p_logits, q_logits, axis, out)
    (p, q), back = _arrays.together(name, p_logits=p_logits, q_logits=q_logits)
    axis = row_axis(name, "p_logits", p.shape, axis)
    same_shape(name, "q_logits", q.shape, p.shape)
    view = _arrays.result(name, out, without(p.shape, axis), p.dtype, p, q)
    _core._kl_div(p, q, axis, view)
    return back(view) if out is None else out


def kl_div_vjp(g, p_logits, q_logits, axis=-1):
    """The gradients that kl_div passes back: g p_j (log p_j - log q_j - kl_div), and g (q_j - p_j).

    Parameters
    ----------
    g : array of the shape of kl_div(p_logits, q_logits, axis)
    p_logits, q_logits, axis : as in the forward call

    Returns
    -------
    The gradients with respect to p_logits and q_logits, of their shape and dtype. TypeError and ValueError as for log_prob.

    Notes
    -----
    With w = log p - log q, known within 1 eps of itself and eps / 8 that all elements have in common: the second within 8 eps
    of abs(g) abs(q_j - p_j) and eps / 8 of abs(g) p_j; the first within 20 eps of abs(g) p_j (abs(w_j) + kl_div), but for the
    class of p's maximum of abs(g) p_j (abs(w_j) (1 - p_j) + sum_{k != j} p_k abs(w_k)), and eps / 8 of abs(g) p_j (1 - p_j).
    Where kl_div is infinite, the first is NaN wherever p > 0. eps as for kl_div, the least probabilities as for log_prob_vjp.
    """
    name = "kl_div_vjp"
    if any(map(is_torch, (g, p_logits, q_logits))):
        return _torch().kl_div_vjp(g, p_logits, q_logits, axis)
    (g, p, q), back = _arrays.together(name, g=g, p_logits=p_logits, q_logits=q_logits)
    axis = row_axis(name, "p_logits", p.shape, axis)
    same_shape(name, "q_logits", q.shape, p.shape)
    same_shape(name, "g", g.shape, without(p.shape, axis))
    dp, dq = np.empty(p.shape, p.dtype), np.empty(p.shape, p.dtype)
    _core._kl_div_vjp(g, p, q, axis, dp, dq)
    return back(dp), back(dq)


# -- common to these -----------------------------------------------------------------------------------------


def _torch():
    from .torch import _information

    return _information


def _indices(name, index, rows, classes):
    index = _arrays.integers(name, "index", index)
    check_index(name, index.shape, rows)
    if index.dtype == np.uint64:
        check_unsigned(name, index, rows, classes)
    return index.astype(np.int64, copy=False)


def _forward(name, logits, index, axis, temperature, out):
    if is_torch(logits) or is_torch(index):
        return _torch().forward_out(name, logits, index, axis, temperature, out)
    (x,), back = _arrays.together(name, logits=logits)
    axis = row_axis(name, "logits", x.shape, axis)
    rows, T = without(x.shape, axis), checked_temperature(name, temperature)
    chosen = entropies = None
    if name != "entropy":
        index = _indices(name, index, rows, x.shape[axis])
        chosen = _arrays.result(name, out, index.shape, x.dtype, apart=(x, index))
    if name != "log_prob":
        entropies = _arrays.result(name, out, rows, x.dtype, x)
    _core._log_prob_and_entropy(name, x, index, axis, T, chosen, entropies)
    if out is not None:
        return out
    made = [back(a) for a in (chosen, entropies) if a is not None]
    return made[0] if len(made) == 1 else tuple(made)


def _backward(name, g, logits, index, axis, temperature, out):
    if any(map(is_torch, (*g, logits, index))):
        return _torch().backward_out(name, g, logits, index, axis, temperature, out)
    (of_picks, of_row, x), back = _arrays.together(name, **{"g": g[0], "g of entropy": g[1], "logits": logits})
    axis = row_axis(name, "logits", x.shape, axis)
    rows, T = without(x.shape, axis), checked_temperature(name, temperature)
    if of_picks is not None:
        index = _indices(name, index, rows, x.shape[axis])
        same_shape(name, "g", of_picks.shape, index.shape)
    if of_row is not None:
        same_shape(name, "g", of_row.shape, rows)
    view = _arrays.result(name, out, x.shape, x.dtype, x, apart=(of_picks, of_row, index))
    _core._log_prob_and_entropy_vjp(name, of_picks, of_row, x, index, axis, T, view)
    return back(view) if out is None else out
