"""Raw entries of segments and of the log domain given arrays of a GPU, with the machine as the GPU: run by ctest."""

import numpy as np
import pytest
from functions import DTYPES, TableArray

import sumexp as se
from sumexp import _core
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
    op, row = OPS[name]
    if name == "segment_logsumexp_vjp":
        other = rows((len(lengths), 3), dtype, 1)
    args = [x] if op < 3 else [other, x]
    want = getattr(se, name)(*args, offsets=offsets)
    first, second = (args[-1], args[0] if op > 2 else None) if op not in (3, 4, 5) else args
    got = TableArray(np.full(want.shape, 77, dtype))
    given = [None if a is None else TableArray(a) for a in (first, second)]
    on_device(_core._segments, name, op, *given, TableArray(offsets), got)
    assert got.array.tobytes() == want.tobytes()


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
