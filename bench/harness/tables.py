"""What is printed, and the tables of README.md and results/README.md, between markers: <!-- bench:speed --> and so on."""

import pathlib
import re

from . import accuracy, bars, cells, stats

ORDER = ("sumexp", "torch", "onnxruntime", "jax", "numba", "scipy", "numpy")
# README.md's one table: a dozen cells, of rows that models have (digits, attention heads, ImageNet, GPT-2's vocabulary).
SUMMARY = [(op, n) for op in ("softmax", "logsumexp", "softmax_vjp") for n in (10, 128, 1000, 50257)]
SHORT = {"float32": "f32", "float64": "f64", "bfloat16": "bf16", "float16": "f16"}


def aligned(header, rows):
    """Columns for a terminal: the first to the left, the others to the right."""
    texts = [list(map(str, row)) for row in [header, *rows]]
    width = [max(len(row[k]) for row in texts) for k in range(len(header))]
    lines = []
    for row in texts:
        lines.append("  ".join(c.rjust(w) if k else c.ljust(w) for k, (c, w) in enumerate(zip(row, width))).rstrip())
    lines.insert(1, "  ".join("-" * w for w in width))
    return "\n".join(lines)


def markdown(header, rows):
    line = lambda row: "| " + " | ".join(map(str, row)) + " |"
    ruler = "|" + "|".join("---" if k == 0 else "---:" for k in range(len(header))) + "|"
    return "\n".join([line(header), ruler, *map(line, rows)])


def figure(value):
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def count(n):
    return f"{n // (1 << 20)}M" if n % (1 << 20) == 0 else str(n)


# -- speed ----------------------------------------------------------------------------------------------------


def speed(records, spreads=False):
    """ns per element by operation and shape, one column a peer, with memcpy's beside them."""
    table = bars.measured(records, "speed")
    present = [p for p in ORDER if any(p in peers for peers in table.values())]
    copies = any("limit:copy" in peers for peers in table.values())
    dtypes, axes, threads = ({getattr(c, f) for c in table} for f in ("dtype", "axis", "threads"))
    header = ["operation, rows x n", *(["memcpy"] if copies else []), *present]
    rows = []
    place = lambda c: (
        *(names.index(v) for names, v in ((cells.DTYPES, c.dtype), (cells.AXES, c.axis), (cells.OPS, c.op))),
        c.threads,
        c.n,
    )
    for cell in sorted(table, key=place):
        peers = table[cell]
        name = f"{cell.op} {count(cell.rows)} x {count(cell.n)}"
        if len(dtypes) > 1:
            name += " " + SHORT[cell.dtype]
        if len(axes) > 1:
            name += " axis 0" if cell.axis == "first" else " last axis"
        if len(threads) > 1:
            name += f" {cell.threads}T"
        name += "" if cell.isa == "best" else " " + cell.isa
        row = [name]
        for peer in [*(["limit:copy"] if copies else []), *present]:
            if peer not in peers:
                row.append("")
                continue
            text = figure(stats.median(peers[peer]) / cell.elements * 1e9)
            row.append(text + (f" ±{stats.spread(peers[peer]):.0%}" if spreads else ""))
        rows.append(row)
    return header, rows


def overhead(records):
    def named(record):
        face = record.get("face")
        return record["op"] + ("" if not face else f" {face}" if face.startswith("between") else f", 4 rows, {face}")

    records = [{**r, "op": named(r)} for r in records]
    present = [p for p in ("sumexp", "sumexp-tensor", *ORDER[1:]) if any(r["peer"] == p for r in records)]
    ops = list(dict.fromkeys(r["op"] for r in records))
    found = {(r["op"], r["peer"]): r["seconds"] for r in records}
    rows = [
        [op, *(figure(stats.median(found[op, p]) * 1e6) if (op, p) in found else "" for p in present)] for op in ops
    ]
    return ["one call, us; on 16 floats unless said", *present], rows


def memory(records):
    present = [p for p in ORDER if any(r["peer"] == p for r in records)]
    named = [("{op} {rows} x {n}".format(**r["cell"]), r) for r in records]
    found = {(name, r["peer"]): r["extra"] for name, r in named}
    cells_shown = list(dict.fromkeys(name for name, _ in named))
    rows = [[c, *(f"{found[c, p] / 2**20:.0f}" if (c, p) in found else "" for p in present)] for c in cells_shown]
    return ["scratch memory for 64 MB, MB, one thread", *present], rows


def ulps(records):
    """Max (mean) ulp by operation and dtype, one column a peer."""
    present = [p for p in accuracy.PEERS if any(r["peer"] == p for r in records)]
    found = {(r["op"], r["dtype"], r["peer"]): r for r in records}
    rows = []
    for op, dtype in dict.fromkeys((r["op"], r["dtype"]) for r in records):
        row = [f"{op} {SHORT[dtype]}"]
        for peer in present:
            record = found.get((op, dtype, peer))
            row.append(f"{ulp(record['max'])} ({ulp(record['mean'])})" if record else "")
        rows.append(row)
    return ["max (mean) ulp", *present], rows


def ulp(value):
    if value == float("inf"):
        return "inf"
    return figure(value) if value < 1000 else f"{value:.1e}".replace("e+0", "e").replace("e+", "e")


def verdicts(found, failing=8):
    rows = []
    for v in found:
        rows.append([v.bar, v.cells or "", v.figure, v.limit, v.word, v.where])
    text = aligned(["bar", "cells", "worst [interval]", "limit", "", "where"], rows)
    for v in found:
        if v.failing:
            text += f"\n\n{v.bar}: {len(v.failing)} of {v.cells} cells beyond the limit, {v.beyond} with their whole interval"
            text += "".join(f"\n  {ratio:.2f}  {cell}" for cell, ratio in v.failing[:failing])
    return text


# -- pages ---------------------------------------------------------------------------------------------------


def machine_line(document):
    m = document["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in document["versions"].items() if v)
    return f"{m['cpu']}, {m['cpus']} CPUs, {m['isa']}; {versions}; {document['date']}"


def readme_blocks(document, names=()):
    """{marker: markdown} for whatever the document has figures of, and the verdicts on the bars `names`."""
    blocks = {}
    if names:
        rows = []
        for v in bars.judge(document["records"], document["overhead"], names):
            of = f"{v.cells - len(v.failing)} of {v.cells}" if v.cells and v.where and " us against " not in v.where else ""
            rows.append([v.bar, of, v.figure, v.limit, v.word])
        blocks["bars"] = markdown(["bar", "cells that meet it", "worst, or mean", "limit", ""], rows)
    speeds = [r for r in document["records"] if "speed" in r["groups"]]
    shown = [
        r
        for r in speeds
        if (r["dtype"], r["axis"]) == ("float32", "last") and r["threads"] == max(q["threads"] for q in speeds)
    ]
    if shown:
        threads, cpus = shown[0]["threads"], document["machine"]["cpus"]
        used = "all threads" if threads == cpus else f"{threads} of {cpus} threads"
        what = f"Nanoseconds per element, float32, last axis, {used}, medians of interleaved rounds. memcpy moves one array\n"
        what += "in and one out; a VJP moves two in and one out.\n\n"
        some = [r for r in shown if (r["op"], r["n"]) in SUMMARY]
        if some:
            blocks["summary"] = what + markdown(*speed(some)) + f"\n\n{machine_line(document)}."
        text = what + markdown(*speed(shown))
        if document["overhead"]:
            text += "\n\n" + markdown(*overhead(document["overhead"]))
        if document["memory"]:
            text += "\n\n" + markdown(*memory(document["memory"]))
        blocks["speed"] = text + f"\n\n{machine_line(document)}."
    if document["accuracy"]:
        text = "Largest error on adversarial rows, and the mean of the rows' means, in units in the last place:\n\n"
        text += markdown(*ulps(document["accuracy"]))
        blocks["accuracy"] = text + f"\n\n{machine_line(document)}."
    return blocks


def write_readme(path, document, names=()):
    """Replaces what lies between the markers of `path`, of those blocks that it has; returns their names."""
    path = pathlib.Path(path)
    page = path.read_text(encoding="utf-8")
    blocks = readme_blocks(document, names)
    written = []
    for name, text in blocks.items():
        start, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
        block = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
        if block.search(page):
            page = block.sub(lambda _: f"{start}\n{text}\n{end}", page, count=1)
            written.append(name)
    if not written:
        markers = ", ".join(f"<!-- bench:{name} --> ... <!-- /bench:{name} -->" for name in blocks)
        raise SystemExit(f"{path}: nothing to write" if not blocks else f"{path}: has no {markers} to write into")
    path.write_text(page, encoding="utf-8")
    return written
