"""Models with sumexp.torch's functions, exported to ONNX: its own operators, run by onnxruntime."""

import io
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx", reason="torch.onnx needs the package onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="runs the exported models")

import sumexp as se  # noqa: E402
import sumexp.torch as st  # noqa: E402

X = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)) * 4
MODELS = {
    "nn.LogSoftmax": (st.nn.LogSoftmax(-1), {"LogSoftmax"}),
    "nn.Softmax": (st.nn.Softmax(0), {"Softmax"}),
    "softmax, T": (lambda x: st.softmax(x, -1, temperature=2.0), {"Softmax", "Div"}),
    "logsumexp": (lambda x: st.logsumexp(x, 1), {"ReduceLogSumExp"}),
    "logsumexp, keepdim": (lambda x: st.logsumexp(x, (0, 1), keepdim=True), {"ReduceLogSumExp"}),
    "sumexp.log_softmax": (lambda x: se.log_softmax(x), {"LogSoftmax"}),
    "softmax_vjp": (lambda x: se.softmax_vjp(x, x, axis=0), None),
    "logsumexp_vjp": (lambda x: se.logsumexp_vjp(x[0], x, 0), None),
}


class Model(torch.nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x):
        return self.f(x)


def check(proto, f, operators, inputs):
    if operators is not None:
        assert {n.op_type for n in proto.graph.node} - {"Constant", "Unsqueeze", "Identity"} == operators
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for x in inputs:
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        np.testing.assert_allclose(got, f(x).numpy(), rtol=1e-5, atol=1e-6)


@pytest.fixture(autouse=True)
def _quietly():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its exporters
        yield


@pytest.mark.parametrize("name", MODELS)
def test_dynamo_export(name):
    pytest.importorskip("onnxscript", reason="torch.onnx.export(dynamo=True) needs it")
    f, operators = MODELS[name]
    model = Model(f).eval()
    dynamic = {0: torch.export.Dim("rows", min=2)}
    program = torch.onnx.export(model, (X,), dynamo=True, verbose=False, dynamic_shapes=(dynamic,))
    check(program.model_proto, f, operators, (X, X[:2]))


def test_export_of_an_exported_program():
    pytest.importorskip("onnxscript", reason="torch.onnx.export(dynamo=True) needs it")
    f, operators = MODELS["nn.LogSoftmax"]
    program = torch.export.export(Model(f), (X,))
    targets = [str(n.target) for n in program.graph.nodes]
    assert "sumexp.log_softmax.default" in targets
    kept = program.run_decompositions()  # only ONNX wants them in torch's own
    assert "sumexp.log_softmax.default" in [str(n.target) for n in kept.graph.nodes]
    check(torch.onnx.export(program, dynamo=True, verbose=False).model_proto, f, operators, (X,))


@pytest.mark.parametrize("name", ["nn.LogSoftmax", "nn.Softmax", "softmax, T", "logsumexp", "sumexp.log_softmax"])
def test_export_by_tracing(name):
    f, operators = MODELS[name]
    file = io.BytesIO()
    torch.onnx.export(Model(f), (X,), file, dynamo=False)
    check(onnx.load_from_string(file.getvalue()), f, operators, (X,))
