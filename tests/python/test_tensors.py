"""The raw entries for tensor libraries: run_tensors by DLPack's C exchange table, read_dlpack."""

import numpy as np
import pytest

import sumexp as se
from sumexp import _core

torch = pytest.importorskip("torch")

SOFTMAX, LOG_SOFTMAX, LOGSUMEXP, SOFTMAX_VJP, LOGSUMEXP_VJP, LOGSUMEXP_JVP, WEIGHTED_LOGSUMEXP = 0, 1, 2, 3, 6, 7, 10
CROSS_ENTROPY, CROSS_ENTROPY_WITH_GRAD = 11, 12
X = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
ROW = torch.zeros(3, 4, dtype=torch.int64)


def same(tensor, array):
    assert tensor.numpy().tobytes() == np.ascontiguousarray(array).tobytes()


@pytest.mark.parametrize("layout", [lambda x: x, lambda x: x.mT, lambda x: x[:, ::2], lambda x: x[1:], lambda x: x[0, 0]])
@pytest.mark.parametrize("dim", [-1, 0, (0, -1), None])
def test_run_tensors(layout, dim):
    x = layout(X)
    if isinstance(dim, tuple) and x.ndim == 1:
        return
    out = torch.empty(x.shape)
    _core.run_tensors(SOFTMAX, (x,), out, dim)
    same(out, se.softmax(x.numpy(), dim))
    _core.run_tensors(SOFTMAX, (x,), out, dim, 2.0)
    same(out, se.softmax(x.numpy(), dim, temperature=2.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype):
    x = X.to(dtype)
    out = torch.empty_like(x)
    _core.run_tensors(LOG_SOFTMAX, (x,), out, 1)
    torch.testing.assert_close(out, torch.log_softmax(x, 1))


@pytest.mark.parametrize("keepdims", [False, True])
def test_rows(keepdims):
    want = se.logsumexp(X.numpy(), 1, keepdims=keepdims)
    out = torch.empty(want.shape)
    _core.run_tensors(LOGSUMEXP, (X,), out, 1)
    same(out, want)
    g, dx = torch.randn(want.shape), torch.empty_like(X)
    _core.run_tensors(LOGSUMEXP_VJP, (X, g), dx, 1)
    same(dx, se.logsumexp_vjp(g.numpy(), X.numpy(), 1, keepdims=keepdims))
    _core.run_tensors(LOGSUMEXP_JVP, (X, X), out, 1)
    same(out, se.logsumexp_jvp(X.numpy(), X.numpy(), 1, keepdims=keepdims))


def test_weights_sign_and_mask():
    b, mask = torch.randn(5).expand(3, 4, 5), torch.rand(3, 4, 5) < 0.5
    out, sign = torch.empty(3, 4), torch.empty(3, 4)
    _core.run_tensors(WEIGHTED_LOGSUMEXP, (X, b), out, -1, 1.0, mask, sign)
    want = se.logsumexp(X.numpy(), -1, b=b.numpy(), where=mask.numpy(), return_sign=True)
    same(out, want[0])
    same(sign, want[1])


def test_an_index_and_a_second_result():
    target = torch.arange(12).reshape(3, 4) % 5
    want, loss, dx = torch.empty(3, 4), torch.empty(3, 4), torch.empty_like(X)
    _core.run_tensors(CROSS_ENTROPY, (X, target), want, -1)
    _core.run_tensors(CROSS_ENTROPY_WITH_GRAD, (X, target), dx, -1, 1.0, None, loss)
    assert torch.equal(loss, want)
    x = X.double().requires_grad_()
    of_torch = torch.nn.functional.cross_entropy(x.reshape(12, 5), target.reshape(12), reduction="none")
    of_torch.sum().backward()
    np.testing.assert_allclose(want, of_torch.detach().reshape(3, 4), rtol=2e-7)
    np.testing.assert_allclose(dx, x.grad, rtol=3e-7)


@pytest.mark.parametrize("args, error, pattern", [
    ((SOFTMAX, (X,), torch.empty(3, 4), -1), ValueError, r"out has shape \(3, 4\), which does not fit the shape"),
    ((LOGSUMEXP, (X,), torch.empty(3, 5), -1), ValueError, r"out has shape \(3, 5\), which does not fit the rows"),
    ((SOFTMAX, (X,), torch.empty_like(X).double(), -1), TypeError, "out has DLPack dtype"),
    ((SOFTMAX, (X.long(),), torch.empty_like(X), -1), TypeError, "input has DLPack dtype"),
    ((SOFTMAX, (X.to("meta"),), torch.empty_like(X), -1), Exception, ""),
    ((SOFTMAX, (3,), X, -1), TypeError, "input is a int, accepted: a tensor with"),
    ((SOFTMAX, (X,), torch.empty_like(X), 3), ValueError, "axis 3 is out of bounds"),
    ((99, (X,), X, -1), ValueError, "op is 99, accepted: 0 to 12"),
    ((CROSS_ENTROPY, (X, ROW.int()), ROW.float(), -1), TypeError, "input has DLPack dtype .*accepted: int64"),
    ((CROSS_ENTROPY, (X, ROW.float()), ROW.float(), -1), TypeError, "input has DLPack dtype .*accepted: int64"),
    ((CROSS_ENTROPY, (X, ROW + 5), ROW.float(), -1), ValueError, r"in\[1\] is 5 for row 0"),
    ((SOFTMAX, (), X, -1), ValueError, "inputs has 0 tensors"),
    ((SOFTMAX, X, X, -1), TypeError, "run_tensors"),
    ((SOFTMAX_VJP, (X, X[0]), torch.empty_like(X), -1), ValueError, r"input has shape \(4, 5\)"),
])
def test_run_tensors_refuses(args, error, pattern):
    with pytest.raises(error, match=pattern or None):
        _core.run_tensors(*args)


@pytest.mark.parametrize("layout", [lambda x: x, lambda x: x.mT, lambda x: x[1, :, 2], lambda x: x[:0], lambda x: x.double()])
def test_read_dlpack(layout):
    x = layout(X)
    strides = tuple(s * x.element_size() for s in x.stride())
    want = (x.data_ptr(), tuple(x.shape), strides, (2, 8 * x.element_size()), (1, 0))
    assert _core.read_dlpack(x) == (*want, 0, False)
    assert _core.read_dlpack(x.__dlpack__()) == (*want, None, True)  # no version: it cannot tell
    assert _core.read_dlpack(x.__dlpack__(max_version=(1, 0))) == (*want, None, False)


def test_read_dlpack_refuses():
    capsule = X.__dlpack__()
    torch.from_dlpack(capsule)
    with pytest.raises(TypeError, match="unknown or used capsule"):
        _core.read_dlpack(capsule)
    with pytest.raises(TypeError, match="x is a list, accepted: a tensor with"):
        _core.read_dlpack([1.0])
