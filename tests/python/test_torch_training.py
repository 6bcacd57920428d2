"""What training programs do with results and modules: change in place, checkpoint, watch operations, learn parameters."""

import pytest

import sumexp as se

torch = pytest.importorskip("torch")
from torch.func import jvp, linearize  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from sumexp import torch as st  # noqa: E402

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
