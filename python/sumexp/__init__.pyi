from collections.abc import Sequence
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
    "cross_entropy",
    "cross_entropy_vjp",
    "cross_entropy_with_grad",
    "get_num_threads",
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

def cross_entropy(
    logits: ArrayLike | Any,
    target: ArrayLike | tuple[ArrayLike, ArrayLike] | Any,
    axis: SupportsIndex = -1,
    *,
    weight: ArrayLike | Any | None = None,
    ignore_index: SupportsIndex = -100,
    label_smoothing: SupportsFloat = 0.0,
    z_loss: SupportsFloat = 0.0,
    softcap: SupportsFloat | None = None,
    temperature: SupportsFloat = 1.0,
    token_weight: ArrayLike | Any | None = None,
    reduction: Literal["none", "mean", "sum"] = "mean",
    denominator: SupportsFloat | None = None,
    on_empty: Literal["nan", "zero"] = "nan",
    info: str | Sequence[str] = (),
) -> Any: ...
def cross_entropy_with_grad(
    logits: ArrayLike | Any,
    target: ArrayLike | tuple[ArrayLike, ArrayLike] | Any,
    axis: SupportsIndex = -1,
    *,
    weight: ArrayLike | Any | None = None,
    ignore_index: SupportsIndex = -100,
    label_smoothing: SupportsFloat = 0.0,
    z_loss: SupportsFloat = 0.0,
    softcap: SupportsFloat | None = None,
    temperature: SupportsFloat = 1.0,
    token_weight: ArrayLike | Any | None = None,
    reduction: Literal["none", "mean", "sum"] = "mean",
    denominator: SupportsFloat | None = None,
    on_empty: Literal["nan", "zero"] = "nan",
    info: str | Sequence[str] = (),
    out: ArrayLike | Any | None = None,
) -> Any: ...
def cross_entropy_vjp(
    g: ArrayLike | Any,
    logits: ArrayLike | Any,
    target: ArrayLike | tuple[ArrayLike, ArrayLike] | Any,
    axis: SupportsIndex = -1,
    *,
    weight: ArrayLike | Any | None = None,
    ignore_index: SupportsIndex = -100,
    label_smoothing: SupportsFloat = 0.0,
    z_loss: SupportsFloat = 0.0,
    softcap: SupportsFloat | None = None,
    temperature: SupportsFloat = 1.0,
    token_weight: ArrayLike | Any | None = None,
    reduction: Literal["none", "mean", "sum"] = "mean",
    denominator: SupportsFloat | None = None,
    on_empty: Literal["nan", "zero"] = "nan",
    out: ArrayLike | Any | None = None,
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
