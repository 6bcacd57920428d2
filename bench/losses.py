"""Cross-entropy and its gradient beside torch's, and beside a copy of the logits.

    python bench/losses.py                          # float32, 4096 x 32000, two threads
    python bench/losses.py 100000x10 16x21x128x128 --dtype bfloat16 --threads 1 --json FILE

Classes lie along axis 1. Results are compared with torch's before anything is timed; then all take turns, in one process,
and the table has medians over the rounds, in ns per logit and over the median of the copy, with that ratio's interval.
"""

import argparse
import json
import time

import numpy as np
import torch

import sumexp as se
from harness import stats
from sumexp import torch as st


def contenders(shape, dtype, threads):
    """{name: a call without arguments}"""
    se.set_num_threads(threads)
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(20)
    x = torch.randn(shape, generator=generator).mul_(4).to(dtype)
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=generator)
    probabilities = torch.rand(shape, generator=generator).to(dtype)
    leaf = x.clone().requires_grad_()
    out, over = torch.empty_like(x), x.clone()

    def backward(cross_entropy, target=target, **options):
        leaf.grad = None
        loss = cross_entropy(leaf, target, **options)
        loss.backward()
        return loss.detach(), leaf.grad

    def forward(cross_entropy):
        with torch.no_grad():
            return cross_entropy(x, target)

    loss, gradient = se.cross_entropy_with_grad(x, target, 1, out=out)
    expected = backward(torch.nn.functional.cross_entropy)
    torch.testing.assert_close((loss, gradient), expected, rtol=2e-2 if dtype.itemsize == 2 else 1e-4, atol=1e-6)
    return {
        "copy": lambda: out.copy_(x),
        "loss + gradient": lambda: se.cross_entropy_with_grad(x, target, 1, out=out),
        "the same over the logits": lambda: se.cross_entropy_with_grad(over, target, 1, out=over),
        "with smoothing and z-loss": lambda: se.cross_entropy_with_grad(
            x, target, 1, out=out, label_smoothing=0.1, z_loss=1e-4
        ),
        "loss": lambda: se.cross_entropy(x, target, 1),
        "sumexp.torch, forward + backward": lambda: backward(st.cross_entropy),
        "torch, forward + backward": lambda: backward(torch.nn.functional.cross_entropy),
        "torch, forward": lambda: forward(torch.nn.functional.cross_entropy),
        "sumexp.torch, smoothing": lambda: backward(st.cross_entropy, label_smoothing=0.1),
        "torch, smoothing": lambda: backward(torch.nn.functional.cross_entropy, label_smoothing=0.1),
        "sumexp.torch, probabilities": lambda: backward(st.cross_entropy, probabilities),
        "torch, probabilities": lambda: backward(torch.nn.functional.cross_entropy, probabilities),
    }


def measure(calls, rounds):
    seconds = {name: [] for name in calls}
    for name in calls:
        calls[name]()
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(0.02)  # by then the threads of torch's last call have stopped spinning
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=["4096x32000"])
    parser.add_argument("--dtype", default="float32", choices=["float16", "bfloat16", "float32", "float64"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", help="a file for the seconds of every round")
    options = parser.parse_args()
    found = {}
    for text in options.shapes:
        shape = [int(n) for n in text.split("x")]
        found[text] = measure(contenders(shape, getattr(torch, options.dtype), options.threads), options.rounds)
        print(f"\n{text} {options.dtype}, {options.threads} threads")
        for name, seconds in found[text].items():
            low, ratio, high = stats.ratio_interval(seconds, found[text]["copy"])
            each = stats.median(seconds) * 1e9 / np.prod(shape)
            print(f"  {name:34} {each:7.3f} ns  {ratio:6.2f} of a copy ({low:.2f} to {high:.2f})")
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"dtype": options.dtype, "threads": options.threads, "seconds": found}, file, indent=1)


if __name__ == "__main__":
    main()
