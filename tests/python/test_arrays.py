"""The NumPy functions: each on every dtype, axis, stride and kind of argument it says it takes."""

import sys
import types

import ml_dtypes
import numpy as np
import pytest

import plain_reference as reference
import sumexp as se
from sumexp import _core

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
TOLERANCE = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 2e-6, "float64": 1e-14}

# name -> (how many arrays come before the main one, is the main one y = op(x), is the result one per row)
FUNCTIONS = {
    "softmax": (0, None, False),
    "log_softmax": (0, None, False),
    "logsumexp": (0, None, True),
    "softmax_vjp": (1, "softmax", False),
    "softmax_jvp": (1, "softmax", False),
    "log_softmax_vjp": (1, "log_softmax", False),
    "log_softmax_jvp": (1, "log_softmax", False),
    "logsumexp_jvp": (1, None, True),
    "softmax_hvp": (2, "softmax", False),
    "log_softmax_hvp": (2, "log_softmax", False),
}


def arguments(name, shape, dtype, axis, seed=0):
    rng = np.random.default_rng(seed)
    extra, forward, _ = FUNCTIONS[name]
    main = rng.normal(0, 3, shape)
    if forward:
        main = getattr(reference, forward)(main, axis)
    return [rng.normal(0, 1, shape).astype(dtype) for _ in range(extra)] + [np.asarray(main).astype(dtype)]


def expected(name, args, axis, **kwargs):
    value = getattr(reference, name)(*args, axis=axis, **kwargs)
    return value[0] if name == "logsumexp" else value


def check(result, want, dtype):
    want = np.asarray(want)
    assert np.asarray(result).dtype == dtype and np.shape(result) == want.shape
    tolerance = TOLERANCE[np.dtype(dtype).name]
    scale = max(1.0, float(np.max(np.abs(want), initial=0, where=np.isfinite(want))))
    np.testing.assert_allclose(np.asarray(result, np.float64), want, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [-1, 0, 1, (0, 2), (1, 2), (2, 0, 1), None])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_axes_and_dtypes(name, axis, dtype):
    args = arguments(name, (3, 5, 4), dtype, axis)
    check(getattr(se, name)(*args, axis=axis), expected(name, args, axis), dtype)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_default_axis(name):
    args = arguments(name, (3, 4), np.float64, -1)
    axis = None if name.startswith("logsumexp") else -1
    check(getattr(se, name)(*args), expected(name, args, axis), np.float64)


@pytest.mark.parametrize("layout", ["C", "F", "reversed", "sliced", "offset", "broadcast"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_strides(name, layout):
    def lay(a):
        if layout == "F":
            return np.asfortranarray(a)
        if layout == "reversed":
            return a[::-1, :, ::-1].copy()[::-1, :, ::-1]
        if layout == "sliced":
            holder = np.full((a.shape[0] * 2, a.shape[1] + 3, a.shape[2] * 3), np.nan, a.dtype)
            view = holder[::2, 1:-2, ::3]
            view[...] = a
            return view
        if layout == "offset":  # addresses that are multiples of 4 only
            holder = np.empty(a.size + 1, a.dtype)[1:].reshape(a.shape)
            holder[...] = a
            return holder
        return np.broadcast_to(a[:1], a.shape) if layout == "broadcast" else a

    args = [lay(a) for a in arguments(name, (4, 5, 6), np.float32, 1)]
    check(getattr(se, name)(*args, axis=1), expected(name, args, 1), np.float32)


def test_results_are_laid_out_like_the_input():
    x = np.asfortranarray(np.random.default_rng(0).normal(size=(5, 7)))
    assert se.softmax(x).flags.f_contiguous
    assert se.softmax(x, out=np.empty((5, 7))).flags.c_contiguous


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2), ()])
def test_logsumexp_and_its_derivatives_keep_dimensions(axis, keepdims):
    rng = np.random.default_rng(1)
    x, t = rng.normal(size=(2, 3, 4, 5))[:2]
    want = reference.logsumexp(x, axis, keepdims=keepdims)[0]
    check(se.logsumexp(x, axis, keepdims=keepdims), want, np.float64)
    check(se.logsumexp_jvp(t, x, axis, keepdims=keepdims), reference.logsumexp_jvp(t, x, axis, keepdims), np.float64)
    g = rng.normal(size=want.shape)
    check(se.logsumexp_vjp(g, x, axis, keepdims=keepdims), reference.logsumexp_vjp(g, x, axis, keepdims), np.float64)
    g_view = np.broadcast_to(np.float64(2), want.shape)
    check(se.logsumexp_vjp(g_view, x, axis, keepdims=keepdims), reference.logsumexp_vjp(g_view, x, axis, keepdims),
          np.float64)


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if not n.startswith("logsumexp")])
@pytest.mark.parametrize("temperature", [0.5, 3, np.float32(2)])
def test_temperature(name, temperature):
    args = arguments(name, (3, 7), np.float64, -1)
    check(getattr(se, name)(*args, temperature=temperature), expected(name, args, -1, temperature=float(temperature)),
          np.float64)


@pytest.mark.parametrize("mask_shape", [(3, 5), (5,), (3, 1), ()])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_where(name, mask_shape):
    x = np.random.default_rng(2).normal(size=(3, 5))
    mask = np.random.default_rng(3).random(mask_shape) < 0.6
    if mask_shape == ():
        mask = True
    want = expected(name, [x], -1, where=np.broadcast_to(mask, x.shape))
    check(getattr(se, name)(x, axis=-1, where=mask), want, np.float64)


def test_where_hides_bad_elements():
    x, mask = np.array([1.0, np.nan, np.inf, 2.0]), np.array([True, False, False, True])
    want = reference.softmax([1.0, 2.0])
    np.testing.assert_allclose(se.softmax(x, where=mask), [want[0], 0, 0, want[1]], rtol=1e-15)
    np.testing.assert_allclose(se.logsumexp(x, where=mask), np.log(np.exp(1) + np.exp(2)), rtol=1e-15)


@pytest.mark.parametrize("b_shape", [(3, 5), (5,), (3, 1), (), (2, 3, 5), (2, 1, 1)])
def test_weights_broadcast_both_ways(b_shape):
    rng = np.random.default_rng(4)
    x, b = rng.normal(size=(3, 5)), rng.normal(size=b_shape)
    for axis in (None, -1, 0):
        lse, sign = se.logsumexp(x, axis, b=b, return_sign=True)
        want, want_sign = reference.logsumexp(x, axis, b)
        np.testing.assert_allclose(lse, want, rtol=1e-10)
        np.testing.assert_array_equal(sign, want_sign)
        plain = se.logsumexp(x, axis, b=b)
        np.testing.assert_allclose(plain, np.where(want_sign < 0, np.nan, want), rtol=1e-10)


@pytest.mark.parametrize("dtype", DTYPES)
def test_return_sign_without_weights(dtype):
    x = np.array([[1.0, 2], [-np.inf, -np.inf], [np.nan, 0], [np.inf, 0], [-2000, -2001]]).astype(dtype)
    _, sign = se.logsumexp(x, -1, return_sign=True)
    assert sign.dtype == dtype
    np.testing.assert_array_equal(sign.astype(np.float64), [1, 0, np.nan, 1, 1])
    assert se.logsumexp(x[0], return_sign=True)[1] == 1


# -- kinds of input ----------------------------------------------------------------------------------------


def test_scalars_and_lists():
    assert type(se.logsumexp([0.0, 0.0])) is np.float64
    assert type(se.logsumexp(np.float32([1, 2]))) is np.float32
    assert type(se.softmax(3)) is np.float64 and se.softmax(3) == 1
    assert se.log_softmax(np.float32(7)) == 0 and type(se.log_softmax(np.float32(7))) is np.float32
    for axis in (-1, 0, None, ()):
        assert se.softmax(np.array(2.0), axis) == 1 and se.logsumexp(np.array(2.0), axis) == 2
    np.testing.assert_allclose(se.softmax([[1, 2], [3, 4]]), reference.softmax([[1, 2], [3, 4]]), rtol=1e-14)
    assert se.logsumexp_vjp(2.0, [0.0, 0.0]).tolist() == [1, 1]
    bf16 = se.logsumexp(np.zeros(4, ml_dtypes.bfloat16))
    assert type(bf16) is ml_dtypes.bfloat16 and bf16 == ml_dtypes.bfloat16(np.log(4))


@pytest.mark.parametrize("dtype", ["?", "i1", "u1", "i2", "u4", "i8", ">i4"])
def test_integers_and_bools_become_float64(dtype):
    x = np.array([[0, 1, 1], [1, 0, 0]]).astype(dtype)
    for name in ("softmax", "log_softmax"):
        check(getattr(se, name)(x), getattr(reference, name)(x), np.float64)


@pytest.mark.parametrize("dtype", [">f2", ">f4", ">f8"])
def test_swapped_bytes(dtype):
    x = np.random.default_rng(5).normal(size=(3, 4)).astype(dtype)
    native = x.astype(x.dtype.newbyteorder("="))
    result = se.softmax(x)
    assert result.dtype == native.dtype and result.dtype.isnative
    np.testing.assert_array_equal(result, se.softmax(native))


def test_misaligned_and_subclassed_arrays():
    x = np.arange(6, dtype=np.float64)
    holder = np.empty(49, np.uint8)
    odd = holder[1:].view(np.float64)
    odd[:] = x
    assert not odd.flags.aligned
    np.testing.assert_array_equal(se.softmax(odd), se.softmax(x))

    class Sub(np.ndarray):
        pass

    result = se.softmax(x.view(Sub))
    assert type(result) is np.ndarray
    out = np.empty(6).view(Sub)
    assert se.softmax(x, out=out) is out
    np.testing.assert_array_equal(out, result)


def test_mixed_dtypes_promote_as_numpy_does():
    y32, g64 = np.float32([0.25, 0.75]), np.array([1.0, 2.0])
    assert se.softmax_vjp(g64, y32).dtype == np.float64
    assert se.softmax_vjp(np.int8([1, 2]), y32).dtype == np.float32
    assert se.softmax_vjp(y32.astype(ml_dtypes.bfloat16), y32).dtype == np.float32
    assert se.softmax_vjp(y32.astype(ml_dtypes.bfloat16), y32.astype(np.float16)).dtype == np.float32
    assert se.softmax_vjp([1, 2], y32.astype(ml_dtypes.bfloat16)).dtype == np.float64
    assert se.logsumexp(y32, b=2).dtype == np.float32  # Python numbers are weak
    assert se.logsumexp(y32, b=[2, 1]).dtype == np.float64


def foreign_library(monkeypatch, namespace_method):
    """An array library with DLPack and nothing else."""

    class Tensor:
        def __init__(self, array, device=1):
            self.array, self.device = array, device

        def __dlpack__(self, **kwargs):
            return self.array.__dlpack__(**kwargs)

        def __dlpack_device__(self):
            return self.device, 0

    module = types.ModuleType("foreignlib")
    module.from_dlpack = lambda array: Tensor(np.from_dlpack(array))
    Tensor.__module__ = "foreignlib.core"
    if namespace_method:
        Tensor.__array_namespace__ = lambda self: module
        Tensor.__module__ = "elsewhere"
    monkeypatch.setitem(sys.modules, "foreignlib", module)
    return Tensor


@pytest.mark.parametrize("namespace_method", [False, True])
def test_dlpack_objects_come_back_in_their_library(monkeypatch, namespace_method):
    tensor = foreign_library(monkeypatch, namespace_method)
    x = np.random.default_rng(6).normal(size=(3, 4))
    result = se.softmax(tensor(x), axis=0)
    assert type(result) is tensor
    np.testing.assert_array_equal(result.array, se.softmax(x, axis=0))
    lse, sign = se.logsumexp(tensor(x), return_sign=True)
    assert type(lse) is tensor and lse.array == se.logsumexp(x) and sign.array == 1
    assert type(se.softmax_jacobian(tensor(x))) is tensor
    assert type(se.softmax_vjp(x, tensor(x))) is tensor


@pytest.mark.parametrize("device, words", [(2, "cuda:0"), (10, "a device of DLPack type 10")])
def test_arrays_elsewhere_are_refused(monkeypatch, device, words):
    if device == 2 and _core.cuda_architectures:
        pytest.skip("this build serves CUDA devices: tests/simt/functions.py and test_gpu.py")
    tensor = foreign_library(monkeypatch, False)
    for call in (se.softmax, se.logsumexp_hessian, se.special.log_softmax):
        with pytest.raises(TypeError, match=f"(x|y) is on {words}, accepted: the CPU"):
            call(tensor(np.ones(3), device=device))


def test_cuda_arrays_where_there_is_no_device():
    class CudaArray:
        __cuda_array_interface__ = {**np.ones(3).__array_interface__, "stream": 1}
        dtype = np.dtype(float)

    if se.show_config("dicts")["run time"]["cuda devices"]:
        pytest.skip("there is a CUDA device")
    built = bool(_core.cuda_architectures)
    with pytest.raises(RuntimeError if built else TypeError, match="softmax: CUDA error" if built else "x is on cuda:0"):
        se.softmax(CudaArray(), out=CudaArray())


# -- out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
def test_out_and_in_place(name):
    axis = 1
    args = arguments(name, (3, 5, 2), np.float32, axis)
    want = np.asarray(getattr(se, name)(*args, axis=axis))
    out = np.full((want.shape[0], want.shape[1] * 2) + want.shape[2:], np.nan, np.float32)[:, ::2]
    assert getattr(se, name)(*args, axis=axis, out=out) is out
    assert out.tobytes() == want.tobytes()
    if not FUNCTIONS[name][2]:
        for k in range(len(args)):  # over each of the inputs
            copies = [a.copy() for a in args]
            assert getattr(se, name)(*copies, axis=axis, out=copies[k]) is copies[k]
            assert copies[k].tobytes() == want.tobytes()


def test_out_of_logsumexp_with_sign_and_zero_dimensions():
    x, out = np.array([1.0, 2.0]), np.array(0.0)
    lse, sign = se.logsumexp(x, b=np.array([1.0, -1.0]), return_sign=True, out=out)
    assert lse is out and sign == -1
    assert se.logsumexp(x, out=out) is out and out[()] == se.logsumexp(x)


def test_out_may_interleave_with_the_input():
    holder = np.random.default_rng(7).normal(size=(4, 10))
    x, out = holder[:, ::2], holder[:, 1::2]
    want = se.softmax(x.copy())
    np.testing.assert_array_equal(se.softmax(x, out=out), want)


def test_empty():
    assert se.softmax(np.empty((0, 3))).shape == (0, 3)
    assert se.softmax(np.empty((3, 0), np.float32)).shape == (3, 0)
    assert se.logsumexp([]) == -np.inf
    assert se.logsumexp(np.empty((3, 0)), axis=-1).tolist() == [-np.inf] * 3
    assert se.logsumexp(np.empty((0, 3)), axis=-1).shape == (0,)
    lse, sign = se.logsumexp(np.empty((2, 0)), axis=-1, return_sign=True)
    assert lse.tolist() == [-np.inf] * 2 and sign.tolist() == [0, 0]
    lse, sign = se.logsumexp(np.empty((2, 0)), axis=-1, b=np.empty((2, 0)), return_sign=True)
    assert lse.tolist() == [-np.inf] * 2 and sign.tolist() == [0, 0]
    assert se.logsumexp_vjp(np.empty(0), np.empty((0, 4)), axis=1).shape == (0, 4)
    assert se.softmax_jacobian(np.empty((2, 0))).shape == (2, 0, 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 1, 5)])
def test_matrices(shape, dtype):
    x = np.random.default_rng(8).normal(size=shape).astype(dtype)
    y, log_y = se.softmax(x), se.log_softmax(x)
    s, ls = np.float64(y), np.float64(log_y)
    eye = np.eye(shape[-1])
    symmetric = s[..., None] * (eye - s[..., None, :])
    check(se.softmax_jacobian(y), symmetric, dtype)
    check(se.logsumexp_hessian(x), symmetric, dtype)
    check(se.log_softmax_jacobian(log_y), eye - np.exp(ls)[..., None, :] * np.ones((shape[-1], 1)), dtype)


def test_second_order_is_the_derivative_of_the_first():
    rng = np.random.default_rng(9)
    x, g, v = rng.normal(size=(3, 4, 6))
    h = 1e-6
    for name in ("softmax", "log_softmax"):
        forward, vjp, hvp = (getattr(se, name + s) for s in ("", "_vjp", "_hvp"))
        difference = (vjp(g, forward(x + h * v)) - vjp(g, forward(x - h * v))) / (2 * h)
        np.testing.assert_allclose(hvp(g, v, forward(x)), difference, atol=1e-8)


def test_arrays_of_jax():
    jax = pytest.importorskip("jax", reason="jax is not installed")
    x = jax.numpy.zeros((2, 3), jax.numpy.bfloat16)
    y = se.softmax(x)
    assert isinstance(y, jax.Array) and y.dtype == x.dtype
    loss, gradient = se.cross_entropy_with_grad(x, jax.numpy.array([0, 1]))
    assert isinstance(loss, jax.Array) and isinstance(gradient, jax.Array)
    with pytest.raises(TypeError, match="softmax: x is a DynamicJaxprTracer, which has no memory, accepted: arrays outside of"):
        jax.jit(se.softmax)(x)


def test_the_stream_of_a_cupy_array_is_that_of_its_own_device():
    from sumexp import _devices

    entered = []

    class Device:
        def __enter__(self):
            entered.append("its device")

        def __exit__(self, *_):
            entered.pop()

    class Array:
        device = Device()
        __cuda_array_interface__ = property(lambda self: {"stream": list(entered)})

    assert _devices._interface(Array()) == {"stream": []} and _devices._interface(3) is None
    Array.__module__ = "cupy._core.core"
    assert _devices._interface(Array()) == {"stream": ["its device"]}
