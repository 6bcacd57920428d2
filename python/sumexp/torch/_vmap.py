"""The vmap rule that all operations share: the batch becomes one more leading dimension."""


def batch(batch_size, in_dims, tensors, dims):
    """Tensors with the mapped dimension in front, and the reduced dimensions counted behind it.

    All tensors of an operation have the same number of dimensions (row tensors keep theirs), so one that is
    not mapped is repeated, with stride 0, without a copy.
    """
    moved = tuple(
        t.unsqueeze(0).expand(batch_size, *t.shape) if d is None else t.movedim(d, 0)
        for t, d in zip(tensors, in_dims)
    )
    ndim = moved[0].dim() - 1
    dims = tuple(d % ndim + 1 for d in dims) if ndim else ()
    return moved, dims
