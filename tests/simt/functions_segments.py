"""Raw entries of segments and of the log domain given arrays of a GPU, with the machine as the GPU: run by ctest."""

import numpy as np
import pytest
from functions import DTYPES, TableArray

import sumexp as se
from sumexp import _core
from sumexp._operations import LOG_DOMAIN
from sumexp._segment_arguments import OPS


def rows(shape, dtype, seed=0):
    return np.random.default_rng(seed).normal(0, 3, shape).astype(dtype)


def on_device(entry, *args):
    """entry(*args) on arrays of the device, again with the workspace that it asks for."""
    size = entry(*args)
    if size:
        assert entry(*args, TableArray(np.zeros(size, np.uint8))) is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPS)
def test_segments(name, dtype):
    lengths = [3, 0, 500, 1, 5000, 40, 0, 2049, 7]
    offsets = np.cumsum([0, *lengths])
    x, other = rows((offsets[-1], 3), dtype), rows((offsets[-1], 3), dtype, 1)
    op = OPS[name]
    if op.row_gradient:
        other = rows((len(lengths), 3), dtype, 1)
    args = [other, x] if name.endswith(("_vjp", "_jvp")) else [x]
    want = getattr(se, name)(*args, offsets=offsets)
    first, second = args if len(args) == 2 else (x, None)
    if op.x_first:
        first, second = second, first
    got = TableArray(np.full(want.shape, 77, dtype))
    given = [None if a is None else TableArray(a) for a in (first, second)]
    on_device(_core._segments, name, op.op, *given, TableArray(offsets), got)
    assert got.array.tobytes() == want.tobytes()


class Tensor(TableArray):
    """As much of a tensor of torch as what runs below its autograd asks of one."""

    is_cpu = False

    def reshape(self, *shape):
        return type(self)(self.array.reshape(shape))

    def new_empty(self, shape, dtype=None):
        return type(self)(np.full(shape, 77, self.dtype if dtype is None else np.uint8))

    def to(self, dtype):
        return self

    resolve_neg = detach = lambda self: self


@pytest.mark.parametrize("name", ["segment_softmax", "segment_log_softmax", "segment_logsumexp"])
def test_segments_of_tensors(name):
    segments = pytest.importorskip("sumexp.torch._segments")
    assert segments.OPERATIONS[name].devices == {"cpu", "cuda"}
    x, offsets = rows((9000, 2, 2), np.float32), np.array([0, 4, 8000, 9000])
    want = getattr(se, name)(x, offsets=offsets)
    y = segments._kernel(name, Tensor(x), Tensor(offsets))
    assert y.array.tobytes() == want.tobytes()
    g = rows(want.shape, np.float32, 1)
    dx, _ = segments._gradient(name, (Tensor(g),), (Tensor(x), Tensor(offsets)), (y,), (), ())
    given = x if name == "segment_logsumexp" else want
    assert dx.array.tobytes() == getattr(se, name + "_vjp")(g, given, offsets=offsets).tobytes()


def test_segments_of_two_devices():
    x, offsets = TableArray(rows((6, 1), np.float32)), TableArray(np.array([0, 6]))
    with pytest.raises(TypeError, match=r"segment_softmax: offsets is on the CPU, accepted: cuda:0, where the first input is"):
        _core._segments("segment_softmax", 0, x, None, offsets.array, x)
    with pytest.raises(TypeError, match=r"segment_softmax: out is on cuda:1, accepted: cuda:0, where the first input is"):
        _core._segments("segment_softmax", 0, x, None, offsets, TableArray(x.array, 1))
    with pytest.raises(TypeError, match=r"segment_softmax: offsets is on cuda:0, accepted: the CPU"):
        _core._segments("segment_softmax", 0, x.array, None, offsets, x.array.copy())


def test_segments_without_a_workspace():
    x, offsets = TableArray(rows((6000, 1), np.float32)), TableArray(np.array([0, 6000]))
    before = x.array.copy()
    assert _core._segments("segment_softmax", 0, x, None, offsets, x) > 0
    assert x.array.tobytes() == before.tobytes()
    with pytest.raises(TypeError, match="workspace is not contiguous uint8"):
        _core._segments("segment_softmax", 0, x, None, offsets, x, TableArray(np.zeros(10**6, np.float32)))


# -- the log domain -----------------------------------------------------------------------------------------

ARGUMENTS = {"logaddexp": 2, "logsubexp": 2, "log1mexp": 1, "softplus": 1, "logaddexp_vjp": 3, "logsubexp_vjp": 3,
             "log1mexp_vjp": 2, "softplus_vjp": 2, "logaddexp_jvp": 4, "logsubexp_jvp": 4}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ARGUMENTS)
def test_elementwise(name, dtype):
    given = [rows((4, 50), dtype, k) for k in range(ARGUMENTS[name])]
    given[-1] = given[-1][:, ::-1]
    want = getattr(se, name)(*given)
    want = want if isinstance(want, tuple) else (want,)
    got = tuple(TableArray(np.full((4, 50), 77, dtype)) for _ in want)
    assert _core._elementwise(name, LOG_DOMAIN[name], tuple(map(TableArray, given)), got) is None
    for ours, theirs in zip(got, want):
        assert ours.array.tobytes() == theirs.tobytes()
    with pytest.raises(TypeError, match=f"{name}: out is on the CPU, accepted: cuda:0, where the first input is"):
        _core._elementwise(name, LOG_DOMAIN[name], tuple(map(TableArray, given)), tuple(want))


@pytest.mark.parametrize("name", ["logaddexp", "logsubexp", "log1mexp", "softplus"])
def test_elementwise_of_tensors(name):
    operation = pytest.importorskip("sumexp.torch._log_domain").OPERATIONS[name]
    assert operation.devices == {"cpu", "cuda"}
    given = [rows((4, 50), np.float32, k) for k in range(ARGUMENTS[name])]
    tensors = [*map(Tensor, given)]
    assert operation.kernel(*tensors).array.tobytes() == getattr(se, name)(*given).tobytes()
    g = rows((4, 50), np.float32, 9)
    found = operation.gradient((Tensor(g),), tensors, (), (), (True,) * len(given))
    want = getattr(se, name + "_vjp")(g, *given)
    for ours, theirs in zip(found, want if isinstance(want, tuple) else (want,)):
        assert ours.array.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("name", ["logcumsumexp", "logcumsumexp_vjp"])
def test_running_sums_stay_on_the_cpu(name):
    x = TableArray(rows((3, 4), np.float32))
    with pytest.raises(NotImplementedError, match=f"{name}: x is on cuda:0, accepted: the CPU"):
        _core._running(name, None if name == "logcumsumexp" else x, x, x, 1, False, False, False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_with_weights(dtype):
    x, b, t, tb = (rows((3, 700), dtype, k) for k in range(4))
    g = rows(3, dtype, 5)
    entry = lambda name, which, more: _core._weighted_rows(name, which, TableArray(x), TableArray(b), more)
    new = lambda like: TableArray(np.full_like(like, 77))

    got, sign = new(g), new(g)
    assert entry("logmeanexp", 0, (None, got, sign)) is None
    for ours, theirs in zip((got, sign), se.logmeanexp(x, 1, b=b, return_sign=True)):
        assert ours.array.tobytes() == theirs.tobytes()
    dx, db = new(x), new(x)
    assert entry("logsumexp_vjp", 1, (TableArray(g), dx, db)) is None
    for ours, theirs in zip((dx, db), se.logsumexp_vjp(g, x, 1, b=b)):
        assert ours.array.tobytes() == theirs.tobytes()
    assert entry("logsumexp_jvp", 2, (TableArray(t), TableArray(tb), got)) is None
    assert got.array.tobytes() == se.logsumexp_jvp(t, x, 1, b=b, t_b=tb).tobytes()
    with pytest.raises(TypeError, match="logsumexp_vjp: g is on the CPU, accepted: cuda:0, where the first input is"):
        entry("logsumexp_vjp", 1, (g, dx, db))
