"""One process, one peer. Reads one JSON object a line from standard input, answers each with one.

    {"do": "prepare", "cell": {...}}            -> {"ok": true} or {"skip": why}
    {"do": "tiny", "op": ..., "n": 16}           -> the same, for calls where the call itself is the cost
    {"do": "between", "n": 1024}                 -> the same, for softmax between two matrix products
    {"do": "formula", "family": ..., "quick": true} -> the same, for a cell of formulas.py
    {"do": "turn", "warm": 1, "calls": 3}        -> {"seconds": [...]}, one figure for each call
    {"do": "memory", "cell": {...}}              -> {"extra": bytes above the inputs and the output}
    {"do": "accuracy", "op": ..., "dtype": ...}  -> {"max": ulp, "mean": ulp, "worst": row} (accuracy.py)
"""

import gc
import itertools
import json
import os
import sys
import time

SHORTEST = 2e-3  # seconds a timed sample lasts at least: shorter calls are repeated
SHORTEST_OF_TINY = 20e-3  # after a pause the first thousand calls of a microsecond are slower than the rest


class Worker:
    def __init__(self, name, threads):
        from . import peers

        self.name, self.threads, self.peers = name, threads, peers
        self.call, self.number = None, 1
        self.peer = None if name.startswith("formula:") else peers.make(name, threads)

    def prepare(self, cell):
        from . import cells

        self.call = None
        gc.collect()
        cell = cells.Cell(**cell)
        if self.name.startswith("limit:"):
            self.call = self.peer.build(cell, None, None)
            self.call()
        else:
            inputs, out = cells.arrays_for(cell)
            out.fill(0)  # touched: its pages are there
            self.call = self.peer.build(cell, inputs, out)
            result = self.call()
            cells.check(cell, inputs, getattr(self.call, "result", result))
        self.choose_number(SHORTEST)
        return {"ok": True, "number": self.number}

    def tiny(self, op, shape, **options):
        from . import cells

        count = 1
        for size in shape:
            count *= size
        self.call = self.peer.tiny(op, cells.numbers("float32", count, 0).reshape(shape), **options)
        return self.chosen(100)

    def between(self, n):
        from . import cells

        self.call = self.peer.between(cells.numbers("float32", n * 512, 0).reshape(n, 512))
        return self.chosen(5)

    def formula(self, family, quick):
        from . import formulas

        self.call = None
        gc.collect()
        self.call = formulas.build(self.name.partition(":")[2], family, quick)
        return self.chosen(1)

    def chosen(self, warm):
        for _ in range(warm):
            self.call()
        self.choose_number(SHORTEST_OF_TINY)
        return {"ok": True, "number": self.number}

    def choose_number(self, shortest):
        start = time.perf_counter()
        self.call()
        self.number = 1
        once = time.perf_counter() - start
        if once < shortest:
            self.number = max(1, int(shortest / max(once, 1e-7)))

    def turn(self, warm, calls):
        call, number = self.call, self.number
        for _ in range(warm):
            call()
        seconds = []
        for _ in range(calls):
            loop = itertools.repeat(None, number)
            start = time.perf_counter()
            for _ in loop:
                call()
            seconds.append((time.perf_counter() - start) / number)
        return {"seconds": seconds}

    def memory(self, cell):
        """Peak resident memory of the first large call; a small one before it loads and compiles."""
        import dataclasses

        from . import cells

        cell = cells.Cell(**cell)
        small = dataclasses.replace(cell, rows=64)
        inputs, out = cells.arrays_for(small)
        self.peer.build(small, inputs, out)()
        inputs, out = cells.arrays_for(cell)
        out.fill(0)
        call = self.peer.build(cell, inputs, out)
        gc.collect()
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # resets the peak
        before = resident("VmRSS")
        result = call()
        extra = resident("VmHWM") - before
        if result is not None and not _is(result, out) and not hasattr(call, "result"):
            extra -= out.nbytes  # a result the peer allocates itself is not extra
        return {"extra": max(0, extra)}

    def accuracy(self, op, dtype):
        from . import accuracy

        return accuracy.measure(self.peer, op, dtype)


def _is(result, out):
    return result is out or getattr(result, "data_ptr", lambda: None)() == out.ctypes.data


def resident(field):
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    return 0


def main(name, threads, cpus):
    if cpus and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [int(c) for c in cpus.split(",")])
    # The answers have their own descriptor: what a library prints goes to standard error.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        worker = Worker(name, int(threads))
    except Exception as error:  # not installed, or broken: the parent says which
        print(json.dumps({"absent": f"{type(error).__name__}: {error}"}), file=answers)
        return
    print(json.dumps({"ready": name}), file=answers)
    gc.disable()
    for line in sys.stdin:
        request = json.loads(line)
        action = request.pop("do")
        try:
            answer = getattr(worker, action)(**request)
        except worker.peers.Unsupported as why:
            answer = {"skip": str(why)}
        except Exception as error:  # the parent shows it and goes on with the others
            answer = {"skip": f"{type(error).__name__}: {error}", "failed": True}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
