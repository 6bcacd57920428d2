"""Gradients of arguments that were broadcast: sums, in one order for arrays and tensors."""

import numpy as np
import pytest

import sumexp as se

torch = pytest.importorskip("torch")
FULL = (5, 37, 41)
SHAPES = [FULL, (), (1,), (41,), (37, 1), (5, 1, 41), (1, 37, 1), (1, 1, 1)]


def normal(rng, shape, dtype):
    return rng.standard_normal(shape).astype(dtype)


def check(function, g, *arguments, **options):
    """The bytes of tensors' gradients are those of arrays'; both are within an ulp or two of the whole one's sums."""
    found = function(g, *arguments, **options)
    as_tensors = {n: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for n, v in options.items()}
    beside = function(torch.from_numpy(g), *map(torch.from_numpy, arguments), **as_tensors)
    broadcast = [*arguments, *(v for v in options.values() if isinstance(v, np.ndarray))]
    for mine, theirs, argument in zip(found, beside, broadcast, strict=True):
        assert mine.shape == tuple(theirs.shape) == argument.shape
        assert mine.tobytes() == theirs.numpy().tobytes()
    return found


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("function", [se.logaddexp_vjp, se.logsubexp_vjp])
def test_pairs(function, shape, dtype):
    rng = np.random.default_rng(3)
    g, a, b = (normal(rng, s, dtype) for s in (FULL, FULL, shape))
    if function is se.logsubexp_vjp:
        b = np.asarray(b - 9, dtype)
    _, db = check(function, g, a, b)
    whole = function(g, a, np.broadcast_to(b, FULL).copy())[1].astype(np.float64)
    axes = tuple(k for k in range(3) if k < 3 - len(shape) or shape[k - 3] == 1)
    expected = whole.sum(axes).reshape(shape)
    size = np.abs(whole).sum(axes).reshape(shape)
    rounded = np.finfo(dtype).eps / 2 * np.abs(expected) if dtype != np.float64 else 0
    assert (np.abs(db - expected) <= rounded + 2.0**-50 * size + np.finfo(dtype).smallest_subnormal).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(41,), (37, 1), (1, 37, 41), ()])
def test_weights(shape, dtype):
    rng = np.random.default_rng(4)
    check(se.logsumexp_vjp, normal(rng, FULL[:2], dtype), normal(rng, FULL, dtype), axis=2, b=normal(rng, shape, dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("a, b", [((6, 7), (3, 5, 7, 4)), ((3, 1, 6, 7), (5, 7, 4)), ((7,), (9, 7, 4)), ((9, 6, 7), (7,)),
                                  ((3, 1, 1, 7), (1, 5, 7, 1))])
def test_matrices(a, b, dtype):
    rng = np.random.default_rng(5)
    a, b = normal(rng, a, dtype), normal(rng, b, dtype)
    check(se.logmatmulexp_vjp, normal(rng, se.logmatmulexp(a, b).shape, dtype), a, b)


def test_sums_of_nothing():
    da, db = check(se.logaddexp_vjp, np.empty((0, 3), np.float32), np.empty((0, 3), np.float32), np.ones((1, 3), np.float32))
    assert da.shape == (0, 3) and (db == 0).all()
