"""What bench/gpu.py measures and how its figures are read: cells, byte model, time budget, aims, tables, JSON.

Nothing here needs a GPU or torch.
"""

import dataclasses
import json
import pathlib
import re

from harness import stats, tables
from harness.cells import OPS, READS_WRITES

ITEM = {"bf16": 2, "f32": 4}
K, M = 1 << 10, 1 << 20
ELEMENTS = 1 << 31  # of the largest arrays

# In the order of the columns. `copy` moves the same bytes from device memory to device memory.
PEERS = ("copy", "sumexp", "torch", "compile", "triton")
RIVALS = ("torch", "compile", "triton")
# Each shape is compiled anew, at some seconds a time: a few of them stand for the others.
COMPILED = ((32 * K, K), (32 * K, 8 * K), (32 * K, 64 * K), (1, M))
LONGEST_IN_REGISTERS = 32 * K  # of the Triton kernel's rows: 32 floats a thread of the largest block; 64 spill


@dataclasses.dataclass(frozen=True)
class Cell:
    op: str
    dtype: str
    rows: int
    n: int

    @property
    def bytes(self):
        """Of one array."""
        return self.rows * self.n * ITEM[self.dtype]

    @property
    def moved(self):
        """The byte model: every array once; the one number a row of a logsumexp is not counted."""
        return self.bytes * sum(READS_WRITES[self.op])

    @property
    def held(self):
        """Device memory that measuring takes at most: operands and result, the copy's two, temporaries of a check."""
        return 2 * self.moved + 2 * self.bytes

    @property
    def many_rows(self):
        return self.rows > 32

    def __str__(self):
        return f"{self.op} {self.dtype} {count(self.rows)} x {count(self.n)}"


def count(n):
    for unit, name in ((M, "M"), (K, "K")):
        if n % unit == 0:
            return f"{n // unit}{name}"
    return str(n)


UNEVEN = (1000, 50257)  # what models have: no multiple of a warp; of 50257 few rows begin at 16 bytes


def grid(quick=False, only=""):
    """The cells, those whose name has a match of the regular expression `only`."""
    lengths = [256, 2 * K, 32 * K] if quick else sorted([*(256 << k for k in range(11)), *UNEVEN])
    few = ((1, M), (32, M)) if quick else tuple((rows, n) for rows in (1, 8, 32) for n in (32 * K, 256 * K, M, 16 * M))
    elements = ELEMENTS >> 4 if quick else ELEMENTS
    shapes = [(min(32 * K, elements // n), n) for n in lengths] + list(few)
    ops = ("softmax", "softmax_vjp") if quick else OPS
    cells = [Cell(op, dtype, rows, n) for dtype in ITEM for op in ops for rows, n in shapes]
    return [cell for cell in cells if re.search(only, str(cell))]


# Why a figure is missing, and the word for it in the table.
FEW_SHAPES, TOO_LONG, NO_TIME = "compiled for a few shapes only", "the row does not fit in registers", "no time left"
NO_MEMORY, FAILED = "not enough device memory", "failed"
WORDS = {FEW_SHAPES: "", TOO_LONG: "long", NO_TIME: "time", NO_MEMORY: "memory", FAILED: "failed"}


# -- the time budget -----------------------------------------------------------------------------------------

# What a peer's first call takes, and what is kept for each cell after this one: seconds on one fast GPU.
FIRST_CALL = {"compile": 2.5, "triton": 0.8, "torch": 0.1}
KEPT = {"compile": 1.0, "triton": 0.8, "torch": 0.4}


def choose(cell, available, seconds_left, cells_left):
    """(the peers to measure, {peer: why it is left out}): what costs most to prepare goes first when time is short."""
    chosen, left_out = [], {}
    for peer in available:
        if peer == "compile" and (cell.rows, cell.n) not in COMPILED:
            left_out[peer] = FEW_SHAPES
        elif peer == "triton" and cell.n > LONGEST_IN_REGISTERS:
            left_out[peer] = TOO_LONG
        elif seconds_left <= 0 or seconds_left - FIRST_CALL.get(peer, 0) < cells_left * KEPT.get(peer, 0):
            left_out[peer] = NO_TIME
        else:
            chosen.append(peer)
    return chosen, left_out


def rounds_of(one_round, seconds_left, cells_left):
    """How many rounds to measure: a third of the cell's share of the time, 5 to 40 of them."""
    share = min(0.4, max(0.05, seconds_left / max(cells_left, 1) / 3))
    return max(5, min(40, int(share / max(one_round, 1e-6))))


# -- figures -------------------------------------------------------------------------------------------------


def record(cell, peer, **what):
    return {**dataclasses.asdict(cell), "peer": peer, **what}


def index(records):
    """{cell: {peer: record}} in the order of measuring."""
    table = {}
    for r in records:
        cell = Cell(*(r[field.name] for field in dataclasses.fields(Cell)))
        table.setdefault(cell, {})[r["peer"]] = r
    return table


def seconds(peers, peer):
    found = peers.get(peer, {}).get("seconds")
    return stats.median(found) if found else None


def gigabytes(cell, peers, peer="sumexp"):
    time = seconds(peers, peer)
    return cell.moved / time / 1e9 if time else None


def ratio(peers, peer):
    """How many times as long as sumexp a peer takes; sumexp's share of the copy's speed is that of the copy."""
    theirs, ours = seconds(peers, peer), seconds(peers, "sumexp")
    return theirs / ours if theirs and ours else None


def why(peers, peer):
    """The reason a figure is missing, in a word."""
    reason = peers.get(peer, {}).get("left_out", "")
    return next((word for start, word in WORDS.items() if reason.startswith(start)), reason)


def table(records):
    """Header and rows: one row a cell, ratios above 1 where sumexp is faster."""
    header = ["operation, type, rows x n", "us", "spread", "GB/s", "of copy", *(f"{p} / ours" for p in RIVALS)]
    rows = []
    for cell, peers in index(records).items():
        time = seconds(peers, "sumexp")
        if not time:
            rows.append([cell, why(peers, "sumexp"), *[""] * (len(header) - 2)])
            continue
        spread = f"±{stats.spread(peers['sumexp']['seconds']):.0%}"
        share = ratio(peers, "copy")
        times = [f"{ratio(peers, p):.2f}" if seconds(peers, p) else why(peers, p) for p in RIVALS]
        rows.append([cell, tables.figure(time * 1e6), spread, f"{gigabytes(cell, peers):.0f}",
                     f"{share:.0%}" if share else why(peers, "copy"), *times])
    return header, rows


# -- aims ----------------------------------------------------------------------------------------------------

# name, the cells, whose time is divided by ours, the least ratio
AIMS = (
    ("90 % of the copy: many rows of 2K and more", lambda c: c.many_rows and c.n >= 2 * K, "copy", 0.90),
    ("75 % of the copy: 32K rows of 256 to 1K", lambda c: c.many_rows and c.n <= K, "copy", 0.75),
    ("80 % of the copy: 1 to 32 rows of 1M and more", lambda c: not c.many_rows and c.n >= M, "copy", 0.80),
    *((f"ahead of {peer}: every row", lambda c: True, peer, 1.0) for peer in RIVALS),
)


@dataclasses.dataclass
class Verdict:
    aim: str
    cells: int
    met: int
    worst: float | None
    where: str
    behind: list  # [(ratio, cell)] of those that miss it, worst first


def judge(records):
    """A Verdict for each aim, from what was measured for it."""
    verdicts = []
    for aim, concerns, peer, least in AIMS:
        found = [(r, c) for c, peers in index(records).items() if concerns(c) and (r := ratio(peers, peer)) is not None]
        found.sort(key=lambda pair: pair[0])
        behind = [pair for pair in found if pair[0] < least]
        worst = found[0] if found else (None, "")
        verdicts.append(Verdict(aim, len(found), len(found) - len(behind), worst[0], str(worst[1]), behind))
    return verdicts


def summary(records, most=6):
    rows = []
    for v in judge(records):
        word = "not measured" if not v.cells else "met" if v.met == v.cells else "NOT MET"
        worst = "" if v.worst is None else f"{v.worst:.2f}"
        rows.append([v.aim, f"{v.met} of {v.cells}" if v.cells else "", worst, word, v.where])
    text = tables.aligned(["aim", "cells", "worst", "", "where"], rows)
    for v in judge(records):
        if v.behind:
            text += f"\n\n{v.aim}: missed by\n" + "\n".join(f"  {r:.2f}  {c}" for r, c in v.behind[:most])
            text += f"\n  and {len(v.behind) - most} more" if len(v.behind) > most else ""
    return text


def report(document):
    """All that is printed about a document."""
    versions = ", ".join(f"{k} {v}" for k, v in document["versions"].items() if v)
    parts = [f"{document['device']}, driver {document['driver']}; {versions}; {document['date']}",
             "Bytes: 2 arrays a softmax or log_softmax, 1 a logsumexp, 3 a VJP, each once. Medians; the L2 cache is\n"
             "flushed before each call. 'of copy': a device copy that moves the same bytes, its time over ours."]
    if document["records"]:
        parts += [tables.aligned(*table(document["records"])), summary(document["records"])]
    parts += [f"left out: {peer}: {reason}" for peer, reason in document["left_out"].items()]
    parts += [f"WRONG: {what}" for what in document["wrong"]]
    return "\n\n".join(parts)


# -- files ---------------------------------------------------------------------------------------------------


def file_name(date, device):
    """As in bench/results: 2026-01-31-nvidia-h200-gpu.json."""
    return f"{date}-{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}-gpu.json"


def write(path, document):
    """One record a line; a file is replaced whole."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(document, separators=(",", ":")).replace('},{"', '},\n{"') + "\n")
    partial.replace(path)
