"""Sampling from the softmax of rows of logits: sample, sample_counts, linear_sample and gumbel_softmax.

A draw walks down the tree in which the row's sum of exponentials was added, and decides at each node by the ratio of two sums
(csrc/numerics/README.md, "Sampling"): a class of probability p is drawn with probability p (1 + 1e-6) down to p = 1e-30, one of
probability 0 never. Random bits are Philox4x32-10 of a row's seed and stream, so that a row's draw depends on its logits,
options, seed and stream alone.
"""

import operator
import secrets
import sys
from typing import NamedTuple

import numpy as np
from numpy.lib.array_utils import normalize_axis_index

from . import _arrays, _core
from ._devices import is_torch

ORDERS = {"vllm": 0, "hf": 1, "llama.cpp": 2}
FILTERS = ("top_k", "top_p", "min_p")
PIECE_BYTES = 4 << 20  # of the logits that linear_sample has at a time


class SampleInfo(NamedTuple):
    """What `sample` adds with return_info=True.

    log_prob
        Of each draw under the logits as they are given: log_softmax(logits), where= applied, without temperature and filters.
    filtered_log_prob
        Of each draw under the distribution that is drawn from (without replacement: that of the first draw).
    kept
        For each row, how many classes may be drawn.
    cut_logit, cut_index
        For each row: class j may be drawn if and only if its logit, after the temperature (before it where that is 0 or the
        order is "llama.cpp"), is above cut_logit, or equals it and j <= cut_index. With temperature 0, it is the class drawn.
    """

    log_prob: object
    filtered_log_prob: object
    kept: object
    cut_logit: object
    cut_index: object


def _tensors(*values):
    """sumexp.torch._sampling where one of the values is a tensor of torch, else None."""
    if any(is_torch(v) for v in values):
        from .torch import _sampling

        return _sampling
    return None


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
):
    """Draws classes with the probabilities of softmax(logits / temperature).

    Parameters
    ----------
    logits : array
        Floating (integers and bools become float64). -inf is never drawn.
    axis : int
        Of the classes; the other dimensions are the batch.
    temperature, top_k, top_p, min_p : number or array of the batch's shape
        Temperature from 0; 0 takes the lowest index among the largest logits. top_k keeps exactly k classes, of equal logits
        those of lower index; top_p the fewest, in order of probability and then index, whose probabilities reach p; min_p those
        with at least min_p times the largest probability. None: no such filter.
    order : {"vllm", "hf", "llama.cpp"}
        Temperature, min_p, top_k, top_p; temperature, top_k, top_p, min_p; or the same with the temperature last.
    where : array of bool, broadcast to the shape of logits
        False excludes a class.
    seed : None, int, array or sequence of the batch's shape, numpy.random.Generator or torch.Generator
        None is a fresh seed, also as an element of a sequence, for that row. From a generator 64 bits are taken.
    stream : int or array of the batch's shape
        Rows with the same seed and different streams draw independently. By default a row's number in the batch.
    num_samples : int
        Draws a row, as one more dimension, the last; by default one, and no more dimension.
    replacement : bool
        False: no class is drawn twice.
    return_info : bool
        Adds a SampleInfo.

    Returns
    -------
    Indices of int64, of the batch's shape; or (indices, SampleInfo).

    Raises
    ------
    ValueError
        Where a row has NaN or +inf, or no class to draw; where an option is out of range. It names row and argument.

    Notes
    -----
    The probability of every class of probability 1e-30 and more is right to a relative 1e-6. A row's draw depends on its
    logits, options, seed and stream alone: not on batch, axis, strides, threads or instruction set.
    """
    tensors = _tensors(logits, where)
    if tensors is not None:
        return tensors.sample(
            logits,
            axis,
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
    (x,), back = _arrays.together("sample", logits=logits)
    axis, batch = rows_of("sample", x, axis)
    options = sample_options(
        "sample", batch, temperature, top_k, top_p, min_p, order, seed, stream, num_samples, replacement
    )
    if where is not None:
        where = broadcast_mask("sample", _arrays._mask("sample", where), x.shape)
    out, info = draw(x, axis, where, options, batch, num_samples, return_info)
    if not return_info:
        return back(out)
    dtype = np.float64 if x.dtype == np.float64 else np.float32
    cast = (a.astype(dtype) if a.dtype.kind == "f" else a for a in info.values())
    return back(out), SampleInfo(*map(back, cast))


def sample_counts(logits, num_samples, axis=-1, *, temperature=1.0, seed=None, stream=None):
    """How often each class comes up in num_samples draws (with replacement) from softmax(logits / temperature).

    A multinomial draw, made by binomial splits down the tree of the row's sum: its time does not depend on num_samples, an int
    from 0 to 2^53. The splits are exact but for rounding (a relative 1e-9), so that the counts of a class of probability p have
    mean num_samples p (1 + 1e-6) down to p = 1e-30. The draws are others than those of `sample`.

    logits, axis, temperature, seed and stream are as in `sample`. Returns counts of int64, of the shape of logits.
    """
    tensors = _tensors(logits)
    if tensors is not None:
        return tensors.sample_counts(logits, num_samples, axis, temperature=temperature, seed=seed, stream=stream)
    (x,), back = _arrays.together("sample_counts", logits=logits)
    axis, batch = rows_of("sample_counts", x, axis)
    options = count_options(batch, num_samples, temperature, seed, stream)
    out = np.empty(x.shape, np.int64)
    _core._sample_counts(x, axis, options, out)
    return back(out)


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
    """Draws from softmax((x w^T + bias) / temperature), of x (..., D) and w (V, D), without the whole logits.

    Classes come in pieces, whose logits are made, summed and left; what a draw takes in each chunk of 2,048 classes (512 of
    float64) is decided then, and the chunk at the end. The draw is that of `sample` on the logits of the same products.
    float16 and bfloat16 are multiplied in float32. Filters, where, replacement=False, return_info and a temperature of 0 need a
    row's logits at once: then they are made whole, for some rows at a time.

    The options are those of `sample`, the batch is x's but for its last dimension.
    """
    tensors = _tensors(x, w, bias, where)
    if tensors is not None:
        return tensors.linear_sample(
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
    (x, w, bias), back = _arrays.together("linear_sample", x=x, w=w, bias=bias)
    batch = linear_shapes(x, w, bias)
    options = sample_options(
        "linear_sample", batch, temperature, top_k, top_p, min_p, order, seed, stream, num_samples, replacement
    )
    dtype = np.dtype(np.float64 if x.dtype == np.float64 else np.float32)
    rows = x.reshape(-1, x.shape[-1]).astype(dtype, copy=False)

    def logits(part, a, b):
        made = rows[part] @ w[a:b].astype(dtype, copy=False).T
        return made if bias is None else made + bias[a:b].astype(dtype, copy=False)

    if where is not None:
        shape = (*batch, w.shape[0])
        where = broadcast_mask("linear_sample", _arrays._mask("linear_sample", where), shape).reshape(-1, w.shape[0])
    out, info = draw_linear(np, logits, rows.shape[0], w.shape[0], dtype, where, options, batch, num_samples, return_info)
    if not return_info:
        return back(out)
    cast = (a.astype(dtype) if a.dtype.kind == "f" else a for a in info.values())
    return back(out), SampleInfo(*map(back, cast))


def gumbel_softmax(logits, axis=-1, *, tau=1.0, hard=False, seed=None, stream=None):
    """softmax((logits + g) / tau) with standard Gumbel noise g, an array like logits.

    hard=True gives a one at the largest of each row (of equal ones the first) and zeros elsewhere. The noise is made in double
    from 128 random bits an element, and the sum rounded once, to the dtype of logits: the largest noise is not cut off at that
    of 24 or 53 bits. seed and stream are as in `sample`. E. Jang, S. Gu, B. Poole, "Categorical reparameterization with
    Gumbel-softmax" (2017).
    """
    tensors = _tensors(logits)
    if tensors is not None:
        return tensors.gumbel_softmax(logits, tau, hard, dim=axis, seed=seed, stream=stream)
    (x,), back = _arrays.together("gumbel_softmax", logits=logits)
    axis, batch = rows_of("gumbel_softmax", x, axis)
    z = gumbel_noise(batch, x.shape[axis], seed, stream) + np.moveaxis(x, axis, -1)
    if hard:
        y = np.zeros(z.shape, x.dtype)
        if z.shape[-1]:
            np.put_along_axis(y, z.argmax(-1)[..., None], 1, -1)
            y[np.isnan(z).any(-1)] = np.nan
    else:
        y = _core.softmax(z, -1, temperature=check_tau(tau)).astype(x.dtype)
    check_tau(tau)
    return back(np.ascontiguousarray(np.moveaxis(y, -1, axis)))


# -- shared with sumexp.torch ---------------------------------------------------------------------------------------


def rows_of(function, x, axis):
    """(axis from 0, the batch's shape)"""
    if x.ndim == 0:
        raise ValueError(f"{function}: logits has shape (), accepted: at least one dimension")
    try:
        axis = operator.index(axis)
    except TypeError:
        raise TypeError(f"{function}: axis is {axis!r}, accepted: an int") from None
    axis = normalize_axis_index(axis, x.ndim, f"{function}: axis")
    return axis, (*x.shape[:axis], *x.shape[axis + 1 :])


def linear_shapes(x, w, bias):
    """The batch's shape."""
    if x.ndim < 1 or w.ndim != 2 or x.shape[-1] != w.shape[1]:
        raise ValueError(
            f"linear_sample: x and w have shapes {tuple(x.shape)} and {tuple(w.shape)}, accepted: (..., D) and (V, D)"
        )
    if bias is not None and tuple(bias.shape) != (w.shape[0],):
        raise ValueError(f"linear_sample: bias has shape {tuple(bias.shape)}, accepted: ({w.shape[0]},)")
    return tuple(x.shape[:-1])


def broadcast_mask(function, mask, shape):
    try:
        return np.broadcast_to(mask, shape)
    except ValueError:
        raise ValueError(
            f"{function}: where has shape {mask.shape}, accepted: one that broadcasts to {tuple(shape)}"
        ) from None


def number(function, argument, value):
    """An int that fits into 64 bits."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        value = operator.index(value)
    except TypeError:
        raise TypeError(f"{function}: {argument} is {value!r}, accepted: an int") from None
    if not 0 <= value < 2**63:
        raise ValueError(f"{function}: {argument} is {value}, accepted: integers from 0")
    return value


def per_row(function, argument, value, batch, dtype):
    """A contiguous array with one element, or one a row."""
    array = np.asarray(value)
    integer = np.dtype(dtype).kind in "iu"
    if array.dtype.kind not in ("iu" if integer else "iuf") or array.dtype.kind == "b":
        kind = "integers" if integer else "numbers"
        raise TypeError(f"{function}: {argument} is {value!r}, accepted: {kind}, one or an array of the batch's shape {batch}")
    if array.dtype.kind == "i" and np.dtype(dtype).kind == "u" and (array < 0).any():
        raise ValueError(f"{function}: {argument} is {array.min()}, accepted: integers from 0 below 2^64")
    if array.dtype.kind == "u" and np.dtype(dtype).kind == "i" and (array > np.iinfo(np.int64).max).any():
        raise ValueError(f"{function}: {argument} is {array.max()}, accepted: integers below 2^63")
    if array.ndim:
        try:
            array = np.broadcast_to(array, batch)
        except ValueError:
            raise ValueError(
                f"{function}: {argument} has shape {array.shape}, accepted: one that broadcasts to the batch's {batch}"
            ) from None
    return np.ascontiguousarray(array, dtype).reshape(-1)


def seeds(function, seed, batch):
    """64 bits for all rows, or for each."""
    if seed is None:
        return np.array([secrets.randbits(64)], np.uint64)
    if isinstance(seed, np.random.Generator):
        return seed.integers(0, 2**64, 1, np.uint64)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(seed, torch.Generator):
        low, high = torch.randint(0, 2**32, (2,), generator=seed, device=seed.device).tolist()
        return np.array([high << 32 | low], np.uint64)
    if isinstance(seed, (list, tuple)) or (isinstance(seed, np.ndarray) and seed.dtype == object):
        given = np.array(seed, object)
        fresh = np.array([secrets.randbits(64) if s is None else number_of_seed(function, s) for s in given.flat], np.uint64)
        return per_row(function, "seed", fresh.reshape(given.shape), batch, np.uint64)
    if isinstance(seed, int) and not isinstance(seed, bool):
        return np.array([number_of_seed(function, seed)], np.uint64)
    return per_row(function, "seed", seed, batch, np.uint64)


def number_of_seed(function, seed):
    try:
        value = operator.index(seed)
    except TypeError:
        raise TypeError(f"{function}: seed is {seed!r}, accepted: integers, None or a generator") from None
    if not 0 <= value < 2**64:
        raise ValueError(f"{function}: seed is {seed}, accepted: integers from 0 below 2^64")
    return value


def row_options(function, batch, temperature, seed, stream):
    options = {"seed": seeds(function, seed, batch)}
    if stream is not None:
        options["stream"] = per_row(function, "stream", stream, batch, np.int64)
    if not (type(temperature) in (int, float) and temperature == 1):
        options["temperature"] = per_row(function, "temperature", temperature, batch, np.float64)
    return options


def sample_options(function, batch, temperature, top_k, top_p, min_p, order, seed, stream, num_samples, replacement):
    """Of sumexp._core._sample: arrays of one element or one a row, and numbers."""
    if order not in ORDERS:
        raise ValueError(f"{function}: order is {order!r}, accepted: {', '.join(map(repr, ORDERS))}")
    options = row_options(function, batch, temperature, seed, stream)
    for name, value, dtype in (("top_k", top_k, np.int64), ("top_p", top_p, np.float64), ("min_p", min_p, np.float64)):
        if value is not None:
            options[name] = per_row(function, name, value, batch, dtype)
    options["order"] = ORDERS[order]
    options["num_samples"] = 1 if num_samples is None else number(function, "num_samples", num_samples)
    options["replacement"] = bool(replacement)
    return options


def count_options(batch, num_samples, temperature, seed, stream):
    options = row_options("sample_counts", batch, temperature, seed, stream)
    options["num_samples"] = number("sample_counts", "num_samples", num_samples)
    return options


def draw(x, axis, where, options, batch, num_samples, return_info):
    """(indices, {name of SampleInfo: array}): ndarrays; x is an ndarray or a tensor."""
    shape = batch if num_samples is None else (*batch, options["num_samples"])
    out = np.empty(shape, np.int64)
    info = {}
    if return_info:
        info = {name: np.empty(shape) for name in ("log_prob", "filtered_log_prob")}
        info |= {"kept": np.empty(batch, np.int64), "cut_logit": np.empty(batch), "cut_index": np.empty(batch, np.int64)}
    _core._sample(x, axis, where, options, out, info)
    return out, info


def draw_linear(xp, logits, rows, classes, dtype, where, options, batch, num_samples, return_info):
    """As draw, of logits(rows, a, b): a slice of rows, classes a to b. xp: numpy or torch, with that dtype."""
    draws = options["num_samples"]
    wide = dtype.itemsize == 8
    chunk, item = _core._chunk_classes(wide), max(4, dtype.itemsize)
    temperature = options.get("temperature")
    in_pieces = not (
        return_info
        or where is not None
        or not options["replacement"]
        or any(name in options for name in FILTERS)
        or (temperature is not None and not (temperature.astype(np.float64 if wide else np.float32) > 0).all())
    )
    if in_pieces:
        chunks = -(-classes // chunk)
        states = np.empty((rows, chunks, _core._piece_state_bytes(wide)), np.uint8)
        places = np.empty((rows, chunks, draws), np.int16)
        step = max(1, PIECE_BYTES // (item * chunk * max(rows, 1))) * chunk
        for a in range(0, classes, step):
            made = logits(slice(None), a, min(a + step, classes))
            _core._sample_piece(made, options, a // chunk, states, places)
        out = np.empty((rows, draws), np.int64)
        shape = xp.empty((1,), dtype=dtype)
        shape = np.broadcast_to(shape, (rows, classes)) if xp is np else shape.expand(rows, classes)
        _core._finish_pieces(shape, options, states, places, out)
        return out.reshape(batch if num_samples is None else (*batch, draws)), {}
    step = max(1, 16 * PIECE_BYTES // (item * max(classes, 1)))
    found = []
    options.setdefault("stream", np.arange(rows, dtype=np.int64))
    for r in range(0, rows, step):
        part = slice(r, min(r + step, rows))
        some = {n: v[part] if isinstance(v, np.ndarray) and v.size > 1 else v for n, v in options.items()}
        mask = where[part] if where is not None else None
        try:
            found.append(draw(logits(part, 0, classes), 1, mask, some, (part.stop - r,), draws, return_info))
        except ValueError as error:
            raise ValueError(str(error).replace("sample:", f"linear_sample: rows from {r} on:", 1)) from None
    if not found:
        found = [draw(xp.empty((0, classes), dtype=dtype), 1, None, options, (0,), draws, return_info)]
    full = batch if num_samples is None else (*batch, draws)
    out = np.concatenate([indices for indices, _ in found]).reshape(full)
    names = found[0][1]
    return out, {
        name: np.concatenate([info[name] for _, info in found]).reshape(full if "log_prob" in name else batch) for name in names
    }


def gumbel_noise(batch, n, seed, stream):
    """float64, of shape (*batch, n)."""
    rows = int(np.prod(batch, dtype=np.int64))
    options = row_options("gumbel_softmax", batch, 1.0, seed, stream)
    noise = np.empty((*batch, n))
    _core._gumbel_noise(options["seed"], options.get("stream"), rows, n, noise)
    return noise


def check_tau(tau):
    try:
        value = float(tau)
    except (TypeError, ValueError):
        raise TypeError(f"gumbel_softmax: tau is {tau!r}, accepted: a number above 0") from None
    if not (0 < value < float("inf")):
        raise ValueError(f"gumbel_softmax: tau is {value}, accepted: finite numbers above 0")
    return value
