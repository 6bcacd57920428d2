"""sumexp.torch in compiled, exported and traced programs, and each registered operation on its own."""

import shutil
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
from torch.autograd import gradcheck, gradgradcheck  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402

import sumexp as se  # noqa: E402
import sumexp.torch as st  # noqa: E402
from torch_cases import DERIVATIVES, FAMILIES, as_one  # noqa: E402

NAMES = ["softmax", "log_softmax", "logsumexp"]
each_name = pytest.mark.parametrize("name", NAMES)
generator = torch.Generator().manual_seed(3)
X, G, V = torch.randn(3, 3, 5, dtype=torch.float64, generator=generator).unbind()
Y, L = torch.softmax(X, -1), torch.log_softmax(X, -1)
OPERATIONS = {
    "softmax": (X,),
    "log_softmax": (X,),
    "logsumexp": (X,),
    "softmax_vjp": (G, Y),
    "log_softmax_vjp": (G, L),
    "log_softmax_jvp": (G, L),
    "logsumexp_vjp": (X, G[:, :1]),
    "logsumexp_jvp": (X, G),
    "softmax_hvp": (G, V, Y),
    "log_softmax_hvp": (G, V, L),
}
each_operation = pytest.mark.parametrize("name", OPERATIONS)


@pytest.fixture(autouse=True)
def _forget():
    torch._dynamo.reset()


def called(graph):
    return [str(n.target) for n in graph.nodes if n.op == "call_function"]


def leaves(tensors):
    return [t.detach().clone().requires_grad_() for t in tensors]


def forward_backward(f, x):
    x = x.detach().clone().requires_grad_()
    y = f(x)
    return y.detach(), *torch.autograd.grad(y.sum(), x)


# -- registered operations -----------------------------------------------------------------------------------


@each_operation
def test_opcheck(name):
    operation = getattr(torch.ops.sumexp, name).default
    torch.library.opcheck(operation, (*leaves(OPERATIONS[name]), [-1]))
    torch.library.opcheck(operation, (*(t.mT for t in leaves(OPERATIONS[name])), [-2]))


@each_operation
def test_derivatives_of_operations(name):
    operation = getattr(torch.ops.sumexp, name)

    def call(*tensors):
        return operation(*tensors, [-1])

    assert gradcheck(call, leaves(OPERATIONS[name]), check_batched_grad=True)
    assert gradgradcheck(call, leaves(OPERATIONS[name]))


@each_operation
def test_vmap_and_forward_mode_of_operations(name):
    tensors = OPERATIONS[name]
    operation = getattr(torch.ops.sumexp, name)

    def call(*tensors):
        return operation(*tensors, [-1])

    many = [t.unsqueeze(1).expand(3, 2, t.shape[1]) for t in tensors]
    torch.testing.assert_close(torch.vmap(call, in_dims=1)(*many)[1], call(*tensors))
    # register_autograd alone would give zero tangents here
    every = tuple(range(len(tensors)))
    forward, reverse = (j(call, argnums=every)(*tensors) for j in (torch.func.jacfwd, torch.func.jacrev))
    torch.testing.assert_close(forward, reverse)
    for k in every:
        alone = lambda t, k=k: call(*tensors[:k], t, *tensors[k + 1 :])
        torch.testing.assert_close(torch.autograd.functional.jacobian(alone, tensors[k]), reverse[k])


INDEX = torch.tensor([0, 4, 1])
COMPOSED = {
    "entropy": ((1, 1.0), X),
    "log_prob": ((INDEX, 1, 1.0), X),
    "kl_div": ((1,), X, V),
    "cross_entropy": ((INDEX, None, None, None, None, 1, -100, 0.1, 0.1, 0.0, 1.0, 1, False), X),
    "logaddexp": ((), X, V),
    "logcumsumexp": ((1, False, False), X),
    "logmatmulexp": ((), X, V.mT),
    "masked_softmax": ((None, None, X > -1, None, 1, None, 0.0, 1.0, False), X),
    "segment_log_softmax": ((torch.tensor([0, 1, 3]),), X),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_transforms_of_composed_operations(name):
    rest, *tensors = COMPOSED[name]
    every, call = tuple(range(len(tensors))), lambda *t: getattr(torch.ops.sumexp, name)(*t, *rest)
    recorded = torch.autograd.functional.jacobian(call, tuple(tensors))
    for transform in (torch.func.jacfwd, torch.func.jacrev):
        torch.testing.assert_close(transform(call, every)(*tensors), recorded)
    second = lambda outer, inner: outer(inner(lambda *t: call(*t).sin().sum(), every), every)(*tensors)
    torch.testing.assert_close(second(torch.func.jacfwd, torch.func.jacrev), second(torch.func.jacrev, torch.func.jacfwd))


# -- torch.compile -------------------------------------------------------------------------------------------


@each_name
def test_compiled_programs_call_the_operation(name):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    f = torch.compile(lambda x: getattr(st, name)(x, -1) * 2, backend=backend, fullgraph=True)
    got = f(X)
    assert torch.equal(got, getattr(st, name)(X, -1) * 2)
    assert [n for n in called(graphs[0].graph) if "sumexp" in n] == [f"sumexp.{name}"] or f"sumexp.{name}.default" in called(
        graphs[0].graph
    )


@each_name
def test_aot_eager(name):
    def f(x):
        return getattr(st, name)(x * 2, -1).sin()

    for dynamic in (False, True):
        torch._dynamo.reset()
        compiled = torch.compile(f, backend="aot_eager", fullgraph=True, dynamic=dynamic)
        for x in (X, X[:2, :4], torch.randn(7, 9, dtype=torch.float64)):
            for got, want in zip(forward_backward(compiled, x), forward_backward(f, x)):
                assert torch.equal(got, want) and got.stride() == want.stride()


def test_arguments_in_compiled_programs():
    def f(x):
        a = st.softmax(x.half(), 1, dtype=torch.float32, temperature=0.5) + st.nn.LogSoftmax(0)(x).float()
        return a + st.logsumexp(x, (0, 1), keepdim=True) + st.softmax(x.to("meta"), 0).shape[0]

    assert torch.equal(torch.compile(f, backend="aot_eager", fullgraph=True)(X), f(X))


@each_name
@pytest.mark.parametrize("transform", ["grad", "jvp", "vmap", "hessian"])
def test_compiled_transforms(name, transform):
    F = torch.func
    transforms = {
        "grad": lambda f: F.grad(lambda x: f(x).sin().sum()),
        "jvp": lambda f: lambda x: F.jvp(f, (x,), (x.cos(),))[1],
        "vmap": lambda f: torch.vmap(f, in_dims=1),
        "hessian": lambda f: F.hessian(lambda x: f(x).sin().sum()),
    }
    got, want = (transforms[transform](lambda x, m=m: getattr(m, name)(x, -1)) for m in (st, torch))
    torch.testing.assert_close(torch.compile(got, backend="aot_eager", fullgraph=True)(X), want(X))


@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")
def test_inductor():
    def f(x):
        p, l = st.softmax(x.sin(), -1), st.log_softmax(x * 2, 0)
        return (p * l).cos() + st.logsumexp(x, -1, keepdim=True)

    compiled = torch.compile(f, fullgraph=True, dynamic=True)
    for x in (X.float(), torch.randn(6, 8)):
        for got, want in zip(forward_backward(compiled, x), forward_backward(f, x)):
            torch.testing.assert_close(got, want)


# -- export and tracing --------------------------------------------------------------------------------------


@each_name
@pytest.mark.parametrize("strict", [False, True])
def test_export(name, strict):
    class Model(torch.nn.Module):
        def forward(self, x):
            return getattr(st, name)(x, -1)

    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(Model(), (X,), dynamic_shapes=shapes, strict=strict)
    assert called(program.graph) == [f"sumexp.{name}.default"]
    x = torch.randn(7, 5, dtype=torch.float64)
    assert torch.equal(program.module()(x), getattr(st, name)(x, -1))


@each_name
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(name, mode):
    def f(x):
        return getattr(st, name)(x, -1)

    assert called(make_fx(f, tracing_mode=mode)(X).graph) == [f"sumexp.{name}.default"]
    gradient = make_fx(torch.func.grad(lambda x: f(x).sin().sum()), tracing_mode=mode)(X)
    assert {f"sumexp.{name}.default", f"sumexp.{name}_vjp.default"} <= set(called(gradient.graph))
    torch.testing.assert_close(gradient(V), torch.func.grad(lambda x: f(x).sin().sum())(V))


@pytest.mark.parametrize("mode", ["real", "symbolic"])
@pytest.mark.parametrize("name", [*FAMILIES, *DERIVATIVES])
def test_make_fx_of_gradients(name, mode):
    """What is recorded is the operations, not the numbers that they gave."""
    f, *tensors = (FAMILIES | DERIVATIVES)[name]
    loss = lambda *tensors: as_one(f)(*tensors).sin().sum()

    def gradients(*tensors):
        inputs = leaves(tensors)
        return torch.autograd.grad(loss(*inputs), inputs)

    def twice(*tensors):
        inputs = leaves(tensors)
        first = torch.autograd.grad(loss(*inputs), inputs, create_graph=True)
        return torch.autograd.grad(sum(g.sin().sum() for g in first), inputs)

    other = [t * 1.1 for t in tensors]
    for call in (gradients, twice)[: 1 if name == "linear_cross_entropy" else 2]:
        traced = make_fx(call, tracing_mode=mode, _allow_non_fake_inputs=True)(*tensors)
        torch.testing.assert_close(traced(*other), call(*other))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_make_fx_of_offsets(dtype):
    """An argument as the others: what is recorded holds for other segments."""
    f = lambda x, offsets: st.segment_softmax(x, offsets=offsets)
    offsets, other = torch.tensor([[0, 1, 3], [0, 2, 3]], dtype=dtype)
    for mode in ("real", "fake", "symbolic"):
        traced = make_fx(f, tracing_mode=mode)(X, offsets)
        torch.testing.assert_close(traced(X, other), f(X, other))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@each_name
def test_jit_trace_records_the_operation(name):
    traced = torch.jit.trace(lambda x: getattr(st, name)(x, -1), (X,))
    assert torch.equal(traced(V), getattr(st, name)(V, -1))
    x = V.clone().requires_grad_()
    torch.testing.assert_close(
        torch.autograd.grad(traced(x).sin().sum(), x), torch.autograd.grad(getattr(st, name)(x, -1).sin().sum(), x)
    )


@each_name
def test_compiled_autograd(name):
    x, want = X.clone().requires_grad_(), X.clone().requires_grad_()
    y = getattr(st, name)(x, -1).sin().sum()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager")):
        y.backward()
    getattr(torch, name)(want, -1).sin().sum().backward()
    torch.testing.assert_close(x.grad, want.grad)


@each_operation
def test_decompositions_have_the_fakes_shapes_and_strides(name):
    from torch._decomp import decomposition_table

    operation = getattr(torch.ops.sumexp, name).default
    for tensors, dims in ((OPERATIONS[name], [-1]), ([t.mT for t in OPERATIONS[name]], [-2]), (OPERATIONS[name], [1])):
        got, want = decomposition_table[operation](*tensors, dims), operation(*tensors, dims)
        torch.testing.assert_close(got, want)
        assert got.stride() == want.stride()


# -- the package's own functions, which torch.compile cannot read ------------------------------------------------

PACKAGE = {
    "softmax": lambda x: se.softmax(x, 0, temperature=0.5),
    "softmax, where": lambda x: se.softmax(x, where=x > -1),
    "softmax, out": lambda x: se.softmax(x, out=torch.empty_like(x)),
    "log_softmax": lambda x: se.log_softmax(x),
    "logsumexp": lambda x: se.logsumexp(x, 0, keepdims=True),
    "logsumexp, all": lambda x: se.logsumexp(x),
    "logsumexp, sign": lambda x: se.logsumexp(x, 1, return_sign=True)[1],
    "softmax_vjp": lambda x: se.softmax_vjp(x, Y),
    "softmax_jvp": lambda x: se.softmax_jvp(x, Y, temperature=2),
    "log_softmax_vjp": lambda x: se.log_softmax_vjp(x, L),
    "log_softmax_jvp": lambda x: se.log_softmax_jvp(x, L),
    "logsumexp_vjp": lambda x: se.logsumexp_vjp(x[0], x, 0),
    "logsumexp_jvp": lambda x: se.logsumexp_jvp(x, G, 1),
    "softmax_hvp": lambda x: se.softmax_hvp(x, V, Y),
    "log_softmax_hvp": lambda x: se.log_softmax_hvp(x, V, L),
}  # fmt: skip


@pytest.mark.parametrize("name", PACKAGE)
def test_the_packages_functions_do_not_break_the_graph(name):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(lambda x: PACKAGE[name](x * 2) + 1, backend=backend, fullgraph=True)
    assert torch.equal(compiled(X), PACKAGE[name](X * 2) + 1)
    assert any("sumexp." in n for n in called(graphs[0].graph))


@pytest.mark.parametrize("name", ["logsumexp_vjp, b", "logsumexp_jvp, b"])
def test_compiled_derivatives_with_weights(name):
    f, *tensors = DERIVATIVES[name]
    compiled = torch.compile(as_one(f), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*tensors), as_one(f)(*tensors))


@pytest.mark.parametrize("name", DERIVATIVES)
def test_export_of_derivatives(name):
    class Model(torch.nn.Module):
        def forward(self, *tensors):
            return as_one(f)(*tensors)

    f, *tensors = DERIVATIVES[name]
    other = [t * 1.1 for t in tensors]
    program = torch.export.export(Model(), tuple(tensors), strict=False)
    torch.testing.assert_close(program.module()(*other), as_one(f)(*other))


def test_the_packages_functions_on_arrays_in_compiled_programs():
    compiled = torch.compile(lambda a: se.softmax(a, temperature=0.5) + 1, backend="eager")
    assert (compiled(X.numpy()) == se.softmax(X.numpy(), temperature=0.5) + 1).all()


ORDERS = ["import torch._dynamo, sumexp.torch", "import sumexp.torch, torch._dynamo", "import sumexp.torch"]


@pytest.mark.parametrize("order", ORDERS)
def test_torch_compile_is_told_in_time(order):
    program = f"""
import sys, torch
{order}
{'assert "torch._dynamo" not in sys.modules' if "_dynamo" not in order else ""}
import sumexp
compiled = torch.compile(lambda x: sumexp.softmax(x) + 1, backend="eager", fullgraph=True)
assert torch.equal(compiled(torch.ones(3)), torch.full((3,), 1 + 1 / 3))
assert not any(type(f).__module__.startswith("sumexp") for f in sys.meta_path)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# -- gradients within compiled programs, of what is recorded in front of them or at a graph break -----------------

RECORDED = {
    "cross_entropy_with_grad": lambda x: se.cross_entropy_with_grad(x, torch.tensor([0, 1, 2]))[1],
    "entropy_vjp": lambda x: se.entropy_vjp(G[:, 0], x),
}


@pytest.mark.filterwarnings("ignore:Dynamo does not know how")
@pytest.mark.parametrize("name", RECORDED)
def test_gradients_as_results(name):
    def f(x):
        return RECORDED[name](x.sin()).square()

    got, want = forward_backward(torch.compile(f, backend="aot_eager"), X), forward_backward(f, X)
    assert want[0].any() and want[1].any()
    torch.testing.assert_close(got, want)


@pytest.mark.filterwarnings("ignore:Dynamo does not know how")
@pytest.mark.parametrize("name, again", [("softmax", False), ("log_softmax", True), ("entropy", True)])
def test_gradients_of_what_was_recorded_before(name, again):
    x = X.clone().requires_grad_()
    y = getattr(st, name)(x, -1).square().sum()

    def gradient():
        return torch.autograd.grad(y, x, create_graph=again, retain_graph=True)[0]

    got, want = torch.compile(gradient, backend="aot_eager")(), gradient()
    assert want.any()
    torch.testing.assert_close(got, want)
    if again:
        torch.testing.assert_close(*(torch.autograd.grad(g.square().sum(), x, retain_graph=True)[0] for g in (got, want)))


@pytest.mark.filterwarnings("ignore:Dynamo does not know how")
@pytest.mark.parametrize("name", ["entropy", "linear_cross_entropy"])
def test_gradients_of_an_operation_that_was_recorded_before(name):
    x = X.clone().requires_grad_()
    if name == "entropy":
        y = torch.ops.sumexp.entropy(x, 1, 1.0)
    else:
        given = (x, G, None, torch.tensor([0, 1, 2]), None, None, None, None, -100, 0.0, 0.0, 0.0, 1.0, 2, False, 0)
        y = torch.ops.sumexp.linear_cross_entropy(*given, [True] + [False] * 6, [False] * 6)[0]
    y = y.square().sum()

    def gradient():
        return torch.autograd.grad(y, x, create_graph=True, retain_graph=True)[0]

    got, want = torch.compile(gradient, backend="aot_eager")(), gradient()
    assert want.any()
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*(torch.autograd.grad(g.square().sum(), x, retain_graph=True)[0] for g in (got, want)))


# -- symbolic tracing --------------------------------------------------------------------------------------------


@each_name
def test_symbolic_trace_records_the_call(name):
    f = getattr(st, name)
    traced = torch.fx.symbolic_trace(lambda x: f(x * 2, -1) + 1)
    assert [n.target for n in traced.graph.nodes if n.op == "call_function"][1] is f
    x = X.clone().requires_grad_()
    assert torch.equal(traced(x), f(X * 2, -1) + 1) and torch.equal(traced(X.float()), f(X.float() * 2, -1) + 1)
    traced(x).sum().backward()
    assert x.grad is not None


TRACED = {
    "entropy": lambda x: st.entropy(x, temperature=0.5),
    "kl_div": lambda x: st.kl_div(x, V),
    "log_prob": lambda x: st.log_prob(x, INDEX),
    "log_prob_and_entropy": lambda x: st.log_prob_and_entropy(x, INDEX)[1],
    "linear_cross_entropy": lambda x: st.linear_cross_entropy(x, V, torch.tensor([0, 1, 2])),
    "log1mexp": lambda x: st.log1mexp(x),
    "logaddexp": lambda x: st.logaddexp(V, x),
    "logsubexp": lambda x: st.logsubexp(x + 9, V),
    "softplus": lambda x: st.softplus(x, beta=2.0),
    "logcumsumexp": lambda x: st.logcumsumexp(x, dim=1),
    "logmatmulexp": lambda x: st.logmatmulexp(x, V.mT),
    "logmeanexp": lambda x: st.logmeanexp(x, 1),
    "masked_softmax": lambda x: st.masked_softmax(x, lengths=INDEX),
    "segment_logsumexp": lambda x: st.segment_logsumexp(x, offsets=[0, 1, 3]),
    "gumbel_softmax": lambda x: st.gumbel_softmax(x, seed=1),
    "sample": lambda x: st.sample(x, seed=1),
}


@pytest.mark.parametrize("name", TRACED)
def test_symbolic_trace_records_any_function(name):
    f = getattr(st, name)
    traced = torch.fx.symbolic_trace(TRACED[name])
    assert f in [n.target for n in traced.graph.nodes] and getattr(st, name) is f
    assert torch.equal(traced(X), TRACED[name](X))


def test_symbolic_trace_of_a_loss():
    layer = st.nn.LinearCrossEntropyLoss(5, 4).double()
    traced = torch.fx.symbolic_trace(layer)
    target = torch.tensor([0, 3, 1])
    assert torch.equal(traced(X, target), layer(X, target))
    of_package = lambda x: se.linear_cross_entropy(x, V, target % 3)
    assert torch.equal(torch.fx.symbolic_trace(of_package)(X), of_package(X))


def test_symbolic_trace_of_modules_and_options():
    modules = torch.nn.Sequential(st.nn.Softmax(-1), st.nn.LogSoftmax(0), st.nn.Softmax2d())
    traced = torch.fx.symbolic_trace(modules[:2])
    assert [n.target for n in traced.graph.nodes if n.op == "call_function"] == [st.softmax, st.log_softmax]
    assert torch.equal(traced(X), modules[:2](X))
    calls = torch.fx.symbolic_trace(
        lambda x: st.softmax(x, 1, dtype=torch.float64, temperature=0.5) + st.logsumexp(x, axis=0, keepdims=True)
    )
    x = X.float()
    assert torch.equal(calls(x), st.softmax(x, 1, dtype=torch.float64, temperature=0.5) + st.logsumexp(x, 0, True))
    assert "sumexp" in calls.code


@pytest.mark.parametrize("name", PACKAGE)
def test_symbolic_trace_of_the_packages_functions(name):
    traced = torch.fx.symbolic_trace(PACKAGE[name])
    assert any(n.target is getattr(se, name.split(",")[0]) for n in traced.graph.nodes)
    assert torch.equal(traced(X), PACKAGE[name](X))
