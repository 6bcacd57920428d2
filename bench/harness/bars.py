"""The project's speed bars: what each needs measured, and whether the figures meet it.

A bar is judged from records (rounds.run_cells) alone, so that it can be judged again from a JSON file. All
figures are ratios of medians of one run, with the interval that stats.ratio_interval gives. "met" goes by the
ratios, with the number of cells that could not be measured beside it; where every cell that misses a limit has it in its
interval, the bar is marked "(noise)".
"""

import dataclasses

from . import cells, stats

NAMES = ("torch", "onnxruntime-jax", "limits", "avx2", "scalar", "overhead", "linear")


@dataclasses.dataclass
class Verdict:
    bar: str
    cells: int
    figure: str  # the worst cell's, or the mean
    limit: str
    met: bool | None  # None: nothing measured for it
    where: str = ""
    beyond: int = 0  # cells whose whole interval is beyond the limit
    failing: list = dataclasses.field(default_factory=list)  # [(cell, figure)]
    missing: int = 0  # cells that a peer could not be measured in

    @property
    def word(self):
        if self.met is None:
            return "not measured"
        missing = f", {self.missing} cells not measured" if self.missing else ""
        if not self.met:
            return "NOT MET" + ("" if self.beyond else " (noise)") + missing
        return "met" + missing


def plan(bar, ops, dtypes, axes, lengths, threads, all_threads, megabytes):
    """[(Cell, peers)] that a bar needs, within the selection."""
    if bar == "torch" or bar == "avx2":
        isa = "avx2" if bar == "avx2" else "best"
        return [(c, ["sumexp", "torch"]) for c in cells.grid(ops, dtypes, axes, lengths, threads, megabytes, isa)]
    float32 = [d for d in dtypes if d == "float32"]
    last = [a for a in axes if a == "last"]
    if bar == "onnxruntime-jax":
        wanted = [op for op in ops if op in ("softmax", "log_softmax")]
        grid = cells.grid(wanted, float32, last, lengths, threads, megabytes)
        return [(c, ["sumexp", "onnxruntime", "jax"]) for c in grid]
    if bar == "limits":
        wanted = [op for op in ops if op in LIMITS_OF]
        grid = cells.grid(wanted, float32, last, lengths, [all_threads], megabytes)
        return [(c, ["sumexp", *LIMITS_OF[c.op]]) for c in grid]
    if bar == "scalar":
        wide = [d for d in dtypes if d in ("float32", "float64")]
        grid = cells.grid(ops, wide, last, lengths, [1], megabytes, "scalar")
        return [(c, ["sumexp", "numpy", "numpy-baseline"]) for c in grid]
    if bar == "linear":
        wanted = [op for op in ops if op in ("softmax", "logsumexp")]
        return [
            (c, ["sumexp"])
            for size in (64, 1024)
            for c in cells.grid(wanted, float32, last, [4096], [all_threads], size)
        ]
    return []  # overhead: rounds.run_overhead


LIMITS_OF = {
    "softmax": ["limit:copy", "limit:copy_nt"],
    "log_softmax": ["limit:copy", "limit:copy_nt"],
    "logsumexp": ["limit:read", "limit:exp_add"],
    "softmax_vjp": ["limit:triad", "limit:triad_nt"],
    "log_softmax_vjp": ["limit:triad", "limit:triad_nt"],
}


# -- judging --------------------------------------------------------------------------------------------------


def index(records, group):
    """{Cell: {peer: seconds of each round}} of the records that were measured for a group. A peer that could not be
    measured has no seconds (its record says why)."""
    fields = [f.name for f in dataclasses.fields(cells.Cell)]
    table = {}
    for record in records:
        if group in record["groups"]:
            cell = cells.Cell(*(record[f] for f in fields))
            table.setdefault(cell, {})[record["peer"]] = record["seconds"]
    return table


def measured(records, group):
    """index() without what could not be measured."""
    return {cell: {p: s for p, s in peers.items() if s} for cell, peers in index(records, group).items()}


def every_cell(bar, ratios, limit, at_least, missing=0):
    """The verdict on the worst of [(Cell, (low, ratio, high))] against one limit."""
    text = f"{'at least' if at_least else 'at most'} {limit:g}"
    if not ratios:
        return Verdict(bar, 0, "", text, None, missing=missing)
    worst_cell, worst = (min if at_least else max)(ratios, key=lambda item: item[1][1])
    bad = [(c, r[1]) for c, r in ratios if (r[1] < limit if at_least else r[1] > limit)]
    bad.sort(key=lambda item: item[1], reverse=not at_least)
    beyond = sum(r[2] < limit if at_least else r[0] > limit for _, r in ratios)
    figure = f"{worst[1]:.2f} [{worst[0]:.2f}, {worst[2]:.2f}]"
    return Verdict(bar, len(ratios), figure, text, not bad, str(worst_cell), beyond, bad, missing)


def mean_cell(bar, ratios, limit):
    if not ratios:
        return Verdict(bar, 0, "", f"at least {limit:g}", None)
    mean = stats.geometric_mean([r[1] for _, r in ratios])
    return Verdict(bar, len(ratios), f"{mean:.2f}", f"at least {limit:g}", mean >= limit, beyond=int(mean < limit))


def against(table, peer):
    """[(Cell, interval of peer / sumexp)]: above 1 where this library is faster."""
    return [
        (cell, stats.ratio_interval(peers[peer], peers["sumexp"]))
        for cell, peers in table.items()
        if peers.get("sumexp") and peers.get(peer)
    ]


def missing(table, peer):
    """How many cells were to be measured with a peer and could not."""
    return sum(peer in peers and not (peers[peer] and peers.get("sumexp")) for peers in table.values())


def over(table, op, choose, keep=lambda cell: True):
    """[(Cell, interval of sumexp / the limit's figure)]; choose({limit: seconds}) -> seconds, or None."""
    found = []
    for cell, peers in table.items():
        if cell.op != op or not peers.get("sumexp") or not keep(cell):
            continue
        limit = choose(peers)
        if limit:
            found.append((cell, stats.ratio_interval(peers["sumexp"], limit)))
    return found


def triad_of(peers):
    """The faster of the two loops, plain and non-temporal stores."""
    loops = [peers[k] for k in ("limit:triad", "limit:triad_nt") if peers.get(k)]
    return min(loops, key=stats.median) if loops else None


def sum_of(peers):
    """What a logsumexp may cost: 1.15 exp-and-add loops or 1.3 reads, whichever is slower."""
    if not (peers.get("limit:read") and peers.get("limit:exp_add")):
        return None
    allowed = [[1.15 * s for s in peers["limit:exp_add"]], [1.3 * s for s in peers["limit:read"]]]
    return max(allowed, key=stats.median)


def judge(records, overhead, names):
    """The verdicts on the bars `names`."""
    verdicts = []
    for name in names:
        table = index(records, name)
        verdicts += judge_overhead(overhead) if name == "overhead" else JUDGES[name](table)
    return verdicts


def judge_torch(table):
    ratios = against(table, "torch")
    return [
        every_cell("torch / sumexp, every cell", ratios, 1.0, True, missing(table, "torch")),
        mean_cell("torch / sumexp, geometric mean", ratios, 2.5),
    ]


def judge_avx2(table):
    ratios = against(table, "torch")
    return [
        every_cell("AVX2: torch / sumexp, every cell", ratios, 1.0, True, missing(table, "torch")),
        mean_cell("AVX2: torch / sumexp, geometric mean", ratios, 1.5),
    ]


def judge_onnxruntime_jax(table):
    peers = ("onnxruntime", "jax")
    return [
        every_cell(f"{p} / sumexp, (log_)softmax float32", against(table, p), 1.0, True, missing(table, p)) for p in peers
    ]


def judge_scalar(table):
    names = {"numpy": "NumPy", "numpy-baseline": "NumPy without its dispatch"}
    return [
        every_cell(f"scalar: {text} / sumexp", against(table, p), 1.0, True, missing(table, p)) for p, text in names.items()
    ]


def judge_limits(table):
    verdicts = []
    for text, limit, keep in (
        ("n = 16", 2.0, lambda c: c.n == 16),
        ("n = 128 to 16384", 1.25, lambda c: 128 <= c.n <= 16384),
        ("n = 32768 to 131072", 1.5, lambda c: 32768 <= c.n <= 131072),
        ("one row of all", 2.5, lambda c: c.rows == 1),
    ):
        for op in ("softmax", "log_softmax"):
            ratios = over(table, op, lambda peers: peers.get("limit:copy"), keep)
            verdicts.append(every_cell(f"{op} / memcpy, {text}", ratios, limit, False))
    ratios = over(table, "logsumexp", sum_of)
    verdicts.append(every_cell("logsumexp / max(1.15 exp-and-add, 1.3 read)", ratios, 1.0, False))
    for op in ("softmax_vjp", "log_softmax_vjp"):
        verdicts.append(every_cell(f"{op} / two reads and a write", over(table, op, triad_of), 1.25, False))
    return verdicts


def judge_linear(table):
    """ns per element of 1 GB over those of 64 MB."""
    pairs = {}
    for cell, peers in table.items():
        if peers.get("sumexp"):
            pairs.setdefault(cell.op, {})[cell.bytes >> 20] = (cell, peers["sumexp"])
    verdicts = []
    for op, sizes in pairs.items():
        if 64 in sizes and 1024 in sizes:
            low, middle, high = stats.ratio_interval(
                [s / 16 for s in sizes[1024][1]], sizes[64][1], paired=False)
            figure = f"{middle:.2f} [{low:.2f}, {high:.2f}]"
            beyond = int(high < 1 / 1.3 or low > 1.3)
            met = 1 / 1.3 <= middle <= 1.3
            name = f"{op}, ns at 1 GB / at 64 MB"
            verdicts.append(Verdict(name, 2, figure, "within 1.3", met, str(sizes[1024][0]), beyond))
    return verdicts or [Verdict("ns at 1 GB / at 64 MB", 0, "", "within 1.3", None)]


JUDGES = {
    "torch": judge_torch,
    "onnxruntime-jax": judge_onnxruntime_jax,
    "limits": judge_limits,
    "avx2": judge_avx2,
    "scalar": judge_scalar,
    "linear": judge_linear,
}


def judge_overhead(overhead):
    table, faces = {}, {}
    for record in overhead:
        if "face" in record:
            faces.setdefault((record["op"], record["face"]), {})[record["peer"]] = record["seconds"]
        else:
            table.setdefault(record["op"], {})[record["peer"]] = record["seconds"]
    verdicts = []
    for (op, face), peers in faces.items():
        if len(peers) == 2:
            ours, torch = peers["sumexp-tensor"], peers["torch"]
            where = f"{stats.median(ours) * 1e6:.2f} us against {stats.median(torch) * 1e6:.2f}"
            limit = {"no gradient": 1.5, "gradient recorded": 3.0}.get(face.split(",")[0], 1.0)
            what = face if face.startswith("between") else f"4 x 16, {face}"
            ratio = stats.ratio_interval(ours, torch)
            verdicts.append(every_cell(f"sumexp.torch.{op} / torch's, {what}", [(where, ratio)], limit, False))
    peers = table.get("softmax", {})
    for ours in ("sumexp", "sumexp-tensor"):
        if ours in peers and "torch" in peers:
            ratio = stats.ratio_interval(peers[ours], peers["torch"])
            where = f"{stats.median(peers[ours]) * 1e6:.2f} us against {stats.median(peers['torch']) * 1e6:.2f}"
            verdict = every_cell(f"call of {ours} softmax / torch's, 16 floats", [(where, ratio)], 1.0, False)
            verdicts.append(verdict)
    for op, peers in table.items():
        if "sumexp" in peers and "scipy" in peers:
            ratio = stats.ratio_interval(peers["scipy"], peers["sumexp"])
            where = f"{stats.median(peers['sumexp']) * 1e6:.2f} us against {stats.median(peers['scipy']) * 1e6:.2f}"
            verdicts.append(every_cell(f"SciPy's call of {op} / sumexp's, 16 floats", [(where, ratio)], 5.0, True))
    return verdicts
