"""The mechanism that new operations share (torch/_composed.py), on one made for the purpose: its kernel marks that it ran."""

import pytest

torch = pytest.importorskip("torch")
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402

import sumexp.torch as st  # noqa: E402
from sumexp.torch._composed import Composed  # noqa: E402

ran = []


def formula(x, w, dim):  # w sum p log p
    y = st.log_softmax(x, dim)
    h = (y.exp() * y).sum(dim)
    return h if w is None else h * w


def kernel(x, w, dim):
    ran.append("kernel")
    return formula(x.detach(), w if w is None else w.detach(), dim)


def gradient(gradients, tensors, results, options, needs):
    ran.append("gradient")
    (u,), (x, w), (dim,) = gradients, tensors, options
    y = st.log_softmax(x.detach(), dim)
    h = (y.exp() * y).sum(dim, keepdim=True)
    scale = (u if w is None else u * w.detach()).unsqueeze(dim)
    return scale * y.exp() * (y - h) if needs[0] else None, u * h.squeeze(dim) if needs[1] else None


OP = Composed(
    "test_negentropy", ("x", "w?"), "int dim", kernel=kernel, gradient=gradient, formula=formula,
    fake=lambda x, w, dim: x.new_empty([n for d, n in enumerate(x.shape) if d != dim % x.dim()]),
)


def pair(**options):
    torch.manual_seed(0)
    x, w = torch.randn(3, 5, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    return x.requires_grad_(**options), w.requires_grad_(**options)


def test_derivatives():
    x, w = pair()
    call = lambda x, w: OP(x, w, -1)
    options = {"check_batched_grad": True}
    assert torch.autograd.gradcheck(call, (x, w), check_forward_ad=True, check_batched_forward_grad=True, **options)
    assert torch.autograd.gradgradcheck(call, (x, w), check_fwd_over_rev=True, check_rev_over_rev=True, **options)


def test_gradients_that_a_caller_asks_for():
    """Of tensors that record nothing, or not all, and of a transform's."""
    x, w = pair()
    plain, weights, u = x.detach(), w.detach(), torch.arange(1.0, 4, dtype=torch.float64)
    call = lambda u, x, w: OP.backward((u,), (x, w), (), (-1,), (True, True))
    expected = torch.autograd.grad((OP(x, w, -1) * u).sum(), (x, w))
    torch.testing.assert_close(call(u, plain, weights), expected)
    for some in ((u.clone().requires_grad_(), plain, weights), (u, x, weights), (u, plain, w)):
        torch.testing.assert_close(call(*some), expected)
        assert torch.autograd.gradcheck(call, some)
    twice = torch.vmap(lambda x: call(u, x, weights))(torch.stack([plain, plain]))
    torch.testing.assert_close(tuple(t[1] for t in twice), expected)
    jacobians = [j(lambda x: call(u, x, weights)[0])(plain) for j in (torch.func.jacfwd, torch.func.jacrev)]
    torch.testing.assert_close(*jacobians)
    torch.testing.assert_close(jacobians[0], torch.func.hessian(lambda x: (OP(x, weights, -1) * u).sum())(plain))


def test_first_derivatives_are_kernels():
    x, w = pair()
    ran.clear()
    OP(x, w, -1).sum().backward()
    assert ran == ["kernel", "gradient"]
    x.grad = None
    OP(x, None, -1).sum().backward()
    assert x.grad is not None


def test_functorch():
    x, w = pair()
    expected = torch.autograd.functional.hessian(lambda x: formula(x, None, -1), x[0])
    actual = torch.func.hessian(lambda x: OP(x, None, -1))(x[0].detach())
    assert torch.allclose(actual, expected, rtol=1e-12, atol=0)
    assert torch.equal(torch.func.vmap(lambda x, w: OP(x, w, -1))(x, w), torch.stack([OP(a, b, -1) for a, b in zip(x, w)]))


def test_recorded_as_an_operation():
    x, w = pair()
    compiled = torch.compile(lambda x, w: OP(x, w, -1).sum(), fullgraph=True, backend="aot_eager")
    ran.clear()
    compiled(x, w).backward()
    assert ran == ["kernel", "gradient"]
    grads = x.grad, w.grad
    x.grad = w.grad = None
    OP(x, w, -1).sum().backward()
    assert torch.equal(x.grad, grads[0]) and torch.equal(w.grad, grads[1])
    assert "test_negentropy" in make_fx(lambda x: OP(x, None, -1))(x.detach()).code
    torch.library.opcheck(torch.ops.sumexp.test_negentropy.default, (x, w, -1))


def test_other_tensors_take_the_formula():
    ran.clear()
    assert OP(torch.randn(3, 5, device="meta"), None, -1).shape == (3,)
    assert OP(torch.randn(3, 5).conj(), None, 0).shape == (5,)
    assert ran == ["kernel"]
