"""How linear_cross_entropy divides its work: shared by the functions for NumPy and for torch."""

from ._scalars import integer

PARTS = ("x", "w", "bias")
BLOCK = 1 << 20  # elements of a block of a matrix that is converted, or added to another


def share_of(rows, classes, beside=0):
    """So many rows of logits may exist at a time: 4.75 % of them all less the `beside` elements that products need, but 2^20
    elements at least.
    """
    classes = max(classes, 1)
    return max((rows * 19 // 400 - beside // classes) // 16 * 16, BLOCK // classes, 16)


def chunk_rows(function, given, rows, classes, beside=0):
    """How many rows of logits exist at a time: `given`, or their share.

    From 512 rows on products do not get faster, and the gradient of the weights is added to often enough.
    """
    if given is None:
        return max(1, min(rows, share_of(rows, classes, beside), max(512, BLOCK // max(classes, 1))))
    return min(integer(function, "chunk_size", given, "an int from 1, or None", 1), max(rows, 1))


def blocks(rows, columns, size=BLOCK):
    """Slices of the rows of a matrix with `size` elements each, or one row."""
    step = max(1, size // max(columns, 1))
    return [slice(i, min(i + step, rows)) for i in range(0, rows, step)]


def equal_parts(count, most):
    """The size of parts of at most `most`: of equal ones, if that takes few more (oneDNN keeps 0.6 MB for every shape)."""
    most = max(most, 1)
    least = max(-(-count // most), 1)
    found = (count // parts for parts in range(least, least + least // 4 + 2) if count % parts == 0)
    return max(next(found, most), 1)
