"""Compares two results files: python bench/compare.py before.json after.json

Reads what sumexp_bench wrote (--benchmark_out=FILE --benchmark_repetitions=9) and what bench/cpu.py
wrote. For every measurement in both it draws the ratio of medians, after / before, with a bootstrap
interval over the repetitions, and says

    SLOWER   the whole interval lies above 1 + margin
    FASTER   the whole interval lies below 1 - margin
    SAME     the whole interval lies within the margins
    UNSURE   anything else: measure more, on a quieter machine

The exit status is 1 where anything is SLOWER, or fails or is missing afterwards. Only needs NumPy.
"""

import argparse
import collections
import fnmatch
import json
import math
import sys

import numpy as np

FEWEST = 5  # repetitions below which an interval means nothing
DRAWS = 4000


def samples(path):
    """{name: seconds of each repetition} of either kind of file (none where it failed), and a line on the machine."""
    with open(path) as file:
        document = json.load(file)
    found = collections.defaultdict(list)

    def only(name, seconds):
        if name in found:
            raise SystemExit(f"{path}: has two measurements of {name}")
        found[name] = seconds
    if "benchmarks" in document:  # Google Benchmark
        scale = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
        for run in document["benchmarks"]:
            if run.get("run_type") == "iteration":
                seconds = found[run["run_name"]]
                if not run.get("error_occurred"):
                    seconds.append(run["real_time"] * scale[run["time_unit"]])
        context = document["context"]
        machine = f"{context.get('num_cpus')} CPUs, {context.get('threads', '?')} threads, {context['date'][:10]}"
    else:
        for record in document["records"]:
            name = "{op} {dtype} {rows}x{n} axis {axis} threads {threads} {isa}: {peer}, for ".format(**record)
            only(name + "+".join(record["groups"]), record["seconds"])
        for record in document["overhead"]:
            only("call of {op}, n = {n}{face}: {peer}".format(**{"face": "", **record}), record["seconds"])
        machine = "{cpu}, {cpus} CPUs, {isa}".format(**document["machine"]) + f", {document['date']}"
    return dict(found), machine


def interval(before, after, rng):
    """(low, ratio, high) of median(after) / median(before), 95 %. The two were not measured in turns: each is
    drawn for itself."""

    def drawn(values):
        values = np.asarray(values)
        return np.median(values[rng.integers(len(values), size=(DRAWS, len(values)))], axis=1)

    low, high = np.percentile(drawn(after) / drawn(before), [2.5, 97.5])
    return float(low), float(np.median(after) / np.median(before)), float(high)


def verdict(low, high, margin):
    if low > 1 + margin:
        return "SLOWER"
    if high < 1 - margin:
        return "FASTER"
    return "SAME" if 1 - margin <= low and high <= 1 + margin else "UNSURE"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--margin", type=float, default=0.03, help="differences that do not matter (default 0.03)")
    parser.add_argument("--only", default="*", help="names that match this pattern, such as 'softmax_*avx2*'")
    options = parser.parse_args(arguments)
    before, machine_before = samples(options.before)
    after, machine_after = samples(options.after)
    print(f"before: {machine_before}\nafter:  {machine_after}")
    before, after = ({n: s for n, s in side.items() if fnmatch.fnmatch(n, options.only)} for side in (before, after))
    lost = [name for name, seconds in before.items() if seconds and not after.get(name)]
    shared = [name for name, seconds in before.items() if seconds and after.get(name)]
    if not shared:
        print("no measurement is in both files (aggregates alone, or other names)", file=sys.stderr)
        return 2
    few = [n for n in shared if min(len(before[n]), len(after[n])) < FEWEST]
    rng = np.random.default_rng(0)
    rows = []
    for name in shared:
        if name in few:
            continue
        low, ratio, high = interval(before[name], after[name], rng)
        rows.append((verdict(low, high, options.margin), ratio, low, high, name))
    order = ("SLOWER", "FASTER", "UNSURE", "SAME")
    rows.sort(key=lambda row: (order.index(row[0]), -row[1]))
    for word, ratio, low, high, name in rows:
        print(f"{word:<7} {ratio:6.3f} [{low:.3f}, {high:.3f}]  {name}")
    count = collections.Counter(row[0] for row in rows)
    print(", ".join(f"{count[word]} {word}" for word in order if count[word]))
    for name in lost:
        print(f"GONE    {name}: {'failed' if name in after else 'missing'} after")
    if rows:
        print(f"geometric mean {math.exp(np.mean([math.log(row[1]) for row in rows])):.3f}")
    if few:
        print(f"{len(few)} left out: fewer than {FEWEST} repetitions (--benchmark_repetitions=9, --rounds 9)")
    return 2 if not rows else 1 if count["SLOWER"] or lost else 0


if __name__ == "__main__":
    sys.exit(main())
