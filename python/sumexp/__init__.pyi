from typing import Any, Literal, SupportsFloat, SupportsIndex, overload

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
    "entropy",
    "entropy_vjp",
    "get_num_threads",
    "kl_div",
    "kl_div_vjp",
    "log_prob",
    "log_prob_and_entropy",
    "log_prob_and_entropy_vjp",
    "log_prob_vjp",
    "log_softmax",
    "log_softmax_hvp",
    "log_softmax_jacobian",
    "log_softmax_jvp",
    "log_softmax_vjp",
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
def log_prob(
    logits: ArrayLike | Any,
    index: ArrayLike | Any,
    axis: SupportsIndex = -1,
    *,
    temperature: SupportsFloat = 1.0,
    out: ArrayLike | Any | None = None,
) -> Any: ...
def entropy(
    logits: ArrayLike | Any,
    axis: SupportsIndex = -1,
    *,
    temperature: SupportsFloat = 1.0,
    out: ArrayLike | Any | None = None,
) -> Any: ...
def log_prob_and_entropy(
    logits: ArrayLike | Any,
    index: ArrayLike | Any,
    axis: SupportsIndex = -1,
    *,
    temperature: SupportsFloat = 1.0,
) -> tuple[Any, Any]: ...
def log_prob_vjp(
    g: ArrayLike | Any,
    logits: ArrayLike | Any,
    index: ArrayLike | Any,
    axis: SupportsIndex = -1,
    *,
    temperature: SupportsFloat = 1.0,
    out: ArrayLike | Any | None = None,
) -> Any: ...
def entropy_vjp(
    g: ArrayLike | Any,
    logits: ArrayLike | Any,
    axis: SupportsIndex = -1,
    *,
    temperature: SupportsFloat = 1.0,
    out: ArrayLike | Any | None = None,
) -> Any: ...
def log_prob_and_entropy_vjp(
    g: tuple[Any, Any],
    logits: ArrayLike | Any,
    index: ArrayLike | Any,
    axis: SupportsIndex = -1,
    *,
    temperature: SupportsFloat = 1.0,
    out: ArrayLike | Any | None = None,
) -> Any: ...
def kl_div(
    p_logits: ArrayLike | Any,
    q_logits: ArrayLike | Any,
    axis: SupportsIndex = -1,
    *,
    out: ArrayLike | Any | None = None,
) -> Any: ...
def kl_div_vjp(
    g: ArrayLike | Any,
    p_logits: ArrayLike | Any,
    q_logits: ArrayLike | Any,
    axis: SupportsIndex = -1,
) -> tuple[Any, Any]: ...
def get_num_threads() -> int: ...
def set_num_threads(n: SupportsIndex) -> None: ...
@overload
def show_config(mode: Literal["stdout"] = "stdout") -> None: ...
@overload
def show_config(mode: Literal["dicts"]) -> dict[str, dict[str, Any]]: ...
