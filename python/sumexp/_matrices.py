"""The explicit matrices, for those who ask for them by name."""

from . import _arrays
from ._devices import is_torch


def _matrix(function, value):
    if is_torch(value):
        from . import torch as torch_face

        return torch_face._dispatch(function, (value,), {})
    return _arrays.matrix(function, value)


def softmax_jacobian(y):
    """The Jacobian of softmax over the last axis, diag(y) - y y^T with y = softmax(x).

    Takes y of shape (..., K), returns (..., K, K) of the same dtype. K * K numbers for every row: ask for it
    only where the matrix itself is needed; softmax_vjp and softmax_jvp multiply by it without forming it.
    Every entry is within 2 eps of y_i (1 - y_i) or y_i y_j, for the y given, in which the probability of an element above
    9/16 counts, in 1 - y_i, for what the others leave to 1; eps is that of the dtype, 16-bit matrices being computed in
    float32 and rounded once. TypeError and ValueError as for softmax.
    """
    return _matrix("softmax_jacobian", y)


def log_softmax_jacobian(y):
    """The Jacobian of log_softmax over the last axis, I - 1 exp(y)^T with y = log_softmax(x).

    Takes y of shape (..., K), returns (..., K, K) of the same dtype: row i is the gradient of output i.
    Not symmetric: log_softmax_vjp and log_softmax_jvp multiply by its two sides without forming it. Every entry,
    1 - exp(y_i) or -exp(y_j), is within 2 eps of itself, for the y given. Dtypes and errors as for softmax_jacobian.
    """
    return _matrix("log_softmax_jacobian", y)


def logsumexp_hessian(x):
    """The Hessian of logsumexp over the last axis, diag(s) - s s^T with s = softmax(x).

    Takes x of shape (..., K), returns (..., K, K) of the same dtype. softmax_vjp(v, softmax(x)) is the product
    with v, without forming it. Every entry is within 5 eps of itself, s being within 2 ulp. Dtypes and errors as for
    softmax_jacobian.
    """
    return _matrix("logsumexp_hessian", x)
