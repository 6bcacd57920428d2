"""The operations as autograd.Functions: what an eager program differentiates.

The softmax Functions return two tensors with the same memory: the result y, which the caller gets, and an
`anchor`, which is saved. To autograd the anchor stands for x: its gradient is passed on to x unchanged, and
its tangent is that of x. So the derivative functions, which compute with y's values, can be differentiated
with respect to x, in one kernel (softmax_hvp, log_softmax_hvp), and x itself need not be kept. logsumexp
keeps x, as torch does.

`Softmax` and `LogSumExp` do the work of forward and setup_context in one function, which is the faster form;
functorch (torch.func, vmap) needs the other one, `SoftmaxFunctorch` and `LogSumExpFunctorch`.
"""

import torch
from torch.autograd import Function

from .. import _core
from .._row_shapes import row_shape
from . import _formulas
from ._formulas import from_winner, total
from ._kernels import dims_of, direct
from ._library import hvp_in_y
from ._private import forward_ad, function_apply, functorch_active, is_legacy_batched
from ._vmap import batch


def differentiable(name, tensors, dims, T=1.0):
    """Runs a derivative operation so that it can be differentiated again, where anything asks for that."""
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if recorded and any(map(is_legacy_batched, tensors)):
        return written_out(name, tensors, dims, T)
    if recorded or forward_ad._current_level >= 0 or functorch_active():
        return Derivative.apply(name, dims, T, *tensors)
    return direct(name, tensors, dims, T)


def written_out(name, tensors, dims, T):
    """A derivative operation in torch's own: what a Function records is lost when is_grads_batched ends."""
    if not name.startswith("logsumexp"):
        of = "log_softmax" if name.startswith("log_softmax") else "softmax"
        tensors = (*tensors[:-1], Relabel.apply(tensors[-1], "value", of, dims, T))
    return getattr(_formulas, name)(*tensors, dims, T)


def anchor_of(name, x, dims):
    """The softmax or log_softmax of x, as an anchor."""
    forward = Softmax if not functorch_active() else SoftmaxFunctorch
    return forward.apply(x, (name, dims, 1.0))[1]


def shares(x, dims):
    """The softmax of x as an anchor, but 0 where x is -inf: also in a row of -inf alone, whose logsumexp is a constant."""
    return anchor_of("softmax", x, dims).masked_fill(x == -torch.inf, 0)


def jvp_rule(rule):
    """Makes a jvp of `rule`, which takes ctx, the saved tensors and the tangents.

    torch turns forward mode off inside a jvp, so that the tangents that the saved tensors have at this level
    do no harm; but then torch's operations lose those of all outer levels (jacfwd of jacfwd) as well,
    silently. So it is turned on again, and only this level's tangents are taken off.
    """

    @staticmethod
    def jvp(ctx, *tangents):
        with forward_ad._set_fwd_grad_enabled(True):
            primals = [t if t is None else forward_ad.unpack_dual(t).primal for t in ctx.saved_tensors]
            return rule(ctx, primals, *tangents)

    return jvp


def add(a, b):
    return b if a is None else a if b is None else a + b


# -- softmax and log_softmax --------------------------------------------------------------------------------


# call is (name, dims, T); dims may be a single int.


def _gradient(ctx, g, g_anchor):
    if g is None:
        return g_anchor
    anchor = ctx.saved_tensors[0]
    name, dims, T = ctx.call
    dx = differentiable(name + "_vjp", (g, anchor), dims_of(dims, anchor.dim(), name), T)
    return dx if g_anchor is None else dx + g_anchor


class Softmax(Function):
    @staticmethod
    def forward(ctx, x, call):
        name, dims, T = call
        y = direct(name, (x,), dims, T)
        anchor = y.detach()
        ctx.save_for_backward(anchor)
        if forward_ad._current_level >= 0:
            ctx.save_for_forward(anchor)
        ctx.set_materialize_grads(False)
        ctx.call = call
        return y, anchor

    @staticmethod
    def backward(ctx, g, g_anchor):
        return _gradient(ctx, g, g_anchor), None

    @jvp_rule
    def jvp(ctx, saved, t, _):
        if t is None:
            return None, None
        name, dims, T = ctx.call
        jvp = "softmax_vjp" if name == "softmax" else "log_softmax_jvp"  # softmax's Jacobian is symmetric
        return differentiable(jvp, (t, *saved), dims_of(dims, t.dim(), name), T), t.view_as(t)


class SoftmaxFast(Softmax):
    """For an x that _core.fast_softmax has found to be plain, and which is all that is passed: it has the rest."""

    forward = _core.fast_forward  # csrc/bindings/fast_path.cpp

    # Function's own; torch looks these up in each call, and finds them sooner here.
    setup_context = staticmethod(Function.setup_context)
    clear_saved_tensors_on_access = False
    boxed_grads_call = False

    @staticmethod
    def backward(ctx, *gradients):
        return _gradient(ctx, *gradients)


class SoftmaxFunctorch(Softmax):
    @staticmethod
    def forward(x, call):
        name, dims, T = call
        y = direct(name, (x,), dims, T)
        return y, y.detach()

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        # functorch counts the versions of the two apart: y is kept for the check that nobody has written to it
        ctx.save_for_backward(outputs[1], outputs[0])
        ctx.save_for_forward(outputs[1])
        ctx.set_materialize_grads(False)
        ctx.call = inputs[1]

    @staticmethod
    def vmap(info, in_dims, x, call):
        name, dims, T = call
        (x,), dims = batch(info.batch_size, in_dims[:1], (x,), dims)
        forward = SoftmaxFunctorch if functorch_active() else Softmax
        return forward.apply(x, (name, dims, T)), (0, 0)


# -- logsumexp ----------------------------------------------------------------------------------------------


class LogSumExp(Function):
    @staticmethod
    def forward(ctx, x, dims, keepdim):
        ctx.save_for_backward(x)
        if forward_ad._current_level >= 0:
            ctx.save_for_forward(x)
        ctx.call = dims, keepdim
        return direct("logsumexp", (x,), dims, 1.0, keepdim)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        dims, keepdim = ctx.call
        g = g if keepdim else g.reshape(row_shape(x.shape, dims))
        return differentiable("logsumexp_vjp", (x, g), dims), None, None

    @jvp_rule
    def jvp(ctx, saved, t, *_):
        (x,) = saved
        dims, keepdim = ctx.call
        change = differentiable("logsumexp_jvp", (x, t), dims)
        return change if keepdim else change.reshape(row_shape(x.shape, dims, False))


class LogSumExpFunctorch(LogSumExp):
    @staticmethod
    def forward(x, dims, keepdim):
        return direct("logsumexp", (x,), dims, 1.0, keepdim)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])
        ctx.call = inputs[1:]

    @staticmethod
    def vmap(info, in_dims, x, dims, keepdim):
        (x,), dims = batch(info.batch_size, in_dims[:1], (x,), dims)
        forward = LogSumExp if not functorch_active() else LogSumExpFunctorch
        return forward.apply(x, dims, keepdim), 0


apply_softmax = function_apply(Softmax)
apply_softmax_fast = function_apply(SoftmaxFast)
apply_logsumexp = function_apply(LogSumExp)


# -- derivatives, and theirs --------------------------------------------------------------------------------
# `a` is an anchor: the values of y, and for autograd x. d(name, ...) runs a derivative operation.


class Relabel(Function):
    """An anchor under another meaning; for third derivatives, which are built from torch's operations.

    "value": y = softmax(x) or log_softmax(x), as a function of x. "probabilities": exp of a log_softmax
    anchor, as the softmax anchor it is.
    """

    @staticmethod
    def forward(a, to, name, dims, T):
        # a copy: forward mode lays a tangent out like its value, which vmap may have stretched (stride 0)
        return a.exp() if to == "probabilities" else a.detach().clone(memory_format=torch.contiguous_format)

    @staticmethod
    def setup_context(ctx, inputs, output):
        a, *ctx.call = inputs
        ctx.save_for_backward(a)
        ctx.save_for_forward(a)

    @staticmethod
    def backward(ctx, g):
        to, name, dims, T = ctx.call
        if to == "value":
            g = differentiable(name + "_vjp", (g, *ctx.saved_tensors), dims, T)
        return g, None, None, None, None

    @jvp_rule
    def jvp(ctx, saved, t, *_):
        to, name, dims, T = ctx.call
        if to == "value":
            jvp = "softmax_vjp" if name == "softmax" else "log_softmax_jvp"
            return differentiable(jvp, (t, *saved), dims, T)
        return t.view_as(t)

    @staticmethod
    def vmap(info, in_dims, a, to, name, dims, T):
        (a,), dims = batch(info.batch_size, in_dims[:1], (a,), dims)
        return Relabel.apply(a, to, name, dims, T), 0


def probabilities(a, dims, T):
    return Relabel.apply(a, "probabilities", "log_softmax", dims, T)


def third_derivative(g, v, w, a, dims, T):
    """The third derivative of softmax's <g, y> along v and w: symmetric in the three."""
    y = Relabel.apply(a, "value", "softmax", dims, T)
    return differentiable("softmax_vjp", (hvp_in_y(w, g, v, y, dims, T), a), dims, T)


# Each rule gives, for every tensor of the operation, two functions: u -> the gradient of <u, result> in that
# tensor, and w -> the change of the result along w. They are called only where asked for.


def _both(f):
    return f, f  # a symmetric derivative


def _softmax_vjp(d, dims, T, g, a):  # J g / T, J = diag(y) - y y^T
    return _both(lambda u: d("softmax_vjp", u, a)), _both(lambda u: d("softmax_hvp", g, u, a))


def _log_softmax_vjp(d, dims, T, g, a):  # (g - s sum g) / T, s = e^y
    return (
        (lambda u: d("log_softmax_jvp", u, a), lambda w: d("log_softmax_vjp", w, a)),
        _both(lambda u: d("log_softmax_hvp", g, u, a)),
    )


def _log_softmax_jvp(d, dims, T, t, a):  # (t - <s, t>) / T
    def along_a(w):
        # log_softmax_vjp(s t) = s (t - <s, t>) / T, which softmax_vjp(t) would lose where s is 1 to all digits
        s = Relabel.apply(a, "value", "log_softmax", dims, T).exp()
        return (-total(w * d("log_softmax_vjp", s * t, a), dims) / T).expand_as(t)

    return (
        (lambda u: d("log_softmax_vjp", u, a), lambda w: d("log_softmax_jvp", w, a)),
        (lambda u: d("log_softmax_hvp", u, t, a), along_a),
    )


def _logsumexp_vjp(d, dims, T, x, g):  # g s
    def in_x(u):
        s = shares(x, dims)
        return d("softmax_vjp", from_winner(g * u, s, dims), s)

    return _both(in_x), (lambda u: d("logsumexp_jvp", x, u), lambda w: d("logsumexp_vjp", x, w))


def _logsumexp_jvp(d, dims, T, x, t):  # <s, t>
    def in_x(u):
        s = shares(x, dims)
        return d("softmax_vjp", from_winner(u * t, s, dims), s)

    def along_x(w):
        s = shares(x, dims)
        return total(from_winner(t, s, dims) * d("softmax_vjp", from_winner(w, s, dims), s), dims)

    return (in_x, along_x), (lambda u: d("logsumexp_vjp", x, u), lambda w: d("logsumexp_jvp", x, w))


def _softmax_hvp(d, dims, T, g, v, a):
    return (
        _both(lambda u: d("softmax_hvp", u, v, a)),
        _both(lambda u: d("softmax_hvp", g, u, a)),
        _both(lambda u: third_derivative(g, v, u, a, dims, T)),
    )


def _log_softmax_hvp(d, dims, T, g, v, a):  # -sum(g) J v / T^2, J = diag(s) - s s^T
    def in_g(u):
        return (-total(u * d("softmax_vjp", v, probabilities(a, dims, T)), dims) / T).expand_as(g)

    def in_a(u):
        return -total(g, dims) * d("softmax_hvp", v, u, probabilities(a, dims, T)) / T

    return (
        (in_g, lambda w: d("log_softmax_hvp", w, v, a)),
        _both(lambda u: d("log_softmax_hvp", g, u, a)),
        _both(in_a),
    )


RULES = {
    "softmax_vjp": _softmax_vjp,
    "log_softmax_vjp": _log_softmax_vjp,
    "log_softmax_jvp": _log_softmax_jvp,
    "logsumexp_vjp": _logsumexp_vjp,
    "logsumexp_jvp": _logsumexp_jvp,
    "softmax_hvp": _softmax_hvp,
    "log_softmax_hvp": _log_softmax_hvp,
}


class Derivative(Function):
    """Any of the derivative operations, differentiable as often as asked for."""

    @staticmethod
    def forward(name, dims, T, *tensors):
        return direct(name, tensors, dims, T)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.name, ctx.dims, ctx.T, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def _rules(ctx, tensors):
        def d(name, *tensors):
            return differentiable(name, tensors, ctx.dims, ctx.T)

        return RULES[ctx.name](d, ctx.dims, ctx.T, *tensors)

    @staticmethod
    def backward(ctx, u):
        if u is None:
            return (None,) * len(ctx.needs_input_grad)
        rules = zip(Derivative._rules(ctx, ctx.saved_tensors), ctx.needs_input_grad[3:])
        return None, None, None, *(transposed(u) if needed else None for (transposed, _), needed in rules)

    @jvp_rule
    def jvp(ctx, saved, *tangents):
        change = None
        for (_, along), tangent in zip(Derivative._rules(ctx, saved), tangents[3:]):
            if tangent is not None:
                change = add(change, along(tangent))
        return change

    @staticmethod
    def vmap(info, in_dims, name, dims, T, *tensors):
        tensors, dims = batch(info.batch_size, in_dims[3:], tensors, dims)
        return differentiable(name, tensors, dims, T), 0
