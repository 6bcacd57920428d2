"""Sampling from the softmax of rows of logits: sample, sample_counts, linear_sample and gumbel_softmax.

A draw walks down the tree in which the row's sum of exponentials was added, and decides at each node by the ratio of two sums
(csrc/numerics/README.md, "Sampling"): a class of probability p is drawn with probability p (1 ± 1e-6) down to p = 1e-30, one of
probability 0 never. Random bits are Philox4x32-10 of a row's seed and stream, so that a row's draw depends on its logits,
options, seed and stream alone.
"""

import math
from typing import Any

import numpy as np

from . import _arrays, _core
from ._devices import is_torch
from ._draws import (
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
    shape_of,
)
from ._row_shapes import row_axis


def _tensors(*values):
    """sumexp.torch._sampling where one of the values is a tensor of torch, else None."""
    for value in values:
        if value is not None and type(value) is not np.ndarray and is_torch(value):
            from .torch import _sampling

            return _sampling
    return None


def _axis(function, logits, axis):
    """axis from 0, checked here, as sumexp.torch calls it dim."""
    return row_axis(function, "logits", tuple(logits.shape if is_torch(logits) else np.shape(logits)), axis)


def _into(function, out, tensor):
    if out is None:
        return tensor
    from .torch._checks import into

    return into(function, out, tensor)


def _putting(function, out, shape, dtype, *inputs):
    """put(result, back): what a function returns for `out`, which is checked here, before anything is drawn."""
    if out is None:
        return lambda result, back: back(result)
    view = _arrays.result(function, out, shape, np.dtype(dtype), *inputs)

    def put(result, back):
        view[...] = result
        return out

    return put


def _results(indices, info, dtype, back, return_info):
    if not return_info:
        return indices
    wide = np.float64 if dtype == np.float64 else np.float32
    with np.errstate(under="ignore"):
        cast = [a.astype(wide) if a.dtype.kind == "f" else a for a in info.values()]
    return indices, SampleInfo(*map(back, cast))


def sample(
    logits,
    axis=-1,
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
    out=None,
) -> Any:
    """Draws classes with the probabilities of softmax(logits / temperature).

    Parameters
    ----------
    logits : array
        Floating (integers and bools become float64). -inf is never drawn.
    axis : int
        Of the classes; the other dimensions are the batch.
    temperature, top_k, top_p, min_p : number or array of the batch's shape
        Temperature from 0: 0 takes the lowest index among the largest logits, whatever the filters; infinity any class. top_k
        keeps exactly k classes, of equal logits those of lower index; top_p the fewest, in order of probability and then
        index, whose probabilities reach p; min_p those with at least min_p times the largest probability. None: no such filter.
    order : {"vllm", "hf", "llama.cpp"}
        Temperature, min_p, top_k, top_p; temperature, top_k, top_p, min_p; or the same with the temperature last.
    where : array of bool, broadcast to the shape of logits
        False excludes a class.
    seed : None, int, array or sequence of the batch's shape, numpy.random.Generator or torch.Generator
        None is a fresh seed, also as an element of a sequence, for that row; of tensors it is taken from torch's default
        generator, which torch.manual_seed sets. From a generator 64 bits are taken.
    stream : int or array of the batch's shape
        Rows with the same seed and different streams draw independently. Of 64 bits; by default a row's number in the batch.
    num_samples : int
        Draws a row, as one more dimension, the last; by default one, and no more dimension.
    replacement : bool
        False: no class is drawn twice. With temperature 0 each draw takes the largest that is left.
    return_info : bool
        Adds a SampleInfo.
    out : array
        Of int64 and the result's shape: where the indices go.

    Returns
    -------
    Indices of int64, of the batch's shape; or (indices, SampleInfo).

    Raises
    ------
    ValueError
        Where a row has NaN or +inf, or no class to draw, even for no draws; where an option is out of range. It names row and
        argument, and out is as it was.
        (Tensors on CUDA devices, for which nothing waits: such a row is no error and gives -1, log-probabilities of NaN, 0 kept
        and the cut (NaN, -1); without replacement, draws for which no class is left are -1. Options that are on the device
        themselves are not looked at: a row whose temperature is out of range gives -1.)

    Notes
    -----
    The probability of every class of probability 1e-30 and more is right to a relative 1e-6. A row's draw depends on its
    logits, options, seed and stream alone: not on batch, axis, strides, threads or instruction set.
    """
    tensors = _tensors(logits, where)
    if tensors is not None:
        made = tensors.sample(
            logits,
            _axis("sample", logits, axis),
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            order=order,
            where=where,
            seed=seed,
            stream=stream,
            num_samples=num_samples,
            replacement=replacement,
            return_info=return_info,
        )
        return (_into("sample", out, made[0]), made[1]) if return_info else _into("sample", out, made)
    (x,), back = _arrays.together("sample", logits=logits)
    axis, batch = rows_of("sample", x, axis)
    if where is not None:
        where = broadcast_mask("sample", _arrays._mask("sample", where), x.shape)
    put = _putting("sample", out, shape_of("sample", batch, num_samples), np.int64, x)
    options = sample_options(
        "sample", batch, temperature, top_k, top_p, min_p, order, seed, stream, num_samples, replacement
    )
    made, info = draw(x, axis, where, options, batch, num_samples, return_info)
    return _results(put(made, back), info, x.dtype, back, return_info)


def sample_counts(logits, num_samples, axis=-1, *, temperature=1.0, seed=None, stream=None, out=None) -> Any:
    """How often each class comes up in num_samples draws (with replacement) from softmax(logits / temperature).

    A multinomial draw, made by binomial splits down the tree of the row's sum: its time does not depend on num_samples, an int
    from 0 to 2^53. The splits are exact but for rounding (a relative 1e-9), so that the counts of a class of probability p have
    mean num_samples p (1 ± 1e-6) down to p = 1e-30. The draws are others than those of `sample`.

    logits, axis, temperature, seed and stream are as in `sample`. Returns counts of int64, of the shape of logits, in `out` if
    that is given. (On CUDA devices a row that would be an error has -1 for every class.)
    """
    tensors = _tensors(logits)
    if tensors is not None:
        axis = _axis("sample_counts", logits, axis)
        counts = tensors.sample_counts(logits, num_samples, axis, temperature=temperature, seed=seed, stream=stream)
        return _into("sample_counts", out, counts)
    (x,), back = _arrays.together("sample_counts", logits=logits)
    axis, batch = rows_of("sample_counts", x, axis)
    put = _putting("sample_counts", out, x.shape, np.int64, x)
    options = count_options(batch, num_samples, temperature, seed, stream)
    counts = np.empty(x.shape, np.int64)
    _core._sample_counts(x, axis, options, counts)
    made = put(counts, back)
    if counts.size and getattr(made.dtype, "itemsize", 8) < 8 and counts.max() > np.iinfo(np.int32).max:
        accepted = f"up to 2^31 - 1 where the logits' library makes {made.dtype} of int64, as JAX without jax_enable_x64"
        raise OverflowError(f"sample_counts: a count is {counts.max()}, accepted: {accepted}")
    return made


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
    out=None,
) -> Any:
    """Draws from softmax((x w^T + bias) / temperature), of x (..., D) and w (V, D), without the whole logits.

    Classes come in pieces, whose logits are made, summed and left; what a draw takes in each chunk of 2,048 classes (512 of
    float64) is decided then, and the chunk at the end. The draw is that of `sample` on the logits of the same products.
    float16 and bfloat16 are multiplied in float32. Filters, where, replacement=False, return_info and temperatures below 1e-6
    need a row's logits at once: then they are made whole, for some rows at a time. Without them, a row with a logit whose
    quotient by the temperature is beyond the largest number is a ValueError (on CUDA devices -1), which `sample` would draw.

    The options are those of `sample`, the batch is x's but for its last dimension.
    """
    tensors = _tensors(x, w, bias, where)
    if tensors is not None:
        made = tensors.linear_sample(
            x,
            w,
            bias=bias,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            order=order,
            where=where,
            seed=seed,
            stream=stream,
            num_samples=num_samples,
            replacement=replacement,
            return_info=return_info,
        )
        indices = _into("linear_sample", out, made[0] if return_info else made)
        return (indices, made[1]) if return_info else indices
    (x, w, bias), back = _arrays.together("linear_sample", x=x, w=w, bias=bias)
    batch = linear_shapes(x, w, bias)
    dtype = np.dtype(np.float64 if x.dtype == np.float64 else np.float32)
    rows = x.reshape(math.prod(batch), x.shape[-1]).astype(dtype, copy=False)

    def logits(part, a, b):
        made = rows[part] @ w[a:b].astype(dtype, copy=False).T
        return made if bias is None else made + bias[a:b].astype(dtype, copy=False)

    if where is not None:
        shape = (*batch, w.shape[0])
        where = broadcast_mask("linear_sample", _arrays._mask("linear_sample", where), shape).reshape(len(rows), w.shape[0])
    put = _putting("linear_sample", out, shape_of("linear_sample", batch, num_samples), np.int64, x, w)
    options = sample_options(
        "linear_sample", batch, temperature, top_k, top_p, min_p, order, seed, stream, num_samples, replacement
    )
    made, info = draw_linear(np, logits, rows.shape[0], w.shape[0], dtype, where, options, batch, num_samples, return_info)
    return _results(put(made, back), info, dtype, back, return_info)


def gumbel_softmax(logits, axis=-1, *, tau=1.0, hard=False, seed=None, stream=None, out=None) -> Any:
    """softmax((logits + g) / tau) with standard Gumbel noise g, an array like logits.

    hard=True gives a one at the largest of each row (of equal ones the first) and zeros elsewhere. The noise is made in double
    from 128 random bits an element, so that the largest is not cut off at that of 24 or 53 bits; the sum and its softmax are in
    double, and the result is rounded to the dtype of logits. An infinite tau gives the uniform row of finite logits. A row with
    NaN or +inf, or of -inf alone, is NaN, hard or not. seed and stream are as in `sample`; out is an array like logits for the
    result, or logits itself.
    E. Jang, S. Gu, B. Poole, "Categorical reparameterization with Gumbel-softmax" (2017).
    """
    tensors = _tensors(logits)
    if tensors is not None:
        from .torch._checks import floating

        axis = _axis("gumbel_softmax", logits, axis)
        made = tensors.gumbel_softmax(floating(logits), tau, hard, dim=axis, seed=seed, stream=stream)
        return _into("gumbel_softmax", out, made)
    (x,), back = _arrays.together("gumbel_softmax", logits=logits)
    axis, batch = rows_of("gumbel_softmax", x, axis)
    put, tau = _putting("gumbel_softmax", out, x.shape, x.dtype, x), check_tau(tau)
    z = gumbel_noise(batch, x.shape[axis], seed, stream) + np.moveaxis(x, axis, -1)
    if hard:
        y = np.zeros(z.shape, x.dtype)
        if z.shape[-1]:
            np.put_along_axis(y, z.argmax(-1)[..., None], 1, -1)
            y[~np.isfinite(z.max(-1))] = np.nan  # as soft rows are
    else:
        with np.errstate(under="ignore"):
            y = _core.softmax(z, -1, temperature=tau).astype(x.dtype)
    return put(np.ascontiguousarray(np.moveaxis(y, -1, axis)), back)
