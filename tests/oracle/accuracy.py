"""The worst error of the forward operations and of the derivatives, over every family of rows."""

import zlib

import numpy as np

from . import bounds, reference
from .formats import FORMATS, errors, exact, longdouble, ulp
from .ops import OPS
from .rows import FAMILIES, cast

# Around the vector widths, the short-row limit, the chunk sizes (512 double, 2048 float) and well past them.
SIZES = (1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 33, 48, 63, 64, 65, 100, 128, 129, 255, 257, 511, 513, 1000, 2047, 2048,
         2049, 4097, 10_000)
LONG = (65_536, 300_001)


def seed(*parts):
    return zlib.crc32(repr(parts).encode())


def forward_rows(x, fmt, module):
    """{entry of bounds.FORWARD: worst error over the rows of x} for the three forward operations."""
    softmax, log_softmax, lse, m = reference.forward(x)
    keep = np.isfinite(exact(x))  # at -inf the results are 0 and -inf: tests of specials
    result = {
        "softmax": _worst(errors(module.softmax(x), softmax, fmt)),
        "log_softmax": _worst(errors(module.log_softmax(x), log_softmax, fmt)[keep]),
    }
    got = module.logsumexp(x, axis=-1, keepdims=True)
    zero = (m == 0)[..., 0]
    result["logsumexp"] = _worst(errors(got, lse, fmt, scale=m))
    result["logsumexp, maximum 0"] = _worst(errors(got, lse, fmt)[zero])
    return result


def _worst(error):
    return float(np.max(error, initial=0.0))


def forward_family(name, fmt, module, sizes=SIZES, budget=12_000):
    """Yields (n, {entry: worst error}) for one family; `budget` elements for each size."""
    for n in sizes:
        rng = np.random.default_rng(seed(name, fmt.name, n))
        rows = int(np.clip(budget // n, 1, 200))
        x = FAMILIES[name](rng, fmt, rows, n)
        if x is not None:
            yield n, forward_rows(x, fmt, module)


def scale_errors(got, value, scale, fmt):
    """The error of a derivative in the units of bounds.DERIVATIVES."""
    error = np.abs(exact(got) - value)
    if fmt.narrow:
        error = np.maximum(error - longdouble(bounds.NARROW_ROUNDING) * ulp(value, fmt), 0)
    limits = np.finfo(fmt.compute)
    return error / (longdouble(limits.eps) * (scale + longdouble(limits.tiny)))


def derivative_inputs(op, rng, fmt, rows, n, spread=4.0):
    """Inputs that belong together: y is softmax or log_softmax of logits, g and v have planted outliers.

    Spread None: one logit lies above the others by anything up to where they underflow, and g and v alternate between
    normal numbers, 1 at that element and 0 elsewhere, one number, and one at that element that dwarfs the others.
    """
    inputs = []
    row, target = np.arange(rows), rng.integers(0, n, rows)
    for kind in op.inputs:
        if kind in "xyl":
            x = rng.standard_normal((rows, n)) * (spread or 1.0)
            if spread is None:
                x[row, target] = rng.uniform(0, 700 if fmt.itemsize == 8 else 80, rows)
            value = x if kind == "x" else reference.forward(cast(x, fmt))[0 if kind == "y" else 1]
        else:
            width = 1 if kind == "r" else n
            value = rng.standard_normal((rows, width))
            value *= np.where(rng.random(value.shape) < 0.01, 100.0, 1.0)
            if spread is None and width == n:
                shape = rng.integers(0, 4, rows)
                value[shape == 1] = 0
                value[row[shape == 1], target[shape == 1]] = 1
                value[shape == 2] = value[shape == 2, :1]
                value[row[shape == 3], target[shape == 3]] = 100 if fmt.name == "f16" else 1e6
        inputs.append(cast(value, fmt))
    return inputs


def derivative(op, fmt, module, sizes=SIZES, budget=12_000):
    """The worst error of a derivative, in eps * scale."""
    worst = 0.0
    for n in sizes:
        for spread in (1.0, 4.0, 30.0, None):
            rng = np.random.default_rng(seed(op.name, fmt.name, n, spread))
            inputs = derivative_inputs(op, rng, fmt, int(np.clip(budget // n, 1, 100)), n, spread)
            value, scale = op.reference(*inputs, tiny=longdouble(np.finfo(fmt.compute).tiny))
            worst = max(worst, _worst(scale_errors(op.run(module, inputs), value, scale, fmt)))
    return worst


def table(module, sizes=SIZES + LONG):
    """{operation: {format: worst}} over all families."""
    result = {entry: {} for entry in (*bounds.FORWARD, *bounds.DERIVATIVES)}
    for fmt in FORMATS:
        for name in FAMILIES:
            for _, worst in forward_family(name, fmt, module, sizes):
                merge(result, fmt, worst)
        for name in bounds.DERIVATIVES:
            merge(result, fmt, {name: derivative(OPS[name], fmt, module, sizes)})
    return result


def merge(result, fmt, worst):
    for entry, value in worst.items():
        row = result.setdefault(entry, {})
        row[fmt.name] = max(row.get(fmt.name, 0.0), value)


def markdown(result):
    """Two tables: forward in ulp, derivatives in eps of their terms."""
    lines = []
    for title, entries, limit in (
        ("worst error, ulp", bounds.FORWARD, lambda e, f: bounds.FORWARD[e][f]),
        ("worst error, eps of the sum of its terms' magnitudes", bounds.DERIVATIVES, lambda e, f: bounds.DERIVATIVES[e]),
    ):
        if not any(result.get(e) for e in entries):
            continue
        lines += [f"| {title} | " + " | ".join(f.name for f in FORMATS) + " |", "|---|" + "---|" * len(FORMATS)]
        for entry in entries:
            cells = [f"{result[entry][f.name]:.3f} (<= {limit(entry, f.name):g})" if f.name in result.get(entry, {})
                     else "-" for f in FORMATS]
            lines.append(f"| {entry} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)
