"""Functions of the log domain on tensors: elementwise ones, running sums, means, and logsumexp with weights."""

from typing import Any

import torch
from torch.autograd import Function
from torch.compiler import is_compiling
from torch.nn.functional import softplus as softplus_of

from .. import _core
from .._operations import LOG_DOMAIN as OPS
from .._row_shapes import row_shape
from .._scalars import real
from . import _kernels
from ._checks import as_tensor, floating, into, mask_of, no_complex, summed_to
from ._composed import Composed
from ._front import functionalized, is_ours, is_watched
from ._functions import jvp_rule
from ._kernels import is_wrapper, result_like
from ._library import LIBRARY
from ._private import FUNCTORCH_KEY, dispatch_mode_count, forward_ad, functorch_active, is_excluded, is_legacy_batched

_INF = float("inf")
NUMBERS = "a tensor, an array or a number"


def _common_dtype(values):
    """torch.result_type, which no graph has, of tensors and numbers; the default dtype where it is not floating."""
    for tensors in ([v for v in values if isinstance(v, torch.Tensor) and v.dim() > 0],
                    [v for v in values if isinstance(v, torch.Tensor)]):  # fmt: skip
        if not tensors:
            continue
        dtype = tensors[0].dtype
        for v in tensors[1:]:
            dtype = torch.promote_types(dtype, v.dtype)
        if dtype.is_floating_point or dtype.is_complex:
            return dtype
    return torch.get_default_dtype()


def _prepare(function, names, *values):
    """Tensors of one shape and dtype, as torch's binary operations make them."""
    for n, v in zip(names, values):
        if not isinstance(v, (torch.Tensor, int, float)):
            raise TypeError(f"{function}: {n} is a {type(v).__name__}, accepted: a tensor or a number")
    first = next((v for v in values if isinstance(v, torch.Tensor)), None)
    if type(first) is torch.Tensor and first.dtype in _kernels.DTYPES:
        alike = [v for v in values if type(v) is torch.Tensor and v.dtype is first.dtype and v.shape == first.shape]
        if len(alike) == len(values) and all(v.device == first.device for v in alike):
            return alike
    if first is None:
        raise TypeError(f"{function}: {names[0]} is a {type(values[0]).__name__}, accepted: a tensor")
    if len(values) > 1:
        dtype = _common_dtype(values)
        tensors = []
        for n, v in zip(names, values):
            v = torch.as_tensor(v, dtype=dtype, device=first.device) if not isinstance(v, torch.Tensor) else v.to(dtype)
            if v.device != first.device:
                raise TypeError(f"{function}: {n} is on {v.device}, accepted: {first.device}, where {names[0]} is")
            tensors.append(v)
    else:
        tensors = [floating(values[0])]
    for n, v in zip(names, values):
        if isinstance(v, torch.Tensor):
            no_complex(function, n, v)
    return tensors if len(tensors) == 1 else list(torch.broadcast_tensors(*tensors))


# -- elementwise -----------------------------------------------------------------------------------------------


def _log1mexp_of(d):  # log(1 - e^-d), d >= 0; the branch that is not taken is kept away from its pole
    small = d < 0.6931
    return torch.where(
        small, (-torch.expm1(-torch.where(small, d, 1))).log(), torch.log1p(-torch.exp(-torch.where(small, 1, d)))
    )


def _logaddexp_formula(a, b):  # both branches are the whole function: right where a = b, and softplus is of numbers <= 0
    same = (a == b) & (a.abs() == _INF)
    absent = same & (a < 0)
    d = b.masked_fill(same, 0) - a.masked_fill(same, 0)
    upper = a >= b
    y = torch.where(upper, a.masked_fill(absent, 0), b.masked_fill(absent, 0)) + softplus_of(torch.where(upper, d, -d))
    return y.masked_fill(absent, -_INF)


def _logsubexp_formula(a, b):
    nothing, absent = b == -_INF, (b == -_INF) & (a == -_INF)
    d = a.masked_fill(nothing, 1) - b.masked_fill(nothing, 0)
    d = d * torch.where(d < 0, torch.nan, 1.0)
    return torch.where(nothing, a.masked_fill(absent, 0), a + _log1mexp_of(d)).masked_fill(absent, -_INF)


FORMULAS = {
    "logaddexp": _logaddexp_formula,
    "logsubexp": _logsubexp_formula,
    "log1mexp": lambda x: _log1mexp_of(torch.where(x >= 0, x, -x) + 0.0),
    "softplus": lambda x: torch.where(x > 0, x, 0) + softplus_of(torch.where(x > 0, -x, x)),
}


def _raw(name, inputs, outputs):
    _core._elementwise(name, OPS[name], tuple(t.detach().resolve_neg() for t in inputs), outputs)


def _elementwise_kernel(name):
    def kernel(*tensors):
        y = result_like(tensors[0])
        _raw(name, tensors, (y,))
        return y

    return kernel


def _elementwise_gradient(name):
    def gradient(gradients, tensors, results, options, needs):
        made = tuple(result_like(t) if needed or len(tensors) == 1 else None for t, needed in zip(tensors, needs))
        _raw(name + "_vjp", (gradients[0].to(tensors[0].dtype), *tensors), made)
        return tuple(t if needed else None for t, needed in zip(made, needs))

    return gradient


OPERATIONS = {
    name: Composed(
        name,
        ("a", "b") if "add" in name or "sub" in name else ("x",),
        "",
        kernel=_elementwise_kernel(name),
        gradient=_elementwise_gradient(name),
        formula=FORMULAS[name],
        fake=lambda a, *rest: a.new_empty(a.shape),
    )
    for name in FORMULAS
}


def logaddexp(input, other, *, out=None) -> Any:
    """torch.logaddexp: sumexp.logaddexp of tensors, under autograd and torch's transforms.

    Accuracy, special values and derivatives are those of sumexp.logaddexp and its VJP: the gradient is right at equal
    arguments, 0 where both are -inf, and every derivative is finite however far apart they are. In forward mode,
    torch.func's transforms and second derivatives it is composed of torch's operations in float64, and rounded once (float64
    itself: some eps of the largest part). On CUDA devices it has the bytes of the CPU.
    """
    return into("logaddexp", out, OPERATIONS["logaddexp"](*_prepare("logaddexp", ("input", "other"), input, other)))


def logsubexp(input, other, *, out=None) -> Any:
    """log(e^input - e^other): sumexp.logsubexp of tensors, as logaddexp."""
    return into("logsubexp", out, OPERATIONS["logsubexp"](*_prepare("logsubexp", ("input", "other"), input, other)))


def log1mexp(input, *, out=None) -> Any:
    """log(1 - e^-|input|): sumexp.log1mexp of a tensor, as logaddexp."""
    return into("log1mexp", out, OPERATIONS["log1mexp"](*_prepare("log1mexp", ("input",), input)))


def softplus(input, beta=1.0, threshold=20.0) -> Any:
    """torch.nn.functional.softplus: log(1 + e^(beta input)) / beta, under autograd and torch's transforms.

    torch replaces the function by its argument above `threshold`; here it is the function everywhere, within 2 ulp with
    beta = 1, and `threshold` is accepted without effect.
    """
    (x,) = _prepare("softplus", ("input",), input)
    if not isinstance(beta, torch.Tensor):
        beta = real("softplus", "beta", beta, "a number", lambda v: True)
    if not (isinstance(beta, torch.Tensor) and is_watched(beta)) and beta == 1:
        return OPERATIONS["softplus"](x)
    product = x * beta
    beyond = torch.isinf(product) & torch.isfinite(x)  # the product overflows, the result does not
    found = OPERATIONS["softplus"](torch.where(beyond, 0, product)) / beta
    return torch.where(beyond, torch.where(product > 0, x, 0), found)


# -- running sums ----------------------------------------------------------------------------------------------


def _running(name, given, x, dim, reverse, exclusive, jvp=False):
    # torch's dispatcher takes torch.autograd's own batches apart, and tells those who watch
    if is_wrapper(x) or (given is not None and is_wrapper(given)) or dispatch_mode_count():
        return torch.ops.sumexp.logcumsumexp_product(given, x, dim, reverse, exclusive, jvp)
    return _running_kernel(name, given, x, dim, reverse, exclusive, jvp)


def _running_kernel(name, given, x, dim, reverse, exclusive, jvp=False):
    x = x.detach().resolve_neg()
    out = result_like(x)
    arrays = [t if t is None or t.dim() else t.reshape(1) for t in (given, x, out)]
    arrays[0] = arrays[0] if arrays[0] is None else arrays[0].detach().resolve_neg().to(x.dtype)
    _core._running(name, *arrays, dim, reverse, exclusive, jvp)
    return out


def _to_front(in_dims, *tensors):
    """Tensors with their batch in front, one made of those that have none."""
    size = next(t.shape[d] for t, d in zip(tensors, in_dims) if d is not None)
    return [t.expand(size, *t.shape) if d is None else t.movedim(d, 0) for t, d in zip(tensors, in_dims)]


LIBRARY.define("logcumsumexp_product(Tensor? u, Tensor x, int dim, bool reverse, bool exclusive, bool jvp) -> Tensor")
LIBRARY.impl("logcumsumexp_product", lambda *args: _running_kernel("logcumsumexp", *args), "CPU")
torch.library.register_fake("sumexp::logcumsumexp_product", lambda u, x, *options: x.new_empty(x.shape), lib=LIBRARY)

# J_ij = e^(x_j - y_i) over the j in the sum of y_i. With dJ_ij = J_ij (dx_j - <J_i, dx>), all derivatives of x -> y, of
# g -> J^T g and of t -> J t are made of the latter two.


class _Sums(Function):
    @staticmethod
    def forward(x, dim, reverse, exclusive):
        return _running("logcumsumexp", None, x, dim, reverse, exclusive)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, *ctx.options = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx, g):
        return _recorded_product(g, ctx.saved_tensors[0], *ctx.options, False), None, None, None

    @jvp_rule
    def jvp(ctx, saved, t, *_):
        return _Product.apply(t, *saved, *ctx.options, True)

    @staticmethod
    def vmap(info, in_dims, x, dim, reverse, exclusive):
        (x,) = _to_front(in_dims[:1], x)
        return _Sums.apply(x.unsqueeze(-1) if x.dim() == 1 else x, dim + 1, reverse, exclusive).reshape(x.shape), 0


def _recorded_product(u, x, *options):
    """_Product, but of is_grads_batched the operation: what a Function records is lost when that ends."""
    if torch.is_grad_enabled() and forward_ad._current_level < 0 and (is_legacy_batched(u) or is_legacy_batched(x)):
        return torch.ops.sumexp.logcumsumexp_product(u, x, *options)
    return _Product.apply(u, x, *options)


def _product_gradient(ctx, c):
    u, x = ctx.saved_tensors
    J, Jt = (lambda v, jvp=jvp: _recorded_product(v, x, *ctx.options, jvp) for jvp in (True, False))
    p, q = (u, c) if ctx.is_jvp else (c, u)  # <q, J p>
    Jp, Jtq = J(p), Jt(q)
    return Jtq if ctx.is_jvp else Jp, p * Jtq - Jt(q * Jp), None, None, None, None


class _Product(Function):  # J u, or J^T u
    @staticmethod
    def forward(u, x, dim, reverse, exclusive, jvp):
        return _running("logcumsumexp_jvp" if jvp else "logcumsumexp_vjp", u, x, dim, reverse, exclusive, jvp)

    @staticmethod
    def setup_context(ctx, inputs, output):
        u, x, *options, ctx.is_jvp = inputs
        ctx.options = options
        ctx.save_for_backward(u, x)
        ctx.save_for_forward(u, x)

    @staticmethod
    def backward(ctx, c):
        return _product_gradient(ctx, c)

    @jvp_rule
    def jvp(ctx, saved, tu, tx, *_):
        u, x = saved
        J, Jt = (lambda v: _Product.apply(v, x, *ctx.options, True)), (lambda v: _Product.apply(v, x, *ctx.options, False))
        along = 0 if tu is None else J(tu) if ctx.is_jvp else Jt(tu)
        if tx is None:
            return along
        if ctx.is_jvp:
            return along + J(u * tx) - J(u) * J(tx)
        return along + tx * Jt(u) - Jt(u * J(tx))

    @staticmethod
    def vmap(info, in_dims, u, x, dim, reverse, exclusive, jvp):
        u, x = _to_front(in_dims[:2], u, x)
        wide = (lambda t: t.unsqueeze(-1)) if x.dim() == 1 else (lambda t: t)
        return _Product.apply(wide(u), wide(x), dim + 1, reverse, exclusive, jvp).reshape(x.shape), 0


torch.library.register_autograd(
    "sumexp::logcumsumexp_product", _product_gradient, setup_context=_Product.setup_context, lib=LIBRARY
)


def _sums_formula(x, dim, reverse, exclusive):
    ours = not is_compiling() and is_ours("logcumsumexp", x) and x.device.type == "cpu" and x.dtype in _kernels.DTYPES
    if ours and not (functorch_active() and (functionalized() or is_excluded(FUNCTORCH_KEY))):  # where no Function is taken
        y = _Sums.apply(x, dim, reverse, exclusive)
        return y if torch.is_grad_enabled() else y.clone()  # not recorded, as transforms record Functions all the same
    if x.dim() == 0:
        return x - _INF if exclusive else x.clone()
    x = x.flip(dim) if reverse else x
    y = torch.logcumsumexp(x, dim)
    if exclusive and x.shape[dim]:
        y = torch.cat([torch.full_like(y.narrow(dim, 0, 1), -_INF), y.narrow(dim, 0, x.shape[dim] - 1)], dim)
    return y.flip(dim) if reverse else y


SUMS = Composed(
    "logcumsumexp",
    ("x",),
    "int dim, bool reverse, bool exclusive",
    kernel=lambda x, *options: _running_kernel("logcumsumexp", None, x, *options),
    gradient=lambda g, tensors, results, options, needs: (_running("logcumsumexp_vjp", g[0], tensors[0], *options),),
    formula=_sums_formula,
    fake=lambda x, *options: x.new_empty(x.shape),
    devices={"cpu"},
    widens=False,  # its derivatives are kernels
)


def _dim(function, argument, dim, x):
    if isinstance(dim, (tuple, list)):
        raise TypeError(f"{function}: {argument} is {dim!r}, accepted: an int")
    dims = _kernels.dims_of(dim, x.dim(), function, argument, "an int")
    return dims[0] if dims else 0


def dims_of(function, argument, dim, x):
    if dim is None:
        return tuple(range(x.dim()))
    return _kernels.dims_of(dim, x.dim(), function, argument, "an int, a sequence of ints or None")


def logcumsumexp(input, dim=None, *, axis=None, reverse=False, exclusive=False, out=None) -> Any:
    """torch.logcumsumexp: sumexp.logcumsumexp of a tensor, under autograd and torch's transforms, double backward and forward
    mode by kernels too. The gradient is 0 where x or a sum is -inf. axis is another name of dim, as in torch. On CUDA devices
    it is composed of torch's operations."""
    if (dim is None) == (axis is None):
        raise TypeError(f"logcumsumexp: dim is {dim!r} and axis {axis!r}, accepted: an int for one of the two")
    (x,) = _prepare("logcumsumexp", ("input",), input)
    along = _dim("logcumsumexp", "axis", axis, x) if dim is None else _dim("logcumsumexp", "dim", dim, x)
    return into("logcumsumexp", out, SUMS(x, along, bool(reverse), bool(exclusive)))


# -- rows with weights -------------------------------------------------------------------------------------------


def _rows(x, dims):
    rest = [d for d in range(x.dim()) if d not in dims]
    count = 1
    for d in dims:
        count *= x.shape[d]
    return x.detach().resolve_neg().permute([*rest, *sorted(dims)]).reshape([*(x.shape[d] for d in rest), count])


def _from_rows(rows, dims, shape):
    order = [*(d for d in range(len(shape)) if d not in dims), *sorted(dims)]
    return rows.reshape([shape[d] for d in order]).permute([order.index(d) for d in range(len(shape))]).contiguous()


def _signed_formula(x, b, dims, keepdim):
    """log |sum b e^x| and its sign. An empty sum is -inf."""
    if x.numel() == 0:
        lse = x.sum(dims, keepdim=keepdim) - _INF if dims else x - _INF
        return lse, torch.zeros_like(lse)
    m = x.detach().amax(dims, keepdim=True) if dims else x.detach()
    m = torch.where(m.abs() < _INF, m, 0)
    e = torch.exp(x - m)
    s = e if b is None else torch.where(b == 0, b * torch.where(e < _INF, e, 0), b * e)
    s = s.sum(dims, keepdim=True) if dims else s
    sign = torch.sign(s.detach()).masked_fill(s.isnan(), torch.nan)
    nothing = (x == -_INF).all(dims, keepdim=True) if dims else x == -_INF
    nothing = nothing & (s == 0)
    lse = (m + s.masked_fill(nothing, 1).abs().log()).masked_fill(nothing, -_INF)
    if keepdim or not dims:
        return lse, sign
    shape = row_shape(x.shape, dims, False)
    return lse.reshape(shape), sign.reshape(shape)


def _weights_gradient(g, x, b, dims, needs_x, needs_b):
    rows, weights = _rows(x, dims), None if b is None else _rows(b, dims)
    dx, db = (result_like(rows) if needed else None for needed in (needs_x, needs_b))
    g = g.detach().resolve_neg().to(x.dtype).reshape(rows.shape[:-1])
    _core._weighted_rows("logsumexp_vjp", 1, rows, weights, (g, dx, db))
    return tuple(d if d is None else _from_rows(d, dims, x.shape) for d in (dx, db))


def _weighted_kernel(x, b, dims, keepdim):
    dims = tuple(dims)
    lse = x.new_empty(row_shape(x.shape, dims, keepdim))
    sign = torch.empty_like(lse)
    _kernels.launch("weighted_logsumexp", (x.detach(), b.detach()), lse, dims, 1.0, None, sign, "logsumexp")
    return lse, sign


def _fake_rows(x, b, *rest):
    dims, keepdim = rest[-2:]
    shape = row_shape(x.shape, tuple(dims), keepdim)
    return x.new_empty(shape), x.new_empty(shape)


def _row_gradient(gradients, tensors, results, options, needs):
    (x, b), dims = tensors[:2], tuple(options[0])
    if gradients[0] is None:
        return tuple(None if t is None or not n else t.new_zeros(t.shape) for t, n in zip(tensors, needs))
    found = _weights_gradient(gradients[0], x, b, dims, needs[0], b is not None and needs[1])
    return (*found, *(None for _ in tensors[2:]))


WEIGHTED = Composed(
    "weighted_logsumexp",
    ("x", "b"),
    "int[] dim, bool keepdim",
    kernel=_weighted_kernel,
    gradient=_row_gradient,
    formula=lambda x, b, dims, keepdim: _signed_formula(x, b, tuple(dims), keepdim),
    fake=_fake_rows,
    results=2,
)


def _mean_kernel(x, b, count, dims, keepdim):
    dims = tuple(dims)
    rows, weights = _rows(x, dims), None if b is None else _rows(b, dims)
    made = [x.new_empty(row_shape(x.shape, dims, keepdim)) for _ in ("value", "sign")]
    _core._weighted_rows("logmeanexp", 0, rows, weights, tuple(t.detach().reshape(rows.shape[:-1]) for t in (count, *made)))
    return tuple(made)


def _mean_formula(x, b, count, dims, keepdim):
    lse, sign = _signed_formula(x, b, tuple(dims), keepdim)
    return (lse - count.log()).to(x.dtype).masked_fill(count == 0, torch.nan), sign


MEAN = Composed(
    "logmeanexp",
    ("x", "b?", "count"),
    "int[] dim, bool keepdim",
    kernel=_mean_kernel,
    gradient=_row_gradient,
    formula=_mean_formula,
    fake=lambda x, b, count, *rest: _fake_rows(x, b, *rest),
    results=2,
)


def _logmeanexp(x, dims, keepdim, b, where, return_sign, out=None, name="x"):
    if b is not None:
        x, b = _prepare("logmeanexp", (name, "b"), x, b)
    else:
        (x,) = _prepare("logmeanexp", (name,), x)
    dims = dims(x)
    mask = mask_of("logmeanexp", x, where, name)
    shape = row_shape(x.shape, dims, keepdim)
    if mask is None:
        count = 1
        for d in dims:
            count *= x.shape[d]
        count = torch.full(shape, count, dtype=torch.float64, device=x.device)
    else:
        count = (mask.sum(dims, keepdim=keepdim) if dims else mask).to(torch.float64)
        x = x.masked_fill(~mask, -_INF)
    value, sign = MEAN(x, b, count, dims, bool(keepdim))
    if b is not None and not return_sign:
        value = value.masked_fill(sign < 0, torch.nan)
    value = into("logmeanexp", out, value)
    return (value, sign) if return_sign else value


def logmeanexp(input, dim=None, keepdim=False, *, b=None, where=None, return_sign=False) -> Any:
    """sumexp.logmeanexp of a tensor, over a dimension, some or (None) all, under autograd and torch's transforms.

    On CUDA devices result and gradient have the bytes of the CPU.
    """
    dims = lambda x: dims_of("logmeanexp", "dim", dim, x)
    return _logmeanexp(input, dims, keepdim, b, where, return_sign, name="input")


# -- sumexp's functions, when they are given tensors -----------------------------------------------------------


def numpy_logaddexp(a, b, *, out=None):
    return into("logaddexp", out, OPERATIONS["logaddexp"](*_prepare("logaddexp", ("a", "b"), a, b)))


def numpy_logsubexp(a, b, *, out=None):
    return into("logsubexp", out, OPERATIONS["logsubexp"](*_prepare("logsubexp", ("a", "b"), a, b)))


def numpy_log1mexp(x, *, out=None):
    return into("log1mexp", out, OPERATIONS["log1mexp"](*_prepare("log1mexp", ("x",), x)))


def numpy_softplus(x, *, out=None):
    return into("softplus", out, OPERATIONS["softplus"](*_prepare("softplus", ("x",), x)))


def _vjp(name, g, tensors, names):
    """The gradients of OPERATIONS[name] at tensors that broadcast, each of its tensor's shape."""
    full = _prepare(name + "_vjp", names, *tensors)
    dtype, shape = full[0].dtype, full[0].shape
    g = no_complex(name + "_vjp", "g", as_tensor(name + "_vjp", "g", g, full[0].device, NUMBERS))
    if g.shape != shape:
        raise ValueError(f"{name}_vjp: g has shape {tuple(g.shape)}, accepted: {tuple(shape)}, the shape of the result")
    found = OPERATIONS[name].gradients(g.to(dtype), tuple(full))
    return tuple(summed_to(d, t.shape if isinstance(t, torch.Tensor) else ()) for d, t in zip(found, tensors))


def numpy_logaddexp_vjp(g, a, b):
    return _vjp("logaddexp", g, (a, b), ("a", "b"))


def numpy_logsubexp_vjp(g, a, b):
    return _vjp("logsubexp", g, (a, b), ("a", "b"))


def numpy_log1mexp_vjp(g, x, *, out=None):
    return into("log1mexp_vjp", out, _vjp("log1mexp", g, (x,), ("x",))[0])


def numpy_softplus_vjp(g, x, *, out=None):
    return into("softplus_vjp", out, _vjp("softplus", g, (x,), ("x",))[0])


def _jvp(name, ta, tb, a, b, out):
    function = name + "_jvp"
    full = _prepare(function, ("ta", "tb", "a", "b"), ta, tb, a, b)
    if all(OPERATIONS[name]._way(t) == "kernel" for t in full):
        result = result_like(full[0])
        _raw(function, full, (result,))
    else:
        result = _along(OPERATIONS[name], full[0].double().new_ones(full[0].shape), full[2:], full[:2])
    return into(function, out, result)


def _along(operation, ones, tensors, tangents, options=(), dims=()):
    """The change of a result, of which each element depends on a row of its own, over dims, along the tangents."""
    found = operation.gradients(ones, tuple(t.double() for t in tensors), options)
    change = sum(d * t.double() for d, t in zip(found, tangents))
    return (change.sum(dims) if dims else change).to(tensors[0].dtype).reshape(ones.shape)


def numpy_logaddexp_jvp(ta, tb, a, b, *, out=None):
    return _jvp("logaddexp", ta, tb, a, b, out)


def numpy_logsubexp_jvp(ta, tb, a, b, *, out=None):
    return _jvp("logsubexp", ta, tb, a, b, out)


def numpy_logcumsumexp(x, axis=-1, *, reverse=False, exclusive=False, out=None):
    (x,) = _prepare("logcumsumexp", ("x",), x)
    return into("logcumsumexp", out, SUMS(x, _dim("logcumsumexp", "axis", axis, x), bool(reverse), bool(exclusive)))


def _product(function, u, x, axis, reverse, exclusive, out, jvp):
    u, x = _prepare(function, ("t" if jvp else "g", "x"), u, x)
    if not is_ours(function, x) or x.device.type != "cpu":
        raise NotImplementedError(f"{function}: x is a {type(x).__name__} on {x.device}, accepted: a plain tensor on the CPU")
    return into(function, out, _Product.apply(u, x, _dim(function, "axis", axis, x), bool(reverse), bool(exclusive), jvp))


def numpy_logcumsumexp_vjp(g, x, axis=-1, *, reverse=False, exclusive=False, out=None):
    return _product("logcumsumexp_vjp", g, x, axis, reverse, exclusive, out, False)


def numpy_logcumsumexp_jvp(t, x, axis=-1, *, reverse=False, exclusive=False, out=None):
    return _product("logcumsumexp_jvp", t, x, axis, reverse, exclusive, out, True)


def numpy_logmeanexp(x, axis=None, *, b=None, keepdims=False, return_sign=False, where=None, out=None):
    dims = lambda x: dims_of("logmeanexp", "axis", axis, x)
    return _logmeanexp(x, dims, keepdims, b, where, return_sign, out)


def _weighted_parts(function, x, b, axis, keepdims):
    full = _prepare(function, ("x", "b"), x, b)
    dims = dims_of(function, "axis", axis, full[0])
    return full, dims, row_shape(full[0].shape, dims, keepdims)


def numpy_weighted_vjp(g, x, axis=None, *, b, keepdims=False, out=None):
    name = "logsumexp_vjp"
    if out is not None:
        raise TypeError(f"{name}: out is a {type(out).__name__}, accepted: None, with b, as there are two results")
    full, dims, shape = _weighted_parts(name, x, b, axis, keepdims)
    g = no_complex(name, "g", as_tensor(name, "g", g, full[0].device, NUMBERS)).to(full[0].dtype)
    if tuple(g.shape) != shape:
        raise ValueError(f"{name}: g has shape {tuple(g.shape)}, accepted: {shape}, the shape of the result of logsumexp")
    found = WEIGHTED.gradients(g, tuple(full), (dims, bool(keepdims)))
    return tuple(summed_to(d, t.shape if isinstance(t, torch.Tensor) else ()) for d, t in zip(found, (x, b)))


def numpy_weighted_jvp(t, x, axis=None, *, b, t_b=None, keepdims=False, out=None):
    name = "logsumexp_jvp"
    full, dims, shape = _weighted_parts(name, x, b, axis, keepdims)
    tangents = []
    for argument, tangent, of in (("t", t, x), ("t_b", t_b, b)):
        if tangent is None:
            tangents.append(torch.zeros_like(full[0]))
            continue
        tangent = as_tensor(name, argument, tangent, full[0].device, NUMBERS)
        tangent = no_complex(name, argument, tangent).to(full[0].dtype)
        if tangent.shape != (of.shape if isinstance(of, torch.Tensor) else ()):
            raise ValueError(f"{name}: {argument} has shape {tuple(tangent.shape)}, accepted: that of its tensor")
        tangents.append(tangent.expand(full[0].shape))
    if all(WEIGHTED._way(v) == "kernel" for v in (*tangents, *full)):
        rows = [_rows(v, dims) for v in (*full, *tangents)]
        result = full[0].new_empty(rows[0].shape[:-1])
        _core._weighted_rows(name, 2, rows[0], rows[1], (rows[2], rows[3], result))
        result = result.reshape(shape)
    else:
        ones = full[0].new_ones(shape, dtype=torch.float64)
        result = _along(WEIGHTED, ones, full, tangents, (dims, bool(keepdims)), dims)
    return into(name, out, result)
