"""The private names of torch that sumexp.torch relies on: that they are there, and mean what they are used for.

When this file fails after an update of torch, the failing test names what to replace in
python/sumexp/torch/_private.py.
"""

import subprocess
import sys

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


def test_functorch_is_left_out_within_an_operation():
    seen = []
    is_out = lambda: seen.append(_private.is_excluded(_private.FUNCTORCH_KEY))
    library = torch.library.Library("sumexp_test_private", "DEF")
    library.define("look(Tensor x) -> Tensor")
    library.impl("look", lambda x: is_out() or x.clone(), "Autograd")
    torch.func.grad(lambda x: is_out() or torch.ops.sumexp_test_private.look(x).sum())(torch.ones(2))
    assert seen == [False, True]


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


WITHOUT = """
import builtins, sys, warnings
import torch, torch._decomp, torch._VF
import torch.nn.functional
gone, get = set(sys.argv[1:]), builtins.getattr

def without(value, name, *default):
    if name in gone and sys._getframe(1).f_globals.get("__name__") == "sumexp.torch._private":
        raise AttributeError(name)
    return get(value, name, *default)

builtins.getattr = without
import sumexp, sumexp.torch as st
from sumexp.torch import _private
builtins.getattr = get
missing = {n for n, (_, path) in _private.NAMES.items() if gone & set(path.split("."))}
assert missing and missing <= set(_private.INSTEAD), missing
assert all(get(_private, n) is _private.INSTEAD[n] for n in missing)

x = torch.randn(4, 16, dtype=torch.float64)
for ours, theirs in ((lambda x: st.softmax(x, -1, temperature=0.5), lambda x: torch.softmax(x / 0.5, -1)),
                     (lambda x: st.log_softmax(x, 0), lambda x: torch.log_softmax(x, 0)),
                     (lambda x: st.logsumexp(x, (0, 1)), lambda x: torch.logsumexp(x, (0, 1))),
                     (lambda x: sumexp.softmax(x), lambda x: torch.softmax(x, -1))):
    torch.testing.assert_close(ours(x), theirs(x))
    hessians = [torch.func.hessian(lambda x, f=f: f(x).sin().sum())(x) for f in (ours, theirs)]
    torch.testing.assert_close(*hessians)
    torch.testing.assert_close(torch.vmap(ours)(x.unsqueeze(0)), torch.vmap(theirs)(x.unsqueeze(0)))
    torch.testing.assert_close(torch.func.jvp(ours, (x,), (x,)), torch.func.jvp(theirs, (x,), (x,)))
    leaf = x[:2, :3].clone().requires_grad_()
    assert torch.autograd.gradcheck(ours, leaf, check_forward_ad=True) and torch.autograd.gradgradcheck(ours, leaf)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    y = leaf.detach().clone().requires_grad_()
    (a,), (b,) = (torch.autograd.grad(f(y).sin().sum(), y) for f in (compiled, ours))
    torch.testing.assert_close(a, b)
    traced = torch.jit.trace(ours, (x,))
    assert torch.equal(traced(x + 1), ours(x + 1))
with torch.autograd.forward_ad.dual_level() as level:
    dual = torch.autograd.forward_ad.make_dual(x, x.sin())
    got = torch.autograd.forward_ad.unpack_dual(torch.ops.sumexp.softmax(dual, [1])).tangent
    torch.testing.assert_close(got, sumexp.softmax_jvp(x.sin(), torch.softmax(x, -1)))
try:
    torch.func.grad(lambda T: st.softmax(x, -1, temperature=T).sum())(torch.tensor(2.0))
    raise AssertionError("a gradient was lost")
except TypeError:
    pass
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    assert torch.equal(st.softmax(x), st.softmax(x, 1))
assert any("Implicit dimension" in str(w.message) and w.filename == "<string>" for w in seen), seen
"""


def test_missing_names_with_a_slower_way():
    """The import works without them, and what is computed is the same."""
    last = [_private.NAMES[n][1].split(".")[-1] for n in _private.INSTEAD]
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", WITHOUT, *last], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
