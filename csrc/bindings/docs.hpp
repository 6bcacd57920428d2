// The docstrings of the public functions. The first line of each, up to "--", is the signature that
// inspect.signature reads.
#pragma once

namespace sumexp::python::docs {

inline constexpr const char* softmax = R"(softmax(x, axis=-1, *, temperature=1.0, where=None, out=None)
--

exp(x / temperature), normalised to sum to 1 along axis.

    softmax(x)_i = exp(x_i / T) / sum_j exp(x_j / T)

Parameters
----------
x : array of float16, bfloat16, float32 or float64
    Any shape and strides. Integers and bools become float64 (as torch tensors: torch's default dtype). Also
    torch tensors, objects with __dlpack__, lists and numbers; and where CUDA was built, floating arrays on a
    CUDA device (torch, CuPy, JAX, anything with __dlpack__ or __cuda_array_interface__), enqueued on their
    current stream.
axis : int, tuple of ints or None
    The axis along which the result sums to 1; several axes are one row; None is all of them.
temperature : float
    T > 0, a number that the dtype computed in has (float32 for 16 bits), or infinity; large values flatten the
    distribution, an infinite one makes it uniform over all elements above -inf. The result has the bytes of
    softmax(x / T): the quotient is rounded once, for 16-bit dtypes to float32, and the bound below is that from there on.
    In a row where a quotient would overflow it is that of x - max(x), which changes no result.
where : array of bool, broadcastable to x
    False leaves an element out: it counts as -inf and its result is 0.
out : array
    Receives the result: the result's shape and dtype, writeable, and either x itself or memory apart
    from every input.

Returns
-------
An array of x's shape and dtype, in x's library; a scalar for 0-d x; `out` where given.

Raises
------
TypeError, ValueError
    Naming the argument, what was given and what is accepted; nothing has been written by then.

Notes
-----
Every result is within 2 ulp of the exact value (float16 and bfloat16: 0.51 ulp), for any length and any
finite x. A row's bits depend on that row's values alone: not on its place in the batch, the strides, the
threads, the CPU or the GPU. A row that holds NaN or +inf, or nothing but -inf, is NaN.

The exponential is taken as f * 2**n and the shift by the maximum happens in n, where it is exact; see
csrc/numerics/README.md. On shifting at all: Blanchard, Higham & Higham, IMA J. Numer. Anal. 41 (2021).

Examples
--------
>>> import numpy as np, sumexp
>>> sumexp.softmax(np.array([0.0, 1000.0]))
array([0., 1.])
)";

inline constexpr const char* log_softmax = R"(log_softmax(x, axis=-1, *, temperature=1.0, where=None, out=None)
--

The logarithm of softmax, also where softmax is next to 1 or underflows.

    log_softmax(x)_i = x_i / T - log sum_j exp(x_j / T)

Parameters, errors and the promise about bits are those of softmax; elements left out by `where` are -inf.

Returns
-------
An array of x's shape and dtype, within 2 ulp of the exact value (float16 and bfloat16: 0.51 ulp), the
winning class included: log_softmax([0, -50]) begins with -1.93e-22, not 0.

Notes
-----
With m the maximum, c the number of elements equal to it and R the sum of all other terms relative to
exp(m), the result is (x - m) - log1p((c - 1) + R): the winner is kept out of the sum, so that what
remains is not rounded away against it.
)";

inline constexpr const char* logsumexp =
    R"(logsumexp(x, axis=None, *, b=None, keepdims=False, return_sign=False, where=None, out=None)
--

The logarithm of the sum of exponentials, log sum_j b_j exp(x_j), without overflow.

Parameters
----------
x : array of float16, bfloat16, float32 or float64
    As for softmax. For complex numbers see sumexp.special.logsumexp.
axis : int, tuple of ints or None
    The axes to sum over; None, the default, is all of them.
b : array, broadcastable with x
    Weights of any sign and size; in float64, beside x of 2^62 and more in size, those of a row may add up to 1e307,
    beyond which the result may be NaN. An element of weight 0 adds nothing, even where x is inf or NaN.
keepdims : bool
    Keep the reduced axes with length 1.
return_sign : bool
    Return (log abs(sum), sign) with the sign as -1, 0, 1 or NaN.
where : array of bool, broadcastable to x
    False leaves an element out.
out : array
    Receives the result: the result's shape and dtype, writeable, apart from every input.

Returns
-------
The result, of x's dtype, a scalar where no axis is left. Without return_sign a negative sum gives NaN.
An empty sum, or one of -inf alone, is -inf; +inf anywhere gives +inf, NaN anywhere NaN.

Raises
------
TypeError, ValueError
    Naming the argument, what was given and what is accepted; nothing has been written by then.

Notes
-----
Without weights the result is within 1 ulp of max(abs(result), abs(max(x))), and within 2 ulp of the
result itself when the maximum is 0: logsumexp([0, -50]) is 1.93e-22. float16 and bfloat16: 0.51 ulp, of
the same. The formula is m + log1p((c - 1) + R), see log_softmax. With weights of both signs the sum may
cancel, and then no relative bound holds.
)";

inline constexpr const char* softmax_vjp = R"(softmax_vjp(g, y, axis=-1, *, temperature=1.0, out=None)
--

The gradient that softmax passes back: y * (g - <y, g>) / T with y = softmax(x).

Parameters
----------
g : array of y's shape
    The gradient with respect to y (a broadcast view will do).
y : array
    softmax(x, axis, temperature=T), as the forward call returned it.
axis, temperature : as in the forward call
out : array
    Receives the result; may be exactly g or y.

Returns
-------
d <g, softmax(x)> / dx, of y's shape and dtype. Sums are accumulated as in the forward pass, with the same
promise about bits. TypeError and ValueError as for softmax.

Notes
-----
For T = 1 and the y given, within 3 eps * y * (abs(g) + <y, abs(g)>), the magnitudes of the terms; a bound
relative to the result itself cannot hold where the terms cancel. eps is 2**-52 in float64 and 2**-23 in
float32. float16 and bfloat16 are computed in float32 and rounded once: 0.501 ulp come on top. Probabilities
below the smallest normal number count as that number here.

Where y is next to 1, the result is next to 0, and what y has rounded away from 1 is lost to it. With
l = log_softmax(x), log_softmax_vjp(y * g, l) is the same gradient and keeps it: 1 - y is known from l.
)";

inline constexpr const char* softmax_jvp = R"(softmax_jvp(t, y, axis=-1, *, temperature=1.0, out=None)
--

The change of softmax along t: y * (t - <y, t>) / T with y = softmax(x).

The Jacobian diag(y) - y y^T is symmetric, so that this is softmax_vjp under its other name; see there.
)";

inline constexpr const char* log_softmax_vjp = R"(log_softmax_vjp(g, y, axis=-1, *, temperature=1.0, out=None)
--

The gradient that log_softmax passes back: (g - exp(y) * sum(g)) / T with y = log_softmax(x).

Parameters
----------
g : array of y's shape
    The gradient with respect to y (a broadcast view will do).
y : array
    log_softmax(x, axis, temperature=T), as the forward call returned it.
axis, temperature : as in the forward call
out : array
    Receives the result; may be exactly g or y.

Returns
-------
d <g, log_softmax(x)> / dx, of y's shape and dtype. TypeError and ValueError as for softmax.

Notes
-----
For T = 1, within 3 eps * (abs(g_i) (1 - s_i) + s_i * sum_{j != i} abs(g_j)) with s = exp(y), which is next to
nothing where s_i is next to 1, as the result is; eps, and what 16 bits add, as for softmax_vjp.
)";

inline constexpr const char* log_softmax_jvp = R"(log_softmax_jvp(t, y, axis=-1, *, temperature=1.0, out=None)
--

The change of log_softmax along t: (t - <exp(y), t>) / T with y = log_softmax(x).

The Jacobian I - 1 exp(y)^T is not symmetric: this is not log_softmax_vjp. t has y's shape; the other
arguments and the errors are those of log_softmax_vjp.

For T = 1, within 3 eps * (abs(t_i) (1 - s_i) + sum_{j != i} s_j abs(t_j)) with s = exp(y); eps, and what 16 bits
add, as for softmax_vjp.
)";

inline constexpr const char* logsumexp_vjp = R"(logsumexp_vjp(g, x, axis=None, *, b=None, keepdims=False, out=None)
--

The gradient that logsumexp passes back: g * softmax(x).

Parameters
----------
g : array
    The gradient with respect to logsumexp(x, axis, keepdims=keepdims), and of its shape.
x : array
    The argument of logsumexp.
b : array, broadcast with x
    The weights. The result is then (dx, db), each of its argument's shape, for S = sum b e^x: dx = g b e^x / S and
    db = g e^x / S, within 4 eps of themselves and what S loses where weights cancel (eps of sum abs(b) e^x), before the
    sum over dimensions that were broadcast, which is in float64. An out is not accepted then.
axis, keepdims : as in the forward call
out : array
    Receives the result; may be exactly x.

Returns
-------
d <g, logsumexp(x)> / dx, of x's shape and dtype. TypeError and ValueError as for softmax.

Notes
-----
Within 2 eps * abs(g) * softmax(x), for float16 and bfloat16, whose sums are shorter, 10 eps; eps, and what
16 bits add, as for softmax_vjp.

There is no where: give -inf where an element is left out. Of a row that is -inf alone, whose sum is a constant, the
result is 0 (torch's gradient is NaN). Second derivatives: the Hessian diag(s) - s s^T with s = softmax(x) is the
Jacobian of softmax, so that softmax_vjp(v, softmax(x, axis), axis) is its product with v.
)";

inline constexpr const char* logsumexp_jvp = R"(logsumexp_jvp(t, x, axis=None, *, b=None, t_b=None, keepdims=False, out=None)
--

The change of logsumexp along t: <softmax(x), t>.

Parameters
----------
t : array of x's shape
    The direction (a broadcast view will do).
x : array
    The argument of logsumexp.
b : array, broadcast with x
    The weights; t has the shape of x as it was given.
t_b : array of b's shape
    The direction in b; 0 where it is not given. The result is sum (t b + t_b) e^x / S, S = sum b e^x, within 4 eps of
    sum (abs(t b) + abs(t_b)) e^x / abs(S) and what S loses where weights cancel.
axis, keepdims : as in the forward call
out : array
    Receives the result.

Returns
-------
An array of the shape of logsumexp(x, axis, keepdims=keepdims) and of x's dtype. TypeError and ValueError as
for softmax.

Notes
-----
Within 3 eps * <softmax(x), abs(t)>, for float16 and bfloat16, whose sums are shorter, 16 eps; eps, and what
16 bits add, as for softmax_vjp. For weights and masks, see
logsumexp_vjp.
)";

inline constexpr const char* softmax_hvp = R"(softmax_hvp(g, v, y, axis=-1, *, temperature=1.0, out=None)
--

The second derivative of softmax: d/dx <g, softmax(x)>, differentiated again along v.

    y * (c - <y, c>) / T**2,    c = (v - <y, v>) * (g - <y, g>),  y = softmax(x)

Parameters
----------
g, v : arrays of y's shape
    The gradient with respect to y, and the direction in x (broadcast views will do).
y : array
    softmax(x, axis, temperature=T).
axis, temperature : as in the forward call
out : array
    Receives the result; may be exactly g, v or y.

Returns
-------
An array of y's shape and dtype. No K x K matrix is formed. TypeError and ValueError as for softmax.

Notes
-----
For T = 1, within 4 eps of the sum of the magnitudes of the terms, y * (z + <y, z>) with
z = (abs(v) + <y, abs(v)>) * (abs(g) + <y, abs(g)>); eps, and what 16 bits add, as for softmax_vjp.
)";

inline constexpr const char* log_softmax_hvp = R"(log_softmax_hvp(g, v, y, axis=-1, *, temperature=1.0, out=None)
--

The second derivative of log_softmax: d/dx <g, log_softmax(x)>, differentiated again along v.

    -sum(g) * s * (v - <s, v>) / T**2,    s = exp(y), y = log_softmax(x)

Arguments and errors are those of softmax_hvp, with y = log_softmax(x, axis, temperature=T).

For T = 1, within 5 eps * sum(abs(g)) * s_i * (abs(v_i) (1 - s_i) + sum_{j != i} s_j abs(v_j)); eps, and what
16 bits add, as for softmax_vjp.
)";

}  // namespace sumexp::python::docs
