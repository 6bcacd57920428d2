"""Checks of tensors that all functions share, and results written to out=."""

import torch


def a_tensor(function, argument, value):
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{function}: {argument} is a {type(value).__name__}, accepted: a tensor, as the others are")
    return value


def beside(function, argument, tensor, name, other):
    """A TypeError unless the tensor is on the device of `other`, which is argument `name`."""
    if tensor.device != other.device:
        raise TypeError(f"{function}: {argument} is on {tensor.device}, accepted: {other.device}, where {name} is")
    return tensor


def floating(x):
    """x, or integers and bools in torch's default dtype, as torch.logsumexp has it."""
    return x if x.is_floating_point() or x.is_complex() else x.to(torch.get_default_dtype())


def mask_of(function, x, where):
    """where as a tensor of x's shape; None stays None."""
    if where is None:
        return None
    if isinstance(where, torch.Tensor):
        beside(function, "where", where, "x", x)
    mask = torch.as_tensor(where, device=x.device)
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
