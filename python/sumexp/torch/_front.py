"""The front door: softmax, log_softmax and logsumexp of any tensor, under any transform.

torch has no single way to register an operation that serves every transform: a registered operation has no
forward-mode derivative (torch.func.jvp would see zero tangents), and an autograd.Function with one breaks
torch.compile. So each call takes the way that is right for its situation, the first of:

0. torch.fx traces symbolically: the call itself is recorded;
1. a tensor that the kernels do not take (a tensor subclass, a sparse layout, integers, a meta tensor): torch's
   own function; but a TypeError for a device that this build does not serve, where torch's numbers would differ;
2. compiling or exporting: the registered operation; inside a functorch transform torch's own function;
3. a stand-in for a tensor, or a mode that watches operations (make_fx, FakeTensorMode): the registered one; but
   torch's own function while ONNX's older exporter traces, which knows no others;
4. a functorch transform is active: a Function of the kind functorch takes, but the registered operation where such
   a Function would not do (functionalize has no rule for it; under no_grad it would be recorded all the same; within
   a registered operation there is none);
5. a gradient or a tangent is recorded: a Function of the fast kind;
6. otherwise: the kernel.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.compiler import is_compiling, is_dynamo_compiling
from torch.fx import Proxy
from torch.overrides import handle_torch_function

from .. import _core
from .._scalars import temperature
from . import _formulas, _functions, _library
from ._kernels import DEVICES, DTYPES, PLAIN_TYPES, dims_of, is_traced, is_wrapper, run
from ._private import (
    FUNCTORCH_KEY,
    FakeTensor,
    FunctionalTensor,
    TransformType,
    dispatch_mode_count,
    empty_strided_cpu,
    forward_ad,
    function_mode_count,
    functorch_active,
    has_fast_forward,
    implicit_softmax_dim,
    interpreter_stack,
    is_excluded,
    is_functorch_wrapped,
    is_tracing,
)

_STAND_INS = (FakeTensor, FunctionalTensor)


def is_ours(function, x):
    """Whether the kernels take such a tensor; a TypeError for one on a device that this build does not serve."""
    kind = type(x)
    if not (
        (kind in PLAIN_TYPES or kind in _STAND_INS)
        and x.dtype in DTYPES
        and x.layout is torch.strided
        and not x.is_nested
    ):
        return False
    if x.device.type in DEVICES or x.device.type == "meta":
        return x.device.type != "meta"
    raise TypeError(f"{function}: a tensor is on {x.device}, accepted: {_core.served_devices()}")


def way(x, watched=is_traced):
    """Which of the ways 2 to 6 above a call takes; `watched` tells whether operations are recorded."""
    if is_compiling():
        return "torch" if functorch_active() else "op"
    if functorch_active():
        return "op" if functionalized() or is_excluded(FUNCTORCH_KEY) or not torch.is_grad_enabled() else "functorch"
    if type(x) not in PLAIN_TYPES or watched() or is_wrapper(x):
        return "torch" if is_tracing() and torch.onnx.is_in_onnx_export() else "op"
    if torch.is_inference_mode_enabled():
        return "kernel"
    if (torch.is_grad_enabled() and x.requires_grad) or forward_ad._current_level >= 0:
        return "function"
    return "kernel"


def functionalized():
    """Whether torch.func.functionalize is one of the transforms, which has no rule for Functions."""
    return any(level.key() == TransformType.Functionalize for level in interpreter_stack())


def nothing_watches():
    """Whether no transform, mode, trace or level of forward mode is active: no Function but autograd's own is needed."""
    return not (
        functorch_active() or is_traced() or forward_ad._current_level >= 0 or torch.is_inference_mode_enabled()
    )


def autocast(x, devices=("cuda",)):
    """x as torch's autocast rule for these functions has it: on these devices, 16-bit tensors are computed in float32."""
    kind = x.device.type
    narrow = kind in devices and x.dtype in (torch.float16, torch.bfloat16)
    return x.float() if narrow and torch.is_autocast_enabled(kind) else x


def soft(name, x, dims, T=1.0):
    """softmax or log_softmax over a tuple of dimensions."""
    taken = way(x)
    if taken == "torch":
        return getattr(_formulas, name)(x, dims, T)
    if taken == "op":
        return getattr(torch.ops.sumexp, name)(x, dims, T)
    x = x.resolve_neg()
    if taken == "functorch":
        return _functions.SoftmaxFunctorch.apply(x, (name, dims, T))[0]
    if taken == "function":
        return _functions.apply_softmax(x, (name, dims, T))[0]
    return run(name, (x,), dims, T)


def summed(x, dims, keepdim):
    """logsumexp over a tuple of dimensions."""
    x = autocast(x)
    taken = way(x)
    if taken == "torch":
        return _formulas.logsumexp(x, dims, keepdim)
    if taken == "op":
        return torch.ops.sumexp.logsumexp(x, dims, keepdim)
    x = x.resolve_neg()
    if taken == "functorch":
        return _functions.LogSumExpFunctorch.apply(x, dims, keepdim)
    if taken == "function":
        return _functions.apply_logsumexp(x, dims, keepdim)
    return run("logsumexp", (x,), dims, 1.0, keepdim)


# -- the public functions -----------------------------------------------------------------------------------


# A fast call answers with the result (ways 5 and 6) or None. Whether torch.compile is reading has to be asked
# first, and in Python: it cannot look into the fast call.
if has_fast_forward():
    _core.set_fast_path(
        torch.Tensor,
        empty_strided_cpu,
        (torch.float16, torch.bfloat16, torch.float32, torch.float64),
        torch.Tensor.detach,
        _functions.apply_softmax_fast,
        torch.Tensor.is_neg,
        torch.is_grad_enabled,
        torch.is_inference_mode_enabled,
        functorch_active,
        dispatch_mode_count,
        function_mode_count,
        is_tracing,
        vars(forward_ad),
        torch.Tensor.is_inference,
        torch.autograd.graph.increment_version,
        torch.nn.Parameter,
    )
_fast = _core.fast_softmax


def softmax(
    input: Tensor,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """torch.nn.functional.softmax, with softmax(input / temperature) as an extra.

    Parameters
    ----------
    input : Tensor of float16, bfloat16, float32 or float64
        Up to 64 dimensions, any strides, on the CPU or, where it was built, on a CUDA device. What torch's function takes
        besides (tensor subclasses, nested and meta tensors) goes to that.
    dim : int
        The dimension along which the result sums to 1. None chooses one as torch does, with its warning.
    dtype : torch.dtype
        Convert input to it first.
    temperature : float
        T > 0, any kind of number, also a NumPy scalar or a 0-d tensor that is not differentiated in.

    Returns
    -------
    A contiguous Tensor of input's shape and dtype (or `dtype`), within 2 ulp of the exact value, float16 and
    bfloat16 within 0.51 ulp; the bytes are those of sumexp.softmax on NumPy arrays.

    Raises
    ------
    IndexError for a dim out of range, TypeError for a device that this build does not serve or a dim that is
    not an int, ValueError for a temperature or more dimensions, RuntimeError for a tensor whose storage was
    emptied, NotImplementedError for integers, bools and complex numbers.
    """
    if dtype is None and not is_dynamo_compiling():
        y = _fast(0, input, dim, temperature)
        if y is not None:
            return y
    if isinstance(input, Proxy):
        return recorded(softmax, input, dim, _stacklevel, dtype, temperature=temperature)
    return _softmax_like("softmax", input, dim, _stacklevel, dtype, temperature)


def log_softmax(
    input: Tensor,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """torch.nn.functional.log_softmax, with log_softmax(input / temperature) as an extra.

    Parameters, result, bound and errors are those of softmax.
    """
    if dtype is None and not is_dynamo_compiling():
        y = _fast(1, input, dim, temperature)
        if y is not None:
            return y
    if isinstance(input, Proxy):
        return recorded(log_softmax, input, dim, _stacklevel, dtype, temperature=temperature)
    return _softmax_like("log_softmax", input, dim, _stacklevel, dtype, temperature)


def _check_tensor(name, x):
    if not hasattr(type(x), "__torch_function__"):
        raise TypeError(f"{name}: input is a {type(x).__name__}, accepted: a tensor")


def _softmax_like(name, x, dim, stacklevel, dtype, T):
    T = check_temperature(name, T)
    if not isinstance(dtype, (torch.dtype, type(None))):
        raise TypeError(f"{name}: dtype is {dtype!r}, accepted: a torch.dtype")
    _check_tensor(name, x)
    if type(x) in (*PLAIN_TYPES, *_STAND_INS):
        if dtype is None:
            x = autocast(x)
        elif x.device.type in DEVICES:
            x, dtype = x.to(dtype), None
    if not is_ours(name, x):
        x = _formulas.quotient(x, T)
        return getattr(torch.nn.functional, name)(x, dim, stacklevel + 2, dtype)
    if dim is None and is_compiling():  # a warning would be a graph break
        dim = 0 if x.dim() in (0, 1, 3) else 1
    elif dim is None:
        dim = implicit_softmax_dim(name, x.dim(), stacklevel + 1)
    elif isinstance(dim, (tuple, list)):
        raise TypeError(f"{name}: dim is {dim!r}, accepted: an int")
    return soft(name, x, dims_of(dim, x.dim(), name, accepted="an int"), T)


def logsumexp(
    input: Tensor,
    dim: int | Sequence[int] | None = None,
    keepdim: bool = False,
    *,
    axis: int | Sequence[int] | None = None,
    keepdims: bool | None = None,
) -> Tensor:
    """torch.logsumexp.

    Parameters
    ----------
    input : Tensor
        As for softmax; integers and bools become torch's default dtype, complex numbers go to torch's function.
    dim : int or sequence of ints
        The dimensions to sum over; an empty sequence means all, as in torch.
    keepdim : bool
        Keep them with length 1; the default is False.
    axis, keepdims
        NumPy's names of dim and keepdim, which torch takes as well.

    Returns
    -------
    A contiguous Tensor of input's dtype, within 1 ulp of max(abs(result), abs(maximum)), and 2 ulp of the result
    where the maximum is 0; float16 and bfloat16 within 0.51 ulp.

    Raises
    ------
    IndexError for a dim out of range, RuntimeError for one named twice, TypeError for a device that this build
    does not serve.
    """
    if axis is not None:
        if dim is not None:
            raise TypeError("logsumexp: axis is another name of dim, accepted: one of the two")
        dim = axis
    if keepdims is not None:
        if keepdim:
            raise TypeError("logsumexp: keepdims is another name of keepdim, accepted: one of the two")
        keepdim = keepdims
    if dim is None:
        raise TypeError("logsumexp: dim is missing, accepted: an int or a sequence of ints")
    if isinstance(input, Proxy):
        return recorded(logsumexp, input, dim, keepdim)
    _check_tensor("logsumexp", input)
    if type(input) in PLAIN_TYPES and not (input.dtype.is_floating_point or input.dtype.is_complex):
        input = input.to(torch.get_default_dtype())  # as torch does
    if isinstance(dim, (tuple, list)) and not dim:
        dim = tuple(range(input.dim()))
    if not is_ours("logsumexp", input):
        return torch.logsumexp(input, dim, keepdim)
    return summed(input, dims_of(dim, input.dim(), "logsumexp"), keepdim)


def recorded(function, *args, **kwargs):
    """A call as a node of a graph that torch.fx makes by symbolic tracing."""
    proxies = [a for a in (*args, *kwargs.values()) if isinstance(a, Proxy)]
    return handle_torch_function(function, proxies, *args, **kwargs)


def is_watched(t):
    """Whether a gradient, a tangent or a batch would be lost with a tensor's value alone."""
    return (t.requires_grad and torch.is_grad_enabled()) or (
        not is_compiling() and (is_functorch_wrapped(t) or (forward_ad._current_level >= 0 and _library.has_tangent(t)))
    )


def check_unwatched(function, name, value, accepted="a number"):
    """A TypeError for a tensor as an option, of which the number alone is read, where that would lose something."""
    if isinstance(value, torch.Tensor) and is_watched(value):
        raise TypeError(f"{function}: {name} is a tensor that is watched, accepted: {accepted}")


def check_temperature(name, T):
    """T as a float; a TypeError where it is a tensor that is watched."""
    if type(T) is float and T > 0:
        return T
    check_unwatched(name, "temperature", T, "a number; divide the input to differentiate in it")
    return temperature(name, T)
