"""What autograd, torch's transforms and compiled programs see of linear_cross_entropy.

Where a gradient is recorded, and the loss is one number, the forward sweep makes it, and backward only multiplies by what comes
back. Everything else that is derived is a sweep of its own. With L = sum_i g_i l_i(x, w, b) and the rows' tangent of the logits
v = t_x W^T + x t_w^T + t_b, all derivatives up to the second are those of one function,

    Phi(g, x, w, b; t) = sum_i g_i <dl_i/dlogits, v_i> :

    Gradients = dPhi/dt        Tangent = dPhi/dg        Second = dPhi/d(x, w, b)        Bilinear = the rows of t H t'
"""

import torch
from torch.autograd import Function

from . import _cross_entropy as ce
from ._functions import jvp_rule
from ._kernels import DEVICES
from ._library import LIBRARY, has_tangent, maybe_dual
from ._linear_sweeps import NAME, TENSORS, Options, divisor, reduced, second, summed, sweep, waits
from ._private import AutogradInfo, functorch_active, make_autograd_impl

SCHEMA = (
    "int ignore_index, float label_smoothing, float z_loss, float softcap, float temperature, int reduction, "
    "bool zero_if_empty, int chunk"
)


# -- what autograd sees ------------------------------------------------------------------------------------------------
# Arguments of the Functions: o, then tensors of TENSORS, which are all given, so that vmap finds each.

COUNT = len(TENSORS)


def one_by_one(function):
    """A vmap rule: the calls of a batch one after the other, as a loop would make them."""

    def vmap(info, in_dims, *args):
        made = []
        for i in range(info.batch_size):
            each = [a.select(d, i) if isinstance(d, int) else a for a, d in zip(args, in_dims)]
            made.append(function.apply(*each))
        if isinstance(made[0], tuple):
            return tuple(torch.stack(parts) for parts in zip(*made)), tuple(0 for _ in made[0])
        return torch.stack(made), 0

    return staticmethod(vmap)


def vmapped(function):
    function.vmap = one_by_one(function)
    return function


def save(ctx, tensors):
    """For backward and jvp, which get None for what is 0."""
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def no_more(ctx, *_):
    raise NotImplementedError(f"{NAME}: a third derivative, accepted: up to the second")


class Fused(Function):
    """The reduced loss, with its gradients made in the forward sweep."""

    @staticmethod
    def forward(ctx, o, info, *tensors):
        need = tuple(ctx.needs_input_grad[2:5])
        losses, gradients, extras, found = sweep(tensors, o, need, info=info)
        ctx.save_for_backward(*tensors)
        ctx.o, ctx.need, ctx.gradients, ctx.found = o, need, gradients, found
        ctx.mark_non_differentiable(*extras.values())
        return reduced(losses, found, o), *extras.values()

    @staticmethod
    def backward(ctx, u, *_):
        made, ctx.gradients = ctx.gradients, None  # they are scaled in place: a second backward computes its own
        o = ctx.o
        if torch.is_grad_enabled():
            tensors = ctx.saved_tensors
            if o.reduction == ce.REDUCTIONS.index("mean"):
                u = ce.quotient(u, ctx.found, o)
            made = gradients_of(o, ctx.need, u.to(torch.float64).expand(len(tensors[0])), tensors)
        else:
            if made is None:
                made = sweep(ctx.saved_tensors, o, ctx.need)[1]
            if waits(u) or u.item() != 1:
                made = tuple(t if t is None else t.mul_(u) for t in made)
        return None, None, *made, *(None for _ in TENSORS[3:])


@vmapped
class Rows(Function):
    """The rows' losses, in the wide dtype."""

    @staticmethod
    def forward(o, *tensors):
        return sweep(tensors, o)[0]

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.o, *tensors = inputs
        save(ctx, tensors)

    @staticmethod
    def backward(ctx, u):
        if u is None:
            return (None,) * (1 + COUNT)
        made = gradients_of(ctx.o, ctx.needs_input_grad[1:4], u.to(torch.float64), ctx.saved_tensors)
        return None, *made, *(None for _ in TENSORS[3:])

    @jvp_rule
    def jvp(ctx, saved, _, *tangents):
        for name, tangent in zip(TENSORS[3:], tangents[3:]):
            if tangent is not None:
                raise NotImplementedError(
                    f"{NAME}: {name.rstrip('?')} has a tangent, accepted: of input, linear_weight and linear_bias"
                )
        return Tangent.apply(ctx.o, *tangents[:3], *saved)


def gradients_of(o, need, g, tensors):
    """The gradients of sum_i g_i l_i in x, w and bias, as needed."""
    made = Gradients.apply(o, tuple(need), g, *tensors)
    return tuple(t if needed else None for t, needed in zip(made, need))


@vmapped
class Gradients(Function):
    @staticmethod
    def forward(o, need, g, *tensors):
        made = sweep(tensors, o, need, g=g)[1]
        return tuple(g.new_empty(0) if t is None else t for t in made)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        ctx.o, ctx.need, *tensors = inputs
        save(ctx, tensors)

    @staticmethod
    def backward(ctx, *u):
        t = tuple(a if needed else None for a, needed in zip(u, ctx.need))
        if all(a is None for a in t):
            return (None,) * (3 + COUNT)
        g, *tensors = ctx.saved_tensors
        need = ctx.needs_input_grad
        firsts, *made = Second.apply(ctx.o, tuple(need[3:6]), g, *t, *tensors)
        made = (a if needed else None for a, needed in zip(made, need[3:6]))
        return None, None, firsts.to(g.dtype) if need[2] else None, *made, *(None for _ in TENSORS[3:])

    @jvp_rule
    def jvp(ctx, saved, o, need, *tangents):
        g, *tensors = saved
        change = [None] * 3
        if any(t is not None for t in tangents[1:4]):
            change = Second.apply(ctx.o, ctx.need, g, *tangents[1:4], *tensors)[1:]
        if tangents[0] is not None:
            along = Gradients.apply(ctx.o, ctx.need, tangents[0], *tensors)
            change = [b if a is None else a + b for a, b in zip(change, along)]
        return tuple(g.new_empty(0) if not needed else c for c, needed in zip(change, ctx.need))


@vmapped
class Tangent(Function):
    """The change of the rows' losses along tangents of x, w and bias, any of which may be None."""

    @staticmethod
    def forward(o, tx, tw, tb, *tensors):
        return second(tensors, o, None, (tx, tw, tb), (False, False, False))[0]

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.o, *tensors = inputs
        save(ctx, tensors)

    @staticmethod
    def backward(ctx, u):
        if u is None:
            return (None,) * (4 + COUNT)
        tx, tw, tb, *tensors = ctx.saved_tensors
        need, g = ctx.needs_input_grad, u.to(torch.float64)
        of_t, of_tensors = (None,) * 3, (None,) * 3
        if any(need[1:4]):
            of_t = gradients_of(ctx.o, need[1:4], g, tensors)
        if any(need[4:7]):
            made = Second.apply(ctx.o, tuple(need[4:7]), g, tx, tw, tb, *tensors)[1:]
            of_tensors = tuple(a if needed else None for a, needed in zip(made, need[4:7]))
        return None, *of_t, *of_tensors, *(None for _ in TENSORS[3:])

    @jvp_rule
    def jvp(ctx, saved, _, *tangents):
        t, tensors = saved[:3], saved[3:]
        change = None
        if any(a is not None for a in tangents[3:6]):
            change = Bilinear.apply(ctx.o, *t, *tangents[3:6], *tensors)
        if any(a is not None for a in tangents[:3]):
            along = Tangent.apply(ctx.o, *tangents[:3], *tensors)
            change = along if change is None else change + along
        return change


@vmapped
class Second(Function):
    """(dPhi/dg, dPhi/dx, dPhi/dw, dPhi/dbias), those not needed empty."""

    @staticmethod
    def forward(o, need, g, tx, tw, tb, *tensors):
        firsts, made, _ = second(tensors, o, g, (tx, tw, tb), need)
        return firsts, *(firsts.new_empty(0) if t is None else t for t in made)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        pass

    backward = jvp = staticmethod(no_more)


@vmapped
class Bilinear(Function):
    @staticmethod
    def forward(o, tx, tw, tb, ax, aw, ab, *tensors):
        return second(tensors, o, None, (tx, tw, tb), (False, False, False), along=(ax, aw, ab))[2]

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    backward = jvp = staticmethod(no_more)


@vmapped
class Sum(Function):
    """The sum of rows in cross_entropy's order, in float64."""

    @staticmethod
    def forward(losses):
        return summed(ce.plain(losses).contiguous())

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.like = inputs[0].shape, inputs[0].dtype

    @staticmethod
    def backward(ctx, u):
        shape, dtype = ctx.like
        return u.to(dtype).expand(shape)

    @jvp_rule
    def jvp(ctx, saved, t):
        return t.sum().to(torch.float64)


@vmapped
class Divisor(Function):
    """What a mean divides by, in float64; not differentiated."""

    @staticmethod
    def forward(o, *tensors):
        return divisor([ce.plain(t) for t in tensors], o)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.count = len(inputs)
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx, _):
        return (None,) * ctx.count

    @staticmethod
    def jvp(ctx, *_):
        return None


# -- the registered operations ---------------------------------------------------------------------------------------------

_arguments = ", ".join(f"Tensor{'?' if t.endswith('?') else ''} {t.rstrip('?')}" for t in TENSORS)
_tags = (torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout)
LIBRARY.define(f"{NAME}({_arguments}, {SCHEMA}, bool[] need) -> (Tensor, Tensor, Tensor, Tensor)", tags=_tags)
LIBRARY.define(f"{NAME}_vjp(Tensor g, {_arguments}, {SCHEMA}, bool[] need) -> (Tensor, Tensor, Tensor)", tags=_tags)


def _filled(made, like):
    return tuple(like.new_empty(0) if t is None else t for t in made)


def _operation(*args):
    tensors, o, need = args[:COUNT], Options(*args[COUNT:-1]), args[-1]
    losses, gradients, _, found = sweep(tensors, o, need if o.reduction else (False,) * 3)
    return reduced(losses, found, o), *_filled(gradients, tensors[0])


def _operation_vjp(g, *args):
    tensors, o, need = args[:COUNT], Options(*args[COUNT:-1]), args[-1]
    return _filled(sweep(tensors, o, need, g=g)[1], tensors[0])


def _fake_gradients(tensors, need):
    contiguous = torch.contiguous_format
    wanted = [t is not None and needed for t, needed in zip(tensors, need)]
    return tuple(
        torch.empty_like(t, memory_format=contiguous) if n else tensors[0].new_empty(0) for t, n in zip(tensors, wanted)
    )


def _fake(*args):
    x, o, need = args[0], Options(*args[COUNT:-1]), args[-1]
    wide = torch.float64 if o.reduction else ce.wide(x.dtype)
    loss = x.new_empty(() if o.reduction else x.shape[0], dtype=wide)
    return loss, *_fake_gradients(args[:3], need if o.reduction else (False,) * 3)


def _fake_vjp(g, *args):
    return _fake_gradients(args[:3], args[-1])


def _setup_context(ctx, inputs, output):
    ctx.o, ctx.need = Options(*inputs[COUNT:-1]), inputs[-1]
    ctx.save_for_backward(*(output[1:] if ctx.o.reduction else inputs[:COUNT]))
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx, u, *_):
    saved, nothing = ctx.saved_tensors, (None,) * (COUNT - 3 + len(Options._fields) + 1)
    if ctx.o.reduction:
        made = [t * u.to(t.dtype) if needed else None for t, needed in zip(saved, ctx.need)]
        return *made, *nothing
    operation = getattr(torch.ops.sumexp, NAME + "_vjp")
    made = operation(u.to(torch.float64), *saved, *ctx.o, list(ctx.need))
    return *(t if needed else None for t, needed in zip(made, ctx.need)), *nothing


def _register():
    operation, vjp = (getattr(torch.ops.sumexp, n).default for n in (NAME, NAME + "_vjp"))
    reverse = make_autograd_impl(operation, AutogradInfo(_backward, _setup_context))

    def autograd(keyset, *args):
        tensors = [t for t in args[:COUNT] if t is not None]
        if functorch_active() or (maybe_dual() and any(map(has_tangent, tensors))):
            raise NotImplementedError(f"{NAME}: a torch.func transform or forward mode within a compiled program")
        return reverse(keyset, *args)

    for device in DEVICES:
        LIBRARY.impl(NAME, _operation, device.upper())
        LIBRARY.impl(NAME + "_vjp", _operation_vjp, device.upper())
    LIBRARY.impl(NAME, autograd, "Autograd", with_keyset=True)
    LIBRARY.impl(NAME + "_vjp", make_autograd_impl(vjp, AutogradInfo(None, None)), "Autograd", with_keyset=True)
    torch.library.register_fake(f"sumexp::{NAME}", _fake, lib=LIBRARY)
    torch.library.register_fake(f"sumexp::{NAME}_vjp", _fake_vjp, lib=LIBRARY)


_register()
