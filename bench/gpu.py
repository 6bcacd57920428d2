"""Builds the CUDA kernels for the GPU of this machine, checks their results, and times them beside peers:

    python bench/gpu.py [--quick] [--only REGEX] [--json FILE] [--no-build]

bench/README.md says how to read the figures. Exit status: 0 measured, 1 a result is wrong or the build failed,
2 no usable GPU.
"""

import argparse
import collections
import datetime
import functools
import importlib
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
WHOLE_SECONDS = 460  # of a run with its build: under eight minutes, unless the build alone takes more than 385
# gpu_report and gpu_peers import sumexp: here they are imported after the build, which may replace it.


def parse(arguments):
    p = argparse.ArgumentParser(prog="python bench/gpu.py", description=__doc__.splitlines()[0].rstrip(":") + ".")
    p.add_argument("--quick", action="store_true", help="few and smaller cells: under a minute")
    p.add_argument("--only", metavar="REGEX", default="", help="cells by name, such as 'softmax_vjp bf16 .* x 2K'")
    p.add_argument("--peers", nargs="+", choices=("torch", "compile", "triton"), default=["torch", "compile", "triton"])
    p.add_argument("--seconds", type=float, default=300, help="for measuring (default 300, less after a build of "
                   f"more than {WHOLE_SECONDS - 300}); peers that are slow to prepare are left out, cell by cell, where it "
                   "gets short")
    p.add_argument("--json", metavar="FILE", help="where the figures go (default: bench/results/DATE-DEVICE-gpu.json, "
                   "with --quick or --only sumexp-bench/gpu.json)")
    p.add_argument("--no-build", action="store_true", help="measure the sumexp that is installed")
    p.add_argument("--from", dest="source", metavar="FILE", help="measure nothing, show these figures")
    return p.parse_args(arguments)


# -- what is needed ------------------------------------------------------------------------------------------


def no_gpu():
    """Why no GPU can be used; None where one can."""
    try:
        import torch
    except ImportError as error:
        return f"torch cannot be imported: {error}"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device"
    return None


def no_kernels():
    """Why the installed package cannot compute on the GPU; None where it can."""
    try:
        import sumexp
    except ImportError as error:
        return f"sumexp is not installed ({error}); leave out --no-build"
    config = sumexp.show_config(mode="dicts")
    if not config["build"]["cuda"]:
        return f"sumexp in {config['sumexp']['location']} was built without CUDA; leave out --no-build"
    if not config["run time"]["cuda devices"]:
        return f"sumexp, built for {config['build']['cuda']}, sees no CUDA device: {config['run time']['cuda problem']}"
    return None


def build_command(major, minor):
    """pip installs the repository, with kernels for one architecture alone."""
    defines = {"SUMEXP_CUDA": "ON", "SUMEXP_CUDA_ARCHITECTURES": f"{major}{minor}"}
    return [sys.executable, "-m", "pip", "install", "--verbose", "--no-build-isolation", "--no-deps",
            *(f"--config-settings=cmake.define.{name}={value}" for name, value in defines.items()), str(ROOT)]


def build():
    """Whether it worked; the end of pip's output is shown where it did not."""
    import torch
    from tqdm import tqdm

    command = build_command(*torch.cuda.get_device_capability())
    environment = {"CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count()), **os.environ}
    print(" ".join(command), flush=True)
    last = collections.deque(maxlen=40)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    with tqdm(desc="build", unit="file", ncols=100) as shown:
        for line in process.stdout:
            last.append(line)
            if done := progress_of(line):
                shown.n, shown.total = done
                shown.refresh()
    if process.wait():
        print("".join(last), file=sys.stderr)
    return process.returncode == 0


def seconds_left(wanted, spent):
    """For measuring, after `spent` seconds: a quarter of what was wanted even after a very long build."""
    return max(min(wanted, WHOLE_SECONDS - spent), wanted / 4)


def progress_of(line):
    """(done, all) from a line that Ninja or Make prints while building, else None."""
    if match := re.search(r"\[\s*(\d+)/(\d+)\]", line):
        return int(match[1]), int(match[2])
    match = re.search(r"\[\s*(\d+)%\]", line)
    return (int(match[1]), 100) if match else None


def driver():
    """The version of the NVIDIA driver, where nvidia-smi can tell."""
    if not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=60)
    return answer.stdout.split("\n")[0].strip() or None


# -- time ----------------------------------------------------------------------------------------------------


class CudaClock:
    """Times calls by events on the device, with nothing of theirs left in its L2 cache.

    The flush before a call also keeps the device busy while the host queues it, so that what is timed is the
    device's work and not the host's: for slow calls the flush is repeated.
    """

    def __init__(self):
        import torch

        self.cuda = torch.cuda
        l2 = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0)
        self.buffer = torch.empty(max(4 * l2, 256 << 20), dtype=torch.uint8, device="cuda")
        self.flush_seconds = 0.0
        self.flush_seconds = min(self.read([self.queue(self.buffer.zero_, 0) for _ in range(5)]))

    def host(self, call):
        """Seconds that the host takes to queue a call."""
        taken = []
        for _ in range(3):
            self.cuda.synchronize()
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
        self.cuda.synchronize()
        return min(taken)

    def queue(self, call, host):
        """Enqueues the flush and the call; what `read` takes later."""
        for _ in range(1 + int(2 * host / self.flush_seconds) if self.flush_seconds else 1):
            self.buffer.zero_()
        start, end = (self.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        return start, end

    def read(self, queued):
        self.cuda.synchronize()
        return [start.elapsed_time(end) / 1e3 for start, end in queued]


def take_turns(calls, clock, rounds_of_one):
    """{peer: ([seconds], host seconds)}: one call of each a round, each round beginning with another peer.

    `rounds_of_one`: from the seconds of one round to their number.
    """
    hosts = {peer: clock.host(call) for peer, call in calls.items()}
    once = {peer: clock.read([clock.queue(call, hosts[peer])])[0] for peer, call in calls.items()}
    round_seconds = sum(once[p] + clock.flush_seconds + 2 * hosts[p] for p in calls)
    names, queued = list(calls), {peer: [] for peer in calls}
    for k in range(rounds_of_one(round_seconds)):
        first = k % len(names)
        for peer in names[first:] + names[:first]:
            queued[peer].append(clock.queue(calls[peer], hosts[peer]))
    return {peer: (clock.read(queued[peer]), hosts[peer]) for peer in calls}


# -- measuring -----------------------------------------------------------------------------------------------


def prepare(cell, names, generator, failed):
    """{peer: call}, each warmed up and checked. `failed(peer, error)` is told of those that are not."""
    import gpu_peers

    inputs = gpu_peers.inputs_for(cell, generator)
    want = gpu_peers.expected(cell, inputs)
    largest = gpu_peers.scale(cell, inputs, want)
    calls = {}
    for peer in names:
        try:
            call = gpu_peers.build(peer, cell, inputs)
            call()
            if peer == "sumexp":
                gpu_peers.check_exact(cell, call, want)
            elif peer != "copy":
                gpu_peers.check_close(cell, peer, call, want, largest)
            calls[peer] = call
        except Exception as error:  # a compiler may raise anything; the others go on without this peer
            failed(peer, error)
    return calls


def measure(document, cells, rivals, seconds, save, clock=None, free_memory=None, device="cuda"):
    """Fills document["records"], ["left_out"] and ["wrong"], cell by cell, within `seconds`."""
    import torch
    from tqdm import tqdm

    import gpu_peers
    import gpu_report

    tqdm.monitor_interval = 0  # no thread beside the measurements
    clock = clock or CudaClock()
    free_memory = free_memory or (lambda: torch.cuda.mem_get_info()[0])
    generator = torch.Generator(device)
    generator.seed()  # another input at every run
    deadline, failures = time.monotonic() + seconds, collections.Counter()
    available = []
    for peer in ("copy", "sumexp", *rivals):
        if reason := gpu_peers.absent(peer):
            document["left_out"][peer] = reason
        else:
            available.append(peer)

    def failed(peer, error):
        reason = f"{type(error).__name__}: {str(error).strip()[:300]}"
        leave_out(peer, f"{gpu_report.FAILED}: {reason}")
        if peer == "sumexp":
            document["wrong"].append(f"{cell}: {reason}")
        failures[peer] += 1
        if peer in rivals and failures[peer] == 3 and peer in available:
            available.remove(peer)
            document["left_out"][peer] = f"failed three times, last {reason}"

    def leave_out(peer, reason):
        document["records"].append(gpu_report.record(cell, peer, left_out=reason))

    def one_cell(at, cell):
        if device == "cuda":
            torch.cuda.empty_cache()
        left = deadline - time.monotonic()
        names, without = gpu_report.choose(cell, available, left, len(cells) - at)
        if names and cell.held > free_memory():
            names, without = [], dict.fromkeys(available, f"{gpu_report.NO_MEMORY}: {cell.held} bytes")
        for peer, reason in without.items():
            leave_out(peer, reason)
        if not names:
            return
        calls = prepare(cell, names, generator, failed)
        left = deadline - time.monotonic()
        rounds = functools.partial(gpu_report.rounds_of, seconds_left=left, cells_left=len(cells) - at)
        for peer, (samples, host) in (take_turns(calls, clock, rounds) if calls else {}).items():
            document["records"].append(gpu_report.record(cell, peer, seconds=samples, host=host))
        del calls  # and with it the inputs

    with tqdm(cells, desc="cells", ncols=100) as shown:
        for at, cell in enumerate(shown):
            shown.set_postfix_str(str(cell))
            try:
                one_cell(at, cell)
            except RuntimeError as error:  # the device itself has failed: so would every call from now on
                document["wrong"].append(f"{cell}: {type(error).__name__}: {str(error).strip()[:300]}")
                break
            if at % 20 == 19:
                save()
    save()


def new_document():
    import torch

    import sumexp

    def version(name):
        try:
            return __import__(name).__version__
        except ImportError:
            return None

    return {
        "device": torch.cuda.get_device_name(),
        "driver": driver(),
        "date": datetime.date.today().isoformat(),
        "versions": {"sumexp": sumexp.__version__, "torch": torch.__version__, "cuda": torch.version.cuda,
                     "triton": version("triton"), "python": platform.python_version()},
        "kernels": sumexp.show_config(mode="dicts")["build"]["cuda"],
        "left_out": {}, "wrong": [], "records": [],
    }


def main(arguments=None):
    options = parse(sys.argv[1:] if arguments is None else arguments)
    start = time.monotonic()
    if options.source:
        import gpu_report

        print(gpu_report.report(json.loads(pathlib.Path(options.source).read_text())))
        return 0
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no processes beside the measurements
    if reason := no_gpu():
        print(f"bench/gpu.py: no usable GPU: {reason}", file=sys.stderr)
        return 2
    if not options.no_build and not build():
        print("bench/gpu.py: the build failed", file=sys.stderr)
        return 1
    importlib.invalidate_caches()  # what pip has installed since
    if reason := no_kernels():
        print(f"bench/gpu.py: {reason}", file=sys.stderr)
        return 2
    import gpu_report

    document = new_document()
    part = options.quick or options.only
    path = options.json or (ROOT / "sumexp-bench" / "gpu.json" if part else
                            ROOT / "bench" / "results" / gpu_report.file_name(document["date"], document["device"]))
    cells = gpu_report.grid(options.quick, options.only)
    seconds = seconds_left(options.seconds, time.monotonic() - start)
    measure(document, cells, options.peers, seconds, lambda: gpu_report.write(path, document))
    print(f"figures: {path}\n")
    print(gpu_report.report(document))
    return 1 if document["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
