"""logmatmulexp of tensors."""

import functools
from typing import Any

import torch
from torch.autograd import Function
from torch.compiler import is_compiling

from .. import _core
from . import _front
from ._checks import a_tensor, as_tensor, counts_as, into, is_recorded, summed_to
from ._composed import Composed
from ._functions import jvp_rule
from ._kernels import in_large_pages

TERMS = 1 << 20  # that the formula forms at a time


def logmatmulexp(a, b) -> Any:
    """log(exp(a) @ exp(b)): out_ij = log sum_k e^(a_ik + b_kj), of matrices or broadcast batches of them, as torch.matmul takes
    them (vectors too).

    Right for every finite input, however far apart, within the bound of sumexp.logmatmulexp, on the CPU; gradients are made of
    products as well. A sum of nothing is -inf, and its gradient 0. Forward mode, torch.func's transforms and tensors on CUDA
    devices form the terms, 2^20 or those of a row at a time; second derivatives all M x K x N.
    """
    return _of_vectors(_logmatmulexp(*_matrices("logmatmulexp", a, b)), a, b)


def _matrices(function, a, b):
    a, b = _matrix(function, "a", a), _matrix(function, "b", b)
    dtype = a.dtype if a.dtype == b.dtype else torch.promote_types(a.dtype, b.dtype)
    if dtype.is_complex:
        raise TypeError(f"{function}: a and b have dtypes {a.dtype} and {b.dtype}, accepted: real numbers")
    if not dtype.is_floating_point:
        dtype = torch.get_default_dtype()
    rows, columns = _of_matrices(a.to(dtype), b.to(dtype))
    if rows.shape[-1] != columns.shape[-2]:
        raise ValueError(
            f"{function}: b has shape {tuple(b.shape)}, accepted: {a.shape[-1]} rows, the columns of a, {tuple(a.shape)}"
        )
    try:
        torch.broadcast_shapes(rows.shape[:-2], columns.shape[:-2])
    except RuntimeError:
        raise ValueError(
            f"{function}: b has shape {tuple(b.shape)}, accepted: one that broadcasts with a's, {tuple(a.shape)}"
        ) from None
    return rows, columns


def _of_matrices(a, b):
    return a.unsqueeze(0) if a.dim() == 1 else a, b.unsqueeze(1) if b.dim() == 1 else b


def _of_vectors(out, a, b):
    out = out.squeeze(-2) if a.dim() == 1 else out
    return out.squeeze(-1) if b.dim() == 1 else out


def _matrix(function, name, x):
    if a_tensor(function, name, x).dim() == 0:
        raise ValueError(f"{function}: {name} has shape (), accepted: one dimension or more")
    return x


# -- sumexp's functions, where one of their arguments is a tensor ------------------------------------------------


def of_arrays(a, b, out):
    return into("logmatmulexp", out, logmatmulexp(*_tensors("logmatmulexp", out, a=a, b=b)))


def vjp(g, a, b):
    function = "logmatmulexp_vjp"
    g, a, b = _tensors(function, None, g=g, a=a, b=b)
    rows, columns = _matrices(function, a, b)
    batch = torch.broadcast_shapes(rows.shape[:-2], columns.shape[:-2])
    shape = (*batch, *rows.shape[-2:-1] * (a.dim() > 1), *columns.shape[-1:] * (b.dim() > 1))
    if g.shape != shape:
        raise ValueError(f"{function}: g has shape {tuple(g.shape)}, accepted: {shape}, the shape of the result")
    g = g.unsqueeze(-1) if b.dim() == 1 else g
    g = g.unsqueeze(-2) if a.dim() == 1 else g
    found = _logmatmulexp.gradients(g.to(rows.dtype), (rows, columns))
    return tuple(d.reshape(x.shape) for d, x in zip(found, (a, b)))


def jvp(ta, tb, a, b, out):
    function = "logmatmulexp_jvp"
    ta, tb, a, b = _tensors(function, out, ta=ta, tb=tb, a=a, b=b)
    rows, columns = _matrices(function, a, b)
    for name, t, of, x in (("ta", ta, "a", a), ("tb", tb, "b", b)):
        if t.shape != x.shape:
            raise ValueError(f"{function}: {name} has shape {tuple(t.shape)}, accepted: {tuple(x.shape)}, the shape of {of}")
    tangents = tuple(t.to(rows.dtype) for t in _of_matrices(ta, tb))
    if all(_logmatmulexp._way(t) == "kernel" for t in (*tangents, rows, columns)):
        made = in_large_pages(_fake(rows, columns))
        _core._logmatmulexp_jvp(*(x.detach().resolve_neg() for x in (*_batches(*tangents), *_batches(rows, columns))), made)
    else:
        (ta, tb), size = tangents, _rows_at_a_time(rows, columns)
        parts = zip(ta.double().split(size, -2), rows.double().split(size, -2))
        made = torch.cat([_change(t, tb.double(), part, columns.double()) for t, part in parts], -2).to(rows.dtype)
    return into(function, out, _of_vectors(made, a, b))


def _tensors(function, out, **given):
    other = next(x for x in (*given.values(), out) if isinstance(x, torch.Tensor))
    keep = is_recorded(*given.values())
    tensors = [_of_array(function, n, x, other, keep) for n, x in given.items()]
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in tensors))
    return [t.to(dtype) for t in tensors]


def _of_array(function, name, x, other, keep):
    if isinstance(x, torch.Tensor):
        return x
    tensor = as_tensor(function, name, x, other.device, "a tensor or an array", keep)
    return tensor if hasattr(x, "dtype") else tensor.to(torch.promote_types(other.dtype, counts_as(x, tensor)))


# -- kernels and formulas ----------------------------------------------------------------------------------------


def _batches(a, b):
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return a.expand(*batch, *a.shape[-2:]), b.expand(*batch, *b.shape[-2:])


def _fake(a, b):
    return a.new_empty((*torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]))


def _kernel(a, b):
    out = in_large_pages(_fake(a, b))
    _core._logmatmulexp(*(x.detach().resolve_neg() for x in _batches(a, b)), out)
    return out


def _gradient(gradients, tensors, results, options, needs):
    g = gradients[0].detach().resolve_neg()
    full = [x.detach().resolve_neg() for x in _batches(*tensors)]
    made = [x.new_zeros(x.shape) if needed else None for x, needed in zip(full, needs)]
    if g.numel():
        _core._logmatmulexp_vjp(g, *full, *made)
    return tuple(m if m is None else summed_to(m, t.shape) for m, t in zip(made, tensors))


class _Block(Function):
    """_by_terms, of which derivatives form the terms anew: none of a whole product are kept."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a, b):
        return _by_terms(a, b)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, g):
        return torch.func.vjp(_by_terms, *ctx.saved_tensors)[1](g)

    @jvp_rule
    def jvp(ctx, saved, ta, tb):
        tangents = tuple(torch.zeros_like(x) if t is None else t for x, t in zip(saved, (ta, tb)))
        return torch.func.jvp(_by_terms, tuple(saved), tangents)[1]


def _formula(a, b):
    rows = _rows_at_a_time(a, b)
    if a.shape[-2] <= rows or is_compiling():
        return _by_terms(a, b)
    return torch.cat([_Block.apply(part, b) for part in a.split(rows, -2)], -2)


def _rows_at_a_time(a, b):
    return max(1, TERMS // max(1, a.numel() // max(1, a.shape[-2]) * b.shape[-1]))


def _change(ta, tb, a, b):
    """What _by_terms changes by along tangents."""
    terms = a.unsqueeze(-1) + b.unsqueeze(-3)
    nothing = (terms == -torch.inf).all(-2, keepdim=True)
    shares = _front.softmax(terms.masked_fill(nothing, 0), -2).masked_fill(nothing, 0)
    return (shares * (ta.unsqueeze(-1) + tb.unsqueeze(-3))).sum(-2)


def _by_terms(a, b):
    terms = a.unsqueeze(-1) + b.unsqueeze(-3)
    if terms.shape[-2] == 0:
        return terms.sum(-2) - torch.inf
    nothing = (terms == -torch.inf).all(-2, keepdim=True)  # whose gradient is 0
    out = _front.logsumexp(torch.where(nothing, torch.zeros_like(terms), terms), -2)
    return torch.where(nothing.squeeze(-2), torch.full_like(out, -torch.inf), out)


_logmatmulexp = Composed(
    "logmatmulexp", ("a", "b"), "", kernel=_kernel, gradient=_gradient, formula=_formula, fake=_fake, devices={"cpu"},
    widens=False,
)
