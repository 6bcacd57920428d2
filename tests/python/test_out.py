"""out= of every function that gives one array: the same bytes, in the caller's memory, checked before anything is written."""

import inspect

import numpy as np
import pytest

import sumexp as se

RANDOM = np.random.default_rng(3)
X, G = (RANDOM.normal(size=(6, 9)).astype(np.float32) for _ in range(2))
ROWS = RANDOM.normal(size=6).astype(np.float32)
TARGET, OFFSETS = np.arange(6), np.array([0, 2, 2, 6])
Y, LOGY, PER_SEGMENT = se.softmax(X), se.log_softmax(X), G[:3]

# name: its arguments, by position and by name
CASES = {
    "softmax": ((X,), {}), "log_softmax": ((X,), {}), "logsumexp": ((X, -1), {}), "logmeanexp": ((X, -1), {}),
    "softmax_vjp": ((G, Y), {}), "softmax_jvp": ((G, Y), {}), "softmax_hvp": ((G, X, Y), {}),
    "log_softmax_vjp": ((G, LOGY), {}), "log_softmax_jvp": ((G, LOGY), {}), "log_softmax_hvp": ((G, X, LOGY), {}),
    "logsumexp_vjp": ((ROWS, X, -1), {}), "logsumexp_jvp": ((G, X, -1), {}),
    "cross_entropy": ((X, TARGET), {"reduction": "none"}), "cross_entropy_vjp": ((ROWS, X, TARGET), {"reduction": "none"}),
    "linear_cross_entropy": ((X, G, TARGET), {"reduction": "none"}),
    "log_prob": ((X, TARGET), {}), "log_prob_vjp": ((ROWS, X, TARGET), {}), "entropy": ((X,), {}),
    "entropy_vjp": ((ROWS, X), {}), "kl_div": ((X, G), {}), "log_prob_and_entropy_vjp": (((ROWS, ROWS), X, TARGET), {}),
    "sample": ((X,), {"seed": 1, "num_samples": 4}), "sample_counts": ((X, 1000), {"seed": 1}),
    "linear_sample": ((X, G), {"seed": 1}), "gumbel_softmax": ((X,), {"seed": 1}),
    "masked_softmax": ((X,), {"where": X > 0}), "masked_log_softmax": ((X,), {"where": X > 0}),
    "masked_logsumexp": ((X,), {"where": X > 0}),
    "segment_softmax": ((X,), {"offsets": OFFSETS}), "segment_log_softmax": ((X,), {"offsets": OFFSETS}),
    "segment_logsumexp": ((X,), {"offsets": OFFSETS}), "segment_softmax_vjp": ((G, Y), {"offsets": OFFSETS}),
    "segment_softmax_jvp": ((G, Y), {"offsets": OFFSETS}), "segment_log_softmax_vjp": ((G, LOGY), {"offsets": OFFSETS}),
    "segment_log_softmax_jvp": ((G, LOGY), {"offsets": OFFSETS}),
    "segment_logsumexp_vjp": ((PER_SEGMENT, X), {"offsets": OFFSETS}), "segment_logsumexp_jvp": ((G, X), {"offsets": OFFSETS}),
    "logaddexp": ((X, G), {}), "logaddexp_jvp": ((G, X, X, G), {}), "logsubexp": ((X + 9, G), {}),
    "logsubexp_jvp": ((G, X, X + 9, G), {}), "log1mexp": ((-abs(X),), {}), "log1mexp_vjp": ((G, -abs(X)), {}),
    "softplus": ((X,), {}), "softplus_vjp": ((G, X), {}),
    "logcumsumexp": ((X,), {}), "logcumsumexp_vjp": ((G, X), {}), "logcumsumexp_jvp": ((G, X), {}),
    "logmatmulexp": ((X, G.T), {}), "logmatmulexp_jvp": ((G, X.T, X, G.T), {}),
}  # fmt: skip
# What gives several arrays, or none, or a matrix a row.
WITHOUT = {
    "get_num_threads", "set_num_threads", "show_config", "softmax_jacobian", "log_softmax_jacobian", "logsumexp_hessian",
    "linear_cross_entropy_with_grad", "linear_cross_entropy_vjp", "log_prob_and_entropy",
    "kl_div_vjp", "logaddexp_vjp", "logsubexp_vjp", "logmatmulexp_vjp", "masked_softmax_vjp", "masked_log_softmax_vjp",
    "masked_logsumexp_vjp",
}  # fmt: skip


def test_every_function_is_here():
    functions = {n for n in dir(se) if n[0] != "_" and callable(getattr(se, n)) and not inspect.isclass(getattr(se, n))}
    assert functions - {"cross_entropy_with_grad"} == CASES.keys() | WITHOUT
    assert not [n for n in WITHOUT if "out" in inspect.signature(getattr(se, n)).parameters]


@pytest.mark.parametrize("name", CASES)
def test_out(name):
    args, kwargs = CASES[name]
    function = getattr(se, name)
    expected = function(*args, **kwargs)
    places = [np.full(expected.shape, 7, expected.dtype), np.full((*expected.shape, 2), 7, expected.dtype)[..., 0]]
    places += [np.full(expected.shape[::-1], 7, expected.dtype).T]
    for place in places:
        assert function(*args, **kwargs, out=place) is place
        np.testing.assert_array_equal(place, expected, strict=True)
    for bad, error in ((np.full(expected.shape, 7, np.int8), TypeError), (np.full((2, 3, 4), 7, expected.dtype), ValueError)):
        with pytest.raises(error, match=rf"^{name}: out has .*accepted: "):
            function(*args, **kwargs, out=bad)
        assert (bad == 7).all()
    locked = np.full(expected.shape, 7, expected.dtype)
    locked.flags.writeable = False
    with pytest.raises(ValueError, match=rf"^{name}: out is read-only, accepted: "):
        function(*args, **kwargs, out=locked)
    with pytest.raises(TypeError, match=rf"^{name}: out is a list, accepted: "):
        function(*args, **kwargs, out=[1.0])
    shared = np.lib.stride_tricks.as_strided(np.full(expected.shape[1:], 7, expected.dtype), expected.shape,
                                             (0, *np.empty(expected.shape[1:], expected.dtype).strides), writeable=True)
    with pytest.raises(ValueError, match=rf"^{name}: out has elements that share memory, accepted: distinct elements"):
        function(*args, **kwargs, out=shared)
    assert (shared == 7).all()


def test_other_results_that_share_memory():
    shared = np.lib.stride_tricks.as_strided(np.zeros(9, np.float32), (6, 9), (0, 4), writeable=True)
    for call, name in ((lambda: se.cross_entropy_with_grad(X, TARGET, out=shared), "cross_entropy_with_grad: out"),
                       (lambda: se.linear_cross_entropy_with_grad(X, G, TARGET, out_dw=shared),
                        "linear_cross_entropy_with_grad: out_dw")):  # fmt: skip
        with pytest.raises(ValueError, match=rf"^{name} has elements that share memory, accepted: distinct elements"):
            call()
    assert (shared == 0).all()


@pytest.mark.parametrize("name", CASES)
def test_in_place(name):
    """Over each argument of the result's shape; over part of one nothing is written."""
    args, kwargs = CASES[name]
    function = getattr(se, name)
    expected = function(*args, **kwargs)
    flat = {k: a for k, a in enumerate(args) if isinstance(a, np.ndarray) and a.dtype == expected.dtype}
    for k, a in flat.items():
        if a.shape == expected.shape:
            given = [b.copy() if isinstance(b, np.ndarray) else b for b in args]
            assert function(*given, **kwargs, out=given[k]) is given[k]
            np.testing.assert_array_equal(given[k], expected, strict=True)
        if a.size > expected.size:
            memory = a.copy()
            part = memory.reshape(-1)[1 : 1 + expected.size].reshape(expected.shape)
            given = [memory if j == k else b for j, b in enumerate(args)]
            with pytest.raises(ValueError, match=rf"^{name}: out overlaps (an input|[a-z]+), accepted: "):
                function(*given, **kwargs, out=part)
            assert memory.tobytes() == a.tobytes()


@pytest.mark.parametrize("name", CASES)
def test_tensors(name):
    torch = pytest.importorskip("torch")
    args, kwargs = CASES[name]

    def tensors(value):
        if isinstance(value, tuple):
            return tuple(map(tensors, value))
        return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value

    function, given = getattr(se, name), [tensors(a) for a in args]
    named = {n: tensors(v) for n, v in kwargs.items()}
    expected = function(*given, **named)
    place = torch.full_like(expected, 7)
    assert function(*given, **named, out=place) is place
    assert torch.equal(place, expected)
    with pytest.raises((TypeError, ValueError, RuntimeError), match=name):
        function(*given, **named, out=torch.full((2, 3, 4), 7, dtype=expected.dtype))
