"""python -m sumexp bench: how fast this library's functions are on this machine, beside a copy. Needs NumPy alone.

The comparison with other libraries is bench/ of the repository.
"""

import argparse
import concurrent.futures
import functools
import time

import numpy as np

import sumexp

# Function: its operands in order (x: logits, p: softmax(x), l: log_softmax(x), r: one value a row, g and t: values like x),
# and how many arrays must cross the memory bus; one value a row is not counted.
FUNCTIONS = {
    "softmax": ("x", 2),
    "log_softmax": ("x", 2),
    "logsumexp": ("x", 1),
    "softmax_vjp": ("gp", 3),
    "log_softmax_vjp": ("gl", 3),
    "logsumexp_vjp": ("rx", 2),
    "softmax_jvp": ("gp", 3),
    "log_softmax_jvp": ("gl", 3),
    "logsumexp_jvp": ("gx", 2),
    "softmax_hvp": ("gtp", 4),
    "log_softmax_hvp": ("gtl", 4),
}
LENGTHS = (16, 128, 1024, 4096, 65536)  # of rows, and then one row of all
TIMES = 7  # calls of a figure, which is their median


def positive(text):
    """An integer from 1."""
    if not text.isdecimal() or not 0 < int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"{text!r}, accepted: integers from 1 below 2^31")
    return int(text)


def parse(arguments):
    p = argparse.ArgumentParser(
        prog="python -m sumexp bench",
        description="Times sumexp's functions on this machine, beside a copy of an array: nanoseconds per element, and what "
        "share of the copy's bytes per second that is, counting the bytes that a function must read and write.",
    )
    p.add_argument("--dtype", choices=["float16", "float32", "float64"], default="float32")
    p.add_argument("--functions", nargs="+", metavar="NAME", choices=FUNCTIONS, default=list(FUNCTIONS),
                   help="default: " + ", ".join(FUNCTIONS))
    p.add_argument("--megabytes", type=positive, default=64, help="size of an array (default 64)")
    p.add_argument("--threads", type=positive, default=sumexp.get_num_threads(), help="default: %(default)s")
    return p.parse_args(arguments)


def seconds(call):
    """The median time of a call, after one that is not timed."""
    call()
    taken = []
    for _ in range(TIMES):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


def seconds_of_copy(source, target, threads):
    """The time in which as many threads as the library's copy one array into another, a part each."""
    if threads == 1:
        return seconds(lambda: np.copyto(target, source))
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads)))
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return seconds(lambda: list(pool.map(lambda part: np.copyto(*part), parts)))


def operands(function, flat, n):
    """The arrays of a call on rows of n elements, and its result's."""
    x = flat["x"].reshape(-1, n)
    make = {
        "x": lambda: x,
        "p": lambda: sumexp.softmax(x, axis=-1, out=flat["y"].reshape(x.shape)),
        "l": lambda: sumexp.log_softmax(x, axis=-1, out=flat["y"].reshape(x.shape)),
        "r": lambda: np.ones(len(x), x.dtype),
        "g": lambda: flat["g"].reshape(x.shape),
        "t": lambda: flat["t"].reshape(x.shape),
    }
    arrays = [make[which]() for which in FUNCTIONS[function][0]]
    per_row = function in ("logsumexp", "logsumexp_jvp")
    return arrays, flat["out"][: len(x)] if per_row else flat["out"].reshape(x.shape)


def main(arguments):
    options = parse(arguments)
    before = sumexp.get_num_threads()
    sumexp.set_num_threads(options.threads)
    try:
        measure(options)
    finally:
        sumexp.set_num_threads(before)
    return 0


def measure(options):
    count = (options.megabytes << 20) // np.dtype(options.dtype).itemsize
    lengths = [n for n in LENGTHS if n < count] + [count]
    rng = np.random.default_rng(0)
    block = 4 * rng.standard_normal(min(count, 1 << 20), np.float32)
    flat = {name: np.resize(np.roll(block, 7 * k), count).astype(options.dtype) for k, name in enumerate("xgt")}
    flat.update(y=np.zeros(count, options.dtype), out=np.zeros(count, options.dtype))
    isa = sumexp.show_config(mode="dicts")["run time"]["instruction set"]
    threads = f"{options.threads} thread{'s' * (options.threads > 1)}"
    print(f"sumexp {sumexp.__version__}, {isa}, {threads}; {options.dtype}, arrays of {options.megabytes} MB, last axis")
    copied = seconds_of_copy(flat["x"], flat["out"], options.threads) / count
    print(f"a copy: {copied * 1e9:.2f} ns per element\n\nns per element (bytes per second, of the copy's)")
    names = [f"n = {n}" for n in lengths[:-1]] + ["one row"]
    print("".join([" " * 16, *(name.rjust(14) for name in names), "16 numbers".rjust(14)]))
    for function in options.functions:
        call = getattr(sumexp, function)
        print(function.ljust(16), end="", flush=True)
        for n in lengths:
            arrays, out = operands(function, flat, n)
            taken = seconds(functools.partial(call, *arrays, axis=-1, out=out)) / count
            share = copied / 2 * FUNCTIONS[function][1] / taken
            print(f"{taken * 1e9:.2f} ({share:.0%})".rjust(14), end="", flush=True)
        arrays, _ = operands(function, {name: array[:16] for name, array in flat.items()}, 16)
        few = [array.reshape(array.shape[1:]) for array in arrays]
        thousand = seconds(lambda: [call(*few, axis=-1) for _ in range(1000)])
        print(f"{thousand * 1e6:.0f} ns".rjust(14))
