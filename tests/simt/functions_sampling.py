"""Sampling of arrays on a GPU, with the machine as the GPU, through the raw entries, as sumexp.torch calls them for tensors on
CUDA devices: draws, counts, pieces and noise are the CPU's, byte by byte. Run by ctest, see CMakeLists.txt.
"""

import ml_dtypes
import numpy as np
import pytest
from functions import TableArray

from sumexp import _core

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


def on_device(value):
    if isinstance(value, np.ndarray):
        return TableArray(np.ascontiguousarray(value.view(np.int64)) if value.dtype == np.uint64 else value)
    return {k: on_device(v) for k, v in value.items()} if isinstance(value, dict) else value


def run(entry, *args):
    """On the device, with the workspace that it asks for."""
    args = [on_device(a) for a in args]
    wanted = entry(*args)
    if wanted is not None:
        assert entry(*args, workspace=TableArray(np.full(wanted, 77, np.uint8))) is None


def options(rows, **more):
    return {"seed": np.arange(rows, dtype=np.uint64) + np.uint64(2**63 - 1), "stream": np.arange(rows) * 7, **more}


def logits(rows, n, dtype, seed=0):
    return (np.random.default_rng(seed).normal(size=(rows, n)) * 3).astype(dtype)


def info_of(rows, draws):
    names = {"log_prob": draws, "filtered_log_prob": draws, "kept": 0, "cut_logit": 0, "cut_index": 0}
    return {name: np.full((rows, per) if per else rows, 77, np.int64 if name in ("kept", "cut_index") else float)
            for name, per in names.items()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_draws(dtype):
    x = logits(4, 5000, dtype)
    where = np.random.default_rng(1).random((4, 5000)) < 0.7
    heat = np.array([0.5, 1, 0, 3.0])
    shared = np.broadcast_to(where[0], x.shape)
    for axis, view, mask in ((1, x, None), (1, x[:, ::-1], where), (0, x.T, where.T), (-1, x, shared)):
        for more in ({}, {"temperature": heat}, {"temperature": heat[:1], "top_k": np.array([9])},
                     {"top_p": np.array([0.5, 0.9, 1, 1e-3]), "min_p": np.array([1e-3]), "order": 1},
                     {"temperature": heat, "top_k": np.array([1, 2, 300, 9000]), "order": 2},
                     {"replacement": False, "temperature": heat}):
            want, got = np.full((4, 5), 77), np.full((4, 5), 78)
            told, same = info_of(4, 5), info_of(4, 5)
            given = options(4, num_samples=5, **more)
            _core._sample(view, axis, mask, given, want, told)
            run(_core._sample, view, axis, mask, given, got, same)
            assert (got == want).all()
            assert all(told[name].tobytes() == same[name].tobytes() for name in told)


def test_rows_that_are_not_drawn_from():
    x = logits(6, 3000, np.float32)
    x[0, 7], x[1, 2999], x[2] = np.nan, np.inf, -np.inf
    x[3, 5:] = -np.inf
    got, info = np.full((6, 8), 77), info_of(6, 8)
    heat = np.array([1, 1, 1, 1, -1, 1.0])
    run(_core._sample, x, 1, None, options(6, num_samples=8, replacement=False, temperature=heat), got, info)
    assert (got[[0, 1, 2, 4]] == -1).all() and (info["kept"][[0, 1, 2, 4]] == 0).all()
    assert np.isnan(info["log_prob"][[0, 1, 2, 4]]).all() and (info["cut_index"][[0, 1, 2, 4]] == -1).all()
    assert sorted(got[3, :5]) == [0, 1, 2, 3, 4] and (got[3, 5:] == -1).all()
    assert np.isnan(info["filtered_log_prob"][3, 5:]).all() and (info["log_prob"][3, :5] < 0).all()
    assert (got[5] >= 0).all()
    counts = np.full(x.shape, 77)
    run(_core._sample_counts, x, 1, options(6, num_samples=10**6, temperature=heat), counts)
    assert (counts[[0, 1, 2, 4]] == -1).all() and (counts[[3, 5]].sum(1) == 10**6).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_probability_0_is_never_drawn(dtype):
    x = logits(2, 2100, dtype)
    x[:, ::2] = -np.inf
    counts, draws = np.full(x.shape, 77), np.full((2, 9000), 77)
    run(_core._sample_counts, x, 1, options(2, num_samples=2**53), counts)
    assert (counts[:, ::2] == 0).all() and (counts.sum(1) == 2**53).all()
    run(_core._sample, x, 1, None, options(2, num_samples=9000), draws, {})
    assert (draws % 2 == 1).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_counts(dtype):
    x = logits(3, 5000, dtype)
    for n in (0, 1, 100, 10**13):
        for view, axis in ((x, 1), (x.T, 0), (x[:, ::3], 1)):
            want, got = np.full(view.shape, 77), np.full(view.shape, 78)
            given = options(3, num_samples=n, temperature=np.array([0.5, 1, 0]))
            _core._sample_counts(view, axis, given, want)
            run(_core._sample_counts, view, axis, given, got)
            assert (got == want).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_pieces(dtype):
    x, wide = logits(3, 5000, dtype), dtype == np.float64
    chunk, size = _core._chunk_classes(wide), _core._piece_state_bytes(wide)
    chunks, given = -(-5000 // chunk), options(3, num_samples=4, temperature=np.array([0.8]))
    want, got = np.full((3, 4), 77), np.full((3, 4), 78)
    _core._sample(x, 1, None, given, want, {})
    states, places = np.zeros((3, chunks, size), np.uint8), np.zeros((3, chunks, 4), np.int16)
    for first in range(0, chunks, 2):
        run(_core._sample_piece, x[:, first * chunk : (first + 2) * chunk], given, first, states, places)
    run(_core._finish_pieces, np.broadcast_to(np.zeros(1, dtype), x.shape), given, states, places, got)
    assert (got == want).all()


def test_noise():
    given = options(3)
    for stream in (None, given["stream"]):
        want, got = np.full((3, 700), 77.0), np.full((3, 700), 78.0)
        _core._gumbel_noise(given["seed"], stream, 3, 700, want)
        run(_core._gumbel_noise, given["seed"], stream, 3, 700, got)
        assert got.tobytes() == want.tobytes()


def test_refused():
    x, out = logits(2, 50, np.float32), np.zeros(2, np.int64)
    with pytest.raises(TypeError, match="sample: seed is on the CPU, accepted: cuda:0, where the first input is"):
        _core._sample(TableArray(x), 1, None, options(2), TableArray(out), {})
    with pytest.raises(ValueError, match="sample_counts: num_samples is 10000000000000000"):
        _core._sample_counts(TableArray(x), 1, on_device(options(2, num_samples=10**16)), TableArray(np.zeros((2, 50), int)))
    with pytest.raises(TypeError, match="sample_probabilities: logits must be on the CPU"):
        _core._sample_probabilities(TableArray(x), 1, None, on_device(options(2)), TableArray(np.zeros((2, 50))))
