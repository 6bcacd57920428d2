"""Temperatures at both ends: quotients x / T that overflow, and an infinite T."""

import ml_dtypes
import mpmath
import numpy as np
import pytest

import sumexp as se
from isas import ISAS
from sumexp import _core

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float64": np.float64}
# Where a row lies decides which driver carries it.
LAYOUTS = {
    "row": lambda x: x, "rows": lambda x: np.stack([x, x + 0, x[::-1]]), "many": lambda x: np.tile(x, (70, 1)),
    "columns": lambda x: np.tile(x[:, None], (1, 40)), "strided": lambda x: np.repeat(x, 2)[::2],
}  # fmt: skip


def exact(row, T):
    """log_softmax(x / T), in mpmath."""
    with mpmath.workdps(60):
        q = [mpmath.mpf(float(v)) / mpmath.mpf(T) if np.isfinite(v) else mpmath.mpf(float(v)) for v in row]
        m = max(q)
        log_sum = mpmath.log(sum(mpmath.exp(v - m) for v in q))
        return [(v - m) - log_sum for v in q]


def both(x, T, axis=-1):
    return se.softmax(x, axis, temperature=T), se.log_softmax(x, axis, temperature=T)


# Half an ulp of a number, relative; the largest number; the smallest.
EPS = {"float16": (2.0**-11, 65504.0, 2.0**-24), "bfloat16": (2.0**-8, 3.39e38, 2.0**-133),
       "float32": (2.0**-24, 3.4028235e38, 2.0**-149), "float64": (2.0**-53, 1.797e308, 5e-324)}  # fmt: skip


def check(got, expected, dtype):
    eps, largest, smallest = EPS[dtype]
    for value, right in zip(got.astype(np.float64), expected):
        if right < -largest:
            assert value == -np.inf
        else:
            assert abs(value - right) <= 4 * eps * abs(right) + smallest, (value, right)


FLT = float(np.finfo(np.float32).max)
OVERFLOWS = [
    ("float32", [3e38, 2.5e38, 0], 0.7), ("float32", [-FLT] * 3, 0.5), ("float32", [1, 2], 1e-40),
    ("float32", [2, 2, 1], 1e-45),
    ("float32", [FLT, -FLT, FLT], 0.25), ("float32", [-FLT, -0.9 * FLT, -np.inf], 0.9), ("float32", [0, -FLT], 0.5),
    ("float32", [5, 7, 7, 6.9999995], 1e-38), ("bfloat16", [3e38, 2.5e38, 3e38], 0.7), ("bfloat16", [-3e38, -3e38], 0.1),
    ("float16", [60000, 50000, -60000], 1e-36), ("float64", [1e308, 1.5e308, 1.5e308], 0.5),
    ("float64", [-1.7e308, -1.6e308, 1e300], 0.25), ("float64", [1, 2, -np.inf], 1e-310),
]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype, row, T", OVERFLOWS)
def test_quotients_that_overflow(dtype, row, T, layout):
    row = np.array(row).astype(DTYPES[dtype])
    T = float(np.float32(T)) if dtype != "float64" else T
    x = LAYOUTS[layout](row)
    axis = 0 if layout == "columns" else -1
    for isa in ISAS:
        _core.set_isa(isa)
        try:
            p, logp = both(x, T, axis)
        finally:
            _core.set_isa(ISAS[-1])
        rows = [np.atleast_2d(np.moveaxis(a, axis, -1)) for a in (x, p, logp)]
        for given, *results in list(zip(*rows))[:: max(1, len(rows[0]) - 1)]:
            y = exact(given, T)
            check(results[0], [mpmath.exp(v) for v in y], dtype)
            check(results[1], y, dtype)


def derivatives(g, v, y, axis, T):
    """{name: what it gives}; y: probabilities, of which log_softmax's take the logarithm"""
    logy = np.log(y.astype(np.float64)).astype(y.dtype)
    return {
        "softmax_vjp": se.softmax_vjp(g, y, axis, temperature=T), "softmax_jvp": se.softmax_jvp(g, y, axis, temperature=T),
        "softmax_hvp": se.softmax_hvp(g, v, y, axis, temperature=T),
        "log_softmax_vjp": se.log_softmax_vjp(g, logy, axis, temperature=T),
        "log_softmax_jvp": se.log_softmax_jvp(g, logy, axis, temperature=T),
        "log_softmax_hvp": se.log_softmax_hvp(g, v, logy, axis, temperature=T),
    }  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype, T, unit", [
    ("float16", 1e-40, 2.0**-4), ("bfloat16", 1e-40, 2.0**-40), ("float32", 1e-40, 2.0**-40), ("float32", 1e-20, 2.0**-6),
    ("float64", 1e-310, 2.0**-300), ("float64", 1e-160, 2.0**-36),
])  # fmt: skip
def test_derivatives_at_the_smallest_temperatures(dtype, T, unit, layout):
    """What 1 / T is no number for: 0 stays 0, the rest is the derivative at T = 1 over T, or overflows."""
    T = float(np.float32(T)) if dtype != "float64" else T
    random = np.random.default_rng(1)
    p = np.array([0.5, 0.25, 0, 0, 0.125, 0.125])
    factors = [random.integers(-8, 9, 6) * unit**k for k in (0.5, 0.5)]
    g, v, y = (LAYOUTS[layout](np.asarray(a).astype(DTYPES[dtype])) for a in (*factors, p))
    axis = 0 if layout == "columns" else -1
    seen = set()
    with np.errstate(divide="ignore", over="ignore"):
        for isa in ISAS:
            _core.set_isa(isa)
            try:
                at_one, at_T = derivatives(g, v, y, axis, 1.0), derivatives(g, v, y, axis, T)
            finally:
                _core.set_isa(ISAS[-1])
            for name in at_T:
                power = 2 if name.endswith("hvp") else 1
                limit = EPS[dtype][1] * (1 + EPS[dtype][0])
                for one, got in zip(at_one[name].astype(np.float64).ravel(), at_T[name].astype(np.float64).ravel()):
                    right = mpmath.mpf(one) / mpmath.mpf(T) ** power
                    seen.add("0" if right == 0 else "inf" if abs(right) > limit else "finite")
                    if abs(right) > limit:
                        assert got == np.copysign(np.inf, one), (name, one, got)
                    else:
                        assert abs(got - right) <= 3 * EPS[dtype][0] * abs(right), (name, one, got)
    assert seen == {"0", "inf", "finite"} - ({"finite"} if dtype == "float16" else set())


@pytest.mark.parametrize("n", [3, 7, 100, 5000])
@pytest.mark.parametrize("axis", [0, -1])
def test_neighbours_of_an_overflow(n, axis):
    x = np.random.default_rng(n).normal(0, 1e4, (40, n)).astype(np.float32)
    x[::3, 1] = -3e38
    x[1::3, 0] = 3e38
    batch = np.ascontiguousarray(np.moveaxis(x, -1, axis))
    for f in (se.softmax, se.log_softmax):
        y = np.moveaxis(f(batch, axis, temperature=0.7), axis, -1)
        for row, alone in zip(y, x):
            assert row.tobytes() == f(alone, temperature=0.7).tobytes()


@pytest.mark.parametrize("n", [5000, 400_000])
def test_overflow_in_long_rows(n):
    x = np.full((2, n), -3e38, np.float32)
    x[0, n - 7] = x[0, 3] = 3.2e38
    x[1, 17] = np.nan
    p = se.softmax(x, temperature=0.5)
    assert p[0, 3] == p[0, n - 7] == 0.5 and p[0].sum() == 1
    assert np.isnan(p[1]).all()
    whole = np.full((1, n), np.finfo(np.float32).min)
    assert (se.softmax(whole, temperature=0.5) == np.float32(1) / n).all()
    columns = np.full((n, 9), np.finfo(np.float32).min)
    assert se.softmax(columns[:5000], axis=0, temperature=0.5).tobytes() == np.full((5000, 9), np.float32(1) / 5000).tobytes()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_infinite_temperature(dtype, layout):
    dtype = DTYPES[dtype]
    axis = 0 if layout == "columns" else -1
    x = LAYOUTS[layout](np.array([1, -2, 3, 60000]).astype(dtype))
    zero = np.zeros_like(x)
    for T in (np.inf, np.float32(np.inf), np.float16(np.inf), np.array(np.inf)):
        for a, b in zip(both(x, T, axis), both(zero, 1.0, axis)):
            assert a.tobytes() == b.tobytes()
    y = se.softmax(x, axis, temperature=np.inf)
    assert not se.softmax_vjp(x, y, axis, temperature=np.inf).any()
    special = np.array([[1, -np.inf, 3], [1, np.inf, 3], [1, np.nan, 3]]).astype(dtype)
    p = se.softmax(special, temperature=np.inf).astype(np.float64)
    assert p[0].tolist() == [0.5, 0, 0.5] and np.isnan(p[1:]).all()
    assert np.isnan(se.softmax(np.full(3, -np.inf).astype(dtype), temperature=np.inf).astype(np.float64)).all()


def test_torch():
    torch = pytest.importorskip("torch")
    import sumexp.torch as st

    x = torch.tensor([[1.0, -float("inf"), 3.0]], requires_grad=True)
    p = st.softmax(x, -1, temperature=float("inf"))
    assert p.tolist() == [[0.5, 0, 0.5]]
    p[0, 0].backward()
    assert not x.grad.any()
    compiled = torch.compile(lambda x: st.softmax(x, -1, temperature=float("inf")), backend="eager", fullgraph=True)
    assert compiled(x).tolist() == p.tolist()
    assert torch.func.vmap(lambda x: st.softmax(x, -1, temperature=float("inf")))(x).tolist() == p.tolist()
    large = torch.full((1, 3), torch.finfo(torch.float32).min)
    assert st.softmax(large, -1, temperature=0.5).tolist() == st.softmax(torch.zeros(1, 3), -1).tolist()
