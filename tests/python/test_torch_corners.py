"""Corners of torch in which a derivative, or the tensor itself, could get lost without a word."""

import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch.autograd.forward_ad as fw  # noqa: E402
from torch import func  # noqa: E402

import sumexp  # noqa: E402
import sumexp.torch as st  # noqa: E402

OURS = {"softmax": st.softmax, "log_softmax": st.log_softmax, "logsumexp": st.logsumexp}
THEIRS = {"softmax": torch.softmax, "log_softmax": torch.log_softmax, "logsumexp": torch.logsumexp}
each_function = pytest.mark.parametrize("name", OURS)
X = torch.arange(12, dtype=torch.float64).reshape(3, 4).sin() * 3


def both(name, compute):
    """compute(f) for f ours and torch's, which must agree."""
    got, expected = compute(lambda x: OURS[name](x, -1)), compute(lambda x: THEIRS[name](x, -1))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)
    return got


# -- derivatives -----------------------------------------------------------------------------------------------


@each_function
@pytest.mark.parametrize("inner", [lambda x: x, lambda x: x * x], ids=["direct", "composed"])
def test_batched_gradients_are_recorded(name, inner):
    def compute(f):
        x = X.clone().requires_grad_()
        J = torch.autograd.functional.jacobian(lambda x: f(inner(x)), x, create_graph=True, vectorize=True)
        (second,) = torch.autograd.grad(J.sin().sum(), x, create_graph=True)
        (third,) = torch.autograd.grad(second.cos().sum(), x)
        return J, second, third

    both(name, compute)
    both(name, lambda f: torch.autograd.functional.hessian(lambda x: f(x).sin().sum(), X, vectorize=True))


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("wrap", [func.grad, func.jacrev, lambda f: func.vmap(func.grad(f))], ids=["grad", "jacrev", "vmap"])
def test_result_changed_in_place_under_a_transform(name, wrap):
    def f(x):
        y = OURS[name](x, -1)
        y.mul_(2)
        return (y * y).sum()

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        wrap(f)(X)


@each_function
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_dual_level_inside_a_compiled_function(name, backend):
    def compute(f):
        def program(x, t):
            with fw.dual_level():
                return fw.unpack_dual(f(fw.make_dual(x, t))).tangent

        torch._dynamo.reset()
        return torch.compile(program, backend=backend)(X, X.cos())

    both(name, compute)


@each_function
def test_no_grad_inside_nested_transforms(name):
    def compute(f):
        def g(x):
            with torch.no_grad():
                c = f(x)
            return (c * f(x)).sum()

        return func.grad(lambda x: func.grad(g)(x).sin().sum())(X)

    both(name, compute)


@each_function
def test_vmap_under_no_grad_runs_the_kernel(name):
    with torch.no_grad():
        got = func.vmap(lambda x: OURS[name](x, -1))(X)
    assert got.numpy().tobytes() == getattr(sumexp, name)(X.numpy(), axis=-1).tobytes()


@each_function
@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_pullback_without_grad(name, off):
    def compute(f):
        y, pull = func.vjp(f, X)
        with off():
            return pull(torch.ones_like(y))[0]

    both(name, compute)


@each_function
def test_functionalize_around_a_transform(name):
    for transform in (func.grad, func.hessian):
        both(name, lambda f: func.functionalize(transform(lambda x: f(x).sin().sum()))(X))
    both(name, lambda f: func.functionalize(func.vmap(f))(X))


@each_function
def test_fourth_order_in_every_mixture(name):
    x = X[0, :3]
    modes = (func.jacrev, func.jacfwd)
    for a in modes:
        for b in modes:
            for c in modes:
                both(name, lambda f: a(b(c(func.jacrev(lambda x: f(x).sin()))))(x))
                both(name, lambda f: a(b(c(func.jacfwd(lambda x: f(x).sin()))))(x))


@each_function
def test_inference_mode_records_nothing(name):
    x = X.clone().requires_grad_()
    with torch.inference_mode(), torch.enable_grad():
        y = OURS[name](x, -1)
    assert not y.requires_grad
    torch.testing.assert_close(y, THEIRS[name](X, -1))


@each_function
def test_inside_a_batched_hook(name):
    def compute(f):
        x = X.clone().requires_grad_()
        y = x * 2
        y.register_hook(lambda g: g * f(g).sum(-1, keepdim=True))
        return torch.autograd.grad(y, x, torch.stack([X.cos(), X]), is_grads_batched=True)[0]

    both(name, compute)


def test_sparse_gradient():
    gradients = []
    for f in (st.logsumexp, torch.logsumexp):
        x = X.clone().requires_grad_()
        torch.nn.functional.embedding(torch.tensor([0, 2]), f(x, 1, True), sparse=True).sum().backward()
        gradients.append(x.grad.to_dense())
    torch.testing.assert_close(*gradients)


# -- tensors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_what_the_kernels_do_not_take_while_recording(name):
    """A tensor that requires grad goes the same way as one that does not."""
    meta = OURS[name](torch.empty(3, 4, device="meta", requires_grad=True), -1)
    assert meta.device.type == "meta" and meta.shape == (3, 4)
    if name == "softmax":  # torch has no other one of nested tensors
        nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], requires_grad=True)
        for got, expected in zip(st.softmax(nested, -1).unbind(), torch.softmax(nested, -1).unbind()):
            assert torch.equal(got, expected)
    for odd in (torch.ones(3, 4, dtype=torch.complex64), torch.ones(3, 4).to_sparse()):
        for f in (OURS, THEIRS):
            with pytest.raises(NotImplementedError):
                f[name](odd.clone().requires_grad_(), -1)


def test_tensor_left_over_from_a_transform():
    kept = []

    def f(x):
        kept.append(x)
        return (x * x).sum()

    x = X.clone().requires_grad_()
    func.grad(f)(x)
    (gradient,) = torch.autograd.grad(st.softmax(kept[0], -1).sin().sum(), x)
    (expected,) = torch.autograd.grad(torch.softmax(x, -1).sin().sum(), x)
    torch.testing.assert_close(gradient, expected)


@each_function
def test_dim_may_be_any_integer(name):
    for one in (np.int64(1), torch.tensor(1)):
        assert torch.equal(OURS[name](X, one), OURS[name](X, 1))
    assert torch.equal(sumexp.softmax(X, axis=np.int64(0)), st.softmax(X, 0))


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("dim", [(), (0,), [0, 1]])
def test_softmax_has_one_dim(name, dim):
    with pytest.raises(TypeError, match="dim is"):
        OURS[name](X, dim)


def test_symbolic_trace():
    traced = torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.Linear(4, 4), st.nn.Softmax(-1)))
    assert traced(torch.ones(2, 4)).shape == (2, 4)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_implicit_dim_compiles(name):
    torch._dynamo.reset()
    compiled = torch.compile(OURS[name], backend="eager", fullgraph=True)
    with pytest.warns(UserWarning, match="Implicit dimension"):
        expected = OURS[name](X)
    assert torch.equal(compiled(X), expected)


def test_operations_want_one_device():
    with pytest.raises(RuntimeError, match="device"):
        torch.ops.sumexp.softmax_vjp(X, X.to("meta"), [1])


def test_mask_of_more_dimensions():
    mask = torch.ones(2, 3, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="where has shape"):
        sumexp.softmax(X, where=mask)
    with pytest.raises(ValueError, match="where has shape"):
        sumexp.logsumexp(X, where=mask[0, :, :3])

# -- tensors without memory, and memory that goes away -----------------------------------------------------


def _emptied():
    """A view whose storage was emptied, as sharded training does with parameters between uses."""
    flat = torch.randn(128)
    view = flat[64:].view(4, 16)
    flat.untyped_storage().resize_(0)
    return view


@pytest.mark.parametrize("call", ["softmax", "log_softmax", "parameter", "logsumexp", "out", "jacobian", "vjp"])
def test_a_tensor_without_memory_raises(call):
    w, x = _emptied(), torch.randn(4, 16)
    calls = {
        "softmax": lambda: st.softmax(w, -1),
        "log_softmax": lambda: st.log_softmax(w.requires_grad_(), -1),
        "parameter": lambda: st.softmax(torch.nn.Parameter(w), -1),
        "logsumexp": lambda: st.logsumexp(w, -1),
        "out": lambda: sumexp.softmax(x, out=w),
        "jacobian": lambda: sumexp.softmax_jacobian(w),
        "vjp": lambda: sumexp.softmax_vjp(w, x),
    }
    with pytest.raises(RuntimeError, match="storage is empty"):
        calls[call]()


def test_zero_tensors():
    zeros, x = torch._efficientzerotensor((5, 16)), torch.randn(5, 16)
    for z in (zeros, zeros[1:]):
        like = torch.zeros(z.shape)
        assert torch.equal(st.softmax(z, -1), st.softmax(like, -1))
        assert torch.equal(st.logsumexp(z, -1), st.logsumexp(like, -1))
        assert torch.equal(sumexp.softmax_vjp(z, x[: len(z)]), like)
        p = x[: len(z)].clone().requires_grad_()
        (dx,) = torch.autograd.grad(st.softmax(p, -1), p, z)
        assert torch.equal(dx, like)


def test_wrappers_of_functionalize():
    x = torch.randn(5, 16)
    wrapped = torch._to_functional_tensor(x)
    for t, like in ((wrapped, x), (wrapped[1:], x[1:])):
        y = torch._from_functional_tensor(st.softmax(t, -1))
        assert torch.equal(y, st.softmax(like, -1))


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("function", ["st", "sumexp"])
def test_a_finalizer_takes_the_memory(function, recorded):
    # Creating the result may run the collector, and with it a finalizer that gives the argument other memory.
    softmax = "st.softmax(x, -1)" if function == "st" else "sumexp.softmax(x)"
    program = f"""
import gc, torch, sumexp, sumexp.torch as st
torch.set_num_threads(1)
softmax = lambda x: {softmax}
armed, hits = False, 0
class Finalized:
    def __del__(self):
        global armed, hits
        if armed:
            armed, hits = False, hits + 1
            x.data = torch.zeros(4096, 512) if hits % 2 else torch.zeros(0)
gc.disable()
for threshold in range(1, 40):
    x = torch.randn(4096, 512).requires_grad_({recorded})
    cycle = Finalized()
    cycle.itself = cycle
    del cycle
    gc.set_threshold(threshold, 1, 1)
    armed = True
    gc.enable()
    try:
        softmax(x)
    except (RuntimeError, IndexError):
        pass
    gc.disable()
    armed = False
print("hits", hits)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) > 0


def test_fast_calls_take_parameters():
    p = torch.nn.Parameter(torch.randn(4, 16))
    y = sumexp._core.fast_softmax(0, p, -1, 1.0)
    assert type(y) is torch.Tensor and y.requires_grad and torch.equal(y, torch.ops.sumexp.softmax(p.detach(), [1]))


def test_logsumexp_over_no_dims_is_over_all():
    x = torch.randn(4, 16)
    assert torch.equal(st.logsumexp(x, (), True), st.logsumexp(x, (0, 1), True))
    assert torch.logsumexp(x, (), True).shape == (1, 1)
    assert torch.equal(st.logsumexp(x, []), st.logsumexp(x, (0, 1)))
    # NumPy's meaning in the package's own function, also where torch's are used
    primal = torch.func.jvp(lambda x: sumexp.logsumexp(x, axis=()), (x,), (x,))[0]
    assert torch.equal(primal, x) and torch.equal(sumexp.logsumexp(x, axis=()), x)
    assert torch.equal(sumexp.logsumexp(x.to(torch.complex64), axis=()).real, x)


def test_logsumexps_gradient_is_laid_out_as_torchs():
    grads = []
    for function in (torch.logsumexp, st.logsumexp):
        q = torch.randn(2, 3, 4, 5).permute(3, 1, 0, 2).requires_grad_()
        grads.append(torch.autograd.grad(function(q, 1).sum(), q)[0])
    assert grads[0].stride() == grads[1].stride() == (1, 20, 60, 5)


@pytest.mark.parametrize("function", [st.softmax, st.log_softmax, st.logsumexp])
def test_a_bool_is_no_dim(function):
    with pytest.raises(TypeError, match="dim is True"):
        function(torch.randn(3, 3), True)


def test_a_dtype_is_torchs():
    with pytest.raises(TypeError, match="dtype is 'f'"):
        st.softmax(torch.randn(3), 0, dtype="f")


def test_arrays_beside_a_tensor():
    """What may be a NumPy array, and that the others are refused by name."""
    x, a, index = torch.randn(4, 5), np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32), np.array([0, 1, 4, 2])
    cases = {
        "masked_softmax": {"where": a > 0, "bias": a, "lengths": index, "sink": a[:, 0]},
        "segment_softmax": {"offsets": np.array([0, 1, 4])},
        "logsumexp": {"axis": -1, "where": a > 0, "b": a},
        "segment_logsumexp": {"ids": np.array([0, 1, 1, 3])}, "log_prob": {"index": index},
    }  # fmt: skip
    for name, options in cases.items():
        function = getattr(sumexp, name)
        tensors = {n: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for n, v in options.items()}
        made, expected = function(x, **options), function(x, **tensors)
        assert isinstance(made, torch.Tensor) and torch.equal(made.nan_to_num(), expected.nan_to_num()), name
    for name, args in (("softmax_vjp", (a, x)), ("kl_div", (x, a)), ("logaddexp", (x, a))):
        with pytest.raises(TypeError, match=f"^{name}: .* is a ndarray, accepted: a tensor"):
            getattr(sumexp, name)(*args)


def test_numbers_and_lists_have_all_their_digits():
    """They are float64, as NumPy has them, whatever torch's default dtype is; of a result's dtype they make what that makes."""
    x, g, t = X, X.cos(), torch.tensor([0, 1, 3])
    four, three, matrix = [0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.7], [[0.1], [0.2], [0.3], [0.4]]
    cases = {
        "sink": (lambda x, g, t, v: sumexp.masked_softmax(x, sink=v), (0.1, three)),
        "bias": (lambda x, g, t, v: sumexp.masked_log_softmax(x, bias=v), (0.1, four)),
        "masked_softmax_vjp": (lambda x, g, t, v: sumexp.masked_softmax_vjp(g, x, bias=v)[0], (0.1, four)),
        "cross_entropy_vjp": (lambda x, g, t, v: sumexp.cross_entropy_vjp(v, x, t), (0.1,)),
        "one a row": (lambda x, g, t, v: sumexp.cross_entropy_vjp(v, x, t, reduction="none"), (three,)),
        "b": (lambda x, g, t, v: sumexp.logmatmulexp(x, v), (matrix,)),
        "a": (lambda x, g, t, v: sumexp.logmatmulexp(v, x.T), ([four],)),
    }
    for name, (call, values) in cases.items():
        for value in values:
            made, expected = call(x, g, t, value), call(x.numpy(), g.numpy(), t.numpy(), np.asarray(value))
            assert made.dtype is torch.float64 and made.numpy().tobytes() == expected.tobytes(), (name, value)
            assert call(x.float(), g.float(), t, value).dtype is torch.float32
    for u in (0.1, three):
        of = {"reduction": "mean" if u == 0.1 else "none"}
        made, expected = (sumexp.linear_cross_entropy_vjp(v, x, g + 1, t % 3, **of)
                          for v in (u, torch.tensor(u, dtype=x.dtype)))  # fmt: skip
        assert torch.equal(made[0], expected[0]) and torch.equal(made[1], expected[1])


IN_PLACE = {
    "where": (lambda x, v: st.masked_softmax(x, where=v), (np.array([1, 1, 0], bool), np.array([1, 0, 1], bool))),
    "lengths": (lambda x, v: st.masked_softmax(x, lengths=v), (np.array([2, 3]), np.array([1, 2]))),
    "bias": (lambda x, v: st.masked_softmax(x, bias=v), (np.array([1.0, 2, 0]), np.array([0.0, 1, 2]))),
    "sink": (lambda x, v: st.masked_softmax(x, sink=v), (np.array([1.0, 2]), np.array([0.0, 1]))),
    "b": (lambda x, v: sumexp.logsumexp(x, -1, b=v), (np.array([1.0, 1, 0]), np.array([1.0, 0, 1]))),
    "index": (st.log_prob, (np.array([2, 1]), np.array([0, 2]))),
    "logmatmulexp": (sumexp.logmatmulexp, (np.array([[1.0], [2], [0]]), np.array([[0.0], [4], [1]]))),
    "offsets": (lambda x, v: st.segment_softmax(x.reshape(6), offsets=v), (np.array([0, 2, 6]), np.array([0, 4, 6]))),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_what_is_changed_before_the_gradient(name):
    """Autograd says so of a tensor; of an array, a list or a tensor of another dtype the gradient is that of the call."""
    call, (before, after) = IN_PLACE[name]

    def gradient(value, change=lambda value: None):
        x = X[:2, :3].clone().requires_grad_()
        y = call(x, value)
        change(value)
        return torch.autograd.grad(y, x, torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape))[0]

    def refill(value):
        value[...] = after

    want = gradient(before.tolist())
    assert torch.equal(gradient(before.copy(), refill), want)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradient(torch.from_numpy(before.copy()), lambda value: value.copy_(torch.from_numpy(after)))
    assert torch.equal(gradient(torch.from_numpy(before)), want)
    with torch.inference_mode():
        tensor = torch.from_numpy(before.copy()).clone()
    if name == "offsets":
        assert torch.equal(gradient(tensor), want) and torch.equal(gradient(torch.tensor(before, dtype=torch.int32)), want)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_what_is_no_tensor(name):
    with pytest.raises(TypeError, match=f"^{name}: input is a ndarray, accepted: a tensor$"):
        getattr(st, name)(np.ones(3, np.float32), -1)
