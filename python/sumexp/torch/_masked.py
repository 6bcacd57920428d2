"""masked_softmax, masked_log_softmax and masked_logsumexp of tensors."""

import torch
from torch.compiler import is_compiling

from .. import _core
from .._masked_arguments import NAMES, OPS, check_causal, check_empty, check_lengths, laid, result_shape
from .._row_shapes import row_axis
from .._scalars import softcap as checked_softcap
from ._checks import as_tensor, beside, counts_as, into, is_recorded, mask_of, real, values_of
from ._composed import Composed
from ._formulas import quotient
from ._front import check_temperature, check_unwatched, log_softmax, logsumexp, softmax
from ._kernels import result_like
from ._private import forward_ad, functorch_active

_TENSORS = ("x", "bias?", "sink?", "where?", "lengths?")
_SCHEMA = "int dim, SymInt? causal, float softcap, float temperature, bool nan"


def _kept(x, where, lengths, dim, causal):
    """What is not left out, as a tensor that broadcasts to x; None for all."""
    kept = where
    if lengths is None and causal is None:
        return kept
    shape = [1] * x.dim()
    shape[dim] = -1
    place = torch.arange(x.shape[dim], device=x.device).reshape(shape)
    if lengths is not None:
        kept = place < lengths if kept is None else kept & (place < lengths)
    if causal is not None:
        rows = x.dim() - 1 if dim != x.dim() - 1 else x.dim() - 2
        shape = [1] * x.dim()
        shape[rows] = -1
        seen = place <= torch.arange(x.shape[rows], device=x.device).reshape(shape) + causal
        kept = seen if kept is None else kept & seen
    return kept


def _formula(name, x, bias, sink, where, lengths, dim, causal, softcap, temperature, nan):
    kept = _kept(x, where, lengths, dim, causal)
    left_out = None if kept is None else ~kept.expand(x.shape)
    if bias is not None:
        lowest = (bias == -torch.inf).expand(x.shape)
        left_out = lowest if left_out is None else left_out | lowest
    z = x if left_out is None else x.masked_fill(left_out, 0)  # what is there meets no derivative
    z = quotient(z, temperature)
    if softcap:  # which makes no number of what is infinite
        infinite = x.isinf()
        lowest = z.masked_fill(x == -torch.inf, -torch.inf)  # a constant, while the row of a +inf is NaN
        z = torch.where(infinite, lowest, softcap * torch.tanh(z.masked_fill(infinite, 0) / softcap))
    z = z if bias is None else z + bias
    z = z if left_out is None else z.masked_fill(left_out, -torch.inf)
    n = z.shape[dim]
    if sink is not None:
        row = list(z.shape)
        row[dim] = 1
        z = torch.cat([z, sink.expand(row)], dim)
    nothing = (z == -torch.inf).all(dim, keepdim=True)
    z = z.masked_fill(nothing, 0)
    if name == "masked_logsumexp":
        if z.shape[dim] == 0:
            return z.sum(dim) - torch.inf
        return logsumexp(z, dim).masked_fill(nothing.squeeze(dim), -torch.inf)
    y = softmax(z, dim) if name == "masked_softmax" else log_softmax(z, dim)
    absent = 0.0 if name == "masked_softmax" else -torch.inf
    y = y if left_out is None else y.narrow(dim, 0, n).masked_fill(left_out, absent)
    return y.narrow(dim, 0, n).masked_fill(nothing, torch.nan if nan else absent)


def _raw(function, name, x, bias, sink, where, lengths, dim, causal, softcap, temperature, nan, **more):
    x, bias, sink, more["g"] = (t if t is None else t.resolve_neg() for t in (x, bias, sink, more.get("g")))
    more.update(where=where, lengths=lengths, causal=causal, bias=bias, softcap=softcap, sink=sink, temperature=temperature,
                nan=nan)  # fmt: skip
    if size := _core._masked(function, OPS[name], x, dim, **more):  # gradients of bias and sink, on a GPU
        _core._masked(function, OPS[name], x, dim, **more, workspace=x.new_empty(size, dtype=torch.uint8))


def _kernel(name, x, *rest):
    dim = rest[4]
    out = result_like(x, result_shape(name, x.shape, dim))
    _raw(name, name, x, *rest, out=out.unsqueeze(dim) if OPS[name] == 2 else out)
    return out


def _gradient(name, gradients, tensors, results, options, needs):
    (g,), (x, bias, sink, where, lengths) = gradients, tensors
    dim = options[0]
    dx = result_like(x)
    dbias, dsink = (t.new_zeros(t.shape) if needed else None for t, needed in zip((bias, sink), needs[1:3]))
    _raw(name + "_vjp", name, x, bias, sink, where, lengths, *options, out=dx, g=g.unsqueeze(dim) if OPS[name] == 2 else g,
         dbias=dbias, dsink=dsink)  # fmt: skip
    return dx if needs[0] else None, dbias, dsink, None, None


def _operation(name):
    return Composed(
        name, _TENSORS, _SCHEMA,
        kernel=lambda *args: _kernel(name, *args),
        gradient=lambda *args: _gradient(name, *args),
        formula=lambda *args: _formula(name, *args),
        fake=lambda x, *rest: x.new_empty(result_shape(name, x.shape, rest[4])),
    )  # fmt: skip


OPERATIONS = {name: _operation(name) for name in OPS}


def _look_at_lengths(function, given, shape, dim):
    """A ValueError for one outside of the axis, where no kernel will look at them or int64 has others; on the CPU."""
    if functorch_active() or forward_ad._current_level >= 0 or given.dtype is torch.uint64:
        values = values_of(given)
        if values is not None:
            check_lengths(function, laid(function, "lengths", values, shape, dim), shape, dim)


def _prepare(function, names, x, axis, where, lengths, causal, bias, softcap, sink, temperature, empty):
    name, called = names
    x = real(function, name, x)
    accepted, keep, raw = "a tensor, an array or a number", is_recorded(x, bias, sink), {"bias": bias, "sink": sink}
    given = {n: t if t is None else as_tensor(function, n, t, x.device, accepted, keep) for n, t in raw.items()}
    dtype = x.dtype
    for n, t in given.items():
        if t is None:
            continue
        beside(function, n, t, name, x)
        if t.is_complex():
            raise TypeError(f"{function}: {n} has dtype {t.dtype}, accepted: a real one")
        if t.dim() > 0 and t.is_floating_point():  # as torch.result_type has it, which is no graph's
            dtype = torch.promote_types(dtype, counts_as(raw[n], t))
    x = x.to(dtype)
    dim = row_axis(function, name, tuple(x.shape), axis, called)
    shape = tuple(x.shape)
    bias = laid(function, "bias", given["bias"], shape)
    sink = laid(function, "sink", given["sink"], shape, dim)
    if where is not None:
        mask = where
        if not isinstance(where, torch.Tensor):
            mask = as_tensor(function, "where", where, x.device, "a tensor or an array of bool", keep)
        mask_of(function, x, mask, name)
        where = laid(function, "where", mask, shape)
    if lengths is not None:
        lengths = as_tensor(function, "lengths", lengths, x.device, "a tensor or an array of integers", keep)
        if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype is torch.bool:
            raise TypeError(f"{function}: lengths has dtype {lengths.dtype}, accepted: integers")
        given = beside(function, "lengths", lengths, name, x)
        lengths = laid(function, "lengths", given.long(), shape, dim)
        _look_at_lengths(function, given, shape, dim)
    tensors = (x, *(t if t is None else t.to(dtype) for t in (bias, sink)), where, lengths)
    check_unwatched(function, "softcap", softcap)
    symbolic = is_compiling() and isinstance(causal, (int, torch.SymInt)) and not isinstance(causal, bool)
    offset = causal if symbolic and x.dim() > 1 else check_causal(function, causal, x.dim())  # sizes are no numbers yet
    cap = checked_softcap(function, softcap) or 0.0
    T = check_temperature(function, temperature)
    return tensors, (dim, offset, cap, T, check_empty(function, empty))


def call(function, arrays, axis, out, options, names=("x", "axis")):
    """masked_* of tensors, from sumexp's function of that name, or by other names for x and axis."""
    if not function.endswith("_vjp"):
        tensors, rest = _prepare(function, names, *arrays, axis, **options)
        return into(function, out, OPERATIONS[function](*tensors, *rest))
    name = function.removesuffix("_vjp")
    g, x = arrays
    tensors, rest = _prepare(function, names, x, axis, **options)
    g = beside(function, "g", real(function, "g", g), "x", tensors[0]).to(tensors[0].dtype)
    accepted = result_shape(name, tensors[0].shape, rest[0])
    if tuple(g.shape) != accepted:
        raise ValueError(f"{function}: g has shape {tuple(g.shape)}, accepted: {accepted}")
    shapes = [None if options[n] is None else torch.as_tensor(options[n]).shape for n in ("bias", "sink")]
    needs = (True, *(t is not None for t in tensors[1:3]), False, False)
    made = OPERATIONS[name].gradients(g, tensors, rest, needs)[:3]
    wanted = [made[0], *(d.reshape(s) for d, s in zip(made[1:], shapes) if d is not None)]
    return tuple(wanted) if len(wanted) > 1 else wanted[0]


def _front(name):
    def function(input, dim=-1, *, where=None, lengths=None, causal=None, bias=None, softcap=None, sink=None,
                 temperature=1.0, empty="zero"):  # fmt: skip
        options = dict(zip(NAMES, (where, lengths, causal, bias, softcap, sink, temperature, empty)))
        return call(name, (input,), dim, None, options, ("input", "dim"))

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"""sumexp.{name} with `dim` for `axis`: under autograd and torch's transforms, in x, bias and sink.

    Parameters, result, bound and errors are those of sumexp.{name}. In forward mode, torch.func's
    transforms and second derivatives it is composed of this package's plain functions and torch's operations in float64, and
    rounded once (float64 itself: some ulp are added). On CUDA devices it has the bytes of the CPU. lengths are not looked at
    there, so that nothing waits for the device, nor where torch.vmap maps over them: those below 0 count as 0, those beyond the
    axis as all of it.
    """
    return function


masked_softmax = _front("masked_softmax")
masked_log_softmax = _front("masked_log_softmax")
masked_logsumexp = _front("masked_logsumexp")
