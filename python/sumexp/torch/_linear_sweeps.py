"""Cross-entropy of logits x W^T + bias that never exist whole: sweeps over plain tensors, a chunk of tokens at a time.

As in sumexp._linear: products by torch.mm into one buffer, the gradient over the logits. The gradient of weights of 16 bits is
added up in float32; on the CPU, where no float32 array of their size shall be, for as many classes as there is room for
(_linear_products.layout), and that of the others comes at the end, by blocks of classes (by_classes).
"""

from typing import NamedTuple

import torch

from .. import _core
from .._chunks import BLOCK, chunk_rows, equal_parts, share_of
from . import _cross_entropy as ce
from ._kernels import result_like
from ._linear_products import add_product, add_products, layout, product, product_back, rounded, waits

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


# x (N, D), w (V, D), bias (V), target (N), (N, V) or with target_weight (N, K), weight (V), token_weight (N), denominator ()
TENSORS = ("x", "w", "bias?", "target", "target_weight?", "weight?", "token_weight?", "denominator?")
COUNT = len(TENSORS)
DIFFERENTIATED = COUNT - 1  # so many are differentiated in, as far as they are floating: all but the denominator
WEIGHT = TENSORS.index("weight?")  # of these alone, beside w and bias, not of a row each


# -- sweeps over plain tensors ---------------------------------------------------------------------------------------------


def kept_rows(target, target_weight, o):
    """(indices of the rows that are left, on the CPU, None); where to count these would be to wait, (all, which are left)."""
    if target.is_floating_point():
        return torch.arange(len(target), device="cpu"), None
    kept = ce.is_kept(target, o.ignore_index)
    kept = kept if target_weight is None else kept.any(1)
    return (torch.arange(len(target), device="cpu"), kept) if waits(target) else (kept.nonzero().squeeze(1), None)


def of_input(x, rows, left):
    """x[rows], those that are not left being 0, whatever they hold."""
    return x[rows] if left is None else x[rows].masked_fill(~left[rows].unsqueeze(1), 0)


def chunk_of(tensors, o, kept):
    """How many tokens' logits exist at a time; where sums of 16-bit weights want room beside them, `layout` says how many."""
    w = tensors[1]
    return chunk_rows(NAME, o.chunk or None, len(kept), len(w), beside(w))


def beside(w):
    """Elements that products take beside a chunk's logits: 1 MB and more, of 16 bits four times as many."""
    return 2 * BLOCK if w.element_size() == 2 else BLOCK // 2


def chunks(kept, size):
    """The rows in parts: slices where they follow one another, else their indices."""
    for part in kept.split(size) if len(kept) else ():
        first, last = part[0].item(), part[-1].item()
        yield slice(first, last + 1) if last - first == len(part) - 1 else part


def divisor(tensors, o, function=NAME):
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
        function=function,
    )
    return found if denominator is None else denominator


def summed(losses):
    """The sum of rows in cross_entropy's order, in float64."""
    total = losses.new_empty((), dtype=torch.float64)
    ce.raw(_core._sum_rows, losses, out=total)
    return total


def by_classes(x, w, bias, kept, room, options, of_rows, saved, dw, held):
    """dw of the classes from `held` on, a block of them at a time: their logits once more, at most `room` elements of them,
    and the gradient by what each row has in `saved`.

    What is added up in the wide dtype is a block then, not all of dw; where all tokens fit in one chunk, nothing.
    """
    work, classes, step = work_of(x), len(w), equal_parts(len(w) - held, 384)
    tokens = equal_parts(len(kept), room // step)
    buffer = x.new_empty(tokens * step, dtype=work)
    total = None if tokens == len(kept) else w.new_empty(step, w.shape[1], dtype=ce.wide(work))
    for first in range(held, classes, step):
        block, result = w[first : first + step], dw[first : first + step]
        sums = result if total is None else total[: len(block)]
        for count, rows in enumerate(chunks(kept, tokens)):
            part = x[rows].to(work)
            z = buffer[: len(part) * len(block)].view(len(part), len(block))
            product(part, block, None if bias is None else bias[first : first + step], z)
            ce.raw(
                _core._cross_entropy,
                z,
                axis=1,
                function=NAME,
                dlogits=z,
                flush_subnormal=True,
                saved=saved[rows],
                first_class=first,
                classes=classes,
                **options,
                **{n: t[rows] for n, t in of_rows.items()},
            )
            add_product(z, part, sums, count == 0)
        if total is not None:
            result.copy_(sums)


def work_of(x):
    """The dtype of logits: bfloat16 has fast products."""
    return torch.float32 if x.dtype == torch.float16 else x.dtype


def unrounded(dtype):
    """The dtype of gradients that are still to be multiplied: a mean's are below float16's range where a loss scale, which
    comes with backward, brings them back."""
    return torch.float32 if dtype == torch.float16 else dtype


def sweep(tensors, o, need=(False, False, False), g=None, info=(), out_dw=None, function=NAME, rounds=True):
    """(row losses in the wide dtype, (dx, dw, dbias) as needed, {name: tensor of rows}, what a mean divides by)

    The gradients are those of the reduced loss, or with g of sum_i g_i l_i, in the dtypes of x, w and bias; without `rounds` in
    those of `unrounded`, for a factor that is still to come.
    """
    tensors, g = [ce.plain(t) for t in tensors], ce.plain(g)
    x, w, bias, target, target_weight, weight, token_weight, _ = tensors
    wide, work = ce.wide(x.dtype), work_of(x)
    found = divisor(tensors, o, function)
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
    size = chunk_of(tensors, o, kept)
    losses = x.new_zeros(len(x), dtype=wide)
    extras = {n: t.fill_(-1 if n == "predicted" else 0) for n, t in ce.info_places(info, len(x), x).items()}
    places = {"row_loss": losses, **extras}
    need_x, need_w, need_bias = need[0], need[1], need[2] and bias is not None
    dtype = x.dtype if rounds else unrounded(x.dtype)
    dx = result_like(x, dtype=dtype) if need_x else None
    if need_x and len(kept) < len(x):
        dx.zero_()
    share = share_of(len(kept), len(w), beside(w))
    share = min(share, o.chunk or share)
    dw, buffer = out_dw, None
    if need_w and dw is None and dtype.itemsize == 2 and len(kept) > size and not waits(x):
        dw = result_like(w, dtype=dtype)
        sums, buffer = layout(dw, wide, work, o.chunk, len(kept), share)
    else:
        if need_w and dw is None:
            dw = result_like(w, dtype=work if len(kept) <= size else wide)
        sums = [dw] if need_w else []
    held = sum(map(len, sums))  # so many classes have their dw added up in this sweep
    later = need_w and held < len(w)
    if later:
        saved_bytes = _core._cross_entropy_saved_bytes(work == torch.float64, len(w))
        places["saved"] = x.new_empty(len(x), saved_bytes, dtype=torch.uint8)
    db = w.new_zeros(len(w), dtype=wide) if need_bias else None
    buffer = x.new_empty(size, len(w), dtype=work) if buffer is None else buffer
    for count, rows in enumerate(chunks(kept, len(buffer))):
        part = of_input(x, rows, left).to(work)
        z = product(part, w, bias, buffer[: len(part)])
        made = {n: t[rows] for n, t in places.items()}  # views of slices, else tensors of their own
        ce.raw(
            _core._cross_entropy,
            z,
            axis=1,
            function=function,
            dlogits=z if need_x or need_bias or need_w else None,
            flush_subnormal=True,
            **options,
            **{n: t[rows] for n, t in of_rows.items()},
            **{ce.RAW_INFO.get(n, n): t for n, t in made.items()},
        )
        if not isinstance(rows, slice):
            for n, t in made.items():
                places[n][rows] = t
        if need_x and isinstance(rows, slice) and w.dtype == z.dtype:
            torch.mm(z, w, out=dx[rows])
        elif need_x:
            dx[rows] = product_back(z, w).to(dx.dtype)
        if need_w:
            add_products(z, part, sums, count == 0 and out_dw is None)
        if need_bias:
            db += z.sum(0, dtype=wide)
    if need_w and out_dw is None:
        dw = rounded(sums, dw, dtype) if len(kept) else torch.zeros_like(w, dtype=dtype)
    if later:
        z = buffer = sums = None  # their memory is free for what follows
        room = share * len(w) // (2 if x.dtype == work else 4)  # products have copies beside it, and there may be one of x
        by_classes(x, w, bias, kept, room, options, of_rows, places["saved"], dw, held)
    return losses, (dx, dw, None if db is None else db.to(dtype)), extras, found


def reduced(losses, found, o):
    """The row losses in the wide dtype; or one number in float64, of them and what a mean divides by."""
    if not o.reduction:
        return losses
    total = summed(losses)
    return ce.quotient(total, found, o) if o.reduction == ce.REDUCTIONS.index("mean") else total


def each(tensor, k, rows):
    """Of the tensor that TENSORS has at k, what belongs to some rows."""
    return tensor if tensor is None or k == WEIGHT else tensor[rows]


def leaves_of(tensors, parts, rows, wide):
    """{k: a tensor to differentiate in}: of the targets and weights that `parts` names, those of some rows."""
    return {k: each(tensors[k], k, rows).detach().to(wide, copy=True).requires_grad_() for k in parts}


def losses_of(z, tensors, leaves, rows, o):
    others = (leaves.get(k, each(tensors[k], k, rows)) for k in range(3, DIFFERENTIATED))
    return ce.row_losses(z, *others, o.of_rows())[0]


class Places:
    """Gradients in targets and weights: of each row its own; of the class weights a sum, in float64."""

    def __init__(self, tensors, need):
        self.tensors = tensors
        self.found = {
            k: tensors[k].new_zeros(tensors[k].shape, dtype=torch.float64 if k == WEIGHT else tensors[k].dtype)
            for k in range(3, DIFFERENTIATED)
            if need[k]
        }

    def put(self, k, rows, gradient):
        if k == WEIGHT:
            self.found[k] += gradient
        elif k in self.found:
            self.found[k][rows] = gradient.to(self.found[k].dtype)

    def results(self):
        return tuple(self.found[k].to(self.tensors[k].dtype) if k in self.found else None for k in range(3, DIFFERENTIATED))


def others(tensors, o, need, g):
    """The gradients of sum_i g_i l_i in target, target_weight, weight and token_weight, as needed, of the sweep's logits."""
    tensors, g = [ce.plain(t) for t in tensors], ce.plain(g)
    places = Places(tensors, need)
    if not places.found:
        return places.results()
    x, w, bias, target, target_weight, *_ = tensors
    kept, left = kept_rows(target, target_weight, o)
    size = max(1, chunk_of(tensors, o, kept) // 4)  # the formula keeps some arrays of this size
    buffer = x.new_empty(size, len(w), dtype=work_of(x))
    for rows in chunks(kept, size):
        part = of_input(x, rows, left).to(buffer.dtype)
        z = product(part, w, bias, buffer[: len(part)])
        of_rows = [each(tensors[k], k, rows) for k in range(3, DIFFERENTIATED)]
        made = ce.gradients_of_others(z, *of_rows, o.of_rows(), g[rows], need[3:])
        for k in places.found:
            places.put(k, rows, made[k - 3])
    return places.results()


def gradients(tensors, o, need, g):
    """Those of sum_i g_i l_i in the first DIFFERENTIATED of the tensors, as needed."""
    return (*(sweep(tensors, o, need[:3], g=g)[1] if any(need[:3]) else (None,) * 3), *others(tensors, o, need, g))


def second(tensors, o, g, t, need, along=None):
    """(rows dPhi/dg, (gradients of Phi in the tensors, as needed), rows of the bilinear form of t and `along`)

    need, t and `along` have a tangent, or None, for each of the first DIFFERENTIATED.
    """
    tensors, g = [ce.plain(a) for a in tensors], ce.plain(g)
    x, w, bias, target, target_weight, *_ = tensors
    t = [ce.plain(a) for a in t]
    tx, tw, tb = t[:3]
    along = None if along is None else [ce.plain(a) for a in along]
    wide = ce.wide(x.dtype)
    kept, left = kept_rows(target, target_weight, o)
    size = max(1, chunk_of(tensors, o, kept) // 8)  # the formula keeps some arrays of this size
    zeros = lambda *shape: x.new_zeros(shape, dtype=wide)
    firsts, both = zeros(len(x)), zeros(len(x))
    hx = zeros(*x.shape) if need[0] else None
    hw = zeros(*w.shape) if need[1] else None
    hb = zeros(len(w)) if need[2] else None
    places = Places(tensors, need)
    parts = [k for k in range(3, DIFFERENTIATED) if need[k] or t[k] is not None or (along is not None and along[k] is not None)]

    def tangent(part, rows, tx, tw, tb):
        v = zeros(len(part), len(w))
        scratch = torch.empty_like(v)
        if tx is not None:
            v += product(tx[rows].to(wide), w, None, scratch)
        if tw is not None:
            v += product(part, tw, None, scratch)
        return v if tb is None else v + tb

    def directed(of_z, v, of_others, t, rows):
        """The gradients of logits and of `parts` times their tangents."""
        terms = (of * each(t[k], k, rows).to(wide) for k, of in zip(parts, of_others) if t[k] is not None)
        return sum((term.sum() for term in terms), (of_z * v).sum())

    for rows in chunks(kept, size):
        part = of_input(x, rows, left).to(wide)
        z = product(part, w, None, x.new_empty(len(part), len(w), dtype=wide))
        z = z if bias is None else z + bias
        v = tangent(part, rows, tx, tw, tb)
        with torch.enable_grad():
            z.requires_grad_()
            c = z.new_ones(len(part)) if g is None else g[rows].to(wide, copy=True)
            c.requires_grad_()  # Phi is linear in it
            leaves = leaves_of(tensors, parts, rows, wide)
            losses = losses_of(z, tensors, leaves, rows, o)
            inputs = (z, *leaves.values())
            first, *of_others = torch.autograd.grad((c * losses).sum(), inputs, create_graph=True, materialize_grads=True)
            Phi = directed(first, v, of_others, t, rows)
            again = along is not None
            of_c, Hv, *H_others = torch.autograd.grad(Phi, (c, *inputs), create_graph=again, materialize_grads=True)
            if again:
                ax, aw, ab = along[:3]
                u = tangent(part, rows, ax, aw, ab)
                mixed = torch.zeros_like(u)
                if tx is not None and aw is not None:
                    mixed += product(tx[rows].to(wide), aw, None, torch.empty_like(u))
                if ax is not None and tw is not None:
                    mixed += product(ax[rows].to(wide), tw, None, torch.empty_like(u))
                form = directed(Hv, u, H_others, along, rows) + (first * mixed).sum()
                both[rows] = torch.autograd.grad(form, c)[0]
        first, Hv, firsts[rows] = first.detach(), Hv.detach(), of_c.detach()
        if need[0]:
            hx[rows] = product_back(Hv, w) + (0 if tw is None else product_back(first, tw))
        if need[1]:
            add_product(Hv, part, hw, False)
            if tx is not None:
                add_product(first, tx[rows].to(wide), hw, False)
        if need[2]:
            hb += Hv.sum(0)
        for k, H in zip(parts, H_others):
            if need[k]:
                places.put(k, rows, H.detach())
    made = tuple(None if a is None else a.to(x.dtype) for a in (hx, hw, hb))
    return firsts, made + places.results(), both
