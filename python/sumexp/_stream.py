"""LogSumExp: the sum of exponentials of rows that come in pieces.

A row's tree over its chunks (2,048 elements; 512 of float64) is the same however it is fed: whole chunks are reduced where they
lie, a part of one waits in a buffer. The states of subtrees are the elements of an array of STATE, (subtrees, *rows).
"""

from typing import Any

import numpy as np

from . import _core
from ._arrays import together
from ._row_shapes import check_axes
from ._scalars import dtype_for_weight, integer

# One subtree of one row, as sumexp/stream.hpp has it: the elements that it is of and
#   sum e^x = 2^exponent (at_maximum e^(maximum - exponent ln 2) + others 2^-carry)
STATE = np.dtype(
    [
        ("first", np.int64),
        ("count", np.int64),
        ("exponent", np.int64),
        ("maximum", np.float64),
        ("at_maximum", np.float64, 2),
        ("others", np.float64, 2),
        ("all", np.float64, 2),
        ("special", np.float64),
        ("dtype", np.int32),
        ("sums", np.int32),
    ]
)
CODES = {"float16": 0, "bfloat16": 1, "float32": 2, "float64": 3}
APART, ALL, WEIGHTED = 1, 2, 4  # which sums a state holds
SOFTMAX, LOG_SOFTMAX = 0, 1  # numbers of operations
PLACES = "an int from 0 below 2**62", 0, 2**62 - 1


class LogSumExp:
    """The logarithm of a sum of exponentials, of rows that come in pieces.

    Parameters
    ----------
    start : int
        Where along the row the pieces begin that this object is given. Objects that are given different parts of one row, in
        different processes say, then merge to the bytes of the whole row, if the parts meet at multiples of 2,048 elements
        (512 of float64).
    softmax : bool
        False leaves out the second sum that `softmax` needs, which is half of the work.

    Pieces of any size may follow each other: the result has the bytes of ``sumexp.logsumexp`` of the whole row. The part of a
    chunk that is not whole yet is kept as it came.

    Examples
    --------
    >>> import numpy as np, sumexp as se
    >>> x = np.linspace(0, 5, 10_000)
    >>> total = se.LogSumExp()
    >>> for piece in np.array_split(x, 7):
    ...     _ = total.update(piece)
    >>> bool(total.result() == se.logsumexp(x))
    True
    >>> bool(np.all(total.softmax(x) == se.softmax(x)))         # in another pass, which may go in pieces too
    True
    """

    dtype = STATE  # of `to_array`

    def __init__(self, start=0, *, softmax=True) -> None:
        self._start = self._stop = integer("LogSumExp", "start", start, *PLACES)
        self._softmax = bool(softmax)
        self._batch = self._dtype = self._weighted = None  # of the first piece
        self._states = np.empty(0, STATE)
        self._kept = [None, None]  # x and b of the elements before `stop` that wait for their chunk: (*batch, room)
        self._filled = 0

    # -- in ------------------------------------------------------------------------------------------------

    def update(self, x, axis=-1, b=None) -> "LogSumExp":
        """Adds the next elements of the rows: those of `x` along `axis`, which are weighted by `b` where it is given.

        Parameters
        ----------
        x : array
            All pieces have one floating dtype (integers and bools are float64) and one shape without the reduced axes.
        axis : int, tuple of ints or None
            None: all axes. Of several axes the elements follow each other in C order.
        b : array, optional
            Weights, broadcast against x. All pieces have them, or none. A number that the dtype has no
            room for is a ValueError.

        Returns
        -------
        The object itself.
        """
        number = b
        (x, b), _ = together("LogSumExp.update", x=x, b=b)
        if type(number) in (int, float) and np.dtype(dtype_for_weight(number, x.dtype)) != x.dtype:
            raise ValueError(f"LogSumExp.update: b is {number!r}, accepted: a number that {x.dtype} has to full precision")
        if b is not None:
            try:
                x, b = np.broadcast_arrays(x, b)
            except ValueError:
                raise ValueError(
                    f"LogSumExp.update: b has shape {b.shape}, accepted: one that broadcasts with x's, {x.shape}"
                ) from None
        x, axes = rows_of("LogSumExp.update", x, axis)
        if b is not None:
            b, _ = rows_of("LogSumExp.update", b, axis)
        self._check("update", x, b is not None)
        if self._stop + x.shape[-1] >= 2**62:
            raise ValueError(f"LogSumExp.update: x ends at {self._stop + x.shape[-1]}, accepted: rows below 2**62 elements")
        self._batch, self._dtype, self._weighted = x.shape[:-1], x.dtype, b is not None
        self._states = self._states.reshape((len(self._states), *self._batch))
        chunk, taken, n = chunk_of(x.dtype), 0, x.shape[-1]
        if self._stop % chunk:
            taken = min(n, chunk - self._stop % chunk)
            self._keep(x, b, 0, taken)
            if self._stop % chunk == 0:
                self._settle()
        whole = (n - taken) // chunk * chunk
        if whole:
            end = taken + whole
            part = self._reduce(x[..., taken:end], b if b is None else b[..., taken:end])
            self._states = joined("update", self._states, part)
            self._stop += whole
            taken = end
        if taken < n:
            self._keep(x, b, taken, n)
        return self

    def merge(self, other) -> "LogSumExp":
        """Adds what another object was given: other parts of the same rows, before, behind or between this one's.

        Merged in the order of the row, objects whose parts meet where chunks do give the bytes of the whole row. `other` stays
        as it is. Returns the object itself. TypeError where `other` is none, ValueError where parts overlap or are of other
        rows, dtypes or weights.
        """
        if not isinstance(other, LogSumExp):
            raise TypeError(f"LogSumExp.merge: other is a {type(other).__name__}, accepted: a LogSumExp")
        if other._batch is None:
            return self
        if self._batch is not None:
            self._check("merge", other, other._weighted)
        spans = sorted(self._spans() + other._spans())
        for (_, end), (then, _) in zip(spans, spans[1:]):
            if then < end:
                raise ValueError(
                    f"LogSumExp.merge: both have elements {then} to {end - 1}, accepted: parts of a row that do not overlap, "
                    "which LogSumExp(start=...) tells apart"
                )
        states, kept, filled = self._complete(), other._kept, other._filled
        behind = self._batch is None or other._stop >= self._stop
        if behind:  # what waits there goes on waiting
            more = other._states
            kept = [None if k is None else k[..., :filled].copy() for k in kept]
        else:
            states, more, kept, filled = self._states, other._complete(), self._kept, self._filled
        empty = self._batch is None or not len(states)
        self._states = more.copy() if empty else joined("merge", states, more) if len(more) else states
        self._start = other._start if self._batch is None else min(self._start, other._start)
        self._stop = other._stop if behind else self._stop
        self._kept, self._filled = kept, filled
        self._batch, self._dtype, self._weighted = other._batch, other._dtype, other._weighted
        self._softmax = self._softmax and other._softmax
        return self

    # -- out -----------------------------------------------------------------------------------------------

    def result(self, return_sign=False) -> Any:
        """log(sum(e^x)) of what was given so far, -inf of nothing; with weights log|sum(b e^x)|.

        With ``return_sign`` it is (result, sign); without it a negative sum is NaN, as in ``sumexp.logsumexp``. Its bytes are
        those of ``sumexp.logsumexp`` of the whole rows.
        """
        dtype = np.dtype(np.float64) if self._dtype is None else self._dtype
        shape = self._batch or ()
        out = np.full(shape, -np.inf, dtype)
        sign = np.zeros(shape, dtype) if self._weighted and return_sign else None
        states = self._complete()
        if len(states) and out.size:
            _core._finish_states(raw(states), out.reshape(-1), sign if sign is None else sign.reshape(-1))
        if return_sign and sign is None:
            sign = np.where(np.isnan(out), out, out > -np.inf).astype(dtype)
        return (out[()], sign[()]) if return_sign else out[()]

    def softmax(self, x, axis=-1, *, start=0) -> Any:
        """softmax of the rows of which `x` is a piece: e^x over the sum of everything that was given to this object.

        start : where `x` begins in its rows. Pieces that begin and end where chunks do, or rows, have the bytes of
            ``sumexp.softmax`` of the whole rows; in others the last bit may differ where logits are above 65,536 or results
            subnormal.

        Within 2 ulp, as ``sumexp.softmax``, in the dtype of the pieces. ValueError for pieces of other rows, and where the
        object was made with softmax=False.
        """
        if self._batch is not None and not self._softmax:
            raise ValueError("LogSumExp.softmax: made with softmax=False, accepted: True")
        return self._map("softmax", SOFTMAX, x, axis, start)

    def log_softmax(self, x, axis=-1) -> Any:
        """log_softmax of the rows of which `x` is a piece, with the bytes of ``sumexp.log_softmax`` of the whole rows.

        Parameters and errors as for `softmax`.
        """
        return self._map("log_softmax", LOG_SOFTMAX, x, axis, 0)

    def to_array(self) -> np.ndarray:
        """The sums of subtrees: a new structured array (subtrees, *rows), with 2 log2(chunks) subtrees or fewer, and up to two
        parts of chunks. A chunk that is not whole yet is summed for it, and no longer the same as with more elements."""
        return self._complete().copy()

    @classmethod
    def from_array(cls, array) -> "LogSumExp":
        """The object whose `to_array` this is. Arrays of several objects may be concatenated along the first axis, in any
        order. An array without states has none of the rows' dtype, shape and start: it becomes the object that was given
        nothing yet (pickle keeps them)."""
        array = np.asanyarray(array)
        if array.dtype != STATE or array.ndim < 1:
            raise TypeError(f"LogSumExp.from_array: array has dtype {array.dtype}, accepted: what to_array() makes")
        made = cls()
        if not array.size:
            return made
        made._states = states = joined("from_array", array[:0], array)
        code, sums = int(states["dtype"].flat[0]), int(states["sums"].flat[0])
        made._batch, made._dtype = array.shape[1:], np.dtype(dtype_of(code))
        made._weighted, made._softmax = sums == WEIGHTED, bool(sums & ALL)
        ends = states["first"] + states["count"]
        made._start, made._stop = int(states["first"].min()), int(ends.max())
        return made

    @property
    def start(self) -> int:
        """Where the pieces begin in their rows."""
        return self._start

    @property
    def stop(self) -> int:
        """Where they end."""
        return self._stop

    def __repr__(self) -> str:
        if self._batch is None:
            return f"<LogSumExp of nothing, from element {self._start} on>"
        weighted = ", weighted" if self._weighted else ""
        return f"<LogSumExp of elements {self._start} to {self._stop} of rows {self._batch}, {self._dtype}{weighted}>"

    def __getstate__(self):
        kept = [None if k is None else k[..., : self._filled].copy() for k in self._kept]
        return {**self.__dict__, "_kept": kept}

    # ------------------------------------------------------------------------------------------------------

    def _check(self, method, given, weighted):
        """given: an array (*batch, n), or an object."""
        if self._batch is None:
            return
        batch, dtype = (given._batch, given._dtype) if method == "merge" else (given.shape[:-1], given.dtype)
        name = "other" if method == "merge" else "x"
        if dtype != self._dtype:
            raise TypeError(f"LogSumExp.{method}: {name} has dtype {dtype}, accepted: {self._dtype}, as before")
        if batch != self._batch:
            raise ValueError(f"LogSumExp.{method}: {name} has rows of shape {batch}, accepted: {self._batch}, as before")
        if weighted != self._weighted:
            had = "weights" if self._weighted else "no weights"
            raise ValueError(f"LogSumExp.{method}: b is {'given' if weighted else 'None'}, accepted: {had}, as before")

    def _sums(self):
        return WEIGHTED if self._weighted else APART | ALL if self._softmax else APART

    def _reduce(self, x, b, first=None):
        return reduced(x, b, self._stop if first is None else first, self._sums())

    def _keep(self, x, b, begin, end):
        """Elements begin to end of a piece are put aside."""
        filled = self._filled + end - begin
        for k, piece in enumerate((x, b)):
            if piece is None:
                continue
            if self._kept[k] is None or self._kept[k].shape[-1] < filled:
                room = min(chunk_of(self._dtype), 2 * filled)
                grown = np.empty((*self._batch, room), self._dtype)
                if self._kept[k] is not None:
                    grown[..., : self._filled] = self._kept[k][..., : self._filled]
                self._kept[k] = grown
            self._kept[k][..., self._filled : filled] = piece[..., begin:end]
        self._filled = filled
        self._stop += end - begin

    def _complete(self):
        """All states, with that of what waits."""
        if not self._filled:
            return self._states
        x, b = (None if k is None else k[..., : self._filled] for k in self._kept)
        return joined("result", self._states, self._reduce(x, b, self._stop - self._filled))

    def _settle(self):
        self._states, self._filled = self._complete(), 0

    def _spans(self):
        """(first, end) of all states, and of what waits."""
        spans = [(int(f), int(f) + int(c)) for f, c in zip(of_row(self._states, "first"), of_row(self._states, "count"))]
        return spans + [(self._stop - self._filled, self._stop)] * bool(self._filled)

    def _map(self, name, operation, x, axis, start):
        function = f"LogSumExp.{name}"
        (x,), back = together(function, x=x)
        if self._weighted:
            raise ValueError(f"{function}: sums have weights, accepted: sums without")
        start = integer(function, "start", start, *PLACES)
        rows, axes = rows_of(function, x, axis)
        if self._batch is None:
            raise ValueError(f"{function}: nothing was given to update, accepted: rows that were")
        self._check(name, rows, self._weighted)
        return back(mapped(operation, self._complete(), x, rows, axes, start))


# -- arrays of states --------------------------------------------------------------------------------------


def chunk_of(dtype):
    return 512 if dtype == np.float64 else 2048


def dtype_of(code):
    if code == CODES["bfloat16"]:
        import ml_dtypes

        return ml_dtypes.bfloat16
    return next(name for name, c in CODES.items() if c == code)


def raw(states):
    """(subtrees, rows, 12) integers, as _core takes them; a view of contiguous, aligned states."""
    rows = int(np.prod(states.shape[1:], dtype=np.int64))
    numbers = np.ascontiguousarray(states).reshape(len(states), rows, 1).view(np.int64)
    return np.require(numbers, None, ["ALIGNED"])


def of_row(states, field):
    """The same of every row; of no rows nothing."""
    return states[field].reshape(len(states), -1)[:, 0] if states.size else states[field].reshape(0)


def rows_of(function, x, axis):
    """(x with its reduced axes as one, the last; these axes)."""
    if x.ndim == 0:
        x = x.reshape(1)
    axes = tuple(sorted(check_axes(function, axis, x.ndim)))
    moved = np.moveaxis(x, axes, range(x.ndim - len(axes), x.ndim))
    if len(axes) == 1:
        return moved, axes
    batch = moved.shape[: x.ndim - len(axes)]
    return moved.reshape(*batch, int(np.prod(moved.shape[len(batch) :], dtype=np.int64))), axes


def reduced(x, b, first, sums):
    """The states of a piece (*batch, n) that begins at element `first` of its rows."""
    states = np.empty((_core._count_states(CODES[x.dtype.name], first, x.shape[-1]), *x.shape[:-1]), STATE)
    if states.size:
        _core._reduce_states(x, b, first, sums, raw(states))
    return states


def joined(method, states, more):
    """All of them, in the order of the row; subtrees that belong together are merged."""
    states = np.concatenate([states, more])
    order = of_row(states, "first")
    if np.any(order[1:] < order[:-1]):
        states = states[np.argsort(order, kind="stable")]
    return states[: _core._join_states(f"LogSumExp.{method}", raw(states))] if states.size else states


def mapped(operation, states, x, rows, axes, start=0):
    """softmax or log_softmax of x, whose `rows_of` is (rows, axes)."""
    out = np.empty(x.shape, x.dtype)
    if not x.size:
        return out
    to = rows_of("", out, axes)[0] if len(axes) == 1 else np.empty(rows.shape, x.dtype)
    _core._map_states(operation, raw(states), rows, start, to)
    if len(axes) != 1:
        sizes = [x.shape[a] for a in axes]
        out[...] = np.moveaxis(to.reshape(*rows.shape[:-1], *sizes), range(x.ndim - len(axes), x.ndim), axes)
    return out
