"""linear_cross_entropy: values and gradients of NumPy arrays and tensors, chunks, what is not computed, and other libraries'
faults (ignored rows, frozen heads, sums in 16 bits, a mean normalised twice)."""

import itertools
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

import linear_reference as reference
import sumexp as se
from sumexp import _core

N, D, V = 11, 7, 6
RNG = np.random.default_rng(0)
X, W, B = RNG.normal(size=(N, D)), RNG.normal(size=(V, D)), RNG.normal(size=V)
T = RNG.integers(0, V, N)
T[[3, 7]] = -100
PAIRS = RNG.integers(0, V, (N, 2)), RNG.random((N, 2))
PAIRS[0][3] = PAIRS[0][5, 0] = -100
TARGETS = {"index": T, "probabilities": RNG.dirichlet(np.ones(V), N), "pairs": PAIRS}
OPTIONS = {
    "plain": {},
    "all": {
        "label_smoothing": 0.1, "z_loss": 0.1, "softcap": 3.0, "temperature": 0.8, "weight": RNG.random(V),
        "token_weight": RNG.random(N),
    },
}  # fmt: skip
TOLERANCE = {"float64": 1e-13, "float32": 1e-5, "float16": 3e-3, "bfloat16": 3e-2}




@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("target", TARGETS)
def test_values(target, options, dtype):
    x, w, b = (a.astype(dtype) for a in (X, W, B))
    for reduction, chunk in itertools.product(("mean", "sum", "none"), (None, 3, 1)):
        keywords = {**OPTIONS[options], "reduction": reduction}
        info = ("lse", "log_prob", "entropy", "z_loss", "correct")
        *got, info = se.linear_cross_entropy_with_grad(x, w, TARGETS[target], bias=b, chunk_size=chunk, info=info, **keywords)
        *expected, info_expected = reference.linear_cross_entropy(x, w, TARGETS[target], b, **keywords)
        for a, e in zip(got, expected):
            assert a.dtype == dtype and a.shape == e.shape
            tolerance = TOLERANCE[np.dtype(dtype).name]
            np.testing.assert_allclose(a.astype(np.longdouble), e, rtol=tolerance, atol=tolerance * np.abs(e).max())
        for name, a in info.items():
            np.testing.assert_allclose(a, info_expected[name].astype(float), rtol=2e-5, atol=2e-5)
        alone = se.linear_cross_entropy(x, w, TARGETS[target], bias=b, chunk_size=chunk, **keywords)
        assert alone.tobytes() == got[0].tobytes()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("target", TARGETS)
def test_bytes_of_cross_entropy(target, reduction, dtype):
    """On the same logits: integers, whose products are exact in any order."""
    x, w = RNG.integers(-4, 5, (N, D)).astype(dtype), RNG.integers(-4, 5, (V, D)).astype(dtype)
    for options in OPTIONS.values():
        expected, g = se.cross_entropy_with_grad(x @ w.T, TARGETS[target], reduction=reduction, **options)
        for chunk, isa in itertools.product((None, 4, 1), ("portable", _core.get_isa())):
            _core.set_isa(isa)
            loss, dx, dw, _ = se.linear_cross_entropy_with_grad(
                x, w, TARGETS[target], reduction=reduction, chunk_size=chunk, **options
            )
            assert loss.tobytes() == expected.tobytes()
        np.testing.assert_allclose(dx, g @ w, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(dw, g.T @ x, rtol=1e-4, atol=1e-5)


def test_one_chunk_has_the_bytes_of_the_composition():
    x, w, b = (a.astype(np.float32) for a in (X, W, B))
    target = np.abs(T) % V
    loss, dx, dw, db = se.linear_cross_entropy_with_grad(x, w, target, bias=b)
    expected, g = se.cross_entropy_with_grad(x @ w.T + b, target)
    for got, made in zip((loss, dx, dw, db), (expected, g @ w, g.T @ x, g.sum(axis=0))):
        assert got.tobytes() == made.tobytes()


def test_shapes_and_strides():
    x = np.asfortranarray(RNG.normal(size=(4, 3, 2 * D)))[:, :, ::2]
    w = np.asfortranarray(RNG.normal(size=(2 * V, D)))[::2]
    t = RNG.integers(0, V, (3, 4)).T
    for options in ({}, {"token_weight": RNG.random((4, 1)), "reduction": "none", "info": ("predicted",)}):
        loss, dx, dw, db, *info = se.linear_cross_entropy_with_grad(x, w, t, chunk_size=5, **options)
        expected = se.cross_entropy_with_grad(x @ w.T, t, **options)
        np.testing.assert_allclose(loss, expected[0], rtol=1e-12)
        np.testing.assert_allclose(dx, expected[1] @ w, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(dw, np.einsum("abv,abd->vd", expected[1], x), rtol=1e-12, atol=1e-14)
        assert db is None and dx.shape == x.shape
        if info:
            assert np.array_equal(info[0]["predicted"], expected[2]["predicted"])
    assert se.linear_cross_entropy(x[0, 0], w, 2).shape == ()
    assert np.isnan(se.linear_cross_entropy(x[:0], w, t[:0]))
    loss, dx, dw, _ = se.linear_cross_entropy_with_grad(x[:0], w, t[:0], on_empty="zero")
    assert loss == 0 and dx.shape == (0, 3, D) and not dw.any()


@pytest.mark.parametrize("need", [c for k in range(4) for c in itertools.combinations(("x", "w", "bias"), k)])
def test_only_what_is_needed(need):
    everything = dict(zip(("x", "w", "bias"), se.linear_cross_entropy_with_grad(X, W, T, bias=B, chunk_size=4)[1:]))
    got = dict(zip(("x", "w", "bias"), se.linear_cross_entropy_with_grad(X, W, T, bias=B, chunk_size=4, need=need)[1:]))
    for part, gradient in got.items():
        assert (gradient is None) == (part not in need)
        assert gradient is None or np.array_equal(gradient, everything[part])


def test_frozen_head_costs_nothing(monkeypatch):
    """TRL 7076: dW was computed for a head that is not trained."""
    from sumexp import _linear

    monkeypatch.setattr(_linear, "add_product", lambda *_: pytest.fail("dw was computed"))
    assert se.linear_cross_entropy_with_grad(X, W, T, need="x")[2] is None


@pytest.mark.parametrize("dtype, to", [(np.float32, np.float32), (np.float16, np.float16), (np.float16, np.float32)])
def test_added_to_a_buffer(dtype, to):
    x, w = X.astype(dtype), W.astype(dtype)
    dw = se.linear_cross_entropy_with_grad(x, w, T, chunk_size=2)[2]
    buffer = np.full((V, D), 0.25, to)
    assert se.linear_cross_entropy_with_grad(x, w, T, chunk_size=2, out_dw=buffer)[2] is buffer
    both = np.concatenate([w, np.zeros_like(w)], axis=1)  # rows of w and of its gradient by turns
    w, half = np.hsplit(both, 2)
    expected = se.linear_cross_entropy_with_grad(x, w, T, chunk_size=2)[2]
    assert se.linear_cross_entropy_with_grad(x, w, T, chunk_size=2, out_dw=half)[2] is half
    np.testing.assert_array_equal(half, expected)
    np.testing.assert_allclose(buffer, 0.25 + dw.astype(float), rtol=0, atol=5e-4 if dtype == np.float16 else 1e-7)


def test_ignored_rows_are_not_read():
    """pytorch 11551: NaN in an ignored row made every gradient NaN."""
    x = X.copy()
    x[[3, 7]] = np.nan
    got, expected = (se.linear_cross_entropy_with_grad(a, W, T, bias=B) for a in (x, X))
    for a, e in zip(got, expected):
        assert np.array_equal(a, e)
    assert not got[1][[3, 7]].any()
    loss, dx, dw, db = se.linear_cross_entropy_with_grad(x, W, np.full(N, -100), bias=B)
    assert np.isnan(loss) and not dx.any() and not dw.any() and not db.any()


@pytest.mark.parametrize("option", ["none", "label_smoothing", "z_loss"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_subnormal_gradients_are_flushed(dtype, option):
    """By all ways that rows go: short ones, one by one, side by side, and written over their logits."""
    info = ml_dtypes.finfo(dtype)
    least = float(info.smallest_normal)
    options = {"reduction": "sum", **({} if option == "none" else {option: least if option == "label_smoothing" else 0.1})}
    for shape, axis in (((400, 6), 1), ((40, 100), 1), ((5, 3000), 1), ((6, 400), 0), ((3000, 17), 0)):
        rng = np.random.default_rng(shape)
        x = (rng.random(shape) * 1.1 * np.log(float(info.smallest_subnormal))).astype(dtype)
        t = rng.integers(0, shape[axis], shape[1 - axis])
        kept, flushed = np.empty_like(x), np.empty_like(x)
        _core._cross_entropy(x, t, axis, dlogits=kept, **options)
        _core._cross_entropy(x, t, axis, dlogits=flushed, flush_subnormal=True, **options)
        numbers = kept.astype(np.float64)
        expected = np.where(np.abs(numbers) < least, 0, numbers).astype(dtype)
        assert (kept != expected).sum() > 10
        assert flushed.tobytes() == expected.tobytes()
        _core._cross_entropy(x, t, axis, dlogits=x, flush_subnormal=True, **options)
        assert x.tobytes() == expected.tobytes()


def test_products_meet_no_subnormal_gradients():
    """Some CPUs take a hundred cycles for each."""
    x, w = np.ones((1, 1), np.float32), np.array([[0], [-80], [-95]], np.float32)
    loss, dx, dw, _ = se.linear_cross_entropy_with_grad(x, w, np.array([1]), reduction="sum")
    assert (loss, dx[0, 0], dw[:, 0].tolist()) == (80, 80, [1, -1, 0])


def test_mean_over_several_calls():
    """transformers 34191: with accumulated gradients the mean was normalised in each call, and again."""
    kept = np.count_nonzero(T != -100)
    whole = se.linear_cross_entropy_with_grad(X, W, T)
    slices = slice(0, 2), slice(2, 9), slice(9, N)
    parts = [se.linear_cross_entropy_with_grad(X[s], W, T[s], denominator=kept) for s in slices]
    np.testing.assert_allclose(sum(p[0] for p in parts), whole[0], rtol=1e-13)
    np.testing.assert_allclose(sum(p[2] for p in parts), whole[2], rtol=1e-12)
    np.testing.assert_allclose(np.concatenate([p[1] for p in parts]), whole[1], rtol=1e-12, atol=1e-16)


def test_sums_of_16_bits():
    """Loss and dW are added up in float32: in bfloat16 a sum of 4,096 ones stops at 256."""
    x, w = np.ones((4096, 1), ml_dtypes.bfloat16), np.zeros((2, 1), ml_dtypes.bfloat16)
    target = np.zeros(4096, np.int64)
    loss, _, dw, _ = se.linear_cross_entropy_with_grad(x, w, target, reduction="sum", chunk_size=16)
    assert abs(float(loss) - 4096 * np.log(2)) <= 8  # half a unit in the last place of bfloat16
    assert np.array_equal(dw.astype(float), [[-2048.0], [2048.0]])


def test_losses_written_to_out():
    for reduction, shape in (("mean", ()), ("none", (N,))):
        expected, info = se.linear_cross_entropy(X, W, T, reduction=reduction, info="lse")
        out = np.empty(shape)
        loss, found = se.linear_cross_entropy(X, W, T, reduction=reduction, info="lse", out=out)
        assert loss is out and np.array_equal(out, expected) and np.array_equal(found["lse"], info["lse"])
    tokens = np.linspace(0.5, 2, N)
    expected = se.linear_cross_entropy(X, W, T, reduction="none", token_weight=tokens)
    assert se.linear_cross_entropy(X, W, T, reduction="none", token_weight=tokens, out=tokens) is tokens
    assert np.array_equal(tokens, expected)
    out = np.full(N, 7.0)
    with pytest.raises(ValueError, match="^linear_cross_entropy: target is 6"):
        se.linear_cross_entropy(X, W, np.full(N, V), reduction="none", out=out)
    assert (out == 7).all()
    torch = pytest.importorskip("torch")
    x, w, t = map(torch.from_numpy, (X, W, T))
    out = torch.full((N,), 7.0, dtype=torch.float64)
    with pytest.raises(ValueError, match="^linear_cross_entropy: target is 6"):
        se.linear_cross_entropy(x, w, t * 0 + V, reduction="none", out=out)
    assert (out == 7).all()
    loss, found = se.linear_cross_entropy(x, w, t, reduction="none", info="lse", out=out)
    assert loss is out and torch.equal(out, se.linear_cross_entropy(x, w, t, reduction="none")) and list(found) == ["lse"]
    with pytest.raises(RuntimeError, match="^linear_cross_entropy: out= cannot be differentiated"):
        se.linear_cross_entropy(x.clone().requires_grad_(), w, t, reduction="none", out=out)


def test_errors_name_the_function_called():
    torch = pytest.importorskip("torch")
    for lift in (lambda a: a, torch.from_numpy):
        for bad in (np.full(N, V), T[1:], (np.full((N, 2), V), np.ones((N, 2)))):
            target = tuple(map(lift, bad)) if isinstance(bad, tuple) else lift(bad)
            x, w, buffer = lift(X), lift(W), lift(np.ones((V, D)))
            for name, g in (("linear_cross_entropy_with_grad", ()), ("linear_cross_entropy_vjp", (1.0,))):
                with pytest.raises(ValueError, match=f"^{name}: target"):
                    getattr(se, name)(*g, x, w, target, out_dw=buffer)
                assert (buffer == 1).all()


def test_memory():
    """Beside the results, less than 5 % of what whole logits would take."""
    n, d, v = 1024, 16, 20_000
    x, w = RNG.normal(size=(n, d)).astype(np.float32), RNG.normal(size=(v, d)).astype(np.float32)
    target = RNG.integers(0, v, n)
    se.linear_cross_entropy_with_grad(x[:2], w, target[:2])
    tracemalloc.start()
    results = se.linear_cross_entropy_with_grad(x, w, target)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    kept = sum(a.nbytes for a in results if a is not None)
    assert peak - kept - 4 * (1 << 20) < 0.05 * n * v * 4  # a block of 2^20 elements is converted or added at a time


ERRORS = {
    "w": ({"w": W[0]}, ValueError, r"w has shape \(7,\), accepted: \(V, D\)"),
    "x": ({"x": X[:, 1:]}, ValueError, r"x has shape \(11, 6\), accepted: \(..., 7\), as w has shape \(6, 7\)"),
    "bias": ({"bias": B[1:]}, ValueError, r"bias has shape \(5,\), accepted: \(6,\)"),
    "target": ({"target": T[1:]}, ValueError, r"target has shape \(10,\), accepted: \(11,\)"),
    "range": ({"target": np.full(N, V)}, ValueError, "target is 6 for row 0, accepted: indices from 0 below 6, and -100"),
    "need": ({"need": ("x", "b")}, ValueError, "need has 'b', accepted: 'x', 'w', 'bias'"),
    "chunk": ({"chunk_size": 0}, ValueError, "chunk_size is 0, accepted: an int from 1, or None"),
    "chunks": ({"chunk_size": 1.5}, TypeError, "chunk_size is 1.5, accepted: an int from 1, or None"),
    "dtype": ({"out_dw": np.zeros((V, D), np.float32)}, TypeError, "out_dw has dtype float32, accepted: float64"),
    "shape": ({"out_dw": np.zeros((D, V))}, ValueError, r"out_dw has shape \(7, 6\), accepted: \(6, 7\)"),
    "overlap": ({"out_dw": W}, ValueError, "out_dw overlaps an input, accepted: memory of its own"),
    "smoothing": ({"label_smoothing": 2}, ValueError, r"label_smoothing is 2, accepted: a number in \[0, 1\]"),
    "complex": ({"x": X + 0j}, TypeError, "x has dtype complex128, accepted: float16"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    changed, kind, message = ERRORS[case]
    arguments, before = {"x": X, "w": W, "target": T, **changed}, W.copy()
    with pytest.raises(kind, match="^linear_cross_entropy_with_grad: .*" + message):
        se.linear_cross_entropy_with_grad(**arguments)
    assert np.array_equal(W, before)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("target", TARGETS)
def test_vjp(target, reduction, options):
    """cross_entropy_vjp on whole logits, and two products; for g = 1 the bytes of _with_grad."""
    keywords = {**OPTIONS[options], "reduction": reduction}
    ones = se.linear_cross_entropy_vjp(1, X, W, TARGETS[target], bias=B, chunk_size=4, **keywords)
    same = se.linear_cross_entropy_with_grad(X, W, TARGETS[target], bias=B, chunk_size=4, **keywords)[1:]
    assert all(a.tobytes() == b.tobytes() for a, b in zip(ones, same))
    g = RNG.normal(size=N) if reduction == "none" else -2.5
    got = se.linear_cross_entropy_vjp(g, X, W, TARGETS[target], bias=B, chunk_size=4, **keywords)
    d = se.cross_entropy_vjp(g, X @ W.T + B, TARGETS[target], **keywords)
    for a, e in zip(got, (d @ W, d.T @ X, d.sum(0))):
        np.testing.assert_allclose(a, e, rtol=1e-12, atol=1e-13)
    torch = pytest.importorskip("torch")
    target = TARGETS[target]
    target = tuple(map(torch.from_numpy, target)) if isinstance(target, tuple) else torch.from_numpy(target)
    keywords = {n: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for n, v in keywords.items()}
    x, w, b, of_loss = map(torch.as_tensor, (X, W, B, g))
    made = se.linear_cross_entropy_vjp(of_loss, x, w, target, bias=b, chunk_size=4, **keywords)
    for a, e in zip(made, got):
        np.testing.assert_allclose(a, e, rtol=1e-12, atol=1e-13)


def test_vjp_arguments():
    assert se.linear_cross_entropy_vjp(1.0, X, W, T, need=("w",))[::2] == (None, None)
    buffer = np.ones((V, D))
    assert se.linear_cross_entropy_vjp(2.0, X, W, T, out_dw=buffer)[1] is buffer
    np.testing.assert_allclose(buffer - 1, se.linear_cross_entropy_vjp(2.0, X, W, T)[1], atol=1e-14)
    torch = pytest.importorskip("torch")
    tensors = [torch.from_numpy(a) for a in (X, W, T)]
    for g, arguments in ((np.ones(N), (X, W, T)), (torch.ones(N), tensors)):
        with pytest.raises(ValueError, match="^linear_cross_entropy_vjp: g has .*accepted: "):
            se.linear_cross_entropy_vjp(g, *arguments)
    with pytest.raises(ValueError, match="^linear_cross_entropy_vjp: g has shape .*accepted: "):
        se.linear_cross_entropy_vjp(np.ones(N + 1), X, W, T, reduction="none")
