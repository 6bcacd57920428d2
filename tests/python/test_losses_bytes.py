"""cross_entropy and its gradient: the same bytes on every instruction set, by any number of threads, of rows alone
and together."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest

import sumexp as se
from isas import ISAS
from losses_reference import INFO, MIXES, logits, same, targets
from oracle.formats import F32, F64, FORMATS
from sumexp import _core

FORMAT = pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)


@FORMAT
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("kind", ["index", "probabilities", "pairs"])
def test_bytes_do_not_depend_on_the_machine(fmt, mix, kind):
    """Instruction set and threads: loss of every reduction, gradient and info."""
    rng = np.random.default_rng(11)
    for rows, n in ((67, 70), (40, 4100)):
        x, w = logits(rng, fmt, (rows, n)), rng.random(n).astype(fmt.compute)
        target, token = targets(rng, fmt, kind, (rows,), n), rng.random(rows)
        seen = {}
        for isa, threads, reduction in itertools.product(ISAS, (1, 2, 5), ("none", "mean")):
            if threads == 5 and isa != ISAS[0]:
                continue
            _core.set_isa(isa)
            se.set_num_threads(threads)
            weights = {} if mix == "nothing" else {"weight": w, "token_weight": token}
            options = {"reduction": reduction, "info": INFO, **MIXES[mix], **weights}
            loss, gradient, info = se.cross_entropy_with_grad(x, target, **options)
            made = [loss.tobytes(), gradient.tobytes(), *(info[i].tobytes() for i in INFO)]
            assert seen.setdefault(reduction, made) == made, (isa, threads, reduction)


@FORMAT
@pytest.mark.parametrize("mix", MIXES)
def test_a_row_alone(fmt, mix):
    """Batch, place, axis and strides do not change a row's loss or gradient, nor does writing it over the logits."""
    rng = np.random.default_rng(13)
    for n in (1, 3, 33, 2300):
        x = logits(rng, fmt, (6, n))
        t = rng.integers(0, n, 6)
        loss, gradient = se.cross_entropy_with_grad(x, t, reduction="none", **MIXES[mix])
        for r in range(6):
            one, g = se.cross_entropy_with_grad(x[r], t[r], reduction="none", **MIXES[mix])
            assert same(np.asarray(one, fmt.dtype), loss[r : r + 1].reshape(())) and same(g, gradient[r])
        turned, g = se.cross_entropy_with_grad(np.ascontiguousarray(x.T), t, 0, reduction="none", **MIXES[mix])
        assert same(turned, loss) and same(np.ascontiguousarray(g.T), gradient)
        wide = np.zeros((6, 2 * n + 1), fmt.dtype)
        backwards = wide[:, 1::2][:, ::-1]
        backwards[...] = x
        strided, g = se.cross_entropy_with_grad(backwards, t, reduction="none", out=backwards, **MIXES[mix])
        assert same(strided, loss) and same(np.ascontiguousarray(g), gradient) and not wide[:, ::2].any()
        over = x.copy()
        again, g = se.cross_entropy_with_grad(over, t, reduction="none", out=over, **MIXES[mix])
        assert g is over and same(again, loss) and same(over, gradient)
        some = t.copy()
        some[1] = -100
        left, g = se.cross_entropy_with_grad(x, some, reduction="none", **MIXES[mix])
        assert same(np.delete(left, 1), np.delete(loss, 1)) and same(np.delete(g, 1, 0), np.delete(gradient, 1, 0))


@pytest.mark.parametrize("fmt", [F32, F64], ids=lambda f: f.name)
@pytest.mark.parametrize("n", [2, 10, 128, 500])
def test_short_rows_and_columns_have_the_bytes_of_long_ones(fmt, n):
    """Without options and info short rows, and rows side by side, take the drivers of the table; with info they do not."""
    rng = np.random.default_rng(n)
    x = logits(rng, fmt, (5, n, 131))
    t = rng.integers(0, n, (5, 131))
    t[:, ::7] = -100
    x[1, n // 2, 5], x[2, 0, 6], x[3, :, 8] = np.nan, np.inf, -np.inf
    x[4, t[4, 9], 9] = -np.inf
    w, token, g = rng.random(n).astype(fmt.dtype), rng.random((5, 131)), rng.standard_normal((5, 131))
    token[:, 3] = 0
    for options in ({}, {"weight": w}, {"token_weight": token}, {"weight": w, "token_weight": token}, {"denominator": 3.0}):
        for reduction in ("mean",) if "denominator" in options else ("none", "mean", "sum"):
            one = {**options, "reduction": reduction}
            loss, gradient, _ = se.cross_entropy_with_grad(x, t, 1, info="lse", **one)
            assert same(loss, se.cross_entropy(x, t, 1, **one))
            last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
            for y, axis in ((x, 1), (last, -1), (np.asfortranarray(x), 1)):
                again, dx = se.cross_entropy_with_grad(y, t, axis, **one)
                assert same(again, loss)
                assert same(np.ascontiguousarray(np.moveaxis(dx, axis, 1)), np.ascontiguousarray(gradient)), (options, axis)
    dx = se.cross_entropy_vjp(g, x, t, 1, reduction="none", weight=w)
    assert same(dx[2, :, 11:12], se.cross_entropy_vjp(g[2, 11:12], x[2, :, 11:12], t[2, 11:12], 0, reduction="none", weight=w))


@FORMAT
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("kind", ["index", "probabilities", "pairs"])
@pytest.mark.parametrize("more", [INFO, ()], ids=["info", "no info"])
def test_rows_side_by_side_have_the_bytes_of_others(fmt, mix, kind, more):
    """They are copied or transposed some at a time, whole lines and what is left of one; in place too, beside ignored rows and
    those of NaN."""
    rng = np.random.default_rng(17)
    for n, rows in ((5, 71), (700, 71), (2300, 71), (3, 2)):
        x, t = logits(rng, fmt, (2, rows, n)), targets(rng, fmt, kind, (2, rows), n)
        if kind == "index":
            t[:, ::9] = -100
        x[0, rows // 2, n // 2], x[1, 1, 0] = np.nan, np.inf
        options = {**MIXES[mix], "weight": rng.random(n).astype(fmt.compute), "info": more}
        loss, gradient, *info = se.cross_entropy_with_grad(x, t, **options)
        turned = np.moveaxis(x, -1, 1).copy()
        of = np.moveaxis(t, -1, 1).copy() if kind == "probabilities" else t
        for out in (None, turned):
            again, dx, *others = se.cross_entropy_with_grad(turned, of, 1, out=out, **options)
            assert same(np.asarray(again), np.asarray(loss)) and all(same(others[0][i], info[0][i]) for i in more)
            assert same(np.moveaxis(dx, 1, -1).copy(), gradient)


@FORMAT
@pytest.mark.parametrize("kind", ["index", "probabilities"])
@pytest.mark.parametrize("n", [1, 3, 17, 64, 65, 513])
def test_rows_taken_together_have_the_bytes_of_each_alone(fmt, n, kind):
    """In place too, with special rows among them, which are read after others had been worked on."""
    rng = np.random.default_rng(n)
    x, t = logits(rng, fmt, (133, n)), targets(rng, fmt, kind, (133,), n)
    x[70, n // 2], x[100, 0], x[120] = np.nan, np.inf, -np.inf
    weight = rng.random(n).astype(fmt.compute)
    if kind == "index":
        t[::9] = t[:64] = -100
        weight[n // 3] = np.inf if n == 17 else 1
    for options in ({}, {"label_smoothing": 0.25}, {"label_smoothing": 0.25, "weight": weight}):
        alone = [se.cross_entropy_with_grad(x[r], t[r], reduction="sum", **options) for r in range(len(x))]
        for out in (None, x.copy()):
            loss, gradient = se.cross_entropy_with_grad(x if out is None else out, t, reduction="none", out=out, **options)
            assert same(loss, np.array([one for one, _ in alone], fmt.dtype))
            assert same(gradient, np.stack([g for _, g in alone]))


STREAMED = """
import numpy as np, sumexp as se
rng = np.random.default_rng(5)
for n, inner in ((300, 17), (300, 16), (21, 35), (2048, 3), (2300, 5)):
    whole = rng.standard_normal((9, inner + 1, n), dtype=np.float32)
    x, t = whole[:, :inner], rng.integers(0, n, (9, inner))
    x[3, 1], x[5, 0, 0], x[7, 2] = -np.inf, np.nan, np.inf
    token = np.where(t == t[4, 0], 1e39, 1.0)
    for options in ({"z_loss": 1e-4}, {"info": "lse"}, {"token_weight": token}, {"label_smoothing": 0.1}):
        gradient = se.cross_entropy_with_grad(x, t, reduction="sum", **options)[1]
        for i in np.ndindex(9, inner):
            one = {k: v[i] if k == "token_weight" else v for k, v in options.items()}
            alone = se.cross_entropy_with_grad(x[i], t[i], reduction="sum", **one)[1]
            assert gradient[i].tobytes() == alone.tobytes(), (n, inner, list(options), i)
"""


@pytest.mark.parametrize("isa", ISAS)
def test_rows_that_wait_are_written_from_their_own_terms(isa):
    """Everything goes around the cache; a row beside a panel, or special in one, goes alone."""
    environment = {**os.environ, "SUMEXP_STREAM_BYTES": "1", "SUMEXP_ISA": isa, "SUMEXP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", STREAMED], check=True, env=environment)


TOGGLED = """
import sys, threading, numpy as np, sumexp as se
from sumexp import _core
done = threading.Event()
def toggle():
    while not done.is_set():
        for isa in sys.argv[1:]:
            _core.set_isa(isa)
thread = threading.Thread(target=toggle)
thread.start()
rng = np.random.default_rng(0)
x, y = rng.standard_normal((4, 21, 2048), np.float32), rng.random((4, 21, 2048), np.float32)
found = {se.cross_entropy_with_grad(x, y, 1)[1].tobytes() for _ in range(200)}
done.set()
thread.join()
assert len(found) == 1
"""


@pytest.mark.skipif(len(ISAS) < 2, reason="this CPU has one instruction set")
def test_a_call_keeps_its_instruction_set():
    """Scratch and moves are for vectors of the kernel's width, whatever another thread sets while it runs."""
    subprocess.run([sys.executable, "-c", TOGGLED, *ISAS], check=True, env={**os.environ, "SUMEXP_NUM_THREADS": "1"})


def test_a_gradient_of_the_loss_apart_from_the_result():
    g, x = np.random.default_rng(1).random((4, 4)), np.ones((4, 4))
    with pytest.raises(ValueError, match="cross_entropy_vjp: out overlaps an input"):
        se.cross_entropy_vjp(g[0], x, np.zeros(4, int), reduction="none", out=g)


def test_token_weights_of_rows_without_a_loss():
    """A weight beyond the dtype there changes nothing."""
    x, token = np.float32([[1, 2], [3, 1], [0, 0]]), np.array([1e60, 1, 1])
    pairs = (np.array([[-100], [0], [1]]), np.ones((3, 1), np.float32))
    expected = se.cross_entropy(x[1:], np.array([0, 1]))
    assert same(se.cross_entropy(x, pairs, token_weight=token), expected)
    given = {"weight": np.float32([1, 0]), "token_weight": token}
    expected = se.cross_entropy(x[1:], np.array([0, 0]))
    assert same(se.cross_entropy(x, np.array([1, 0, 0]), **given), expected)


def test_integer_targets_of_any_width():
    rng = np.random.default_rng(17)
    x = rng.standard_normal((9, 100)).astype(np.float32)
    t = rng.integers(0, 100, 9)
    t[4] = 117
    expected = se.cross_entropy_with_grad(x, t, ignore_index=117)
    for dtype in (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64):
        for given_ in (t.astype(dtype), np.repeat(t.astype(dtype), 3)[::3], t.astype(np.dtype(dtype).newbyteorder())):
            loss, gradient = se.cross_entropy_with_grad(x, given_, ignore_index=117)
            assert same(loss, expected[0]) and same(gradient, expected[1])


def test_the_sum_over_rows_is_a_tree_in_the_wide_type():
    """Losses of +-2^60 and 1 among them: the tree's order, in float64 for float32 rows."""
    rng = np.random.default_rng(19)
    for rows in (1, 2, 3, 64, 65, 1000, 5001):
        x = rng.standard_normal((rows, 5)).astype(np.float32)
        t = rng.integers(0, 5, rows)
        losses = se.cross_entropy(x, t, reduction="none", token_weight=rng.standard_normal(rows) * 1e6)
        rng = np.random.default_rng(19)

        def tree(v):
            if len(v) == 1:
                return np.float64(v[0])
            half = 1 << (len(v) - 1).bit_length() - 1
            return tree(v[:half]) + tree(v[half:])

        assert _core._sum_rows(losses) == tree(losses)
        loss = se.cross_entropy(x, t, reduction="none")
        assert same(se.cross_entropy(x, t, reduction="sum"), np.float32(tree(loss)))
        assert same(se.cross_entropy(x, t), np.float32(tree(loss) / rows))


# -- rows taken together -----------------------------------------------------------------------------------------


@FORMAT
def test_minus_infinity_among_rows_taken_together(fmt):
    """A class of -inf that has a weight makes the loss infinite, and never NaN, in a batch as alone; one without does not."""
    x = logits(np.random.default_rng(3), fmt, (37, 21))
    x[5, 7], x[20, 0] = -np.inf, -np.inf
    t = np.full(37, 3)
    y = np.zeros(x.shape, fmt.dtype)
    y[:, 3] = 1
    y[20, 0] = 0.5
    cases = (t, {"label_smoothing": 0.1}, {5, 20}), (y, {}, {20}), (y, {"label_smoothing": 0.1}, {5, 20})
    for target, options, infinite in cases:
        loss, gradient = se.cross_entropy_with_grad(x, target, reduction="none", **options)
        assert {int(i) for i in np.flatnonzero(np.isposinf(loss))} == infinite and not np.isnan(loss).any()
        assert np.isfinite(gradient).all() and same(loss, se.cross_entropy(x, target, reduction="none", **options))
        for r in (5, 20, 21):
            one, g = se.cross_entropy_with_grad(x[r], target[r], reduction="none", **options)
            assert same(np.asarray(one, fmt.dtype), loss[r]) and same(g, gradient[r])


@FORMAT
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"label_smoothing": 0.1, "info": "lse"}], ids=str)
def test_factors_beyond_the_dtype_among_rows_taken_together(fmt, options):
    x, t, token = logits(np.random.default_rng(4), fmt, (37, 21)), np.full(37, 3), np.ones(37)
    x[:, 9] = -np.inf  # 0 of the row, and infinity no NaN of it
    token[[4, 6, 8, 21]] = 1e39, np.inf, np.nan, 1e308
    gradient = se.cross_entropy_with_grad(x, t, reduction="sum", token_weight=token, **options)[1]
    for r in range(37):
        alone = se.cross_entropy_with_grad(x[r], t[r], reduction="sum", token_weight=token[r], **options)[1]
        assert same(gradient[r], alone), r


@FORMAT
@pytest.mark.parametrize("pairs", [3000, 70_000])
def test_many_pairs_a_row(fmt, pairs):
    """Fewer rows are taken together then, or one."""
    rng = np.random.default_rng(6)
    x, t, share = logits(rng, fmt, (40, 21)), rng.integers(0, 21, (40, pairs)), rng.random((40, pairs)).astype(fmt.dtype)
    loss, gradient = se.cross_entropy_with_grad(x, (t, share), reduction="none")
    for r in range(0, 40, 3):
        one, g = se.cross_entropy_with_grad(x[r], (t[r], share[r]), reduction="none")
        assert same(np.asarray(one, fmt.dtype), loss[r]) and same(g, gradient[r])


@FORMAT
def test_weights_of_minus_zero_among_rows_taken_together(fmt):
    x, weight = logits(np.random.default_rng(5), fmt, (37, 21)), np.ones(21, fmt.compute)
    weight[4] = 0
    t, share = np.arange(37)[:, None] % 21, np.where(np.arange(37) % 2, -1, 1)[:, None].astype(fmt.dtype)
    gradient = se.cross_entropy_with_grad(x, (t, share), reduction="sum", weight=weight)[1]
    for r in range(37):
        assert same(gradient[r], se.cross_entropy_with_grad(x[r], (t[r], share[r]), reduction="sum", weight=weight)[1]), r


def test_offsets_beyond_32_bits():
    """Rows, or elements of rows, more than 2^31 elements from the first: strides over memory of which few pages are touched."""
    step = 3 << 29  # elements
    room = np.lib.stride_tricks.as_strided
    try:
        memory = np.empty(2 * step + 8, np.float32)  # 12 GB of addresses, of which pages are written
    except MemoryError:
        pytest.skip("no 12 GB of addresses for one array")
    x = np.random.default_rng(43).standard_normal((3, 8)).astype(np.float32)
    far = room(memory, (3, 8), (4 * step, 4))
    far[...] = x
    loss, g = se.cross_entropy_with_grad(x, [1, 2, 3])
    assert same(se.cross_entropy(far, [1, 2, 3]), loss)
    se.cross_entropy_with_grad(far, [1, 2, 3], out=far)
    assert same(far.copy(), g)
    far[...] = x  # the class axis is the far one
    loss, g = se.cross_entropy_with_grad(x, np.arange(8) % 3, 0)
    se.cross_entropy_with_grad(far, np.arange(8) % 3, 0, out=far)
    assert same(far.copy(), g)


# -- the gradient of some classes alone, from what a row has left ------------------------------------------------------------

OF_PARTS = {
    "plain": {}, "softcap": {"softcap": 3.0}, "smoothing": {"label_smoothing": 0.2}, "z-loss": {"z_loss": 0.3},
    "temperature": {"temperature": 0.4}, "apart": {"temperature": 1e-38},
}  # fmt: skip


@FORMAT
@pytest.mark.parametrize("name", OF_PARTS)
def test_parts_of_the_gradient(fmt, name):
    """Their bytes are the whole gradient's: every kind of target, weights, special rows, parts of a chunk, chunks, more."""
    rng = np.random.default_rng(8)
    n, rows, wide = 4500, 7, fmt is F64
    number, chunk = (np.float64, 512) if wide else (np.float32, 2048)
    z = logits(rng, fmt, (rows, n))
    z[1] *= 20
    z[2, 7], z[3, :2000], z[4] = np.nan, -np.inf, -np.inf
    index = rng.integers(0, n, rows)
    index[5] = -100
    pairs = rng.integers(0, n, (rows, 3)), rng.random((rows, 3)).astype(number)
    weight = rng.random(n).astype(number)
    common = {**OF_PARTS[name], "reduction": "sum", "token_weight": rng.random(rows), "g": rng.random(rows)}
    size = _core._cross_entropy_saved_bytes(wide, n)
    y = rng.random((rows, n)).astype(fmt.dtype)
    for target, more in ((index, {}), (index, {"weight": weight}), (y, {}), (pairs[0], {"target_weight": pairs[1]})):
        options = {**common, **more}
        whole, saved = np.empty_like(z), np.empty((rows, size), np.uint8)
        _core._cross_entropy(z, target, 1, dlogits=whole, **options)
        _core._cross_entropy(z, target, 1, saved=saved, **options)
        for step in (300, chunk, n):
            for first in range(0, n, step):
                part = z[:, first : first + step].copy()
                _core._cross_entropy(part, target, 1, dlogits=part, saved=saved, first_class=first, classes=n, **options)
                assert same(part, whole[:, first : first + step]), (step, first)
    with pytest.raises(ValueError, match="first and count are 4000, 501, accepted: some of 4500 classes"):
        part = np.zeros((rows, 501), number)
        _core._cross_entropy(part, index, 1, dlogits=part, saved=saved, first_class=4000, classes=n)


