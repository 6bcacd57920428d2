"""The hand-written stubs say what the runtime has: the same names, the same parameters, kinds and defaults."""

import ast
import inspect
from pathlib import Path

import pytest

import sumexp
from sumexp import _core, special

PACKAGE = Path(sumexp.__file__).parent
MODULES = {"__init__": sumexp, "_core": _core, "special": special}


def stub_functions(name):
    """The last definition (of overloads: the general one) of each function in <name>.pyi."""
    tree = ast.parse((PACKAGE / f"{name}.pyi").read_text())
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def stub_parameters(node):
    a = node.args
    kinds = [(a.posonlyargs, inspect.Parameter.POSITIONAL_ONLY), (a.args, inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    positional = [(arg, kind) for args, kind in kinds for arg in args]
    defaults = [None] * (len(positional) - len(a.defaults)) + a.defaults
    parameters = [(arg.arg, kind, default) for (arg, kind), default in zip(positional, defaults)]
    if a.vararg:
        parameters.append((a.vararg.arg, inspect.Parameter.VAR_POSITIONAL, None))
    parameters += [(arg.arg, inspect.Parameter.KEYWORD_ONLY, d) for arg, d in zip(a.kwonlyargs, a.kw_defaults)]
    if a.kwarg:
        parameters.append((a.kwarg.arg, inspect.Parameter.VAR_KEYWORD, None))
    empty = inspect.Parameter.empty
    return [(n, kind, empty if d is None else ast.literal_eval(d)) for n, kind, d in parameters]


CASES = [(module, function) for module in MODULES for function in stub_functions(module)]
# no signature there
PYBIND11 = {"matrix", "build_info", "get_num_threads", "set_num_threads", "get_isa", "set_isa", "served_devices",
            "device_at", "prefer_large_pages", "synchronize"}


@pytest.mark.parametrize("module, function", CASES)
def test_signature(module, function):
    runtime = getattr(MODULES[module], function)
    if module == "_core" and function in PYBIND11:
        return
    node = [n for n in ast.parse((PACKAGE / f"{module}.pyi").read_text()).body
            if isinstance(n, ast.FunctionDef) and n.name == function]
    actual = [(p.name, p.kind, p.default) for p in inspect.signature(runtime).parameters.values()]
    names = [name for name, _, _ in actual]
    for overload in node:  # every overload takes the same names in the same order
        assert [name for name, _, _ in stub_parameters(overload)] == names
    if len(node) == 1 or function == "logsumexp":
        assert stub_parameters(node[-1]) == actual


@pytest.mark.parametrize("module", MODULES)
def test_names(module):
    runtime = MODULES[module]
    tree = ast.parse((PACKAGE / f"{module}.pyi").read_text())
    stub = set(stub_functions(module))
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.level:
            stub |= {alias.asname for alias in node.names if alias.asname}
        if isinstance(node, ast.AnnAssign) and not node.target.id.startswith("_Ar") and node.target.id != "_Axis":
            stub.add(node.target.id)
    public = set(getattr(runtime, "__all__", None) or
                 [n for n in dir(runtime) if not n.startswith("_") or n == "__version__"])
    assert stub == public
    exported = [ast.literal_eval(node.value) for node in tree.body
                if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"]
    assert exported == ([runtime.__all__] if hasattr(runtime, "__all__") else [])


def test_typed_marker():
    assert (PACKAGE / "py.typed").exists()


def test_public_functions_look_like_sumexp():
    for name in sumexp.__all__:
        value = getattr(sumexp, name)
        if callable(value):
            assert value.__doc__ and value.__name__ == name
    assert sumexp.softmax.__module__ == "sumexp"


def test_what_has_no_stub_is_annotated():
    """mypy --strict refuses calls of functions without any annotation; those of Python files have one."""
    import sumexp as se

    functions = [se.sample, se.sample_counts, se.linear_sample, se.gumbel_softmax, se.logmatmulexp, se.LogSumExp.__init__]
    functions += [m for n, m in vars(se.LogSumExp).items() if inspect.isfunction(m) and not n.startswith("_")]
    torch = pytest.importorskip("torch")
    from sumexp import torch as st

    found = [f for f in (getattr(st, n) for n in st.__all__) if inspect.isfunction(f)]
    functions += [f for f in found if f.__code__.co_name == f.__name__]  # the others are made by a function, and of any type
    functions += [st.nn.CrossEntropyLoss.__init__, st.nn.LinearCrossEntropyLoss.__init__]
    assert len(functions) > 25 and torch
    for f in functions:
        assert f.__annotations__, f.__qualname__
