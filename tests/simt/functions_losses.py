"""Cross-entropy's raw entries given tensors of a GPU, with the machine as the GPU: run by ctest, see CMakeLists.txt."""

import ml_dtypes
import numpy as np
import pytest
from functions import DTYPES, TableArray

from sumexp import _core

INDEX_TYPES = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]


def wide(dtype):
    return np.float64 if dtype == np.float64 else np.float32


def places(shape, dtype, reduction, names):
    rows, number = shape[:-1], wide(dtype)
    dtypes = {"predicted": np.int64, "correct": np.bool_, "dlogits": dtype, "loss": dtype}
    shapes = {"dlogits": shape, "loss": () if reduction != "none" else rows}
    return {n: np.full(shapes.get(n, rows), 7, dtypes.get(n, number)) for n in names}


def on_device(entry, *arguments, **options):
    """The entry with tensors for arrays, and the workspace that it asks for."""
    wrapped = [TableArray(a) if isinstance(a, np.ndarray) else a for a in arguments]
    options = {n: TableArray(a) if isinstance(a, np.ndarray) else a for n, a in options.items()}
    wanted = entry(*wrapped, **options)
    if wanted is not None:
        assert entry(*wrapped, workspace=TableArray(np.empty(wanted, np.uint8)), **options) is None


EVERYTHING = ("dlogits", "loss", "row_loss", "lse", "log_prob", "entropy", "z_loss_part", "predicted", "correct")


def check(x, target, *, names=EVERYTHING, reduction="mean", **options):
    want, got = (places(x.shape, x.dtype, reduction, names) for _ in range(2))
    _core._cross_entropy(x, target, -1, reduction=reduction, **options, **want)
    on_device(_core._cross_entropy, x, target, -1, reduction=reduction, **options, **got)
    for name in names:
        assert got[name].tobytes() == want[name].tobytes(), name


def logits(shape, dtype, seed=0):
    return np.random.default_rng(seed).normal(0, 4, shape).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", INDEX_TYPES)
def test_indices(dtype, index):
    x = logits((3, 50), dtype)
    check(x, np.array([7, 49, 0], index))
    check(x, np.array([7, 49, 0], index), ignore_index=49, names=("loss", "dlogits"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_options(dtype, reduction):
    random = np.random.default_rng(1)
    x = logits((2, 3, 300), dtype)
    options = {
        "reduction": reduction, "weight": random.random(300).astype(wide(dtype)), "token_weight": random.random((2, 3)),
        "g": random.normal(size=(2, 3)), "label_smoothing": 0.1, "z_loss": 0.01, "softcap": 9.0, "temperature": 1.5,
    }
    check(x, random.integers(0, 300, (2, 3)), **options)
    check(x, random.random((2, 3, 300)).astype(np.float32), **options)
    pairs = random.random((2, 3, 4)).astype(ml_dtypes.bfloat16)
    check(x, random.integers(0, 300, (2, 3, 4)), target_weight=pairs, **options)


def test_a_denominator_is_read_where_it_is():
    x, target = logits((4, 33), np.float32), np.array([1, 2, -100, 3])
    check(x, target, denominator=np.array(2.5))
    check(x, target, denominator=2.5)
    check(x, np.full(4, -100), zero_if_empty=True)
    check(x, np.full(4, -100), zero_if_empty=False)


def test_sums_of_rows():
    random = np.random.default_rng(2)
    x, target = logits((5000, 3), np.float32), random.integers(-1, 3, 5000)
    tokens, out = random.random(5000), np.zeros(())
    options = {"token_weight": tokens, "ignore_index": -1}
    want = _core._cross_entropy_denominator(x, target, 1, **options)
    on_device(_core._cross_entropy_denominator, x, target, 1, out=out, **options)
    assert out == want
    on_device(_core._sum_rows, tokens, out=out)
    assert out == _core._sum_rows(tokens)
    check(x, target, names=("loss", "dlogits"), **options)


def test_in_place():
    x = logits((3, 5000), np.float32)
    want, got, loss = x.copy(), x.copy(), [np.zeros((), np.float32) for _ in range(2)]
    target = np.array([4000, 0, 17])
    _core._cross_entropy(want, target, 1, dlogits=want, loss=loss[0])
    on = TableArray(got)
    options = {"dlogits": on, "loss": TableArray(loss[1])}
    wanted = _core._cross_entropy(on, TableArray(target), 1, **options)
    _core._cross_entropy(on, TableArray(target), 1, workspace=TableArray(np.empty(wanted, np.uint8)), **options)
    assert got.tobytes() == want.tobytes() and loss[0] == loss[1]


def test_targets_out_of_range_are_no_error():
    x, target = logits((3, 10), np.float32), np.array([3, 10, -7])
    found = places(x.shape, x.dtype, "none", ("loss", "dlogits", "predicted", "correct"))
    on_device(_core._cross_entropy, x, target, 1, reduction="none", **found)
    assert np.isfinite(found["loss"][0]) and np.isnan(found["loss"][1:]).all()
    assert np.isfinite(found["dlogits"][0]).all() and np.isnan(found["dlogits"][1:]).all()
    assert found["predicted"][0] == x[0].argmax() and not found["correct"][1:].any()


def test_refusals():
    x, target = TableArray(logits((3, 10), np.float32)), np.array([3, 1, 2])
    with pytest.raises(TypeError, match="target is on the CPU, accepted: cuda:0"):
        _core._cross_entropy(x, target, 1)
    with pytest.raises(TypeError, match="out is missing"):
        _core._cross_entropy_denominator(x, TableArray(target), 1)
    with pytest.raises(TypeError, match="out is missing"):
        _core._sum_rows(x)
    with pytest.raises(ValueError, match="label_smoothing"):
        _core._cross_entropy(x, TableArray(target), 1, label_smoothing=2.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"label_smoothing": 0.1, "z_loss": 0.01}], ids=str)
def test_quotients_that_overflow(dtype, options):
    names = ("loss", "dlogits", "lse", "log_prob", "entropy", "predicted", "correct")
    x = logits((3, 5000), dtype)
    x[1, 3] = np.finfo(dtype).max
    want, got = (places(x.shape, dtype, "none", names) for _ in range(2))
    target = np.array([7, 4999, 0])
    _core._cross_entropy(x, target, -1, reduction="none", temperature=0.5, **options, **want)
    on_device(_core._cross_entropy, x, target, -1, reduction="none", temperature=0.5, **options, **got)
    assert all(np.isfinite(want["dlogits"].ravel()[:1]))
    for name in names:
        assert got[name].tobytes() == want[name].tobytes(), name
