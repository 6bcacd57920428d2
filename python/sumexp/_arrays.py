"""The slow path of the NumPy face, and the functions that are not hot.

The functions of sumexp._core take exact ndarrays of one floating dtype, aligned and in native byte order.
Every other call lands in `call` below, which makes such arrays, calls again, and hands the result back in
the library it came from. torch tensors go to sumexp.torch untouched, arrays on CUDA devices to _devices.
"""

import sys

import numpy as np

from . import _core, _devices
from ._devices import is_foreign

# The positional arrays of each function; "axis" follows them.
ARRAYS = {
    "softmax": ("x",),
    "log_softmax": ("x",),
    "logsumexp": ("x",),
    "softmax_vjp": ("g", "y"),
    "softmax_jvp": ("t", "y"),
    "log_softmax_vjp": ("g", "y"),
    "log_softmax_jvp": ("t", "y"),
    "logsumexp_vjp": ("g", "x"),
    "logsumexp_jvp": ("t", "x"),
    "softmax_hvp": ("g", "v", "y"),
    "log_softmax_hvp": ("g", "v", "y"),
}

SPECIAL = ("softmax", "log_softmax", "logsumexp")  # of which sumexp.special has one, for complex numbers too
ACCEPTED = "float16, bfloat16, float32, float64, integers and bools"


def is_torch(value):
    # No import: where torch has not been imported, nothing can be a tensor.
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    return tensor is not None and isinstance(value, tensor)


def call(name, args, kwargs):
    """Calls _core.<name> with arguments it takes. They are already bound once, so the names are right."""
    given = dict(zip((*ARRAYS[name], "axis"), args), **kwargs)
    if any(is_torch(value) for value in given.values()):
        from . import torch as torch_face

        return torch_face._dispatch(name, args, kwargs)

    names = [n for n in (*ARRAYS[name], "b") if n in ARRAYS[name] or given.get(n) is not None]
    foreign = next((given[n] for n in names if is_foreign(given[n])), None)
    if any(_devices.on_device(name, n, given.get(n)) for n in (*names, "where", "out")):
        return _devices.call(name, names, given)
    arrays = {n: ingest(name, n, given[n]) for n in names}
    dtype = common_dtype(name, {n: arrays[n] if _is_strong(given[n]) else given[n] for n in names}, arrays)
    given.update({n: np.require(a, dtype, ["ALIGNED", "ENSUREARRAY"]) for n, a in arrays.items()})

    out = given.get("out")
    if given.get("where") is not None:
        given["where"] = _mask(name, given["where"])
    if out is not None:
        given["out"] = _writeable_view(name, out)
    result = getattr(_core, name)(**given)
    if out is not None:
        return (out, result[1]) if isinstance(result, tuple) else out
    if foreign is None:
        return result
    return tuple(map(_home(foreign), result)) if isinstance(result, tuple) else _home(foreign)(result)


def ingest(function, argument, value):
    """`value` as an ndarray, of any dtype that can become one of the kernels'."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{function}: {argument} is a masked array, accepted: its data, with where=~mask")
    if is_foreign(value):
        try:
            array = np.from_dlpack(value)
        except (BufferError, RuntimeError, TypeError, ValueError):
            array = np.asarray(value)  # bfloat16 among others: NumPy cannot import it, its owner can export it
    else:
        array = np.asarray(value)
    if array.dtype == np.longdouble and array.itemsize == 8:  # where long double is double
        array = array.astype(np.float64)
    dtype = array.dtype
    if not (dtype.kind in "biu" or dtype.type in (np.float16, np.float32, np.float64) or dtype.name == "bfloat16"):
        hint = f"; sumexp.special.{function} takes complex numbers" if dtype.kind == "c" and function in SPECIAL else ""
        raise TypeError(f"{function}: {argument} has dtype {dtype}, accepted: {ACCEPTED}{hint}")
    return array


def common_dtype(function, operands, arrays):
    """The dtype to compute in: NumPy's promotion, and float64 where no operand is floating."""
    if all(a.dtype.kind in "biu" for a in arrays.values()):
        return np.dtype(np.float64)
    try:
        return np.result_type(*operands.values()).newbyteorder("=")
    except TypeError:  # bfloat16 with float16 or with wide integers: NumPy knows no common dtype
        wide = any(a.dtype.kind in "biu" for a in arrays.values())
        return np.dtype(np.float64 if wide else np.float32)


def _is_strong(value):
    return not isinstance(value, (bool, int, float)) or isinstance(value, np.generic)


def _mask(function, value):
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{function}: where is a masked array, accepted: an array of bool")
    mask = np.from_dlpack(value) if is_foreign(value) else np.asarray(value)
    if mask.dtype != np.bool_:
        raise TypeError(f"{function}: where has dtype {mask.dtype}, accepted: bool")
    return mask


def _writeable_view(function, out):
    view = np.from_dlpack(out) if is_foreign(out) else out
    if not isinstance(view, np.ndarray) or isinstance(view, np.ma.MaskedArray):
        raise TypeError(f"{function}: out is a {type(out).__name__}, accepted: an array")
    return view.view(np.ndarray)


def _home(value):
    """The function that carries an ndarray into the library of `value`, where there is one."""
    if hasattr(value, "__array_namespace__"):
        library = value.__array_namespace__()
    else:
        library = sys.modules.get(type(value).__module__.partition(".")[0])
    from_dlpack = getattr(library, "from_dlpack", None)

    def carry(result):
        if from_dlpack is None:
            return result
        try:
            return from_dlpack(np.asarray(result))
        except (BufferError, RuntimeError, TypeError, ValueError):
            return result

    return carry


# -- called from the module's C++ side ------------------------------------------------------------------


def shares_memory(a, b):
    """Whether two arrays have a byte in common; True where finding out would take too long."""
    try:
        return np.shares_memory(a, b, max_work=10_000)
    except np.exceptions.TooHardError:
        return True


def signs(lse):
    """The sign of a plain sum of exponentials, from its logarithm."""
    sign = np.ones_like(lse)
    sign[lse == -np.inf] = 0
    sign[lse != lse] = np.nan
    return sign


# -- explicit matrices -------------------------------------------------------------------------------------


def _matrix(function, argument, which, value):
    if _devices.on_device(function, argument, value):
        return _devices.matrix(function, value)
    array = ingest(function, argument, value)
    if array.ndim == 0:
        raise ValueError(f"{function}: {argument} has shape (), accepted: at least one dimension")
    dtype = common_dtype(function, {argument: array}, {argument: array})
    wide = np.float32 if dtype.itemsize == 2 else dtype  # 16-bit results are rounded once, from float32
    array = np.require(array, wide, ["C", "ALIGNED", "ENSUREARRAY"])
    if function == "logsumexp_hessian":
        array = _core.softmax(array)
    result = _core.matrix(which, array).astype(dtype, copy=False)
    return _home(value)(result) if is_foreign(value) else result


def softmax_jacobian(y):
    """The Jacobian of softmax over the last axis, diag(y) - y y^T with y = softmax(x).

    Takes y of shape (..., K), returns (..., K, K) of the same dtype. K * K numbers for every row: ask for it
    only where the matrix itself is needed; softmax_vjp and softmax_jvp multiply by it without forming it.
    Every entry is within 2 eps of y_i (1 - y_i) or y_i y_j, for the y given, in which the probability of an element above
    9/16 counts, in 1 - y_i, for what the others leave to 1; eps is that of the dtype, 16-bit matrices being computed in
    float32 and rounded once. TypeError and ValueError as for softmax.
    """
    if is_torch(y):
        from . import torch as torch_face

        return torch_face._dispatch("softmax_jacobian", (y,), {})
    return _matrix("softmax_jacobian", "y", 0, y)


def log_softmax_jacobian(y):
    """The Jacobian of log_softmax over the last axis, I - 1 exp(y)^T with y = log_softmax(x).

    Takes y of shape (..., K), returns (..., K, K) of the same dtype: row i is the gradient of output i.
    Not symmetric: log_softmax_vjp and log_softmax_jvp multiply by its two sides without forming it. Every entry,
    1 - exp(y_i) or -exp(y_j), is within 2 eps of itself, for the y given. Dtypes and errors as for softmax_jacobian.
    """
    if is_torch(y):
        from . import torch as torch_face

        return torch_face._dispatch("log_softmax_jacobian", (y,), {})
    return _matrix("log_softmax_jacobian", "y", 1, y)


def logsumexp_hessian(x):
    """The Hessian of logsumexp over the last axis, diag(s) - s s^T with s = softmax(x).

    Takes x of shape (..., K), returns (..., K, K) of the same dtype. softmax_vjp(v, softmax(x)) is the product
    with v, without forming it. Every entry is within 5 eps of itself, s being within 2 ulp. Dtypes and errors as for
    softmax_jacobian.
    """
    if is_torch(x):
        from . import torch as torch_face

        return torch_face._dispatch("logsumexp_hessian", (x,), {})
    return _matrix("logsumexp_hessian", "x", 2, x)
