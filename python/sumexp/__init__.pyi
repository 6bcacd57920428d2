from typing import Any, Literal, SupportsIndex, overload

from numpy.typing import ArrayLike

from . import special as special
from ._core import (
    __version__ as __version__,
    log_softmax as log_softmax,
    log_softmax_hvp as log_softmax_hvp,
    log_softmax_jvp as log_softmax_jvp,
    log_softmax_vjp as log_softmax_vjp,
    logsumexp as logsumexp,
    logsumexp_jvp as logsumexp_jvp,
    logsumexp_vjp as logsumexp_vjp,
    softmax as softmax,
    softmax_hvp as softmax_hvp,
    softmax_jvp as softmax_jvp,
    softmax_vjp as softmax_vjp,
)
from ._logmatmul import (
    logmatmulexp as logmatmulexp,
    logmatmulexp_jvp as logmatmulexp_jvp,
    logmatmulexp_vjp as logmatmulexp_vjp,
)
from ._stream import LogSumExp as LogSumExp

__all__ = [
    "LogSumExp",
    "__version__",
    "get_num_threads",
    "log_softmax",
    "log_softmax_hvp",
    "log_softmax_jacobian",
    "log_softmax_jvp",
    "log_softmax_vjp",
    "logmatmulexp",
    "logmatmulexp_jvp",
    "logmatmulexp_vjp",
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
    "special",
]

def softmax_jacobian(y: ArrayLike | Any) -> Any: ...
def log_softmax_jacobian(y: ArrayLike | Any) -> Any: ...
def logsumexp_hessian(x: ArrayLike | Any) -> Any: ...
def get_num_threads() -> int: ...
def set_num_threads(n: SupportsIndex) -> None: ...
@overload
def show_config(mode: Literal["stdout"] = "stdout") -> None: ...
@overload
def show_config(mode: Literal["dicts"]) -> dict[str, dict[str, Any]]: ...
