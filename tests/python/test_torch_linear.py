"""sumexp.torch.linear_cross_entropy: values, every derivative and transform, memory, and what is refused."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import func  # noqa: E402

import sumexp as se  # noqa: E402
import sumexp.torch as st  # noqa: E402
from sumexp.torch import _linear_functions, _linear_products, _linear_sweeps  # noqa: E402
from torch_cases import same_bytes  # noqa: E402

f64 = torch.float64
N, D, V = 7, 3, 5


def normal(*shape, seed=0, dtype=f64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=f64).to(dtype)


X, W, B = normal(N, D), normal(V, D, seed=1), normal(V, seed=2)
T = torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(3))
T[2] = -100
TARGETS = {
    "index": T,
    "probabilities": normal(N, V, seed=4).softmax(1),
    "pairs": (torch.stack([T, T.flip(0)], 1), normal(N, 2, seed=5).exp()),
}
ALL = {
    "label_smoothing": 0.1, "z_loss": 0.1, "softcap": 3.0, "temperature": 0.8, "weight": normal(V, seed=6).exp(),
    "token_weight": normal(N, seed=7).exp(),
}  # fmt: skip
OPTIONS = {
    "mean": {},
    "all mean": ALL,
    "all sum": {**ALL, "reduction": "sum"},
    "all none": {**ALL, "reduction": "none"},
    "denominator": {"denominator": torch.tensor(9.0)},
}


def leaves(*tensors):
    return [t.detach().clone().requires_grad_() for t in tensors]


def composition(x, w, b, target, **options):
    return st.cross_entropy(x @ w.T + b, target, **options)


def ours(x, w, b, target, chunk_size=3, **options):
    return st.linear_cross_entropy(x, w, target, linear_bias=b, chunk_size=chunk_size, **options)


# -- values and first derivatives -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("target", TARGETS)
def test_values(target, options, dtype):
    inputs = leaves(*(t.to(dtype) for t in (X, W, B)))
    wide = leaves(*(t.double() for t in inputs))
    target, options = TARGETS[target], OPTIONS[options]
    expected = composition(*wide, target, **options)
    u = torch.rand_like(expected) + 0.5  # near 0, results of 16 bits are subnormal: their error is large beside them
    gradients = torch.autograd.grad(expected, wide, u)
    tolerance = {f64: 1e-13, torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 4e-2}[dtype]
    for chunk in (None, 2):
        got = ours(*inputs, target, chunk, **options)
        torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)
        again = [t.clone() for t in torch.autograd.grad(got, inputs, u.to(dtype), retain_graph=True)]
        for g, e in zip(again, gradients):
            assert g.dtype == dtype
            torch.testing.assert_close(g.double(), e, rtol=tolerance, atol=tolerance * e.abs().max())
        assert all(map(torch.equal, torch.autograd.grad(got, inputs, u.to(dtype)), again))
        with torch.no_grad():
            assert torch.equal(ours(*inputs, target, chunk, **options), got)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_bytes_of_cross_entropy(reduction, dtype):
    """On the same logits: integers, whose products are exact in any order, also under transforms."""
    x, w, b = ((t * 2).round().to(dtype) for t in (X, W, B))
    for target in TARGETS.values():
        for options in ({}, {k: v for k, v in ALL.items() if k != "weight"}):
            expected = composition(x, w, b, target, reduction=reduction, **options)
            call = lambda x: ours(x, w, b, target, reduction=reduction, **options)
            assert torch.equal(call(x), expected)
            assert torch.equal(call(x.clone().requires_grad_()), expected)
            assert torch.equal(func.vjp(call, x)[0], expected)
            if dtype == torch.float32:
                t = tuple(map(torch.Tensor.numpy, target)) if isinstance(target, tuple) else target.numpy()
                options = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
                got = se.linear_cross_entropy(x.numpy(), w.numpy(), t, bias=b.numpy(), reduction=reduction, **options)
                same_bytes(expected, np.asarray(got))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("need", itertools.product((False, True), repeat=3))
def test_only_what_requires_a_gradient(need, reduction, monkeypatch):
    """TRL 7076: dW was computed for a head that is not trained."""
    inputs = [t.clone().requires_grad_(n) for t, n in zip((X, W, B), need)]
    everything = leaves(X, W, B)
    expected = torch.autograd.grad(ours(*everything, T, reduction=reduction).sum(), everything)
    if not need[1]:
        for name in ("add_product", "add_products"):
            monkeypatch.setattr(_linear_sweeps, name, lambda *_: pytest.fail("dW was computed"))
    loss = ours(*inputs, T, reduction=reduction).sum()
    assert loss.requires_grad == any(need)
    if any(need):
        loss.backward()
    for t, e, n in zip(inputs, expected, need):
        assert torch.equal(t.grad, e) if n else t.grad is None


def test_the_package_function():
    everything = leaves(X, W, B)
    loss = ours(*everything, T, info=("lse",))
    expected = torch.autograd.grad(loss[0], everything)
    got = se.linear_cross_entropy_with_grad(X, W, T, bias=B, chunk_size=3, info=("lse",))
    assert torch.equal(got[0], loss[0]) and torch.equal(got[4]["lse"], loss[1]["lse"])
    assert all(map(torch.equal, got[1:4], expected))
    assert torch.equal(se.linear_cross_entropy(X, W, T, bias=B, chunk_size=3), loss[0])
    buffer = torch.ones(V, D, dtype=f64)
    assert se.linear_cross_entropy_with_grad(X, W, T, need="w", out_dw=buffer)[2] is buffer
    torch.testing.assert_close(buffer, 1 + se.linear_cross_entropy_with_grad(X, W, T)[2])
    buffer = torch.ones(V, D)
    se.linear_cross_entropy_with_grad(X.bfloat16(), W.bfloat16(), T, need="w", out_dw=buffer)
    torch.testing.assert_close(buffer - 1, se.linear_cross_entropy_with_grad(X, W, T)[2].float(), rtol=0.05, atol=0.01)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("target", TARGETS)
def test_weights_of_16_bits_by_blocks_of_classes(target, options, dtype, monkeypatch):
    """Their gradient is added up in float32 as far as there is room, and beyond that comes from logits made once more: that of
    float32 throughout, but for its rounding. float16's of one number is float32 until backward, with room for all."""
    classes, options = 5001, dict(OPTIONS[options])
    x, w, b = normal(N, D, dtype=dtype), normal(classes, D, seed=1, dtype=dtype), normal(classes, seed=2, dtype=dtype)
    of = {"index": T, "probabilities": normal(N, classes, seed=4).softmax(1), "pairs": TARGETS["pairs"]}[target]
    if "weight" in options:
        options["weight"] = normal(classes, seed=6).exp()
    x, w, b = leaves(x, w, b)
    called = []
    by_classes = _linear_sweeps.by_classes
    monkeypatch.setattr(_linear_sweeps, "by_classes", lambda *a: called.append(a[-1]) or by_classes(*a))
    # a chunk's logits lie in dW's memory in the first two, in the others beside it, alone, with some sums or with all
    for chunk_size, share in ((1, 0), (2, 1), (5, 1), (1, 4), (2, 1000)):
        monkeypatch.setattr(_linear_sweeps, "layout", lambda *a, share=share: _linear_products.layout(*a[:5], share))
        loss = ours(x, w, b, of, chunk_size=chunk_size, **options)
        found = torch.autograd.grad(loss.sum(), (x, w, b))
        wide = leaves(x, w, b)
        expected = torch.autograd.grad(ours(*(t.float() for t in wide), of, chunk_size=N, **options).sum(), wide)
        for got, exact in zip(found, expected):
            assert got.dtype == dtype
            error = (got.float() - exact.float()).abs().max() / exact.float().abs().max()
            assert error < (2e-2 if dtype == torch.bfloat16 else 2e-3), error
    if dtype == torch.bfloat16:  # classes that had room
        assert called == [1664, 1665, 2500, 5000]
    else:
        assert called == ([832, 2500, 2500] if loss.ndim else [])


@pytest.mark.parametrize("share", [0, 1, 16, 40, 600, 5000])
@pytest.mark.parametrize("given", [0, 1, 20, 300])
@pytest.mark.parametrize("width", [0, 1, 3, 100, 800])
@pytest.mark.parametrize("dtype, work", [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)], ids=str)
def test_sums_and_logits_in_the_memory_of_a_result(dtype, work, width, given, share):
    """Neither lies in the other; beside the result is not more than the share, or a chunk's logits; and the sums are rounded
    where they lie, a block at a time, also where a block and its sums overlap."""
    classes, rows = 1501, 2000
    result = torch.empty(classes, width, dtype=dtype)
    sums, logits = _linear_products.layout(result, torch.float32, work, given, rows, share)
    assert logits.shape[1] == classes and logits.dtype == work and len(logits) == (given or len(logits)) > 0
    assert all(of.shape[1] == width and of.dtype == torch.float32 for of in sums)
    held = sum(map(len, sums))
    assert held <= classes
    memory = [(t.data_ptr(), t.data_ptr() + t.numel() * t.element_size()) for t in (*sums, logits, result) if t.numel()]
    within = [r for r in memory if width and memory[-1][0] <= r[0] and r[1] <= memory[-1][1]]
    beside = sum(last - first for first, last in memory) - sum(last - first for first, last in within)
    assert beside <= max(share, len(logits) if logits.data_ptr() not in [r[0] for r in within] else 0) * classes * work.itemsize
    expected = [normal(*of.shape, seed=k, dtype=torch.float32) for k, of in enumerate(sums)]
    logits.fill_(7)
    for of, values in zip(sums, expected):
        of.copy_(values)
    assert torch.equal(logits, torch.full_like(logits, 7)) and all(map(torch.equal, sums, expected))
    assert _linear_products.rounded(sums, result, dtype) is result
    assert torch.equal(result[:held], torch.cat(expected).to(dtype))


def test_a_chunk_size_bounds_what_is_beside_the_result(monkeypatch):
    """Also the sums: not more than the logits of so many tokens."""
    shares = []
    layout = lambda *a: shares.append(a[5]) or _linear_products.layout(*a)
    monkeypatch.setattr(_linear_sweeps, "layout", layout)
    x, w = leaves(normal(600, 16, dtype=torch.bfloat16), normal(9000, 16, seed=1, dtype=torch.bfloat16))
    for size in (3, 50, 400, None):
        st.linear_cross_entropy(x, w, torch.arange(600), chunk_size=size)
    assert shares == [3, 50, 116, 116]


def test_room_that_is_there_is_used():
    """Of a chunk's logits and sums: with 4.75 % of the logits of few tokens for some classes, of many for all."""
    result = torch.empty(32000, 512, dtype=torch.bfloat16)
    for rows, tokens, held in ((4096, 256, 11800), (65536, 512, 32000)):
        sums, logits = _linear_products.layout(result, torch.float32, torch.bfloat16, 0, rows, rows * 3 // 100)
        assert len(logits) == tokens and held <= sum(map(len, sums))


def test_ignored_rows_are_not_read():
    """pytorch 11551: NaN in an ignored row made every gradient NaN."""
    x = X.clone()
    x[2] = float("nan")
    for reduction in ("mean", "none"):
        got, expected = leaves(x, W, B), leaves(X, W, B)
        ours(*got, T, reduction=reduction).sum().backward()
        ours(*expected, T, reduction=reduction).sum().backward()
        assert all(torch.equal(g.grad, e.grad) for g, e in zip(got, expected)) and not got[0].grad[2].any()

@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("options", OPTIONS)
def test_where_rows_cannot_be_counted(kind, options, monkeypatch):
    """As on CUDA devices, where to look would be to wait: ignored rows go through the products, as zeros."""
    found = []
    for waits in (False, True):
        for module in (_linear_functions, _linear_sweeps):
            monkeypatch.setattr(module, "waits", lambda t, waits=waits: waits)
        x, w, b = leaves(X, W, B)
        with torch.no_grad():
            x[2] = float("nan") if kind == "index" else 1.0
        loss = ours(x, w, b, TARGETS[kind], **OPTIONS[options])
        first = torch.autograd.grad(loss.sum(), (x, w, b), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), (x, w, b))
        found.append([loss, *first, *second])
    for a, c in zip(*found):
        assert torch.isfinite(a).all()
        torch.testing.assert_close(c, a, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("chunk", [None, 1])
def test_products_meet_no_subnormal_gradients(chunk, monkeypatch):
    """Some CPUs take a hundred cycles for each. In one chunk, and, of 16 bits, with most classes in a second sweep."""
    monkeypatch.setattr(_linear_sweeps, "layout", lambda *a: _linear_products.layout(*a[:5], 0))
    for dtype in (torch.float32, torch.bfloat16):
        x, w = torch.ones(2, 1, dtype=dtype), torch.zeros(100, 1, dtype=dtype)
        w[1::2], w[98] = -90, -80
        st.linear_cross_entropy(x, w.requires_grad_(), torch.tensor([98, 98]), reduction="sum", chunk_size=chunk).backward()
        assert w.grad[98] == -2 and (w.grad[1::2] == 0).all() and (w.grad[:98:2] > 0.03).all()


def test_mean_over_several_calls():
    """transformers 34191: with accumulated gradients the mean was normalised in each call, and again."""
    whole, parts = leaves(X, W, B), leaves(X, W, B)
    ours(*whole, T).backward()
    for rows in (slice(0, 3), slice(3, N)):
        ours(parts[0][rows], *parts[1:], T[rows], denominator=(T != -100).sum()).backward()
    for a, b in zip(whole, parts):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, f64])
def test_products_of_blocks_of_classes(dtype, biased):
    """More classes than one product has of a chunk's logits, the last block a part, and weights with gaps between rows."""
    classes, width = 256 * torch.get_num_threads() * 2 + 700, 300
    x, w = normal(40, width, dtype=dtype), normal(classes, 2 * width, seed=1, dtype=dtype)[:, :width]
    b = normal(classes, seed=2, dtype=dtype) if biased else None
    assert len(_linear_products.blocks_of_product(w)) > 2
    out = torch.empty(40, classes, dtype=dtype)
    _linear_products.product(x, w, b, out)
    torch.testing.assert_close(out, torch.nn.functional.linear(x, w, b))
    target = torch.randint(0, classes, (40,))
    inputs, peers = leaves(x, w), leaves(x, w)
    loss = st.linear_cross_entropy(*inputs, target, linear_bias=b, chunk_size=16)
    peer = torch.nn.functional.cross_entropy(torch.nn.functional.linear(*peers, b), target)
    loss.backward(), peer.backward()
    torch.testing.assert_close(loss, peer)
    for t, p in zip(inputs, peers):
        torch.testing.assert_close(t.grad, p.grad)


def test_no_classes_of_16_bits():
    """Which has nothing to divide into parts."""
    x, w = normal(4, 3, dtype=torch.bfloat16).requires_grad_(), torch.zeros(0, 3, dtype=torch.bfloat16, requires_grad=True)
    st.linear_cross_entropy(x, w, torch.zeros(4, 0), reduction="sum", chunk_size=2).backward()
    assert w.grad.shape == (0, 3)


def test_sums_of_16_bits():
    """Loss and dW are added up in float32: in bfloat16 a sum of 4,096 ones stops at 256."""
    x, w = torch.ones(4096, 1, dtype=torch.bfloat16), torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    loss = st.linear_cross_entropy(x, w, torch.zeros(4096, dtype=torch.int64), reduction="sum", chunk_size=16)
    loss.backward()
    assert abs(loss.double() - 4096 * torch.tensor(2.0).log()) <= 8  # half a unit in the last place
    assert w.grad.tolist() == [[-2048.0], [2048.0]]


# -- second derivatives and transforms ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("target", TARGETS)
def test_derivatives(target, options):
    if target != "index" and options not in ("all mean", "all none"):
        pytest.skip("the same code")
    inputs = leaves(X, W, B)
    call = lambda *inputs: ours(*inputs, TARGETS[target], **OPTIONS[options])
    assert torch.autograd.gradcheck(call, inputs, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, inputs, check_fwd_over_rev=True, check_rev_over_rev=True, fast_mode=True)


def test_third_derivatives_raise():
    (x,) = leaves(X)
    (first,) = torch.autograd.grad(ours(x, W, B, T), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="linear_cross_entropy: a third derivative, accepted: up to the second"):
        torch.autograd.grad(second.square().sum(), x)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_transforms(reduction):
    call = lambda w: ours(X, w, B, T, reduction=reduction)
    expected = lambda w: composition(X, w, B, T, reduction=reduction)
    for transform in (
        func.grad, func.jacfwd, func.hessian, lambda f: func.jacrev(func.jacrev(f)), lambda f: func.jacrev(func.jacfwd(f)),
        lambda f: func.jacfwd(func.jacfwd(f)),
    ):  # fmt: skip
        torch.testing.assert_close(transform(call)(W), transform(expected)(W))
    batch = normal(2, V, D, seed=8)
    torch.testing.assert_close(func.vmap(call)(batch), func.vmap(expected)(batch))
    torch.testing.assert_close(func.vmap(func.grad(call))(batch), func.vmap(func.grad(expected))(batch))
    rows = lambda x, t: ours(x, W, B, t, reduction="none")
    torch.testing.assert_close(func.vmap(rows)(normal(2, N, D), torch.stack([T, T.flip(0)])),
                               torch.stack([rows(x, t) for x, t in zip(normal(2, N, D), (T, T.flip(0)))]))


@pytest.mark.parametrize("target", ["index", "probabilities"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_batches_of_gradients(reduction, target):
    """is_grads_batched, as in vectorized Jacobians and Hessians, which keep their graph."""
    F, given = torch.autograd.functional, (X[:3], W, B)
    index, options = TARGETS[target][:3], {"reduction": reduction, "label_smoothing": 0.1}
    calls = [lambda *t, f=f: f(*t, index, **options) for f in (ours, composition)]
    for more in ({}, {"create_graph": True}):
        for forward in ({}, {"strategy": "forward-mode"})[: 2 - len(more)]:
            torch.testing.assert_close(*(F.jacobian(f, given, vectorize=True, **forward, **more) for f in calls))
        for forward in ({}, {"outer_jacobian_strategy": "forward-mode"})[: 2 - len(more)]:
            sums = [lambda *t, f=f: f(*t).sin().sum() for f in calls]
            torch.testing.assert_close(*(F.hessian(f, given, vectorize=True, **forward, **more) for f in sums))
    second = []
    for f in calls:
        inputs = tuple(leaves(*given))
        made = F.jacobian(f, inputs, vectorize=True, create_graph=True)
        second.append(torch.autograd.grad(sum(t.sin().sum() for t in made), inputs))
    torch.testing.assert_close(*second)


def test_forward_mode_under_no_grad_records_nothing():
    x, w = leaves(X, W)
    for reduction in ("mean", "none"):
        change = lambda f: func.jvp(lambda x: f(x, w, B, T, reduction=reduction), (x,), (X.cos(),))
        with torch.no_grad():
            got, expected = change(ours), change(composition)
        torch.testing.assert_close(got, expected)
        assert not any(t.requires_grad for t in got)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_under_a_default_device(device):
    """Which is a mode that sees torch's functions; what is made on the way is where the tensors are."""

    def twice(f, x):
        (x,) = leaves(x)
        return torch.autograd.grad(torch.autograd.grad(f(x), x, create_graph=True)[0].sin().sum(), x)

    def dual(f, x):
        with torch.autograd.forward_ad.dual_level():
            return torch.autograd.forward_ad.unpack_dual(f(torch.autograd.forward_ad.make_dual(x, x.cos()))).tangent

    for change in (twice, dual, torch.no_grad()(dual), lambda f, x: func.hessian(f)(x), lambda f, x: func.vmap(f)(x[None])):
        with torch.device(device):
            got = change(lambda x: ours(x, W, B, T), X)
        torch.testing.assert_close(got, change(lambda x: composition(x, W, B, T), X))


def test_gradients_as_results_refuse_tangents():
    """They are of plain numbers: a tangent would be lost."""
    with torch.autograd.forward_ad.dual_level():
        x = torch.autograd.forward_ad.make_dual(X, X)
        with pytest.raises(NotImplementedError, match="linear_cross_entropy_with_grad: tensors of a transform, accepted"):
            se.linear_cross_entropy_with_grad(x, W, T)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("target", TARGETS)
def test_compiled(target, reduction):
    def program(x, w, b):
        return ours(x * 2, w, b, TARGETS[target], reduction=reduction, label_smoothing=0.1)

    torch._dynamo.reset()
    got, expected = leaves(X, W, B), leaves(X, W, B)
    compiled = torch.compile(program, fullgraph=True, backend="aot_eager")
    a, b = compiled(*got), program(*expected)
    assert torch.equal(a, b)
    a.sum().backward()
    b.sum().backward()
    assert all(torch.equal(g.grad, e.grad) for g, e in zip(got, expected))


# -- targets and weights, and what else is told ---------------------------------------------------------------------------


def with_weights(function, target, **options):
    """(a function of x, w, b, the floating part of the target if it has one, class weights and token weights; these)"""
    y = target[1] if isinstance(target, tuple) else target
    smooth = [y] if y.is_floating_point() else []

    def call(x, w, b, *rest):
        *share, weight, token_weight = rest
        given = (target[0], share[0]) if isinstance(target, tuple) else share[0] if share else target
        return function(x, w, b, given, weight=weight, token_weight=token_weight, **options)

    return call, [X, W, B, *smooth, ALL["weight"], ALL["token_weight"]]


MORE = {n: ALL[n] for n in ("label_smoothing", "z_loss", "softcap", "temperature")}
REDUCED = {"mean": {}, "sum": {"reduction": "sum"}, "none": {"reduction": "none"}, "denominator": {"denominator": 5.0}}


@pytest.mark.parametrize("more", [{}, MORE], ids=["plain", "all"])
@pytest.mark.parametrize("reduced", REDUCED)
@pytest.mark.parametrize("target", TARGETS)
def test_derivatives_in_targets_and_weights(target, reduced, more):
    call, given = with_weights(ours, TARGETS[target], **REDUCED[reduced], **more)
    whole_logits, _ = with_weights(composition, TARGETS[target], **REDUCED[reduced], **more)
    inputs, wide = leaves(*given), leaves(*given)
    loss, expected = call(*inputs), whole_logits(*wide)
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=1e-13)
    u = torch.rand_like(expected)
    exact = torch.autograd.grad(expected, wide, u)
    torch.testing.assert_close(torch.autograd.grad(loss, inputs, u), exact, rtol=1e-12, atol=1e-13)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch._dynamo.reset()
    torch.testing.assert_close(torch.autograd.grad(compiled(*inputs), inputs, u), exact, rtol=1e-12, atol=1e-13)
    assert torch.autograd.gradcheck(call, inputs, check_forward_ad=True, fast_mode=True)
    if more or reduced == "mean":
        assert torch.autograd.gradgradcheck(call, inputs, check_fwd_over_rev=True, check_rev_over_rev=True, fast_mode=True)


def test_transforms_in_targets_and_weights():
    for target in TARGETS.values():
        (call, given), (expected, _) = (with_weights(f, target, **MORE) for f in (ours, composition))
        of = tuple(range(3, len(given)))
        torch.testing.assert_close(func.grad(call, of)(*given), func.grad(expected, of)(*given))
        along = tuple(normal(*t.shape, seed=30 + k) for k, t in enumerate(given))
        once = lambda f: lambda *t: func.jvp(f, t, along)[1]
        for change in (once, lambda f: once(once(f)), lambda f: func.grad(once(f), of), lambda f: once(func.grad(f, of))):
            torch.testing.assert_close(change(call)(*given), change(expected)(*given))
        batch = [torch.stack([t, t.flip(0)]) for t in given]
        torch.testing.assert_close(func.vmap(func.grad(call, of))(*batch), func.vmap(func.grad(expected, of))(*batch))


def test_only_the_gradients_in_targets_and_weights_that_are_needed(monkeypatch):
    call, given = with_weights(ours, TARGETS["probabilities"])
    everything = leaves(*given)
    exact = torch.autograd.grad(call(*everything), everything)
    for name in ("add_product", "add_products"):
        monkeypatch.setattr(_linear_sweeps, name, lambda *_: pytest.fail("dW was computed"))
    for k in (3, 4, 5):
        inputs = [t.clone().requires_grad_(i == k) for i, t in enumerate(given)]
        torch.testing.assert_close(torch.autograd.grad(call(*inputs), inputs[k])[0], exact[k], rtol=1e-12, atol=1e-15)


def test_ignored_rows_have_no_gradient_in_weights():
    x = X.clone()
    x[2] = float("nan")
    for target in (T, (torch.stack([T, T.flip(0)], 1).index_fill(0, torch.tensor(2), -100), TARGETS["pairs"][1])):
        call, given = with_weights(ours, target)
        inputs = leaves(x, *given[1:])
        found = torch.autograd.grad(call(*inputs), inputs)
        assert all(t.isfinite().all() for t in found) and found[-1][2] == 0
        pair = isinstance(target, tuple)
        ignored = torch.full_like(target[0] if pair else target, -100)
        call, _ = with_weights(ours, (ignored, target[1]) if pair else ignored, on_empty="zero")
        assert not any(t.any() for t in torch.autograd.grad(call(*inputs), inputs))


def test_derivatives_in_weights_of_positions():
    inputs = leaves(X, WS, BS, ALL_MANY["weight"], ALL_MANY["token_weight"])
    wide = leaves(*inputs)
    for target, options in itertools.product(MANY.values(), ({}, {"reduction": "none"}, {"denominator": 9.0})):
        call = lambda f, x, w, b, c, t: f(x, w, b, target, weight=c, token_weight=t, **options)
        got, expected = call(ours, *inputs).sum(), call(whole, *wide).sum()
        found, exact = torch.autograd.grad(got, inputs), torch.autograd.grad(expected, wide)
        torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-13)
    call = lambda *t: ours(*t[:3], MANY["index"], weight=t[3], token_weight=t[4])
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


def test_gradients_of_targets_and_weights_are_refused_where_there_are_none():
    for name in ("weight", "token_weight"):
        given = {name: ALL[name].clone().requires_grad_()}
        with pytest.raises(NotImplementedError, match=f"^linear_cross_entropy_with_grad: {name} requires a gradient, accepted"):
            se.linear_cross_entropy_with_grad(X, W, T, **given)


INFO = ("lse", "log_prob", "entropy", "z_loss", "predicted", "correct")


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("target", TARGETS)
def test_info(target, reduction):
    """Of the logits that the loss is of, under every transform; not differentiated."""
    x, w, b = ((t * 2).round() for t in (X, W, B))  # integers, whose products are exact
    options = {**MORE, "reduction": reduction, "info": INFO}
    loss, expected = composition(x, w, b, TARGETS[target], **options)
    call = lambda x: ours(x, w, b, TARGETS[target], **options)
    total = lambda x: (lambda loss, found: (loss.sum(), (loss, found)))(*call(x))
    torch._dynamo.reset()
    for way in (
        call, torch.compile(call, fullgraph=True, backend="aot_eager"), lambda x: call(x.clone().requires_grad_()),
        lambda x: torch.compile(call, fullgraph=True, backend="aot_eager")(x.clone().requires_grad_()),
        lambda x: func.grad(total, has_aux=True)(x)[1], lambda x: func.vjp(total, x, has_aux=True)[2],
        lambda x: func.jvp(total, (x,), (x,), has_aux=True)[2],
    ):  # fmt: skip
        again, found = way(x)
        assert torch.equal(again, loss) and list(found) == list(INFO)
        for name in INFO:
            assert found[name].dtype == expected[name].dtype and not found[name].requires_grad
            assert torch.equal(found[name], expected[name]), name
    each = [call(a) for a in (x, x.flip(0))]
    for way in (func.vmap(call), torch.no_grad()(func.vmap(call))):
        again, found = way(torch.stack([x, x.flip(0)]))
        assert torch.equal(again, torch.stack([a for a, _ in each]))
        assert all(torch.equal(found[n], torch.stack([f[n] for _, f in each])) for n in INFO)
    gradients, (_, found) = func.vmap(func.grad(total, has_aux=True))(torch.stack([x, x.flip(0)]))
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(gradients[0], torch.autograd.grad(call(leaf)[0].sum(), leaf)[0], rtol=1e-12, atol=1e-13)
    assert torch.equal(found["lse"][1], each[1][1]["lse"])


def test_info_is_compiled_only_as_asked():
    torch._dynamo.reset()
    call = torch.compile(lambda x: ours(x, W, B, T, info=("correct",)), fullgraph=True, backend="aot_eager", dynamic=True)
    for x in (X, normal(N, D, seed=20)):
        found = call(x)[1]
        assert list(found) == ["correct"] and torch.equal(found["correct"], ours(x, W, B, T, info="correct")[1]["correct"])


def test_batches_of_targets():
    targets = torch.stack([T, T.flip(0), T * 0])
    call = lambda t: ours(X, W, B, t, info=("predicted",))
    for size in (3, 0):
        loss, found = func.vmap(call)(targets[:size])
        assert loss.shape == (size,) and found["predicted"].shape == (size, N)
        assert all(torch.equal(a, call(t)[0]) for a, t in zip(loss, targets))
    for bad in (func.vmap(call), torch.no_grad()(func.vmap(call))):
        with pytest.raises(ValueError, match="^linear_cross_entropy: target is 5 for row 0, accepted: indices from 0"):
            bad(torch.full_like(targets, 5))


def test_a_loss_under_no_grad_within_a_transform():
    def scaled(x):
        with torch.no_grad():
            loss = ours(x, W, B, T)
        return loss * x.sum()

    assert torch.equal(func.grad(scaled)(X), ours(X, W, B, T) * torch.ones_like(X))


def test_exported():
    layer = st.nn.LinearCrossEntropyLoss(D, V, bias=True, dtype=f64, ignore_index=1)
    program = torch.export.export(layer, (X, T.clamp(min=0)))
    assert "sumexp.linear_cross_entropy" in str(program.graph)
    assert torch.equal(program.module()(X, T.clamp(min=0)), layer(X, T.clamp(min=0)))


def test_module():
    torch.manual_seed(0)
    layer = st.nn.LinearCrossEntropyLoss(D, V, bias=True, dtype=f64, label_smoothing=0.1, z_loss=0.1)
    peer = torch.nn.LinearCrossEntropyLoss(D, V, bias=True, dtype=f64, label_smoothing=0.1)
    peer.load_state_dict(layer.state_dict())
    logits = layer.linear(X)[T >= 0]
    torch.testing.assert_close(layer(X, T), peer(X, T) + 0.1 * logits.logsumexp(1).square().mean())
    layer = st.nn.LinearCrossEntropyLoss(D, V, out_features=(2, 3), bias=True, dtype=f64)
    peer = torch.nn.LinearCrossEntropyLoss(D, V, out_features=(2, 3), bias=True, dtype=f64)
    peer.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(X, MANY["index"]), peer(X, MANY["index"]))


# -- losses of several positions ---------------------------------------------------------------------------------------------

WS, BS = normal(V, 2, 3, D, seed=11), normal(V, 2, 3, seed=12)
MANY = {
    "index": torch.randint(0, V, (N, 2, 3), generator=torch.Generator().manual_seed(13)).index_fill(0, torch.tensor(2), -100),
    "probabilities": normal(N, V, 2, 3, seed=14).softmax(1),
}
MANY["pairs"] = torch.stack([MANY["index"], MANY["index"].flip(0)], -1), normal(N, 2, 3, 2, seed=15).exp()
ALL_MANY = {**ALL, "token_weight": normal(N, 2, 3, seed=16).exp()}
OPTIONS_MANY = {
    "mean": {}, "sum": {"reduction": "sum"}, "none": {"reduction": "none"}, "denominator": {"denominator": 9.0},
    "all mean": ALL_MANY, "all none": {**ALL_MANY, "reduction": "none"},
}  # fmt: skip


def whole(x, w, b, target, **options):
    """Of linear_weight (C, d1, ..., D), as torch.nn.functional.linear_cross_entropy says it."""
    return st.cross_entropy(torch.einsum("nd,c...d->nc...", x, w) + b, target, **options)


@pytest.mark.parametrize("options", OPTIONS_MANY)
@pytest.mark.parametrize("target", MANY)
def test_positions(target, options):
    inputs, wide = leaves(X, WS, BS), leaves(X, WS, BS)
    expected = whole(*wide, MANY[target], **OPTIONS_MANY[options])
    loss = ours(*inputs, MANY[target], **OPTIONS_MANY[options])
    assert loss.shape == expected.shape and loss.dtype == f64
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=1e-13)
    u = torch.rand_like(expected)
    for g, e in zip(torch.autograd.grad(loss, inputs, u), torch.autograd.grad(expected, wide, u)):
        torch.testing.assert_close(g, e, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(ours(X, WS, BS, MANY[target], **OPTIONS_MANY[options]), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_positions_as_torch(dtype):
    for target in ("index", "probabilities"):
        for weight in (None, ALL["weight"].to(dtype)):
            args, options = [t.to(dtype) for t in (X, WS)], {"linear_bias": BS.to(dtype), "weight": weight}
            label = MANY[target] if target == "index" else MANY[target].to(dtype)
            expected = torch.nn.functional.linear_cross_entropy(*args, label, **options)
            got = st.linear_cross_entropy(*args, label, **options)
            assert got.dtype == expected.dtype
            torch.testing.assert_close(got, expected, rtol=0.02 if dtype.itemsize == 2 else 1e-5, atol=0)


def test_positions_info_bytes_and_empty():
    x, w, b = ((t * 2).round().float() for t in (X, WS, BS))
    keywords = {"reduction": "none", "info": ("lse", "predicted")}
    got, expected = ours(x, w, b, MANY["index"], **keywords), whole(x, w, b, MANY["index"], **keywords)
    assert torch.equal(got[0], expected[0])  # of integers, whose products are exact
    assert got[1].keys() == expected[1].keys() and all(torch.equal(got[1][n], expected[1][n]) for n in got[1])
    ignored = torch.full_like(MANY["index"], -100)
    assert ours(X, WS, BS, ignored).isnan() and ours(X, WS, BS, ignored, on_empty="zero") == 0
    nothing = X, WS[:, :0], BS[:, :0], MANY["index"][:, :0]
    assert ours(*nothing).isnan() and ours(*nothing, reduction="sum") == 0
    assert ours(*nothing, reduction="none").shape == (N, 0, 3)
    for reduction in ("none", "sum", "mean"):
        for k in range(3):
            given = [t.clone().requires_grad_(i == k) for i, t in enumerate(nothing[:3])]
            (found,) = torch.autograd.grad(ours(*given, nothing[3], reduction=reduction).sum(), given[k])
            assert found.shape == given[k].shape and not found.nan_to_num().any()


def test_derivatives_of_positions():
    for target, options in (("index", "all mean"), ("pairs", "all none")):
        inputs = leaves(X, WS, BS)
        call = lambda *inputs: ours(*inputs, MANY[target], **OPTIONS_MANY[options])
        assert torch.autograd.gradcheck(call, inputs, check_forward_ad=True, fast_mode=True)
        assert torch.autograd.gradgradcheck(call, inputs, check_fwd_over_rev=True, check_rev_over_rev=True, fast_mode=True)
    call = lambda w: ours(X, w, BS, MANY["index"], weight=ALL["weight"])
    expected = lambda w: whole(X, w, BS, MANY["index"], weight=ALL["weight"])
    torch.testing.assert_close(func.grad(call)(WS), func.grad(expected)(WS))
    batch = normal(2, *WS.shape, seed=17)
    torch.testing.assert_close(func.vmap(func.grad(call))(batch), func.vmap(func.grad(expected))(batch))


def test_compiled_positions():
    torch._dynamo.reset()
    program = lambda x, w, b: ours(x, w, b, MANY["index"], weight=ALL["weight"])
    got, expected = leaves(X, WS, BS), leaves(X, WS, BS)
    a, b = torch.compile(program, fullgraph=True, backend="aot_eager")(*got), program(*expected)
    torch.testing.assert_close(a, b, rtol=1e-14, atol=0)
    a.backward()
    b.backward()
    for g, e in zip(got, expected):
        torch.testing.assert_close(g.grad, e.grad, rtol=1e-13, atol=1e-15)


def test_options_of_torch():
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=2)
    expected = torch.nn.functional.linear_cross_entropy(X, W, T)
    torch.testing.assert_close(st.linear_cross_entropy(X, W, T, options=options), expected)
    torch.testing.assert_close(st.linear_cross_entropy(X[0], W, T[0]), torch.nn.functional.linear_cross_entropy(X[0], W, T[0]))


def test_autocast():
    """Products in bfloat16, the loss as wide as the input: as torch's linear and cross_entropy."""
    x, w, b = (t.float() for t in (X, W, B))
    with torch.autocast("cpu", torch.bfloat16):
        logits = torch.nn.functional.linear(x, w, b)
        expected = torch.nn.functional.cross_entropy(logits, T)
        for call in (ours, torch.compile(ours, backend="aot_eager")):
            (leaf,) = leaves(x)
            loss = call(leaf, w, b, T)
            assert loss.dtype == expected.dtype == torch.float32
            torch.testing.assert_close(loss, expected)
    loss.backward()
    assert leaf.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_has_torchs_dtypes(cast, dtype):
    inputs, peers = leaves(*(t.to(dtype) for t in (X, W, B))), leaves(*(t.to(dtype) for t in (X, W, B)))
    with torch.autocast("cpu", cast):
        loss = ours(*inputs, T)
        expected = torch.nn.functional.linear_cross_entropy(*peers[:2], T, linear_bias=peers[2])
        alone = se.linear_cross_entropy_with_grad(*inputs[:2], T, bias=inputs[2])
    assert loss.dtype == expected.dtype == alone[0].dtype == (f64 if dtype == f64 else torch.float32)
    exact = dtype == f64
    torch.testing.assert_close(loss, expected, rtol=1e-13 if exact else 0.02, atol=0)
    loss.backward()
    expected.backward()
    for t, e, g in zip(inputs, peers, alone[1:]):
        assert t.grad.dtype == e.grad.dtype == g.dtype == dtype
        for found in (t.grad, g):
            torch.testing.assert_close(found, e.grad, rtol=1e-12 if exact else 0.05, atol=1e-13 if exact else 0.02)


# -- memory -------------------------------------------------------------------------------------------------------------


MEMORY = """
import sys, torch, sumexp.torch as st
dtype, n, d, v = getattr(torch, sys.argv[1]), 4096, 128, 32000
# as a layer begins: with logits 20 times as large, most gradients are subnormal, and each product of some CPUs takes minutes
x, w = ((torch.randn(rows, d) * scale).to(dtype).requires_grad_() for rows, scale in ((n, 1), (v, d**-0.5)))
t = torch.randint(0, v, (n,))
def status(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
st.linear_cross_entropy(x, w, t).backward()  # what libraries keep of their first products is made now
x.grad = w.grad = None
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak is counted from here on
before = status("VmRSS")
st.linear_cross_entropy(x, w, t).backward()
gradients = x.numel() + w.numel()
print(((status("VmHWM") - before) / x.element_size() - gradients) / (n * v))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of a process is read from /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory(dtype):
    """Beside the gradients, less than 5 % of 4,096 x 32,000 logits exist at a time, forward and backward together.

    Every array is mapped by itself and unmapped when it is freed: nothing is counted that the allocator keeps, or has kept.
    """
    exact = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    run = subprocess.run([sys.executable, "-c", MEMORY, dtype], env=exact, capture_output=True, text=True, check=True)
    assert 0.02 < float(run.stdout) < 0.05, run.stdout  # below, a chunk of logits itself would not be counted


# -- errors -------------------------------------------------------------------------------------------------------------


ERRORS = {
    "weight": ((X, W[0], T), {}, ValueError, r"linear_weight has shape \(3,\), accepted: \(C, D\) or"),
    "many": ((X, WS, T), {}, ValueError, r"target has shape \(7,\), accepted: \(7, 2, 3\)"),
    "many of one": ((X[0], WS, T[0]), {}, ValueError, r"input has shape \(3,\), accepted: \(N, 3\)"),
    "many biases": ((X, WS, MANY["index"]), {"linear_bias": B}, ValueError, r"linear_bias has shape .*\(5, 2, 3\)"),
    "many ranges": ((X, WS, MANY["index"].abs()), {}, ValueError, "target is 100 for row 12, accepted"),
    "input": ((X[:, 1:], W, T), {}, ValueError, r"input has shape \(7, 2\), accepted: \(..., 3\), as of linear_weight"),
    "dtype": ((X, W.float(), T), {}, TypeError, "linear_weight has dtype torch.float32, accepted: torch.float64"),
    "bias": ((X, W, T), {"linear_bias": B[1:]}, ValueError, r"linear_bias has shape \(4,\), accepted: \(5,\)"),
    "target": ((X, W, T[1:]), {}, ValueError, r"target has shape \(6,\), accepted: \(7,\)"),
    "range": ((X, W, T.abs()), {}, ValueError, "target is 100 for row 2, accepted: indices from 0 below 5, and -100"),
    "chunk": ((X, W, T), {"chunk_size": 0}, ValueError, "chunk_size is 0, accepted: an int from 1, or None"),
    "meta": ((X.to("meta"), W.to("meta"), T.to("meta")), {}, TypeError, "on meta, accepted: plain tensors on the CPU"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    args, options, kind, message = ERRORS[case]
    with pytest.raises(kind, match="^linear_cross_entropy: .*" + message):
        st.linear_cross_entropy(*args, **options)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("classes, chunk", [(1000, None), (1000, 512), (3, None)])
def test_a_loss_scale_reaches_float16(compiled, classes, chunk):
    """A mean over many tokens has gradients below float16's range; what backward is given brings them back."""
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(8192, 16, generator=generator).half(), (torch.randn(classes, 16, generator=generator) * 0.05).half()
    b, target = torch.zeros(classes, dtype=torch.float16), torch.randint(classes, (8192,), generator=generator)
    leaves = [t.requires_grad_() for t in (x, w, b)]
    wide = [t.detach().double().requires_grad_() for t in leaves]
    (torch.nn.functional.cross_entropy(wide[0] @ wide[1].T + wide[2], target) * 32768).backward()

    def head(x, w, b):
        options = {} if chunk is None else {"chunk_size": chunk}
        return st.linear_cross_entropy(x, w, target, linear_bias=b, **options)

    loss = (torch.compile(head, backend="aot_eager") if compiled else head)(*leaves)
    (loss * 32768).backward()
    for made, want in zip(leaves, wide):
        assert made.grad.dtype == torch.float16
        assert (made.grad.double() - want.grad).norm() < 5e-4 * want.grad.norm()
