"""logaddexp and its like, logcumsumexp, logmeanexp and logsumexp with weights, of tensors: derivatives, transforms, bytes."""

import itertools
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import sumexp as se  # noqa: E402
import sumexp.torch as st  # noqa: E402

INF = float("inf")


def pair():
    torch.manual_seed(0)
    a, b = torch.randn(3, 4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    return a.requires_grad_(), b.requires_grad_()


def below(a, b):
    return st.logsubexp(a + 6, b)


CASES = {
    "logaddexp": (st.logaddexp, 2),
    "logsubexp": (below, 2),
    "log1mexp": (st.log1mexp, 1),
    "softplus": (st.softplus, 1),
    "softplus, beta": (lambda x: st.softplus(x, 2.0), 1),
    "logcumsumexp": (lambda x: st.logcumsumexp(x, 1), 1),
    "reverse": (lambda x: st.logcumsumexp(x, 0, reverse=True), 1),
    "exclusive": (lambda x: st.logcumsumexp(x, 1, exclusive=True)[:, 1:], 1),
    "exclusive, reverse": (lambda x: st.logcumsumexp(x, 1, exclusive=True, reverse=True)[:, :-1], 1),
    "weights": (lambda x, b: se.logsumexp(x, 1, b=b, return_sign=True)[0], 2),
    "weights, all": (lambda x, b: se.logsumexp(x, b=b.abs(), keepdims=True), 2),
    "logmeanexp": (lambda x: st.logmeanexp(x, 1), 1),
    "logmeanexp, b": (lambda x, b: st.logmeanexp(x, 0, b=b, return_sign=True)[0], 2),
    "logmeanexp, where": (lambda x: st.logmeanexp(x, where=torch.arange(4) > 0), 1),
}


@pytest.mark.parametrize("name", CASES)
def test_derivatives(name):
    f, n = CASES[name]
    args = pair()[:n]
    first = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert torch.autograd.gradcheck(f, args, **first)
    assert torch.autograd.gradgradcheck(f, args, check_fwd_over_rev=True, check_rev_over_rev=True, check_batched_grad=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_bytes_of_numpy(dtype):
    torch.manual_seed(1)
    a, b = torch.randn(5, 300).to(dtype), torch.randn(300).to(dtype)
    if dtype == torch.bfloat16:
        import ml_dtypes

        to_numpy = lambda t: t.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    else:
        to_numpy = lambda t: t.numpy()
    for call in (se.logaddexp, se.logsubexp, lambda a, b: se.logcumsumexp(a, 0), lambda a, b: se.logmeanexp(a, 1),
                 lambda a, b: se.logmeanexp(a, 1, b=b), lambda a, b: se.logaddexp_jvp(a, b, a, b),
                 lambda a, b: se.logsumexp_vjp(a[:, 0], a, 1, b=b)[0], lambda a, b: se.logcumsumexp_vjp(a, a)):
        actual = call(a, b)
        assert to_numpy(actual.contiguous()).tobytes() == call(to_numpy(a), to_numpy(b)).tobytes()


def test_absent_elements():  # pytorch 49724, 52213
    x = torch.tensor([-INF, -INF, 1.0, 0.0], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([-INF, 2.0, -INF, 1000.0], dtype=torch.float64, requires_grad=True)
    for graph in (False, True):
        dx, dy = torch.autograd.grad(st.logaddexp(x, y).sum(), (x, y), create_graph=graph)
        assert dx.tolist() == [0, 0, 1, 0] and dy.tolist() == [0, 1, 0, 1]
    z = torch.tensor([-INF, -INF, 1.0, -INF, 2.0], requires_grad=True)
    (dz,) = torch.autograd.grad(st.logcumsumexp(z, 0)[2:].sum(), z, create_graph=True)
    assert dz.isfinite().all() and dz[[0, 1, 3]].tolist() == [0, 0, 0]


@pytest.mark.parametrize("gap", [709.0, 710.0, 800.0])
def test_second_derivative_far_apart(gap):  # pytorch 196704: NaN
    x = torch.zeros((), dtype=torch.float64, requires_grad=True)
    y = torch.full((), gap, dtype=torch.float64, requires_grad=True)
    (dx,) = torch.autograd.grad(st.logaddexp(x, y), x, create_graph=True)
    assert torch.autograd.grad(dx, x)[0].isfinite() and torch.autograd.grad(st.logaddexp(x, y), y)[0] == 1


@pytest.mark.parametrize("gap", [0.0, 1.0, 30.0, 37.0, 100.0, 700.0])
def test_second_derivatives_are_no_differences(gap):
    """e^-d / (1 + e^-d)^2, of which s (1 - s) leaves nothing from 37 on."""
    expected = math.exp(-gap) / (1 + math.exp(-gap)) ** 2
    zero = torch.zeros((), dtype=torch.float64)
    for sign in (1, -1):
        at = torch.full((), sign * gap, dtype=torch.float64)
        for f in (st.softplus, lambda x: st.logaddexp(x, zero), lambda x: st.logaddexp(zero, x)):
            for second in (torch.autograd.functional.hessian(f, at), torch.func.hessian(f)(at)):
                assert abs(second.item() - expected) <= 1e-14 * expected


def test_logsubexp_of_less():
    """a < b: NaN, and its derivatives, whoever makes them."""
    a, b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.0, 5.0))
    for again in (False, True):
        assert all(t.isnan() for t in torch.autograd.grad(st.logsubexp(a, b), (a, b), create_graph=again))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_transforms_round_once(dtype):
    """Formulas of torch's operations are computed in float64: no sum stands still, nothing cancels."""
    x = torch.zeros(5000, dtype=dtype)
    offsets = torch.tensor([0, 5000])
    near = torch.tensor(-0.5).to(dtype)
    p = torch.linspace(-3, 3, 1000).to(dtype)
    q = (p.double() + 0.02 * torch.linspace(0, 9, 1000).sin()).to(dtype)
    cases = {
        "segment_logsumexp": (lambda x: st.segment_logsumexp(x, offsets=offsets), x),
        "logmeanexp": (st.logmeanexp, x),
        "masked_logsumexp": (lambda x: st.masked_logsumexp(x, lengths=4999), x),
        "logaddexp": (lambda x: st.logaddexp(x, st.log1mexp(near)), near),
        "kl_div": (lambda x: st.kl_div(x, q), p),
        "entropy": (st.entropy, p),
    }
    eps = torch.finfo(dtype).eps
    for name, (f, at) in cases.items():
        y = f(at).double()
        leaf = at.clone().requires_grad_()
        (plain,) = torch.autograd.grad(f(leaf).sum(), leaf)
        (again,) = torch.autograd.grad(f(leaf).sum(), leaf, create_graph=True)
        primal, _ = torch.func.jvp(f, (at,), (torch.ones_like(at),))
        batched = torch.vmap(f)(torch.stack([at, at]))[1]
        for value in (primal, batched):
            assert ((value.double() - y).abs() <= eps * y.abs()).all(), name
        for g in (again, torch.func.grad(lambda x: f(x).sum())(at)):
            scale = plain.double().abs() + 2.0**-6 * plain.double().abs().max()
            assert ((g.double() - plain.double()).abs() <= 8 * eps * scale).all(), name


def test_transforms_and_operations():
    a, b = pair()
    x = a.detach()
    assert torch.allclose(torch.func.vmap(lambda x: st.logcumsumexp(x, 0))(x), st.logcumsumexp(x, 1), rtol=1e-12, atol=0)
    hessian = torch.func.hessian(lambda x: st.logcumsumexp(x, 0).sum())(x[0])
    expected = torch.autograd.functional.hessian(lambda x: x.exp().cumsum(0).log().sum(), x[0])
    assert torch.allclose(hessian, expected, rtol=1e-12, atol=0)

    def f(x, y):
        return st.logaddexp(x, y).sum() + st.logcumsumexp(x, -1).sum() + st.logmeanexp(x) + se.logsumexp(x, b=y * y)

    f(a, b).backward()
    expected, a.grad = a.grad, None
    torch.compile(f, fullgraph=True, backend="aot_eager")(a, b).backward()
    assert torch.allclose(a.grad, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("options", [{}, {"reverse": True}], ids=str)
def test_third_derivatives_of_logcumsumexp(options):
    x = pair()[1].detach()
    jacfwd, jacrev = torch.func.jacfwd, torch.func.jacrev

    def plain(x):
        return x.flip(0).exp().cumsum(0).log().flip(0) if options else x.exp().cumsum(0).log()

    expected = jacrev(jacrev(jacrev(plain)))(x)
    for outer, middle, inner in itertools.product((jacfwd, jacrev), repeat=3):
        third = outer(middle(inner(lambda x: st.logcumsumexp(x, 0, **options))))(x)
        torch.testing.assert_close(third, expected)


@pytest.mark.parametrize("of", ["jacobian", "hessian"])
def test_batched_gradients_of_logcumsumexp_keep_their_graph(of):
    x = pair()[1]
    derivative = getattr(torch.autograd.functional, of)
    weights = torch.arange(1.0, 5)
    functions = [lambda x: st.logcumsumexp(x, 0), lambda x: x.exp().cumsum(0).log()]
    if of == "hessian":
        functions = [lambda x, f=f: (f(x) * weights).sum() for f in functions]
    actual, expected = (derivative(f, x, create_graph=True, vectorize=True) for f in functions)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), x)[0] for y in (actual, expected)))


def test_forward_mode_under_no_grad_records_nothing():
    x = pair()[0]
    with torch.no_grad():
        got = torch.func.jvp(lambda x: st.logcumsumexp(x, 1), (x,), (x.cos(),))
    assert not any(t.requires_grad for t in got)
    torch.testing.assert_close(got[1], se.logcumsumexp_jvp(x.detach().cos(), x.detach(), 1))


@pytest.mark.parametrize("options", [{}, {"reverse": True, "exclusive": True}], ids=str)
def test_functionalized_running_sums(options):
    x = pair()[0].detach()
    f = lambda x: st.logcumsumexp(x, 1, **options)
    loss = lambda x: f(x)[:, 1:-1].sin().sum()
    torch.testing.assert_close(torch.func.functionalize(f)(x), f(x))
    torch.testing.assert_close(torch.func.functionalize(torch.func.grad(loss))(x), torch.func.grad(loss)(x))


def test_bad_input():
    with pytest.raises(TypeError, match="logaddexp: other is a str, accepted: a tensor or a number"):
        st.logaddexp(torch.ones(2), "1")
    with pytest.raises(TypeError, match="softplus: input has dtype torch.complex64"):
        st.softplus(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(IndexError, match="Dimension out of range"):
        st.logcumsumexp(torch.ones(2), 1)
    with pytest.raises(ValueError, match=r"logaddexp_vjp: g has shape \(3,\), accepted: \(2,\)"):
        se.logaddexp_vjp(torch.ones(3), torch.ones(2), torch.ones(2))
    out = torch.zeros(2)
    assert st.logaddexp(torch.zeros(2), 0, out=out) is out and np.allclose(out, np.log(2), rtol=1e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_softplus_where_beta_times_input_overflows(dtype):
    """The result is the input, or 0, as torch's; so are derivatives, in beta too."""
    largest = torch.finfo(dtype).max
    x = torch.tensor([largest, -largest, largest / 4, 0.0, 1.0], dtype=dtype, requires_grad=True)
    for beta in (8.0, torch.tensor(8.0, dtype=dtype, requires_grad=True)):
        result = st.softplus(x, beta)
        torch.testing.assert_close(result, torch.nn.functional.softplus(x, 8.0))
        x.grad = None
        result.sum().backward()
        assert x.grad.tolist()[:4] == [1, 0, 1, 0.5]
    assert beta.grad.isfinite()
    infinite = torch.tensor([float("inf"), float("-inf"), float("nan")], dtype=dtype)
    torch.testing.assert_close(st.softplus(infinite, 8.0), torch.nn.functional.softplus(infinite, 8.0), equal_nan=True)
    torch.testing.assert_close(torch.func.grad(lambda t: st.softplus(t, 8.0).sum())(x.detach()[:4]), x.grad[:4])


def test_axis_is_dim():
    x = torch.randn(3, 4)
    assert torch.equal(st.logcumsumexp(x, axis=0), st.logcumsumexp(x, 0))
    for given in ({}, {"dim": 0, "axis": 0}):
        with pytest.raises(TypeError, match="logcumsumexp: dim is .* and axis"):
            st.logcumsumexp(x, **given)


def test_gradients_of_weights_are_laid_out_as_compiled_programs_expect():
    x, b = torch.randn(4, 3).T, torch.rand(4, 3).T
    for g in (torch.randn(3), None):
        given = ([g, torch.randn(3)], [x, b], [], [True, True], [1], False)
        torch.library.opcheck(torch.ops.sumexp.weighted_logsumexp_vjp.default, given, test_utils="test_faketensor")
