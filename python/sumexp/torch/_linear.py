"""Cross-entropy of logits x W^T + bias that never exist whole, for torch.

As in sumexp._linear: tokens in chunks, products by torch.mm into one buffer, the gradient over the logits. Where a gradient is
recorded, and the loss is one number, the forward sweep makes it, and backward only multiplies by what comes back. Everything
else that is derived is a sweep of its own. With L = sum_i g_i l_i(x, w, b) and the rows' tangent of the logits
v = t_x W^T + x t_w^T + t_b, all derivatives up to the second are those of one function,

    Phi(g, x, w, b; t) = sum_i g_i <dl_i/dlogits, v_i> :

    Gradients = dPhi/dt        Tangent = dPhi/dg        Second = dPhi/d(x, w, b)        Bilinear = the rows of t H t'
"""

import functools
import math
from typing import NamedTuple

import torch
from torch.autograd import Function

from .. import _core
from .._chunks import BLOCK, PARTS, blocks, chunk_rows, wanted
from . import _cross_entropy as ce, _front
from ._functions import jvp_rule
from ._kernels import DEVICES
from ._library import LIBRARY, has_tangent, maybe_dual
from ._private import AutogradInfo, forward_ad, functorch_active, make_autograd_impl

NAME = "linear_cross_entropy"


class Options(NamedTuple):
    """What follows the tensors; softcap 0: none, chunk 0: from the shapes."""

    ignore_index: int
    label_smoothing: float
    z_loss: float
    softcap: float
    temperature: float
    reduction: int
    zero_if_empty: bool
    chunk: int

    def of_rows(self):
        """Those of cross_entropy over the second dimension, without reduction."""
        return ce.Options(1, *self[:5], 0, False)


SCHEMA = (
    "int ignore_index, float label_smoothing, float z_loss, float softcap, float temperature, int reduction, "
    "bool zero_if_empty, int chunk"
)
# x (N, D), w (V, D), bias (V), target (N), (N, V) or with target_weight (N, K), weight (V), token_weight (N), denominator ()
TENSORS = ("x", "w", "bias?", "target", "target_weight?", "weight?", "token_weight?", "denominator?")


# -- products ------------------------------------------------------------------------------------------------------------


def product(x, w, bias, out):
    """out = x w^T + bias, in the dtype of x and out."""
    if w.dtype != out.dtype:
        for block in blocks(*w.shape):
            out[:, block] = x @ w[block].to(out.dtype).t()
        if bias is not None:
            out += bias
    elif bias is None:
        torch.mm(x, w.t(), out=out)
    else:
        torch.addmm(bias, x, w.t(), out=out)
    return out


def product_back(z, w):
    """z w"""
    if w.dtype == z.dtype:
        return z @ w
    total = z.new_zeros(len(z), w.shape[1])
    for block in blocks(*w.shape):
        total.addmm_(z[:, block], w[block].to(z.dtype))
    return total


def add_product(z, x, to, first):
    """to += z^T x, or to = z^T x of the first chunk."""
    if to.dtype == z.dtype:
        torch.mm(z.t(), x, out=to) if first else to.addmm_(z.t(), x)
        return
    for block in blocks(*to.shape, 4 * BLOCK):  # fewer, larger ones: each is three parallel regions
        part = z[:, block].contiguous().t() @ x  # of 16 bits products are fast without gaps alone
        to[block].copy_(part) if first else to[block].add_(part)


# -- sweeps over plain tensors ---------------------------------------------------------------------------------------------


def waits(t):
    """Whether to look at a number of a tensor is to wait for it."""
    return t.device.type != "cpu"


def kept_rows(target, target_weight, o):
    """(indices of the rows that are left, on the CPU, None); where to count these would be to wait, (all, which are left)."""
    if target.is_floating_point():
        return torch.arange(len(target)), None
    kept = target != o.ignore_index
    kept = kept if target_weight is None else kept.any(1)
    return (torch.arange(len(target)), kept) if waits(target) else (kept.nonzero().squeeze(1), None)


def of_input(x, rows, left):
    """x[rows], those that are not left being 0, whatever they hold."""
    return x[rows] if left is None else x[rows].masked_fill(~left[rows].unsqueeze(1), 0)


def chunks(kept, size):
    """The rows in parts: slices where they follow one another, else their indices."""
    for part in kept.split(size) if len(kept) else ():
        first, last = part[0].item(), part[-1].item()
        yield slice(first, last + 1) if last - first == len(part) - 1 else part


def divisor(tensors, o):
    """What a mean divides by, in float64; checks the targets in any case."""
    x, w, _, target, target_weight, weight, token_weight, denominator = tensors
    found = x.new_empty((), dtype=torch.float64)
    ce.raw(
        _core._cross_entropy_denominator,
        x.new_zeros((), dtype=ce.wide(x.dtype)).expand(len(x), *w.shape[:-1]),
        target,
        1,
        target_weight=target_weight,
        weight=None if weight is None else weight.to(ce.wide(x.dtype)).contiguous(),
        token_weight=None if token_weight is None else token_weight.to(torch.float64),
        ignore_index=o.ignore_index,
        out=found,
        function=NAME,
    )
    return found if denominator is None else denominator


def summed(losses):
    """The sum of rows in cross_entropy's order, in float64."""
    total = losses.new_empty((), dtype=torch.float64)
    ce.raw(_core._sum_rows, losses, out=total)
    return total


def sweep(tensors, o, need=(False, False, False), g=None, info=(), out_dw=None):
    """(row losses in the wide dtype, (dx, dw, dbias) as needed, {name: tensor of rows}, what a mean divides by)

    The gradients are those of the reduced loss, or with g of sum_i g_i l_i.
    """
    tensors, g = [ce.plain(t) for t in tensors], ce.plain(g)
    x, w, bias, target, target_weight, weight, token_weight, _ = tensors
    wide = ce.wide(x.dtype)
    work = wide if x.dtype == torch.float16 else x.dtype  # of logits: bfloat16 has fast products
    found = divisor(tensors, o)
    options = dict(ce.raw_options(o), weight=None if weight is None else weight.to(ce.wide(work)).contiguous())
    if g is not None:
        options["reduction"] = "none"
    elif o.reduction == ce.REDUCTIONS.index("mean"):
        options["denominator"] = found
    of_rows = {
        "target": target,
        "target_weight": target_weight,
        "token_weight": None if token_weight is None else token_weight.to(torch.float64),
        "g": g,
    }
    of_rows = {n: t for n, t in of_rows.items() if t is not None}
    kept, left = kept_rows(target, target_weight, o)
    size = chunk_rows(NAME, o.chunk or None, len(kept), len(w))
    losses = x.new_zeros(len(x), dtype=wide)
    extras = {n: t.fill_(-1 if n == "predicted" else 0) for n, t in ce.info_places(info, len(x), x).items()}
    places = {"row_loss": losses, **extras}
    need_x, need_w, need_bias = need[0], need[1], need[2] and bias is not None
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if need_x else None
    if need_x and len(kept) < len(x):
        dx.zero_()
    dw = out_dw
    if need_w and dw is None:
        dw = w.new_empty(w.shape, dtype=work if len(kept) <= size else wide)
    db = w.new_zeros(len(w), dtype=wide) if need_bias else None
    buffer = x.new_empty(size, len(w), dtype=work)
    for count, rows in enumerate(chunks(kept, size)):
        part = of_input(x, rows, left).to(work)
        z = product(part, w, bias, buffer[: len(part)])
        made = {n: t[rows] for n, t in places.items()}  # views of slices, else tensors of their own
        ce.raw(
            _core._cross_entropy,
            z,
            axis=1,
            function=NAME,
            dlogits=z if any(need) else None,
            **options,
            **{n: t[rows] for n, t in of_rows.items()},
            **{"z_loss_part" if n == "z_loss" else n: t for n, t in made.items()},
        )
        if not isinstance(rows, slice):
            for n, t in made.items():
                places[n][rows] = t
        if need_x and isinstance(rows, slice) and w.dtype == z.dtype:
            torch.mm(z, w, out=dx[rows])
        elif need_x:
            dx[rows] = product_back(z, w).to(dx.dtype)
        if need_w:
            add_product(z, part, dw, count == 0 and out_dw is None)
        if need_bias:
            db += z.sum(0, dtype=wide)
    if need_w and len(kept) == 0 and out_dw is None:
        dw.zero_()
    if need_w and out_dw is None:
        dw = dw.to(w.dtype)
    return losses, (dx, dw, None if db is None else db.to(w.dtype)), extras, found


def reduced(losses, found, o):
    """The row losses in the wide dtype; or one number in float64, of them and what a mean divides by."""
    if not o.reduction:
        return losses
    total = summed(losses)
    return ce.quotient(total, found, o) if o.reduction == ce.REDUCTIONS.index("mean") else total


def second(tensors, o, g, t, need, along=None):
    """(rows <dl_i, v_i>, (gradients of Phi in x, w and bias as needed), rows of the bilinear form of t and `along`)"""
    tensors, g = [ce.plain(a) for a in tensors], ce.plain(g)
    x, w, bias, target, target_weight, weight, token_weight, _ = tensors
    tx, tw, tb = (ce.plain(a) for a in t)
    wide = ce.wide(x.dtype)
    kept, left = kept_rows(target, target_weight, o)
    size = max(1, chunk_rows(NAME, o.chunk or None, len(kept), len(w)) // 8)  # the formula keeps some arrays of this size
    rows_of = lambda a, rows: None if a is None else a[rows]
    zeros = lambda *shape: x.new_zeros(shape, dtype=wide)
    firsts, both = zeros(len(x)), zeros(len(x))
    hx = zeros(*x.shape) if need[0] else None
    hw = zeros(*w.shape) if need[1] else None
    hb = zeros(len(w)) if need[2] else None

    def tangent(part, tx, tw, tb):
        v = zeros(len(part), len(w))
        scratch = torch.empty_like(v)
        if tx is not None:
            v += product(tx.to(wide), w, None, scratch)
        if tw is not None:
            v += product(part, tw, None, scratch)
        return v if tb is None else v + tb

    for rows in chunks(kept, size):
        part = of_input(x, rows, left).to(wide)
        z = product(part, w, None, x.new_empty(len(part), len(w), dtype=wide))
        z = z if bias is None else z + bias
        v = tangent(part, rows_of(tx, rows), tw, tb)
        with torch.enable_grad():
            z.requires_grad_()
            of_rows = (target[rows], rows_of(target_weight, rows), weight, rows_of(token_weight, rows))
            losses, _ = ce.row_losses(z, *of_rows, o.of_rows())
            (first,) = torch.autograd.grad(losses.sum(), z, create_graph=True)
            inner = (first * v).sum(1)
            (Hv,) = torch.autograd.grad(inner.sum(), z, materialize_grads=True)
        first = first.detach()
        firsts[rows] = inner.detach()
        if along is not None:
            ax, aw, ab = (ce.plain(a) for a in along)
            u = tangent(part, rows_of(ax, rows), aw, ab)
            both[rows] = (Hv * u).sum(1)
            mixed = torch.zeros_like(u)
            if tx is not None and aw is not None:
                mixed += product(tx[rows].to(wide), aw, None, torch.empty_like(u))
            if ax is not None and tw is not None:
                mixed += product(ax[rows].to(wide), tw, None, torch.empty_like(u))
            both[rows] += (first * mixed).sum(1)
        if g is not None:
            scale = g[rows].to(wide).unsqueeze(1)
            first, Hv = first * scale, Hv * scale
        if need[0]:
            hx[rows] = product_back(Hv, w) + (0 if tw is None else product_back(first, tw))
        if need[1]:
            add_product(Hv, part, hw, False)
            if tx is not None:
                add_product(first, tx[rows].to(wide), hw, False)
        if need[2]:
            hb += Hv.sum(0)
    made = tuple(None if a is None else a.to(x.dtype) for a in (hx, hw, hb))
    return firsts, made, both


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
        made = gradients_of(ctx.o, ctx.needs_input_grad[1:4], u.to(torch.float64), ctx.saved_tensors)
        return None, *made, *(None for _ in TENSORS[3:])

    @jvp_rule
    def jvp(ctx, saved, _, *tangents):
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
        ctx.set_materialize_grads(False)
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
        ctx.set_materialize_grads(False)
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


# -- the public functions ------------------------------------------------------------------------------------------------------


def linear_cross_entropy(
    input, linear_weight, target, *, linear_bias=None, weight=None, reduction="mean", ignore_index=None, label_smoothing=0.0,
    options=None, z_loss=0.0, softcap=None, temperature=1.0, token_weight=None, denominator=None, on_empty="nan", info=(),
    chunk_size=None,
):
    """torch.nn.functional.linear_cross_entropy, without the logits ever being whole, with the extras of cross_entropy.

    Parameters
    ----------
    input : Tensor (..., D)
        Of float16, bfloat16, float32 or float64, on the CPU or a CUDA device that this build serves. (There ignored rows are
        multiplied as zeros, since to count them would be to wait.)
    linear_weight : Tensor (C, D)
        Of the same dtype; or (C, d1, ..., D) for torch's K-dimensional losses, of an input (N, D): a head for each position.
    target : Tensor or pair of tensors
        Class indices (...), probabilities (..., C), or indices and weights (..., K); with positions (N, d1, ...),
        (N, C, d1, ...) and (N, d1, ..., K). Probabilities, class weights and token weights are not differentiated in.
    linear_bias : Tensor (C,) or (C, d1, ...)
    weight, reduction, ignore_index, label_smoothing, z_loss, softcap, temperature, token_weight, denominator, on_empty, info
        As in cross_entropy; ignore_index=None is -100.
    options : torch.nn.LinearCrossEntropyOptions
        Of torch's chunks: its batch_chunk_size, if it has one, is chunk_size; all else in it is decided here.
    chunk_size : int
        How many rows of logits exist at a time; None chooses from the shapes.

    Returns
    -------
    As cross_entropy of input @ linear_weight.T + linear_bias: a row's loss has its bytes on the same logits, which are the
    products of torch.mm, in the tensors' dtype; those of float16 are computed, and stay, in float32. Of positions the losses
    are added up one position after the other. Under torch.autocast products are in its dtype, and the loss, if input has 16
    bits, in float32, as torch's.

    Where a gradient is recorded and reduction is not "none", it is made in the same sweep, for those of input, linear_weight
    and linear_bias that need one; others cost nothing. The latter two are added up in float32 or float64. Double backward,
    forward mode and torch.func compute chunks again; third derivatives raise.

    Raises
    ------
    As cross_entropy; NotImplementedError for what cannot be served without whole logits.
    """
    chunk_size = chunk_of(options) if chunk_size is None else chunk_size
    tensors, o, info, batch, dtype = checked(
        NAME, input, linear_weight, target, linear_bias, weight=weight, reduction=reduction, ignore_index=ignore_index,
        label_smoothing=label_smoothing, z_loss=z_loss, softcap=softcap, temperature=temperature, token_weight=token_weight,
        denominator=denominator, on_empty=on_empty, info=info, chunk_size=chunk_size,
    )
    loss, found = (of_positions if tensors[1].dim() > 2 else computed)(tensors, o, info)
    loss = (loss if o.reduction else loss.reshape(batch)).to(dtype)
    return (loss, {n: t.reshape(batch) for n, t in found.items()}) if info else loss


def of_positions(tensors, o, info):
    """computed() of w (V, P, D), bias (V, P), target (N, P), (N, V, P) or (N, P, K) and token_weight (N, P)."""
    x, w, bias, target, target_weight, weight, token_weight, denominator = tensors
    count = w.shape[1]
    if denominator is None and o.reduction == ce.REDUCTIONS.index("mean"):
        if ways(tensors) in ("kernel", "function"):
            denominator = divisor([ce.plain(t) for t in tensors], o)
        else:
            like, index = x.detach().new_empty(()).expand(len(x), len(w), count), target
            if not target.is_floating_point():  # those out of range are for the kernels
                index = torch.where(target == o.ignore_index, target, target.clamp(0, max(len(w) - 1, 0)))
            denominator = ce.denominator_of(like, index, target_weight, weight, token_weight, o.of_rows())
    parts = lambda t, d: [None] * count if t is None else t.unbind(d)
    split = [parts(w, 1), parts(bias, 1), parts(target, 2 if target.is_floating_point() else 1), parts(target_weight, 1)]
    made = [
        computed((x, *of_one, weight, tokens, denominator), o, info)
        for *of_one, tokens in zip(*split, parts(token_weight, 1))
    ]
    if not made:  # the sum of no element of w
        total = w.sum(dtype=torch.float64)
        empty = x.new_empty(len(x), 0)
        loss = empty if not o.reduction else ce.quotient(total, denominator, o) if denominator is not None else total
        return loss, dict.fromkeys(info, empty)
    losses = [loss for loss, _ in made]
    loss = functools.reduce(torch.add, losses) if o.reduction else torch.stack(losses, 1)
    return loss, {n: torch.stack([found[n] for _, found in made], 1) for n in info}


def computed(tensors, o, info):
    """(the loss, or those of the rows, in a wide dtype, {name: tensor of rows})"""
    taken = ways(tensors)
    if taken == "op":
        if info:
            raise NotImplementedError(f"{NAME}: info is given while a program is compiled or traced, accepted: ()")
        recorded = torch.is_grad_enabled()
        need = [recorded and t is not None and t.requires_grad for t in tensors[:3]]
        loss, found = getattr(torch.ops.sumexp, NAME)(*tensors, *o, need)[0], {}
    elif taken == "kernel":
        losses, _, found, divided = sweep(tensors, o, info=info)
        loss = reduced(losses, divided, o)
    elif taken == "function" and forward_ad._current_level < 0 and o.reduction:
        loss, *found = Fused.apply(o, info, *tensors)
        found = dict(zip(info, found))
    else:
        if info and taken == "functorch":
            raise NotImplementedError(f"{NAME}: info is given under a transform of torch.func, accepted: ()")
        found = sweep(tensors, o, info=info)[2] if info else {}
        loss = Rows.apply(o, *tensors)
        if o.reduction:
            loss = Sum.apply(loss)
        if o.reduction == ce.REDUCTIONS.index("mean"):
            loss = ce.quotient(loss, Divisor.apply(o, *tensors), o)
        if not torch.is_grad_enabled():
            loss = loss.detach()
    return loss, found


def ways(tensors):
    """The way of _front that a call takes."""
    taken = {_way(t) for t in tensors if t is not None}
    for first in ("torch", "op", "functorch", "function"):
        if first == "torch" and first in taken:
            raise NotImplementedError(f"{NAME}: a torch.func transform within a compiled program, accepted: outside of one")
        if first in taken:
            return first
    return "kernel"


def _way(t):
    if t.is_floating_point():
        if not _front.is_ours(NAME, t):
            raise TypeError(
                f"{NAME}: a {type(t).__name__} of {t.dtype} on {t.device}, accepted: plain tensors on {_core.served_devices()}"
            )
    return _front.way(t)


def chunk_of(options):
    return getattr(options, "batch_chunk_size", None)


def with_grad(function, x, w, target, bias, *, need, out_dw, info, g=None, **options):
    """sumexp.linear_cross_entropy_with_grad of tensors, or with g its _vjp."""
    tensors, o, info, batch, dtype = checked(function, x, w, target, bias, info=info, **options)
    if g is not None:
        g = ce.of_rows(function, "g", torch.as_tensor(g, device=x.device), () if o.reduction else batch)
    need = tuple(part in wanted(function, need) for part in PARTS)
    if ways(tensors) not in ("kernel", "function"):
        raise NotImplementedError(f"{function}: tensors of a transform, accepted: plain tensors")
    tensors = [t if t is None else t.detach() for t in tensors]
    place = None
    if out_dw is not None and need[1]:
        accepted = {w.dtype, ce.wide(w.dtype)}
        if not isinstance(out_dw, torch.Tensor) or out_dw.dtype not in accepted or out_dw.shape != w.shape:
            given = f"{tuple(out_dw.shape)} of {out_dw.dtype}" if isinstance(out_dw, torch.Tensor) else type(out_dw).__name__
            raise ValueError(f"{function}: out_dw is {given}, accepted: {tuple(w.shape)} of {' or '.join(map(str, accepted))}")
        if out_dw.requires_grad or not ce.apart(out_dw, tensors):
            raise ValueError(f"{function}: out_dw requires a gradient or is an input, accepted: memory of its own")
        place = out_dw if out_dw.dtype == ce.wide(w.dtype) else w.new_zeros(w.shape, dtype=ce.wide(w.dtype))
    with torch.no_grad():
        if g is not None:
            g = g.detach().to(torch.float64).reshape(-1).expand(len(tensors[0]))
            if o.reduction == ce.REDUCTIONS.index("mean"):
                g = ce.quotient(g, divisor([ce.plain(t) for t in tensors], o), o)
        losses, (dx, dw, db), found, divided = sweep(tensors, o, need, g=g, info=info, out_dw=place)
        if place is not None:
            dw = out_dw if place is out_dw else out_dw.add_(place)
    like = lambda a, t: a if a is None or a is out_dw else a.to(t.dtype).reshape(t.shape)
    gradients = (like(dx, x), like(dw, w), like(db, bias))
    if g is not None:
        return gradients
    loss = reduced(losses, divided, o)
    made = ((loss if o.reduction else loss.reshape(batch)).to(dtype), *gradients)
    return (*made, {n: t.reshape(batch) for n, t in found.items()}) if info else made


def checked(function, x, w, target, bias, *, ignore_index, reduction, chunk_size, **extras):
    """(tensors of N rows, options, names of info, the shape of the losses, the dtype of the loss)

    With a w (V, d1, ..., D), the tensors are those of of_positions.
    """
    for name, t in (("input", x), ("linear_weight", w)):
        if not ce.a_tensor(function, name, t).is_floating_point():
            raise TypeError(f"{function}: {name} has dtype {t.dtype}, accepted: float16, bfloat16, float32 or float64")
    if w.dim() < 2 or (w.dim() > 2 and function != NAME):
        accepted = "(C, D) or (C, d1, ..., D)" if function == NAME else "(C, D)"
        raise ValueError(f"{function}: linear_weight has shape {tuple(w.shape)}, accepted: {accepted}")
    classes, *positions, width = w.shape
    if x.dim() == 0 or x.shape[-1] != width or (positions and x.dim() != 2):
        accepted = f"({'N' if positions else '...'}, {width})"
        raise ValueError(f"{function}: input has shape {tuple(x.shape)}, accepted: {accepted}, as of linear_weight")
    ce.of_shape(function, "linear_bias", bias, (classes, *positions))
    kind, dtype = x.device.type, x.dtype
    if kind in DEVICES and torch.is_autocast_enabled(kind):  # as torch.nn.functional.linear and cross_entropy under it
        narrow, dtype = torch.get_autocast_dtype(kind), ce.wide(dtype)
        x, w, bias = (t if t is None or t.dtype == torch.float64 else t.to(narrow) for t in (x, w, bias))
    for name, t in (("linear_weight", w), ("linear_bias", bias)):
        if t is not None and t.dtype != x.dtype:
            raise TypeError(f"{function}: {name} has dtype {t.dtype}, accepted: {x.dtype}, that of input")
    batch = (*x.shape[:-1], *positions)
    probabilities = isinstance(target, torch.Tensor) and target.is_floating_point()
    if probabilities and ignore_index is not None and function == NAME and ignore_index != -100:
        raise ValueError(f"{function}: ignore_index is {ignore_index}, accepted: None where target has probabilities")
    dim = 1 if positions else -1
    like = x.detach().new_empty(()).expand(*x.shape[:-1], classes, *positions)
    (_, index, pair_weights, weight, tokens, denominator), options, info = ce.checked(
        function, like, target, dim, ignore_index=-100 if ignore_index is None else ignore_index, reduction=reduction, **extras
    )
    chunk = 0 if chunk_size is None else chunk_rows(function, chunk_size, 1 << 62, w.shape[0])
    for name, t in (("target", index), ("target[1]", pair_weights), ("weight", weight), ("token_weight", tokens)):
        if t is not None and t.requires_grad and torch.is_grad_enabled():
            raise NotImplementedError(f"{function}: {name} requires a gradient, accepted: input, linear_weight and linear_bias")
    if positions:
        merged = lambda t, d=1: t if t is None else t.flatten(d, d + len(positions) - 1)
        index = merged(index, 2 if probabilities else 1)
        w, bias, pair_weights, tokens = (merged(t) for t in (w, bias, pair_weights, tokens))
        return (x, w, bias, index, pair_weights, weight, tokens, denominator), Options(*options[1:], chunk), info, batch, dtype
    flat = lambda t: t if t is None else t.reshape(-1, *t.shape[len(batch) :])
    rows = x.reshape(-1 if x.shape[-1] else math.prod(batch), x.shape[-1])
    tensors = (rows, w, bias, flat(index), flat(pair_weights), weight, flat(tokens), denominator)
    return tensors, Options(*options[1:], chunk), info, batch, dtype
