"""sumexp: the sum of exponentials. softmax, log_softmax and logsumexp, losses, entropies, sampling, masks, segments and
products in the log domain, with their derivatives: at memory speed, within 2 ulp, and with the same bits on every CPU, thread
count and batch size.

    import sumexp as se
    p = se.softmax(x)                      # NumPy arrays, torch tensors, anything with DLPack
    l = se.logsumexp(x, axis=0)
    dx = se.log_softmax_vjp(g, se.log_softmax(x))

sumexp.special has scipy.special's signatures; sumexp.torch has torch.nn.functional's.
"""

from . import _config, special
from ._config import get_num_threads, set_num_threads, show_config
from ._core import (
    __version__,
    log_softmax,
    log_softmax_hvp,
    log_softmax_jvp,
    log_softmax_vjp,
    logsumexp,
    logsumexp_jvp,
    logsumexp_vjp,
    softmax,
    softmax_hvp,
    softmax_jvp,
    softmax_vjp,
)
from ._draws import SampleInfo
from ._information import (
    entropy,
    entropy_vjp,
    kl_div,
    kl_div_vjp,
    log_prob,
    log_prob_and_entropy,
    log_prob_and_entropy_vjp,
    log_prob_vjp,
)
from ._linear import linear_cross_entropy, linear_cross_entropy_vjp, linear_cross_entropy_with_grad
from ._log_domain import (
    log1mexp,
    log1mexp_vjp,
    logaddexp,
    logaddexp_jvp,
    logaddexp_vjp,
    logcumsumexp,
    logcumsumexp_jvp,
    logcumsumexp_vjp,
    logmeanexp,
    logsubexp,
    logsubexp_jvp,
    logsubexp_vjp,
    softplus,
    softplus_vjp,
)
from ._logmatmul import logmatmulexp, logmatmulexp_jvp, logmatmulexp_vjp
from ._losses import cross_entropy, cross_entropy_vjp, cross_entropy_with_grad
from ._masked import (
    masked_log_softmax,
    masked_log_softmax_vjp,
    masked_logsumexp,
    masked_logsumexp_vjp,
    masked_softmax,
    masked_softmax_vjp,
)
from ._matrices import log_softmax_jacobian, logsumexp_hessian, softmax_jacobian
from ._sampling import gumbel_softmax, linear_sample, sample, sample_counts
from ._segments import (
    segment_log_softmax,
    segment_log_softmax_jvp,
    segment_log_softmax_vjp,
    segment_logsumexp,
    segment_logsumexp_jvp,
    segment_logsumexp_vjp,
    segment_softmax,
    segment_softmax_jvp,
    segment_softmax_vjp,
)
from ._stream import LogSumExp

__all__ = [
    "LogSumExp",
    "SampleInfo",
    "__version__",
    "cross_entropy",
    "cross_entropy_vjp",
    "cross_entropy_with_grad",
    "entropy",
    "entropy_vjp",
    "get_num_threads",
    "gumbel_softmax",
    "kl_div",
    "kl_div_vjp",
    "linear_cross_entropy",
    "linear_cross_entropy_vjp",
    "linear_cross_entropy_with_grad",
    "linear_sample",
    "log1mexp",
    "log1mexp_vjp",
    "log_prob",
    "log_prob_and_entropy",
    "log_prob_and_entropy_vjp",
    "log_prob_vjp",
    "log_softmax",
    "log_softmax_hvp",
    "log_softmax_jacobian",
    "log_softmax_jvp",
    "log_softmax_vjp",
    "logaddexp",
    "logaddexp_jvp",
    "logaddexp_vjp",
    "logcumsumexp",
    "logcumsumexp_jvp",
    "logcumsumexp_vjp",
    "logmatmulexp",
    "logmatmulexp_jvp",
    "logmatmulexp_vjp",
    "logmeanexp",
    "logsubexp",
    "logsubexp_jvp",
    "logsubexp_vjp",
    "logsumexp",
    "logsumexp_hessian",
    "logsumexp_jvp",
    "logsumexp_vjp",
    "masked_log_softmax",
    "masked_log_softmax_vjp",
    "masked_logsumexp",
    "masked_logsumexp_vjp",
    "masked_softmax",
    "masked_softmax_vjp",
    "sample",
    "sample_counts",
    "segment_log_softmax",
    "segment_log_softmax_jvp",
    "segment_log_softmax_vjp",
    "segment_logsumexp",
    "segment_logsumexp_jvp",
    "segment_logsumexp_vjp",
    "segment_softmax",
    "segment_softmax_jvp",
    "segment_softmax_vjp",
    "set_num_threads",
    "show_config",
    "softmax",
    "softmax_hvp",
    "softmax_jacobian",
    "softmax_jvp",
    "softmax_vjp",
    "softplus",
    "softplus_vjp",
    "special",
]

_config.register_threadpoolctl()
