"""sumexp.dask: lazy, over any axes and blocks; bytes where blocks are cut at chunk edges; every scheduler."""

import ml_dtypes
import numpy as np
import pytest

da = pytest.importorskip("dask.array", reason="dask is not installed")

import sumexp as se  # noqa: E402
import sumexp.dask as sd  # noqa: E402

FUNCTIONS = ["logsumexp", "softmax", "log_softmax"]
pytestmark = pytest.mark.filterwarnings("ignore:.*rechunk")


def rows(shape, dtype=np.float32, seed=0):
    return (np.random.default_rng(seed).normal(size=shape) * 10).astype(dtype)


def same(a, b):
    assert a.dtype == b.dtype and a.shape == b.shape
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def check(name, x, chunks, axis, exact):
    lazy = getattr(sd, name)(da.from_array(x, chunks=chunks), axis)
    expected = np.asarray(getattr(se, name)(x, axis))
    assert isinstance(lazy, da.Array) and lazy.dtype == expected.dtype and lazy.shape == expected.shape
    assert lazy._meta.dtype == expected.dtype and lazy._meta.ndim == expected.ndim
    found = np.asarray(lazy.compute(scheduler="sync"))
    assert found.dtype == expected.dtype
    if exact:
        same(found, expected)
    elif x.dtype.itemsize > 2:
        assert np.all(np.abs(found - expected) <= np.spacing(np.abs(expected)))
    else:
        np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), rtol=1e-2)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_bytes_where_blocks_end_where_chunks_do(name, dtype):
    check(name, rows((3, 9000), dtype), (2, 4096), -1, True)
    check(name, rows((9000, 3), dtype), (2048, 2), 0, True)
    check(name, rows(70000, dtype), 2048, 0, True)  # a tree of several levels
    check(name, rows((512, 4, 6), dtype), (256, 4, 2), (0, 1), dtype == np.float64)  # 1,024 elements a block
    check(name, rows((5, 6), dtype), (2, 6), 1, True)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    "shape, chunks, axis",
    [((3, 5000), (1, 777), 1), ((40, 50, 6), (7, 11, 6), (0, 2)), ((40, 50), (13, 9), (0, 1)), ((4, 1000), 100, 0)],
)
def test_other_blocks(name, dtype, shape, chunks, axis):
    check(name, rows(shape, dtype), chunks, axis, False)


def test_all_axes_and_keepdims():
    x = rows((5, 7, 300))
    d = da.from_array(x, chunks=(2, 3, 100))
    assert abs(float(sd.logsumexp(d)) - float(se.logsumexp(x))) <= np.spacing(se.logsumexp(x))
    for axis in (None, 1, (0, 2)):
        lazy = sd.logsumexp(d, axis, keepdims=True)
        assert lazy.compute(scheduler="sync").shape == lazy.shape == se.logsumexp(x, axis, keepdims=True).shape
    same(sd.logsumexp(da.from_array(x[0, 0], chunks=10), split_every=2).compute(scheduler="sync"), np.asarray(
        sd.logsumexp(da.from_array(x[0, 0], chunks=10), split_every=2).compute(scheduler="threads")))


def test_lazy():
    def never(block):
        raise AssertionError("computed")

    d = da.map_blocks(never, da.zeros((4, 6), chunks=(2, 3)), dtype=np.float32, meta=np.empty((0, 0), np.float32))
    for name in FUNCTIONS:
        lazy = getattr(sd, name)(d, -1)
        with pytest.raises(AssertionError, match="computed"):
            lazy.compute(scheduler="sync")


def test_special_values():
    x = rows((4, 5000))
    x[0, 4500], x[1, 3], x[2] = np.inf, np.nan, -np.inf
    for name in FUNCTIONS:
        check(name, x, (2, 2048), -1, True)
    check("logsumexp", np.array([[1, 2], [3, 4]]), 1, 0, False)
    empty = sd.logsumexp(da.zeros((3, 0), chunks=(2, 1)), 1).compute(scheduler="sync")
    np.testing.assert_array_equal(empty, np.full(3, -np.inf))


def test_no_dimensions():
    d = da.from_array(np.float64(3))
    for lazy in (sd.softmax(d), sd.log_softmax(d), sd.logsumexp(d), sd.logsumexp(d, keepdims=True)):
        assert lazy.shape == () == lazy.compute(scheduler="sync").shape


def test_bad_input():
    d = da.zeros((4, 6), chunks=(2, 3))
    for error, words, call in [
        (TypeError, "softmax: x has dtype complex", lambda: sd.softmax(d + 0j)),
        (np.exceptions.AxisError, "log_softmax: axis", lambda: sd.log_softmax(d, 2)),
        (ValueError, "logsumexp: x has blocks of unknown size", lambda: sd.logsumexp(d[d[:, 0] > -1], 0)),
    ]:
        with pytest.raises(error, match=words):
            call()


# -- schedulers --------------------------------------------------------------------------------------------


def graph():
    x = rows((6, 3 * 2048 + 100))
    d = da.from_array(x, chunks=(2, 2048))
    return [(getattr(sd, name)(d, -1), np.asarray(getattr(se, name)(x, -1))) for name in FUNCTIONS]


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_schedulers(scheduler):
    for lazy, expected in graph():
        same(lazy.compute(scheduler=scheduler, num_workers=2), expected)


def test_distributed(tmp_path):
    distributed = pytest.importorskip("distributed", reason="distributed is not installed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=str(tmp_path)
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        for lazy, expected in graph():
            same(client.compute(lazy).result(timeout=60), expected)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_masked_arrays_and_foreign_byte_orders(function):
    x = np.array([1.0, 2.0, 1000.0, 3.0])
    with pytest.raises(TypeError, match=f"{function}: x is a masked array, accepted: "):
        getattr(sd, function)(da.ma.masked_greater(da.from_array(x, chunks=2), 500))
    for dtype in (">f4", ">f8"):
        made = getattr(sd, function)(da.from_array(x.astype(dtype), chunks=2))
        same(made.compute(), getattr(se, function)(x.astype(made.dtype)))
