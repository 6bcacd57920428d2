"""What sumexp._sampling and sumexp.torch._sampling share: options made ready, and the calls of sumexp._core that draw."""

import operator
import secrets
import sys
from typing import NamedTuple

import numpy as np
from numpy.lib.array_utils import normalize_axis_index

from . import _core
from ._devices import is_torch
from ._scalars import temperature as checked_temperature

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
    integer = np.dtype(dtype).kind in "iu"
    if "bfloat16" in str(getattr(value, "dtype", "")) and not integer:
        value = value.float() if is_torch(value) else value.astype(np.float64)
    array = np.asarray(value)
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
        or (temperature is not None and not (temperature >= 1e-6).all())  # below, quotients may overflow, or T be 0
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
    return checked_temperature("gumbel_softmax", tau, "tau")
