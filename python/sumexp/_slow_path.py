"""What the module's C++ side calls: where a call goes that it does not serve itself, and checks that are not hot."""

import numpy as np

from . import _arrays
from ._arrays import shares_memory  # noqa: F401
from ._devices import is_torch
from ._scalars import temperature  # noqa: F401


def call(name, args, kwargs):
    """sumexp.<name> with arguments it takes. They are already bound once, so the names are right."""
    if name in ("logsumexp_vjp", "logsumexp_jvp") and any(kwargs.get(n) is not None for n in ("b", "t_b")):
        from . import _log_domain

        return _log_domain.weighted(name, args, kwargs)
    if any(map(is_torch, args)) or any(is_torch(v) for k, v in kwargs.items() if k != "temperature"):
        from . import torch as torch_face

        return torch_face._dispatch(name, args, kwargs)
    return _arrays.call(name, args, kwargs)


def signs(lse):
    """The sign of a plain sum of exponentials, from its logarithm."""
    sign = np.ones_like(lse)
    sign[lse == -np.inf] = 0
    sign[lse != lse] = np.nan
    return sign
