"""log_prob, entropy and kl_div of tensors: values, derivatives of every kind, transforms, compiling."""

import numpy as np
import pytest

import sumexp as se

torch = pytest.importorskip("torch")
import sumexp.torch as st  # noqa: E402

INF = float("inf")
INDEX = torch.tensor([[0, 4], [2, 2], [1, 3]])


def logits(*shape, seed=0, dtype=torch.float64, requires_grad=True):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape or (3, 5), generator=generator, dtype=torch.float64) * 2).to(dtype).requires_grad_(requires_grad)


CALLS = {
    "log_prob": lambda x, y: st.log_prob(x, INDEX[:, 0]),
    "log_prob of several": lambda x, y: st.log_prob(x, INDEX, temperature=0.7),
    "log_prob along dim 0": lambda x, y: st.log_prob(x.mT, INDEX, 0),
    "entropy": lambda x, y: st.entropy(x, temperature=1.3),
    "entropy along dim 0": lambda x, y: st.entropy(x, 0),
    "log_prob_and_entropy": lambda x, y: st.log_prob_and_entropy(x, INDEX),
    "kl_div": lambda x, y: st.kl_div(x, y),
    "kl_div along dim 0": lambda x, y: st.kl_div(x, y, 0),
}


@pytest.mark.parametrize("name", CALLS)
def test_derivatives(name):
    x, y = logits(), logits(seed=1)
    call = CALLS[name]
    assert torch.autograd.gradcheck(call, (x, y), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(call, (x, y), check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_bytes_are_those_of_numpy(dtype):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x, y = logits(4, 300, dtype=dtype), logits(4, 300, seed=1, dtype=dtype)
    index = torch.arange(8).reshape(4, 2).int()

    def array(t):
        t = t.detach().contiguous()
        return t.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if dtype == torch.bfloat16 else t.numpy()

    a, b, i = array(x), array(y), index.numpy()
    lp, h = st.log_prob_and_entropy(x, index, temperature=0.8)
    (lp.sum() + h.sum()).backward()
    one, ones = np.ones(4, a.dtype), np.ones((4, 2), a.dtype)
    assert array(lp).tobytes() == se.log_prob(a, i, temperature=0.8).tobytes()
    assert array(h).tobytes() == se.entropy(a, temperature=0.8).tobytes()
    assert array(x.grad).tobytes() == se.log_prob_and_entropy_vjp((ones, one), a, i, temperature=0.8).tobytes()
    x.grad = None
    kl = st.kl_div(x, y)
    kl.sum().backward()
    assert array(kl).tobytes() == se.kl_div(a, b).tobytes()
    assert [array(x.grad).tobytes(), array(y.grad).tobytes()] == [d.tobytes() for d in se.kl_div_vjp(one, a, b)]
    # the package's functions take tensors too
    plain, g = x.detach(), torch.ones(4, dtype=dtype)
    assert torch.equal(se.entropy(plain, temperature=0.8), h) and torch.equal(se.log_prob(plain, index, temperature=0.8), lp)
    out = torch.empty(4, dtype=dtype)
    assert se.entropy(plain, temperature=0.8, out=out) is out and torch.equal(out, h)
    assert array(se.entropy_vjp(g, plain)).tobytes() == se.entropy_vjp(one, a).tobytes()
    dx = se.log_prob_vjp(torch.ones(4, 2, dtype=dtype), plain, index)
    assert array(dx).tobytes() == se.log_prob_vjp(ones, a, i).tobytes()
    assert all(torch.equal(s, t) for s, t in zip(se.kl_div_vjp(g, plain, y.detach()), (x.grad, y.grad)))


def test_functorch():
    from torch.func import grad, hessian, jacfwd, jvp, vmap

    x, y = logits(requires_grad=False), logits(seed=1, requires_grad=False)
    rows = torch.stack([st.entropy(row) for row in x])
    assert torch.allclose(vmap(st.entropy)(x), rows, rtol=1e-14, atol=0)
    assert torch.allclose(vmap(lambda a, i: st.log_prob(a, i))(x, INDEX), st.log_prob(x, INDEX), rtol=1e-14, atol=0)
    assert torch.allclose(vmap(grad(st.entropy))(x), se.entropy_vjp(torch.ones(3, dtype=x.dtype), x), atol=1e-14)
    assert torch.allclose(vmap(grad(st.kl_div, (0, 1)))(x, y)[1], torch.softmax(y, -1) - torch.softmax(x, -1), atol=1e-14)
    expected = torch.autograd.functional.hessian(st.entropy, x[0])
    for found in (hessian(st.entropy)(x[0]), jacfwd(grad(st.entropy))(x[0])):
        assert torch.allclose(found, expected, rtol=1e-12, atol=0)
    assert jvp(st.entropy, (x,), (torch.ones_like(x),))[1].abs().max() < 1e-14  # a constant changes nothing


def test_compiled():
    x, y = logits(), logits(seed=1)

    def loss(x, y):
        lp, h = st.log_prob_and_entropy(x, INDEX, temperature=0.9)
        return lp.sum() - 0.1 * h.sum() + st.kl_div(x, y).sum() + st.entropy(y).sum() + st.log_prob(x, INDEX[:, 0]).sum()

    loss(x, y).backward()
    eager = x.grad, y.grad
    x.grad = y.grad = None
    torch.compile(loss, fullgraph=True, backend="aot_eager")(x, y).backward()
    assert all(torch.equal(a, b) for a, b in zip(eager, (x.grad, y.grad)))
    torch.library.opcheck(torch.ops.sumexp.log_prob_and_entropy.default, (x, INDEX, 1, 0.9))
    torch.library.opcheck(torch.ops.sumexp.kl_div.default, (x, y, 1))


def test_trl_7221_and_7252_masked_logits():
    """Entropies were NaN at -inf; nan_to_num repaired them, and left the gradients NaN. By kernels and by the formula."""
    x = torch.tensor([[1.0, -INF, 2.0], [-INF, 0.5, -INF]], dtype=torch.float64, requires_grad=True)
    mapped = torch.func.vmap(st.entropy)(x)
    for h in (st.entropy(x), mapped, torch.func.jvp(st.entropy, (x,), (torch.ones_like(x),))[0]):
        assert torch.isfinite(h).all() and h[1] == 0
    (dx,) = torch.autograd.grad(st.entropy(x).sum(), x, create_graph=True)
    assert torch.isfinite(dx).all() and dx[0, 1] == 0 and not dx[1].any()
    (ddx,) = torch.autograd.grad(dx[0].square().sum(), x)
    assert torch.isfinite(ddx).all() and ddx[0, 1] == 0
    x.grad = None
    torch.func.vmap(st.entropy)(x).sum().backward()
    assert torch.isfinite(x.grad).all() and torch.allclose(x.grad, dx, rtol=1e-12, atol=0)
    y = torch.zeros_like(x, requires_grad=True)
    for call in (st.kl_div, torch.func.vmap(st.kl_div)):
        found = torch.autograd.grad(call(x, y).sum(), (x, y))
        assert all(torch.isfinite(t).all() for t in found) and found[0][0, 1] == 0


def test_shapes_and_other_tensors():
    x = logits(2, 5, 3, requires_grad=False)
    index = torch.randint(5, (2, 3, 4))
    assert torch.equal(st.log_prob(x, index, 1), st.log_prob(x.movedim(1, -1).contiguous(), index))
    assert st.entropy(x.to("meta"), 1).shape == (2, 3) and st.log_prob(x.to("meta"), index.to("meta"), 1).shape == (2, 3, 4)
    assert st.kl_div(x, x, 1).shape == (2, 3) and not st.kl_div(x, x.clone(), 1).any()
    assert st.entropy(torch.arange(3)).dtype == torch.get_default_dtype()
    assert st.log_prob(x[0], torch.tensor([1, 2, 0], dtype=torch.uint8), 0).shape == (3,)
    assert st.entropy(x.neg().conj(), 1).equal(st.entropy(-x, 1))


def test_refusals():
    x = logits(requires_grad=False)
    bad = {
        "log_prob: index has dtype torch.float64, accepted: integers": lambda: st.log_prob(x, INDEX.double()),
        r"log_prob: index has shape \(2, 2\), accepted: \(3,\) or \(3, K\)": lambda: st.log_prob(x, INDEX[:2]),
        "log_prob: index is 5 for row 0, accepted: indices from 0 below 3": lambda: st.log_prob(x[:, :3], INDEX[:, 1] + 1),
        f"log_prob: index is {2**64 - 5} for row 1": lambda: st.log_prob(x[:2], torch.tensor([0, -5]).view(torch.uint64)),
        f"log_prob_vjp: index is {2**63} for row 0, accepted": lambda: se.log_prob_vjp(
            torch.ones(1), x[:1].float(), torch.tensor([-(2**63)]).view(torch.uint64)
        ),
        "log_prob_and_entropy: logits is a list, accepted: a tensor": lambda: st.log_prob_and_entropy([1.0], 0),
        "entropy: dim is 2, accepted: -2 to 1": lambda: st.entropy(x, 2),
        "entropy: temperature is -1, accepted": lambda: st.entropy(x, temperature=-1),
        "entropy: temperature is a tensor that is watched": lambda: st.entropy(x, temperature=x[0, 0].exp().requires_grad_()),
        r"kl_div: q_logits has shape \(3, 4\), accepted: \(3, 5\)": lambda: st.kl_div(x, x[:, :4]),
        "kl_div: q_logits has dtype torch.float32, accepted: torch.float64": lambda: st.kl_div(x, x.float()),
        r"entropy_vjp: g has shape \(\), accepted: \(3,\)": lambda: se.entropy_vjp(torch.ones((), dtype=x.dtype), x),
        "entropy: out has dtype torch.float32": lambda: se.entropy(x, out=torch.empty(3)),
    }
    for message, call in bad.items():
        with pytest.raises((TypeError, ValueError), match=message):
            call()
