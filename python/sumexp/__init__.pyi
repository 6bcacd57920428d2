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
from ._draws import SampleInfo as SampleInfo
from ._logmatmul import logmatmulexp as logmatmulexp, logmatmulexp_jvp as logmatmulexp_jvp, logmatmulexp_vjp as logmatmulexp_vjp
from ._sampling import (
    gumbel_softmax as gumbel_softmax,
    linear_sample as linear_sample,
    sample as sample,
    sample_counts as sample_counts,
)
from ._stream import LogSumExp as LogSumExp

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
    out: ArrayLike | Any | None = None,
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
def linear_cross_entropy(
    x: ArrayLike | Any,
    w: ArrayLike | Any,
    target: ArrayLike | tuple[ArrayLike, ArrayLike] | Any,
    *,
    bias: ArrayLike | Any | None = None,
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
    chunk_size: SupportsIndex | None = None,
) -> Any: ...
def linear_cross_entropy_vjp(
    g: ArrayLike | Any,
    x: ArrayLike | Any,
    w: ArrayLike | Any,
    target: ArrayLike | tuple[ArrayLike, ArrayLike] | Any,
    *,
    bias: ArrayLike | Any | None = None,
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
    need: Sequence[Literal["x", "w", "bias"]] = ("x", "w", "bias"),
    out_dw: ArrayLike | Any | None = None,
    chunk_size: SupportsIndex | None = None,
) -> Any: ...
def linear_cross_entropy_with_grad(
    x: ArrayLike | Any,
    w: ArrayLike | Any,
    target: ArrayLike | tuple[ArrayLike, ArrayLike] | Any,
    *,
    bias: ArrayLike | Any | None = None,
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
    need: Sequence[Literal["x", "w", "bias"]] = ("x", "w", "bias"),
    out_dw: ArrayLike | Any | None = None,
    chunk_size: SupportsIndex | None = None,
) -> Any: ...
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
    x: ArrayLike | Any, axis: SupportsIndex = -1, *, reverse: bool = False, exclusive: bool = False, out: Any | None = None
) -> Any: ...
def logcumsumexp_vjp(
    g: ArrayLike | Any,
    x: ArrayLike | Any,
    axis: SupportsIndex = -1,
    *,
    reverse: bool = False,
    exclusive: bool = False,
    out: Any | None = None,
) -> Any: ...
def logcumsumexp_jvp(
    t: ArrayLike | Any,
    x: ArrayLike | Any,
    axis: SupportsIndex = -1,
    *,
    reverse: bool = False,
    exclusive: bool = False,
    out: Any | None = None,
) -> Any: ...
def logmeanexp(
    x: ArrayLike | Any,
    axis: SupportsIndex | tuple[SupportsIndex, ...] | None = None,
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
def masked_log_softmax(
    x: ArrayLike | Any,
    axis: SupportsIndex = -1,
    *,
    where: ArrayLike | Any | None = None,
    lengths: ArrayLike | Any | None = None,
    causal: SupportsIndex | None = None,
    bias: ArrayLike | Any | None = None,
    softcap: SupportsFloat | None = None,
    sink: ArrayLike | Any | None = None,
    temperature: SupportsFloat = 1.0,
    empty: Literal["zero", "nan"] = "zero",
    out: ArrayLike | Any | None = None,
) -> Any: ...
def masked_log_softmax_vjp(
    g: ArrayLike | Any,
    x: ArrayLike | Any,
    axis: SupportsIndex = -1,
    *,
    where: ArrayLike | Any | None = None,
    lengths: ArrayLike | Any | None = None,
    causal: SupportsIndex | None = None,
    bias: ArrayLike | Any | None = None,
    softcap: SupportsFloat | None = None,
    sink: ArrayLike | Any | None = None,
    temperature: SupportsFloat = 1.0,
    empty: Literal["zero", "nan"] = "zero",
) -> Any: ...
def masked_logsumexp(
    x: ArrayLike | Any,
    axis: SupportsIndex = -1,
    *,
    where: ArrayLike | Any | None = None,
    lengths: ArrayLike | Any | None = None,
    causal: SupportsIndex | None = None,
    bias: ArrayLike | Any | None = None,
    softcap: SupportsFloat | None = None,
    sink: ArrayLike | Any | None = None,
    temperature: SupportsFloat = 1.0,
    empty: Literal["zero", "nan"] = "zero",
    out: ArrayLike | Any | None = None,
) -> Any: ...
def masked_logsumexp_vjp(
    g: ArrayLike | Any,
    x: ArrayLike | Any,
    axis: SupportsIndex = -1,
    *,
    where: ArrayLike | Any | None = None,
    lengths: ArrayLike | Any | None = None,
    causal: SupportsIndex | None = None,
    bias: ArrayLike | Any | None = None,
    softcap: SupportsFloat | None = None,
    sink: ArrayLike | Any | None = None,
    temperature: SupportsFloat = 1.0,
    empty: Literal["zero", "nan"] = "zero",
) -> Any: ...
def masked_softmax(
    x: ArrayLike | Any,
    axis: SupportsIndex = -1,
    *,
    where: ArrayLike | Any | None = None,
    lengths: ArrayLike | Any | None = None,
    causal: SupportsIndex | None = None,
    bias: ArrayLike | Any | None = None,
    softcap: SupportsFloat | None = None,
    sink: ArrayLike | Any | None = None,
    temperature: SupportsFloat = 1.0,
    empty: Literal["zero", "nan"] = "zero",
    out: ArrayLike | Any | None = None,
) -> Any: ...
def masked_softmax_vjp(
    g: ArrayLike | Any,
    x: ArrayLike | Any,
    axis: SupportsIndex = -1,
    *,
    where: ArrayLike | Any | None = None,
    lengths: ArrayLike | Any | None = None,
    causal: SupportsIndex | None = None,
    bias: ArrayLike | Any | None = None,
    softcap: SupportsFloat | None = None,
    sink: ArrayLike | Any | None = None,
    temperature: SupportsFloat = 1.0,
    empty: Literal["zero", "nan"] = "zero",
) -> Any: ...
def segment_log_softmax(
    x: ArrayLike | Any,
    *,
    offsets: ArrayLike | Any | None = None,
    ids: ArrayLike | Any | None = None,
    num_segments: SupportsIndex | None = None,
    out: ArrayLike | Any | None = None,
) -> Any: ...
def segment_log_softmax_jvp(
    t: ArrayLike | Any,
    y: ArrayLike | Any,
    *,
    offsets: ArrayLike | Any | None = None,
    ids: ArrayLike | Any | None = None,
    num_segments: SupportsIndex | None = None,
    out: ArrayLike | Any | None = None,
) -> Any: ...
def segment_log_softmax_vjp(
    g: ArrayLike | Any,
    y: ArrayLike | Any,
    *,
    offsets: ArrayLike | Any | None = None,
    ids: ArrayLike | Any | None = None,
    num_segments: SupportsIndex | None = None,
    out: ArrayLike | Any | None = None,
) -> Any: ...
def segment_logsumexp(
    x: ArrayLike | Any,
    *,
    offsets: ArrayLike | Any | None = None,
    ids: ArrayLike | Any | None = None,
    num_segments: SupportsIndex | None = None,
    out: ArrayLike | Any | None = None,
) -> Any: ...
def segment_logsumexp_jvp(
    t: ArrayLike | Any,
    x: ArrayLike | Any,
    *,
    offsets: ArrayLike | Any | None = None,
    ids: ArrayLike | Any | None = None,
    num_segments: SupportsIndex | None = None,
    out: ArrayLike | Any | None = None,
) -> Any: ...
def segment_logsumexp_vjp(
    g: ArrayLike | Any,
    x: ArrayLike | Any,
    *,
    offsets: ArrayLike | Any | None = None,
    ids: ArrayLike | Any | None = None,
    num_segments: SupportsIndex | None = None,
    out: ArrayLike | Any | None = None,
) -> Any: ...
def segment_softmax(
    x: ArrayLike | Any,
    *,
    offsets: ArrayLike | Any | None = None,
    ids: ArrayLike | Any | None = None,
    num_segments: SupportsIndex | None = None,
    out: ArrayLike | Any | None = None,
) -> Any: ...
def segment_softmax_jvp(
    t: ArrayLike | Any,
    y: ArrayLike | Any,
    *,
    offsets: ArrayLike | Any | None = None,
    ids: ArrayLike | Any | None = None,
    num_segments: SupportsIndex | None = None,
    out: ArrayLike | Any | None = None,
) -> Any: ...
def segment_softmax_vjp(
    g: ArrayLike | Any,
    y: ArrayLike | Any,
    *,
    offsets: ArrayLike | Any | None = None,
    ids: ArrayLike | Any | None = None,
    num_segments: SupportsIndex | None = None,
    out: ArrayLike | Any | None = None,
) -> Any: ...
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
