"""The softmax head on whatever comes: the bytes of cross_entropy on the same logits, and gradients within a bound.

x, w and bias are small multiples of 1/2, so that logits are exact in every dtype, in any order of their sums. The bound of a
gradient: that of cross_entropy's, 16 eps (1 + |z| + |lse|) of its absolute parts, and an eps for each term of the products and
sums over them; and the rounding of the result. eps is half the machine epsilon of the dtype that logits are in: float32 where
arrays have 16 bits, but bfloat16 for tensors of bfloat16.
"""

import itertools
import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import linear_reference as reference
import sumexp as se

wide = np.longdouble
INFO = ("lse", "log_prob", "entropy", "z_loss", "predicted", "correct")
DTYPES = [np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]
INDICES = ("int8", "uint8", "int16", "int32", "int64")
PARTS = ("x", "w", "bias")
NEED = [c for k in range(4) for c in itertools.combinations(PARTS, k)] + 6 * [PARTS]


def eps(dtype):
    return float(ml_dtypes.finfo(dtype).eps) / 2


def halves(rng, *shape, most=4):
    return rng.integers(-most, most + 1, shape) / 2


class Case:
    """x (..., D), w (V, D), bias, a target, options, and what they are of: `rows` tokens, dense targets y, `kept`."""

    def __init__(self, draw, batch):
        rng = self.rng = np.random.default_rng(draw(st.integers(0, 2**32)))
        self.dtype = draw(st.sampled_from(DTYPES))
        self.batch, self.rows = batch, math.prod(batch)
        self.classes, width = draw(st.sampled_from([5, 3, 6, 2, 4, 1])), draw(st.sampled_from([3, 4, 2, 1, 0]))
        self.x = halves(rng, *batch, width).astype(self.dtype)
        self.w = halves(rng, self.classes, width).astype(self.dtype)
        self.bias = halves(rng, self.classes).astype(self.dtype) if draw(st.sampled_from([True, True, False])) else None
        self.options = {"ignore_index": -100}
        self.target = self.targets(draw)
        self.need = draw(st.sampled_from(NEED))
        self.chunk_size = draw(st.sampled_from([2, 1, 3, None, 100]))
        self.x[~self.kept.reshape(batch)] = draw(st.sampled_from([0, np.nan, np.inf]))  # which are not read
        self.choose(draw)

    def targets(self, draw):
        rng, shape, classes = self.rng, self.batch, self.classes
        kind = draw(st.sampled_from(["index", "index", "probabilities", "pairs"]))
        self.y, self.kept = np.zeros((self.rows, classes), wide), np.ones(self.rows, bool)
        self.is_index = kind == "index"
        if kind == "probabilities":
            y = rng.integers(0, 4, (*shape, classes)) / 4
            self.y[...] = y.reshape(self.y.shape)
            return y.astype(draw(st.sampled_from([np.float32, np.float64])))
        ignored = draw(st.sampled_from([-100, 0, 3, -1]))
        dtype = np.dtype(draw(st.sampled_from(INDICES)))
        index = rng.integers(0, classes, shape if kind == "index" else (*shape, draw(st.integers(1, 3)))).astype(dtype)
        if np.iinfo(dtype).min <= ignored and draw(st.booleans()):
            index[rng.random(index.shape) < draw(st.sampled_from([0.3, 1.0]))] = ignored
        self.options["ignore_index"] = ignored
        flat = index.reshape(self.rows, math.prod(index.shape[len(shape) :]))
        shares = np.ones(flat.shape) if kind == "index" else rng.integers(0, 5, flat.shape) / 2
        self.kept = (flat != ignored).any(axis=1)
        for i, k in np.argwhere(flat != ignored):
            self.y[i, flat[i, k]] += shares[i, k]
        return index if kind == "index" else (index, shares.reshape(index.shape).astype(np.float32))

    def choose(self, draw):
        given = {
            "label_smoothing": st.sampled_from([0.1, 1.0]), "z_loss": st.sampled_from([0.25]),
            "softcap": st.sampled_from([2.0, 30.0]), "temperature": st.sampled_from([0.7, 3.0]),
            "weight": st.just(self.rng.integers(0, 4, self.classes) / 2),
            "token_weight": st.just(np.asarray(self.rng.integers(-1, 4, self.batch) / 2)),
        }  # fmt: skip
        for name in draw(st.lists(st.sampled_from(list(given)), unique=True)):
            self.options[name] = draw(given[name])
        self.options["reduction"] = draw(st.sampled_from(["mean", "mean", "sum", "none"]))
        if self.options["reduction"] == "mean" and draw(st.booleans()):
            self.options["denominator"] = 2.5
        self.options["on_empty"] = draw(st.sampled_from(["nan", "zero"]))

    def __repr__(self):
        shapes = f"{self.x.shape} of {self.dtype}, {self.classes} classes, chunks of {self.chunk_size}, need {self.need}"
        return f"x {shapes}, target {self.target!r}, {self.options}"

    def logits(self, dtype):
        with np.errstate(invalid="ignore"):
            z = self.x.astype(np.float64) @ self.w.astype(np.float64).T
        return (z if self.bias is None else z + self.bias.astype(np.float64)).astype(dtype)

    def of_rows(self, target):
        """A target, or the options, as of logits (rows, classes)."""
        flat = lambda a: a.reshape(self.rows, *a.shape[len(self.batch) :])
        if isinstance(target, dict):
            return {n: flat(v) if n == "token_weight" else v for n, v in target.items()}
        return tuple(map(flat, target)) if isinstance(target, tuple) else flat(target)

    def of_cross_entropy(self, work):
        """(its loss, in x's dtype, {name: array}) on logits of dtype work."""
        target, options = self.of_rows(self.target), self.of_rows(self.options)
        z = self.logits(np.float64).reshape(self.rows, self.classes)
        loss = np.asarray(se.cross_entropy(z.astype(self.dtype), target, **options))
        of_work, info = se.cross_entropy(z.astype(work), target, info=INFO, **options)
        if options["reduction"] == "none":
            loss = of_work.astype(self.dtype)
        shape = self.batch if options["reduction"] == "none" else ()
        return loss.reshape(shape), {n: a.reshape(self.batch) for n, a in info.items()}

    def gradients(self, work):
        """{name: (the exact gradient, the bound)}, where logits and what is made of them have dtype work."""
        o, rows, e = self.options, self.rows, eps(work)
        if not rows:
            nothing = {"x": np.zeros(self.x.shape), "w": np.zeros(self.w.shape), "bias": np.zeros(self.classes)}
            return {n: (a, a) for n, a in nothing.items()}
        x = np.where(self.kept[:, None], self.x.reshape(rows, self.w.shape[1]), 0)
        x, w = x.astype(wide), self.w.astype(wide)
        target, options = self.of_rows(self.target), self.of_rows(o)
        bias = None if self.bias is None else self.bias.astype(wide)
        _, dx, dw, db, _ = reference.linear_cross_entropy(x, w, target, bias, **options)
        z = x @ w.T + (0 if bias is None else bias)
        z = z if "softcap" not in o else o["softcap"] * np.tanh(z / o["softcap"])  # whose slope is at most 1
        z = z / o.get("temperature", 1.0)
        log_p = reference.log_softmax(z)
        lse = z.max(axis=1) - log_p.max(axis=1)
        smoothing = o.get("label_smoothing", 0.0)
        a = o.get("weight", np.ones(self.classes)) * ((1 - smoothing) * self.y + wide(smoothing) / self.classes)
        factor = np.where(self.kept, np.abs(options.get("token_weight", np.ones(rows))), 0) / self.divisor()
        total = a.sum(axis=1) + 2 * o.get("z_loss", 0.0) * np.abs(lse)
        parts = factor[:, None] * (total[:, None] * np.exp(log_p) + a) / o.get("temperature", 1.0)
        own = e * parts * (16 * (1 + np.abs(z) + np.abs(lse)[:, None]) + self.classes + rows + 4)
        found = {"x": (dx, own @ np.abs(w)), "w": (dw, own.T @ np.abs(x)), "bias": (db, own.sum(axis=0))}
        last, tiny = 2 * eps(self.dtype), 2 * float(ml_dtypes.finfo(self.dtype).smallest_subnormal)
        return {n: (exact, bound + last * np.abs(exact) + tiny) for n, (exact, bound) in found.items()}

    def divisor(self):
        """Of the absolute parts: 1 where there is no mean."""
        o = self.options
        if o["reduction"] != "mean":
            return 1
        if "denominator" in o:
            return o["denominator"]
        tokens = o.get("token_weight", np.ones(self.batch)).reshape(self.rows)
        classes = (self.y * o.get("weight", np.ones(self.classes))).sum(axis=1) if self.is_index else np.ones(self.rows)
        return abs(np.where(self.kept, tokens * classes, 0).sum()) or np.inf

    def check(self, gradients, work, of_loss=1):
        empty = self.divisor() == np.inf  # a mean over nothing
        exact = {} if empty else self.gradients(work)
        for name, found in gradients.items():
            if name not in self.need or (name == "bias" and self.bias is None):
                assert found is None
                continue
            assert found.dtype == self.dtype and found.shape == getattr(self, name).shape
            if empty:
                nothing = 0 if self.options["on_empty"] == "zero" else np.nan
                assert all(g in (0, nothing) or np.isnan(g) for g in found.astype(np.float64).flat)
                continue
            want, bound = exact[name]
            error = np.abs(found.astype(wide).reshape(want.shape) / of_loss - want)
            assert (error <= bound).all(), (name, found, want, bound)
            if name == "x":
                assert not found.reshape(want.shape)[~self.kept].any()


@st.composite
def cases(draw):
    sizes = st.sampled_from([4, 2, 3, 5, 1, 0])
    return Case(draw, tuple(draw(sizes) for _ in range(draw(st.sampled_from([1, 1, 2, 2, 3, 0])))))


def same(found, expected):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert np.array_equal(np.isnan(found.astype(np.float64)), np.isnan(expected.astype(np.float64)))
    number = ~np.isnan(expected.astype(np.float64))
    assert found[number].tobytes() == expected[number].tobytes()


@settings(max_examples=500, deadline=None)
@given(cases())
def test_arrays(case):
    keywords = {"bias": case.bias, "info": INFO, "chunk_size": case.chunk_size, **case.options}
    loss, info = se.linear_cross_entropy(case.x, case.w, case.target, **keywords)
    work = np.dtype(np.float32) if case.dtype.itemsize == 2 else case.dtype
    expected, told = case.of_cross_entropy(work)
    same(loss, expected)
    for name in INFO:
        same(info[name], told[name])
    again, *gradients, info = se.linear_cross_entropy_with_grad(case.x, case.w, case.target, need=case.need, **keywords)
    same(again, expected)
    for name in INFO:
        same(info[name], told[name])
    case.check(dict(zip(PARTS, gradients)), work)


def tensor_of(a):
    torch = pytest.importorskip("torch")
    if isinstance(a, tuple):
        return tuple(map(tensor_of, a))
    if not isinstance(a, np.ndarray):
        return a
    if a.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(np.ascontiguousarray(a).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(a).reshape(a.shape))


def array_of(t):
    if t is None:
        return None
    t = t.detach()
    return t.view(dtype=t.dtype).float().numpy().astype(ml_dtypes.bfloat16) if str(t.dtype) == "torch.bfloat16" else t.numpy()


@settings(max_examples=500, deadline=None)
@given(cases())
def test_tensors(case):
    pytest.importorskip("torch")
    import sumexp.torch as sumexp_torch

    given = dict(zip(PARTS, map(tensor_of, (case.x, case.w, case.bias))))
    given = {n: t if t is None else t.clone().requires_grad_(n in case.need) for n, t in given.items()}
    options, target = {n: tensor_of(v) for n, v in case.options.items()}, tensor_of(case.target)
    if not isinstance(target, tuple) and target.is_floating_point():
        options.pop("ignore_index")
    keywords = {"linear_bias": given["bias"], "info": INFO, "chunk_size": case.chunk_size, **options}
    loss, info = sumexp_torch.linear_cross_entropy(given["x"], given["w"], target, **keywords)
    work = np.dtype(np.float32) if case.dtype == np.float16 else case.dtype
    expected, told = case.of_cross_entropy(work)
    same(array_of(loss), expected)
    for name in INFO:
        same(array_of(info[name]), told[name])
    assert loss.requires_grad == any(t is not None and t.requires_grad for t in given.values())
    if loss.requires_grad:
        (-2 * loss.sum()).backward()
    case.check({n: None if t is None else array_of(t.grad) for n, t in given.items()}, work, -2)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_heads_of_several_positions(data):
    """w (C, d1, ..., D): the losses of cross_entropy on logits (N, C, d1, ...), of rows to the byte, and its gradients."""
    torch = pytest.importorskip("torch")
    import sumexp.torch as sumexp_torch

    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows, classes, width = draw(st.integers(0, 4)), draw(st.integers(1, 5)), draw(st.integers(0, 3))
    positions = tuple(draw(st.lists(st.integers(0, 3), min_size=1, max_size=2)))
    x, w, bias = halves(rng, rows, width), halves(rng, classes, *positions, width), halves(rng, classes, *positions)
    target = rng.integers(0, classes, (rows, *positions))
    target[rng.random(target.shape) < draw(st.sampled_from([0, 0.3]))] = -100
    if draw(st.booleans()):
        target = target[..., None], rng.random((*target.shape, 1))
    options = {"label_smoothing": draw(st.sampled_from([0, 0.1])), "reduction": draw(st.sampled_from(["mean", "sum", "none"]))}
    if draw(st.booleans()):
        options["weight"] = rng.random(classes) + 0.5
    if draw(st.booleans()):
        options["token_weight"] = rng.random((rows, *positions)) + 0.5
    leaves, peers = ([tensor_of(a).clone().requires_grad_() for a in (x, w, bias)] for _ in range(2))
    options, target = {n: tensor_of(v) for n, v in options.items()}, tensor_of(target)
    chunk_size = draw(st.sampled_from([None, 1, 3]))
    loss = sumexp_torch.linear_cross_entropy(*leaves[:2], target, linear_bias=leaves[2], chunk_size=chunk_size, **options)
    logits = torch.einsum("nd,c...d->nc...", *peers[:2]) + peers[2]
    expected = sumexp_torch.cross_entropy(logits, target, **options)
    if options["reduction"] == "none":
        same(array_of(loss), array_of(expected))
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=1e-13, equal_nan=True)
    found, exact = (torch.autograd.grad(a.sum(), of, allow_unused=True, materialize_grads=True) for a, of in
                    ((loss, leaves), (expected, peers)))  # fmt: skip
    if not expected.isnan().any():
        torch.testing.assert_close(found, exact, rtol=1e-11, atol=1e-13)
