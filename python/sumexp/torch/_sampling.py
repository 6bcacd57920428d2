"""Sampling for torch: the functions of sumexp._sampling, of tensors on the CPU and on CUDA devices.

On CUDA nothing waits for the device (but for a mask on the CPU to be copied): options become tensors there, in one copy, and of
rows nothing is known. A row that would be an error gives -1 (_sampling.sample's docstring). Options may be CUDA tensors
themselves, and are not checked then.

Indices and counts have no gradient. gumbel_softmax has torch.nn.functional's signature and gradient, through this package's
softmax. Compiled and exported programs call the registered operations at the end, but for linear_sample, return_info and
generators, where compiled programs have a graph break.
"""

import itertools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.compiler import is_compiling

from .. import _core
from .._draws import (
    Host,
    SampleInfo,
    broadcast_mask,
    check_tau,
    count_options,
    draw,
    draw_linear,
    linear_shapes,
    made_noise,
    number,
    per_row,
    random_bits,
    row_options,
    rows_of,
    sample_options,
    seeds,
)
from ._composed import eagerly
from ._front import is_watched, softmax
from ._kernels import DEVICES, DTYPES, PLAIN_TYPES, is_traced
from ._library import LIBRARY
from ._private import FakeTensor, FunctionalTensor, functorch_active, is_tracing

CPU = torch.device("cpu")
STAND_INS = (FakeTensor, FunctionalTensor)


def _recorded(x, wholes, reals=()):
    """Whether the registered operation is called: compiling, tracing, a stand-in for a tensor, a functorch transform.

    A program that is compiled has a graph break for options that are no tensors and no numbers of Python.
    """
    if not isinstance(x, Tensor) or any(isinstance(value, torch.Generator) for value in wholes):
        return False
    if is_compiling():
        return all(_is_simple(v, int) for v in wholes) and all(_is_simple(v, (int, float)) for v in reals)
    return functorch_active() or isinstance(x, STAND_INS) or is_traced()


def _is_simple(value, types):
    return value is None or isinstance(value, Tensor) or _are_numbers(value, types)


def _are_numbers(value, types, top=True):
    if isinstance(value, (list, tuple)):
        return all(_are_numbers(v, types, False) for v in value)
    return isinstance(value, types) and not isinstance(value, bool) and (top or value < 2**63)


def _given(function, x, dim, **options):
    """The options of a registered operation."""
    batch = None if is_compiling() else rows_of(function, x, dim, "dim")[1]
    return [_as_tensor(function, name, value, batch) for name, value in options.items()]


def _as_tensor(function, name, value, batch):
    if value is None or isinstance(value, Tensor):
        return value
    if batch is None:
        if name not in INTEGERS:
            return torch.tensor(value, dtype=torch.float64)
        large = isinstance(value, int) and value >= 2**63
        return torch.tensor(value, dtype=torch.uint64 if large else torch.int64)
    kind = np.int64 if name in INTEGERS else np.float64
    array = seeds(function, value, batch) if name == "seed" else per_row(function, name, value, batch, kind)
    return torch.tensor(array).reshape(() if len(array) == 1 else batch)


def _check_count(function, num_samples):
    if isinstance(num_samples, bool):  # which a schema takes for a number
        number(function, "num_samples", num_samples)


_calls = itertools.count(1)


def next_call():
    """A number that torch.compile takes for a constant (_compile.tell)."""
    return next(_calls)


def _call(seed):
    """What tells calls without a seed apart: compilers take nodes of equal arguments for one, these too."""
    return next_call() if seed is None else 0


TYPES = {np.int64: torch.int64, np.float64: torch.float64, np.uint8: torch.uint8, np.int16: torch.int16}
INTEGERS = ("top_k", "seed", "stream")  # of the options; the others are numbers
FILTERS = ("temperature", "top_k", "top_p", "min_p")
ABSENT = {"temperature": 1.0, "seed": 0}


class Device:
    """As _draws.Host, of a CUDA device."""

    def __init__(self, device):
        self.device = device

    concatenate = staticmethod(torch.cat)

    def empty(self, shape, dtype):
        return torch.empty(shape, dtype=TYPES[dtype], device=self.device)

    def options(self, options):
        host = {name: value for name, value in options.items() if isinstance(value, np.ndarray)}
        if not host:
            return options
        packed = torch.from_numpy(np.concatenate([value.view(np.int64) for value in host.values()]))
        if self.device.type == "cuda":
            packed = packed.pin_memory()  # which torch keeps until the copy is done
        packed = packed.to(self.device, non_blocking=True)
        moved = {}
        for name, value in host.items():
            part, packed = packed[: value.size], packed[value.size :]
            moved[name] = part.view(torch.float64) if value.dtype.kind == "f" else part
        return options | moved

    def run(self, entry, *args):
        wanted = entry(*args)
        if wanted is not None:
            entry(*args, workspace=torch.empty(wanted, dtype=torch.uint8, device=self.device))


def _not_traced(function, what=""):
    """torch.jit.trace would keep the draw that it sees, as a constant."""
    if is_tracing():
        raise NotImplementedError(f"{function}: called{what} within torch.jit.trace, accepted: outside of it")


def _place(x):
    return Host if x.device.type == "cpu" else Device(x.device)


def _there(function, batch, given, place):
    """(options for the host, those that are tensors on the place's device, contiguous, of one element or one a row)"""
    there = {}
    if place is Host:
        return given, there
    for name, value in given.items():
        if not isinstance(value, Tensor) or value.device != place.device:
            continue
        integer = name in INTEGERS
        if value.dtype == torch.bool or value.is_complex() or (integer and value.is_floating_point()):
            raise TypeError(f"{function}: {name} has dtype {value.dtype}, accepted: {'integers' if integer else 'numbers'}")
        try:
            value = value.detach().broadcast_to(batch) if value.ndim else value.detach()
        except RuntimeError:
            raise ValueError(
                f"{function}: {name} has shape {tuple(value.shape)}, accepted: one that broadcasts to the batch's {batch}"
            ) from None
        there[name] = value.to(torch.int64 if integer else torch.float64).reshape(-1).contiguous()
    return {name: ABSENT.get(name) if name in there else value for name, value in given.items()}, there


def _plain(function, argument, value):
    """A tensor that the kernels read: of a floating dtype, on the CPU or a CUDA device, without a gradient."""
    if type(value) is Tensor and value.device == CPU and value.dtype in DTYPES and value.layout is torch.strided:
        if not (value.is_neg() or value.is_nested):
            return value.detach() if value.requires_grad else value
    if not isinstance(value, Tensor):
        value = torch.as_tensor(value)
    if value.device.type not in DEVICES:
        raise NotImplementedError(f"{function}: {argument} is on {value.device}, accepted: {_core.served_devices()}")
    if type(value) not in PLAIN_TYPES or value.layout is not torch.strided or value.is_nested:
        raise TypeError(f"{function}: {argument} is a {type(value).__name__}, accepted: plain dense tensors")
    if not value.is_floating_point() and not value.is_complex():
        value = value.to(torch.get_default_dtype())
    if value.dtype not in DTYPES:
        raise TypeError(f"{function}: {argument} has dtype {value.dtype}, accepted: float16, bfloat16, float32, float64")
    return value.detach().resolve_neg()


def _mask(function, where, shape, place):
    if where is None:
        return None
    where = torch.as_tensor(where)
    if where.dtype != torch.bool:
        raise TypeError(f"{function}: where has dtype {where.dtype}, accepted: torch.bool")
    if place is Host:
        return broadcast_mask(function, where.detach().cpu().numpy(), tuple(shape))
    try:
        return where.detach().to(place.device).broadcast_to(shape)
    except RuntimeError:
        raise ValueError(
            f"{function}: where has shape {tuple(where.shape)}, accepted: one that broadcasts to {tuple(shape)}"
        ) from None


def _tensor(array):
    return array if isinstance(array, Tensor) else torch.from_numpy(array)


def _results(out, info, dtype, return_info):
    out = _tensor(out)
    if not return_info:
        return out
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    tensors = map(_tensor, info.values())
    return out, SampleInfo(*(t.to(wide) if t.is_floating_point() else t for t in tensors))


def sample(
    logits,
    dim=-1,
    *,
    temperature=1.0,
    top_k=None,
    top_p=None,
    min_p=None,
    order="vllm",
    where=None,
    seed=None,
    stream=None,
    num_samples=None,
    replacement=True,
    return_info=False,
) -> Any:
    """sumexp.sample of a tensor: classes drawn with the probabilities of softmax(logits / temperature, dim).

    Inside torch.vmap rows are numbered from 0 for each example: what is to differ wants a stream or seed of its own.
    """
    filters = (temperature, top_k, top_p, min_p)
    _check_count("sample", num_samples)
    if return_info or isinstance(seed, torch.Generator):
        _not_traced("sample", " with return_info or a generator")
    if not return_info and _recorded(logits, (top_k, seed, stream), (temperature, top_p, min_p)):
        where = where if where is None else torch.as_tensor(where)
        given = _given("sample", logits, dim, **dict(zip(FILTERS, filters)), seed=seed, stream=stream)
        return torch.ops.sumexp.sample(logits.detach(), dim, where, *given, order, num_samples, replacement, _call(seed))
    return _sample(logits, dim, filters, order, where, seed, stream, num_samples, replacement, return_info)


def _seed(seed):
    """Where there is none, torch's default generator: what torch.manual_seed sets, and checkpointing sets back."""
    if functorch_active():
        return seed
    if isinstance(seed, (list, tuple)):
        seed = np.array(seed, object)
        for i in np.argwhere(seed == None):  # noqa: E711
            seed[tuple(i)] = random_bits(torch.default_generator)
    return torch.default_generator if seed is None else seed


def _options(function, batch, filters, order, seed, stream, num_samples, replacement, place):
    seed = _seed(seed)
    if place is Host:
        return sample_options(function, batch, *filters, order, seed, stream, num_samples, replacement)
    given = dict(zip(FILTERS, filters), seed=seed, stream=stream)
    given, there = _there(function, batch, given, place)
    options = sample_options(function, batch, **given, order=order, num_samples=num_samples, replacement=replacement)
    return options | there


@eagerly
def _sample(logits, dim, filters, order, where, seed, stream, num_samples, replacement, return_info):
    x = _plain("sample", "logits", logits)
    dim, batch = rows_of("sample", x, dim, "dim")
    place = _place(x)
    where = _mask("sample", where, x.shape, place)
    options = _options("sample", batch, filters, order, seed, stream, num_samples, replacement, place)
    out, info = draw(x, dim, where, options, batch, num_samples, return_info, place)
    return _results(out, info, x.dtype, return_info)


def sample_counts(logits, num_samples, dim=-1, *, temperature=1.0, seed=None, stream=None) -> Any:
    """sumexp.sample_counts of a tensor: how often each class comes up in num_samples draws."""
    _check_count("sample_counts", num_samples)
    if _recorded(logits, (seed, stream), (temperature,)):
        given = _given("sample_counts", logits, dim, temperature=temperature, seed=seed, stream=stream)
        return torch.ops.sumexp.sample_counts(logits.detach(), num_samples, dim, *given, _call(seed))
    return _counts(logits, num_samples, dim, temperature, seed, stream)


@eagerly
def _counts(logits, num_samples, dim, temperature, seed, stream):
    x = _plain("sample_counts", "logits", logits)
    dim, batch = rows_of("sample_counts", x, dim, "dim")
    place = _place(x)
    given, there = _there("sample_counts", batch, {"temperature": temperature, "seed": _seed(seed), "stream": stream}, place)
    options = place.options(count_options(batch, num_samples, **given) | there)
    out = place.empty(tuple(x.shape), np.int64)
    place.run(_core._sample_counts, x, dim, options, out)
    return _tensor(out)


@eagerly
def linear_sample(
    x,
    w,
    *,
    bias=None,
    temperature=1.0,
    top_k=None,
    top_p=None,
    min_p=None,
    order="vllm",
    where=None,
    seed=None,
    stream=None,
    num_samples=None,
    replacement=True,
    return_info=False,
) -> Any:
    """sumexp.linear_sample of tensors: a draw from softmax((x w^T + bias) / temperature) without the whole logits.

    Products are torch's, of the tensors' own dtype.
    """
    _not_traced("linear_sample")
    x, w = _plain("linear_sample", "x", x), _plain("linear_sample", "w", w)
    bias = None if bias is None else _plain("linear_sample", "bias", bias)
    for name, t in (("w", w), ("bias", bias)):
        if t is not None and t.dtype != x.dtype:
            raise TypeError(f"linear_sample: {name} has dtype {t.dtype}, accepted: {x.dtype}, that of x")
    batch = linear_shapes(x, w, bias)
    place = _place(x)
    rows = x.reshape(math.prod(batch), x.shape[-1])

    def logits(part, a, b):
        return torch.nn.functional.linear(rows[part], w[a:b], None if bias is None else bias[a:b])

    mask = _mask("linear_sample", where, (*batch, w.shape[0]), place)
    mask = mask if mask is None else mask.reshape(len(rows), w.shape[0])
    filters = (temperature, top_k, top_p, min_p)
    options = _options("linear_sample", batch, filters, order, seed, stream, num_samples, replacement, place)
    out, info = draw_linear(
        torch, logits, rows.shape[0], w.shape[0], x.dtype, mask, options, batch, num_samples, return_info, place
    )
    return _results(out, info, x.dtype, return_info)


def _noise(x, dim, seed, stream):
    if not _recorded(x, (seed, stream)):
        return _made_noise(x, dim, seed, stream)
    if functorch_active() and not is_compiling():  # a transform sees the shape alone: one draw for all examples of vmap
        if seed is not None and not isinstance(seed, Tensor) and not isinstance(stream, Tensor):
            return _made_noise(x, dim, seed, stream)
        x = torch.empty((), device=x.device).expand(x.shape)
    given = _given("gumbel_softmax", x, dim, seed=seed, stream=stream)
    return torch.ops.sumexp.gumbel_noise(x.detach(), dim, *given, _call(seed))


@eagerly
def _made_noise(x, dim, seed, stream):
    dim, batch = rows_of("gumbel_softmax", x, dim, "dim")
    place = _place(x)
    given, there = _there("gumbel_softmax", batch, {"seed": _seed(seed), "stream": stream}, place)
    options = row_options("gumbel_softmax", batch, 1.0, **given) | there
    noise = _tensor(made_noise(batch, x.shape[dim], options, place))
    return noise.movedim(-1, dim).contiguous()


def gumbel_softmax(logits, tau=1, hard=False, eps=1e-10, dim=-1, *, seed=None, stream=None) -> Any:
    """torch.nn.functional.gumbel_softmax with noise in double, a seed and streams: softmax((logits + g) / tau, dim).

    hard=True gives one-hot rows with the gradient of the soft ones. eps has no effect, as in torch. The examples of torch.vmap
    have the same noise, unless it maps over seed or stream as well.
    """
    if not isinstance(logits, Tensor):
        raise TypeError(f"gumbel_softmax: logits is a {type(logits).__name__}, accepted: a tensor")
    if logits.dtype not in DTYPES:
        raise TypeError(f"gumbel_softmax: logits has dtype {logits.dtype}, accepted: float16, bfloat16, float32, float64")
    if logits.device.type not in DEVICES:
        raise NotImplementedError(f"gumbel_softmax: logits is on {logits.device}, accepted: {_core.served_devices()}")
    T = check_tau(tau)
    z = logits.double() + _noise(logits, dim, seed, stream)
    watched = isinstance(tau, Tensor) and is_watched(tau)
    soft = (softmax(z / tau, dim) if watched else softmax(z, dim, temperature=T)).to(logits.dtype)
    if not hard:
        return soft
    one_hot = torch.zeros_like(soft).scatter(dim, z.argmax(dim, keepdim=True), 1.0)
    return one_hot - soft.detach() + soft


# -- the registered operations --------------------------------------------------------------------------------------


def _sample_op(logits, dim, where, temperature, top_k, top_p, min_p, seed, stream, order, num_samples, replacement, call=0):
    filters = (temperature, top_k, top_p, min_p)
    return _sample(logits, dim, filters, order, where, seed, stream, num_samples, replacement, False)


def _fake_sample(logits, dim, where, temperature, top_k, top_p, min_p, seed, stream, order, num_samples, replacement, call=0):
    _, batch = rows_of("sample", logits, dim, "dim")
    return logits.new_empty(batch if num_samples is None else (*batch, num_samples), dtype=torch.int64)


def _register():
    # call: which of a program's, if it has no seed
    options = "Tensor? seed, Tensor? stream"
    signatures = {
        "sample": f"Tensor logits, int dim, Tensor? where, Tensor? temperature, Tensor? top_k, Tensor? top_p, Tensor? min_p, "
        f"{options}, str order, SymInt? num_samples, bool replacement, int call=0",
        "sample_counts": f"Tensor logits, SymInt num_samples, int dim, Tensor? temperature, {options}, int call=0",
        "gumbel_noise": f"Tensor logits, int dim, {options}, int call=0",
    }
    kernels = {
        "sample": _sample_op,
        "sample_counts": lambda *given: _counts(*given[:6]),
        "gumbel_noise": lambda *given: _made_noise(*given[:4]),
    }
    fakes = {
        "sample": _fake_sample,
        "sample_counts": lambda logits, *_: logits.new_empty(logits.shape, dtype=torch.int64),
        "gumbel_noise": lambda logits, *_: logits.new_empty(logits.shape, dtype=torch.float64),
    }
    tags = (torch.Tag.pt2_compliant_tag, torch.Tag.nondeterministic_seeded)  # a seed of None is fresh each time
    for name, signature in signatures.items():
        LIBRARY.define(f"{name}({signature}) -> Tensor", tags=tags)
        for key in ("CPU", "CUDA"):
            LIBRARY.impl(name, kernels[name], key)
        torch.library.register_fake(f"sumexp::{name}", fakes[name], lib=LIBRARY)


_register()
