"""The functions on an NVIDIA GPU: what autograd, torch.func, vmap and torch.compile make of CUDA tensors, and the
arrays of CuPy, JAX and any library with __cuda_array_interface__. Everywhere the CPU's bytes are expected."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch.autograd.forward_ad as forward_ad  # noqa: E402
from torch.func import jvp, vjp, vmap  # noqa: E402

import gpu_cases as cases  # noqa: E402
import sumexp as se  # noqa: E402
import sumexp.torch as st  # noqa: E402
from gpu_cases import DTYPES, difference, named  # noqa: E402
from oracle.accuracy import seed  # noqa: E402
from oracle.formats import F16, F32, F64  # noqa: E402
from oracle.ops import OPS  # noqa: E402

pytestmark = cases.marks()

FUNCTIONS = {
    "softmax": lambda x: st.softmax(x, -1),
    "softmax dim 0": lambda x: st.softmax(x, 0),
    "softmax T": lambda x: st.softmax(x, 1, temperature=0.7),
    "log_softmax": lambda x: st.log_softmax(x, -1),
    "log_softmax T": lambda x: st.log_softmax(x, 1, temperature=3),
    "logsumexp": lambda x: st.logsumexp(x, -1),
    "logsumexp dims": lambda x: st.logsumexp(x, (0, 1)),
    "logsumexp keepdim": lambda x: st.logsumexp(x, 1, True),
}
each_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=list(FUNCTIONS))
each_dtype = pytest.mark.parametrize("dtype", **named(DTYPES))
each_name = pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])


def normal(*shape, dtype=torch.float32, number=0):
    return (3 * torch.randn(shape, generator=torch.Generator().manual_seed(number))).to(dtype)


def flat(results):
    """The tensors of nested tuples."""
    return [results] if isinstance(results, torch.Tensor) else [t for r in results for t in flat(r)]


def assert_same_on_both(f, *tensors):
    expected, got = flat(f(*tensors)), flat(f(*(t.to(cases.DEVICE) for t in tensors)))
    assert len(got) == len(expected)
    for k, (a, b) in enumerate(zip(got, expected)):
        assert a.device.type == cases.DEVICE and a.stride() == b.stride()
        wrong = difference(a, b)
        assert not wrong, f"result {k}: {wrong}"


def leaf(x):
    return x.detach().clone().requires_grad_()


# -- gradients -----------------------------------------------------------------------------------------------
# f(x), a gradient g of its result and a direction v of x's shape -> tensors


def backward(f, x, g, v):
    x = leaf(x)
    y = f(x)
    y.backward(g)
    return y.detach(), x.grad


def double_backward(f, x, g, v):
    x, g = leaf(x), leaf(g)
    (dx,) = torch.autograd.grad(f(x), x, g, create_graph=True)
    return dx.detach(), torch.autograd.grad(dx, (x, g), v)


def forward_mode(f, x, g, v):
    with forward_ad.dual_level():
        return tuple(forward_ad.unpack_dual(f(forward_ad.make_dual(x, v))))


def forward_over_reverse(f, x, g, v):
    return jvp(lambda x: vjp(f, x)[1](g)[0], (x,), (v,))


def compiled(f, x, g, v):
    return backward(torch.compile(f, backend="aot_eager", fullgraph=True), x, g, v)


TRANSFORMS = {
    "backward": backward,
    "double backward": double_backward,
    "forward mode": forward_mode,
    "func.jvp": lambda f, x, g, v: jvp(f, (x,), (v,)),
    "forward over reverse": forward_over_reverse,
    "compile": compiled,
}


@pytest.fixture(autouse=True)
def _forget():
    torch._dynamo.reset()


@each_dtype
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=list(TRANSFORMS))
@each_function
def test_gradients(function, transform, dtype):
    for shape in ((3, 4, 130), (2, 3, 5000)):
        x, v = normal(*shape, dtype=dtype), normal(*shape, dtype=dtype, number=1)
        g = normal(*function(x).shape, dtype=dtype, number=2)
        assert_same_on_both(lambda x, g, v: transform(function, x, g, v), x, g, v)


@each_dtype
@pytest.mark.parametrize("function", [f for name, f in FUNCTIONS.items() if name not in ("softmax dim 0",)],
                         ids=[name for name in FUNCTIONS if name not in ("softmax dim 0",)])
def test_vmap(function, dtype):
    x = normal(3, 4, 6, 33, dtype=dtype)
    g = normal(*vmap(function)(x).shape, dtype=dtype, number=2)
    assert_same_on_both(vmap(function), x)
    assert_same_on_both(lambda x: vmap(function, in_dims=1)(x), x)
    assert_same_on_both(vmap(lambda x, g: vjp(function, x)[1](g)[0]), x, g)


def test_layouts_of_inputs_and_gradients():
    x, g = normal(6, 4, 34), normal(6, 4, 34, number=1)
    for view in (lambda t: t.transpose(0, 2), lambda t: t[:, ::2], lambda t: t[:, :1].expand(6, 4, 34),
                 lambda t: t[..., 1:], lambda t: torch.imag(torch.complex(t, t).conj())):
        for f in FUNCTIONS.values():
            assert_same_on_both(lambda x: f(view(x)), x)
        assert_same_on_both(lambda x, g: backward(lambda x: st.softmax(x, -1), view(x), view(g), None), x, g)


@each_name
def test_arguments(name):
    f = getattr(st, name)
    x = normal(5, 70)
    assert_same_on_both(lambda x: f(x, -1), x.half())
    if name != "logsumexp":
        assert_same_on_both(lambda x: f(x, -1, dtype=torch.float32), x.half())
        assert_same_on_both(lambda x: f(x, 0, dtype=torch.float64), x.round().long())
        module = {"softmax": st.nn.Softmax, "log_softmax": st.nn.LogSoftmax}[name](dim=1)
        assert_same_on_both(module, x)
    with pytest.raises(IndexError, match="out of range"):
        f(x.to(cases.DEVICE), 2)


@each_name
def test_cuda_autocast_does_what_it_does_to_torchs_functions(name):
    x = normal(5, 70, dtype=torch.float16).to(cases.DEVICE)
    with torch.autocast("cuda", dtype=torch.float16):
        got, want = getattr(st, name)(x, -1), getattr(torch, name)(x, -1)
    assert got.dtype == want.dtype
    assert not difference(got, getattr(st, name)(x.to(want.dtype).cpu(), -1))


@each_name
def test_inductor(name):
    pytest.importorskip("triton", reason="torch.compile needs triton for CUDA")
    f = getattr(st, name)
    both = torch.compile(lambda x: f(x, -1), fullgraph=True)
    x, g = normal(4, 130), normal(*f(normal(4, 130), -1).shape, number=1)
    got = backward(both, x.to(cases.DEVICE), g.to(cases.DEVICE), None)
    for a, b in zip(got, backward(lambda x: f(x, -1), x, g, None)):
        assert not difference(a, b)


def test_registered_operations():
    x, g, v = (normal(3, 3, 5, number=k).double().to(cases.DEVICE) for k in range(3))
    y, l = se.softmax(x), se.log_softmax(x)
    for name, tensors in {"softmax": (x,), "log_softmax": (x,), "logsumexp": (x,), "softmax_vjp": (g, y),
                          "log_softmax_vjp": (g, l), "log_softmax_jvp": (g, l), "logsumexp_vjp": (x, g[..., :1]),
                          "logsumexp_jvp": (x, g), "softmax_hvp": (g, v, y), "log_softmax_hvp": (g, v, l)}.items():
        operation = getattr(torch.ops.sumexp, name).default
        torch.library.opcheck(operation, (*map(leaf, tensors), [-1]))
        torch.library.opcheck(operation, (*(leaf(t.mT) for t in tensors), [-2]))


def test_a_classifier_learns_the_same_weights():
    """Ten steps of a linear model, its product aside: what the library adds to training is the same on both."""

    def train(x, labels):
        w = torch.zeros_like(x, requires_grad=True)
        for _ in range(10):
            loss = -st.log_softmax(w * x, -1).gather(1, labels)
            (dw,) = torch.autograd.grad(loss, w, torch.ones_like(loss))
            w = (w - 0.5 * dw).detach().requires_grad_()
        return w.detach()

    assert_same_on_both(train, normal(50, 33), torch.arange(50).remainder(33)[:, None])


# -- arrays of other libraries -------------------------------------------------------------------------------

HERE = (F16, F32, F64)
AWAY = {"plain": lambda a: a, "backwards": lambda a: a[:, ::-1], "every third": lambda a: a[:, ::3],
        "transposed": lambda a: a.T}


@pytest.fixture(scope="module")
def cupy():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # its own exceptions, where it finds no driver
        pytest.skip(f"CuPy is installed without a usable GPU: {error}")
    if not count:
        pytest.skip("CuPy is installed, but sees no GPU")
    return cupy


@pytest.fixture(scope="module")
def jax():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # else it takes most of the memory for itself
        jax = pytest.importorskip("jax", reason="JAX is not installed")
        try:
            jax.config.update("jax_default_device", jax.devices("gpu")[0])
        except RuntimeError as error:
            pytest.skip(f"JAX is installed without GPU support: {error}")
        yield jax
        jax.config.update("jax_default_device", None)


def arrays_of(op, fmt, rows=9, n=330):
    return op.make(np.random.default_rng(seed("gpu arrays", op.name, fmt.name)), fmt, rows, n)


@pytest.mark.parametrize("fmt", **named(HERE))
@pytest.mark.parametrize("op", **named(OPS.values()))
def test_cupy(cupy, op, fmt):
    for name, view in AWAY.items():
        arrays = [view(a) if a.shape[1] > 1 or name == "transposed" else a for a in arrays_of(op, fmt)]
        there = [view(cupy.asarray(a)) if a.shape[1] > 1 or name == "transposed" else cupy.asarray(a)
                 for a in arrays_of(op, fmt)]
        axis = 0 if name == "transposed" else -1
        expected, got = op.run(se, arrays, axis), op.run(se, there, axis)
        assert isinstance(got, cupy.ndarray) and got.shape == expected.shape and got.dtype == expected.dtype
        assert cupy.asnumpy(got).tobytes() == np.ascontiguousarray(expected).tobytes(), name


def test_cupy_results_and_streams(cupy):
    a = np.random.default_rng(0).standard_normal((40, 5000), np.float32)
    expected = se.softmax(a)
    x, out = cupy.asarray(a), cupy.full(a.shape, 777, np.float32)
    assert se.softmax(x, out=out) is out
    assert cupy.asnumpy(out).tobytes() == expected.tobytes()
    assert se.softmax(x, out=x) is x
    assert cupy.asnumpy(x).tobytes() == expected.tobytes()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:  # behind work of this stream
        big = cupy.ones((8000, 8000), np.float32)
        for _ in range(5):
            big = big @ big * np.float32(1e-4)
        x = cupy.asarray(a) + 0 * big[0, 0]
        y = se.softmax(x)
        z = y + 0  # and before it
    stream.synchronize()
    assert cupy.asnumpy(z).tobytes() == expected.tobytes()


@pytest.mark.parametrize("fmt", **named((F16, F32)))
@pytest.mark.parametrize("op", **named(OPS.values()))
def test_jax(jax, op, fmt):
    arrays = arrays_of(op, fmt)
    got = op.run(se, [jax.numpy.asarray(a) for a in arrays])
    expected = op.run(se, arrays)
    assert isinstance(got, jax.Array) and next(iter(got.devices())).platform == "gpu"
    assert np.asarray(got).tobytes() == expected.tobytes()


def test_jax_bfloat16(jax):
    x = np.random.default_rng(0).standard_normal((9, 3000), np.float32).astype(jax.numpy.bfloat16.dtype)
    got = se.log_softmax(jax.numpy.asarray(x))
    assert isinstance(got, jax.Array) and np.asarray(got).tobytes() == se.log_softmax(x).tobytes()


class Interface:
    """An array of a library that has __cuda_array_interface__ and nothing else."""

    def __init__(self, tensor):
        self.tensor = tensor

    @property
    def __cuda_array_interface__(self):
        return self.tensor.__cuda_array_interface__


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_cuda_array_interface(dtype):
    """Its library is unknown, so that the result goes where out= says."""
    x, g = normal(7, 3000, dtype=dtype), normal(7, 3000, dtype=dtype, number=1)
    y = se.softmax(x)
    there = {"x": x.to(cases.DEVICE), "g": g.to(cases.DEVICE), "y": y.to(cases.DEVICE),
             "strided": x.repeat_interleave(2, 1).to(cases.DEVICE)[:, ::2]}
    for f, names, expected in ((se.softmax, "x", y), (se.logsumexp, "x", se.logsumexp(x)),
                               (se.softmax_vjp, "gy", se.softmax_vjp(g, y)), (se.softmax, ("strided",), y)):
        out = torch.full_like(expected, 777, device=cases.DEVICE)
        held = Interface(out)
        assert f(*(Interface(there[n]) for n in names), out=held) is held
        assert not difference(out, expected)
    with pytest.raises(TypeError, match="out="):
        se.softmax(Interface(there["x"]))
    with pytest.raises(TypeError, match="^softmax_vjp: g"):
        se.softmax_vjp(g.numpy(), Interface(there["y"]), out=Interface(there["x"]))
