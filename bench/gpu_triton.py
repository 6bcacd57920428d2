"""A softmax as one writes it in Triton: a program a row, which it keeps in registers. A peer of bench/gpu.py."""

import torch
import triton
import triton.language as tl

OPS = ("softmax", "log_softmax", "logsumexp", "softmax_vjp", "log_softmax_vjp")


@triton.jit
def forward_row(x_at, out_at, n, OP: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    x = tl.load(x_at + row * n + i, mask=i < n, other=-float("inf")).to(tl.float32)
    x -= tl.max(x, 0)
    e = tl.exp(x)
    total = tl.sum(e, 0)
    if OP == 0:
        y = e * (1.0 / total)
    else:
        y = x - tl.log(total)
    tl.store(out_at + row * n + i, y.to(out_at.dtype.element_ty), mask=i < n)


@triton.jit
def logsumexp_row(x_at, out_at, n, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    x = tl.load(x_at + row * n + i, mask=i < n, other=-float("inf")).to(tl.float32)
    largest = tl.max(x, 0)
    result = largest + tl.log(tl.sum(tl.exp(x - largest), 0))
    tl.store(out_at + row, result.to(out_at.dtype.element_ty))


@triton.jit
def vjp_row(g_at, y_at, out_at, n, OP: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    g = tl.load(g_at + row * n + i, mask=i < n, other=0.0).to(tl.float32)
    y = tl.load(y_at + row * n + i, mask=i < n, other=0.0).to(tl.float32)
    if OP == 0:
        dx = y * (g - tl.sum(g * y, 0))
    else:
        dx = g - tl.exp(y) * tl.sum(g, 0)
    tl.store(out_at + row * n + i, dx.to(out_at.dtype.element_ty), mask=i < n)


def warps_of(block):
    """8 or 16 elements a thread, so that loads are wide, until a block may have no more warps."""
    return max(1, min(32, block // 512))


def run(op, *inputs):
    """The operation over the last axis of contiguous (rows, n) tensors."""
    x = inputs[0]
    rows, n = x.shape
    block = triton.next_power_of_2(n)
    options = {"BLOCK": block, "num_warps": warps_of(block)}
    if op == "logsumexp":
        out = x.new_empty(rows)
        logsumexp_row[(rows,)](x, out, n, **options)
        return out
    out = torch.empty_like(x)
    kernel = vjp_row if op.endswith("_vjp") else forward_row
    kernel[(rows,)](*inputs, out, n, OP=int(op.startswith("log_")), **options)
    return out
