"""What the GPU tests share: whether a GPU can be used, the operations as data, their inputs, how rows lie in
memory, and one comparison: by bytes, NaNs included, with the plainest call on the CPU.

As a program it is the short run that test_gpu.py has compute-sanitizer watch: python gpu_cases.py
"""

import sys
from dataclasses import dataclass

import pytest
import torch

import sumexp as se
from sumexp import _core
from sumexp.torch._kernels import CODES

DEVICE = "cuda"
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
POISON = 777.0


def unusable():
    """Why the GPU tests cannot run here, in words; None where they can."""
    config = se.show_config(mode="dicts")
    if not config["build"]["cuda"]:
        return "this build of sumexp has no CUDA kernels (SUMEXP_CUDA=ON builds them)"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device"
    if not config["run time"]["cuda devices"]:
        raise RuntimeError(f"torch sees a GPU, sumexp does not: {config['run time']['cuda problem']}")
    return None


def marks():
    """For pytestmark: `gpu`, and skipped where no GPU can be used."""
    reason = unusable()
    return [pytest.mark.gpu, pytest.mark.skipif(reason is not None, reason=reason or "")]


def named(values):
    return {"argvalues": list(values), "ids": [str(getattr(v, "name", v)).removeprefix("torch.") for v in values]}


# -- operations and inputs -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operation:
    name: str
    op: str              # of _core.run_tensors
    inputs: str          # x logits, y probabilities, l log-probabilities, g any, b weights, r any, one a row
    row_result: bool = False
    signs: bool = False  # a second result

    @property
    def heated(self):
        return not self.op.startswith("logsumexp")

    @property
    def masked(self):
        return self.op in ("softmax", "log_softmax", "logsumexp")


OPERATIONS = {o.name: o for o in (
    Operation("softmax", "softmax", "x"),
    Operation("log_softmax", "log_softmax", "x"),
    Operation("logsumexp", "logsumexp", "x", True),
    Operation("logsumexp, b", "logsumexp", "xb", True),
    Operation("logsumexp, b and sign", "logsumexp", "xb", True, True),
    Operation("softmax_vjp", "softmax_vjp", "gy"),
    Operation("log_softmax_vjp", "log_softmax_vjp", "gl"),
    Operation("log_softmax_jvp", "log_softmax_jvp", "gl"),
    Operation("logsumexp_vjp", "logsumexp_vjp", "xr"),
    Operation("logsumexp_jvp", "logsumexp_jvp", "xg", True),
    Operation("softmax_hvp", "softmax_hvp", "ggy"),
    Operation("log_softmax_hvp", "log_softmax_hvp", "ggl"),
)}

INF, NAN = float("inf"), float("nan")


def logits(rows, n, dtype, generator):
    """Rows of every kind in turn, so that twelve rows have them all."""
    i = torch.arange(n, dtype=torch.float64)
    normal, uniform = (f(rows, n, dtype=torch.float64, generator=generator) for f in (torch.randn, torch.rand))
    big = {torch.float16: 3e4, torch.float64: 1e100}.get(dtype, 1e30)
    zero = torch.zeros(rows, n, dtype=torch.float64)
    kinds = (
        5 * normal,
        100 * (2 * uniform - 1),
        torch.where((i < n // 2) | (i % 5 == 0), -INF, normal),   # tiles of -inf
        torch.where(i == n // 3, 40.0, normal),                   # a confident row
        zero - INF,
        torch.where(i == n - 1, NAN, normal),
        torch.where(i == n // 2, INF, normal),
        zero + big + (i % 3) * 0.25,                              # a huge offset
        zero + 1.5,                                               # all equal
        torch.where(i == 0, 0.0, -30 - 60 * uniform),             # small against the maximum
        -big * uniform,
        300 * (6 * i / n).floor() + normal,                       # chunks far apart
    )
    kind = torch.arange(rows) % len(kinds)
    return torch.stack([kinds[k][r] for r, k in enumerate(kind.tolist())]).to(dtype)


def make_input(kind, rows, n, dtype, generator):
    if kind == "x":
        return logits(rows, n, dtype, generator)
    shape = (rows, 1 if kind == "r" else n)
    normal, uniform = (f(shape, dtype=torch.float64, generator=generator) for f in (torch.randn, torch.rand))
    if kind == "y":
        return (uniform / n).to(dtype)
    if kind == "l":
        return (-10 * uniform).to(dtype)
    if kind == "b":
        normal[:, ::4] = 0  # a weight of 0 leaves the element out
    if kind == "g":
        normal[5::12, n // 2] = NAN
        normal[6::12, n // 2] = INF
    return normal.to(dtype)


def make_inputs(operation, rows, n, dtype):
    generator = torch.Generator().manual_seed(1000 * rows + n)
    return [make_input(kind, rows, n, dtype, generator) for kind in operation.inputs]


def shapes(dtype):
    """{what it reaches: (rows, n)}: every way of csrc/cuda/tuning.hpp, around its edges. Rows of one chunk go to a
    warp, up to 16 (8) chunks to a block, more to a cluster if there are many rows, else they are streamed."""
    lanes = 64 if dtype == torch.float64 else 256
    chunk = 8 * lanes
    return {
        "one element": (37, 1),
        "a part of a lane row": (37, 33),
        "one lane row": (26, lanes),
        "four lane rows": (26, 4 * lanes - 3),
        "five lane rows": (26, 4 * lanes + 8),
        "a chunk": (26, chunk),
        "two chunks": (14, chunk + 1),
        "three chunks, a block": (14, 3 * chunk - 5),
        "48 KB of a block": (14, (12 if dtype == torch.float64 else 6) * chunk - 5),
        "eight chunks, a block": (14, 8 * chunk),
        "sixteen chunks, a block": (14, 16 * chunk - 8),
        "nine chunks, a cluster": (72, 9 * chunk + 8),
        "seventeen chunks, a cluster": (72, 17 * chunk),
        "few rows, streamed": (12, 17 * chunk + 1),
        "two long rows, streamed": (2, 40 * chunk),
        "past every cluster, streamed": (3, 130 * chunk + 16),
    }


# -- how rows lie in memory ----------------------------------------------------------------------------------


def as_rows(t):
    return t


def over_two_axes(t):  # a row runs over axes 0 and 2, which do not join
    rows, n = t.shape
    inner = max((d for d in range(2, 8) if n % d == 0), default=1)
    return t.reshape(rows, n // inner, inner).transpose(0, 1)


def side_by_side(t):  # the axis is the middle one of three
    rows, n = t.shape
    blocks = 2 if rows % 2 == 0 else 1
    return t.reshape(blocks, rows // blocks, n).transpose(1, 2)


@dataclass(frozen=True)
class Layout:
    shaped: object = as_rows  # (rows, n) -> the shape of the call
    dims: tuple = (1,)
    step: int = 1             # elements between neighbours
    pitch: str = "tight"      # after the last axis: "tight"; "packs", rounded up to 16 bytes; "odd", one more
    start: int = 0            # elements after a multiple of 16 bytes
    in_place: bool = False
    masked: bool = False
    temperature: float = 1.0

    def serves(self, operation):
        return not (self.in_place and operation.row_result or self.masked and not operation.masked
                    or self.temperature != 1 and not operation.heated)


TWO_AXES = {"shaped": over_two_axes, "dims": (0, 2)}
MISALIGNED = {"pitch": "odd", "start": 1}
LAYOUTS = {
    "packed": Layout(pitch="packs"),
    "contiguous": Layout(),
    "misaligned": Layout(**MISALIGNED),
    "every third": Layout(step=3),
    "two axes": Layout(**TWO_AXES),
    "side by side": Layout(side_by_side),
    "side by side, misaligned": Layout(side_by_side, **MISALIGNED),
    "in place": Layout(pitch="packs", in_place=True),
    "in place, misaligned": Layout(**MISALIGNED, in_place=True),
    "in place, side by side": Layout(side_by_side, in_place=True),
    "masked": Layout(pitch="packs", masked=True),
    "masked, side by side": Layout(side_by_side, masked=True),
    "heated": Layout(pitch="packs", temperature=1.7),
    "heated, two axes": Layout(**TWO_AXES, temperature=1.7),
    "masked, heated, every third": Layout(step=3, masked=True, temperature=0.3),
}


def place(t, step=1, pitch="tight", start=0, **_):
    """(view, buffer): the values of t on the device in a layout, poison before, between and behind them."""
    strides, extent = [], step
    for k, size in enumerate(reversed(t.shape)):
        strides.insert(0, extent)
        extent *= size
        if k == 0 and pitch == "packs":
            pack = 16 // t.element_size()
            extent = (extent + pack - 1) // pack * pack
        elif k == 0 and pitch == "odd":
            extent += 1
    guard = 64  # elements on both sides; keeps the alignment
    buffer = torch.full((guard + start + extent + guard,), POISON, device=DEVICE).to(t.dtype)
    view = buffer.as_strided(t.shape, strides, guard + start)
    view.copy_(t)
    return view, buffer


# -- running and comparing -----------------------------------------------------------------------------------


def run(operation, inputs, out, dims, temperature=1.0, where=None, sign=None):
    """One of the kernels, without what the functions do around it."""
    arguments = (CODES[operation.op], tuple(inputs), out, dims, temperature, where, sign)
    size = _core.run_tensors(*arguments)
    if size is not None:  # full of NaN: a state read before it is written shows
        _core.run_tensors(*arguments, torch.full((size,), 255, dtype=torch.uint8, device=out.device))


def plain(operation, inputs, temperature=1.0, where=None):
    """[result] or [result, sign] on the CPU, of contiguous (rows, n) tensors; a row's results are (rows, 1)."""
    rows, n = inputs[0].shape
    results = [inputs[0].new_empty(rows, 1 if operation.row_result else n) for _ in range(1 + operation.signs)]
    run(operation, inputs, results[0], (1,), temperature, where, *results[1:])
    return results


def difference(got, expected):
    """Where the bytes of two tensors differ, in words; "" where they are equal."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return f"{tuple(got.shape)} {got.dtype}, expected {tuple(expected.shape)} {expected.dtype}"
    # compared on the CPU: torch's own reductions stay out of what compute-sanitizer sees
    a, b = (t.detach().cpu().contiguous().view(BITS[t.element_size()]) for t in (got, expected))
    if torch.equal(a, b):
        return ""
    apart = (a != b).nonzero()
    at, bits = tuple(apart[0].tolist()), (1 << 8 * a.element_size()) - 1
    return (f"{len(apart)} of {a.numel()} differ, first at {at}: {int(a[at]) & bits:#x}, "
            f"expected {int(b[at]) & bits:#x}")


def check(operation, inputs, layout, expected, mask=None):
    """What is wrong with the device's results in a layout, in words; "" if they are `expected` and nothing beside
    them was written."""
    memory = {"step": layout.step, "pitch": layout.pitch, "start": layout.start}
    beside = {**memory, "pitch": "tight"}  # one number a row: not padded

    def placed(t):
        shaped = layout.shaped(t)
        return place(shaped, **(memory if t.shape == inputs[0].shape else beside))

    given = [placed(t) for t in inputs]
    results = [given[0]] if layout.in_place else [placed(torch.full_like(t, POISON)) for t in expected]
    where = None if mask is None else place(layout.shaped(mask), **MISALIGNED)[0]
    run(operation, [view for view, _ in given], results[0][0], layout.dims, layout.temperature, where,
        *(view for view, _ in results[1:]))
    for (view, buffer), want, what in zip(results, expected, ("", "sign: ")):
        if wrong := difference(view, layout.shaped(want)):
            return what + wrong
        view.fill_(POISON)
        if not torch.all(buffer.cpu() == torch.tensor(POISON).to(buffer.dtype)):
            return what + "wrote beside the result"
    return ""


def failures(operation, dtype, chosen=None, layouts=LAYOUTS):
    """["shape, layout: what is wrong"] over shapes(dtype) x layouts."""
    found = []
    for reached, (rows, n) in (chosen or shapes(dtype)).items():
        inputs = make_inputs(operation, rows, n, dtype)
        mask = torch.rand(rows, n, generator=torch.Generator().manual_seed(n)) < 0.7
        expected = {}
        for name, layout in layouts.items():
            if not layout.serves(operation):
                continue
            options = (layout.temperature, mask if layout.masked else None)
            key = (layout.temperature, layout.masked)
            if key not in expected:
                expected[key] = plain(operation, inputs, *options)
            if wrong := check(operation, inputs, layout, expected[key], options[1]):
                found.append(f"{operation.name} {dtype} {reached} ({rows} x {n}), {name}: {wrong}")
    return found


def short_run():
    """Every kernel in float32, softmax in every type; a few rows on each way."""
    layouts = {name: LAYOUTS[name] for name in ("packed", "misaligned", "side by side", "masked", "in place")}
    found = []
    for operation in OPERATIONS.values():
        for dtype in DTYPES if operation.name == "softmax" else (torch.float32,):
            chunk = 512 if dtype == torch.float64 else 2048
            chosen = {"warp": (9, chunk - 3), "block": (3, 3 * chunk), "cluster": (36, 17 * chunk),
                      "stream": (4, 17 * chunk + 16)}
            found += failures(operation, dtype, chosen, layouts)
    print("\n".join(found) or "the short run is right")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(unusable() or short_run())
