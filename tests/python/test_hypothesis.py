"""Whatever array comes: within the promise of the oracle, and the same bytes however it is laid out."""

import numpy as np
from hypothesis import HealthCheck, given, settings, strategies as st

import sumexp as se
from oracle import accuracy, bounds
from oracle.formats import FORMATS
from oracle.ops import OPS
from oracle.rows import cast
from sumexp import _core

ISAS = _core.build_info()["usable_isas"].split(",")
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
formats = st.sampled_from(FORMATS)


@st.composite
def rows(draw):
    """(format, x of shape (rows, n)): finite values of any magnitude, or of one that makes the terms interact."""
    fmt = draw(formats)
    shape = draw(st.integers(1, 20)), draw(st.one_of(st.integers(1, 80), st.integers(500, 530)))
    seed, scale = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([1e-3, 1.0, 10.0, 100.0, 1e4, 1e30, None]))
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) * (scale or 1)
    if scale is None:
        x = x * 2.0 ** rng.uniform(-140, 120, shape)
    x = cast(x, fmt)
    # and a few values of hypothesis's own choice
    value = st.floats(-fmt.largest, fmt.largest)
    for v in draw(st.lists(value, max_size=4)):
        x[rng.integers(shape[0]), rng.integers(shape[1])] = cast(v, fmt)
    return fmt, x


@QUICK
@given(rows())
def test_within_the_promise(case):
    fmt, x = case
    for entry, worst in accuracy.forward_rows(x, fmt, se).items():
        assert worst <= bounds.FORWARD[entry][fmt.name], (entry, fmt.name, worst)


@st.composite
def layouts(draw):
    """An array of random rank, and a view of the same values with other strides: steps, signs, order of axes."""
    fmt = draw(formats)
    op = OPS[draw(st.sampled_from(list(OPS)))]
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 5, 17, 40]), min_size=1, max_size=4)))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    seed = draw(st.integers(0, 2**32 - 1))
    order = draw(st.permutations(range(len(shape))))
    steps = draw(st.lists(st.sampled_from([1, 1, 2, 3, -1, -2]), min_size=len(shape), max_size=len(shape)))
    return fmt, op, shape, axis, seed, order, steps


def with_strides(array, order, steps):
    """The same values in memory ordered by `order`, with gaps and reversals."""
    back = np.argsort(order)
    spread = np.zeros([array.shape[d] * abs(steps[d]) for d in order], array.dtype)
    view = spread.transpose(back)[tuple(slice(None, None, abs(s)) for s in steps)]
    view = view[tuple(slice(None, None, -1 if s < 0 else 1) for s in steps)]
    view[...] = array
    return view


@QUICK
@given(layouts(), st.integers(1, 8), st.sampled_from(ISAS))
def test_same_bytes_in_any_layout(case, threads, isa):
    fmt, op, shape, axis, seed, order, steps = case
    rng = np.random.default_rng(seed)
    n = shape[axis]
    count = int(np.prod(shape)) // n
    flat = op.make(rng, fmt, count, n)
    inner = [np.moveaxis(np.empty(shape, np.bool_), axis, -1).shape[:-1]] * len(flat)
    inputs = [np.moveaxis(i.reshape(*s, i.shape[1]), -1, axis) for i, s in zip(flat, inner)]
    expected = np.moveaxis(op.run(se, flat).reshape(*inner[0], -1), -1, axis)
    se.set_num_threads(threads)
    _core.set_isa(isa)
    views = [with_strides(i, order, steps) for i in inputs]
    got = op.run(se, views, axis=axis)
    out = with_strides(np.zeros(expected.shape, expected.dtype), order[::-1], steps[::-1])
    op.run(se, views, axis=axis, out=out)
    for result in (got, out):
        assert result.dtype == fmt.dtype and np.ascontiguousarray(result).tobytes() == np.ascontiguousarray(expected).tobytes()


@QUICK
@given(formats, st.integers(0, 300), st.integers(0, 2**32 - 1), st.data())
def test_bits_not_values(fmt, n, seed, data):
    """Any bit patterns at all, NaN payloads and signalling NaNs included: no crash, rows apart, specials by rule."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (3, n * fmt.itemsize), np.uint8).view(fmt.dtype).reshape(3, n)
    with np.errstate(invalid="ignore"):  # ml_dtypes raises flags for signalling NaNs
        check_bits(fmt, n, np.where(np.isnan(x), fmt.dtype.type(1), x) if data.draw(st.booleans()) else x)


def check_bits(fmt, n, x):
    y, l, s = se.softmax(x), se.log_softmax(x), se.logsumexp(x, -1)
    wide = x.astype(np.float64)
    nan, inf = np.isnan(wide).any(-1), np.isposinf(wide).any(-1)
    assert np.array_equal(np.isnan(s.astype(np.float64)), nan)
    assert np.array_equal(np.isposinf(s.astype(np.float64))[~nan], inf[~nan])
    if n:
        empty = np.isneginf(wide).all(-1)
        for result in (y, l):
            assert np.array_equal(np.isnan(result.astype(np.float64)).all(-1), nan | inf | empty)
            assert np.array_equal(np.isnan(result.astype(np.float64)).any(-1), nan | inf | empty)
    for r in range(3):
        assert se.softmax(x[r]).tobytes() == y[r].tobytes()
