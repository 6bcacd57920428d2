"""sumexp for torch: under torch's names and signatures where torch has the function, else under NumPy's with `dim` for axis.

    import sumexp.torch as st
    p = st.softmax(x, dim=-1)              # autograd, forward mode, torch.func, vmap, compile, export
    layer = st.nn.Softmax(dim=-1)

Tensors of float16, bfloat16, float32 and float64 are computed by this library on the CPU and, where that was built, on CUDA
devices, there but for logcumsumexp and logmatmulexp, which are composed of torch's operations. Other devices raise a TypeError.
Everything else (tensor subclasses, sparse and nested layouts, complex numbers, meta tensors) goes to torch's own functions, but
in linear_cross_entropy and the draws, which raise an error that says so.
"""

from torch.fx import wrap as _wrap

from . import _compile, nn
from ._cross_entropy import cross_entropy
from ._dispatch import dispatch as _dispatch
from ._front import log_softmax, logsumexp, softmax
from ._information import entropy, kl_div, log_prob, log_prob_and_entropy
from ._linear import linear_cross_entropy
from ._log_domain import log1mexp, logaddexp, logcumsumexp, logmeanexp, logsubexp, softplus
from ._logmatmul import logmatmulexp
from ._masked import masked_log_softmax, masked_logsumexp, masked_softmax
from ._sampling import gumbel_softmax, linear_sample, sample, sample_counts
from ._segments import segment_log_softmax, segment_logsumexp, segment_softmax

_compile.tell_in_time()

__all__ = [
    "cross_entropy",
    "entropy",
    "gumbel_softmax",
    "kl_div",
    "linear_cross_entropy",
    "linear_sample",
    "log1mexp",
    "log_prob",
    "log_prob_and_entropy",
    "log_softmax",
    "logaddexp",
    "logcumsumexp",
    "logmatmulexp",
    "logmeanexp",
    "logsubexp",
    "logsumexp",
    "masked_log_softmax",
    "masked_logsumexp",
    "masked_softmax",
    "nn",
    "sample",
    "sample_counts",
    "segment_log_softmax",
    "segment_logsumexp",
    "segment_softmax",
    "softmax",
    "softplus",
]

for _name in set(__all__) - {"cross_entropy", "log_softmax", "logsumexp", "nn", "softmax"}:  # which look for themselves
    _wrap(_name)  # symbolic tracing records the call
