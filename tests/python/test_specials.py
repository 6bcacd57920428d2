"""Infinities, NaNs, empty rows and masks, in every format; and wrong arguments, which must leave `out` alone."""

import platform
import subprocess
import sys

import numpy as np
import pytest

import sumexp as se
from oracle.formats import F32, F64, FORMATS
from oracle.ops import OPS
from oracle.rows import cast

FORMAT = pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
INF, NAN = np.inf, np.nan

# Alone (row driver) and in company (rows transposed a vector at a time), within a chunk and across several.
SIZES = [(1, 1), (1, 2), (40, 3), (40, 17), (1, 40), (35, 64), (3, 65), (2, 700), (3, 2500), (1, 5000)]


def logits(fmt, rows, n):
    rng = np.random.default_rng(rows * 10_000 + n)
    return cast(rng.standard_normal((rows, n)) * 3, fmt)


def is_nan(a):
    return np.isnan(np.asarray(a, np.float64))


def check_neighbours(special, plain, f):
    """Every row but the special one has the bytes it has without it."""
    with_it, without = f(special), f(plain)
    r = len(special) // 2
    for k in range(len(special)):
        assert k == r or with_it[k].tobytes() == without[k].tobytes()
    return with_it[r]


def rowwise_lse(x):
    return se.logsumexp(x, axis=-1)


@FORMAT
@pytest.mark.parametrize("rows, n", SIZES)
def test_plus_infinity(fmt, rows, n):
    """+inf in a row: softmax and log_softmax NaN for the row, logsumexp +inf."""
    for place in {0, n // 2, n - 1}:
        x = logits(fmt, rows, n)
        bad = x.copy()
        bad[rows // 2, place] = INF
        assert is_nan(check_neighbours(bad, x, se.softmax)).all()
        assert is_nan(check_neighbours(bad, x, se.log_softmax)).all()
        assert check_neighbours(bad, x, rowwise_lse) == INF
        bad[rows // 2, :] = INF
        assert check_neighbours(bad, x, rowwise_lse) == INF
        bad[rows // 2, :] = -INF
        bad[rows // 2, place] = INF
        assert is_nan(check_neighbours(bad, x, se.softmax)).all()
        assert check_neighbours(bad, x, rowwise_lse) == INF


@FORMAT
@pytest.mark.parametrize("rows, n", SIZES)
def test_all_minus_infinity(fmt, rows, n):
    """Nothing above -inf: softmax and log_softmax NaN, logsumexp -inf; masked or not."""
    x = logits(fmt, rows, n)
    bad = x.copy()
    bad[rows // 2] = -INF
    mask = np.ones((rows, n), bool)
    mask[rows // 2] = False
    for f, ok in ((se.softmax, is_nan), (se.log_softmax, is_nan), (rowwise_lse, np.isneginf)):
        assert np.all(ok(check_neighbours(bad, x, f).astype(np.float64)))
    assert is_nan(se.softmax(x, where=mask)[rows // 2]).all()
    assert is_nan(se.log_softmax(x, where=mask)[rows // 2]).all()
    assert se.logsumexp(x, -1, where=mask)[rows // 2] == -INF


@FORMAT
@pytest.mark.parametrize("rows, n", SIZES)
def test_nan(fmt, rows, n):
    """NaN anywhere: the whole row, whatever else is in it, and whatever the NaN's sign."""
    x = logits(fmt, rows, n)
    negative = np.array(NAN, fmt.dtype).view(fmt.bits) | fmt.bits.type(1 << (8 * fmt.itemsize - 1))
    for place in {0, n // 3, n - 1}:
        for company in (None, INF, -INF):
            for nan in (np.array(NAN, fmt.dtype), negative.view(fmt.dtype)):
                bad = x.copy()
                if company is not None:
                    bad[rows // 2] = company
                bad[rows // 2, place] = nan
                for f in (se.softmax, se.log_softmax, rowwise_lse):
                    assert is_nan(check_neighbours(bad, x, f)).all(), (place, company)


@FORMAT
@pytest.mark.parametrize("rows, n", [s for s in SIZES if s[1] > 1])
def test_some_minus_infinity(fmt, rows, n):
    """-inf beside finite values: exactly 0, and -inf; a first or a last chunk that is all -inf poisons nothing."""
    for cut in (slice(0, n // 2), slice(n // 2, n), slice(0, n - 1), slice(1, n)):
        x = logits(fmt, rows, n)
        x[:, cut] = -INF
        y, l, s = se.softmax(x), se.log_softmax(x), se.logsumexp(x, -1)
        assert np.all(y[:, cut] == 0) and np.all(np.isneginf(l[:, cut].astype(np.float64)))
        assert np.isfinite(s.astype(np.float64)).all() and not is_nan(y).any()
        rest = np.ones(n, bool)
        rest[cut] = False
        if n <= 64:  # one chunk: the same sums
            np.testing.assert_array_equal(s, se.logsumexp(x[:, rest], -1))
        assert np.allclose(y.astype(np.float64).sum(-1), 1, rtol=0.03, atol=0)


@FORMAT
def test_special_values_do_not_pass_a_mask(fmt):
    for n in (3, 40, 700):
        x = logits(fmt, 5, n)
        mask = np.ones((5, n), bool)
        mask[:, 1] = False
        expected = [f(x, where=mask).tobytes() for f in (se.softmax, se.log_softmax)]
        expected.append(se.logsumexp(x, -1, where=mask).tobytes())
        b = mask.astype(fmt.dtype)  # a weight of 0 likewise
        expected.append(se.logsumexp(x, -1, b=b).tobytes())
        weights = logits(fmt, 5, n)  # those of masked elements may be anything
        expected.append(se.logsumexp(x, -1, b=weights, where=mask).tobytes())
        for value in (NAN, INF, -INF):
            x[:, 1] = weights[:, 1] = value
            got = [f(x, where=mask).tobytes() for f in (se.softmax, se.log_softmax)]
            got.append(se.logsumexp(x, -1, where=mask).tobytes())
            got.append(se.logsumexp(x, -1, b=b).tobytes())
            got.append(se.logsumexp(x, -1, b=weights, where=mask).tobytes())
            assert got == expected


@FORMAT
def test_empty(fmt):
    """An empty axis: logsumexp -inf; softmax of an empty array is empty. So with no rows."""
    x = np.empty((3, 0), fmt.dtype)
    assert np.array_equal(se.logsumexp(x, -1), np.full(3, -INF, fmt.dtype))
    assert se.logsumexp(x) == -INF and se.logsumexp(x, keepdims=True).shape == (1, 1)
    assert se.logsumexp(x, 0).shape == (0,)
    for f in (se.softmax, se.log_softmax):
        for axis in (-1, 0, None, (0, 1)):
            y = f(x, axis=axis)
            assert y.shape == (3, 0) and y.dtype == fmt.dtype
    for op in OPS.values():
        for rows, n in ((0, 5), (4, 0), (0, 0)):
            inputs = op.make(np.random.default_rng(0), fmt, rows, n)
            assert op.run(se, inputs).shape == op.result_shape((rows, n))
    assert np.all(se.logsumexp_jvp(x, x, -1).astype(np.float64) == 0) or is_nan(se.logsumexp_jvp(x, x, -1)).all()


@FORMAT
def test_one_element(fmt):
    """softmax 1, log_softmax 0, logsumexp itself; 0-d gives scalars."""
    for value in (0.0, -3.5, fmt.largest, -fmt.largest, 2.0**fmt.tiny):
        x = np.array(value, fmt.dtype)
        for shape in ((), (1,), (9, 1)):
            y = x if shape == () else np.full(shape, x)
            assert np.all(se.softmax(y) == 1) and np.all(se.log_softmax(y) == 0)
            assert np.all(se.logsumexp(y, axis=None if shape == () else -1) == x)
    assert np.ndim(se.softmax(fmt.dtype.type(2))) == 0


@FORMAT
def test_overflowing_differences(fmt):
    """The range of x is wider than that of x - y: results at the ends of it are still right."""
    x = np.array([fmt.largest, -fmt.largest, 0.0], fmt.dtype)
    assert np.array_equal(se.softmax(x), np.array([1, 0, 0], fmt.dtype))
    assert se.logsumexp(x) == fmt.dtype.type(fmt.largest)
    l = se.log_softmax(x).astype(np.float64)
    assert l[0] == 0 and l[1] == -INF and l[2] == -fmt.largest


@FORMAT
@pytest.mark.parametrize("name", [n for n, op in OPS.items() if op.reference])
def test_nan_in_derivatives(fmt, name):
    """A NaN in any input makes its row NaN where the formula has it, and no other row."""
    op = OPS[name]
    for rows, n in ((37, 5), (37, 40), (3, 700)):
        inputs = op.make(np.random.default_rng(1), fmt, rows, n)
        expected = op.run(se, inputs)
        for k in range(len(inputs)):
            bad = [i.copy() for i in inputs]
            bad[k][rows // 2, 0] = NAN
            got = op.run(se, bad)
            assert is_nan(got[rows // 2]).any(), (k, n)
            others = np.arange(rows) != rows // 2
            assert got[others].tobytes() == expected[others].tobytes()


def test_floating_point_state_is_left_alone():
    """No warning, no flag: not with NaN, infinities, overflow or underflow."""
    with np.errstate(all="raise"):
        for x in ([1.0, INF], [NAN, 1.0], [-INF, -INF], [1e300, -1e300], [0.0, -744.0]):
            se.softmax(x), se.log_softmax(x), se.logsumexp(x)
        np.float64(1.0) + np.float64(1.0)
    tiny = np.float32(1e-45)
    se.softmax(np.zeros((1000, 1000), np.float32))
    assert tiny * np.float32(1) == tiny  # subnormals are still subnormals


# What a caller may have done to its thread's floating-point unit, as a library built with -ffast-math does: MXCSR flushes
# subnormals, or rounds down.
FLOATING_POINT = """
import ctypes, platform, sys
import numpy as np
import sumexp as se
se.set_num_threads(3)
rows = np.tile(np.float32([0, -95, -100, -3]), (50_000, 1))
columns, long = np.asfortranarray(rows), np.resize(rows, 600_001)
calls = [lambda: se.softmax(rows), lambda: se.log_softmax(columns), lambda: se.softmax(long), lambda: se.softmax(rows[:2]),
         lambda: se.log_softmax([1.0, 2.0, 3.0]), lambda: se.softmax_jacobian(rows[0])]
late = sys.argv[1] == "late"
expected = [f().tobytes() for f in calls] if late else None  # the threads begin here, or with the caller's mode
libm = ctypes.CDLL("libm.so.6")
down = {"x86_64": 0x400, "aarch64": 0x800000}[platform.machine()]
before = libm.fegetround()
assert libm.fesetround(down) == 0
got = [f().tobytes() for f in calls]
assert libm.fegetround() == down, "the caller's mode is gone"
libm.fesetround(before)
assert got == (expected or [f().tobytes() for f in calls])
"""


@pytest.mark.parametrize("threads_begin", ["late", "early"])
def test_the_callers_rounding_mode(threads_begin):
    if not sys.platform.startswith("linux") or platform.machine() not in ("x86_64", "aarch64"):
        pytest.skip("sets the rounding mode by glibc's numbers for x86-64 and AArch64")
    subprocess.run([sys.executable, "-c", FLOATING_POINT, threads_begin], check=True)


def test_flushed_subnormals():
    torch = pytest.importorskip("torch")
    x = np.tile(np.float32([0, -95, -100, -3]), (50_000, 1))
    expected = se.softmax(x)
    if not torch.set_flush_denormal(True):
        pytest.skip("torch cannot flush subnormals on this CPU")
    try:
        got = se.softmax(x)
        assert np.float32(1e-45) * np.float32(1) == 0, "still the caller's mode"
    finally:
        torch.set_flush_denormal(False)
    assert got.tobytes() == expected.tobytes()


# -- wrong arguments ---------------------------------------------------------------------------------------


X = np.linspace(0, 1, 12).reshape(3, 4)
FROZEN = np.zeros((3, 4))
FROZEN.flags.writeable = False

# (function, arguments, keyword arguments, error, what the message says)
WRONG = [
    ("softmax", (X,), {"axis": 2}, ValueError, "axis 2 is out of bounds"),
    ("softmax", (X,), {"axis": (0, 0)}, ValueError, "duplicate value in axis"),
    ("softmax", (X,), {"axis": 0.5}, TypeError, "axis is 0.5, accepted"),
    ("softmax", (X,), {"temperature": 0.0}, ValueError, "temperature is 0.0, accepted"),
    ("softmax", (X,), {"temperature": NAN}, ValueError, "temperature is nan, accepted"),
    ("softmax", (X,), {"temperature": 10**400}, ValueError, "temperature is 1000*, accepted"),
    ("softmax", (X,), {"temperature": "hot"}, TypeError, "temperature is 'hot', accepted"),
    ("log_softmax", (X,), {"where": np.ones((3, 5), bool)}, ValueError, r"where has shape \(3, 5\), accepted"),
    ("log_softmax", (X,), {"where": np.ones((3, 4), int)}, TypeError, "where has dtype int64, accepted: bool"),
    ("softmax", (X.astype(complex),), {}, TypeError, "x has dtype complex128, accepted"),
    ("softmax", (np.array(["a"] * 12).reshape(3, 4),), {}, TypeError, "x has dtype <U1, accepted"),
    ("softmax", (X[:2],), {}, ValueError, r"out has shape \(3, 4\), accepted: \(2, 4\)"),
    ("softmax", (X.astype(np.float32),), {}, TypeError, "out has dtype float64, accepted: float32"),
    ("softmax_vjp", (X[0], X), {}, ValueError, r"g has shape \(4,\), accepted: \(3, 4\)"),
    ("softmax_hvp", (X, X[:, :1], X), {}, ValueError, r"v has shape \(3, 1\), accepted: \(3, 4\)"),
    ("log_softmax_jvp", (X.astype(object), X), {}, TypeError, "t has dtype object, accepted"),
    ("logsumexp_vjp", (np.ones(4), X), {"axis": 1}, ValueError, r"g has shape \(4,\), accepted: \(3,\)"),
    ("softmax", (X,), {"dim": 1}, TypeError, "unexpected keyword argument 'dim'"),
]


@pytest.mark.parametrize("function, arguments, keywords, error, message", WRONG)
def test_out_is_untouched(function, arguments, keywords, error, message):
    """The first bad thing found is named, and nothing has been written by then."""
    out = np.full((3, 4), 1234.5)
    with pytest.raises(error, match=message) as caught:
        getattr(se, function)(*arguments, **keywords, out=out)
    assert function in str(caught.value) and np.all(out == 1234.5)


def test_inputs_are_untouched_by_overlap():
    """out may be an input or disjoint memory; halfway is refused, before anything is written."""
    for fmt in (F32, F64):
        memory = cast(np.linspace(0, 1, 40), fmt)
        before = memory.copy()
        for shift in (1, 5, 19):
            with pytest.raises(ValueError, match="softmax: out overlaps x, accepted"):
                se.softmax(memory[:20], out=memory[shift:shift + 20])
        with pytest.raises(ValueError, match="softmax_hvp: out overlaps v, accepted"):
            se.softmax_hvp(before[:20], memory[:20], before[20:], out=memory[10:30])
        assert memory.tobytes() == before.tobytes()
        se.softmax(memory[:20], out=memory[20:])
        assert memory[:20].tobytes() == before[:20].tobytes()


def test_read_only_inputs_are_fine_and_read_only_out_is_not():
    assert se.softmax(FROZEN).sum() == 3
    with pytest.raises(ValueError, match="softmax: out is read-only, accepted"):
        se.softmax(X, out=FROZEN)
    assert not FROZEN.any()


def test_integers_and_bools_promote_to_float64():
    for dtype in (bool, np.int8, np.uint16, np.int64):
        x = np.array([0, 1, 1], dtype)
        for f in (se.softmax, se.log_softmax, se.logsumexp):
            assert f(x).dtype == np.float64
            np.testing.assert_array_equal(f(x), f(x.astype(np.float64)))


# -- weights ------------------------------------------------------------------------------------------------

INF, NAN = np.inf, np.nan


@pytest.mark.parametrize("x, b, value, sign", [
    ([0, 1], [INF, 1], INF, 1),
    ([0, 1], [1, INF], INF, 1),
    ([0, 1], [-INF, 1], INF, -1),
    ([0, 1], [INF, INF], INF, 1),
    ([0, 1], [INF, -INF], NAN, NAN),
    ([0, 1], [NAN, 1], NAN, NAN),
    ([0, 1], [NAN, INF], NAN, NAN),
    ([0, 1], [0, 0], -INF, 0),
    ([NAN, 1], [0, 1], 1, 1),
    ([INF, 1], [0, 1], 1, 1),
    ([-INF, 1], [0, 1], 1, 1),
    ([INF, 1], [1, 1], INF, 1),
    ([INF, 1], [-2, 1], INF, -1),
    ([INF, INF], [1, -1], NAN, NAN),
    ([INF, 1], [-1, INF], NAN, NAN),  # inf - inf
    ([INF, 1], [1, INF], INF, 1),
    ([INF, 1], [INF, 1], INF, 1),
    ([-INF, 1], [INF, 1], NAN, NAN),  # 0 * inf
    ([NAN, 1], [INF, 1], NAN, NAN),
    ([-INF, -INF], [NAN, 1], NAN, NAN),
    ([-INF, -INF], [1, 1], -INF, 0),
])
@pytest.mark.parametrize("n", [2, 40, 5000])
@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_weights_follow_ieee(fmt, n, x, b, value, sign):
    """Infinite and NaN weights as IEEE has it, but a weight of 0 leaves its element out, whatever it is."""
    row, weights = np.full(n, -INF), np.ones(n)  # what is beside the two adds nothing
    row[[0, n // 2]], weights[[0, n // 2]] = x, b
    got, got_sign = se.logsumexp(row.astype(fmt.dtype), b=weights.astype(fmt.dtype), return_sign=True)
    np.testing.assert_array_equal(np.float64(got), value)
    np.testing.assert_array_equal(np.float64(got_sign), sign)
    plain = se.logsumexp(row.astype(fmt.dtype), b=weights.astype(fmt.dtype))
    np.testing.assert_array_equal(np.float64(plain), NAN if sign == -1 else value)


@pytest.mark.parametrize("shape, axis", [((2, 0), 1), ((0,), None), ((0, 3), 0), ((3, 0, 2), (0, 1))])
def test_empty_sums_with_weights(shape, axis):
    """No element, and no memory either: still a sum, of nothing."""
    for library in ("numpy", "torch"):
        xp = pytest.importorskip(library)
        x, b = xp.zeros(shape), xp.ones(shape)
        got, sign = se.logsumexp(x, axis=axis, b=b, return_sign=True)
        want = np.zeros(shape).sum(axis=axis) - INF
        np.testing.assert_array_equal(np.asarray(got), want)
        np.testing.assert_array_equal(np.asarray(sign), np.zeros_like(want))
        np.testing.assert_array_equal(np.asarray(se.logsumexp(x, axis=axis, b=b)), want)
