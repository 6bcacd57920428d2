"""Sampling for torch: the functions of sumexp._sampling, of tensors on the CPU.

Indices and counts have no gradient. gumbel_softmax has torch.nn.functional's signature and gradient, through this package's
softmax. Compiled programs have a graph break at the calls that draw.
"""

import numpy as np
import torch
from torch import Tensor

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
from ._kernels import DTYPES, PLAIN_TYPES

NUMPY_DTYPES = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}


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


@torch.compiler.disable
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
    """sumexp.sample of a tensor: classes drawn with the probabilities of softmax(logits / temperature, dim)."""
    x = _plain("sample", "logits", logits)
    dim, batch = rows_of("sample", x, dim)
    options = sample_options(
        "sample", batch, temperature, top_k, top_p, min_p, order, seed, stream, num_samples, replacement
    )
    out, info = draw(x, dim, _mask("sample", where, x.shape), options, batch, num_samples, return_info)
    return _results(out, info, x.dtype, return_info)


@torch.compiler.disable
def sample_counts(logits, num_samples, dim=-1, *, temperature=1.0, seed=None, stream=None):
    """sumexp.sample_counts of a tensor: how often each class comes up in num_samples draws."""
    x = _plain("sample_counts", "logits", logits)
    dim, batch = rows_of("sample_counts", x, dim)
    out = np.empty(tuple(x.shape), np.int64)
    _core._sample_counts(x, dim, count_options(batch, num_samples, temperature, seed, stream), out)
    return torch.from_numpy(out)


@torch.compiler.disable
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


@torch.compiler.disable
def _noise(shape, dim, seed, stream):
    batch = (*shape[:dim], *shape[dim + 1 :])
    return torch.from_numpy(gumbel_noise(batch, shape[dim], seed, stream)).movedim(-1, dim)


def gumbel_softmax(logits, tau=1, hard=False, eps=1e-10, dim=-1, *, seed=None, stream=None):
    """torch.nn.functional.gumbel_softmax with noise in double, a seed and streams: softmax((logits + g) / tau, dim).

    hard=True gives one-hot rows with the gradient of the soft ones. eps has no effect, as in torch.
    """
    if logits.device.type != "cpu":
        raise NotImplementedError(f"gumbel_softmax: logits is on {logits.device}, accepted: tensors on the CPU")
    dim, _ = rows_of("gumbel_softmax", logits, dim)
    z = logits.double() + _noise(tuple(logits.shape), dim, seed, stream)
    soft = softmax(z, dim, temperature=check_tau(tau)).to(logits.dtype)
    if not hard:
        return soft
    one_hot = torch.zeros_like(soft).scatter(dim, z.argmax(dim, keepdim=True), 1.0)
    return one_hot - soft.detach() + soft
