"""Sampling for torch: the functions of sumexp._sampling, of tensors on the CPU.

Indices and counts have no gradient. gumbel_softmax has torch.nn.functional's signature and gradient, through this package's
softmax. Compiled and exported programs call the registered operations at the end, but for linear_sample, return_info and
generators, where compiled programs have a graph break.
"""

import functools

import numpy as np
import torch
from torch import Tensor
from torch.compiler import is_compiling

from .. import _core
from .._draws import (
    SampleInfo,
    broadcast_mask,
    check_tau,
    count_options,
    draw,
    draw_linear,
    gumbel_noise,
    linear_shapes,
    rows_of,
    sample_options,
)
from ._front import softmax
from ._kernels import DTYPES, PLAIN_TYPES, is_traced
from ._library import LIBRARY
from ._private import FakeTensor, FunctionalTensor, functorch_active

STAND_INS = (FakeTensor, FunctionalTensor)


def _eagerly(function):
    """The function, which compiled programs call outside of what they compile."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        if is_compiling():  # asked for only here: the decorator imports the compiler
            return torch.compiler.disable(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return call


def _recorded(x, seed):
    """Whether the registered operation is called: compiling, tracing, a stand-in for a tensor, a functorch transform."""
    if isinstance(seed, torch.Generator) or not isinstance(x, Tensor):
        return False
    return is_compiling() or functorch_active() or isinstance(x, STAND_INS) or is_traced()


def _plain(function, argument, value):
    """A tensor that the kernels read: of a floating dtype, on the CPU, without a gradient."""
    if not isinstance(value, Tensor):
        value = torch.as_tensor(value)
    if value.device.type != "cpu":
        raise NotImplementedError(f"{function}: {argument} is on {value.device}, accepted: tensors on the CPU")
    if type(value) not in PLAIN_TYPES or value.layout is not torch.strided or value.is_nested:
        raise TypeError(f"{function}: {argument} is a {type(value).__name__}, accepted: plain dense tensors")
    if not value.is_floating_point() and not value.is_complex():
        value = value.to(torch.get_default_dtype())
    if value.dtype not in DTYPES:
        raise TypeError(f"{function}: {argument} has dtype {value.dtype}, accepted: float16, bfloat16, float32, float64")
    return value.detach().resolve_neg()


def _mask(function, where, shape):
    if where is None:
        return None
    where = torch.as_tensor(where)
    if where.dtype != torch.bool:
        raise TypeError(f"{function}: where has dtype {where.dtype}, accepted: torch.bool")
    return broadcast_mask(function, where.detach().cpu().numpy(), tuple(shape))


def _results(out, info, dtype, return_info):
    out = torch.from_numpy(out)
    if not return_info:
        return out
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    tensors = map(torch.from_numpy, info.values())
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
):
    """sumexp.sample of a tensor: classes drawn with the probabilities of softmax(logits / temperature, dim).

    Inside torch.vmap rows are numbered from 0 for each example: what is to differ wants a stream or seed of its own.
    """
    filters = (temperature, top_k, top_p, min_p)
    if not return_info and _recorded(logits, seed):
        given = (*map(_real, filters[:1]), _whole(top_k), *map(_real, filters[2:]), _whole(seed), _whole(stream))
        return torch.ops.sumexp.sample(logits.detach(), dim, where, *given, order, num_samples, replacement)
    return _sample(logits, dim, filters, order, where, seed, stream, num_samples, replacement, return_info)


@_eagerly
def _sample(logits, dim, filters, order, where, seed, stream, num_samples, replacement, return_info):
    x = _plain("sample", "logits", logits)
    dim, batch = rows_of("sample", x, dim)
    options = sample_options("sample", batch, *filters, order, seed, stream, num_samples, replacement)
    out, info = draw(x, dim, _mask("sample", where, x.shape), options, batch, num_samples, return_info)
    return _results(out, info, x.dtype, return_info)


def _real(value):
    return value if value is None or isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)


def _whole(value):
    return value if value is None or isinstance(value, Tensor) else torch.tensor(value, dtype=torch.int64)


def sample_counts(logits, num_samples, dim=-1, *, temperature=1.0, seed=None, stream=None):
    """sumexp.sample_counts of a tensor: how often each class comes up in num_samples draws."""
    if _recorded(logits, seed):
        given = (_real(temperature), _whole(seed), _whole(stream))
        return torch.ops.sumexp.sample_counts(logits.detach(), num_samples, dim, *given)
    return _counts(logits, num_samples, dim, temperature, seed, stream)


@_eagerly
def _counts(logits, num_samples, dim, temperature, seed, stream):
    x = _plain("sample_counts", "logits", logits)
    dim, batch = rows_of("sample_counts", x, dim)
    out = np.empty(tuple(x.shape), np.int64)
    _core._sample_counts(x, dim, count_options(batch, num_samples, temperature, seed, stream), out)
    return torch.from_numpy(out)


@_eagerly
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
):
    """sumexp.linear_sample of tensors: a draw from softmax((x w^T + bias) / temperature) without the whole logits.

    Products are torch's, of the tensors' own dtype.
    """
    x, w = _plain("linear_sample", "x", x), _plain("linear_sample", "w", w)
    bias = None if bias is None else _plain("linear_sample", "bias", bias)
    if x.dtype != w.dtype or (bias is not None and bias.dtype != x.dtype):
        raise TypeError(f"linear_sample: x and w have dtypes {x.dtype} and {w.dtype}, accepted: one dtype, bias included")
    batch = linear_shapes(x, w, bias)
    options = sample_options(
        "linear_sample", batch, temperature, top_k, top_p, min_p, order, seed, stream, num_samples, replacement
    )
    rows = x.reshape(-1, x.shape[-1])

    def logits(part, a, b):
        return torch.nn.functional.linear(rows[part], w[a:b], None if bias is None else bias[a:b])

    mask = _mask("linear_sample", where, (*batch, w.shape[0]))
    mask = mask if mask is None else mask.reshape(-1, w.shape[0])
    out, info = draw_linear(
        torch, logits, rows.shape[0], w.shape[0], x.dtype, mask, options, batch, num_samples, return_info
    )
    return _results(out, info, x.dtype, return_info)


def _noise(x, dim, seed, stream):
    if _recorded(x, seed) and (is_compiling() or not functorch_active()):  # a transform sees the shape alone
        return torch.ops.sumexp.gumbel_noise(x.detach(), dim, _whole(seed), _whole(stream))
    return _made_noise(x, dim, seed, stream)


@_eagerly
def _made_noise(x, dim, seed, stream):
    dim, batch = rows_of("gumbel_softmax", x, dim)
    noise = torch.from_numpy(gumbel_noise(batch, x.shape[dim], seed, stream))
    return noise.movedim(-1, dim).contiguous()


def gumbel_softmax(logits, tau=1, hard=False, eps=1e-10, dim=-1, *, seed=None, stream=None):
    """torch.nn.functional.gumbel_softmax with noise in double, a seed and streams: softmax((logits + g) / tau, dim).

    hard=True gives one-hot rows with the gradient of the soft ones. eps has no effect, as in torch.
    """
    if logits.device.type != "cpu":
        raise NotImplementedError(f"gumbel_softmax: logits is on {logits.device}, accepted: tensors on the CPU")
    z = logits.double() + _noise(logits, dim, seed, stream)
    soft = softmax(z, dim, temperature=check_tau(tau)).to(logits.dtype)
    if not hard:
        return soft
    one_hot = torch.zeros_like(soft).scatter(dim, z.argmax(dim, keepdim=True), 1.0)
    return one_hot - soft.detach() + soft


# -- the registered operations --------------------------------------------------------------------------------------


def _sample_op(logits, dim, where, temperature, top_k, top_p, min_p, seed, stream, order, num_samples, replacement):
    filters = (temperature, top_k, top_p, min_p)
    return _sample(logits, dim, filters, order, where, seed, stream, num_samples, replacement, False)


def _fake_sample(logits, dim, where, temperature, top_k, top_p, min_p, seed, stream, order, num_samples, replacement):
    _, batch = rows_of("sample", logits, dim)
    return logits.new_empty(batch if num_samples is None else (*batch, num_samples), dtype=torch.int64)


def _register():
    options = "Tensor? seed, Tensor? stream"
    signatures = {
        "sample": f"Tensor logits, int dim, Tensor? where, Tensor? temperature, Tensor? top_k, Tensor? top_p, Tensor? min_p, "
        f"{options}, str order, SymInt? num_samples, bool replacement",
        "sample_counts": f"Tensor logits, SymInt num_samples, int dim, Tensor? temperature, {options}",
        "gumbel_noise": f"Tensor logits, int dim, {options}",
    }
    kernels = {"sample": _sample_op, "sample_counts": _counts, "gumbel_noise": _made_noise}
    fakes = {
        "sample": _fake_sample,
        "sample_counts": lambda logits, *_: logits.new_empty(logits.shape, dtype=torch.int64),
        "gumbel_noise": lambda logits, *_: logits.new_empty(logits.shape, dtype=torch.float64),
    }
    tags = (torch.Tag.pt2_compliant_tag, torch.Tag.nondeterministic_seeded)  # a seed of None is fresh each time
    for name, signature in signatures.items():
        LIBRARY.define(f"{name}({signature}) -> Tensor", tags=tags)
        LIBRARY.impl(name, kernels[name], "CPU")
        torch.library.register_fake(f"sumexp::{name}", fakes[name], lib=LIBRARY)


_register()
