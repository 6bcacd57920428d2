"""Masked rows and segments of tensors: NumPy's bytes, every derivative, the transforms; `where` of the plain functions."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch.autograd import forward_ad  # noqa: E402
from torch.autograd.gradcheck import gradcheck, gradgradcheck  # noqa: E402

import sumexp as se  # noqa: E402
import sumexp.torch as st  # noqa: E402

INF = float("inf")
MASKED = ["masked_softmax", "masked_log_softmax", "masked_logsumexp"]
SEGMENT = ["segment_softmax", "segment_log_softmax", "segment_logsumexp"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
OFFSETS = torch.tensor([0, 3, 3, 4, 9])


def finite(y):
    return y.masked_fill(y == -INF, 0)


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def masked_case(dtype=torch.float64, requires_grad=True):
    g = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=g).to(dtype).requires_grad_(requires_grad)

    where = torch.rand(2, 3, 5, generator=g) < 0.7
    where[0, 0] = False
    options = {"where": where, "lengths": torch.tensor([[5], [3]]), "causal": 2, "softcap": 2.0, "temperature": 1.5}
    return (randn(2, 3, 5), randn(3, 1), randn(2, 1)), options


ALL = ("where", "lengths", "causal", "softcap", "temperature")
SOME = [(), ("where",), ("lengths", "causal"), ("softcap", "temperature"), ALL]


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("names", SOME, ids="-".join)
def test_derivatives_of_masked_rows(name, names):
    tensors, options = masked_case()
    options = {n: options[n] for n in names}

    def call(x, bias, sink):
        return finite(getattr(st, name)(x, -1, bias=bias, sink=sink, **options))

    def without(x):
        return finite(getattr(st, name)(x, 1, **{n: o for n, o in options.items() if n not in ("lengths", "causal")}))

    assert gradcheck(call, tensors, check_forward_ad=True)
    assert gradgradcheck(call, tensors, fast_mode=True)
    assert gradcheck(without, tensors[:1], check_forward_ad=True)


@pytest.mark.parametrize("name", SEGMENT)
@pytest.mark.parametrize("features", [(), (2,)])
def test_derivatives_of_segments(name, features):
    x = torch.randn(9, *features, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)

    def call(x):
        return finite(getattr(st, name)(x, offsets=OFFSETS))

    assert gradcheck(call, (x,), check_forward_ad=True)
    assert gradgradcheck(call, (x,), check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_have_the_bytes_of_arrays(dtype):
    def array(t):
        if t.dtype is not torch.bfloat16:
            return t.detach().numpy()
        return t.detach().view(torch.int16).numpy().view(pytest.importorskip("ml_dtypes").bfloat16)

    def tensor(a):
        return torch.from_numpy(a.view(np.int16)).view(dtype) if dtype is torch.bfloat16 else torch.from_numpy(np.asarray(a))

    tensors, options = masked_case(dtype)
    x, bias, sink = tensors
    for name in MASKED:
        arrays = {n: o.numpy() if isinstance(o, torch.Tensor) else o for n, o in options.items()}
        made = getattr(st, name)(x, bias=bias, sink=sink, **options)
        assert same(made.detach(), tensor(getattr(se, name)(array(x), bias=array(bias), sink=array(sink), **arrays)))
        assert same(getattr(se, name)(x.detach(), bias=bias.detach(), sink=sink.detach(), **options), made.detach())
        g = torch.ones_like(made)
        expected = getattr(se, name + "_vjp")(array(g), array(x), bias=array(bias), sink=array(sink), **arrays)
        for a, b in zip(torch.autograd.grad(made, tensors, g), expected):
            assert same(a, tensor(b))
        plain = [t.detach() for t in tensors]
        direct = getattr(se, name + "_vjp")(g, plain[0], bias=plain[1], sink=plain[2], **options)
        for a, b in zip(direct, expected):
            assert same(a, tensor(b))
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(2)).to(dtype).requires_grad_()
    for name in SEGMENT:
        made = getattr(st, name)(x, offsets=OFFSETS)
        y = getattr(se, name)(array(x), offsets=OFFSETS.numpy())
        assert same(made.detach(), tensor(y))
        ids = torch.tensor([0, 0, 0, 2, 3, 3, 3, 3, 3], dtype=torch.int32)
        assert same(getattr(se, name)(x.detach(), ids=ids), made.detach())
        at = array(x) if name == "segment_logsumexp" else y
        g = torch.ones_like(made)
        d = tensor(getattr(se, name + "_vjp")(array(g), at, offsets=OFFSETS.numpy()))
        assert same(torch.autograd.grad(made, x, g)[0], d)
        assert same(getattr(se, name + "_vjp")(g, tensor(at), offsets=OFFSETS), d)
        t = torch.randn(9, 3).to(dtype)
        assert same(getattr(se, name + "_jvp")(t, tensor(at), offsets=OFFSETS),
                    tensor(getattr(se, name + "_jvp")(array(t), at, offsets=OFFSETS.numpy())))


def test_derivatives_as_functions_can_be_differentiated():
    (x, bias, sink), options = masked_case()
    g = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)

    def vjp(g, x, bias, sink):
        return se.masked_softmax_vjp(g, x, bias=bias, sink=sink, **options)

    assert gradcheck(vjp, (g, x, bias, sink))
    made = vjp(g, x, bias, sink)
    for a, b in zip(made, vjp(g.detach(), x.detach(), bias.detach(), sink.detach())):
        assert a.shape == b.shape and torch.allclose(a, b, rtol=1e-12, atol=0)
    z = torch.randn(9, 2, dtype=torch.float64)
    for name in SEGMENT:
        at = z if name == "segment_logsumexp" else getattr(se, name)(z, offsets=OFFSETS)
        for kind in ("_vjp", "_jvp"):
            first = torch.randn((4, 2) if kind == "_vjp" and at is z else (9, 2), dtype=torch.float64, requires_grad=True)
            f = getattr(se, name + kind)
            made = f(first, at, offsets=OFFSETS)
            assert torch.allclose(made, f(first.detach(), at, offsets=OFFSETS), rtol=1e-12, atol=0)
            assert gradcheck(lambda first, at: f(first, at, offsets=OFFSETS), (first, at.clone().requires_grad_()))


def test_transforms():
    (x, bias, sink), options = masked_case(requires_grad=False)
    y = st.masked_softmax(x, bias=bias, sink=sink, where=options["where"])
    batched = torch.vmap(lambda x, w, s: st.masked_softmax(x, bias=bias, sink=s, where=w))(x, options["where"], sink)
    assert torch.allclose(batched, y, rtol=1e-14, atol=0)
    grad = torch.func.grad(lambda x: st.masked_logsumexp(x, lengths=options["lengths"]).sum())(x)
    assert torch.allclose(grad, st.masked_softmax(x, lengths=options["lengths"]), rtol=1e-14, atol=0)
    z = torch.randn(9, 2, dtype=torch.float64)
    jacobian = torch.func.jacfwd(lambda z: st.segment_softmax(z, offsets=OFFSETS))(z)
    reverse = torch.func.jacrev(lambda z: st.segment_softmax(z, offsets=OFFSETS))(z)
    assert torch.allclose(jacobian, reverse, rtol=1e-12, atol=1e-16)  # y (1 - y) next to 1
    ids = torch.tensor([0, 0, 0, 2, 3, 3, 3, 3, 3])
    grad = torch.func.grad(lambda z: finite(st.segment_logsumexp(z, ids=ids, num_segments=4)).sum())(z)
    assert torch.allclose(grad, st.segment_softmax(z, ids=ids), rtol=1e-14, atol=0)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(z, torch.ones_like(z))
        tangent = forward_ad.unpack_dual(st.segment_softmax(dual, offsets=OFFSETS)).tangent
        assert (tangent.abs() < 1e-15).all()  # probabilities add up to 1


def test_compiled():
    tensors, options = masked_case(torch.float32)

    def attend(x, bias, sink):
        return st.masked_softmax(x, bias=bias, sink=sink, **options) * 2

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    y, expected = compiled(*tensors), attend(*tensors)
    assert same(y.detach(), expected.detach())
    for a, b in zip(torch.autograd.grad(y.sum(), tensors), torch.autograd.grad(expected.sum(), tensors)):
        assert same(a, b)

    x, ids = torch.randn(9, 2, requires_grad=True), torch.tensor([0, 0, 0, 2, 3, 3, 3, 3, 3])
    for name in SEGMENT:
        expected = getattr(st, name)(x, offsets=OFFSETS)
        for options in ({"offsets": OFFSETS}, {"ids": ids, "num_segments": 4}):
            made = torch.compile(getattr(st, name), fullgraph=True, backend="aot_eager")(x, **options)
            assert same(made.detach(), expected.detach())
            made, again = (torch.autograd.grad(finite(y).square().sum(), x, retain_graph=True)[0] for y in (made, expected))
            assert same(made, again)
    with pytest.raises(RuntimeError, match="segment_logsumexp: ids fall"):
        torch.compile(st.segment_logsumexp, fullgraph=True, backend="aot_eager")(x, ids=ids.flip(0), num_segments=4)


@pytest.mark.parametrize("name", MASKED)
def test_jax_6811_and_pytorch_31829_under_autograd(name):
    """What is left out, or -inf, or a row of -inf alone, has gradient 0, and poisons nothing."""
    x = torch.tensor([[-INF, 0.0, 1.0], [-INF] * 3, [2.0, float("nan"), INF]], requires_grad=True)
    where = torch.tensor([[True] * 3, [True] * 3, [True, False, False]])
    (dx,) = torch.autograd.grad(finite(getattr(st, name)(x, where=where)).square().sum(), x)
    assert dx.isfinite().all() and (dx[1] == 0).all() and (dx[2, 1:] == 0).all()
    again = torch.func.grad(lambda x: finite(getattr(st, name)(x, where=where)).square().sum())(x.detach())
    assert torch.allclose(dx, again, atol=1e-6)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_where_of_the_plain_functions(name):
    """Under autograd, forward mode, torch.func and compile; what is left out may be anything."""
    x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    where = torch.rand(4, 6, generator=torch.Generator().manual_seed(4)) < 0.6
    where[:, 0] = True
    function = getattr(se, name)

    def call(x):
        return finite(function(x, -1, where=where))

    assert gradcheck(call, (x.clone().requires_grad_(),), check_forward_ad=True)
    assert gradgradcheck(call, (x.clone().requires_grad_(),))
    bad = x.masked_fill(~where, float("nan")).requires_grad_()
    assert same(call(bad).detach(), call(x))
    (dx,) = torch.autograd.grad(call(bad).square().sum(), bad)
    assert dx.isfinite().all() and (dx[~where] == 0).all()
    assert torch.allclose(torch.func.grad(lambda x: call(x).square().sum())(bad.detach()), dx, rtol=1e-12, atol=0)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert same(compiled(x), call(x))


def test_bad_tensors():
    x = torch.ones(2, 3)
    for options, error, text in [
        ({"where": torch.ones(3)}, TypeError, "where has dtype torch.float32, accepted: torch.bool"),
        ({"where": torch.ones(2, dtype=torch.bool)}, ValueError, r"where has shape \(2,\), accepted"),
        ({"lengths": torch.ones(2)}, TypeError, "lengths has dtype torch.float32, accepted: integers"),
        ({"lengths": torch.tensor([4, 1])}, ValueError, "lengths has 4 for row 0"),
        ({"bias": torch.ones(2)}, ValueError, r"bias has shape \(2,\)"),
        ({"sink": torch.ones(3)}, ValueError, r"sink has shape \(3,\)"),
        ({"bias": torch.ones(3, dtype=torch.complex64)}, TypeError, "bias has dtype torch.complex64"),
    ]:
        with pytest.raises(error, match="^masked_softmax: .*" + text):
            st.masked_softmax(x, **options)
    with pytest.raises(ValueError, match=r"masked_softmax_vjp: g has shape \(3,\), accepted: \(2, 3\)"):
        se.masked_softmax_vjp(torch.ones(3), x)
    with pytest.raises(TypeError, match="masked_softmax_vjp: g is a ndarray"):
        se.masked_softmax_vjp(np.ones((2, 3)), x)
    with pytest.raises(ValueError, match="ids has 0 at 1 after 1"):
        st.segment_softmax(torch.ones(2), ids=torch.tensor([1, 0]))
    out = torch.zeros(2, 3)
    assert se.masked_softmax(x, out=out) is out and same(out, st.masked_softmax(x))
    with pytest.raises(TypeError, match="masked_softmax: x is a ndarray"):
        se.masked_softmax(np.ones(3), bias=torch.ones(3))


def test_a_bias_of_minus_infinity_leaves_out_in_the_formula():
    kept = torch.tensor([[True, False, True, False]])
    some = torch.tensor([[0.3, -INF, 1.0, -INF]], dtype=torch.float64)
    for bad in (float("nan"), INF):
        x = torch.tensor([[1.0, bad, 2.0, bad]], dtype=torch.float64)
        for name in MASKED:
            function, options = getattr(st, name), {"softcap": 3.0, "temperature": 0.7}
            expected = function(x, where=kept, bias=torch.where(kept, some, 0.0), **options)
            batched = torch.vmap(lambda x: function(x, bias=some[0], **options))(x)
            assert torch.allclose(finite(batched), finite(expected), atol=1e-12), name
            for g in torch.func.grad(lambda x, b: finite(function(x, bias=b, **options)).sum(), (0, 1))(x, some):
                assert torch.isfinite(g).all() and (g[~kept] == 0).all(), name


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("infinite", [INF, -INF])
def test_softcap_makes_no_number_of_an_infinite_logit_in_the_formula(name, infinite):
    x = torch.tensor([[1.0, infinite, 2.0, -0.5]], dtype=torch.float64)
    f = getattr(st, name)
    expected = f(x, softcap=2.0)
    assert torch.allclose(torch.vmap(lambda x: f(x, softcap=2.0))(x), expected, rtol=1e-13, equal_nan=True, atol=0)
    g = torch.tensor([1.0, 2.0, -1.0, 0.5], dtype=torch.float64).reshape(1, 4)[:, : 1 if expected.dim() == 1 else 4]
    g = g.reshape(expected.shape)
    leaf = x.clone().requires_grad_()
    (dx,) = torch.autograd.grad(f(leaf, softcap=2.0), leaf, g)
    again = torch.func.vjp(lambda x: f(x, softcap=2.0), x)[1](g)[0]
    assert torch.allclose(again, dx, rtol=1e-12, equal_nan=True, atol=0)


IDS = torch.tensor([0, 0, 0, 2, 3, 3, 3, 3, 3])


@pytest.mark.parametrize("name", SEGMENT)
def test_ids_without_num_segments_in_transforms(name):
    """Their values are read where no transform maps over them; where one does, an error says so."""
    z = torch.randn(9, dtype=torch.float64, generator=torch.Generator().manual_seed(5))

    def call(z, ids):
        return finite(getattr(st, name)(z, ids=ids)).square().sum()

    leaf = z.clone().requires_grad_()
    (expected,) = torch.autograd.grad(call(leaf, IDS), leaf)
    for ids in (IDS, IDS.int()):
        assert torch.allclose(torch.func.grad(lambda z: call(z, ids))(z), expected, rtol=1e-12, atol=0)
        assert torch.allclose(torch.func.grad(call)(z, ids), expected, rtol=1e-12, atol=0)
    assert torch.allclose(torch.func.jvp(lambda z: call(z, IDS), (z,), (z,))[1], expected @ z, rtol=1e-12, atol=0)
    batched = torch.vmap(torch.func.grad(lambda z: call(z, IDS)))(z.expand(2, 9))
    assert torch.allclose(batched, expected.expand(2, 9), rtol=1e-12, atol=0)
    with pytest.raises(TypeError, match=f"^{name}: ids are mapped over by torch.vmap, accepted: offsets"):
        torch.vmap(call)(z.expand(2, 9), IDS.expand(2, 9))
    with pytest.raises(TypeError, match=f"^{name}: ids has dtype float64, accepted: integers"):
        torch.func.grad(call)(z, IDS.double())


@pytest.mark.parametrize("offsets, text", [
    ([0, 3, 3, 4, 8], "has 0 to 8"), ([1, 9], "has 1 to 9"), ([0, 3, 100], "has 0 to 100"),
    ([0, 5, 3, 9], "has 3 at 2 after 5"), ([0, -2, 9], "has -2 at 1 after 0"),
])  # fmt: skip
def test_bad_offsets_in_forward_mode_and_transforms(offsets, text):
    """They were not looked at there, and memory outside of the result was written to."""
    z, offsets = torch.ones(9, dtype=torch.float64), torch.tensor(offsets)

    def call(z, offsets=offsets):
        return st.segment_softmax(z, offsets=offsets).sum()

    with pytest.raises(ValueError, match="^segment_softmax: offsets " + text):
        torch.func.grad(call)(z)
    with pytest.raises(ValueError, match="^segment_softmax: offsets " + text):
        torch.func.grad(call)(z, offsets)
    with forward_ad.dual_level(), pytest.raises(ValueError, match="^segment_softmax: offsets " + text):
        call(forward_ad.make_dual(z, z))
    assert torch.vmap(call)(z.expand(2, 9), offsets.expand(2, -1)).shape == (2,)  # any number, and no harm


def test_offsets_that_vmap_maps_over():
    z = torch.randn(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    offsets = torch.stack([OFFSETS, torch.tensor([0, 0, 1, 9, 9])])
    for name in SEGMENT:
        made = torch.vmap(lambda z, o: getattr(st, name)(z, offsets=o))(z, offsets)
        for one, x, o in zip(made, z, offsets):
            assert torch.allclose(one, getattr(st, name)(x, offsets=o), rtol=1e-13, atol=0)


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("axis, lengths, text", [
    (1, [[2], [5]], "has 5 for row 3"), (1, [2, -1, 7], "has -1 for row 1"), (0, [0, 1, 3, 2], "has 3 for row 2"),
    (-1, 2**63, f"has {2**63} for row 0"),
])  # fmt: skip
def test_bad_lengths_in_forward_mode_and_transforms(name, axis, lengths, text):
    x = torch.ones(2, 3, 4, dtype=torch.float64)[:, :, : 4 if axis != 1 else 3]
    if axis == 0:
        x = x[:, 0]
    lengths = torch.tensor(lengths, dtype=torch.uint64 if axis == -1 else torch.int64)

    def call(x, lengths=lengths):
        return getattr(st, name)(x, axis, lengths=lengths).sum()

    def refused(run):
        with pytest.raises(ValueError, match=f"^{name}(_vjp)?: lengths {text}, accepted: 0 to {x.shape[axis]}, the "):
            run()

    refused(lambda: call(x))
    refused(lambda: torch.func.grad(call)(x))
    refused(lambda: torch.func.grad(call)(x, lengths))
    refused(lambda: torch.func.jvp(call, (x,), (x,)))
    refused(lambda: torch.func.grad(lambda x: torch.func.grad(call)(x).sum())(x))
    refused(lambda: torch.vmap(call)(torch.stack([x, x])))
    g = x.sum(axis) if name == "masked_logsumexp" else x
    refused(lambda: torch.func.grad(lambda x: getattr(se, name + "_vjp")(g, x, axis, lengths=lengths).sum())(x))
    with forward_ad.dual_level():
        refused(lambda: call(forward_ad.make_dual(x, x)))
    if axis != -1:  # mapped over they are not looked at: below 0 is 0, beyond is all
        made = torch.vmap(call, (None, 0))(x, torch.stack([lengths, lengths.clamp(0, x.shape[axis])]))
        assert torch.equal(made[0], made[1])


@pytest.mark.parametrize("gradient", [False, True])
def test_a_causal_offset_of_a_dynamic_program(gradient):
    """causal = keys - queries, compiled once for all lengths."""

    def attention(q, k):
        scores = q @ k.mT
        return st.masked_softmax(scores, causal=scores.shape[-1] - scores.shape[-2])

    torch._dynamo.reset()
    compiled = torch.compile(attention, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for keys in (7, 9, 12):
            q, k = torch.randn(2, 4, 8, requires_grad=gradient), torch.randn(2, keys, 8)
            y = compiled(q, k)
            assert torch.equal(y, attention(q, k))
            if gradient:
                v = torch.randn_like(y)
                (made,), (want,) = (torch.autograd.grad((f(q, k) * v).sum(), q) for f in (compiled, attention))
                assert torch.equal(made, want)


@pytest.mark.parametrize("name", MASKED)
def test_gradients_are_laid_out_as_compiled_programs_expect(name):
    x, sink = torch.randn(2, 3, 4, 5), torch.randn(4, 3, 2, 1).transpose(0, 2)
    bias = torch.randn(4, 5, 3).permute(2, 0, 1)[None]
    assert not bias.is_contiguous() and not sink.is_contiguous()
    g = x.sum(-1) if name == "masked_logsumexp" else x
    given = ([g], [x, bias, sink, None, None], [], [True, True, True, False, False], -1, None, 0.0, 1.0, False)
    operation = getattr(torch.ops.sumexp, name + "_vjp").default
    torch.library.opcheck(operation, given, test_utils="test_faketensor")


def test_derivatives_of_a_segment_of_minus_infinity_alone():
    """As the kernels have them, where they are differentiated: 0, in their second derivatives too."""
    x = torch.tensor([-INF, -INF, 1.0, -INF])
    for kind, first in (("_vjp", torch.tensor([2.0, 3])), ("_jvp", torch.tensor([2.0, 1, 3, 4]))):
        f = lambda first, x: getattr(se, "segment_logsumexp" + kind)(first, x, offsets=[0, 2, 4])
        u, z = first.clone().requires_grad_(), x.clone().requires_grad_()
        made = f(u, z)
        assert torch.equal(made, f(first, x)) and torch.equal(made, torch.func.vmap(f)(first[None], x[None])[0])
        of_first, of_x = torch.autograd.grad(made.sum(), (u, z))
        assert torch.equal(of_first, torch.tensor([0.0, 1] if kind == "_vjp" else [0.0, 0, 1, 0])) and not of_x.any()
    assert f(first, torch.tensor([INF, -INF, 1.0, 0]).requires_grad_())[0].isnan()
