"""sumexp.torch.cross_entropy: torch's own samples, every derivative and transform, the bytes of the NumPy face."""

import itertools
import math
import sys
import types
import unittest
from functools import partial

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import func  # noqa: E402
from torch.nn.functional import cross_entropy as theirs  # noqa: E402

import sumexp as se  # noqa: E402
import sumexp.torch as st  # noqa: E402
from sumexp._row_shapes import without  # noqa: E402
from sumexp.torch import _cross_entropy  # noqa: E402
from torch_cases import same_bytes  # noqa: E402

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
        got = st.cross_entropy(sample.input, target, **sample.kwargs)
        g = torch.rand_like(got)
        ours = torch.autograd.grad(got, inputs, g)
        # in float64, since torch's gradient of 16 bits has lost most of its digits
        wide = [t.detach().double().requires_grad_() for t in inputs]
        keywords = {n: v.double() if isinstance(v, torch.Tensor) else v for n, v in sample.kwargs.items()}
        expected = theirs(wide[0], wide[1] if len(wide) > 1 else target, **keywords)
        torch.testing.assert_close(got, expected.to(dtype))
        torch.testing.assert_close(ours, tuple(t.to(dtype) for t in torch.autograd.grad(expected, wide, g.double())))
        assert all(t.dtype == dtype for t in (got, *ours))
        if dtype == f64:
            call = lambda *inputs: st.cross_entropy(inputs[0], inputs[1] if len(inputs) > 1 else target, **sample.kwargs)
            assert torch.autograd.gradcheck(call, inputs, check_forward_ad=True, check_batched_grad=True)
            assert torch.autograd.gradgradcheck(call, inputs, check_fwd_over_rev=True, check_rev_over_rev=True)
        count += 1
    assert count > 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    """Of 16 bits the loss is in float32, as torch's, and the gradient is rounded once."""
    for target in (indices(4), logits(4, 5, seed=3).softmax(1).to(dtype)):
        for module in (False, True):
            (x,) = leaves = [logits(4, 5, dtype=dtype).requires_grad_()]
            peer = x.detach().clone().requires_grad_()
            with torch.autocast("cpu", torch.bfloat16):
                loss = (st.nn.CrossEntropyLoss() if module else st.cross_entropy)(x, target)
                expected = theirs(peer, target)
            assert loss.dtype == expected.dtype == (f64 if dtype == f64 else torch.float32)
            torch.testing.assert_close(loss, expected)
            (got,), (want,) = torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, peer)
            assert got.dtype == want.dtype == dtype
            torch.testing.assert_close(got, want)
            assert st.cross_entropy(x, target).dtype == dtype  # outside of it


WEIGHT = torch.tensor([0.5, 0.0, 2.0, 1.0, 3.0], dtype=f64)
OPTIONS = {
    "plain": {"reduction": "none"},
    "all": {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 4.0, "temperature": 0.7, "ignore_index": 2, "reduction": "mean"},
    "weights": {"weight": WEIGHT, "label_smoothing": 0.2, "reduction": "mean"},
    "tokens": {"token_weight": torch.tensor([1.0, 0.0, 0.5, 2.0], dtype=f64), "z_loss": 0.1, "reduction": "sum"},
    "denominator": {"denominator": 7.0, "softcap": 2.0, "reduction": "mean"},
}
TARGETS = {
    "index": indices(4),
    "probabilities": logits(4, 5, seed=3).softmax(1),
    "pairs": (indices(4, 3, seed=4), logits(4, 3, seed=5).softmax(1)),
}


def cases():
    for options, target in itertools.product(OPTIONS, TARGETS):
        given = dict(OPTIONS[options])
        if target == "probabilities":
            given.pop("ignore_index", None)
        yield pytest.param(TARGETS[target], given, id=f"{options}-{target}")


CASES = list(cases())


@pytest.mark.parametrize("target, options", CASES)
def test_derivatives(target, options):
    x = logits(4, 5).requires_grad_()
    call = lambda x: st.cross_entropy(x, target, **options)
    assert torch.autograd.gradcheck(call, x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(call, x, check_fwd_over_rev=True, check_rev_over_rev=True)


def of_formula(x, target, pair_weights, weight, token_weight, denominator, *options):
    """Gradients of the formula in all floating tensors but the denominator; and the loss."""
    tensors = [x, target, pair_weights, weight, token_weight]
    leaves = [t.clone().requires_grad_() if t is not None and t.is_floating_point() else t for t in tensors]
    loss = _cross_entropy.formula(*leaves, denominator, *options)
    found = iter(torch.autograd.grad(loss.sum(), [t for t in leaves if t is not None and t.requires_grad]))
    return [next(found) if t is not None and t.requires_grad else None for t in leaves], loss


@pytest.mark.parametrize("reduction", [0, 1, 2])
@pytest.mark.parametrize("target", TARGETS)
def test_gradients_in_targets_and_weights_are_the_formulas(target, reduction):
    """Of any number of dimensions, with rows and pairs ignored, and with classes of weight 0 and probability 0."""
    for dim, shape in ((1, (4, 5)), (1, (4, 5, 3)), (-1, (2, 3, 5)), (0, (5,))):
        rows = without(shape, dim)
        x, weight = logits(*shape), torch.tensor([1.0, 0, 2, 0.5, 3], dtype=f64)
        index, y, shares = indices(*rows), logits(*shape, seed=6).softmax(dim), None
        if target == "pairs":
            index, shares = indices(*rows, 3, seed=7), logits(*rows, 3, seed=8).exp()
        if rows:
            index[0], index.view(-1)[-1] = -100, -100
        x.select(dim, 1).fill_(-float("inf"))  # whose class has weight 0
        index = torch.where(index == 1, 2, index)
        for denominator in (None, torch.tensor(3.0, dtype=f64)) if reduction == 1 else (None,):
            for options in ((0.0, 0.0, 0.0, 1.0), (0.1, 0.2, 2.0, 0.7)):
                tensors = x, y if target == "probabilities" else index, shares, weight, logits(rows, seed=9), denominator
                given = dim, -100, *options, reduction, False
                needs = [t is not None and t.is_floating_point() for t in tensors[:-1]] + [False]
                expected, loss = of_formula(*tensors, *given)
                u = torch.ones_like(loss)
                found = _cross_entropy.gradient((u,), tensors, (loss.detach(),), given, needs)
                for got, exact in zip(found[1:], expected[1:]):
                    assert (got is None) == (exact is None)
                    if exact is not None:
                        torch.testing.assert_close(got, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("target", TARGETS)
def test_compiled_gradients_in_targets_and_weights(target):
    """A compiled program asked the operation's kernel for autograd, which is off there, and stopped."""
    index, y = TARGETS[target] if target == "pairs" else (TARGETS[target], TARGETS[target])
    inputs = [t.clone().requires_grad_() for t in (logits(4, 5), WEIGHT, torch.rand(4, dtype=f64), y) if t.is_floating_point()]

    def call(x, w, tokens, y=index):
        return st.cross_entropy(x, (index, y) if target == "pairs" else y, w, token_weight=tokens, label_smoothing=0.1)

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    found, expected = (torch.autograd.grad(f(*inputs), inputs) for f in (compiled, call))
    assert all(map(torch.equal, found, expected))


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


@pytest.mark.parametrize("target, options", CASES)
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


def test_one_row_with_a_target_of_one_dimension():
    """As torch: indices of shape (1,) for logits (C,) are those of shape ()."""
    x, eye = logits(5).requires_grad_(), torch.eye(5, dtype=f64)
    for target, reduction in itertools.product((2, -100), ("none", "sum", "mean")):
        expected = theirs(x, torch.tensor([target]), reduction=reduction)
        for call in (st.cross_entropy, lambda x, t, **o: st.linear_cross_entropy(x, eye, t, **o)):
            loss = call(x, torch.tensor([target]), reduction=reduction)
            assert loss.shape == expected.shape == ()
            torch.testing.assert_close(loss, expected, equal_nan=True)
    peer = torch.nn.functional.linear_cross_entropy(x, eye, torch.tensor([2]))
    torch.testing.assert_close(st.linear_cross_entropy(x, eye, torch.tensor([2])), peer)
    for bad in (torch.tensor([1, 2]), torch.tensor([[1]])):
        with pytest.raises(ValueError, match="^cross_entropy: target has shape .* accepted: "):
            st.cross_entropy(x, bad)
    y = torch.rand(1, dtype=f64)  # probabilities of the one class
    torch.testing.assert_close(st.cross_entropy(logits(1), y), theirs(logits(1), y))


def test_older_names_of_reduction():
    x, t = logits(4, 5), indices(4)
    with pytest.warns(UserWarning, match="size_average"):
        assert torch.equal(st.cross_entropy(x, t, size_average=False), st.cross_entropy(x, t, reduction="sum"))


# -- beyond torch -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bytes_of_numpy(dtype):
    x, t = logits(4, 5, 3, dtype=dtype), indices(4, 3)
    array = x.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if dtype == torch.bfloat16 else x.numpy()
    options = {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 5.0, "info": ("lse", "correct")}
    loss, gradient, info = se.cross_entropy_with_grad(array, t.numpy(), axis=1, **options)
    leaf = x.clone().requires_grad_()
    ours, found = st.cross_entropy(leaf, t, **options)
    ours.backward()
    same_bytes(ours.detach(), np.asarray(loss))
    same_bytes(leaf.grad, gradient)
    for name in info:
        same_bytes(found[name].detach(), info[name])
    again = se.cross_entropy_with_grad(x, t, axis=1, **options)
    same_bytes(again[0], np.asarray(loss))
    same_bytes(again[1], gradient)
    same_bytes(se.cross_entropy_vjp(1.0, x, t, axis=1, label_smoothing=0.1, z_loss=0.1, softcap=5.0), gradient)
    recorded = se.cross_entropy_with_grad(leaf, t, axis=1, **options)[1]  # to be differentiated again: by the formula
    torch.testing.assert_close(recorded, again[1])
    assert recorded.requires_grad
    out = x.clone()
    assert se.cross_entropy_with_grad(out, t, axis=1, out=out, **options)[1] is out
    same_bytes(out, gradient)


def test_ignored_rows_are_not_read():
    """pytorch 11551: NaN in an ignored row made its gradient NaN; and 70348: a mean over nothing is 0 / 0, unless asked."""
    x, t = logits(4, 5), indices(4)
    x[1], t[1] = float("nan"), -100
    for transform in (torch.func.grad, lambda f: lambda x: torch.autograd.functional.jacobian(f, x)):
        gradient = transform(lambda x: st.cross_entropy(x, t))(x)
        assert not gradient[1].any() and not gradient.isnan().any()
    assert st.cross_entropy(x, torch.full_like(t, -100)).isnan()
    leaf = x.clone().requires_grad_()
    loss = st.cross_entropy(leaf, torch.full_like(t, -100), on_empty="zero")
    loss.backward()
    assert loss == 0 and not leaf.grad.any()
    assert st.cross_entropy(x, torch.full_like(t, -100), on_empty="zero") == 0


def test_gradient_of_the_target_in_16_bits():
    """Liger 1329: p - 1 of the target's class was lost in bfloat16. In float32 as p goes to 1, p - 1 has no digits."""
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.tensor([[20.0, 0.0, 1.0]], dtype=dtype, requires_grad=True)
        st.cross_entropy(x, torch.tensor([0])).backward()
        exact = x.detach().double().softmax(1)[0, 1:].sum()
        assert abs(x.grad[0, 0].double() + exact) < exact * torch.finfo(dtype).eps


def test_losses_of_one_row_each():
    """Liger 968: gradients with reduction="none"."""
    x, t, u = logits(4, 5).requires_grad_(), indices(4), torch.rand(4, dtype=f64)
    (got,) = torch.autograd.grad(st.cross_entropy(x, t, reduction="none"), x, u)
    torch.testing.assert_close(got, torch.autograd.grad(theirs(x, t, reduction="none"), x, u)[0])


def test_fx_records_the_call():
    graph = torch.fx.symbolic_trace(lambda x, t: st.cross_entropy(x, t, label_smoothing=0.1))
    x, t = logits(4, 5), indices(4)
    assert torch.equal(graph(x, t), st.cross_entropy(x, t, label_smoothing=0.1))


X, T = logits(4, 5), indices(4)
ERRORS = {
    "input": ((X.long(), T), {}, TypeError, "input has dtype torch.int64, accepted: float16"),
    "scalar": ((X[0, 0], T), {}, ValueError, r"input has shape \(\), accepted: at least one dimension"),
    "shape": ((X, T[1:]), {}, ValueError, r"target has shape \(3,\), accepted: \(4,\)"),
    "range": ((X, T * 0 + 7), {}, ValueError, "target is 7 for row 0, accepted: indices from 0 below 5, and -100"),
    "bool": ((X, T > 0), {}, TypeError, "target has dtype torch.bool, accepted: integers"),
    "weight": ((X, T, X[0, 1:]), {}, ValueError, r"weight has shape \(4,\), accepted: \(5,\)"),
    "tokens": ((X, T), {"token_weight": X[0]}, ValueError, r"token_weight has shape \(5,\), accepted: what broadcasts"),
    "reduction": ((X, T), {"reduction": "max"}, ValueError, "reduction is 'max', accepted: 'none', 'mean', 'sum'"),
    "smoothing": ((X, T), {"label_smoothing": 1.5}, ValueError, r"label_smoothing is 1.5, accepted: a number in \[0, 1\]"),
    "softcap": ((X, T), {"softcap": 0}, ValueError, "softcap is 0, accepted: a finite number > 0"),
    "sum": ((X, T), {"denominator": 2, "reduction": "sum"}, ValueError, "denominator is given with reduction 'sum', acc"),
    "info": ((X, T), {"info": ("loss",)}, ValueError, "info has 'loss', accepted: 'lse', 'log_prob'"),
    "ignored": ((X, X.softmax(1)), {"ignore_index": 1}, ValueError, "ignore_index is 1, accepted with prob"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    args, options, kind, message = ERRORS[case]
    with pytest.raises(kind, match="cross_entropy: " + message):
        st.cross_entropy(*args, **options)


def test_info_is_not_differentiated():
    """What is told beside the loss has no gradient, and says so."""
    x, t = torch.randn(3, 5, dtype=torch.float64, requires_grad=True), torch.tensor([0, 2, 4])
    names = ("lse", "log_prob", "entropy", "z_loss", "predicted", "correct")
    for reduction in ("mean", "none"):
        loss, info = st.cross_entropy(x, t, reduction=reduction, info=names)
        assert loss.requires_grad and not any(i.requires_grad for i in info.values())
        with pytest.raises(RuntimeError, match="does not require grad"):
            info["entropy"].sum().backward()
        (loss.sum() + info["entropy"].sum()).backward()
        alone = x.grad.clone()
        x.grad = None
        st.cross_entropy(x, t, reduction=reduction).sum().backward()
        assert torch.equal(alone, x.grad)
        x.grad = None


def test_a_denominator_is_not_differentiated():
    x, t, d = torch.randn(3, 5), torch.tensor([0, 2, 4]), torch.tensor(4.0, requires_grad=True)
    with pytest.raises(TypeError, match="cross_entropy: denominator is a tensor that is watched, accepted: a number"):
        st.cross_entropy(x, t, denominator=d)
    with pytest.raises(TypeError, match="linear_cross_entropy: denominator is a tensor that is watched"):
        st.linear_cross_entropy(x, torch.randn(7, 5), t, denominator=d)
    assert st.cross_entropy(x, t, denominator=d.detach()) == st.cross_entropy(x, t, denominator=4.0)


# -- found by trying --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype, of, ignored",
    [(torch.uint8, 156, -100), (torch.int8, 1, 257), (torch.int32, 0, 2**32), (torch.uint16, 0, -65536), (torch.int64, 3, 3)],
    ids=str,
)
def test_an_ignored_index_does_not_wrap(dtype, of, ignored):
    """Compared in the target's dtype, -100 is 156 of uint8."""
    x, w = torch.zeros(1, 200, dtype=f64), torch.eye(200, dtype=f64)
    x[0, of] = 1
    t = torch.tensor([of], dtype=dtype)
    expected = 0.0 if of == ignored else torch.nn.functional.cross_entropy(x, t.long())
    if of == ignored:
        assert st.cross_entropy(x, t, ignore_index=ignored, on_empty="zero") == 0
        return
    slope = torch.func.grad(lambda x: st.cross_entropy(x, t.long()))(x)
    assert torch.isclose(st.cross_entropy(x, t, ignore_index=ignored), expected, rtol=1e-12, atol=0)
    assert torch.isclose(st.linear_cross_entropy(x, w, t, ignore_index=ignored), expected, rtol=1e-12, atol=0)
    assert torch.equal(torch.func.grad(lambda x: st.cross_entropy(x, t, ignore_index=ignored))(x), slope)
    leaf = x.clone().requires_grad_()
    (again,) = torch.autograd.grad(st.cross_entropy(leaf, t, ignore_index=ignored), leaf, create_graph=True)
    assert torch.allclose(again, slope, rtol=1e-12, atol=0)


def test_a_denominator_of_0():
    """NaN, also where losses are left over (torch has the same), or 0; what is told of rows is as ever."""
    x, t, none = torch.tensor([[1.0, 2, 3], [0, 5, 1]]), torch.tensor([0, 1]), torch.tensor([0.0, 0, 1])
    eye = torch.eye(3)
    for options in ({"label_smoothing": 0.1}, {"z_loss": 0.1}, {}):
        for loss in (
            st.cross_entropy(x, t, weight=none, **options), st.linear_cross_entropy(x, eye, t, weight=none, **options),
            torch.vmap(lambda x: st.cross_entropy(x, t, weight=none, **options))(x[None]),
        ):  # fmt: skip
            assert loss.isnan().all()
        empty = {"weight": none, "on_empty": "zero", **options}
        leaf = x.clone().requires_grad_()
        loss, info = st.cross_entropy(leaf, t, info=("lse", "predicted", "correct"), **empty)
        assert loss == 0 and torch.autograd.grad(loss, leaf)[0].count_nonzero() == 0
        assert torch.allclose(info["lse"], x.logsumexp(1), rtol=1e-12, atol=0) and info["predicted"].tolist() == [2, 1]
        assert info["correct"].tolist() == [False, True]
        _, of_head = st.linear_cross_entropy(x, eye, t, info=("lse", "predicted"), **empty)
        assert torch.equal(of_head["lse"], info["lse"]) and of_head["predicted"].tolist() == [2, 1]


def test_softcap_at_minus_infinity_under_transforms():
    x, y = torch.tensor([[0, -math.inf, 1]], dtype=f64), torch.tensor([[0.5, 0.5, 0]], dtype=f64)
    loss = lambda x: st.cross_entropy(x, y, softcap=3, reduction="sum")
    leaf = x.clone().requires_grad_()
    assert torch.allclose(torch.func.grad(loss)(x), torch.autograd.grad(loss(leaf), leaf)[0], rtol=1e-12, atol=0)


def test_linear_of_what_cross_entropy_takes():
    """Negative weights, no classes; tangents of targets and weights."""
    x, t, eye = torch.tensor([[1.0, 2, 3], [0, 5, 1]]), torch.tensor([0, 1]), torch.eye(3)
    for options in ({"weight": -torch.ones(3)}, {"token_weight": -torch.ones(2)}):
        expected = st.cross_entropy(x, t, **options)
        assert st.linear_cross_entropy(x, eye, t, **options) == expected
        arrays = {n: v.numpy() for n, v in options.items()}
        assert se.linear_cross_entropy(x.numpy(), eye.numpy(), t.numpy(), **arrays) == expected.item()
    assert st.linear_cross_entropy(torch.empty(2, 4), torch.empty(0, 4), torch.empty(2, 0)).isnan()
    y = torch.rand(2, 3)
    head, whole = partial(st.linear_cross_entropy, x, eye), partial(st.cross_entropy, x)
    for call, at in ((lambda f, y: f(y), y), (lambda f, v: f(t, token_weight=v), torch.rand(2))):
        found, expected = (torch.func.jvp(lambda v: call(f, v), (at,), (at.flip(0),)) for f in (head, whole))
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("option, value, text", [
    ("ignore_index", 1.5, "ignore_index is 1.5, accepted: an int"),
    ("label_smoothing", "a", "label_smoothing is 'a', accepted: a number in"),
    ("z_loss", None, "z_loss is None, accepted: a finite number"),
    ("z_loss", torch.ones((), requires_grad=True), "z_loss is a tensor that is watched"),
    ("softcap", "a", "softcap is 'a', accepted: a finite number > 0"),
    ("denominator", "a", "denominator is 'a', accepted: a finite number"),
    ("info", None, "info is None, accepted: a sequence of 'lse'"),
    ("weight", torch.ones(3, dtype=torch.complex64), "weight has dtype torch.complex64, accepted: a floating dtype"),
])  # fmt: skip
def test_options_of_other_types(option, value, text):
    x, t = torch.ones(2, 3), torch.tensor([0, 1])
    for name, f in (("cross_entropy", lambda **o: st.cross_entropy(x, t, **o)),
                    ("linear_cross_entropy", lambda **o: st.linear_cross_entropy(x, torch.eye(3), t, **o))):  # fmt: skip
        with pytest.raises(TypeError, match=f"^{name}: {text}"):
            f(**{option: value})


def test_targets_out_of_range_under_transforms():
    """A ValueError with place and value, where torch.gather has its own words; those that vmap maps over cannot be seen."""
    x, t = torch.randn(2, 3), torch.tensor([0, 7])
    for name, f in (("cross_entropy: target", lambda x: st.cross_entropy(x, t)),
                    ("log_prob: index", lambda x: st.log_prob(x, t).sum())):  # fmt: skip
        for call in (func.grad(f), lambda x, f=f: func.jvp(f, (x,), (x,)), func.hessian(f)):
            with pytest.raises(ValueError, match=f"{name} is 7 at 1, accepted: indices from 0 below 3"):
                call(x)
    with pytest.raises((RuntimeError, IndexError)):
        torch.vmap(st.cross_entropy)(x, t)
    assert func.grad(lambda x: st.cross_entropy(x, torch.tensor([0, -100])))(x)[1].count_nonzero() == 0


@pytest.mark.parametrize("name", ["cross_entropy_with_grad", "cross_entropy_vjp"])
def test_out_is_written_as_torch_writes(name):
    x, t, out, leaf = logits(3, 5), indices(3), torch.zeros(3, 5, dtype=f64), logits(3, 5, seed=2).requires_grad_()
    call = partial(getattr(se, name), *(() if name.endswith("_grad") else (1.0,)), x, t)
    want = call()[1] if name.endswith("_grad") else call()
    version, saved = out._version, (leaf * out).sum()
    call(out=out)
    assert torch.equal(out, want) and out._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.backward()
    with torch.inference_mode():
        out = torch.zeros(3, 5, dtype=f64)
        call(out=out)
        assert torch.equal(out, want)
    with pytest.raises(RuntimeError, match="[Ii]nference"):
        call(out=out)
    memory = torch.zeros(16, dtype=f64)  # one memory, two storages
    x, out = torch.from_numpy(memory.numpy()[:15]).view(3, 5).copy_(x), memory[1:].view(3, 5)
    getattr(se, name)(*(() if name.endswith("_grad") else (1.0,)), x, t, out=out)
    assert torch.equal(out, want)
