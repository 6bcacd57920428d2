"""The private names of torch that sumexp.torch relies on: that they are there, and mean what they are used for.

When this file fails after an update of torch, the failing test names what to replace in
python/sumexp/torch/_private.py.
"""

import pytest

torch = pytest.importorskip("torch")
_private = pytest.importorskip("sumexp.torch._private")


@pytest.mark.parametrize("name", _private.NAMES)
def test_is_there(name):
    module, path = _private.NAMES[name]
    assert _private.find(module, path) is not None, f"{module}.{path} went away"


def test_functorch_active():
    seen = []
    torch.func.vmap(lambda x: seen.append(_private.functorch_active()) or x)(torch.ones(2))
    assert seen == [True] and _private.functorch_active() is False


def test_forward_level():
    assert _private.forward_ad._current_level == -1
    with torch.autograd.forward_ad.dual_level():
        assert _private.forward_ad._current_level == 0
    seen = []
    torch.func.jvp(lambda x: seen.append(_private.forward_ad._current_level) or x, (torch.ones(2),), (torch.ones(2),))
    assert seen == [0]


def test_mode_counts_and_tracing():
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.overrides import TorchFunctionMode

    assert (_private.dispatch_mode_count(), _private.function_mode_count()) == (0, 0)
    with FakeTensorMode():
        assert _private.dispatch_mode_count() == 1
    with TorchFunctionMode():
        assert _private.function_mode_count() == 1
    seen = []
    torch.jit.trace(lambda x: seen.append(_private.is_tracing()) or x + 1, torch.ones(2), check_trace=False)
    assert seen == [True] and not _private.is_tracing()


def test_what_a_ctx_remembers():
    class Two(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            y = x.detach().clone()
            ctx.to_save, ctx.materialize_grads = (y,), False
            return y, y.detach()

        @staticmethod
        def backward(ctx, g, g_other):
            assert g_other is None
            return g * ctx.saved_tensors[0]

    x = torch.full((3,), 2.0, requires_grad=True)
    Two.apply(x)[0].sum().backward()
    assert x.grad.tolist() == [2, 2, 2]


def test_empty_strided_cpu():
    made = _private.empty_strided_cpu((2, 3), (3, 1), torch.float16)
    like = torch.empty(2, 3, dtype=torch.float16)
    for x in (made, like):
        assert (x.shape, x.stride(), x.dtype) == ((2, 3), (3, 1), torch.float16)
        assert x.device == torch.device("cpu") and not x.requires_grad
        assert x.untyped_storage().nbytes() == 12 and x.untyped_storage().resizable() and not x.is_inference()
    with torch.inference_mode():
        assert _private.empty_strided_cpu((2,), (1,), torch.float32).is_inference()


def test_legacy_batched():
    x = torch.ones(3, requires_grad=True)
    seen = []
    y = x * 1
    y.register_hook(lambda g: seen.append(_private.is_legacy_batched(g)))
    torch.autograd.grad(y, x, torch.eye(3), is_grads_batched=True)
    torch.autograd.gradcheck(lambda x: x * 2, torch.ones(1, dtype=torch.float64, requires_grad=True), check_batched_grad=True)
    assert len(seen) == 1 and not _private.is_legacy_batched(x)


def test_a_missing_name_is_named(monkeypatch):
    monkeypatch.setitem(_private.NAMES, "gone", ("torch._C", "_no_such_name"))
    with pytest.raises(ImportError, match=r"torch\._C\._no_such_name"):
        _private._load()
