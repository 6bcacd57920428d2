"""sumexp.torch without gradients: values, bytes, layouts, dtypes, errors, fallbacks."""

import warnings

import pytest

import sumexp as se

torch = pytest.importorskip("torch")
import sumexp.torch as st  # noqa: E402
from sumexp.torch import _front, _kernels  # noqa: E402
from torch_cases import NAMES, X, same_bytes  # noqa: E402

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

LAYOUTS = {
    "contiguous": X,
    "channels_last": X.to(memory_format=torch.channels_last),
    "transposed": X.permute(2, 0, 3, 1),
    "sliced": X[::2, :, 1::3],
    "expanded": X[:, :1].expand(4, 3, 6, 5),
    "no rows": X[:0],
    "0-d": X[0, 0, 0, 0],
    "one row": X[:1, :1, :1],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_every_dim_as_torch(name, layout):
    x = LAYOUTS[layout]
    for dim in range(-x.dim() or -1, x.dim() or 1):
        got, want = getattr(st, name)(x, dim), getattr(torch, name)(x, dim)
        torch.testing.assert_close(got, want)
        assert got.shape == want.shape and got.stride() == want.stride()
        if name == "logsumexp":
            kept = st.logsumexp(x, dim, keepdim=True)
            assert kept.shape == torch.logsumexp(x, dim, keepdim=True).shape
            same_bytes(kept.reshape(got.shape), got.numpy())
        same_bytes(got, getattr(se, name)(x.numpy(), dim))


@pytest.mark.parametrize("name", NAMES)
def test_empty_rows(name):
    x = torch.empty(3, 0)
    assert torch.equal(getattr(st, name)(x, 1), getattr(torch, name)(x, 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_dtypes(name, dtype):
    x = X.reshape(-1, 90).to(dtype)
    got = getattr(st, name)(x, -1)
    assert got.dtype == dtype
    exact = getattr(torch, name)(x.double(), -1)
    # The promise: 2 ulp, 0.51 ulp for the 16-bit types; an ulp of the result or, for logsumexp, the maximum.
    scale = torch.maximum(exact.abs(), x.double().amax(-1).abs()) if name == "logsumexp" else exact.abs()
    bits = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24, torch.float64: 53}[dtype]
    lowest = {torch.float16: -14, torch.bfloat16: -126, torch.float32: -126, torch.float64: -1022}[dtype]
    ulp = torch.ldexp(torch.ones_like(scale), torch.frexp(scale).exponent.clamp(min=lowest + 1) - bits)
    allowed = {2: 0.511, 4: 2, 8: 200}[x.element_size()]  # torch's float64 is no oracle for float64
    assert ((got.double() - exact).abs() / ulp).max() <= allowed
    if dtype != torch.bfloat16:
        same_bytes(got, getattr(se, name)(x.numpy(), -1))


def test_dtype_argument():
    x = X.half()
    assert torch.equal(st.softmax(x, -1, dtype=torch.float64), st.softmax(x.double(), -1))
    assert torch.equal(st.log_softmax(x, -1, 3, torch.float32), st.log_softmax(x.float(), -1))
    assert torch.equal(st.softmax(torch.arange(5), 0, dtype=torch.float64), st.softmax(torch.arange(5.0).double(), 0))


def test_implicit_dim_warns_as_torch_does():
    for x in (X, X[0], X[0, 0], X[0, 0, 0]):
        with pytest.warns(UserWarning, match="Implicit dimension") as caught:
            got = st.softmax(x)
        assert caught[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.testing.assert_close(got, torch.nn.functional.softmax(x))
            torch.testing.assert_close(st.nn.LogSoftmax()(x), torch.nn.LogSoftmax()(x))


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("dim", [(0, 1), (-1, 0), (1, 2, 3), [2]])
def test_logsumexp_over_several_dims(dim, keepdim):
    got, want = st.logsumexp(X, dim, keepdim), torch.logsumexp(X, dim, keepdim)
    torch.testing.assert_close(got, want)
    assert got.stride() == want.stride()
    same_bytes(got, se.logsumexp(X.numpy(), tuple(dim), keepdims=keepdim))


def test_temperature():
    for T in (0.5, 2):
        same_bytes(st.softmax(X, 1, temperature=T), se.softmax(X.numpy(), 1, temperature=T))
        torch.testing.assert_close(st.log_softmax(X, 1, temperature=T), torch.log_softmax(X / T, 1))
    for bad in (0, -1.0, float("nan"), -float("inf")):
        with pytest.raises(ValueError, match="temperature"):
            st.softmax(X, 1, temperature=bad)
        with pytest.raises(ValueError, match="temperature"):
            st.softmax(X.clone().requires_grad_(), 1, temperature=bad)
    with pytest.raises(TypeError, match="temperature"):
        st.softmax(X, 1, temperature=torch.ones((), requires_grad=True))


@pytest.mark.parametrize("name", NAMES)
def test_errors_are_torchs(name):
    ours, torchs = getattr(st, name), getattr(torch, name)
    for x, dim in ((X, 4), (X, -5), (X[0, 0, 0, 0], 1)):
        for leaf in (x, x.clone().requires_grad_()):
            with pytest.raises(IndexError, match="out of range"):
                ours(leaf, dim)
    if name == "logsumexp":
        assert torch.equal(ours(X.cfloat(), 0), torchs(X.cfloat(), 0))
        torch.testing.assert_close(ours(torch.arange(5), 0), torchs(torch.arange(5), 0))
        with pytest.raises(RuntimeError, match="twice"):
            ours(X, (0, 0))
    else:
        for x in (torch.arange(5), X > 0, X.cfloat()):
            with pytest.raises(NotImplementedError, match="not implemented for"):
                ours(x, -1)


@pytest.mark.parametrize("name", NAMES)
def test_lazy_negation(name):
    z = torch.complex(X, X)
    x = torch.imag(z.conj())
    assert x.is_neg()
    for call in (getattr(st, name), getattr(torch.ops.sumexp, name)):
        same_bytes(call(x, (1,)) if call is getattr(torch.ops.sumexp, name) else call(x, 1), getattr(se, name)(-X.numpy(), 1))
    leaf = x.detach().clone().requires_grad_()
    g = torch.randn(getattr(st, name)(X, 1).shape)
    (want,) = torch.autograd.grad(getattr(st, name)(leaf, 1), leaf, g)
    negated = torch.imag(torch.complex(g, -g).conj())  # the gradient itself is a negated view
    assert negated.is_neg()
    torch.testing.assert_close(torch.autograd.grad(getattr(st, name)(leaf, 1), leaf, negated)[0], want)


class Subclass(torch.Tensor):
    seen = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(getattr(func, "__name__", str(func)))
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("name", NAMES)
def test_subclasses_get_torchs_functions(name):
    x = X.as_subclass(Subclass)
    Subclass.seen.clear()
    got = getattr(st, name)(x, -1)
    assert name in Subclass.seen and isinstance(got, Subclass)
    torch.testing.assert_close(got.as_subclass(torch.Tensor), getattr(torch, name)(X, -1))


def test_other_layouts_get_torchs_functions():
    sparse = torch.eye(3).to_sparse()
    torch.testing.assert_close(torch.sparse.softmax(sparse, 1).to_dense(), torch.eye(3))
    for call in (st.softmax, torch.nn.functional.softmax):
        with pytest.raises((NotImplementedError, RuntimeError)):
            call(sparse, 1)
    nested = torch.nested.nested_tensor([X[0, 0], X[0, 0, :2]])
    for a, b in zip(st.softmax(nested, -1).unbind(), torch.softmax(nested, -1).unbind()):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_meta_and_fake(name):
    from torch._subclasses.fake_tensor import FakeTensorMode

    for x in (X, X.permute(3, 1, 0, 2)):
        want = getattr(torch, name)(x, 1)
        got = getattr(st, name)(x.to("meta"), 1)
        assert got.is_meta and (got.shape, got.stride(), got.dtype) == (want.shape, want.stride(), want.dtype)
        with FakeTensorMode() as mode:
            fake = mode.from_tensor(x)
            got = getattr(st, name)(fake, 1)
            assert type(got) is type(fake) and (got.shape, got.stride()) == (want.shape, want.stride())
        got = getattr(st, name)(fake, 1)  # outside of the mode
        assert type(got) is type(fake) and (got.shape, got.stride()) == (want.shape, want.stride())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_cpu_autocast_leaves_these_alone_as_torch_does(dtype):
    x = X.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for name in NAMES:
            assert getattr(st, name)(x, -1).dtype == getattr(torch, name)(x, -1).dtype == dtype


def test_modes_see_the_operation():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Log(TorchDispatchMode):
        seen = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Log():
        st.softmax(X, -1)
    assert Log.seen == ["sumexp.softmax.default"]
    with torch.device("cpu"), torch.inference_mode():
        same_bytes(st.softmax(X, -1), se.softmax(X.numpy(), -1))


def test_modules():
    for ours, theirs in ((st.nn.Softmax(dim=1), torch.nn.Softmax(dim=1)), (st.nn.LogSoftmax(1), torch.nn.LogSoftmax(1)),
                         (st.nn.Softmax2d(), torch.nn.Softmax2d())):
        torch.testing.assert_close(ours(X), theirs(X))
        assert isinstance(ours, type(theirs)) and repr(ours) == repr(theirs)
    with pytest.raises(ValueError):
        st.nn.Softmax2d()(X[0, 0])


def test_annotations():
    import inspect

    forwards = [layer.forward for layer in (st.nn.Softmax, st.nn.LogSoftmax, st.nn.Softmax2d)]
    for f in (st.softmax, st.log_softmax, st.logsumexp, *forwards):
        signature = inspect.signature(f)
        assert signature.return_annotation is torch.Tensor
        assert all(p.annotation is not p.empty for n, p in signature.parameters.items() if n != "self")


def test_devices_that_are_not_served():
    """A TypeError, not torch's numbers; meta tensors have none and give shapes."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        far = [torch.empty(2, 3, device="xpu")]
        if "cuda" not in _kernels.DEVICES:
            far.append(torch.empty(2, 3, device="cuda"))
        for x in far:
            for call in (
                lambda: st.softmax(x, -1),
                lambda: st.log_softmax(x, -1, dtype=torch.float64),
                lambda: st.logsumexp(x, -1),
                lambda: se.softmax(x),
                lambda: se.logsumexp(x, b=x),
                lambda: se.softmax_vjp(x, x),
                lambda: se.softmax_jacobian(x),
            ):
                with pytest.raises(TypeError, match=f"(softmax|logsumexp).*: a tensor is on {x.device}, accepted: the CPU"):
                    call()
    assert st.softmax(torch.empty(2, 3, device="meta"), -1).shape == (2, 3)


def test_cuda_tensors_while_tracing(monkeypatch):
    """Shapes and devices of a build with CUDA, of which tracing needs no more."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    monkeypatch.setattr(_kernels, "DEVICES", {"cpu", "cuda"})
    monkeypatch.setattr(_front, "DEVICES", {"cpu", "cuda"})
    with FakeTensorMode():
        x = torch.empty(2, 3, device="cuda", dtype=torch.bfloat16)
        assert st.softmax(x, -1).device.type == "cuda" and st.logsumexp(x, 0).shape == (3,)
        assert st.log_softmax(x, -1, dtype=torch.float32).dtype is torch.float32


def test_autocast_on_cuda(monkeypatch):
    """float32 from 16-bit tensors, as torch's own functions there; an explicit dtype stays."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    monkeypatch.setattr(_kernels, "DEVICES", {"cpu", "cuda"})
    monkeypatch.setattr(_front, "DEVICES", {"cpu", "cuda"})
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind == "cuda")
    with FakeTensorMode():
        x = torch.empty(2, 3, device="cuda", dtype=torch.bfloat16)
        for call in (lambda: st.softmax(x, -1), lambda: st.logsumexp(x, -1), lambda: se.log_softmax(x)):
            assert call().dtype is torch.float32
        assert st.softmax(x, -1, dtype=torch.bfloat16).dtype is torch.bfloat16
        assert st.softmax(x.cpu(), -1).dtype is torch.bfloat16 and st.softmax(x.double(), -1).dtype is torch.float64


def test_logsumexp_takes_numpys_names():
    x = X.double()
    for dim in (0, (0, 1), [-1], ()):
        want = torch.logsumexp(x, axis=dim, keepdims=True)
        assert want.shape == st.logsumexp(x, axis=dim, keepdims=True).shape
        torch.testing.assert_close(st.logsumexp(x, axis=dim, keepdims=True), want)
        assert torch.equal(st.logsumexp(x, axis=dim), st.logsumexp(x, dim))
        assert torch.equal(st.logsumexp(x, dim, keepdims=True), st.logsumexp(x, dim, True))
    for wrong in ({}, {"dim": 0, "axis": 0}, {"dim": 0, "keepdim": True, "keepdims": True}, {"axis": None}):
        with pytest.raises(TypeError, match="logsumexp"):
            st.logsumexp(x, **wrong)
        with pytest.raises(TypeError):
            torch.logsumexp(x, **wrong)
