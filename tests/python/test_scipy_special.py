"""sumexp.special against scipy.special itself: values, dtypes, shapes, kinds of result, errors."""

import inspect
import warnings

import numpy as np
import pytest
import scipy
from scipy import special as scipy_special

import plain_reference as reference
from sumexp import special

INF, NAN = np.inf, np.nan
newer_scipy = pytest.mark.skipif(
    tuple(map(int, scipy.__version__.split(".")[:2])) < (1, 16),
    reason="SciPy 1.15, the last for Python 3.10, has other values or dtypes than later ones for complex numbers, infinite "
    "weights, and float32 with a number as b",
)
RNG = np.random.default_rng(0)


def both(name, *args, **kwargs):
    """(ours, SciPy's), each a result or the type of the exception."""
    answers = []
    for module in (special, scipy_special):
        with warnings.catch_warnings():
            warnings.simplefilter("error" if module is special else "ignore")
            try:
                answers.append(getattr(module, name)(*args, **kwargs))
            except Exception as error:
                if isinstance(error, Warning):
                    raise
                answers.append(type(error))
    return answers


def assert_same(ours, theirs, rtol=None):
    if isinstance(theirs, type):
        assert isinstance(ours, type) and issubclass(ours, (ValueError, TypeError)), (ours, theirs)
        return
    if isinstance(theirs, tuple):
        assert isinstance(ours, tuple) and len(ours) == len(theirs)
        for a, b in zip(ours, theirs):
            assert_same(a, b, rtol)
        return
    assert type(ours) is type(theirs) and ours.dtype == theirs.dtype and ours.shape == theirs.shape
    if rtol is None:
        rtol = 300 * np.finfo(theirs.dtype).eps  # SciPy's own error, on logits of these sizes
    np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_signature(name):
    assert inspect.signature(getattr(special, name)) == inspect.signature(getattr(scipy_special, name))


ARRAYS = {
    "f64": RNG.normal(0, 3, (3, 4, 5)),
    "f32": RNG.normal(0, 3, (3, 4, 5)).astype(np.float32),
    "f16": RNG.normal(0, 3, (3, 4, 5)).astype(np.float16),
    "longdouble": RNG.normal(0, 3, (3, 4, 5)).astype(np.longdouble),
    "complex128": RNG.normal(0, 3, (3, 4, 5)) + 1j * RNG.normal(0, 3, (3, 4, 5)),
    "complex64": (RNG.normal(0, 3, (3, 4, 5)) + 1j * RNG.normal(0, 3, (3, 4, 5))).astype(np.complex64),
    "i1": RNG.integers(-9, 9, (3, 4, 5), dtype=np.int8),
    "i2": RNG.integers(-9, 9, (3, 4, 5), dtype=np.int16),
    "i4": RNG.integers(-9, 9, (3, 4, 5), dtype=np.int32),
    "i8": RNG.integers(-9, 9, (3, 4, 5)),
    ">f4": RNG.normal(0, 3, (3, 4, 5)).astype(">f4"),
    "strided": RNG.normal(0, 3, (3, 8, 10))[:, ::-2, ::2],
    "transposed": RNG.normal(0, 3, (5, 4, 3)).T,
}


@pytest.mark.parametrize("axis", [None, 0, -1, (0, 1), (2, 0), (), 3, (0, 0), 1.0, [0]])
@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_axes_and_dtypes(name, kind, axis):
    x = ARRAYS[kind]
    ours, theirs = both(name, x, axis)
    if kind == ">f4" and not isinstance(theirs, type):
        theirs = theirs.astype(theirs.dtype.newbyteorder("="))[()]
    assert_same(ours, theirs)


@newer_scipy
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("return_sign", [False, True])
@pytest.mark.parametrize("b", [None, 2, -1.5, "full", "row", "up", "int", "complex"])
@pytest.mark.parametrize("kind", ["f64", "f32", "i8", "complex128", "longdouble"])
def test_logsumexp_arguments(kind, b, return_sign, keepdims):
    a = ARRAYS[kind]
    b = {"full": RNG.normal(size=(3, 4, 5)), "row": RNG.normal(size=5), "up": RNG.normal(size=(2, 1, 1, 5)),
         "int": RNG.integers(-2, 3, (4, 1)), "complex": RNG.normal(size=5) + 1j}.get(b, b)
    for axis in (None, -1, (0, 1)):
        ours, theirs = both("logsumexp", a, axis, b, keepdims, return_sign)
        # Sums of mixed signs cancel, and then neither library's relative error means much.
        assert_same(ours, theirs, rtol=2e-4 if kind in ("f32",) else 1e-8)


SPECIAL_ROWS = [
    [0.0], [-INF], [INF], [NAN], [-INF, -INF], [INF, 1], [INF, INF], [1, NAN], [-INF, 3], [1000, 1000], [-1e4, -1e4],
    [1e300, 1], [-0.0, -0.0], [INF, -INF], [NAN, INF],
]
WEIGHTS = [None, [1, 1], [1, 0], [0, 1], [0, 0], [-1, 1], [1, -1], [-1, -1], [INF, 1], [NAN, 1], [-INF, 1]]


@newer_scipy
@pytest.mark.parametrize("row", SPECIAL_ROWS)
@pytest.mark.parametrize("b", WEIGHTS)
@pytest.mark.parametrize("return_sign", [False, True])
def test_logsumexp_specials(row, b, return_sign):
    b = None if b is None else np.array(b[:len(row)], np.float64)
    ours, theirs = both("logsumexp", np.array(row, np.float64), None, b, False, return_sign)
    if not np.isfinite(theirs[0] if return_sign else theirs) and (b is None or np.isfinite(b).all()):
        # SciPy takes these from the unscaled sum, where 0 * inf, inf - inf and underflow may spoil them.
        lse, sign = reference.logsumexp(row, None, b)
        theirs = (lse[()], sign[()]) if return_sign else lse[()] if not sign < 0 else np.float64(NAN)
    elif b is not None and np.isinf(b).any() and np.isfinite(np.max(row)):
        with np.errstate(all="ignore"):
            total = np.sum(b * np.exp(np.array(row) - np.max(row)))  # shifted, an infinite weight stays what it is
        theirs = (np.abs(total), np.sign(total)) if return_sign else total if total > 0 else np.float64(NAN)
    assert_same(ours, theirs)


@pytest.mark.parametrize("row", SPECIAL_ROWS)
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_specials(name, row):
    ours, theirs = both(name, np.array(row, np.float64))
    if name == "log_softmax" and (np.inf in row or set(row) == {-INF}):
        # SciPy's log_softmax shifts by 0 there and returns a mixture; ours is NaN, as softmax is in both.
        assert np.isnan(ours).all()
    else:
        assert_same(ours, theirs)


@newer_scipy
@pytest.mark.parametrize("value", [3, 3.0, True, np.float32(2), np.int64(7), 2j, np.array(4.0), [1, 2], [[1.5], [2]], (1, 2.0)])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_scalars_and_sequences(name, value):
    for axis in (None, -1):
        ours, theirs = both(name, value, axis)
        if theirs is TypeError and value is True:
            assert ours == pytest.approx(1 if name == "softmax" else 0)  # NumPy cannot subtract bools, SciPy's formula does
        else:
            assert_same(ours, theirs)
    if name == "logsumexp":
        for kwargs in ({"keepdims": True}, {"return_sign": True}, {"axis": ()}):
            assert_same(*both(name, value, **kwargs))


@pytest.mark.parametrize("shape, axis", [((0,), None), ((0, 3), 0), ((0, 3), 1), ((3, 0), 1), ((2, 0, 3), (0, 2))])
@pytest.mark.parametrize("return_sign", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
def test_logsumexp_of_empty_arrays(shape, axis, return_sign, dtype):
    for keepdims in (False, True):
        ours, theirs = both("logsumexp", np.empty(shape, dtype), axis, keepdims=keepdims, return_sign=return_sign)
        if isinstance(theirs, type) or (return_sign and dtype == np.complex128):
            # SciPy indexes a shape by a tuple of axes there and fails; or has a NaN sign, and a complex log
            assert np.isneginf((ours[0] if return_sign else ours).real).all()
        else:
            assert_same(ours, theirs)


def test_softmax_of_empty_arrays():
    assert special.softmax([]).shape == (0,)
    assert special.log_softmax(np.empty((3, 0)), axis=1).shape == (3, 0)
    assert special.softmax(np.empty((0, 3)), axis=1).shape == (0, 3)


@newer_scipy
@pytest.mark.parametrize("z", [[2, 1j], [-1, 1j * np.pi], [1 + 1j, 1 + 1j + 1j * np.pi], [800j, 900j], [1000 + 1j, 2],
                               [-INF, 1j], [INF, 1j], [NAN, 1j], [0, -50 + 0j], [3 + 3.5j]])
@pytest.mark.parametrize("return_sign", [False, True])
def test_complex(z, return_sign):
    z = np.array(z, np.complex128)
    ours, theirs = both("logsumexp", z, return_sign=return_sign)
    if NAN in z.real or np.isinf(z.real).any():
        ours, theirs = np.abs(np.atleast_1d(ours)[0]), np.abs(np.atleast_1d(theirs)[0])
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_integers_do_not_wrap_around():
    x = np.array([0, 200, 255], np.uint8)
    np.testing.assert_allclose(special.softmax(x), special.softmax(x.astype(float)), rtol=1e-3, atol=1e-3)
    assert special.log_softmax(np.array([-128, 127], np.int8))[0] == -255


def test_more_accurate_than_the_formula():
    assert special.logsumexp([0.0, -50.0]) == pytest.approx(np.exp(-50), rel=1e-15, abs=0)
    assert special.log_softmax([0.0, -50.0])[0] == pytest.approx(-np.exp(-50), rel=1e-15, abs=0)
    assert special.logsumexp(np.array([0, -50 + 0j])).real == pytest.approx(np.exp(-50), rel=1e-15, abs=0)


@pytest.mark.parametrize("dtype", [np.longdouble, np.complex128, np.float32, np.int64])
def test_empty_arrays_without_kernels(dtype):
    for f in (special.softmax, special.log_softmax):
        for shape in ((0,), (3, 0), (0, 3)):
            assert f(np.empty(shape, dtype), axis=-1).shape == shape


@newer_scipy
def test_weights_of_any_size():
    for b in ([1e250, 1e250], [1e-250, 1e250], [1e-300, 1e-300], [np.inf, 1.0]):
        np.testing.assert_allclose(special.logsumexp([0.0, -1.0], b=b), scipy_special.logsumexp([0.0, -1.0], b=b), rtol=1e-14)


# -- complex numbers of other array libraries --------------------------------------------------------------------


class Lender:
    """An array that lends its memory by DLPack, of a library without functions."""

    def __init__(self, array):
        self.array, self.dtype = array, array.dtype

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def libraries():
    """(id, the function that makes an array of a library from NumPy's, the function that makes NumPy's of one)"""
    yield "numpy", lambda a: a, np.asarray
    yield "lender", Lender, np.asarray
    try:
        import array_api_strict

        yield "array_api_strict", array_api_strict.asarray, np.asarray
    except ImportError:
        pass
    try:
        import torch

        yield "torch", torch.asarray, lambda t: t.numpy()
    except ImportError:
        pass
    try:
        import jax.numpy

        jax.config.update("jax_enable_x64", True)  # else it has no complex128
        yield "jax", jax.numpy.asarray, np.asarray
    except ImportError:
        pass


LIBRARIES = {name: rest for name, *rest in libraries()}
each_library = pytest.mark.parametrize("library", LIBRARIES)


COMPLEX_CASES = [
    (library, dtype, axis)
    for library in LIBRARIES
    for dtype in (np.complex64, np.complex128)
    for axis in (None, 0, -1, (0, 2), ())
    # JAX compiles every operation anew for every shape
    if library != "jax" or (dtype, axis) in ((np.complex64, None), (np.complex64, (0, 2)), (np.complex128, -1))
]


@newer_scipy
@pytest.mark.parametrize("library, dtype, axis", COMPLEX_CASES)
def test_complex_arrays_of_any_library(library, dtype, axis):
    make, back = LIBRARIES[library]
    z = ARRAYS["complex128"].astype(dtype)
    rtol = 1e-4 if dtype == np.complex64 else 1e-11
    for name in ("softmax", "log_softmax", "logsumexp"):
        got, want = getattr(special, name)(make(z), axis), getattr(scipy_special, name)(z, axis)
        if library not in ("numpy", "lender"):
            assert type(got) is type(make(z))
        assert back(got).dtype == dtype
        np.testing.assert_allclose(back(got), want, rtol=rtol, atol=rtol)
    for b in (2.0, np.linspace(-1, 2, 5).astype(z.real.dtype), (np.linspace(-1, 2, 5) + 1j).astype(dtype)):
        weights = make(b) if np.ndim(b) else b
        for keepdims in (False, True):
            got = special.logsumexp(make(z), axis, weights, keepdims, return_sign=True)
            want = scipy_special.logsumexp(z, axis, b, keepdims, return_sign=True)
            for g, w in zip(got, want):
                assert back(g).dtype == w.dtype or library == "lender"
                np.testing.assert_allclose(back(g), w, rtol=rtol, atol=rtol)


@each_library
def test_complex_weights_of_real_arrays(library):
    make, back = LIBRARIES[library]
    for a in (np.arange(3.0), np.arange(3)):
        b = np.array([1, 2j, -1])
        for x, w in ((make(a), make(b)), (a, make(b)), (make(a.astype(complex)), make(b.real))):
            if library == "array_api_strict" and isinstance(x, np.ndarray):
                continue  # it takes none of NumPy's
            want = np.log(np.sum(back_of(w, back) * np.exp(a)) + 0j)
            np.testing.assert_allclose(back(special.logsumexp(x, b=w)), want, rtol=1e-6)


def back_of(w, back):
    return w.array if isinstance(w, Lender) else back(w)


@each_library
def test_complex_weights_of_any_size(library):
    make, back = LIBRARIES[library]
    a = np.array([1400.0, 3.0, 0.0]) + 1j
    b = np.array([1e-300, 1e300, 2.0]) * (1 + 0j)
    mp = pytest.importorskip("mpmath")
    with mp.workdps(40):
        want = complex(mp.log(sum(mp.mpc(w) * mp.exp(mp.mpc(v)) for v, w in zip(a, b))))
    np.testing.assert_allclose(back(special.logsumexp(make(a), b=make(b))), want, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_complex_weights_next_to_0_and_to_the_largest(dtype):
    mp = pytest.importorskip("mpmath")
    least, largest = (1e-40, 3e38) if dtype == np.complex64 else (3e-320, 1.7e308)
    for a, b in (([90, 89], [1, least]), ([90, 1], [least, 1]), ([90 + 1j, 1], [largest, 1]), ([3, 1j], [least * 1j, least])):
        a, b = np.array(a, dtype), np.array(b, dtype)
        with mp.workdps(50):
            want = complex(mp.log(sum(mp.mpc(complex(w)) * mp.exp(mp.mpc(complex(v))) for v, w in zip(a, b))))
        np.testing.assert_allclose(special.logsumexp(a, b=b), want, rtol=1e-5 if dtype == np.complex64 else 1e-13)


@pytest.mark.parametrize("call, error, text", [
    (lambda: special.logsumexp([1.0], b="a"), TypeError, "b has dtype <U1, accepted: real and complex numbers"),
    (lambda: special.logsumexp(np.array([1, 2], object)), TypeError, "a has dtype object, accepted"),
    (lambda: special.logsumexp(["a"]), TypeError, "a has dtype <U1, accepted"),
    (lambda: special.logsumexp([[1.0], [1.0, 2]]), ValueError, "a is no array"),
])
def test_which_argument_is_wrong(call, error, text):
    with pytest.raises(error, match="^logsumexp: " + text):
        call()


def test_gradients_of_complex_tensors():
    torch = pytest.importorskip("torch")
    z = torch.from_numpy(ARRAYS["complex128"][0, :2, :3].copy()).requires_grad_()
    w = torch.tensor([1 + 1j, 2.0, -1j], dtype=torch.complex128)
    for f in (special.softmax, special.log_softmax, special.logsumexp, lambda z: special.logsumexp(z, b=w)):
        assert torch.autograd.gradcheck(f, z)


@pytest.mark.parametrize("row", [[INF + 1j], [INF + 1j, 2], [-INF + 1j, -INF - 1j], [complex(INF, INF)],
                                      [complex(-INF, INF), 1 + 1j]])
def test_the_phase_of_infinite_complex_sums(row):
    z = np.array(row)
    log_abs, phase = special.logsumexp(z, return_sign=True)
    both_at_once = special.logsumexp(z)
    with np.errstate(all="ignore"):
        assert log_abs == both_at_once.real or (np.isnan(log_abs) and np.isnan(both_at_once.real))
    if np.isposinf(log_abs) and not np.isnan(both_at_once.imag):
        np.testing.assert_allclose(phase, np.exp(1j * both_at_once.imag))
    elif np.isneginf(log_abs):
        assert phase == 0


def test_longdouble_weights_of_zero_and_cancellation():
    """The conventions of the kernels, for what has none."""
    for dtype in (np.longdouble, np.complex128):
        a = np.array([INF, 1], dtype)
        assert special.logsumexp(a, b=np.array([0, 1], dtype)) == 1
        assert special.logsumexp(a[:1], b=np.array([0], dtype)).real == -INF
        log_abs, sign = special.logsumexp(np.array([1e4, 1e4], dtype), b=np.array([1, -1], dtype), return_sign=True)
        assert log_abs == -INF and sign == 0
        assert np.isnan(special.logsumexp(np.array([INF, INF], dtype), b=np.array([1, -1], dtype)).real)


def test_common_dtype_is_the_librarys():
    jnp = pytest.importorskip("jax.numpy", reason="jax is not installed")
    a, b = jnp.asarray([2.0, 1.0], jnp.float32), jnp.asarray([1, -1], jnp.int32)
    got = special.logsumexp(a, b=b)
    assert got.dtype == jnp.result_type(a, b) == jnp.float32
    np.testing.assert_allclose(got, np.log(np.exp(2) - np.exp(1)), rtol=1e-6)
