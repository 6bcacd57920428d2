"""Checks and choices about numbers that all entries share."""

import sys

import numpy as np

from ._devices import is_torch


def temperature(function, value, name="temperature"):
    """`value`, any real number, NumPy scalar or array or tensor of no dimensions, as a float above 0, which may be infinite."""
    if type(value) in (int, float) and 0 < value < 2**53:  # first: a compiled program's numbers answer no more
        return float(value)
    number = value.detach() if is_torch(value) else value  # whether a gradient is lost is for sumexp.torch to say
    is_number = hasattr(type(value), "__float__") or hasattr(type(value), "__index__")
    if not is_number or getattr(value, "ndim", 0) or "complex" in str(getattr(value, "dtype", "")):
        raise TypeError(f"{function}: {name} is {value!r}, accepted: a number > 0")
    try:
        number = float(number)
    except OverflowError:  # an int beyond floats
        raise ValueError(f"{function}: {name} is {value!r}, accepted: a number that float64 has room for") from None
    if number > 0:
        return number
    limit = "; the limit at 0 is one-hot at the argmax" if number == 0 else ""
    raise ValueError(f"{function}: {name} is {value!r}, accepted: a number > 0{limit}")


def weight(function, value):
    """`value`, an int that no integer dtype has as a float."""
    if type(value) is not int or -(2**63) <= value < 2**63:
        return value
    try:
        return float(value)
    except OverflowError:
        bits = value.bit_length()
        raise ValueError(f"{function}: b is an int of {bits} bits, accepted: a number that float64 has room for") from None


# How small and how large a weight may be so that a dtype has it to full precision.
RANGES = {
    "float16": (2.0**-14, 65504.0),
    "bfloat16": (2.0**-126, 3.3e38),
    "float32": (2.0**-126, 3.4e38),
    "float64": (0.0, sys.float_info.max),
}


def dtype_for_weight(value, dtype):
    """The least of `dtype`, or the names of wider ones, that has room for a weight, a number."""
    size = abs(value)
    if RANGES["float16"][0] <= size <= RANGES["float16"][1] or size == 0 or size != size or size == float("inf"):
        return dtype
    wider = {"float16": "float32", "bfloat16": "float32", "float32": "float64"}
    name = str(dtype).rpartition(".")[-1]
    room = name
    while room in wider and not RANGES[room][0] <= size <= RANGES[room][1]:
        room = wider[room]
    return dtype if room == name else room


def tokens_power(tokens, number):
    """The power of two for token weights that would take losses of rows, in the dtype `number`, out of its range; 0 for others.
    What a mean divides by is multiplied as well, so that it is the same."""
    largest, room = np.abs(tokens).max(initial=0.0), 500 if number == np.float64 else 64
    return 0 if not 0 < largest < np.inf or 2.0**-room < largest < 2.0**room else -int(np.frexp(largest)[1])
