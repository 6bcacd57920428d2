"""logsumexp's second derivative next to certainty, where s (w - <s, w>) has lost its winner: against 50 digits and more."""

import mpmath
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import sumexp.torch as st  # noqa: E402

ROWS = {
    "two": [0.0, -40.0],
    "ties behind": [3.0, -30.0, -30.0, -31.5],
    "far": [100.0, 20.0, 19.0, -300.0],
    "no winner": [0.5, 0.25, 0.0, -1.0, 0.5],
    "half": [0.0, 0.0],
    "sixty": [0.0, *np.linspace(-50, -20, 59)],
}
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def exactly(x, w):
    """(J w, the sum of |terms| of each element), J = diag(s) - s s^T."""
    with mpmath.workprec(400):
        x, w = [mpmath.mpf(float(v)) for v in x], [mpmath.mpf(float(v)) for v in w]
        e = [mpmath.exp(v - max(x)) for v in x]
        s = [v / sum(e) for v in e]
        value = [si * sum(sj * (wi - wj) for sj, wj in zip(s, w)) for si, wi in zip(s, w)]
        size = [si * sum(sj * abs(wi - wj) for sj, wj in zip(s, w)) for si, wi in zip(s, w)]
        return value, size


def by_double_backward(x, w):
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(st.logsumexp(x, -1), x, create_graph=True)
    return torch.autograd.grad(g, x, w)[0]


def by_forward_over_reverse(x, w):
    return torch.func.jvp(torch.func.grad(lambda x: st.logsumexp(x, -1)), (x,), (w,))[1]


def by_reverse_over_forward(x, w):
    return torch.func.grad(lambda x: torch.func.jvp(lambda x: st.logsumexp(x, -1), (x,), (w,))[1])(x)


def by_forward_over_forward(x, w):
    """<t, J w> for every unit vector t: here the cancellation is in a sum."""

    def along(t):
        return torch.func.jvp(lambda x: torch.func.jvp(lambda x: st.logsumexp(x, -1), (x,), (t,))[1], (x,), (w,))[1]

    return torch.stack([along(t) for t in torch.eye(len(x), dtype=x.dtype)])


def by_operation(x, w):
    x = x.clone().requires_grad_()
    g = torch.ones(1, dtype=x.dtype)
    return torch.autograd.grad(torch.ops.sumexp.logsumexp_vjp(x, g, [0]), x, w)[0]


def by_operation_forward(x, w):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(torch.ops.sumexp.logsumexp_jvp(x, w, [0]), x, torch.ones(1, dtype=x.dtype))[0]


WAYS = [
    by_double_backward,
    by_forward_over_reverse,
    by_reverse_over_forward,
    by_forward_over_forward,
    by_operation,
    by_operation_forward,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("dtype", DTYPES)
def test_keeps_its_digits(dtype, way):
    eps = float(torch.finfo(DTYPES[dtype]).eps) / 2
    for name, row in ROWS.items():
        x = torch.tensor(row, dtype=DTYPES[dtype])
        for seed in range(4):
            w = torch.randn(len(row), dtype=x.dtype, generator=torch.Generator().manual_seed(seed))
            value, size = exactly(x.tolist(), w.tolist())
            for mine, want, terms in zip(way(x, w).tolist(), value, size):
                error = abs(mpmath.mpf(mine) - want)
                assert error <= 8 * eps * terms + float(torch.finfo(x.dtype).tiny), (name, seed, mine, float(want))


def test_the_winner_is_not_zero():
    """s is 1 to all digits, 1 - s is 4.2e-18: its second derivative is what confident rows learn from."""
    x = torch.tensor([0.0, -40.0], dtype=torch.float64)
    want = float(mpmath.exp(-40))
    for way in WAYS:
        assert way(x, torch.tensor([1.0, 0.0], dtype=torch.float64)).tolist() == pytest.approx([want, -want], rel=1e-14, abs=0)


def test_several_dimensions_and_rows():
    x = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3
    x[1, 2, 3] += 60
    for dim in (0, 1, (0, 2), (0, 1, 2)):
        assert torch.autograd.gradgradcheck(lambda x: st.logsumexp(x, dim), x.clone().requires_grad_())
    w = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(st.logsumexp(leaf, (1, 2)).sum(), leaf, create_graph=True)
    (mine,) = torch.autograd.grad(g, leaf, w)
    value, size = exactly(x[1].flatten().tolist(), w[1].flatten().tolist())
    for a, b, terms in zip(mine[1].flatten().tolist(), value, size):
        assert abs(a - b) <= 8 * 2.0**-53 * terms
