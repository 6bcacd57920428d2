"""sumexp.torch under torch.autograd: reverse, forward and second order, hooks, checkpoints, saved tensors."""

import gc
import weakref

import pytest

torch = pytest.importorskip("torch")
import torch.autograd.forward_ad as forward_ad  # noqa: E402
from torch.autograd import gradcheck, gradgradcheck  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import sumexp as se  # noqa: E402
import sumexp.torch as st  # noqa: E402
from sumexp import _core  # noqa: E402

X = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
CASES = {
    "softmax": (lambda x: st.softmax(x, -1), lambda x: torch.softmax(x, -1)),
    "softmax dim 0": (lambda x: st.softmax(x, 0), lambda x: torch.softmax(x, 0)),
    "softmax T": (lambda x: st.softmax(x, 1, temperature=0.7), lambda x: torch.softmax(x / 0.7, 1)),
    "log_softmax": (lambda x: st.log_softmax(x, -1), lambda x: torch.log_softmax(x, -1)),
    "log_softmax T": (lambda x: st.log_softmax(x, 1, temperature=3), lambda x: torch.log_softmax(x / 3, 1)),
    "logsumexp": (lambda x: st.logsumexp(x, -1), lambda x: torch.logsumexp(x, -1)),
    "logsumexp dims": (lambda x: st.logsumexp(x, (0, 2)), lambda x: torch.logsumexp(x, (0, 2))),
    "logsumexp keepdim": (lambda x: st.logsumexp(x, 1, True), lambda x: torch.logsumexp(x, 1, True)),
}
each_case = pytest.mark.parametrize("case", CASES)


def leaf(x=X):
    return x.detach().clone().requires_grad_()


@pytest.fixture
def kernels(monkeypatch):
    """The operations that reach the library, in order."""
    from sumexp.torch import _functions, _kernels

    ran = []
    names = list(_kernels.CODES)
    run = _core.run_tensors

    def spy(code, *args):
        ran.append(names[code])
        return run(code, *args)

    def spy_fast(ctx, x):
        results = _core.fast_forward(ctx, x)
        ran.append(ctx.call[0])
        return results

    monkeypatch.setattr(_kernels, "_run", spy)
    monkeypatch.setattr(_functions.SoftmaxFast, "forward", staticmethod(spy_fast))
    return ran


@each_case
def test_gradcheck(case):
    assert gradcheck(
        CASES[case][0],
        leaf(),
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
        check_undefined_grad=True,
    )


@each_case
def test_gradgradcheck(case):
    assert gradgradcheck(CASES[case][0], leaf(X[:, :2]), check_fwd_over_rev=True, check_batched_grad=True)


@pytest.mark.parametrize("functional", [True, False])
def test_the_winner_keeps_its_derivatives(functional):
    """First and second derivatives of log_softmax where its probability is 1 to all digits, in every mode and mixture."""
    x = torch.tensor([37.42994775023705, 0.0], dtype=torch.float64)
    lost = torch.exp(-x[0])
    matrix = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64) * lost

    def f(x):
        return st.log_softmax(x, -1)[0]

    if functional:
        func = torch.func
        first = [func.grad(f)(x), func.jacrev(f)(x), func.jacfwd(f)(x)]
        second = [a(b(f))(x) for a in (func.jacrev, func.jacfwd) for b in (func.jacrev, func.jacfwd)]
    else:
        leaf_x = leaf(x)
        first = torch.autograd.grad(f(leaf_x), leaf_x, create_graph=True)
        second = [torch.stack([torch.autograd.grad(d, leaf_x, retain_graph=True)[0] for d in first[0]])]
        second.append(torch.autograd.functional.hessian(f, x, vectorize=True))
    for gradient in first:
        torch.testing.assert_close(gradient.detach(), matrix[0], rtol=1e-12, atol=0)
    for hessian in second:
        torch.testing.assert_close(hessian, -matrix, rtol=1e-12, atol=0)


def test_the_written_out_formulas_keep_the_winner():
    """They give what the kernels give, where a probability is 1 to all digits and where none is."""
    from sumexp.torch import _formulas

    x = torch.tensor([[37.42994775023705, 0.0, -3.0], [0.3, 0.2, -1.0]], dtype=torch.float64)
    g, v, y = X[0, :2, :3], X[1, :2, 1:], st.log_softmax(x, -1)
    for name, tensors in (("log_softmax_vjp", (g, y)), ("log_softmax_jvp", (g, y)), ("log_softmax_hvp", (g, v, y))):
        got, want = getattr(_formulas, name)(*tensors, [-1], 0.7), getattr(se, name)(*tensors, temperature=0.7)
        torch.testing.assert_close(got, want, rtol=1e-13, atol=0)


@pytest.mark.parametrize("case", ["softmax T", "log_softmax T", "logsumexp"])
def test_third_order(case):
    f = CASES[case][0]

    def gradient(x):
        y = f(x)
        weights = torch.arange(1.0, 1 + y.numel(), dtype=x.dtype).reshape(y.shape)
        return torch.autograd.grad((y * weights).sum(), x, create_graph=True)[0]

    assert gradgradcheck(gradient, leaf(X[0, :, :3]), check_fwd_over_rev=True)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1, 1)])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_degenerate_shapes(name, shape):
    x, r = leaf(torch.ones(shape)), leaf(torch.ones(shape))
    y, want = getattr(st, name)(x, -1), getattr(torch, name)(r, -1)
    g = torch.randn_like(want)
    (dx,), (dr,) = torch.autograd.grad(y, x, g, create_graph=True), torch.autograd.grad(want, r, g, create_graph=True)
    torch.testing.assert_close(dx, dr)
    if x.numel():
        torch.testing.assert_close(torch.autograd.grad(dx.sum(), x)[0], torch.zeros(shape))


@each_case
def test_layouts_of_inputs_and_gradients(case):
    ours, theirs = CASES[case]
    for x in (X, X.transpose(0, 2), X[:, ::2], X[:, :1].expand(2, 3, 4), X.float(), X.bfloat16(), X.half()):
        a, b = leaf(x), leaf(x)
        y, want = ours(a), theirs(b)
        for g in (torch.ones((), dtype=x.dtype).expand(y.shape), torch.randn(y.shape).to(x.dtype).mT.contiguous().mT
                  if y.dim() > 1 else torch.randn(y.shape).to(x.dtype)):
            (da,) = torch.autograd.grad(y, a, g, retain_graph=True)
            (db,) = torch.autograd.grad(want, b, g, retain_graph=True)
            # torch's 16-bit gradients are rounded in other places: compare loosely there
            torch.testing.assert_close(da, db, **({"rtol": 2e-2, "atol": 4e-2} if x.element_size() == 2 else {}))
        y.sum().backward()
        assert a.grad.shape == a.shape and a.grad.stride() == a.stride()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_gradient_is_the_numpy_faces(dtype):
    import numpy as np

    x = leaf(torch.randn(5, 130).to(dtype))
    g = torch.randn(5, 130).to(dtype)
    for name in ("softmax", "log_softmax"):
        y = getattr(st, name)(x, -1)
        (dx,) = torch.autograd.grad(y, x, g)
        assert torch.equal(dx, getattr(se, name + "_vjp")(g, y.detach()))
        if dtype != torch.bfloat16:
            want = getattr(se, name + "_vjp")(g.numpy(), y.detach().numpy())
            assert dx.numpy().tobytes() == np.asarray(want).tobytes()


def test_each_derivative_is_a_kernel(kernels):
    for name in ("softmax", "log_softmax"):
        x, g = leaf(), leaf(torch.randn_like(X))
        kernels.clear()
        (dx,) = torch.autograd.grad(getattr(st, name)(x, -1), x, g, create_graph=True)
        assert kernels == [name, f"{name}_vjp"]
        torch.autograd.grad(dx, (x, g), torch.randn_like(X))
        transposed = "softmax_vjp" if name == "softmax" else "log_softmax_jvp"
        assert sorted(kernels[2:]) == sorted([f"{name}_hvp", transposed])
        kernels.clear()
        with forward_ad.dual_level():  # forward over reverse
            y = getattr(st, name)(forward_ad.make_dual(x, torch.randn_like(X)), -1)
            (dx,) = torch.autograd.grad(y, x, torch.randn_like(X))
            assert forward_ad.unpack_dual(dx).tangent is not None
        assert kernels == [name, transposed, f"{name}_vjp", f"{name}_hvp"]
    x = leaf()
    kernels.clear()
    (dx,) = torch.autograd.grad(st.logsumexp(x, -1).sum(), x, create_graph=True)
    assert kernels == ["logsumexp", "logsumexp_vjp"]
    torch.autograd.grad(dx, x, torch.randn_like(X))
    assert kernels[2:] == ["softmax", "softmax_vjp"]
    with forward_ad.dual_level():
        kernels.clear()
        st.logsumexp(forward_ad.make_dual(X, X), -1)
        assert kernels == ["logsumexp", "logsumexp_jvp"]


@each_case
def test_duals(case):
    ours, theirs = CASES[case]
    t = torch.randn_like(X)
    with forward_ad.dual_level():
        got, want = (forward_ad.unpack_dual(f(forward_ad.make_dual(X, t))) for f in (ours, theirs))
        torch.testing.assert_close(got.primal, want.primal)
        torch.testing.assert_close(got.tangent, want.tangent)
        assert forward_ad.unpack_dual(ours(X)).tangent is None
        with torch.no_grad():
            torch.testing.assert_close(forward_ad.unpack_dual(ours(forward_ad.make_dual(X, t))).tangent, want.tangent)
        # reverse over forward; the reference by torch.func, as torch's own refuses (its tangent is changed in place)
        x = leaf()
        weights = torch.randn_like(want.tangent)
        tangent = forward_ad.unpack_dual(ours(forward_ad.make_dual(x, t))).tangent
        (dx,) = torch.autograd.grad((tangent * weights).sum(), x)
    want = torch.func.grad(lambda x: (torch.func.jvp(theirs, (x,), (t,))[1] * weights).sum())(X)
    torch.testing.assert_close(dx, want)


@each_case
def test_checkpoint_hooks_and_retained_graphs(case):
    f = CASES[case][0]
    x = leaf()
    (want,) = torch.autograd.grad(f(x).sin().sum(), x)
    for reentrant in (False, True):
        y = checkpoint(lambda x: f(x).sin(), x, use_reentrant=reentrant).sum()
        y.backward()
        torch.testing.assert_close(x.grad, want)
        x.grad = None
    y = f(x)
    seen = []
    y.register_hook(lambda g: seen.append(g) or g * 2)
    y.sin().sum().backward(retain_graph=True)
    torch.testing.assert_close(x.grad, want * 2)
    y.sin().sum().backward()
    torch.testing.assert_close(x.grad, want * 4)
    assert len(seen) == 2
    with pytest.raises(RuntimeError, match="second time|freed"):
        y.sin().sum().backward()


@each_case
def test_saved_tensors(case):
    f = CASES[case][0]
    x = leaf()
    packed = []

    def pack(t):
        packed.append(t.shape)
        return t.detach().clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = f(x)
    assert packed == [x.shape]  # one tensor, as in torch
    (want,) = torch.autograd.grad(f(x).sum(), x)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], want)
    with torch.autograd.graph.save_on_cpu():
        torch.testing.assert_close(torch.autograd.grad(f(x).sum(), x)[0], want)


def test_memory():
    # softmax keeps its result, not its argument, and frees it with the graph
    x = leaf()
    for f in (st.softmax, st.log_softmax):
        argument = x * 2
        watch = weakref.ref(argument)
        y = f(argument, -1)
        del argument
        gc.collect()
        assert watch() is None
        watch = weakref.ref(y.grad_fn)
        del y
        assert watch() is None  # without the garbage collector: there is no cycle


@pytest.mark.parametrize("f", [st.softmax, st.log_softmax])
def test_changing_the_result_in_place_is_noticed(f):
    x = leaf()
    y = f(x, -1)
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    y = f(x, -1)
    with torch.no_grad():
        y.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_grad_modes():
    x = leaf()
    for f in (st.softmax, st.log_softmax, st.logsumexp):
        with torch.no_grad():
            assert not f(x, -1).requires_grad
        with torch.inference_mode():
            assert f(x, -1).is_inference()
        assert f(x, -1).requires_grad and not f(x.detach(), -1).requires_grad
        parameter = torch.nn.Parameter(X.clone())
        f(parameter, -1).sum().backward()
        assert parameter.grad is not None
        with torch.autograd.detect_anomaly(check_nan=True):
            f(x, -1).sum().backward()


def test_calls_within_a_call():
    # from a finalizer, which may run before the forward of the call that is being recorded, and from a hook, after it
    inner, outer, within = leaf(X[:2]), leaf(), []

    @torch.enable_grad()
    def call_within():
        y = st.log_softmax(inner, 0)
        within.append((y, torch.autograd.grad(y[0].sum(), inner, retain_graph=True)[0]))

    class Garbage:
        def __init__(self):
            self.cycle = self

        def __del__(self):
            if gc.get_threshold()[0] == 1:
                try:
                    call_within()
                finally:
                    Garbage()

    thresholds = gc.get_threshold()
    Garbage()
    gc.set_threshold(1)
    try:
        results = [st.softmax(outer, 1) for _ in range(100)]
    finally:
        gc.set_threshold(*thresholds)
    assert len(within) > 100
    packed = []

    def pack(t):
        packed.append(t)
        if len(packed) == 1:
            call_within()
        if len(packed) == 3:
            raise KeyError("pack")
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        results.append(st.softmax(outer, 1))
        with pytest.raises(KeyError, match="pack"):
            st.softmax(outer, 1)
    results.append(st.softmax(outer, 1))
    want = torch.softmax(outer, 1)
    (gradient,) = torch.autograd.grad(want[:, 0].sum(), outer)
    for y in results:
        torch.testing.assert_close(y, want)
        torch.testing.assert_close(torch.autograd.grad(y[:, 0].sum(), outer)[0], gradient)
    for y, gradient in within:
        torch.testing.assert_close(y, torch.log_softmax(inner, 0))
        torch.testing.assert_close(gradient, torch.autograd.grad(torch.log_softmax(inner, 0)[0].sum(), inner)[0])


def test_threads():
    from concurrent.futures import ThreadPoolExecutor

    def work(seed):
        # three shapes: the fast path keeps what the last call asked torch for
        x = torch.randn(64 + seed % 3, 33, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        (dx,) = torch.autograd.grad(st.log_softmax(x, -1)[:, 0].sum(), x)
        return dx

    with ThreadPoolExecutor(4) as pool:
        for seed, dx in enumerate(pool.map(work, range(16))):
            assert torch.equal(dx, work(seed))


def test_the_dtype_argument_is_differentiated():
    x = leaf(X.half())
    (dx,) = torch.autograd.grad(st.softmax(x, -1, dtype=torch.float32).square().sum(), x)
    r = leaf(X.half())
    (dr,) = torch.autograd.grad(torch.softmax(r, -1, dtype=torch.float32).square().sum(), r)
    assert dx.dtype == torch.float16
    torch.testing.assert_close(dx, dr)


def test_masks_of_the_package_are_differentiated():
    mask = torch.rand(X.shape) < 0.6
    mask[..., 0] = True
    for f in (se.softmax, se.logsumexp):
        assert gradcheck(lambda x: f(x, -1, where=mask), leaf(), check_forward_ad=True)
    assert gradcheck(lambda x: se.log_softmax(x, -1, where=mask)[..., 0], leaf(), check_forward_ad=True)
