"""Quotients x / T that overflow, an infinite T, and distances of logits that overflow, in the functions that
test_temperature.py has not."""

import mpmath
import numpy as np
import pytest

import sumexp as se
from isas import ISAS
from sumexp import _core
from test_temperature import DTYPES, EPS, OVERFLOWS

MORE = [("float32", [0, -3.4e38, 1], 0.5), ("float64", [1.7e308, -1.7e308, 1.6e308], 0.3), ("float32", [3.1, 3.2, 3.3], 1e-42),
        ("float32", [1, -np.inf, 3, 2], np.inf), ("float64", [-1e300, 2, 1e308], np.inf), ("float16", [1, 2, 3], np.inf),
        ("bfloat16", [-np.inf, 5, 5], np.inf), ("float64", [0, 1, -1e308, -1e308], 1),
        ("float64", [1.7e308, -1.7e308, 5, -1.7e308], 1), ("float32", [3.4e38, -3.4e38, 5, -3.4e38], 1)]  # fmt: skip
ROWS = [(name, row, float(np.float32(T)) if name != "float64" else T) for name, row, T in OVERFLOWS + MORE]
INF = mpmath.inf


@pytest.fixture(params=ISAS, autouse=True)
def isa(request):
    _core.set_isa(request.param)
    yield
    _core.set_isa(ISAS[-1])


@pytest.fixture(autouse=True)
def digits():
    with mpmath.workdps(700):
        yield


class Row:
    """softmax p of z = softcap(x / T) + bias, to many digits, and d = -log p."""

    def __init__(self, x, T, bias=None, sink=None, cap=None, kept=None):
        n = len(x)
        bias = [0.0] * n if bias is None else bias.astype(np.float64)
        kept = [True] * n if kept is None else kept
        z = []
        for v, b, k in zip(x.astype(np.float64), bias, kept):
            if not k or v == -np.inf:
                z.append(-INF)
                continue
            q = mpmath.mpf(v) / mpmath.mpf(T) if T != np.inf else mpmath.mpf(0)
            z.append((cap * mpmath.tanh(q / cap) if cap else q) + mpmath.mpf(float(b)))
        every = z + ([mpmath.mpf(float(sink))] if sink is not None else [])
        m = max(every)
        self.z, self.S = z, sum(mpmath.exp(v - m) for v in every)
        self.lse = m + mpmath.log(self.S)
        self.d = [(m - v) + mpmath.log(self.S) for v in z]
        self.p = [mpmath.exp(-d) for d in self.d]
        self.entropy = sum(p * d for p, d in zip(self.p, self.d) if d != INF)
        self.T = mpmath.mpf(T) if T != np.inf else INF

    def over_T(self, values):
        return [v / self.T if self.T != INF else mpmath.mpf(0) for v in values]


def check(got, expected, dtype, scale=None):
    """Within 16 eps of `scale`, the result itself where none is given."""
    eps, largest, smallest = EPS[dtype]
    got = np.atleast_1d(np.asarray(got, np.float64))
    assert len(got) == len(expected)
    for value, right, size in zip(got, expected, scale or expected):
        if abs(right) > largest:
            assert value == np.sign(right) * np.inf, (value, right)
        else:
            assert abs(mpmath.mpf(float(value)) - right) <= 16 * eps * abs(size) + 2 * smallest, (value, float(right))


def batches(x):
    """x alone, and as the first row of batches that go by other ways, with how to take results of x out of theirs."""
    ordinary = np.linspace(-1, 1, len(x)).astype(x.dtype)
    yield x, lambda y: y, -1
    yield np.stack([x] + [ordinary] * 20), lambda y: y[0], -1
    yield np.ascontiguousarray(np.stack([x] + [ordinary] * 20).T), lambda y: y[:, 0] if y.ndim == 2 else y[0], 0


ARRAYS = [pytest.param(dtype, np.array(row).astype(DTYPES[dtype]), T, id=f"{dtype}-{row}-{T:.3g}") for dtype, row, T in ROWS]


@pytest.mark.parametrize("dtype, x, T", ARRAYS)
def test_information(dtype, x, T):
    right = Row(x, T)
    for batch, own, axis in batches(x):
        rows = np.moveaxis(batch, axis, -1).shape[:-1]
        for k in range(len(x)):
            index = np.full(rows, k)
            check(own(se.log_prob(batch, index, axis, temperature=T)), [-right.d[k]], dtype)
            g = se.log_prob_vjp(np.ones(rows, x.dtype), batch, index, axis, temperature=T)
            own_g = [(j == k) - p for j, p in enumerate(right.p)]
            check(own(g), right.over_T(own_g), dtype, right.over_T([(j == k) + p for j, p in enumerate(right.p)]))
        check(own(se.entropy(batch, axis, temperature=T)), [right.entropy], dtype)
        g = se.entropy_vjp(np.ones(rows, x.dtype), batch, axis, temperature=T)
        parts = [(p, 0 if d == INF else d) for p, d in zip(right.p, right.d)]
        check(own(g), right.over_T([p * (d - right.entropy) if p else mpmath.mpf(0) for p, d in parts]), dtype,
              right.over_T([p * (d + right.entropy) if p else mpmath.mpf(0) for p, d in parts]))  # fmt: skip


def loss_of(right, a, z_loss=0.0):
    return sum(v * d for v, d in zip(a, right.d) if v) + (z_loss * right.lse**2 if z_loss else 0)


@pytest.mark.parametrize("dtype, x, T", ARRAYS)
def test_cross_entropy(dtype, x, T):
    n, right = len(x), Row(x, T)
    numbers = np.where(np.isfinite(x.astype(np.float64)))[0]
    y = np.zeros(n)
    y[numbers] = 1 / len(numbers)
    wide = np.float64 if dtype == "float64" else np.float32
    w = np.linspace(1, 1e-3, n).astype(wide)
    one = np.eye(n)
    for batch, own, axis in batches(x):
        shape = np.moveaxis(batch, axis, -1).shape

        def run(target, a, loss_at=None, **options):
            a = [mpmath.mpf(float(v)) for v in a]
            loss, g, info = se.cross_entropy_with_grad(batch, target, axis, temperature=T, reduction="none",
                                                       info=("lse", "log_prob", "entropy", "predicted"), **options)
            check(own(loss), [loss_of(right, a) if loss_at is None else loss_at], dtype)
            A = sum(a)
            check(own(g), right.over_T([A * p - v for p, v in zip(right.p, a)]), dtype,
                  right.over_T([A * p + v for p, v in zip(right.p, a)]))  # fmt: skip
            check(own(info["lse"]), [right.lse], "float64" if dtype == "float64" else "float32")
            check(own(info["entropy"]), [right.entropy], "float64" if dtype == "float64" else "float32")
            assert x.astype(np.float64)[own(info["predicted"])] == max(x.astype(np.float64)) or T == np.inf
            return own(info["log_prob"])

        for t in numbers:
            got = run(np.full(shape[:-1], t), one[t])
            check(got, [-right.d[t]], "float64" if dtype == "float64" else "float32")
            beyond = INF if T == 1 and right.d[t] > EPS[dtype][1] else None  # rounded before its weight
            run(np.full(shape[:-1], t), one[t] * float(w[t]), beyond, weight=w)
            if len(numbers) == n:
                run(np.full(shape[:-1], t), 0.75 * one[t] + 0.25 / n, label_smoothing=0.25)
        target = np.moveaxis(np.broadcast_to(y.astype(wide), shape), -1, axis)
        run(target, y.astype(wide))
        run(target, y.astype(wide) * w, weight=w)
        pair = np.broadcast_to(numbers[[0, -1]], (*shape[:-1], 2))
        parts = np.broadcast_to(np.array([0.25, 2.0**-12], wide), pair.shape)
        a = 0.25 * one[numbers[0]] + 2.0**-12 * one[numbers[-1]]
        if axis == -1:
            run((np.ascontiguousarray(pair), np.ascontiguousarray(parts)), a)


@pytest.mark.parametrize("dtype, x, T", ARRAYS)
@pytest.mark.parametrize("how", ["plain", "where", "sink", "bias", "cap", "all"])
def test_masked(dtype, x, T, how):
    n = len(x)
    options, right = {}, {}
    if how in ("where", "all"):
        options["where"] = right["kept"] = np.arange(n) != 1
    if how in ("sink", "all"):
        options["sink"] = np.array(2, x.dtype)
        right["sink"] = 2
    if how in ("bias", "all"):
        options["bias"] = right["bias"] = np.linspace(-1, 1, n).astype(x.dtype)
    if how in ("cap", "all"):
        options["softcap"] = right["cap"] = 4
    exact = Row(x, T, **right)
    # z and, with a bias, its sum are rounded to the dtype
    eps, largest, _ = EPS["float64" if dtype == "float64" else "float32"]
    room = [1 + (abs(z) if abs(z) < largest else 0) + (abs(exact.lse) if abs(exact.lse) < largest else 0) for z in exact.z]
    g = np.linspace(-1, 2, n).astype(x.dtype)
    gs = [mpmath.mpf(float(v)) for v in g]
    for batch, own, axis in batches(x):
        where = {k: np.expand_dims(v, 1) if axis == 0 and v.ndim else v for k, v in options.items() if k in ("where", "bias")}
        given = {**options, **where, "temperature": T}
        check(own(se.masked_softmax(batch, axis, **given)), exact.p, dtype, [p * r for p, r in zip(exact.p, room)])
        got = own(se.masked_log_softmax(batch, axis, **given))
        check(got, [-d for d in exact.d], dtype, [(1 + d if d < largest else d) + r for d, r in zip(exact.d, room)])
        check(own(se.masked_logsumexp(batch, axis, **given)), [exact.lse], dtype, [abs(exact.lse) + 1])
        if how in ("cap", "all"):
            continue
        G = np.moveaxis(np.broadcast_to(g, np.moveaxis(batch, axis, -1).shape), -1, axis)

        def gradient(result):
            return own(result[0] if isinstance(result, tuple) else result)

        dot = sum(p * v for p, v in zip(exact.p, gs))
        size = exact.over_T([p * 4 * (1 + max(room)) for p in exact.p])
        check(gradient(se.masked_softmax_vjp(G, batch, axis, **given)),
              exact.over_T([p * (v - dot) for p, v in zip(exact.p, gs)]), dtype, size)  # fmt: skip
        kept = [v if k else mpmath.mpf(0) for v, k in zip(gs, right.get("kept", [True] * n))]
        total = sum(kept)
        check(gradient(se.masked_log_softmax_vjp(G, batch, axis, **given)),
              exact.over_T([v - p * total for p, v in zip(exact.p, kept)]), dtype,
              exact.over_T([abs(v) + 4 * p * (1 + max(room)) for p, v in zip(exact.p, kept)]))  # fmt: skip
        rows = np.moveaxis(batch, axis, -1).shape[:-1]
        got = gradient(se.masked_logsumexp_vjp(np.ones(rows, x.dtype), batch, axis, **given))
        check(got, exact.over_T(exact.p), dtype, size)


@pytest.mark.parametrize("n", [300, 5000, 200_000])
def test_long_rows(n):
    """float32 rows of several chunks against float64, in which nothing overflows."""
    rng = np.random.default_rng(n)
    x = rng.normal(0, 2, (3, n)).astype(np.float32)
    x[0, n // 2], x[0, 7] = -3.3e38, -3e38
    x[1], x[1, 5], x[1, n - 3] = -3.2e38, 3.1e38, 3.1e38
    T, wide = 0.7, x.astype(np.float64)
    T = float(np.float32(T))
    target = np.array([3, 5, 1])
    y = rng.random((3, n)).astype(np.float32)
    y[0, [n // 2, 7]] *= 1e-3
    where, bias = rng.random((3, n)) < 0.8, rng.normal(size=(3, n)).astype(np.float32)
    where[1, 5] = True
    bias[1] = 0  # beside 3e38 / T a bias in float64 is lost, here it is not
    near = {"temperature": T}
    calls = [
        lambda x, y, b, d: se.cross_entropy_with_grad(x, target, reduction="none", **near),
        lambda x, y, b, d: se.cross_entropy_with_grad(x, y, reduction="none", **near),
        lambda x, y, b, d: se.cross_entropy_with_grad(x, target, label_smoothing=0.1, reduction="none", **near),
        lambda x, y, b, d: (se.entropy(x, **near), se.entropy_vjp(np.ones(3, d), x, **near)),
        lambda x, y, b, d: (se.log_prob(x, target, **near), se.log_prob_vjp(np.ones(3, d), x, target, **near)),
        lambda x, y, b, d: se.masked_softmax(x, where=where, bias=b, **near),
        lambda x, y, b, d: se.masked_softmax(x, lengths=np.array([n - 1, n, n]), sink=np.array(1, d), **near),
        lambda x, y, b, d: se.masked_log_softmax(x, where=where, **near),
        lambda x, y, b, d: se.masked_logsumexp(x, where=where, **near),
        lambda x, y, b, d: se.masked_softmax_vjp(y, x, where=where, bias=b, **near),
    ]  # fmt: skip
    for k, call in enumerate(calls):
        with np.errstate(over="ignore"):
            got, right = call(x, y, bias, np.float32), call(wide, y.astype(np.float64), bias.astype(np.float64), np.float64)
            for a, b in zip(got, right) if isinstance(got, tuple) else [(got, right)]:
                np.testing.assert_allclose(a, np.asarray(b).astype(np.float32), rtol=3e-6, atol=2e-6, err_msg=str(k))
    alone = se.masked_softmax(x[1:2], where=where[1:2], bias=bias[1:2], **near)
    assert alone.tobytes() == se.masked_softmax(x, where=where, bias=bias, **near)[1:2].tobytes()


def test_sums_with_a_bias_overflow():
    big = np.float32(3e38)
    x, b = np.array([big, big, 0, -big], np.float32), np.array([big, big, 0, -big], np.float32)
    assert se.masked_softmax(x, bias=b).tolist() == [0.5, 0.5, 0, 0]
    assert se.masked_softmax(-x, bias=-b).tolist() == [0, 0, 0, 1]
    assert se.masked_log_softmax(x, bias=b)[:2].tolist() == [np.float32(-np.log(2))] * 2
    assert se.masked_logsumexp(x, bias=b) == np.inf
    assert se.masked_logsumexp(x[2:], bias=b[2:]) == 0
    g = np.arange(4, dtype=np.float32)
    dx, db = se.masked_softmax_vjp(g, x, bias=b)[:2]
    assert dx.tolist() == db.tolist() == [-0.25, 0.25, 0, 0]


def test_what_is_left_out_may_overflow():
    """An element that does not count changes no byte, whatever its quotient is."""
    x = np.random.default_rng(0).normal(size=(4, 40)).astype(np.float32)
    odd, where = x.copy(), np.ones((4, 40), bool)
    odd[:, 3], where[:, 3] = [3e38, -3e38, np.inf, np.nan], False
    for f in (se.masked_softmax, se.masked_log_softmax, se.masked_logsumexp):
        for bias in (None, x):
            args = {"where": where, "temperature": 0.3, "bias": bias}
            assert f(odd, **args).tobytes() == f(x, **args).tobytes()
            one = f(odd[1], **{**args, "where": where[1], "bias": bias if bias is None else bias[1]})
            assert one.tobytes() == f(x, **args)[1].tobytes()


def test_temperatures_that_are_refused():
    x = np.float32([1, 2, 3])
    for f, args in [(se.cross_entropy, (1,)), (se.entropy, ()), (se.log_prob, (1,)), (se.masked_softmax, ()), (se.softmax, ())]:
        for T in (0, -1, np.nan, 1e-60, 1e39):
            with pytest.raises(ValueError, match=f"{f.__name__}: temperature"):
                f(x, *args, temperature=T)


def test_gumbel_softmax():
    x = np.float32([3e38, 1, -3e38])
    assert se.gumbel_softmax(x, tau=np.inf, seed=0).tolist() == [np.float32(1 / 3)] * 3
    assert se.gumbel_softmax(x, tau=1e-300, seed=0).tolist() == [1, 0, 0]
    with pytest.raises(ValueError, match="gumbel_softmax: tau is 0.*argmax"):
        se.gumbel_softmax(x, tau=0)
    with pytest.raises(TypeError, match="gumbel_softmax: tau is 1j"):
        se.gumbel_softmax(x, tau=1j)


def test_torch():
    """The same numbers through autograd, and by the formulas that transforms and second derivatives take."""
    torch = pytest.importorskip("torch")
    import sumexp.torch as st

    x = torch.tensor([[3e38, 2.5e38, 0.0], [1, -torch.inf, 2], [-3e38, -3e38, -3e38]], requires_grad=True)
    t = torch.tensor([0, 2, 1])
    for T in (0.5, float("inf")):
        calls = [
            lambda x: st.cross_entropy(x, t, temperature=T, reduction="none"),
            lambda x: st.log_prob(x, t, temperature=T),
            lambda x: st.entropy(x, temperature=T),
            lambda x: st.softmax(x, -1, temperature=T),
        ]
        if T == float("inf"):
            calls += [lambda x: st.masked_softmax(x, temperature=T), lambda x: st.gumbel_softmax(x, T, seed=1)]
        rows = [Row(row.detach().numpy(), T) for row in x]
        for call in calls:
            y = call(x)
            assert not torch.isnan(y).any()
            (g,) = torch.autograd.grad(y.sum(), x)
            assert torch.isfinite(g).all()
            formula = torch.func.vmap(lambda x: call(x), in_dims=0)(x.detach()[None])[0]
            assert torch.allclose(formula, y, rtol=1e-6, atol=0)
        loss = calls[0](x).detach().numpy()
        for value, row, k in zip(loss, rows, t):
            check(value, [row.d[k]], "float32")
    big, wide = x[[0]], x[[0]].double()
    target = torch.tensor([[0.5, 0.25, 0.25]])
    with np.errstate(over="ignore"):
        got = st.cross_entropy(big, target, temperature=0.5, reduction="none")
        assert got.item() == pytest.approx(st.cross_entropy(wide, target, temperature=0.5, reduction="none").item(), rel=1e-6)
