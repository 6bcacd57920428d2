"""Sampling: the probabilities of draws against exact ones, the bytes of draws, and each fault that other libraries have.

The oracle of probabilities is long double. Seeds are fixed. Where the size of an experiment was cut to keep the run short, the
test says so.
"""

import itertools
import os

import ml_dtypes
import numpy as np
import pytest
from scipy import stats

import sumexp as se
from isas import ISAS
from sumexp import _core
from sumexp._draws import draw, gumbel_noise, rows_of, sample_options

BF16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(np.float16), BF16, np.dtype(np.float32), np.dtype(np.float64)]
DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)


def normal(shape, dtype=np.float32, scale=3.0, seed=0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(dtype)


def exact(x):
    """softmax of a row in long double."""
    x = np.asarray(x).astype(np.longdouble)
    t = np.exp(x - x.max())
    return t / t.sum()


def probabilities(x, axis=-1, where=None, **options):
    """The probability with which `sample` draws each class, as the decisions on its way multiply."""
    axis, batch = rows_of("sample", x, axis)
    given = {"temperature": 1.0, "top_k": None, "top_p": None, "min_p": None, "order": "vllm", "seed": 0, "stream": None,
             "num_samples": None, "replacement": True, **options}
    out = np.empty((*batch, x.shape[axis]))
    _core._sample_probabilities(x, axis, where, sample_options("sample", batch, **given), out)
    return out


def chi_square_of(p, draws, least=5):
    """The function that gives the p-value of counts of so many draws; classes with few expected are taken together."""
    order = np.argsort(p)
    p = np.asarray(p, float)[order]
    group = np.minimum(np.cumsum(p) * draws // max(least, draws / 200), 10**6).astype(int)
    expected = np.bincount(group, p * draws)
    few = expected < least
    merged = lambda a: np.append(a[~few], a[few].sum())
    expected = merged(expected)
    there = expected > 0

    def p_value(counts):
        assert counts.sum() == draws
        seen = merged(np.bincount(group, counts[order], len(few)))
        return stats.chisquare(seen[there], expected[there] * (seen.sum() / expected.sum())).pvalue

    return p_value


def chi_square(counts, p, least=5):
    return chi_square_of(p, int(counts.sum()), least)(counts)


# -- probabilities ------------------------------------------------------------------------------------------------


@DTYPE
@pytest.mark.parametrize("n", [1, 2, 3, 17, 100, 513, 1000, 2049, 10_000, 50_257])
def test_probability_of_every_class(dtype, n):
    """The promise: a relative 1e-6 down to 1e-30; measured 2e-8."""
    for scale in (0.1, 3.0, 12.0):
        x = normal(n, dtype, scale, n)
        p, true = probabilities(x), exact(x)
        seen = true >= 1e-30
        error = np.abs(p[seen] / true[seen] - 1).astype(float)
        assert error.max() < 1e-6
        # what it is; of float64 the 126 bits of a decision show below 1e-22
        assert error.max() < 3e-8 and (dtype != np.float64 or error[true[seen] > 1e-22].max() < 1e-13)


@DTYPE
def test_probability_next_to_a_winner(dtype):
    """Gaps from 20 to 69: tails of 2^-30 to 2^-99, alone in a chunk of their own, and beside the winner in its."""
    for gap in (20.5, 40.0, 60.0, 69.0):
        for winner in (0, 700, 5000):
            x = np.full(9000, -gap).astype(dtype)
            x[winner] = 0
            true = exact(x)
            assert float(np.max(np.abs(probabilities(x) / true - 1))) < 1e-6


def test_probability_far_below_everything():
    """Beyond 2^-126 a decision is not taken any more: the class has probability 0."""
    x = np.array([0.0, -200.0, -1e30], np.float32)
    assert probabilities(x).tolist() == [1, 0, 0]
    x[0] = -np.inf
    assert probabilities(x).tolist() == [0, 1, 0]
    big = np.array([3e38, 3e38, 2.9e38], np.float32)
    assert probabilities(big).tolist() == [0.5, 0.5, 0]
    assert probabilities(np.array([1e300, 1e300, 9e299])).tolist() == [0.5, 0.5, 0]


def test_probability_of_large_logits():
    for dtype, offset in ((np.float32, 1e6), (np.float32, -1e6), (np.float64, 1e13)):
        x = (normal(5000, np.float64) * 2 + offset).astype(dtype)
        true = exact(x)
        seen = true > 1e-30
        assert float(np.max(np.abs(probabilities(x)[seen] / true[seen] - 1))) < 1e-6


def test_draws_follow_the_probabilities():
    """Chi-square at five sizes, by draws and by counts."""
    for n, draws in ((2, 20_000), (10, 50_000), (1000, 200_000), (50_257, 200_000), (300_000, 200_000)):
        x = normal(n, scale=2.0, seed=n)
        p = exact(x)
        assert chi_square(np.bincount(se.sample(x, seed=11, num_samples=draws), minlength=n), p) > 1e-3, n
        assert chi_square(se.sample_counts(x, draws, seed=12), p) > 1e-3, n


@pytest.mark.parametrize("n", [2, 10, 1000, 50_257, 300_000])
def test_p_values_are_uniform(n):
    """Kolmogorov-Smirnov over 200 repeats with other seeds."""
    x = normal(n, scale=1.5, seed=n)
    p = exact(x)
    draws = max(2000, n // 5) if n > 2 else 20_000
    seeds = np.arange(1, 201)
    many = 10**6 if n < 1000 else draws * 10
    drawn = (np.bincount(se.sample(x, seed=s, num_samples=draws), minlength=n) for s in seeds)
    counted = (se.sample_counts(x, many, seed=s) for s in seeds)
    for made, number in ((drawn, draws), (counted, many)):
        values = [*map(chi_square_of(p, number, 20), made)]
        assert stats.kstest(values, "uniform").pvalue > 1e-3


def test_tail_race():
    """vllm 43150: 262,144 classes 20.5 below one winner. float32 Gumbel noise never lets one of them win."""
    x = np.concatenate([[0.0], np.full(262_144, -20.5)]).astype(np.float32)
    hits = np.array([(se.sample(x, seed=s, num_samples=100_000) > 0).sum() for s in range(10)])
    expected = 1e5 * float(exact(x)[1:].sum())
    assert 32.7 < expected < 32.8
    assert abs(hits.sum() - 10 * expected) < 4 * (10 * expected) ** 0.5
    assert stats.chisquare(hits, [hits.mean()] * 10).pvalue > 1e-3


@DTYPE
def test_counts_of_rare_classes(dtype):
    """10^13 draws: classes of probability 1e-9, 1e-12 and 1e-30, in one chunk and in chunks of their own."""
    x = np.full(6000, -np.inf).astype(dtype)
    x[[0, 1, 2, 3000, 5000, 5999]] = [0, -20.72, -27.63, -20.72, -27.63, -69.08]
    p = exact(x) * 10**13
    seeds = 40
    counts = se.sample_counts(np.broadcast_to(x, (seeds, x.size)), 10**13, seed=3)
    assert (counts.sum(-1) == 10**13).all()
    assert (counts[:, np.isneginf(x)] == 0).all() and (counts[:, 5999] == 0).all()
    for j in (1, 2, 3000, 5000):
        mean, true = counts[:, j].mean(), float(p[j])
        assert abs(mean - true) < 4 * (true / seeds) ** 0.5, (j, mean, true)
        assert 0.5 < counts[:, j].var() / true < 1.7


def test_counts_have_binomial_distributions():
    """Two classes: n and p on both sides of n p = 10, where the sampler changes its way; up to 2^53 draws."""
    for n, p in ((1, 0.5), (20, 0.3), (100, 0.02), (10**6, 3e-6), (25, 0.45), (40, 0.25), (1000, 0.3), (10**9, 0.5)):
        x = np.log([1 - p, p])
        counts = se.sample_counts(np.broadcast_to(x, (4000, 2)), n, seed=1)[:, 1]
        assert (0 <= counts).all() and (counts <= n).all()
        u = np.random.default_rng(0).uniform(size=counts.size)  # randomised probability integral transform
        below = stats.binom.cdf(counts - 1, n, p)
        assert stats.kstest(below + u * stats.binom.pmf(counts, n, p), "uniform").pvalue > 1e-3, (n, p)
    for n in (10**13, 10**15, 2**53):
        counts = se.sample_counts(np.zeros((2000, 2)), n, seed=2)
        z = (counts[:, 1] - n / 2) / (n / 4) ** 0.5
        assert stats.kstest(z, "norm").pvalue > 1e-3 and (counts.sum(1) == n).all()
        assert stats.chisquare(np.bincount(counts[:, 1] % 8, minlength=8)).pvalue > 1e-3  # every integer has its turn


def test_never_drawn():
    """Probability 0: by 10^8 counted in each dtype, and 10^8 drawn, 10^6 in each dtype and the rest in float16."""
    for dtype in DTYPES:
        x = normal(5000, dtype)
        x[::2] = -np.inf
        x[2048:4096] = -np.inf
        assert (se.sample_counts(x, 10**8, seed=1)[np.isneginf(x)] == 0).all()
        for seed in range(97 if dtype == np.float16 else 1):
            assert not np.isneginf(x[se.sample(x, seed=seed, num_samples=10**6)]).any()


# -- the same draw everywhere -----------------------------------------------------------------------------------------


@DTYPE
def test_bytes(dtype):
    x = normal((7, 5000), dtype)
    options = {"seed": 9, "num_samples": 4}
    whole = se.sample(x, **options)
    counts = se.sample_counts(x, 10**6, seed=9)
    for r in (0, 3, 6):  # alone; the stream is a row's number unless it is given
        assert (se.sample(x[r], stream=r, **options) == whole[r]).all()
        assert (se.sample_counts(x[r], 10**6, seed=9, stream=r) == counts[r]).all()
    shuffled = [5, 2, 0, 1, 6, 3, 4]
    assert (se.sample(x[shuffled], stream=np.array(shuffled), **options) == whole[shuffled]).all()
    turned = np.ascontiguousarray(x.T)
    assert (se.sample(turned, 0, **options) == whole).all()
    assert (se.sample_counts(turned, 10**6, 0, seed=9).T == counts).all()
    wide = np.zeros((7, 10_001), dtype)
    wide[:, 1::2] = x
    assert (se.sample(wide[:, 1::2], **options) == whole).all()
    assert (se.sample(x[:, ::-1], **options) == se.sample(x[:, ::-1].copy(), **options)).all()
    unaligned = np.frombuffer(b"." + x.tobytes(), np.uint8)[1:].view(dtype).reshape(x.shape)
    assert (se.sample(unaligned, **options) == whole).all()
    cube = x[:6].reshape(2, 3, 5000)
    assert (se.sample(cube, **options) == whole[:6].reshape(2, 3, 4)).all()
    assert (se.sample(np.moveaxis(cube, 2, 1), 1, **options) == whole[:6].reshape(2, 3, 4)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, BF16], ids=str)
def test_bytes_of_instruction_sets_and_threads(dtype):
    short, long = normal((300, 900), dtype), normal((2, 150_000), dtype)
    cases = [
        lambda: se.sample(short, seed=1),
        lambda: se.sample(long, seed=1, num_samples=300),
        lambda: se.sample(long, seed=1, top_k=100, top_p=0.9, temperature=0.7, return_info=True),
        lambda: se.sample(long, seed=1, num_samples=20, replacement=False, return_info=True),
        lambda: se.sample_counts(long[:, :20_000], 10**9, seed=1, temperature=0.5),
        lambda: se.gumbel_softmax(short, seed=1),
        lambda: probabilities(long),
    ]

    def all_bytes():
        made = [case() for case in cases]
        return [b"".join(np.asarray(a).tobytes() for part in (m if isinstance(m, tuple) else (m,))
                         for a in (part if isinstance(part, tuple) else (part,))) for m in made]

    se.set_num_threads(1)
    one = all_bytes()
    se.set_num_threads(3)
    assert all_bytes() == one
    for isa in ISAS:
        _core.set_isa(isa)
        assert all_bytes() == one, isa


@DTYPE
def test_rows_that_draw_together(dtype):
    """Short rows take their steps together, but for those of which more is to be known; each draws what it draws alone."""
    rng = np.random.default_rng(1)
    for n in (1, 2, 9, 16, 17, 40, 130, 512, 2048):
        rows = int(rng.choice([15, 16, 17, 50]))
        x = normal((rows, n), dtype)
        x[rng.random(x.shape) < 0.3] = -np.inf
        x[:, n // 2] = 1
        t = rng.choice([1.0, 0.0, 0.3, 1e-30, np.inf], size=rows)
        for options in ({}, {"temperature": t}):
            drawn = se.sample(x, seed=n, **options)
            alone = [se.sample(x[r], seed=n, stream=r, **{k: v[r] for k, v in options.items()}) for r in range(rows)]
            first = se.sample(x, seed=n, num_samples=2, **options)[:, 0]  # one after the other
            assert drawn.tolist() == alone == first.tolist() and np.isfinite(x[range(rows), drawn].astype(float)).all(), n
        for bad in (np.nan, np.inf):
            y = x.copy()
            y[11:13, n - 1] = bad
            with pytest.raises(ValueError, match="in row 11[ ,]"):
                se.sample(y, seed=1)


def test_a_16_bit_row_draws_what_its_values_draw():
    for dtype in (np.float16, BF16):
        x = normal((3, 4000), dtype)
        assert (se.sample(x, seed=1, num_samples=50) == se.sample(x.astype(np.float32), seed=1, num_samples=50)).all()


def test_draws_of_one_row_are_the_same_in_any_number():
    x = normal(9000)
    many = se.sample(x, seed=4, num_samples=70_000)  # more than one block
    assert (se.sample(x, seed=4, num_samples=100) == many[:100]).all()
    assert se.sample(x, seed=4) == many[0]


# -- options -----------------------------------------------------------------------------------------------------------


def test_temperature():
    x = normal((4, 3000))
    for t in (0.1, 0.5, 10.0):
        assert (se.sample(x, seed=1, temperature=t) == se.sample(x / np.float32(t), seed=1)).all()
    each = np.array([0.5, 1.0, 0.0, 2.0])
    mixed = se.sample(x, seed=1, temperature=each)
    assert [se.sample(x[r], seed=1, stream=r, temperature=each[r]) for r in range(4)] == mixed.tolist()


@DTYPE
def test_extreme_temperatures(dtype):
    """Quotients that overflow are those of differences from the largest; an infinite temperature makes all classes equal."""
    x = normal((2, 3000), dtype, 100.0)
    x[0, 7] = x[0].max() * 1.5
    for t in (1e-37, 1e-300):
        for options in ({}, {"top_k": 3}, {"top_k": 3, "order": "llama.cpp"}, {"min_p": 0.5}):
            drawn, info = se.sample(x, seed=1, temperature=t, return_info=True, **options)
            assert (drawn == x.argmax(-1)).all() and (info.filtered_log_prob == 0).all()
    top = np.float64(x[0, 7])
    below = np.nextafter(np.float32(top), np.float32(0)) if dtype == np.float32 else None
    if below is not None:  # one ulp below, at a temperature of an ulp
        y = np.array([below, top, top - 50], np.float32)
        assert abs(probabilities(y, temperature=float(top - below))[0] - 1 / (1 + np.e)) < 1e-6
    x[:, :10] = -np.inf
    for t in (np.inf, 1e300 if dtype != np.float64 else np.inf):
        p = probabilities(x, temperature=t)
        assert (p[:, :10] == 0).all() and np.allclose(p[:, 10:], 1 / 2990, rtol=1e-6, atol=0)


def test_a_draw_does_not_depend_on_what_is_told():
    rng = np.random.default_rng(0)
    x = normal((2000, 9))
    x[:, 0] = -3e38  # a quotient of which overflows
    for n, t in ((9, 1.0), (9, 0.37), (9, 1e-2), (8, 0.37)):
        y = x[:, 9 - n:]
        plain = se.sample(y, seed=1, temperature=t)
        assert (se.sample(y, seed=1, temperature=t, return_info=True)[0] == plain).all()
        assert (se.sample(y, seed=1, temperature=t, num_samples=2)[:, 0] == plain).all()
        assert (se.sample(y, seed=1, temperature=t, num_samples=2, replacement=False)[:, 0] == plain).all()
        assert (se.sample(y, seed=1, temperature=t, where=rng.random(y.shape) < 2) == plain).all()


def test_temperature_zero_takes_the_first_of_the_largest():
    x = np.array([[1.0, 7, 3, 7], [5, 5, 5, 5], [-np.inf, -3, -2, -2]])
    assert se.sample(x, temperature=0).tolist() == [1, 0, 2]
    assert (se.sample(x, temperature=0, num_samples=3) == np.array([[1], [0], [2]])).all()
    assert se.sample(x[:2], temperature=0, num_samples=4, replacement=False).tolist() == [[1, 3, 2, 0], [0, 1, 2, 3]]
    assert se.sample_counts(x, 7, temperature=0).tolist() == [[0, 7, 0, 0], [7, 0, 0, 0], [0, 0, 7, 0]]
    long = normal(10_000)
    assert se.sample(long, temperature=0) == long.argmax()
    _, info = se.sample(long, temperature=0, return_info=True)
    assert info.kept == 1 and info.cut_index == long.argmax() and info.filtered_log_prob == 0
    assert abs(info.log_prob - se.log_softmax(long).max()) < 1e-6
    options = {"num_samples": 3, "replacement": False, "top_k": 2, "return_info": True}  # what is told is of the first draw
    drawn, info = se.sample(x[0], temperature=0, **options)
    assert drawn.tolist() == [1, 3, 2] and info.kept == 1 and info.filtered_log_prob.tolist() == [0, -np.inf, -np.inf]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("order", ["vllm", "hf", "llama.cpp"])
def test_filters(dtype, order):
    """Nothing outside of the cut is drawn, and what is inside has its probability, renormalised."""
    x = normal((5, 3000), dtype)
    x[:, 100:110] = x[:, 100:101]  # ties
    given = {"temperature": 0.8, "top_k": np.array([1, 5, 300, 3000, 40]), "top_p": 0.95, "min_p": 0.01, "order": order}
    indices, info = se.sample(x, seed=1, num_samples=200, return_info=True, **given)
    p = probabilities(x, **given)
    cut = x if order == "llama.cpp" else x / dtype(0.8)
    place = np.arange(x.shape[-1])
    logit, index = info.cut_logit[:, None], info.cut_index[:, None]
    kept = (cut > logit) | ((cut == logit) & (place <= index))
    assert (kept.sum(-1) == info.kept).all()
    assert ((p > 0) == kept).all()
    assert np.take_along_axis(kept, indices, -1).all()
    for r in range(5):
        scaled = np.where(kept[r], x[r] / dtype(0.8), -np.inf)
        true = exact(scaled)
        assert float(np.max(np.abs(p[r][kept[r]] / true[kept[r]] - 1))) < 1e-6
        assert np.allclose(np.exp(info.filtered_log_prob[r]), np.asarray(true[indices[r]], float), rtol=1e-5, atol=0)
        assert np.allclose(info.log_prob[r], se.log_softmax(x[r])[indices[r]], rtol=1e-5, atol=0)
    alone = [se.sample(x[r], seed=1, stream=r, num_samples=200, **{**given, "top_k": int(given["top_k"][r])}) for r in range(5)]
    assert (np.array(alone) == indices).all()


def drawn_in_double(x, where=None, **options):
    """sample with return_info, of 60 draws, before the log-probabilities are rounded to x's dtype."""
    given = {"temperature": 1.0, "top_k": None, "top_p": None, "min_p": None, "order": "vllm", "seed": 3, "stream": None,
             "num_samples": 60, "replacement": True, **options}
    axis, batch = rows_of("sample", x, -1)
    return draw(x, axis, where, sample_options("sample", batch, **given), batch, 60, True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_filtered_row_is_the_row_of_what_is_kept(dtype):
    """To the bit, however little of a chunk is kept: a few elements are summed otherwise than many."""
    x = normal((3, 30_000), dtype)
    x[1] = np.round(x[1])
    x[2] -= 100
    x[2, ::60] += 100  # some 30 of a chunk, and
    x[2, 100::2048] = 18  # one that stands alone: the others are summed once more, relative to their own largest
    for shift in (0, 1e5):  # the second is relative to the chunk's largest
        y = x + dtype(shift)
        for options in ({"top_k": 2}, {"top_k": 50}, {"top_k": 3000}, {"top_k": 9000}, {"top_p": 0.9}, {"min_p": 1e-22}):
            drawn, info = drawn_in_double(y, **options)
            logit, index = info["cut_logit"][:, None], info["cut_index"][:, None]
            kept = (y > logit) | ((y == logit) & (np.arange(y.shape[-1]) <= index))
            plain, told = drawn_in_double(y, where=kept)
            assert (drawn == plain).all() and (kept.sum(-1) == info["kept"]).all(), (shift, options)
            assert (info["filtered_log_prob"] == told["filtered_log_prob"]).all(), (shift, options)
            assert (se.sample(y, seed=3, num_samples=60, **options) == drawn).all(), (shift, options)
            assert (se.sample(y, seed=3, num_samples=60, order="llama.cpp", **options) == drawn).all(), (shift, options)


@pytest.mark.parametrize("n", [9, 5000, 70_000])
def test_filtered_rows_that_cannot_be_drawn_from(n):
    for dtype in (np.float32, np.float64):
        for at in (0, n // 2, n - 1):
            for bad, message in ((np.nan, "NaN in row 1"), (np.inf, r"\+inf in row 1"), (-np.inf, "draw from in row 1")):
                x = normal((3, n), dtype)
                x[1, at] = bad
                if bad == -np.inf:
                    x[1] = bad
                for options in ({"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.5}, {"top_k": 2, "temperature": 0.5}):
                    with pytest.raises(ValueError, match=message):
                        se.sample(x, seed=1, **options)


def test_where():
    x = normal((4, 5000))
    mask = np.random.default_rng(1).random(x.shape) < 0.3
    drawn = se.sample(x, where=mask, seed=1, num_samples=500)
    assert np.take_along_axis(mask, drawn, -1).all()
    assert (drawn == se.sample(np.where(mask, x, -np.inf), seed=1, num_samples=500)).all()
    assert (se.sample(x, where=mask[0], seed=1) == se.sample(x, where=np.broadcast_to(mask[0], x.shape), seed=1)).all()
    _, info = se.sample(x, where=mask, seed=1, return_info=True)
    assert (info.kept == mask.sum(-1)).all()
    x[~mask] = np.nan  # what is excluded is not read
    assert (se.sample(x, where=mask, seed=1, num_samples=500) == drawn).all()


def test_without_replacement():
    for n, draws in ((5, 5), (100, 30), (6000, 200)):
        x = normal(n, scale=1.0)
        drawn = se.sample(np.broadcast_to(x, (20, n)), seed=1, num_samples=draws, replacement=False)
        assert all(len(set(row)) == draws for row in drawn.tolist())
    # the second draw of three: P(j) = sum_i p_i p_j / (1 - p_i)
    x = np.log([0.6, 0.3, 0.1])
    p = np.array([0.6, 0.3, 0.1])
    drawn = se.sample(np.broadcast_to(x, (20_000, 3)), seed=2, num_samples=2, replacement=False)
    pairs = np.bincount(drawn[:, 0] * 3 + drawn[:, 1], minlength=9)
    true = np.outer(p, p) / (1 - p)[:, None] * (1 - np.eye(3))
    assert pairs[[0, 4, 8]].sum() == 0 and chi_square(pairs, true.ravel()) > 1e-3
    with pytest.raises(ValueError, match="sample: num_samples is 3 without replacement; row 1 has fewer"):
        se.sample(np.array([[1.0, 2, 3], [1, -np.inf, 3]]), num_samples=3, replacement=False)


def test_seeds():
    x = normal((6, 50))
    assert (se.sample(x, num_samples=50) != se.sample(x, num_samples=50)).any()
    seeds = np.array([3, 3, 4, 2**63, 0, 7], np.uint64)
    drawn = se.sample(x, seed=seeds, num_samples=9)
    for r in range(6):
        assert (se.sample(x[r], seed=int(seeds[r]), stream=r, num_samples=9) == drawn[r]).all()
    a, b = (se.sample(x, seed=np.random.default_rng(5), num_samples=9) for _ in range(2))
    assert (a == b).all()
    generator = np.random.default_rng(5)
    assert (se.sample(x, seed=generator, num_samples=9) == a).all()
    assert (se.sample(x, seed=generator, num_samples=9) != a).any()
    assert (se.sample(x, seed=1, stream=np.zeros(6, int)) == se.sample(x, seed=1, stream=0)).all()
    same = np.broadcast_to(x[0], (1000, 50))
    assert len(set(se.sample(same, seed=1).tolist())) > 10  # streams differ


@pytest.mark.parametrize("options", [{"temperature": -1}, {"top_k": 2.5}, {"top_p": "1"}, {"order": "none"}, {"stream": 1.5},
                                     {"num_samples": -1}, {"where": np.ones(4, bool)}, {"out": np.zeros(())}],
                         ids=str)  # fmt: skip
def test_a_generator_stays_where_options_are_refused(options):
    generator = np.random.default_rng(5)
    before = generator.bit_generator.state
    wrong = (ValueError, TypeError)
    with pytest.raises(wrong, match="^sample: "):
        se.sample(np.zeros(3), seed=generator, **options)
    with pytest.raises(wrong, match="^linear_sample: "):
        se.linear_sample(np.zeros(2), np.zeros((3, 2)), seed=generator, **options)
    assert generator.bit_generator.state == before


@pytest.mark.parametrize("options", [{"temperature": -1}, {"stream": 1.5}, {"num_samples": -1}, {"out": np.zeros(3)}], ids=str)
def test_a_generator_stays_where_counts_are_refused(options):
    generator = np.random.default_rng(5)
    before = generator.bit_generator.state
    with pytest.raises((ValueError, TypeError), match="^sample_counts: "):
        se.sample_counts(np.zeros(3), **{"num_samples": 5, "seed": generator, **options})
    with pytest.raises(ValueError, match="^gumbel_softmax: tau is -1"):
        se.gumbel_softmax(np.zeros(3), tau=-1, seed=generator)
    assert generator.bit_generator.state == before


def test_streams_are_independent():
    """Neighbouring seeds, streams and draws give pairs without a correlation."""
    x = np.zeros((20_000, 4))
    by_stream = se.sample(x, seed=1)
    by_seed = se.sample(x, seed=np.arange(20_000, dtype=np.uint64), stream=0)
    by_draw = se.sample(x[0], seed=1, num_samples=20_000)
    for drawn in (by_stream, by_seed, by_draw):
        pairs = np.bincount(drawn[::2] * 4 + drawn[1::2], minlength=16)
        assert stats.chisquare(pairs).pvalue > 1e-3
    assert stats.chisquare(np.bincount(by_seed * 4 + by_draw, minlength=16)).pvalue > 1e-3


def test_shapes():
    assert isinstance(se.sample([1.0, 2.0], seed=1), np.int64)
    assert se.sample(np.zeros((2, 3, 4)), 1).shape == (2, 4)
    assert se.sample(np.zeros((2, 3, 4)), 1, num_samples=5).shape == (2, 4, 5)
    assert se.sample(np.zeros((0, 4))).shape == (0,) and se.sample(np.zeros((0, 4)), num_samples=3).shape == (0, 3)
    assert se.sample(np.zeros((3, 4)), num_samples=0).shape == (3, 0)
    assert se.sample_counts(np.zeros((0, 4)), 3).shape == (0, 4)
    assert se.sample_counts(np.zeros((2, 4)), 0).tolist() == [[0] * 4] * 2
    out, info = se.sample(np.zeros((2, 3, 4), np.float16), 1, num_samples=5, return_info=True)
    assert info.log_prob.shape == (2, 4, 5) and info.log_prob.dtype == np.float32
    assert info.kept.shape == (2, 4) and info.kept.dtype == np.int64
    assert (se.sample([1, 2, 3], seed=1) == se.sample([1.0, 2.0, 3.0], seed=1)).all()


def test_counts_are_written_when_all_are_drawn():
    x, out = np.zeros((300, 3)), np.full((300, 3), -7)
    x[200] = np.nan
    with pytest.raises(ValueError, match="has a NaN in row 200,"):
        se.sample_counts(x, 10, seed=1, out=out)
    assert (out == -7).all()
    assert se.sample_counts(x[:9], 10, seed=1, out=out[:9]).sum() == 90 == out[:9].sum()


def test_counts_that_another_library_has_no_integers_for():
    jnp = pytest.importorskip("jax.numpy")
    x = jnp.zeros(2)
    if jnp.asarray(np.int64(1)).dtype.itemsize == 8:
        pytest.skip("jax_enable_x64 is on")
    assert se.sample_counts(x, 10**6, seed=1).sum() == 10**6
    with pytest.raises(OverflowError, match=r"^sample_counts: a count is \d{13}, accepted: up to 2\^31 - 1"):
        se.sample_counts(x, 10**13, seed=1)


def test_options_that_are_not_aligned():
    temperature = np.zeros(33, np.uint8)[1:].view(float)
    temperature[:] = 2.0
    x = np.zeros((4, 9))
    assert (se.sample(x, temperature=temperature, seed=1) == se.sample(x, temperature=2, seed=1)).all()


def test_no_floating_point_errors():
    with np.errstate(all="raise"):
        y = se.gumbel_softmax(np.float32([0, -200]), seed=1)
        _, info = se.sample(np.float32([[0, -1e-30], [0, -90]]), seed=1, num_samples=9, return_info=True)
    assert y.tolist() == [1, 0] and np.isfinite(info.log_prob).all()


@pytest.mark.parametrize("call, error, message", [
    (lambda x: se.sample(x[0, 0]), ValueError, r"sample: logits has shape \(\)"),
    (lambda x: se.sample(x, 2), np.exceptions.AxisError, "sample: axis"),
    (lambda x: se.sample(x, "a"), TypeError, "sample: axis is 'a'"),
    (lambda x: se.sample(x, temperature=-1), ValueError, "sample: temperature is -1 for row 0, accepted"),
    (lambda x: se.sample(x, temperature=[1, 2, np.nan]), ValueError, "sample: temperature is nan for row 2"),
    (lambda x: se.sample(x, temperature="hot"), TypeError, "sample: temperature is 'hot', accepted: numbers"),
    (lambda x: se.sample(x, top_k=0), ValueError, "sample: top_k is 0 for row 0, accepted: integers from 1"),
    (lambda x: se.sample(x, top_k=1.5), TypeError, "sample: top_k is 1.5, accepted: integers"),
    (lambda x: se.sample(x, top_p=0), ValueError, "sample: top_p is 0 for row 0"),
    (lambda x: se.sample(x, top_p=[0.5, 1.5, 1]), ValueError, "sample: top_p is 1.5 for row 1"),
    (lambda x: se.sample(x, min_p=2), ValueError, "sample: min_p is 2 for row 0"),
    (lambda x: se.sample(x, min_p=np.nan), ValueError, "sample: min_p is nan"),
    (lambda x: se.sample(x, order="best"), ValueError, "sample: order is 'best', accepted: 'vllm', 'hf', 'llama.cpp'"),
    (lambda x: se.sample(x, where=np.ones((2, 9), bool)), ValueError, r"sample: where has shape \(2, 9\)"),
    (lambda x: se.sample(x, where=np.ones((3, 4))), TypeError, "sample: where has dtype float64, accepted: bool"),
    (lambda x: se.sample(x, seed=-1), ValueError, "sample: seed is -1"),
    (lambda x: se.sample(x, seed=2**64), ValueError, "sample: seed is 18446744073709551616"),
    (lambda x: se.sample(x, seed=1.5), TypeError, "sample: seed is 1.5"),
    (lambda x: se.sample(x, seed=np.array([1, -2, 3])), ValueError, "sample: seed is -2"),
    (lambda x: se.sample(x, seed=[1, 2]), ValueError, r"sample: seed has shape \(2,\)"),
    (lambda x: se.sample(x, stream=[[1]] * 2), ValueError, "sample: stream has shape"),
    (lambda x: se.sample(x, num_samples=-1), ValueError, "sample: num_samples is -1"),
    (lambda x: se.sample(x, num_samples=2.0), TypeError, "sample: num_samples is 2.0"),
    (lambda x: se.sample(x.astype(complex)), TypeError, "sample: logits has dtype complex128"),
    (lambda x: se.sample_counts(x, 2**53 + 1), ValueError, "sample_counts: num_samples is 9007199254740993"),
    (lambda x: se.sample_counts(x, True), TypeError, "sample_counts: num_samples is True"),
    (lambda x: se.sample(x, order=[]), ValueError, r"sample: order is \[\], accepted: 'vllm', 'hf', 'llama.cpp'"),
    (lambda x: se.linear_sample(x, x[:, :3]), ValueError, "linear_sample: x and w have shapes"),
    (lambda x: se.linear_sample(x, x, bias=x[0]), ValueError, r"linear_sample: bias has shape \(4,\), accepted: \(3,\)"),
    (lambda x: se.gumbel_softmax(x, tau=0), ValueError, "gumbel_softmax: tau is 0"),
    (lambda x: se.gumbel_softmax(x, tau="a"), TypeError, "gumbel_softmax: tau is 'a'"),
])
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(np.zeros((3, 4)))


@DTYPE
def test_rows_that_cannot_be_drawn_from(dtype):
    x = normal((4, 3000), dtype)
    for bad, message in ((np.nan, "has a NaN"), (np.inf, r"has \+inf")):
        for options in ({}, {"top_k": 5}, {"temperature": 0.7, "top_p": 0.5}, {"num_samples": 3, "replacement": False},
                        {"temperature": 0}, {"temperature": 0, "num_samples": 3, "replacement": False}):  # fmt: skip
            y = x.copy()
            y[2, 2500] = bad
            with pytest.raises(ValueError, match=f"sample: logits {message} in row 2"):
                se.sample(y, **options)
            y[1, 0] = bad  # the first is told
            with pytest.raises(ValueError, match=f"sample: logits {message} in row 1"):
                se.sample(y, **options)
        for temperature in (1, 0):
            with pytest.raises(ValueError, match=f"sample_counts: logits {message} in row 1"):
                se.sample_counts(y, 5, temperature=temperature)
    y = x.copy()
    y[3] = -np.inf
    for options in ({}, {"top_k": 5}, {"temperature": 0}):
        with pytest.raises(ValueError, match="sample: logits has nothing to draw from in row 3"):
            se.sample(y, **options)
    with pytest.raises(ValueError, match="has nothing to draw from in row 1,"):
        se.sample(x, where=np.arange(4)[:, None] != 1)
    with pytest.raises(ValueError, match="has nothing to draw from in row 0,"):
        se.sample(np.zeros((2, 0), dtype))
    y[3, 1] = np.nan
    with pytest.raises(ValueError, match="sample: logits has a NaN in row 3"):
        se.sample(y, temperature=0)


def test_the_first_row_that_cannot_be_drawn_from_is_told():
    """However many others fail behind it, and before it on another thread."""
    for threads, (rows, n, first) in itertools.product((1, 2, 5), ((200, 3000, 99), (40, 30_000, 19), (3, 400_000, 1))):
        se.set_num_threads(threads)
        x = np.zeros((rows, n), np.float32)
        for bad, message in ((np.nan, "has a NaN"), (-np.inf, "has nothing to draw from")):
            x[first:] = bad
            for call in (
                lambda: se.sample(x),
                lambda: se.sample(x, num_samples=3, return_info=True),
                lambda: se.sample(x, top_k=5),
                lambda: se.sample_counts(x, 5),
            ):
                for _ in range(3):
                    with pytest.raises(ValueError, match=f"{message} in row {first},"):
                        call()


@DTYPE
def test_no_draws(dtype):
    """What is told of rows is that of other numbers of draws, and rows are refused as there."""
    x = normal((3, 700), dtype)
    x[:, 5] = -np.inf
    for options in ({}, {"top_k": 5}, {"temperature": 0}, {"top_p": 0.5, "replacement": False}):
        (_, none), (_, two) = (se.sample(x, num_samples=k, return_info=True, **options) for k in (0, 2))
        assert none.log_prob.shape == none.filtered_log_prob.shape == (3, 0)
        for name in ("kept", "cut_logit", "cut_index"):
            assert (getattr(none, name) == getattr(two, name)).all(), (name, options)
    x[1, 600] = np.nan
    for call in (
        lambda: se.sample(x, num_samples=0),
        lambda: se.sample_counts(x, 0),
        lambda: se.linear_sample(np.eye(3), x.T.astype(float), num_samples=0),
    ):
        with pytest.raises(ValueError, match="has a NaN in row "), np.errstate(invalid="ignore"):
            call()


def test_a_row_that_is_refused_leaves_out():
    x = normal((3, 40))
    x[1, 7] = np.nan
    for call, shape in (
        (lambda out: se.sample(x, out=out), 3),
        (lambda out: se.sample(x, num_samples=2, return_info=True, out=out), (3, 2)),
        (lambda out: se.sample_counts(x, 9, out=out), (3, 40)),
        (lambda out: se.linear_sample(np.eye(3), x.T, out=out), 3),
        (lambda out: se.linear_sample(np.eye(3), x.T, top_k=3, out=out), 3),
    ):
        out = np.full(shape, 77)
        with pytest.raises(ValueError, match="has a NaN"), np.errstate(invalid="ignore"):
            call(out)
        assert (out == 77).all()


# -- linear_sample -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_linear_sample_is_sample_of_the_products(dtype):
    rng = np.random.default_rng(0)
    # products of small integers are exact, whatever BLAS does
    x, w = rng.integers(-3, 4, (3, 5, 16)).astype(dtype) / 4, rng.integers(-3, 4, (9000, 16)).astype(dtype) / 2
    bias = rng.integers(-4, 4, 9000).astype(dtype)
    logits = x @ w.T + bias
    for options in ({}, {"num_samples": 7}, {"temperature": 0.5}, {"temperature": rng.random((3, 5)) + 0.1}, {"top_k": 20},
                    {"num_samples": 4, "replacement": False}, {"temperature": 0}, {"where": rng.random(9000) < 0.5}):
        drawn = se.linear_sample(x, w, bias=bias, seed=3, **options)
        assert (drawn == se.sample(logits, seed=3, **options)).all(), options
    drawn, info = se.linear_sample(x, w, bias=bias, seed=3, return_info=True)
    expected, expected_info = se.sample(logits, seed=3, return_info=True)
    assert (drawn == expected).all() and (info.log_prob == expected_info.log_prob).all()
    w[4000, 0] = np.nan
    with pytest.raises(ValueError, match="linear_sample: the product of x and w has a NaN in row 0"):
        se.linear_sample(x, w, bias=bias)


@pytest.mark.parametrize("number", [2**59, 2**62])
def test_draws_that_no_memory_holds(number):
    with pytest.raises(MemoryError, match=f"^sample: num_samples is {number}, and there is no memory"):
        se.sample(np.zeros((4, 6)), num_samples=number)
    with pytest.raises(MemoryError, match=f"^linear_sample: num_samples is {number}, and there is no memory"):
        se.linear_sample(np.zeros((4, 6)), np.zeros((5, 6)), num_samples=number)


# -- gumbel_softmax ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [[-np.inf, -np.inf], [1, np.inf], [np.nan, 1], [np.inf, np.nan]])
def test_gumbel_softmax_of_rows_that_are_not_drawn_from(row):
    for x in (np.array([row, [1, -np.inf]]), np.array([row, [1, -np.inf]], np.float32)):
        for hard in (False, True):
            for tau in (1.0, np.inf):
                y = se.gumbel_softmax(x, tau=tau, hard=hard, seed=0)
                assert np.isnan(y[0]).all() and y[1].tolist() == [1, 0]


def test_gumbel_noise():
    noise = gumbel_noise((), 200_000, 3, None)
    assert stats.kstest(noise, "gumbel_r").pvalue > 1e-3
    assert (gumbel_noise((3,), 1000, 3, np.array([5, 0, 1]))[1] == noise[:1000]).all()


@DTYPE
def test_gumbel_softmax(dtype):
    x = normal((4, 6), dtype, 1.0)
    soft = se.gumbel_softmax(x, tau=0.5, seed=1)
    z = (x.astype(np.float64) + gumbel_noise((4,), 6, 1, None)) / 0.5
    assert soft.dtype == dtype and (soft == se.softmax(z).astype(dtype)).all()
    hard = se.gumbel_softmax(x, tau=0.5, seed=1, hard=True)
    assert hard.dtype == dtype and (hard.argmax(-1) == z.argmax(-1)).all() and (hard.sum(-1) == 1).all()
    assert (se.gumbel_softmax(x.T, 0, tau=0.5, seed=1) == soft.T).all()
    x = normal(5, np.float32, 1.0)
    ones = se.gumbel_softmax(np.broadcast_to(x, (20_000, 5)), seed=2, hard=True).sum(0)
    assert chi_square(ones, exact(x)) > 1e-3


# -- faults of other libraries ------------------------------------------------------------------------------------------


def test_pytorch_192812_draws_of_probability_zero():
    """Half precision rounds a cumulative sum so that a class without mass is drawn."""
    x = np.full(4096, -np.inf, np.float16)
    x[1::64] = -9.5
    x[1] = 0
    drawn = se.sample(x, seed=1, num_samples=200_000)
    assert (drawn % 64 == 1).all()


def test_pytorch_43115_cumulative_sums_that_collapse():
    """A float32 cumulative sum of many equal classes stops growing: the last ones would never come."""
    x = np.zeros(1_000_000, np.float32)
    drawn = se.sample(x, seed=1, num_samples=50_000)
    assert stats.kstest(drawn / 1e6, "uniform").pvalue > 1e-3
    assert chi_square(np.bincount(drawn // 10_000, minlength=100), np.full(100, 0.01)) > 1e-3


def test_pytorch_2576_more_than_2_to_the_24_classes():
    n = 2**24 + 10
    x = np.zeros(n, np.float16)
    x[-3:] = 16.0
    drawn = se.sample(x, seed=1, num_samples=1000)
    share = float(3 * np.exp(16.0) / (n - 3 + 3 * np.exp(16.0)))
    assert abs((drawn >= n - 3).mean() - share) < 4 * (share * (1 - share) / 1000) ** 0.5
    assert (drawn < n).all() and drawn.max() == n - 1


@pytest.mark.large
def test_more_than_2_to_the_31_classes():
    """4 GB of bfloat16, of which the pages that nobody writes to take no memory, and 120 MB of states."""
    if os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 8 << 30:
        pytest.skip("needs 8 GB of available memory")
    n = 2**31 + 10
    x = np.zeros(n, np.uint16).view(BF16)
    x[-3:] = 20.0
    drawn = se.sample(x, seed=1, num_samples=2000)
    share = float(3 * np.exp(20.0) / (n - 3 + 3 * np.exp(20.0)))
    assert abs((drawn >= n - 3).mean() - share) < 4 * (share * (1 - share) / 2000) ** 0.5 and drawn.max() == n - 1
    assert stats.kstest(drawn[drawn < n - 3] / n, "uniform").pvalue > 1e-3
    assert se.sample(x, temperature=0) == n - 3


def test_sglang_33423_a_uniform_number_of_one():
    """u = 1 walks past the last class. Here no decision has a probability of 1: the bits of a draw are all looked at."""
    x = np.zeros(3, np.float32)
    x[1:] = -np.inf
    assert (se.sample(np.broadcast_to(x, (100_000, 3)), seed=1) == 0).all()
    x = np.full(2049, -np.inf, np.float32)
    x[[0, 2048]] = [0, -80]
    assert (se.sample(x, seed=1, num_samples=100_000) == 0).all()


def test_vllm_50979_ties_by_batch_size():
    x = np.zeros((64, 5000), np.float32)
    whole = se.sample(x, seed=1, top_k=7, num_samples=5)
    assert (whole < 7).all()
    for rows in (1, 2, 3, 63):
        assert (se.sample(x[:rows], seed=1, top_k=7, num_samples=5) == whole[:rows]).all()
        assert (se.sample(x[:rows], temperature=0) == 0).all()


def test_vllm_51226_a_seed_beside_rows_without_one():
    x = normal((3, 200))
    alone = [se.sample(x[r], seed=5, stream=r, num_samples=20) for r in range(3)]
    for _ in range(2):
        drawn = se.sample(x, seed=[5, None, 5], num_samples=20)
        assert (drawn[0] == alone[0]).all() and (drawn[2] == alone[2]).all()
    again = se.sample(x, seed=[5, None, 5], num_samples=20)
    assert (again[1] != drawn[1]).any()


def test_verl_6240_raw_and_filtered_log_probabilities():
    x = normal((3, 500))
    drawn, info = se.sample(x, seed=1, temperature=0.5, top_k=4, num_samples=6, return_info=True)
    raw = np.take_along_axis(se.log_softmax(x), drawn, -1)
    assert np.allclose(info.log_prob, raw, rtol=1e-6, atol=0)
    top = np.sort(x, -1)[:, -4:]
    kept = np.where(x >= top[:, :1], x, -np.inf)
    filtered = np.take_along_axis(se.log_softmax(kept, temperature=0.5), drawn, -1)
    assert np.allclose(info.filtered_log_prob, filtered, rtol=1e-6, atol=1e-7)
    assert (np.abs(info.log_prob - info.filtered_log_prob) > 0.1).all()


def test_sglang_35697_a_neighbours_filter():
    x = normal((4, 3000))
    plain = se.sample(x, seed=1, num_samples=30)
    mixed = se.sample(x, seed=1, num_samples=30, top_k=[3000, 2, 3000, 3000], top_p=[1, 0.1, 1, 1], temperature=[1, 0.2, 1, 1])
    assert (mixed[[0, 2, 3]] == plain[[0, 2, 3]]).all() and (mixed[1] != plain[1]).any()


def test_scalars_of_any_kind():
    torch = pytest.importorskip("torch")
    x = np.zeros((3, 5))
    expected = se.sample(x, temperature=0.5, top_p=0.5, seed=1)
    for kind in (np.float16, np.float32, ml_dtypes.bfloat16, np.array, torch.tensor, lambda v: torch.tensor(v).bfloat16()):
        assert (se.sample(x, temperature=kind(0.5), top_p=kind(0.5), seed=1) == expected).all()


@pytest.mark.parametrize("rows", [0, 2])
def test_linear_sample_of_no_features(rows):
    options = {"seed": 1, "top_k": 3, "where": np.arange(4) < 3}
    want = se.sample(np.zeros((rows, 4)) + np.arange(4) / 8, **options)
    assert np.array_equal(se.linear_sample(np.ones((rows, 0)), np.ones((4, 0)), bias=np.arange(4) / 8, **options), want)


def test_linear_sample_of_quotients_that_overflow():
    x, w = np.full((1, 1), 1e19, np.float32), np.array([[1e16], [1.01e16], [-1e16]], np.float32)
    options = {"temperature": 1e-4, "seed": 1, "num_samples": 2}
    assert np.array_equal(se.linear_sample(x, w, **options), se.sample(x @ w.T, **options))
