"""What sumexp.softmax and the other functions of the package do when they are given torch tensors."""

import numpy as np
import torch
from torch.fx import Proxy

from .. import _arrays, _core
from .._row_shapes import row_shape
from .._scalars import dtype_for_weight, weight
from . import _formulas, _kernels, _log_domain
from ._checks import a_tensor, beside, check_out, floating, into, is_recorded, mask_of, real
from ._front import autocast, check_temperature, is_ours, recorded, soft, summed, way
from ._kernels import is_traced
from ._private import dispatch_mode_count, forward_ad, functorch_active, is_tracing


def _dims(function, x, axis):
    return _log_domain.dims_of(function, "axis", axis, x)


def _leave_out(x, mask):
    """x with -inf, which adds nothing to a sum, where the mask is False."""
    return x if mask is None else x.masked_fill(~mask, float("-inf"))


# -- straight to the kernels ---------------------------------------------------------------------------------


def _is_direct(function, tensors, mask=None, watched=is_traced):
    """Whether a call is its kernel and nothing else: plain tensors, nothing recorded, watched or transformed."""
    if not all(is_ours(function, t) and way(t, watched) == "kernel" for t in tensors):
        return False
    if mask is None:
        return True
    return type(mask) in _kernels.PLAIN_TYPES and mask.layout is torch.strided and way(mask, watched) == "kernel"


def _extent(t):
    """The address of a tensor's first byte, and the one behind its last."""
    if t.numel() == 0:
        return 0, 0
    last = sum((n - 1) * step for n, step in zip(t.shape, t.stride()))
    return t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size()


def _can_write(function, out, full, others):
    """Whether a kernel may write its result to `out`, which passes _check_out, while it reads the other tensors.

    It must be apart from them, but may be exactly one of `full`, which are read element by element.
    """
    if not is_ours(function, out) or way(out) != "kernel" or out.is_neg() or _arrays.overlaps_itself(out.shape, out.stride()):
        return False
    if out.is_inference() and not torch.is_inference_mode_enabled():
        return False  # copy_ says what is wrong
    low, high = _extent(out)
    for t in (*full, *others):
        first, end = _extent(t)
        same = first == low and t.shape == out.shape and t.stride() == out.stride() and any(t is f for f in full)
        if not same and first < high and low < end:
            return False
    return True


def _launch(function, op, tensors, dims, T=1.0, *, shape, where=None, out=None, sign=None):
    """The result of a direct call: written to `out` where it lies apart, and else copied there."""
    tensors = tuple(t.resolve_neg() for t in tensors)
    target = None
    if out is not None:
        check_out(function, out, tensors[0].detach(), shape)
        rows = op in _kernels.ROW_RESULT
        full = () if rows else tensors[:1] if op == "logsumexp_vjp" else tensors
        others = [t for t in (*tensors[len(full) :], where) if t is not None]
        target = out if _can_write(function, out, full, others) else None
    result = tensors[0].new_empty(shape) if target is None else target
    _kernels.launch(op, tensors, result, dims, T, where, sign, function)
    if target is not None:
        if not out.is_inference():  # what autograd has saved of it is no longer there
            torch.autograd.graph.increment_version(out)
        return out
    return result if out is None else out.copy_(result)


# -- forward -------------------------------------------------------------------------------------------------


def _softmax(x, axis=-1, *, temperature=1.0, where=None, out=None, _name="softmax"):
    x = autocast(floating(a_tensor(_name, "x", x)))
    mask = mask_of(_name, x, where)
    T = check_temperature(_name, temperature)
    dims = _dims(_name, x, axis)
    if _is_direct(_name, (x,), mask):
        return _launch(_name, _name, (x,), dims, T, shape=x.shape, where=mask, out=out)
    x = _leave_out(x, mask)
    y = soft(_name, x, dims, T) if is_ours(_name, x) else getattr(_formulas, _name)(x, dims, T)
    return into(_name, out, y)


def _log_softmax(x, axis=-1, **options):
    return _softmax(x, axis, _name="log_softmax", **options)


def _logsumexp(x, axis=None, *, b=None, keepdims=False, return_sign=False, where=None, out=None):
    x = a_tensor("logsumexp", "x", x)
    if b is not None:
        return _weighted(x, axis, b, keepdims, return_sign, where, out)
    x = autocast(floating(x))
    mask = mask_of("logsumexp", x, where)
    dims = _dims("logsumexp", x, axis)
    if _is_direct("logsumexp", (x,), mask):
        shape = row_shape(x.shape, dims, keepdims)
        lse = _launch("logsumexp", "logsumexp", (x,), dims, shape=shape, where=mask, out=out)
    else:
        x = _leave_out(x, mask)
        lse = summed(x, dims, keepdims) if is_ours("logsumexp", x) else _formulas.logsumexp(x, dims, keepdims)
        lse = into("logsumexp", out, lse)
    if not return_sign:
        return lse
    return lse, torch.where(lse == float("-inf"), 0, torch.ones_like(lse)).masked_fill(lse.isnan(), float("nan"))


def _weights(x, b):
    """(x, b, dtype): tensors of one dtype, and that of the result. The first is the wider where the weights need it."""
    default, b = torch.get_default_dtype(), weight("logsumexp", b)
    if isinstance(b, torch.Tensor):
        beside("logsumexp", "b", b, "x", x)
        # a graph has no result_type
        dtype = torch.promote_types(x.dtype, b.dtype) if x.dim() and b.dim() else torch.result_type(x, b)
    else:
        try:
            weights = torch.as_tensor(np.asarray(b), device=x.device)  # in full, whatever torch's default dtype is
        except TypeError:
            raise TypeError(f"logsumexp: b is a {type(b).__name__}, accepted: a tensor, an array or a number") from None
        if isinstance(b, (list, tuple)) and weights.is_floating_point():
            dtype = torch.promote_types(x.dtype, default)
        else:
            dtype = torch.result_type(x, b if isinstance(b, (bool, int, float)) else weights)
        b = weights.clone() if is_recorded(x) else weights  # an array may be filled anew before the gradient
    for name, t in (("x", x), ("b", b)):
        if t.is_complex():
            raise TypeError(
                f"logsumexp: {name} has dtype {t.dtype}, accepted: {_arrays.ACCEPTED}; "
                "sumexp.special.logsumexp takes complex numbers"
            )
    dtype = dtype if dtype.is_floating_point else default
    if dtype.itemsize == 2 and x.device.type == "cuda" and torch.is_autocast_enabled("cuda"):
        dtype = torch.float32
    wide = dtype
    if b.dtype != dtype and b.dim() == 0 and way(b) == "kernel":
        wide = dtype_for_weight(b.item(), dtype)
        wide = getattr(torch, wide) if isinstance(wide, str) else wide
    elif b.dtype != dtype and dtype.itemsize == 2:  # integers
        wide = torch.float32
    return *torch.broadcast_tensors(x.to(wide), b.to(wide)), dtype


def _weighted(x, axis, b, keepdims, return_sign, where, out):
    x, b, dtype = _weights(x, b)
    mask = mask_of("logsumexp", x, where)
    if not _is_direct("logsumexp", (x, b), mask, watched=lambda: dispatch_mode_count() or is_tracing()):

        x, b = (x, b) if mask is None else (_leave_out(x, mask), b.masked_fill(~mask, 0))
        lse, sign = (t.to(dtype) for t in _log_domain.WEIGHTED(x, b, _dims("logsumexp", x, axis), bool(keepdims)))
        lse = into("logsumexp", out, lse if return_sign else lse.masked_fill(sign < 0, float("nan")))
        return (lse, sign) if return_sign else lse
    dims = _dims("logsumexp", x, axis)
    shape = row_shape(x.shape, dims, keepdims)
    sign = x.new_empty(shape)
    target = out if x.dtype == dtype else None
    lse = _launch("logsumexp", "weighted_logsumexp", (x, b), dims, shape=shape, where=mask, out=target, sign=sign)
    if x.dtype != dtype:
        lse = into("logsumexp", out, lse.to(dtype))
    return (lse, sign.to(dtype)) if return_sign else lse.masked_fill_(sign < 0, float("nan"))


# -- derivatives, as functions of tensors of their own -------------------------------------------------------

# public name -> (registered operation, its tensors in the public order)
_DERIVATIVES = {
    "softmax_vjp": ("softmax_vjp", ("g", "y")),
    "softmax_jvp": ("softmax_vjp", ("t", "y")),
    "log_softmax_vjp": ("log_softmax_vjp", ("g", "y")),
    "log_softmax_jvp": ("log_softmax_jvp", ("t", "y")),
    "logsumexp_vjp": ("logsumexp_vjp", ("g", "x")),
    "logsumexp_jvp": ("logsumexp_jvp", ("t", "x")),
    "softmax_hvp": ("softmax_hvp", ("g", "v", "y")),
    "log_softmax_hvp": ("log_softmax_hvp", ("g", "v", "y")),
}


def _derivative(function, *args, **kwargs):
    op, names = _DERIVATIVES[function]
    given = dict(zip((*names, "axis"), args), **kwargs)
    tensors = [floating(a_tensor(function, n, given.pop(n))) for n in names]
    last = tensors[-1]  # has the full shape
    out, keepdims = given.pop("out", None), given.pop("keepdims", False)
    dims = _dims(function, last, given.pop("axis", None if "logsumexp" in op else -1))
    T = check_temperature(function, given.pop("temperature", 1.0))
    shapes = [last.shape] * len(names)
    if op == "logsumexp_vjp":
        shapes[0] = row_shape(last.shape, dims, keepdims)
    for n, t, shape in zip(names, tensors, shapes):
        beside(function, n, t, names[-1], last)
        if t.shape != torch.Size(shape) or t.dtype != last.dtype:
            raise ValueError(
                f"{function}: {n} has shape {tuple(t.shape)} and dtype {t.dtype}, accepted: {tuple(shape)} and {last.dtype}"
            )
    if op == "logsumexp_vjp":
        tensors[0] = tensors[0].reshape(row_shape(last.shape, dims))
    if "logsumexp" in op:
        tensors.reverse()  # the operations take x first
    if _is_direct(function, tensors):
        shape = row_shape(last.shape, dims, keepdims) if op == "logsumexp_jvp" else last.shape
        return _launch(function, op, tensors, dims, T, shape=shape, out=out)
    forward_mode = forward_ad._current_level >= 0 or functorch_active()
    if forward_mode or not all(is_ours(function, t) for t in tensors):
        result = getattr(_formulas, op)(*tensors, dims, T)
    else:
        result = getattr(torch.ops.sumexp, op)(*tensors, dims, *(() if "logsumexp" in op else (T,)))
    if op == "logsumexp_jvp" and not keepdims:
        result = result.reshape(row_shape(last.shape, dims, False))
    return into(function, out, result)


# -- explicit matrices ---------------------------------------------------------------------------------------


def _matrix(function, x):
    name = "x" if function == "logsumexp_hessian" else "y"
    x = real(function, name, x)
    if x.dim() == 0:
        raise ValueError(f"{function}: {name} has shape (), accepted: at least one dimension")
    if x.dtype in (torch.float16, torch.bfloat16):  # rounded once, from float32
        return _matrix(function, x.float()).to(x.dtype)
    if is_ours(function, x) and way(x) == "kernel" and x.device.type == "cpu":
        _core.read_dlpack(x)  # raises where there is no memory
        return torch.from_numpy(np.asarray(_arrays.matrix(function, x.resolve_neg().detach().numpy())))
    eye = torch.eye(x.shape[-1], dtype=torch.bool, device=x.device)
    if function == "log_softmax_jacobian":
        x = x.unsqueeze(-2)
        return torch.where(eye, -x.expm1(), -x.exp())
    y = _softmax(x).masked_fill(x == -torch.inf, 0) if function == "logsumexp_hessian" else x
    winner = y >= 0.5625  # the others say what it leaves to 1
    diagonal = y * torch.where(winner, y.masked_fill(winner, 0).sum(-1, keepdim=True), 1 - y)
    return torch.where(eye, diagonal.unsqueeze(-1), -y.unsqueeze(-1) * y.unsqueeze(-2))


_FORWARD = {"softmax": _softmax, "log_softmax": _log_softmax, "logsumexp": _logsumexp}
COMPILED = (*_FORWARD, *_DERIVATIVES)  # the functions of the package that are not Python


def dispatch(name, args, kwargs):
    """The function of the package called `name`, on tensors."""
    if name in COMPILED and any(isinstance(value, Proxy) for value in (*args, *kwargs.values())):
        return recorded(getattr(_core, name), *args, **kwargs)
    if name in _FORWARD:
        return _FORWARD[name](*args, **kwargs)
    if kwargs.get("b") is not None or kwargs.get("t_b") is not None:  # of programs: outside of them sumexp goes there itself
        return getattr(_log_domain, name.replace("logsumexp", "numpy_weighted"))(*args, **kwargs)
    if name in _DERIVATIVES:
        return _derivative(name, *args, **kwargs)
    return _matrix(name, *args)
