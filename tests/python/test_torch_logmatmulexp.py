"""sumexp.torch.logmatmulexp: NumPy's bytes, and every derivative."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import sumexp as se  # noqa: E402
import sumexp.torch as st  # noqa: E402
from sumexp.torch import _logmatmul  # noqa: E402


def pair(m=3, k=4, n=2, dtype=torch.float64, scale=3.0):
    torch.manual_seed(0)
    a, b = torch.randn(m, k, dtype=torch.float64) * scale, torch.randn(k, n, dtype=torch.float64) * scale
    return a.to(dtype).requires_grad_(), b.to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_bytes_are_numpys(dtype):
    a, b = (x.detach() for x in pair(20, 300, 17, dtype))
    out = st.logmatmulexp(a, b)
    assert out.dtype == dtype
    if dtype != torch.bfloat16:
        assert out.numpy().tobytes() == se.logmatmulexp(a.numpy(), b.numpy()).tobytes()
        assert torch.equal(se.logmatmulexp(a, b), out)
    assert torch.equal(st.logmatmulexp(a.mT.contiguous().mT, b), out)
    assert torch.equal(st.logmatmulexp(a[3], b), out[3]) and torch.equal(st.logmatmulexp(a, b[:, 5]), out[:, 5])
    batch = st.logmatmulexp(torch.stack([a, a])[:, None], torch.stack([b, b, b]))
    assert batch.shape == (2, 3, 20, 17) and torch.equal(batch[1, 2], out)


def test_gradients_are_numpys():
    a, b = pair(20, 40, 9, torch.float32)
    g = torch.randn(20, 9)
    da, db = torch.autograd.grad(st.logmatmulexp(a, b), (a, b), g)
    expected = se.logmatmulexp_vjp(g.numpy(), a.detach().numpy(), b.detach().numpy())
    assert da.numpy().tobytes() == expected[0].tobytes() and db.numpy().tobytes() == expected[1].tobytes()


def test_derivatives():
    a, b = pair()
    options = {"check_batched_grad": True}
    assert torch.autograd.gradcheck(
        st.logmatmulexp, (a, b), check_forward_ad=True, check_batched_forward_grad=True, **options
    )
    assert torch.autograd.gradgradcheck(st.logmatmulexp, (a, b), check_fwd_over_rev=True, check_rev_over_rev=True, **options)
    a3 = torch.randn(2, 1, 3, 4, dtype=torch.float64, requires_grad=True)
    b3 = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(st.logmatmulexp, (a3, b3)) and torch.autograd.gradcheck(st.logmatmulexp, (a[0], b))


def test_a_sum_of_nothing_has_no_gradient():
    a, b = torch.tensor([[0.0, -torch.inf], [-torch.inf] * 2]), torch.zeros(2, 3)
    for transform in (False, True):
        if transform:
            da = torch.func.grad(lambda a: st.logmatmulexp(a, b)[0].sum() + st.logmatmulexp(a, b).exp().sum())(a)
        else:
            x = a.clone().requires_grad_()
            (st.logmatmulexp(x, b)[0].sum() + st.logmatmulexp(x, b).exp().sum()).backward()
            da = x.grad
        assert torch.equal(da, torch.tensor([[6.0, 0.0], [0.0, 0.0]]))


def test_transforms_and_compile(monkeypatch):
    a, b = (x.detach() for x in pair())
    out = st.logmatmulexp(a, b)
    many = torch.func.vmap(st.logmatmulexp, in_dims=(0, None))(torch.stack([a, a]), b)
    torch.testing.assert_close(many[1], out)
    whole = _logmatmul._formula(a, b)
    monkeypatch.setattr(_logmatmul, "TERMS", 9)
    assert torch.equal(_logmatmul._formula(a, b), whole)
    value, tangent = torch.func.jvp(st.logmatmulexp, (a, b), (torch.ones_like(a), torch.ones_like(b)))
    torch.testing.assert_close(tangent, torch.full_like(out, 2.0))
    compiled = torch.compile(lambda a, b: st.logmatmulexp(a, b).sum(), fullgraph=True, backend="aot_eager")
    x, y = a.clone().requires_grad_(), a.clone().requires_grad_()
    compiled(x, b).backward()
    st.logmatmulexp(y, b).sum().backward()
    assert torch.equal(x.grad, y.grad)
    torch.library.opcheck(torch.ops.sumexp.logmatmulexp.default, (a.clone().requires_grad_(), b))
    assert st.logmatmulexp(a.to("meta"), b.to("meta")).shape == (3, 2)


def test_dtypes_and_bad_input():
    assert st.logmatmulexp(torch.ones(2, 3, dtype=torch.int64), torch.ones(3, 2, dtype=torch.int64)).dtype == torch.float32
    assert st.logmatmulexp(torch.ones(2, 3), torch.ones(3, 2, dtype=torch.float64)).dtype == torch.float64
    assert torch.all(st.logmatmulexp(torch.ones(2, 0), torch.ones(0, 3)) == -torch.inf)
    a = torch.ones(2, 3)
    for error, word, call in [
        (TypeError, "list", lambda: st.logmatmulexp([[1.0]], a)),
        (TypeError, "complex", lambda: st.logmatmulexp(a, a.mT + 0j)),
        (ValueError, r"\(2, 3\)", lambda: st.logmatmulexp(a, a)),
        (ValueError, "broadcasts", lambda: st.logmatmulexp(a.expand(2, 2, 3), a.mT.expand(3, 3, 2))),
        (ValueError, r"\(\)", lambda: st.logmatmulexp(a, torch.tensor(1.0))),
    ]:
        with pytest.raises(error, match=word) as caught:
            call()
        assert "logmatmulexp" in str(caught.value)
    np.testing.assert_array_equal(st.logmatmulexp(a, a.mT).numpy(), np.full((2, 2), np.float32(2 + np.log(3))))


def test_the_packages_function_takes_tensors():
    a, b = pair(5, 6, 7, torch.float32)
    se.logmatmulexp(a, b).sum().backward()
    expected = torch.autograd.grad(st.logmatmulexp(a, b).sum(), (a, b))
    assert torch.equal(a.grad, expected[0]) and torch.equal(b.grad, expected[1])
    out = torch.empty(5, 7)
    assert se.logmatmulexp(a.detach(), b.detach(), out=out) is out and torch.equal(out, st.logmatmulexp(a, b))
    assert torch.equal(se.logmatmulexp(a.detach().numpy(), b.detach()), out)
    da, db = se.logmatmulexp_vjp(torch.ones(5, 7), a.detach(), b.detach())
    assert torch.equal(da, expected[0]) and torch.equal(db, expected[1])
    mixed = se.logmatmulexp_vjp(torch.ones(5, 7, dtype=torch.float64), a.detach(), b.detach().numpy())
    assert [d.dtype for d in mixed] == [torch.float64] * 2
    along = se.logmatmulexp_jvp(a.detach(), b.detach(), a.detach(), b.detach(), out=torch.empty(5, 7))
    assert torch.equal(along, torch.from_numpy(se.logmatmulexp_jvp(*(t.detach().numpy() for t in (a, b, a, b)))))
    with pytest.raises(ValueError, match=r"logmatmulexp_vjp: g has shape \(7, 5\), accepted: \(5, 7\)"):
        se.logmatmulexp_vjp(torch.ones(7, 5), a.detach(), b.detach())
    with pytest.raises(ValueError, match="logmatmulexp_jvp: tb has shape"):
        se.logmatmulexp_jvp(a.detach(), a.detach(), a.detach(), b.detach())
    with pytest.raises(ValueError, match="logmatmulexp: out"):
        se.logmatmulexp(a.detach(), b.detach(), out=torch.empty(5, 6))


def test_blocks_of_the_formula(monkeypatch):
    """Where a product has more terms than are formed at a time: derivatives of every kind form them block by block."""
    monkeypatch.setattr(_logmatmul, "TERMS", 40)
    a, b = (torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) for shape in ((7, 4), (4, 5)))
    whole = lambda a, b: torch.logsumexp(a[..., :, :, None] + b[..., None, :, :], -2)
    leaf = a.clone().requires_grad_()

    def again(f):
        (first,) = torch.autograd.grad(f(leaf, b).cos().sum(), leaf, create_graph=True)
        return torch.autograd.grad(first.sum(), leaf)[0]

    for call in (
        lambda f: torch.func.jvp(f, (a, b), (b.mean() * a, b))[1],
        lambda f: torch.func.grad(lambda a: f(a, b).cos().sum())(a),
        lambda f: torch.func.hessian(lambda a: f(a, b).cos().sum())(a),
        lambda f: torch.vmap(f)(torch.stack([a, a + 1]), torch.stack([b, b])),
        again,
    ):
        torch.testing.assert_close(call(st.logmatmulexp), call(whole))
