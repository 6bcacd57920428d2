"""The filters of sampling: cuts against exact oracles, ties and boundaries included, and the same on every instruction set."""

from fractions import Fraction

import mpmath
import numpy as np
import pytest

from isas import ISAS
from sumexp import _core

INF = np.inf
ORDERS = ("vllm", "hf", "llama.cpp")
FLOATS = (np.float32, np.float64)
# What a mass may be off by (numerics/mass.hpp), relative; the test's own arithmetic has more digits.
MASS_ERROR = {np.float32: 1.15 * 2.0**-24, np.float64: 2.0**-53}


def cut(x, **filters):
    return _core._filter_cut(x, **filters)


def order_of(x):
    """Indices in the order of the filters, those of -inf left out."""
    x = np.asarray(x)
    return [int(j) for j in np.argsort(-x, kind="stable") if x[j] > -INF]


def reach(weights, p):
    """How many of `weights`, in their order, reach p of their sum: in rational or multiple precision arithmetic."""
    target, mass = p * sum(weights), 0
    for kept, w in enumerate(weights, 1):
        mass += w
        if mass >= target:
            return kept
    return len(weights)


def oracle(x, top_k=0, top_p=1.0, min_p=0.0, order="vllm"):
    with mpmath.workprec(600):
        kept = order_of(x)
        exact = {j: mpmath.exp(mpmath.mpf(float(x[j])) - mpmath.mpf(float(x[kept[0]]))) for j in kept}

        def above_min_p():
            return [j for j in kept if exact[j] >= min_p]

        if order == "vllm":
            kept = above_min_p()
        if top_k >= 1:
            kept = kept[:top_k]
        if top_p < 1:  # sums of equal numbers are exact, others far from any double
            kept = kept[: reach([exact[j] for j in kept], mpmath.mpf(top_p))]
        if order != "vllm":
            kept = above_min_p()
    return float(x[kept[-1]]), kept[-1], len(kept)


def random_row(rng, dtype, n):
    x = (rng.standard_normal(n) * rng.choice([0.5, 3, 40])).astype(dtype)
    if rng.random() < 0.4:
        x = np.round(x)  # ties, and both zeros
    x[rng.random(n) < 0.1] = -INF
    x[rng.integers(n)] = 0.25
    return x


@pytest.mark.parametrize("dtype", FLOATS)
def test_against_the_exact_oracle(dtype):
    rng = np.random.default_rng(1)
    for _ in range(500):
        n = int(rng.integers(1, 60))
        x = random_row(rng, dtype, n)
        filters = {
            "top_k": int(rng.integers(0, n + 3)),
            "top_p": float(rng.choice([1, 0.1, 0.5, 0.9, 0.99, 1e-300])),
            "min_p": float(rng.choice([0, 0, 1e-6, 0.01, 0.3, 1])),
            "order": ORDERS[rng.integers(3)],
        }
        assert cut(x, **filters) == oracle(x, **filters), (x, filters)


# -- ties ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [1, 7, 300, 3000])
def test_exactly_k_whatever_ties(dtype, n):
    """flashinfer 3774: a threshold keeps all that equal it."""
    rng = np.random.default_rng(n)
    x = rng.integers(-2, 2, n).astype(dtype)
    order = order_of(x)
    for k in range(1, n + 2) if n <= 300 else [1, 2, 511, 512, 513, 1000, 2047, 2999, 3000, 4000]:
        logit, index, kept = cut(x, top_k=k)
        assert kept == min(k, n) and (logit, index) == (x[order[kept - 1]], order[kept - 1])
        keeps = (x > logit) | ((x == logit) & (np.arange(n) <= index))
        assert set(np.flatnonzero(keeps)) == set(order[:kept])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [1, 2, 10, 48, 257, 2000])
def test_masses_on_the_boundary(dtype, n):
    """n equal masses: p n of them, to the last bit of p."""
    x = np.full(2 * n + 3, -INF, dtype)
    x[2 : 2 * n + 2 : 2] = -3.7
    for kept in {1, 2, n // 3, n // 2, n - 1} & set(range(1, n)):
        for p in (kept / n, np.nextafter(kept / n, 0), np.nextafter(kept / n, 1)):
            want = reach([Fraction(1)] * n, Fraction(p))
            assert cut(x, top_p=p) == (dtype(-3.7), 2 * want, want), (kept, p)


@pytest.mark.parametrize("dtype", FLOATS)
def test_top_p_on_either_side_of_every_mass(dtype):
    rng = np.random.default_rng(3)
    for scale in (0.3, 3, 12):
        x = np.concatenate([rng.standard_normal(60) * scale, [0.5, 0.5, 0.5, -40.0]]).astype(dtype)
        order = order_of(x)
        with mpmath.workprec(300):
            masses = [mpmath.exp(mpmath.mpf(float(x[j]))) for j in order]
            for i in range(1, len(x) - 1):
                share = sum(masses[:i]) / sum(masses)
                if min(masses[i - 1 : i + 1]) / sum(masses) < 16 * max(MASS_ERROR[dtype], 2.0**-52):
                    continue
                doubt = max(4 * MASS_ERROR[dtype], 2.0**-51)
                below, above = float(share * (1 - doubt)), float(share * (1 + doubt))
                assert cut(x, top_p=below)[1:] == (order[i - 1], i)
                assert cut(x, top_p=above)[1:] == (order[i], i + 1)


def test_min_p_keeps_equality():
    logits = np.log([0.5, 0.25, 0.125, 0.0625])
    ln2 = np.log(2.0)
    x = np.array([0, -ln2, np.nextafter(-ln2, -1), -2 * ln2, -1, -2], np.float64)
    assert cut(x, min_p=0.5) == (-ln2, 1, 2)  # -ln2 is the double that log(0.5) is rounded to
    assert cut(x, min_p=0.25) == (-2 * ln2, 3, 5)
    assert cut(x, min_p=1.0) == (0, 0, 1)
    assert cut(logits, min_p=0.25)[2] == 3
    same = np.array([3, 5, 5, 1], np.float32)
    assert cut(same, min_p=1.0) == (5, 2, 2)
    # float32's -0.6931472 is below log(0.5)
    assert cut(np.array([0, -ln2], np.float32), min_p=0.5)[2] == 1
    assert cut(np.array([0, np.nextafter(np.float32(-ln2), np.float32(0))], np.float32), min_p=0.5)[2] == 2


# -- long rows ----------------------------------------------------------------------------------------------


def long_rows(dtype, n):
    rng = np.random.default_rng(n)
    normal = rng.standard_normal(n)
    rows = {
        "flat": normal * 0.01,
        "normal": normal,
        "confident": normal * 8,
        "ascending": np.sort(normal),
        "descending": np.sort(normal)[::-1],
        "of 8 bits": np.round(normal * 8) / 8,
        "equal": np.full(n, 1.5),
        "two values": rng.integers(0, 2, n),
        "masked by -1e9": np.where(rng.random(n) < 0.5, -1e9, normal),
        "masked by the lowest": np.where(rng.random(n) < 0.9, np.finfo(dtype).min, normal),
        "excluded": np.where(rng.random(n) < 0.5, -INF, normal),
        "one of many": np.where(np.arange(n) == n // 3, 20.5, 0),
        "large": normal * 1e6 + 3e6,
        "geometric": -(2.0 ** (np.arange(n) % 97)),
        "widest": normal * (float(np.finfo(dtype).max) / 8),
        "tiny": normal * (float(np.finfo(dtype).tiny) / 8),
        "Zipf": -np.log(rng.permutation(n) + 1.0),
    }
    return {name: np.ascontiguousarray(x, dtype) for name, x in rows.items()}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [511, 513, 2047, 20_011])
def test_long_rows(dtype, n):
    """top_k is exact; the kept mass of top_p reaches p, and without the last element it does not, within the masses' error."""
    for name, x in long_rows(dtype, n).items():
        order = np.argsort(-x, kind="stable")
        finite = int(np.isfinite(x).sum())
        for k in (1, 2, 17, n // 50, n // 8, n // 3, n - 1, n):
            if k < 1:
                continue
            kept = min(k, finite)
            assert cut(x, top_k=k) == (x[order[kept - 1]], order[kept - 1], kept), (name, k)
        with np.errstate(under="ignore", over="ignore"):
            ordered = x[order[:finite]].astype(np.longdouble)
            masses = np.exp(ordered - ordered[0])
        for k, p in [(0, 0.9), (0, 0.3), (0, 0.999), (n // 8, 0.9), (n // 2, 0.5), (finite - 1, 0.95)]:
            length = min(k, finite) if k > 0 else finite
            sums = np.cumsum(masses[:length])
            logit, index, kept = cut(x, top_k=k, top_p=p)
            assert (logit, index) == (x[order[kept - 1]], order[kept - 1]), (name, k, p)
            doubt = 2 * MASS_ERROR[dtype] + length * 2.0**-62
            assert sums[kept - 1] >= p * sums[-1] * (1 - doubt), (name, k, p)
            assert kept == 1 or sums[kept - 2] <= p * sums[-1] * (1 + doubt), (name, k, p)


@pytest.mark.parametrize("dtype", FLOATS)
def test_same_on_every_instruction_set(dtype):
    rng = np.random.default_rng(5)
    cases = [(name, x) for n in (3, 70, 1025, 9001) for name, x in long_rows(dtype, n).items()]
    filters = [
        {
            "top_k": int(rng.integers(0, 1500)),
            "top_p": float(rng.choice([1, *rng.random(2)])),
            "min_p": float(rng.choice([0, 1e-3])),
            "order": ORDERS[rng.integers(3)],
        }
        for _ in cases
    ]
    answers = {}
    for isa in ISAS:
        _core.set_isa(isa)
        answers[isa] = [np.array(cut(x, **f)).tobytes() for (_, x), f in zip(cases, filters)]
    first = answers.pop("portable")
    for isa, theirs in answers.items():
        differing = [(cases[i][0], filters[i]) for i in range(len(first)) if theirs[i] != first[i]]
        assert not differing, (isa, differing)


def test_place_in_memory_does_not_matter():
    """vllm 50979: which of the tied are kept changed with the batch's size."""
    x = np.round(np.random.default_rng(6).standard_normal(3001) * 8).astype(np.float32)
    want = cut(x, top_k=900, top_p=0.7, min_p=1e-4)
    for shift in range(1, 17):
        buffer = np.full(x.size + 32, INF, np.float32)
        buffer[shift : shift + x.size] = x
        assert cut(buffer[shift : shift + x.size], top_k=900, top_p=0.7, min_p=1e-4) == want


def test_excluded_elements_change_nothing():
    """As if they were not there: neither ranks nor masses see them."""
    rng = np.random.default_rng(7)
    for n in (40, 4000):
        x = np.round(rng.standard_normal(n) * 4).astype(np.float32) / 4
        places = np.sort(rng.permutation(3 * n)[:n])
        wide = np.full(3 * n, -INF, np.float32)
        wide[places] = x
        for filters in ({"top_k": n // 3}, {"top_p": 0.6}, {"min_p": 0.2}, {"top_k": n // 2, "top_p": 0.8}, {}):
            logit, index, kept = cut(x, **filters)
            assert cut(wide, **filters) == (logit, places[index], kept)


# -- orders and edges ---------------------------------------------------------------------------------------


def test_order_of_filters():
    x = np.log(np.array([0.4, 0.3, 0.15, 0.1, 0.05]))
    # min_p keeps 0.4 and 0.3: first, it leaves top_p 4/7 and 3/7; last, top_p has kept three
    assert cut(x, top_p=0.55, min_p=0.7, order="vllm")[2] == 1
    for order in ("hf", "llama.cpp"):
        assert cut(x, top_p=0.55, min_p=0.7, order=order)[2] == 2
    # masses are those of what top_k has kept: 4/7 reach 0.55, 0.4 does not
    assert cut(x, top_k=2, top_p=0.55)[2] == 1
    assert cut(x, top_p=0.55)[2] == 2


def test_no_filter_and_filters_of_no_effect():
    x = np.array([1, -INF, 3, 1, 2], np.float64)
    everything = (1, 3, 4)
    for filters in ({}, {"top_k": 4}, {"top_k": 2**62}, {"top_p": 1.0}, {"top_p": 1.5}, {"min_p": 1e-300}, {"top_k": -1}):
        assert cut(x, **filters) == everything
    # whatever the filter, something is left
    for filters in ({"top_p": 0.0}, {"top_p": 5e-324}, {"top_p": -1.0}, {"min_p": 1e300}, {"top_k": 1}):
        assert cut(x, **filters) == (3, 2, 1)
    assert cut(np.array([-0.0, 0.0, -0.0]), top_k=2) == (0, 1, 2)


def test_tail_counts_as_a_tail():
    """262,144 elements 20.5 below one: their mass is 3.3e-4 of it, of which float32's 2^-24 for each would leave nothing."""
    x = np.full(262_145, -20.5, np.float32)
    x[77] = 0
    share = 1 / (1 + 262_144 * np.exp(-20.5))
    assert cut(x, top_p=share * (1 - 1e-6)) == (0, 77, 1)
    kept = cut(x, top_p=share + (1 - share) / 2)[2]
    assert abs(kept - 1 - 131_072) < 131_072 * 1e-5


@pytest.mark.parametrize(
    "bad, error, message",
    [
        (np.array([1, np.nan]), ValueError, "NaN"),
        (np.array([1, INF], np.float32), ValueError, r"\+inf"),
        (np.full(9, -INF), ValueError, "nothing above -inf"),
        (np.zeros(0), ValueError, "nothing above -inf"),
        (np.zeros(4, np.float16), ValueError, "float32 and float64"),
        (np.zeros((2, 2)), TypeError, "contiguous row"),
        (np.zeros(8)[::2], TypeError, "contiguous row"),
        (np.zeros(4, int), TypeError, "contiguous row"),
    ],
)
def test_refused(bad, error, message):
    with pytest.raises(error, match=f"_filter_cut.*{message}"):
        cut(bad, top_k=2)


def test_refused_options():
    x = np.zeros(3)
    with pytest.raises(ValueError, match="order"):
        cut(x, order="gpt")
    with pytest.raises(ValueError, match="top_p or min_p is NaN"):
        cut(x, top_p=np.nan)
