"""log_prob, entropy, kl_div and their gradients: errors against mpmath, bytes, special values, refusals.

Bounds are those of the docstrings. `pytest -rP` shows the errors that were measured.
"""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from mpmath import exp, log1p, mp, mpf

import sumexp as se
from isas import ISAS
from oracle.formats import F32, F64, FORMATS
from sumexp import _core

NAMES = [f.name for f in FORMATS]
FULL = [F32, F64]


@pytest.fixture(autouse=True)
def _precision(request):
    """e^-700 beside 1, or e^-100 but of float64, and of divergences the square."""
    fmt = getattr(request.node, "callspec", None) and request.node.callspec.params.get("fmt")
    with mp.workprec(1300 if fmt in (None, F64) else 450):
        yield


# -- the oracle ----------------------------------------------------------------------------------------------


class Row:
    """Everything about one row of logits, exactly: p, log p, H, the distances d and their mean A."""

    def __init__(self, x):
        self.x = [mpf(float(v)) for v in x]
        self.m = max(self.x)
        e = [exp(v - self.m) if v != -mp.inf else mpf(0) for v in self.x]
        total = sum(e)
        self.L = log1p(sum(e) - 1)
        self.p = [v / total for v in e]
        self.d = [self.m - v if v != -mp.inf else mpf(0) for v in self.x]
        self.A = sum(p * d for p, d in zip(self.p, self.d))
        self.H = self.L + self.A
        top = [j for j, v in enumerate(self.x) if v == self.m]
        self.winner = top[0] if len(top) == 1 else -1

    def log_p(self, j):
        return self.x[j] - self.m - self.L


def ulps(got, want, fmt):
    """|got - want| in units in the last place of want."""
    if want == 0:
        return 0.0 if float(got) == 0 else np.inf
    place = max(int(mp.floor(mp.log(abs(want), 2))) - fmt.digits + 1, fmt.tiny)
    return float(abs(mpf(float(got)) - want) / mpf(2) ** place)


def rounding(fmt):
    """(eps of the arithmetic, what rounding to 16 bits adds, relative)"""
    eps = mpf(2) ** -52 if fmt is F64 else mpf(2) ** -23
    return eps, (mpf(2) ** -fmt.digits * mpf("1.01") if fmt.narrow else mpf(0))


def excess(got, want, scale, fmt, floor=mpf(0)):
    """How many eps of `scale` an error has, over what rounding the result itself to 16 bits adds."""
    eps, narrow = rounding(fmt)
    least = mpf(2) ** fmt.tiny + (mpf(2) ** -126 if fmt is not F64 else mpf(2) ** -1022) * eps  # below normal numbers
    error = abs(mpf(float(got)) - want) - narrow * abs(want) - floor - 2 * least
    return 0.0 if error <= 0 else float(error / scale / eps) if scale else np.inf


def rows_of(fmt, lengths=(1, 2, 3, 10, 40)):
    """Adversarial rows: margins, ties, offsets, -inf, near ties, far apart."""
    rng = np.random.default_rng(22)
    most = {"f16": 16, "bf16": 80, "f32": 100, "f64": 700}[fmt.name]
    offsets = {"f16": [1e4], "bf16": [1e8, 1e30], "f32": [1e8, 1e30, -7e4], "f64": [1e8, 1e30, -3e12]}[fmt.name]
    for margin in (0, 1e-3, 1, 8, 16, 30, 60, 100, 300, 700):
        if margin <= most:
            yield np.array([0, -margin])
            yield np.array([-margin, 0, -margin, -margin - 1])
    for n in lengths:
        for scale in (1e-6, 1e-3, 1, 10, 100):
            yield rng.normal(size=n) * scale
        x = rng.normal(size=n)
        x[rng.integers(n)] += rng.uniform(5, most)
        yield x
        yield np.where(rng.random(n) < 0.4, -np.inf, x) if n > 2 else x
        yield np.repeat(x[:1], n)
        for offset in offsets:
            yield x * 4 + offset
    yield np.full(40, 1e-4) * np.arange(40)
    yield -np.abs(rng.normal(size=30)) * 1e4
    tail = np.full(300, -12.5) + rng.normal(size=300) * 0.1  # all others below the grid of the maximum's sum
    tail[17] = 0
    yield tail


@pytest.mark.parametrize("fmt", FORMATS, ids=NAMES)
def test_entropy_and_log_prob(fmt):
    worst = {"entropy": 0.0, "log_prob": 0.0}
    bound = {"entropy": 0.51 if fmt.narrow else 4, "log_prob": 0.51 if fmt.narrow else 1}
    for x in rows_of(fmt):
        x = x.astype(fmt.dtype)
        row = Row(x)
        index = np.arange(x.size)
        y, h = se.log_prob_and_entropy(x, index)
        found = {"entropy": ulps(h, row.H, fmt)}
        found["log_prob"] = max(ulps(y[j], row.log_p(j), fmt) for j in index if row.x[j] != -mp.inf)
        assert np.all(y[np.isneginf(x)] == -np.inf) and float(h) >= 0
        for name, value in found.items():
            assert value <= bound[name], (name, x, value)
            worst[name] = max(worst[name], value)
    print(fmt.name, worst)


def test_margins():
    """As p -> 1: to some ulp, never 0 or negative, as far as numbers go."""
    for margin in np.concatenate([np.arange(0, 100.0), np.arange(100, 701, 25.0)]):
        for fmt in FULL:
            if fmt is F32 and margin > 86:  # beyond, probabilities are subnormal numbers, and entropies soon
                if margin <= 98:
                    assert ulps(se.entropy(np.float32([0, -margin])), Row(np.float32([0, -margin])).H, fmt) <= 3
                continue
            x = np.array([0, -margin], fmt.dtype)
            row = Row(x)
            h = se.entropy(x)
            assert h > 0 and ulps(h, row.H, fmt) <= 3
            g = se.entropy_vjp(np.ones((), fmt.dtype), x)
            want = row.p[0] * row.A
            assert g[0] <= 0 and ulps(-g[0], want, fmt) <= 6 and ulps(g[1], row.p[1] * (row.d[1] - row.A), fmt) <= 16, margin
    assert f"{se.entropy(np.array([0.0, -30.0])):.4e}" == "2.9009e-12"


def entropy_gradient(fmt, x, got, g):
    row = Row(x)
    worst = 0.0
    tiny = mpf(2) ** -1022 if fmt is F64 else mpf(2) ** -126
    for j, p in enumerate(row.p):
        want = g * p * (row.d[j] - row.A)
        worst = max(worst, excess(got[j], want, abs(g) * (p + tiny) * (row.d[j] + row.A), fmt))
        assert np.isfinite(float(got[j])) and (p or got[j] == 0)
    return worst


@pytest.mark.parametrize("fmt", FORMATS, ids=NAMES)
def test_entropy_vjp(fmt):
    worst = 0.0
    for x in rows_of(fmt, lengths=(1, 2, 3, 17)):
        x = x.astype(fmt.dtype)
        got = se.entropy_vjp(fmt.dtype.type(-1.5), x)
        worst = max(worst, entropy_gradient(fmt, x, got, mpf(-1.5)))
    print(fmt.name, "entropy_vjp", worst)
    assert worst <= (20 if fmt.narrow else 5)


@pytest.mark.parametrize("fmt", FORMATS, ids=NAMES)
def test_log_prob_vjp(fmt):
    worst = 0.0
    rng = np.random.default_rng(3)
    for x in rows_of(fmt, lengths=(1, 2, 3, 17)):
        x = x.astype(fmt.dtype)
        row = Row(x)
        index = rng.integers(x.size, size=3)
        g = np.array([0.5, -2, 1], fmt.dtype)
        for picks in (1, 3):
            got = se.log_prob_vjp(g[:picks], x, index[:picks]) if picks > 1 else se.log_prob_vjp(g[0], x, index[0])
            given = [sum(mpf(float(g[k])) for k in range(picks) if index[k] == j) for j in range(x.size)]
            total = sum(given)
            for j, p in enumerate(row.p):
                rest = sum(row.p[i] for i in range(x.size) if i != j)
                want = given[j] * rest - p * (total - given[j])
                size = sum(abs(mpf(float(g[k]))) for k in range(picks))
                own = sum(abs(mpf(float(g[k]))) for k in range(picks) if index[k] == j)
                scale = abs(given[j]) * rest + p * (size - own) if j == row.winner or picks == 1 else own + p * size
                if j == row.winner and not own:
                    scale = p * size
                repeated = sum(i == j for i in index[:picks])
                worst = max(worst, excess(got[j], want, scale, fmt) * 4 / (4 + repeated))
    print(fmt.name, "log_prob_vjp", worst)
    assert worst <= (20 if fmt.narrow else 4)


def test_one_sweep_is_the_sum_of_both():
    rng = np.random.default_rng(5)
    for fmt in FULL:
        x = (rng.normal(size=(6, 50)) * 4).astype(fmt.dtype)
        x[0, 3] += 40
        index = rng.integers(50, size=(6, 2))
        index[0, 0] = 3
        g = rng.normal(size=(6, 2)).astype(fmt.dtype)
        h = rng.normal(size=6).astype(fmt.dtype)
        y, e = se.log_prob_and_entropy(x, index, temperature=1.25)
        assert y.tobytes() == se.log_prob(x, index, temperature=1.25).tobytes()
        assert e.tobytes() == se.entropy(x, temperature=1.25).tobytes()
        both = se.log_prob_and_entropy_vjp((g, h), x, index, temperature=1.25)
        apart = se.log_prob_vjp(g, x, index, temperature=1.25), se.entropy_vjp(h, x, temperature=1.25)
        eps = np.finfo(fmt.dtype).eps
        assert np.all(np.abs(both - apart[0] - apart[1]) <= 16 * eps * (np.abs(apart[0]) + np.abs(apart[1]) + se.softmax(x)))


# -- the divergence ------------------------------------------------------------------------------------------


def pairs_of(fmt):
    rng = np.random.default_rng(23)
    for n in (1, 2, 3, 17, 300):
        x = rng.normal(size=n) * 2
        certain = x.copy()
        certain[n // 2] += 40 if fmt is F32 else 250
        for base in (x, certain):
            yield base, base
            for change in (1e-6, 1e-4, 1e-2, 1, 10):
                yield base, base + rng.normal(size=n) * change
            for offset in (3, 1e4, 1e8, -2e5):
                yield base, base + offset
            yield base, np.roll(base, 1)
            yield base * 0, base
            yield base, base * 0
            yield np.where(rng.random(n) < 0.5, -np.inf, base) if n > 3 else base, base
    yield np.zeros(3), np.array([0, -1e5, -1e30])
    yield np.full(4, 1e30), np.array([1, 2, 3, 4.0])
    yield np.array([0, -90.0]), np.array([0, -5.0])


@pytest.mark.parametrize("fmt", FULL, ids=["f32", "f64"])
def test_kl_div(fmt):
    eps = rounding(fmt)[0]
    worst = 0.0
    for x, y in pairs_of(fmt):
        x, y = x.astype(fmt.dtype), y.astype(fmt.dtype)
        if not np.isfinite(x).any():
            continue
        p, q = Row(x), Row(y)
        want = sum(p.p[j] * (p.log_p(j) - q.log_p(j)) for j in range(x.size) if p.p[j])
        got = se.kl_div(x, y)
        assert got >= 0 and (got == 0 or not np.array_equal(x, y))
        worst = max(worst, excess(got, want, want, fmt, floor=(eps / 8) ** 2))
    print(fmt.name, "kl_div", worst)
    assert worst <= 20


def chunked_pairs(fmt):
    """Rows of three chunks that differ within them, between them, or both: (what, p's logits, q's)."""
    rng = np.random.default_rng(41)
    chunk = 2048 if fmt is F32 else 512
    n = 2 * chunk + 77
    of = np.arange(n) // chunk  # the chunk of each element
    base = (rng.normal(size=n) * 2).astype(fmt.dtype)
    tiny = 1e-5 if fmt is F32 else 1e-11
    yield "halves tilted", base, base + fmt.dtype.type(tiny) * (np.arange(n) > n // 2)
    for u in (tiny, 1e-3, 0.3, 1, 4):
        between, within = rng.normal(size=3)[of], rng.normal(size=n)
        yield f"between chunks {u}", base * 0, u * between
        yield f"tilted chunks {u}", base, base + u * between
        yield f"both {u}", base, base + u * (between + 1e-2 * within)
    few = np.where(np.arange(n) % chunk < 5, np.round(base * 300) / 1024, -40)  # sums with the errors of five terms
    steps = np.array([3, -5, 8])[of] + rng.integers(-1, 2, size=n)
    yield "nearly equal", few, np.where(few > -40, few + steps * 2.0 ** (-22 if fmt is F32 else -50), few)
    away = base.copy()
    away[chunk - 3] += 60
    yield "far apart at one element", base, np.where(away != base, base - 3, base + tiny * rng.normal(size=n))
    for spread in (100, 1000, 1e4):
        yield f"p spread {spread}", base + spread * (of == 1), base
        yield f"q spread {spread}", base, base - spread * (of == 1)
        yield f"q elsewhere {spread}", base + spread * (of == 0), base + spread * (of == 2)
        yield f"together {spread}", base + spread * (of == 1), base + spread * (of == 1) + 1e-3 * rng.normal(size=3)[of]
    winner, other = base.copy(), base.copy()
    winner[3] += 40
    other[chunk + 5] += 40
    yield "winners in two chunks", winner, other
    yield "one winner", winner, winner + 1e-3 * rng.normal(size=n)
    yield "small share, large ratio", base - 30 * (of == 1), base + 20 * (of == 1)
    yield "an offset of 1e30", base, base * 0 + 1e30
    yield "from 1e30 to -1e30", 1e30 * (1 - of), base
    for k in range(3):
        yield f"-inf in p, {k}", np.where(of == k, -np.inf, base), base
        yield f"-inf in p, {k}, and q there", np.where(of == k, -np.inf, base), base + 50 * (of == k)
        yield f"-inf in p, but {k}", np.where(of != k, -np.inf, base), base + 0.1 * rng.normal(size=n)
        yield f"-inf in both, {k}", *(np.where(of == k, -np.inf, a) for a in (base, base + tiny * rng.normal(size=n)))


@pytest.mark.parametrize("fmt", FULL, ids=["f32", "f64"])
def test_kl_div_of_chunks(fmt):
    eps = rounding(fmt)[0]
    worst = {}
    for what, x, y in chunked_pairs(fmt):
        x, y = x.astype(fmt.dtype), y.astype(fmt.dtype)
        with mp.workprec(250):
            p, q = Row(x), Row(y)
            want = sum(p.p[j] * (p.log_p(j) - q.log_p(j)) for j in range(x.size) if p.p[j])
            got = se.kl_div(x, y)
            assert 0 <= got < np.inf, what
            worst[what] = excess(got, want, want, fmt, floor=(eps / 8) ** 2)
    print(fmt.name, "kl_div of chunks", max(worst.values()))
    assert all(v <= 20 for v in worst.values()), {k: v for k, v in worst.items() if v > 20}


@pytest.mark.parametrize("fmt", FULL, ids=["f32", "f64"])
def test_kl_div_of_equal_and_of_impossible_rows(fmt):
    """Exactly 0 of rows that are equal up to a constant, in one chunk or several; +inf where p > 0 and q = 0, wherever."""
    rng = np.random.default_rng(42)
    for n in (1, 5, 100, 256, 2000, 2048, 2049, 9000):
        x = (np.round(rng.normal(size=n) * 48) / 16).astype(fmt.dtype)
        x[n // 2] += 40
        masked = np.where(rng.random(n) < 0.3, -np.inf, x).astype(fmt.dtype)
        masked[0] = 1
        for base in (x, masked):
            for offset in (0, 64, -3, 1000):
                assert se.kl_div(base, base + fmt.dtype.type(offset)) == 0
            rows = np.broadcast_to(base, (37, n))  # many at a time
            assert not se.kl_div(rows, rows + fmt.dtype.type(8)).any()
        for at in {0, n // 3, n - 1}:
            y = x.copy()
            y[at] = -np.inf
            if n > 1:
                assert se.kl_div(x, y) == np.inf and 0 < se.kl_div(y, x) < np.inf
        if n == 9000:
            y = x.copy()
            y[2048:4096] = -np.inf  # whole chunks
            assert se.kl_div(x, y) == np.inf and 0 < se.kl_div(y, x) < np.inf and se.kl_div(y, y) == 0
            y[5] = np.nan
            assert np.isnan(se.kl_div(x, y)) and np.isnan(se.kl_div(y, x))


@pytest.mark.parametrize("fmt", FULL, ids=["f32", "f64"])
def test_kl_div_vjp(fmt):
    eps = rounding(fmt)[0]
    worst = [0.0, 0.0]
    for x, y in pairs_of(fmt):
        x, y = x.astype(fmt.dtype), y.astype(fmt.dtype)
        if x.size > 20 or not np.isfinite(x).any():
            continue
        p, q = Row(x), Row(y)
        w = [p.log_p(j) - q.log_p(j) if p.p[j] else mpf(0) for j in range(x.size)]
        kl = sum(a * b for a, b in zip(p.p, w))
        dp, dq = se.kl_div_vjp(fmt.dtype.type(2), x, y)
        for j in range(x.size):
            rest = sum(p.p[i] for i in range(x.size) if i != j)
            scale = p.p[j] * (abs(w[j]) + kl)
            if j == p.winner:
                scale = p.p[j] * (abs(w[j]) * rest + sum(p.p[i] * abs(w[i]) for i in range(x.size) if i != j))
            common = eps / 8 * 2 * p.p[j]
            worst[0] = max(worst[0], excess(dp[j], 2 * p.p[j] * (w[j] - kl), 2 * scale, fmt, floor=common * rest))
            change = q.p[j] - p.p[j]
            worst[1] = max(worst[1], excess(dq[j], 2 * change, 2 * abs(change), fmt, floor=common))
            assert p.p[j] or dp[j] == 0
        if np.array_equal(x, y):
            assert not dp.any() and not dq.any()
    print(fmt.name, "kl_div_vjp", worst)
    assert worst[0] <= 20 and worst[1] <= 8


def test_divergence_of_16_bits():
    rng = np.random.default_rng(9)
    for fmt in FORMATS[:2]:
        for scale in (1, 4):
            x, y = (rng.normal(size=40) * scale).astype(fmt.dtype), (rng.normal(size=40) * scale).astype(fmt.dtype)
            p, q = Row(x), Row(y)
            want = sum(p.p[j] * (p.log_p(j) - q.log_p(j)) for j in range(x.size))
            assert ulps(se.kl_div(x, y), want, fmt) <= 0.51


@pytest.mark.parametrize("fmt", FULL, ids=["f32", "f64"])
def test_long_rows(fmt):
    """Many chunks, some of them far below the maximum: against sums of longdouble."""
    rng = np.random.default_rng(31)
    n = 300_001
    x = (rng.normal(size=n) * 3).astype(fmt.dtype)
    x[: n // 3] -= fmt.dtype.type(500)
    x[-5] = 25
    y = (x + rng.normal(size=n) * 0.5).astype(fmt.dtype)
    exact, other = x.astype(np.longdouble), y.astype(np.longdouble)

    def parts(x):
        m = x.max()
        e = np.exp(x - m)
        return e / e.sum(), m - x, np.log1p(e[x < m].sum() + (x == m).sum() - 1)

    p, d, L = parts(exact)
    q, b, M = parts(other)
    A = (p * d).sum()
    w = b - d + M - L
    kl = (p * w).sum()
    eps = np.finfo(fmt.dtype).eps
    assert abs(se.entropy(x) - (L + A)) <= 1.5 * eps * (L + A)
    assert abs(se.kl_div(x, y) - kl) <= 20 * eps * kl
    one = np.ones((), fmt.dtype)
    tiny = np.finfo(fmt.dtype).tiny
    assert np.all(np.abs(se.entropy_vjp(one, x) - p * (d - A)) <= 5 * eps * p * (d + A) + tiny)
    dp, dq = se.kl_div_vjp(one, x, y)
    assert np.all(np.abs(dp - p * (w - kl)) <= 20 * eps * p * (np.abs(w) + kl) + eps / 8 * p + tiny)
    assert np.all(np.abs(dq - (q - p)) <= 8 * eps * np.abs(q - p) + eps / 8 * p + tiny)
    picked = se.log_prob_vjp(one, x, n - 5)
    assert abs(picked[n - 5] - (1 - p[n - 5])) <= 4 * eps * (1 - p[n - 5])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kl_div_vjp_where_p_is_0_and_the_rest_is_large(dtype):
    """Rows with the least number as a mask: w - KL overflows where p is 0, and the gradient there is 0."""
    least = np.finfo(dtype).min
    for p, q in (([0, 1, least], [0, least, 1]), ([0, least], [least, 0]), ([0, least, least], [least, 0, least])):
        p, q = np.array(p, dtype), np.array(q, dtype)
        assert np.isfinite(se.kl_div(p, q))
        for rows in (1, 40):
            dp, dq = se.kl_div_vjp(np.ones(rows, dtype), np.tile(p, (rows, 1)), np.tile(q, (rows, 1)))
            assert (dp[:, p == least] == 0).all() and np.isfinite(dp).all() and np.isfinite(dq).all()


# -- bytes ----------------------------------------------------------------------------------------------------


def everything(x, y, index, axis=-1, T=0.75):
    """The results of all functions, in order, each with the batch's dimensions first."""
    rows = np.moveaxis(x, axis, -1).shape[:-1]
    h, g = np.full(rows, 0.5, x.dtype), np.ones(index.shape, x.dtype)
    lp, e = se.log_prob_and_entropy(x, index, axis, temperature=T)
    dx = se.log_prob_and_entropy_vjp((g, h), x, index, axis, temperature=T)
    kl = se.kl_div(x, y, axis)
    return [np.asarray(lp), np.asarray(e), np.asarray(kl),
            *(np.moveaxis(a, axis, -1) for a in (dx, *se.kl_div_vjp(h, x, y, axis)))]


def sample(fmt, rows, n, seed=0):
    rng = np.random.default_rng([seed, n])
    x = (rng.normal(size=(rows, n)) * rng.choice([1, 10, 60], size=(rows, 1))).astype(fmt.dtype)
    y = (x + rng.normal(size=(rows, n))).astype(fmt.dtype)
    if n > 4:
        x[0, 2], x[1, 1], y[1, 1] = -np.inf, -np.inf, -np.inf
        x[2, n // 2] += fmt.dtype.type(60)
    if n > 3000:
        x[2, :2100] -= fmt.dtype.type(400)
        y[0, :2100] -= fmt.dtype.type(300)
    if n > 5000:
        x[1, 2048:4096] = -np.inf
    return x, y, rng.integers(n, size=(rows, 2))


def as_bytes(results):
    return [np.ascontiguousarray(a).tobytes() for a in results]


@pytest.mark.parametrize("fmt", FORMATS, ids=NAMES)
def test_instruction_sets(fmt):
    for n in (1, 2, 3, 7, 8, 9, 16, 17, 33, 64, 65, 257, 511, 512, 513, 2047, 2048, 2049, 4500, 20_000):
        inputs = sample(fmt, 3, n)
        found = []
        for isa in ISAS:
            _core.set_isa(isa)
            found.append(as_bytes(everything(*inputs)))
        assert all(f == found[0] for f in found), n


@pytest.mark.parametrize("fmt", FORMATS, ids=NAMES)
def test_place_does_not_matter(fmt):
    """Alone or in a batch, over any axis, at any stride, on any number of threads."""
    for n in (5, 100, 2100, 4500):
        x, y, index = sample(fmt, 3, n, seed=1)
        want = as_bytes(everything(x, y, index))
        alone = [everything(x[r], y[r], index[r]) for r in range(3)]
        assert as_bytes([np.stack([a[k] for a in alone]) for k in range(6)]) == want
        tall = everything(np.asfortranarray(x).T, y.T, index, 0)
        assert as_bytes(tall) == want
        middle = [np.stack([a, a[::-1]], 1).swapaxes(1, 2) for a in (x, y)]  # (3, n, 2)
        found = everything(*middle, np.stack([index, index[::-1]], 1), 1)
        assert as_bytes([a[:, 0] for a in found]) == want
        wide = np.zeros((3, 2 * n), fmt.dtype)
        wide[:, ::-2] = x
        assert as_bytes(everything(wide[:, ::-2], y, index)) == want
    for n in (1, 5, 16, 40, 100, 300):  # several rows at a time, one of them special
        x, y, index = sample(fmt, 37, n, seed=2)
        x[20, -1] = np.nan
        alone = [everything(x[r], y[r], index[r]) for r in range(37)]
        want = as_bytes([np.stack([a[k] for a in alone]) for k in range(6)])
        assert as_bytes(everything(x, y, index)) == want
        assert as_bytes(everything(np.ascontiguousarray(x.T), y.T, index, 0)) == want
    many = [np.concatenate([a] * 400) for a in sample(fmt, 3, 700)]
    se.set_num_threads(1)
    want = as_bytes(everything(*many))
    se.set_num_threads(3)
    assert as_bytes(everything(*many)) == want


def test_in_place_and_out():
    x, y, index = sample(F32, 3, 5000)
    g = np.ones((3, 2), np.float32)
    want = se.log_prob_vjp(g, x, index)
    other = x.copy()
    assert se.log_prob_vjp(g, other, index, out=other) is other and other.tobytes() == want.tobytes()
    for function, arguments in ((se.log_prob, (x, index)), (se.entropy, (x,)), (se.kl_div, (x, y))):
        want = function(*arguments)
        out = np.empty((*want.shape, 2), np.float32)[..., 0]
        assert function(*arguments, out=out) is out and np.array_equal(out, want)


def test_log_prob_is_minus_the_loss():
    """The bytes of log_softmax to within its own rounding, and those of x / T."""
    x, _, index = sample(F64, 3, 100)
    want = np.take_along_axis(se.log_softmax(x / 0.75), index, 1)
    got = se.log_prob(x, index, temperature=0.75)
    assert got.tobytes() == se.log_prob(x / 0.75, index).tobytes()
    finite = np.isfinite(want)
    assert np.array_equal(np.isfinite(got), finite) and np.allclose(got[finite], want[finite], rtol=4e-16, atol=0)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_rows(data):
    """Rows, shapes and axes of hypothesis's choice: the same bytes as every row alone, and never negative."""
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=20))
    elements = st.one_of(st.floats(-1e4, 1e4, width=32), st.sampled_from([0.0, -np.inf, 1e5, 88.0]))
    x, y = (data.draw(hnp.arrays(np.float32, shape, elements=elements)) for _ in range(2))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    h, kl = np.asarray(se.entropy(x, axis)), np.asarray(se.kl_div(x, y, axis))
    some = np.moveaxis(x, axis, -1).reshape(-1, shape[axis]), np.moveaxis(y, axis, -1).reshape(-1, shape[axis])
    for r, (a, b) in enumerate(zip(*some)):
        assert h.flat[r].tobytes() == se.entropy(a).tobytes() and kl.flat[r].tobytes() == se.kl_div(a, b).tobytes()
        if np.isfinite(a).any():
            assert 0 <= h.flat[r] <= np.log(a.size) * 1.000001
        if np.isfinite(a).any() and np.isfinite(b).any():
            assert kl.flat[r] >= 0 and (kl.flat[r] == np.inf) == bool(np.any(np.isneginf(b) & ~np.isneginf(a)))


# -- special values --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", FORMATS, ids=NAMES)
@pytest.mark.parametrize("n", [3, 2500])
def test_specials(fmt, n):
    one = fmt.dtype.type(1)
    for bad in (np.nan, np.inf, None):
        x = np.zeros(n, fmt.dtype)
        x[1] = bad if bad is not None else 0
        if bad is None:
            x[:] = -np.inf
        assert np.isnan(se.entropy(x)) and np.isnan(se.log_prob(x, 0)) and np.isnan(se.kl_div(x, x))
        assert np.isnan(se.kl_div(np.zeros(n, fmt.dtype), x))
        assert np.isnan(se.entropy_vjp(one, x).astype(np.float64)).all()
        assert all(np.isnan(a.astype(np.float64)).all() for a in se.kl_div_vjp(one, x, np.zeros(n, fmt.dtype)))
    x, y = np.zeros(n, fmt.dtype), np.zeros(n, fmt.dtype)
    x[0] = -np.inf
    assert se.log_prob(x, 0) == -np.inf and np.isfinite(se.kl_div(x, y)) and se.kl_div(y, x) == np.inf
    dp, dq = se.kl_div_vjp(one, x, y)
    assert dp[0] == 0 and np.isfinite(dp.astype(np.float64)).all() and np.isfinite(dq.astype(np.float64)).all()
    dp, dq = se.kl_div_vjp(one, y, x)
    assert np.isnan(dp.astype(np.float64)).all() and np.isfinite(dq.astype(np.float64)).all()
    y[0] = -np.inf
    assert se.kl_div(x, y) == 0
    assert not any(a.astype(np.float64).any() for a in se.kl_div_vjp(one, x, y))
    dx = se.log_prob_vjp(one, x, 0)  # of a class that has probability 0
    assert dx[0] == 1 and np.allclose(dx[1:].astype(np.float64), -1 / (n - 1), rtol=0.01, atol=0)


def test_one_and_none():
    assert se.entropy(np.array([3.0])) == 0 and se.log_prob(np.array([3.0]), 0) == 0
    assert se.entropy(np.zeros((2, 0))).tolist() == [0, 0] and se.kl_div(np.zeros((2, 0)), np.zeros((2, 0))).tolist() == [0, 0]
    assert se.entropy(np.zeros((0, 5))).shape == (0,) and se.log_prob(np.zeros((0, 5)), np.zeros((0, 7), int)).shape == (0, 7)
    assert se.log_prob(np.zeros((2, 5)), np.zeros((2, 0), int)).shape == (2, 0)
    assert se.entropy_vjp(np.zeros(2), np.zeros((2, 0))).shape == (2, 0)
    assert all(a.shape == (2, 0) for a in se.kl_div_vjp(np.zeros(2), np.zeros((2, 0)), np.zeros((2, 0))))
    assert not se.log_prob_vjp(np.zeros((2, 0)), np.zeros((2, 5)), np.zeros((2, 0), int)).any()


def test_trl_7221_entropy_of_masked_logits():
    """Masked classes made it NaN: 0 times -inf."""
    x = np.array([[1.0, -np.inf, 2.0, -np.inf], [-np.inf, 0.0, -np.inf, -np.inf]])
    assert np.array_equal(se.entropy(x), se.entropy(x[:, [0, 2, 1]]) * [1, 0] + [0, 0])
    assert se.entropy(x)[0] == se.entropy(np.array([1.0, 2.0])) and se.entropy(x)[1] == 0


def test_trl_7252_gradient_of_masked_logits():
    """nan_to_num repaired the value, and its gradient stayed NaN."""
    x = np.array([1.0, -np.inf, 2.0])
    dx = se.entropy_vjp(1.0, x)
    assert dx[1] == 0 and dx[[0, 2]].tobytes() == se.entropy_vjp(1.0, x[[0, 2]]).tobytes()


# -- arguments --------------------------------------------------------------------------------------------------


def test_indices_of_any_integer_dtype():
    x = np.random.default_rng(0).normal(size=(3, 4))
    want = se.log_prob(x, [0, 3, 1])
    for dtype in (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.uint64, ">i4"):
        assert np.array_equal(se.log_prob(x, np.array([0, 3, 1], dtype)), want)
    assert np.array_equal(se.log_prob(x.astype(np.int64), [0, 3, 1]), se.log_prob(x.astype(np.int64) * 1.0, [0, 3, 1]))
    assert se.log_prob([0.0, 1.0], 1) == se.log_softmax([0.0, 1.0])[1]


BAD = [
    (lambda x, i: se.log_prob(x, i + 7), ValueError, "log_prob: index is 7 for row 0, accepted: indices from 0 below 4"),
    (lambda x, i: se.log_prob(x, i - [[0], [1], [0]]), ValueError, "index is -1 for row 1"),
    (lambda x, i: se.log_prob(x, np.full((3, 2), 2**63, np.uint64)), ValueError, f"index is {2**63} for row 0"),
    (lambda x, i: se.log_prob(x, np.array([[0, 3], [3, 4], [0, 2**64 - 5]], np.uint64)), ValueError, "index is 4 for row 1,"),
    (lambda x, i: se.log_prob(x, i * 1.0), TypeError, "log_prob: index has dtype float64, accepted: integers"),
    (lambda x, i: se.log_prob(x, i[:2]), ValueError, r"log_prob: index has shape \(2, 2\), accepted: \(3,\) or \(3, K\)"),
    (lambda x, i: se.log_prob(x, i[..., None]), ValueError, "log_prob: index has shape"),
    (lambda x, i: se.log_prob(1.0, 0), ValueError, r"log_prob: logits has shape \(\), accepted: at least one dimension"),
    (lambda x, i: se.log_prob(x, i, 2), ValueError, "log_prob: axis is 2, accepted: -2 to 1"),
    (lambda x, i: se.log_prob(x, i, (0, 1)), TypeError, r"log_prob: axis is \(0, 1\), accepted: an int"),
    (lambda x, i: se.log_prob(x, i, temperature=0), ValueError, "log_prob: temperature is 0, accepted"),
    (lambda x, i: se.entropy(x, temperature="1"), TypeError, "entropy: temperature is '1', accepted"),
    (lambda x, i: se.entropy(x.astype(np.float32), temperature=1e-60), ValueError, "entropy: temperature is 1e-60"),
    (lambda x, i: se.entropy(x * 1j), TypeError, "entropy: logits has dtype complex128, accepted"),
    (lambda x, i: se.entropy(x, out=np.zeros(4)), ValueError, r"entropy: out has shape \(4,\), accepted: \(3,\)"),
    (lambda x, i: se.entropy(x, out=np.zeros(3, np.float32)), TypeError, "entropy: out has dtype float32, accepted: float64"),
    (lambda x, i: se.entropy(x, out=x[:, 0]), ValueError, "entropy: out overlaps"),
    (lambda x, i: se.entropy(x, out=np.broadcast_to(0.0, 3)), ValueError, "entropy: out is read-only"),
    (lambda x, i: se.entropy_vjp(np.ones(4), x), ValueError, r"entropy_vjp: g has shape \(4,\), accepted: \(3,\)"),
    (lambda x, i: se.log_prob_vjp(np.ones(3), x, i), ValueError, r"log_prob_vjp: g has shape \(3,\), accepted: \(3, 2\)"),
    (lambda x, i: se.log_prob_vjp(np.ones((3, 2)), x, i, out=x.T), ValueError, "log_prob_vjp: out has shape"),
    (lambda x, i: se.log_prob_and_entropy_vjp(np.ones(3), x, i), TypeError, "log_prob_and_entropy_vjp: g is a ndarray"),
    (lambda x, i: se.kl_div(x, x[:2]), ValueError, r"kl_div: q_logits has shape \(2, 4\), accepted: \(3, 4\)"),
    (lambda x, i: se.kl_div(np.ma.masked_array(x), x), TypeError, "kl_div: p_logits is a masked array"),
    (lambda x, i: se.kl_div_vjp(1.0, x, x), ValueError, r"kl_div_vjp: g has shape \(\), accepted: \(3,\)"),
]


@pytest.mark.parametrize("call, kind, message", BAD)
def test_refusals(call, kind, message):
    x, i = np.random.default_rng(0).normal(size=(3, 4)), np.array([[0, 1], [0, 3], [2, 2]])
    kept = x.copy()
    with pytest.raises(kind, match=message):
        call(x, i)
    assert np.array_equal(x, kept)


def test_nothing_is_written_for_a_bad_index():
    x, out = np.zeros((400, 40)), np.full((400, 40), 7.0)
    index = np.zeros(400, int)
    index[399] = 40
    with pytest.raises(ValueError, match="log_prob_vjp: index is 40 for row 399"):
        se.log_prob_vjp(np.ones(400), x, index, out=out)
    assert np.all(out == 7)
    own = np.zeros((3, 3))
    for call in (lambda: se.log_prob_vjp(own, np.ones((3, 3)), np.zeros((3, 3), int), out=own),
                 lambda: se.log_prob(own, np.zeros((3, 3), int), out=own)):  # whose elements are read again
        with pytest.raises(ValueError, match="out overlaps an input, accepted: memory of its own"):
            call()
    assert np.all(own == 0)


def test_every_layout_of_several_picks():
    """index and g of any strides, K classes a row, some of them twice."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(2, 5, 3))
    for axis, picks in itertools.product(range(3), (1, 4)):
        rows = np.moveaxis(x, axis, -1)
        index = rng.integers(rows.shape[-1], size=(picks, *rows.shape[1::-1])).T  # not in C order
        got = se.log_prob(x, index, axis)
        assert np.allclose(got, np.take_along_axis(se.log_softmax(rows), index, -1), rtol=1e-15, atol=0)
        g = rng.normal(size=index.shape[::-1]).T
        dx = np.moveaxis(se.log_prob_vjp(g, x, index, axis), axis, -1)
        want = -se.softmax(rows) * g.sum(-1, keepdims=True)
        for k in range(picks):
            np.put_along_axis(want, index[..., k : k + 1],
                              np.take_along_axis(want, index[..., k : k + 1], -1) + g[..., k : k + 1], -1)
        assert np.allclose(dx, want, rtol=1e-12, atol=1e-15)
