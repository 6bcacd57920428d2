"""Arrays on CUDA devices: CuPy, JAX and others that speak DLPack or the CUDA array interface.

Each array is described to the module as an ndarray over its device memory, which NumPy never touches: so that
shapes, axes, masks and overlaps are checked by the same code as for NumPy arrays. The result is allocated by the
library of the array that gives the shape, and the kernels are enqueued on that array's current stream. Where a
library does not tell its stream (JAX), it is the default stream, and the call waits for it. (torch tensors take
sumexp.torch.)
"""

from typing import NamedTuple

import numpy as np

from . import _core

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
    kind, number = _device_of(value)
    if kind == CPU or (kind == CUDA and _core.cuda_architectures):
        return kind == CUDA
    raise TypeError(f"{function}: {argument} is on {_in_words(kind, number)}, accepted: {_core.served_devices()}")


def describe(function, argument, value):
    """The Memory of `value`, an array on a CUDA device."""
    kind, device = _device_of(value)
    if kind != CUDA:
        raise TypeError(
            f"{function}: {argument} is on {_in_words(kind, device)}, accepted: a CUDA device, as the other arrays are"
        )
    interface = getattr(value, "__cuda_array_interface__", None)
    if interface is not None and (interface.get("stream") is not None or not hasattr(value, "__dlpack__")):
        if interface.get("mask") is not None:
            raise TypeError(f"{function}: {argument} is a masked array, accepted: its data, with where=~mask")
        (address, readonly), stream = interface["data"], interface.get("stream")
        shape, strides, kind = interface["shape"], interface.get("strides"), interface["typestr"]
    else:
        exporter = value if hasattr(type(value), "__dlpack_c_exchange_api__") else value.__dlpack__(stream=LEGACY_STREAM)
        address, shape, strides, code, _, stream = _core.read_dlpack(exporter)
        kind, readonly = _DLPACK_KINDS.get(code), False
    if kind is None or np.dtype(kind).str not in KINDS:
        raise TypeError(
            f"{function}: {argument} has dtype {getattr(value, 'dtype', kind)}, accepted: float16, bfloat16, float32 and "
            "float64 on a CUDA device"
        )
    array = np.asarray(_Interface(address, shape, strides, kind, readonly))
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
    main = arrays[-1] if arrays[-1] != "b" else arrays[-2]  # gives the shape, the dtype and the result's library
    operands = {n: given[n] for n in (*arrays, "where", "out") if given.get(n) is not None}
    memory = {n: describe(name, n, value) for n, value in operands.items()}
    first = memory[main]
    for n, m in memory.items():
        wanted = np.dtype(bool) if n == "where" else first.array.dtype
        if m.device != first.device:
            raise TypeError(f"{name}: {n} is on cuda:{m.device}, accepted: cuda:{first.device}, where {main} is")
        if m.array.dtype != wanted or (n != "where" and wanted.kind in "bu"):
            accepted = "bool" if n == "where" else "float16, bfloat16, float32 or float64, one for all arrays"
            raise TypeError(f"{name}: {n} has dtype {m.array.dtype}, accepted: {accepted}")
    stream = LEGACY_STREAM if first.stream is None else first.stream

    shape = first.array.shape
    if "b" in memory:
        shape = np.broadcast_shapes(shape, memory["b"].array.shape)
    if name in ("logsumexp", "logsumexp_jvp"):
        shape = row_shape(name, shape, given.get("axis"), given.get("keepdims", False))
    out, dtype = given.get("out"), given[main].dtype
    signs = given.get("return_sign", False)
    new = None if out is not None and not signs else allocator(name, main, given[main])
    result = out if out is not None else new(shape, dtype)
    sign = new(shape, dtype) if signs and "b" in memory else None
    for n, value in (("out", result), ("sign", sign)):
        if value is not None:
            memory[n] = describe(name, n, value)
    for m in memory.values():  # what other streams still do to the arrays comes first
        if m.stream not in (None, stream):
            _core.synchronize(m.device, m.stream)

    options = {n: v for n, v in given.items() if n not in (*memory, "b", "where", "out", "return_sign")}
    options.update({n: memory[n].array for n in ("b", "where", "out") if n in memory})
    positional = [memory[n].array for n in arrays if n != "b"]
    sign_array = memory["sign"].array if sign is not None else None

    def run(address, size):
        return _core.on_device(name, first.device, stream, address, size, sign_array, *positional, **options)

    wanted = run(0, 0)
    if wanted:
        new = new or allocator(name, main, given[main])
        workspace = new((wanted,), np.uint8)  # given back to its library, which reuses it in the stream's order
        run(describe(name, "workspace", workspace).array.ctypes.data, wanted)
    if first.stream is None:
        _core.synchronize(first.device, stream)
    if not signs:
        return result
    return result, sign if sign is not None else plain_signs(result)


def row_shape(function, shape, axis, keepdims):
    """The shape of one result per row."""
    if axis is None:
        axes = set(range(len(shape)))
    else:
        try:
            axes = set(np.lib.array_utils.normalize_axis_tuple(axis, len(shape)))
        except TypeError:
            raise TypeError(f"{function}: axis is {axis!r}, accepted: an int, a tuple of ints or None") from None
    return tuple(1 if d in axes else n for d, n in enumerate(shape) if keepdims or d not in axes)


def plain_signs(lse):
    """The sign of a plain sum of exponentials, from its logarithm."""
    xp = lse.__array_namespace__() if hasattr(lse, "__array_namespace__") else __import__("cupy")
    return xp.where(lse != lse, lse, xp.where(lse == -np.inf, xp.zeros_like(lse), xp.ones_like(lse)))


def matrix(function, value):
    """The three explicit matrices, in the library's own operations."""
    if value.ndim == 0:
        raise ValueError(f"{function}: the array has shape (), accepted: at least one dimension")
    xp = value.__array_namespace__() if hasattr(value, "__array_namespace__") else __import__("cupy")
    y = call("softmax", ("x",), {"x": value}) if function == "logsumexp_hessian" else value
    one = xp.eye(value.shape[-1], dtype=value.dtype)
    if function == "log_softmax_jacobian":
        return one - xp.exp(y)[..., None, :]
    return one * y[..., None, :] - y[..., :, None] * y[..., None, :]
