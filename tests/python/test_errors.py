"""Wrong arguments: the error names the argument, what was given and what is accepted, and nothing is written."""

import re

import ml_dtypes
import numpy as np
import pytest

import sumexp as se
from sumexp import special

X = np.linspace(0, 1, 12).reshape(3, 4)


def check_untouched(error, pattern, out, call):
    before = out.copy()
    with pytest.raises(error, match=pattern):
        call(out)
    np.testing.assert_array_equal(out, before)


@pytest.mark.parametrize("value, dtype", [
    (np.ones(3, np.complex128), "complex128"),
    (np.ones(3, np.longdouble), "longdouble|float128"),
    (np.array([1, None]), "object"),
    (["a"], "<U1"),
    (None, "object"),
    (np.array(["2020"], "M8[D]"), "datetime64"),
])
def test_dtype(value, dtype):
    with pytest.raises(TypeError, match=rf"softmax: x has dtype ({dtype}).*accepted: float16, bfloat16, float32"):
        se.softmax(value)
    with pytest.raises(TypeError, match=rf"softmax_vjp: g has dtype ({dtype})"):
        se.softmax_vjp(value, np.ones(3))
    with pytest.raises(TypeError, match=rf"softmax_jacobian: y has dtype ({dtype})"):
        se.softmax_jacobian(value)


def test_complex_numbers_name_the_function_that_takes_them():
    z = np.ones(3, np.complex128)
    for name in ("softmax", "log_softmax", "logsumexp"):
        with pytest.raises(TypeError, match=f"{name}: x has dtype complex128, .*; sumexp.special.{name} takes complex numbers"):
            getattr(se, name)(z)
        assert getattr(special, name)(z).dtype == np.complex128
    with pytest.raises(TypeError, match="bools$"):
        se.softmax_vjp(z, z)


def test_masked_arrays():
    masked = np.ma.array([1.0, 2.0], mask=[0, 1])
    with pytest.raises(TypeError, match="x is a masked array, accepted: its data, with where=~mask"):
        se.softmax(masked)
    with pytest.raises(TypeError, match="out is a MaskedArray"):
        se.softmax(np.ones(2), out=masked)
    with pytest.raises(TypeError, match="x is a masked array, accepted: its data$"):
        se.logcumsumexp(masked)  # has no where
    with pytest.raises(TypeError, match="temperature is a masked array"):
        se.sample(np.ones((2, 3)), temperature=masked)


def test_masks_are_not_dropped():
    mask = np.ma.array([True, True], mask=[0, 1])
    with pytest.raises(TypeError, match="where is a masked array"):
        se.softmax(np.ones(2), where=mask)
    masked = np.ma.array([1.0, 2.0], mask=[0, 1])
    for a, b in ((masked, None), (np.ones(2), masked), (None, None)):
        with pytest.raises(TypeError, match="logsumexp: [ab] is a (MaskedArray|NoneType), accepted"):
            special.logsumexp(a, b=b)


@pytest.mark.parametrize("name", ["float8_e5m2", "float8_e4m3fn"])
def test_float8(name):
    with pytest.raises(TypeError, match=f"x has dtype {name}, accepted"):
        se.softmax(np.array([1, 2], getattr(ml_dtypes, name)))


def test_more_elements_than_can_be_counted():
    many = np.broadcast_to(0.0, (2**32, 1))
    with pytest.raises(ValueError, match="logsumexp: shape has more bytes than 63 bits can count"):
        se.logsumexp(many, b=np.broadcast_to(1.0, (1, 2**32)))


def test_an_argument_that_changes_another():
    x = np.zeros(4_000)

    class Flag:
        def __bool__(self):
            x.resize(3, refcheck=False)
            return False

    with pytest.raises(ValueError, match="x changed its shape during the call"):
        se.logsumexp(x, keepdims=Flag())


@pytest.mark.parametrize("axis, error, pattern", [
    (2, np.exceptions.AxisError, "softmax: axis 2 is out of bounds for array of dimension 2"),
    (-3, ValueError, "axis -3 is out of bounds"),
    ((0, 0), ValueError, "duplicate value in axis"),
    ((1, -1), ValueError, "duplicate value in axis"),
    (1.0, TypeError, r"axis is 1.0, accepted: an int, a tuple of ints or None"),
    ([0], TypeError, r"axis is \[0\], accepted"),
    ("last", TypeError, "axis is 'last', accepted"), (True, TypeError, "axis is True, accepted"),
])
def test_axis(axis, error, pattern):
    check_untouched(error, pattern, np.zeros((3, 4)), lambda out: se.softmax(X, axis, out=out))


@pytest.mark.parametrize("temperature, error", [(0, ValueError), (-1.0, ValueError), (-np.inf, ValueError),
                                                (np.nan, ValueError), ("warm", TypeError), (None, TypeError)])
def test_temperature(temperature, error):
    check_untouched(error, "softmax: temperature is .*, accepted: ", np.zeros((3, 4)),
                    lambda out: se.softmax(X, temperature=temperature, out=out))


def test_out():
    def call(out):
        return se.softmax(X, out=out)

    check_untouched(TypeError, "softmax: out has dtype float32, accepted: float64", np.zeros((3, 4), np.float32), call)
    check_untouched(TypeError, "softmax: out has dtype >f8", np.zeros((3, 4), ">f8"), call)
    check_untouched(ValueError, r"softmax: out has shape \(4, 3\), accepted: \(3, 4\)", np.zeros((4, 3)), call)
    check_untouched(ValueError, r"logsumexp: out has shape \(3, 1\), accepted: \(3,\)", np.zeros((3, 1)),
                    lambda out: se.logsumexp(X, 1, out=out))
    frozen = np.zeros((3, 4))
    frozen.flags.writeable = False
    check_untouched(ValueError, "out is read-only, accepted: a writeable, aligned array", frozen, call)
    odd = np.zeros(97, np.uint8)[1:].view(np.float64).reshape(3, 4)
    check_untouched(ValueError, "out is not aligned", odd, call)
    with pytest.raises(TypeError, match="softmax: out is a list, accepted: an array"):
        se.softmax(X, out=[0.0])
    folded = np.lib.stride_tricks.as_strided(np.zeros(8), (3, 4), (8, 8))
    check_untouched(ValueError, "out has elements that share memory", folded, call)


def test_overlap():
    buffer = np.linspace(0, 1, 20)
    for shift in (1, 2, 4):
        check_untouched(ValueError, "softmax: out overlaps x", buffer,
                        lambda b: se.softmax(b[:12], out=b[shift:shift + 12]))
    square = np.linspace(0, 1, 16).reshape(4, 4)
    check_untouched(ValueError, "out overlaps x", square, lambda s: se.softmax(s, out=s.T))
    check_untouched(ValueError, "out overlaps x", square, lambda s: se.softmax(s, out=s[::-1]))
    check_untouched(ValueError, "out overlaps g", buffer, lambda b: se.softmax_vjp(b[:12], b[:12].copy(), out=b[1:13]))
    check_untouched(ValueError, "logsumexp: out overlaps x", square, lambda s: se.logsumexp(s, 1, out=s[:, 0]))
    check_untouched(ValueError, "logsumexp: out overlaps b", square,
                    lambda s: se.logsumexp(np.ones((4, 4)), 1, b=s, out=s[:, 0]))
    mask = np.zeros(96, np.bool_)
    check_untouched(ValueError, "softmax: out overlaps where", mask,
                    lambda m: se.softmax(np.ones(12), where=m[:12], out=m.view(np.float64)))


@pytest.mark.parametrize("call, error, pattern", [
    (lambda: se.softmax_vjp(np.ones(4), X), ValueError, r"softmax_vjp: g has shape \(4,\), accepted: \(3, 4\)"),
    (lambda: se.softmax_hvp(X, np.ones((3, 1)), X), ValueError, r"softmax_hvp: v has shape \(3, 1\)"),
    (lambda: se.logsumexp_vjp(np.ones(4), X, 1), ValueError, r"logsumexp_vjp: g has shape \(4,\), accepted: \(3,\)"),
    (lambda: se.logsumexp_vjp(np.ones(3), X, 1, keepdims=True), ValueError, r"accepted: \(3, 1\)"),
    (lambda: se.logsumexp_jvp(np.ones(4), X, 1), ValueError, r"logsumexp_jvp: t has shape \(4,\)"),
    (lambda: se.softmax(X, where=np.ones((2, 4), bool)), ValueError, r"softmax: where has shape \(2, 4\), accepted"),
    (lambda: se.softmax(X[0], where=np.ones((3, 4), bool)), ValueError, r"where has shape \(3, 4\)"),
    (lambda: se.softmax(X, where=np.ones((3, 4), int)), TypeError, r"softmax: where has dtype int64, accepted: bool"),
    (lambda: se.logsumexp(X, b=np.ones(3)), ValueError, r"logsumexp: b has shape \(3,\)"),
    (lambda: se.softmax_jacobian(1.0), ValueError, r"softmax_jacobian: y has shape \(\)"),
    (lambda: se.set_num_threads(0), ValueError, r"set_num_threads: n is 0, accepted: an int from 1 below 2\*\*31"),
    (lambda: se.set_num_threads(1.5), TypeError, r"set_num_threads: n is 1.5"),
    (lambda: se.show_config("json"), ValueError, r"show_config: mode is 'json'"),
    (lambda: se.softmax(), TypeError, r"softmax\(\) missing required argument 'x' \(pos 1\)"),
    (lambda: se.softmax(X, -1, 1.0), TypeError, r"softmax\(\) takes from 1 to 2 positional arguments but 3"),
    (lambda: se.softmax(X, x=X), TypeError, r"softmax\(\) got multiple values for argument 'x'"),
    (lambda: se.softmax(X, dim=1), TypeError, r"softmax\(\) got an unexpected keyword argument 'dim'"),
    (lambda: se.softmax_vjp(g=X), TypeError, r"softmax_vjp\(\) missing required argument 'y' \(pos 2\)"),
    (lambda: special.softmax(X, axis=5), ValueError, "axis 5 is out of bounds"),
    (lambda: special.logsumexp(["a"]), TypeError, "dtype|DType"),
])
def test_message(call, error, pattern):
    with pytest.raises(error, match=pattern):
        call()


# -- axes --------------------------------------------------------------------------------------------------------

ONE = {  # functions of one axis, of arrays
    "logcumsumexp": se.logcumsumexp,
    "logcumsumexp_vjp": lambda x, a: se.logcumsumexp_vjp(x, x, a),
    "logcumsumexp_jvp": lambda x, a: se.logcumsumexp_jvp(x, x, a),
}
MANY = {
    "logmeanexp": se.logmeanexp,
    "logsumexp_vjp": lambda x, a: se.logsumexp_vjp(x, x, a, b=x),
    "logsumexp_jvp": lambda x, a: se.logsumexp_jvp(x, x, a, b=x),
    "LogSumExp.update": lambda x, a: se.LogSumExp().update(x, axis=a),
    "LogSumExp.softmax": lambda x, a: se.LogSumExp().update(x).softmax(x, axis=a),
    "LogSumExp.log_softmax": lambda x, a: se.LogSumExp().update(x).log_softmax(x, axis=a),
}
BEYOND = np.exceptions.AxisError


@pytest.mark.parametrize("axis, error, text", [
    ("a", TypeError, "axis is 'a', accepted: an int"), (1.0, TypeError, "axis is 1.0, accepted: an int"),
    (2, BEYOND, "axis 2 is out of bounds for array of dimension 2"), (-3, BEYOND, "axis -3 is out of bounds"),
    (2**70, BEYOND, f"axis {2**70} is out of bounds"),
])
@pytest.mark.parametrize("name", [*ONE, *MANY])
def test_axis_of_every_function(name, axis, error, text):
    accepted = ", a tuple of ints or None" if name in MANY and error is TypeError else ""
    with pytest.raises(error, match=f"^{name}: {text}{accepted}" + ("$" if error is TypeError else "")):
        (ONE | MANY)[name](X, axis)


@pytest.mark.parametrize("name", [*ONE, *MANY])
def test_tuples_of_axes(name):
    call = (ONE | MANY)[name]
    for axis, error, text in [
        ((0, 0), ValueError, r"duplicate value in axis, which is \(0, 0\), accepted: each axis once$"),
        ((1, -1), ValueError, r"duplicate value in axis, which is \(1, -1\)"),
        ((0, 2), BEYOND, "axis 2 is out of bounds"),
        (("a",), TypeError, r"axis is \('a',\), accepted: an int, a tuple of ints or None$"),
    ]:
        if name in ONE:
            error, text = TypeError, re.escape(f"axis is {axis!r}, accepted: an int") + "$"
        with pytest.raises(error, match=f"^{name}: {text}"):
            call(X, axis)


def test_axis_of_dask():
    da, sd = pytest.importorskip("dask.array"), pytest.importorskip("sumexp.dask")
    for name in ("softmax", "log_softmax", "logsumexp"):
        for axis, error, text in [("a", TypeError, "axis is 'a', accepted: an int, a tuple of ints or None$"),
                                  (2, BEYOND, "axis 2 is out of bounds for array of dimension 2$"),
                                  ((0, 0), ValueError, "duplicate value in axis, which is .*, accepted: each axis once$")]:
            with pytest.raises(error, match=f"^{name}: {text}"):
                getattr(sd, name)(da.from_array(X), axis=axis)


def test_dims_of_tensors():
    torch, st = pytest.importorskip("torch"), pytest.importorskip("sumexp.torch")
    t = torch.from_numpy(X)
    some, one, several = "an int, a sequence of ints or None$", "an int$", "an int or a sequence of ints$"
    calls = [
        ("softmax", "dim", one, st.softmax), ("log_softmax", "dim", one, st.log_softmax),
        ("logsumexp", "dim", several, st.logsumexp), ("logcumsumexp", "dim", one, st.logcumsumexp),
        ("logcumsumexp", "axis", one, lambda t, a: st.logcumsumexp(t, axis=a)), ("logmeanexp", "dim", some, st.logmeanexp),
        ("softmax", "axis", some, se.softmax), ("logsumexp", "axis", some, se.logsumexp),
        ("logsumexp", "axis", some, lambda t, a: se.logsumexp(t, a, b=t)),
        ("softmax_vjp", "axis", some, lambda t, a: se.softmax_vjp(t, t, a)),
        ("logcumsumexp", "axis", one, se.logcumsumexp), ("logmeanexp", "axis", some, se.logmeanexp),
        ("logcumsumexp_vjp", "axis", one, lambda t, a: se.logcumsumexp_vjp(t, t, a)),
        ("logcumsumexp_jvp", "axis", one, lambda t, a: se.logcumsumexp_jvp(t, t, a)),
        ("logsumexp_vjp", "axis", some, lambda t, a: se.logsumexp_vjp(t, t, a, b=t)),
        ("logsumexp_jvp", "axis", some, lambda t, a: se.logsumexp_jvp(t, t, a, b=t)),
        ("cross_entropy", "axis", one, lambda t, a: se.cross_entropy(t, torch.tensor([0, 1, 2]), a)),
    ]
    for function, argument, accepted, call in calls:
        for dim in ("a", 1.0, True, ("a",)):
            with pytest.raises(TypeError, match=f"^{function}: {argument} is {re.escape(repr(dim))}, accepted: {accepted}"):
                call(t, dim)
        with pytest.raises(IndexError, match=f"^{function}: {argument}: Dimension out of range .*got 2"):
            call(t, 2)
        if accepted != one:
            with pytest.raises(RuntimeError, match=rf"^{function}: {argument} is \(0, -2\), accepted: no dimension twice$"):
                call(t, (0, -2))


# -- other arguments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call, error, text", [
    (lambda t, st: se.LogSumExp().update(t.clone().requires_grad_()), TypeError,
     r"LogSumExp.update: x is a Tensor that is no array \(.*grad.*\), accepted: arrays that NumPy can read$"),
    (lambda t, st: st.masked_softmax(t, where="a"), TypeError, "masked_softmax: where is a str .*, accepted: .* of bool$"),
    (lambda t, st: st.masked_softmax(t, lengths="a"), TypeError, "masked_softmax: lengths is a str .*, accepted: .* of inte"),
    (lambda t, st: st.masked_softmax(t, lengths=[[1], [2, 3]]), TypeError, "masked_softmax: lengths is a list .*, accepted: "),
    (lambda t, st: st.masked_softmax(t, bias="a"), TypeError, "masked_softmax: bias is a str .*, accepted: a tensor, an array"),
    (lambda t, st: st.masked_softmax(t, sink="a"), TypeError, "masked_softmax: sink is a str .*, accepted: a tensor, an array"),
    (lambda t, st: se.softmax(t, where="a"), TypeError, "softmax: where is a str .*, accepted: a tensor or an array of bool$"),
    (lambda t, st: st.logmeanexp(t, where="a"), TypeError, "logmeanexp: where is a str .*, accepted: "),
    (lambda t, st: st.softplus(t, "a"), TypeError, "softplus: beta is 'a', accepted: a number$"),
    (lambda t, st: st.masked_softmax(t, empty=np.array([1, 2])), ValueError, "masked_softmax: empty is array.*, accepted: "),
    (lambda t, st: se.masked_softmax(X, empty=np.array([1, 2])), ValueError, "masked_softmax: empty is array.*, accepted: "),
    (lambda t, st: se.masked_softmax(X, empty=None), ValueError, "masked_softmax: empty is None, accepted: 'zero' or 'nan'"),
    (lambda t, st: se.masked_softmax(X, lengths=np.array([1, 2, 2**63], np.uint64)), ValueError,
     f"masked_softmax: lengths has {2**63} for row 2, accepted: 0 to 4, the length of the axis$"),
    (lambda t, st: st.masked_softmax(t, lengths=np.array([1, 2, 2**63], np.uint64)), ValueError,
     f"masked_softmax: lengths has {2**63} for row 2, accepted: 0 to 4, the length of the axis$"),
])
def test_argument_is_named(call, error, text):
    torch, st = pytest.importorskip("torch"), pytest.importorskip("sumexp.torch")
    with pytest.raises(error, match="^" + text):
        call(torch.from_numpy(X), st)


def test_causal_bools_of_every_kind():
    for yes in (np.True_, np.array(True)):
        assert se.masked_softmax(X, causal=yes).tobytes() == se.masked_softmax(X, causal=True).tobytes()
    for no in (np.False_, np.array(False), None):
        assert se.masked_softmax(X, causal=no).tobytes() == se.masked_softmax(X).tobytes()
    with pytest.raises(TypeError, match=r"^masked_softmax: causal is array\(\[ ?True\]\), accepted: an int or a bool$"):
        se.masked_softmax(X, causal=np.array([True]))


TAKERS = {
    "cross_entropy: logits": lambda v: se.cross_entropy(v, [0]),
    "cross_entropy_with_grad: logits": lambda v: se.cross_entropy_with_grad(v, [0]),
    "cross_entropy: target": lambda v: se.cross_entropy([[1.0, 2.0]], v),
    "linear_cross_entropy: x": lambda v: se.linear_cross_entropy(v, np.ones((3, 2)), [0]),
    "entropy: logits": se.entropy,
    "log_prob: logits": lambda v: se.log_prob(v, [0]),
    "log_prob: index": lambda v: se.log_prob([[1.0, 2.0]], v),
    "kl_div: p_logits": lambda v: se.kl_div(v, [1.0]),
    "kl_div: q_logits": lambda v: se.kl_div([1.0], v),
    "sample: logits": se.sample,
    "sample_counts: logits": lambda v: se.sample_counts(v, 3),
    "linear_sample: x": lambda v: se.linear_sample(v, np.ones((3, 2))),
    "linear_sample: w": lambda v: se.linear_sample(np.ones((3, 2)), v),
    "gumbel_softmax: logits": se.gumbel_softmax,
    "masked_softmax: x": se.masked_softmax,
    "segment_softmax: x": lambda v: se.segment_softmax(v, offsets=[0, 1]),
    "logmatmulexp: a": lambda v: se.logmatmulexp(v, np.ones((2, 2))),
    "logmatmulexp: b": lambda v: se.logmatmulexp(np.ones((2, 2)), v),
    "logcumsumexp: x": se.logcumsumexp,
    "logmeanexp: x": se.logmeanexp,
    "logaddexp: b": lambda v: se.logaddexp(1.0, v),
    "softplus: x": se.softplus,
    "LogSumExp.update: x": lambda v: se.LogSumExp().update(v),
}


@pytest.mark.parametrize("value", [None, [[1, 2], [3]], "a"], ids=["None", "ragged", "text"])
@pytest.mark.parametrize("name", TAKERS)
def test_what_is_no_array(name, value):
    with pytest.raises((TypeError, ValueError), match=f"^{name} .*accepted: "):
        TAKERS[name](value)


@pytest.mark.parametrize("stream, accepted", [(2**63, "below 2\\^63"), (2**64, "below 2\\^63"), (2.5, "integers")])
def test_streams(stream, accepted):
    with pytest.raises((TypeError, ValueError), match=f"sample: stream is {stream}, accepted: .*{accepted}"):
        se.sample([1.0, 2.0], stream=stream)


@pytest.mark.parametrize("given, message", [({"ids": [0, 0, 2**62]}, "ids has 4611686018427387904"),
                                            ({"ids": [0, 0, 1], "num_segments": 2**62}, "num_segments is 4611686018427387904")])
def test_segments_beyond_memory(given, message):
    with pytest.raises(MemoryError, match=f"segment_logsumexp: {message}, and there is no memory for so many segments"):
        se.segment_logsumexp([1.0, 2.0, 3.0], **given)
