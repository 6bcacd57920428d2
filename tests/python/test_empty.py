"""Arrays without elements, and of no dimensions: tensors, whose data may then be at address 0, as NumPy's arrays."""

import numpy as np
import pytest

import sumexp as se

torch = pytest.importorskip("torch")


def results(call, convert):
    given = call(convert)
    return [np.asarray(r) for r in (given if isinstance(given, tuple) else (given,)) if r is not None]


def same(call):
    ours, theirs = results(call, lambda a: a), results(call, torch.from_numpy)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        assert a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True)


ONE = ["softmax", "log_softmax", "logsumexp", "logmeanexp", "entropy", "logcumsumexp", "masked_softmax", "masked_logsumexp"]
TWO = ["softmax_vjp", "log_softmax_vjp", "log_softmax_jvp", "masked_softmax_vjp", "logcumsumexp_vjp", "logcumsumexp_jvp"]
ELEMENTWISE = {"log1mexp": 1, "softplus": 1, "logaddexp": 2, "logsubexp": 2, "softplus_vjp": 2, "logaddexp_vjp": 3,
               "logsubexp_vjp": 3, "logaddexp_jvp": 4}  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(2, 0), (0, 3), (0, 0), (2, 0, 3)])
def test_no_elements(shape, dtype):
    x, row, axis = np.zeros(shape, dtype), np.zeros((*shape[:1], *shape[2:]), dtype), 1
    for name in ONE:
        same(lambda c: getattr(se, name)(c(x), axis=axis))
    for name in TWO:
        same(lambda c: getattr(se, name)(c(x), c(x), axis=axis))
    for name, count in ELEMENTWISE.items():
        same(lambda c: getattr(se, name)(*[c(x)] * count))
    same(lambda c: se.log_softmax_hvp(c(x), c(x), c(x), axis=axis))
    for b in ({}, {"b": x}):
        same(lambda c: se.logsumexp_vjp(c(row), c(x), axis, **{k: c(v) for k, v in b.items()}))
        same(lambda c: se.logsumexp_jvp(c(x), c(x), axis, **{k: c(v) for k, v in b.items()}))
        same(lambda c: se.logsumexp(c(x), axis, return_sign=True, **{k: c(v) for k, v in b.items()}))
    same(lambda c: se.logsumexp(c(x), axis, b=c(x), where=c(x == 0)))
    same(lambda c: se.logmeanexp(c(x), axis, where=c(x == 0)))
    if len(shape) == 2:
        same(lambda c: se.logmatmulexp(c(x), c(x.T.copy())))
        same(lambda c: se.cross_entropy_with_grad(c(x), c(x), reduction="none"))
        same(lambda c: se.kl_div_vjp(c(row), c(x), c(x)))


def test_nothing_to_add():
    for f in (se.logsumexp, lambda x, axis: se.logsumexp(x, axis, b=x), lambda x, axis: se.masked_logsumexp(x, axis=axis)):
        assert f(torch.zeros(2, 0), 1).tolist() == f(np.zeros((2, 0)), 1).tolist() == [-np.inf, -np.inf]


def test_no_dimensions():
    x = np.array(1.5)
    for call in [
        lambda c: se.logsumexp(c(x), b=c(x), return_sign=True), lambda c: se.logmeanexp(c(x)),
        lambda c: se.logsumexp_vjp(c(x), c(x), b=c(x)), lambda c: se.logsumexp_jvp(c(x), c(x), b=c(x)),
        lambda c: se.logsumexp_vjp(c(x), c(x)), lambda c: se.softmax(c(x), axis=None), lambda c: se.softplus_vjp(c(x), c(x)),
    ]:  # fmt: skip
        same(call)


def test_features_of_no_width():
    x, w, bias, target = np.zeros((2, 0)), np.zeros((4, 0)), np.arange(4.0), np.array([1, 3])
    same(lambda c: se.linear_cross_entropy(c(x), c(w), c(target), bias=c(bias)))
    loss, dx, dw, db = se.linear_cross_entropy_with_grad(x, w, target, bias=bias)
    assert dx.shape == (2, 0) and dw.shape == (4, 0)
    expected = se.cross_entropy_with_grad(np.tile(bias, (2, 1)), target)
    assert loss == expected[0] and np.allclose(db, expected[1].sum(0), rtol=1e-12, atol=0)
