"""What autograd, torch's transforms and compiled programs see of linear_cross_entropy.

Where a gradient in x, w or bias is recorded, and the loss is one number, the forward sweep makes it, and backward only
multiplies by what comes back. Everything else that is derived is a sweep of its own. Let q be the targets and weights, as far
as they are differentiated in. With L = sum_i g_i l_i(x, w, b, q) and the rows' tangent of the logits
v = t_x W^T + x t_w^T + t_b, all derivatives up to the second are those of one function,

    Phi(g, x, w, b, q; t) = sum_i g_i (<dl_i/dlogits, v_i> + <dl_i/dq, t_q>) :

    Gradients = dPhi/dt        Tangent = dPhi/dg        Second = dPhi/d(x, w, b, q)        Bilinear = the rows of t H t'
"""

import torch
from torch.autograd import Function

from . import _cross_entropy as ce
from ._composed import eagerly
from ._functions import jvp_rule
from ._kernels import DEVICES
from ._library import LIBRARY, has_tangent, maybe_dual
from ._linear_sweeps import (
    COUNT,
    DIFFERENTIATED,
    NAME,
    TENSORS,
    WEIGHT,
    Options,
    divisor,
    gradients,
    others,
    reduced,
    second,
    summed,
    sweep,
    unrounded,
    waits,
)
from ._private import AutogradInfo, functorch_active, is_legacy_batched, make_autograd_impl

SCHEMA = (
    "int ignore_index, float label_smoothing, float z_loss, float softcap, float temperature, int reduction, "
    "bool zero_if_empty, int chunk"
)


# -- what autograd sees ------------------------------------------------------------------------------------------------
# Arguments of the Functions: o, then tensors of TENSORS, which are all given, so that vmap finds each.


def stacked(call, size, in_dims, args):
    """(the results of `size` calls, in a new first dimension, where it is)"""
    made = []
    for i in range(max(size, 1)):
        if size:
            each = [a.select(d, i) if isinstance(d, int) else a for a, d in zip(args, in_dims)]
        else:  # for the shapes
            each = [a.sum(d) if isinstance(d, int) else a for a, d in zip(args, in_dims)]
        made.append(call(*each))
    if isinstance(made[0], tuple):
        return tuple(torch.stack(parts)[:size] for parts in zip(*made)), tuple(0 for _ in made[0])
    return torch.stack(made)[:size], 0


def one_by_one(function):
    """A vmap rule: the calls of a batch one after the other, as a loop would make them."""

    def vmap(info, in_dims, *args):
        return stacked(function.apply, info.batch_size, in_dims, args)

    return staticmethod(vmap)


def vmapped(function):
    function.vmap = one_by_one(function)
    return function


def filled(made, like):
    """What is None as an empty tensor."""
    return tuple(like.new_empty(0) if t is None else t for t in made)


def applied(function, o, *args):
    """function.apply; of batches of is_grads_batched, with which what a Function records would end, by an operation that torch
    calls for each. args: what is needed, of Functions that are told, and tensors."""
    if not any(isinstance(a, torch.Tensor) and is_legacy_batched(a) for a in args):
        return function.apply(o, *args)
    need, tensors = (args[0], args[1:]) if isinstance(args[0], tuple) else ((), args)
    none = (None,) * (MOST - len(tensors))
    made = getattr(torch.ops.sumexp, NAME + "_applied")(function.__name__, *o, list(need), len(tensors), *tensors, *none)
    return made if need else made[0]


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
        losses, gradients, extras, found = sweep(tensors, o, need, info=info, rounds=False)
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
            need = (*ctx.need, *(False for _ in range(3, DIFFERENTIATED)))
            made = gradients_of(o, need, u.to(torch.float64).expand(len(tensors[0])), tensors)[:3]
        else:
            if made is None:
                made = sweep(ctx.saved_tensors, o, ctx.need, rounds=False)[1]
            if is_legacy_batched(u):
                made = tuple(t if t is None else t * u for t in made)
            elif waits(u) or u.item() != 1:
                made = tuple(t if t is None else t.mul_(u) for t in made)
            made = tuple(t if t is None else t.to(of.dtype) for t, of in zip(made, ctx.saved_tensors))
        return None, None, *made, *(None for _ in TENSORS[3:])


@vmapped
class Rows(Function):
    """The rows' losses, in the wide dtype, and what `info` names, which is not differentiated."""

    @staticmethod
    def forward(o, info, *tensors):
        losses, _, extras, _ = sweep(tensors, o, info=info)
        return losses, *(extras[n] for n in info)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        ctx.o, ctx.info, *tensors = inputs
        save(ctx, tensors)
        ctx.mark_non_differentiable(*outputs[1:])

    @staticmethod
    def backward(ctx, u, *_):
        if u is None:
            return (None,) * (2 + COUNT)
        return None, None, *gradients_of(ctx.o, ctx.needs_input_grad[2:], u.to(torch.float64), ctx.saved_tensors), None

    @jvp_rule
    def jvp(ctx, saved, o, info, *tangents):
        return applied(Tangent, ctx.o, *tangents[:DIFFERENTIATED], *saved), *(None for _ in ctx.info)


def gradients_of(o, need, g, tensors):
    """The gradients of sum_i g_i l_i in the first DIFFERENTIATED of the tensors, as needed."""
    need = tuple(need[:DIFFERENTIATED])
    made = applied(Gradients, o, need, g, *tensors)
    return tuple(t if needed else None for t, needed in zip(made, need))


@vmapped
class Gradients(Function):
    @staticmethod
    def forward(o, need, g, *tensors):
        return filled(gradients(tensors, o, need, g), g)

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
        firsts, *made = applied(Second, ctx.o, tuple(need[3 : 3 + DIFFERENTIATED]), g, *t, *tensors)
        made = (a if needed else None for a, needed in zip(made, need[3:]))
        return None, None, firsts.to(g.dtype) if need[2] else None, *made, None

    @jvp_rule
    def jvp(ctx, saved, o, need, *tangents):
        g, *tensors = saved
        change = [None] * DIFFERENTIATED
        if any(t is not None for t in tangents[1:]):
            change = applied(Second, ctx.o, ctx.need, g, *tangents[1 : 1 + DIFFERENTIATED], *tensors)[1:]
        if tangents[0] is not None:
            along = applied(Gradients, ctx.o, ctx.need, tangents[0], *tensors)
            change = [b if a is None else a + b for a, b in zip(change, along)]
        return tuple(g.new_empty(0) if not needed else c for c, needed in zip(change, ctx.need))


@vmapped
class Tangent(Function):
    """The change of the rows' losses along tangents of the first DIFFERENTIATED of the tensors, any of which may be None."""

    @staticmethod
    def forward(o, *args):
        return second(args[DIFFERENTIATED:], o, None, args[:DIFFERENTIATED], (False,) * DIFFERENTIATED)[0]

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.o, *tensors = inputs
        save(ctx, tensors)

    @staticmethod
    def backward(ctx, u):
        if u is None:
            return (None,) * (1 + DIFFERENTIATED + COUNT)
        t, tensors = ctx.saved_tensors[:DIFFERENTIATED], ctx.saved_tensors[DIFFERENTIATED:]
        need, g = ctx.needs_input_grad[1:], u.to(torch.float64)
        need_t, need = need[:DIFFERENTIATED], tuple(need[DIFFERENTIATED : 2 * DIFFERENTIATED])
        of_t, of_tensors = (None,) * DIFFERENTIATED, (None,) * DIFFERENTIATED
        if any(need_t):
            of_t = gradients_of(ctx.o, need_t, g, tensors)
        if any(need):
            made = applied(Second, ctx.o, need, g, *t, *tensors)[1:]
            of_tensors = tuple(a if needed else None for a, needed in zip(made, need))
        return None, *of_t, *of_tensors, None

    @jvp_rule
    def jvp(ctx, saved, _, *tangents):
        t, tensors = saved[:DIFFERENTIATED], saved[DIFFERENTIATED:]
        change = None
        if any(a is not None for a in tangents[DIFFERENTIATED:]):
            change = applied(Bilinear, ctx.o, *t, *tangents[DIFFERENTIATED : 2 * DIFFERENTIATED], *tensors)
        if any(a is not None for a in tangents[:DIFFERENTIATED]):
            along = applied(Tangent, ctx.o, *tangents[:DIFFERENTIATED], *tensors)
            change = along if change is None else change + along
        return change


@vmapped
class Second(Function):
    """(dPhi/dg, and in the first DIFFERENTIATED of the tensors), those not needed empty."""

    @staticmethod
    def forward(o, need, g, *args):
        firsts, made, _ = second(args[DIFFERENTIATED:], o, g, args[:DIFFERENTIATED], need)
        return firsts, *filled(made, firsts)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        pass

    backward = jvp = staticmethod(no_more)


@vmapped
class Bilinear(Function):
    @staticmethod
    def forward(o, *args):
        t, along, tensors = args[:DIFFERENTIATED], args[DIFFERENTIATED : 2 * DIFFERENTIATED], args[2 * DIFFERENTIATED :]
        return second(tensors, o, None, t, (False,) * DIFFERENTIATED, along=along)[2]

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
    """What a mean divides by, in float64; differentiated in class weights and token weights. No denominator is given."""

    @staticmethod
    def forward(o, *tensors):
        return divisor([ce.plain(t) for t in tensors], o)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.o, *tensors = inputs
        save(ctx, tensors)

    @staticmethod
    def backward(ctx, u):
        *_, target, target_weight, weight, token_weight, _ = ctx.saved_tensors
        if u is None:
            return (None,) * (1 + COUNT)
        of = ce.of_denominator(u, target, target_weight, weight, token_weight, ctx.o.of_rows())
        need = ctx.needs_input_grad[1 + WEIGHT :]
        return *(None for _ in TENSORS[: 1 + WEIGHT]), *(t if needed else None for t, needed in zip(of, need)), None

    @jvp_rule
    def jvp(ctx, saved, _, *tangents):
        *_, target, target_weight, weight, token_weight, _ = saved
        change = torch.zeros((), dtype=torch.float64, device=target.device)
        # it is linear in each of the two: its gradients, times the tangents
        of = ce.of_denominator(torch.ones_like(change), target, target_weight, weight, token_weight, ctx.o.of_rows())
        for t, gradient in zip(tangents[WEIGHT:-1], of):
            if t is not None:
                change = change + (t.to(torch.float64) * gradient).sum()
        return change


def derived(tensors, o, info):
    """(the loss, info's tensors), differentiable in all of DIFFERENTIATED, up to twice."""
    loss, *found = Rows.apply(o, info, *tensors)
    if o.reduction:
        loss = Sum.apply(loss)
    if o.reduction == ce.REDUCTIONS.index("mean"):
        loss = ce.quotient(loss, Divisor.apply(o, *tensors) if tensors[-1] is None else tensors[-1], o)
    return loss, *found


# -- the registered operations ---------------------------------------------------------------------------------------------

_arguments = ", ".join(f"Tensor{'?' if t.endswith('?') else ''} {t.rstrip('?')}" for t in TENSORS)
_tags = (torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout)
_results = ", ".join(["Tensor"] * (1 + DIFFERENTIATED + len(ce.INFO)))  # the loss, gradients, info; what is not wanted is empty
LIBRARY.define(f"{NAME}({_arguments}, {SCHEMA}, bool[] need, bool[] info) -> ({_results})", tags=_tags)
_results = ", ".join(["Tensor"] * DIFFERENTIATED)
LIBRARY.define(f"{NAME}_vjp(Tensor g, {_arguments}, {SCHEMA}, bool[] need) -> ({_results})", tags=_tags)


MOST = 2 * DIFFERENTIATED + COUNT  # tensors of one of the Functions
_tensors = ", ".join(f"Tensor? t{k}" for k in range(MOST))
_results = ", ".join(["Tensor"] * (1 + DIFFERENTIATED))
LIBRARY.define(f"{NAME}_applied(str name, {SCHEMA}, bool[] need, int count, {_tensors}) -> ({_results})", tags=_tags)


def _applied(name, *args):
    o, (need, count, *tensors) = Options(*args[: len(Options._fields)]), args[len(Options._fields) :]
    head = (o, tuple(need)) if need else (o,)
    made = globals()[name].apply(*head, *tensors[:count])
    made = made if isinstance(made, tuple) else (made,)
    return *made, *filled((None,) * (1 + DIFFERENTIATED - len(made)), made[0])


LIBRARY.impl(NAME + "_applied", _applied, "CompositeImplicitAutograd")


def called(tensors, o, need, info):
    """The registered operation: (loss, {name: tensor of rows})"""
    made = getattr(torch.ops.sumexp, NAME)(*tensors, *o, list(need), [n in info for n in ce.INFO])
    found = dict(zip(ce.INFO, made[1 + DIFFERENTIATED :]))
    return made[0], {n: found[n] for n in info}


def _operation(*args):
    tensors, o, need, info = args[:COUNT], Options(*args[COUNT:-2]), args[-2], args[-1]
    need = need if o.reduction else (False,) * DIFFERENTIATED
    wanted = [n for n, wanted in zip(ce.INFO, info) if wanted]
    losses, found, extras, divided = sweep(tensors, o, need[:3], info=wanted, rounds=False)
    loss = reduced(losses, divided, o)
    of_others = _of_others(tensors, o, need, loss, divided)
    return loss, *filled((*found, *of_others, *(extras.get(n) for n in ce.INFO)), tensors[0])


def _of_others(tensors, o, need, loss, divided):
    """The reduced loss's gradients in targets and weights; those of a mean in its divisor, too."""
    if not any(need[3:]):
        return (None,) * (DIFFERENTIATED - 3)
    mean = o.reduction == ce.REDUCTIONS.index("mean")
    one = torch.ones_like(loss)
    g = (ce.quotient(one, divided, o) if mean else one).expand(len(tensors[0]))
    made = list(others(tensors, o, need, g))
    if mean and tensors[-1] is None and any(need[WEIGHT:]):
        of_divisor = ce.of_denominator(-ce.quotient(loss, divided, o), *tensors[3:-1], o.of_rows())
        made[2:] = (a if a is None else a + b for a, b in zip(made[2:], of_divisor))
    return made


def _operation_vjp(g, *args):
    tensors, o, need = args[:COUNT], Options(*args[COUNT:-1]), args[-1]
    return filled(gradients(tensors, o, need, g), tensors[0])


def _fake_gradients(tensors, need, dtype=None):
    """dtype: of those in x, w and bias, where not their own."""
    wanted = [t is not None and needed for t, needed in zip(tensors, need)]
    dtypes = [dtype if k < 3 and dtype else t.dtype if t is not None else None for k, t in enumerate(tensors)]
    return tuple(
        t.new_empty(t.shape, dtype=d) if n else tensors[0].new_empty(0) for t, n, d in zip(tensors, wanted, dtypes)
    )


def _fake(*args):
    x, o, need, info = args[0], Options(*args[COUNT:-2]), args[-2], args[-1]
    wide = torch.float64 if o.reduction else ce.wide(x.dtype)
    loss = x.new_empty(() if o.reduction else x.shape[0], dtype=wide)
    extras = ce.info_places([n for n, wanted in zip(ce.INFO, info) if wanted], (x.shape[0],), x)
    made = _fake_gradients(args[:DIFFERENTIATED], need if o.reduction else (False,) * DIFFERENTIATED, unrounded(x.dtype))
    return loss, *made, *filled((extras.get(n) for n in ce.INFO), x)


def _fake_vjp(g, *args):
    return _fake_gradients(args[:DIFFERENTIATED], args[-1])


def _setup_context(ctx, inputs, output):
    ctx.o, ctx.need = Options(*inputs[COUNT:-2]), inputs[-2]
    ctx.save_for_backward(*inputs[:COUNT], *(output[1 : 1 + DIFFERENTIATED] if ctx.o.reduction else ()))
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx, u, *_):
    nothing = (None,) * (COUNT - DIFFERENTIATED + len(Options._fields) + 2)
    tensors, saved = ctx.saved_tensors[:COUNT], ctx.saved_tensors[COUNT:]
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return *_recorded(u, tensors, ctx.o, ctx.need), *nothing
    if ctx.o.reduction:
        made = [(t * u.to(t.dtype)).to(of.dtype) if n else None for t, of, n in zip(saved, tensors, ctx.need)]
        return *made, *nothing
    operation = getattr(torch.ops.sumexp, NAME + "_vjp")
    made = operation(u.to(torch.float64), *tensors, *ctx.o, list(ctx.need))
    return *(t if needed else None for t, needed in zip(made, ctx.need)), *nothing


@eagerly  # from what is compiled no gradient finds the way to `inputs`
def _recorded(u, tensors, o, need):
    """The gradients, to be differentiated again."""
    with torch.enable_grad():
        inputs = [t.view_as(t) if needed else t for t, needed in zip(tensors, (*need, False))]
        loss, *_ = derived(inputs, o, ())
        wanted = [t for t, needed in zip(inputs, need) if needed]
        found = iter(torch.autograd.grad(loss, wanted, u.to(loss.dtype), create_graph=True))
    return tuple(next(found) if needed else None for needed in need)


def _vmap(operation):
    return lambda info, in_dims, *args: stacked(operation, info.batch_size, in_dims, args)


def _register():
    operation, vjp = (getattr(torch.ops.sumexp, n).default for n in (NAME, NAME + "_vjp"))
    reverse = make_autograd_impl(operation, AutogradInfo(_backward, _setup_context))

    def autograd(keyset, *args):
        tensors = [t for t in args[:COUNT] if t is not None]
        watched = functorch_active() and torch.is_grad_enabled()
        if watched or (maybe_dual() and any(map(has_tangent, tensors))):
            raise NotImplementedError(f"{NAME}: a torch.func transform or forward mode within a compiled program")
        return reverse(keyset, *args)

    for device in DEVICES:
        LIBRARY.impl(NAME, _operation, device.upper())
        LIBRARY.impl(NAME + "_vjp", _operation_vjp, device.upper())
    LIBRARY.impl(NAME, autograd, "Autograd", with_keyset=True)
    LIBRARY.impl(NAME + "_vjp", make_autograd_impl(vjp, AutogradInfo(None, None)), "Autograd", with_keyset=True)
    torch.library.register_fake(f"sumexp::{NAME}", _fake, lib=LIBRARY)
    torch.library.register_fake(f"sumexp::{NAME}_vjp", _fake_vjp, lib=LIBRARY)
    torch.library.register_vmap(f"sumexp::{NAME}", _vmap(operation), lib=LIBRARY)
    torch.library.register_vmap(f"sumexp::{NAME}_vjp", _vmap(vjp), lib=LIBRARY)


_register()
