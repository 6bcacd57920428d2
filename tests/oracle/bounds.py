"""The promise, as numbers. The tests assert these; the README prints what was measured beside them.

Forward operations: ulps of the result in its own format. "logsumexp" is in ulps of max(|result|, |maximum|);
"logsumexp, maximum 0" is in ulps of the result. Rounding once to 16 bits costs 0.5; the 0.01 is what the
float result it is rounded from may be off by.

Derivatives: in units of eps * scale, eps = 2^(1 - digits) of the type they are computed in, scale the sum of the
magnitudes of their terms (reference.py), in which an element's own share is |g_i| (1 - s_i) for log_softmax; 16-bit
results are first allowed the half ulp of their rounding. logsumexp's of 16-bit logits, whose sums are shorter, promise
10 and 16; what is found is far below, and held to the same as the others.
"""

FORWARD = {
    "softmax": {"f16": 0.51, "bf16": 0.51, "f32": 2.0, "f64": 2.0},
    "log_softmax": {"f16": 0.51, "bf16": 0.51, "f32": 2.0, "f64": 2.0},
    "logsumexp": {"f16": 0.51, "bf16": 0.51, "f32": 1.0, "f64": 1.0},
    "logsumexp, maximum 0": {"f16": 0.51, "bf16": 0.51, "f32": 2.0, "f64": 2.0},
}

DERIVATIVES = {
    "softmax_vjp": 3.0,
    "log_softmax_vjp": 3.0,
    "log_softmax_jvp": 3.0,
    "logsumexp_vjp": 2.0,
    "logsumexp_jvp": 3.0,
    "softmax_hvp": 4.0,
    "log_softmax_hvp": 5.0,
}
# The explicit matrices: in eps of each entry (eps of the format); the Hessian starts from a softmax, within 2 ulp, of x.
MATRICES = {"softmax_jacobian": 2.0, "log_softmax_jacobian": 2.0, "logsumexp_hessian": 5.0}
NARROW_ROUNDING = 0.501  # ulp of a 16-bit result, before the units above
