"""The kernels on an NVIDIA GPU: the CPU's bytes for every operation, type, layout and way; streams, graphs,
tensors past 2^31 elements, errors; and compute-sanitizer's word on a short run.

gpu_cases.py holds the operations, inputs and layouts. Autograd and other libraries' arrays: test_gpu_torch.py.
"""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import gpu_cases as cases  # noqa: E402
import sumexp as se  # noqa: E402
from gpu_cases import DTYPES, OPERATIONS, POISON, difference, named  # noqa: E402
from oracle.accuracy import seed  # noqa: E402
from oracle.formats import FORMATS  # noqa: E402
from oracle.ops import OPS  # noqa: E402
from sumexp import _core  # noqa: E402

pytestmark = cases.marks()

# One shape of float32 for each way of csrc/cuda/tuning.hpp.
WAYS = {
    "warp": (300, 1000),
    "block": (40, 8 * 2048),
    "staged block": (14, 7 * 2048 - 3),  # rows that are no multiple of 16 bytes pass through shared memory
    "larger staged block": (14, 12 * 2048 - 3),
    "cluster": (80, 17 * 2048),
    "stream": (2, 40 * 2048),
}
each_way = pytest.mark.parametrize("shape", WAYS.values(), ids=list(WAYS))


def normal(*shape, dtype=torch.float32, number=0):
    return (4 * torch.randn(shape, generator=torch.Generator().manual_seed(number))).to(dtype)


def on_device(*tensors):
    return [t.to(cases.DEVICE) for t in tensors]


def assert_same(got, expected, note=""):
    assert got.device.type == cases.DEVICE
    wrong = difference(got, expected)
    assert not wrong, f"{note} {wrong}"


# -- bytes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", **named(DTYPES))
@pytest.mark.parametrize("operation", **named(OPERATIONS.values()))
def test_kernels(operation, dtype):
    """Every way of going through memory, every layout, rows of special values; nothing written beside a result."""
    found = cases.failures(operation, dtype)
    assert not found, f"{len(found)} wrong:\n" + "\n".join(found[:30])


def tensors_of(op, fmt, rows, n):
    """An operation's inputs (tests/oracle/ops.py) as CPU tensors."""
    arrays = op.make(np.random.default_rng(seed("gpu", op.name, fmt.name, rows, n)), fmt, rows, n)
    return [torch.from_numpy(a.view("int16")).view(torch.bfloat16) if a.dtype.name == "bfloat16"
            else torch.from_numpy(a) for a in arrays]


@pytest.mark.parametrize("fmt", **named(FORMATS))
@pytest.mark.parametrize("op", **named(OPS.values()))
def test_functions(op, fmt):
    """The public functions on CUDA tensors: axis -1, 0, several, none of the rows, expanded and strided inputs."""
    for rows, n in ((5, 7), (33, 300), (6, 2600), (1, 70_000), (3, 1)):
        inputs = tensors_of(op, fmt, rows, n)
        expected = op.run(se, inputs)
        assert_same(op.run(se, on_device(*inputs)), expected, (rows, n))
        turned = [t.T.contiguous().T for t in on_device(*inputs)]
        assert_same(op.run(se, turned), expected, ("first axis", rows, n))
        assert_same(op.run(se, [t.T for t in on_device(*inputs)], axis=0), expected.T, ("axis 0", rows, n))
        strided = [t.repeat_interleave(2, 1)[:, ::2] for t in on_device(*inputs)]
        assert_same(op.run(se, strided), expected, ("every second", rows, n))
        again = [t[:1].expand(4, -1) for t in on_device(*inputs)]
        assert_same(op.run(se, again), expected[:1].expand(4, -1), ("expanded", rows, n))
    inputs = tensors_of(op, fmt, 6, 35)
    split = [t.reshape((6, 5, 7) if t.shape[1] > 1 else (6, 1, 1)).transpose(0, 1).contiguous() for t in inputs]
    got = op.run(se, on_device(*split), axis=(0, 2))
    assert_same(got, op.run(se, split, axis=(0, 2)), "two axes")


@pytest.mark.parametrize("poison", [POISON, float("nan")])
@pytest.mark.parametrize("fmt", **named(FORMATS))
@pytest.mark.parametrize("op", **named(OPS.values()))
def test_into_poisoned_results(op, fmt, poison):
    for rows, n in ((9, 130), (3, 5000), (1, 70_000)):
        inputs = tensors_of(op, fmt, rows, n)
        expected = op.run(se, inputs)
        given = on_device(*inputs)
        out = torch.full(expected.shape, poison, dtype=expected.dtype, device=cases.DEVICE)
        op.run(se, given, out=out)
        assert_same(out, expected, (rows, n))
        wide = torch.full((rows, 2 * expected.shape[1]), poison, dtype=expected.dtype, device=cases.DEVICE)
        op.run(se, given, out=wide[:, ::2])
        assert_same(wide[:, ::2], expected, ("strided", rows, n))
        assert_same(wide[:, 1::2], torch.full(expected.shape, poison, dtype=expected.dtype), "between its elements")
        full = [k for k, kind in enumerate(op.inputs) if kind not in "rw"]
        for k in full if not op.row_output else ():
            copies = [t.clone() for t in given]
            op.run(se, copies, out=copies[k])
            assert_same(copies[k], expected, ("in place", k, rows, n))


@pytest.mark.parametrize("dtype", **named(DTYPES))
def test_clamp(dtype):
    """What lies below the smallest term is clamped by one instruction; of zeros and NaN too it makes the CPU's bytes."""
    x = torch.tensor([[138.0, -0.0, 0.0, -6e4, 1.0], [138.0, -0.0, np.nan, 0.0, 1.0], [0.0, -0.0, -np.inf, -np.nan, 2.0],
                      [-0.0, -0.0, -np.inf, -9.0, -6e4]], dtype=torch.float64).to(dtype)
    for f in (se.softmax, se.log_softmax, se.logsumexp):
        assert_same(f(*on_device(x), -1), f(x, -1), f.__name__)


@pytest.mark.parametrize("dtype", **named(DTYPES))
def test_signs_and_degenerate_shapes(dtype):
    x, b = normal(5, 300, dtype=dtype), normal(5, 300, dtype=dtype, number=1)
    for options in ({"b": b}, {"b": -b.abs()}, {}):
        there = {k: v.to(cases.DEVICE) for k, v in options.items()}
        got = se.logsumexp(x.to(cases.DEVICE), -1, return_sign=True, **there)
        for a, e in zip(got, se.logsumexp(x, -1, return_sign=True, **options)):
            assert_same(a, e, list(options))
    for shape in ((), (0,), (0, 5), (5, 0), (1, 1), (2, 0, 3)):
        x = torch.ones(shape, dtype=dtype)
        for f in (se.softmax, se.log_softmax, lambda x: se.logsumexp(x, -1 if x.dim() else None)):
            assert_same(f(x.to(cases.DEVICE)), f(x), shape)


def test_matrices():
    for dtype in DTYPES:
        x = normal(3, 9, dtype=dtype)
        for f, a in ((se.softmax_jacobian, se.softmax(x)), (se.log_softmax_jacobian, se.log_softmax(x)),
                     (se.logsumexp_hessian, x)):
            got = f(a.to(cases.DEVICE))
            assert got.device.type == cases.DEVICE
            torch.testing.assert_close(got.cpu(), f(a))


# -- graphs, streams, devices --------------------------------------------------------------------------------


def work(x, g):
    """Forward and second order; with few long rows each needs workspace."""
    y = se.log_softmax(x)
    return se.softmax(x), y, se.logsumexp(x, -1), se.log_softmax_vjp(g, y), se.log_softmax_hvp(g, g, y)


@each_way
def test_graphs(shape):
    """A captured graph computes anew from what its inputs hold when it is replayed."""
    x, g = on_device(normal(*shape), normal(*shape, number=1))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work(x, g)  # loads the kernels
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = work(x, g)
    for number in (2, 3):
        fresh = normal(*shape, number=number), normal(*shape, number=number + 10)
        x.copy_(fresh[0])
        g.copy_(fresh[1])
        for result in results:
            result.fill_(POISON)
        graph.replay()
        for k, (got, expected) in enumerate(zip(results, work(*fresh))):
            assert_same(got, expected, f"result {k}, replay {number}")


@each_way
def test_current_stream(shape):
    """Queued behind a slow producer on a side stream, and at once: the call returns while the stream is busy."""
    values, g = normal(*shape), normal(*shape, number=1)
    fresh, there = on_device(values, g)
    x = torch.zeros_like(fresh)
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        work(x, there)  # loads the kernels, and leaves memory to reuse
        torch.cuda.synchronize()
        torch.cuda._sleep(200_000_000)  # cycles: some 0.1 s
        x.copy_(fresh)
        results = work(x, there)
        waited = side.query()
    side.synchronize()
    for k, (got, expected) in enumerate(zip(results, work(values, g))):
        assert_same(got, expected, f"result {k}")
    assert not waited, "the calls waited for the device"


@pytest.mark.parametrize("threads", [False, True], ids=["one thread", "two threads"])
def test_two_streams_at_once(threads):
    inputs = [[normal(*shape, number=10 * s + k) for k, shape in enumerate(WAYS.values())] for s in range(2)]
    given = [on_device(*tensors) for tensors in inputs]
    torch.cuda.synchronize()
    streams, results = [torch.cuda.Stream() for _ in range(2)], [[], []]

    def call(s, k):
        with torch.cuda.stream(streams[s]):
            results[s].append(work(given[s][k], given[s][k]))

    rounds = [k for _ in range(5) for k in range(len(WAYS))]
    if threads:
        callers = [threading.Thread(target=lambda s=s: [call(s, k) for k in rounds]) for s in range(2)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    else:
        for k in rounds:
            call(0, k)
            call(1, k)
    torch.cuda.synchronize()
    for s in range(2):
        expected = [work(x, x) for x in inputs[s]]
        assert len(results[s]) == len(rounds)
        for k, got in zip(rounds, results[s]):
            for a, e in zip(got, expected[k]):
                assert_same(a, e, f"stream {s}, {list(WAYS)[k]}")


def test_second_device():
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two GPUs, has {torch.cuda.device_count()}")
    for shape in WAYS.values():
        x = normal(*shape)
        with torch.cuda.device(0):
            got = work(x.to("cuda:1"), x.to("cuda:1"))
            assert torch.cuda.current_device() == 0
        for a, e in zip(got, work(x, x)):
            assert a.device == torch.device("cuda:1")
            assert_same(a, e, shape)
    with pytest.raises((TypeError, ValueError, RuntimeError), match="^softmax_vjp: (g|y)"):
        se.softmax_vjp(torch.ones(3, device="cuda:0"), torch.ones(3, device="cuda:1"))


# -- more than 2^31 elements ---------------------------------------------------------------------------------

MANY = (1 << 31) + 4099


@pytest.fixture
def past_2_31():
    """2^31 + 4099 random elements of bfloat16; the tests hold up to four more tensors of that size."""
    needed, free = 5 * 2 * MANY + (1 << 30), torch.cuda.mem_get_info()[0]
    if free < needed:
        pytest.skip(f"needs {needed} bytes of free GPU memory, has {free}")
    yield torch.randn(MANY, dtype=torch.bfloat16, device=cases.DEVICE).mul_(4)
    torch.cuda.empty_cache()


@pytest.mark.large
@pytest.mark.parametrize("n", [1021, 4096, 70_000])
def test_rows_past_2_31(past_2_31, n):
    """Of many rows, those around the 2^31st element and at both ends have the bytes that they have on the CPU."""
    rows = MANY // n
    x = past_2_31[: rows * n].reshape(rows, n)
    y, lse = se.log_softmax(x), se.logsumexp(x, -1)
    dx = se.log_softmax_vjp(x, y)
    edge = (1 << 31) // n
    for r in (0, 1, rows // 2, edge // 2, edge - 1, min(edge, rows - 1), rows - 2, rows - 1):
        row = x[r].cpu()
        assert_same(y[r], se.log_softmax(row), r)
        assert_same(dx[r], se.log_softmax_vjp(row, se.log_softmax(row)), r)
        assert_same(lse[r], se.logsumexp(row), r)


@pytest.mark.large
def test_columns_past_2_31(past_2_31):
    """Rows side by side: the axis is not the last."""
    n = 700
    columns = MANY // n
    x = past_2_31[: columns * n].reshape(n, columns)
    y = se.softmax(x, 0)
    for c in (0, columns // 2, columns - 1):
        assert_same(y[:, c], se.softmax(x[:, c].cpu()), c)


@pytest.mark.large
def test_one_row_past_2_31(past_2_31):
    """Every element of one row, against the CPU's row."""
    needed, free = 3 * 2 * MANY + (4 << 30), os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if free < needed:
        pytest.skip(f"needs {needed} bytes of free memory beside the GPU's, has {free}")
    y = se.softmax(past_2_31)
    lse = se.logsumexp(past_2_31)
    row = past_2_31.cpu()
    assert_same(lse, se.logsumexp(row))
    assert torch.equal(y.cpu().view(torch.int16), se.softmax(row, out=row).view(torch.int16))


# -- errors --------------------------------------------------------------------------------------------------


def test_out_of_memory():
    """An exception, the result untouched, and the next call works."""
    x = normal(1, 1 << 24).to(cases.DEVICE)
    out = torch.full_like(x, POISON)
    expected, exhausted = se.softmax(x.cpu()), (MemoryError, torch.cuda.OutOfMemoryError)
    torch.cuda.empty_cache()
    total, raised = torch.cuda.get_device_properties(x.device).total_memory, True
    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / total)
    try:
        with pytest.raises(exhausted):
            se.softmax(x)  # no room for the result
        try:
            se.softmax(x, out=out)  # there may be enough for this one
            raised = False
        except exhausted:
            pass
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert_same(out, torch.full_like(expected, POISON) if raised else expected)
    assert_same(se.softmax(x, out=out), expected)


MIXED = {
    "g": lambda here, there, out: se.softmax_vjp(here, there, out=out),
    "y": lambda here, there, out: se.softmax_vjp(there, here, out=out),
    "v": lambda here, there, out: se.log_softmax_hvp(there, here, there, out=out),
    "t": lambda here, there, out: se.logsumexp_jvp(here, there, keepdims=True, axis=-1, out=out[:, :1]),
}


@pytest.mark.parametrize("argument", MIXED)
def test_devices_do_not_mix(argument):
    here = normal(3, 40)
    there, out = here.to(cases.DEVICE), torch.full((3, 40), POISON, device=cases.DEVICE)
    with pytest.raises((TypeError, ValueError, RuntimeError), match=r"^\w+: (g|y|v|t|x)\b"):
        MIXED[argument](here, there, out)
    assert bool((out == POISON).all())


def test_bad_results_and_workspaces_are_refused():
    x, out = normal(2, 40 * 2048).to(cases.DEVICE), torch.full((2, 40 * 2048), POISON, device=cases.DEVICE)
    for bad in (out.cpu(), out.double(), out[:1], out[:, :-1]):
        with pytest.raises((TypeError, ValueError, RuntimeError), match="^softmax: out"):
            se.softmax(x, out=bad)
        assert bool((bad == POISON).all())
    arguments = (cases.CODES["softmax"], (x,), out, (1,), 1.0, None, None)
    size = _core.run_tensors(*arguments)
    assert size and size > 0, "few long rows are streamed, which takes workspace"
    small = torch.empty(size // 2, dtype=torch.uint8, device=x.device)
    assert _core.run_tensors(*arguments, small) == size, "asks again"
    for bad in (torch.empty(size, dtype=torch.uint8), torch.empty(size, device=x.device)):
        with pytest.raises(TypeError, match="^workspace"):
            _core.run_tensors(*arguments, bad)
    torch.cuda.synchronize()
    assert bool((out == POISON).all())


def test_a_launch_that_cuda_refuses():
    """2^34 rows of one element, all of them the same: a grid past CUDA's largest."""
    x, out = torch.zeros(1, 1, device=cases.DEVICE), torch.full((1, 1), POISON, device=cases.DEVICE)
    with pytest.raises(RuntimeError, match="(?i)cuda|configuration"):
        cases.run(OPERATIONS["softmax"], [x.expand(1 << 34, 1)], out.expand(1 << 34, 1), (1,))
    assert_same(out, torch.full((1, 1), POISON))
    assert_same(se.softmax(x), torch.ones(1, 1))


def program(code, *, timeout=300, before=(), **environment):
    paths = [str(Path(__file__).parent), *sys.path]
    return subprocess.run([*before, sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **environment})


def test_a_device_that_has_failed():
    """CUDA reports what an earlier kernel did; a call after it raises, with the function's and the error's names."""
    done = program(
        "import torch, sumexp as se\n"
        "x = torch.ones(4, 8, device='cuda'); out = torch.empty_like(x); y = se.softmax(x)\n"
        "try:\n"
        "    x[torch.tensor([99], device='cuda')]\n"  # an assertion of torch's kernel fails
        "    torch.cuda.synchronize()\n"
        "except RuntimeError: pass\n"
        "from sumexp import _core\n"
        "try: _core.run_tensors(0, (x,), out, (1,))\n"
        "except RuntimeError as error: print('raised:', error)\n"
        "import os, sys; sys.stdout.flush(); os._exit(0)\n"
    )
    assert done.returncode == 0, done.stderr
    assert "raised:" in done.stdout and "assert" in done.stdout, done.stdout + done.stderr
    assert "run_tensors" in done.stdout or "softmax" in done.stdout


# -- compute-sanitizer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_compute_sanitizer(tool):
    found = shutil.which("compute-sanitizer")
    if not found:
        pytest.skip("compute-sanitizer is not on PATH")
    done = program("import sys, gpu_cases; sys.exit(gpu_cases.unusable() or gpu_cases.short_run())", timeout=550,
                   before=[found, "--tool", tool, "--error-exitcode", "9"],
                   PYTORCH_NO_CUDA_MEMORY_CACHING="1")  # every tensor an allocation of its own, for memcheck
    text = done.stdout + done.stderr
    if "not supported" in text and "short run is right" not in text:
        pytest.skip("compute-sanitizer does not support this device or its driver: " + text[-300:])
    assert done.returncode == 0 and "the short run is right" in text, text[-5000:]
