"""Sampling of tensors: the bytes of NumPy's, gumbel_softmax under autograd and transforms, and what tensors alone can be."""

import functools
from fractions import Fraction

import numpy as np
import pytest

import sumexp as se
from sumexp._draws import gumbel_noise

torch = pytest.importorskip("torch")
st = pytest.importorskip("sumexp.torch")

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def normal(*shape, dtype=torch.float32, seed=0):
    return (torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_numpy(dtype):
    x = normal(5, 3000, dtype=dtype)
    same = x.double().numpy() if dtype == torch.float64 else x.float().numpy()
    for options in ({}, {"num_samples": 9}, {"temperature": 0.5, "top_k": 7}, {"num_samples": 9, "replacement": False}):
        drawn = st.sample(x, seed=1, **options)
        assert drawn.dtype == torch.int64
        if dtype.itemsize > 2 or "temperature" not in options:
            assert (drawn.numpy() == se.sample(same, seed=1, **options)).all()
        assert torch.equal(se.sample(x, seed=1, **options), drawn)
        assert torch.equal(st.sample(x.T, 0, seed=1, **options), drawn)
    drawn, info = st.sample(x, seed=1, return_info=True)
    assert info.log_prob.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.allclose(info.log_prob, torch.log_softmax(x.double(), -1).gather(1, drawn[:, None])[:, 0].to(info.log_prob),
                          rtol=1e-5, atol=0)
    assert info.kept.tolist() == [3000] * 5
    counts = st.sample_counts(x, 10**6, seed=1)
    assert (counts.numpy() == se.sample_counts(same, 10**6, seed=1)).all()
    assert torch.equal(se.sample_counts(x, 10**6, seed=1), counts)


def test_options_may_be_tensors():
    x = normal(3, 50)
    each = torch.tensor([0.5, 1.0, 2.0])
    drawn = st.sample(x, seed=torch.tensor([4, 5, 6]), stream=torch.tensor([7, 8, 9]), temperature=each,
                      top_k=torch.tensor([3, 4, 5]), where=torch.ones(50, dtype=torch.bool))
    assert [st.sample(x[r], seed=4 + r, stream=7 + r, temperature=float(each[r]), top_k=3 + r).item() for r in range(3)] \
        == drawn.tolist()


def test_options_on_a_device(monkeypatch):
    """What is made ready for CUDA devices, here of tensors on the CPU: the entries take it, and draw the same."""
    x, w = normal(3, 4000), normal(5000, 8)
    each = np.array([0.5, 1.0, 2.0])
    mask = torch.rand(4000, generator=torch.Generator().manual_seed(0)) < 0.5
    calls = [
        lambda: st.sample(x, seed=1),
        lambda: st.sample(x, seed=[1, 2, 2**64 - 1], stream=[7, 8, 9], temperature=each, top_k=[3, 4, 5], top_p=0.9,
                          min_p=1e-3, where=mask, num_samples=4, return_info=True),
        lambda: st.sample(x, 0, seed=1, num_samples=2, replacement=False),
        lambda: st.sample_counts(x, 10**6, seed=1, temperature=each),
        lambda: st.linear_sample(normal(3, 8), w, seed=1, num_samples=2),
        lambda: st.linear_sample(normal(3, 8), w, seed=1, top_k=5, where=w[:, 0] > 0, return_info=True),
        lambda: st.linear_sample(torch.zeros(0, 8), w, seed=1, top_k=5),
        lambda: st.gumbel_softmax(x, seed=1, hard=True),
        # options that are tensors, and so on the device
        lambda: st.sample(x, seed=torch.tensor([4, 5, 6]), stream=torch.tensor(7), temperature=torch.tensor(each),
                          top_k=torch.tensor([9], dtype=torch.int32), num_samples=3),
        lambda: st.linear_sample(normal(3, 8), w, seed=torch.tensor([4, 5, 6]), temperature=torch.tensor(0.5)),
        lambda: st.gumbel_softmax(x, seed=torch.tensor(3)),
    ]
    want = [call() for call in calls]
    monkeypatch.setattr(st._sampling, "_place", lambda x: st._sampling.Device(x.device))
    for call, expected in zip(calls, want):
        got = call()
        for a, b in zip(*(torch.utils._pytree.tree_leaves(r) for r in (got, expected)), strict=True):
            assert torch.equal(a, b) and a.dtype == b.dtype and a.shape == b.shape
    refused = {"temperature": (-1, "is -1 for row 0, accepted: numbers from 0"), "top_k": (0, "is 0 for row 0"),
               "top_p": ([0.5, 1.5, 1], "is 1.5 for row 1"), "min_p": (np.nan, "is nan for row 0")}
    for name, (value, message) in refused.items():
        with pytest.raises(ValueError, match=f"sample: {name} {message}"):
            st.sample(x, seed=1, **{name: value})
    with pytest.raises(TypeError, match="sample: seed has dtype torch.float32, accepted: integers"):
        st.sample(x, seed=torch.ones(3))
    with pytest.raises(ValueError, match=r"stream has shape \(2,\), accepted: one that broadcasts to the batch's \(3,\)"):
        st.sample(x, seed=1, stream=torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"where has shape \(7,\), accepted: one that broadcasts to \(3, 4000\)"):
        st.sample(x, seed=1, where=torch.ones(7, dtype=torch.bool))


def test_generator():
    x = normal(4, 50)
    a = torch.Generator().manual_seed(3)
    first, second = (st.sample(x, seed=a, num_samples=20) for _ in range(2))
    assert not torch.equal(first, second)
    b = torch.Generator().manual_seed(3)
    assert torch.equal(st.sample(x, seed=b, num_samples=20), first)
    assert (se.sample(x.numpy(), seed=torch.Generator().manual_seed(3), num_samples=20) == first.numpy()).all()


def test_tensors_that_record_are_read():
    x = normal(2, 50).requires_grad_()
    assert torch.equal(st.sample(x, seed=1), st.sample(x.detach(), seed=1))
    assert torch.equal(st.sample(torch.nn.Parameter(x.detach()), seed=1), st.sample(x, seed=1))
    assert torch.equal(st.sample(torch._neg_view(-x.detach()), seed=1), st.sample(x, seed=1))


def test_refused():
    with pytest.raises(TypeError, match="sample: logits has dtype torch.complex64"):
        st.sample(torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(NotImplementedError, match="sample: logits is on meta"):
        st.sample(torch.zeros(2, device="meta"))
    with pytest.raises(TypeError, match="sample: where has dtype torch.float32"):
        st.sample(torch.zeros(2), where=torch.ones(2))
    with pytest.raises(ValueError, match="sample: logits has a NaN in row 1"):
        st.sample(torch.tensor([[0.0, 1], [0, torch.nan]]))
    with pytest.raises(TypeError, match="linear_sample: (w|bias) has dtype .*, accepted: .*, that of x"):
        st.linear_sample(torch.zeros(2, 3), torch.zeros(4, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="gumbel_softmax: tau is -1"):
        st.gumbel_softmax(torch.zeros(2), tau=-1)
    for dtype in (torch.int64, torch.bool, torch.complex64):
        accepted = "float16, bfloat16, float32, float64"
        with pytest.raises(TypeError, match=f"gumbel_softmax: logits has dtype {dtype}, accepted: {accepted}"):
            st.gumbel_softmax(torch.zeros(2, dtype=dtype))
    with pytest.raises(TypeError, match="gumbel_softmax: logits is a ndarray, accepted: a tensor"):
        st.gumbel_softmax(np.zeros(2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_linear_sample(dtype):
    """Products of small integers are exact, whatever their order."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-2, 3, (2, 3, 8), generator=generator).to(dtype) / 2
    w = torch.randint(-2, 3, (5000, 8), generator=generator).to(dtype) / 2
    bias = torch.randint(-2, 3, (5000,), generator=generator).to(dtype)
    logits = torch.nn.functional.linear(x, w, bias)
    for options in ({}, {"num_samples": 4}, {"temperature": 0.5}, {"top_p": 0.5}, {"temperature": 0}):
        drawn = st.linear_sample(x, w, bias=bias, seed=3, **options)
        assert torch.equal(drawn, st.sample(logits, seed=3, **options)), options
    assert torch.equal(se.linear_sample(x, w, bias=bias, seed=3), st.sample(logits, seed=3))


# -- gumbel_softmax ----------------------------------------------------------------------------------------------------


def test_gumbel_softmax_signature():
    x = normal(4, 6)
    noise = torch.from_numpy(gumbel_noise((4,), 6, 1, None))
    assert torch.equal(st.gumbel_softmax(x, 0.5, False, 1e-10, -1, seed=1),
                       st.softmax((x.double() + noise), -1, temperature=0.5).float())
    hard = st.gumbel_softmax(x, hard=True, seed=1)
    assert torch.equal(hard.argmax(-1), (x + noise).argmax(-1)) and set(hard.unique().tolist()) == {0, 1}
    assert torch.equal(se.gumbel_softmax(x, tau=0.5, seed=1), st.gumbel_softmax(x, 0.5, seed=1))
    assert torch.equal(st.gumbel_softmax(x.T, 0.5, dim=0, seed=1), st.gumbel_softmax(x, 0.5, seed=1).T)
    for dtype in DTYPES:
        assert st.gumbel_softmax(x.to(dtype), seed=1).dtype == dtype


def test_gumbel_softmax_derivatives():
    x = normal(3, 5, dtype=torch.float64).requires_grad_()

    def soft(x):
        return st.gumbel_softmax(x, 0.7, seed=1)

    assert torch.autograd.gradcheck(soft, x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(soft, x)
    weights = normal(3, 5, dtype=torch.float64, seed=2)
    (straight_through,) = torch.autograd.grad((st.gumbel_softmax(x, 0.7, hard=True, seed=1) * weights).sum(), x)
    (of_soft,) = torch.autograd.grad((soft(x) * weights).sum(), x)
    assert torch.allclose(straight_through, of_soft, rtol=1e-12, atol=0)
    jacobian = torch.func.jacrev(soft)(x.detach())
    assert torch.allclose(jacobian, torch.func.jacfwd(soft)(x.detach()), rtol=1e-12, atol=0)


@pytest.mark.filterwarnings("ignore:.*batching rule")
def test_gumbel_softmax_seeds_in_transforms():
    """Those of torch's default generator, and for each example of vmap where there are some."""
    x, weights = normal(3, 5), torch.arange(5.0)
    plain = x.clone().requires_grad_()
    calls = [
        lambda: torch.autograd.grad((st.gumbel_softmax(plain) * weights).sum(), plain)[0],
        lambda: torch.func.grad(lambda x: (st.gumbel_softmax(x) * weights).sum())(x),
        lambda: torch.func.jacfwd(lambda x: (st.gumbel_softmax(x) * weights).sum())(x),
        lambda: torch.vmap(torch.func.grad(lambda x: (st.gumbel_softmax(x) * weights).sum()), randomness="same")(x),
    ]
    found = []
    for call in calls:
        torch.manual_seed(7)
        found.append(call())
        other = call()
        torch.manual_seed(7)
        assert torch.equal(call(), found[-1]) and not torch.equal(other, found[-1])
    same = functools.partial(torch.allclose, rtol=1e-5, atol=1e-7)  # float32, by other ways
    assert same(found[1], found[0]) and same(found[2], found[0])
    assert same(found[3][0], found[0][0]) and not same(found[3][1], found[0][1])  # all have the first's
    each = torch.vmap(lambda x, stream: st.gumbel_softmax(x, seed=1, stream=stream))(x, torch.arange(3))
    assert torch.equal(each, st.gumbel_softmax(x, seed=1))


@pytest.mark.parametrize("values", [(1.0, 0.9, 0.8), (2, 3, 4)])
def test_compiled_with_another_tau(values):
    x = normal(3, 5)
    soft = torch.compile(lambda x, tau: st.gumbel_softmax(x, tau, seed=1), fullgraph=True, backend="aot_eager")
    for tau in values:
        assert torch.equal(soft(x, tau), st.gumbel_softmax(x, tau, seed=1))


def test_compiled():
    x = normal(3, 50)
    full = {"fullgraph": True, "backend": "aot_eager"}
    each = torch.tensor([0.5, 1.0, 2.0])

    def draw(x):
        return st.sample(x * 2, seed=1, temperature=each, top_k=7, num_samples=4) + st.sample(x, seed=2, where=x > -1)[:, None]

    assert torch.equal(torch.compile(draw, **full)(x), draw(x))
    assert torch.equal(torch.compile(draw, dynamic=True, **full)(x), draw(x))
    count = torch.compile(lambda x: st.sample_counts(x * 2, 10**6, seed=1) + 1, **full)
    assert torch.equal(count(x), st.sample_counts(x * 2, 10**6, seed=1) + 1)
    soft = torch.compile(lambda x: st.gumbel_softmax(x * 2, hard=True, seed=1) + 1, **full)
    x.requires_grad_()
    assert torch.equal(soft(x), st.gumbel_softmax(x * 2, hard=True, seed=1) + 1)
    weights = normal(3, 50, seed=3)
    grads = [torch.autograd.grad((f(x) * weights).sum(), x)[0] for f in (soft, lambda x: st.gumbel_softmax(x * 2, seed=1))]
    assert torch.allclose(*grads, rtol=1e-12, atol=0)
    large = torch.compile(lambda x: st.sample(x, seed=2**64 - 1), **full)
    assert torch.equal(large(x), st.sample(x, seed=2**64 - 1))
    fresh = torch.compile(lambda x: st.sample(x, num_samples=50), **full)
    assert not torch.equal(fresh(x), fresh(x))
    with_info = torch.compile(lambda x: st.sample(x, seed=1, return_info=True)[1].kept + 1, backend="aot_eager")
    assert with_info(x).tolist() == [51] * 3  # with a graph break
    w = normal(60, 50, seed=4)
    linear = torch.compile(lambda x: st.linear_sample(x * 2, w, seed=1) + 1, backend="aot_eager")
    assert torch.equal(linear(x), st.linear_sample(x * 2, w, seed=1) + 1)


@pytest.mark.filterwarnings("ignore:.*batching rule")
def test_transforms_and_stand_ins():
    x = normal(3, 50)
    streams = torch.arange(3)
    mapped = torch.vmap(lambda x, stream: st.sample(x, seed=1, stream=stream))(x, streams)
    assert torch.equal(mapped, st.sample(x, seed=1))
    soft = torch.vmap(lambda x: st.gumbel_softmax(x, seed=1))(x)
    assert torch.equal(soft, st.gumbel_softmax(x, seed=1, stream=0))
    drawn, tangent = torch.func.jvp(lambda x: st.sample(x, seed=1), (x,), (x,))
    assert torch.equal(drawn, st.sample(x, seed=1)) and not tangent.any()
    traced = torch.fx.experimental.proxy_tensor.make_fx(lambda x: st.sample(x, seed=1))(x)
    assert torch.equal(traced(x + 1), st.sample(x + 1, seed=1)) and "ops.sumexp.sample" in traced.code
    with torch._subclasses.FakeTensorMode() as mode:
        fake = st.sample(mode.from_tensor(x), seed=1, num_samples=4)
    assert fake.shape == (3, 4) and fake.dtype == torch.int64


def test_exported():
    class Sampler(torch.nn.Module):
        def forward(self, x):
            return st.sample(x, seed=1, top_p=0.9)

    x = normal(3, 50)
    assert torch.equal(torch.export.export(Sampler(), (x,)).module()(x), st.sample(x, seed=1, top_p=0.9))


def test_counts_of_a_view():
    x = np.zeros((2, 3), np.float32)
    assert st.sample_counts(torch.from_numpy(x).T, 5, 0, seed=1).shape == (3, 2)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
def test_draws_are_no_constants_of_a_traced_program():
    x, w = torch.randn(4, 6), torch.randn(5, 6)
    calls = {
        "linear_sample": lambda x: st.linear_sample(x, w, seed=0),
        "sample": lambda x: st.sample(x, seed=0, return_info=True)[0],
    }
    for name, call in calls.items():
        with pytest.raises(NotImplementedError, match=f"{name}: called .*within torch.jit.trace, accepted: outside of it"):
            torch.jit.trace(call, (x,), check_trace=False)
    traced = torch.jit.trace(lambda x: st.sample(x, seed=0), (x,), check_trace=False)
    assert torch.equal(traced(-x), st.sample(-x, seed=0))


def test_compiled_draws_without_a_seed_are_several():
    """Compilers take nodes of the same op and arguments for one."""
    x = torch.zeros(1, 4, requires_grad=True)
    tau = torch.tensor(1.0)

    def draws(x):
        noise = torch.stack([st.gumbel_softmax(x, hard=True) for _ in range(40)]).mean(0)
        a, b = st.sample(x, num_samples=50), st.sample(x, num_samples=50)
        c, d = (st.sample_counts(x, 1000, temperature=tau) for _ in range(2))
        return noise, st.log_prob(x, a) - st.log_prob(x, b), c + 0, d + 0, (a == b).all()

    compiled = torch.compile(draws, backend="aot_eager", fullgraph=True)
    for f in (draws, compiled, compiled):
        torch.manual_seed(2)
        noise, _, c, d, same = f(x)
        assert ((noise > 0) & (noise < 1)).all() and not torch.equal(c, d) and not same
        again = torch.Generator().manual_seed(2)
        expected = torch.stack([st.gumbel_softmax(x, hard=True, seed=again) for _ in range(40)]).mean(0)
        assert torch.equal(noise, expected)


@pytest.mark.parametrize("options, text", [
    ({"seed": 1.9}, "seed is 1.9, accepted: integers"),
    ({"seed": True}, "seed is True, accepted: integers"),
    ({"stream": 0.5}, "stream is 0.5, accepted: integers"),
    ({"top_k": 2.7}, "top_k is 2.7, accepted: integers"),
    ({"temperature": True}, "temperature is True, accepted: numbers"),
    ({"num_samples": True}, "num_samples is True, accepted: an int"),
])  # fmt: skip
def test_options_are_checked_alike(options, text):
    """Eager, compiled, and within transforms, whose operations would take them for other numbers."""
    x = normal(2, 5)
    draw = lambda x: st.sample(x, **({"seed": 3} | options))
    for f in (draw, torch.compile(draw, backend="eager"), torch.vmap(draw)):
        with pytest.raises(TypeError, match=text):
            f(x if f is not torch.vmap else x[None])


def test_seeds_of_all_kinds_in_compiled_programs_and_transforms():
    x = normal(2, 5)
    for seed in ([2**63, 1], np.array([2**63, 1], np.uint64), 2**64 - 1, [4, 5]):
        draw = lambda x: st.sample(x, seed=seed, num_samples=9)
        expected = draw(x)
        assert torch.equal(torch.compile(draw, backend="aot_eager")(x), expected)
        assert torch.equal(torch.vmap(draw)(x[None])[0], expected)
    for draw in (torch.compile(lambda x, g: st.sample(x, seed=g, num_samples=9), backend="aot_eager"),
                 lambda x, g: torch.vmap(lambda x: st.sample(x, seed=g, num_samples=9))(x[None])[0]):
        assert torch.equal(draw(x, np.random.default_rng(1)), st.sample(x, seed=np.random.default_rng(1), num_samples=9))
    where = [True, False, True, False, True]
    draw = lambda x: st.sample(x, seed=1, where=where)
    assert torch.equal(torch.compile(draw, backend="aot_eager", fullgraph=True)(x), draw(x))


def test_some_rows_without_a_seed():
    """theirs is of torch's generator"""
    x = torch.zeros(2, 10**6)
    torch.manual_seed(0)
    first, second = st.sample(x, seed=[None, 5]), st.sample(x, seed=[None, 5])
    assert first[0] != second[0] and first[1] == second[1] == st.sample(x, seed=5, stream=1)[1]
    torch.manual_seed(0)
    assert torch.equal(st.sample(x, seed=[None, 5]), first)


def test_temperatures_that_are_watched():
    x, T = normal(2, 50), torch.nn.Parameter(torch.tensor(0.5))
    assert torch.equal(st.sample(x, temperature=T, seed=1), st.sample(x, temperature=0.5, seed=1))
    assert torch.equal(st.sample(x, temperature=Fraction(1, 2), seed=1), st.sample(x, temperature=0.5, seed=1))
