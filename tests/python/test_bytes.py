"""The promise about bits: a row's result depends on that row's values alone. Every comparison is of bytes.

The reference of each test is the plainest call: one thread, C-contiguous, aligned, rows in one batch. Sizes
name the places where an implementation changes its way: vector widths (8, 16), rows short enough to be
transposed (16 double, 32 float), lane rows (64, 256), chunks (512, 2048), columns too long for a buffer (32,768), a row
split over threads (2^18), a result that is written around the cache (16 MB).
"""

import functools
import itertools

import ml_dtypes
import numpy as np
import pytest

import sumexp as se
from oracle.accuracy import seed
from oracle.formats import BF16, F16, F32, F64, FORMATS, errors
from oracle.ops import OPS, make_input
from oracle.rows import cast
from sumexp import _core

FORMAT = pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
OP = pytest.mark.parametrize("op", OPS.values(), ids=list(OPS))

EDGES = (1, 2, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 47, 48, 49, 63, 64, 65, 100, 127, 129, 255, 256, 257, 511, 512, 513,
         1023, 1025, 2047, 2048, 2049, 4095, 4097, 6145, 10_000)


def usable_isas():
    return _core.build_info()["usable_isas"].split(",")


def same(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def aligned(shape, dtype, offset=0):
    """An empty array that begins `offset` bytes after a multiple of 64."""
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(size + 128, np.uint8)
    start = -raw.ctypes.data % 64 + offset
    return raw[start:start + size].view(dtype).reshape(shape)


def placed(array, offset):
    copy = aligned(array.shape, array.dtype, offset)
    copy[...] = array
    return copy


@functools.lru_cache(maxsize=32)
def made(kinds, fmt, rows, n):
    rng = np.random.default_rng(seed("bytes", *kinds, fmt.name, rows, n))
    return [make_input(rng, kind, fmt, rows, n) for kind in kinds]


def inputs_of(op, fmt, rows, n):
    return [a.copy() for a in made(op.inputs, fmt, rows, n)]


def test_the_sign_of_zero():
    """Sums of nothing but -0.0, as of a gradient of zeros that was multiplied by -1: in a batch as in a row alone."""
    for op in OPS.values():
        for n in (1, 5, 16, 24, 33, 64, 100, 300, 3000, 40_000):
            inputs = [a if kind != "g" else np.full_like(a, -0.0) for kind, a in zip(op.inputs, inputs_of(op, F32, 70, n))]
            alone = op.run(se, [a[:1] for a in inputs])
            assert same(op.run(se, inputs)[:1], alone), f"{op.name} n = {n}: among 70 rows"
            columns = [a if kind == "r" else np.ascontiguousarray(a.T).T for kind, a in zip(op.inputs, inputs)]
            assert same(np.ascontiguousarray(op.run(se, columns)[:1]), alone), f"{op.name} n = {n}: as a column"


def everywhere(op, inputs, n):
    """Asserts that rows have the bytes that they have alone: in a batch, as columns, as misaligned columns."""
    alone = np.concatenate([op.run(se, [a[r : r + 1] for a in inputs]) for r in range(len(inputs[0]))])
    assert same(op.run(se, inputs), alone), f"{op.name} n = {n}: in a batch"
    columns = [np.asfortranarray(a) for a in inputs]
    for offset in (0, 4):
        out = aligned(alone.shape[::-1], alone.dtype, offset * alone.dtype.itemsize).T
        op.run(se, columns, out=out)
        assert same(np.ascontiguousarray(out), alone), f"{op.name} n = {n}: as columns, {offset} elements past a line"


def test_sums_that_underflow():
    """Sums of products that are too small for a number, of either sign: +0, wherever the row stands."""
    for fmt, small in ((F32, 2.0**-100), (F64, 2.0**-600)):
        for name in ("softmax_vjp", "log_softmax_vjp", "softmax_hvp", "log_softmax_jvp"):
            op = OPS[name]
            for n in (16, 24, 40, 272, 288, 1100, 2400, 5000):
                g = np.full((40, n), -small, fmt.dtype)
                g[:, 256 if fmt is F32 else 64 :] = -0.0  # after the last lane has begun
                y = np.full((40, n), small if "log" not in name else np.log(small), fmt.dtype)
                everywhere(op, [y if kind in "yl" else g for kind in op.inputs], n)


def test_products_that_overflow():
    """softmax_hvp: absent lanes have y = 0, and add nothing even where a product without y is infinite."""
    for fmt, big in ((F32, 1e20), (F64, 1e160), (BF16, 1e20)):
        for n in (1, 2, 3, 17, 40, 300, 2100):
            g = cast(np.full((37, n), big) * np.random.default_rng(n).choice([1, -1, 0.5], (37, n)), fmt)
            y = cast(np.full((37, n), 1 / n), fmt)
            everywhere(OPS["softmax_hvp"], [g, g[::-1].copy(), y], n)


def test_sums_that_overflow():
    for n in (1, 2, 3, 17):
        big = np.full((37, n), 1e200)
        everywhere(OPS["softmax_vjp"], [big, big], n)


@pytest.mark.parametrize("fmt", [F32, F64], ids=lambda f: f.name)
def test_refinement_threshold(fmt):
    """Rows whose terms but the largest add up to 2^-8 less next to nothing: the rule is one, however rows are taken."""
    rng = np.random.default_rng(7)
    ln2, rows = float(np.log(2)), 20_000  # few of which would end in other bytes
    top = rng.uniform(-1, 1, rows).astype(fmt.dtype)
    base = np.exp2(np.rint(top.astype(float) / ln2))
    limit = base / 256
    second = np.log(limit * rng.uniform(0.97, 0.995, rows)).astype(fmt.dtype)
    third = np.log(limit * (1 - 1.5e-8) - np.exp(second.astype(float))).astype(fmt.dtype)
    for n in (3, 24, 300):
        x = np.full((rows, n), -60000, fmt.dtype)
        x[:, 0], x[:, 1], x[:, n - 1] = top, second, third
        for name in ("log_softmax", "logsumexp"):
            everywhere(OPS[name], [x], n)


# -- instruction sets and threads ----------------------------------------------------------------------------


def every_size(op, fmt):
    """The results for all sizes 0 to 2,100, a few rows of each: one batch past the vector width now and then."""
    rng = np.random.default_rng(seed(op.name, fmt.name))
    pool = [make_input(rng, kind, fmt, 1, 2100 * 3) for kind in op.inputs]
    per_row = make_input(rng, "r", fmt, 40, 1)
    for n in range(2101):
        rows = 33 if n <= 72 else 3 if n % 7 else 1
        inputs = [per_row[:rows] if kind == "r" else
                  np.resize(a, (rows, n)) if rows * n > a.size else a[0, : rows * n].reshape(rows, n)
                  for kind, a in zip(op.inputs, pool)]
        yield n, op.run(se, inputs)


@FORMAT
@OP
def test_instruction_sets(op, fmt):
    results = {}
    for isa in usable_isas():
        _core.set_isa(isa)
        assert _core.get_isa() == isa
        results[isa] = list(every_size(op, fmt))
    first, *others = results
    for isa in others:
        for (n, a), (_, b) in zip(results[first], results[isa]):
            assert same(a, b), f"{op.name} {fmt.name} n = {n}: {first} and {isa} differ"


LAYOUTS = {
    "last axis": lambda a: a,
    "first axis": lambda a: np.asfortranarray(a),                 # rows side by side in memory
    "every second": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "backwards": lambda a: np.ascontiguousarray(a[:, ::-1])[:, ::-1],
    "rows apart": lambda a: np.concatenate([a, a], axis=1)[:, : a.shape[1]],
    "rows backwards": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "sparse columns": lambda a: np.repeat(a.T, 3, axis=1)[:, ::3].T,
    "misaligned": lambda a: placed_misaligned(a),
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder()) if a.dtype.kind == "f" else a,
}


def placed_misaligned(a):
    raw = np.empty(a.nbytes + 1, np.uint8)
    raw[1:] = np.ascontiguousarray(a).view(np.uint8).reshape(-1)
    return raw[1:].view(a.dtype).reshape(a.shape)


@pytest.mark.parametrize("isa", usable_isas())
@FORMAT
@OP
def test_layouts(op, fmt, isa):
    """Any axis, any stride, any alignment: each combination of sizes through every layout."""
    for n in (1, 5, 16, 33, 64, 65, 300, 2049):
        for rows in (1, 5, 35):
            inputs = inputs_of(op, fmt, rows, n)
            expected = op.run(se, inputs)
            _core.set_isa(isa)
            for name, layout in LAYOUTS.items():
                got = op.run(se, [layout(a) for a in inputs])
                assert same(np.ascontiguousarray(got), expected), (name, rows, n)
            # into a strided result
            out = np.full((expected.shape[0], 2 * expected.shape[1]), 7, expected.dtype)
            op.run(se, inputs, out=out[:, ::2])
            assert same(np.ascontiguousarray(out[:, ::2]), expected), ("strided out", rows, n)
            assert np.all(out[:, 1::2] == 7)
            out = np.empty(expected.shape[::-1], expected.dtype).T
            op.run(se, [np.asfortranarray(a) for a in inputs], out=out)
            assert same(np.ascontiguousarray(out), expected), ("first axis out", rows, n)


@FORMAT
@pytest.mark.parametrize("isa", usable_isas())
def test_masks_lie_otherwise_than_rows(isa, fmt):
    """Beside rows in any layout a mask in any other, one for all rows, or one for all elements of a row."""
    _core.set_isa(isa)
    rng = np.random.default_rng(5)
    for rows, n in ((5, 33), (35, 70), (17, 300), (20, 2100)):
        x = rng.standard_normal((rows, n)).astype(fmt.dtype)
        masks = rng.random((rows, n)) < 0.6, rng.random((1, n)) < 0.6, rng.random((rows, 1)) < 0.6
        for function, mask in itertools.product((se.softmax, se.log_softmax, se.logsumexp), masks):
            expected = function(x, -1, where=np.ascontiguousarray(np.broadcast_to(mask, x.shape)))
            for name in ("last axis", "first axis", "sparse columns", "rows backwards"):
                for of, layout in LAYOUTS.items():
                    got = function(LAYOUTS[name](x), -1, where=layout(mask))
                    assert same(np.ascontiguousarray(got), expected), (function, name, of, mask.shape, rows, n)


@FORMAT
@OP
def test_axes(op, fmt):
    """A row over any axis or several, in the middle of an array or not."""
    for a, n, b in ((3, 7, 4), (2, 40, 17), (2, 100, 19), (1, 600, 33), (2, 2050, 3)):
        inputs = inputs_of(op, fmt, a * b, n)
        expected = op.run(se, inputs)
        cubes = [np.ascontiguousarray(np.moveaxis(i.reshape(a, b, i.shape[1]), 2, 1)) for i in inputs]
        got = op.run(se, cubes, axis=1)
        assert same(np.moveaxis(got, 1, 2).reshape(expected.shape), expected), (a, n, b)
        cubes = [np.ascontiguousarray(np.moveaxis(i.reshape(a, b, i.shape[1]), 2, 0)) for i in inputs]
        got = op.run(se, cubes, axis=0)
        assert same(np.moveaxis(got, 0, 2).reshape(expected.shape), expected), (a, n, b)
    # one row over two axes: C order of the reduced axes, whatever lies between them
    for p, q in ((3, 5), (8, 8), (7, 300), (300, 7)):
        inputs = inputs_of(op, fmt, 6, p * q)
        expected = op.run(se, inputs)
        split = [i.reshape((6, p, q) if i.shape[1] > 1 or p * q == 1 else (6, 1, 1)) for i in inputs]
        moved = [np.ascontiguousarray(np.moveaxis(i, 0, 1)) for i in split]
        got = op.run(se, moved, axis=(0, 2))
        assert same(np.moveaxis(got, 1, 0).reshape(expected.shape), expected), (p, q)


@FORMAT
@OP
def test_place_in_the_batch(op, fmt):
    """A row alone, at the front, at the end, in a batch of any size."""
    for n in EDGES[:-1]:
        rows = 37 if n <= 2100 else 5
        inputs = inputs_of(op, fmt, rows, n)
        expected = op.run(se, inputs)
        alone = range(rows) if n <= 300 else (0, 1, rows - 1)
        parts = [(1, rows), (0, rows - 1), (3, 20), (16, 33), (2, 4), (9, 14), (20, 35)]
        for begin, end in [(r, r + 1) for r in alone] + parts:
            got = op.run(se, [i[begin:end] for i in inputs])
            assert same(got, expected[begin:end]), (n, begin, end)
        order = np.random.default_rng(n).permutation(rows)
        assert same(op.run(se, [i[order] for i in inputs]), expected[order]), n
    # 1-d, as most calls are
    inputs = inputs_of(op, fmt, 1, 50)
    assert same(op.run(se, [i[0] for i in inputs]), op.run(se, inputs)[0])


@FORMAT
@OP
def test_special_rows_in_the_batch(op, fmt):
    """Rows that need care are taken with their neighbours or without them: nobody's bits change."""
    rows = 37
    for n in (3, 16, 40, 100, 300, 513, 2048, 2500):
        inputs = inputs_of(op, fmt, rows, n)
        x = next(i for i in inputs if i.shape[1] == n)
        for marked in ([5], [0, 20, 36], range(rows)):
            for k, r in enumerate(marked):
                where, value = ((0, np.nan), (n - 1, np.inf), (slice(None), -np.inf), (n // 2, 2e5), (n // 3, -np.nan),
                                (slice(1, None), -2e5))[(k + n) % 6]
                with np.errstate(over="ignore"):
                    x[r, where] = fmt.dtype.type(value)
            batch = op.run(se, inputs)
            turned = np.ascontiguousarray(op.run(se, [np.asfortranarray(i) for i in inputs]))
            for r in range(rows):
                alone = op.run(se, [i[r : r + 1] for i in inputs])
                assert same(batch[r : r + 1], alone), (n, r)
                assert same(turned[r : r + 1], alone), (n, r, "first axis")
            for begin, end in ((4, 6), (18, 21), (30, 37)):
                assert same(op.run(se, [i[begin:end] for i in inputs]), batch[begin:end]), (n, begin, end)


@FORMAT
@pytest.mark.parametrize("name", ["log_softmax_vjp", "log_softmax_jvp", "log_softmax_hvp"])
def test_rows_with_several_winners(name, fmt):
    """y that is no log-probability may have several elements next to 0: none, one or many of them in a row, in neighbouring
    lanes, in the same lane of several vectors, in several chunks; what stands there may be infinite or NaN. Each row in a
    batch is as it is alone, where only the first instruction set computes it, and near what the formulas give."""
    op, rows = OPS[name], 7 * 16 + 3  # 16 of a kind together, as one of several winners in a vector is enough
    for n in (2, 16, 33, 65, 128, 300, 2048, 5000):
        rng = np.random.default_rng(seed("several winners", name, fmt.name, n))
        inputs = [-1 - np.abs(5 * rng.standard_normal((rows, n))) if kind == "l" else rng.standard_normal((rows, n))
                  for kind in op.inputs]
        y = inputs[op.inputs.index("l")]
        for r in range(rows):
            first = rng.integers(n)
            at = [(), (first,), (first, (first + 1) % n), (first, (first + 64) % n), (0, n - 1), range(n),
                  (first, (first + 2048) % n, (first + 16) % n)][r // 16 % 7]
            for j in at:
                y[r, j] = rng.choice([-0.5, -0.1, -1e-3, 0.0, -0.0, 0.75])
                if r % 5 == 4:
                    inputs[0][r, j] = rng.choice([np.inf, -np.inf, np.nan, -0.0])
        inputs = [cast(a, fmt) for a in inputs]
        _core.set_isa(usable_isas()[0])
        alone = np.concatenate([op.run(se, [a[r : r + 1] for a in inputs]) for r in range(rows)])
        finite = np.arange(rows) % 5 != 4
        *tangents, y = (a.astype(np.float64)[finite] for a in inputs)
        s, t, total = np.exp(y), tangents[-1], tangents[0].sum(axis=1, keepdims=True)
        change = t - (s * t).sum(axis=1, keepdims=True)
        plain = {"log_softmax_vjp": t - s * total, "log_softmax_jvp": change, "log_softmax_hvp": -s * change * total}[name]
        size = np.abs(np.concatenate([*tangents, np.ones_like(y)], axis=1)).sum(axis=1, keepdims=True) ** 2
        assert (np.abs(alone[finite] - plain) <= 2.0 ** (4 - fmt.digits) * size).all(), n
        for isa in usable_isas():
            _core.set_isa(isa)
            for lay in (np.asarray, np.asfortranarray):
                got = np.ascontiguousarray(op.run(se, [lay(a) for a in inputs]))
                for r in range(rows):
                    assert same(got[r], alone[r]), (n, r, isa, lay.__name__)


@FORMAT
@OP
def test_long_columns(op, fmt):
    """Rows side by side, too long for the buffer: from any column on, on any threads, in place."""
    rows, n = 53, 40_001
    inputs = inputs_of(op, fmt, rows, n)
    expected = op.run(se, inputs)
    turned = [np.asfortranarray(i) for i in inputs]
    for begin, end in ((0, rows), (3, rows), (0, 16), (7, 40)):
        got = op.run(se, [i[begin:end] for i in turned])
        assert same(np.ascontiguousarray(got), expected[begin:end]), (begin, end)
    if not op.row_output:
        out = np.empty((n, rows), expected.dtype).T
        for threads in (1, 3):
            se.set_num_threads(threads)
            op.run(se, turned, out=out)
            assert same(np.ascontiguousarray(out), expected), threads
        kept = next(k for k, kind in enumerate(op.inputs) if kind not in "rw")
        op.run(se, turned, out=turned[kept])
        assert same(np.ascontiguousarray(turned[kept]), expected), "in place"


def uneven(x, fmt):
    """Makes rows of x (in place) whose parts are far from each other in size, or special, in some of 32 rows."""
    rows, n = x.shape
    span = 60 if fmt is not F64 else 500  # beyond two of these a term is no longer a normal number
    steps = np.arange(n) * 6 // n
    for r in range(0, rows, 4):
        x[r] += (-span * steps).astype(fmt.dtype)  # parts ever further down
    x[1::8, n // 2] = 3 * span  # all others far below
    x[2, : n // 2] = fmt.dtype.type(-np.inf)
    x[35, n // 3] = fmt.dtype.type(np.nan)
    x[37, n // 4] = fmt.dtype.type(np.inf)
    x[38, n - 1] = fmt.dtype.type(6e4)


@FORMAT
@pytest.mark.parametrize("op", [op for op in OPS.values() if op.inputs[0] == "x"], ids=lambda op: op.name)
def test_uneven_columns(op, fmt):
    """Chunks far below the maximum of their row, and special rows, side by side: on any threads, on any axis."""
    for n in (1500, 5000, 9001, 40_000) + ((1 << 18) + 777,) * (op.name in ("softmax", "log_softmax", "logsumexp")):
        rows = 70 if n < 1 << 18 else 40  # among them tiles, of every width, with and without special rows
        inputs = inputs_of(op, fmt, rows, n)
        uneven(inputs[0], fmt)
        expected = op.run(se, inputs)
        turned = [np.asfortranarray(i) for i in inputs]
        parts = ((0, rows), (0, 16), (16, 32), (5, 40)) if n < 1 << 18 else ((0, 16), (5, 40))
        for begin, end in parts:
            for threads in (1, 3):
                se.set_num_threads(threads)
                got = op.run(se, [i[begin:end] for i in turned])
                assert same(np.ascontiguousarray(got), expected[begin:end]), (n, begin, end, threads)


@FORMAT
@OP
def test_rows_side_by_side_that_fill_no_vectors(op, fmt):
    """Some of a vector's lanes are no rows then: short, of chunks, and split over threads."""
    long = (1 << 18) + 777
    cases = [(rows, n) for n in (1, 9, 40, 300, 700) for rows in (2, 3, 5, 7, 9, 12, 13, 15, 21, 31, 47, 63, 79)]
    cases += [(rows, 5000) for rows in (3, 6, 15, 29)] + [(63, 16_700)] + [(rows, long) for rows in (5, 15)]
    for rows, n in cases:
        inputs = inputs_of(op, fmt, rows, n)
        expected = op.run(se, inputs)
        turned = [i.copy(order="F") for i in inputs]
        for threads in (1, 3) if n >= 5000 else (1,):
            se.set_num_threads(threads)
            assert same(np.ascontiguousarray(op.run(se, turned)), expected), (rows, n, threads)


@FORMAT
@OP
def test_alignment(op, fmt):
    """Every byte offset 0 to 63 that the element allows for the result; all 64 for the inputs."""
    for n in (7, 33, 100, 600, 2051):
        inputs = inputs_of(op, fmt, 3, n)
        expected = op.run(se, inputs)
        for offset in range(64):
            other = offset * 37 % 64 // fmt.itemsize * fmt.itemsize
            out = aligned(expected.shape, fmt.dtype, other)
            op.run(se, [placed(i, offset) for i in inputs], out=out)
            assert same(out, expected), (n, offset, other)


@FORMAT
@pytest.mark.parametrize("op", [op for op in OPS.values() if not op.row_output], ids=lambda op: op.name)
def test_in_place(op, fmt):
    for n in EDGES:
        for rows in (1, 2, 35):
            if rows * n > 80_000:
                continue
            inputs = inputs_of(op, fmt, rows, n)
            expected = op.run(se, inputs)
            for k, kind in enumerate(op.inputs):
                if kind in "rw":
                    continue
                copies = [i.copy() for i in inputs]
                assert op.run(se, copies, out=copies[k]) is copies[k]
                assert same(copies[k], expected), (n, rows, k)
                turned = [i.copy(order="F") for i in inputs]
                op.run(se, turned, out=turned[k])
                assert same(np.ascontiguousarray(turned[k]), expected), (n, rows, k, "first axis")


@FORMAT
@OP
def test_threads(op, fmt):
    """Up to 8 threads, rows shared out or one row split."""
    for rows, n in ((24_000, 24), (4400, 130), (200, 3000), (3, 300_001), (1, 600_000)):
        inputs = inputs_of(op, fmt, rows, n)
        se.set_num_threads(1)
        expected = op.run(se, inputs)
        for threads in (2, 3, 5, 8):
            se.set_num_threads(threads)
            assert same(op.run(se, inputs), expected), (rows, n, threads)
        se.set_num_threads(3)
        assert same(np.ascontiguousarray(op.run(se, [np.asfortranarray(i) for i in inputs])), expected), (rows, n)


# -- large results -----------------------------------------------------------------------------------------


STREAMED = 16 << 20


@pytest.mark.parametrize("n", [24, 48, 1000, 5000, 200_000])
@pytest.mark.parametrize("fmt", [F32, F64, BF16], ids=lambda f: f.name)
@pytest.mark.parametrize("name", [name for name, op in OPS.items() if not op.row_output and "," not in name])
def test_written_around_the_cache(name, fmt, n):
    """A result from 16 MB on is stored another way: the same rows in a small batch, misaligned, in place."""
    op = OPS[name]
    some = max(1, 400_000 // n)
    times = STREAMED // (some * n * fmt.itemsize) + 1
    inputs = inputs_of(op, fmt, some, n)
    expected = op.run(se, inputs)
    large = [placed(np.tile(i, (times, 1)), 0) for i in inputs]  # on whole vectors; the result is not
    out = aligned((some * times, n), fmt.dtype, fmt.itemsize)
    assert out.nbytes >= STREAMED
    op.run(se, large, out=out)
    blocks = out.reshape(times, some, n).view(fmt.bits)
    assert np.array_equal(blocks, np.broadcast_to(expected.view(fmt.bits), blocks.shape))
    kept = next(k for k, kind in enumerate(op.inputs) if kind != "r")
    op.run(se, large, out=large[kept])
    assert np.array_equal(large[kept].view(fmt.bits), out.view(fmt.bits).reshape(large[kept].shape)), "in place"


@pytest.mark.parametrize("n", [(1 << 18) - 1, 1 << 18, (1 << 18) + 1, 1_000_003, 5_000_000])
@FORMAT
def test_long_rows(fmt, n):
    """One row: split or whole, stored or computed again, packed or direct, on every instruction set."""
    names = ["softmax", "log_softmax", "logsumexp"]
    if n < 2_000_000:
        names += ["logsumexp, b", "softmax_vjp", "log_softmax_vjp", "log_softmax_jvp", "logsumexp_vjp", "logsumexp_jvp",
                  "softmax_hvp", "log_softmax_hvp"]
    for name in names:
        op = OPS[name]
        inputs = inputs_of(op, fmt, 1, n)
        se.set_num_threads(1)
        expected = op.run(se, inputs)
        for threads in (2, 5):
            se.set_num_threads(threads)
            for isa in usable_isas()[1:] if n > 300_000 else usable_isas():
                _core.set_isa(isa)
                assert same(op.run(se, inputs), expected), (name, threads, isa)
        se.set_num_threads(2)
        strided = [np.repeat(i, 2, axis=1)[:, ::2] if i.shape[1] > 1 else i for i in inputs]
        assert same(op.run(se, strided), expected), (name, "strided")
        twice = [np.concatenate([i, i]) for i in inputs]
        got = op.run(se, twice)
        assert same(got[1:], expected) and same(got[:1], expected), (name, "two rows")


# -- relations between calls ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", [F16, BF16], ids=lambda f: f.name)
@OP
def test_16_bits_are_float32_rounded_once(op, fmt):
    """To the byte, save that logits of 16 bits make terms of their own (ShortTerms): within a rounding and 0.01 ulp."""
    for n in EDGES:
        inputs = inputs_of(op, fmt, 20 if n < 300 else 3, n)
        wide = [i if i.dtype == np.bool_ else i.astype(np.float32) for i in inputs]
        with np.errstate(over="ignore"):
            got, expected = op.run(se, inputs), op.run(se, wide)
            if "x" not in op.inputs:
                assert same(got, expected.astype(fmt.dtype)), n
                continue
        nan = np.isnan(expected)
        assert (np.isnan(got.astype(np.float32)) == nan).all(), n
        assert errors(got, expected, fmt)[~nan].max(initial=0) <= 0.51, n


@pytest.mark.parametrize("fmt", [F32, F64], ids=lambda f: f.name)
def test_absent_elements_change_no_bit(fmt):
    """A masked element, one at -inf and none at all are the same to the others."""
    rng = np.random.default_rng(2)
    for n in (3, 20, 100, 700, 3000):
        x = cast(rng.standard_normal((9, n)) * 5, fmt)
        mask = rng.random((9, n)) < 0.7
        mask[:, 0] = True
        gone = np.where(mask, x, fmt.dtype.type(-np.inf))
        for f in (se.softmax, se.log_softmax):
            assert same(f(x, where=mask), f(gone))
        assert same(se.logsumexp(x, -1, where=mask), se.logsumexp(gone, -1))
        tail = np.concatenate([x, np.full((9, 300), -np.inf, fmt.dtype)], axis=1)
        assert same(np.ascontiguousarray(se.softmax(tail)[:, :n]), se.softmax(x))
        assert same(se.logsumexp(tail, -1), se.logsumexp(x, -1))


@FORMAT
def test_row_results_agree(fmt):
    """logsumexp is the same with keepdims, with unit weights' sign asked for, and over a broadcast batch."""
    x = inputs_of(OPS["softmax"], fmt, 20, 77)[0]
    expected = se.logsumexp(x, axis=-1)
    assert same(se.logsumexp(x, -1, keepdims=True)[:, 0], expected)
    assert same(se.logsumexp(x, -1, return_sign=True)[0], expected)
    stretched = np.broadcast_to(x[0], (50, 77))
    assert same(np.ascontiguousarray(se.softmax(stretched)), np.repeat(se.softmax(x[:1]), 50, axis=0))
    assert ml_dtypes.finfo(expected.dtype).bits == 8 * fmt.itemsize


@pytest.mark.parametrize("isa", usable_isas())
@pytest.mark.parametrize("chunks", [2, 3, 7, 11, 32, 33, 147])
def test_chunks_merge_as_the_tree_says(chunks, isa):
    """Of sums that round in double, which shows the order: pairs of neighbours, then pairs of those, and what is left last."""
    _core.set_isa(isa)
    rng = np.random.default_rng(chunks)
    n = 2048 * chunks - 5
    g, y = np.zeros((20, n), np.float32), np.ones((20, n), np.float32)
    g[:, ::2048] = rng.choice(np.float32([2**53, -(2**53), 1, 1, 3]), (20, chunks))
    level = [g[:, 2048 * c].astype(np.float64) for c in range(chunks)]
    while len(level) > 1:
        level = [level[i] + level[i + 1] if i + 1 < len(level) else level[i] for i in range(0, len(level), 2)]
    h = level[0].astype(np.float32)
    low = (level[0] - h).astype(np.float32)
    expected = ((g - h[:, None]) - low[:, None]).tobytes()
    assert len(set(level[0])) > 1
    for threads in (1, 2):
        se.set_num_threads(threads)
        assert se.softmax_vjp(g, y).tobytes() == expected
        assert se.softmax_vjp(g[:1], y[:1]).tobytes() == expected[: 4 * n]
        assert se.softmax_vjp(np.ascontiguousarray(g.T), y.T.copy(), axis=0).T.tobytes() == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [100, 300, 1500, 2048])
def test_logsumexp_jvp_of_many_rows_and_of_one(n, dtype):
    """Long rows go fewer at a time, as their terms have room."""
    x, t = np.random.default_rng(n).normal(size=(2, 37, n)).astype(dtype)
    rows = [se.logsumexp_jvp(t[r], x[r], axis=-1) for r in range(37)]
    assert se.logsumexp_jvp(t, x, axis=-1).tobytes() == np.array(rows).tobytes()
