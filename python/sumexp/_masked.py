"""Attention rows: softmax, log_softmax and logsumexp with masks, lengths, biases, caps and sinks."""

import numpy as np

from . import _arrays, _core
from ._devices import is_torch
from ._masked_arguments import NAMES, OPS, check_causal, check_empty, check_lengths, laid, result_shape, shape_error
from ._row_shapes import row_axis
from ._scalars import softcap as checked_softcap, temperature as check_temperature

_OPTIONS = """
    where : array of bool
        What broadcasts to x; elements where it is False are left out.
    lengths : array of integers
        What broadcasts to x's shape without `axis`: a row is its first `lengths` elements, from 0 to the whole axis. For x
        of shape (batch, heads, queries, keys), one length an example is lengths[:, None, None]. The rest is not read.
    causal : int or bool
        Row i of the last other dimension is its elements j <= i + causal; True is 0, for as many queries as keys. Where the
        queries are the last of the keys, it is keys - queries.
    bias : array
        What broadcasts to x, and is added to it; it is never laid out. A bias of -inf leaves out as `where` does.
    softcap : float
        c > 0, for c tanh(x / c).
    sink : array
        What broadcasts to x's shape without `axis`: one more logit of a row, which takes its share of the sum and is not
        returned. 0 is the softmax that is off by one, in which a row may attend to nothing.
    temperature : float
        T > 0; infinity makes every finite x 0. In a row where a logit z would overflow, all are taken less the largest.
    empty : "zero" or "nan"
        What a row is that has no element left, or none above -inf, and no sink: zeros (log_softmax: -inf), or NaN."""

_NOTES = """
    Notes
    -----
    A row's logits are z = softcap(x / temperature) + bias. The order is that of attention: first the scale of scores, then the
    cap, then what depends on places (FlexAttention's score_mod and Gemma cap scaled scores, and add masks afterwards); the sink
    is a logit as it is (gpt-oss). Each step is rounded, in float32 for 16-bit arrays. From there the result has the bytes of
    {plain} of the row's first elements alone, where lengths or causal cut it, with -inf in place of what `where` leaves out;
    and its bound, with a sink too. An element that is left out can hold anything, NaN, +inf or a number above all others: its
    result is {absent}, also in a row that is NaN by others. Where nothing is left, all are what `empty` says."""


def _document(function, plain, shape, absent, bound):
    function.__doc__ = f"""{plain} of rows of which some elements count.

    Parameters
    ----------
    x : array of float16, bfloat16, float32 or float64
        Integers and bools become float64; bias and sink are brought to a common dtype with it.
    axis : int
        The axis along which rows run.{_OPTIONS}
    out : array
        Where to write: of the result's shape and dtype, apart from the other arrays or exactly x.

    Returns
    -------
    An array of {shape}, in the library of x: {bound}.
{_NOTES.format(plain=plain, absent=absent)}

    Raises
    ------
    TypeError and ValueError that name the argument, before anything is written; NotImplementedError for arrays on CUDA
    devices that are not torch's tensors.
    """
    return function


def _document_vjp(function, plain, g):
    function.__doc__ = f"""The gradient of masked_{plain} passed back.

    Parameters
    ----------
    g : array of {g}
        What comes back for the result. Where elements are left out it is not looked at.
    x, and all others
        As for masked_{plain}.

    Returns
    -------
    dx, of x's shape; with bias or sink a tuple: dx, then dbias and dsink as far as given, each of the argument's own shape,
    summed in an order that depends on the shapes alone. Rows without an element left get zeros, and so does what is left out.
    Within a few eps of the sum of the absolute values of the terms of each, as {plain}_vjp.

    Raises
    ------
    As masked_{plain}.
    """
    return function


def _prepare(function, x, axis, where, lengths, causal, bias, softcap, sink, temperature, empty, g=None):
    (x, bias, sink, g), back = _arrays.together(function, x=x, bias=bias, sink=sink, g=g)
    axis = row_axis(function, "x", x.shape, axis)
    shape = x.shape
    if where is not None:
        where = laid(function, "where", _arrays._mask(function, where), shape)
    if lengths is not None:
        lengths = laid(function, "lengths", _arrays.integers(function, "lengths", lengths), shape, axis)
        if lengths.dtype == np.uint64:  # beyond int64 they would be others; the kernel checks the rest
            check_lengths(function, lengths, shape, axis)
        lengths = np.require(lengths, np.int64, ["ALIGNED"])
    options = {
        "where": where,
        "lengths": lengths,
        "causal": check_causal(function, causal, x.ndim),
        "bias": laid(function, "bias", bias, shape),
        "softcap": checked_softcap(function, softcap) or 0.0,
        "sink": laid(function, "sink", sink, shape, axis),
        "temperature": check_temperature(function, temperature),
        "nan": check_empty(function, empty),
    }
    return x, axis, g, (bias, sink), options, back


def _forward(function, x, axis, out, **options):
    x, axis, _, given, options, back = _prepare(function, x, axis, **options)
    shape, others = result_shape(function, x.shape, axis), (*given, options["where"], options["lengths"])
    result = _arrays.result(function, out, shape, x.dtype, x, apart=others)
    row = OPS[function] == 2
    _core._masked(function, OPS[function], x, axis, **options, out=np.expand_dims(result, axis) if row else result)
    return back(result) if out is None else out


def _vjp(function, g, x, axis, **options):
    name = function.removesuffix("_vjp")
    x, axis, g, (bias, sink), options, back = _prepare(function, x, axis, g=g, **options)
    accepted = result_shape(name, x.shape, axis)
    if g.shape != accepted:
        raise shape_error(function, "g", g.shape, accepted)
    if OPS[name] == 2:
        g = np.expand_dims(g, axis)
    dx = np.empty(x.shape, x.dtype)
    gradients = [None if a is None else np.zeros(a.shape, a.dtype) for a in (bias, sink)]
    dbias, dsink = gradients
    _core._masked(function, OPS[name], x, axis, **options, out=dx, g=g, dbias=laid(function, "bias", dbias, x.shape),
                  dsink=laid(function, "sink", dsink, x.shape, axis))
    wanted = [back(a) for a in (dx, *gradients) if a is not None]
    return tuple(wanted) if len(wanted) > 1 else wanted[0]


def _call(function, arrays, axis, out, options):
    options = dict(zip(NAMES, options))
    if any(map(is_torch, (*arrays, options["bias"], options["sink"], options["where"], options["lengths"], out))):
        from .torch import _masked

        return _masked.call(function, arrays, axis, out, options)
    if function.endswith("_vjp"):
        return _vjp(function, *arrays, axis, **options)
    return _forward(function, *arrays, axis, out, **options)


def masked_softmax(x, axis=-1, *, where=None, lengths=None, causal=None, bias=None, softcap=None, sink=None, temperature=1.0,
                   empty="zero", out=None):
    options = (where, lengths, causal, bias, softcap, sink, temperature, empty)
    return _call("masked_softmax", (x,), axis, out, options)


def masked_log_softmax(x, axis=-1, *, where=None, lengths=None, causal=None, bias=None, softcap=None, sink=None,
                       temperature=1.0, empty="zero", out=None):
    options = (where, lengths, causal, bias, softcap, sink, temperature, empty)
    return _call("masked_log_softmax", (x,), axis, out, options)


def masked_logsumexp(x, axis=-1, *, where=None, lengths=None, causal=None, bias=None, softcap=None, sink=None, temperature=1.0,
                     empty="zero", out=None):
    options = (where, lengths, causal, bias, softcap, sink, temperature, empty)
    return _call("masked_logsumexp", (x,), axis, out, options)


def masked_softmax_vjp(g, x, axis=-1, *, where=None, lengths=None, causal=None, bias=None, softcap=None, sink=None,
                       temperature=1.0, empty="zero"):
    options = (where, lengths, causal, bias, softcap, sink, temperature, empty)
    return _call("masked_softmax_vjp", (g, x), axis, None, options)


def masked_log_softmax_vjp(g, x, axis=-1, *, where=None, lengths=None, causal=None, bias=None, softcap=None, sink=None,
                           temperature=1.0, empty="zero"):
    options = (where, lengths, causal, bias, softcap, sink, temperature, empty)
    return _call("masked_log_softmax_vjp", (g, x), axis, None, options)


def masked_logsumexp_vjp(g, x, axis=-1, *, where=None, lengths=None, causal=None, bias=None, softcap=None, sink=None,
                         temperature=1.0, empty="zero"):
    options = (where, lengths, causal, bias, softcap, sink, temperature, empty)
    return _call("masked_logsumexp_vjp", (g, x), axis, None, options)


_document(masked_softmax, "softmax", "x's shape", "0", "within 2 ulp, 16-bit ones within 0.51")
_document(masked_log_softmax, "log_softmax", "x's shape", "-inf", "within 2 ulp, 16-bit ones within 0.51")
_document(masked_logsumexp, "logsumexp", "x's shape without the axis", "nothing",
          "within 1 ulp of max(abs(result), abs(maximum)), 16-bit ones within 0.51; without elements it is -inf")
_document_vjp(masked_softmax_vjp, "softmax", "x's shape")
_document_vjp(masked_log_softmax_vjp, "log_softmax", "x's shape")
_document_vjp(masked_logsumexp_vjp, "logsumexp", "x's shape without the axis")
