"""What is measured: a cell is one operation on one dtype, axis, shape and number of threads."""

import dataclasses

import numpy as np

OPS = ("softmax", "log_softmax", "logsumexp", "softmax_vjp", "log_softmax_vjp")
DTYPES = ("float32", "float64", "bfloat16", "float16")
AXES = ("last", "first")
# Row lengths of the bars: 16 a dozen classes; 128 attention heads; 1024 and 4096 sequence lengths; 32768 and 131072
# vocabularies; a million and more: sampling weights, one row for the whole machine ("all"). AWKWARD ones are no multiple
# of a vector: digits, percent, ImageNet's classes, GPT-2's vocabulary.
LENGTHS = (16, 128, 1024, 4096, 32768, 131072, 1 << 20, "all")
AWKWARD = (10, 100, 1000, 50257)
LISTED = {16: 65536, 128: 16384, 1024: 4096, 4096: 1024, 32768: 256, 131072: 64, 1 << 20: 4, "all": 1}

ITEM = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
# The byte model: how often an element must cross the memory bus. A row's one result is not counted.
READS_WRITES = {
    "softmax": (1, 1),
    "log_softmax": (1, 1),
    "logsumexp": (1, 0),
    "softmax_vjp": (2, 1),
    "log_softmax_vjp": (2, 1),
}


@dataclasses.dataclass(frozen=True)
class Cell:
    op: str
    dtype: str
    axis: str  # "last": (rows, n) reduced over axis 1; "first": (n, rows) reduced over axis 0
    rows: int
    n: int
    threads: int
    isa: str = "best"  # "best", "avx2" or "scalar", forced in this library and in torch

    @property
    def shape(self):
        return (self.rows, self.n) if self.axis == "last" else (self.n, self.rows)

    @property
    def axis_number(self):
        return 1 if self.axis == "last" else 0

    @property
    def elements(self):
        return self.rows * self.n

    @property
    def bytes(self):
        return self.elements * ITEM[self.dtype]

    @property
    def moved(self):
        return self.bytes * sum(READS_WRITES[self.op])

    def __str__(self):
        return f"{self.op} {self.dtype} {self.rows}x{self.n} axis {self.axis} threads {self.threads}"


def grid(ops, dtypes, axes, lengths, threads, megabytes=64, isa="best"):
    """The cells of a product, of `megabytes` each; megabytes=None: the sizes of LISTED."""
    cells = []
    for t in threads:
        for dtype in dtypes:
            total = None if megabytes is None else megabytes * (1 << 20) // ITEM[dtype]
            for op in ops:
                for axis in axes:
                    for n in lengths:
                        length = (total or 1 << 24) if n == "all" else n
                        rows = LISTED[n] if total is None else max(1, total // length)
                        cells.append(Cell(op, dtype, axis, rows, length, t, isa))
    return cells


# -- arrays -------------------------------------------------------------------------------------------------


def numpy_dtype(name):
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def empty(shape, dtype):
    """An array aligned to 64 bytes, as the peers' own allocators align theirs."""
    dtype = numpy_dtype(dtype) if isinstance(dtype, str) else np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


_flat = {}  # (dtype, count, stream) -> array; cells of one size share theirs, as rows of another length


def numbers(dtype, count, stream):
    """`count` numbers, the same in every process: 4 N(0, 1), with outliers so that rows are not all flat."""
    key = (dtype, count, stream)
    if key not in _flat:
        if len(_flat) > 1:
            _flat.clear()
        rng = np.random.default_rng([20, stream])
        flat = empty(count, dtype)
        block = 1 << 20
        for at in range(0, count, block):
            part = rng.standard_normal(min(block, count - at), np.float64 if dtype == "float64" else np.float32)
            part *= 4
            part[7::4099] += 20
            flat[at : at + block] = part
        _flat[key] = flat
    return _flat[key]


def arrays_for(cell):
    """The inputs of a cell in the order of its signature, and an output to write into."""
    x = numbers(cell.dtype, cell.elements, 0).reshape(cell.shape)
    out_shape = (cell.rows,) if cell.op == "logsumexp" else cell.shape
    out = empty(out_shape, cell.dtype)
    if not cell.op.endswith("_vjp"):
        return (x,), out
    g = numbers(cell.dtype, cell.elements, 1).reshape(cell.shape)
    return (g, forward_of(cell, x)), out


def forward_of(cell, x):
    """softmax(x) or log_softmax(x) for a VJP, by NumPy in blocks of rows."""
    op = cell.op.removesuffix("_vjp")
    y = empty(cell.shape, cell.dtype)
    rows = max(1, (1 << 20) // cell.n)
    for at in range(0, cell.rows, rows):
        part = (slice(at, at + rows),) if cell.axis == "last" else (slice(None), slice(at, at + rows))
        wide = x[part].astype(np.float64 if cell.dtype == "float64" else np.float32)
        y[part] = reference(op, (wide,), cell.axis_number)
    return y


def reference(op, inputs, axis):
    """The operation in the dtype of its inputs. Not the oracle of accuracy.py: a check that a peer was asked
    the right question, and NumPy's own expression (peers.py)."""
    if op == "softmax_vjp":
        g, y = inputs
        return y * (g - np.sum(g * y, axis=axis, keepdims=True))
    if op == "log_softmax_vjp":
        g, y = inputs
        return g - np.exp(y) * np.sum(g, axis=axis, keepdims=True)
    (x,) = inputs
    m = np.max(x, axis=axis, keepdims=True)
    if op == "softmax":
        e = np.exp(x - m)
        return e / np.sum(e, axis=axis, keepdims=True)
    total = np.sum(np.exp(x - m), axis=axis, keepdims=True)
    if op == "log_softmax":
        return x - m - np.log(total)
    return np.squeeze(m + np.log(total), axis)


TOLERANCE = {"float32": 2e-4, "float64": 1e-10, "bfloat16": 4e-2, "float16": 5e-3}
SMALLEST = {"float32": 2.0**-126, "float64": 2.0**-1022, "bfloat16": 2.0**-126, "float16": 2.0**-14}  # normal number


def check(cell, inputs, result):
    """Raises where sampled rows of a result are not the operation's, to a tolerance for mistakes, not for ulps."""
    rows = sorted({0, cell.rows // 2, cell.rows - 1})
    pick = (lambda a: a[rows]) if cell.axis == "last" else (lambda a: a[:, rows])
    sampled = tuple(pick(a).astype(np.float64) for a in inputs)
    exact = reference(cell.op, sampled, cell.axis_number)
    with np.errstate(over="ignore"):
        want = exact.astype(numpy_dtype(cell.dtype)).astype(np.float64)  # infinite where the dtype ends
    got = np.asarray(result)
    got = (got[rows] if cell.op == "logsumexp" else pick(got)).astype(np.float64)
    with np.errstate(invalid="ignore"):
        error = np.where(got == want, 0, np.abs(got - want))
    allowed = TOLERANCE[cell.dtype] * sizes(cell.op, sampled, exact, cell.axis_number) + SMALLEST[cell.dtype]
    if not np.all(error <= allowed):
        raise ArithmeticError(f"{cell}: differs from the reference by up to {np.nanmax(error):.3g}")


def sizes(op, inputs, want, axis):
    """The size of what a result is the sum or difference of, element by element."""
    if op == "softmax":
        return want
    if op == "softmax_vjp":
        g, y = np.abs(inputs[0]), inputs[1]
        return y * (g + np.sum(g * y, axis=axis, keepdims=True))
    if op == "log_softmax_vjp":
        g = np.abs(inputs[0])
        return g + np.exp(inputs[1]) * np.sum(g, axis=axis, keepdims=True)
    return 1 + np.abs(want)
