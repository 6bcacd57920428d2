"""cross_entropy, cross_entropy_with_grad, cross_entropy_vjp: accuracy, specials, arguments, other libraries' faults."""

import itertools
import tracemalloc

import ml_dtypes
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import sumexp as se
from isas import ISAS
from losses_reference import INFO, MIXES, Reference, index_row, logits, same, targets, ulps
from oracle.formats import BF16, F16, F32, F64, FORMATS, exact
from sumexp import _core

FORMAT = pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
EPS = {F16: 2.0**-11, BF16: 2.0**-8, F32: 2.0**-24, F64: 2.0**-53}
LOSS_BOUND, GRADIENT_BOUND = 9, 16  # in eps of the absolute parts: the docstrings' numbers


# -- accuracy ---------------------------------------------------------------------------------------------------

ROWS = {
    "normal x 4": lambda rng, n: rng.standard_normal(n) * 4,
    "one winner": lambda rng, n: np.where(np.arange(n) == n // 2, 12.0, rng.standard_normal(n)),
    "p -> 1, margin 60": lambda rng, n: np.where(np.arange(n) == n // 2, 60.0, rng.standard_normal(n)),
    "equal": lambda rng, n: np.full(n, 3.0),
    "two winners": lambda rng, n: np.where(np.arange(n) % max(n // 2, 1) == 0, 20.0, rng.standard_normal(n)),
    "offset 1e8": lambda rng, n: 1e8 + rng.integers(-3, 4, n) * 8.0,
    "offset 1e30": lambda rng, n: 1e30 * (1 + rng.integers(0, 3, n) * 2.0**-20),
    "-inf among them": lambda rng, n: np.where(np.arange(n) % 3 == 1, -np.inf, rng.standard_normal(n)),
}


@FORMAT
@pytest.mark.parametrize("name", ROWS)
def test_index_targets_within_4_ulp(fmt, name):
    """Loss and every element of the gradient, whatever the target; of 16 bits within 0.51 ulp."""
    rng = np.random.default_rng(5)
    bound = 0.51 if fmt.narrow else 4
    worst = {"loss": 0, "gradient": 0}
    for n in (1, 2, 7, 40, 2100):
        with np.errstate(over="ignore"):
            x = ROWS[name](rng, n).astype(fmt.dtype)
        if not (np.isfinite(x.astype(np.float64)) | (x.astype(np.float64) == -np.inf)).all():
            continue  # float16 has no 1e8
        for t in {0, n // 2, n - 1}:
            loss, gradient = se.cross_entropy_with_grad(x, t, reduction="sum")
            assert same(loss, se.cross_entropy(x, t, reduction="sum"))
            exact_loss, exact_gradient = index_row(x, t)
            worst["loss"] = max(worst["loss"], ulps(loss, [exact_loss], fmt.digits, fmt.tiny))
            worst["gradient"] = max(worst["gradient"], ulps(gradient, exact_gradient, fmt.digits, fmt.tiny))
    print(f"{name} {fmt.name}: loss {float(worst['loss']):.2f}, gradient {float(worst['gradient']):.2f} ulp")
    assert max(worst.values()) <= bound, worst


OPTIONS = {
    "weight": lambda rng, fmt, rows, n: {"weight": rng.random(n).astype(fmt.compute)},
    "label_smoothing": lambda rng, fmt, rows, n: {"label_smoothing": 0.1},
    "z_loss": lambda rng, fmt, rows, n: {"z_loss": 1e-2},
    "softcap": lambda rng, fmt, rows, n: {"softcap": 15.0},
    "temperature": lambda rng, fmt, rows, n: {"temperature": 1.7},
    "token_weight": lambda rng, fmt, rows, n: {"token_weight": rng.random(rows)},
    "denominator": lambda rng, fmt, rows, n: {"denominator": 11.5},
}


def check(fmt, x, target, axis=-1, **options):
    """Loss and gradient against the reference, within the docstrings' bounds (and half an ulp where 16 bits are stored)."""
    info = ("lse", "log_prob", "entropy", "z_loss", "predicted", "correct")
    loss, gradient, found = se.cross_entropy_with_grad(x, target, axis, info=info, **options)
    r = Reference(x, target, axis, **options)
    eps = EPS[F64 if fmt is F64 else F32]
    store = EPS[fmt] if fmt.narrow else 0
    tiny = np.ldexp(np.longdouble(1), fmt.tiny)
    scaled = "softcap" in options or "temperature" in options
    parts = r.wide if scaled else r.parts
    off = np.abs(exact(loss) - r.loss)
    assert np.all(off <= LOSS_BOUND * eps * parts + store * np.abs(r.loss) + tiny), float(np.max(off / (eps * parts + tiny)))
    parts = r.gradient_wide if scaled else r.gradient_parts
    off = np.abs(exact(gradient) - r.gradient)
    limit = GRADIENT_BOUND * eps * parts + store * np.abs(r.gradient) + 2 * tiny
    assert np.all(off <= limit), float(np.max(off / limit))
    assert same(loss, se.cross_entropy(x, target, axis, **options))
    assert same(gradient, se.cross_entropy_vjp(1.0, x, target, axis, **options))
    kept = found["predicted"] >= 0
    assert np.all(np.abs(exact(found["lse"]) - r.lse)[kept] <= 40 * eps * (1 + np.abs(r.lse))[kept])
    if not scaled:  # (terms of 16 bits are good to 2^-20)
        few = (32 if fmt.narrow else 8) * eps
        assert np.all(np.abs(exact(found["entropy"]) - r.entropy)[kept] <= few * r.entropy[kept] + tiny)
        assert np.all(np.abs(exact(found["log_prob"]) - r.log_prob)[kept] <= few * np.abs(r.log_prob)[kept] + tiny)
    for name in info:
        assert not found[name][~kept].any() or name == "predicted"
    return loss, gradient


@FORMAT
@pytest.mark.parametrize("kind", ["index", "probabilities", "pairs"])
@pytest.mark.parametrize("option", [None, *OPTIONS])
def test_each_option(fmt, kind, option):
    rng = np.random.default_rng(7)
    for n in (3, 40, 2500):
        x = logits(rng, fmt, (5, n))
        chosen = OPTIONS[option](rng, fmt, (5,), n) if option else {}
        for reduction in ("mean",) if option == "denominator" else ("none", "mean", "sum"):
            check(fmt, x, targets(rng, fmt, kind, (5,), n), reduction=reduction, **chosen)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    fmt=st.sampled_from(FORMATS),
    kind=st.sampled_from(["index", "probabilities", "pairs"]),
    chosen=st.sets(st.sampled_from(sorted(set(OPTIONS) - {"denominator"}))),
    reduction=st.sampled_from(["none", "mean", "sum"]),
    shape=st.sampled_from([(3, 9), (4, 5, 3), (5, 2, 2, 3), (3, 2053), (3, 1)]),
    axis=st.integers(-2, 1),
    scale=st.sampled_from([0.1, 4.0, 30.0]),
    seed=st.integers(0, 1000),
)
def test_options_together(fmt, kind, chosen, reduction, shape, axis, scale, seed):
    rng = np.random.default_rng(seed)
    x = logits(rng, fmt, shape, scale)
    rows, n = tuple(np.delete(shape, axis)), shape[axis]
    if np.prod(rows) < 3:
        rows, n, axis = shape[:-1], shape[-1], -1
    options = {}
    for option in sorted(chosen):
        options.update(OPTIONS[option](rng, fmt, rows, n))
    target = targets(rng, fmt, kind, rows, n)
    if kind == "probabilities":
        target = np.moveaxis(target, -1, axis)
    check(fmt, x, target, axis, reduction=reduction, **options)


def test_the_most_that_options_lose():
    """z-loss squares what softcap and temperature have lost."""
    x = np.float32([[-3.13868499, 4.67765331], [1, 2], [3, 1]])
    check(F32, x, np.array([0, 1, 0]), reduction="none", softcap=15.0, temperature=0.001, z_loss=1.0)


def test_probabilities_and_logits_of_other_dtypes():
    rng = np.random.default_rng(3)
    y = rng.dirichlet(np.ones(700), 4)
    for fmt, other in itertools.product(FORMATS, FORMATS):
        check(fmt, logits(rng, fmt, (4, 700)), y.astype(other.dtype), label_smoothing=0.25)


def test_tanh_is_close_to_its_contract():
    """softcap with a logit alone in a row: lse is softcap tanh(x / softcap), within 3.3 eps of tanh and a rounding."""
    rng = np.random.default_rng(2)
    for fmt in (F32, F64):
        x = np.concatenate([rng.standard_normal(2000) * s for s in (1e-6, 0.1, 1.0, 6.0, 30.0)]).astype(fmt.dtype)
        _, slope, info = se.cross_entropy_with_grad(
            x[:, None], np.zeros((len(x), 1), fmt.dtype), softcap=1.0, info="lse", z_loss=1.0, reduction="none"
        )
        exactly = np.array([mpmath.tanh(mpmath.mpf(float(v))) for v in x])
        off = [abs((mpmath.mpf(float(g)) - r) / r) for g, r in zip(info["lse"], exactly) if r]
        assert max(off) <= 3.3 * EPS[fmt], float(max(off) / EPS[fmt])
        # loss = lse^2: its gradient 2 tanh sech^2
        exactly = np.array([2 * r / mpmath.cosh(mpmath.mpf(float(v))) ** 2 for v, r in zip(x, exactly)])
        off = [abs((mpmath.mpf(float(g)) - r) / r) for g, r in zip(slope[:, 0], exactly) if abs(r) > 1e-30]
        assert max(off) <= 12 * EPS[fmt], float(max(off) / EPS[fmt])


# -- specials ---------------------------------------------------------------------------------------------------


@FORMAT
def test_minus_infinity(fmt):
    x = np.array([[1, -np.inf, 2, 0]] * 2, fmt.dtype)
    loss, gradient, info = se.cross_entropy_with_grad(x, [0, 1], reduction="none", info=INFO)
    assert np.isfinite(loss[0]) and loss[1] == np.inf
    assert gradient[0, 1] == 0 and gradient[1, 1] == -1 and np.isfinite(gradient.astype(np.float64)).all()
    assert np.isfinite(info["entropy"]).all() and info["log_prob"][1] == -np.inf
    # with smoothing the class of -inf has a part: +inf, never NaN, and a finite gradient
    for more in ({}, {"z_loss": 0.1}, {"softcap": 5.0}, {"weight": np.ones(4, fmt.compute)}):
        loss, gradient = se.cross_entropy_with_grad(x, [0, 1], reduction="none", label_smoothing=0.1, **more)
        assert (loss == np.inf).all() and np.isfinite(gradient.astype(np.float64)).all()
        assert se.cross_entropy(x, [0, 1], label_smoothing=0.1, **more) == np.inf
    # but none where its weight is 0
    weight = np.array([1, 0, 1, 1], fmt.compute)
    loss = se.cross_entropy(x, [0, 0], reduction="none", label_smoothing=0.1, weight=weight)
    assert np.isfinite(loss.astype(np.float64)).all()
    y = np.array([[0.5, 0, 0.5, 0], [0.25, 0.25, 0.25, 0.25]], fmt.dtype)
    loss, gradient = se.cross_entropy_with_grad(x, y, reduction="none")
    assert np.isfinite(loss[0]) and loss[1] == np.inf and np.isfinite(gradient.astype(np.float64)).all()
    assert gradient[0, 1] == 0


@FORMAT
def test_minus_infinity_of_a_part(fmt):
    x = np.array([1, -np.inf, 2, 0], fmt.dtype)
    for target, options in ((1, {"z_loss": 0.1}), ((np.array([0, 1]), np.array([0.5, 0.5])), {})):
        loss, gradient, info = se.cross_entropy_with_grad(x, target, info="log_prob", **options)
        assert loss == np.inf and info["log_prob"] == -np.inf and np.isfinite(gradient.astype(np.float64)).all()
    pair = np.array([0, 1]), np.array([0.5, 0.0])  # of no weight
    assert np.isfinite(float(se.cross_entropy(x, pair)))
    assert np.isfinite(float(se.cross_entropy(x, pair, z_loss=0.1)))


@FORMAT
def test_the_sum_of_infinite_losses_is_the_one_nan(fmt):
    """Infinities of both signs make another NaN than the one of a row, and which of two an addition gives is the compiler's."""
    x = np.zeros((3, 2), fmt.dtype)
    x[:, 1] = -np.inf
    x[2, 0] = np.nan
    token = np.array([1.0, -1, 1])
    for rows in itertools.chain(itertools.permutations(range(3), 2), itertools.product(range(3), repeat=4)):
        rows = list(rows)
        loss = np.asarray(se.cross_entropy(x[rows], np.ones(len(rows), int), reduction="sum", token_weight=token[rows]))
        assert not np.isnan(loss) or same(loss, np.array(np.nan, fmt.dtype)), rows


def test_minus_infinity_in_whole_chunks():
    for dtype, chunk in ((np.float32, 2048), (np.float64, 512)):
        x = np.random.default_rng(1).standard_normal(3 * chunk).astype(dtype)
        for blank in (slice(0, chunk), slice(chunk, 2 * chunk), slice(2 * chunk, None)):
            z = x.copy()
            z[blank] = -np.inf
            t = (blank.start + chunk + 5) % (3 * chunk)
            left = np.delete(z, np.arange(3 * chunk)[blank])
            loss, gradient, info = se.cross_entropy_with_grad(z, t, info=INFO)
            assert np.isfinite(loss) and not gradient[blank].any() and np.isfinite(gradient).all()
            p = np.exp(left.astype(np.longdouble)) / np.exp(left.astype(np.longdouble)).sum()
            assert abs(info["entropy"] / -(p * np.log(p)).sum() - 1) < 16 * np.finfo(dtype).eps
            assert info["predicted"] == z.argmax()
            loss, gradient = se.cross_entropy_with_grad(z, t, label_smoothing=0.1)
            assert loss == np.inf and np.isfinite(gradient).all()


@FORMAT
def test_nan_and_infinity(fmt):
    x = np.array([[1, np.nan, 2], [1, np.inf, 2], [-np.inf] * 3, [1, 2, 3]], fmt.dtype)
    for options in MIXES.values():
        loss, gradient, info = se.cross_entropy_with_grad(x, [0, 0, 0, 0], reduction="none", info=INFO, **options)
        assert np.isnan(loss[:3].astype(float)).all() and np.isnan(gradient[:3].astype(float)).all()
        assert np.isfinite(loss[3:].astype(float)).all() and np.isfinite(gradient[3:].astype(float)).all()
        assert np.isnan(info["lse"][0]) and info["lse"][1] == np.inf and info["lse"][2] == -np.inf
        assert list(info["predicted"]) == [-1, 1, 0, 2]
        assert same(gradient[0], np.full(3, np.array(np.nan, fmt.dtype)))  # the one NaN


def test_entropy_of_a_certain_row():
    """Margin 30: about 1e-12, relatively right, and 0 only below the smallest number."""
    for dtype, margins in ((np.float32, (30.0, 80.0)), (np.float64, (30.0, 300.0, 700.0))):
        for margin in margins:
            x = np.array([margin, 0, -np.inf, 0], dtype)
            _, info = se.cross_entropy(x, 0, info="entropy")
            e = mpmath.exp(-mpmath.mpf(float(x[0])))
            p0, p1 = 1 / (1 + 2 * e), e / (1 + 2 * e)
            exactly = p0 * mpmath.log1p(2 * e) + 2 * p1 * (margin + mpmath.log1p(2 * e))
            assert abs(mpmath.mpf(float(info["entropy"])) / exactly - 1) < 8 * np.finfo(dtype).eps


def test_predicted_is_the_first_of_the_largest():
    x = np.zeros((3, 5000), np.float32)
    x[1, 3000] = x[1, 4500] = 1
    x[2, 7] = x[2, 4000] = 2
    _, info = se.cross_entropy(x, [0, 4500, 7], info=("predicted", "correct"))
    assert list(info["predicted"]) == [0, 3000, 7] and list(info["correct"]) == [True, False, True]
    y = np.zeros_like(x)
    y[:, 3000] = 1
    _, info = se.cross_entropy(x, y, info="correct")
    assert list(info["correct"]) == [False, True, False]
    pairs = np.array([[3000, 0], [4500, 3000], [4000, 7]]), np.array([[0.2, 0.8], [0.4, 0.6], [0.1, 0.9]])
    _, info = se.cross_entropy(x, pairs, info="correct")
    assert info["correct"].all()
    # a class may come several times: its weights are added; of equal classes the lowest is the target's
    rows = np.array([[0.0, 5, 0, 1], [0.0, 5, 0, 1], [6.0, 5, 0, 1]])
    index = np.array([[3, 1, 3], [1, 3, 1], [1, 0, 2]])
    weight = np.array([[0.4, 0.5, 0.3], [0.4, 0.5, 0.3], [0.5, 0.5, 0.1]])
    y = np.zeros(rows.shape)
    np.add.at(y, (np.arange(3)[:, None], index), weight)
    for target in ((index, weight), y):
        _, info = se.cross_entropy(rows, target, info="correct")
        assert list(info["correct"]) == [False, True, True]


def test_empty():
    x = np.empty((0, 4), np.float32)
    assert np.isnan(se.cross_entropy(x, np.empty(0, int))) and se.cross_entropy(x, np.empty(0, int), on_empty="zero") == 0
    assert se.cross_entropy(x, np.empty(0, int), reduction="sum") == 0
    assert se.cross_entropy(x, np.empty(0, int), reduction="none").shape == (0,)
    loss, gradient = se.cross_entropy_with_grad(x, np.empty(0, int), on_empty="zero")
    assert loss == 0 and gradient.shape == x.shape
    none = np.empty((2, 0))
    assert np.isnan(se.cross_entropy(none, np.empty((2, 0)), reduction="none")).all()
    with pytest.raises(ValueError, match="target is 0 for row 0"):
        se.cross_entropy(none, [0, 0])


# -- arguments --------------------------------------------------------------------------------------------------

X, T = np.zeros((3, 4), np.float32), np.zeros(3, np.int64)
BAD = [
    ({"target": [0, 4, 0]}, ValueError, "target is 4 for row 1, accepted: indices from 0 below 4, and -100"),
    ({"target": [0, 0, -1]}, ValueError, "target is -1 for row 2"),
    ({"target": np.array([0, 2**64 - 100, 0], np.uint64)}, ValueError, "target is 18446744073709551516 for row 1"),
    ({"target": ([[0, 9]] * 3, [[1.0, 1.0]] * 3)}, ValueError, "target is 9 for row 0"),
    ({"target": [0, 0]}, ValueError, "target has shape (2,), accepted: (3,) of indices"),
    ({"target": np.zeros((4, 3))}, ValueError, "target has shape (4, 3), accepted: (3, 4) of probabilities"),
    ({"target": np.zeros(3, bool)}, TypeError, "target has dtype bool"),
    ({"target": np.zeros(3, complex)}, TypeError, "target has dtype complex128"),
    ({"target": (np.zeros((3, 2), int), np.zeros((3, 3)))}, ValueError, "target[1] has shape (3, 3), accepted: (3, 2)"),
    ({"target": (np.zeros((2, 2), int), np.zeros((2, 2)))}, ValueError, "target[0] has shape (2, 2)"),
    ({"target": (np.zeros((3, 2)), np.zeros((3, 2)))}, TypeError, "target[0] has dtype float64, accepted: integers"),
    ({"target": (np.zeros((3, 0), int), np.zeros((3, 0)))}, (TypeError, ValueError), "target[0] has shape (3, 0)"),
    ({"logits": np.zeros((3, 4), complex)}, TypeError, "logits has dtype complex128"),
    ({"logits": np.float32(1)}, ValueError, "logits has shape ()"),
    ({"axis": 2}, np.exceptions.AxisError, "axis is 2, accepted: -2 to 1"),
    ({"axis": 1.0}, TypeError, "axis is 1.0"),
    ({"weight": np.ones(3)}, ValueError, "weight has shape (3,), accepted: (4,)"),
    ({"token_weight": np.ones(4)}, ValueError, "token_weight has shape (4,)"),
    ({"label_smoothing": 1.5}, ValueError, "label_smoothing is 1.5, accepted: a number in [0, 1]"),
    ({"label_smoothing": "a"}, TypeError, "label_smoothing is 'a'"),
    ({"z_loss": -1}, ValueError, "z_loss is -1, accepted"),
    ({"z_loss": np.nan}, ValueError, "z_loss is nan"),
    ({"softcap": 0}, ValueError, "softcap is 0, accepted"),
    ({"softcap": np.inf}, ValueError, "softcap is inf"),
    ({"temperature": 0}, ValueError, "temperature is 0, accepted"),
    ({"temperature": 1e-50}, ValueError, "temperature is 1e-50"),
    ({"reduction": "avg"}, ValueError, "reduction is 'avg', accepted: 'none', 'mean', 'sum'"),
    ({"on_empty": 0}, ValueError, "on_empty is 0"),
    ({"denominator": -2}, ValueError, "denominator is -2"),
    ({"denominator": 2, "reduction": "sum"}, ValueError, "denominator is given with reduction 'sum'"),
    ({"ignore_index": 1.5}, TypeError, "ignore_index is 1.5"),
    ({"ignore_index": 1, "target": np.zeros((3, 4))}, ValueError, "ignore_index is 1, accepted with probabilities"),
    ({"info": "loss"}, ValueError, "info has 'loss', accepted: 'lse', 'log_prob'"),
    ({"out": np.zeros((3, 4))}, TypeError, "out has dtype float64, accepted: float32"),
    ({"out": np.zeros((4, 3), np.float32)}, ValueError, "out has shape (4, 3)"),
    ({"out": np.broadcast_to(np.float32(0), (3, 4))}, ValueError, "out is read-only"),
    ({"out": X[::-1]}, ValueError, "out overlaps an input"),
]


@pytest.mark.parametrize("change, kind, message", BAD, ids=lambda v: str(v)[:40])
def test_bad_arguments(change, kind, message):
    """Every error names function, argument, what was given and what is accepted; nothing is written before."""
    arguments = {"logits": X, "target": T, **change}
    out = arguments.get("out")
    mine = np.full((3, 4), 7, np.float32) if out is None else out
    before = mine.tobytes()
    with pytest.raises(kind) as caught:
        se.cross_entropy_with_grad(arguments.pop("logits"), arguments.pop("target"), **{**arguments, "out": mine})
    assert str(caught.value).startswith("cross_entropy_with_grad: ") and message in str(caught.value), str(caught.value)
    assert mine.tobytes() == before
    if out is None:
        with pytest.raises(kind) as caught:
            se.cross_entropy(*[{"logits": X, "target": T, **change}[n] for n in ("logits", "target")],
                             **{n: v for n, v in change.items() if n not in ("logits", "target")})
        assert str(caught.value).startswith("cross_entropy: ")


def test_gradient_of_the_loss():
    """cross_entropy_vjp: a number, or one a row; with 1 the bytes of cross_entropy_with_grad."""
    rng = np.random.default_rng(23)
    x, t = rng.standard_normal((5, 30)), rng.integers(0, 30, 5)
    g = rng.standard_normal(5)
    _, gradient = se.cross_entropy_with_grad(x, t, reduction="none", z_loss=0.1)
    dx = se.cross_entropy_vjp(g, x, t, reduction="none", z_loss=0.1)
    assert np.allclose(dx, g[:, None] * gradient, rtol=1e-14, atol=0)
    assert np.allclose(se.cross_entropy_vjp(2.0, x, t), 2 * se.cross_entropy_with_grad(x, t)[1], rtol=1e-14, atol=0)
    over = x.copy()
    assert se.cross_entropy_vjp(1.0, over, t, out=over) is over and same(over, se.cross_entropy_with_grad(x, t)[1])
    for bad in (g, np.ones(3)):
        with pytest.raises(ValueError, match="cross_entropy_vjp: g has"):
            se.cross_entropy_vjp(bad, x, t)


def test_arrays_of_other_libraries():
    """Whatever speaks DLPack comes back in its own library; lists and integers are taken."""

    class Foreign:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **kwargs):
            return self.array.__dlpack__(**kwargs)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    x = np.random.default_rng(0).standard_normal((3, 4))
    loss, gradient = se.cross_entropy_with_grad(Foreign(x), [0, 1, 2])
    assert same(gradient, se.cross_entropy_with_grad(x, [0, 1, 2])[1]) and loss == se.cross_entropy(x, [0, 1, 2])
    assert se.cross_entropy([[0, 0], [0, 0]], [0, 1]) == np.log(2)
    assert isinstance(se.cross_entropy([[0, 0]], [1]), np.float64)


def test_nothing_of_the_size_of_the_logits_is_made():
    """With the gradient over the logits: neither of them nor of probabilities, whatever their strides and dtypes."""
    x = np.asfortranarray(np.random.default_rng(0).standard_normal((400, 5000)).astype(np.float32))
    y = np.full((400, 5000), 1 / 5000, np.float16)
    se.cross_entropy_with_grad(x, y)  # what a first call imports
    for target in (np.arange(400), y, y[:, ::-1]):
        for options in ({}, {"label_smoothing": 0.1, "softcap": 9.0, "weight": np.ones(5000), "info": "entropy"}):
            tracemalloc.start()
            se.cross_entropy_with_grad(x, target, out=x, **options)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 0.05 * x.nbytes


# -- what other libraries get wrong -----------------------------------------------------------------------------


def test_16_bit_gradient_of_the_true_class():
    """Liger-Kernel 1329: in bfloat16 p_t - 1 is 0 or an ulp of 1 where 1 - p_t is small."""
    for dtype, margin in ((ml_dtypes.bfloat16, 12.0), (np.float16, 8.0)):
        x = np.array([[margin, 0, 0]], dtype)
        _, g = se.cross_entropy_with_grad(x, [0])
        q = float(2 * mpmath.exp(-margin) / (1 + 2 * mpmath.exp(-margin)))
        assert abs(float(g[0, 0]) / -q - 1) < float(ml_dtypes.finfo(dtype).eps)


def test_mean_over_the_rows_kept():
    """TransformerEngine 2476: the mean divided by all rows, ignored ones too."""
    rng = np.random.default_rng(29)
    x, t = rng.standard_normal((6, 8)), rng.integers(0, 8, 6)
    t[[0, 3, 4]] = -100
    kept = [1, 2, 5]
    assert same(se.cross_entropy(x, t), se.cross_entropy(x[kept], t[kept]))
    _, g = se.cross_entropy_with_grad(x, t)
    assert same(g[kept], se.cross_entropy_with_grad(x[kept], t[kept])[1])


def test_smoothing_with_all_classes():
    """Megatron-LM 7464: smoothing took the number of classes of a shard. Parts with C of the whole add up to the whole."""
    x = np.random.default_rng(31).standard_normal((1, 4096))
    loss = se.cross_entropy(x, [7], label_smoothing=0.2)
    log_p = se.log_softmax(x)[0]
    assert abs(loss - (-0.8 * log_p[7] - 0.2 / 4096 * log_p.sum())) < 1e-13


def test_softcap_adds_no_mass():
    """Unsloth 10616: lanes beyond the row, or classes masked by -inf, became -softcap, which has a probability."""
    for n in (1, 3, 17, 300, 2049):
        x = np.random.default_rng(n).standard_normal(n).astype(np.float32)
        padded = np.concatenate([x, np.full(5, -np.inf, np.float32)])
        loss, g = se.cross_entropy_with_grad(x, n - 1, softcap=2.0)
        same_loss, same_g = se.cross_entropy_with_grad(padded, n - 1, softcap=2.0)
        assert abs(same_loss - loss) <= 2e-7 * abs(loss) and not same_g[n:].any()
        assert np.allclose(same_g[:n], g, rtol=1e-6, atol=0)


def test_all_ignored():
    """pytorch 70348, Unsloth 7677, OLMo-core 657: 0/0 when nothing is left; the gradient is 0 either way."""
    x = np.full((2, 3), np.nan, np.float32)
    loss, g = se.cross_entropy_with_grad(x, [-100, -100])
    assert np.isnan(loss) and not g.any()
    loss, g = se.cross_entropy_with_grad(x, [-100, -100], on_empty="zero")
    assert loss == 0 and not g.any()
    assert se.cross_entropy(x, [-100, -100], reduction="sum") == 0
    ones = np.zeros((2, 3), np.float32)  # nothing has a weight
    loss, g = se.cross_entropy_with_grad(ones, [0, 1], weight=np.zeros(3), on_empty="zero")
    assert loss == 0 and not g.any()


def test_gradients_of_reduction_none():
    """Liger-Kernel 968: with reduction="none" each row's gradient takes its own upstream gradient."""
    rng = np.random.default_rng(37)
    x, t, g = rng.standard_normal((4, 9)), rng.integers(0, 9, 4), rng.standard_normal(4)
    dx = se.cross_entropy_vjp(g, x, t, reduction="none")
    for r in range(4):
        assert same(dx[r], se.cross_entropy_vjp(g[r], x[r], t[r], reduction="sum"))


@FORMAT
def test_ignored_rows_are_not_read(fmt):
    """pytorch 11551: NaN and infinities in an ignored row; smoothing and the other options do not let them through."""
    rng = np.random.default_rng(41)
    x, t = logits(rng, fmt, (5, 40)), rng.integers(0, 40, 5)
    t[[1, 3]] = -100
    clean = x.copy()
    x[1], x[3, ::2] = np.nan, np.inf
    for options in MIXES.values():
        for reduction in ("none", "mean", "sum"):
            a = se.cross_entropy_with_grad(x, t, reduction=reduction, **options)
            b = se.cross_entropy_with_grad(clean, t, reduction=reduction, **options)
            assert same(a[0], b[0]) and same(a[1], b[1]) and not a[1][[1, 3]].any()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_16_bit_losses_are_added_in_64(dtype):
    """Losses added in 16 bits stop growing at 256 or 2048 times one of them."""
    x = np.zeros((5000, 3), dtype)
    x[:, 0] = np.array(0.3, dtype)
    t = np.ones(5000, int)
    expected = Reference(x, t)
    assert abs(float(se.cross_entropy(x, t)) / float(expected.loss) - 1) < float(ml_dtypes.finfo(dtype).eps) / 2
    total = se.cross_entropy(x, t, reduction="sum")
    assert abs(float(total) / (5000 * float(expected.loss)) - 1) < float(ml_dtypes.finfo(dtype).eps) / 2


def test_gradient_accumulation_is_normalised_once():
    """transformers 34191: the mean of micro-batches' means is not the mean. With one denominator they add up."""
    rng = np.random.default_rng(47)
    x, t = rng.standard_normal((12, 6)), rng.integers(0, 6, 12)
    t[[0, 1, 2, 7]] = -100
    loss, g = se.cross_entropy_with_grad(x, t)
    kept = np.count_nonzero(t != -100)
    parts = [se.cross_entropy_with_grad(x[i : i + 4], t[i : i + 4], denominator=np.asarray(kept)) for i in range(0, 12, 4)]
    assert abs(sum(p[0] for p in parts) - loss) < 1e-14 * loss
    assert same(np.concatenate([p[1] for p in parts]), g)
    assert _core._cross_entropy_denominator(x, t, 1) == kept


# -- z_loss beyond the largest number ----------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype, most", [(np.float32, 3e38), (np.float64, 1.7e308)])
def test_an_infinite_gradient_of_z_loss_is_0_where_p_is(isa, dtype, most):
    inf = np.inf
    _core.set_isa(isa)
    try:
        for rest in ([-inf], [-most], [-inf] * 40, [-most] * 3000):
            x = np.array([most, *rest], dtype)
            for options in ({"z_loss": 10.0}, {"z_loss": 0.1, "temperature": 0.1}, {"z_loss": 10.0, "weight": np.ones(len(x))}):
                loss, g = se.cross_entropy_with_grad(x, 0, **options)
                assert loss == inf and g[0] == inf and (g[1:] == 0).all(), options
                loss, g = se.cross_entropy_with_grad(x, (np.array([0, 1]), np.array([0.5, 0.5])), **options)
                assert loss == inf and g[0] == inf and g[1] < 0 and (g[2:] == 0).all(), options
            loss, g = se.cross_entropy_with_grad(x, 1, z_loss=10.0)
            assert loss == inf and g[0] == inf and g[1] == -1 and (g[2:] == 0).all()
            loss, g = se.cross_entropy_with_grad(x, 0, z_loss=10.0, label_smoothing=0.1)
            assert loss == inf and g[0] == inf and np.allclose(g[1:], -0.1 / len(x), rtol=1e-6, atol=0)
            y = np.zeros_like(x)
            y[0] = 1
            loss, g = se.cross_entropy_with_grad(x, y, z_loss=10.0)
            assert loss == inf and g[0] == inf and (g[1:] == 0).all()
    finally:
        _core.set_isa(ISAS[-1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_weight_that_is_nan(dtype):
    x, pair = np.array([1, 2, 3], dtype), (np.array([0, 1]), np.array([np.nan, 0.5], dtype))
    loss, info = se.cross_entropy(x, pair, info="log_prob")
    assert np.isnan(loss) and np.isnan(info["log_prob"])


def test_a_z_loss_of_a_square_beyond_the_largest_number():
    x = np.array([0, 1e155])
    loss, g = se.cross_entropy_with_grad(x, 1, z_loss=1e-30)
    assert loss == pytest.approx(1e280, rel=1e-15, abs=0) and g[0] == 0 and g[1] == pytest.approx(2e125, rel=1e-15, abs=0)


@pytest.mark.parametrize("shape", [(0, 2, 5), (2, 0, 5), (3, 2, 0, 5)])
def test_no_rows_in_several_dimensions(shape):
    x, t = np.zeros(shape, np.float32), np.zeros(shape[:-1], int)
    assert se.cross_entropy(x, t, -1, reduction="none").shape == shape[:-1]
    loss, gradient = se.cross_entropy_with_grad(x, t, -1, reduction="none")
    assert loss.shape == shape[:-1] and gradient.shape == shape
    assert se.cross_entropy(x, t, -1, reduction="sum") == 0


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("power", [-1000, -160, -140, 126, 140, 1000])
def test_token_weights_of_any_size(dtype, power):
    """A mean does not change with a common factor of its weights, whatever the range of the losses' dtype."""
    x, target, tokens = np.array([[1, 0, 2], [0, 1, -1], [3, 0, 0]], dtype), np.array([1, 0, -100]), np.array([1.0, 3.0, 2.0])
    want = se.cross_entropy_with_grad(x, target, token_weight=tokens)
    scaled = np.ldexp(tokens, power) * [1, 1, 2.0**20]  # the ignored row's does not count
    for denominator in (None, np.ldexp(4.0, power)):
        loss, gradient = se.cross_entropy_with_grad(x, target, token_weight=scaled, denominator=denominator)
        assert loss == want[0] and gradient.tobytes() == want[1].tobytes()
    of_head = [se.linear_cross_entropy(x, np.eye(3, dtype=dtype), target, token_weight=t) for t in (scaled, tokens)]
    assert of_head[0] == of_head[1]
    pairs, one = (np.array([1, 2]), np.array([0.25, 0.75])), np.ldexp(1.0, power)  # of one row
    for target in (1, pairs, np.ones(3) / 3):
        assert se.cross_entropy(x[0], target, token_weight=one) == se.cross_entropy(x[0], target)


@pytest.mark.parametrize("power", [-1000, -160, 126, 1000])
def test_token_weights_of_any_size_beside_tensors(power):
    torch = pytest.importorskip("torch")
    from sumexp import torch as st

    x, target = torch.tensor([[1.0, 0, 2], [0, 1, -1]], requires_grad=True), torch.tensor([1, 0])
    tokens = torch.tensor([1.0, 3.0], dtype=torch.float64)
    want = st.cross_entropy(x, target, token_weight=tokens)
    loss = st.cross_entropy(x, target, token_weight=tokens * 2.0**power)
    assert torch.equal(loss, want)
    for made, wanted in zip(torch.autograd.grad(loss, x), torch.autograd.grad(want, x)):
        assert torch.equal(made, wanted)
