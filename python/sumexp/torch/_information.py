"""log_prob, entropy and kl_div of tensors, by the mechanism of _composed.py; and what sumexp's functions of the same names do
when they are given tensors."""

from typing import Any

import torch

from .. import _core
from .._row_shapes import check_index, check_unsigned, row_axis, same_shape, without
from ._checks import as_tensor, check_classes, into, is_recorded, real
from ._composed import Composed
from ._front import check_temperature, log_softmax
from ._kernels import DEVICES, result_like

_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64)


def _at(index, x, dim):
    """index, of one class a row or several, as torch.gather takes it, and its result's way back."""
    if index.dim() < x.dim():
        return index.long().unsqueeze(dim), lambda y: y.squeeze(dim)
    return index.long().movedim(-1, dim), lambda y: y.movedim(dim, -1)


# -- formulas: differentiable any number of times ----------------------------------------------------------------


def _log_prob_formula(x, index, dim, T):
    check_classes("log_prob", "index", index, x.shape[dim])
    at, back = _at(index, x, dim)
    return back(log_softmax(x, dim, temperature=T).gather(dim, at))


def _entropy_formula(x, dim, T):
    y = log_softmax(x, dim, temperature=T)
    return -(y.exp() * y.masked_fill(y == -torch.inf, 0)).sum(dim)


def _both_formula(x, index, dim, T):
    return _log_prob_formula(x, index, dim, T), _entropy_formula(x, dim, T)


def _kl_formula(p_logits, q_logits, dim):
    """sum p w + q - p, w = log p - log q: what is added sums to 0, and makes of errors of w those of their squares."""
    y, z = log_softmax(p_logits, dim), log_softmax(q_logits, dim)
    nothing, p, q = y == -torch.inf, y.exp(), z.exp()
    w = y.masked_fill(nothing, 0) - z.masked_fill(nothing, 0)
    near = (w.abs() < 1) & ~nothing
    v = torch.where(near, w, 0)
    return torch.where(near, p * (v + torch.expm1(-v)), p * torch.where(near, 0, w) + (q - p)).sum(dim)


# -- kernels -------------------------------------------------------------------------------------------------------


def _longs(name, index, x, dim):
    if index.dtype is torch.uint64 and index.is_cpu:
        check_unsigned(name, index.numpy(), without(x.shape, dim), x.shape[dim])
    return index.long()


def _forward(name, x, index, dim, T):
    x = x.detach()
    chosen = None if index is None else x.new_empty(index.shape)
    entropy = None if name == "log_prob" else x.new_empty(without(x.shape, dim))
    _core._log_prob_and_entropy(name, x, index if index is None else _longs(name, index, x, dim), dim, T, chosen, entropy)
    return chosen, entropy


def _gradient(name, of_picks, of_row, x, index, dim, T, out=None):
    x = x.detach().resolve_neg()
    out = result_like(x) if out is None else out
    index = None if of_picks is None else _longs(name, index, x, dim)
    grads = (g if g is None else g.detach().resolve_neg().to(x.dtype) for g in (of_picks, of_row))
    _core._log_prob_and_entropy_vjp(name, *grads, x, index, dim, T, out)
    return out


def _kl_kernel(p, q, dim):
    p, q = p.detach(), q.detach()
    out = p.new_empty(without(p.shape, dim))
    _core._kl_div(p, q, dim, out)
    return out


def _kl_gradient(gradients, tensors, results, options, needs):
    g, p, q = (t.detach().resolve_neg() for t in (gradients[0], *tensors))
    dp, dq = map(result_like, (p, q))
    _core._kl_div_vjp(g, p, q, options[0], dp, dq)
    return tuple(t if needed else None for t, needed in zip((dp, dq), needs))


_OPTIONS = "int dim, float temperature"

LOG_PROB = Composed(
    "log_prob",
    ("logits", "index"),
    _OPTIONS,
    kernel=lambda x, index, dim, T: _forward("log_prob", x, index, dim, T)[0],
    gradient=lambda u, tensors, _, options, needs: (_gradient("log_prob_vjp", u[0], None, *tensors, *options), None),
    formula=_log_prob_formula,
    fake=lambda x, index, dim, T: x.new_empty(index.shape),
)
ENTROPY = Composed(
    "entropy",
    ("logits",),
    _OPTIONS,
    kernel=lambda x, dim, T: _forward("entropy", x, None, dim, T)[1],
    gradient=lambda u, tensors, _, options, needs: (_gradient("entropy_vjp", None, u[0], *tensors, None, *options),),
    formula=_entropy_formula,
    fake=lambda x, dim, T: x.new_empty(without(x.shape, dim)),
)
BOTH = Composed(
    "log_prob_and_entropy",
    ("logits", "index"),
    _OPTIONS,
    kernel=lambda x, index, dim, T: _forward("log_prob_and_entropy", x, index, dim, T),
    gradient=lambda u, tensors, _, options, needs: (_gradient("log_prob_and_entropy_vjp", *u, *tensors, *options), None),
    formula=_both_formula,
    fake=lambda x, index, dim, T: (x.new_empty(index.shape), x.new_empty(without(x.shape, dim))),
    results=2,
)
KL_DIV = Composed(
    "kl_div",
    ("p_logits", "q_logits"),
    "int dim",
    kernel=_kl_kernel,
    gradient=_kl_gradient,
    formula=_kl_formula,
    fake=lambda p, q, dim: p.new_empty(without(p.shape, dim)),
)


# -- arguments -----------------------------------------------------------------------------------------------------


def _beside(name, argument, value, like=None):
    if value.device.type == "cuda" and "cuda" not in DEVICES:
        raise NotImplementedError(f"{name}: {argument} is on {value.device}, accepted: {_core.served_devices()}")
    if like is not None and value.device != like.device:
        raise TypeError(f"{name}: {argument} is on {value.device}, accepted: {like.device}, where the logits are")
    return value


def _logits(name, argument, value, like=None):
    value = _beside(name, argument, real(name, argument, value), like)
    if like is not None and value.dtype != like.dtype:
        raise TypeError(f"{name}: {argument} has dtype {value.dtype}, accepted: {like.dtype}, that of p_logits")
    if like is not None:
        same_shape(name, argument, value.shape, like.shape)
    return value


def _index(name, index, x, dim):
    if not isinstance(index, torch.Tensor):
        index = as_tensor(name, "index", index, x.device, "integers", is_recorded(x))
    index = _beside(name, "index", index, x)
    if index.dtype not in _INTEGERS:
        raise TypeError(f"{name}: index has dtype {index.dtype}, accepted: integers")
    check_index(name, tuple(index.shape), without(x.shape, dim))
    return index


def _prepared(name, logits, index, axis, temperature, called="axis"):
    """(operation, its tensors, its options), checked."""
    x = _logits(name, "logits", logits)
    dim, T = row_axis(name, "logits", tuple(x.shape), axis, called), check_temperature(name, temperature)
    if name.startswith("entropy"):
        return ENTROPY, (x,), (dim, T)
    return BOTH if "entropy" in name else LOG_PROB, (x, _index(name, index, x, dim)), (dim, T)


def _pair(p_logits, q_logits, axis, name="kl_div", called="axis"):
    p = _logits(name, "p_logits", p_logits)
    q = _logits(name, "q_logits", q_logits, p)
    return p, q, row_axis(name, "p_logits", tuple(p.shape), axis, called)


# -- the functions of sumexp.torch -----------------------------------------------------------------------------------


def log_prob(logits, index, dim=-1, *, temperature=1.0) -> Any:
    """Log-probabilities of chosen classes, log_softmax(logits / temperature, dim) at index: see sumexp.log_prob.

    index has the shape of logits without dim, or one dimension more, the last, for several classes a row. Differentiable in the
    logits any number of times. On a CUDA device an index that is of no class makes its row NaN, result and gradient.
    """
    op, tensors, options = _prepared("log_prob", logits, index, dim, temperature, "dim")
    return op(*tensors, *options)


def entropy(logits, dim=-1, *, temperature=1.0) -> Any:
    """The entropy of softmax(logits / temperature, dim), in nats: see sumexp.entropy."""
    op, tensors, options = _prepared("entropy", logits, None, dim, temperature, "dim")
    return op(*tensors, *options)


def log_prob_and_entropy(logits, index, dim=-1, *, temperature=1.0) -> Any:
    """(log_prob(logits, index), entropy(logits)), from one sweep over the logits; so is the gradient of both."""
    op, tensors, options = _prepared("log_prob_and_entropy", logits, index, dim, temperature, "dim")
    return op(*tensors, *options)


def kl_div(p_logits, q_logits, dim=-1) -> Any:
    """The divergence sum p (log p - log q) of two rows of logits, over dim: see sumexp.kl_div.

    torch.nn.functional's kl_div takes log-probabilities, in the other order, and sums over everything.
    """
    return KL_DIV(*_pair(p_logits, q_logits, dim, called="dim"))


# -- sumexp's functions of tensors -----------------------------------------------------------------------------------


def forward_out(name, logits, index, axis, temperature, out):
    op, tensors, options = _prepared(name, logits, index, axis, temperature)
    if out is None:
        return op(*tensors, *options)
    return into(name, out, op(*tensors, *options))


def kl_div_out(p_logits, q_logits, axis, out):
    return into("kl_div", out, KL_DIV(*_pair(p_logits, q_logits, axis)))


def backward_out(name, g, logits, index, axis, temperature, out):
    op, tensors, options = _prepared(name, logits, index, axis, temperature)
    x = tensors[0]
    shapes = [without(x.shape, options[0]) if op is ENTROPY or k == 1 else tuple(tensors[1].shape) for k in range(2)]
    grads = [(_floating_gradient(name, v, x), s) for v, s in zip(g, shapes) if v is not None]
    for v, shape in grads:
        same_shape(name, "g", v.shape, shape)
    needs = (True,) + (False,) * (len(tensors) - 1)
    return into(name, out, op.backward(tuple(v for v, _ in grads), tensors, (), options, needs)[0])


def kl_div_vjp(g, p_logits, q_logits, axis) -> Any:
    name = "kl_div_vjp"
    p, q, dim = _pair(p_logits, q_logits, axis, name)
    g = _floating_gradient(name, g, p)
    same_shape(name, "g", g.shape, without(p.shape, dim))
    return KL_DIV.backward((g,), (p, q), (), (dim,), (True, True))


def _floating_gradient(name, g, x):
    g = _beside(name, "g", real(name, "g", g), x)
    if g.dtype != x.dtype:
        raise TypeError(f"{name}: g has dtype {g.dtype}, accepted: {x.dtype}, that of the logits")
    return g
