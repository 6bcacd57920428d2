"""The table of bench/families.py: for each cell its inputs and, by name of the peer, the formula that is timed.

Formulas take and give torch tensors. The first one is sumexp's; the results of the others must agree with it, except
where a cell is a draw or a copy.
"""

import numpy as np
import torch
from torch.nn import functional as F

import sumexp as se

UNCHECKED = ("copy", "logsumexp", "torch logsumexp", "multinomial", "numpy choice", "sample", "torch topk")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


def classes(rows, n):
    return torch.randint(0, n, (rows,), generator=torch.Generator().manual_seed(7))


def with_gradient(x, target):
    leaf = x.detach().requires_grad_()
    loss = F.cross_entropy(leaf, target)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def log_divergence(x, y):
    return F.kl_div(torch.log_softmax(y, -1), torch.log_softmax(x, -1), reduction="none", log_target=True).sum(-1)


def pyro(a, b):
    x, y = a.amax(-1, keepdim=True), b.amax(-2, keepdim=True)
    return torch.matmul((a - x).exp(), (b - y).exp()).log() + x + y


def scattered(x, ids, count):
    top = torch.full((count,), -torch.inf).scatter_reduce(0, ids, x, "amax")
    e = (x - top[ids]).exp()
    return e / torch.zeros(count).scatter_add(0, ids, e)[ids]


def row_by_row(x, offsets):
    edges = offsets.tolist()
    return torch.cat([torch.softmax(x[i:j], 0) for i, j in zip(edges, edges[1:])])


def softmax_entropy(x):
    p = torch.log_softmax(x, -1)
    return -(p.exp() * p).sum(-1)


GENERATOR = np.random.default_rng(0)


def choice(x):
    p = torch.softmax(x.double(), -1).numpy()
    return torch.tensor([GENERATOR.choice(row.size, p=row) for row in p])


def sorted_draw(x, k=50, p=0.9):
    """top_k and top_p as they are written with torch."""
    top, index = x.topk(min(k, x.shape[-1]), -1)
    share = torch.softmax(top, -1)
    share = share.masked_fill(share.cumsum(-1) - share >= p, 0)
    return index.gather(-1, torch.multinomial(share, 1))


DRAWS = {"sumexp": lambda x: se.sample(x, seed=1), "logsumexp": lambda x: se.logsumexp(x, -1),
         "torch logsumexp": lambda x: torch.logsumexp(x, -1),
         "multinomial": lambda x: torch.multinomial(torch.softmax(x, -1), 1), "numpy choice": choice}
FILTERED = {"sumexp": lambda x: se.sample(x, seed=1, top_k=50, top_p=0.9), "logsumexp": lambda x: se.logsumexp(x, -1),
            "sample": DRAWS["sumexp"], "torch topk": sorted_draw}


def rows_of(shape):
    return (normal(*shape),)


def labelled(shape):
    return normal(*shape), classes(*shape)


# family: (full shape, quick shape, inputs of a shape, {peer: formula})
CELLS = {
    "cross_entropy": ((4096, 32000), (64, 100), labelled, {
        "sumexp": se.cross_entropy, "torch": F.cross_entropy, "copy": lambda x, t: x.clone()}),
    "cross_entropy + gradient": ((4096, 32000), (64, 100), labelled, {
        "sumexp": se.cross_entropy_with_grad, "torch": with_gradient, "copy": lambda x, t: x.clone()}),
    "entropy": ((1024, 32000), (64, 100), rows_of, {"sumexp": se.entropy, "torch": softmax_entropy}),
    "log_prob": ((1024, 32000), (64, 100), labelled, {
        "sumexp": se.log_prob, "torch": lambda x, t: torch.log_softmax(x, -1).gather(-1, t[:, None])[:, 0]}),
    "kl_div": ((1024, 32000), (64, 100), lambda s: (normal(*s), normal(*s, seed=1)), {
        "sumexp": se.kl_div, "torch": log_divergence}),
    "sample": ((64, 128256), (4, 100), rows_of, DRAWS),
    "sample, 1 row": ((1, 128256), (1, 100), rows_of, DRAWS),
    "sample, short rows": ((10000, 100), (4, 10), rows_of, {n: DRAWS[n] for n in ("sumexp", "logsumexp", "multinomial")}),
    "sample, top_k 50, top_p 0.9": ((64, 128256), (4, 100), rows_of, FILTERED),
    "sample, top_k 50, top_p 0.9, 1 row": ((1, 128256), (1, 100), rows_of, FILTERED),
    "masked_softmax": ((4096, 4096), (64, 100), lambda s: (normal(*s), normal(*s, seed=1) > -3), {
        "sumexp": lambda x, m: se.masked_softmax(x, where=m),
        "torch": lambda x, m: torch.softmax(x.masked_fill(~m, -torch.inf), -1)}),
    "segment_softmax": ((1 << 16, 64), (64, 8), lambda s: (
        normal(s[0] * s[1]), torch.arange(0, s[0] * s[1] + 1, s[1]), torch.arange(s[0]).repeat_interleave(s[1]), s[0]), {
        "sumexp": lambda x, o, i, n: se.segment_softmax(x, offsets=o), "scatter": lambda x, o, i, n: scattered(x, i, n),
        "rows": lambda x, o, i, n: row_by_row(x, o)}),
    "logcumsumexp": ((1024, 4096), (64, 100), rows_of, {
        "sumexp": se.logcumsumexp, "torch": lambda x: torch.logcumsumexp(x, -1)}),
    "logmatmulexp": ((256, 256), (32, 32), lambda s: (normal(*s), normal(*s, seed=1)), {
        "sumexp": se.logmatmulexp, "pyro": pyro,
        "broadcast": lambda a, b: torch.logsumexp(a[:, :, None] + b, 1)}),
    "logaddexp": ((1 << 22,), (1000,), lambda s: (normal(*s), normal(*s, seed=1)), {
        "sumexp": se.logaddexp, "torch": torch.logaddexp}),
    "softplus": ((1 << 22,), (1000,), rows_of, {"sumexp": se.softplus, "torch": F.softplus}),
}


def build(name, family, quick):
    full, small, inputs, formulas = CELLS[family]
    given = inputs(small if quick else full)
    call = formulas[name]
    if name not in UNCHECKED and name != "sumexp":
        torch.testing.assert_close(call(*given), formulas["sumexp"](*given), rtol=1e-3, atol=1e-4)
    return lambda: call(*given)
