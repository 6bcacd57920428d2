"""The log domain on any array a user might build: values and derivatives within their bounds, of wider or exact numbers.

The references are in long double where shapes, axes and strides vary (its own error is allowed for), and in mpmath where rows
are short.
"""

import ml_dtypes
import mpmath
import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st

import sumexp as se
from log_domain_oracle import DTYPES, dtype_of, errors, exact, mpf
from test_cumulative import exact_prefixes
from test_elementwise import FORWARD, VJP

INF = float("inf")
WIDE = np.longdouble
OWN = float(np.finfo(WIDE).eps)  # the reference's
EPS = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
TINY = {"float64": 5e-324, "float32": 1.4e-45, "float16": 6e-8, "bfloat16": 9.2e-41}
FORMATS = st.sampled_from(DTYPES).map(dtype_of)
RUN = settings(max_examples=150, deadline=None)


def ulp_of(value, dtype):
    """The distance of numbers of dtype next to `value`, as long double."""
    info = ml_dtypes.finfo(dtype)
    with np.errstate(invalid="ignore"):
        exponent = np.frexp(np.where(np.isfinite(value), value, 0))[1] - 1
    return np.ldexp(WIDE(1), np.maximum(exponent, info.minexp) - info.nmant)


def within(found, want, dtype, bound):
    """|found - want| <= bound where want is a number of dtype; elsewhere they are the same."""
    found, want = np.asarray(found), np.asarray(want)
    assert found.dtype == dtype and found.shape == want.shape
    with np.errstate(over="ignore"):
        finite = np.isfinite(want.astype(np.float64).astype(dtype).astype(np.float64))
    np.testing.assert_array_equal(found[~finite].astype(np.float64), want[~finite].astype(dtype).astype(np.float64))
    error = np.abs(found[finite].astype(WIDE) - want[finite])
    allowed = np.broadcast_to(bound, want.shape)[finite]
    assert (error <= allowed).all(), (error / allowed).max()


def promised(dtype, full=2):
    return full if dtype.itemsize > 2 else 0.51


@st.composite
def views(draw, shape, dtype, scale=None, absent=True):
    """A strided view of normal numbers, in a transposed holder full of NaN, with -inf here and there."""
    steps = tuple(draw(st.sampled_from([1, 2, -1])) for _ in shape)
    order = draw(st.permutations(range(len(shape))))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    holder = np.full([shape[d] * abs(steps[d]) for d in order], np.nan).astype(dtype)
    view = holder.transpose(np.argsort(order))[(..., *(slice(None, None, s) for s in steps))]
    scale = draw(st.sampled_from([0.1, 1.0, 30.0])) if scale is None else scale
    view[...] = (rng.normal(size=shape) * scale).astype(dtype)
    if absent and draw(st.booleans()):
        view[rng.random(shape) < 0.3] = -INF
    return view


def shapes(side=5, most=3, least=0):
    return st.lists(st.integers(0, side), min_size=least, max_size=most).map(tuple)


# -- running sums ------------------------------------------------------------------------------------------------


@st.composite
def running(draw, longest):
    """(x, axis, options)"""
    shape = list(draw(shapes(4)))
    axis = draw(st.integers(-len(shape), len(shape) - 1)) if shape else 0
    if shape:
        shape[axis] = draw(st.sampled_from([n for n in (0, 1, 2, 7, 33, 257, 520) if n <= longest]))
    x = draw(views(tuple(shape), draw(FORMATS)))
    return x, axis, {"reverse": draw(st.booleans()), "exclusive": draw(st.booleans())}


def prefixes(x, axis, reverse=False, exclusive=False):
    if x.ndim == 0:
        return prefixes(x.reshape(1), 0, reverse, exclusive)[0]
    x = np.moveaxis(x.astype(WIDE), axis, -1)
    x = x[..., ::-1] if reverse else x
    with np.errstate(invalid="ignore"):
        y = np.logaddexp.accumulate(x, axis=-1) if x.shape[-1] else x
    if exclusive:
        y = np.concatenate([np.full_like(y[..., :1], -INF), y[..., :-1]], -1)
    return np.moveaxis(y[..., ::-1] if reverse else y, -1, axis)


@RUN
@given(running(520), st.sampled_from([None, None, np.nan, INF]), st.integers(0, 10**6))
def test_logcumsumexp(case, bad, place):
    x, axis, options = case
    if bad is not None and x.size:
        x[np.unravel_index(place % x.size, x.shape)] = bad
    want = prefixes(x, axis, **options)
    finite = np.where(np.isfinite(x.astype(np.float64)), np.abs(x.astype(np.float64)), 0)
    slack = 4 * OWN * (1 + finite.max(initial=0)) * (x.shape[axis] if x.ndim else 1)
    found = se.logcumsumexp(x, axis, **options)
    within(found, want, x.dtype, promised(x.dtype) * ulp_of(want, x.dtype) + slack)
    assert np.asarray(found).tobytes() == np.asarray(se.logcumsumexp(x.copy(), axis, **options)).tobytes()
    own = x.copy(order="K")
    se.logcumsumexp(own, axis, **options, out=own)
    assert own.tobytes() == np.asarray(found).tobytes()


@RUN
@given(running(33), st.integers(0, 2**32))
def test_derivatives_of_logcumsumexp(case, seed):
    x, axis, options = case
    u = np.random.default_rng(seed).normal(size=x.shape).astype(x.dtype)
    y = prefixes(x, axis, **options)
    x_last, y_last, u_last = (np.moveaxis(a.reshape(a.shape or (1,)).astype(WIDE), axis, -1) for a in (x, y, u))
    n = x_last.shape[-1]
    i, j = np.ogrid[:n, :n]
    i, j = (j, i) if options["reverse"] else (i, j)
    inside = (j < i) if options["exclusive"] else (j <= i)
    with np.errstate(invalid="ignore"):
        J = np.exp(x_last[..., None, :] - y_last[..., :, None])  # rows are the sums
    J = np.where(inside & (x_last[..., None, :] > -INF), J, 0)
    size = np.abs(x_last[np.isfinite(x_last)]).max(initial=1)
    for function, wide in ((se.logcumsumexp_vjp, np.swapaxes(J, -1, -2)), (se.logcumsumexp_jvp, J)):
        product = lambda m, v: np.moveaxis((m * v[..., None, :]).sum(-1), -1, axis).reshape(x.shape)
        bound = (4 * EPS[x.dtype.name] + 40 * OWN * size) * product(wide, np.abs(u_last)) + TINY[x.dtype.name]
        within(function(u, x, axis, **options), product(wide, u_last), x.dtype, bound)


ORDINARY = st.floats(-800, 800)


@RUN
@given(st.lists(ORDINARY, min_size=1, max_size=12), st.sampled_from(["as it is", "next to 0", "far below"]))
def test_short_rows_of_logcumsumexp(values, kind):
    """Against mpmath, of float64: sums that pass 1 as well."""
    x = np.float64(values)
    if kind != "as it is":
        x -= float(se.logsumexp(x)) * (1 if kind == "next to 0" else 1.01)
    with mpmath.workprec(1300):  # the sum of one number of 1e-300
        expected = exact_prefixes(x)
    # results below 2^-44 after cancellation have an absolute error of 2^-96
    scale = [max(abs(e), mpf(2) ** -44) if abs(e) < max(abs(x[: i + 1])) else e for i, e in enumerate(expected)]
    assert errors(se.logcumsumexp(x), expected, x.dtype, scale) <= 2
    turned = se.logcumsumexp(x[::-1], reverse=True)[::-1]
    assert turned.tobytes() == se.logcumsumexp(x).tobytes()


@pytest.mark.parametrize("x", [1e-310, 2e-308, 1e-307])
def test_running_sums_next_to_the_smallest_normal_number(x):
    assert abs(se.logcumsumexp([x])[0] - x) <= 2 * np.spacing(x)


# -- elementwise -------------------------------------------------------------------------------------------------


@st.composite
def operands(draw, name):
    dtype = draw(FORMATS)
    numbers = st.one_of(st.floats(-750, 750), st.floats(-3, 3), st.floats(-1e-3, 1e-3))
    a = np.array(draw(st.lists(numbers, min_size=8, max_size=8)))
    if name in ("log1mexp", "softplus"):
        return (a.astype(dtype),)
    kind = draw(st.sampled_from(["any", "near", "cancel"]))
    b = np.array(draw(st.lists(numbers, min_size=8, max_size=8)))
    if kind == "near":
        b = a + b * draw(st.sampled_from([1e-2, 1e-8, 1e-14]))
    elif kind == "cancel":  # e^a +- e^b next to 1
        with np.errstate(all="ignore"):
            a = -np.abs(a) if name == "logaddexp" else np.abs(a)
            b = np.log(-np.expm1(a)) if name == "logaddexp" else a + np.log(-np.expm1(-a))
        b = np.where(np.isfinite(b), b, -1.0)
    a, b = a.astype(dtype), b.astype(dtype)
    return (np.maximum(a, b), np.minimum(a, b)) if name == "logsubexp" else (a, b)


@pytest.mark.parametrize("name", FORWARD)
def test_elementwise(name):
    @RUN
    @given(operands(name))
    def run(args):
        dtype = args[0].dtype
        expected = [FORWARD[name](*map(exact, row)) for row in zip(*args)]
        scale = list(expected)
        if dtype == np.float64 and len(args) == 2:
            scale = [max(abs(e), mpf(2) ** -44) if abs(e) < abs(exact(max(r))) else e for e, r in zip(expected, zip(*args))]
        assert errors(getattr(se, name)(*args), expected, dtype, scale) <= promised(dtype)

    run()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name, a, b", [("logsubexp", 2.0543719e-17, -38.423977), ("logaddexp", -1.0791915e-24, -55.18583)])
def test_cancels_below_2_to_the_minus_53(name, a, b, dtype):
    a, b = np.array([a], dtype), np.array([b], dtype)
    expected = [FORWARD[name](exact(a[0]), exact(b[0]))]
    scale = expected if dtype == "float32" else [mpf(2) ** -44]
    assert errors(getattr(se, name)(a, b), expected, a.dtype, scale) <= 2


@pytest.mark.parametrize("name", VJP)
def test_derivatives_elementwise(name):
    @RUN
    @given(operands(name), st.integers(0, 2**32))
    def run(args, seed):
        dtype = args[0].dtype
        keep = args[0] != (args[1] if name == "logsubexp" else 0) if name in ("logsubexp", "log1mexp") else args[0] == args[0]
        args = tuple(a[keep] for a in args)
        rng = np.random.default_rng(seed)
        g, ta, tb = (rng.normal(size=len(args[0])).astype(dtype) for _ in range(3))
        slopes = [VJP[name](*map(exact, row)) for row in zip(*args)]
        largest = float(ml_dtypes.finfo(dtype).max)
        with np.errstate(over="ignore"):
            found = getattr(se, name + "_vjp")(g, *args)
        for k, d in enumerate(found if isinstance(found, tuple) else (found,)):
            expected = [exact(u) * s[k] for u, s in zip(g, slopes)]
            rows = [i for i, e in enumerate(expected) if abs(e) <= largest]
            assert errors(d[rows], [expected[i] for i in rows], dtype) <= promised(dtype)
        if len(args) == 2 and dtype.itemsize > 2:
            terms = [[exact(t) * s for t, s in zip(row, d)] for *row, d in zip(ta, tb, slopes)]
            rows = [i for i, row in enumerate(terms) if sum(map(abs, row)) <= largest]
            with np.errstate(over="ignore", invalid="ignore"):
                d = getattr(se, name + "_jvp")(ta, tb, *args)
            size = [sum(map(abs, terms[i])) for i in rows]
            assert errors(d[rows], [sum(terms[i]) for i in rows], dtype, size) <= 2

    run()


# -- rows with weights -------------------------------------------------------------------------------------------


@st.composite
def weighted(draw):
    """(x, b, axis): b broadcasts with x, in both directions"""
    shape = draw(shapes(5, 3))
    dtype = draw(FORMATS)
    axes = draw(st.lists(st.integers(0, len(shape) - 1), unique=True, max_size=3)) if shape else []
    axis = draw(st.sampled_from([None, tuple(axes), *(a - len(shape) for a in axes)]))
    cut = lambda: tuple(1 if draw(st.integers(0, 3)) == 0 else n for n in shape)[draw(st.integers(0, len(shape))) if shape
                                                                                 and draw(st.booleans()) else 0 :]
    x, b = draw(views(shape if draw(st.booleans()) else cut(), dtype)), draw(views(cut(), dtype, 1.0, absent=False))
    if draw(st.booleans()):
        b[np.random.default_rng(0).random(b.shape) < 0.2] = 0
    if draw(st.booleans()):
        b[...] = np.abs(b)
    full = np.broadcast_shapes(x.shape, b.shape)
    if len(full) != len(shape):
        axis = None
    return x, b, axis


def sums(x, b, axis):
    """(terms, e^x, sums of the terms, of their sizes, the largest x that counts), relative to e^that; dimensions are kept."""
    x, b = np.broadcast_arrays(x.astype(WIDE), b.astype(WIDE))
    m = np.max(np.where(b != 0, x, -INF), axis=axis, keepdims=True, initial=-INF)
    m = np.where(np.isfinite(m), m, 0)
    with np.errstate(over="ignore"):
        e = np.exp(x - m)
    terms = np.where(b == 0, 0, b * np.where(b == 0, 0, e))
    return terms, e, terms.sum(axis, keepdims=True), np.abs(terms).sum(axis, keepdims=True), m


def rows_like(a, axis):
    return a.reshape(()) if axis is None or a.ndim == 0 else np.squeeze(a, axis)


@RUN
@given(weighted(), st.booleans())
def test_sums_with_weights(case, mean):
    x, b, axis = case
    terms, _, S, size, m = sums(x, b, axis)
    count = terms.size // S.size if S.size else 0
    S, size = (S / count, size / count) if mean and count else (S, size)
    with np.errstate(divide="ignore", invalid="ignore"):
        want = np.where(S == 0, -INF, m + np.log(np.abs(S)))
        sure = (np.abs(S) > 2.0**-10 * size) | (size == 0)
        short = 2.0**-23 if x.dtype != np.float64 else 2.0**-52
        bound = ulp_of(np.maximum(np.abs(want), np.abs(m)), x.dtype) + 3 * short * size / np.abs(S)
    if mean and not count:
        want = np.full_like(want, np.nan)
    value, sign = (se.logmeanexp if mean else se.logsumexp)(x, axis, b=b, return_sign=True)
    keep, want, bound, S = (rows_like(a, axis) for a in (sure, want, bound, S))
    within(np.asarray(value)[keep], want[keep], x.dtype, bound[keep])
    np.testing.assert_array_equal(np.asarray(sign, np.float64)[keep & ~np.isnan(want)], np.sign(S[keep & ~np.isnan(want)]))
    plain = np.asarray((se.logmeanexp if mean else se.logsumexp)(x, axis, b=b))
    np.testing.assert_array_equal(np.isnan(plain)[keep & ~np.isnan(want)], (S < 0)[keep & ~np.isnan(want)])


@RUN
@given(weighted(), st.integers(0, 2**32))
def test_derivatives_with_weights(case, seed):
    x, b, axis = case
    terms, e, S, size, _ = sums(x, b, axis)
    assume(S.size and (np.abs(S) > 2.0**-8 * size).all() and (e < 1e4).all())
    rng = np.random.default_rng(seed)
    g, tx, tb = (rng.normal(size=s).astype(x.dtype) for s in (S.shape, x.shape, b.shape))
    slack = 300 * OWN  # of e^(x - m)
    short = 2.0**-52 if x.dtype == np.float64 else 2.0**-50  # what the sum of float64 keeps is more than is promised
    relative = 4 * EPS[x.dtype.name] + (short + slack) * size / np.abs(S)
    dx, db = se.logsumexp_vjp(g, x, axis, b=b, keepdims=True)
    for found, of, parts in ((dx, x, terms), (db, b, e)):
        want = g.astype(WIDE) * parts / S
        if np.abs(want).max(initial=0) > 6e4:
            continue
        bound = np.broadcast_to(relative * np.abs(want) + 2 * TINY[x.dtype.name], want.shape)
        own = (1,) * (want.ndim - of.ndim) + of.shape
        axes = tuple(d for d in range(want.ndim) if own[d] != want.shape[d] or d < want.ndim - of.ndim)
        folded = [a.sum(axes).reshape(of.shape) for a in (want, bound)]  # of what was broadcast: in float64, rounded once
        within(found, folded[0], x.dtype, folded[1] + (ulp_of(folded[0], x.dtype) / 2 if axes else 0))
    found = se.logsumexp_jvp(tx, x, axis, b=b, t_b=tb, keepdims=True)
    parts = [tx.astype(WIDE) * terms / S, tb.astype(WIDE) * e / S]
    want, allowed = (sum(f(p) for p in parts).sum(axis, keepdims=True) for f in (lambda p: p, np.abs))
    if np.abs(want).max(initial=0) < 6e4:
        bound = 4 * EPS[x.dtype.name] * allowed + short * size / np.abs(S) * (np.abs(want) + allowed)
        within(found, want, x.dtype, bound + slack * size / np.abs(S) * allowed + TINY[x.dtype.name])


@RUN
@given(st.data())
def test_logmeanexp(data):
    shape = data.draw(shapes(7, 3, 1))
    x = data.draw(views(shape, data.draw(FORMATS)))
    axis = data.draw(st.sampled_from([None, *range(-len(shape), len(shape))]))
    where = data.draw(st.one_of(st.none(), st.integers(0, 2**32)))
    where = np.ones(shape, bool) if where is None else np.random.default_rng(where).random(shape) < 0.7
    kept = np.where(where, x.astype(WIDE), -INF)
    m = kept.max(axis, initial=-INF)
    with np.errstate(divide="ignore", invalid="ignore"):
        want = np.logaddexp.reduce(kept, axis=axis) - np.log(np.count_nonzero(where, axis).astype(WIDE))
    want = np.where(np.count_nonzero(where, axis) == 0, np.nan, want)
    bound = promised(x.dtype, 1) * ulp_of(np.maximum(np.abs(want), np.abs(m)), x.dtype)
    bound = bound + 400 * OWN * (1 + np.where(np.isfinite(m), np.abs(m), 0))
    within(se.logmeanexp(x, axis, where=where), want, x.dtype, bound)


# -- products ----------------------------------------------------------------------------------------------------


@RUN
@given(st.data())
def test_logmatmulexp(data):
    m, k, n = (data.draw(st.sampled_from([0, 1, 2, 3, 7, 17])) for _ in range(3))
    batch = data.draw(shapes(3, 2))
    cut = lambda: tuple(data.draw(st.sampled_from([1, n])) for n in batch)[data.draw(st.integers(0, len(batch))) :]
    dtype, scale = data.draw(FORMATS), data.draw(st.sampled_from([0.1, 3.0, 100.0, 1000.0]))
    a = data.draw(views(data.draw(st.sampled_from([(*batch, m, k), (*cut(), m, k), (k,)])), dtype, scale))
    b = data.draw(views(data.draw(st.sampled_from([(*cut(), k, n), (*batch, k, n), (k,)])), dtype, scale))
    rows, columns = a.reshape(1, -1) if a.ndim == 1 else a, b.reshape(-1, 1) if b.ndim == 1 else b
    terms = rows.astype(WIDE)[..., :, :, None] + columns.astype(WIDE)[..., None, :, :]
    want = np.logaddexp.reduce(terms, axis=-2)
    top = np.max(terms, axis=-2, initial=-INF)
    bound = promised(dtype) * ulp_of(np.where(np.isfinite(want), np.maximum(np.abs(want), np.abs(top)), 0), dtype)
    bound = bound + 40 * OWN * (1 + np.where(np.isfinite(top), np.abs(top), 0))
    for ndim, last in ((b.ndim, -1), (a.ndim, -2 if b.ndim > 1 else -1)):
        if ndim == 1:
            want, bound = np.squeeze(want, last), np.squeeze(bound, last)
    within(se.logmatmulexp(a, b), want, dtype, bound)
