"""What sumexp._sampling and sumexp.torch._sampling share: options made ready, and the calls of sumexp._core that draw."""

import numbers
import secrets
import sys
from typing import Any, NamedTuple

import numpy as np

from . import _core
from ._devices import is_torch
from ._row_shapes import row_axis, without
from ._scalars import integer, temperature as checked_temperature

ORDERS = {"vllm": 0, "hf": 1, "llama.cpp": 2}
FILTERS = ("top_k", "top_p", "min_p")
SEEDS = "an int from 0 below 2^64, None or a generator", 0, 2**64 - 1
PIECE_BYTES = 4 << 20  # of the logits that linear_sample has at a time


class SampleInfo(NamedTuple):
    """What `sample` adds with return_info=True.

    log_prob
        Of each draw under the logits as they are given: log_softmax(logits), where= applied, without temperature and filters.
    filtered_log_prob
        Of each draw under the distribution that is drawn from. Without replacement it is that of the first draw, here and
        below: with temperature 0 of one class, though later draws take the next largest.
    kept
        For each row, how many classes may be drawn.
    cut_logit, cut_index
        For each row: class j may be drawn if and only if its logit, after the temperature (before it where that is 0 or the
        order is "llama.cpp"), is above cut_logit, or equals it and j <= cut_index. With temperature 0, it is the class drawn.
    """

    log_prob: Any
    filtered_log_prob: Any
    kept: Any
    cut_logit: Any
    cut_index: Any


def rows_of(function, x, axis, called="axis"):
    """(axis from 0, the batch's shape)"""
    shape = tuple(x.shape)
    axis = row_axis(function, "logits", shape, axis, called)
    return axis, without(shape, axis)


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
        raise ValueError(f"{function}: where has shape {mask.shape}, accepted: one that broadcasts to {tuple(shape)}") from None


def shape_of(function, batch, num_samples):
    """Of the draws."""
    return batch if num_samples is None else (*batch, number(function, "num_samples", num_samples))


def number(function, argument, value):
    """An int that fits into 64 bits."""
    return integer(function, argument, value, "an int from 0 below 2^63", 0, 2**63 - 1)


def per_row(function, argument, value, batch, dtype):
    """A contiguous array with one element, or one a row."""
    if type(value) is float and dtype is np.float64:
        return np.array([value])
    if type(value) is int and dtype is np.int64 and -(2**63) <= value < 2**63:
        return np.array([value])
    integer = np.dtype(dtype).kind in "iu"
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{function}: {argument} is a masked array, accepted: its data")
    if "bfloat16" in str(getattr(value, "dtype", "")) and not integer:
        value = value.float() if is_torch(value) else value.astype(np.float64)
    if is_torch(value) and value.requires_grad:
        value = value.detach()  # draws have no gradient
    if isinstance(value, numbers.Real) and not integer and not isinstance(value, (int, np.generic)):
        value = float(value)  # a Fraction, too
    array = np.asarray(value)
    if integer and isinstance(value, int) and array.dtype.kind not in "iub":
        accepted = "from 0 below 2^64" if np.dtype(dtype).kind == "u" else "of 64 bits, below 2^63"
        raise ValueError(f"{function}: {argument} is {value}, accepted: integers {accepted}")
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
    return np.require(array, dtype, ["C", "ALIGNED"]).reshape(-1)


def random_bits(generator):
    """64 bits of a torch.Generator."""
    low, high = sys.modules["torch"].randint(0, 2**32, (2,), generator=generator, device=generator.device).tolist()
    return high << 32 | low


def seeds(function, seed, batch):
    """64 bits for all rows, or for each."""
    if type(seed) is int and 0 <= seed < 2**64:
        return np.array([seed], np.uint64)
    if seed is None:
        return np.array([secrets.randbits(64)], np.uint64)
    if isinstance(seed, np.random.Generator):
        return seed.integers(0, 2**64, 1, np.uint64)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(seed, torch.Generator):
        return np.array([random_bits(seed)], np.uint64)
    if isinstance(seed, (list, tuple)) or (isinstance(seed, np.ndarray) and seed.dtype == object):
        given = np.array(seed, object)
        fresh = [secrets.randbits(64) if s is None else integer(function, "seed", s, *SEEDS) for s in given.flat]
        return per_row(function, "seed", np.array(fresh, np.uint64).reshape(given.shape), batch, np.uint64)
    if isinstance(seed, int) and not isinstance(seed, bool):
        return np.array([integer(function, "seed", seed, *SEEDS)], np.uint64)
    return per_row(function, "seed", seed, batch, np.uint64)


def row_options(function, batch, temperature, seed, stream, **options):
    """`options`, and those that all have; the seed last: a generator moves on where the others are as they should be."""
    if stream is not None:
        options["stream"] = per_row(function, "stream", stream, batch, np.int64)
    if not (type(temperature) in (int, float) and temperature == 1):
        options["temperature"] = per_row(function, "temperature", temperature, batch, np.float64)
    check_ranges(function, options)
    return options | {"seed": seeds(function, seed, batch)}


def sample_options(function, batch, temperature, top_k, top_p, min_p, order, seed, stream, num_samples, replacement):
    """Of sumexp._core._sample: arrays of one element or one a row, and numbers."""
    if not isinstance(order, str) or order not in ORDERS:
        raise ValueError(f"{function}: order is {order!r}, accepted: {', '.join(map(repr, ORDERS))}")
    options = {"order": ORDERS[order], "replacement": bool(replacement)}
    for name, value, dtype in (("top_k", top_k, np.int64), ("top_p", top_p, np.float64), ("min_p", min_p, np.float64)):
        if value is not None:
            options[name] = per_row(function, name, value, batch, dtype)
    options["num_samples"] = 1 if num_samples is None else number(function, "num_samples", num_samples)
    return row_options(function, batch, temperature, seed, stream, **options)


def count_options(batch, num_samples, temperature, seed, stream):
    num_samples = number("sample_counts", "num_samples", num_samples)
    return row_options("sample_counts", batch, temperature, seed, stream, num_samples=num_samples)


RANGES = {
    "temperature": ("numbers from 0", lambda v: v >= 0),
    "top_k": ("integers from 1", lambda v: v >= 1),
    "top_p": ("numbers above 0, up to 1", lambda v: (v > 0) & (v <= 1)),
    "min_p": ("numbers from 0 to 1", lambda v: (v >= 0) & (v <= 1)),
}


def check_ranges(function, options):
    """An error for an option out of range; those that are on a device are not looked at."""
    for name, (accepted, good) in RANGES.items():
        values = options.get(name)
        bad = np.flatnonzero(~good(values)) if isinstance(values, np.ndarray) else ()
        if len(bad):
            value = values[bad[0]]
            value = value if values.dtype.kind == "i" else f"{value:g}"
            raise ValueError(f"{function}: {name} is {value} for row {bad[0]}, accepted: {accepted}")


class Host:
    """Where options, results and scratch of a call are: the CPU. sumexp.torch._sampling has the one of CUDA devices."""

    device = "cpu"
    empty = staticmethod(np.empty)
    concatenate = staticmethod(np.concatenate)

    @staticmethod
    def options(options):
        """As the entries of sumexp._core take them."""
        return options

    @staticmethod
    def run(entry, *args):
        entry(*args)


def draw(x, axis, where, options, batch, num_samples, return_info, place=Host):
    """(indices, {name of SampleInfo: array}): ndarrays, or of the place; x is an ndarray or a tensor."""
    shape = batch if num_samples is None else (*batch, options["num_samples"])
    info = {}
    try:
        out = place.empty(shape, np.int64)
        if return_info:
            info = {name: place.empty(shape, np.float64) for name in ("log_prob", "filtered_log_prob")}
    except (MemoryError, RuntimeError, ValueError):  # of NumPy and of torch
        given = f"num_samples is {options['num_samples']}"
        raise MemoryError(f"sample: {given}, and there is no memory for so many draws of rows of shape {batch}") from None
    if return_info:
        types = {"kept": np.int64, "cut_logit": np.float64, "cut_index": np.int64}
        info |= {name: place.empty(batch, dtype) for name, dtype in types.items()}
    place.run(_core._sample, x, axis, where, place.options(options), out, info)
    return out, info


def draw_linear(xp, logits, rows, classes, dtype, where, options, batch, num_samples, return_info, place=Host):
    """As draw, of logits(rows, a, b): a slice of rows, classes a to b. xp: numpy or torch, with that dtype."""
    draws, item = options["num_samples"], max(4, dtype.itemsize)
    temperature = options.get("temperature")
    in_pieces = not (
        return_info
        or where is not None
        or not options["replacement"]
        or any(name in options for name in FILTERS)
        # below, quotients may overflow, or T be 0; a device's is not looked at
        or (temperature is not None and not (isinstance(temperature, np.ndarray) and (temperature >= 1e-6).all()))
    )
    full = batch if num_samples is None else (*batch, draws)
    if in_pieces:
        try:
            return draw_in_pieces(xp, logits, rows, classes, dtype, options, place).reshape(full), {}
        except ValueError:  # a whole row is drawn from by its largest logit, where quotients overflow, or says what it has
            if place is not Host:
                raise
        except MemoryError:  # of draws, say; a few rows at a time need less of the rest
            pass
    step = max(1, 16 * PIECE_BYTES // (item * max(classes, 1)))
    found = []
    options.setdefault("stream", np.arange(rows, dtype=np.int64))
    for r in range(0, rows, step):
        part = slice(r, min(r + step, rows))
        some = {n: v[part] if hasattr(v, "shape") and len(v) > 1 else v for n, v in options.items()}
        mask = where[part] if where is not None else None
        try:
            found.append(draw(logits(part, 0, classes), 1, mask, some, (part.stop - r,), draws, return_info, place))
        except ValueError as error:
            of_some = f" rows from {r} on:" if step < rows else ""
            raise of_linear(error, of_some) from None
        except MemoryError as error:
            raise of_linear(error) from None
    if not found:
        found = [draw(logits(slice(0, 0), 0, classes), 1, None, options, (0,), draws, return_info, place)]
    out = place.concatenate([indices for indices, _ in found]).reshape(full)
    joined = {name: place.concatenate([info[name] for _, info in found]) for name in found[0][1]}
    return out, {name: array.reshape(full if "log_prob" in name else batch) for name, array in joined.items()}


def of_linear(error, of_some=""):
    """An error of `sample` for logits that nobody gave."""
    text = str(error).replace("sample:", f"linear_sample:{of_some}", 1).replace(": logits ", ": the product of x and w ", 1)
    return type(error)(text)


def draw_in_pieces(xp, logits, rows, classes, dtype, options, place):
    """(rows, draws)"""
    draws, wide = options["num_samples"], dtype.itemsize == 8
    chunk, item = _core._chunk_classes(wide), max(4, dtype.itemsize)
    chunks = -(-classes // chunk)
    states = place.empty((rows, chunks, _core._piece_state_bytes(wide)), np.uint8)
    places = place.empty((rows, chunks, draws), np.int16)
    options = place.options(options)
    step = max(1, PIECE_BYTES // (item * chunk * max(rows, 1))) * chunk
    for a in range(0, classes, step):
        made = logits(slice(None), a, min(a + step, classes))
        place.run(_core._sample_piece, made, options, a // chunk, states, places)
    out = place.empty((rows, draws), np.int64)
    if xp is np:
        shape = np.broadcast_to(np.empty((1,), dtype), (rows, classes))
    else:
        shape = xp.empty((1,), dtype=dtype, device=place.device).expand(rows, classes)
    place.run(_core._finish_pieces, shape, options, states, places, out)
    return out


def gumbel_noise(batch, n, seed, stream):
    """float64, of shape (*batch, n)."""
    return made_noise(batch, n, row_options("gumbel_softmax", batch, 1.0, seed, stream))


def made_noise(batch, n, options, place=Host):
    options = place.options(options)
    noise = place.empty((*batch, n), np.float64)
    rows = int(np.prod(batch, dtype=np.int64))
    place.run(_core._gumbel_noise, options["seed"], options.get("stream"), rows, n, noise)
    return noise


def check_tau(tau):
    return checked_temperature("gumbel_softmax", tau, "tau")
