"""The derivative operations written out in torch's own: for tensors and transforms the kernels do not serve.

Tensors and names as in csrc/include/sumexp/sumexp.hpp. Those of log_softmax keep an element with most of the probability
(the winner) out of their sums, as csrc/ops/log_softmax.hpp does: what is left of its derivatives would be lost in them.
"""

import torch


def total(t, dims):
    """The sum over dims, keeping them; torch takes an empty list for all dimensions, here it is none."""
    return t.sum(dims, keepdim=True) if dims else t


def quotient(x, T):
    """x / T; of an infinite T every finite x gives 0, and -inf stays."""
    if T == float("inf"):
        return torch.where(x.isinf(), x.detach(), x / T)
    return x if T == 1 else x / T


def from_winner(t, s, dims):
    """t less its element where s, a softmax, is above 1/2, if there is one.

    J t and <t, J u> are the same for it, since J = diag(s) - s s^T has rows that add up to 0; but next to certainty, where
    t_w - <s, t> would lose all its digits, what is left is -sum over the others of s_j (t_j - t_w).
    """
    return t - total(t.masked_fill(s <= 0.5, 0), dims)


def softmax(x, dims, T=1.0):
    return log_softmax(x, dims, T).exp() if len(dims) != 1 else torch.softmax(quotient(x, T), dims[0])


def log_softmax(x, dims, T=1.0):
    x = quotient(x, T)
    if len(dims) == 1:
        return torch.log_softmax(x, dims[0])
    return x - logsumexp(x, dims, keepdim=True)


def logsumexp(x, dims, keepdim=False):
    return torch.logsumexp(x, dims, keepdim) if dims else x.clone()


def softmax_vjp(g, y, dims, T=1.0):
    return y * (g - total(y * g, dims)) / T


def log_softmax_vjp(g, y, dims, T=1.0):
    winner = y >= -0.5625
    own = g.masked_fill(~winner, 0)
    sums = total(g.masked_fill(winner, 0), dims) + (total(own, dims) - own)
    return (g * torch.where(winner, -y.expm1(), 1) - y.exp() * sums) / T


def log_softmax_jvp(t, y, dims, T=1.0):
    winner = y >= -0.5625
    share = torch.where(winner, -y.expm1(), -y.exp())
    return ((t - total(t.masked_fill(~winner, 0), dims)) + total(share * t, dims)) / T


def _shares(x, dims):  # of a sum of nothing, which is a constant, 0
    return softmax(x, dims).masked_fill(x == -torch.inf, 0)


def logsumexp_vjp(x, g, dims, T=1.0):
    return g * _shares(x, dims)


def logsumexp_jvp(x, t, dims, T=1.0):
    return total(_shares(x, dims) * t, dims)


def softmax_hvp(g, v, y, dims, T=1.0):
    both = (g - total(y * g, dims)) * (v - total(y * v, dims))
    return y * (both - total(y * both, dims)) / T**2


def log_softmax_hvp(g, v, y, dims, T=1.0):
    return -total(g, dims) * y.exp() * log_softmax_jvp(v, y, dims, T) / T
