"""Products in the log domain: right however far apart the terms are, with the same bytes everywhere."""

import ml_dtypes
import mpmath
import numpy as np
import pytest

import sumexp as se
from isas import ISAS
from sumexp import _core

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
INF, NAN = np.inf, np.nan


def matrix(shape, dtype, scale=3.0, seed=0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(dtype)


def same(a, b):
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype and a.shape == b.shape
    assert a.tobytes() == b.tobytes()


def spacing(dtype, x):
    """An ulp of the dtype at x."""
    digits = {"float16": (11, -14), "bfloat16": (8, -126), "float32": (24, -126), "float64": (53, -1022)}[np.dtype(dtype).name]
    return mpmath.mpf(2) ** (max(mpmath.frexp(x)[1] - 1, digits[1]) - digits[0] + 1)


def worst(found, a, b):
    """The largest error in ulp of max(|exact|, |largest term|)."""
    error = 0
    with mpmath.workprec(300):
        for i, j in np.ndindex(found.shape):
            terms = [mpmath.mpf(float(x)) + mpmath.mpf(float(y)) for x, y in zip(a[i], b[:, j]) if x + y > -np.inf]
            if not terms:
                assert found[i, j] == -np.inf
                continue
            top = max(terms)
            exact = top + mpmath.log1p(mpmath.fsum(mpmath.exp(t - top) for t in terms) - 1)
            size = max(abs(exact), abs(top))
            difference = abs(mpmath.mpf(float(found[i, j])) - exact)
            error = max(error, difference / spacing(found.dtype, size) if size else 0 if not difference else mpmath.inf)
    return float(error)


BOUND = {"float16": 0.51, "bfloat16": 0.51, "float32": 2.0, "float64": 2.0}


def held(a, b):
    found = se.logmatmulexp(a, b)
    error = worst(found, a, b)
    assert error <= BOUND[a.dtype.name], (error, a, b)


# -- values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.01, 1, 5, 30, 400, 3000])
@pytest.mark.parametrize("shape", [(4, 1, 3), (3, 6, 9), (2, 300, 5)])
def test_bound(dtype, scale, shape):
    m, k, n = shape
    held(matrix((m, k), dtype, scale, k), matrix((k, n), dtype, scale, k + 1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_bound_near_zero(dtype):
    random = np.random.default_rng(1)
    for _ in range(5):
        with np.errstate(divide="ignore"):
            a = np.log(random.dirichlet(np.full(7, 0.05), 6)).astype(dtype)  # rows that sum to 1, nearly all in one
        held(a, (-random.exponential(size=(7, 4)) * 10.0 ** random.integers(-12, 1, (7, 4))).astype(dtype))
    # one term of the size of its ulp, the others far below it
    held(np.array([[1e-4, -12, -30]], dtype), np.array([[-1e-4, 3e-5], [0, 1], [2, -3]], dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bound_at_large_magnitudes(dtype):
    a = np.array([[1e13, 2.0, -1e13, -1e13], [5e12, 5e12 + 1e5, 0, 3]], dtype)
    b = np.array([[-1e13, 3, 1e30], [1e13, 1, -1e30], [2, 5e12, 0], [1e13, -1e13, 1e13]], dtype)
    held(a, b)
    held(a * dtype(1e16), b * dtype(1e7))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bound_where_factors_underflow(dtype):
    for gap in np.linspace(700, 1340, 65):  # one term's factor is gone before the other's
        for other in (gap - 2, gap, gap + 1):
            held(np.array([[0, -gap]], dtype), np.array([[-other], [0]], dtype))
            held(np.array([[0, -gap / 2, -gap]], dtype), np.array([[-other], [-gap / 2], [0]], dtype))


def test_the_copied_form_loses_this():
    for dtype in (np.float32, np.float64):
        a, b = np.array([[0, -1000]], dtype), np.array([[-1000], [0]], dtype)
        with np.errstate(divide="ignore"):
            shifted = np.log(np.exp(a - a.max()) @ np.exp(b - b.max())) + a.max() + b.max()
        assert shifted == -np.inf
        assert se.logmatmulexp(a, b) == dtype(-1000 + np.log(2))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_against_the_broadcast_formula_across_tiles(dtype):
    a, b = matrix((150, 530), dtype), matrix((530, 140), dtype, seed=1)
    exact = np.logaddexp.reduce(a.astype(np.longdouble)[:, :, None] + b.astype(np.longdouble), axis=1)
    assert np.all(np.abs(se.logmatmulexp(a, b) - exact) <= np.spacing(exact.astype(dtype)))


# -- bytes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_instruction_sets_threads_and_place(dtype):
    a, b = matrix((37, 290), dtype), matrix((290, 45), dtype, seed=1)
    a[3, :] -= dtype(700)
    a[3, 5] += dtype(1000)
    expected = None
    for isa in ISAS:
        _core.set_isa(isa)
        for threads in (1, 3):
            se.set_num_threads(threads)
            found = se.logmatmulexp(a, b)
            expected = found if expected is None else expected
            same(found, expected)
    for i, j in [(0, 0), (3, 7), (36, 44), (11, 32)]:
        same(se.logmatmulexp(a[i], b[:, j]), expected[i, j])
    same(se.logmatmulexp(a[5:20], b[:, 9:30]), expected[5:20, 9:30])


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_batch_and_tiles(dtype):
    a, b = matrix((3, 1, 130, 9), dtype), matrix((2, 9, 135), dtype, seed=1)
    found = se.logmatmulexp(a, b)
    assert found.shape == (3, 2, 130, 135)
    for i, j in np.ndindex(3, 2):
        same(found[i, j], se.logmatmulexp(a[i, 0].copy(), b[j].copy()))
    same(se.logmatmulexp(a[:, :, ::-2], b[..., ::3]), found[:, :, ::-2, ::3])
    columns = np.asfortranarray(a[0, 0]), np.asfortranarray(b[0])
    same(se.logmatmulexp(*columns), found[0, 0])
    same(se.logmatmulexp(a[0, 0][:, ::-1], b[0][::-1]), se.logmatmulexp(a[0, 0][:, ::-1].copy(), b[0][::-1].copy()))
    out = np.full((135, 3, 2, 130), 7, dtype).transpose(1, 2, 3, 0)
    assert se.logmatmulexp(a, b, out=out) is out
    same(out, found)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_dimension(dtype):
    a, b = matrix((4, 5), dtype), matrix((5, 6), dtype, seed=1)
    full = se.logmatmulexp(a, b)
    same(se.logmatmulexp(a[1], b), full[1])
    same(se.logmatmulexp(a, b[:, 2]), full[:, 2])
    same(se.logmatmulexp(a[1], b[:, 2]), full[1, 2])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("a, b, value, da", [
    ([1.7e308], [1.7e308], INF, [1]),
    ([-1.7e308], [-1.7e308], -INF, [1]),
    ([1.5e308, 0], [1.5e308, 0], INF, [1, 0]),
    ([-1.5e308, 0], [-1.5e308, 0], 0, [0, 1]),
    ([1.5e308, 1.7e308], [1.5e308, -1.7e308], INF, [1, 0]),
    ([1.5e308, 1.7e308, 1.5e308, -INF], [1.5e308, -1.7e308, 1.5e308, 3], INF, [0.5, 0, 0.5, 0]),
    ([1.5e308, 1.7e308] * 600, [1.5e308, -1.7e308] * 600, INF, [1 / 600, 0] * 600),
    ([1.7e308, 1.7e308], [1.6e308, 1.5e308], INF, [1, 0]),
    ([-1.7e308, -1.7e308], [-1.6e308, -1.5e308], -INF, [0, 1]),
    ([np.finfo(float).max], [1e292], INF, [1]),
    ([np.finfo(float).max] * 2, [0, 0], np.finfo(float).max, [0.5, 0.5]),
    ([1.7e308, 1], [1.7e308, -INF], INF, [1, 0]),
    ([INF, 1.7e308], [0, 1.7e308], INF, [NAN, NAN]),
    ([NAN, 1.7e308], [0, 1.7e308], NAN, [NAN, NAN]),
])  # fmt: skip
def test_terms_beyond_the_largest_number(isa, a, b, value, da):
    a, b = np.array([a]), np.array(b)[:, None]
    _core.set_isa(isa)
    try:
        assert np.array_equal(se.logmatmulexp(a, b), [[value]], equal_nan=True)
        made = se.logmatmulexp_vjp(np.array([[3.0]]), a, b)
        assert all(np.allclose(m.ravel(), 3 * np.array(da), rtol=1e-13, atol=0, equal_nan=True) for m in made)
        ta, tb = np.arange(1.0, a.size + 1)[None], np.ones_like(b)
        expected = [[np.sum(da * (ta[0] + 1))]]
        assert np.allclose(se.logmatmulexp_jvp(ta, tb, a, b), expected, rtol=1e-13, equal_nan=True, atol=0)
    finally:
        _core.set_isa(ISAS[-1])


# -- specials ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values(dtype):
    values = np.array([0, 1.5, -np.inf, np.inf, np.nan, -2], dtype)
    random = np.random.default_rng(2)
    for _ in range(40):
        a, b = (random.choice(values, size, p=[0.3, 0.3, 0.3, 0.03, 0.02, 0.05]) for size in ((5, 4), (4, 18)))
        with np.errstate(invalid="ignore"):
            terms = a.astype(np.float64)[:, :, None] + b.astype(np.float64)
        expected = se.logsumexp(terms, axis=1).astype(dtype)
        found = se.logmatmulexp(a, b)
        special = ~np.isfinite(expected)
        found, expected = found.astype(np.float64), expected.astype(np.float64)
        np.testing.assert_array_equal(found[special], expected[special])
        np.testing.assert_allclose(found, expected, rtol=1e-2 if dtype(0).itemsize == 2 else 1e-6)


def test_nothing():
    assert np.all(se.logmatmulexp(np.empty((2, 0)), np.empty((0, 3))) == -np.inf)
    assert se.logmatmulexp(np.empty((0, 4)), np.empty((4, 3))).shape == (0, 3)
    assert se.logmatmulexp(np.empty((5, 0, 2, 4)), np.empty((1, 4, 3))).shape == (5, 0, 2, 3)
    minus = np.full((3, 4), -np.inf, np.float32)
    assert np.all(se.logmatmulexp(minus, np.zeros((4, 2), np.float32)) == -np.inf)


def test_dtypes_and_libraries():
    assert se.logmatmulexp([[1, 2]], [[3], [4]]).dtype == np.float64
    assert se.logmatmulexp(np.zeros((1, 2), np.float32), np.zeros((2, 1), np.float16)).dtype == np.float32
    torch = pytest.importorskip("torch")
    t = se.logmatmulexp(torch.zeros(2, 3), np.zeros((3, 1), np.float32))
    assert isinstance(t, torch.Tensor)
    same(t.numpy(), np.full((2, 1), np.log(np.float32(3)), np.float32))


# -- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error, words, make",
    [
        (ValueError, ["b", "(3, 2)", "4 rows"], lambda x: (x((2, 4)), x((3, 2)))),
        (ValueError, ["b", "(3, 4, 2)", "broadcasts"], lambda x: (x((2, 2, 4)), x((3, 4, 2)))),
        (ValueError, ["a", "()"], lambda x: (x(()), x((3, 4)))),
        (TypeError, ["a", "complex"], lambda x: (x((2, 4)) * 1j, x((4, 2)))),
        (TypeError, ["b", "masked"], lambda x: (x((2, 4)), np.ma.masked_array(x((4, 2))))),
    ],
)
def test_bad_inputs(error, words, make):
    with pytest.raises(error) as caught:
        se.logmatmulexp(*make(np.zeros))
    for word in ["logmatmulexp", *words]:
        assert word in str(caught.value)


def test_bad_out():
    a, b = np.zeros((2, 4)), np.zeros((4, 2))
    both = np.zeros((4, 4))
    read_only = np.zeros((2, 2))
    read_only.flags.writeable = False
    for error, out in [
        (ValueError, np.zeros((2, 3))),
        (TypeError, np.zeros((2, 2), np.float32)),
        (ValueError, read_only),
        (ValueError, both[1:3, :2]),
        (ValueError, np.broadcast_to(np.zeros(2), (2, 2))),
    ]:
        with pytest.raises(error, match="logmatmulexp: out"):
            se.logmatmulexp(both[:2] if out.base is both else a, b, out=out)
        assert not out.any()


# -- derivatives -------------------------------------------------------------------------------------------


def weights(a, b):
    """e^(a_ik + b_kj - out_ij), (M, K, N), 0 where out is -inf."""
    terms = a.astype(np.longdouble)[:, :, None] + b.astype(np.longdouble)
    top = terms.max(axis=1, keepdims=True)
    terms = np.exp(terms - np.where(np.isfinite(top), top, 0))
    total = terms.sum(axis=1, keepdims=True)
    return np.where(total > 0, terms / np.where(total > 0, total, 1), 0)


def close(found, exact, size, eps):
    """Within eps of `size`, and 0.51 ulp for rounding to the dtype; weights below 1e-180 may be 0."""
    info = np.finfo(found.dtype)
    allowed = eps * size + 0.51 * (np.abs(exact) * info.eps + info.smallest_subnormal) + 1e-180
    assert np.all(np.abs(found - exact) <= allowed), np.max(np.abs(found - exact) / np.where(allowed > 0, allowed, 1))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("scale", [1, 30, 1000])
@pytest.mark.parametrize("shape", [(4, 6, 3), (37, 130, 20), (140, 3, 270)])
def test_derivatives(dtype, scale, shape):
    m, k, n = shape
    a, b, g = matrix((m, k), dtype, scale, 1), matrix((k, n), dtype, scale, 2), matrix((m, n), dtype, 1, 3)
    ta, tb = matrix((m, k), dtype, 1, 4), matrix((k, n), dtype, 1, 5)
    a[1] = b[:, 0] = a[:3, 2] = -np.inf
    w, wide = weights(a, b), np.longdouble
    eps = (264 + 280 / 256 + (2 * 10 * scale if scale > 100 else 0)) * 2.0**-53
    da, db = se.logmatmulexp_vjp(g, a, b)
    g = g.astype(wide)
    close(da, (g[:, None] * w).sum(2), (np.abs(g)[:, None] * w).sum(2), eps)
    close(db, (g[:, None] * w).sum(0), (np.abs(g)[:, None] * w).sum(0), eps)
    t = ta.astype(wide)[:, :, None], tb.astype(wide)[None]
    dc = se.logmatmulexp_jvp(ta, tb, a, b)
    close(dc, (w * (t[0] + t[1])).sum(1), (w * (np.abs(t[0]) + np.abs(t[1]))).sum(1), eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_of_derivatives(dtype):
    a, b, g = matrix((37, 150), dtype), matrix((150, 33), dtype, seed=1), matrix((37, 33), dtype, seed=2)
    ta, tb = matrix((37, 150), dtype, seed=3), matrix((150, 33), dtype, seed=4)
    a[2] -= dtype(2000)
    a[2, 5], b[5] = dtype(0), dtype(-1500)  # by terms
    expected = None
    for isa in ISAS:
        _core.set_isa(isa)
        for threads in (1, 3):
            se.set_num_threads(threads)
            found = [*se.logmatmulexp_vjp(g, a, b), se.logmatmulexp_jvp(ta, tb, a, b)]
            expected = expected or found
            for f, e in zip(found, expected):
                same(f, e)
    f = np.asfortranarray
    for found, e in zip([*se.logmatmulexp_vjp(f(g), f(a), f(b)), se.logmatmulexp_jvp(f(ta), f(tb), f(a), f(b))], expected):
        same(found, e)
    same(se.logmatmulexp_vjp(g[4:7], a[4:7], b)[0], expected[0][4:7])
    same(se.logmatmulexp_jvp(ta[4:7], tb[:, 3:8], a[4:7], b[:, 3:8]), expected[2][4:7, 3:8])


def test_broadcast_gradients():
    a, b = matrix((3, 1, 4, 5), np.float32), matrix((2, 5, 6), np.float32, seed=1)
    g = matrix((3, 2, 4, 6), np.float32, seed=2)
    da, db = se.logmatmulexp_vjp(g, a, b)
    parts = [[se.logmatmulexp_vjp(g[i, j], a[i, 0], b[j]) for j in range(2)] for i in range(3)]
    np.testing.assert_allclose(da[1, 0], sum(np.float64(parts[1][j][0]) for j in range(2)), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(db[1], sum(np.float64(parts[i][1][1]) for i in range(3)), rtol=1e-6, atol=1e-6)
    assert da.shape == a.shape and db.shape == b.shape
    row, column = se.logmatmulexp_vjp(g[0, 0, 0], a[0, 0, 0], b[0])
    assert row.shape == (5,) and column.shape == (5, 6)
    da, db = se.logmatmulexp_vjp(np.float64(2), np.zeros(2), np.zeros(2))
    np.testing.assert_array_equal(da, [1, 1])
    assert se.logmatmulexp_jvp(np.ones(2), np.ones(2), np.zeros(2), np.zeros(2)) == 2


def test_many_small_products():
    a, b, g = matrix((700, 40, 6), np.float32), matrix((6, 41), np.float32, seed=1), matrix((700, 40, 41), np.float32, seed=2)
    da, _ = se.logmatmulexp_vjp(g, a, b)
    for i in (0, 639, 699):
        same(da[i], se.logmatmulexp_vjp(g[i], a[i], b)[0])


def test_gradients_of_special_values():
    a = np.array([[0, 1, -np.inf], [-np.inf] * 3, [np.nan, 0, 0], [np.inf, 0, 0], [1, 2, 3]])
    b = np.zeros((3, 2))
    da, db = se.logmatmulexp_vjp(np.ones((5, 2)), a, b)
    np.testing.assert_allclose(da[4], 2 * se.softmax(a[4]))
    assert da[0, 2] == 0 and np.all(da[1] == 0) and np.all(np.isnan(da[2:4])) and np.all(np.isnan(db))
    assert np.all(np.isfinite(se.logmatmulexp_vjp(np.ones((3, 2)), a[[0, 1, 4]], b)[1]))
    dc = se.logmatmulexp_jvp(np.ones((5, 3)), np.ones((3, 2)), a, b)
    np.testing.assert_array_equal(dc, [[2, 2], [0, 0], [np.nan] * 2, [np.nan] * 2, [2, 2]])
    empty = se.logmatmulexp_vjp(np.ones((0, 2)), np.ones((0, 3)), b)
    assert empty[0].shape == (0, 3) and not empty[1].any()


def test_bad_derivatives():
    a, b = np.zeros((2, 4)), np.zeros((4, 3))
    for words, call in [
        (["logmatmulexp_vjp", "g", "(2, 2)", "(2, 3)"], lambda: se.logmatmulexp_vjp(np.zeros((2, 2)), a, b)),
        (["logmatmulexp_jvp", "ta", "(4,)", "(2, 4)"], lambda: se.logmatmulexp_jvp(np.zeros(4), b, a, b)),
        (["logmatmulexp_jvp", "tb", "(4,)", "(4, 3)"], lambda: se.logmatmulexp_jvp(a, np.zeros(4), a, b)),
        (["logmatmulexp_jvp", "out", "(2, 2)"], lambda: se.logmatmulexp_jvp(a, b, a, b, out=np.zeros((2, 2)))),
    ]:
        with pytest.raises(ValueError) as caught:
            call()
        for word in words:
            assert word in str(caught.value)
