"""What sumexp.softmax and the other functions of the package do when they are given torch tensors."""

import numpy as np
import torch

from .. import _arrays
from . import _formulas, _kernels
from ._front import autocast, check_temperature, is_ours, soft, summed, way
from ._private import forward_ad, functorch_active


def _dims(x, axis):
    return tuple(range(x.dim())) if axis is None else _kernels.dims_of(axis, x.dim())


def _tensor(function, argument, value):
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{function}: {argument} is a {type(value).__name__}, accepted: a tensor, as the others are")
    return value


def _beside(function, argument, tensor, name, other):
    """A TypeError unless the tensor is on the device of `other`, which is argument `name`."""
    if tensor.device != other.device:
        raise TypeError(f"{function}: {argument} is on {tensor.device}, accepted: {other.device}, where {name} is")
    return tensor


def _leave_out(function, x, where):
    """x with -inf, which adds nothing to a sum, where the mask is False."""
    if where is None:
        return x
    if isinstance(where, torch.Tensor):
        _beside(function, "where", where, "x", x)
    mask = torch.as_tensor(where, device=x.device)
    if mask.dtype is not torch.bool:
        raise TypeError(f"{function}: where has dtype {mask.dtype}, accepted: torch.bool")
    if len(mask.shape) > x.dim() or any(m not in (1, n) for m, n in zip(reversed(mask.shape), reversed(x.shape))):
        raise ValueError(f"{function}: where has shape {tuple(mask.shape)}, accepted: {tuple(x.shape)}, or what broadcasts to it")
    return x.masked_fill(~mask, float("-inf"))


def _into(function, out, result):
    if out is None:
        return result
    _beside(function, "out", _tensor(function, "out", out), "the result", result)
    if torch.is_grad_enabled() and (out.requires_grad or result.requires_grad):
        raise RuntimeError(f"{function}: out= cannot be differentiated; leave it out, or use torch.no_grad()")
    if out.dtype != result.dtype:
        raise TypeError(f"{function}: out has dtype {out.dtype}, accepted: {result.dtype}, the dtype of the result")
    if out.shape != result.shape:
        raise ValueError(f"{function}: out has shape {tuple(out.shape)}, accepted: {tuple(result.shape)}")
    return out.copy_(result)


def _softmax(x, axis=-1, *, temperature=1.0, where=None, out=None, _name="softmax"):
    x = autocast(_leave_out(_name, _tensor(_name, "x", x), where))
    T = check_temperature(_name, temperature)
    dims = _dims(x, axis)
    y = soft(_name, x, dims, T) if is_ours(_name, x) else getattr(_formulas, _name)(x, dims, T)
    return _into(_name, out, y)


def _log_softmax(x, axis=-1, **options):
    return _softmax(x, axis, _name="log_softmax", **options)


def _logsumexp(x, axis=None, *, b=None, keepdims=False, return_sign=False, where=None, out=None):
    x = _leave_out("logsumexp", _tensor("logsumexp", "x", x), where)
    if b is None:
        x = x if x.is_floating_point() or x.is_complex() else x.to(torch.get_default_dtype())
        dims = _dims(x, axis)
        lse = summed(x, dims, keepdims) if is_ours("logsumexp", x) else torch.logsumexp(x, dims, keepdims)
        if not return_sign:
            return _into("logsumexp", out, lse)
        one = torch.where(lse == float("-inf"), 0, torch.ones_like(lse)).masked_fill(lse.isnan(), float("nan"))
        return _into("logsumexp", out, lse), one
    if isinstance(b, torch.Tensor):
        _beside("logsumexp", "b", b, "x", x)
    x, b = torch.broadcast_tensors(x, torch.as_tensor(b, dtype=x.dtype, device=x.device))
    if not is_ours("logsumexp", x) or way(x) != "kernel" or way(b) != "kernel":
        raise NotImplementedError(
            "logsumexp: b with gradients, transforms or a tensor the kernels do not take; for positive weights "
            "use logsumexp(x + b.log())"
        )
    dims = _dims(x, axis)
    lse, sign = (x.new_empty(_kernels.row_shape(x.shape, dims, keepdims)) for _ in range(2))
    _kernels.launch("logsumexp", (x.resolve_neg(), b.resolve_neg()), lse, dims, sign=sign)
    if not return_sign:
        return _into("logsumexp", out, lse.masked_fill_(sign < 0, float("nan")))
    return _into("logsumexp", out, lse), sign


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
    tensors = [_tensor(function, n, given.pop(n)) for n in names]
    last = tensors[-1]  # has the full shape
    out, keepdims = given.pop("out", None), given.pop("keepdims", False)
    dims = _dims(last, given.pop("axis", None if "logsumexp" in op else -1))
    T = check_temperature(function, given.pop("temperature", 1.0))
    shapes = [last.shape] * len(names)
    if op == "logsumexp_vjp":
        shapes[0] = _kernels.row_shape(last.shape, dims, keepdims)
    for n, t, shape in zip(names, tensors, shapes):
        _beside(function, n, t, names[-1], last)
        if t.shape != torch.Size(shape) or t.dtype != last.dtype:
            raise ValueError(
                f"{function}: {n} has shape {tuple(t.shape)} and dtype {t.dtype}, accepted: {tuple(shape)} and {last.dtype}"
            )
    if op == "logsumexp_vjp":
        tensors[0] = tensors[0].reshape(_kernels.row_shape(last.shape, dims))
    if "logsumexp" in op:
        tensors.reverse()  # the operations take x first
    forward_mode = forward_ad._current_level >= 0 or functorch_active()
    if forward_mode or not all(is_ours(function, t) for t in tensors):
        result = getattr(_formulas, op)(*tensors, dims, T)
    else:
        result = getattr(torch.ops.sumexp, op)(*tensors, dims, *(() if "logsumexp" in op else (T,)))
    if op == "logsumexp_jvp" and not keepdims:
        result = result.reshape(_kernels.row_shape(last.shape, dims, False))
    return _into(function, out, result)


# -- explicit matrices ---------------------------------------------------------------------------------------


def _matrix(function, x):
    x = _tensor(function, "x" if function == "logsumexp_hessian" else "y", x)
    if x.dim() == 0:
        raise ValueError(f"{function}: the tensor has shape (), accepted: at least one dimension")
    if is_ours(function, x) and way(x) == "kernel" and x.dtype != torch.bfloat16 and x.device.type == "cpu":
        return torch.from_numpy(np.asarray(getattr(_arrays, function)(x.resolve_neg().detach().numpy())))
    if function == "log_softmax_jacobian":
        return torch.eye(x.shape[-1], dtype=x.dtype, device=x.device) - x.exp().unsqueeze(-2)
    y = _softmax(x) if function == "logsumexp_hessian" else x
    return torch.diag_embed(y) - y.unsqueeze(-1) * y.unsqueeze(-2)


_FORWARD = {"softmax": _softmax, "log_softmax": _log_softmax, "logsumexp": _logsumexp}


def dispatch(name, args, kwargs):
    """The function of the package called `name`, on tensors."""
    if name in _FORWARD:
        return _FORWARD[name](*args, **kwargs)
    if name in _DERIVATIVES:
        return _derivative(name, *args, **kwargs)
    return _matrix(name, *args)
