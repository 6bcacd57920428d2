"""A sum of nothing above -inf is a constant: its derivatives are 0 (jax 6811, pytorch 31829: NaN there), and NaN stays NaN."""

import ml_dtypes
import numpy as np
import pytest

import sumexp as se
from isas import ISAS
from sumexp import _core

INF, NAN = float("inf"), float("nan")
DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]


@pytest.mark.parametrize("n", [1, 3, 16, 40, 5000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_logsumexp(dtype, n):
    x = np.random.default_rng(n).normal(size=(9, n)).astype(dtype)
    x[1:4], x[5, -1], x[6, 0] = -INF, NAN, INF
    x[7, 1:] = -INF
    g, t = np.arange(1, 10).astype(dtype), np.ones_like(x)
    for isa in ISAS:
        _core.set_isa(isa)
        try:
            for axis, rows in ((-1, x), (0, np.ascontiguousarray(x.T))):
                dx = se.logsumexp_vjp(g, rows, axis)
                dx = (dx if axis else dx.T).astype(np.float64)
                dy = se.logsumexp_jvp(t if axis else t.T, rows, axis).astype(np.float64)
                assert not dx[1:4].any() and not dy[1:4].any()
                assert np.isnan(dx[5:7]).all() and np.isnan(dy[5:7]).all()
                assert abs(dx[7, 0] - 8) < 0.1 and not dx[7, 1:].any() and abs(dy[7] - 1) < 0.01
                assert np.isfinite(dx[[0, 4, 7, 8]]).all() and (dx[0] > 0).any()
                alone = se.logsumexp_vjp(g[4], x[4])
                assert dx[4].tolist() == alone.astype(np.float64).tolist()
        finally:
            _core.set_isa(ISAS[-1])


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_weights_means_and_segments(dtype):
    x, b = np.full((2, 3), -INF, dtype), np.array([[1, 2, 3], [0, 0, 0]], dtype)
    for derivative in se.logsumexp_vjp(np.ones(2, dtype), x, -1, b=b):
        assert not derivative.any()
    assert not se.logsumexp_jvp(np.ones_like(x), x, -1, b=b).any()
    assert not se.segment_logsumexp_vjp(np.ones(2, dtype), x[0], offsets=[0, 2, 3]).any()
    assert not se.segment_logsumexp_jvp(np.ones(3, dtype), x[0], offsets=[0, 2, 3]).any()
    assert not se.logsumexp_hessian(x[:1]).any()


@pytest.mark.parametrize("name", ["logsumexp", "logmeanexp", "segment_logsumexp"])
def test_torch(name):
    torch = pytest.importorskip("torch")
    import sumexp.torch as st

    function = getattr(st, name)
    if name == "segment_logsumexp":
        offsets = torch.tensor([0, 3])
        f = lambda x: function(x, offsets=offsets)[0]
    else:
        f = lambda x: function(x, 0)
    nothing = torch.full((3,), -INF, dtype=torch.float64)
    leaf = nothing.clone().requires_grad_()
    f(leaf).backward()
    assert not leaf.grad.any()
    assert not torch.func.grad(lambda x: torch.nan_to_num(f(x), neginf=0.0))(nothing).any()
    tangent = torch.func.jvp(f, (nothing,), (torch.ones_like(nothing),))[1]
    assert tangent == 0
    compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
    again = nothing.clone().requires_grad_()
    compiled(again).backward()
    assert not again.grad.any()
    some = torch.tensor([1.0, -INF, 2.0], dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(f(some), some, create_graph=True)
    (second,) = torch.autograd.grad(first[0], some)
    assert first[1] == 0 and second[1] == 0 and torch.isfinite(second).all()
