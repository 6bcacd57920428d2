"""The command line, the configuration, and the promises about the process: imports, pickling, threads, docs."""

import doctest
import importlib.util
import inspect
import os
import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import sumexp as se
from sumexp import _core

ROOT = Path(__file__).resolve().parents[2]


def python(*args, cwd=None, **environment):
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=600, cwd=cwd,
                          env={**os.environ, **environment})


def test_demo(tmp_path):
    pytest.importorskip("sklearn")
    run = python("-m", "sumexp", "demo", cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    accuracy = float(re.search(r"held-out accuracy ([\d.]+)%", run.stdout)[1])
    assert accuracy > 94
    float32 = {line[:34].strip(): int(line[44:54]) for line in run.stdout.splitlines() if re.search(r" \d+ +\d+ +\d+$", line)}
    assert float32["exp(z) / sum(exp(z)) not finite"] > 0
    assert float32["sumexp.softmax not finite"] == 0
    assert "0 of 450 losses differ in a bit" in run.stdout
    assert importlib.util.find_spec("matplotlib") is None or (tmp_path / "sumexp-demo.png").stat().st_size > 10_000
    assert float32["sumexp.log_softmax: loss exactly 0"] < float32["SciPy log_softmax: loss exactly 0"]
    assert "epoch" in run.stderr  # the progress bar


def test_config_and_usage():
    run = python("-m", "sumexp", "config")
    assert run.returncode == 0 and "instruction set" in run.stdout and se.__version__ in run.stdout
    assert python("-m", "sumexp").returncode == 0
    wrong = python("-m", "sumexp", "dance")
    assert wrong.returncode == 2 and "usage" in wrong.stderr
    config = se.show_config(mode="dicts")
    assert config["run time"]["threads"] == se.get_num_threads()
    assert config["run time"]["instruction set"] in config["build"]["instruction sets"]
    devices, problem = config["run time"]["cuda devices"], config["run time"]["cuda problem"]
    assert isinstance(devices, int) and (not problem if devices else "CUDA" in problem)


def test_environment():
    code = "import sumexp; print(sumexp.get_num_threads(), sumexp.show_config('dicts')['run time']['instruction set'])"
    run = python("-c", code, SUMEXP_NUM_THREADS="3", SUMEXP_ISA="scalar")
    assert run.stdout.split() == ["3", "scalar"], run.stderr


def test_import_is_light():
    code = "import sys, sumexp; print([m for m in ('torch', 'scipy', 'sklearn', 'ml_dtypes') if m in sys.modules])"
    run = python("-W", "error", "-c", code)
    assert run.stdout.strip() == "[]", run.stderr


def test_threads():
    before = se.get_num_threads()
    x = np.random.default_rng(0).normal(size=(64, 4096)).astype(np.float32)
    try:
        results = set()
        for n in (1, 2, 5):
            se.set_num_threads(n)
            assert se.get_num_threads() == n
            results.add(se.softmax(x).tobytes())
        assert len(results) == 1
    finally:
        se.set_num_threads(before)


def test_threadpoolctl():
    threadpoolctl = pytest.importorskip("threadpoolctl")
    before = se.get_num_threads()
    info = [i for i in threadpoolctl.threadpool_info() if i["user_api"] == "sumexp"]
    assert len(info) == 1 and info[0]["num_threads"] == before and info[0]["version"] == se.__version__
    with threadpoolctl.threadpool_limits(1, user_api="sumexp"):
        assert se.get_num_threads() == 1
    assert se.get_num_threads() == before


def test_calls_from_many_threads():
    x = np.random.default_rng(1).normal(size=(32, 2000))
    want, failures = se.softmax(x).tobytes(), []

    def work():
        failures.extend(1 for _ in range(50) if se.softmax(x).tobytes() != want)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


def test_no_leaks():
    """References to the arguments, to dtypes and to results are all given back."""
    x = np.ones((4, 4), np.float32)
    y = np.ones((2, 2), np.float64)

    def calls():
        se.softmax(x, 0, temperature=2.0)
        se.softmax(x, out=np.empty_like(x))
        se.softmax([1, 2])
        se.logsumexp(x.T, b=x, return_sign=True)
        se.logsumexp(x, return_sign=True)
        se.logsumexp_vjp(np.float32(1), x)
        se.softmax_jacobian(y)
        for bad in (lambda: se.softmax(x, 9), lambda: se.softmax(x, out=y), lambda: se.softmax(x, spam=1),
                    lambda: se.softmax(x[:3], out=x[1:]), lambda: se.softmax("a")):
            with pytest.raises((TypeError, ValueError)):
                bad()

    objects = (x, y, x.dtype, y.dtype, _core.softmax, (2, 2))
    calls()
    before = [sys.getrefcount(o) for o in objects]
    for _ in range(200):
        calls()
    assert all(abs(sys.getrefcount(o) - b) < 5 for o, b in zip(objects, before))


def test_memory_stays_over_many_calls():
    resource = pytest.importorskip("resource")
    x, y = np.ones(1000, np.float32), np.ones((3, 5))
    growth = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(50_000):
            se.softmax(x)
            se.logsumexp(y, 0)
        growth.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert growth[-1] < 1024  # KiB; one lost array a call would be 200 MB


def test_pickle():
    for name in se.__all__:
        if callable(getattr(se, name)):
            assert pickle.loads(pickle.dumps(getattr(se, name))) is getattr(se, name)


def test_docstrings():
    finder = doctest.DocTestFinder()
    runner = doctest.DocTestRunner()
    for name in se.__all__:
        for test in finder.find(getattr(se, name), name, module=False, globs={}):
            runner.run(test)
    assert runner.failures == 0
    for name in ("softmax", "log_softmax", "logsumexp"):
        text = inspect.getdoc(getattr(se, name))
        assert "ulp" in text and "Returns" in text


def test_readme_commands():
    """The two commands at the top of README.md, between the markers that .ci/run reads."""
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("not run from a checkout")
    text = readme.read_text()
    blocks = re.findall(r"<!-- ci:(\w+) -->\n```sh\n(.*?)```", text, re.S)
    assert [name for name, _ in blocks] == ["demo", "test"]
    assert "python -m sumexp demo" in blocks[0][1] and "pytest" in blocks[1][1]
    assert text.index(blocks[0][1]) < 1500


@pytest.mark.parametrize("arguments", [["config"], ["bench", "--megabytes", "1", "--functions", "softmax", "--threads", "1"]])
def test_a_reader_that_goes_away(arguments):
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "sumexp", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode in (0, 1)  # 0: all was written before


def test_demo_names_what_it_does_not_know():
    made = subprocess.run([sys.executable, "-m", "sumexp", "demo", "x"], capture_output=True, text=True)
    assert made.returncode == 2 and made.stderr == "python -m sumexp demo: got x, accepted: nothing more, or hmm\n"
