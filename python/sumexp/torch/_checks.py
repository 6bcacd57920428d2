"""Checks of tensors that all functions share, and results written to out=."""

import numpy as np
import torch
from torch.compiler import is_compiling

from .._broadcast import sum_by_halves
from ._kernels import PLAIN_TYPES, is_traced, is_wrapper
from ._private import functorch_active


def a_tensor(function, argument, value):
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{function}: {argument} is a {type(value).__name__}, accepted: a tensor")
    return value


def as_tensor(function, argument, value, device, accepted, keep=False):
    """torch.as_tensor, with an error that names the argument. Numbers and lists are float64, whatever torch's default dtype is.
    An array is copied where it is to be kept for a gradient: autograd does not see what is written to it."""
    if isinstance(value, torch.Tensor):
        return torch.as_tensor(value, device=device)
    try:
        tensor = torch.as_tensor(value, device=device)
        if hasattr(value, "dtype"):
            return tensor.clone() if keep else tensor
        return torch.as_tensor(value, dtype=torch.float64, device=device) if tensor.is_floating_point() else tensor
    except (RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"{function}: {argument} is a {type(value).__name__} ({error}), accepted: {accepted}") from None


def counts_as(value, tensor):
    """The dtype of `tensor`, which is made of `value`, in a promotion: torch's default, where it is floating and no array."""
    return tensor.dtype if hasattr(value, "dtype") or not tensor.is_floating_point() else torch.get_default_dtype()


def is_recorded(*tensors):
    """Whether a gradient may be asked for later; some may be None or no tensors."""
    requires = any(isinstance(t, torch.Tensor) and t.requires_grad for t in tensors)
    return (torch.is_grad_enabled() and requires) or functorch_active()


def beside(function, argument, tensor, name, other):
    """A TypeError unless the tensor is on the device of `other`, which is argument `name`."""
    if tensor.device != other.device:
        raise TypeError(f"{function}: {argument} is on {tensor.device}, accepted: {other.device}, where {name} is")
    return tensor


def floating(x):
    """x, or integers and bools in torch's default dtype, as torch.logsumexp has it."""
    return x if x.is_floating_point() or x.is_complex() else x.to(torch.get_default_dtype())


def no_complex(function, argument, value):
    if a_tensor(function, argument, value).is_complex():
        accepted = "float16, bfloat16, float32, float64, integers or bools"
        raise TypeError(f"{function}: {argument} has dtype {value.dtype}, accepted: {accepted}")
    return value


def real(function, argument, value):
    """A tensor of real numbers; integers and bools are of torch's default dtype."""
    return floating(no_complex(function, argument, value))


def readable(t):
    """A tensor of integers as an array where a transform would not let its values be seen; of one that vmap maps over, None."""
    if not isinstance(t, torch.Tensor) or not functorch_active():
        return t
    try:
        return np.from_dlpack(t)  # which transforms do not watch
    except (RuntimeError, TypeError, BufferError):
        pass
    dtype = np.uint64 if t.dtype is torch.uint64 else np.int64
    try:
        return np.array(t.tolist(), None if t.is_floating_point() or t.is_complex() or t.dtype is torch.bool else dtype)
    except RuntimeError:
        return None


def values_of(t):
    """Integers on the CPU as an array; None where they cannot be seen: in programs, and where vmap maps over them."""
    if is_compiling() or is_traced() or type(t) not in PLAIN_TYPES or t.device.type != "cpu" or is_wrapper(t):
        return None
    values = readable(t)
    return values if values is None else np.asarray(values)


def check_classes(function, name, index, classes, *ignored):
    """A ValueError for the first index of no class, with its place, as far as values can be seen."""
    values = values_of(index)
    if values is None:
        return
    bad = (values < 0) | (values >= classes)
    for value in ignored:
        bad &= values != value
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        accepted = f"indices from 0 below {classes}" + "".join(f", and {value}" for value in ignored)
        raise ValueError(f"{function}: {name} is {values.reshape(-1)[at]} at {at}, accepted: {accepted}")


def mask_of(function, x, where, name="x"):
    """where as a tensor of x's shape; None stays None."""
    if where is None:
        return None
    if isinstance(where, torch.Tensor):
        beside(function, "where", where, name, x)
    mask = as_tensor(function, "where", where, x.device, "a tensor or an array of bool")
    if mask.dtype is not torch.bool:
        raise TypeError(f"{function}: where has dtype {mask.dtype}, accepted: torch.bool")
    if len(mask.shape) > x.dim() or any(m not in (1, n) for m, n in zip(reversed(mask.shape), reversed(x.shape))):
        accepted = f"{tuple(x.shape)}, or what broadcasts to it"
        raise ValueError(f"{function}: where has shape {tuple(mask.shape)}, accepted: {accepted}")
    return mask.expand(x.shape)


def check_out(function, out, like, shape):
    """An error unless `out` can take a result of this shape, of like's dtype and on its device."""
    beside(function, "out", a_tensor(function, "out", out), "the result", like)
    if torch.is_grad_enabled() and (out.requires_grad or like.requires_grad):
        raise RuntimeError(f"{function}: out= cannot be differentiated; leave it out, or use torch.no_grad()")
    if out.dtype != like.dtype:
        raise TypeError(f"{function}: out has dtype {out.dtype}, accepted: {like.dtype}, the dtype of the result")
    if out.shape != torch.Size(shape):
        raise ValueError(f"{function}: out has shape {tuple(out.shape)}, accepted: {tuple(shape)}")


def into(function, out, result):
    if out is None:
        return result
    check_out(function, out, result, result.shape)
    return out.copy_(result)


def summed_to(x, shape):
    """_broadcast.summed_to of a tensor."""
    return x if x.shape == shape else sum_by_halves(x.double(), shape, torch.cat).to(x.dtype)
