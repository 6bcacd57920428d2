"""What torch.compile is told of the package's own functions, sumexp.softmax and the others.

They are compiled, so that torch.compile cannot read them, and would break the graph. It is told of functions in
Python to read instead, as soon as there is a torch.compile: importing torch._dynamo takes seconds, and most programs
never do.
"""

import importlib.util
import sys

import torch

from .. import _core
from . import _dispatch, _sampling

DYNAMO = "torch._dynamo"


def substitute(name):
    """The function to be read in place of sumexp.<name>."""
    original = getattr(_core, name)

    @torch.compiler.disable
    def others(args, kwargs):  # NumPy's arrays, say: the graph breaks here
        return original(*args, **kwargs)

    def substituted(*args, **kwargs):
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Tensor):
                return _dispatch.dispatch(name, args, kwargs)
        return others(args, kwargs)

    return substituted


def tell():
    try:
        torch.compiler.assume_constant_result(_sampling.next_call)
        for name in _dispatch.COMPILED:
            torch.compiler.substitute_in_graph(getattr(_core, name), skip_signature_check=True)(substitute(name))
    except (AttributeError, ImportError, TypeError, ValueError):
        pass  # a torch that wants to be told otherwise: graphs break at these functions, and results are the same


class _Teller:
    """An entry of sys.meta_path that waits for torch._dynamo to be imported."""

    def find_spec(self, name, path, target=None):
        if name != DYNAMO:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            tell()

        spec.loader.exec_module = exec_module
        return spec


def tell_in_time():
    if DYNAMO in sys.modules:
        tell()
    else:
        sys.meta_path.insert(0, _Teller())
