"""The operations as torch.library knows them: torch.ops.sumexp.softmax and so on.

This is what a compiled, exported or traced program calls. Each operation has a schema, a kernel, a fake
(shapes and strides only), a vmap rule, and a derivative with respect to each of its tensors, taken as
independent variables: softmax_vjp(g, y) is differentiated in y whether or not y is a softmax. (The eager
path in _functions.py differentiates in x instead, so that second derivatives are kernels as well.)
"""

import torch

from .._row_shapes import row_shape
from . import _formulas
from ._formulas import from_winner, total
from ._kernels import ROW_RESULT, is_traced, run
from ._private import (
    AutogradInfo,
    TracingContext,
    forward_ad,
    functorch_active,
    make_autograd_impl,
    register_decomposition,
    unpack_dual,
)
from ._vmap import batch

LIBRARY = torch.library.Library("sumexp", "DEF")

# name -> (tensors, further arguments)
SCHEMAS = {
    "softmax": (("x",), "float temperature=1.0"),
    "log_softmax": (("x",), "float temperature=1.0"),
    "logsumexp": (("x",), "bool keepdim=False"),
    "softmax_vjp": (("g", "y"), "float temperature=1.0"),
    "log_softmax_vjp": (("g", "y"), "float temperature=1.0"),
    "log_softmax_jvp": (("t", "y"), "float temperature=1.0"),
    "logsumexp_vjp": (("x", "g"), ""),  # g has length 1 along dim
    "logsumexp_jvp": (("x", "t"), ""),  # and so has the result
    "softmax_hvp": (("g", "v", "y"), "float temperature=1.0"),
    "log_softmax_hvp": (("g", "v", "y"), "float temperature=1.0"),
}

ops = torch.ops.sumexp


# -- derivatives --------------------------------------------------------------------------------------------
# u is the gradient of the result, T the temperature. softmax and log_softmax keep their result y, the others
# their tensors.


def _softmax(u, y, dims, T):
    return (ops.softmax_vjp(u, y, dims, T),)


def _log_softmax(u, y, dims, T):
    return (ops.log_softmax_vjp(u, y, dims, T),)


def _logsumexp(u, x, dims, keepdim):
    u = u if keepdim else u.reshape(row_shape(x.shape, dims))
    return (ops.logsumexp_vjp(x, u, dims),)


def _softmax_vjp(u, g, y, dims, T):  # y (g - <y, g>) / T
    return ops.softmax_vjp(u, y, dims, T), (u * (g - total(y * g, dims)) - g * total(y * u, dims)) / T


def _log_softmax_vjp(u, g, y, dims, T):  # (g - e^y sum g) / T
    return ops.log_softmax_jvp(u, y, dims, T), -u * y.exp() * total(g, dims) / T


def _log_softmax_jvp(u, t, y, dims, T):  # (t - <e^y, t>) / T
    return ops.log_softmax_vjp(u, y, dims, T), -total(u, dims) * y.exp() * t / T


def _logsumexp_vjp(u, x, g, dims):  # g s
    s = ops.softmax(x, dims).masked_fill(x == -torch.inf, 0)
    return ops.softmax_vjp(from_winner(g * u, s, dims), s, dims), ops.logsumexp_jvp(x, u, dims)


def _logsumexp_jvp(u, x, t, dims):  # <s, t>
    s = ops.softmax(x, dims).masked_fill(x == -torch.inf, 0)
    return ops.softmax_vjp(from_winner(u * t, s, dims), s, dims), ops.logsumexp_vjp(x, u, dims)


def hvp_in_y(u, g, v, y, dims, T):
    """The gradient of <u, softmax_hvp(g, v, y)> in y, every y_i a variable of its own."""
    u0, g0, v0 = (t - total(y * t, dims) for t in (u, g, v))
    mixed = u * total(y * g0 * v0, dims) + g * total(y * u0 * v0, dims) + v * total(y * u0 * g0, dims)
    return (u0 * g0 * v0 - mixed) / T**2


def _softmax_hvp(u, g, v, y, dims, T):  # symmetric in u, g and v
    return ops.softmax_hvp(u, v, y, dims, T), ops.softmax_hvp(g, u, y, dims, T), hvp_in_y(u, g, v, y, dims, T)


def _log_softmax_hvp(u, g, v, y, dims, T):  # -sum(g) s (v - <s, v>) / T^2 with s = e^y
    s = y.exp()
    us, vs = total(s * u, dims), total(s * v, dims)
    return (
        (-total(u * s * (v - vs), dims) / T**2).expand_as(g),
        ops.log_softmax_hvp(g, u, y, dims, T),
        -total(g, dims) * s * (u * (v - vs) - v * us) / T**2,
    )


def has_tangent(t):
    return unpack_dual(t, level=0).tangent is not None


def maybe_dual():
    """Whether tensors have to be asked for tangents. Asking is an operation of torch's, which make_fx would record."""
    # compiled code enters a level without telling torch.autograd.forward_ad
    return forward_ad._current_level >= 0 or TracingContext.try_get() is not None or not is_traced()


# -- registration --------------------------------------------------------------------------------------------


def _register(name, derivative):
    tensors, extra = SCHEMAS[name]
    count = len(tensors)
    arguments = [f"Tensor {t}" for t in tensors] + ["int[] dim"] + ([extra] if extra else [])
    # flexible_layout: the kernels take any strides, so no copies are needed to keep them.
    tags = (torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout)
    LIBRARY.define(f"{name}({', '.join(arguments)}) -> Tensor", tags=tags)
    qualified = f"sumexp::{name}"

    def options(rest):
        """(temperature, keepdim) from what follows dim."""
        if name == "logsumexp":
            return 1.0, rest[0] if rest else False
        return rest[0] if rest else 1.0, True

    def kernel(*args):
        return run(name, args[:count], tuple(args[count]), *options(args[count + 1 :]))

    def fake(*args):
        x, dims = args[0], args[count]
        if any(t.device != x.device for t in args[:count]):
            raise RuntimeError(f"{name}: tensors are on {', '.join(str(t.device) for t in args[:count])}, accepted: one device")
        keepdim = options(args[count + 1 :])[1]
        if name == "logsumexp_vjp":
            return torch.empty_like(x)
        return x.new_empty(row_shape(x.shape, dims, keepdim) if name in ROW_RESULT else x.shape)

    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*((output,) if name in ("softmax", "log_softmax") else inputs[:count]))
        ctx.rest = inputs[count:]

    def backward(ctx, u):
        return *derivative(u, *ctx.saved_tensors, *ctx.rest), *(None for _ in ctx.rest)

    def vmap(info, in_dims, *args):
        # logsumexp's result loses its reduced dimensions, not the batch in front of them.
        moved, dims = batch(info.batch_size, in_dims[:count], args[:count], args[count])
        return getattr(ops, name)(*moved, dims, *args[count + 1 :]), 0

    reverse = make_autograd_impl(getattr(ops, name).default, AutogradInfo(backward, setup_context))

    def autograd(keyset, *args):
        # What register_autograd makes refuses functorch's grad, and drops tangents silently.
        if functorch_active() or (maybe_dual() and any(map(has_tangent, args[:count]))):
            return formula(*args)
        return reverse(keyset, *args)

    def formula(*args):
        temperature, keepdim = options(args[count + 1 :])
        if name == "logsumexp":
            return _formulas.logsumexp(args[0], args[1], keepdim)
        return getattr(_formulas, name)(*args[: count + 1], temperature)

    def decomposition(*args):  # with the strides of fake()
        result = formula(*args).contiguous()
        if name == "logsumexp_vjp" and not args[0].is_contiguous():
            return torch.zeros_like(args[0]).add(result)  # the first tensor's strides
        return result

    for device in ("CPU", "CUDA"):
        LIBRARY.impl(name, kernel, device)
    LIBRARY.impl(name, autograd, "Autograd", with_keyset=True)
    if register_decomposition is not None:
        register_decomposition(getattr(ops, name).default)(decomposition)
    torch.library.register_fake(qualified, fake, lib=LIBRARY)
    torch.library.register_vmap(qualified, vmap, lib=LIBRARY)


for _name in SCHEMAS:
    _register(_name, globals()["_" + _name])
