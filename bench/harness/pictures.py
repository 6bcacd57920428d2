"""Two pictures: throughput against n with the copy line, and accuracy in ulp against the peers."""

import pathlib

from . import bars, stats, tables

COLORS = {  # Okabe and Ito's, told apart by most eyes
    "sumexp": "#D55E00",
    "torch": "#0072B2",
    "onnxruntime": "#009E73",
    "jax": "#CC79A7",
    "numba": "#E69F00",
    "scipy": "#56B4E9",
    "numpy": "#666666",
}
WIDTH = 9.4  # inches, as wide as a page of text shows it


def pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "axes.titlesize": 10})
    return plt


def machine(document):
    return f"{document['machine']['cpu']}, {document['machine']['cpus']} CPUs, {document['date']}"


def throughput(document, path):
    """GB/s by the byte model against n, a panel an operation; the dashed line is memcpy."""
    table = {c: p for c, p in bars.measured(document["records"], "speed").items() if (c.dtype, c.axis) == ("float32", "last")}
    if not table:
        return False
    threads = max(c.threads for c in table)
    table = {c: p for c, p in table.items() if c.threads == threads}
    ops = list(dict.fromkeys(c.op for c in table))
    plt = pyplot()
    columns = min(3, len(ops) + 1)  # one panel more, for the legend
    lines = -(-(len(ops) + 1) // columns)
    figure, panels = plt.subplots(lines, columns, figsize=(WIDTH, 2.7 * lines), sharey=True, squeeze=False)
    panels, handles = list(panels.flat), {}
    for panel, op in zip(panels, ops):
        cells = sorted((c for c in table if c.op == op), key=lambda c: c.n)
        for peer in reversed(tables.ORDER):  # sumexp last, above the others
            at = [c for c in cells if peer in table[c]]
            if at:
                rates = [c.moved / stats.median(table[c][peer]) / 1e9 for c in at]
                ours = peer == "sumexp"
                panel.plot([c.n for c in at], rates, "o-", color=COLORS[peer], markersize=4 if ours else 2.5,
                           linewidth=2 if ours else 1, label=peer)
        copies = [c for c in cells if "limit:copy" in table[c]]
        if copies:
            rates = [2 * c.bytes / stats.median(table[c]["limit:copy"]) / 1e9 for c in copies]
            panel.plot([c.n for c in copies], rates, "--", color="black", linewidth=1, label="copy (memcpy)")
        panel.set_xscale("log", base=2)
        panel.set_xticks([1 << 4, 1 << 10, 1 << 16, 1 << 24], ["16", "1K", "64K", "16M"])
        panel.minorticks_off()
        panel.tick_params(labelleft=True)
        panel.set_title(op)
        panel.grid(alpha=0.25)
        handles.update(zip(*panel.get_legend_handles_labels()[::-1]))
    panels[0].set_ylim(bottom=0)  # of all
    for panel in panels[len(ops):]:
        panel.axis("off")
    panels[len(ops)].legend(handles.values(), handles.keys(), loc="center", frameon=False, reverse=True)
    figure.supxlabel(f"n, elements of a row\n{machine(document)}", fontsize=9)
    figure.supylabel(f"GB/s that must move, float32, {threads} thread{'s' * (threads > 1)}", fontsize=9)
    figure.tight_layout()
    save(plt, figure, path)
    return True


def place(peers, peer):
    """How far below the middle of their line the dot of one of several peers lies."""
    return min(0.22, 0.8 / len(peers)) * (peers.index(peer) - (len(peers) - 1) / 2)


def accuracy(document, path):
    """The largest error of each peer, a line an operation and dtype; the dashed line is 2 ulp."""
    records = document["accuracy"]
    if not records:
        return False
    plt = pyplot()
    lines = list(dict.fromkeys((r["op"], r["dtype"]) for r in records))
    peers = [p for p in tables.ORDER if any(r["peer"] == p for r in records)]
    most = max([r["max"] for r in records if r["max"] != float("inf")] + [10])
    infinite = any(r["max"] == float("inf") for r in records)
    edge = 100 * most  # where what is infinitely wrong stands
    figure, panel = plt.subplots(figsize=(WIDTH, 0.36 * len(lines) + 1.2))
    measured = {(r["op"], r["dtype"], r["peer"]) for r in records}
    present = {line: [p for p in peers if (*line, p) in measured] for line in lines}
    for peer in reversed(peers):
        found = {(r["op"], r["dtype"]): min(r["max"], edge) for r in records if r["peer"] == peer}
        heights = [lines.index(line) + place(present[line], peer) for line in found]
        panel.scatter(found.values(), heights, s=34 if peer == "sumexp" else 16, color=COLORS[peer], label=peer, zorder=3)
    for at in range(0, len(lines), 2):
        panel.axhspan(at - 0.5, at + 0.5, color="black", alpha=0.04, linewidth=0)
    panel.axvline(2, linestyle="--", color="black", linewidth=1)
    panel.annotate("2 ulp", (2, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom")
    panel.set_xscale("log")
    decades = [1, 1e3, 1e6, 1e9, 1e12, 1e15]
    ticks = {x: f"$10^{{{k * 3}}}$" if x > 1 else "1" for k, x in enumerate(decades) if x <= most}
    panel.set_xticks([*ticks, *([edge] if infinite else [])], [*ticks.values(), *(["infinite"] if infinite else [])])
    panel.minorticks_off()
    panel.set_yticks(range(len(lines)), [f"{op} {dtype}" for op, dtype in lines])
    panel.set_ylim(len(lines) - 0.5, -0.5)
    panel.grid(axis="x", alpha=0.25)
    panel.set_xlabel(f"largest error on adversarial rows, ulp\n{machine(document)}")
    panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, reverse=True)
    save(plt, figure, path)
    return True


def save(plt, figure, path):
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight", dpi=120, metadata={"Software": None})
    plt.close(figure)
