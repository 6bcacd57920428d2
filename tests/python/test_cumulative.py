"""logcumsumexp and its derivatives: every prefix in ulp, bytes, special values, bad input."""

import mpmath
import numpy as np
import pytest
from numpy.testing import assert_array_equal

import sumexp as se
from isas import ISAS
from log_domain_oracle import DTYPES, dtype_of, errors, exact, mpf
from sumexp import _core

INF, NAN = float("inf"), float("nan")
N = 600  # three pieces of 256


def rows():
    rng = np.random.default_rng(5)
    normal = rng.normal(size=N)
    return {
        "normal": normal,
        "wide": normal * 100,  # pieces too wide for one power of two
        "wider": normal * 3000,
        "rising": np.linspace(-2000, 2000, N),
        "falling": np.linspace(900, -900, N),
        "rising slowly": np.arange(N) * 1e-6,
        "winner first": np.r_[0, -5 - 60 * rng.random(N - 1)],
        "winner inside": np.r_[-50 - 50 * rng.random(300), 0, -20 - 100 * rng.random(N - 301)],
        "masked": np.where(rng.random(N) < 0.6, -INF, normal),
        "nothing at first": np.r_[np.full(300, -INF), normal[300:]],
        "jump": normal + np.repeat([-1e4, 0], N // 2),
        "drop": normal + np.repeat([1e4, 0], N // 2),
        "next to 0": np.log(rng.random(N)) - np.log(N) / 2,
        "through 0": np.log(rng.random(N)) - np.log(N / 3),  # in its second piece
        "through 0 slowly": np.r_[np.log(1 / 500) + np.zeros(499), -8 - 12 * rng.random(N - 499)],
        "probabilities": np.log(rng.dirichlet(np.full(N, 0.3)) + 1e-300),
        "almost 1 at first": np.r_[-1e-9, -20 - 60 * rng.random(N - 1)],
        "large": 2.0**41 + normal * 3,
        "small": -(2.0**41) + normal * 3,
    }


def exact_prefixes(x):
    total, found = mpf(0), []
    for v in x:
        total += mpmath.exp(exact(v)) if v != -INF else 0
        found.append(mpmath.log(total) if total else mpf("-inf"))
    return found


@pytest.mark.parametrize("name", rows())
@pytest.mark.parametrize("dtype", DTYPES)
def test_ulp(name, dtype):
    dtype = dtype_of(dtype)
    with np.errstate(over="ignore"):
        x = rows()[name].astype(dtype)
    if np.isinf(x.astype(np.float64)).any() and name not in ("masked", "nothing at first"):
        return  # beyond the largest float16
    expected = exact_prefixes(x)
    floor = {"float64": 2.0**-44}.get(dtype.name, 2.0**-72)
    scale = expected if name.startswith("winner") else [max(abs(e), mpf(floor)) for e in expected]
    assert errors(se.logcumsumexp(x), expected, dtype, scale) <= (2 if dtype.itemsize > 2 else 0.51)


def test_reverse_and_exclusive():
    for x in rows().values():
        y = se.logcumsumexp(x)
        later = se.logcumsumexp(x, exclusive=True)
        assert later[0] == -INF
        np.testing.assert_allclose(later[1:], y[:-1], rtol=3e-16, atol=2**-97)
        for exclusive in (False, True):
            turned = se.logcumsumexp(x[::-1].copy(), exclusive=exclusive)[::-1]
            assert_array_equal(se.logcumsumexp(x, reverse=True, exclusive=exclusive), turned)


def test_bytes():
    """Of a row alone: any axis, strides, batch, instruction set, threads; in place."""
    for dtype in map(dtype_of, DTYPES):
        x = np.stack([r for n, r in rows().items() if n not in ("large", "small")]).astype(dtype)
        g = np.random.default_rng(2).normal(size=x.shape).astype(dtype)
        calls = [lambda x, g, a, o=o: se.logcumsumexp(x, a, **o) for o in ({}, {"exclusive": True}, {"reverse": True})]
        calls += [lambda x, g, a, f=f: f(g, x, a, exclusive=True) for f in (se.logcumsumexp_vjp, se.logcumsumexp_jvp)]
        for call in calls:
            expected = call(x, g, 1)
            for isa in ISAS:
                _core.set_isa(isa)
                assert call(x, g, -1).tobytes() == expected.tobytes(), (isa, dtype)
            columns = call(np.asfortranarray(x.T), np.asfortranarray(g.T), 0)
            assert np.ascontiguousarray(columns.T).tobytes() == expected.tobytes()
            assert call(np.repeat(x[3:4], 3, 1)[0, ::3], g[3], 0).tobytes() == expected[3].tobytes()
            three = call(x[:, :, None] + np.zeros(3, dtype), g[:, :, None] + np.zeros(3, dtype), 1)
            assert np.ascontiguousarray(three[:, :, 1]).tobytes() == expected.tobytes()
        for options in ({}, {"exclusive": True}, {"exclusive": True, "reverse": True}):
            own = x.copy()
            assert se.logcumsumexp(own, out=own, **options) is own
            assert own.tobytes() == se.logcumsumexp(x, **options).tobytes()
            own = g.copy()
            se.logcumsumexp_vjp(own, x, out=own, **options)
            assert own.tobytes() == se.logcumsumexp_vjp(g, x, **options).tobytes()
            own = g.copy()
            se.logcumsumexp_jvp(own, x, out=own, **options)
            assert own.tobytes() == se.logcumsumexp_jvp(g, x, **options).tobytes()


def test_one_long_row_over_threads():
    x = np.random.default_rng(0).normal(size=200_003).astype(np.float32)
    x[50_000:50_300] *= 500  # pieces of the other kind
    for options in ({}, {"exclusive": True}, {"reverse": True}):
        found = set()
        for threads in (1, 2, 3, 8):
            se.set_num_threads(threads)
            found.add(se.logcumsumexp(x, **options).tobytes())
        assert len(found) == 1
    np.testing.assert_allclose(se.logcumsumexp(x)[-1], se.logsumexp(x), rtol=1e-7)


def test_long_rows_next_to_0():
    """The sum of all elements before, again within 2^-97: on one thread, on many, in place, beside other rows."""
    rng = np.random.default_rng(3)
    p = rng.gamma(0.3, size=70_001)
    late = np.r_[np.full(40_000, -30.0), -1e-9, -25 * p[40_001:]]
    for x in (np.log(p / p.sum() + 1e-300), np.log(p / p.sum() * 1.7 + 1e-300), late):
        expected = exact_prefixes(x)
        for options in ({}, {"exclusive": True}):
            found = set()
            for threads in (1, 2, 3):
                se.set_num_threads(threads)
                y = se.logcumsumexp(x, **options)
                own = x.copy()
                found |= {y.tobytes(), se.logcumsumexp(own, out=own, **options).tobytes()}
                found |= {np.ascontiguousarray(se.logcumsumexp(np.stack([x, p], 1), 0, **options)[:, 0]).tobytes()}
            assert len(found) == 1
            of = expected[: len(x) - len(options)]
            scale = [max(abs(e), mpf(2.0**-44)) for e in of]
            assert errors(y[len(options) :], of, x.dtype, scale) <= 2

def dense(x):
    """The matrix e^(x_j - y_i), j <= i, of which the derivatives are products, in double."""
    y = np.array([float(v) for v in exact_prefixes(x)])
    with np.errstate(invalid="ignore", over="ignore"):
        d = np.exp(np.subtract.outer(-y, -x.astype(np.float64)))
    d[np.isnan(d)] = 0
    return np.tril(d)


@pytest.mark.parametrize("dtype", DTYPES)
def test_derivatives(dtype):
    dtype = dtype_of(dtype)
    eps = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}[dtype.name]
    rng = np.random.default_rng(1)
    for name in ("normal", "wide", "rising", "falling", "winner inside", "masked", "nothing at first", "jump"):
        x = rows()[name][150:450].astype(dtype)
        g = rng.normal(size=x.shape).astype(dtype)
        J, u = dense(x), g.astype(np.float64)
        # the oracle's own error, of y rounded to double, is below 2^-53 (|y| + 1)
        bound = lambda terms: (4 * eps + 2.0**-51 * (1 + np.abs(x[np.isfinite(x)].astype(np.float64)).max())) * terms + 1e-300
        dx, dy = se.logcumsumexp_vjp(g, x), se.logcumsumexp_jvp(g, x)
        assert dx.dtype == dy.dtype == dtype
        tiny = 6e-8 if dtype == np.float16 else 1e-40
        assert (np.abs(dx.astype(np.float64) - J.T @ u) <= bound(J.T @ abs(u)) + tiny).all(), name
        assert (np.abs(dy.astype(np.float64) - J @ u) <= bound(J @ abs(u)) + tiny).all(), name
        for reverse in (False, True):
            flip = (lambda a: a[::-1]) if reverse else (lambda a: a)
            K = dense(flip(x))
            K = np.vstack([np.zeros(len(x)), K[:-1]])
            dx = flip(se.logcumsumexp_vjp(g, x, reverse=reverse, exclusive=True)).astype(np.float64)
            dy = flip(se.logcumsumexp_jvp(g, x, reverse=reverse, exclusive=True)).astype(np.float64)
            v = flip(u)
            assert (np.abs(dx - K.T @ v) <= bound(K.T @ abs(v)) + tiny).all(), name
            assert (np.abs(dy - K @ v) <= bound(K @ abs(v)) + tiny).all(), name


def test_a_large_factor_far_below():
    """A term of 2^-1500 beside the largest, times 10^300."""
    x, expected = np.array([-1040.0, 0.0]), float(mpmath.exp(-1040) * mpf(10) ** 300)
    assert se.logcumsumexp_jvp(np.array([1e300, 0.0]), x)[1] == pytest.approx(expected, rel=1e-15, abs=0)
    assert se.logcumsumexp_vjp(np.array([0.0, 1e300]), x)[0] == pytest.approx(expected, rel=1e-15, abs=0)
    # a term below the smallest normal number, of a result that is none
    expected = float(mpmath.exp(-746) * mpf(10) ** 16)
    for x, g in (([700.0, -46.0], [0.0, 1e16]), ([-46.0, 700.0], [0.0, 1e16]), ([-46.0, 0.0, 700.0], [0.0, 0.0, 1e16])):
        dx = se.logcumsumexp_vjp(np.array(g), np.array(x))
        assert dx[x.index(-46.0)] == pytest.approx(expected, rel=1e-15, abs=0)
    for x, t in (([700.0, -46.0], [0.0, 1e16]), ([-46.0, 700.0], [1e16, 0.0]), ([-46.0, 0.0, 700.0], [1e16, 0.0, 0.0])):
        assert se.logcumsumexp_jvp(np.array(t), np.array(x))[-1] == pytest.approx(expected, rel=1e-15, abs=0)


def test_special_values():
    assert_array_equal(se.logcumsumexp([1.0, INF, -INF, 2.0]), [1, INF, INF, INF])
    assert_array_equal(se.logcumsumexp([-INF, NAN, 1.0]), [-INF, NAN, NAN])
    assert_array_equal(se.logcumsumexp([INF, NAN, 1.0]), [INF, NAN, NAN])
    assert_array_equal(se.logcumsumexp(np.array(3.0)), 3)
    assert se.logcumsumexp(np.zeros((3, 0))).shape == (3, 0) and se.logcumsumexp(np.zeros((0, 3)), 0).shape == (0, 3)
    x = np.array([1e300, 2e300, 2e300, -1e300])
    assert_array_equal(se.logcumsumexp(x), [1e300, 2e300, 2e300, 2e300])
    assert_array_equal(se.logcumsumexp_vjp(np.ones(3), [1.0, NAN, 2.0]), [NAN] * 3)
    assert_array_equal(se.logcumsumexp_jvp(np.ones(3), [1.0, NAN, 2.0]), [1, NAN, NAN])


def test_one_nan():
    """Whatever NaN comes in, and whichever the arithmetic makes of it, one goes out."""
    for dtype in map(dtype_of, DTYPES):
        bits = np.dtype(f"u{dtype.itemsize}")
        one = np.array(NAN, dtype).view(bits)
        given = (one | bits.type(1 << (8 * dtype.itemsize - 1)) | bits.type(1)).view(dtype)
        x = np.linspace(-3, 3, 70).astype(dtype)
        bad = x.copy()
        bad[[0, 40]] = given
        for isa in ISAS:
            _core.set_isa(isa)
            found = [se.logcumsumexp(bad), se.logmeanexp(bad)]
            found += [f(g, v) for f in (se.logcumsumexp_vjp, se.logcumsumexp_jvp) for g, v in ((x, bad), (bad, x))]
            for y in map(np.asarray, found):
                nan = y[np.isnan(y.astype(np.float64))]
                assert nan.size and (nan.view(bits) == one).all(), (isa, dtype)


def test_absent_at_first():  # pytorch 52213: NaN where a sum has but -inf so far; and so their gradients
    x = np.array([[-INF, -INF, 1.0, -INF, 2.0], [2.0, -INF, -INF, 1.0, 3.0]])
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(se.logcumsumexp(x), np.log(np.cumsum(np.exp(x), 1)), rtol=1e-15)
    for f in (se.logcumsumexp_vjp, se.logcumsumexp_jvp):
        assert np.isfinite(f(np.ones_like(x), x)).all()
        assert_array_equal(f(np.ones_like(x), x)[0, :2], 0)
        assert_array_equal(f(np.ones_like(x), np.full_like(x, -INF)), 0)


@pytest.mark.parametrize("call, kind, text", [
    (lambda out: se.logcumsumexp(out, 1, out=out), np.exceptions.AxisError, "logcumsumexp: axis 1 is out of bounds"),
    (lambda out: se.logcumsumexp(out, None, out=out), TypeError, "logcumsumexp: axis is None, accepted: an int"),
    (lambda out: se.logcumsumexp(np.ones(4), out=out), ValueError, r"logcumsumexp: out has shape \(3,\), accepted: \(4,\)"),
    (lambda out: se.logcumsumexp(np.ones(3, np.float32), out=out), TypeError, "logcumsumexp: out has dtype float64"),
    (lambda out: se.logcumsumexp(out[::-1], out=out), ValueError, "logcumsumexp: out overlaps an input"),
    (lambda out: se.logcumsumexp_vjp(np.ones(2), out, out=out), ValueError, r"logcumsumexp_vjp: g has shape \(2,\), accepted"),
    (lambda out: se.logcumsumexp_jvp(np.ones(2), out, out=out), ValueError, r"logcumsumexp_jvp: t has shape \(2,\), accepted"),
])
def test_bad_input(call, kind, text):
    out = np.full(3, 7.0)
    with pytest.raises(kind, match=text):
        call(out)
    assert_array_equal(out, 7)
