"""logmatmulexp beside the formulas that people write: python bench/logmatmulexp.py [--sizes 64 256] [--threads 1] [--rounds 21]

    numpy      the broadcast formula: M x K x N terms, their maximum, exp, sum, log
    pyro       what pyro's HMM distributions do in torch: shifts by the maxima of rows and columns, exp, matmul, log; of terms
               far below both maxima it makes -inf
    product    NumPy's float64 matmul of the shifted exponentials, and log: what the formula above costs in NumPy

Each result is checked against the broadcast formula in long double before it is timed. All take turns in every round; the table
has the medians, and how many times sumexp's each is.
"""

import argparse
import time

import numpy as np

import sumexp as se


def broadcast(a, b):
    terms = a[:, :, None] + b
    top = terms.max(axis=1)
    return top + np.log(np.exp(terms - top[:, None]).sum(axis=1))


def product(a, b):
    x, y = a.max(axis=1, keepdims=True), b.max(axis=0, keepdims=True)
    return np.log(np.exp((a - x).astype(np.float64)) @ np.exp((b - y).astype(np.float64))) + (x + y)


def pyro(torch):
    def formula(a, b):
        x = a.detach().max(-1, keepdim=True)[0].clamp(min=torch.finfo(a.dtype).min)
        y = b.detach().max(-2, keepdim=True)[0].clamp(min=torch.finfo(b.dtype).min)
        return torch.matmul((a - x).exp(), (b - y).exp()).log() + x + y

    return lambda a, b: formula(torch.from_numpy(a), torch.from_numpy(b)).numpy()


def contenders():
    yield "sumexp", se.logmatmulexp
    yield "numpy", broadcast
    yield "product", product
    try:
        import torch
    except ImportError:
        return
    yield "pyro", pyro(torch)


def medians(calls, rounds):
    times = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begin)
    return {name: float(np.median(t)) for name, t in times.items()}


def limit(threads):
    se.set_num_threads(threads)
    try:
        import threadpoolctl
    except ImportError:
        pass
    else:
        threadpoolctl.threadpool_limits(threads)
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(threads)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[32, 256])
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=21)
    given = parser.parse_args()
    print(f"{se.show_config('dicts')['run time']['instruction set']}, numpy {np.__version__}; milliseconds (times sumexp's)\n")
    print("| M = K = N | dtype | threads | sumexp | numpy | product | pyro |\n|---|---|---:|---:|---:|---:|---:|")
    for n in given.sizes:
        for dtype in (np.float32, np.float64):
            random = np.random.default_rng(n)
            a, b = (random.normal(size=(n, n)).astype(dtype) * dtype(3) for _ in range(2))
            exact = np.concatenate([broadcast(rows.astype(np.longdouble), b) for rows in np.array_split(a, max(n // 16, 1))])
            calls = {}
            for name, function in contenders():
                error = np.max(np.abs(function(a, b) - exact) / np.spacing(np.abs(exact).astype(dtype)))
                if not error < (1 if name == "sumexp" else 100):
                    raise SystemExit(f"{name}, n = {n}, {np.dtype(dtype)}: off by {error} ulp")
                calls[name] = lambda function=function: function(a, b)
            for threads in given.threads:
                limit(threads)
                took = medians(calls, given.rounds)
                ours = took["sumexp"]
                peers = ("numpy", "product", "pyro")
                cells = [f"{1e3 * took[c]:.3f} ({took[c] / ours:.1f})" if c in took else "" for c in peers]
                print(f"| {n} | {np.dtype(dtype)} | {threads} | {1e3 * ours:.3f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
