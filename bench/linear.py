"""linear_cross_entropy, forward and backward, beside torch's: time, and how much memory it needs beyond inputs and gradients.

    python bench/linear.py                                          # N = 4096, D = 512, V = 32000, float32, two threads
    python bench/linear.py 4096x512x128256 --dtypes float32 bfloat16 --rounds 3 --json FILE

    plain         torch.nn.functional.cross_entropy of linear(x, w)
    torch         torch.nn.functional.linear_cross_entropy
    torch chunks  the same with LinearCrossEntropyOptions(), its own choice of chunks
    NumPy         sumexp.linear_cross_entropy_with_grad of arrays

Each has a process of its own; they take turns. A first call, after a small one, is for the memory: the peak of the process
beyond what it held before and the two gradients, as a share of N x V elements of the dtype (Linux only). Loss and gradients
are compared with those of `plain` by their loss and norms. The table has medians, and ratios to sumexp's of the same rounds.
"""

import argparse
import gc
import json
import multiprocessing
import sys
import time

from harness import stats, tables

CHECKED = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2, "float64": 1e-10}


def torch_calls():
    import torch
    from torch.nn import functional as F

    from sumexp import torch as st

    return {
        "sumexp": st.linear_cross_entropy,
        "plain": lambda x, w, t: F.cross_entropy(F.linear(x, w), t),
        "torch": F.linear_cross_entropy,
        "torch chunks": lambda x, w, t: F.linear_cross_entropy(x, w, t, options=torch.nn.LinearCrossEntropyOptions()),
    }


WAYS = ("sumexp", "plain", "torch", "torch chunks", "NumPy")


def status(field):
    """A figure of this process in bytes."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


class Way:
    """One way with its inputs: x (N, D), w (V, D), targets."""

    def __init__(self, name, dtype, shape, threads):
        import torch

        import sumexp as se

        se.set_num_threads(threads)
        torch.set_num_threads(threads)
        n, d, v = shape
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(n, d, generator=generator).to(getattr(torch, dtype))
        self.w = torch.randn(v, d, generator=generator).mul_(0.05).to(self.x.dtype)
        self.target = torch.randint(0, v, (n,), generator=generator)
        self.arrays = name == "NumPy"
        if self.arrays:
            self.x, self.w, self.target = self.x.numpy(), self.w.numpy(), self.target.numpy()
            self.function = se.linear_cross_entropy_with_grad
        else:
            self.function = torch_calls()[name]
            self.x.requires_grad_()
            self.w.requires_grad_()
        self.size = self.x.dtype.itemsize if self.arrays else self.x.element_size()

    def call(self, rows, **options):
        """(loss, dx, dw)"""
        if self.arrays:
            return self.function(self.x[:rows], self.w, self.target[:rows], **options)[:3]
        self.x.grad = self.w.grad = None
        loss = self.function(self.x[:rows], self.w, self.target[:rows], **options)
        loss.backward()
        return loss.detach(), self.x.grad, self.w.grad

    def memory(self):
        """(bytes beyond inputs and gradients, (loss, norms of the gradients))"""
        small = {"chunk_size": 8} if self.function.__module__.startswith("sumexp") else {}
        self.call(32, **small)
        if not self.arrays:
            self.x.grad = self.w.grad = None
        gc.collect()
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # from here on the peak is counted anew
        before = status("VmRSS")
        results = self.call(len(self.x))
        shape = self.x.shape, self.w.shape
        gradients = sum(a * b for a, b in shape) * self.size
        extra = status("VmHWM") - before - gradients
        found = [float(results[0]), *(float((g.astype("f8") ** 2).sum() if self.arrays else g.double().square().sum()) ** 0.5
                                      for g in results[1:])]  # fmt: skip
        return extra, found

    def time(self):
        start = time.perf_counter()
        self.call(len(self.x))
        return time.perf_counter() - start


def serve(pipe, *arguments):
    way = Way(*arguments)
    while (what := pipe.recv()) != "end":
        pipe.send(getattr(way, what)())


def measured(shape, dtype, names, threads, rounds):
    """{way: {"extra": bytes, "seconds": [...]}}"""
    context, pipes, workers = multiprocessing.get_context("spawn"), {}, []
    for name in names:
        pipes[name], end = context.Pipe()
        workers.append(context.Process(target=serve, args=(end, name, dtype, shape, threads), daemon=True))
        workers[-1].start()

    def ask(name, what):
        pipes[name].send(what)
        return pipes[name].recv()

    found, values = {}, {}
    for name in names:
        extra, values[name] = ask(name, "memory")
        found[name] = {"extra": extra, "seconds": []}
    expected = values.get("plain", next(iter(values.values())))
    for name, value in values.items():
        if any(abs(a - b) > CHECKED[dtype] * abs(b) for a, b in zip(value, expected)):
            raise SystemExit(f"{name}, {dtype}: loss and norms {value}, expected {expected}")
    for _ in range(rounds):
        for name in names:
            found[name]["seconds"].append(ask(name, "time"))
    for name, worker in zip(names, workers):
        pipes[name].send("end")
        worker.join()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=["4096x512x32000"], help="NxDxV")
    parser.add_argument("--dtypes", nargs="*", default=["float32"], choices=list(CHECKED))
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=WAYS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="a file for the seconds of every round and the bytes")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    rows, records = [], []
    for text in options.shapes:
        shape = [int(n) for n in text.split("x")]
        for dtype in options.dtypes:
            names = [n for n in options.ways if n != "NumPy" or dtype != "bfloat16"]
            found = measured(shape, dtype, names, options.threads, options.rounds)
            size = {"float64": 8, "float32": 4}.get(dtype, 2)
            for name, figures in found.items():
                records.append({"shape": text, "dtype": dtype, "way": name, **figures})
                share = figures["extra"] / (shape[0] * shape[2] * size)
                took, ours = stats.median(figures["seconds"]), stats.median(found[names[0]]["seconds"])
                rows.append((text, dtype, name, f"{took:.3g}", f"{took / ours:.2f}", f"{100 * share:.1f} %"))
            print(f"{text} {dtype} done", file=sys.stderr)
    show = tables.markdown if options.markdown else tables.aligned
    print(show(("N x D x V", "dtype", "", "s", f"times {options.ways[0]}'s", "extra of N x V"), rows))
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"threads": options.threads, "records": records}, file, indent=1)


if __name__ == "__main__":
    main()
