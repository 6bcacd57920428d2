"""Segments: the bytes of the plain functions on each segment alone, their derivatives, what other libraries get wrong."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import sumexp as se
from isas import ISAS
from sumexp import _core

INF = np.inf
DTYPES = [np.float16, np.float32, np.float64]
FORWARD = {
    "segment_softmax": lambda x: se.softmax(x, 0),
    "segment_log_softmax": lambda x: se.log_softmax(x, 0),
    "segment_logsumexp": lambda x: se.logsumexp(x, 0),
}
# name -> (of each segment: its direction or gradient, its y or x; whether the first has one value a segment)
DERIVATIVES = {
    "segment_softmax_vjp": (lambda g, y: se.softmax_vjp(g, y, 0), "segment_softmax", False),
    "segment_softmax_jvp": (lambda t, y: se.softmax_jvp(t, y, 0), "segment_softmax", False),
    "segment_log_softmax_vjp": (lambda g, y: se.log_softmax_vjp(g, y, 0), "segment_log_softmax", False),
    "segment_log_softmax_jvp": (lambda t, y: se.log_softmax_jvp(t, y, 0), "segment_log_softmax", False),
    "segment_logsumexp_vjp": (lambda g, x: se.logsumexp_vjp(g, x, 0), None, True),
    "segment_logsumexp_jvp": (lambda t, x: se.logsumexp_jvp(t, x, 0), None, False),
}


def same(a, b):
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def lengths_of(kind, rng):
    """Lengths of segments that meet every way: tiles, whole rows, chunks; none, one, many elements."""
    if kind == "short":
        return rng.integers(0, 40, 300)
    if kind == "power law":
        return np.minimum(rng.pareto(1.0, 400) + 0.5, 3000).astype(int)
    if kind == "ones":
        return np.ones(700, int)
    if kind == "long":
        return np.array([0, 5000, 1, 0, 2048, 2047, 2049, 512, 513, 0])
    return np.zeros(5, int)


KINDS = ["short", "power law", "ones", "long", "none"]
FEATURES = [(), (1,), (3,), (2, 8), (17,)]


def each(offsets, *arrays):
    return [tuple(a[i:j] for a in arrays) for i, j in zip(offsets, offsets[1:])]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("features", FEATURES)
def test_bytes_are_those_of_each_segment_alone(kind, dtype, features):
    rng = np.random.default_rng(1)
    lengths = lengths_of(kind, rng)
    if features and lengths.max() > 2100:
        lengths = lengths[lengths < 2100]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    x = (4 * rng.normal(size=(offsets[-1], *features))).astype(dtype)
    made = {}
    for name, plain in FORWARD.items():
        y = made[name] = getattr(se, name)(x, offsets=offsets)
        rows = np.asarray(y) if name == "segment_logsumexp" else [part for (part,) in each(offsets, y)]
        assert len(y) == (len(lengths) if name == "segment_logsumexp" else len(x))
        for (segment,), row in zip(each(offsets, x), rows):
            assert same(row, plain(segment)), (name, len(segment))
    for name, (plain, forward, per_segment) in DERIVATIVES.items():
        at = made[forward] if forward else x
        g = rng.normal(size=(len(lengths), *features) if per_segment else x.shape).astype(dtype)
        d = getattr(se, name)(g, at, offsets=offsets)
        rows = d if name == "segment_logsumexp_jvp" else [part for (part,) in each(offsets, d)]
        for (segment,), direction, row in zip(each(offsets, at), g if per_segment else each(offsets, g), rows):
            if len(segment) == 0:
                assert (np.asarray(row) == 0).all()
            else:
                assert same(row, plain(direction if per_segment else direction[0], segment)), (name, len(segment))


@pytest.mark.parametrize("features", [(), (5,)])
def test_bytes_do_not_depend_on_instruction_set_threads_or_strides(features):
    rng = np.random.default_rng(2)
    lengths = np.concatenate([lengths_of(k, rng) for k in KINDS])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    for dtype in DTYPES:
        x = (4 * rng.normal(size=(offsets[-1], *features))).astype(dtype)
        wide = np.zeros((2 * len(x), *features), dtype)
        wide[::2] = x
        for name in FORWARD:
            made = []
            for isa, threads in ((ISAS[-1], 1), (ISAS[-1], 3), *((k, 2) for k in ISAS[:-1])):
                _core.set_isa(isa)
                se.set_num_threads(threads)
                made.append(getattr(se, name)(x, offsets=offsets))
            made.append(getattr(se, name)(wide[::2], offsets=offsets))
            ids = np.repeat(np.arange(len(lengths)), lengths)
            made.append(getattr(se, name)(x[::-1][::-1], ids=ids, num_segments=len(lengths)))
            assert all(same(made[0], other) for other in made[1:]), (name, dtype)


def test_one_of_a_million_among_many_of_one():
    """Long segments are shared out among threads; the others are dealt out by elements."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=700_000).astype(np.float32)
    offsets = np.concatenate([np.arange(50_001), [650_000], np.arange(650_001, 700_001)])
    for name, plain in FORWARD.items():
        made = []
        for threads in (1, 4):
            se.set_num_threads(threads)
            made.append(getattr(se, name)(x, offsets=offsets))
        assert same(*made)
        long = plain(x[50_000:650_000])
        assert same(made[0][50_000] if name == "segment_logsumexp" else made[0][50_000:650_000], long)
    for name, (plain, forward, per_segment) in DERIVATIVES.items():
        at = getattr(se, forward)(x, offsets=offsets) if forward else x
        g = rng.normal(size=100_001 if per_segment else len(x)).astype(np.float32)
        made = []
        for threads in (1, 4):
            se.set_num_threads(threads)
            made.append(getattr(se, name)(g, at, offsets=offsets))
        assert same(*made)
        long = plain(g[50_000] if per_segment else g[50_000:650_000], at[50_000:650_000])
        assert same(made[0][50_000] if name == "segment_logsumexp_jvp" else made[0][50_000:650_000], long)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_segments_hypothesis(data):
    lengths = data.draw(st.lists(st.integers(0, 70), max_size=60))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(data.draw(st.sampled_from(["i2", "i4", "i8", "u4", "u8"])))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    features = data.draw(st.sampled_from([(), (2,), (16,), (0,)]))
    x = data.draw(st.sampled_from([1.0, 100.0, 1e6])) * rng.normal(size=(sum(lengths), *features))
    x[rng.random(x.shape) < data.draw(st.sampled_from([0.0, 0.3, 1.0]))] = data.draw(st.sampled_from([-INF, INF, np.nan, 7.0]))
    x = x.astype(np.float32)
    for name, plain in FORWARD.items():
        y = getattr(se, name)(x, offsets=offsets)
        rows = y if name == "segment_logsumexp" else [part for (part,) in each(offsets, y)]
        for (segment,), row in zip(each(offsets, x), rows):
            assert same(row, plain(segment))


def test_derivatives_are_those_of_the_forward():
    rng = np.random.default_rng(4)
    offsets = np.array([0, 3, 3, 50, 51, 60])
    x, t, h = rng.normal(size=(60, 2)), rng.normal(size=(60, 2)), 1e-6
    for name in FORWARD:
        f = getattr(se, name)
        with np.errstate(invalid="ignore"):  # -inf - -inf
            along = np.nan_to_num(f(x + h * t, offsets=offsets) - f(x - h * t, offsets=offsets)) / (2 * h)
        at = x if name == "segment_logsumexp" else f(x, offsets=offsets)
        dy = getattr(se, name + "_jvp")(t, at, offsets=offsets)
        np.testing.assert_allclose(dy, along, rtol=1e-7, atol=1e-8)
        g = rng.normal(size=dy.shape)
        np.testing.assert_allclose((getattr(se, name + "_vjp")(g, at, offsets=offsets) * t).sum(), (g * dy).sum(), rtol=1e-12)


def test_ids_and_offsets_are_the_same():
    x = np.arange(7.0)
    ids, offsets = np.array([1, 1, 1, 3, 3, 4, 4], np.int32), np.array([0, 0, 3, 3, 5, 7, 7])
    assert same(se.segment_logsumexp(x, ids=ids, num_segments=6), se.segment_logsumexp(x, offsets=offsets))
    assert se.segment_logsumexp(x, ids=ids).shape == (5,)
    assert se.segment_logsumexp(x[:0], ids=[]).shape == (0,)
    assert (se.segment_logsumexp(x[:0], ids=[], num_segments=2) == [-INF, -INF]).all()
    assert same(se.segment_softmax(x, ids=list(ids)), se.segment_softmax(x, offsets=list(offsets)))


# -- other libraries' faults ------------------------------------------------------------------------------------------


def test_pytorch_scatter_407_empty_segments():
    """A segment without elements is -inf and not 0 or NaN, and its neighbours do not notice."""
    lse = se.segment_logsumexp(np.array([1.0, 2.0]), offsets=[0, 0, 1, 1, 2, 2])
    assert (lse == [-INF, 1, -INF, 2, -INF]).all()


def test_pytorch_scatter_426_segments_of_minus_infinity():
    x = np.array([-INF, -INF, 0.0, -INF])
    assert (se.segment_logsumexp(x, offsets=[0, 2, 4]) == [-INF, 0]).all()
    y = se.segment_softmax(x, offsets=[0, 2, 4])
    assert np.isnan(y[:2]).all() and (y[2:] == [1, 0]).all()  # as softmax of a row of -inf alone


def test_pyg_2013_a_global_maximum_zeroes_groups():
    """Each segment has a maximum of its own: one far below another keeps its digits."""
    x = np.array([0.0, 1.0, 500.0, 501.0, -5000.0, -5001.0], np.float32)
    y = se.segment_softmax(x, offsets=[0, 2, 4, 6])
    p = 1 / (1 + np.exp(-1.0))
    np.testing.assert_allclose(y, [1 - p, p, 1 - p, p, p, 1 - p], rtol=2e-7)


def test_deepmd_5715_padding_and_segments_without_neighbours():
    """An atom without neighbours has no share in a sum, and no NaN in its gradient."""
    offsets = np.array([0, 2, 2, 3])
    x, g = np.array([1.0, 3.0, 2.0]), np.array([1.0, 5.0, 2.0])
    dx = se.segment_logsumexp_vjp(g, x, offsets=offsets)
    np.testing.assert_allclose(dx, [1 / (1 + np.exp(2.0)), 1 / (1 + np.exp(-2.0)), 2.0], rtol=1e-15)
    assert np.isfinite(se.segment_softmax_vjp(x, se.segment_softmax(x, offsets=offsets), offsets=offsets)).all()


# -- in and out -------------------------------------------------------------------------------------------------------


def test_out_and_in_place():
    rng = np.random.default_rng(5)
    for features in ((), (3,), (2, 3)):
        offsets = np.array([0, 3, 40, 40, 700])
        x = rng.normal(size=(700, *features)).astype(np.float32)
        y = se.segment_softmax(x, offsets=offsets)
        out = np.full((700, *features[:-1], 2 * (features or (1,))[-1]), 7, np.float32)[..., :: 2]
        out = out[..., 0] if not features else out
        assert se.segment_softmax(x, offsets=offsets, out=out) is out and same(out, y)
        z = x.copy()
        assert same(se.segment_softmax(z, offsets=offsets, out=z), y)
    with pytest.raises(ValueError, match="segment_softmax: out overlaps an input"):
        se.segment_softmax(x[:-1], offsets=[0, 699], out=x[1:])
    # With as many segments as elements, what is one value a segment has the shape of x, and no place in it.
    x, g, offsets = np.array([1.0, 2, 3]), np.array([1.0, 10, 100]), [0, 0, 2, 3]
    for name, arrays, out in (("logsumexp", (x,), x), ("logsumexp_jvp", (g, x), g), ("logsumexp_jvp", (g, x), x),
                              ("logsumexp_vjp", (g, x), g)):
        kept = [a.copy() for a in arrays]
        with pytest.raises(ValueError, match=f"^segment_{name}: out overlaps an input, accepted: memory of its own$"):
            getattr(se, "segment_" + name)(*arrays, offsets=offsets, out=out)
        assert all(map(same, arrays, kept))
    expected = se.segment_logsumexp_vjp(g, x, offsets=offsets)
    assert same(se.segment_logsumexp_vjp(g, x, offsets=offsets, out=x), expected)


BAD = [
    ({}, TypeError, "got neither of offsets and ids"),
    ({"offsets": [0, 4], "ids": [0, 0, 0, 0]}, TypeError, "got both of offsets and ids"),
    ({"offsets": [0, 3]}, ValueError, "offsets has 0 to 3, accepted: offsets from 0 to the 4 elements"),
    ({"offsets": [1, 4]}, ValueError, "offsets has 1 to 4"),
    ({"offsets": [0, 3, 2, 4]}, ValueError, "offsets has 2 at 2 after 3, accepted: offsets that do not fall"),
    ({"offsets": [[0, 4]]}, ValueError, r"offsets has shape \(1, 2\)"),
    ({"offsets": []}, ValueError, r"offsets has shape \(0,\)"),
    ({"offsets": [0.0, 4.0]}, TypeError, "offsets has dtype float64, accepted: integers"),
    ({"offsets": [0, 4], "num_segments": 2}, ValueError, "num_segments is 2, accepted: 1"),
    ({"ids": [0, 2, 1, 2]}, ValueError, "ids has 1 at 2 after 2, accepted: ids that do not fall"),
    ({"ids": [0, 0, 1, -1]}, ValueError, "ids has -1 at 3, accepted: 0 to"),
    ({"ids": [0, 0, 1, 3], "num_segments": 3}, ValueError, "ids has 3 at 3, accepted: 0 to 2"),
    ({"ids": [0, 5, 1, 1]}, ValueError, "ids has 1 at 2 after 5"),
    ({"ids": [0, 0, 1]}, ValueError, r"ids has shape \(3,\), accepted: \(4,\)"),
    ({"ids": [0, 0, 0, 0], "num_segments": -1}, ValueError, "num_segments is -1, accepted: an int from 0"),
    ({"ids": [0, 0, 0, 0], "num_segments": 1.5}, TypeError, "num_segments is 1.5"),
    ({"ids": np.array([0, 0, 0, 2**64 - 1], np.uint64)}, ValueError, "ids has 18446744073709551615"),
]


@pytest.mark.parametrize("options, error, text", BAD, ids=lambda v: str(v)[:30])
def test_bad_input(options, error, text):
    x, out = np.ones(4), np.full(4, 7.0)
    with pytest.raises(error, match="^segment_softmax: .*" + text):
        se.segment_softmax(x, out=out, **options)
    assert (out == 7).all()
    with pytest.raises(error, match="^segment_softmax_vjp: .*" + text):
        se.segment_softmax_vjp(x, x, **options)


def test_other_bad_input():
    with pytest.raises(ValueError, match=r"segment_softmax: x has shape \(\), accepted: at least one dimension"):
        se.segment_softmax(1.0, offsets=[0, 1])
    with pytest.raises(ValueError, match=r"segment_logsumexp_vjp: g has shape \(4,\), accepted: \(2,\)"):
        se.segment_logsumexp_vjp(np.ones(4), np.ones(4), offsets=[0, 1, 4])
    with pytest.raises(ValueError, match=r"segment_softmax_jvp: t has shape \(2,\), accepted: \(4,\)"):
        se.segment_softmax_jvp(np.ones(2), np.ones(4), offsets=[0, 1, 4])
    with pytest.raises(ValueError, match=r"segment_logsumexp: out has shape \(4,\), accepted: \(2,\)"):
        se.segment_logsumexp(np.ones(4), offsets=[0, 1, 4], out=np.ones(4))
    with pytest.raises(TypeError, match="segment_softmax: x has dtype complex128"):
        se.segment_softmax(np.ones(4, complex), offsets=[0, 4])
