"""Cross-entropy of tensors: torch.nn.functional.cross_entropy's signature, the extras of sumexp.cross_entropy.

The loss and its gradient are kernels (csrc/include/sumexp/losses.hpp has the formula); `formula` says the same in operations
that are differentiable any number of times.
"""

from typing import Any, NamedTuple

import numpy as np
import torch

from .. import _core
from .._loss_arguments import (
    INFO,
    RAW_INFO,
    REDUCTIONS,
    check_denominator,
    check_ignored,
    checked_options,
    denominator_number,
    known_names,
    tokens_power,
)
from .._row_shapes import without
from . import _formulas, _front
from ._checks import a_tensor, as_tensor, check_classes, check_out, floating, into, is_recorded, values_of
from ._composed import Composed
from ._dispatch import _can_write
from ._kernels import DEVICES, dims_of, result_like
from ._private import is_zero_tensor


class Options(NamedTuple):
    """What follows the tensors, in the order of the registered operation's schema. softcap 0: none."""

    dim: int
    ignore_index: int
    label_smoothing: float
    z_loss: float
    softcap: float
    temperature: float
    reduction: int
    zero_if_empty: bool


SCHEMA = (
    "int dim, int ignore_index, float label_smoothing, float z_loss, float softcap, float temperature, int reduction, "
    "bool zero_if_empty"
)
# target: indices of integer dtype, probabilities, or with target_weight the indices of pairs, in a last dimension of their own
TENSORS = ("input", "target", "target_weight?", "weight?", "token_weight?", "denominator?")


# -- the formula -------------------------------------------------------------------------------------------------


def wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def along(vector, ndim, dim):
    """A vector of one number a class, laid along dimension dim of ndim."""
    return vector.reshape([-1 if d == dim % ndim else 1 for d in range(ndim)])


def weighted(a, nll):
    """a nll, where classes of weight 0 add nothing, also those of probability 0; the derivative in a is as if they did."""
    return a * nll.masked_fill((a == 0) & torch.isinf(nll), 0)


def is_kept(target, ignore_index):
    """Where an index is not the ignored one, which may be beyond what its dtype holds."""
    limits = torch.iinfo(target.dtype)
    if limits.min <= ignore_index <= limits.max:
        return target != ignore_index
    return torch.ones_like(target, dtype=torch.bool)


def kept_rows(target, target_weight, o):
    """Which rows are not ignored, and of pairs which pairs; None: all are."""
    if target.is_floating_point():
        return None, None
    kept = is_kept(target, o.ignore_index)
    return (kept, None) if target_weight is None else (kept.any(-1), kept)


def capped(input, rows, o):
    """The logits in the wide dtype, after softcap. An ignored row is not read: whatever it holds, its gradient is 0."""
    x = input.to(wide(input.dtype))
    if rows is not None:
        x = torch.where(rows.unsqueeze(o.dim), x, 0)
    if not o.softcap:
        return x
    return torch.where(torch.isinf(x), x.detach(), o.softcap * torch.tanh(torch.where(torch.isinf(x), 0, x) / o.softcap))


def largest_class(index, y):
    """Of pairs in the last dimension, the class with the largest sum of y; of equal ones the lowest."""
    total = ((index.unsqueeze(-1) == index.unsqueeze(-2)) * y.unsqueeze(-2)).sum(-1)
    best = total == total.amax(-1, keepdim=True)
    return torch.where(best, index, torch.iinfo(index.dtype).max).amin(-1)


def row_losses(input, target, target_weight, weight, token_weight, o, info=False):
    """(the rows' losses in the wide dtype, a dict of what else there is if `info`)."""
    rows, pairs = kept_rows(target, target_weight, o)
    z = capped(input, rows, o)
    classes = z.shape[o.dim]
    nll = -_front.log_softmax(z, o.dim, temperature=o.temperature)
    whole, z = z, _formulas.quotient(z, o.temperature)
    w = None if weight is None else weight.to(z.dtype)
    share = 1 - o.label_smoothing
    if target.is_floating_point():
        y = target.to(z.dtype)
        a = y * share + o.label_smoothing / classes
        a = a if w is None else a * along(w, z.dim(), o.dim)
        loss = weighted(a, nll).sum(o.dim)
    else:
        kept = rows.unsqueeze(o.dim) if pairs is None else pairs.movedim(-1, o.dim)
        index = target.unsqueeze(o.dim) if pairs is None else target.movedim(-1, o.dim)
        index = torch.where(kept, index, 0).to(torch.int64)
        of_target = nll.gather(o.dim, index)
        y = torch.ones_like(of_target)
        if pairs is not None:
            y = torch.where(kept, target_weight.movedim(-1, o.dim).to(z.dtype), 0)
        a = share * (y if w is None else y * w[index])
        loss = weighted(a, of_target).sum(o.dim)
        if o.label_smoothing:
            even = torch.full_like(nll, o.label_smoothing / classes)
            even = even if w is None else even * along(w, z.dim(), o.dim)
            loss = loss + weighted(even, nll).sum(o.dim)
    lse = _front.logsumexp(z, o.dim) if o.z_loss or info else None
    if o.z_loss:
        loss = loss + o.z_loss * lse.square()
    if token_weight is not None:
        loss = loss * token_weight.to(z.dtype)
    found = {}
    if info:
        order = torch.where(torch.isposinf(z).any(o.dim, keepdim=True), whole, z)  # where a quotient overflows
        predicted = torch.where(torch.isnan(z).any(o.dim), -1, order.argmax(o.dim))
        if target.is_floating_point():
            of_target, likeliest = nll, y.argmax(o.dim)
        else:
            likeliest = largest_class(index.movedim(o.dim, -1), y.movedim(o.dim, -1))
        found = {
            "lse": lse,
            "log_prob": -weighted(y, of_target).sum(o.dim),
            "entropy": weighted((-nll).exp(), nll).sum(o.dim),
            "z_loss": o.z_loss * lse.square() if o.z_loss else torch.zeros_like(lse),
            "predicted": predicted,
            "correct": predicted == likeliest,
        }
    if rows is not None:
        loss = torch.where(rows, loss, 0)
        found = {n: torch.where(rows, t, t.new_full((), -1 if n == "predicted" else 0)) for n, t in found.items()}
    return loss, found


def denominator_of(input, target, target_weight, weight, token_weight, o):
    """The sum over the rows kept of token_weight times, of indices, the target's class weight."""
    rows, _ = kept_rows(target, target_weight, o)
    shape = without(input.shape, o.dim)
    each = torch.ones(shape, dtype=torch.float64, device=input.device)
    if token_weight is not None:
        each = each * token_weight
    if rows is None:
        return each.sum()
    if weight is not None and target_weight is None:
        each = each * weight.to(each.dtype)[torch.where(rows, target, 0).to(torch.int64)]
    return torch.where(rows, each, 0).sum()


def of_denominator(u, target, target_weight, weight, token_weight, o):
    """The gradients of denominator_of() in weight and token_weight, or None, for a gradient u of it."""
    kept, _ = kept_rows(target, target_weight, o)
    shape = without(target.shape, o.dim) if kept is None else kept.shape
    share = u.to(torch.float64).expand(shape)
    share = share if kept is None else torch.where(kept, share, 0)
    of_classes = weight is not None and kept is not None and target_weight is None
    of_weight = of_tokens = None
    if of_classes:
        index = torch.where(kept, target, 0).to(torch.int64)
    if weight is not None:
        of_weight = torch.zeros_like(weight, dtype=torch.float64)
        if of_classes:
            part = share if token_weight is None else share * token_weight
            of_weight = of_weight.index_add(0, index.flatten(), part.flatten())
        of_weight = of_weight.to(weight.dtype)
    if token_weight is not None:
        of_tokens = (share * weight.to(share.dtype)[index] if of_classes else share).to(token_weight.dtype)
    return of_weight, of_tokens


def gradients_of_others(input, target, target_weight, weight, token_weight, o, g, needs):
    """The gradients of sum_i g_i l_i in target, target_weight, weight and token_weight, as needed, in the wide dtype.

    They are those of row_losses, in plain operations: a registered operation's kernel cannot call for autograd.
    """
    rows, pairs = kept_rows(target, target_weight, o)
    classes, share = input.shape[o.dim], 1 - o.label_smoothing
    nll = -_front.log_softmax(capped(input, rows, o), o.dim, temperature=o.temperature)
    g = g.to(nll.dtype) if rows is None else torch.where(rows, g.to(nll.dtype), 0)
    scale = (g if token_weight is None else g * token_weight.to(g.dtype)).unsqueeze(o.dim)
    w = None if weight is None else weight.to(nll.dtype)
    each = lambda a, nll: scale * nll.masked_fill((a == 0) & torch.isinf(nll), 0)  # as weighted()
    by_class = lambda t: t.movedim(o.dim, 0).reshape(classes, -1).sum(1)
    found = [None] * 4
    if target.is_floating_point():
        y = target.to(nll.dtype) * share + o.label_smoothing / classes
        of = each(y if w is None else y * along(w, y.dim(), o.dim), nll)
        if needs[0]:
            found[0] = of * share if w is None else of * share * along(w, y.dim(), o.dim)
        if needs[2]:
            found[2] = by_class(of * y)
    elif needs[1] or needs[2]:
        kept = rows.unsqueeze(o.dim) if pairs is None else pairs.movedim(-1, o.dim)
        index = target.unsqueeze(o.dim) if pairs is None else target.movedim(-1, o.dim)
        index = torch.where(kept, index, 0).to(torch.int64)
        y = torch.ones_like(index, dtype=nll.dtype)
        if pairs is not None:
            y = torch.where(kept, target_weight.movedim(-1, o.dim).to(nll.dtype), 0)
        of = share * each(y if w is None else y * w[index], nll.gather(o.dim, index))
        if needs[1]:
            found[1] = torch.where(kept, of if w is None else of * w[index], 0).movedim(o.dim, -1)
        if needs[2]:
            found[2] = torch.zeros_like(w).index_add(0, index.flatten(), (of * y).flatten())
            if o.label_smoothing:
                even = along(w * (o.label_smoothing / classes), nll.dim(), o.dim)
                found[2] += by_class(each(even, nll)) * (o.label_smoothing / classes)
    if needs[3]:
        found[3] = g * row_losses(input, target, target_weight, weight, None, o)[0]
    return found


def reduced(losses, denominator, o):
    """The rows' losses as `reduction` says; denominator is a 0-d tensor."""
    if o.reduction == REDUCTIONS.index("none"):
        return losses
    total = losses.sum()
    return total if o.reduction == REDUCTIONS.index("sum") else quotient(total, denominator, o)


def quotient(total, denominator, o):
    denominator = denominator.to(total.dtype)
    empty = denominator == 0
    if not o.zero_if_empty:
        return total / torch.where(empty, torch.nan, denominator)
    return torch.where(empty, 0, total / torch.where(empty, 1, denominator))


def formula(*arguments, info=False):
    tensors, o = arguments[: len(TENSORS)], Options(*arguments[len(TENSORS) :])
    *rest, denominator = tensors
    if not rest[1].is_floating_point():
        check_classes("cross_entropy", "target", rest[1], rest[0].shape[o.dim], o.ignore_index)
    losses, found = row_losses(*rest, o, info)
    if denominator is None and o.reduction == REDUCTIONS.index("mean"):
        denominator = denominator_of(*rest, o)
    loss = reduced(losses, denominator, o).to(tensors[0].dtype)
    return (loss, *(found[n].detach() for n in INFO)) if info else loss


def formula_with_info(*arguments):
    return formula(*arguments, info=True)


# -- the operations -----------------------------------------------------------------------------------------------


def raw_options(o):
    """Options as sumexp._core's entry has them, without what a mean divides by."""
    return {
        "ignore_index": o.ignore_index,
        "label_smoothing": o.label_smoothing,
        "z_loss": o.z_loss,
        "softcap": o.softcap or None,
        "temperature": o.temperature,
        "reduction": REDUCTIONS[o.reduction],
        "zero_if_empty": o.zero_if_empty,
    }


def plain(tensor, dtype=None):
    """A tensor as sumexp._core reads it: its memory is what it seems."""
    if tensor is None:
        return None
    if is_zero_tensor(tensor):
        tensor = torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    if dtype is not None and tensor.dtype is not dtype:
        tensor = tensor.to(dtype)
    if tensor.requires_grad:
        tensor = tensor.detach()
    return tensor.resolve_neg() if tensor.is_neg() else tensor


def info_places(names, shape, x):
    dtypes = {"predicted": torch.int64, "correct": torch.bool}
    return {n: x.new_empty(shape, dtype=dtypes.get(n, wide(x.dtype))) for n in names}


def raw(entry, x, *args, **options):
    """A raw entry of sumexp._core, with the workspace on x's device that it may want."""
    wanted = entry(x, *args, **options)
    if wanted is not None:
        entry(x, *args, workspace=x.new_empty(wanted, dtype=torch.uint8), **options)


def _run(arguments, *, info=(), dlogits=None, g=None, with_loss=True, function="cross_entropy"):
    """The kernel on plain tensors: (loss, {name: tensor} of `info`). The gradient goes to dlogits, which may be the input."""
    (x, target, target_weight, weight, token_weight, denominator), o = arguments[: len(TENSORS)], Options(
        *arguments[len(TENSORS) :]
    )
    rows = without(x.shape, o.dim)
    loss = x.new_empty(() if o.reduction else rows) if with_loss else None
    places = info_places(info, rows, x)
    tokens, denominator = plain(token_weight, torch.float64), plain(denominator, torch.float64)
    if tokens is not None and x.is_cpu and o.reduction == REDUCTIONS.index("mean"):
        index = None if target.is_floating_point() else plain(target).numpy()
        classes = None if weight is None else plain(weight, wide(x.dtype)).numpy()
        number = np.dtype(np.float64 if x.dtype == torch.float64 else np.float32)
        if power := tokens_power(tokens.numpy(), number, index, classes, raw_options(o)):
            tokens, denominator = (t if t is None else torch.ldexp(t, torch.tensor(power)) for t in (tokens, denominator))
    raw(
        _core._cross_entropy,
        plain(x),
        plain(target),
        o.dim,
        target_weight=plain(target_weight),
        weight=None if weight is None else plain(weight, wide(x.dtype)).contiguous(),
        token_weight=tokens,
        denominator=denominator,
        g=plain(g),
        dlogits=dlogits,
        loss=loss,
        function=function,
        **raw_options(o),
        **{RAW_INFO[n]: t for n, t in places.items()},
    )
    return loss, places


def kernel(*arguments):
    return _run(arguments)[0]


def kernel_with_info(*arguments):
    loss, info = _run(arguments, info=INFO)
    return loss, *(info[n] for n in INFO)


def kernel_with_gradient(*arguments, info=()):
    if not Options(*arguments[len(TENSORS) :]).reduction:
        return None
    dx = result_like(arguments[0])
    loss, found = _run(arguments, info=info, dlogits=dx)
    return (loss, *(found[n] for n in info)) if info else loss, dx


def kernel_with_info_and_gradient(*arguments):
    return kernel_with_gradient(*arguments, info=INFO)


def gradient(gradients, tensors, results, options, needs):
    """The input's by the kernel, those of target and weights by gradients_of_others."""
    u, o = gradients[0], Options(*options)
    found = [None] * len(tensors)
    if needs[0]:
        found[0] = result_like(tensors[0])
        g = u.detach().to(torch.float64).expand(without(tensors[0].shape, o.dim))
        _run((*tensors, *options), dlogits=found[0], g=g, with_loss=False)
    if any(needs[1:]):
        *rest, denominator = map(plain, tensors)
        u = plain(u, wide(tensors[0].dtype))
        mean, divided = o.reduction == REDUCTIONS.index("mean"), None
        if mean:
            divided = denominator_of(*rest, o) if denominator is None else denominator
            u = quotient(u, divided, o)
        rows = without(tensors[0].shape, o.dim)
        found[1:-1] = gradients_of_others(*rest, o, u.expand(rows), needs[1:-1])
        if mean and denominator is None and any(needs[3:]):
            loss = row_losses(*rest, o)[0].sum(dtype=torch.float64)
            of = of_denominator(-loss * quotient(u.to(loss.dtype), divided, o), *rest[1:], o)
            found[3:-1] = (a if a is None else a + b for a, b in zip(found[3:-1], of))
        found[1:] = (a if a is None else a.to(t.dtype) for a, t in zip(found[1:], tensors[1:]))
    return tuple(found)


def fake(input, target, target_weight, weight, token_weight, denominator, *options):
    o = Options(*options)
    return input.new_empty(() if o.reduction else without(input.shape, o.dim))


def fake_with_info(*arguments):
    o = Options(*arguments[len(TENSORS) :])
    rows = arguments[0].new_empty(without(arguments[0].shape, o.dim), dtype=wide(arguments[0].dtype))
    predicted, correct = rows.to(torch.int64), rows.to(torch.bool)
    return fake(*arguments), *(predicted if n == "predicted" else correct if n == "correct" else rows.clone() for n in INFO)


CROSS_ENTROPY = Composed(
    "cross_entropy", TENSORS, SCHEMA, kernel=kernel, gradient=gradient, formula=formula, fake=fake,
    widens=False, kernel_with_gradient=kernel_with_gradient,
)
WITH_INFO = Composed(
    "cross_entropy_with_info", TENSORS, SCHEMA, kernel=kernel_with_info, gradient=gradient, formula=formula_with_info,
    fake=fake_with_info, results=1 + len(INFO), widens=False,
    kernel_with_gradient=kernel_with_info_and_gradient,
)


# -- checks of arguments --------------------------------------------------------------------------------------------


def of_numbers(function, name, tensor):
    """Weights, or a gradient."""
    if tensor is not None and (a_tensor(function, name, tensor).is_complex() or tensor.dtype == torch.bool):
        raise TypeError(f"{function}: {name} has dtype {tensor.dtype}, accepted: a floating dtype or integers")
    return tensor


def of_shape(function, name, tensor, shape):
    if tensor is not None and a_tensor(function, name, tensor).shape != torch.Size(shape):
        raise ValueError(f"{function}: {name} has shape {tuple(tensor.shape)}, accepted: {tuple(shape)}")
    return tensor


def of_rows(function, name, tensor, rows):
    if tensor is None:
        return None
    try:
        return a_tensor(function, name, tensor).expand(rows)
    except RuntimeError:
        given, accepted = tuple(tensor.shape), f"what broadcasts to {tuple(rows)}"
        raise ValueError(f"{function}: {name} has shape {given}, accepted: {accepted}") from None


def checked_target(function, target, shape, dim, ignore_index=-100):
    """(indices or probabilities, the weights of pairs or None) for logits of this shape."""
    rows = without(shape, dim)
    if isinstance(target, (tuple, list)):
        if len(target) != 2:
            given = f"a {type(target).__name__} of {len(target)}"
            raise ValueError(f"{function}: target is {given}, accepted: a tensor, or a pair of indices and their weights")
        index, weights = a_tensor(function, "target[0]", target[0]), a_tensor(function, "target[1]", target[1])
        if index.is_floating_point() or index.dtype == torch.bool or index.is_complex():
            raise TypeError(f"{function}: target[0] has dtype {index.dtype}, accepted: integers")
        if not weights.is_floating_point():
            raise TypeError(f"{function}: target[1] has dtype {weights.dtype}, accepted: a floating dtype")
        of_shape(function, "target[0]", index, (*rows, index.shape[-1] if index.dim() else 1))
        return index, of_shape(function, "target[1]", weights, index.shape)
    a_tensor(function, "target", target)
    if target.is_floating_point():
        check_ignored(function, ignore_index)
        return of_shape(function, "target", target, shape), None
    if target.dtype == torch.bool or target.is_complex():
        raise TypeError(f"{function}: target has dtype {target.dtype}, accepted: integers, or probabilities of floating dtype")
    return of_shape(function, "target", target, rows), None


def of_one_row(input, target):
    """The target, where torch takes indices of shape (1,) for a single row of input as one without dimensions."""
    if isinstance(input, torch.Tensor) and input.dim() == 1 and isinstance(target, torch.Tensor):
        if target.shape == (1,) and not target.is_floating_point():
            return target.reshape(())
    return target


def checked_denominator(function, value, reduction, device):
    """A 0-d float64 tensor, or None."""
    if value is None:
        return None
    check_denominator(function, reduction)
    if isinstance(value, torch.Tensor):
        instead = "a number, or a tensor that no gradient is recorded for; divide the sum of the losses to differentiate in it"
        _front.check_unwatched(function, "denominator", value, instead)
        tensor = of_shape(function, "denominator", of_numbers(function, "denominator", value.detach()), ()).to(torch.float64)
        if (found := values_of(tensor)) is not None:
            denominator_number(function, found.item())
        return tensor.to(device)
    return torch.tensor(denominator_number(function, value), dtype=torch.float64, device=device)


def legacy_reduction(size_average, reduce, reduction):
    if size_average is None and reduce is None:
        return reduction
    return torch.nn._reduction.legacy_get_string(size_average, reduce)


# -- the public function --------------------------------------------------------------------------------------------


def cross_entropy(
    input, target, weight=None, size_average=None, ignore_index=-100, reduce=None, reduction="mean", label_smoothing=0.0,
    *, z_loss=0.0, softcap=None, temperature=1.0, token_weight=None, denominator=None, on_empty="nan", info=(),
) -> Any:
    """torch.nn.functional.cross_entropy, with the extras of sumexp.cross_entropy.

    Parameters
    ----------
    input : Tensor of float16, bfloat16, float32 or float64
        Logits of shape (C,), (N, C) or (N, C, d1, ...).
    target : Tensor, or a pair of tensors
        Class indices of any integer dtype, of the shape without C, or of shape (1,) for an input (C,); probabilities of the
        shape of input; or a pair of class indices and their weights, of the shape without C and (K,) behind it.
    weight : Tensor
        A weight for each class, of shape (C,).
    size_average, reduce
        torch's older names of reduction.
    ignore_index : int
        Rows with this index are not read: no loss, and a gradient of 0 whatever they hold.
    reduction : "mean", "sum" or "none"
        The mean is over the class weights of the targets (of probabilities: over the rows), as in torch.
    label_smoothing : float
        From 0 to 1: the share of the target that goes to all classes evenly.
    z_loss : float
        Adds z_loss logsumexp(logits)^2 to each row's loss.
    softcap : float
        c > 0: the logits are c tanh(input / c).
    temperature : float
        T > 0: the logits are divided by it, after softcap.
    token_weight : Tensor
        A weight for each row, in the loss and in the mean's denominator.
    denominator : float or 0-d Tensor
        What the mean divides by instead.
    on_empty : "nan" or "zero"
        What a mean over nothing is.
    info : sequence of str
        Any of "lse", "log_prob", "entropy", "z_loss", "predicted", "correct", for each row, from the same sweep. They are not
        differentiated.

    Returns
    -------
    The loss, of input's dtype (under torch.autocast in float32 where that has 16 bits, as torch's); with info (loss,
    {name: Tensor}). Loss and gradient of an index without options are within 4 ulp also as the probability of the target goes
    to 1; the bytes are those of sumexp.cross_entropy.

    Raises
    ------
    ValueError for a target out of range, with the row and the value, for shapes and for numbers; TypeError for dtypes and a
    device that this build does not serve. On CUDA devices, where nothing waits for the targets, one out of range makes the loss
    and the gradient of its row NaN.
    """
    name = "cross_entropy"
    given = (input, *(target if isinstance(target, (tuple, list)) else (target,)))
    if any(isinstance(t, _front.Proxy) for t in given):
        return _front.recorded(
            cross_entropy, input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing,
            z_loss=z_loss, softcap=softcap, temperature=temperature, token_weight=token_weight, denominator=denominator,
            on_empty=on_empty, info=info,
        )
    reduction = legacy_reduction(size_average, reduce, reduction)
    input = _front.autocast(a_tensor(name, "input", input), DEVICES)
    dim, target = 0 if input.dim() == 1 else 1, of_one_row(input, target)
    tensors, options, info = checked(
        name, input, target, dim, weight=weight, ignore_index=ignore_index, label_smoothing=label_smoothing, z_loss=z_loss,
        softcap=softcap, temperature=temperature, token_weight=token_weight, reduction=reduction, denominator=denominator,
        on_empty=on_empty, info=info,
    )
    return called(tensors, options, info)


def called(tensors, options, info):
    if not info:
        return CROSS_ENTROPY(*tensors, *options)
    loss, *rest = WITH_INFO(*tensors, *options)
    return loss, {n: rest[INFO.index(n)].detach() for n in info}


def checked(function, input, target, dim, *, weight, token_weight, denominator, info=(), name="input", **options):
    """(tensors, options, names of info) of a call of the operations."""
    if not input.is_floating_point():
        raise TypeError(f"{function}: {name} has dtype {input.dtype}, accepted: float16, bfloat16, float32 or float64")
    if input.dim() == 0:
        raise ValueError(f"{function}: {name} has shape (), accepted: at least one dimension")
    for n in ("label_smoothing", "z_loss", "softcap"):
        _front.check_unwatched(function, n, options[n])
    options["temperature"] = _front.check_temperature(function, options["temperature"])
    found = checked_options(function, **options)
    index, pair_weights = checked_target(function, target, input.shape, dim, found["ignore_index"])
    reduction, cap = found["reduction"], found["softcap"] or 0.0
    options = Options(**{**found, "dim": dim, "softcap": cap, "reduction": REDUCTIONS.index(reduction)})
    tensors = (
        input, index, pair_weights, of_shape(function, "weight", of_numbers(function, "weight", weight), (input.shape[dim],)),
        of_rows(function, "token_weight", of_numbers(function, "token_weight", token_weight), without(input.shape, dim)),
        checked_denominator(function, denominator, reduction, input.device),
    )
    return tensors, options, known_names(function, "info", info, INFO)


# -- the package's functions --------------------------------------------------------------------------------------------


def from_package(function, logits, target, axis, *, out=None, g=None, **options):
    """sumexp.cross_entropy, cross_entropy_with_grad or cross_entropy_vjp of tensors."""
    if isinstance(axis, (tuple, list)):
        raise TypeError(f"{function}: axis is {axis!r}, accepted: an int")
    logits = floating(a_tensor(function, "logits", logits))  # integers too, unlike torch
    (dim,) = dims_of(axis, logits.dim(), function, "axis", "an int") or (0,)
    tensors, options, info = checked(function, logits, target, dim, name="logits", **options)
    if function == "cross_entropy":
        made = called(tensors, options, info)
        return (into(function, out, made[0]), made[1]) if info else into(function, out, made)
    rows = without(logits.shape, dim)
    if out is not None:
        check_out(function, out, logits, logits.shape)
    if g is not None:
        g = as_tensor(function, "g", g, logits.device, "a tensor, an array or a number", is_recorded(*tensors))
        g = of_rows(function, "g", of_numbers(function, "g", g), () if options.reduction else rows)
    if all(t is None or _front.way(t) == "kernel" for t in (*tensors, g)) and _front.is_ours(function, logits):
        others = [t for t in (*tensors[1:], g) if t is not None]
        place = out if out is not None and _can_write(function, out, (logits,), others) else result_like(logits)
        with_loss = function == "cross_entropy_with_grad"
        scale = None if g is None else g.to(torch.float64).expand(rows)
        loss, found = _run((*tensors, *options), info=info, dlogits=place, g=scale, with_loss=with_loss, function=function)
        if place is out and not out.is_inference():  # what autograd has saved of it is no longer there
            torch.autograd.graph.increment_version(out)
        gradient = place if out is None or place is out else out.copy_(place)
    else:
        found, loss = {}, called(tensors, options, info)
        if info:
            loss, found = loss
        u = torch.ones_like(loss) if g is None else g.to(loss.dtype)
        needs = (True, *(False for _ in tensors[1:]))
        gradient = CROSS_ENTROPY.backward((u,), tensors, (loss,), options, needs)[0]
        gradient = gradient if out is None else out.copy_(gradient)
    if function == "cross_entropy_vjp":
        return gradient
    return (loss, gradient, found) if info else (loss, gradient)


def apart(out, tensors):
    """Whether no tensor has out's storage."""
    storage = out.untyped_storage().data_ptr()
    return all(t is None or t.untyped_storage().data_ptr() != storage for t in tensors)
