"""Forks, many callers at once, arrays past 2^31 elements, and memory that comes back."""

import functools
import hashlib
import multiprocessing
import os
import subprocess
import sys
import threading

import ml_dtypes
import numpy as np
import pytest

import sumexp as se
from isas import ISAS
from oracle.formats import FORMATS
from oracle.ops import OPS


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def threaded_work():
    """Calls of every kind that use the pool: many rows, one long row, a derivative."""
    rng = np.random.default_rng(0)
    rows, long = rng.standard_normal((500, 1000), np.float32), rng.standard_normal(600_000)
    y = se.softmax(rows)
    return [digest(a) for a in (y, se.softmax(long), se.logsumexp(rows, 0), se.softmax_vjp(rows, y), se.log_softmax(long))]


def _child(queue):
    queue.put((threaded_work(), se.get_num_threads()))


@pytest.mark.parametrize("generations", [1, 2])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_after_threads(generations):
    """A forked child has none of its parent's threads: it makes its own. So does the parent, after it."""
    se.set_num_threads(4)
    expected = threaded_work()
    context = multiprocessing.get_context("fork")
    for _ in range(3):
        queue = context.Queue()
        children = [context.Process(target=_child if generations == 1 else _grandparent, args=(queue,)) for _ in range(2)]
        for child in children:
            child.start()
        try:
            for _ in children:
                assert queue.get(timeout=60) == (expected, 4)
        finally:
            for child in children:
                child.join(timeout=10)
                if child.is_alive():
                    child.kill()
        assert [child.exitcode for child in children] == [0, 0]
    assert threaded_work() == expected


def _grandparent(queue):
    threaded_work()
    child = multiprocessing.get_context("fork").Process(target=_child, args=(queue,))
    child.start()
    child.join(timeout=60)
    assert child.exitcode == 0


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_while_others_call():
    """A fork in the middle of another thread's calls: the child still works."""
    se.set_num_threads(4)
    expected = threaded_work()
    stop = threading.Event()

    def call():
        x = np.ones((300, 1000))
        while not stop.is_set():
            se.softmax(x)

    caller = threading.Thread(target=call)
    caller.start()
    context = multiprocessing.get_context("fork")
    try:
        for _ in range(5):
            queue = context.Queue()
            child = context.Process(target=_child, args=(queue,))
            child.start()
            try:
                assert queue.get(timeout=60) == (expected, 4)
            finally:
                child.join(timeout=10)
                if child.is_alive():
                    child.kill()
    finally:
        stop.set()
        caller.join()


def test_sixteen_python_threads():
    """Different work in each, small and large calls, all at once: the bytes of calling alone."""
    work = []
    for k in range(16):
        op = list(OPS.values())[k]
        fmt = FORMATS[k % 4]
        rng = np.random.default_rng(k)
        work.append([(op, op.make(rng, fmt, rows, n)) for rows, n in ((1, 10), (50, 40), (200, 500), (1, 300_000))])
    expected = [[digest(op.run(se, inputs)) for op, inputs in calls] for calls in work]
    barrier, got = threading.Barrier(16), [None] * 16

    def run(k):
        barrier.wait()
        for _ in range(4):
            got[k] = [digest(op.run(se, inputs)) for op, inputs in work[k]]
            if got[k] != expected[k]:
                return

    callers = [threading.Thread(target=run, args=(k,)) for k in range(16)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=120)
        assert not caller.is_alive()
    assert got == expected


PLACES = """
import os, numpy as np, sumexp as se
every = os.sched_getaffinity(0)
before = set(os.listdir("/proc/self/task"))
for threads, missing in ((2, 1), (5, 1), (8, 0)):
    se.set_num_threads(threads)
    se.softmax(np.ones((2000, 1000), np.float32))
    workers = [os.sched_getaffinity(int(t)) for t in set(os.listdir("/proc/self/task")) - before]
    assert len(workers) == threads - 1 and all(w <= every and len(every - w) == missing for w in workers), (every, workers)
assert os.sched_getaffinity(0) == every
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
                    reason="one CPU, or no way to tell")
def test_workers_keep_off_the_callers_cpu():
    """A few of them, from the first call on (csrc/cpu/threads/worker.hpp); many go anywhere. The caller is left alone."""
    subprocess.run([sys.executable, "-c", PLACES], check=True, timeout=60)


LEAVING = """
import threading, time
import numpy as np
import sumexp as se

class Slow:
    def __del__(self, sleep=time.sleep):
        sleep({slow})

slow = Slow()  # goes when the interpreter is ending already: calls come back meanwhile, and find no GIL to take
{setup}
def loop():
    while True:
        begun.set()
        {call}
begun = threading.Event()
threading.Thread(target=loop, daemon=True).start()
begun.wait()
time.sleep({pause})
"""
NUMPY_SETUP = """
se.set_num_threads(4)
x = np.ones((2000, 1000))
y = se.softmax(x[:300, :100])
integers = np.ones((2000, 1000), int)
"""
NUMPY_CALLS = [
    "se.softmax(x)",
    "se.softmax(x.T, 0, out=x.T)",
    "se.logsumexp(x, -1, b=x, return_sign=True)",
    "se.logsumexp(x, -1, return_sign=True)",
    "se.log_softmax_hvp(x, x, x)",
    "se.softmax(integers)",
    "se.softmax([1.0, 2.0])",
    "se.softmax_jacobian(y)",
    "se.special.logsumexp(x, axis=1, b=x)",
]
# torch's own functions abort when they find the interpreter ending. So these calls are long, to be in their kernels then.
TORCH_SETUP = """
import torch
import sumexp.torch as st
se._core.set_isa("scalar")
se.set_num_threads(1)
t = torch.ones(32_000, 1000, dtype=torch.float16)
g = t.clone().requires_grad_()
many = t[:1].expand(40_000, 1000)
"""
TORCH_CALLS = [
    "se.softmax(t)",
    "se.softmax_vjp(t, t, out=t)",
    "se.logsumexp(many, -1)",
    "st.softmax(t, -1)",
    "st.softmax(g, -1)",
    "st.log_softmax(g.mT, -1)",
]


def leave(**parts):
    """The exit status of a process that ends while a daemon thread makes this call again and again."""
    return subprocess.run([sys.executable, "-c", LEAVING.format(**parts)], timeout=60).returncode


@pytest.mark.parametrize("call", ["time.sleep(1)", *NUMPY_CALLS])
def test_threads_at_interpreter_exit(call):
    """A process that leaves with its pool asleep, or with a daemon thread in a call, leaves at once and in good order."""
    assert [leave(call=call, setup=NUMPY_SETUP, pause=pause, slow=0.1) for pause in (0.003, 0.011)] == [0, 0]


@pytest.mark.parametrize("call", TORCH_CALLS)
def test_threads_with_tensors_at_interpreter_exit(call):
    pytest.importorskip("torch")
    assert leave(call=call, setup=TORCH_SETUP, pause=0.05, slow=1) == 0


def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_second_interpreter_is_refused():
    """In so many words, where it would otherwise wait for ever for a lock."""
    module = "_xxsubinterpreters" if sys.version_info < (3, 13) else "_interpreters"
    program = f"import {module} as interpreters; interpreters.run_string(interpreters.create(), {{!r}})"
    inside = "try:\n import sumexp\nexcept ImportError as error:\n print(error, flush=True)"
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", program.format(inside)], capture_output=True, text=True,
                         timeout=120)
    assert "does not support loading in subinterpreters" in run.stdout, run.stderr


@functools.cache
def output(program, **environment):
    own = {name: value for name, value in os.environ.items() if not name.startswith("SUMEXP_")}
    return subprocess.check_output([sys.executable, "-c", program], env={**own, **environment}, text=True)


@pytest.mark.parametrize("given", ["99999999999", "1e3", "0", "-2", "many", ""])
def test_environment_that_is_no_number_of_threads(given):
    program = "import sumexp; print(sumexp.get_num_threads())"
    assert output(program, SUMEXP_NUM_THREADS=given) == output(program)
    assert 1 <= int(output(program)) <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize("given", ["-1", "16M", "1e9", "much", ""])
def test_environment_that_is_no_number_of_bytes(given):
    program = "import sumexp; print(sumexp.show_config('dicts')['run time']['stream bytes'])"
    assert output(program, SUMEXP_STREAM_BYTES=given) == output(program)
    assert 16 << 20 <= int(output(program)) <= 48 << 20
    assert output(program, SUMEXP_STREAM_BYTES="12345") == "12345\n"


STREAMING = f"""
import sys
sys.path.insert(0, {os.path.dirname(os.path.dirname(os.path.abspath(__file__)))!r})
import hashlib, numpy as np, sumexp as se
from oracle.formats import FORMATS
from oracle.ops import OPS
for op in OPS.values():
    for fmt in FORMATS:
        for rows, n in ((1, 7), (70, 16), (33, 250), (5, 1000), (9, 4096), (1, 20_000)):
            result = op.run(se, op.make(np.random.default_rng(n), fmt, rows, n))
            print(op.name, fmt.name, rows, n, hashlib.sha256(np.ascontiguousarray(result).tobytes()).hexdigest())
x = np.random.default_rng(0).normal(size=(37, 500))
print(hashlib.sha256(se.softmax(x, 0).tobytes() + se.softmax(x, where=x > 0).tobytes()).hexdigest())
"""


def test_bytes_do_not_depend_on_streaming():
    """What is written around the cache, small results too when it is asked for, and what is not."""
    streamed = output(STREAMING, SUMEXP_STREAM_BYTES="0")
    assert len(streamed.splitlines()) > 100 and streamed == output(STREAMING, SUMEXP_STREAM_BYTES=str(1 << 62))


OVERLAPPED = """
import hashlib, numpy as np, sumexp as se
def digest(*arrays):
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()
rng = np.random.default_rng(0)
for n in (300, 2047, 4096, 5003, 9001):
    x = rng.normal(0, 5, (70, n)).astype(np.float32)
    t = rng.integers(0, n, 70)
    x[3] = np.nan; x[5, 7] = np.nan; x[8] = -np.inf; x[9, 1:] = -np.inf; x[11, 5] = np.inf; x[13, :200] = 1e30
    x[15, : n // 2] += 3000; x[17] *= 1e4; x[19, t[19]] = -np.inf; x[20, :] = 2.0; x[22, n - 1] = 500
    t[[4, 9, 30, 31, 69]] = -100
    for scaled in (x, x[:, ::-1], np.asfortranarray(x), np.pad(x, ((0, 0), (0, 3)))[:, 1 : n + 1]):
        for options in ({}, {"reduction": "none"}, {"temperature": 0.7}, {"weight": np.linspace(-1, 2, n).astype(np.float32)},
                        {"z_loss": 1e-3}, {"label_smoothing": 0.1}, {"softcap": 30.0}, {"info": ["entropy", "lse", "correct"]}):
            loss, gradient, *info = se.cross_entropy_with_grad(scaled, t, 1, **options)
            print(n, sorted(options), digest(loss, gradient, *(info[0].values() if info else ())))
        over = scaled.copy()
        print(n, digest(*se.cross_entropy_with_grad(over, t, 1, out=over)))
        rows = [se.cross_entropy_with_grad(scaled[r : r + 1], t[r : r + 1], 1, reduction="sum")[1] for r in range(70)]
        assert digest(*rows) == digest(se.cross_entropy_with_grad(scaled, t, 1, reduction="sum")[1])
        for function in (se.softmax, se.log_softmax):
            within = np.zeros((70, n + 5), np.float32)
            function(scaled, 1, out=within[:, 2 : n + 2])
            print(n, digest(within), digest(function(scaled, 1)), digest(function(over := scaled.copy(), 1, out=over)))
            assert digest(within[:, 2 : n + 2]) == digest(*(function(scaled[r : r + 1], 1) for r in range(70)))
            assert not within[:, :2].any() and not within[:, n + 2 :].any()
"""


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "portable"])  # whose source is scalar's, with fma by software
@pytest.mark.parametrize("threads", ["1", "2"])
def test_bytes_do_not_depend_on_overlap(isa, threads):
    """Results that are written while the next row is summed, as large ones are, or after their own row."""
    given = {"SUMEXP_ISA": isa, "SUMEXP_NUM_THREADS": threads}
    overlapped = output(OVERLAPPED, SUMEXP_STREAM_BYTES="0", **given)
    assert len(overlapped.splitlines()) == 220 and overlapped == output(OVERLAPPED, SUMEXP_STREAM_BYTES=str(1 << 62), **given)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")
def test_no_leak_over_1e5_calls():
    x = np.linspace(-3, 3, 64, dtype=np.float32).reshape(4, 16)
    out, mask, odd = np.empty_like(x), x > 0, x.astype(ml_dtypes.bfloat16).T
    wrong = np.empty((4, 15), np.float32)

    def calls(count):
        for _ in range(count):
            y = se.softmax(x)
            se.softmax_vjp(x, y, out=out)
            se.log_softmax(x, 0, temperature=2.0, where=mask)
            se.logsumexp(x, -1, b=x, return_sign=True)
            se.logsumexp(odd)
            se.softmax_hvp(x, x, y)
            se.softmax([1, 2, 3])  # through the slow path
            try:
                se.softmax(x, out=wrong)
            except ValueError:
                pass

    calls(1000)
    before = resident()
    calls(12_500)  # 8 calls each
    grown = resident() - before
    assert grown < 2 << 20, f"{grown} bytes in 1e5 calls"
    # and with threads and large scratch
    large = np.ones((64, 70_000), np.float32)
    strided = large.T
    for _ in range(3):
        se.softmax(large), se.softmax(strided, 0), se.logsumexp(strided, 0)
    before = resident()
    for _ in range(15):
        se.softmax(large), se.softmax(strided, 0), se.logsumexp(strided, 0)
    assert resident() - before < 24 << 20


def test_references_are_returned():
    """No array or argument stays referenced after a call, good or bad."""
    x, y = np.ones(5), np.full(5, 0.2)
    counts = [sys.getrefcount(a) for a in (x, y, None, x.dtype)]
    for _ in range(100):
        se.softmax_vjp(x, y)
        se.softmax(x, out=y)
        se.logsumexp(x, b=y, return_sign=True)
        for call in (lambda: se.softmax(x, axis=3), lambda: se.softmax(x, out=y[:3]), lambda: se.softmax_vjp(x[:2], y)):
            with pytest.raises(ValueError):
                call()
    after = [sys.getrefcount(a) for a in (x, y, None, x.dtype)]
    assert after[:2] == counts[:2] and abs(after[3] - counts[3]) < 50


# -- more than 2^31 elements -------------------------------------------------------------------------------


def available_memory():
    try:
        with open("/proc/meminfo") as f:
            return next(int(line.split()[1]) for line in f if line.startswith("MemAvailable")) << 10
    except (OSError, StopIteration):
        return 0


@pytest.fixture(scope="module")
def five_gigabytes():
    """2^31 + 4099 elements of bfloat16; the pages that nobody writes to take no memory."""
    if available_memory() < 14 << 30:
        pytest.skip("needs 14 GB of available memory")
    return np.zeros((1 << 31) + 4099, ml_dtypes.bfloat16)


@pytest.mark.large
def test_one_axis_past_2_31(five_gigabytes):
    """The last element counts, and counts once; then in place, right at both ends."""
    x = five_gigabytes
    n = x.size
    assert float(se.logsumexp(x)) == float(ml_dtypes.bfloat16(np.log(n)))
    x[-1] = 22.0
    y = np.float64(22.0) + np.log1p((n - 1) * np.exp(-22.0))
    assert float(se.logsumexp(x)) == float(ml_dtypes.bfloat16(y))
    se.softmax(x, out=x)
    assert x[-1] == ml_dtypes.bfloat16(np.exp(22.0 - y))
    ends = [0, 1, n // 2, (1 << 31) - 1, 1 << 31, n - 2]
    assert np.all(x[ends] == ml_dtypes.bfloat16(np.exp(-y)))
    assert np.all(x[-4099:-1] == x[0]) and np.all(x[: 1 << 20] == x[0])


@pytest.mark.large
def test_many_rows_past_2_31(five_gigabytes):
    """The rows at the end have the bytes that they have in a small batch."""
    n = 1021
    rows = five_gigabytes.size // n
    few = np.random.default_rng(1).standard_normal((3, n)).astype(np.float32).astype(ml_dtypes.bfloat16)
    x = five_gigabytes[: rows * n].reshape(rows, n)
    source = np.broadcast_to(few[0], (rows, n))
    se.log_softmax(source, out=x)  # the input is one row, its stride 0
    expected = se.log_softmax(few)
    for r in (0, 1, rows // 2, (1 << 31) // n, (1 << 31) // n + 1, rows - 2, rows - 1):
        assert x[r].tobytes() == expected[0].tobytes(), r
    x[-2:] = few[1:]
    lse = se.logsumexp(x, -1)
    assert lse.shape == (rows,)
    assert lse[-2:].tobytes() == se.logsumexp(few, -1)[1:].tobytes()
    assert np.all(lse[:-2] == lse[0])
    # the columns of the same memory: an axis that is not last, at offsets past 2^32 bytes
    last = se.logsumexp(x[:, -1:], axis=0)
    assert last.tobytes() == se.logsumexp(np.ascontiguousarray(x[:, -1]), axis=0).tobytes()


@pytest.mark.large
def test_long_columns_past_2_31(five_gigabytes):
    """Rows that lie side by side and end past 2^32 bytes: the bytes that they have as contiguous rows."""
    columns = 32
    n = five_gigabytes.size // columns
    x = five_gigabytes[: n * columns].reshape(n, columns)
    tail = np.random.default_rng(2).normal(18, 2, (5, columns)).astype(np.float32).astype(ml_dtypes.bfloat16)
    x[...] = 0
    x[-5:] = tail
    some = (0, 1, 17, columns - 1)
    alone = {k: np.ascontiguousarray(x[:, k]) for k in some}
    lse = se.logsumexp(x, axis=0)
    se.softmax(x, axis=0, out=x)
    for k, row in alone.items():
        assert lse[k].tobytes() == np.asarray(se.logsumexp(row)).tobytes(), k
        assert x[:, k].tobytes() == se.softmax(row).tobytes(), k


@pytest.mark.large
def test_losses_past_2_31(five_gigabytes):
    """int32 offsets: rows, columns and a target past 2^31 elements have the loss and gradient of a small batch, in place."""
    n, few = 1021, np.random.default_rng(3).standard_normal((3, 1021)).astype(np.float32).astype(ml_dtypes.bfloat16)
    rows = five_gigabytes.size // n
    x = five_gigabytes[: rows * n].reshape(rows, n)
    x[...], x[-2:] = few[0], few[1:]
    target = np.full(rows, n - 1)
    expected, gradient = se.cross_entropy_with_grad(few, target[:3], reduction="none")
    losses, at = se.cross_entropy_with_grad(x, target, reduction="none", out=x)
    assert at is x and losses[-2:].tobytes() == expected[1:].tobytes() and np.all(losses[:-2] == losses[0])
    for r in (0, 1, (1 << 31) // n, (1 << 31) // n + 1, rows - 3):
        assert losses[r] == expected[0] and x[r].tobytes() == gradient[0].tobytes(), r
    assert x[-2:].tobytes() == gradient[1:].tobytes()

    # one row of them all, and two columns of half each, whose targets are their last elements
    x = five_gigabytes
    x[...], x[-2:] = 0, 20.0
    others = (x.size - 2) * np.exp(-20.0)  # less than the largest has
    loss, _ = se.cross_entropy_with_grad(x, x.size - 1, out=x)
    assert float(loss) == float(ml_dtypes.bfloat16(np.log(2 + others)))
    first, second, last = np.divide([np.exp(-20.0), 1, -1 - others], 2 + others).astype(ml_dtypes.bfloat16)
    assert x[0] == x[-3] == first and x[-2] == second and x[-1] == last
    columns = five_gigabytes[: x.size // 2 * 2].reshape(-1, 2)
    columns[...], columns[-1] = 0, 20.0
    others = (len(columns) - 1) * np.exp(-20.0)
    losses, _ = se.cross_entropy_with_grad(columns, np.full(2, len(columns) - 1), axis=0, reduction="none", out=columns)
    assert np.all(losses == ml_dtypes.bfloat16(np.log1p(others)))
    first, last = np.divide([np.exp(-20.0), -others], 1 + others).astype(ml_dtypes.bfloat16)
    assert np.all(columns[[0, -2]] == first) and np.all(columns[-1] == last)
