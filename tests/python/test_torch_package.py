"""sumexp.softmax and the other functions of the package on torch tensors: values, out, the short way, errors."""

from functools import partial

import numpy as np
import pytest

import sumexp as se

torch = pytest.importorskip("torch")
from torch_cases import NAMES, X, same_bytes  # noqa: E402


def test_dispatch_forward():
    n = X.numpy()
    mask = X > -1
    for name in ("softmax", "log_softmax"):
        f = getattr(se, name)
        for axis in (-1, 0, (1, 2), None):
            same_bytes(f(X, axis), f(n, axis))
        same_bytes(f(X, 1, temperature=0.3, where=mask), f(n, 1, temperature=0.3, where=mask.numpy()))
        out = torch.empty_like(X)
        assert f(X, out=out) is out and torch.equal(out, f(X))
        with pytest.raises(ValueError, match="out has shape"):
            f(X, out=out[0])
        with pytest.raises(TypeError, match="out has dtype"):
            f(X, out=out.double())
        with pytest.raises(RuntimeError, match="out="):
            f(X.clone().requires_grad_(), out=out)
        same_bytes(f(X, out=X.clone()), f(n))
    for axis in (-1, (0, 2), None):
        for options in ({}, {"keepdims": True}, {"where": mask}):
            arrays = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
            same_bytes(se.logsumexp(X, axis, **options), np.asarray(se.logsumexp(n, axis, **arrays)))
    b = torch.linspace(-1, 2, 5)
    for got, want in zip(se.logsumexp(X, -1, b=b, return_sign=True), se.logsumexp(n, -1, b=b.numpy(), return_sign=True)):
        same_bytes(got, want)
    same_bytes(se.logsumexp(X, -1, b=b.abs()), se.logsumexp(n, -1, b=b.abs().numpy()))
    for got, want in zip(se.logsumexp(X, -1, return_sign=True), se.logsumexp(n, -1, return_sign=True)):
        same_bytes(got, want)
    x = X.clone().requires_grad_()
    se.logsumexp(x, -1, b=b.abs()).sum().backward()
    same_bytes(x.grad, se.logsumexp_vjp(torch.ones(X.shape[:-1]), X, -1, b=b.abs())[0])


def test_dispatch_derivatives():
    g, v = torch.randn(2, *X.shape).unbind()
    for name in ("softmax", "log_softmax"):
        y = getattr(se, name)(X)
        for f, args in ((f"{name}_vjp", (g, y)), (f"{name}_jvp", (g, y)), (f"{name}_hvp", (g, v, y))):
            call = getattr(se, f)
            same_bytes(call(*args), call(*(a.numpy() for a in args)))
            same_bytes(call(*args, axis=1, temperature=2.0), call(*(a.numpy() for a in args), axis=1, temperature=2.0))
            with pytest.raises(ValueError, match="shape"):
                call(args[0][0], *args[1:])
            with pytest.raises(TypeError, match="tensor"):
                call(args[0].numpy(), *args[1:])
    for axis in (None, 1, (0, -1)):
        for keep in (False, True):
            row = torch.randn(np.shape(se.logsumexp(X.numpy(), axis, keepdims=keep)))
            same_bytes(se.logsumexp_vjp(row, X, axis, keepdims=keep),
                       se.logsumexp_vjp(row.numpy(), X.numpy(), axis, keepdims=keep))
            same_bytes(se.logsumexp_jvp(g, X, axis, keepdims=keep),
                       np.asarray(se.logsumexp_jvp(g.numpy(), X.numpy(), axis, keepdims=keep)))


def test_dispatch_matrices():
    y, l = se.softmax(X), se.log_softmax(X)
    for f, a in ((se.softmax_jacobian, y), (se.log_softmax_jacobian, l), (se.logsumexp_hessian, X)):
        same_bytes(f(a), f(a.numpy()))
        leaf = a.double().requires_grad_()
        torch.testing.assert_close(f(leaf), f(a.double()))
        assert torch.autograd.gradcheck(f, leaf[0, 0].detach().requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_matrices_of_16_bits(dtype):
    """The NumPy functions' bytes; with gradients, and so from torch's formulas, float32 rounded once as well."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = X.to(dtype)
    for f, a in ((se.softmax_jacobian, se.softmax(x)), (se.log_softmax_jacobian, se.log_softmax(x)),
                 (se.logsumexp_hessian, x)):
        array = a.numpy() if dtype == torch.float16 else a.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        got = f(a)
        assert got.dtype == dtype
        same_bytes(got, f(array))
        leaf = a.clone().requires_grad_()
        recorded = f(leaf)
        assert recorded.dtype == dtype and recorded.requires_grad
        exact = f(a.double())
        half_ulp = torch.finfo(dtype).eps / 2 * exact.abs() + torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        assert ((recorded.double() - exact).abs() <= 1.01 * half_ulp + 1e-6 * exact.abs().amax()).all()
        recorded.float().sum().backward()
        assert leaf.grad.dtype == dtype


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_integers_and_bools_become_torchs_default_dtype(default):
    torch.set_default_dtype(default)
    try:
        for x in (torch.arange(6).reshape(2, 3), X > 0, torch.arange(4, dtype=torch.uint8)):
            for name in NAMES:
                f = getattr(se, name)
                same_bytes(f(x, -1), f(x.to(default).numpy(), -1))
                same_bytes(f(x, -1, where=x > 0), f(x.to(default).numpy(), -1, where=x.numpy() > 0))
            assert se.logsumexp(x, b=2).dtype == se.logsumexp_hessian(x).dtype == default
    finally:
        torch.set_default_dtype(torch.float32)


CALLS = {
    "softmax": lambda x, m, **o: se.softmax(x, where=m, **o),
    "log_softmax": lambda x, m, **o: se.log_softmax(x, 1, temperature=0.7, where=m, **o),
    "logsumexp": lambda x, m, **o: se.logsumexp(x, (0, -1), where=m, **o),
    "logsumexp, weights": lambda x, m, **o: se.logsumexp(x, 1, b=x * x, where=m, keepdims=True, **o),
    "softmax_vjp": lambda x, m, **o: se.softmax_vjp(x, x * 2, **o),
    "log_softmax_hvp": lambda x, m, **o: se.log_softmax_hvp(x, x, x, axis=0, **o),
    "logsumexp_vjp": lambda x, m, **o: se.logsumexp_vjp(x[:, 0], x, 1, **o),
    "logsumexp_jvp": lambda x, m, **o: se.logsumexp_jvp(x, x, (0, 1), **o),
}


def equal(a, b):
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(7), b.nan_to_num(7))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_out_and_where_make_no_copies(call, monkeypatch):
    x, m = X[::2, :, 1::3], (X > -1)[::2, :, 1::3]
    want = call(x, m)
    same_bytes(want, np.asarray(call(x.numpy(), m.numpy())))
    outs = [torch.empty(want.shape), torch.empty(tuple(reversed(want.shape))).permute(*reversed(range(want.dim()))),
            torch.empty((*want.shape, 2))[..., 1]]
    for name in ("copy_", "masked_fill"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_, **__: pytest.fail("a copy is made"))
    for out in outs:
        version = out._version
        assert call(x, m, out=out) is out and out._version > version
    call(x, m)
    monkeypatch.undo()
    assert all(equal(out, want) for out in outs)


@pytest.mark.parametrize("call", [CALLS["softmax"], CALLS["log_softmax"], CALLS["softmax_vjp"], CALLS["log_softmax_hvp"]])
def test_out_that_is_or_overlaps_an_argument(call):
    buffer = torch.randn(20)
    mask = torch.arange(12).reshape(3, 4) % 5 != 0
    for shift in (0, 1, 4):
        memory = buffer.clone()
        x, out = memory[:12].reshape(3, 4), memory[shift : shift + 12].reshape(3, 4)
        want = call(x.clone(), mask)
        assert call(x, mask, out=out) is out and torch.equal(out, want)
    square = torch.randn(4, 4)
    want = call(square.clone(), None)
    assert torch.equal(call(square, None, out=square.T), want) and torch.equal(square.T, want)
    a = np.random.default_rng(0).normal(size=13)  # one memory, two storages
    x, out = torch.from_numpy(a[:12]).reshape(3, 4), torch.from_numpy(a[1:]).reshape(3, 4)
    want = call(x.clone(), None)
    assert torch.equal(call(x, None, out=out), want)
    with pytest.raises(RuntimeError, match="single memory location"):
        call(x, None, out=torch.zeros(1, dtype=x.dtype).expand(3, 4))
    bits = torch.zeros(96, dtype=torch.bool)
    bits[:12] = True
    assert torch.equal(call(x, bits[:12].reshape(3, 4), out=bits.view(torch.float64).reshape(3, 4)), call(x, None))


def test_errors_leave_out_untouched():
    out = torch.full_like(X, 7)
    for options in ({"axis": 9}, {"temperature": 0}, {"where": X}, {"where": torch.ones(2, 2, dtype=torch.bool)}):
        with pytest.raises((TypeError, ValueError, IndexError)):
            se.softmax(X, out=out, **options)
    for bad, error in ((out.double(), TypeError), (out[0], ValueError), (out.numpy(), TypeError),
                       (out.to_sparse(), Exception)):
        with pytest.raises(error):
            se.softmax(X, out=bad)
    assert (out == 7).all()


def test_out_that_was_saved_for_backward():
    x = torch.ones(3, requires_grad=True)
    y = x.exp()
    with torch.no_grad():
        se.softmax(torch.ones(3), out=y)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_out_in_inference_mode():
    with torch.inference_mode():
        out = torch.empty(3)
        assert torch.equal(se.softmax(torch.ones(3), out=out), torch.full((3,), 1 / 3))
    with pytest.raises(RuntimeError, match="[Ii]nference"):
        se.softmax(torch.ones(3), out=out)


def test_out_with_lazy_negation():
    x = torch.imag(torch.complex(X, X).conj())
    out = torch.imag(torch.complex(X, X).conj())
    assert x.is_neg() and out.is_neg()
    assert equal(se.softmax(x, where=X > 0, out=out), se.softmax(-X, where=X > 0))


# name -> tensors, of the functions that have a short way for plain tensors (csrc/bindings/fast_path.cpp)
PLAIN = {"softmax": 1, "log_softmax": 1, "logsumexp": 1, "softmax_vjp": 2, "softmax_jvp": 2, "log_softmax_vjp": 2,
         "log_softmax_jvp": 2, "softmax_hvp": 3, "log_softmax_hvp": 3}  # fmt: skip
ODD = {
    "plain": lambda t: t,
    "negated": lambda t: torch._neg_view(-t),
    "transposed": lambda t: t.mT.contiguous().mT,
    "expanded": lambda t: t[:1].expand_as(t),
    "parameter": lambda t: torch.nn.Parameter(t, requires_grad=False),
}


def operands(name):
    y = torch.log_softmax(X, -1) if name.startswith("log_") else torch.softmax(X, -1)
    return [X] if PLAIN[name] == 1 else [X.sin(), X.cos()][: PLAIN[name] - 1] + [y]


def plain_calls(name):
    """The function with its options, one call each."""
    options = [{"keepdims": k} for k in (False, True)] if name == "logsumexp" else [{"temperature": T} for T in (1.0, 2, 0.5)]
    return [partial(getattr(se, name), axis=axis, **o) for axis in (0, 2, -1, -4, None) for o in options]


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", PLAIN)
def test_one_odd_tensor_among_plain_ones(name, odd):
    for k in range(PLAIN[name]):
        tensors = operands(name)
        tensors[k] = ODD[odd](tensors[k])
        arrays = [t.resolve_neg().detach().numpy() for t in tensors]
        for call in plain_calls(name):
            same_bytes(call(*tensors), np.asarray(call(*arrays)))


@pytest.mark.parametrize("odd", ["plain", "negated", "transposed", "parameter"])
@pytest.mark.parametrize("name", PLAIN)
def test_plain_tensors_and_an_odd_out(name, odd):
    for call in plain_calls(name):
        want = call(*operands(name))
        if odd == "transposed" and want.dim() < 2:
            continue
        out = ODD[odd](torch.full_like(want, 7))
        version = out._version
        assert call(*operands(name), out=out) is out and out._version > version
        same_bytes(out.resolve_neg().detach(), want.numpy())


@pytest.mark.parametrize("name", PLAIN)
def test_plain_tensors_and_an_out_in_their_memory(name):
    for call in plain_calls(name):
        want = call(*operands(name))
        for k in range(PLAIN[name]):
            for shift in (-1, 0, 1, -want.numel(), X.numel()):
                tensors = operands(name)
                memory = torch.zeros(X.numel() + 2 * want.numel())
                first = want.numel()
                tensors[k] = memory[first : first + X.numel()].view_as(X).copy_(tensors[k])
                out = memory[first + shift : first + shift + want.numel()].view(want.shape)
                call(*tensors, out=out)
                same_bytes(out, want.numpy())


@pytest.mark.parametrize("name", PLAIN)
def test_plain_tensors_take_the_short_way(name, monkeypatch):
    monkeypatch.setattr(se._slow_path, "call", lambda *_: pytest.fail("the long way is taken"))
    for call in plain_calls(name):
        tensors = operands(name)
        out = call(*tensors)
        call(*tensors, out=out)
        if out.shape == X.shape:
            call(*tensors, out=tensors[-1].clone())


@pytest.mark.parametrize("name", PLAIN)
def test_plain_tensors_and_an_out_that_does_not_fit(name):
    call = getattr(se, name)
    tensors = [t.bfloat16() for t in operands(name)]
    want = call(*tensors)
    for out, error in ((want.half(), TypeError), (want.float(), TypeError), (want.unsqueeze(0), ValueError),
                       (torch.zeros(7, dtype=want.dtype), ValueError), (want.clone().requires_grad_(), RuntimeError)):
        before = out.detach().clone()
        with pytest.raises(error, match=f"{name}: out"):
            call(*tensors, out=out)
        assert torch.equal(out, before)
    with torch.no_grad():
        leaf = torch.zeros_like(want).requires_grad_()
        assert call(*tensors, out=leaf) is leaf and torch.equal(leaf, want)


@pytest.mark.parametrize("name", PLAIN)
def test_one_recorded_tensor_among_plain_ones(name):
    for k in range(PLAIN[name]):
        tensors = operands(name)
        tensors[k] = tensors[k].clone().requires_grad_()
        y = getattr(se, name)(*tensors)
        assert y.requires_grad
        y.sum().backward()
        assert tensors[k].grad is not None
        with torch.no_grad():
            assert not getattr(se, name)(*tensors).requires_grad


@pytest.mark.parametrize("name", PLAIN)
def test_plain_tensors_under_a_mode(name):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Seen(TorchDispatchMode):
        ops = ()

        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            self.ops += (op.namespace,)
            return op(*args, **(kwargs or {}))

    with Seen() as seen:
        getattr(se, name)(*operands(name))
    assert "sumexp" in seen.ops


@pytest.mark.parametrize("name", PLAIN)
def test_plain_tensors_that_do_not_fit(name):
    call, tensors = getattr(se, name), operands(name)
    for axis in (4, -5, 1 << 70):
        with pytest.raises((IndexError, OverflowError)):
            call(*tensors, axis)
    for T in (0, -1.0, float("nan"), 1 << 2000) if name != "logsumexp" else ():
        with pytest.raises(ValueError, match=f"{name}: temperature is {T}, accepted"):
            call(*tensors, temperature=T)
    tensors = [t.bfloat16() for t in tensors]
    for k in range(PLAIN[name] - 1):
        for other in (tensors[k][:1], tensors[k].double(), tensors[k].half(), tensors[k].reshape(-1)):
            with pytest.raises(ValueError, match=f"{name}: [gvt] has shape"):
                call(*(other if i == k else t for i, t in enumerate(tensors)))


def test_tensors_of_two_devices():
    x, far = torch.ones(2, 3), torch.ones(2, 3, device="meta")
    for call, message in [
        (lambda: se.softmax_vjp(far, x), "softmax_vjp: g is on meta, accepted: cpu, where y is"),
        (lambda: se.softmax(x, out=far), "softmax: out is on meta, accepted: cpu"),
        (lambda: se.softmax(x, where=far.bool()), "softmax: where is on meta, accepted: cpu, where x is"),
        (lambda: se.logsumexp(x, b=far), "logsumexp: b is on meta, accepted: cpu, where x is"),
    ]:
        with pytest.raises(TypeError, match=message):
            call()


# -- lazily negated views ----------------------------------------------------------------------------------------

ROWS, FULL, WEIGHTS, CLASSES = X[0, 0, 0, :3], X[0, :, 0, :4], X[1, :, 0, :4].abs() + 0.5, torch.tensor([0, 1, 2])
NEGATED = {
    **{f"masked_{f}_vjp": (lambda g, x, bias, sink, f=f: getattr(se, f"masked_{f}_vjp")(g, x, bias=bias, sink=sink),
                           (ROWS if f == "logsumexp" else WEIGHTS, FULL, FULL.cos(), ROWS.sin())) for f in NAMES},
    **{f + "_vjp": (getattr(se, f + "_vjp"), (FULL, WEIGHTS, -WEIGHTS.sin())) for f in ("logaddexp", "logsubexp")},
    **{f + "_jvp": (getattr(se, f + "_jvp"), (FULL, FULL.cos(), WEIGHTS, -WEIGHTS.sin())) for f in ("logaddexp", "logsubexp")},
    **{f + "_vjp": (getattr(se, f + "_vjp"), (FULL, WEIGHTS)) for f in ("log1mexp", "softplus", "logcumsumexp")},
    "logcumsumexp_jvp": (se.logcumsumexp_jvp, (FULL, WEIGHTS)),
    "logsumexp_vjp, b": (lambda g, x, b: se.logsumexp_vjp(g, x, -1, b=b), (ROWS, FULL, WEIGHTS)),
    "logsumexp_jvp, b": (lambda t, x, b, t_b: se.logsumexp_jvp(t, x, -1, b=b, t_b=t_b),
                         (FULL, FULL.cos(), WEIGHTS, FULL.sin())),
    "entropy_vjp": (se.entropy_vjp, (ROWS, FULL)),
    "log_prob_vjp": (lambda g, x: se.log_prob_vjp(g, x, CLASSES), (ROWS, FULL)),
    "log_prob_and_entropy_vjp": (lambda g, h, x: se.log_prob_and_entropy_vjp((g, h), x, CLASSES), (ROWS, ROWS.cos(), FULL)),
    "kl_div_vjp": (se.kl_div_vjp, (ROWS, FULL, WEIGHTS)),
    "logmatmulexp_vjp": (se.logmatmulexp_vjp, (FULL[:, :3], FULL, WEIGHTS.T)),
    "logmatmulexp_jvp": (se.logmatmulexp_jvp, (FULL, WEIGHTS.T, FULL.cos(), FULL.T)),
    "cross_entropy_vjp": (lambda g, x, w, tokens: se.cross_entropy_vjp(g, x, CLASSES, weight=w, token_weight=tokens,
                                                                       reduction="none"), (ROWS, FULL, WEIGHTS[0], ROWS.cos())),
    "linear_cross_entropy_vjp": (lambda g, x, w, bias: se.linear_cross_entropy_vjp(g, x, w, CLASSES, bias=bias,
                                                                                   reduction="none"),
                                 (ROWS, FULL, WEIGHTS, ROWS.sin())),
    **{f"segment_{f}_vjp": (lambda g, y, f=f: getattr(se, f"segment_{f}_vjp")(g, y, offsets=[0, 2, 3]),
                            (FULL[:2] if f == "logsumexp" else WEIGHTS, FULL)) for f in NAMES},
    "LogSumExp.update": (lambda x, b: torch.as_tensor(se.LogSumExp().update(x, b=b).result()), (FULL, WEIGHTS)),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", NEGATED)
def test_a_negated_view_is_what_it_seems(name, dtype):
    """DLPack hands over memory, which has the other sign; so is z.conj().imag."""
    call, tensors = NEGATED[name]
    tensors = [t.to(dtype) for t in tensors]
    want = call(*tensors)
    for k, t in enumerate(tensors):
        made = call(*tensors[:k], torch._neg_view(-t), *tensors[k + 1 :])
        for a, b in zip(made, want) if isinstance(want, tuple) else ((made, want),):
            assert torch.equal(a, b), (name, k)


def test_a_negated_view_as_the_place_of_a_gradient():
    for call in (lambda out: se.cross_entropy_with_grad(FULL, CLASSES, out=out)[1],
                 lambda out: se.cross_entropy_vjp(0.3, FULL, CLASSES, out=out)):  # fmt: skip
        out = torch._neg_view(torch.zeros(3, 4))
        assert call(out) is out and torch.equal(out.resolve_neg(), call(torch.zeros(3, 4)))


def test_gradients_of_negated_views_under_a_mode():
    """The lists of a registered gradient's tensors arrive as they are."""
    from torch.utils._python_dispatch import TorchDispatchMode

    import sumexp.torch as st

    class Through(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            return op(*args, **(kwargs or {}))

    for call, given in (
        (lambda x, bias: st.masked_softmax(x, bias=bias), (FULL, WEIGHTS)),
        (st.logaddexp, (FULL, WEIGHTS)),
        (lambda x, b: se.logsumexp(x, -1, b=b), (FULL, WEIGHTS)),
        (st.kl_div, (FULL, WEIGHTS)),
        (lambda x: st.log_prob(x, CLASSES), (FULL,)),
        (lambda x, w: st.cross_entropy(x, CLASSES, w), (FULL, WEIGHTS[0])),
        (lambda x: st.segment_logsumexp(x, offsets=[0, 2, 3]), (FULL,)),
    ):

        def gradients(negated):
            leaves = [t.clone().requires_grad_() for t in given]
            seen = (lambda t: torch._neg_view(-t)) if negated else (lambda t: t)
            with Through():
                y = call(*map(seen, leaves))
                return torch.autograd.grad(y, leaves, seen(torch.linspace(-1, 2, y.numel()).view(y.shape)))

        assert all(map(torch.equal, gradients(True), gradients(False)))
