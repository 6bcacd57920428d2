"""Arrays that the functions of sumexp._core do not take as they are, and the explicit matrices of arrays.

Those functions take exact ndarrays of one floating dtype, aligned and in native byte order. `call` makes such
arrays of its arguments, calls again, and hands the result back in the library it came from. Arrays on CUDA
devices go to _devices. Functions written in Python make them by `together`, `integers` and `result`. Nothing here
knows of torch: tensors have been sent elsewhere.
"""

import contextlib
import sys

import numpy as np

from . import _core, _devices
from ._devices import is_foreign
from ._scalars import dtype_for_weight, weight

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


def call(name, args, kwargs):
    """Calls _core.<name> with arguments it takes. They are already bound once, so the names are right."""
    given = dict(zip((*ARRAYS[name], "axis"), args), **kwargs)
    names = [n for n in (*ARRAYS[name], "b") if n in ARRAYS[name] or given.get(n) is not None]
    foreign = next((given[n] for n in names if is_foreign(given[n])), None)
    if any(_devices.on_device(name, n, given.get(n)) for n in (*names, "where", "out")):
        return _devices.call(name, names, given)
    if "b" in names:
        given["b"] = weight(name, given["b"])
    arrays = {n: ingest(name, n, given[n]) for n in names}
    dtype = common_dtype(name, {n: arrays[n] if _is_strong(given[n]) else given[n] for n in names}, arrays)
    wide = dtype
    if "b" in arrays and not _is_strong(given["b"]):
        wide = np.dtype(dtype_for_weight(given["b"], dtype))
    given.update({n: np.require(a, wide, ["ALIGNED", "ENSUREARRAY"]) for n, a in arrays.items()})

    out = given.get("out")
    if given.get("where") is not None:
        given["where"] = _mask(name, given["where"])
    if out is not None:
        given["out"] = _writeable_view(name, out)
    result = getattr(_core, name)(**given) if wide == dtype else _rounded(name, given, dtype)
    if out is not None:
        return (out, result[1]) if isinstance(result, tuple) else out
    if foreign is None:
        return result
    return tuple(map(carrier(foreign), result)) if isinstance(result, tuple) else carrier(foreign)(result)


REQUIRED = {"x", "logits", "w", "p_logits", "q_logits", "a"}  # and b beside a


def together(function, **given):
    """(ndarrays of one floating dtype, a function that hands a result back): of arrays of any library, and numbers.

    What is None stays None, but for what no function can do without. The second takes an ndarray to the library of the first
    array that is not NumPy's; a 0-d one of NumPy becomes a scalar, as everywhere in NumPy.
    """
    present = {n: v for n, v in given.items() if v is not None or n in REQUIRED or (n == "b" and "a" in given)}
    if _core.are_served(*present.values()):
        return [present.get(n) for n in given], _scalar_if_0d
    if "b" in present:
        present["b"] = weight(function, present["b"])
    for n, v in present.items():
        if _devices.on_device(function, n, v):
            raise NotImplementedError(f"{function}: {n} is on a CUDA device, accepted: arrays on the CPU")
    arrays = {n: ingest(function, n, v) for n, v in present.items()}
    dtype = common_dtype(function, {n: arrays[n] if _is_strong(v) else v for n, v in present.items()}, arrays)
    made = {n: np.require(a, dtype, ["ALIGNED", "ENSUREARRAY"]) for n, a in arrays.items()}
    foreign = next((v for v in present.values() if is_foreign(v)), None)
    back = carrier(foreign) if foreign is not None else _scalar_if_0d
    return [made.get(n) for n in given], back


def with_room(name, function, b, arrays, options, out=None):
    """function(**arrays, b=b, **options) as a tuple, in a dtype that has room for b, a number, and rounded to that of `arrays`;
    None where b is no number, or theirs has room."""
    if b is None or _is_strong(b):
        return None
    b = weight(name, b)
    made, back = together(name, **arrays)
    dtype = made[0].dtype
    wide = np.dtype(dtype_for_weight(b, dtype))
    if wide == dtype:
        return None
    results = function(**{n: a.astype(wide) for n, a in zip(arrays, made)}, b=b, **options)
    with np.errstate(over="ignore"):  # inf is what is meant
        first, *more = (np.asarray(r).astype(dtype) for r in (results if isinstance(results, tuple) else (results,)))
    if out is None:
        return tuple(map(back, (first, *more)))
    result(name, out, first.shape, dtype, *made)[...] = first
    return (out, *map(back, more))


def _scalar_if_0d(result):
    return result[()] if result.ndim == 0 else result


def native(array):
    """`array` in native byte order, aligned, an exact ndarray."""
    if type(array) is np.ndarray and array.flags.aligned and array.dtype.isnative:
        return array
    return np.require(array, array.dtype.newbyteorder("="), ["ALIGNED", "ENSUREARRAY"])


def integers(function, argument, value):
    """`value` as an ndarray of integers of any width."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{function}: {argument} is a masked array, accepted: an array of integers")
    array = np.from_dlpack(value) if is_foreign(value) else as_array(function, argument, value)
    if array.size == 0 and not hasattr(value, "dtype"):  # an empty list
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{function}: {argument} has dtype {array.dtype}, accepted: integers")
    return native(array)


def result(function, out, shape, dtype, *inputs, name="out", apart=()):
    """A new array, or `out` if a result of this shape and dtype can be written to it: apart from all inputs, or exactly one,
    which is none of those in `apart`."""
    if out is None:
        return np.empty(shape, dtype)
    view = _writeable_view(function, out, name)
    if view.dtype != dtype:
        raise TypeError(f"{function}: {name} has dtype {view.dtype}, accepted: {dtype}, the dtype of the result")
    if view.shape != tuple(shape):
        raise ValueError(f"{function}: {name} has shape {view.shape}, accepted: {tuple(shape)}, the shape of the result")
    if not view.flags.writeable or not view.flags.aligned:
        given = "not aligned" if view.flags.writeable else "read-only"
        raise ValueError(f"{function}: {name} is {given}, accepted: a writeable, aligned array")
    if overlaps_itself(view.shape, view.strides, view.itemsize):
        raise ValueError(f"{function}: {name} has elements that share memory, accepted: distinct elements")
    for a in inputs:
        same = a is not None and view.ctypes.data == a.ctypes.data and view.strides == a.strides and view.shape == a.shape
        if a is not None and not same and np.may_share_memory(view, a) and shares_memory(view, a):
            raise ValueError(f"{function}: {name} overlaps an input, accepted: memory of its own, or exactly an input")
    for a in apart:
        if a is not None and np.may_share_memory(view, a) and shares_memory(view, a):
            raise ValueError(f"{function}: {name} overlaps an input, accepted: memory of its own")
    return view


def overlaps_itself(shape, strides, size=1):
    """Whether elements of this size, in the unit of the strides, may share memory: unless each stride steps over all that the
    smaller ones reach."""
    if 0 in shape:
        return False
    reach = size - 1
    for step, n in sorted((abs(step), n) for n, step in zip(shape, strides) if n > 1):
        if step <= reach:
            return True
        reach += step * (n - 1)
    return False


def shares_memory(a, b):
    """Whether two arrays have a byte in common; True where finding out would take too long."""
    try:
        return np.shares_memory(a, b, max_work=10_000)
    except np.exceptions.TooHardError:
        return True


def as_array(function, argument, value):
    try:
        return np.asarray(value)
    except ValueError as error:  # lists of different lengths
        raise ValueError(f"{function}: {argument} is no array ({error}), accepted: an array, or lists of one length") from None


def _exported(function, argument, value):
    """What DLPack cannot hand over: bfloat16 among others, which NumPy cannot import and its owner can export."""
    try:
        return np.asarray(value)
    except (RuntimeError, TypeError, ValueError) as error:  # a tensor that requires a gradient among others
        given = f"a {type(value).__name__} that is no array ({error})"
        raise TypeError(f"{function}: {argument} is {given}, accepted: arrays that NumPy can read") from None


TAKE_WHERE = {"softmax", "log_softmax", "logsumexp", "logmeanexp", "sample", "linear_sample"}  # and masked_...


def refused_mask(function, argument):
    """The error of a masked array: masks are for where=, where the function has it."""
    takes = argument in ("x", "logits") and (function in TAKE_WHERE or function.startswith("masked_"))
    return TypeError(f"{function}: {argument} is a masked array, accepted: its data{', with where=~mask' if takes else ''}")


def ingest(function, argument, value):
    """`value` as an ndarray, of any dtype that can become one of the kernels'."""
    if isinstance(value, np.ma.MaskedArray):
        raise refused_mask(function, argument)
    if is_foreign(value):
        if hasattr(value, "resolve_neg"):  # torch's: DLPack hands over memory, without the sign
            value = value.resolve_neg()
        try:
            array = np.from_dlpack(value)
        except (BufferError, RuntimeError, TypeError, ValueError):
            array = _exported(function, argument, value)
    else:
        array = as_array(function, argument, value)
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
    strong = [v for v in operands.values() if _is_strong(v)]
    if all(v.dtype.kind in "biu" for v in strong):
        strong = operands.values()
    try:  # a number beside a floating array is of its dtype: NumPy's rule, and here bfloat16's too
        return np.result_type(*strong).newbyteorder("=")
    except TypeError:  # bfloat16 with float16 or with wide integers: NumPy knows no common dtype
        wide = any(a.dtype.kind in "biu" for a in arrays.values())
        return np.dtype(np.float64 if wide else np.float32)


def _is_strong(value):
    return not isinstance(value, (bool, int, float)) or isinstance(value, np.generic)


def _rounded(function, given, dtype):
    """A call whose operands are wider than its result's dtype, for the sake of a weight. Rounded once."""
    out = given.pop("out", None)
    result = getattr(_core, function)(**given)
    pair = result if isinstance(result, tuple) else (result,)
    pair = tuple(np.asarray(r).astype(dtype)[()] for r in pair)
    if out is not None:
        x = np.require(given["x"], dtype, ["ALIGNED", "ENSUREARRAY"])
        _core.logsumexp(x, given.get("axis"), keepdims=given.get("keepdims", False), out=out)  # its checks of out
        out[...] = pair[0]
    return pair if isinstance(result, tuple) else pair[0]


def _mask(function, value):
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{function}: where is a masked array, accepted: an array of bool")
    mask = np.from_dlpack(value) if is_foreign(value) else np.asarray(value)
    if mask.dtype != np.bool_:
        raise TypeError(f"{function}: where has dtype {mask.dtype}, accepted: bool")
    return mask


def _writeable_view(function, out, name="out"):
    view = np.from_dlpack(out) if is_foreign(out) else out
    if not isinstance(view, np.ndarray) or isinstance(view, np.ma.MaskedArray):
        raise TypeError(f"{function}: {name} is a {type(out).__name__}, accepted: an array")
    return view.view(np.ndarray)


def carrier(value):
    """The function that carries an ndarray into the library of `value`, where there is one."""
    if hasattr(value, "__array_namespace__"):
        library = value.__array_namespace__()
    else:
        library = sys.modules.get(type(value).__module__.partition(".")[0])
    from_dlpack, asarray = (getattr(library, n, None) for n in ("from_dlpack", "asarray"))

    def carry(result):
        if from_dlpack is None:
            return result
        for place in ({"device": value.device}, {}) if hasattr(value, "device") else ({},):  # older ones take no device
            try:
                return from_dlpack(np.asarray(result), **place)
            except (BufferError, NotImplementedError, RuntimeError, TypeError, ValueError):
                pass
        if hasattr(value, "__dlpack__") and asarray is not None:  # NumPy cannot export bfloat16
            with contextlib.suppress(NotImplementedError, RuntimeError, TypeError, ValueError):
                return asarray(np.asarray(result))
        return result

    return carry


# -- explicit matrices -------------------------------------------------------------------------------------

# name -> (its argument, its number in the module)
MATRICES = {"softmax_jacobian": ("y", 0), "log_softmax_jacobian": ("y", 1), "logsumexp_hessian": ("x", 2)}


def matrix(function, value):
    """softmax_jacobian, log_softmax_jacobian or logsumexp_hessian of an array."""
    argument, which = MATRICES[function]
    if _devices.on_device(function, argument, value):
        return _devices.matrix(function, value)
    array = ingest(function, argument, value)
    if array.ndim == 0:
        raise ValueError(f"{function}: {argument} has shape (), accepted: at least one dimension")
    dtype = common_dtype(function, {argument: array}, {argument: array})
    wide = np.float32 if dtype.itemsize == 2 else dtype  # 16-bit results are rounded once, from float32
    array = np.require(array, wide, ["C", "ALIGNED", "ENSUREARRAY"])
    if function == "logsumexp_hessian":
        array = np.where(array == -np.inf, 0, _core.softmax(array))  # of a row of -inf alone too
    result = _core.matrix(which, array).astype(dtype, copy=False)
    return carrier(value)(result) if is_foreign(value) else result
