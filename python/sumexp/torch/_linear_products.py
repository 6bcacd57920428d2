"""Products of linear_cross_entropy, and the memory in which the gradient of its weights is added up."""

import torch

from .._chunks import BLOCK, blocks, equal_parts


def waits(t):
    """Whether to look at a number of a tensor is to wait for it."""
    return t.device.type != "cpu"


def product(x, w, bias, out):
    """out = x w^T + bias, in the dtype of x and out."""
    if w.dtype != out.dtype:
        for block in blocks(*w.shape):
            out[:, block] = x @ w[block].to(out.dtype).t()
        if bias is not None:
            out += bias
        return out
    for block in blocks_of_product(w):
        if bias is None:
            torch.mm(x, w[block].t(), out=out[:, block])
        else:
            torch.addmm(bias[block], x, w[block].t(), out=out[:, block])
    return out


def blocks_of_product(w):
    """Classes whose logits are one product, as slices.

    A BLAS copies w as its kernel reads it, and does so for every chunk of tokens. A part that stays in the caches is copied
    faster, to less memory: with 176 tokens products of 256 classes a thread took 0.8 to 0.9 of the time of whole ones (MKL on
    a Zen 4, D from 256 on) and 1 MB where those took 10. Products of 16 bits (oneDNN) gain nothing.
    """
    classes, width = w.shape
    if waits(w) or w.element_size() == 2:
        return [slice(0, classes)]
    return blocks(classes, 1, max(256 * torch.get_num_threads(), (1 << 17) // max(width, 1)))


def product_back(z, w):
    """z w"""
    if w.dtype == z.dtype:
        return z @ w
    total = z.new_zeros(len(z), w.shape[1])
    for block in blocks(*w.shape):
        total.addmm_(z[:, block], w[block].to(z.dtype))
    return total


def add_product(z, x, to, first):
    """to += z^T x, or to = z^T x of the first chunk."""
    if to.dtype == z.dtype:
        torch.mm(z.t(), x, out=to) if first else to.addmm_(z.t(), x)
        return
    step = equal_parts(len(to), (BLOCK // 4) // max(to.shape[1], 1))
    scratch = z.new_empty(step, to.shape[1])
    wide = to.new_empty(-(-step // 2), to.shape[1])  # torch would convert what it adds to new memory each time
    for sums, columns in zip(to.split(step), z.split(step, 1)):
        part = scratch[: len(sums)]
        torch.mm(columns.t(), x, out=part)
        if first:
            sums.copy_(part)
            continue
        for some, of in zip(sums.split(len(wide)), part.split(len(wide))):
            some.add_(wide[: len(of)].copy_(of))


def layout(result, dtype, work, given, rows, share):
    """([arrays of `dtype` in which the gradient of the first classes is added up, in order], memory for a chunk's logits)

    For the gradient of V classes' weights, a `result` of 16 bits. Both lie in its memory and, beside it, in that of `share`
    tokens' logits; only `given` tokens that fit in neither have logits in more. The more tokens a chunk has, the faster are its
    products and the fewer classes have room; of the others logits are made once more. As measured (a Zen 4, oneDNN) chunks of t
    tokens take 60 / t of the time of a product of all longer, and each token takes the place of 1 / (2 D) of all classes: some
    sqrt(128 D) tokens are best, or as many as leave room for all classes.
    """
    classes, width = result.shape
    row, own, of_class = classes * work.itemsize, result.numel() * result.element_size(), max(width, 1) * dtype.itemsize
    if given:
        tokens = min(given, rows)
    else:
        least, best = max(512, BLOCK // max(classes, 1)), int((128 * width) ** 0.5) // 16 * 16
        all_held = share - -(-(classes - own // of_class) * of_class // max(row, 1))
        tokens = min(rows, least, max(all_held, min(best, max(share, own // max(row, 1))), 1))
    inside = share < tokens <= own // max(row, 1)  # the chunk's logits are in the result's memory
    first = (own - tokens * row) // of_class // 16 * 16 if inside else own // of_class
    second = min(classes - first, max(share - (0 if inside else tokens), 0) * row // of_class)
    memory = result.view(-1).view(torch.uint8)
    sums = [memory[: first * of_class].view(dtype).view(first, width), result.new_empty(second, width, dtype=dtype)]
    if inside:
        logits = memory[first * of_class :][: tokens * row].view(work).view(tokens, classes)
    else:
        logits = result.new_empty(tokens, classes, dtype=work)
    return sums, logits


def add_products(z, x, sums, first):
    """add_product to the sums of each of some classes, which follow one another."""
    done = 0
    for of in sums:
        add_product(z[:, done : done + len(of)], x, of, first)
        done += len(of)


def rounded(sums, result, dtype):
    """The result, whose first rows are `sums`; these may lie in its memory, as `layout` has them: where a block is written, all
    that was there has been read."""
    if sums[0] is result:
        return result.to(dtype)
    done = 0
    for of in sums:
        for block in blocks(*of.shape, BLOCK // 8):
            rows = of[block].to(dtype)
            result[done : done + len(rows)] = rows
            done += len(rows)
    return result
