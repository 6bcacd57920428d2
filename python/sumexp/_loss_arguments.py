"""The arguments of cross-entropy, of arrays and of tensors alike: their checks."""

import numpy as np

from ._scalars import INF, integer, real, softcap as checked_softcap, temperature as checked_temperature

INFO = ("lse", "log_prob", "entropy", "z_loss", "predicted", "correct")
RAW_INFO = {n: "z_loss_part" if n == "z_loss" else n for n in INFO}  # their names in the raw entry
REDUCTIONS = ("none", "mean", "sum")  # their numbers in the kernels


def one_of(function, name, value, accepted):
    if not isinstance(value, str) or value not in accepted:
        raise ValueError(f"{function}: {name} is {value!r}, accepted: {', '.join(map(repr, accepted))}")
    return value


def checked_options(function, *, ignore_index, label_smoothing, z_loss, softcap, temperature, reduction, on_empty):
    """Options as sumexp._core's entry has them."""
    return {
        "ignore_index": integer(function, "ignore_index", ignore_index, "an int of 64 bits", -(2**63), 2**63 - 1),
        "label_smoothing": real(function, "label_smoothing", label_smoothing, "a number in [0, 1]", lambda v: 0 <= v <= 1),
        "z_loss": real(function, "z_loss", z_loss, "a finite number >= 0", is_amount),
        "softcap": checked_softcap(function, softcap),
        "temperature": checked_temperature(function, temperature),
        "reduction": one_of(function, "reduction", reduction, REDUCTIONS),
        "zero_if_empty": one_of(function, "on_empty", on_empty, ("nan", "zero")) == "zero",
    }


def is_amount(number):
    return 0 <= number < INF


def check_denominator(function, reduction):
    if reduction != "mean":
        raise ValueError(f"{function}: denominator is given with reduction {reduction!r}, accepted: with 'mean' alone")


def denominator_number(function, value):
    return real(function, "denominator", value, "a finite number >= 0", is_amount)


def check_ignored(function, ignore_index):
    """Of targets that are probabilities."""
    if ignore_index >= 0:
        raise ValueError(f"{function}: ignore_index is {ignore_index}, accepted with probabilities: a negative one, unused")


def known_names(function, argument, value, known):
    """`value`, one of the known names or a sequence of them, as a tuple."""
    accepted = ", ".join(map(repr, known))
    try:
        given = (value,) if isinstance(value, str) else tuple(value)
    except TypeError:
        raise TypeError(f"{function}: {argument} is {value!r}, accepted: a sequence of {accepted}") from None
    for name in given:
        if name not in known:
            raise ValueError(f"{function}: {argument} has {name!r}, accepted: {accepted}")
    return given


def tokens_power(tokens, number, index, weight, options):
    """The power of two for token weights that would take losses of rows, in the dtype `number`, out of its range; 0 for others.
    What a mean divides by is multiplied as well, so that it is the same. All are arrays; index: None of probabilities."""
    if index is not None:
        tokens = tokens[_counted(index, tokens.ndim, weight, options)]
    largest, room = np.abs(tokens).max(initial=0.0), 500 if number == np.float64 else 64
    return 0 if not 0 < largest < np.inf or 2.0**-room < largest < 2.0**room else -int(np.frexp(largest)[1])


def _counted(index, ndim, weight, options):
    """Which rows have a loss, as a mask."""
    kept = index != options["ignore_index"]
    if index.ndim > ndim:  # pairs
        return kept.any(-1)
    if weight is not None and len(weight) and not options["label_smoothing"] and not options["z_loss"]:
        inside = kept & (index >= 0) & (index < len(weight))
        kept &= weight[np.where(inside, index, 0)] != 0
    return kept
