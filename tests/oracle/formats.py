"""The element types, and the distance between neighbours in them."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

longdouble = np.longdouble

if np.finfo(longdouble).nmant < 63:
    raise ImportError("the oracle needs a numpy.longdouble of at least 64 bits; this platform's has "
                      f"{np.finfo(longdouble).nmant + 1}")


@dataclass(frozen=True)
class Format:
    name: str
    dtype: np.dtype
    digits: int       # of the significand, the hidden bit included
    tiny: int         # the smallest subnormal is 2^tiny
    compute: type     # what the arithmetic is done in

    @property
    def itemsize(self):
        return self.dtype.itemsize

    @property
    def narrow(self):
        return self.itemsize == 2

    @property
    def bits(self):
        """The unsigned integer type of this size: NaN == NaN in it."""
        return np.dtype(f"u{self.itemsize}")

    @property
    def chunk(self):
        return 512 if self.itemsize == 8 else 2048

    @property
    def largest(self):
        return float(ml_dtypes.finfo(self.dtype).max)

    @property
    def underflow(self):
        """exp(x) rounds to 0 below this."""
        return (self.tiny - 1) * np.log(2.0)


F16 = Format("f16", np.dtype(np.float16), 11, -24, np.float32)
BF16 = Format("bf16", np.dtype(ml_dtypes.bfloat16), 8, -133, np.float32)
F32 = Format("f32", np.dtype(np.float32), 24, -149, np.float32)
F64 = Format("f64", np.dtype(np.float64), 53, -1074, np.float64)
FORMATS = (F16, BF16, F32, F64)


def exact(array):
    """An array of any of the formats as longdouble, without rounding."""
    array = np.asarray(array)
    return array.astype(np.float64).astype(longdouble) if array.dtype.itemsize <= 2 else array.astype(longdouble)


def ulp(value, fmt):
    """The spacing of `fmt` in the binade of `value`; the smallest subnormal near 0."""
    magnitude = np.abs(np.asarray(value, longdouble))
    exponent = np.where(magnitude > 0, np.frexp(magnitude)[1], fmt.tiny)
    return np.ldexp(longdouble(1), np.maximum(exponent - fmt.digits, fmt.tiny).astype(np.int32))


def errors(got, reference, fmt, scale=None):
    """|got - reference| in ulps of max(|reference|, scale), element by element.

    A reference that rounds past the largest number asks for the infinity. A NaN or a wrong infinity is an
    infinite error.
    """
    got, reference = exact(got), np.asarray(reference, longdouble)
    unit = ulp(reference if scale is None else np.maximum(np.abs(reference), np.abs(scale)), fmt)
    limit = longdouble(fmt.largest) + ulp(fmt.largest, fmt) / 2
    with np.errstate(invalid="ignore"):
        error = np.abs(got - reference) / unit
        right_infinity = np.isinf(got) & (np.sign(got) == np.sign(reference)) & (np.abs(reference) >= limit)
    return np.where(right_infinity, 0, np.where(np.isfinite(error), error, np.inf))
