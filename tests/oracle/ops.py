"""Every operation as data: its inputs, how it is called, and what may be written in place.

Inputs and outputs are in keepdims form: an input is "full" or a "row" (length 1 along the axis). So any
transformation of layout applies to all of them alike.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from . import reference
from .rows import cast


@dataclass(frozen=True)
class Op:
    name: str
    function: str                      # of the sumexp module
    inputs: tuple                      # kinds: x logits, y probabilities, l log-probabilities, g any, b weights,
                                       # r any, one a row, w mask
    call: Callable = None              # (function, inputs, axis, **out) -> result
    row_output: bool = False
    options: dict = field(default_factory=dict)
    reference: Callable = None

    def run(self, module, inputs, axis=-1, out=None):
        arguments = {} if out is None else {"out": out}
        return self.call(getattr(module, self.function), inputs, axis, **arguments)

    def make(self, rng, fmt, rows, n):
        return [make_input(rng, kind, fmt, rows, n) for kind in self.inputs]

    def result_shape(self, shape, axis=-1):
        shape = list(shape)
        if self.row_output:
            shape[axis] = 1
        return tuple(shape)


def make_input(rng, kind, fmt, rows, n):
    """Values for one input. They need not belong together: only tests of accuracy ask for that."""
    if kind == "w":
        return rng.random((rows, n)) < 0.8
    shape = (rows, 1 if kind == "r" else n)
    x = rng.standard_normal(shape)
    if kind == "x":
        x *= rng.choice([1, 4, 30], (rows, 1))
        x[rng.random(shape) < 0.01] -= 90.0
        x[rng.random(shape) < 0.001] = -np.inf
    elif kind == "y":
        x = np.exp(-np.abs(5 * x)) / max(n, 1) ** 0.5
    elif kind == "l":
        x = -np.abs(5 * x) - np.log(max(n, 1))
        if n:  # about half of the rows have a winner
            some = np.flatnonzero(rng.random(rows) < 0.5)
            x[some, rng.integers(0, n, len(some))] = -0.1
    elif kind == "b":
        x[rng.random(shape) < 0.1] = 0.0
    return cast(x, fmt)


def _plain(**options):
    return lambda f, a, axis, **out: f(*a, axis=axis, **options, **out)


def _weighted(f, a, axis, **out):
    return f(a[0], axis=axis, b=a[1], keepdims=True, return_sign=True, **out)[0]


def _masked(**options):
    return lambda f, a, axis, **out: f(a[0], axis=axis, where=a[1], **options, **out)


_KEEP = _plain(keepdims=True)
_WARM = _plain(temperature=1.7)

OPS = {op.name: op for op in (
    Op("softmax", "softmax", ("x",), _plain()),
    Op("softmax, temperature", "softmax", ("x",), _WARM),
    Op("softmax, where", "softmax", ("x", "w"), _masked()),
    Op("log_softmax", "log_softmax", ("x",), _plain()),
    Op("log_softmax, temperature", "log_softmax", ("x",), _WARM),
    Op("log_softmax, where", "log_softmax", ("x", "w"), _masked()),
    Op("logsumexp", "logsumexp", ("x",), _KEEP, True),
    Op("logsumexp, b", "logsumexp", ("x", "b"), _weighted, True),
    Op("logsumexp, where", "logsumexp", ("x", "w"), _masked(keepdims=True), True),
    Op("softmax_vjp", "softmax_vjp", ("g", "y"), _plain(), reference=reference.softmax_vjp),
    Op("softmax_vjp, temperature", "softmax_vjp", ("g", "y"), _WARM),
    Op("softmax_jvp", "softmax_jvp", ("g", "y"), _plain(), reference=reference.softmax_vjp),
    Op("log_softmax_vjp", "log_softmax_vjp", ("g", "l"), _plain(), reference=reference.log_softmax_vjp),
    Op("log_softmax_jvp", "log_softmax_jvp", ("g", "l"), _plain(), reference=reference.log_softmax_jvp),
    Op("log_softmax_jvp, temperature", "log_softmax_jvp", ("g", "l"), _WARM),
    Op("logsumexp_vjp", "logsumexp_vjp", ("r", "x"), _KEEP, reference=reference.logsumexp_vjp),
    Op("logsumexp_jvp", "logsumexp_jvp", ("g", "x"), _KEEP, True, reference=reference.logsumexp_jvp),
    Op("softmax_hvp", "softmax_hvp", ("g", "g", "y"), _plain(), reference=reference.softmax_hvp),
    Op("log_softmax_hvp", "log_softmax_hvp", ("g", "g", "l"), _plain(), reference=reference.log_softmax_hvp),
    Op("log_softmax_hvp, temperature", "log_softmax_hvp", ("g", "g", "l"), _WARM),
)}
