"""The raw entry of masked rows given arrays of a GPU, with the machine as the GPU: run by ctest, see CMakeLists.txt."""

import numpy as np
import pytest
from functions import DTYPES, TableArray

import sumexp as se
from sumexp import _core
from sumexp._masked_arguments import OPS


def rows(shape, dtype, seed=0, scale=3.0):
    return np.random.default_rng(seed).normal(0, scale, shape).astype(dtype)


def on_device(function, name, x, axis, result, arrays, **options):
    """_core._masked on arrays of the device; `arrays` that are None are left out. Returns what it was written to."""
    row = OPS[name] == 2
    written = {n: TableArray(np.full_like(a, 77)) for n, a in result.items()}
    given = {n: TableArray(a) for n, a in arrays.items() if a is not None}
    if row:  # as the functions lay them
        for n in ("out", "g"):
            for some in (written, given):
                if n in some and not (n == "out" and function.endswith("_vjp")):
                    some[n] = TableArray(np.expand_dims(some[n].array, axis))
    args = {**given, **written, **options}
    size = _core._masked(function, OPS[name], TableArray(x), axis, **args)
    if size:
        args["workspace"] = TableArray(np.zeros(size, np.uint8))
        assert _core._masked(function, OPS[name], TableArray(x), axis, **args) is None
    return {n: np.asarray(a.array) for n, a in written.items()}


def check(name, x, axis, **options):
    """The function and its VJP against the CPU's."""
    function = getattr(se, name)
    want = function(x, axis, **options)
    arrays = {n: options.pop(n, None) for n in ("where", "lengths", "bias", "sink")}
    if arrays["lengths"] is not None:
        arrays["lengths"] = np.expand_dims(arrays["lengths"], axis)
    if arrays["sink"] is not None:
        arrays["sink"] = np.expand_dims(arrays["sink"], axis)
    raw = {n: v for n, v in options.items() if n != "empty"}
    if "causal" in raw:
        raw["causal"] = int(raw["causal"])
    got = on_device(name, name, x, axis, {"out": want}, arrays, nan=options.get("empty") == "nan", **raw)
    assert got["out"].tobytes() == want.tobytes()

    g = rows(want.shape, x.dtype, 9)
    flat = {n: a if n in ("where", "bias") or a is None else np.squeeze(a, axis) for n, a in arrays.items()}
    back = getattr(se, name + "_vjp")(g, x, axis, **{n: a for n, a in flat.items() if a is not None}, **options)
    back = list(back) if isinstance(back, tuple) else [back]
    result = {"out": back.pop(0)}
    for n in ("bias", "sink"):
        if arrays[n] is not None:
            result["d" + n] = back.pop(0).reshape(arrays[n].shape)
    got = on_device(name + "_vjp", name, x, axis, result, {**arrays, "g": g}, **raw)
    for n, want in result.items():
        assert got[n].tobytes() == np.ascontiguousarray(want).tobytes(), n


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPS)
def test_options(name, dtype):
    shape = (2, 3, 4, 70)
    x = rows(shape, dtype)
    where, lengths = rows(shape, np.float32, 1) > -3, np.random.default_rng(2).integers(0, 71, shape[:-1])
    check(name, x, -1)
    check(name, x, -1, where=where, lengths=lengths, empty="nan")
    check(name, x, -1, causal=66, temperature=1.7, softcap=4.0)
    check(name, x, -1, bias=rows((1, 3, 4, 70), dtype, 3), sink=rows((1, 3, 1), dtype, 4), lengths=lengths)
    check(name, x, -1, bias=rows((1, 1, 1, 70), dtype, 3), where=where, sink=rows((1, 1, 1), dtype, 4), softcap=5.0)
    check(name, x, -1, bias=rows((1, 3, 1, 1), dtype, 3), causal=0)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_axes_and_strides(name, axis):
    x = rows((6, 8, 10), np.float32)
    for view in (x, x[:, ::-2], x.T, x[1:, :, 1:]):
        check(name, view, axis, sink=rows([1 if d == 0 else n for d, n in enumerate(np.delete(view.shape, axis))], np.float32))


@pytest.mark.parametrize("name", OPS)
def test_long_rows(name):
    x = rows((2, 20_000), np.float32)
    bias, sink = rows((1, 20_000), np.float32, 1), rows((2,), np.float32, 2)
    check(name, x, -1, lengths=np.array([17_000, 20_000]), bias=bias, sink=sink)


def test_lengths_out_of_range_are_clamped():
    x = rows((3, 9), np.float64)
    want = se.masked_softmax(x, lengths=[0, 9, 9])
    wild = np.array([[-5], [10], [2**62]])
    assert on_device("f", "masked_softmax", x, 1, {"out": want}, {"lengths": wild})["out"].tobytes() == want.tobytes()


def test_errors():
    x, out = TableArray(rows((2, 3), np.float32)), TableArray(np.full((2, 3), 7, np.float32))
    with pytest.raises(TypeError, match="f: bias is on the CPU, accepted: cuda:0, where the first input is"):
        _core._masked("f", 0, x, 1, out=out, bias=np.ones((2, 3), np.float32))
    with pytest.raises(TypeError, match="f: out is on cuda:1, accepted: cuda:0, where the first input is"):
        _core._masked("f", 0, x, 1, out=TableArray(out.array, 1))
    with pytest.raises(ValueError, match="f: softcap is -1"):
        _core._masked("f", 0, x, 1, out=out, softcap=-1.0)
    short = TableArray(np.zeros(16, np.uint8))
    sink, dsink = (TableArray(np.zeros((2, 1), np.float32)) for _ in range(2))
    g = TableArray(np.ones((2, 3), np.float32))
    assert _core._masked("f", 0, x, 1, out=out, g=g, sink=sink, dsink=dsink, workspace=short) > 16
    assert (out.array == 7).all()
