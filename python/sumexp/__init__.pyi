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

def logaddexp(a: ArrayLike | Any, b: ArrayLike | Any, *, out: Any | None = None) -> Any: ...
def logsubexp(a: ArrayLike | Any, b: ArrayLike | Any, *, out: Any | None = None) -> Any: ...
def log1mexp(x: ArrayLike | Any, *, out: Any | None = None) -> Any: ...
def softplus(x: ArrayLike | Any, *, out: Any | None = None) -> Any: ...
def logaddexp_vjp(g: ArrayLike | Any, a: ArrayLike | Any, b: ArrayLike | Any) -> tuple[Any, Any]: ...
def logsubexp_vjp(g: ArrayLike | Any, a: ArrayLike | Any, b: ArrayLike | Any) -> tuple[Any, Any]: ...
def logaddexp_jvp(
    ta: ArrayLike | Any, tb: ArrayLike | Any, a: ArrayLike | Any, b: ArrayLike | Any, *, out: Any | None = None
) -> Any: ...
def logsubexp_jvp(
    ta: ArrayLike | Any, tb: ArrayLike | Any, a: ArrayLike | Any, b: ArrayLike | Any, *, out: Any | None = None
) -> Any: ...
def log1mexp_vjp(g: ArrayLike | Any, x: ArrayLike | Any, *, out: Any | None = None) -> Any: ...
def softplus_vjp(g: ArrayLike | Any, x: ArrayLike | Any, *, out: Any | None = None) -> Any: ...
def logcumsumexp(
    x: ArrayLike | Any, axis: int = -1, *, reverse: bool = False, exclusive: bool = False, out: Any | None = None
) -> Any: ...
def logcumsumexp_vjp(
    g: ArrayLike | Any,
    x: ArrayLike | Any,
    axis: int = -1,
    *,
    reverse: bool = False,
    exclusive: bool = False,
    out: Any | None = None,
) -> Any: ...
def logcumsumexp_jvp(
    t: ArrayLike | Any,
    x: ArrayLike | Any,
    axis: int = -1,
    *,
    reverse: bool = False,
    exclusive: bool = False,
    out: Any | None = None,
) -> Any: ...
def logmeanexp(
    x: ArrayLike | Any,
    axis: int | tuple[int, ...] | None = None,
    *,
    b: ArrayLike | Any | None = None,
    keepdims: bool = False,
    return_sign: bool = False,
    where: ArrayLike | Any | None = None,
    out: Any | None = None,
) -> Any: ...
def softmax_jacobian(y: ArrayLike | Any) -> Any: ...
def log_softmax_jacobian(y: ArrayLike | Any) -> Any: ...
def logsumexp_hessian(x: ArrayLike | Any) -> Any: ...
def get_num_threads() -> int: ...
def set_num_threads(n: SupportsIndex) -> None: ...
@overload
def show_config(mode: Literal["stdout"] = "stdout") -> None: ...
@overload
def show_config(mode: Literal["dicts"]) -> dict[str, dict[str, Any]]: ...
