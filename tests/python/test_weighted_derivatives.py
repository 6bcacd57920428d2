"""logsumexp's derivatives with weights, and logmeanexp."""

import mpmath
import numpy as np
import pytest
from numpy.testing import assert_array_equal

import sumexp as se
from isas import ISAS
from log_domain_oracle import DTYPES, dtype_of, errors, exact, mpf
from sumexp import _core

INF, NAN = float("inf"), float("nan")
EPS = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def cases(dtype, n=300):
    rng = np.random.default_rng(11)
    x, b = rng.normal(size=n), rng.normal(size=n) + 0.5
    yield x, b
    yield 50 * x, b
    yield np.where(rng.random(n) < 0.3, -INF, x), np.where(rng.random(n) < 0.3, 0, b)
    yield x, -np.abs(b)
    if dtype == np.float64:
        yield 900 * x, b  # pieces too wide for one power of two
        yield x, np.where(rng.random(n) < 0.02, 1e-300, b)
        yield 600 * x, 10.0 ** (280 * np.sign(-x))


def terms_of(x, b):
    e = [mpmath.exp(exact(v)) if v != -INF else mpf(0) for v in x]
    t = [exact(w) * v for w, v in zip(b, e)]
    return e, t, sum(t), sum(map(abs, t))


@pytest.mark.parametrize("dtype", DTYPES)
def test_vjp(dtype):
    dtype = dtype_of(dtype)
    for x, b in cases(dtype):
        x, b = x.astype(dtype), b.astype(dtype)
        e, t, S, size = terms_of(x, b)
        g = exact(dtype.type(0.75))
        dx, db = se.logsumexp_vjp(dtype.type(0.75), x, b=b)
        # S is within 2^-50 of the sum of the sizes of its terms, whatever the dtype
        bound = 4 * EPS[dtype.name] + 2.0**-50 * size / abs(S)
        tiny = mpf(2) ** {"float16": -25, "float64": -1074}.get(dtype.name, -133)
        for found, terms in ((dx, t), (db, e)):
            for d, term in zip(found, terms):
                expected = g * term / S
                if abs(expected) < (6e4 if dtype == np.float16 else 1e38 if dtype != np.float64 else 1e308):
                    assert abs(exact(d) - expected) <= bound * abs(expected) + 2 * tiny


@pytest.mark.parametrize("dtype", DTYPES)
def test_jvp(dtype):
    dtype = dtype_of(dtype)
    rng = np.random.default_rng(3)
    for x, b in cases(dtype):
        x, b = x.astype(dtype), b.astype(dtype)
        tx, tb = (rng.normal(size=x.shape).astype(dtype) for _ in range(2))
        tb[b == 0] = 0
        if dtype == np.float64 and np.abs(b).max() > 1e100:
            tb = tb * b
        e, t, S, size = terms_of(x, b)
        for tangent in (None, tb):
            parts = [[exact(u) * w, (0 if tangent is None else exact(v)) * q] for u, v, w, q in zip(tx, tb, t, e)]
            expected = sum(map(sum, parts)) / S
            allowed = sum(abs(p) + abs(q) for p, q in parts) / abs(S)
            found = se.logsumexp_jvp(tx, x, b=b, t_b=tangent)
            bound = 4 * EPS[dtype.name] * allowed + 2.0**-50 * size / abs(S) * (abs(expected) + allowed)
            assert abs(exact(found) - expected) <= bound


def test_axes_broadcasting_and_keepdims():
    rng = np.random.default_rng(0)
    x, b, t = rng.normal(size=(2, 3, 4)), rng.normal(size=(3, 1)), rng.normal(size=(2, 3, 4))
    g = rng.normal(size=(3, 1, 1)).reshape(1, 3, 1)
    l, sign = se.logsumexp(x, (0, 2), b=b, keepdims=True, return_sign=True)
    q = sign * np.exp(x - l)
    dx, db = se.logsumexp_vjp(g, x, (0, 2), b=b, keepdims=True)
    np.testing.assert_allclose(dx, g * b * q, rtol=1e-13)
    np.testing.assert_allclose(db, (g * q).sum((0, 2))[:, None], rtol=1e-13)
    again = se.logsumexp_vjp(g.reshape(3), x, (0, 2), b=b)
    assert_array_equal(again[0], dx), assert_array_equal(again[1], db)
    found = se.logsumexp_jvp(t, x, (0, 2), b=b, t_b=b, keepdims=True)
    np.testing.assert_allclose(found, ((t + 1) * b * q).sum((0, 2), keepdims=True), rtol=1e-12)
    assert se.logsumexp_jvp(t, x, (0, 2), b=b).shape == (3,)
    # a weight of 1 is logsumexp itself
    np.testing.assert_allclose(se.logsumexp_vjp(g.reshape(3), x, (0, 2), b=1)[0], se.logsumexp_vjp(g.reshape(3), x, (0, 2)),
                               rtol=1e-15)


def test_special_values():
    dx, db = se.logsumexp_vjp(1.0, [0.0, -INF, 1.0], b=[1.0, 2.0, 0.0])
    assert_array_equal(dx, [1, 0, 0])
    assert_array_equal(db, [1, 0, np.exp(1.0)])
    for x, b in (([0.0, NAN], [1, 1]), ([0.0, INF], [1, 1]), ([0.0, 1], [1, INF])):
        assert np.isnan(se.logsumexp_vjp(1.0, x, b=np.float64(b))[0]).any()
        assert np.isnan(se.logsumexp_jvp([1.0, 1], x, b=np.float64(b)))
    nothing = [-INF, -INF]  # a constant
    assert not np.any(se.logsumexp_vjp(1.0, nothing, b=np.ones(2))) and se.logsumexp_jvp([1.0, 1], nothing, b=np.ones(2)) == 0


# -- logmeanexp ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_logmeanexp(dtype):
    dtype = dtype_of(dtype)
    rng = np.random.default_rng(2)
    for n in (1, 3, 100, 700):
        x = (rng.normal(size=(6, n)) * 5).astype(dtype)
        x[1] = 0
        x[2] = 1.5
        y = se.logmeanexp(x, -1)
        expected = [mpmath.log(sum(mpmath.exp(exact(v)) for v in row) / n) for row in x]
        scale = [max(abs(e), abs(exact(max(row)))) if max(row) else e for e, row in zip(expected, x)]
        assert errors(y, expected, dtype, scale) <= (1 if dtype.itemsize > 2 else 0.51)
        assert y[1] == 0 and y[2] == x[2, 0]  # the mean of equal numbers is that number


def test_logmeanexp_options():
    rng = np.random.default_rng(4)
    x, b, where = rng.normal(size=(3, 4, 5)), rng.normal(size=(4, 1)), rng.random((3, 4, 5)) < 0.6
    where[1, 2] = False
    mean = np.where(where, b * np.exp(x), 0).sum((0, 2)) / where.sum((0, 2))
    value, sign = se.logmeanexp(x, (0, 2), b=b, where=where, return_sign=True)
    np.testing.assert_allclose(sign * np.exp(value), mean, rtol=1e-13)
    assert_array_equal(np.isnan(se.logmeanexp(x, (0, 2), b=b, where=where)), mean < 0)
    assert se.logmeanexp(x, keepdims=True).shape == (1, 1, 1) and isinstance(se.logmeanexp(x), np.float64)
    out = np.zeros((3, 4))
    assert se.logmeanexp(x, -1, where=where, out=out) is out
    assert np.isnan(out[1, 2]) and np.isnan(se.logmeanexp(np.zeros((2, 0)), 1)).all()
    with np.errstate(invalid="ignore"):
        x[~where] = NAN  # what is masked is not read
    assert np.isnan(se.logmeanexp(x, -1, where=where)).sum() == 1
    assert_array_equal(se.logmeanexp([[-INF, -INF], [INF, 0], [NAN, 0]], 1), [-INF, INF, NAN])


def test_bytes():
    rng = np.random.default_rng(6)
    for dtype in map(dtype_of, DTYPES):
        x, b, t = (rng.normal(size=(5, 700)).astype(dtype) for _ in range(3))
        g = t[:, 0].copy()
        calls = [lambda x, b, t, g, a: se.logsumexp_vjp(g, x, a, b=b), lambda x, b, t, g, a: (se.logmeanexp(x, a, b=b * b),),
                 lambda x, b, t, g, a: (se.logsumexp_jvp(t, x, a, b=b, t_b=x),)]
        for call in calls:
            expected = [r.tobytes() for r in call(x, b, t, g, 1)]
            for isa in ISAS:
                _core.set_isa(isa)
                for threads in (1, 2):
                    se.set_num_threads(threads)
                    assert [r.tobytes() for r in call(x, b, t, g, 1)] == expected, (isa, dtype)
            turned = call(*(np.asfortranarray(a).T for a in (x, b, t)), g, 0)
            assert [np.ascontiguousarray(r.T).tobytes() for r in turned] == expected
            alone = call(x[2], b[2], t[2], g[2], 0)
            assert [r.tobytes() for r in alone] == [np.ascontiguousarray(r[2]).tobytes() for r in call(x, b, t, g, 1)]


@pytest.mark.parametrize("call, kind, text", [
    (lambda: se.logsumexp_vjp(np.ones(2), np.ones((3, 4)), 1, b=np.ones(4)), ValueError,
     r"logsumexp_vjp: g has shape \(2,\), accepted: \(3,\)"),
    (lambda: se.logsumexp_vjp(1.0, np.ones(3), b=np.ones(4)), ValueError,
     r"logsumexp_vjp: x has shape \(3,\), b has shape \(4,\)"),
    (lambda: se.logsumexp_vjp(1.0, np.ones(3), b=np.ones(3), out=np.ones(3)), TypeError, "logsumexp_vjp: out is a ndarray"),
    (lambda: se.logsumexp_jvp(np.ones(3), np.ones(3), t_b=np.ones(3)), TypeError, "logsumexp_jvp: t_b is given without b"),
    (lambda: se.logsumexp_jvp(np.ones(2), np.ones(3), b=1.0), ValueError,
     r"logsumexp_jvp: t has shape \(2,\), accepted: \(3,\)"),
    (lambda: se.logmeanexp(np.ones(3), where=np.ones(2, bool)), ValueError, r"logmeanexp: where has shape \(2,\), accepted"),
    (lambda: se.logmeanexp(np.ones(3), 1), np.exceptions.AxisError, "axis 1 is out of bounds"),
    (lambda: se.logmeanexp(np.ones(3), out=np.ones(3)), ValueError, r"logmeanexp: out has shape \(3,\), accepted: \(\)"),
])
def test_bad_input(call, kind, text):
    with pytest.raises(kind, match=text):
        call()


# -- a number as a weight that the dtype has no room for -----------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize(
    "dtype, b", [("float32", 1e-50), ("float32", 2**70), ("float32", -1e60), ("float16", 1e5), ("bfloat16", 1e39)]
)
def test_a_weight_beyond_the_dtype(dtype, b):
    x = np.array([0.0, 1.0, 0.5], dtype_of(dtype))
    lse = np.log(np.exp(x.astype(np.float64)).sum())
    value, sign = se.logmeanexp(x, b=b, return_sign=True)
    assert value.dtype == x.dtype and value == (lse + np.log(abs(float(b))) - np.log(3)).astype(x.dtype) and sign == np.sign(b)
    out = np.empty((), x.dtype)
    se.logmeanexp(x, b=abs(b), out=out)
    assert out == value
    p = np.exp(x.astype(np.float64) - lse)
    assert_array_equal(se.logsumexp_vjp(x.dtype.type(1), x, b=b)[0], p.astype(x.dtype))
    t = np.array([1, 2, 4], x.dtype)
    assert se.logsumexp_jvp(t, x, b=b) == (p * t.astype(np.float64)).sum().astype(x.dtype)
    if np.dtype(x.dtype).type(b) in (0, np.inf, -np.inf):
        with pytest.raises(ValueError, match="LogSumExp.update: b is .*, accepted: a number that .* has to full precision"):
            se.LogSumExp().update(x, b=b)


def test_logmeanexp_does_not_read_weights_that_are_left_out():
    for bad in (NAN, INF):
        assert se.logmeanexp([0.0, 1.0], b=[1, bad], where=[True, False]) == 0.0


def test_weights_make_normal_numbers_of_what_is_none():
    x, b = np.array([0.0, -740.0, -760.0]), np.array([1.0, 1e30, 1e40])
    dx, db = se.logsumexp_vjp(1.0, x, b=b)
    for i in (1, 2):
        assert dx[i] == pytest.approx(float(mpmath.exp(x[i]) * mpf(b[i])), rel=1e-15, abs=0)
    assert 0 < db[1] < 2e-321 and db[2] == 0
