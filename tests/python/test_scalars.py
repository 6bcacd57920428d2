"""Temperatures and weights that are single numbers: any kind of number, in every way to call, without a warning."""

import decimal
import fractions
import warnings

import ml_dtypes
import numpy as np
import pytest

import sumexp as se

X = np.random.default_rng(0).normal(0, 3, (4, 7)).astype(np.float32)
NAMES = ["softmax", "log_softmax", "softmax_vjp", "softmax_jvp", "log_softmax_vjp", "log_softmax_jvp", "softmax_hvp",
         "log_softmax_hvp"]
NUMBERS = {
    "f2": np.float16(0.7), "f4": np.float32(0.7), "f8": np.float64(0.7), "bf16": ml_dtypes.bfloat16(0.7),
    "longdouble": np.longdouble(0.7), "0-d": np.array(0.7), "0-d f4": np.array(0.7, np.float32), "i8": np.int64(2),
    "u1": np.uint8(2), "0-d i4": np.array(2, np.int32), "int": 2, "bool": True, "Fraction": fractions.Fraction(7, 10),
    "Decimal": decimal.Decimal("0.7"),
}  # fmt: skip
REFUSED = {
    "zero": (0, ValueError, "the limit.*argmax"), "f4 zero": (np.float32(0), ValueError, "argmax"),
    "-0.0": (-0.0, ValueError, "argmax"), "negative": (np.float32(-1), ValueError, "> 0"),
    "nan": (np.float32("nan"), ValueError, "> 0"), "large int": (1 << 2000, ValueError, "float64"),
    "-inf": (-np.inf, ValueError, "> 0"), "f4 -inf": (np.float32("-inf"), ValueError, "> 0"),
    "str": ("0.7", TypeError, "number"), "bytes": (b"1", TypeError, "number"), "None": (None, TypeError, "number"),
    "complex": (1 + 0j, TypeError, "number"), "c8": (np.complex64(1), TypeError, "number"),
    "0-d c16": (np.array(1 + 0j), TypeError, "number"), "1-d": (np.array([0.7]), TypeError, "number"),
    "list": ([0.7], TypeError, "number"), "1-d f4": (np.ones(3, np.float32), TypeError, "number"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*torch.jit")  # torch's own, within its transforms
        yield


def arrays_of(name, x):
    return [x] * (3 if "hvp" in name else 2 if "jvp" in name or "vjp" in name else 1)


def ways():
    """(id, function of (name, T)) of every way to pass a temperature."""
    yield "ndarray", lambda name, T: getattr(se, name)(*arrays_of(name, X), temperature=T)
    yield "list", lambda name, T: getattr(se, name)(*arrays_of(name, X.tolist()), temperature=T)
    try:
        import torch

        import sumexp.torch as st
    except ImportError:
        return
    x = torch.from_numpy(X)
    yield "tensor", lambda name, T: getattr(se, name)(*arrays_of(name, x), temperature=T).numpy()
    yield "where", lambda name, T: getattr(se, name)(*arrays_of(name, x), temperature=T, where=x > -9).numpy()
    yield "st", lambda name, T: getattr(st, name)(x, -1, temperature=T).numpy()
    yield "st recorded", lambda name, T: getattr(st, name)(x.clone().requires_grad_(), -1, temperature=T).detach().numpy()


def served(way, name):
    return way in ("ndarray", "list", "tensor") or name in ("softmax", "log_softmax")


CASES = [(f, n, call) for f, call in ways() for n in NAMES if served(f, n)]
each_way = pytest.mark.parametrize("way, name, call", CASES, ids=[f"{f}-{n}" for f, n, _ in CASES])


@each_way
def test_every_kind_of_number(way, name, call):
    for T in NUMBERS.values():
        assert call(name, T).tobytes() == call(name, float(T)).tobytes()


@each_way
def test_refused_numbers(way, name, call):
    for T, error, pattern in REFUSED.values():
        with pytest.raises(error, match=rf"(?s)^{name}: temperature is .*, accepted: .*{pattern}"):
            call(name, T)


@each_way
def test_0_d_tensors(way, name, call):
    torch = pytest.importorskip("torch")
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        T = torch.tensor(0.7, dtype=dtype)
        assert call(name, T).tobytes() == call(name, T.item()).tobytes()
    assert call(name, torch.tensor(2)).tobytes() == call(name, 2.0).tobytes()
    for T in (torch.ones(1), torch.ones(3), torch.tensor(1 + 0j)):
        with pytest.raises(TypeError, match=f"^{name}: temperature is .*, accepted: .*number"):
            call(name, T)
    with pytest.raises(ValueError, match=f"^{name}: temperature is"):
        call(name, torch.tensor(0.0))


def test_a_temperature_to_differentiate_in():
    torch = pytest.importorskip("torch")
    import sumexp.torch as st

    x, T = torch.from_numpy(X), torch.tensor(0.7, requires_grad=True)
    for f in (lambda T: st.softmax(x, -1, temperature=T), lambda T: se.softmax(x, temperature=T),
              lambda T: se.softmax_vjp(x, x, temperature=T)):
        with pytest.raises(TypeError, match="temperature is a tensor .*accepted: a number; divide"):
            f(T)
        with torch.no_grad():
            assert torch.equal(f(T), f(T.item()))
        assert torch.equal(f(T.detach()), f(T.item()))
    plain = T.detach()
    for transform in (torch.func.grad(lambda T: st.softmax(x, -1, temperature=T).sum()),
                      lambda T: torch.func.jvp(lambda T: st.softmax(x, -1, temperature=T), (T,), (T,)),
                      lambda T: torch.vmap(lambda T: st.softmax(x, -1, temperature=T))(T.expand(2))):
        with pytest.raises(TypeError, match="temperature is a tensor .*accepted: a number; divide"):
            transform(plain)
    assert torch.func.grad(lambda x: st.softmax(x, -1, temperature=plain)[0, 0])(x).shape == x.shape


# -- other numbers -----------------------------------------------------------------------------------------------

TARGET = np.array([0, 1, 2, 3])
INF, NAN = float("inf"), float("nan")
NO_NUMBERS = [True, False, np.True_, np.array(True), "1.0", b"1", None, [1.0], np.ones(1), 1j]
REAL = {  # good ones, and bad ones of the right type
    "z_loss": ([0, 1, 0.5, np.float32(0.5), np.array(0.5), decimal.Decimal("0.5")], [-1, NAN, INF, 1 << 2000]),
    "label_smoothing": ([0, 1, np.float32(0.5), fractions.Fraction(1, 2)], [-0.1, 1.5, NAN]),
    "denominator": ([0, 2, np.float64(2), np.array(2.0), np.int8(3)], [-2, NAN, INF]),
    "softcap": ([2, 2.0, np.float16(2), np.array(2)], [0, -1.0, NAN, INF]),
}
NONE = ("denominator", "softcap")  # may be None
NO_INTS = [True, False, np.True_, np.array(True), "1", 1.0, np.float32(1), [1], 1j]
INTEGERS = {
    "ignore_index": ([-100, 1, np.int32(1), np.array(1), np.uint8(1)], [2**63, -(2**70)]),
    "axis": ([1, -1, np.int64(1), np.array(1)], []),
    "chunk_size": ([1, np.int32(3)], [0, -1]),
    "num_segments": ([4, np.int32(4), np.array(4)], [-1]),
    "num_samples": ([1, np.uint8(1)], [-1, 2**63]),
    "seed": ([1, np.uint64(2**63)], [-1, 2**64]),
    "start": ([0, np.int64(2048)], [-1, 2**62]),
}


def faces():
    """(id, array of what the face takes) of NumPy, tensors, and tensors that torch.vmap maps over."""
    yield "ndarray", lambda a: a
    try:
        import torch
    except ImportError:
        return
    yield "tensor", lambda a: torch.from_numpy(np.ascontiguousarray(a))


FACES = dict(faces())


def option_calls(option, face):
    """(id, function of the option's value) of each function that has it."""
    a = FACES[face]
    x, t = a(X), a(TARGET)
    w = a(np.ones((7, 7), np.float32))
    calls = {
        "cross_entropy": lambda **o: se.cross_entropy(x, t, **o),
        "cross_entropy_with_grad": lambda **o: se.cross_entropy_with_grad(x, t, **o),
        "linear_cross_entropy": lambda **o: se.linear_cross_entropy(x, w, t, **o),
    }
    if face == "tensor":
        import torch

        import sumexp.torch as st

        calls["st.cross_entropy"] = lambda **o: st.cross_entropy(x, t, **o)
        calls["vmap of cross_entropy"] = lambda **o: torch.vmap(lambda x: st.cross_entropy(x, t, **o))(x[None])
    if option == "softcap":
        calls["masked_softmax"] = lambda **o: se.masked_softmax(x, **o)
    if option == "axis":
        names = ("entropy", "log_prob", "logcumsumexp", "logmeanexp", "masked_softmax", "sample", "gumbel_softmax", "kl_div")
        others = {"log_prob": [t], "kl_div": [x]}
        calls = {n: lambda n=n, **o: getattr(se, n)(x, *others.get(n, []), **o) for n in names}
        calls["cross_entropy"] = lambda **o: se.cross_entropy(x, t, **o)
    if option == "chunk_size":
        calls = {n: calls[n] for n in ("linear_cross_entropy",)}
    if option == "num_segments":
        calls = {"segment_softmax": lambda **o: se.segment_softmax(x, ids=TARGET, **o)}
    if option == "num_samples":
        calls = {"sample": lambda **o: se.sample(x, **o), "sample_counts": lambda **o: se.sample_counts(x, **o)}
    if option == "seed":
        calls = {"sample": lambda **o: se.sample(x, **o), "seeds": lambda seed: se.sample(x, seed=[seed, 1, 2, 3])}
    if option == "start":
        summed = se.LogSumExp().update(X)
        calls = {"LogSumExp": se.LogSumExp, "LogSumExp.softmax": lambda **o: summed.softmax(X, **o)}
    return calls


OPTIONS = [(o, f) for o in (*REAL, *INTEGERS) for f in FACES if o != "start" or f == "ndarray"]
OPTION_CASES = [(o, f, n) for o, f in OPTIONS for n in option_calls(o, f)]


@pytest.mark.parametrize("option, face, name", OPTION_CASES)
def test_an_option_is_valid_or_not_in_every_function_alike(option, face, name):
    """Numbers of any library pass; a bool is none, nor is a string; the error says what is accepted."""
    call = option_calls(option, face)[name]
    good, bad = {**REAL, **INTEGERS}[option]
    for value in good:
        call(**{option: value})
    for value in NO_NUMBERS if option in REAL else NO_INTS:
        if (value is None and option in NONE) or (isinstance(value, list) and option in ("axis", "seed")):
            continue
        with pytest.raises(TypeError, match=rf"(?s)^\w+(\.softmax)?: {option} is .*, accepted: ."):
            call(**{option: value})
    for value in bad:
        with pytest.raises(ValueError, match=rf"^\w+(\.softmax)?: {option} is .*, accepted: ."):
            call(**{option: value})


def test_denominators_that_are_tensors():
    torch, st = pytest.importorskip("torch"), pytest.importorskip("sumexp.torch")
    x, t = torch.from_numpy(X), torch.from_numpy(TARGET)
    for call in (se.cross_entropy, st.cross_entropy):
        want = call(x, t, denominator=2.0)
        assert all(torch.equal(call(x, t, denominator=torch.tensor(2, dtype=d)), want) for d in (torch.int8, torch.bfloat16))
        for value in (-2.0, NAN, INF):
            with pytest.raises(ValueError, match="^cross_entropy: denominator is .*, accepted: a finite number >= 0$"):
                call(x, t, denominator=torch.tensor(value))
        for value in (torch.tensor(True), torch.tensor(1j)):
            with pytest.raises(TypeError, match="^cross_entropy: denominator has dtype .*, accepted: "):
                call(x, t, denominator=value)


@pytest.mark.parametrize("number", [True, "2", 1j])
def test_softplus_beta(number):
    torch, st = pytest.importorskip("torch"), pytest.importorskip("sumexp.torch")
    with pytest.raises(TypeError, match="^softplus: beta is .*, accepted: a number$"):
        st.softplus(torch.ones(2), number)


def test_threads_are_no_bool():
    with pytest.raises(TypeError, match=r"^set_num_threads: n is True, accepted: an int from 1 below 2\*\*31$"):
        se.set_num_threads(True)


# -- weights ---------------------------------------------------------------------------------------------------


def exact(x, b):
    return np.log(np.sum(np.float64(b) * np.exp(np.float64(x))))


DTYPES = [np.float16, np.float32, np.float64]


@pytest.mark.parametrize("dtype", [*DTYPES, ml_dtypes.bfloat16])
@pytest.mark.parametrize("b", [1e5, 100_000, 10**30, 1e-9, 1e30, 1e39, 1e-42, 1e190, 0.3, np.float16(0.3)])
def test_a_number_as_weight_of_any_size(dtype, b):
    """Of a Python number only the value counts: the result has x's dtype, whatever the number."""
    x = X.astype(dtype)
    got, sign = se.logsumexp(x, b=b, return_sign=True)
    if not isinstance(b, np.generic):
        assert got.dtype == dtype and sign.dtype == dtype
    assert sign == 1 and float(got) == pytest.approx(exact(x, b), rel=2 * float(ml_dtypes.finfo(dtype).eps))
    assert float(se.logsumexp(x, b=b)) == float(got)
    minus, sign = se.logsumexp(x, b=-b, return_sign=True)
    assert float(minus) == float(got) and sign == -1 and np.isnan(float(se.logsumexp(x, b=-b)))
    if not isinstance(b, np.generic):
        out = np.empty((), dtype)
        assert se.logsumexp(x, b=b, out=out) is out and out == got
        with pytest.raises(TypeError, match="out has dtype"):
            se.logsumexp(x, b=b, out=np.empty((), np.int32))


def test_numbers_that_need_room_with_out():
    x, out, b = np.float32(1), np.zeros((), np.float32), 1e300
    for call in (lambda **o: se.logmeanexp(x, b=b, **o), lambda **o: se.logsumexp_jvp(x, x, b=b, **o),
                 lambda **o: se.logsumexp(x, b=b, **o)):
        expected = call()
        assert call(out=out) is out and out == expected and type(expected) is np.float32


@pytest.mark.parametrize("b", [np.inf, -np.inf, np.nan, 0, 0.0])
def test_numbers_that_need_no_room(b):
    for dtype in DTYPES:
        with np.errstate(all="ignore"):
            assert se.logsumexp(X.astype(dtype), b=b).dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("b", [1e5, 100_000, 10**30, 1e-9, 1e30, 1e39, 1e190, 0.3])
def test_a_number_as_weight_of_tensors(dtype, b):
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(X.astype(dtype))
    want, sign = se.logsumexp(x.numpy(), -1, b=b, return_sign=True)
    for weight in (b, torch.tensor(float(b), dtype=torch.float64)):
        got, signs = se.logsumexp(x, -1, b=weight, return_sign=True)
        assert got.dtype == signs.dtype == x.dtype
        tolerance = 0 if isinstance(weight, float) else float(np.finfo(dtype).eps)
        np.testing.assert_allclose(got.numpy(), want, rtol=tolerance)
        assert torch.equal(se.logsumexp(x, -1, b=weight), got) and (signs == 1).all()
        out = torch.empty_like(got)
        assert se.logsumexp(x, -1, b=weight, out=out) is out and torch.equal(out, got)


def test_the_common_dtype_of_tensors():
    torch = pytest.importorskip("torch")
    half, row = torch.tensor([1.0, 2.0]).half(), [1e5, 0.2]
    want = exact([1, 2], row)
    got = se.logsumexp(half, axis=0, b=torch.tensor(row))
    assert got.dtype == torch.float32 and float(got) == pytest.approx(want, rel=1e-6)
    floats = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
    weights = [*floats, torch.int32, torch.int64, torch.uint8, torch.bool]
    for a in (*floats, torch.int64, torch.bool):
        for b in weights:
            x, w = torch.tensor([1, 0]).to(a), torch.tensor([1, 1]).to(b)
            lse, sign = se.logsumexp(x, axis=0, b=w, return_sign=True)
            common = torch.promote_types(a, b)
            common = common if common.is_floating_point else torch.get_default_dtype()
            assert lse.dtype == sign.dtype == common == se.logsumexp(x, axis=0, b=w).dtype
            eps = torch.finfo(common).eps
            assert float(lse) == pytest.approx(np.log(np.e + 1), rel=2 * eps)
            out = torch.empty((), dtype=common)
            assert se.logsumexp(x, axis=0, b=w, out=out) is out and torch.equal(out, lse)
            other = torch.empty((), dtype=torch.float32 if common != torch.float32 else torch.float64)
            with pytest.raises(TypeError, match="logsumexp: out has dtype .*, accepted"):
                se.logsumexp(x, axis=0, b=w, out=other)
    big = torch.tensor([70_000, 1])
    assert float(se.logsumexp(half, axis=0, b=big)) == pytest.approx(exact([1, 2], big.numpy()), rel=1e-3)
    assert se.logsumexp(half, axis=0, b=big).dtype == torch.float16
    for b in (row, np.array(row), np.float32(row)):  # others are taken as torch.as_tensor takes them
        got = se.logsumexp(half, axis=0, b=b)
        assert got.dtype == torch.promote_types(torch.float16, torch.as_tensor(b).dtype)
        assert float(got) == pytest.approx(want, rel=1e-6)
    assert float(se.logsumexp(half.double(), axis=0, b=[0.1, 0.2])) == pytest.approx(exact([1, 2], [0.1, 0.2]), rel=1e-15)


def test_the_common_dtype_of_arrays():
    for a in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.int64):
        for b in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.int8, np.bool_):
            lse = se.logsumexp(np.array([1, 0], a), b=np.array([1, 1], b))
            common = se.softmax(np.array([1, 0], a)).dtype if b in (np.int8, np.bool_) else None
            assert common is None or lse.dtype == common or a == ml_dtypes.bfloat16
            assert float(lse) == pytest.approx(np.log(np.e + 1), rel=2 * float(ml_dtypes.finfo(lse.dtype).eps))


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_an_int_that_no_dtype_has_room_for(library):
    xp = pytest.importorskip(library)
    with pytest.raises(ValueError, match="logsumexp: b is an int of 2001 bits, accepted: a number"):
        se.logsumexp(xp.ones(3), b=1 << 2000)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_complex_weights_say_where_they_are_served(library):
    xp = pytest.importorskip(library)
    real, z = xp.ones(3), xp.ones(3) + 1j * xp.ones(3)
    for x, b, which in ((real, z, "b"), (z, real, "x"), (real, 2j, "b"), (z, 2.0, "x")):
        with pytest.raises(TypeError, match=rf"logsumexp: {which} has dtype .*complex.*accepted: float16, .*; "
                                            r"sumexp\.special\.logsumexp takes complex numbers"):
            se.logsumexp(x, axis=0, b=b)
        got = se.special.logsumexp(x, b=b)
        np.testing.assert_allclose(np.asarray(got), np.log(np.sum(np.asarray(b) * np.exp(np.asarray(x)))), rtol=1e-6)


def test_weights_under_a_default_device():
    torch = pytest.importorskip("torch")
    x, b = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 0.5])
    want = se.logsumexp(x, b=b)
    with torch.device("cpu"):  # a mode that watches torch's functions
        assert torch.equal(se.logsumexp(x, b=b), want)
