"""LogSumExp: the bytes of one call, however the rows come; objects that merge, travel and are refused."""

import importlib.util
import pickle
import re
import sys
import types
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import sumexp as se
from isas import ISAS
from sumexp import LogSumExp, _core

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


def rows(shape, dtype, seed=0, scale=20.0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(dtype)


def same(a, b):
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype and a.shape == b.shape
    assert a.tobytes() == b.tobytes()


def chunk_of(dtype):
    return 512 if dtype == np.float64 else 2048


def fed(x, sizes, b=None, **options):
    total, i = LogSumExp(**options), 0
    for size in sizes:
        total.update(x[..., i : i + size], b=None if b is None else b[..., i : i + size])
        i += size
    return total.update(x[..., i:], b=None if b is None else b[..., i:])


def cut(x, cuts, b=None):
    """Objects of the parts between `cuts`."""
    cuts = [0, *cuts, x.shape[-1]]
    return [
        LogSumExp(start=p).update(x[..., p:q], b=None if b is None else b[..., p:q]) for p, q in zip(cuts, cuts[1:]) if p < q
    ]


def merged(objects):
    total = LogSumExp()
    for o in objects:
        total.merge(o)
    return total


# -- bytes -------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    dtype=st.sampled_from(DTYPES),
    n=st.integers(0, 9000),
    sizes=st.lists(st.integers(0, 4200), max_size=8),
    weighted=st.booleans(),
    seed=st.integers(0, 99),
)
def test_pieces_of_any_size(dtype, n, sizes, weighted, seed):
    x = rows((2, n), dtype, seed)
    b = rows((2, n), dtype, seed + 1, 1.0) if weighted else None
    total = fed(x, sizes, b)
    for found, expected in zip(total.result(return_sign=True), se.logsumexp(x, axis=-1, b=b, return_sign=True)):
        same(found, expected)
    if not weighted:
        same(total.softmax(x), se.softmax(x, axis=-1))
        same(total.log_softmax(x), se.log_softmax(x, axis=-1))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    n=st.integers(1, 40000),
    cuts=st.lists(st.integers(0, 80), max_size=6),
    order=st.randoms(use_true_random=False),
    weighted=st.booleans(),
)
def test_parts_that_meet_where_chunks_do_merge_in_any_order(dtype, n, cuts, order, weighted):
    x = rows(n, dtype, n)
    b = rows(n, dtype, n + 1, 1.0) if weighted else None
    objects = cut(x, sorted(min(c * chunk_of(dtype), n) for c in cuts), b)
    order.shuffle(objects)
    total = merged(objects)
    same(total.result(return_sign=True)[0], se.logsumexp(x, axis=-1, b=b, return_sign=True)[0])
    same(total.to_array(), LogSumExp().update(x, b=b).to_array())
    if not weighted:
        same(total.softmax(x), se.softmax(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_instruction_sets_and_threads(dtype):
    x = rows((3, 70001), dtype)
    b = rows((3, 70001), dtype, 1, 1.0)
    expected = None
    for isa in ISAS:
        _core.set_isa(isa)
        for threads in (1, 3):
            se.set_num_threads(threads)
            plain, weighted = fed(x, [3000, 50000]), fed(x, [3000, 50000], b)
            found = [plain.to_array(), weighted.to_array(), plain.softmax(x), plain.log_softmax(x), weighted.result(True)[0]]
            expected = expected or found
            for f, e in zip(found, expected):
                same(f, e)
    same(expected[2], se.softmax(x))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("columns", [1, 5, 16, 40])
def test_axis_strides_and_batch(dtype, columns):
    x = rows((4500, columns), dtype)
    b = rows((4500, columns), dtype, 1, 1.0)
    same(LogSumExp().update(x, axis=0).result(), se.logsumexp(x, axis=0))
    same(LogSumExp().update(x, 0, b).result(True)[1], se.logsumexp(x, axis=0, b=b, return_sign=True)[1])
    same(LogSumExp().update(x[::-1, ::2], axis=0).result(), se.logsumexp(x[::-1, ::2].copy(), axis=0))
    same(LogSumExp().update(x, axis=0).softmax(x, axis=0), se.softmax(x, axis=0))
    same(LogSumExp().update(x, axis=None).result(), se.logsumexp(x))
    single = [LogSumExp().update(x[:, j]).result() for j in range(columns)]
    same(LogSumExp().update(x, axis=0).result(), np.array(single))


def test_several_axes():
    x = rows((30, 3, 70), np.float32)
    total = LogSumExp().update(x, axis=(0, -1))
    same(total.result(), se.logsumexp(x, axis=(0, 2)))
    same(total.softmax(x, axis=(0, 2)), se.softmax(x, axis=(0, 2)))
    same(total.log_softmax(x, axis=(2, 0)), se.log_softmax(x, axis=(0, 2)))


def test_pieces_of_a_later_pass():
    x = np.concatenate([rows(2048, np.float32, s, scale) for s, scale in enumerate([1, 1e5, 30, 1e9])])
    for total in (LogSumExp().update(x), LogSumExp().update(x[:7000])):
        whole = total.softmax(x)
        same(np.concatenate([total.softmax(x[i : i + 4096], start=i) for i in (0, 4096)]), whole)
        same(np.concatenate([total.log_softmax(p) for p in np.array_split(x, 7)]), total.log_softmax(x))
    same(LogSumExp().update(x).softmax(x), se.softmax(x))


def test_parts_that_meet_within_chunks_are_right():
    x = rows(9000, np.float64, 3)
    total = merged(cut(x, [100, 700, 701, 5000]))
    assert abs(total.result() - se.logsumexp(x)) <= np.spacing(se.logsumexp(x))
    assert len(total.to_array()) == len(LogSumExp().update(x).to_array())


def test_subtrees_are_few():
    n = 512 * 1000 + 77
    x = rows(n, np.float64)
    for start in (0, 512 * 3, 513):
        assert len(LogSumExp(start=start).update(x).to_array()) <= 2 * np.log2(n / 512) + 2


def test_merging_goes_on_after_what_waits():
    x = rows(20000, np.float32)
    first, second = LogSumExp().update(x[:4096]), LogSumExp(start=4096).update(x[4096:10001])
    total = merged([second, first]).update(x[10001:])
    same(total.result(), se.logsumexp(x))
    assert second.stop == 10001  # as it was
    same(second.update(x[10001:]).result(), se.logsumexp(x[4096:]))


# -- travel ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_pickle_and_array(dtype, weighted):
    x = rows((2, 9001), dtype)
    b = rows((2, 9001), dtype, 1, 1.0) if weighted else None
    half = fed(x[:, :5000], [123], None if b is None else b[:, :5000])
    whole = pickle.loads(pickle.dumps(half)).update(x[:, 5000:], b=None if b is None else b[:, 5000:])
    same(whole.result(True)[0], se.logsumexp(x, axis=-1, b=b, return_sign=True)[0])
    array = whole.to_array()
    assert array.shape[1:] == (2,) and array.dtype.names[:2] == ("first", "count")
    back = LogSumExp.from_array(np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape)[::-1])
    assert (back.start, back.stop) == (0, 9001)
    same(back.result(True)[1], whole.result(True)[1])
    both = np.concatenate([o.to_array() for o in cut(x, [2048, 6144], b)])
    same(LogSumExp.from_array(both).to_array(), array)


def test_tensors():
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(rows((2, 5000), np.float32))
    total = LogSumExp().update(x[:, :100]).update(x[:, 100:])
    same(total.result(), se.logsumexp(x.numpy(), axis=-1))
    p = total.softmax(x)
    assert isinstance(p, torch.Tensor)
    same(p.numpy(), se.softmax(x.numpy()))


# -- specials ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 2500, 4999])
def test_special_values(value, at):
    for x in (rows(5000, np.float32), np.full(5000, -np.inf, np.float32)):
        x[at] = value
        total = fed(x, [2600, 700])
        same(total.result(), se.logsumexp(x))
        same(total.softmax(x), se.softmax(x))
        same(total.log_softmax(x), se.log_softmax(x))
        for found, expected in zip(total.result(True), se.logsumexp(x, return_sign=True)):
            same(found, expected)


def test_nothing():
    assert LogSumExp().result() == -np.inf
    empty = LogSumExp().update(np.empty((3, 0), np.float32))
    same(empty.result(), np.full(3, -np.inf, np.float32))
    assert empty.softmax(np.empty((3, 0), np.float32)).shape == (3, 0)
    assert LogSumExp().update(np.empty((0, 9))).result().shape == (0,)
    assert LogSumExp().update(np.empty((0, 9999))).merge(LogSumExp(9999).update(np.empty((0, 99)))).to_array().size == 0
    assert LogSumExp.from_array(LogSumExp().to_array()).result() == -np.inf
    same(LogSumExp().merge(LogSumExp()).update([1, 2]).result(), se.logsumexp([1, 2]))
    assert LogSumExp().update(3.0).result() == 3.0


def test_weights_that_cancel():
    x = np.array([30.0, 30.0, 5.0])
    b = np.array([1.0, -1.0, -2.0])
    value, sign = LogSumExp().update(x[:1], b=b[:1]).update(x[1:], b=b[1:]).result(return_sign=True)
    assert sign == -1 and value == se.logsumexp(x, b=b, return_sign=True)[0]
    assert np.isnan(LogSumExp().update(x, b=b).result())


# -- what is refused ---------------------------------------------------------------------------------------


def test_bad_input():
    total = LogSumExp().update(np.zeros((2, 3), np.float32))
    before = total.result()

    def refuses(error, call, *words):
        with pytest.raises(error) as caught:
            call()
        for word in ("LogSumExp", *words):
            assert word in str(caught.value)
        same(total.result(), before)

    refuses(TypeError, lambda: LogSumExp(start=1.5), "start", "1.5", "int")
    refuses(ValueError, lambda: LogSumExp(start=-1), "start", "-1")
    refuses(TypeError, lambda: total.update(np.zeros((2, 3))), "x", "float64", "float32")
    refuses(TypeError, lambda: total.update(np.zeros((2, 3), complex)), "x", "complex")
    refuses(ValueError, lambda: total.update(np.zeros((3, 3), np.float32)), "x", "(3,)", "(2,)")
    refuses(ValueError, lambda: total.update(np.zeros((2, 3), np.float32), b=np.ones(3, np.float32)), "b", "no weights")
    refuses(ValueError, lambda: total.update(np.zeros((2, 3), np.float32), b=np.ones(4, np.float32)), "b", "(4,)")
    refuses(np.exceptions.AxisError, lambda: total.update(np.zeros((2, 3), np.float32), axis=2), "axis")
    refuses(TypeError, lambda: total.merge(3), "other", "int")
    refuses(TypeError, lambda: total.merge(LogSumExp(3).update(np.zeros((2, 3)))), "other", "float64")
    refuses(ValueError, lambda: total.merge(total), "overlap", "start")
    refuses(ValueError, lambda: total.merge(LogSumExp(2).update(np.zeros((2, 3), np.float32))), "2 to 2")
    refuses(TypeError, lambda: LogSumExp.from_array(np.zeros(3)), "array", "float64")
    refuses(ValueError, lambda: LogSumExp().softmax(np.zeros(3)), "softmax", "nothing")
    refuses(ValueError, lambda: LogSumExp(softmax=False).update([1.0]).softmax([1.0]), "softmax=False")
    refuses(ValueError, lambda: LogSumExp().update([1.0], b=[2.0]).softmax([1.0]), "weights")
    refuses(TypeError, lambda: total.softmax(np.zeros((2, 3))), "x", "float64")
    refuses(ValueError, lambda: total.log_softmax(np.zeros((4, 3), np.float32)), "x", "(4,)")
    broken = total.to_array()
    for field, value in (("first", -1), ("count", 0), ("dtype", 7), ("sums", 9), ("count", 2**62 + 2**61)):
        bad = np.concatenate([broken, LogSumExp(3).update(np.zeros((2, 3), np.float32)).to_array()])
        bad[field][1] = value
        refuses(ValueError, lambda: LogSumExp.from_array(bad), "LogSumExp.from_array: ")
    refuses(ValueError, lambda: LogSumExp.from_array(np.concatenate([broken, broken])), "LogSumExp.from_array: ")


# -- README ------------------------------------------------------------------------------------------------


class Pieces:
    """As much of Ray Data's data set, and of Spark's RDD, as README.md uses; a test of neither."""

    def __init__(self, parts):
        self.parts = parts

    def map_batches(self, function, batch_size, batch_format):
        (x,) = self.parts
        starts = range(0, len(x), batch_size)
        return Pieces([function({"x": x[s : s + batch_size], "row_number": np.arange(s, len(x))}) for s in starts])

    def take_all(self):
        return [{name: column[i] for name, column in part.items()} for part in self.parts for i in range(len(part["state"]))]

    def zipWithIndex(self):
        places = np.cumsum([0, *map(len, self.parts)])
        return Pieces([zip(part, range(int(p), int(p) + len(part))) for part, p in zip(self.parts, places)])

    def mapPartitions(self, function):
        return Pieces([value for part in self.parts for value in function(iter(part))])

    def reduce(self, function):
        first, *others = map(pickle.loads, map(pickle.dumps, self.parts))
        for other in others:
            first = function(first, other)
        return first


def test_readme(monkeypatch, capsys):
    text = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    section = re.search(r"^## Rows in pieces\n(.*?)^## ", text, re.M | re.S)[1]
    pieces, dask, ray, spark = re.findall(r"^```python\n(.*?)^```", section, re.M | re.S)
    names = {"se": se, "row": rows(10_000, np.float32)}
    exec(pieces, names)
    same(names["total"].result(), se.logsumexp(names["row"]))
    if importlib.util.find_spec("dask"):
        exec(dask, names)
        assert names["p"].shape == (100_000, 1000)
    x = rows(9000, np.float32)
    module = types.ModuleType("ray")
    module.data = types.SimpleNamespace(read_parquet=lambda name: Pieces([x]))
    monkeypatch.setitem(sys.modules, "ray", module)
    exec(ray, names)
    for values in (list(x), [float(v) for v in x]):
        exec(spark, {**names, "rdd": Pieces([values[:100], [], values[100:5000], values[5000:]])})
    printed = [float(line) for line in capsys.readouterr().out.split()]
    assert len(printed) == 3 and np.float32(printed[0]) == np.float32(printed[1]) == se.logsumexp(x)
    assert abs(printed[2] - se.logsumexp(x.astype(float))) <= np.spacing(printed[2])
