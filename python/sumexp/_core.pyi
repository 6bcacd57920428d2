"""Types of the extension module. The public functions take any array and return what they took: a NumPy
array for NumPy arrays and array-likes, a torch tensor for torch tensors, and so on; hence Any."""

from typing import Any, SupportsFloat, SupportsIndex, TypeAlias

from numpy.typing import ArrayLike

_Array: TypeAlias = ArrayLike | Any
_Axis: TypeAlias = SupportsIndex | tuple[SupportsIndex, ...] | None

__version__: str

def softmax(
    x: _Array,
    axis: _Axis = -1,
    *,
    temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None,
    out: _Array | None = None,
) -> Any: ...
def log_softmax(
    x: _Array,
    axis: _Axis = -1,
    *,
    temperature: SupportsFloat = 1.0,
    where: ArrayLike | None = None,
    out: _Array | None = None,
) -> Any: ...
def logsumexp(
    x: _Array,
    axis: _Axis = None,
    *,
    b: _Array | None = None,
    keepdims: bool = False,
    return_sign: bool = False,
    where: ArrayLike | None = None,
    out: _Array | None = None,
) -> Any: ...
def softmax_vjp(
    g: _Array,
    y: _Array,
    axis: _Axis = -1,
    *,
    temperature: SupportsFloat = 1.0,
    out: _Array | None = None,
) -> Any: ...
def softmax_jvp(
    t: _Array,
    y: _Array,
    axis: _Axis = -1,
    *,
    temperature: SupportsFloat = 1.0,
    out: _Array | None = None,
) -> Any: ...
def log_softmax_vjp(
    g: _Array,
    y: _Array,
    axis: _Axis = -1,
    *,
    temperature: SupportsFloat = 1.0,
    out: _Array | None = None,
) -> Any: ...
def log_softmax_jvp(
    t: _Array,
    y: _Array,
    axis: _Axis = -1,
    *,
    temperature: SupportsFloat = 1.0,
    out: _Array | None = None,
) -> Any: ...
def logsumexp_vjp(
    g: _Array,
    x: _Array,
    axis: _Axis = None,
    *,
    b: _Array | float | None = None,
    keepdims: bool = False,
    out: _Array | None = None,
) -> Any: ...
def logsumexp_jvp(
    t: _Array,
    x: _Array,
    axis: _Axis = None,
    *,
    b: _Array | float | None = None,
    t_b: _Array | None = None,
    keepdims: bool = False,
    out: _Array | None = None,
) -> Any: ...
def softmax_hvp(
    g: _Array,
    v: _Array,
    y: _Array,
    axis: _Axis = -1,
    *,
    temperature: SupportsFloat = 1.0,
    out: _Array | None = None,
) -> Any: ...
def log_softmax_hvp(
    g: _Array,
    v: _Array,
    y: _Array,
    axis: _Axis = -1,
    *,
    temperature: SupportsFloat = 1.0,
    out: _Array | None = None,
) -> Any: ...

# -- not public ----------------------------------------------------------------------------------------------

def run_tensors(
    op: int,
    inputs: tuple[Any, ...],
    out: Any,
    dim: _Axis,
    temperature: float = 1.0,
    where: Any | None = None,
    sign: Any | None = None,
    workspace: Any | None = None,
    function: str = "run_tensors",
    /,
) -> int | None: ...
def read_dlpack(
    x: Any, /
) -> tuple[int, tuple[int, ...], tuple[int, ...], tuple[int, int], tuple[int, int], int | None, bool]: ...
def on_device(
    name: str, device: int, stream: int, workspace: int, workspace_bytes: int, sign: Any, /, *arrays: Any, **options: Any
) -> int | None: ...
def are_served(*values: Any) -> bool: ...
def fast_softmax(op: int, x: Any, dim: Any, temperature: Any, /) -> Any: ...
def fast_forward(ctx: Any, x: Any, /) -> tuple[Any, Any]: ...
def set_fast_path(
    tensor: type,
    empty_strided_cpu: Any,
    dtypes: tuple[Any, Any, Any, Any],
    detach: Any,
    apply: Any,
    is_neg: Any,
    is_grad_enabled: Any,
    is_inference_mode_enabled: Any,
    functorch_active: Any,
    dispatch_modes: Any,
    function_modes: Any,
    is_tracing: Any,
    forward_ad: dict[str, Any],
    is_inference: Any,
    increment_version: Any,
    parameter: type,
    /,
) -> None: ...
def matrix(which: SupportsIndex, y: Any) -> Any: ...
cuda_architectures: str
large_pages_from: int

def prefer_large_pages(address: SupportsIndex, bytes: SupportsIndex) -> None: ...
def served_devices() -> str: ...
def device_at(address: SupportsIndex) -> int: ...
def synchronize(device: SupportsIndex, stream: SupportsIndex) -> None: ...
def build_info() -> dict[str, Any]: ...
def get_num_threads() -> int: ...
def set_num_threads(n: SupportsIndex) -> None: ...
def get_isa() -> str: ...
def set_isa(name: str) -> None: ...
