"""sumexp: softmax, log_softmax, logsumexp and their derivatives, at memory speed, within 2 ulp, and with the
same bits on every CPU, thread count and batch size.

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
from ._matrices import log_softmax_jacobian, logsumexp_hessian, softmax_jacobian

__all__ = [
    "__version__",
    "get_num_threads",
    "log1mexp",
    "log1mexp_vjp",
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
    "logmeanexp",
    "logsubexp",
    "logsubexp_jvp",
    "logsubexp_vjp",
    "logsumexp",
    "logsumexp_hessian",
    "logsumexp_jvp",
    "logsumexp_vjp",
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
