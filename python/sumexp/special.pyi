from typing import Any, Literal, SupportsIndex, TypeAlias, overload

from numpy.typing import ArrayLike

__all__ = ["log_softmax", "logsumexp", "softmax"]

_Array: TypeAlias = ArrayLike | Any
_Axis: TypeAlias = SupportsIndex | tuple[SupportsIndex, ...] | None

def softmax(x: _Array, axis: _Axis = None) -> Any: ...
def log_softmax(x: _Array, axis: _Axis = None) -> Any: ...
@overload
def logsumexp(
    a: _Array, axis: _Axis = None, b: _Array | None = None, keepdims: bool = False, return_sign: Literal[False] = False
) -> Any: ...
@overload
def logsumexp(
    a: _Array, axis: _Axis = None, b: _Array | None = None, keepdims: bool = False, *, return_sign: Literal[True]
) -> tuple[Any, Any]: ...
@overload
def logsumexp(
    a: _Array, axis: _Axis = None, b: _Array | None = None, keepdims: bool = False, return_sign: bool = False
) -> Any: ...
