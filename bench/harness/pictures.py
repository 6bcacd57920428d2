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


def pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "svg.hashsalt": "bench"})
    return plt


def throughput(records, path):
    """GB/s by the byte model against n, a panel an operation; the dashed line is memcpy of the same bytes."""
    table = {c: p for c, p in bars.measured(records, "speed").items() if (c.dtype, c.axis) == ("float32", "last")}
    if not table:
        return False
    threads = max(c.threads for c in table)
    table = {c: p for c, p in table.items() if c.threads == threads}
    ops = list(dict.fromkeys(c.op for c in table))
    plt = pyplot()
    figure, panels = plt.subplots(1, len(ops), figsize=(3.4 * len(ops), 3.4), sharey=True, squeeze=False)
    for panel, op in zip(panels[0], ops):
        cells = sorted((c for c in table if c.op == op), key=lambda c: c.n)
        copies = [c for c in cells if "limit:copy" in table[c]]
        if copies:
            rates = [2 * c.bytes / stats.median(table[c]["limit:copy"]) / 1e9 for c in copies]
            panel.plot([c.n for c in copies], rates, "--", color="black", linewidth=1, label="memcpy")
        for peer in tables.ORDER:
            at = [c for c in cells if peer in table[c]]
            if at:
                rates = [c.moved / stats.median(table[c][peer]) / 1e9 for c in at]
                panel.plot([c.n for c in at], rates, "o-", color=COLORS[peer], markersize=3, label=peer)
        panel.set_xscale("log", base=2)
        panel.set_ylim(bottom=0)
        panel.set_title(op)
        panel.set_xlabel("n, elements of a row")
        panel.grid(alpha=0.25)
    panels[0][0].set_ylabel(f"GB/s, float32, {threads} threads")
    figure.tight_layout()
    handles = {}
    for panel in panels[0]:
        handles.update(zip(*panel.get_legend_handles_labels()[::-1]))
    figure.legend(handles.values(), handles.keys(), loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    save(plt, figure, path)
    return True


def accuracy(records, path):
    """The largest error of each peer, a panel a dtype; the dashed line is 2 ulp."""
    if not records:
        return False
    plt = pyplot()
    dtypes = list(dict.fromkeys(r["dtype"] for r in records))
    ops = list(dict.fromkeys(r["op"] for r in records))
    peers = [p for p in tables.ORDER if any(r["peer"] == p for r in records)]
    found = {(r["op"], r["dtype"], r["peer"]): r["max"] for r in records}
    top = 10 * max([v for v in found.values() if v != float("inf")] + [10])
    figure, panels = plt.subplots(1, len(dtypes), figsize=(3.4 * len(dtypes), 3.2), sharey=True, squeeze=False)
    for panel, dtype in zip(panels[0], dtypes):
        width = 0.8 / len(peers)
        for k, peer in enumerate(peers):
            values = [found.get((op, dtype, peer)) for op in ops]
            at = [i - 0.4 + (k + 0.5) * width for i, v in enumerate(values) if v is not None]
            heights = [min(v, top) for v in values if v is not None]
            panel.bar(at, heights, width, color=COLORS[peer], label=peer)
            for x, v in zip(at, (v for v in values if v is not None)):
                if v == float("inf"):
                    panel.text(x, top, "inf", ha="center", va="bottom", fontsize=7)
        panel.axhline(2, linestyle="--", color="black", linewidth=1)
        panel.set_yscale("log")
        panel.set_xticks(range(len(ops)), ops)
        panel.set_title(dtype)
    panels[0][0].set_ylabel("largest error, ulp")
    panels[0][-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    save(plt, figure, path)
    return True


def save(plt, figure, path):
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None} if str(path).endswith(".svg") else None, dpi=130)
    plt.close(figure)
