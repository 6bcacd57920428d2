"""sumexp.torch.cross_entropy: torch's own samples, every derivative and transform, the bytes of the NumPy face."""

import itertools
import sys
import types
import unittest

import pytest

torch = pytest.importorskip("torch")
from torch import func  # noqa: E402
from torch.nn.functional import cross_entropy as theirs  # noqa: E402

import sumexp.torch as st  # noqa: E402

f64 = torch.float64


def opinfo(name):
    """torch's description of an operation, with samples."""
    if "expecttest" not in sys.modules:  # a base class of torch's tests, which samples do not need
        sys.modules["expecttest"] = types.ModuleType("expecttest")
        sys.modules["expecttest"].TestCase = unittest.TestCase
    from torch.testing._internal.common_methods_invocations import op_db

    return next(op for op in op_db if op.name == name)


def logits(*shape, seed=0, dtype=f64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=f64).mul(3).to(dtype)


def indices(*shape, classes=5, seed=1):
    return torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(seed))


# -- as torch ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_samples_of_torch(dtype):
    op = opinfo("nn.functional.cross_entropy")
    torch.manual_seed(0)
    count = 0
    for sample in op.sample_inputs("cpu", dtype, requires_grad=True):
        (target,) = sample.args
        inputs = [t for t in (sample.input, target) if t.is_floating_point()]
        got, expected = st.cross_entropy(sample.input, target, **sample.kwargs), theirs(sample.input, target, **sample.kwargs)
        torch.testing.assert_close(got, expected)
        g = torch.rand_like(got)
        ours = torch.autograd.grad(got, inputs, g)
        torch.testing.assert_close(ours, torch.autograd.grad(expected, inputs, g))
        assert all(t.dtype == dtype for t in (got, *ours))
        if dtype == f64:
            call = lambda *inputs: st.cross_entropy(inputs[0], inputs[1] if len(inputs) > 1 else target, **sample.kwargs)
            assert torch.autograd.gradcheck(call, inputs, check_forward_ad=True, check_batched_grad=True)
            assert torch.autograd.gradgradcheck(call, inputs, check_fwd_over_rev=True, check_rev_over_rev=True)
        count += 1
    assert count > 20


OPTIONS = {
    "plain": {},
    "all": dict(label_smoothing=0.1, z_loss=0.01, softcap=4.0, temperature=0.7, ignore_index=2),
    "weights": dict(weight=torch.tensor([0.5, 0.0, 2.0, 1.0, 3.0], dtype=f64), label_smoothing=0.2),
    "tokens": dict(token_weight=torch.tensor([1.0, 0.0, 0.5, 2.0], dtype=f64), z_loss=0.1),
    "denominator": dict(denominator=7.0, softcap=2.0),
}
TARGETS = {
    "index": indices(4),
    "probabilities": logits(4, 5, seed=3).softmax(1),
    "pairs": (indices(4, 3, seed=4), logits(4, 3, seed=5).softmax(1)),
}


def cases():
    for options, target, reduction in itertools.product(OPTIONS, TARGETS, ("mean", "sum", "none")):
        given = dict(OPTIONS[options], reduction=reduction)
        if reduction != "mean":
            given.pop("denominator", None)
        if target == "probabilities":
            given.pop("ignore_index", None)
        yield pytest.param(TARGETS[target], given, id=f"{options}-{target}-{reduction}")


@pytest.mark.parametrize("target, options", cases())
def test_derivatives(target, options):
    x = logits(4, 5).requires_grad_()
    call = lambda x: st.cross_entropy(x, target, **options)
    assert torch.autograd.gradcheck(call, x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(call, x, check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.parametrize("target", TARGETS)
def test_derivatives_in_targets_and_weights(target):
    x, w, tokens = logits(4, 5), torch.rand(5, dtype=f64), torch.rand(4, dtype=f64)
    index, y = TARGETS[target] if target == "pairs" else (TARGETS[target], TARGETS[target])
    inputs = [t.clone().requires_grad_() for t in (x, w, tokens, y) if t.is_floating_point()]

    def call(x, w, tokens, y=index):
        target = (index, y) if index.shape[-1] == 3 else y
        return st.cross_entropy(x, target, w, token_weight=tokens, label_smoothing=0.1, reduction="none")

    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


def test_transforms():
    x, t = logits(6, 4, 5), indices(6, 4)
    for one in (lambda x, t: st.cross_entropy(x, t, label_smoothing=0.1), lambda x, t: st.cross_entropy(x, t, reduction="sum")):
        each = torch.stack([one(a, b) for a, b in zip(x, t)])
        torch.testing.assert_close(func.vmap(one)(x, t), each)
        gradients = torch.stack([func.grad(one)(a, b) for a, b in zip(x, t)])
        torch.testing.assert_close(func.vmap(func.grad(one))(x, t), gradients)
        leaf = x[0].clone().requires_grad_()
        torch.testing.assert_close(torch.autograd.grad(one(leaf, t[0]), leaf)[0], gradients[0])
        H = func.hessian(one)(x[0], t[0])
        torch.testing.assert_close(func.jacfwd(func.jacrev(one))(x[0], t[0]), H)
        _, tangent = func.jvp(lambda x: one(x, t[0]), (x[0],), (x[1],))
        torch.testing.assert_close(tangent, (gradients[0] * x[1]).sum())


@pytest.mark.parametrize("target, options", cases())
def test_compiled(target, options):
    def program(x):
        return st.cross_entropy(x * 2, target, **options)

    torch._dynamo.reset()
    compiled = torch.compile(program, fullgraph=True, backend="aot_eager")
    x, y = (logits(4, 5).requires_grad_() for _ in range(2))
    got, expected = compiled(x), program(y)
    assert torch.equal(got, expected)
    got.sum().backward()
    expected.sum().backward()
    assert torch.equal(x.grad, y.grad)


def test_exported():
    class Loss(torch.nn.Module):
        def forward(self, x, t):
            return st.cross_entropy(x, t, label_smoothing=0.1, ignore_index=1)

    x, t = logits(4, 5), indices(4)
    program = torch.export.export(Loss(), (x, t))
    assert "sumexp.cross_entropy" in str(program.graph)
    assert torch.equal(program.module()(x, t), Loss()(x, t))


def test_module():
    x, t, w = logits(4, 5, 3), indices(4, 3), torch.rand(5, dtype=f64)
    ours = st.nn.CrossEntropyLoss(w, ignore_index=2, label_smoothing=0.1)
    theirs = torch.nn.CrossEntropyLoss(w, ignore_index=2, label_smoothing=0.1)
    assert isinstance(ours, torch.nn.CrossEntropyLoss) and "weight" in ours.state_dict()
    torch.testing.assert_close(ours(x, t), theirs(x, t))
    both = st.nn.CrossEntropyLoss(z_loss=0.1, info=("lse",))(x, t)
    torch.testing.assert_close(both[1]["lse"], x.logsumexp(1))
    torch.testing.assert_close(both[0], torch.nn.functional.cross_entropy(x, t) + 0.1 * x.logsumexp(1).square().mean())


def test_older_names_of_reduction():
    x, t = logits(4, 5), indices(4)
    with pytest.warns(UserWarning, match="size_average"):
        assert torch.equal(st.cross_entropy(x, t, size_average=False), st.cross_entropy(x, t, reduction="sum"))
