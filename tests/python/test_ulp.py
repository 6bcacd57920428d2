"""The promise about accuracy. Bounds come from oracle.bounds and nowhere else; the table is printed at the end."""

import ml_dtypes
import mpmath
import numpy as np
import pytest

import sumexp as se
from oracle import accuracy, bounds, reference
from oracle.formats import BF16, F16, F32, F64, FORMATS, errors, exact, longdouble, ulp
from oracle.ops import OPS
from oracle.rows import FAMILIES, cast

FORMAT = pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)


def check(fmt, worst, where):
    for entry, value in worst.items():
        assert value <= bounds.FORWARD[entry][fmt.name], f"{entry} {fmt.name} {where}: {value:.3f} ulp"


# -- the oracle itself ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_oracle_agrees_with_mpmath(name):
    """The longdouble references are good to 0.01 ulp of double, on every family and on the shortest rows."""
    for n in (1, 2, 5, 30):
        x = FAMILIES[name](np.random.default_rng(n), F64, 3, n)
        for row in x:
            for mine, exactly, scale in zip(reference.forward(row), reference.forward_mp(row),
                                            (None, None, np.max(exact(row)), None)):
                unit = ulp(exactly if scale is None else np.maximum(np.abs(exactly), np.abs(scale)), F64)
                same = (mine == exactly) | (np.isinf(mine) & np.isinf(exactly))
                with np.errstate(invalid="ignore"):
                    assert np.all(same | (np.abs(mine - exactly) <= 0.01 * unit)), (name, n)


def test_ulp_measure():
    """One unit in the last place is one ulp, in every binade, for every format."""
    for fmt in FORMATS:
        for value in (1.0, 1.5, 0.1, 2.0**-14, fmt.largest / 2, 2.0**fmt.tiny):
            value = cast(value, fmt)
            above = (np.array(value).view(fmt.bits) + fmt.bits.type(1)).view(fmt.dtype)
            assert errors(above, exact(value), fmt) == 1
        assert errors(np.array(np.nan, fmt.dtype), longdouble(1), fmt) == np.inf
        assert errors(np.array(np.inf, fmt.dtype), longdouble(1), fmt) == np.inf
        assert errors(np.array(0, fmt.dtype), ulp(0.0, fmt) / 4, fmt) == 0.25


def test_against_mpmath():
    """Double, straight against mpmath: no step in common with the library or the longdouble reference."""
    for name in FAMILIES:
        for n in (1, 2, 7, 50, 600):
            row = FAMILIES[name](np.random.default_rng(n), F64, 2, n)[-1]
            if n == 600 and name not in ("normal x 4", "offsets 2^5 to 2^60", "one winner, margin 1 to 200"):
                continue
            softmax, log_softmax, lse, m = reference.forward_mp(row)
            keep = np.isfinite(row)
            worst = {
                "softmax": errors(se.softmax(row), softmax, F64).max(),
                "log_softmax": errors(se.log_softmax(row), log_softmax, F64)[keep].max(),
                "logsumexp": errors(se.logsumexp(row, keepdims=True), lse, F64, scale=m).max(),
            }
            if m == 0:
                worst["logsumexp, maximum 0"] = errors(se.logsumexp(row, keepdims=True), lse, F64).max()
            check(F64, worst, (name, n))


# -- forward ------------------------------------------------------------------------------------------------


@FORMAT
@pytest.mark.parametrize("name", FAMILIES)
def test_forward(name, fmt, record_accuracy):
    for n, worst in accuracy.forward_family(name, fmt, se):
        record_accuracy(fmt, worst)
        check(fmt, worst, (name, n))


LONG_FAMILIES = ("normal x 4", "one winner, margin 1 to 200", "all equal", "ties", "down to underflow", "chunks far apart",
                 "normalised log-probabilities", "uniform +-1e4")


@FORMAT
@pytest.mark.parametrize("name", LONG_FAMILIES)
def test_forward_long(name, fmt, record_accuracy):
    for n, worst in accuracy.forward_family(name, fmt, se, sizes=(65_536, 300_001)):
        record_accuracy(fmt, worst)
        check(fmt, worst, (name, n))


@FORMAT
@pytest.mark.parametrize("n", [1_000_003, 5_000_000])
def test_forward_millions(n, fmt, record_accuracy):
    for name in ("normal x 4", "one winner, margin 1 to 200")[: 1 if n > 2_000_000 else 2]:
        for _, worst in accuracy.forward_family(name, fmt, se, sizes=(n,)):
            record_accuracy(fmt, worst)
            check(fmt, worst, (name, n))


@pytest.mark.parametrize("power", range(14, 64))
@pytest.mark.parametrize("fmt", [F32, F64], ids=lambda f: f.name)
def test_large_offsets(power, fmt):
    """Chunks of different maxima, at every power of two and either sign: the exponent is counted right."""
    rng = np.random.default_rng(power)
    offset = np.array([1, -1, 1.3, -1.3, 1.9, -1.9])[:, None] * 2.0**power
    step = max(1.0, float(ulp(2.0**power, fmt)))
    x = cast(offset - step * rng.integers(0, 4, (6, 2 * fmt.chunk + 5)), fmt)
    x[:, : fmt.chunk] -= fmt.dtype.type(step)
    check(fmt, accuracy.forward_rows(x, fmt, se), f"offsets 2^{power}")


@pytest.mark.parametrize("fmt", [F16, BF16], ids=lambda f: f.name)
@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 100.0])
def test_65536_equal_values(value, fmt):
    """exp would overflow float16, and so would the count of the elements."""
    x = cast(np.full(65_536, value), fmt)
    check(fmt, accuracy.forward_rows(x[None], fmt, se), value)
    assert se.softmax(x)[0] == cast(2.0**-16, fmt)
    assert se.logsumexp(x) == cast(value + 16 * np.log(2), fmt)


def test_margins_near_certainty():
    """What is left when p -> 1 is the losers' sum, not 0."""
    assert se.logsumexp([0.0, -50.0]) == np.exp(-50.0)
    assert se.log_softmax([0.0, -50.0])[0] == -np.exp(-50.0)
    for fmt in FORMATS:
        for margin in range(1, 201):
            x = cast([[0.0, -margin], [-margin, 0.0]], fmt)
            check(fmt, accuracy.forward_rows(x, fmt, se), margin)


@FORMAT
def test_temperature(fmt):
    """softmax(x, temperature=T) is softmax(x / T), the quotient rounded once: the same bytes, where it has the format of x."""
    rng = np.random.default_rng(7)
    for n in (3, 20, 33, 70, 300, 2049):
        x = cast(rng.standard_normal((40, n)) * 9, fmt)
        for t in (0.5, 3.0, 0.7, 1.7, 1e-3, 123.4):
            quotient = x.astype(fmt.compute) / fmt.compute(t)
            for name in ("softmax", "log_softmax"):
                got = getattr(se, name)(x, temperature=t)
                if fmt.narrow:
                    assert errors(got, getattr(reference, name)(quotient), fmt).max() <= bounds.FORWARD[name][fmt.name]
                else:
                    np.testing.assert_array_equal(got, getattr(se, name)(quotient))


@pytest.mark.parametrize("fmt", [F32, F64], ids=lambda f: f.name)
def test_smallest_normal_numbers(fmt):
    """Probabilities about the smallest normal number, where a product of what makes them is less than any number."""
    hard = {  # found by search: more than 2 ulp if that product is rounded to a subnormal
        "f32": ["0x1.ff2b28p+3", "-0x1.a32ddep+2", "0x1.6fcdb6p+3", "-0x1.1aa1e8p+6"],
        "f64": ["0x1.9653d211e25e1p+6", "0x1.1d8e0020b7299p+6", "-0x1.2f105f7e01cc2p+9"],
    }
    row = cast([[float.fromhex(v) for v in hard[fmt.name]]], fmt)
    check(fmt, accuracy.forward_rows(row, fmt, se), "the hard row")
    rng = np.random.default_rng(11)
    least = float(np.log(np.finfo(fmt.dtype).tiny))
    worst = {}
    for _ in range(10):
        x = cast(rng.uniform(-20, 20, (20_000, 4)), fmt)
        x[:, 3] = se.logsumexp(x[:, :3], axis=-1) + cast(least + rng.uniform(-1, 2, 20_000), fmt)
        for entry, value in accuracy.forward_rows(x, fmt, se).items():
            worst[entry] = max(value, worst.get(entry, 0))
    check(fmt, worst, "next to the smallest normal number")


@pytest.mark.parametrize("size", [1, 1e-12, 1e-30, 1e30])
@pytest.mark.parametrize("fmt", [F32, F64], ids=lambda f: f.name)
def test_weighted(fmt, size):
    """With weights: as accurate as the cancellation between them allows."""
    rng = np.random.default_rng(5)
    for n in (1, 2, 7, 33, 100, 700, 3000):
        x, b = cast(rng.standard_normal((50, n)) * 4, fmt), cast(rng.standard_normal((50, n)), fmt)
        b[rng.random((50, n)) < 0.1] = 0
        if size == 1:
            b[:, 0] = 2.5
        b *= fmt.dtype.type(size)
        got, sign = se.logsumexp(x, axis=-1, b=b, keepdims=True, return_sign=True)
        some = (b != 0).any(axis=-1)  # the others are -inf
        x, b, got, sign = x[some], b[some], got[some], sign[some]
        total, magnitude, m = reference.weighted_sum(x, b)
        np.testing.assert_array_equal(sign, np.sign(total))
        value = m + np.log(np.abs(total))
        eps = longdouble(np.finfo(fmt.compute).eps)
        error = np.abs(exact(got) - value) / (
            ulp(np.maximum(np.abs(value), np.abs(m)), fmt) + 3 * eps * magnitude / np.abs(total)
        )
        assert error.max() <= 1, (n, float(error.max()))


def test_weights_that_cancel_or_vanish():
    assert se.logsumexp([0.0], b=[1e-17]) == np.log(1e-17)
    assert se.logsumexp([0.0, 0.0, -40.0], b=[1, -1, 1]) == -40.0
    assert se.logsumexp([0.0], b=[5e-324]) == np.log(5e-324)
    assert se.logsumexp(cast([0.0], BF16), b=cast([1e-20], BF16)) == cast([np.log(1e-20)], BF16)[0]


@pytest.mark.parametrize("fmt", [F32, F64], ids=lambda f: f.name)
def test_weights_of_any_size(fmt):
    """Every finite weight is served, next to others of any other size."""
    rng = np.random.default_rng(11)
    top = np.log2(float(np.finfo(fmt.dtype).max))
    for n in (1, 2, 16, 100, 3000):
        x = cast(rng.standard_normal((20, n)) * 30, fmt)
        b = cast(rng.choice([-1.0, 1.0], (20, n)) * np.exp2(rng.uniform(-top + 2, top, (20, n))), fmt)
        b[0] = np.finfo(fmt.dtype).max
        got, sign = se.logsumexp(x, axis=-1, b=b, return_sign=True)
        for row in range(20):
            with mpmath.workdps(60):
                terms = [mpmath.mpf(float(w)) * mpmath.exp(mpmath.mpf(float(v))) for v, w in zip(x[row], b[row])]
                total, magnitude = mpmath.fsum(terms), mpmath.fsum(map(abs, terms))
                value = float(mpmath.log(abs(total)))
                slack = float(4 * np.finfo(fmt.compute).eps * magnitude / abs(total))
            assert sign[row] == mpmath.sign(total)
            assert abs(float(got[row]) - value) <= 2 * float(np.spacing(fmt.dtype.type(abs(value)))) + slack, (n, row)


# -- derivatives --------------------------------------------------------------------------------------------


@FORMAT
@pytest.mark.parametrize("name", bounds.DERIVATIVES)
def test_derivative(name, fmt, record_accuracy):
    worst = accuracy.derivative(OPS[name], fmt, se)
    worst = max(worst, accuracy.derivative(OPS[name], fmt, se, sizes=(300_001,)))
    record_accuracy(fmt, {name: worst})
    assert worst <= bounds.DERIVATIVES[name]


def _central(function, x, v, step=longdouble(2) ** -20):
    return (function(x + step * v) - function(x - step * v)) / (2 * step)


@FORMAT
def test_large_tangents(fmt):
    """A mean is a number as long as the sum is one: what terms are scaled by does not count."""
    for n in (2, 20, 300, 5000):
        large = cast(float(ml_dtypes.finfo(fmt.dtype).max) / (2 * n), fmt)
        x = np.zeros(n, fmt.dtype)
        assert se.logsumexp_jvp(np.full(n, large), x) == pytest.approx(float(large), rel=1e-2)
        assert se.logsumexp_jvp(np.full(n, -large), x) == pytest.approx(-float(large), rel=1e-2)


def test_formulas_are_the_derivatives():
    """The derivative formulas of the oracle against central differences of its forward functions."""
    rng = np.random.default_rng(3)
    x, g, v = (longdouble(1) * rng.standard_normal((4, 9)) for _ in range(3))

    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)

    def dot(a, b):
        return np.sum(a * b, axis=-1, keepdims=True)

    y, l = reference.softmax(x), reference.log_softmax(x)
    close(reference.softmax_vjp(v, y)[0], _central(reference.softmax, x, v))  # symmetric: also the VJP
    close(reference.log_softmax_jvp(v, l)[0], _central(reference.log_softmax, x, v))
    close(dot(reference.log_softmax_vjp(g, l)[0], v), dot(g, _central(reference.log_softmax, x, v)))
    close(reference.logsumexp_jvp(v, x)[0], _central(reference.logsumexp, x, v))
    close(dot(reference.logsumexp_vjp(g[:, :1], x)[0], v), g[:, :1] * _central(reference.logsumexp, x, v))
    close(reference.softmax_hvp(g, v, y)[0], _central(lambda z: reference.softmax_vjp(g, reference.softmax(z))[0], x, v))
    close(reference.log_softmax_hvp(g, v, l)[0],
          _central(lambda z: reference.log_softmax_vjp(g, reference.log_softmax(z))[0], x, v))


def test_the_winner_keeps_its_gradient():
    """What is left to 1 is in the logarithm, or in the others, where the probability is 1 to all digits."""
    lost = np.exp(-37.42994775023705)  # 5.55e-17, half of the step below 1
    x, g = np.array([37.42994775023705, 0.0]), np.array([1.0, 0.0])
    y, l = se.softmax(x), se.log_softmax(x)
    up, down = np.array([lost, -lost]), np.array([-lost, lost])
    for got, value in (
        (se.log_softmax_vjp(g, l), up),
        (se.log_softmax_jvp(g, l), np.array([lost, lost - 1])),
        (se.log_softmax_jvp(1 - g, l), np.array([-lost, 1 - lost])),
        (se.log_softmax_hvp(g, g, l), down),
        (se.softmax_jacobian(y), np.array([up, down])),
        (se.logsumexp_hessian(x), np.array([up, down])),
        (se.log_softmax_jacobian(l), np.array([[lost, -lost], [-1.0, 1.0]])),
    ):
        np.testing.assert_allclose(got, value, rtol=1e-14, atol=0)


@pytest.mark.parametrize("margin", [5, 20, 25, 60, 80])
def test_a_confident_classifier(margin):
    """The gradient of the cross-entropy of 1000 classes, the target far above the rest: 999 e^-margin, not 0."""
    x = np.zeros(1000, np.float32)
    x[123] = margin
    g = np.zeros_like(x)
    g[123] = -1
    value = -999 * np.exp(-np.float64(margin)) / (1 + 999 * np.exp(-np.float64(margin)))
    got = se.log_softmax_vjp(g, se.log_softmax(x))
    assert got[123] == pytest.approx(value, rel=1e-6)
    assert float(np.sum(got, dtype=np.float64)) == pytest.approx(0, abs=1e-6 * -value)


def _softmax_matrix(y):
    y = exact(y)
    winner = y >= 0.5625
    diagonal = y * np.where(winner, reference._others(y, winner), 1 - y)
    return np.where(np.eye(y.shape[-1], dtype=bool), diagonal[..., None], -y[..., :, None] * y[..., None, :])


def _log_softmax_matrix(y):
    s, rest, _ = reference._log_probabilities(y[:, None, :])
    return np.where(np.eye(y.shape[-1], dtype=bool), rest, -s)


@FORMAT
@pytest.mark.parametrize("k, margin", [(1, 0), (2, 0), (5, 0), (40, 0), (2, 9), (5, 30), (40, 40)])
def test_matrices(k, margin, fmt):
    """The explicit Jacobians, entry by entry, next to certainty as elsewhere."""
    x = np.random.default_rng(k).standard_normal((30, k)) * 3
    x[:, 0] += margin
    x = cast(x, fmt)
    y, l = se.softmax(x), se.log_softmax(x)
    for name, argument, value in (
        ("softmax_jacobian", y, _softmax_matrix(y)),
        ("log_softmax_jacobian", l, _log_softmax_matrix(l)),
        ("logsumexp_hessian", x, _softmax_matrix(reference.softmax(x))),
    ):
        got = getattr(se, name)(argument)
        assert got.dtype == fmt.dtype and got.shape == (30, k, k)
        allowed = bounds.MATRICES[name] * longdouble(2) ** (1 - fmt.digits) * np.abs(value) + 2 * ulp(0, fmt)
        assert np.all(np.abs(exact(got) - value) <= allowed), (name, float(np.max(np.abs(exact(got) - value) / allowed)))
