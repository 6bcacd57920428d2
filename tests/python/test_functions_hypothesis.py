"""Any array a user might build: the result is right, and its bytes are those of a contiguous copy's."""

import ml_dtypes
import numpy as np
from hypothesis import given, settings, strategies as st

import plain_reference as reference
import sumexp as se

DTYPES = {np.dtype(np.float16): 4e-3, np.dtype(ml_dtypes.bfloat16): 3e-2, np.dtype(np.float32): 4e-6,
          np.dtype(np.float64): 1e-13}


@st.composite
def arrays(draw):
    """(a strided view, the axis or axes to reduce)"""
    ndim = draw(st.integers(0, 4))
    shape = tuple(draw(st.integers(0, 9)) for _ in range(ndim))
    steps = tuple(draw(st.sampled_from([1, 2, 3, -1, -2])) for _ in range(ndim))
    lead = tuple(draw(st.integers(0, 2)) for _ in range(ndim))
    order = draw(st.permutations(range(ndim)))
    dtype = draw(st.sampled_from(list(DTYPES)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = draw(st.sampled_from([0.1, 1.0, 30.0]))
    # The view's elements lie `step` apart, after `lead` others, in a transposed holder full of NaN.
    holder = np.full([lead[d] + shape[d] * abs(steps[d]) for d in order], np.nan).astype(dtype)
    view = holder.transpose(np.argsort(order))
    view = view[(..., *(slice(k, None) for k in lead))][(..., *(slice(None, None, s) for s in steps))]
    view[...] = (rng.normal(size=shape) * scale).astype(dtype)
    bad = draw(st.sampled_from([None, None, None, np.nan, np.inf, -np.inf]))
    if bad is not None and view.size:
        view[tuple(draw(st.integers(0, n - 1)) for n in shape)] = bad
    axes = draw(st.lists(st.integers(-ndim, ndim - 1), unique_by=lambda a: a % ndim, max_size=ndim)) if ndim else []
    return view, draw(st.sampled_from([None, tuple(axes)] + axes))


def close(result, want, dtype):
    assert np.asarray(result).dtype == dtype and np.shape(result) == np.shape(want)
    with np.errstate(over="ignore"):
        want = np.asarray(want).astype(dtype).astype(np.float64)  # what overflows the dtype is inf in both
    tolerance = DTYPES[dtype]
    np.testing.assert_allclose(np.asarray(result, np.float64), want, rtol=tolerance, atol=tolerance)


@settings(max_examples=400, deadline=None)
@given(arrays(), st.sampled_from([1.0, 0.5, 4.0]))
def test_forward(case, temperature):
    x, axis = case
    for name in ("softmax", "log_softmax"):
        result = getattr(se, name)(x, axis, temperature=temperature)
        close(result, getattr(reference, name)(x, axis, temperature), x.dtype)
        assert np.asarray(result).tobytes() == getattr(se, name)(x.copy(), axis, temperature=temperature).tobytes()
        in_place = x.copy(order="K")
        getattr(se, name)(in_place, axis, temperature=temperature, out=in_place)
        assert in_place.tobytes() == np.asarray(result).tobytes()
    result = se.logsumexp(x, axis)
    want, sign = reference.logsumexp(x, axis)
    close(result, want, x.dtype)
    assert np.asarray(result).tobytes() == se.logsumexp(x.copy(), axis).tobytes()
    np.testing.assert_array_equal(np.asarray(se.logsumexp(x, axis, return_sign=True)[1], np.float64), sign)


@settings(max_examples=200, deadline=None)
@given(arrays(), st.integers(0, 2**32))
def test_derivatives(case, seed):
    x, axis = case
    x = np.where(np.isfinite(x.astype(np.float64)), x, 0).astype(x.dtype) / x.dtype.type(8)
    rng = np.random.default_rng(seed)
    g, v = (rng.normal(size=x.shape).astype(x.dtype) for _ in range(2))
    for forward in ("softmax", "log_softmax"):
        y = np.asarray(reference.__dict__[forward](x, axis)).astype(x.dtype)
        for suffix, args in (("_vjp", (g, y)), ("_jvp", (g, y)), ("_hvp", (g, v, y))):
            want = getattr(reference, forward + suffix)(*args, axis=axis)
            scale = x.dtype.type(1 / max(1.0, np.abs(want).max(initial=0)))
            result = getattr(se, forward + suffix)(*args, axis=axis)
            close(np.asarray(result * scale, x.dtype), want * np.float64(scale), x.dtype)
            copies = [a.copy() for a in args]
            assert np.asarray(result).tobytes() == getattr(se, forward + suffix)(*copies, axis=axis).tobytes()
