"""What training programs do with results and modules: change in place, checkpoint, watch operations, learn parameters."""

import pytest

import sumexp as se

torch = pytest.importorskip("torch")
from torch.func import jvp, linearize  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from sumexp import torch as st  # noqa: E402
from sumexp.torch import _cross_entropy  # noqa: E402

TARGET = torch.tensor([0, 1, 2, 4])
WEIGHT = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
OFFSETS = torch.tensor([0, 2, 4])


def values(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


LOSSES = {
    "cross_entropy": lambda x: st.cross_entropy(x, TARGET),
    "cross_entropy of rows": lambda x: st.cross_entropy(x, TARGET, reduction="none"),
    "cross_entropy with info": lambda x: st.cross_entropy(x, TARGET, info=("lse",))[0],
    "CrossEntropyLoss": lambda x: st.nn.CrossEntropyLoss(z_loss=1e-4)(x, TARGET),
    "linear_cross_entropy": lambda x: st.linear_cross_entropy(x, WEIGHT, TARGET),
    "logsumexp": lambda x: st.logsumexp(x, 1),
    "logsumexp with weights": lambda x: se.logsumexp(x, 1, b=torch.ones(6, dtype=torch.float64)),
    "logmeanexp": lambda x: st.logmeanexp(x, 0),
    "logaddexp": lambda x: st.logaddexp(x, 2 * x),
    "softplus": st.softplus,
    "entropy": st.entropy,
    "kl_div": lambda x: st.kl_div(x, 0.5 * x),
    "log_prob": lambda x: st.log_prob(x, TARGET),
    "log_prob_and_entropy": lambda x: st.log_prob_and_entropy(x, TARGET)[1],
    "masked_logsumexp": st.masked_logsumexp,
    "masked_softmax": st.masked_softmax,
    "segment_logsumexp": lambda x: st.segment_logsumexp(x, offsets=OFFSETS),
    "logcumsumexp": lambda x: st.logcumsumexp(x, 1),
    "logmatmulexp": lambda x: st.logmatmulexp(x, WEIGHT.T),
}


@pytest.mark.parametrize("name", LOSSES)
def test_results_changed_in_place(name):
    """loss /= steps, as gradient accumulation has it."""
    x = values(4, 6).requires_grad_()
    (want,) = torch.autograd.grad((LOSSES[name](x) / 4).sum(), x)
    loss = LOSSES[name](x)
    loss /= 4
    loss.sum().backward()
    torch.testing.assert_close(x.grad, want)


def test_results_changed_in_place_by_a_compiled_program():
    x = values(4, 6).requires_grad_()
    y = torch.compile(lambda x: st.softplus(x).mul_(2), backend="aot_eager")(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, 2 * torch.sigmoid(x.detach()))


def test_a_result_that_its_gradient_needs():
    x = values(4, 6).requires_grad_()
    y = st.segment_softmax(x, offsets=OFFSETS)
    y *= 2
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.square().sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("draw", [lambda x: st.gumbel_softmax(x, 0.7), lambda x: st.softmax(x, -1) * st.sample(x)[:, None]])
def test_checkpoints_draw_the_same_again(draw, reentrant):
    x, made = values(4, 50).requires_grad_(), []

    def f(x):
        made.append(draw(x))
        return (made[-1] * torch.arange(50)).sum()

    checkpoint(f, x, use_reentrant=reentrant).backward()
    assert len(made) == 2 and torch.equal(*(y.detach() for y in made))


@pytest.mark.parametrize("draw", [
    st.sample, st.gumbel_softmax, lambda x: st.sample_counts(x, 7), lambda x: st.linear_sample(x[:, :6], WEIGHT),
    torch.compile(st.sample, backend="eager"),
])  # fmt: skip
def test_manual_seed(draw):
    x = values(40, 100)
    torch.manual_seed(3)
    first, second = draw(x), draw(x)
    torch.manual_seed(3)
    assert torch.equal(draw(x), first) and not torch.equal(first, second)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_double_backward_of_the_head_while_a_mode_watches(reduction):
    """torch.set_default_device is such a mode."""

    def penalized():
        h, w = values(4, 6).requires_grad_(), WEIGHT.clone().requires_grad_()
        loss = st.linear_cross_entropy(h, w, TARGET, reduction=reduction).sum()
        (g,) = torch.autograd.grad(loss.square(), h, create_graph=True)
        return torch.autograd.grad((loss + 0.1 * g.square().sum()).square(), (h, w))

    want = penalized()
    with torch.device("cpu"):
        torch.testing.assert_close(penalized(), want)


@pytest.mark.parametrize("name", ["cross_entropy with info", "logmeanexp", "logsumexp with weights"])
def test_double_backward_of_one_of_two_results_while_a_mode_watches(name):
    def second():
        x = values(4, 6).requires_grad_()
        (g,) = torch.autograd.grad(LOSSES[name](x).sum(), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), x)[0]

    want = second()
    with torch.device("cpu"):
        torch.testing.assert_close(second(), want)


@pytest.mark.parametrize("shape", [(5,), (3, 5)])
def test_running_sums_are_traced(shape):
    x, v, other = values(*shape), values(*shape, seed=1), values(*shape, seed=2)
    f = lambda x: st.logcumsumexp(x, -1)
    want = jvp(f, (other,), (v,))[1]
    torch.testing.assert_close(linearize(f, other)[1](v), want)
    torch.testing.assert_close(make_fx(lambda x, v: jvp(f, (x,), (v,))[1])(x, v)(other, v), want)
    gradient = torch.func.grad(lambda x: f(x).sin().sum())
    torch.testing.assert_close(make_fx(gradient)(x)(other), gradient(other))


def test_learned_numbers():
    tau = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda tau: st.gumbel_softmax(values(3, 4), tau, seed=3), tau)
    beta = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda beta: st.softplus(values(3, 4), beta), beta)
    with pytest.raises(TypeError, match="masked_softmax: softcap is a tensor that is watched, accepted: a number"):
        st.masked_softmax(values(3, 4), softcap=beta)


def test_modules_name_what_they_do_not_know():
    with pytest.raises(TypeError, match="CrossEntropyLoss: got lable_smoothing=, accepted: torch's keywords, and z_loss"):
        st.nn.CrossEntropyLoss(lable_smoothing=0.1)
    with pytest.raises(TypeError, match="LinearCrossEntropyLoss: got zloss=, accepted: "):
        st.nn.LinearCrossEntropyLoss(3, 4, zloss=1)


# -- a gradient that is made in forward --------------------------------------------------------------------------------


def trained(x, t, times=3, scale=None, **options):
    """The gradients of some rounds of forward and backward."""
    found = []
    for _ in range(times):
        x.grad = None
        loss = st.cross_entropy(x, t, **options)
        loss = loss[0] if isinstance(loss, tuple) else loss
        (loss if scale is None else loss * scale).backward()
        found.append(x.grad)
    return found


@pytest.fixture
def ahead(monkeypatch):
    """How often a gradient was made in forward."""
    calls = []
    for op in (_cross_entropy.CROSS_ENTROPY, _cross_entropy.WITH_INFO):
        made = op.kernel_with_gradient
        monkeypatch.setattr(op, "kernel_with_gradient", lambda *a, made=made: calls.append(1) or made(*a))
        monkeypatch.setattr(op, "expects_one", False)
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"reduction": "sum"}, {"info": "lse"}], ids=str)
def test_a_loop_has_its_gradients_from_one_sweep(dtype, options, ahead):
    x, t = torch.randn(64, 21, dtype=dtype, requires_grad=True), torch.randint(0, 21, (64,))
    first, *others = trained(x, t, 4, **options)
    assert len(ahead) == 3
    assert all(torch.equal(g, first) for g in others)
    (half,) = trained(x, t, 1, 0.3, **options)  # made, and not what backward wants
    assert len(ahead) == 4
    (again,) = trained(x, t, 1, 0.3, **options)  # not made
    assert len(ahead) == 4 and torch.equal(half, again)
    torch.testing.assert_close(half, 0.3 * first, rtol=1e-2, atol=1e-6)
    assert torch.equal(trained(x, t, 1, **options)[0], first)


def test_a_gradient_made_ahead_is_given_once(ahead):
    """A second backward has its own, whatever was done with the first."""
    x, t = torch.randn(8, 5, requires_grad=True), torch.randint(0, 5, (8,))
    (expected,) = trained(x, t, 1)
    x.grad = None
    loss = st.cross_entropy(x, t)
    assert len(ahead) == 1
    loss.backward(retain_graph=True)
    x.grad.zero_()
    loss.backward()
    assert torch.equal(x.grad, expected)
    x.grad = None
    loss = st.cross_entropy(x, t)
    assert len(ahead) == 2
    (of_graph,) = torch.autograd.grad(loss, x, create_graph=True)
    assert of_graph.requires_grad
    torch.testing.assert_close(of_graph.detach(), expected)


def test_a_gradient_made_ahead_is_not_that_of_changed_logits(ahead):
    x, t = torch.randn(8, 5, requires_grad=True), torch.randint(0, 5, (8,))
    trained(x, t, 1)
    y = x * 2
    loss = st.cross_entropy(y, t)
    assert len(ahead) == 1
    with torch.no_grad():
        y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_what_is_saved_goes_through_hooks(ahead):
    """No gradient is kept beside them."""
    x, t = torch.randn(8, 5, requires_grad=True), torch.randint(0, 5, (8,))
    (expected,) = trained(x, t, 1)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        (found,) = trained(x, t, 1)
    assert not ahead and torch.equal(found, expected)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_backward_pass_alone_is_traced(reduction, ahead):
    """With the gradient that it is given, not as a constant."""
    x, t = torch.randn(8, 5, requires_grad=True), torch.randint(0, 5, (8,))
    trained(x, t, 1)
    loss = st.cross_entropy(x, t, reduction=reduction)
    backward = lambda v: torch.autograd.grad(loss, x, v, retain_graph=True)[0]
    v = torch.ones_like(loss)
    program = make_fx(backward)(v)
    torch.testing.assert_close(program(3 * v), backward(3 * v))


def test_nothing_is_made_ahead_where_more_is_differentiated(ahead):
    x, t = torch.randn(8, 5, requires_grad=True), torch.randint(0, 5, (8,))
    w = torch.rand(5, requires_grad=True)
    trained(x, t, 1)
    assert trained(x, t, 2, weight=w) and not ahead and w.grad is not None
    losses = st.cross_entropy(x, t, reduction="none")
    losses.sum().backward()
    batched = torch.autograd.grad(st.cross_entropy(x, t), x, torch.ones(3), is_grads_batched=True)[0]
    torch.testing.assert_close(batched[1], trained(x, t, 1)[0])
