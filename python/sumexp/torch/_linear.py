"""Cross-entropy of logits x W^T + bias that never exist whole, for torch: the public functions and their checks.

_linear_sweeps has the chunks, _linear_functions what is differentiated.
"""

import functools
from typing import Any

import torch
from torch.compiler import is_compiling

from .. import _core
from .._chunks import PARTS, chunk_rows
from .._loss_arguments import known_names
from . import _cross_entropy as ce, _front
from ._checks import a_tensor, as_tensor, into, real
from ._kernels import DEVICES
from ._library import has_tangent
from ._linear_functions import Fused, called, derived
from ._linear_sweeps import DIFFERENTIATED, NAME, Options, divisor, reduced, sweep
from ._private import dispatch_mode_count, forward_ad, functorch_active, is_tracing

TORCHS = ("input", "linear_weight", "linear_bias")


def linear_cross_entropy(
    input, linear_weight, target, *, linear_bias=None, weight=None, reduction="mean", ignore_index=None, label_smoothing=0.0,
    options=None, z_loss=0.0, softcap=None, temperature=1.0, token_weight=None, denominator=None, on_empty="nan", info=(),
    chunk_size=None,
) -> Any:
    """torch.nn.functional.linear_cross_entropy, without the logits ever being whole, with the extras of cross_entropy.

    Parameters
    ----------
    input : Tensor (..., D)
        Of float16, bfloat16, float32 or float64, on the CPU or a CUDA device that this build serves. (There ignored rows are
        multiplied as zeros, since to count them would be to wait.)
    linear_weight : Tensor (C, D)
        Of the same dtype; or (C, d1, ..., D) for torch's K-dimensional losses, of an input (N, D): a head for each position.
    target : Tensor or pair of tensors
        Class indices (...), or of shape (1,) for an input (D,); probabilities (..., C); or indices and weights (..., K). With
        positions these are (N, d1, ...), (N, C, d1, ...) and (N, d1, ..., K).
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
    and linear_bias that need one; others cost nothing. The latter two are added up in float32 or float64. On the CPU subnormal
    numbers in the gradient over the logits count as 0, as some CPUs take a hundred cycles for a product with one.
    Probabilities, the weights of pairs, class weights and token weights are differentiated in too, which computes chunks
    again, as do double backward, forward mode and torch.func. Third derivatives raise. info is not differentiated.

    Raises
    ------
    As cross_entropy; NotImplementedError for what cannot be served without whole logits.
    """
    chunk_size = chunk_of(options) if chunk_size is None else chunk_size
    target = ce.of_one_row(input, target)
    return _loss(
        TORCHS, input, linear_weight, target, linear_bias, weight=weight, reduction=reduction, ignore_index=ignore_index,
        label_smoothing=label_smoothing, z_loss=z_loss, softcap=softcap, temperature=temperature, token_weight=token_weight,
        denominator=denominator, on_empty=on_empty, info=info, chunk_size=chunk_size,
    )


torch.fx.wrap("linear_cross_entropy")  # for the module


def _loss(names, *arguments, **options):
    tensors, o, info, batch, dtype = checked(NAME, names, *arguments, **options)
    loss, found = (of_positions if tensors[1].dim() > 2 else computed)(tensors, o, info)
    loss = (loss if o.reduction else loss.reshape(batch)).to(dtype)
    return (loss, {n: t.reshape(batch) for n, t in found.items()}) if info else loss


def of_positions(tensors, o, info):
    """computed() of w (V, P, D), bias (V, P), target (N, P), (N, V, P) or (N, P, K) and token_weight (N, P)."""
    x, w, bias, target, target_weight, weight, token_weight, denominator = tensors
    count, asked = w.shape[1], o
    by_weights = any(t is not None and _front.is_watched(t) for t in (weight, token_weight))
    if denominator is None and o.reduction == ce.REDUCTIONS.index("mean"):
        if ways(tensors) in ("kernel", "function") and not by_weights:
            denominator = divisor([ce.plain(t) for t in tensors], o)
        else:
            like, index = x.detach().new_empty(()).expand(len(x), len(w), count), target
            if not target.is_floating_point():  # those out of range are for the kernels
                index = torch.where(ce.is_kept(target, o.ignore_index), target.clamp(0, max(len(w) - 1, 0)), target)
            denominator = ce.denominator_of(like, index, target_weight, weight, token_weight, o.of_rows())
        if by_weights:  # the mean is a quotient, both of whose parts are differentiated
            o = o._replace(reduction=ce.REDUCTIONS.index("sum"))
    parts = lambda t, d: [None] * count if t is None else t.unbind(d)
    split = [parts(w, 1), parts(bias, 1), parts(target, 2 if target.is_floating_point() else 1), parts(target_weight, 1)]
    made = [
        computed((x, *of_one, weight, tokens, denominator if o is asked else None), o, info)
        for *of_one, tokens in zip(*split, parts(token_weight, 1))
    ]
    if not made:  # a sum of no elements, recorded as of all
        total = sum(t.sum(dtype=torch.float64) for t in (w, bias, x[:0]) if t is not None)
        empty = total.to(ce.wide(x.dtype)).expand(len(x), 0)
        loss = empty if not o.reduction else ce.quotient(total, denominator, asked) if denominator is not None else total
        return loss, ce.info_places(info, (len(x), 0), x)
    losses = [loss for loss, _ in made]
    loss = functools.reduce(torch.add, losses) if o.reduction else torch.stack(losses, 1)
    loss = loss if o is asked else ce.quotient(loss, denominator, asked)
    return loss, {n: torch.stack([found[n] for _, found in made], 1) for n in info}


def computed(tensors, o, info):
    """(the loss, or those of the rows, in a wide dtype, {name: tensor of rows})"""
    taken = ways(tensors)
    recorded = [torch.is_grad_enabled() and t is not None and t.requires_grad for t in tensors[:DIFFERENTIATED]]
    if taken == "op":
        loss, found = called(tensors, o, recorded, info)
    elif taken == "kernel":
        losses, _, found, divided = sweep(tensors, o, info=info)
        loss = reduced(losses, divided, o)
    elif taken == "function" and forward_ad._current_level < 0 and o.reduction and not any(recorded[3:]):
        loss, *found = Fused.apply(o, info, *tensors)
        found = dict(zip(info, found))
    else:
        loss, *found = derived(tensors, o, info)
        found = dict(zip(info, found))
        if not torch.is_grad_enabled():
            loss = loss.clone()  # which is not recorded, as transforms record Functions all the same; tangents stay
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
    taken = _front.way(t, watched=lambda: dispatch_mode_count() or is_tracing())  # modes of functions see torch's
    by_functions = functorch_active() and not is_compiling() and not _front.functionalized()
    return "functorch" if taken == "op" and by_functions else taken


def _real(function, *tensors):
    return [t if t is None and n == "bias" else real(function, n, t) for n, t in zip(PARTS, tensors)]


def _of_package(x, w, target, bias, **options):
    x, w, bias = _real(NAME, x, w, bias)
    return _loss(PARTS, x, w, target, bias, **options)


torch.fx.wrap("_of_package")  # for sumexp.linear_cross_entropy


def from_package(function, x, w, target, bias, *, out, **options):
    """sumexp.linear_cross_entropy of tensors."""
    made = _of_package(x, w, target, bias, **options)
    loss, *found = made if isinstance(made, tuple) else (made,)
    return (into(function, out, loss), *found) if found else into(function, out, loss)


def chunk_of(options):
    return getattr(options, "batch_chunk_size", None)


def with_grad(function, x, w, target, bias, *, need, out_dw, info, g=None, **options):
    """sumexp.linear_cross_entropy_with_grad of tensors, or with g its _vjp."""
    x, w, bias = _real(function, x, w, bias)
    tensors, o, info, batch, dtype = checked(function, PARTS, x, w, target, bias, info=info, **options)
    if g is not None:
        g = as_tensor(function, "g", g, x.device, "a tensor, an array or a number")
        g = ce.of_rows(function, "g", ce.of_numbers(function, "g", g), () if o.reduction else batch)
    need = tuple(part in known_names(function, "need", need, PARTS) for part in PARTS)
    dual = forward_ad._current_level >= 0 and any(t is not None and has_tangent(t) for t in (g, *tensors))
    if dual or ways(tensors) not in ("kernel", "function"):
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
                g = ce.quotient(g, divisor([ce.plain(t) for t in tensors], o, function), o)
        losses, (dx, dw, db), found, divided = sweep(tensors, o, need, g=g, info=info, out_dw=place, function=function)
        if place is not None:
            dw = out_dw if place is out_dw else out_dw.add_(place)
    like = lambda a, t: a if a is None or a is out_dw else a.to(t.dtype).reshape(t.shape)
    gradients = (like(dx, x), like(dw, w), like(db, bias))
    if g is not None:
        return gradients
    loss = reduced(losses, divided, o)
    made = ((loss if o.reduction else loss.reshape(batch)).to(dtype), *gradients)
    return (*made, {n: t.reshape(batch) for n, t in found.items()}) if info else made


def checked(function, names, x, w, target, bias, *, ignore_index, reduction, chunk_size, **extras):
    """(tensors of N rows, options, names of info, the shape of the losses, the dtype of the loss)

    With a w (V, d1, ..., D), the tensors are those of of_positions. names: of x, w and bias.
    """
    for name, t in zip(names, (x, w)):
        if not a_tensor(function, name, t).is_floating_point():
            raise TypeError(f"{function}: {name} has dtype {t.dtype}, accepted: float16, bfloat16, float32 or float64")
    if w.dim() < 2 or (w.dim() > 2 and function != NAME):
        accepted = "(C, D) or (C, d1, ..., D)" if function == NAME else "(C, D)"
        raise ValueError(f"{function}: {names[1]} has shape {tuple(w.shape)}, accepted: {accepted}")
    classes, *positions, width = w.shape
    if x.dim() == 0 or x.shape[-1] != width or (positions and x.dim() != 2):
        accepted = f"({'N' if positions else '...'}, {width})"
        raise ValueError(f"{function}: {names[0]} has shape {tuple(x.shape)}, accepted: {accepted}, as of {names[1]}")
    ce.of_shape(function, names[2], bias, (classes, *positions))
    kind, dtype = x.device.type, x.dtype
    if kind in DEVICES and torch.is_autocast_enabled(kind):  # as torch.nn.functional.linear and cross_entropy under it
        narrow, dtype = torch.get_autocast_dtype(kind), ce.wide(dtype)
        x, w, bias = (t if t is None or t.dtype == torch.float64 else t.to(narrow) for t in (x, w, bias))
    for name, t in zip(names[1:], (w, bias)):
        if t is not None and t.dtype != x.dtype:
            raise TypeError(f"{function}: {name} has dtype {t.dtype}, accepted: {x.dtype}, that of {names[0]}")
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
        if function != NAME and t is not None and t.requires_grad and torch.is_grad_enabled():
            accepted = f"one that does not, or sumexp.torch.{NAME}"
            raise NotImplementedError(f"{function}: {name} requires a gradient, accepted: {accepted}")
    if positions:
        merged = lambda t, d=1: t if t is None else t.flatten(d, d + len(positions) - 1)
        index = merged(index, 2 if probabilities else 1)
        w, bias, pair_weights, tokens = (merged(t) for t in (w, bias, pair_weights, tokens))
        return (x, w, bias, index, pair_weights, weight, tokens, denominator), Options(*options[1:], chunk), info, batch, dtype
    flat = lambda t: t if t is None else t.flatten(0, len(batch) - 1) if batch else t.unsqueeze(0)
    tensors = (flat(x), w, bias, flat(index), flat(pair_weights), weight, flat(tokens), denominator)
    return tensors, Options(*options[1:], chunk), info, batch, dtype
