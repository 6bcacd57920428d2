"""Masked rows: bytes of the plain functions, options in every mixture, derivatives, what other libraries get wrong."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import sumexp as se
from isas import ISAS
from sumexp import _core

INF = np.inf
DTYPES = [np.float16, np.float32, np.float64]
FORWARD = {"softmax": se.masked_softmax, "log_softmax": se.masked_log_softmax, "logsumexp": se.masked_logsumexp}
VJP = {"softmax": se.masked_softmax_vjp, "log_softmax": se.masked_log_softmax_vjp, "logsumexp": se.masked_logsumexp_vjp}
PLAIN = {"softmax": se.softmax, "log_softmax": se.log_softmax, "logsumexp": lambda x: se.logsumexp(x, -1)}
ABSENT = {"softmax": 0.0, "log_softmax": -INF}


def same(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def kept_of(shape, where=None, lengths=None, causal=None):
    kept = np.ones(shape, bool)
    if where is not None:
        kept = kept & where
    if lengths is not None:
        kept = kept & (np.arange(shape[-1]) < np.asarray(lengths)[..., None])
    if causal is not None:
        kept = kept & (np.arange(shape[-1]) <= np.arange(shape[-2])[:, None] + causal)
    return kept


def dense(name, x, kept, bias=0.0, sink=None, softcap=None, temperature=1.0):
    """The formula, in float64 whatever comes, by NumPy."""
    z = np.asarray(x, np.float64) / temperature
    if softcap is not None:
        z = softcap * np.tanh(z / softcap)
    z = np.where(kept, z + bias, -INF)
    top = z.max(-1, keepdims=True)
    if sink is not None:
        sink = np.broadcast_to(np.asarray(sink, np.float64), x.shape[:-1])[..., None]
        top = np.maximum(top, sink)
    top = np.where(np.isfinite(top), top, 0)
    S = np.exp(z - top).sum(-1, keepdims=True)
    if sink is not None:
        S = S + np.exp(sink - top)
    with np.errstate(divide="ignore", invalid="ignore"):
        lse = top + np.log(S)
        p = np.where(kept, np.exp(z - lse), 0)
        log_p = np.where(kept, z - lse, -INF)
    return {"softmax": p, "log_softmax": log_p, "logsumexp": lse[..., 0]}[name]


def dense_vjp(name, g, x, kept, bias=0.0, sink=None, softcap=None, temperature=1.0):
    """(dx, dz, dsink of each row)"""
    options = {"bias": bias, "sink": sink, "softcap": softcap, "temperature": temperature}
    p = dense("softmax", x, kept, **options)
    lse = dense("logsumexp", x, kept, **options)
    sink_p = 0.0 if sink is None else np.exp(np.broadcast_to(sink, lse.shape) - lse)
    if name == "logsumexp":
        dz, dsink = g[..., None] * p, g * sink_p
    else:
        g = np.where(kept, g, 0)
        total = (g * p if name == "softmax" else g).sum(-1)
        dz = p * (g - total[..., None]) if name == "softmax" else g - p * total[..., None]
        dsink = -sink_p * total
    dz = np.where(kept & np.isfinite(lse)[..., None], dz, 0)
    slope = 1.0 if softcap is None else 1 - np.tanh(np.asarray(x, np.float64) / temperature / softcap) ** 2
    return np.where(kept, dz * slope / temperature, 0), dz, dsink


# -- bytes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("dtype", DTYPES)
def test_without_options_they_are_the_plain_functions(name, dtype):
    rng = np.random.default_rng(1)
    for n in (0, 1, 5, 16, 100, 257, 2048, 5000):
        x = (4 * rng.normal(size=(3, n))).astype(dtype)
        assert same(FORWARD[name](x), PLAIN[name](x)), n


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [7, 33, 300, 5000])
def test_a_row_with_a_length_has_the_bytes_of_its_elements_alone(name, dtype, n):
    rng = np.random.default_rng(2)
    x = (4 * rng.normal(size=(20, n))).astype(dtype)
    lengths = rng.integers(0, n + 1, 20)
    lengths[:3] = 0, 1, n
    made = FORWARD[name](x, lengths=lengths)
    for row, length, y in zip(x, lengths, made):
        alone = PLAIN[name](row[:length])
        if name == "logsumexp":
            assert same(y, alone)
        else:
            assert same(y[:length], alone) and (y[length:] == ABSENT[name]).all()


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [7, 33, 300, 5000])
def test_a_mask_has_the_bytes_of_minus_infinity_there(name, dtype, n):
    rng = np.random.default_rng(3)
    x = (4 * rng.normal(size=(20, n))).astype(dtype)
    where = rng.random(x.shape) < np.linspace(0.02, 1, 20)[:, None]
    where[:, 0] = True
    assert same(FORWARD[name](x, where=where), PLAIN[name](np.where(where, x, dtype(-INF))))
    bias = np.where(where, dtype(0), dtype(-INF))
    assert same(FORWARD[name](x, bias=bias), FORWARD[name](x, where=where))


@pytest.mark.parametrize("name", FORWARD)
def test_causal_is_a_length_that_grows(name):
    rng = np.random.default_rng(4)
    x = rng.normal(size=(2, 9, 300)).astype(np.float32)
    for causal in (0, 5, 291, 299, 1000, -1, -4, -9, -10, 2**80, -(2**80), True):
        offset = 0 if causal is True else causal
        lengths = [max(0, min(300, i + offset + 1)) for i in range(9)]
        assert same(FORWARD[name](x, causal=causal), FORWARD[name](x, lengths=np.array(lengths))), causal
    assert same(FORWARD[name](x, causal=False), FORWARD[name](x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_bias_and_temperature_are_rounded_once_each(dtype):
    rng = np.random.default_rng(5)
    wide = np.float64 if dtype is np.float64 else np.float32
    x, bias = (4 * rng.normal(size=(2, 6, 500))).astype(dtype), rng.normal(size=(6, 1)).astype(dtype)
    z = (x.astype(wide) / wide(0.7) + bias.astype(wide)).astype(wide)
    expected = se.softmax(z) if wide is dtype else se.softmax(z).astype(dtype)
    made = se.masked_softmax(x, bias=bias, temperature=0.7)
    if wide is dtype:
        assert same(made, expected)
    else:  # 16 bits have terms of their own
        assert np.abs(made.astype(np.float64) - expected.astype(np.float64)).max() <= 2**-11


OPTIONS = {
    "where": np.random.default_rng(6).random((3, 5, 300)) < 0.7,
    "lengths": np.array([[300], [17], [0]]),
    "causal": 120,
    "bias": np.random.default_rng(7).normal(size=(5, 300)),
    "softcap": 5.0,
    "sink": np.array([[0.0], [3.0], [-2.0]]),
    "temperature": 1.3,
}
MIXTURES = [c for k in (1, 2, 7) for c in itertools.combinations(OPTIONS, k)]


def typed(names, dtype):
    return {n: OPTIONS[n].astype(dtype) if n in ("bias", "sink") else OPTIONS[n] for n in names}


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_do_not_depend_on_machine_batch_or_strides(name, dtype):
    rng = np.random.default_rng(8)
    x = (4 * rng.normal(size=(3, 5, 300))).astype(dtype)
    g = rng.normal(size=x.shape[:2] if name == "logsumexp" else x.shape).astype(dtype)
    for names in MIXTURES:
        options = typed(names, dtype)
        _core.set_isa(ISAS[-1])
        y, d = FORWARD[name](x, **options), VJP[name](g, x, **options)
        flat = np.concatenate([np.ravel(a) for a in (d if isinstance(d, tuple) else (d,))])
        for isa in ISAS[:-1]:
            _core.set_isa(isa)
            assert same(FORWARD[name](x, **options), y), (isa, names)
            again = VJP[name](g, x, **options)
            again = np.concatenate([np.ravel(a) for a in (again if isinstance(again, tuple) else (again,))])
            assert same(again, flat), (isa, names)
        _core.set_isa(ISAS[-1])
        strided = np.asfortranarray(x)
        assert same(np.ascontiguousarray(FORWARD[name](strided, **options)), y), names
        # one row alone
        row = {n: o for n, o in options.items() if n not in ("where", "lengths", "causal", "bias", "sink")}
        kept = kept_of(x.shape, **{n: options[n] for n in ("where", "lengths", "causal") if n in options})[0, 3]
        if "bias" in options:
            row["bias"] = options["bias"][3]
        if "sink" in options:
            row["sink"] = options["sink"][0, 0]
        assert same(FORWARD[name](x[0, 3], where=kept, **row), y[0, 3]), names


@pytest.mark.parametrize("name", FORWARD)
def test_bytes_do_not_depend_on_threads_or_axis(name):
    rng = np.random.default_rng(9)
    x = rng.normal(size=(8, 64, 700)).astype(np.float32)
    g = rng.normal(size=x.shape[:2] if name == "logsumexp" else x.shape).astype(np.float32)
    bias = rng.normal(size=700).astype(np.float32)
    options = {"where": rng.random(x.shape) < 0.5, "bias": bias, "sink": np.float32(1), "causal": 640}
    made = []
    for threads in (1, 2, 5):
        se.set_num_threads(threads)
        made.append((FORWARD[name](x, **options), *VJP[name](g, x, **options)))
    for other in made[1:]:
        assert all(map(same, made[0], other))
    turned = dict(options, where=options["where"].transpose(2, 0, 1), bias=options["bias"][:, None, None])
    y = FORWARD[name](np.ascontiguousarray(x.transpose(2, 0, 1)), 0, **turned)
    assert same(np.ascontiguousarray(y if name == "logsumexp" else y.transpose(1, 2, 0)), made[0][0])


# -- right ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("names", MIXTURES, ids="-".join)
def test_every_mixture_of_options(name, names):
    rng = np.random.default_rng(10)
    x = 4 * rng.normal(size=(3, 5, 300))
    options = typed(names, np.float64)
    kept = kept_of(x.shape, **{n: options.pop(n) for n in ("where", "lengths", "causal") if n in options})
    options = {n: OPTIONS[n] for n in names if n not in ("where", "lengths", "causal")}
    all_options = {n: OPTIONS[n] for n in names}
    expected = dense(name, x, kept, **options)
    np.testing.assert_allclose(FORWARD[name](x, **all_options), expected, rtol=2e-13, atol=1e-15)

    g = rng.normal(size=expected.shape)
    made = VJP[name](g, x, **all_options)
    dx, dz, dsink = dense_vjp(name, g, x, kept, **options)
    wanted = [dx]
    if "bias" in names:
        wanted.append(dz.sum(0))
    if "sink" in names:
        wanted.append(dsink.sum(1, keepdims=True))
    made = made if isinstance(made, tuple) else (made,)
    assert len(made) == len(wanted)
    for a, b in zip(made, wanted):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_options_hypothesis(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    shape = tuple(data.draw(st.integers(1, 5)) for _ in range(data.draw(st.integers(1, 2)))) + (data.draw(st.integers(1, 80)),)
    x = data.draw(st.sampled_from([1.0, 30.0, 1e6])) * rng.normal(size=shape)
    ones = [tuple(1 if rng.random() < 0.5 else n for n in s) for s in (shape, shape, shape[:-1], shape[:-1])]
    sets, options = {}, {}
    if data.draw(st.booleans()):
        sets["where"] = rng.random(ones[0]) < 0.6
    if data.draw(st.booleans()):
        sets["lengths"] = rng.integers(0, shape[-1] + 1, ones[2])
    if len(shape) > 1 and data.draw(st.booleans()):
        sets["causal"] = data.draw(st.integers(-3, 90))
    if data.draw(st.booleans()):
        options["bias"] = rng.normal(size=ones[1])
    if data.draw(st.booleans()):
        options["sink"] = rng.normal(size=ones[3])
    kept = kept_of(shape, **{k: np.broadcast_to(v, shape[:-1]) if k == "lengths" else v for k, v in sets.items()})
    for name in FORWARD:
        expected = dense(name, x, kept, **options)
        # 1e6: the reference rounds z - max
        np.testing.assert_allclose(FORWARD[name](x, **sets, **options), expected, rtol=1e-8, atol=1e-12)
        g = rng.normal(size=expected.shape)
        made = VJP[name](g, x, **sets, **options)
        made = list(made) if isinstance(made, tuple) else [made]
        dx, dz, dsink = dense_vjp(name, g, x, kept, **options)
        np.testing.assert_allclose(made.pop(0), dx, rtol=1e-8, atol=1e-8)
        if "bias" in options:
            axes = tuple(d for d, n in enumerate(options["bias"].shape) if n == 1)
            np.testing.assert_allclose(made.pop(0), dz.sum(axes, keepdims=True), rtol=1e-8, atol=1e-8)
        if "sink" in options:
            axes = tuple(d for d, n in enumerate(options["sink"].shape) if n == 1)
            np.testing.assert_allclose(made.pop(0), dsink.sum(axes, keepdims=True), rtol=1e-8, atol=1e-8)


def ulps(value, exact):
    """Errors of float32 results in units of the last place of the exact value."""
    return np.abs(value.astype(np.longdouble) - exact) / np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)


def in_extended_precision(x, sink):
    """log_softmax, the maximum, and logsumexp less it, of float32 rows with a sink: the maximum is kept out of the sum."""
    z = np.concatenate([x, np.full((len(x), 1), sink, np.float32)], 1).astype(np.longdouble)
    z.sort(1)
    top = z[:, -1:]
    L = np.log1p(np.exp(z[:, :-1] - top).sum(1, keepdims=True))
    return (x.astype(np.longdouble) - top) - L, top[:, 0], L[:, 0]


@pytest.mark.parametrize("n", [5, 100, 3000])
def test_ulp_with_a_sink(n):
    rng = np.random.default_rng(11)
    for scale, sink in itertools.product((1.0, 20.0), (-30.0, 0.0, 2.5, 80.0)):
        x, sink = (scale * rng.normal(size=(8, n))).astype(np.float32), np.float32(sink)
        log_p, top, L = in_extended_precision(x, sink)
        p = np.exp(log_p)
        assert ulps(se.masked_softmax(x, sink=sink), p)[p > 1e-37].max() <= 2
        assert ulps(se.masked_log_softmax(x, sink=sink), log_p).max() <= 2
        unit = np.spacing(np.maximum(np.abs(top + L), np.abs(top)).astype(np.float32)).astype(np.float64)
        error = np.abs(se.masked_logsumexp(x, sink=sink).astype(np.longdouble) - (top + L)) / unit
        assert error[top != 0].max(initial=0) <= 1 and error[top == 0].max(initial=0) <= 2


def test_gradient_of_bias_is_summed_in_one_order_and_rounds_once():
    rng = np.random.default_rng(12)
    x, g = rng.normal(size=(2, 50, 40)).astype(np.float32), rng.normal(size=(50, 40)).astype(np.float32)
    g = np.stack([g, -g])  # what comes back cancels
    x[1] = x[0]
    dx, dbias = se.masked_softmax_vjp(g, x, bias=np.zeros((50, 40), np.float32))
    assert (dbias == 0).all() and np.abs(dx).max() > 0.01
    parts = se.masked_softmax_vjp(g, x, bias=np.zeros(x.shape, np.float32))[1]
    total = se.masked_softmax_vjp(g, x, bias=np.zeros(40, np.float32))[1]
    assert np.abs(total - parts.astype(np.float64).sum((0, 1))).max() <= 1e-12  # the sum is 0 but for what is exact
    assert same(se.masked_softmax_vjp(g[0], x[0], bias=np.zeros((50, 40), np.float32))[1], dx[0])


# -- what is left out -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("poison", [INF, -INF, np.nan, 6e4])
def test_what_is_left_out_does_not_poison(name, dtype, poison):
    rng = np.random.default_rng(13)
    for n in (20, 300, 5000):
        x = rng.normal(size=(4, n)).astype(dtype)
        g = rng.normal(size=4 if name == "logsumexp" else x.shape).astype(dtype)
        where = rng.random(x.shape) < 0.5
        where[:, -1], where[:, 0] = False, True
        lengths = np.array([n - 1, n // 2, 1, n - 2])
        kept = kept_of(x.shape, where, lengths)
        bias = rng.normal(size=x.shape).astype(dtype)
        bad_x, bad_bias, bad_g = np.where(kept, x, dtype(poison)), np.where(kept, bias, dtype(poison)), g
        if name != "logsumexp":
            bad_g = np.where(kept, g, dtype(poison))
        for options in ({"softcap": 3.0, "sink": dtype(0.5)}, {}):
            rest = dict(where=where, lengths=lengths, **options)
            assert same(FORWARD[name](bad_x, bias=bad_bias, **rest), FORWARD[name](x, bias=bias, **rest))
            for bad, good in zip(VJP[name](bad_g, bad_x, bias=bad_bias, **rest), VJP[name](g, x, bias=bias, **rest)):
                assert same(bad, good) and np.isfinite(good).all()
            dx = VJP[name](bad_g, bad_x, **rest)
            dx = dx[0] if isinstance(dx, tuple) else dx
            assert (dx[~kept] == 0).all()


@pytest.mark.parametrize("n", [20, 300, 5000])
def test_a_row_with_nan_is_nan_where_it_is_kept(n):
    x = np.zeros((3, n), np.float32)
    x[0, 3], x[1, 4] = np.nan, INF
    where = np.ones(x.shape, bool)
    where[:, ::5] = False
    y, log_y, lse = (FORWARD[k](x, where=where, lengths=np.array([n - 1] * 3)) for k in ("softmax", "log_softmax", "logsumexp"))
    kept = kept_of(x.shape, where, [n - 1] * 3)
    assert np.isnan(y[:2][kept[:2]]).all() and (y[~kept] == 0).all()
    assert np.isnan(log_y[:2][kept[:2]]).all() and (log_y[~kept] == -INF).all()
    assert np.isnan(lse[0]) and lse[1] == INF and np.isfinite(y[2]).all()


@pytest.mark.parametrize("n", [1, 20, 300, 5000])
def test_rows_without_elements(n):
    x = np.ones((3, n), np.float32)
    x[2] = -INF  # nothing above it
    where = np.array([[False], [True], [True]])
    zero = {k: FORWARD[k](x, where=where) for k in FORWARD}
    assert (zero["softmax"][[0, 2]] == 0).all() and (zero["log_softmax"][[0, 2]] == -INF).all()
    assert (zero["logsumexp"][[0, 2]] == -INF).all() and np.isfinite(zero["logsumexp"][1])
    nan = {k: FORWARD[k](x, where=where, empty="nan") for k in FORWARD}
    assert np.isnan(nan["softmax"][[0, 2]]).all() and np.isnan(nan["log_softmax"][[0, 2]]).all()
    assert same(nan["logsumexp"], zero["logsumexp"]) and same(nan["softmax"][1], zero["softmax"][1])
    lengths = np.array([0, n, n])
    assert same(se.masked_softmax(x, lengths=lengths), zero["softmax"])
    assert np.isnan(se.masked_softmax(x, lengths=lengths, empty="nan")[0]).all()
    for k, empty in itertools.product(FORWARD, ("zero", "nan")):
        g = np.ones(3 if k == "logsumexp" else x.shape, np.float32)
        dx, dbias = VJP[k](g, x, where=where, empty=empty, bias=np.zeros(n, np.float32))
        assert (dx[[0, 2]] == 0).all() and np.isfinite(dbias).all()


def test_sizes_of_nothing():
    for shape in ((0, 5), (3, 0), (0, 0)):
        x = np.ones(shape, np.float32)
        assert se.masked_softmax(x, sink=np.float32(0)).shape == shape
        assert se.masked_logsumexp(x).shape == shape[:1] and (se.masked_logsumexp(x) == -INF).all()
        dx, dbias, dsink = se.masked_softmax_vjp(x, x, bias=np.ones(shape[1:], np.float32), sink=np.ones(1, np.float32))
        assert dx.shape == shape and (dbias == 0).all() and dsink == 0
    assert (se.masked_logsumexp(np.ones((2, 0)), sink=np.array([3.0, 4.0])) == [3, 4]).all()
    dx, dsink = se.masked_logsumexp_vjp(np.array([1.0, 2.0]), np.ones((2, 0)), sink=np.array([3.0, 4.0]))
    assert (dsink == [1, 2]).all()


# -- other libraries' faults ------------------------------------------------------------------------------------------


def test_flash_attention_616_and_off_by_one_softmax():
    """A sink of 0 is 1 in the denominator, also far below the maximum and in a row without elements."""
    x = np.array([[1.0, 2.0, 3.0], [-80.0, -90.0, -100.0], [0.0, 0.0, 0.0]])
    y = se.masked_softmax(x, sink=0.0, lengths=np.array([3, 3, 0]))
    np.testing.assert_allclose(y[0], np.exp(x[0]) / (1 + np.exp(x[0]).sum()), rtol=1e-15)
    np.testing.assert_allclose(y[1], np.exp(x[1]), rtol=1e-15)
    assert (y[2] == 0).all()
    assert se.masked_logsumexp(x, sink=0.0)[1] == np.exp(-80.0) * (1 + np.exp(-10.0) + np.exp(-20.0))  # log1p of it


def test_transformer_engine_2225_sinks_by_head():
    """One learned logit a head: its gradient is that of the column it stands for, and no column is returned."""
    rng = np.random.default_rng(14)
    x, g, sink = rng.normal(size=(2, 4, 6, 8)), rng.normal(size=(2, 4, 6, 8)), rng.normal(size=(4, 1))
    whole = np.concatenate([x, np.broadcast_to(sink[..., None], (2, 4, 6, 1))], -1)
    y = se.softmax(whole)
    np.testing.assert_allclose(se.masked_softmax(x, sink=sink), y[..., :-1], rtol=1e-14)
    d = se.softmax_vjp(np.concatenate([g, np.zeros((2, 4, 6, 1))], -1), y)
    dx, dsink = se.masked_softmax_vjp(g, x, sink=sink)
    np.testing.assert_allclose(dx, d[..., :-1], rtol=1e-12, atol=1e-16)
    np.testing.assert_allclose(dsink, d[..., -1].sum((0, 2))[:, None], rtol=1e-12)
    assert dsink.shape == sink.shape


def test_jax_6811_and_pytorch_31829_gradients_at_minus_infinity():
    """No NaN where a row has -inf in it, or is -inf alone."""
    x = np.array([[-INF, 0.0, 1.0], [-INF, -INF, -INF]])
    for k, vjp in VJP.items():
        g = np.ones(2) if k == "logsumexp" else np.array([[2.0, 1.0, -1.0]] * 2)
        dx = vjp(g, x)
        assert np.isfinite(dx).all() and (dx[1] == 0).all() and (k == "log_softmax" or dx[0, 0] == 0)


def test_pytorch_141802_masked_rows_among_others():
    """A fully masked query gives zeros and leaves the gradients of the others alone."""
    rng = np.random.default_rng(15)
    x, g = rng.normal(size=(2, 4, 4)), rng.normal(size=(2, 4, 4))
    where = np.ones((4, 4), bool)
    where[1] = False
    others = [0, 2, 3]
    y, dx = se.masked_softmax(x, where=where), se.masked_softmax_vjp(g, x, where=where)
    assert (y[:, 1] == 0).all() and (dx[:, 1] == 0).all()
    assert same(np.ascontiguousarray(y[:, others]), se.softmax(x[:, others]))
    assert same(np.ascontiguousarray(dx[:, others]), se.softmax_vjp(g[:, others], se.softmax(x[:, others])))


# -- in and out -------------------------------------------------------------------------------------------------------


def test_out_and_in_place():
    rng = np.random.default_rng(16)
    for n in (5, 40, 700, 5000):
        x = rng.normal(size=(6, n)).astype(np.float32)
        y = se.masked_softmax(x, lengths=n - 1, sink=np.float32(0))
        out = np.full((6, 2 * n), 7, np.float32)
        assert se.masked_softmax(x, lengths=n - 1, sink=np.float32(0), out=out[:, ::2]) is not None
        assert same(np.ascontiguousarray(out[:, ::2]), y) and (out[:, 1::2] == 7).all()
        for name in ("softmax", "log_softmax"):
            z, again = x.copy(), FORWARD[name](x, lengths=np.full(6, n - 1))
            assert FORWARD[name](z, lengths=np.full(6, n - 1), out=z) is z and same(z, again)
    with pytest.raises(ValueError, match="masked_softmax: out overlaps an input"):
        se.masked_softmax(x[:, :-1], out=x[:, 1:])
    bias = x.copy()
    with pytest.raises(ValueError, match="masked_softmax: out overlaps an input, accepted: memory of its own$"):
        se.masked_softmax(x, bias=bias, out=bias)
    assert same(bias, x)


BAD = [
    ({"axis": 2}, np.exceptions.AxisError, "axis is 2"),
    ({"axis": 1.0}, TypeError, "axis is 1.0, accepted: an int"),
    ({"where": np.ones(4, bool)}, ValueError, r"where has shape \(4,\), accepted: \(2, 3\)"),
    ({"where": np.ones(3)}, TypeError, "where has dtype float64, accepted: bool"),
    ({"lengths": np.ones(2)}, TypeError, "lengths has dtype float64, accepted: integers"),
    ({"lengths": np.ones((2, 3), int)}, ValueError, r"lengths has shape \(2, 3\), accepted: \(2,\), the shape without"),
    ({"lengths": [0, 4]}, ValueError, "lengths has 4 for row 1, accepted: 0 to 3"),
    ({"lengths": [-1, 2]}, ValueError, "lengths has -1 for row 0"),
    ({"lengths": np.array([1, 2**64 - 1], np.uint64)}, ValueError, "lengths has 18446744073709551615 for row 1"),
    ({"causal": 0.5}, TypeError, "causal is 0.5, accepted: an int or a bool"),
    ({"bias": np.ones((3, 2))}, ValueError, r"bias has shape \(3, 2\), accepted: \(2, 3\)"),
    ({"bias": np.ones((1, 2, 3))}, ValueError, r"bias has shape \(1, 2, 3\)"),
    ({"bias": 1j}, TypeError, "bias has dtype complex128"),
    ({"sink": np.ones(3)}, ValueError, r"sink has shape \(3,\), accepted: \(2,\), the shape without the axis"),
    ({"softcap": 0}, ValueError, "softcap is 0, accepted: a finite number > 0"),
    ({"softcap": "a"}, TypeError, "softcap is 'a'"),
    ({"softcap": "2"}, TypeError, "softcap is '2', accepted: a finite number > 0, or None"),
    ({"temperature": -1}, ValueError, "temperature is -1"),
    ({"empty": "none"}, ValueError, "empty is 'none', accepted: 'zero' or 'nan'"),
]


@pytest.mark.parametrize("options, error, text", BAD, ids=lambda v: str(v)[:30])
def test_bad_input(options, error, text):
    x, out = np.ones((2, 3)), np.full((2, 3), 7.0)
    with pytest.raises(error, match="^masked_softmax: .*" + text):
        se.masked_softmax(x, out=out, **options)
    assert (out == 7).all()
    with pytest.raises(error, match="^masked_softmax_vjp: .*" + text):
        se.masked_softmax_vjp(x, x, **options)


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_bad_lengths_that_rows_share(dtype):
    big = 7 if dtype is np.int64 else 2**63
    lengths = np.array([4, big], dtype)
    for shared, row in ((lengths[:, None], 3), (lengths[:, None].repeat(3, 1), 3), (lengths[[0, 1, 0]], 1), (lengths[1:], 0)):
        with pytest.raises(ValueError, match=f"^masked_softmax: lengths has {big} for row {row}, accepted: 0 to 4, "):
            se.masked_softmax(np.ones((2, 3, 4)), lengths=shared)
        with pytest.raises(ValueError, match=f"lengths has {big} for row {row},"):
            se.masked_softmax(np.ones((2, 4, 3)), 1, lengths=shared)


def test_other_bad_input():
    with pytest.raises(ValueError, match=r"masked_softmax_vjp: g has shape \(2,\), accepted: \(2, 3\)"):
        se.masked_softmax_vjp(np.ones(2), np.ones((2, 3)))
    with pytest.raises(ValueError, match="causal with an x of 1 dimension"):
        se.masked_softmax(np.ones(3), causal=0)
    with pytest.raises(TypeError, match="out has dtype float32"):
        se.masked_softmax(np.ones(3), out=np.ones(3, np.float32))
    with pytest.raises(ValueError, match=r"masked_softmax: x has shape \(\), accepted: at least one dimension"):
        se.masked_softmax(np.float32(1))
    with pytest.raises(TypeError, match="x is a masked array"):
        se.masked_softmax(np.ma.ones(3))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_there_is_one_nan(dtype):
    """What inf times a slope of 0 is, and sums of inf and -inf, has the same bytes on every machine."""
    nan = np.array(np.nan, dtype).tobytes()
    for isa in ISAS:
        _core.set_isa(isa)
        dx = se.masked_softmax_vjp(np.array([INF, 1, 1], dtype), np.array([1e4, 2e4, 1e4], dtype), softcap=1.0)
        assert dx.tobytes() == 3 * nan, isa
        g = np.array([INF, -INF], dtype)
        _, dbias = se.masked_logsumexp_vjp(g, np.zeros((2, 1), dtype), bias=np.zeros((1, 1), dtype))
        _, dsink = se.masked_logsumexp_vjp(g, np.zeros((2, 1), dtype), sink=np.array(0, dtype))
        assert dbias.tobytes() == nan and dsink.tobytes() == nan, isa


# -- a bias of -inf ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("n", [2, 9, 40, 3000])
def test_a_bias_of_minus_infinity_leaves_out_as_where_does(isa, dtype, n):
    """Whatever x and g hold there, in results and gradients, of rows with NaN elsewhere too."""
    rng = np.random.default_rng(n)
    most = float(ml_dtypes.finfo(dtype).max)
    kept = rng.random((20, n)) < 0.7
    kept[:, 0] = True
    kept[1] = False
    x, g = rng.standard_normal((2, 20, n)).astype(dtype)
    x[2, 0] = np.nan
    x[3, 0] = np.inf
    for row, bad in enumerate((np.nan, np.inf, -np.inf, most)):
        x[row::4][~kept[row::4]] = g[(row + 1) % 4 :: 4][~kept[(row + 1) % 4 :: 4]] = bad
    some = rng.standard_normal((20, n)).astype(dtype)
    bias = np.where(kept, some, dtype(-np.inf))
    _core.set_isa(isa)
    try:
        for options in ({}, {"softcap": 3.0}, {"temperature": 0.1}, {"temperature": np.inf}, {"sink": np.ones(20, dtype)},
                        {"lengths": rng.integers(0, n + 1, 20)}):  # fmt: skip
            for name in ("masked_softmax", "masked_log_softmax", "masked_logsumexp"):
                by_where, by_bias = {"where": kept, "bias": some, **options}, {"bias": bias, **options}
                expected, made = getattr(se, name)(x, **by_where), getattr(se, name)(x, **by_bias)
                assert expected.tobytes() == made.tobytes(), (name, options)
                by_strides = {**by_bias, "bias": np.asfortranarray(bias)}
                assert expected.tobytes() == getattr(se, name)(x, **by_strides).tobytes(), (name, options)
                of = g[:, 0] if name == "masked_logsumexp" else g
                expected, made = (getattr(se, name + "_vjp")(of, x, **o) for o in (by_where, by_bias))
                for a, b in zip(expected, made):
                    assert a.tobytes() == b.tobytes(), (name, options)
                if n <= 9:
                    overflowing = {**options, "bias": np.where(bias == -np.inf, bias, np.array(most, dtype))}
                    alike = {**options, "where": kept, "bias": np.full_like(bias, most)}
                    big = np.where(kept, np.array(most, dtype), x)
                    assert getattr(se, name)(big, **overflowing).tobytes() == getattr(se, name)(big, **alike).tobytes(), name
    finally:
        _core.set_isa(ISAS[-1])


def test_softcap_that_the_dtype_has_not():
    with pytest.raises(ValueError, match=r"softcap is 1e\+39, accepted: numbers above 0 that the dtype has"):
        se.masked_softmax(np.ones((2, 3), np.float32), softcap=1e39)
    assert (se.masked_softmax(np.ones((2, 4)), softcap=1e39) == 0.25).all()
