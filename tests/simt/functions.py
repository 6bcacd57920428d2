"""The Python functions given arrays of a GPU, with the machine as the GPU: run by ctest, see CMakeLists.txt.

The arrays here say that they are on a CUDA device, in each of the ways in which libraries say so; their memory is
the host's, which is the machine's. Results are compared with the CPU's, byte by byte.
"""

import ctypes
import types

import ml_dtypes
import numpy as np
import pytest

import sumexp as se
from sumexp import _core, special

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


# -- arrays of three libraries --------------------------------------------------------------------------------


class Array:
    """What the libraries have in common: NumPy's memory, on "device" 0 or 1."""

    device = 0

    def __init__(self, array, device=0):
        self.array, self.device = array, device

    shape = property(lambda self: self.array.shape)
    ndim = property(lambda self: self.array.ndim)
    dtype = property(lambda self: self.array.dtype)

    def __array_namespace__(self):
        kind = type(self)
        return types.SimpleNamespace(
            empty=lambda shape, dtype, device: kind(np.full(shape, 77, dtype), device),
            eye=lambda n, dtype: kind(np.eye(n, dtype=dtype)),
            zeros_like=lambda x: kind(np.zeros_like(x.array)),
            ones_like=lambda x: kind(np.ones_like(x.array)),
            where=lambda c, a, b: kind(np.where(c.array, a.array, b.array)),
            exp=lambda x: kind(np.exp(x.array)),
            expm1=lambda x: kind(np.expm1(x.array)),
            sum=lambda x, axis, keepdims: kind(np.sum(x.array, axis=axis, keepdims=keepdims)),
        )

    def __getitem__(self, key):
        return type(self)(self.array[key])

    def _with(self, operation, other):
        return type(self)(operation(self.array, other.array if isinstance(other, Array) else other))

    __eq__ = lambda self, other: self._with(np.equal, other)
    __ne__ = lambda self, other: self._with(np.not_equal, other)
    __mul__ = lambda self, other: self._with(np.multiply, other)
    __sub__ = lambda self, other: self._with(np.subtract, other)
    __rsub__ = lambda self, other: type(self)(other - self.array)
    __ge__ = lambda self, other: self._with(np.greater_equal, other)
    __neg__ = lambda self: type(self)(-self.array)


class DLPackArray(Array):
    """A library's that tells no stream."""

    streams = []  # asked for, in order

    def __dlpack_device__(self):
        return 2, self.device

    def __dlpack__(self, *, stream, max_version=None):
        self.streams.append(stream)
        if self.array.dtype != ml_dtypes.bfloat16:
            return self.array.__dlpack__(max_version=max_version)
        capsule = self.array.view(np.uint16).__dlpack__()
        dtype_of(capsule).code = 4
        return capsule


class FixedArray(DLPackArray):
    """As JAX's, which are not to be written to: capsules have no version, and so cannot say it."""

    def __dlpack__(self, *, stream):
        return super().__dlpack__(stream=stream)


class CudaArray(Array):
    """As CuPy's and Numba's."""

    stream = 1

    @property
    def __cuda_array_interface__(self):
        return {**self.array.__array_interface__, "stream": self.stream, "version": 3}


class DLTensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("device", ctypes.c_int32 * 2), ("ndim", ctypes.c_int32),
                ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
                ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
                ("byte_offset", ctypes.c_uint64)]


def dtype_of(capsule):
    ctypes.pythonapi.PyCapsule_GetPointer.restype = ctypes.c_void_p
    ctypes.pythonapi.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    return DLTensor.from_address(ctypes.pythonapi.PyCapsule_GetPointer(capsule, b"dltensor"))


FROM_OBJECT = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(DLTensor))
STREAM = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_int32, ctypes.c_int32, ctypes.POINTER(ctypes.c_void_p))


@FROM_OBJECT
def from_object(value, out):
    array = value.array
    code, bits = {"b": 6, "u": 1, "V": 4, "i": 0}.get(array.dtype.kind, 2), 8 * array.dtype.itemsize
    sizes = ctypes.c_int64 * array.ndim
    value.kept = [sizes(*array.shape), sizes(*(s // array.itemsize for s in array.strides))]
    out[0] = DLTensor(array.ctypes.data, (2, value.device), array.ndim, code, bits, 1, *value.kept, 0)
    return 0


@STREAM
def current_stream(kind, device, out):
    out[0] = 1234
    return 0


class ExchangeAPI(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32 * 2), ("previous", ctypes.c_void_p), ("owning", ctypes.c_void_p * 3),
                ("from_object", FROM_OBJECT), ("current_stream", STREAM)]


TABLE = ExchangeAPI((1, 3), None, (ctypes.c_void_p * 3)(), from_object, current_stream)
TABLE_NAME = b"dlpack_exchange_api"  # the capsule keeps its address
ctypes.pythonapi.PyCapsule_New.restype = ctypes.py_object
ctypes.pythonapi.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


class TableArray(Array):
    """As torch's and others with DLPack's C exchange table."""

    __dlpack_c_exchange_api__ = ctypes.pythonapi.PyCapsule_New(ctypes.addressof(TABLE), TABLE_NAME, None)

    def __dlpack_device__(self):
        return 2, self.device

    def __dlpack__(self, **options):
        raise AssertionError("there is a table")


KINDS = [DLPackArray, FixedArray, CudaArray, TableArray]


def kinds_for(dtype):
    return [k for k in KINDS if k is not CudaArray or dtype != ml_dtypes.bfloat16]  # NumPy's interface has no name for it


def rows(shape, dtype, seed=0):
    return np.random.default_rng(seed).normal(0, 3, shape).astype(dtype)


def same(result, array):
    assert isinstance(result, Array)
    assert result.array.dtype == array.dtype and result.array.shape == np.shape(array)
    assert result.array.tobytes() == np.asarray(array).tobytes()


# -- the functions --------------------------------------------------------------------------------------------

# name -> how many arrays; the first of logsumexp_vjp has one value a row
CALLS = {"softmax": 1, "log_softmax": 1, "logsumexp": 1, "softmax_vjp": 2, "softmax_jvp": 2, "log_softmax_vjp": 2,
         "log_softmax_jvp": 2, "logsumexp_vjp": 2, "logsumexp_jvp": 2, "softmax_hvp": 3, "log_softmax_hvp": 3}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CALLS)
def test_functions(name, dtype):
    args = [rows((3, 50), dtype, k) for k in range(CALLS[name])]
    if name == "logsumexp_vjp":
        args[0] = args[0][:, 0].copy()
    want = np.asarray(getattr(se, name)(*args, axis=1))
    for kind in kinds_for(dtype):
        result = getattr(se, name)(*map(kind, args), axis=1)
        assert type(result) is kind
        same(result, want)


@pytest.mark.parametrize("dtype, small, lanes", [(np.float32, 2.0**-100, 256), (np.float64, 2.0**-600, 64)])
@pytest.mark.parametrize("name", [name for name in CALLS if name.endswith(("vjp", "hvp", "jvp"))])
def test_sums_that_underflow(name, dtype, small, lanes):
    """No sum is -0, on any device."""
    for n in (2 * lanes, 8 * lanes):  # no lane of a GPU's thread is filled up with zeros
        g = np.full((3, n), -small, dtype)
        g[:, lanes:] = -0.0
        y = np.full((3, n), np.log(small) if "log" in name else small, dtype)
        args = [*[g] * (CALLS[name] - 1), y]
        if name == "logsumexp_vjp":
            args[0] = g[:, -1].copy()
        same(getattr(se, name)(*map(TableArray, args), axis=1), np.asarray(getattr(se, name)(*args, axis=1)))


@pytest.mark.parametrize("dtype, big", [(np.float32, 1e20), (np.float64, 1e160)])
def test_products_that_overflow(dtype, big):
    for n in (1, 2, 17, 300, 2100):
        g, y = np.full((3, n), big, dtype), np.full((3, n), 1 / n, dtype)
        same(se.softmax_hvp(*map(TableArray, (g, -g, y))), se.softmax_hvp(g, -g, y))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axis", [0, -1, (0, 2), None])
def test_axes_and_strides(kind, axis):
    x = rows((5, 6, 8), np.float32)
    for view in (x, x[:, ::-2], x.T, x[1:, :, 1:]):
        same(se.softmax(kind(view), axis=axis), np.ascontiguousarray(se.softmax(view, axis=axis)))
        same(se.logsumexp(kind(view), axis=axis), np.asarray(se.logsumexp(view, axis=axis)))
        same(se.logsumexp(kind(view), axis=axis, keepdims=True), se.logsumexp(view, axis=axis, keepdims=True))


@pytest.mark.parametrize("kind", KINDS)
def test_options(kind):
    x, b = rows((4, 30), np.float64), rows((4, 30), np.float64, 1)
    mask = b > -2
    same(se.log_softmax(kind(x), temperature=1.7), se.log_softmax(x, temperature=1.7))
    far = x.astype(np.float32)
    far[0, 2], far[1] = 3e38, -3.4e38
    for T in (0.5, np.inf):
        assert np.isfinite(se.softmax(far, temperature=T)).all()
        same(se.softmax(kind(far), temperature=T), se.softmax(far, temperature=T))
        same(se.log_softmax(kind(far), axis=0, temperature=T), se.log_softmax(far, axis=0, temperature=T))
    same(se.softmax(kind(x), where=kind(mask)), se.softmax(x, where=mask))
    for got, want in zip(se.logsumexp(kind(x), 1, b=kind(b), return_sign=True), se.logsumexp(x, 1, b=b, return_sign=True)):
        same(got, want)
    same(se.logsumexp(kind(x[0]), b=kind(abs(b))), np.asarray(se.logsumexp(x[0][None].repeat(4, 0), b=abs(b))))
    odd = np.where(mask, b, np.nan)  # a masked element's weight may be anything
    for weights in (odd, odd * 1e-250):
        got = se.logsumexp(kind(x), 1, b=kind(weights), where=kind(mask), return_sign=True)
        for ours, want in zip(got, se.logsumexp(x, 1, b=weights, where=mask, return_sign=True)):
            assert np.isfinite(want).all()
            same(ours, want)
    x[0], x[1, 0] = -np.inf, np.nan
    for got, want in zip(se.logsumexp(kind(x), 1, return_sign=True), se.logsumexp(x, 1, return_sign=True)):
        same(got, want)


def test_out_that_is_fixed():
    x = rows((4, 30), np.float32)
    fixed, frozen = FixedArray(x.copy()), DLPackArray(x.copy())
    frozen.array.flags.writeable = False
    for out in (fixed, frozen):
        with pytest.raises(ValueError, match="softmax: out is read-only, accepted: a writeable"):
            se.softmax(out, out=out)
        assert out.array.tobytes() == x.tobytes()


@pytest.mark.parametrize("kind", [DLPackArray, CudaArray, TableArray])
def test_out_and_in_place(kind):
    x = rows((4, 30), np.float32)
    want = se.softmax(x)
    out = kind(np.full_like(x, 7))
    assert se.softmax(kind(x), out=out) is out
    same(out, want)
    same(se.softmax(a := kind(x.copy()), out=a), want)
    base = np.zeros(200, np.float32)
    with pytest.raises(ValueError, match="softmax: out overlaps x"):
        se.softmax(kind(base[:100]), out=kind(base[4:104]))
    assert not base.any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_row_takes_a_workspace(kind, monkeypatch):
    x = rows((2, 300_000), np.float32)
    sizes, on_device = [], _core.on_device
    monkeypatch.setattr(_core, "on_device", lambda *a, **k: (sizes.append(a[4]), on_device(*a, **k))[1])
    same(se.softmax(kind(x)), se.softmax(x))
    assert sizes[0] == 0 and sizes[1] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_and_special(kind):
    y = se.softmax(rows((3, 4), np.float64))
    np.testing.assert_allclose(se.softmax_jacobian(kind(y)).array, se.softmax_jacobian(y), rtol=1e-14, atol=1e-16)
    np.testing.assert_allclose(se.logsumexp_hessian(kind(y)).array, se.logsumexp_hessian(y), rtol=1e-14, atol=1e-16)
    np.testing.assert_allclose(
        se.log_softmax_jacobian(kind(np.log(y))).array, se.log_softmax_jacobian(np.log(y)), rtol=1e-14, atol=1e-16)
    same(special.softmax(kind(y)), special.softmax(y))
    same(special.logsumexp(kind(y), b=kind(y)), np.asarray(special.logsumexp(y, b=y)))


# -- devices, streams, errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [DLPackArray, TableArray])
def test_results_are_on_the_device_of_the_array(kind):
    result = se.softmax(kind(rows((2, 3), np.float32), 1))
    assert result.device == 1
    with pytest.raises(TypeError, match="softmax_vjp: g is on cuda:0, accepted: cuda:1, where y is"):
        se.softmax_vjp(kind(np.ones(3), 0), kind(np.ones(3), 1))
    with pytest.raises(RuntimeError, match="softmax: CUDA error 101 .* on device 7"):
        se.softmax(kind(np.ones(3), 7))


def test_streams(monkeypatch):
    seen, waits = [], []
    on_device = _core.on_device
    monkeypatch.setattr(_core, "on_device", lambda *a, **k: (seen.append(a[2]), on_device(*a, **k))[1])
    monkeypatch.setattr(_core, "synchronize", lambda device, stream: waits.append(stream))
    x = rows((2, 3), np.float32)
    DLPackArray.streams.clear()
    se.softmax(DLPackArray(x))  # tells no stream: the default one, and the result is waited for
    assert (DLPackArray.streams, seen, waits) == ([1, 1], [1], [1])
    monkeypatch.setattr(CudaArray, "stream", 5)
    se.softmax(CudaArray(x))  # in the order of its own stream: no waiting
    se.softmax(TableArray(x))
    assert (seen, waits) == ([1, 5, 1234], [1])
    other = CudaArray(np.ones_like(x))
    monkeypatch.setattr(type(other), "stream", property(lambda self: 6 if self is other else 5))
    se.softmax_vjp(other, CudaArray(x))  # what another stream writes is waited for
    assert (seen, waits) == ([1, 5, 1234, 5], [1, 6])


@pytest.mark.parametrize("call, error, message", [
    (lambda x: se.softmax(x, out=x.array), TypeError, "softmax: out is on the CPU, accepted: a CUDA device"),
    (lambda x: se.softmax(x, where=[True]), TypeError, "softmax: where is on the CPU, accepted: a CUDA device"),
    (lambda x: se.softmax(x, axis=2), ValueError, "softmax: axis 2 is out of bounds"),
    (lambda x: se.logsumexp(x, axis=2), ValueError, "axis 2 is out of bounds"),
    (lambda x: se.logsumexp(x, axis="a"), TypeError, "logsumexp: axis is 'a', accepted: an int"),
    (lambda x: se.softmax(x, temperature=-1), ValueError, "softmax: temperature is -1"),
    (lambda x: se.softmax(type(x)(np.ones(3, int))), TypeError, "softmax: x has dtype int64, accepted: float16"),
    (lambda x: se.softmax_vjp(type(x)(np.ones(3, np.float32)), type(x)(np.ones(3))), TypeError,
     "g has dtype float32, accepted"),
    (lambda x: se.softmax(x, where=x), TypeError, "softmax: where has dtype float64, accepted: bool"),
    (lambda x: se.softmax(type(x)(np.ones(3, bool))), TypeError, "softmax: x has dtype bool, accepted: float16"),
    (lambda x: se.softmax(x, out=type(x)(np.ones(3))), ValueError, r"softmax: out has shape \(3,\)"),
])
@pytest.mark.parametrize("kind", KINDS)
def test_errors(kind, call, error, message):
    with pytest.raises(error, match=message):
        call(kind(np.ones((2, 3))))


def test_a_library_that_cannot_allocate(monkeypatch):
    monkeypatch.delattr(Array, "__array_namespace__")
    x = rows((2, 3), np.float32)
    with pytest.raises(TypeError, match=r"softmax: x is a .*CudaArray, in whose library sumexp cannot make an array"):
        se.softmax(CudaArray(x))
    out = CudaArray(np.empty_like(x))
    se.softmax(CudaArray(x), out=out)
    same(out, se.softmax(x))


def test_run_tensors():
    x = rows((2, 300_000), np.float32)
    tensor, out = TableArray(x), TableArray(np.empty_like(x))
    size = _core.run_tensors(0, (tensor,), out, 1)
    assert size > 0
    for bad in (TableArray(np.zeros(size, np.float32)), TableArray(np.zeros(size, np.uint8), 1)):
        with pytest.raises(TypeError, match="workspace is"):
            _core.run_tensors(0, (tensor,), out, 1, 1.0, None, None, bad)
    short = TableArray(np.zeros(16, np.uint8))
    assert _core.run_tensors(0, (tensor,), out, 1, 1.0, None, None, short) == size
    assert _core.run_tensors(0, (tensor,), out, 1, 1.0, None, None, TableArray(np.zeros(size, np.uint8))) is None
    same(out, se.softmax(x))
    with pytest.raises(TypeError, match="out is on cuda:1, accepted: cuda:0, where the first input is"):
        _core.run_tensors(0, (tensor,), TableArray(np.empty_like(x), 1), 1)


def test_show_config():
    config = se.show_config("dicts")
    assert config["build"]["cuda"] == "the machine"
    assert config["run time"]["cuda devices"] == 2 and not config["run time"]["cuda problem"]
