"""The peers of bench/gpu.py, the inputs they share, and the checks before anything is timed."""

import functools

import torch

import sumexp as se

TYPES = {"bf16": torch.bfloat16, "f32": torch.float32}
BITS = {2: torch.int16, 4: torch.int32}
# How far off a peer may be, of the largest number in its result: catches mistakes, not ulps.
TOLERANCE = {"bf16": 5e-2, "f32": 1e-3}


# -- operations ----------------------------------------------------------------------------------------------

SUMEXP = {
    "softmax": se.softmax,
    "log_softmax": se.log_softmax,
    "logsumexp": functools.partial(se.logsumexp, axis=-1),
    "softmax_vjp": se.softmax_vjp,
    "log_softmax_vjp": se.log_softmax_vjp,
}
# The kernels that torch's eager functions and its autograd call.
TORCH = {
    "softmax": lambda x: torch.softmax(x, -1),
    "log_softmax": lambda x: torch.log_softmax(x, -1),
    "logsumexp": lambda x: torch.logsumexp(x, -1),
    "softmax_vjp": lambda g, y: torch.ops.aten._softmax_backward_data(g, y, -1, y.dtype),
    "log_softmax_vjp": lambda g, y: torch.ops.aten._log_softmax_backward_data(g, y, -1, y.dtype),
}
# What the compiler gets: it fuses the VJPs from their formulas, in float32 as it does.
COMPILED = {
    **TORCH,
    "softmax_vjp": lambda g, y: y * (g - (g * y).sum(-1, keepdim=True)),
    "log_softmax_vjp": lambda g, y: g - y.exp() * g.sum(-1, keepdim=True),
}


def build(peer, cell, inputs):
    """A function of no arguments that runs the cell's operation once and returns the result."""
    return MAKERS[peer](cell, inputs)


def _plain(functions):
    return lambda cell, inputs: functools.partial(functions[cell.op], *inputs)


def _compile(cell, inputs):
    torch._dynamo.reset()
    return functools.partial(torch.compile(COMPILED[cell.op], dynamic=False, fullgraph=True), *inputs)


def _triton(cell, inputs):
    import gpu_triton

    return functools.partial(gpu_triton.run, cell.op, *inputs)


def _copy(cell, inputs):
    """Half of the cell's bytes are read, half are written. Not zeros: they can be faster than data."""
    source = torch.empty(cell.moved // 2, dtype=torch.uint8, device=inputs[0].device)
    source.view(torch.int32).random_()
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


MAKERS = {"copy": _copy, "sumexp": _plain(SUMEXP), "torch": _plain(TORCH), "compile": _compile, "triton": _triton}


def absent(peer):
    """Why a peer cannot be had at all; None where it can."""
    if peer in ("triton", "compile"):
        try:
            import triton  # noqa: F401 (torch.compile makes its CUDA kernels with it)
        except ImportError as error:
            return f"triton cannot be imported: {error}"
    return None


# -- inputs and checks ---------------------------------------------------------------------------------------


def numbers(cell, generator):
    """4 N(0, 1), with outliers so that rows are neither flat nor nearly one-hot, fresh at every call."""
    x = torch.randn(cell.rows, cell.n, dtype=TYPES[cell.dtype], device=generator.device, generator=generator).mul_(4)
    x.view(-1)[7::4099] += 20
    return x


def inputs_for(cell, generator):
    """The operands in the order of the operation: (x,) or (g, y) with y a result of the forward function."""
    x = numbers(cell, generator)
    if not cell.op.endswith("_vjp"):
        return (x,)
    return numbers(cell, generator), SUMEXP[cell.op.removesuffix("_vjp")](x)


def sampled(cell):
    """The rows that are compared: the ends and the middle, one of very long ones."""
    return [0] if cell.n > 1 << 22 else sorted({0, cell.rows // 2, cell.rows - 1})


def expected(cell, inputs):
    """The sampled rows of the result, computed on the CPU."""
    rows = sampled(cell)
    return SUMEXP[cell.op](*(t[rows].cpu() for t in inputs))


def check_exact(cell, call, want):
    """Raises unless a fresh result is written everywhere and its sampled rows have the CPU's bytes."""
    like = call()
    like.fill_(float("nan"))
    del like  # the next result of this size gets its memory: what is not written stays NaN
    got = call()
    missing = int(got.isnan().sum())
    if missing:
        raise ArithmeticError(f"{cell}: {missing} elements of the result are NaN, that is, not written")
    rows = got[sampled(cell)].cpu()
    bits = BITS[rows.element_size()]
    if rows.shape != want.shape or not torch.equal(rows.view(bits), want.view(bits)):
        raise ArithmeticError(f"{cell}: rows {sampled(cell)} differ from the CPU's")


def scale(cell, inputs, want):
    """The largest number of a result; of one in which larger terms cancel, at least a thousandth of theirs."""
    largest = float(want.double().abs().max())
    if cell.op == "softmax_vjp":
        g, y = (t[sampled(cell)].cpu().double() for t in inputs)
        largest = max(largest, 1e-3 * float((g * y).abs().max()))
    return largest


def check_close(cell, peer, call, want, largest):
    """Raises where a peer computes something else."""
    got = call()[sampled(cell)].cpu().double()
    error = float((got - want.double()).abs().max()) / largest
    if got.shape != want.shape or not error <= TOLERANCE[cell.dtype]:
        raise ArithmeticError(f"{cell}: {peer} is off by {error:.2g} of the largest number")
