"""What the tests of torch tensors share."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import sumexp as se  # noqa: E402
import sumexp.torch as st  # noqa: E402

NAMES = ["softmax", "log_softmax", "logsumexp"]
X = torch.randn(4, 3, 6, 5, generator=torch.Generator().manual_seed(0)) * 4


def same_bytes(tensor, array):
    if tensor.dtype == torch.bfloat16:
        assert torch.equal(tensor.view(torch.int16), torch.from_numpy(array.view(np.int16)))
    else:
        assert tensor.contiguous().numpy().tobytes() == np.ascontiguousarray(array).tobytes()


# -- every function that is differentiated, with arguments of float64 --------------------------------------------


def _normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


_R, _U, _V, _W = _normal(3, seed=1), _normal(3, 4, seed=2), _normal(3, 4, seed=3), _normal(4, 3, seed=4)
_S, _L, _P = _U.softmax(-1), _U.log_softmax(-1), _V.abs() + 0.5
_INDEX, _OFFSETS = torch.tensor([1, 3, 0]), torch.tensor([0, 1, 3])
_MASK = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1], [0, 1, 0, 1]], dtype=torch.bool)
_segments = {"offsets": _OFFSETS}

FAMILIES = {
    "softmax": (lambda x: st.softmax(x, -1), _U),
    "log_softmax": (lambda x: st.log_softmax(x, -1), _U),
    "logsumexp": (lambda x: st.logsumexp(x, -1), _U),
    "logsumexp, b": (lambda x, b: se.logsumexp(x, -1, b=b), _U, _P),
    "cross_entropy": (lambda x: st.cross_entropy(x, _INDEX, label_smoothing=0.1, z_loss=0.1), _U),
    "cross_entropy of probabilities": (lambda x, y: st.cross_entropy(x, y, reduction="none"), _U, _P),
    "linear_cross_entropy": (
        lambda x, w, b: st.linear_cross_entropy(x, w, _INDEX, linear_bias=b), _U, _normal(5, 4, seed=6), _normal(5, seed=7)
    ),
    "entropy": (st.entropy, _U),
    "kl_div": (st.kl_div, _U, _V),
    "log_prob": (lambda x: st.log_prob(x, _INDEX), _U),
    "log_prob_and_entropy": (lambda x: st.log_prob_and_entropy(x, _INDEX), _U),
    "log1mexp": (lambda x: st.log1mexp(x), _P),
    "logaddexp": (lambda a, b: st.logaddexp(a, b), _U, _V),
    "logsubexp": (lambda a, b: st.logsubexp(a + 9, b), _U, _V),
    "softplus": (lambda x: st.softplus(x, 2.0), _U),
    "logcumsumexp": (lambda x: st.logcumsumexp(x, -1), _U),
    "logmatmulexp": (st.logmatmulexp, _U, _W),
    "logmeanexp": (lambda x: st.logmeanexp(x, -1), _U),
    "gumbel_softmax": (lambda x: st.gumbel_softmax(x, seed=1), _U),
    "masked_softmax": (lambda x, b: st.masked_softmax(x, where=_MASK, bias=b), _U, _V),
    "masked_log_softmax": (lambda x: st.masked_log_softmax(x, where=_MASK).masked_fill(~_MASK, 0), _U),
    "masked_logsumexp": (lambda x, s: st.masked_logsumexp(x, where=_MASK, sink=s), _U, _R),
    "segment_softmax": (lambda x: st.segment_softmax(x, **_segments), _U),
    "segment_log_softmax": (lambda x: st.segment_log_softmax(x, **_segments), _U),
    "segment_logsumexp": (lambda x: st.segment_logsumexp(x, **_segments), _U),
}
DERIVATIVES = {  # the package's own, as functions
    "softmax_vjp": (se.softmax_vjp, _V, _S),
    "softmax_jvp": (se.softmax_jvp, _V, _S),
    "softmax_hvp": (se.softmax_hvp, _V, _P, _S),
    "log_softmax_vjp": (se.log_softmax_vjp, _V, _L),
    "log_softmax_jvp": (se.log_softmax_jvp, _V, _L),
    "log_softmax_hvp": (se.log_softmax_hvp, _V, _P, _L),
    "logsumexp_vjp": (lambda g, x: se.logsumexp_vjp(g, x, -1), _R, _U),
    "logsumexp_jvp": (lambda t, x: se.logsumexp_jvp(t, x, -1), _V, _U),
    "logsumexp_vjp, b": (lambda g, x, b: se.logsumexp_vjp(g, x, -1, b=b), _R, _U, _P),
    "logsumexp_jvp, b": (lambda t, x, b: se.logsumexp_jvp(t, x, -1, b=b, t_b=t.sin()), _V, _U, _P),
    "cross_entropy_vjp": (lambda g, x: se.cross_entropy_vjp(g, x, _INDEX, reduction="none"), _R, _U),
    "cross_entropy_with_grad": (lambda x: se.cross_entropy_with_grad(x, _INDEX), _U),
    "entropy_vjp": (se.entropy_vjp, _R, _U),
    "kl_div_vjp": (se.kl_div_vjp, _R, _U, _V),
    "log_prob_vjp": (lambda g, x: se.log_prob_vjp(g, x, _INDEX), _R, _U),
    "log1mexp_vjp": (lambda g, x: se.log1mexp_vjp(g, x), _U, _P),
    "softplus_vjp": (lambda g, x: se.softplus_vjp(g, x), _V, _U),
    "logaddexp_vjp": (se.logaddexp_vjp, _P, _U, _V),
    "logaddexp_jvp": (lambda ta, tb, a, b: se.logaddexp_jvp(ta, tb, a, b), _P, _S, _U, _V),
    "logsubexp_vjp": (lambda g, a, b: se.logsubexp_vjp(g, a + 9, b), _P, _U, _V),
    "logsubexp_jvp": (lambda ta, tb, a, b: se.logsubexp_jvp(ta, tb, a + 9, b), _P, _S, _U, _V),
    "logcumsumexp_vjp": (lambda g, x: se.logcumsumexp_vjp(g, x), _V, _U),
    "logcumsumexp_jvp": (lambda t, x: se.logcumsumexp_jvp(t, x), _V, _U),
    "logmatmulexp_vjp": (se.logmatmulexp_vjp, _normal(3, 3, seed=5), _U, _W),
    "logmatmulexp_jvp": (lambda ta, tb, a, b: se.logmatmulexp_jvp(ta, tb, a, b), _V, _V.T, _U, _W),
    "masked_softmax_vjp": (lambda g, x, b: se.masked_softmax_vjp(g, x, where=_MASK, bias=b), _V, _U, _P),
    "masked_logsumexp_vjp": (lambda g, x: se.masked_logsumexp_vjp(g, x, where=_MASK), _R, _U),
    "segment_softmax_vjp": (lambda g, y: se.segment_softmax_vjp(g, y, **_segments), _V, _S),
    "segment_log_softmax_jvp": (lambda t, y: se.segment_log_softmax_jvp(t, y, **_segments), _V, _L),
    "segment_logsumexp_jvp": (lambda t, x: se.segment_logsumexp_jvp(t, x, **_segments), _V, _U),
}


def as_one(function):
    """The function, with its results in one tensor."""

    def call(*tensors):
        made = function(*tensors)
        return torch.cat([t.reshape(-1) for t in made]) if isinstance(made, tuple) else made

    return call
