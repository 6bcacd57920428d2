"""This library beside its peers on the CPU: see --help, and README.md here for how to read what it prints."""

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import sys
import tempfile

from harness import accuracy, bars, cells, limits, rounds, tables

ALL = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
PEERS = ("sumexp", "torch", "onnxruntime", "jax", "numba", "scipy", "numpy")
SECTIONS = ("records", "overhead", "memory", "accuracy")


def positive(text):
    """An integer from 1."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}, accepted: integers from 1")
    return int(text)


def length(text):
    return text if text == "all" else positive(text)


def threads(text):
    if positive(text) > ALL:
        raise argparse.ArgumentTypeError(f"{text}, accepted: 1 to {ALL}, the CPUs there are")
    return int(text)


def parse(arguments):
    p = argparse.ArgumentParser(
        prog="python bench/cpu.py",
        description="Times sumexp beside its peers, each in its own process, taking turns on the same arrays. "
        "Without a choice of parts: speed, call overhead, memory and accuracy.",
    )
    part = p.add_argument_group("parts")
    part.add_argument("--speed", action="store_true", help="the operations, peer by peer")
    part.add_argument("--overhead", action="store_true", help="calls on 16 floats, and between matrix products")
    part.add_argument("--memory", action="store_true", help="peak scratch memory")
    part.add_argument("--accuracy", action="store_true", help="errors in ulp on adversarial rows")
    part.add_argument("--bars", nargs="+", metavar="BAR", choices=[*bars.NAMES, "all"],
                      help="measure and judge the speed bars: " + ", ".join(bars.NAMES) + ", all")
    which = p.add_argument_group("what to measure")
    which.add_argument("--ops", nargs="+", choices=cells.OPS, help="default: all")
    which.add_argument("--dtypes", nargs="+", choices=cells.DTYPES, help="default: float32; all four with --bars")
    which.add_argument("--axes", nargs="+", choices=cells.AXES, help="default: last; both with --bars")
    which.add_argument("--lengths", nargs="+", metavar="N", type=length, help="row lengths, and 'all' for one row of all")
    which.add_argument("--threads", nargs="+", metavar="N", type=threads, help=f"default: {ALL}; 1 and {ALL} with --bars")
    which.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    size = which.add_mutually_exclusive_group()
    size.add_argument("--megabytes", type=positive, help="size of an array, and of a matrix at most (default 64)")
    size.add_argument("--listed-sizes", action="store_true", help="65536x16, 16384x128, ... of 4 to 64 MB instead")
    which.add_argument("--rounds", type=positive, help="default: 7")
    which.add_argument("--calls", type=positive, default=3, help="timed calls in a turn")
    which.add_argument("--quick", action="store_true", help="unless said otherwise 8 MB, three rounds, few operations and "
                       "lengths: under two minutes")
    out = p.add_argument_group("results")
    out.add_argument("--json", metavar="FILE", help="where figures go, beside those of this machine and these versions "
                     "that are there already (default: a new bench.json in --out)")
    out.add_argument("--out", metavar="FOLDER", default="sumexp-bench", help="of JSON and pictures")
    out.add_argument("--from", dest="source", nargs="+", metavar="FILE", help="measure nothing, show these figures")
    out.add_argument("--readme", nargs="+", metavar="FILE", help="rewrite the tables of pages between their bench markers")
    out.add_argument("--no-pictures", action="store_true")
    options = p.parse_args(arguments)

    judged = bool(options.bars)
    if options.bars and "all" in options.bars:
        options.bars = list(bars.NAMES)
    if not (options.speed or options.overhead or options.memory or options.accuracy or judged):
        options.speed = options.overhead = options.memory = options.accuracy = True
    if options.quick:
        options.ops = options.ops or ["softmax", "logsumexp", "softmax_vjp"]
        options.lengths = options.lengths or [100, 128, 4096, 131072]
    options.ops = options.ops or list(cells.OPS)
    options.rounds = options.rounds or (3 if options.quick else 7)
    options.megabytes = options.megabytes or (8 if options.quick else 64)
    options.asked_dtypes = options.dtypes
    options.dtypes = options.dtypes or (list(cells.DTYPES) if judged else ["float32"])
    options.axes = options.axes or (list(cells.AXES) if judged else ["last"])
    options.threads = options.threads or (sorted({1, ALL}) if judged else [ALL])
    if options.listed_sizes:
        options.megabytes = None
        if any(n not in cells.LISTED for n in options.lengths or ()):
            p.error("--listed-sizes goes with the lengths " + ", ".join(map(str, cells.LISTED)))
    # the bars have their own lengths; what is shown to users has the awkward ones as well
    awkward = () if options.listed_sizes else cells.AWKWARD
    options.shown_lengths = options.lengths or sorted([*cells.LENGTHS[:-1], *awkward]) + ["all"]
    options.lengths = options.lengths or list(cells.LENGTHS)
    return options


# -- the document: one JSON object that any number of runs may add to ---------------------------------------


def cpu_name():
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def new_document():
    import sumexp

    names = ("numpy", "scipy", "torch", "onnxruntime", "jax", "numba")
    versions = {"sumexp": sumexp.__version__}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    config = sumexp.show_config(mode="dicts")
    return {
        "machine": {"cpu": cpu_name(), "cpus": ALL, "isa": config["run time"]["instruction set"],
                    "system": f"{platform.system()} {platform.machine()}", "compiler": config["build"]["compiler"]},
        "versions": versions,
        "date": datetime.date.today().isoformat(),
        **{section: [] for section in SECTIONS},
    }


RESULTS = ("peer", "seconds", "skip", "extra", "max", "mean", "worst", "by_row", "groups")


def add(document, section, records):
    """Newer figures replace all older ones of the same cell that were measured for the same group: only peers
    of one run are compared."""

    def what(record):
        return json.dumps({k: v for k, v in record.items() if k not in RESULTS}, sort_keys=True)

    fresh = {}
    for record in records:
        fresh.setdefault(what(record), set()).update(record.get("groups", [""]))
    kept = []
    for record in document[section]:
        left = [g for g in record.get("groups", [""]) if g not in fresh.get(what(record), ())]
        if left:
            kept.append({**record, "groups": left} if "groups" in record else record)
    document[section] = kept + records


def finite(value):
    """A document as JSON can hold it: infinitely many ulp are "inf"."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def load(paths):
    document = None
    for path in paths:
        try:
            with open(path) as file:
                read = json.load(file, object_hook=lambda d: {k: math.inf if v == "inf" else v for k, v in d.items()})
        except (OSError, ValueError) as error:
            raise SystemExit(f"{path}: {error}") from None
        if not isinstance(read, dict) or not set(SECTIONS) <= read.keys():
            raise SystemExit(f"{path}: not a file of bench/cpu.py")
        if document is None:
            document = read
        else:
            for section in SECTIONS:
                add(document, section, read[section])
    return document


# -- measuring ------------------------------------------------------------------------------------------------


def measure(options, document, save):
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # no thread beside the measurements
    note = tqdm.write
    with tempfile.TemporaryDirectory() as folder:
        library = limits.compile_into(folder)
        if library is None:
            note("no C++ compiler: the machine's limits are left out")

        def bar(total, text):
            shown = tqdm(total=total, desc=text, ncols=110, leave=False)
            return shown, lambda what: (shown.set_postfix_str(what[:40], refresh=False), shown.update())

        wanted = []
        selection = (options.ops, options.dtypes, options.axes, options.lengths)
        if options.speed:
            grid = cells.grid(*selection[:3], options.shown_lengths, options.threads, options.megabytes)
            wanted += [("speed", c, [*options.peers, "limit:copy"]) for c in grid]
        for name in options.bars or ():
            needed = bars.plan(name, *selection, options.threads, max(options.threads), options.megabytes)
            wanted += [(name, c, peers) for c, peers in needed]
        if wanted:
            shown, progress = bar(len({c for _, c, _ in wanted}), "cells")
            for records in rounds.run_cells(wanted, options.rounds, options.calls, library, progress, note):
                add(document, "records", records)
                save()
            shown.close()
        if options.overhead or "overhead" in (options.bars or ()):
            lengths = [n for n in (256, 1024, 3000) if 4 * n * n <= options.megabytes << 20]
            shown, progress = bar(7 + len(lengths) + 4 * (max(options.threads) > 1), "call overhead")
            peers = ["sumexp", "sumexp-tensor", *(p for p in options.peers if p not in ("sumexp", "numba"))]
            found = rounds.run_overhead(peers, max(options.threads), max(options.rounds, 5), library, progress, note)
            found += rounds.run_between(lengths, max(options.threads), max(options.rounds, 5), library, progress, note)
            add(document, "overhead", found)
            shown.close()
        if options.memory:
            ops = [op for op in options.ops if op in ("softmax", "log_softmax", "logsumexp")]
            grid = cells.grid(ops, ["float32"], ["last"], [4096] if options.quick else [4096, 1 << 20], [1], 64)
            requests = [("memory", {"cell": dataclasses.asdict(c)}) for c in grid]
            shown, progress = bar(len(requests) * len(options.peers), "memory")
            add(document, "memory", rounds.run_alone(options.peers, requests, False, progress, note))
            shown.close()
        if options.accuracy:
            few = ("float32", "float64") if options.quick else cells.DTYPES
            dtypes = [d for d in cells.DTYPES if d in (options.asked_dtypes or few)]
            requests = [("accuracy", {"op": op, "dtype": d}) for d in dtypes for op in accuracy.OPS if op in options.ops]
            peers = [p for p in options.peers if p in accuracy.PEERS]
            shown, progress = bar(len(peers) * len(requests), "accuracy")
            found = rounds.run_alone(peers, requests, True, progress, note)
            order = {(r["op"], r["dtype"]): k for k, (_, r) in enumerate(requests)}
            add(document, "accuracy", sorted(found, key=lambda r: order[r["op"], r["dtype"]]))
            shown.close()
    save()


def show(options, document):
    parts = []
    if options.speed and any("speed" in r["groups"] for r in document["records"]):
        parts.append("ns per element, median of rounds ± half the distance of the quartiles\n"
                     + tables.aligned(*tables.speed(document["records"], spreads=True)))
    for section, table in (("overhead", tables.overhead), ("memory", tables.memory), ("accuracy", tables.ulps)):
        if document[section] and getattr(options, section):
            parts.append(tables.aligned(*table(document[section])))
    if options.bars:
        parts.append(tables.verdicts(bars.judge(document["records"], document["overhead"], options.bars)))
    print("\n\n".join([tables.machine_line(document), *parts]))


def main(arguments=None):
    options = parse(sys.argv[1:] if arguments is None else arguments)
    folder = pathlib.Path(options.out)
    if options.source:
        document = load(options.source)
    else:
        path = pathlib.Path(options.json or folder / "bench.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        document = new_document()
        if options.json and path.exists():
            older = load([path])
            for what in ("machine", "versions"):
                if older[what] != document[what]:
                    raise SystemExit(f"{path}: holds figures of another run: {what} {older[what]}, here {document[what]}")
            first = older["date"][:10]
            document["date"] = first if first == document["date"] else f"{first} to {document['date']}"
            document.update({section: older[section] for section in SECTIONS})

        def save():
            partial = path.with_name(path.name + ".partial")
            text = json.dumps(finite(document), separators=(",", ":"), allow_nan=False)
            text = text.replace('},{"', '},\n{"')  # a record a line
            partial.write_text(text + "\n")
            partial.replace(path)

        try:
            measure(options, document, save)
        except KeyboardInterrupt:
            raise SystemExit(f"stopped; the figures so far are in {path}") from None
        print(f"figures: {path}")
    show(options, document)
    for page in options.readme or ():
        print(f"{page}: rewrote {', '.join(tables.write_readme(page, document, options.bars or ()))}")
    if not options.no_pictures and (options.speed or options.accuracy):
        from harness import pictures

        throughput, errors = folder / "throughput.png", folder / "accuracy.png"
        try:
            drawn = [throughput] if options.speed and pictures.throughput(document, throughput) else []
            drawn += [errors] if options.accuracy and pictures.accuracy(document, errors) else []
        except ImportError as error:
            print(f"no pictures: {error}", file=sys.stderr)
            return 0
        for path in drawn:
            print(f"picture: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
