"""log_prob, entropy, kl_div and their gradients given tensors of a GPU, with the machine as the GPU: the entries that
sumexp.torch calls, bytes against the CPU's."""

import numpy as np
import pytest
from functions import DTYPES, TableArray, rows

from sumexp import _core


def both(entry, *args):
    """The results of an entry on arrays of the CPU and of the machine. An argument that is a shape is a new array."""

    def call(of_array):
        dtype = next(a.dtype for a in args if isinstance(a, np.ndarray) and a.dtype != np.int64)
        made = [np.full(a, 7, dtype) if isinstance(a, tuple) else a for a in args]
        entry(*(of_array(a) if isinstance(a, np.ndarray) else a for a in made))
        return [a for a, given in zip(made, args) if isinstance(given, tuple)]

    return call(lambda a: a), call(TableArray)


def agree(entry, *args):
    for want, got in zip(*both(entry, *args)):
        assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape, axis", [((4, 30), 1), ((3, 700), 1), ((30, 4), 0), ((2, 5, 3), 1), ((9,), 0), ((2, 0), 1)])
def test_entries(shape, axis, dtype):
    x, y, full = rows(shape, dtype), rows(shape, dtype, 1), np.zeros(shape)
    one = full.sum(axis).shape
    of_row = np.asarray(rows(one, dtype, 2))
    picked = [()] if shape[axis] else []
    for K in (*picked, *((k,) for k in (1, 3) if picked)):
        index = np.random.default_rng(3).integers(0, shape[axis], one + K)
        of_picks = np.asarray(rows(one + K, dtype, 4))
        agree(_core._log_prob_and_entropy, "log_prob_and_entropy", x, index, axis, 0.75, one + K, one)
        agree(_core._log_prob_and_entropy, "log_prob", x, index, axis, 1.0, one + K, None)
        agree(_core._log_prob_and_entropy_vjp, "vjp", of_picks, of_row, x, index, axis, 0.75, shape)
        agree(_core._log_prob_and_entropy_vjp, "log_prob_vjp", of_picks, None, x, index, axis, 1.0, shape)
    agree(_core._log_prob_and_entropy, "entropy", x, None, axis, 2.0, None, one)
    agree(_core._log_prob_and_entropy_vjp, "entropy_vjp", None, of_row, x, None, axis, 2.0, shape)
    agree(_core._kl_div, x, y, axis, one)
    agree(_core._kl_div_vjp, of_row, x, y, axis, shape, shape)


def test_strides():
    x, y = (rows((40, 6, 8), np.float32, k) for k in range(2))
    for cut in (np.s_[::-2, :, 1:], np.s_[::3, ::-1, ::2]):
        a, b = x[cut], y[cut]
        one = a.shape[1:]
        index = np.broadcast_to(np.int64(3), one)
        agree(_core._log_prob_and_entropy, "log_prob_and_entropy", a, index, 0, 1.0, one, one)
        agree(_core._log_prob_and_entropy_vjp, "vjp", np.broadcast_to(np.float32(2), one), None, a, index, 0, 1.0, a.shape)
        agree(_core._kl_div_vjp, np.broadcast_to(np.float32(2), one), a, b, 0, a.shape, a.shape)


def test_an_index_of_no_class_is_nan():
    """No error, for which a call would have to wait for the device; and nothing is read outside of the row."""
    x = rows((4, 30), np.float64)
    index = np.array([[0, 29], [3, 30], [-1, 3], [1, 2]])
    log_prob, entropy, gradient = np.full((4, 2), 7.0), np.full(4, 7.0), np.full((4, 30), 7.0)
    _core._log_prob_and_entropy(
        "both", TableArray(x), TableArray(index), 1, 1.0, TableArray(log_prob), TableArray(entropy)
    )
    _core._log_prob_and_entropy_vjp(
        "vjp", TableArray(np.ones((4, 2))), None, TableArray(x), TableArray(index), 1, 1.0, TableArray(gradient)
    )
    for result in (log_prob, entropy, gradient):
        assert np.isnan(result[1:3]).all() and np.isfinite(result[[0, 3]]).all()
    with pytest.raises(ValueError, match="index is 30 for row 1"):
        _core._log_prob_and_entropy("both", x, index, 1, 1.0, log_prob, entropy)


def test_all_on_one_device():
    x, out = rows((4, 30), np.float32), np.full(4, 7, np.float32)
    message = "kl_div: q_logits is on the CPU, accepted: cuda:0, where the first input is"
    with pytest.raises(TypeError, match=message):
        _core._kl_div(TableArray(x), x, 1, TableArray(out))
    with pytest.raises(TypeError, match="kl_div: out is on cuda:1, accepted: cuda:0"):
        _core._kl_div(TableArray(x), TableArray(x), 1, TableArray(out, 1))
    with pytest.raises(TypeError, match="accepted: the CPU"):
        _core._kl_div(x, TableArray(x), 1, out)
    assert (out == 7).all()
    for device in range(2):
        _core._kl_div(TableArray(x, device), TableArray(x, device), 1, TableArray(out, device))
        assert (out == 0).all()
