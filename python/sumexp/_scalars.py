"""Checks and choices about numbers that all entries share."""

import operator
import sys

INF = float("inf")


def is_bool(value):
    """Whether it is a bool of any library: an error as a number, in every argument but a temperature."""
    return isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")


def real(function, name, value, accepted, check, bools=False):
    """`value`, any real number, NumPy scalar or array or tensor of no dimensions, as a float that passes the check."""
    number = value
    if type(value) not in (int, float):  # first: a compiled program's numbers answer no more
        is_number = hasattr(type(value), "__float__") or hasattr(type(value), "__index__")
        is_complex = "complex" in str(getattr(value, "dtype", ""))
        if not is_number or is_complex or getattr(value, "ndim", 0) or (is_bool(value) and not bools):
            raise TypeError(f"{function}: {name} is {value!r}, accepted: {accepted}")
        number = value.detach() if hasattr(value, "detach") else value  # whether a gradient is lost is for sumexp.torch to say
    try:
        number = float(number)
    except OverflowError:  # an int beyond floats
        raise ValueError(f"{function}: {name} is {value!r}, accepted: a number that float64 has room for") from None
    if not check(number):
        raise ValueError(f"{function}: {name} is {value!r}, accepted: {accepted}")
    return number


def index(value):
    """operator.index, for which a bool is a TypeError too."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if is_bool(value):
        raise TypeError("a bool")
    return operator.index(value)


def integer(function, name, value, accepted, least=None, most=None):
    """`value`, an int of any library, from `least` to `most`."""
    try:
        number = index(value)
    except TypeError:
        raise TypeError(f"{function}: {name} is {value!r}, accepted: {accepted}") from None
    if (least is not None and number < least) or (most is not None and number > most):
        raise ValueError(f"{function}: {name} is {value!r}, accepted: {accepted}")
    return number


def temperature(function, value, name="temperature"):
    """A float above 0, which may be infinite. A bool is what it is in arithmetic."""
    number = real(function, name, value, "a number > 0", lambda v: v >= 0, bools=True)
    if number == 0:
        accepted = "a number > 0; the limit at 0 is one-hot at the argmax"
        raise ValueError(f"{function}: {name} is {value!r}, accepted: {accepted}")
    return number


def softcap(function, value):
    """A float above 0, or None."""
    return None if value is None else real(function, "softcap", value, "a finite number > 0, or None", lambda v: 0 < v < INF)


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
