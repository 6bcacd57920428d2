"""Plain tensors in, plain tensors out: allocates a result and runs one of the library's kernels.

Tensors are called as in csrc/include/sumexp/sumexp.hpp: "full" ones have the shape of x, "row" ones have
length 1 along every reduced dimension. `dims` is a tuple of dimensions; an empty one makes every element a
row of its own, which is also what a 0-d tensor is.
"""

import torch

from .. import _core
from .._row_shapes import row_shape
from .._scalars import index
from ._private import (
    dispatch_mode_count,
    function_mode_count,
    functorch_active,
    is_functional,
    is_legacy_batched,
    is_tracing,
    is_zero_tensor,
    unwrap_if_dead,
)

CODES = {
    "softmax": 0,
    "log_softmax": 1,
    "logsumexp": 2,
    "softmax_vjp": 3,
    "log_softmax_vjp": 4,
    "log_softmax_jvp": 5,
    "logsumexp_vjp": 6,
    "logsumexp_jvp": 7,
    "softmax_hvp": 8,
    "log_softmax_hvp": 9,
    "weighted_logsumexp": 10,
}
ROW_RESULT = {"logsumexp", "logsumexp_jvp", "weighted_logsumexp"}
DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
PLAIN_TYPES = (torch.Tensor, torch.nn.Parameter)
# torch calls AMD's GPUs "cuda" as well.
DEVICES = {"cpu", "cuda"} if _core.cuda_architectures and torch.version.hip is None else {"cpu"}

_LARGE = _core.large_pages_from
_run = _core.run_tensors
_empty_like = torch.empty_like


def dims_of(dim, ndim, function, argument="dim", accepted="an int or a sequence of ints"):
    """dim, an integer or a sequence of them, as a tuple of dimensions counted from 0."""
    dims = tuple(dim) if isinstance(dim, (tuple, list, torch.Size)) else (dim,)
    try:
        dims = tuple(map(index, dims))
    except TypeError:
        raise TypeError(f"{function}: {argument} is {dim!r}, accepted: {accepted}") from None
    least, most = (-ndim, ndim - 1) if ndim else (-1, 0)
    for d in dims:
        if not least <= d <= most:
            expected = f"(expected to be in range of [{least}, {most}], but got {d})"
            raise IndexError(f"{function}: {argument}: Dimension out of range {expected}")
    if ndim == 0:
        return ()
    dims = tuple(d % ndim for d in dims)
    if len(set(dims)) < len(dims):
        raise RuntimeError(f"{function}: {argument} is {dim!r}, accepted: no dimension twice")
    return dims


def in_large_pages(t):
    """t, whose memory is new: on a CPU in pages of 2 MB where the system has them for who asks, as NumPy's arrays are.
    To be given it 4 KB at a time takes longer than most kernels."""
    if t.is_cpu and t.nbytes >= _LARGE:
        _core.prefer_large_pages(t.data_ptr(), t.nbytes)
    return t


def result_like(x, shape=None, dtype=None):
    """Memory for a result: a contiguous tensor of x's shape, or of `shape`, on its device, of its dtype or `dtype`."""
    return in_large_pages(x.new_empty(x.shape if shape is None else shape, dtype=dtype))


def run(name, tensors, dims, temperature=1.0, keepdim=True):
    """Runs an operation on tensors whose memory is what it seems: on one of DEVICES, of DTYPES, no lazy negation."""
    first = tensors[0]
    if name in ROW_RESULT:
        out = first.new_empty(row_shape(first.shape, dims, keepdim))
    elif name == "logsumexp_vjp":  # laid out as the input, as torch's gradient of logsumexp is
        out = in_large_pages(_empty_like(first))
    else:  # contiguous whatever the input's strides are, as torch.softmax's result is
        out = result_like(first)
    launch(name, tensors, out, dims, temperature)
    return out


def launch(name, tensors, out, dims, temperature=1.0, where=None, sign=None, function=None):
    """_core.run_tensors, with the workspace that long rows on a GPU may want. Errors name `function`, or the operation."""
    size = _run(CODES[name], tensors, out, dims, temperature, where, sign, None, function or name)
    if size:
        workspace = out.new_empty(size, dtype=torch.uint8)
        _run(CODES[name], tensors, out, dims, temperature, where, sign, workspace, function or name)


def is_traced():
    """Whether operations are being recorded or watched, so that they have to go through torch's dispatcher."""
    return dispatch_mode_count() or function_mode_count() or is_tracing()


def is_wrapper(t):
    """Whether a tensor of a plain type has no elements of its own in memory, so that torch's dispatcher has to unwrap it."""
    return is_legacy_batched(t) or is_zero_tensor(t) or is_functional(t)


def direct(name, tensors, dims, temperature=1.0, keepdim=True):
    """Runs an operation below autograd: the kernel, or the registered operation where something watches."""
    tensors = tuple(unwrap_if_dead(t if t.layout is torch.strided else t.to_dense()) for t in tensors)
    plain = all(type(t) in PLAIN_TYPES and not t.is_neg() and not is_wrapper(t) for t in tensors)
    if plain and not is_traced() and not functorch_active():
        return run(name, tensors, dims, temperature, keepdim)
    extra = () if name in ("logsumexp_vjp", "logsumexp_jvp") else (keepdim if name == "logsumexp" else temperature,)
    return getattr(torch.ops.sumexp, name)(*tensors, dims, *extra)
