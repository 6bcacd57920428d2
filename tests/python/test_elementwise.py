"""logaddexp, logsubexp, log1mexp, softplus and their derivatives: errors in ulp, bytes, special values, bad input."""

import mpmath
import numpy as np
import pytest
from numpy.testing import assert_array_equal

import sumexp as se
from isas import ISAS
from log_domain_oracle import DTYPES, dtype_of, errors, exact, mpf
from sumexp import _core

INF, NAN = float("inf"), float("nan")
exp, log, expm1, log1p = mpmath.exp, mpmath.log, mpmath.expm1, mpmath.log1p



def log_rest(d):  # log(1 - e^-d)
    return log(-expm1(-d)) if d < 1 else log1p(-exp(-d))


FORWARD = {
    "logaddexp": lambda a, b: max(a, b) + log1p(exp(-abs(a - b))),
    "logsubexp": lambda a, b: a + log_rest(a - b) if a > b else mpf("-inf") if a == b else mpf("nan"),
    "log1mexp": lambda x: log_rest(abs(x)) if x else mpf("-inf"),
    "softplus": lambda x: log1p(exp(x)),
}
VJP = {
    "logaddexp": lambda a, b: (1 / (1 + exp(b - a)), 1 / (1 + exp(a - b))),
    "logsubexp": lambda a, b: (-1 / expm1(b - a), -1 / expm1(a - b)),
    "log1mexp": lambda x: ((1 if x > 0 else -1) / expm1(abs(x)),),
    "softplus": lambda x: (1 / (1 + exp(-x)),),
}


def operands(name, dtype, n=400):
    """Pairs near and far, of all sizes, and results next to 0: e^a +- e^b next to 1."""
    rng = np.random.default_rng(7)
    a, b = (rng.normal(size=n) * np.tile([1.0, 20.0, 300.0, 1e-3], n // 4) for _ in range(2))
    near = slice(0, n // 4)
    with np.errstate(all="ignore"):
        if name == "logaddexp":
            a[near] = -abs(a[near])
            b[near] = np.log(-np.expm1(a[near]))
        if name == "logsubexp":
            a[near] = abs(a[near])
            b[near] = a[near] + np.log(-np.expm1(-a[near]))
    a[-4:], b[-4:] = (0, 0, -1e-3, 3), (-40, -700, -1e-3, 3)
    a, b = a.astype(dtype), b.astype(dtype)
    if name == "logsubexp":
        a, b = np.maximum(a, b), np.minimum(a, b)
    return (a, b) if name in ("logaddexp", "logsubexp") else (a,)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FORWARD)
def test_ulp(name, dtype):
    dtype = dtype_of(dtype)
    args = operands(name, dtype)
    expected = [FORWARD[name](*map(exact, row)) for row in zip(*args)]
    # A float64 result below 2^-44 that is the difference of larger numbers is within 2^-96.
    scale = None
    if dtype == np.float64:
        cancels = [abs(e) < abs(exact(max(row))) for e, row in zip(expected, zip(*args))]
        scale = [max(abs(e), mpf(2) ** -44) if c else e for e, c in zip(expected, cancels)]
    worst = errors(getattr(se, name)(*args), expected, dtype, scale)
    assert worst <= (2 if dtype.itemsize > 2 else 0.51)


@pytest.mark.parametrize("name, args, value", [
    ("logaddexp", (-0.5, np.log(-np.expm1(-0.5))), None),
    ("logaddexp", (-1e-10, -20.0), None),
    ("logsubexp", (1.0, 1.0 + np.log(-np.expm1(-1.0))), None),
    ("logsubexp", (40.0, 40.0 - 4.2e-18), -INF),
    ("log1mexp", (-1e-300,), None), ("log1mexp", (5e-324,), None), ("log1mexp", (740.0,), None),
    ("softplus", (-744.0,), None), ("softplus", (1e308,), 1e308),
])
def test_hard_values(name, args, value):
    actual = getattr(se, name)(*args)
    if value is not None:
        assert actual == value
        return
    expected = FORWARD[name](*map(exact, args))
    assert abs(exact(actual) - expected) <= max(2 * np.spacing(float(abs(expected))), 2**-96 if abs(expected) < 2**-44 else 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", VJP)
def test_vjp_ulp(name, dtype):
    dtype = dtype_of(dtype)
    args = operands(name, dtype, 200)
    keep = np.ones(len(args[0]), bool)
    if name == "logsubexp":
        keep = args[0] != args[1]
    if name == "log1mexp":
        keep = args[0] != 0
    args = tuple(a[keep] for a in args)
    g = (np.random.default_rng(1).normal(size=len(args[0])) + 2).astype(dtype)
    found = getattr(se, name + "_vjp")(g, *args)
    found = found if isinstance(found, tuple) else (found,)
    expected = [[exact(u) * d for d in VJP[name](*map(exact, row))] for u, row in zip(g, zip(*args))]
    largest = float(np.finfo(np.float64).max) if dtype != np.float16 else 65504.0
    for k, d in enumerate(found):
        rows = [i for i in range(len(g)) if abs(expected[i][k]) <= largest]
        assert errors(d[rows], [expected[i][k] for i in rows], dtype) <= (2 if dtype.itemsize > 2 else 0.51)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["logaddexp", "logsubexp"])
def test_jvp_ulp(name, dtype):
    dtype = dtype_of(dtype)
    args = operands(name, dtype, 200)
    if name == "logsubexp":
        args = tuple(a[args[0] != args[1]] for a in args)
    ta, tb = (np.random.default_rng(k).normal(size=len(args[0])).astype(dtype) for k in (1, 2))
    terms = [[exact(t) * d for t, d in zip(row[:2], VJP[name](*map(exact, row[2:])))] for row in zip(ta, tb, *args)]
    found = getattr(se, name + "_jvp")(ta, tb, *args)
    assert errors(found, [sum(t) for t in terms], dtype, [sum(map(abs, t)) for t in terms]) <= 2


def test_differences_below_2_to_the_minus_1022():
    """Their reciprocals are beyond the largest number, the products with g need not be."""
    assert se.log1mexp_vjp(1e-310, 1e-310) == 1 and se.log1mexp_vjp(-1e-310, -1e-310) == 1
    assert se.log1mexp_vjp(1.0, 1e-310) == INF and se.log1mexp_vjp(1.0, 2.0**-1000) == 2.0**1000
    assert se.logsubexp_vjp(1e-310, 2e-310, 1e-310) == (1, -1)
    assert se.logsubexp_jvp(1e-310, 1e-310, 2e-310, 1e-310) == 0


def test_special_values():
    check = lambda name, cases: [assert_array_equal(getattr(se, name)(*map(np.float64, a)), r) for a, r in cases]
    check("logaddexp", [((-INF, -INF), -INF), ((INF, 1), INF), ((INF, INF), INF), ((INF, -INF), INF), ((NAN, -INF), NAN),
                        ((-INF, NAN), NAN), ((INF, NAN), NAN), ((-INF, 3), 3), ((1e308, -1e308), 1e308), ((0, -INF), 0)])
    check("logsubexp", [((-INF, -INF), -INF), ((INF, 1), INF), ((INF, INF), NAN), ((1, INF), NAN), ((3, -INF), 3),
                        ((-INF, 3), NAN), ((1, 2), NAN), ((2, 2), -INF), ((NAN, 1), NAN), ((1, NAN), NAN), ((0, -INF), 0)])
    check("log1mexp", [((0,), -INF), ((-0.0,), -INF), ((INF,), 0), ((-INF,), 0), ((NAN,), NAN)])
    check("softplus", [((INF,), INF), ((-INF,), 0), ((NAN,), NAN), ((0,), np.log(2))])
    check("logaddexp_vjp", [((2, INF, 1), (2, 0)), ((2, 1, INF), (0, 2)), ((2, -INF, 1), (0, 2)), ((2, NAN, 1), (NAN, NAN)),
                            ((2, -INF, NAN), (NAN, NAN)), ((2, NAN, -INF), (NAN, NAN)), ((2, INF, INF), (1, 1))])
    check("logsubexp_vjp", [((2, 5, 5), (INF, -INF)), ((2, -INF, -INF), (0, 0)), ((2, 3, -INF), (2, 0)),
                            ((2, 1, 2), (NAN, NAN)), ((2, INF, INF), (NAN, NAN)), ((2, NAN, 1), (NAN, NAN))])
    check("log1mexp_vjp", [((2, 0), INF), ((2, INF), 0), ((2, -INF), 0), ((2, NAN), NAN)])


def test_gradient_of_two_absent():  # pytorch 49724: NaN there
    for dtype in map(dtype_of, DTYPES):
        a = np.full(3, -INF, dtype)
        da, db = se.logaddexp_vjp(np.ones(3, dtype), a, a)
        assert_array_equal(da, 0), assert_array_equal(db, 0)


@pytest.mark.parametrize("gap", [709, 710, 745, 1000, 1e300])
def test_gradient_far_apart(gap):  # pytorch 196704: e^gap overflows
    da, db = se.logaddexp_vjp(1.0, 0.0, float(gap))
    assert db == 1 and da == float(mpmath.exp(-mpf(gap)))
    assert se.logaddexp_vjp(1.0, 3.0, 3.0) == (0.5, 0.5)
    assert se.logsubexp_vjp(1.0, float(gap), 0.0)[0] == 1


def test_gradients_that_overflow():
    """Infinity, not the NaN of what it lacks to be exact."""
    assert se.logaddexp_vjp(INF, 3.0, 2.0) == (INF, INF)
    assert se.logsubexp_vjp(1e308, 1.0, 1.0 - 2.0**-40) == (INF, -INF)
    assert se.log1mexp_vjp(1e308, 1e-10) == INF and se.log1mexp_vjp(-1e308, 1e-10) == -INF
    assert se.softplus_vjp(INF, 0.0) == INF


@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes(dtype):
    """Of any instruction set, number of threads, stride and place."""
    dtype = dtype_of(dtype)
    rng = np.random.default_rng(3)
    g, a, b, t = ((rng.normal(size=(37, 2003)) * 3).astype(dtype) for _ in range(4))
    a[rng.random(a.shape) < 0.1] = -INF
    b[rng.random(b.shape) < 0.1] = -INF
    calls = {
        "logaddexp": (a, b), "logsubexp": (a, b), "log1mexp": (a,), "softplus": (a,), "logaddexp_vjp": (g, a, b),
        "logsubexp_vjp": (g, a, b), "log1mexp_vjp": (g, a), "softplus_vjp": (g, a), "logaddexp_jvp": (g, t, a, b),
        "logsubexp_jvp": (g, t, a, b),
    }
    as_tuple = lambda r: r if isinstance(r, tuple) else (r,)
    for name, args in calls.items():
        call = getattr(se, name)
        with np.errstate(all="ignore"):
            expected = as_tuple(call(*args))
            for isa in ISAS:
                _core.set_isa(isa)
                for threads in (1, 2):
                    se.set_num_threads(threads)
                    assert [r.tobytes() for r in as_tuple(call(*args))] == [r.tobytes() for r in expected], (name, isa, threads)
            turned = as_tuple(call(*(x[::-1, ::-3].T for x in args)))
            assert [r.T.tobytes() for r in turned] == [np.ascontiguousarray(r[::-1, ::-3]).tobytes() for r in expected]
            one = as_tuple(call(*(x[5, 7] for x in args)))
            assert [r.tobytes() for r in one] == [r[5, 7].tobytes() for r in expected]


def test_broadcasting_and_gradients_of_it():
    a, b = np.linspace(-2, 2, 6).reshape(2, 3, 1), np.linspace(-1, 1, 4)
    y = se.logaddexp(a, b)
    assert_array_equal(y, se.logaddexp(np.broadcast_to(a, (2, 3, 4)), np.broadcast_to(b, (2, 3, 4))))
    g = np.random.default_rng(0).normal(size=y.shape)
    da, db = se.logaddexp_vjp(g, a, b)
    full = se.logaddexp_vjp(g, np.broadcast_to(a, y.shape), np.broadcast_to(b, y.shape))
    assert da.shape == a.shape and db.shape == b.shape
    np.testing.assert_allclose(da, full[0].sum(-1, keepdims=True), rtol=1e-14)
    np.testing.assert_allclose(db, full[1].sum((0, 1)), rtol=1e-14)
    assert se.logaddexp(np.float32([1]), 2).dtype == np.float32 and se.logaddexp([1], 2).dtype == np.float64
    assert isinstance(se.softplus(1), np.float64) and se.logaddexp(np.zeros((0, 3)), np.zeros(3)).shape == (0, 3)


def test_out():
    a, b = np.linspace(-2, 2, 9), np.linspace(3, -3, 9)
    expected = se.logaddexp(a, b)
    assert se.logaddexp(a, b, out=a) is a
    assert_array_equal(a, expected)
    wide = np.zeros(18)
    assert_array_equal(se.softplus(b, out=wide[::2]), se.softplus(b))
    assert_array_equal(wide[1::2], 0)


@pytest.mark.parametrize("call, kind, text", [
    (lambda out: se.logaddexp(np.ones(3), np.ones(4), out=out), ValueError,
     r"logaddexp: a has shape \(3,\), b has shape \(4,\), accepted: shapes that broadcast"),
    (lambda out: se.logaddexp(np.ones(4), np.ones(4), out=out), ValueError,
     r"logaddexp: out has shape \(3,\), accepted: \(4,\)"),
    (lambda out: se.softplus(np.ones(3, np.float32), out=out), TypeError, "softplus: out has dtype float64, accepted: float32"),
    (lambda out: se.softplus(np.ones(3, complex), out=out), TypeError, "softplus: x has dtype complex128, accepted"),
    (lambda out: se.log1mexp(np.concatenate([out, out])[1:4], out="no"), TypeError, "log1mexp: out is a str, accepted"),
    (lambda out: se.softplus(out[::-1], out=out), ValueError, "softplus: out overlaps an input"),
    (lambda out: se.logaddexp_vjp(np.ones(2), out, out), ValueError, r"logaddexp_vjp: g has shape \(2,\), accepted: \(3,\)"),
])
def test_bad_input(call, kind, text):
    out = np.full(3, 7.0)
    with pytest.raises(kind, match=text):
        call(out)
    assert_array_equal(out, 7)


def test_read_only_out():
    out = np.zeros(3)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="softplus: out is read-only"):
        se.softplus(np.ones(3), out=out)
