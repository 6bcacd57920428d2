"""The parent: starts one worker for each peer, prepares a cell in all of them, then lets them take turns.

Only one worker works at a time. In every round each peer has one turn: an untimed call, which wakes its
threads and refills its caches, then a few timed ones, whose median is the round's figure. Rounds begin with
another peer each, and there is a pause between turns, since some thread pools spin for a while after a call.
"""

import dataclasses
import itertools
import json
import os
import pathlib
import selectors
import subprocess
import sys
import tempfile
import time

from . import cells, limits, stats

HERE = pathlib.Path(__file__).resolve().parents[1]  # where a worker finds this package
PAUSE = 0.01
PATIENCE = 180  # seconds for one answer

# Workers keep what they free: a peer without out= then finds the memory of its result mapped, as one with
# out= does. Without these, page faults cost such peers more than the arithmetic does.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 36), "MALLOC_TOP_PAD_": str(64 << 20)}

# What a user's environment may tell a peer about threads and instruction sets: not in a measurement.
TUNING = ("ATEN_", "GOMP_", "JAX_", "KMP_", "MALLOC_", "MKL_", "NPY_", "NUMBA_", "OMP_", "ONEDNN_", "DNNL_", "OPENBLAS_",
          "SUMEXP_", "TORCH_", "XLA_")


def numpy_dispatch():
    """The instruction sets that NumPy chooses at run time on this CPU."""
    try:
        from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__
    except ImportError:
        return []
    return [name for name in __cpu_dispatch__ if __cpu_features__.get(name)]


class Worker:
    def __init__(self, name, threads, isa="best", keep_memory=True, library=None):
        self.name = name
        environment = {k: v for k, v in os.environ.items() if not k.startswith(TUNING)}
        for variable in ("OMP", "MKL", "OPENBLAS", "NUMBA", "SUMEXP"):
            environment[variable + "_NUM_THREADS"] = str(threads)
        environment["PYTHONWARNINGS"] = "ignore"
        environment["JAX_PLATFORMS"] = "cpu"
        if keep_memory:
            environment.update(KEEP_MEMORY)
        if isa != "best":
            environment["SUMEXP_ISA"] = isa
            environment["ATEN_CPU_CAPABILITY"] = "avx2" if isa == "avx2" else "default"
        if name == "numpy-baseline":
            environment["NPY_DISABLE_CPU_FEATURES"] = " ".join(numpy_dispatch())
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), environment.get("PYTHONPATH")]))
        if library:
            environment[limits.VARIABLE] = str(library)
        cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        chosen = ",".join(map(str, cpus[:threads]))
        self.errors, self.last_words = tempfile.TemporaryFile("w+", errors="replace"), ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "harness.worker", name, str(threads), chosen],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment,
            text=True,
        )
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.process.stdout, selectors.EVENT_READ)

    def hear(self):
        """The next answer; None where the worker died or is stuck (it is then ended)."""
        if not self.process.stdin.closed and self.selector.select(PATIENCE):
            line = self.process.stdout.readline()
            if line:
                return json.loads(line)
        self.close()
        return None

    def say(self, do, **arguments):
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass

    def ask(self, do, **arguments):
        self.say(do, **arguments)
        return self.hear()

    def close(self):
        if self.process.stdin.closed:
            return
        self.process.kill()
        self.process.wait()
        self.selector.close()
        self.process.stdout.close()
        self.errors.seek(0)
        said = [line.strip() for line in self.errors if line.strip()]
        self.last_words = f": {said[-1]}" if said else ""
        self.errors.close()
        try:
            self.process.stdin.close()
        except BrokenPipeError:  # it held a request that nobody will read
            pass


class Fleet:
    """The workers of one number of threads and one forced instruction set. Started when first asked for."""

    def __init__(self, threads, isa="best", library=None, note=print):
        self.threads, self.isa, self.library, self.note = threads, isa, library, note
        self.workers, self.absent = {}, {}
        self.skipped = {}  # of the last cell: {name: why it was not measured}, of peers that are there

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for worker in self.workers.values():
            worker.close()

    def start(self, names):
        wanted = [n for n in names if n not in self.workers and n not in self.absent]
        fresh = {}
        for name in wanted:
            if name.startswith("limit:") and not self.library:
                self.absent[name] = "no C++ compiler"
            else:
                fresh[name] = Worker(name, self.threads, self.isa, library=self.library)
        for name, worker in fresh.items():
            answer = worker.hear()
            if answer and "ready" in answer:
                self.workers[name] = worker
                continue
            self.absent[name] = answer["absent"] if answer else "its process ended" + worker.last_words
            self.note(f"{name} left out: {self.absent[name]}")
            worker.close()
        return [n for n in names if n in self.workers]

    def prepare(self, names, do, **arguments):
        """The names that are ready to take turns. All prepare at once; nothing is timed yet."""
        present = self.start(names)
        for name in present:
            self.workers[name].say(do, **arguments)
        ready, self.skipped = [], {}
        for name in present:
            answer = self.workers[name].hear()
            if answer and answer.get("ok"):
                ready.append(name)
            elif answer is None:
                why = "its process ended or did not answer" + self.workers.pop(name).last_words
                self.note(f"{name}: {why}; left out from here on")
                self.absent[name] = self.skipped[name] = why
            else:
                self.skipped[name] = answer["skip"]
                if answer.get("failed"):
                    self.note(f"{name}: {answer['skip']}")
        return ready

    def turns(self, names, rounds, calls):
        """{name: [seconds of each round]}"""
        figures = {name: [] for name in names}
        for r in range(rounds):
            for k in range(len(names)):
                name = names[(r + k) % len(names)]
                if name not in self.workers:
                    continue
                time.sleep(PAUSE)
                answer = self.workers[name].ask("turn", warm=1, calls=calls)
                if answer is None or "seconds" not in answer:
                    self.note(f"{name}: failed in round {r}; left out from here on")
                    self.absent[name] = self.skipped[name] = "failed"
                    self.workers.pop(name).close()
                    continue
                figures[name].append(stats.median(answer["seconds"]))
        return {name: seconds for name, seconds in figures.items() if len(seconds) == rounds}


# -- whole measurements: lists of records ----------------------------------------------------------------


def run_cells(wanted, rounds, calls, library, progress, note):
    """`wanted`: [(group, Cell, names of peers)]. Yields a list of records for each cell: the cell's fields, peer,
    seconds of each round, and the groups that asked for it; where a peer could not be measured no seconds, and "skip"
    says why. A cell that several ask for is measured once."""
    peers, groups = {}, {}
    for group, cell, names in wanted:
        peers.setdefault(cell, {}).update(dict.fromkeys(names))
        groups.setdefault(cell, {})[group] = None
    fleets = {}
    for cell in peers:
        fleets.setdefault((cell.threads, cell.isa), []).append(cell)
    for (threads, isa), members in fleets.items():
        # same-sized cells of a dtype one after the other: workers keep their numbers
        members.sort(key=lambda c: (cells.DTYPES.index(c.dtype), c.elements))
        with Fleet(threads, isa, library, note) as fleet:
            for cell in members:
                names = fleet.prepare(list(peers[cell]), "prepare", cell=dataclasses.asdict(cell))
                figures = fleet.turns(names, rounds, calls)
                shared = {**dataclasses.asdict(cell), "groups": list(groups[cell])}
                skipped = [{**shared, "peer": name, "seconds": [], "skip": why} for name, why in fleet.skipped.items()]
                yield [{**shared, "peer": name, "seconds": seconds} for name, seconds in figures.items()] + skipped
                progress(str(cell))


def run_overhead(peers, threads, rounds, library, progress, note, n=16, ops=("softmax", "log_softmax", "logsumexp")):
    """One call on n floats, as users write it: a new result, no out=; on one thread. Between torch and sumexp.torch also
    one on 4 rows of n, with and without a gradient recorded ("face"), where torch may use `threads` of them."""
    faces = [p for p in peers if p in ("sumexp-tensor", "torch")]
    wanted = {1: [(op, peers, {"shape": [n]}, {}) for op in ops]}
    for count in dict.fromkeys((1, threads)):
        for op, recorded in itertools.product(ops[:2], (False, True)):
            face = ("gradient recorded" if recorded else "no gradient") + (f", {count} threads" if count > 1 else "")
            arguments = {"shape": [4, n], "recorded": recorded}
            wanted.setdefault(count, []).append((op, faces, arguments, {"face": face}))
    records = []
    for count, calls in wanted.items():
        with Fleet(count, "best", library, note) as fleet:
            for op, names, arguments, label in calls:
                names = fleet.prepare(names, "tiny", op=op, **arguments)
                for name, seconds in fleet.turns(names, rounds, 3).items():
                    records.append({"op": op, "n": n, **label, "peer": name, "seconds": seconds})
                progress(f"call of {op}")
    return records


def run_between(lengths, threads, rounds, library, progress, note):
    """softmax of n x n between two of torch's matrix products, torch's own and sumexp.torch's: records as those of
    run_overhead. torch's threads spin for a while after a product, on the cores that the other's need."""
    records = []
    with Fleet(threads, "best", library, note) as fleet:
        for n in lengths:
            names = fleet.prepare(["sumexp-tensor", "torch"], "between", n=n)
            for name, seconds in fleet.turns(names, 3 * rounds, 2).items():  # the difference looked for is a few percent
                face = f"between products, {n} x {n}"
                records.append({"op": "softmax", "n": n, "face": face, "peer": name, "seconds": seconds})
            progress(f"between products of {n}")
    return records


def run_alone(peers, requests, together, progress, note):
    """[(do, arguments)] in every peer: all of them in one process (together), or each in a fresh one."""
    records = []
    batches = [requests] if together else [[request] for request in requests]
    for name in peers:
        for batch in batches:
            worker = Worker(name, 1, keep_memory=together)
            hello = worker.hear()
            for do, arguments in batch:
                answer = worker.ask(do, **arguments) if hello and "ready" in hello else None
                if answer and "skip" not in answer:
                    records.append({**arguments, "peer": name, **answer})
                elif answer and answer.get("failed"):
                    note(f"{name}: {answer['skip']}")
                elif answer is None and hello and "ready" in hello:
                    note(f"{name}: {do} {arguments} ended its process")
                    hello = None
                progress(f"{do} {name}")
            worker.close()
    return records
