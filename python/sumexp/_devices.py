"""Arrays on CUDA devices: CuPy, JAX and others that speak DLPack or the CUDA array interface.

Each array is described to the module as an ndarray over its device memory, which NumPy never touches: so that
shapes, axes, masks and overlaps are checked by the same code as for NumPy arrays. The result is allocated by the
library of the array that gives the shape, and the kernels are enqueued on that array's current stream. Where a
library does not tell its stream (JAX), it is the default stream, and the call waits for it. (torch tensors take
sumexp.torch.)
"""

import contextlib
import functools
import importlib
import sys
from typing import NamedTuple

import numpy as np

from . import _core
from ._row_shapes import check_axes, row_shape

CPU, CUDA = 1, 2
LEGACY_STREAM = 1  # the default stream, in the numbering of both protocols
# dtypes: (code, bits) of DLPack -> their names in the array interfaces, which have bfloat16 as two bytes of anything
_DLPACK_KINDS = {(2, 16): "<f2", (4, 16): "|V2", (2, 32): "<f4", (2, 64): "<f8", (6, 8): "|b1", (1, 8): "|u1"}
KINDS = set(_DLPACK_KINDS.values())


class Memory(NamedTuple):
    """Where an array lies."""

    array: np.ndarray  # of its shape, strides and dtype, over the device's addresses: not to be read
    device: int
    stream: int | None  # None: its library does not say, but nothing is under way on it


class _Interface:
    """What np.asarray makes an array from without looking at the memory."""

    def __init__(self, address, shape, strides, typestr, readonly):
        self.__array_interface__ = {
            "data": (address, readonly),
            "shape": shape,
            "strides": strides,
            "typestr": typestr,
            "version": 3,
        }


def is_torch(value):
    """A tensor of torch, or what stands for one while torch.fx traces."""
    if value is None or type(value) is np.ndarray:
        return False
    # No import: where torch has not been imported, nothing can be a tensor.
    torch = sys.modules.get("torch")
    try:
        return torch is not None and isinstance(value, (torch.Tensor, torch.fx.Proxy))
    except AttributeError:  # it is just being imported
        return False


def is_foreign(value):
    """An array of another library: one that speaks DLPack or the CUDA array interface."""
    kind = type(value)
    return not issubclass(kind, (np.ndarray, np.generic)) and (
        hasattr(kind, "__dlpack__") or hasattr(kind, "__cuda_array_interface__")
    )


def _device_of(value):
    """(DLPack device type, number) of an array of any library; pinned memory is the CPU's, managed memory CUDA's."""
    if not is_foreign(value):
        return CPU, 0
    if not hasattr(value, "__dlpack_device__"):
        return CUDA, _core.device_at(value.__cuda_array_interface__["data"][0])
    kind, number = value.__dlpack_device__()
    return {3: CPU, 13: CUDA}.get(int(kind), int(kind)), int(number)


def _in_words(kind, number):
    return "the CPU" if kind == CPU else f"cuda:{number}" if kind == CUDA else f"a device of DLPack type {kind}"


def on_device(function, argument, value):
    """Whether an argument is on a CUDA device; a TypeError where it is on one that this build does not serve."""
    if value is None or not is_foreign(value):
        return False
    try:
        kind, number = _device_of(value)
    except AttributeError:  # the type has it and the value has not: jax's, within jit or grad
        given = f"a {type(value).__name__}, which has no memory"
        raise TypeError(f"{function}: {argument} is {given}, accepted: arrays outside of transformations") from None
    if kind == CPU or (kind == CUDA and _core.cuda_architectures):
        return kind == CUDA
    raise TypeError(f"{function}: {argument} is on {_in_words(kind, number)}, accepted: {_core.served_devices()}")


def _export(value):
    """A DLPack capsule of `value` that is ready for the default stream, with a version where its library knows of them."""
    try:
        return value.__dlpack__(stream=LEGACY_STREAM, max_version=(1, 0))
    except TypeError:
        return value.__dlpack__(stream=LEGACY_STREAM)


def _interface(value):
    """The CUDA array interface of `value`, or None. CuPy names the stream of the current device: it is asked on the array's."""
    beside = value.device if type(value).__module__.partition(".")[0] == "cupy" else contextlib.nullcontext()
    with beside:
        return getattr(value, "__cuda_array_interface__", None)


def describe(function, argument, value, ours=False):
    """The Memory of `value`, an array on a CUDA device; one of `ours` has just been made, to be written to."""
    kind, device = _device_of(value)
    if kind != CUDA:
        raise TypeError(
            f"{function}: {argument} is on {_in_words(kind, device)}, accepted: a CUDA device, as the other arrays are"
        )
    interface = _interface(value)
    if interface is not None and (interface.get("stream") is not None or not hasattr(value, "__dlpack__")):
        if interface.get("mask") is not None:
            raise TypeError(f"{function}: {argument} is a masked array, accepted: its data")
        (address, readonly), stream = interface["data"], interface.get("stream")
        shape, strides, kind = interface["shape"], interface.get("strides"), interface["typestr"]
    else:
        exporter = value if hasattr(type(value), "__dlpack_c_exchange_api__") else _export(value)
        address, shape, strides, code, _, stream, readonly = _core.read_dlpack(exporter)
        kind = _DLPACK_KINDS.get(code)
    if kind is None or np.dtype(kind).str not in KINDS:
        raise TypeError(
            f"{function}: {argument} has dtype {getattr(value, 'dtype', kind)}, accepted: float16, bfloat16, float32 and "
            "float64 on a CUDA device"
        )
    array = np.asarray(_Interface(address, shape, strides, kind, readonly and not ours))
    if array.dtype.kind == "V":
        import ml_dtypes  # whoever has such arrays has it

        array = array.view(ml_dtypes.bfloat16)
    return Memory(array, device, stream)


def allocator(function, argument, like):
    """new(shape, dtype): an empty array beside `like`, in its library."""
    module = type(like).__module__.partition(".")[0]
    if module == "cupy":
        import cupy

        def new(shape, dtype):
            with like.device:
                return cupy.empty(shape, dtype)

        return new
    if not hasattr(like, "__array_namespace__"):
        raise TypeError(
            f"{function}: {argument} is a {type(like).__module__}.{type(like).__qualname__}, in whose library sumexp "
            "cannot make an array; accepted: out= from that library, or an array with __array_namespace__"
        )
    library = like.__array_namespace__()
    return lambda shape, dtype: library.empty(shape, dtype=dtype, device=like.device)


def call(name, arrays, given):
    """sumexp.<name> on arrays of CUDA devices. `arrays` are the names among the keyword arguments `given`."""
    main = next(n for n in reversed(arrays) if n != "b")  # gives the shape, the dtype and the result's library
    memory = _described(name, main, {n: given[n] for n in (*arrays, "where", "out") if given.get(n) is not None})
    first = memory[main]
    new = functools.cache(lambda: allocator(name, main, given[main]))

    shape = np.broadcast_shapes(*(memory[n].array.shape for n in (main, "b") if n in memory))
    if name in ("logsumexp", "logsumexp_jvp"):
        shape = row_shape(shape, check_axes(name, given.get("axis"), len(shape)), given.get("keepdims", False))
    signs, dtype = given.get("return_sign", False), given[main].dtype
    result = given["out"] if "out" in memory else new()(shape, dtype)
    sign = new()(shape, dtype) if signs and "b" in memory else None
    for n, value in (("out", result), ("sign", sign)):
        if value is not None:
            memory[n] = describe(name, n, value, ours=n not in memory)

    stream = LEGACY_STREAM if first.stream is None else first.stream
    for m in memory.values():  # what other streams still do to the arrays comes first
        others = LEGACY_STREAM if m.stream is None else m.stream  # what describe() has had it export to
        if others != stream:
            _core.synchronize(m.device, others)
    options = {n: v for n, v in given.items() if n not in (*memory, "b", "where", "out", "return_sign")}
    options.update({n: memory[n].array for n in ("b", "where", "out") if n in memory})
    positional = [memory[n].array for n in arrays if n != "b"]

    def run(address=0, size=0):
        signs_to = None if sign is None else memory["sign"].array
        return _core.on_device(name, first.device, stream, address, size, signs_to, *positional, **options)

    if size := run():
        workspace = new()((size,), np.uint8)  # given back to its library, which reuses it in the stream's order
        run(describe(name, "workspace", workspace, ours=True).array.ctypes.data, size)
    if any(m.stream is None for m in memory.values()):  # a library without a stream to wait on
        _core.synchronize(first.device, stream)
    if not signs:
        return result
    return result, plain_signs(result) if sign is None else sign


def _described(name, main, operands):
    """{argument: Memory}, all on the device of `main` and of its dtype, the mask aside."""
    memory = {n: describe(name, n, value) for n, value in operands.items()}
    device, dtype = memory[main].device, memory[main].array.dtype
    for n, m in memory.items():
        if m.device != device:
            raise TypeError(f"{name}: {n} is on cuda:{m.device}, accepted: cuda:{device}, where {main} is")
        if m.array.dtype != (np.bool_ if n == "where" else dtype) or (n != "where" and dtype.kind in "bu"):
            accepted = "bool" if n == "where" else "float16, bfloat16, float32 or float64, one for all arrays"
            raise TypeError(f"{name}: {n} has dtype {m.array.dtype}, accepted: {accepted}")
    return memory


def _namespace(value):
    """The functions of an array's library: by the array API standard, or, in older releases of CuPy, its module."""
    if hasattr(value, "__array_namespace__"):
        return value.__array_namespace__()
    return importlib.import_module(type(value).__module__.partition(".")[0])


def plain_signs(lse):
    """The sign of a plain sum of exponentials, from its logarithm."""
    xp = _namespace(lse)
    return xp.where(lse != lse, lse, xp.where(lse == -np.inf, xp.zeros_like(lse), xp.ones_like(lse)))


def matrix(function, value):
    """The three explicit matrices, in the library's own operations."""
    if value.ndim == 0:
        name = "x" if function == "logsumexp_hessian" else "y"
        raise ValueError(f"{function}: {name} has shape (), accepted: at least one dimension")
    xp = _namespace(value)
    if value.dtype.itemsize == 2:  # rounded once, from float32
        return matrix(function, value.astype(xp.float32)).astype(value.dtype)
    y = call("softmax", ("x",), {"x": value}) if function == "logsumexp_hessian" else value
    eye = xp.eye(value.shape[-1], dtype=bool)
    if function == "log_softmax_jacobian":
        y = y[..., None, :]
        return xp.where(eye, -xp.expm1(y), -xp.exp(y))
    winner = y >= 0.5625  # the others say what it leaves to 1
    rest = xp.sum(xp.where(winner, xp.zeros_like(y), y), axis=-1, keepdims=True)
    diagonal = y * xp.where(winner, rest, 1 - y)
    return xp.where(eye, diagonal[..., None], -y[..., :, None] * y[..., None, :])
