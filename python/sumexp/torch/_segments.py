"""segment_softmax, segment_log_softmax and segment_logsumexp of tensors, and their derivatives."""

import numpy as np
import torch
from torch.compiler import is_compiling

from .. import _core
from .._segment_arguments import OPS, check_elements, check_offsets, count, flat
from ._checks import beside, into, is_recorded, readable, real
from ._composed import Composed
from ._kernels import PLAIN_TYPES, result_like
from ._private import dispatch_mode_count, forward_ad, functorch_active

_GRADIENT = {"segment_softmax": 3, "segment_log_softmax": 4, "segment_logsumexp": 6}


def _ids(x, offsets):
    places = torch.arange(x.shape[0], device=x.device)
    ends = offsets[1:].contiguous()
    return torch.searchsorted(ends, places, right=True).clamp(max=len(offsets) - 2)  # within, whatever offsets hold


def _formula(name, x, offsets):
    ids = _ids(x, offsets)
    rows = (len(offsets) - 1, *x.shape[1:])
    index = ids.reshape(-1, *[1] * (x.dim() - 1)).expand(x.shape)
    top = x.new_full(rows, -torch.inf).scatter_reduce(0, index, x.detach(), "amax")
    infinite = top.abs() == torch.inf
    shift = top.masked_fill(top == -torch.inf, 0)
    z = x - shift.index_select(0, ids)
    e = z.exp()
    total = torch.zeros_like(top).index_add(0, ids, e)
    if name == "segment_softmax":
        return e / total.index_select(0, ids)
    if name == "segment_log_softmax":
        return z - total.log().index_select(0, ids)
    return total.masked_fill(infinite, 1).log() + torch.where(infinite, top, shift)


def _run(function, op, first, second, offsets, shape):
    out = result_like(first if second is None else second, shape)
    arrays = [t if t is None else flat(t.resolve_neg(), t.shape[0]) for t in (first, second)]
    given = (function, op, *arrays, offsets, flat(out, shape[0]))
    if size := _core._segments(*given):  # long segments on a GPU
        _core._segments(*given, out.new_empty(size, dtype=torch.uint8))
    return out


def _shape(name, x, offsets):
    return (offsets.shape[0] - 1, *x.shape[1:]) if OPS[name].row_result else tuple(x.shape)


def _kernel(name, x, offsets):
    return _run(name, OPS[name].op, x, None, offsets, _shape(name, x, offsets))


def _gradient(name, gradients, tensors, results, options, needs):
    (g,), (x, offsets) = gradients, tensors
    first, second = (x, g) if OPS[name].row_result else (g, results[0])
    return _run(name + "_vjp", _GRADIENT[name], first, second, offsets, tuple(x.shape)), None


def _operation(name):
    return Composed(
        name, ("x", "offsets"), "",
        kernel=lambda *args: _kernel(name, *args),
        gradient=lambda *args: _gradient(name, *args),
        formula=lambda *args: _formula(name, *args),
        fake=lambda x, offsets: x.new_empty(_shape(name, x, offsets)),
        reads_results=not OPS[name].row_result,
    )  # fmt: skip


OPERATIONS = {name: _operation(name) for name in _GRADIENT}


def _derivative(function, first, second, offsets):
    """The derivatives as functions, in operations of torch: for tensors that are watched."""
    ids = _ids(second, offsets)

    def sums(t):
        return t.new_zeros(len(offsets) - 1, *t.shape[1:]).index_add(0, ids, t)

    def spread(t):
        return t.index_select(0, ids)

    if function in ("segment_softmax_vjp", "segment_softmax_jvp"):
        return second * (first - spread(sums(second * first)))
    if function == "segment_log_softmax_vjp":
        return first - second.exp() * spread(sums(first))
    if function == "segment_log_softmax_jvp":
        return first - spread(sums(second.exp() * first))
    nothing = spread(sums((second != -torch.inf).to(second.dtype))) == 0  # in a segment of -inf alone
    p = _formula("segment_softmax", second.masked_fill(nothing, 0), offsets).masked_fill(nothing, 0)
    return p * spread(first) if function.endswith("_vjp") else sums(p * first)


def _offsets_on_device(function, offsets, num_segments):
    """Offsets of which the shape is known and the values are not: the device is not waited for."""
    if offsets.is_floating_point() or offsets.is_complex() or offsets.dtype is torch.bool:
        raise TypeError(f"{function}: offsets has dtype {offsets.dtype}, accepted: integers")
    if offsets.dim() != 1 or len(offsets) < 1:
        raise ValueError(f"{function}: offsets has shape {tuple(offsets.shape)}, accepted: one dimension, num_segments + 1")
    if num_segments is not None and count(function, num_segments) != len(offsets) - 1:
        accepted = f"{len(offsets) - 1}, as offsets has it, or None"
        raise ValueError(f"{function}: num_segments is {num_segments}, accepted: {accepted}")
    return offsets.long().contiguous()


def _offsets(function, x, offsets, ids, num_segments):
    if is_compiling():
        return _compiled_offsets(function, offsets, ids, num_segments)
    if ids is None and isinstance(offsets, torch.Tensor):
        recorded = dispatch_mode_count() or type(offsets) not in PLAIN_TYPES  # values may stand for others
        if recorded or (offsets.device == x.device and x.device.type == "cuda"):
            return _offsets_on_device(function, offsets, num_segments)
    given = [readable(t) for t in (offsets, ids)]
    if ids is not None and given[1] is None:
        raise TypeError(f"{function}: ids are mapped over by torch.vmap, accepted: offsets, of which the values are not needed")
    if offsets is not None and given[0] is None:
        return _offsets_on_device(function, offsets, num_segments)
    checked = check_offsets(function, x.shape[0], *given, num_segments)
    if x.device.type != "cpu" or functorch_active() or forward_ad._current_level >= 0:  # else the kernel checks them
        nothing = np.empty((x.shape[0], 0), np.float32)
        _core._segments(function, 0, nothing, None, checked, nothing)
    if type(offsets) is torch.Tensor and offsets is given[0] and not offsets.is_inference():
        if offsets.dtype is torch.int64 and offsets.is_contiguous() and offsets.device == x.device:
            return offsets  # autograd sees what is written to it
    keep = ids is None and is_recorded(x)
    return torch.from_numpy(checked.copy() if keep else checked).to(x.device)


def _compiled_offsets(function, offsets, ids, num_segments):
    if isinstance(offsets, torch.Tensor) and ids is None and not offsets.is_floating_point():
        return offsets.long().contiguous()  # the kernel checks them
    if isinstance(ids, torch.Tensor) and offsets is None and not ids.is_floating_point() and num_segments is not None:
        ids = ids.long().contiguous()
        falls = (ids[1:] < ids[:-1]).any() | (ids < 0).any() | (ids >= num_segments).any()
        torch._assert_async(~falls, f"{function}: ids fall or lie outside of num_segments, accepted: sorted ids")
        return torch.searchsorted(ids, torch.arange(num_segments + 1, device=ids.device))
    accepted = "num_segments beside ids, or offsets, of integers: values are not read there"
    raise TypeError(f"{function}: compiled with ids alone, accepted: {accepted}")


def call(function, names, arrays, offsets, ids, num_segments, out):
    """segment_* of tensors, from sumexp's function of that name."""
    tensors = [real(function, n, t) for n, t in zip(names, arrays)]
    full = tensors[-1]
    check_elements(function, names[-1], full)
    offsets = _offsets(function, full, offsets, ids, num_segments)
    if len(tensors) == 1:
        return into(function, out, OPERATIONS[function](full, offsets))
    first = beside(function, names[0], tensors[0], names[1], full)
    op = OPS[function]
    accepted = (len(offsets) - 1, *full.shape[1:]) if op.row_gradient else tuple(full.shape)
    if tuple(first.shape) != accepted or first.dtype != full.dtype:
        given = f"{tuple(first.shape)} and dtype {first.dtype}"
        raise ValueError(f"{function}: {names[0]} has shape {given}, accepted: {accepted} and {full.dtype}")
    operation = OPERATIONS[function[: -len("_vjp")]]
    if not all(operation._way(t) == "kernel" for t in (first, full)):
        return into(function, out, _derivative(function, first, full, offsets))
    shape = (len(offsets) - 1, *full.shape[1:]) if op.row_result else tuple(full.shape)
    pair = (full, first) if op.x_first else (first, full)
    return into(function, out, _run(function, op.op, *pair, offsets, shape))


def _front(name):
    def function(input, *, offsets=None, ids=None, num_segments=None):
        return call(name, ("input",), (input,), offsets, ids, num_segments, None)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"""sumexp.{name} of a tensor, under autograd and torch's transforms.

    Parameters, result, bound and errors are those of sumexp.{name}; offsets and ids are arrays or tensors. In forward mode,
    torch.func's transforms and second derivatives it is composed of torch's operations in float64, and rounded once (float64
    itself is not within this bound then). ids that torch.vmap maps
    over are a TypeError, and compiled programs want num_segments beside ids: their values are not read there. On CUDA devices
    it has the bytes of the CPU; offsets that are there already are not looked at, so that nothing waits for the device: where
    they fall, or do not end with the elements, results are any.
    """
    return function


segment_softmax = _front("segment_softmax")
segment_log_softmax = _front("segment_log_softmax")
segment_logsumexp = _front("segment_logsumexp")
