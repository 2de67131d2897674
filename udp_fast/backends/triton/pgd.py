"""One element of a projected-gradient step, as in csrc/math/pgd.h."""

# ruff: noqa: RET505 - Triton compiles what follows an early return of a constant branch
import triton
import triton.language as tl

from .floats import at_least, at_most, flip, fma, product

LARGEST = tl.constexpr(3.40282346638528859811704183484516925e38)


@triton.jit
def is_finite(a):
    return tl.abs(a) <= LARGEST  # false for a NaN


@triton.jit
def finite_or_zero(gradient):
    return tl.where(is_finite(gradient), gradient, 0.0)


@triton.jit
def stepped(delta, gradient, size, SIGN: tl.constexpr):
    """delta + size * s(gradient); size = +-alpha * mask, over the norm for an l2 step."""
    if SIGN:
        moves = is_finite(gradient) & (gradient != 0.0)
        g = tl.where(moves, flip(1.0, gradient), 0.0)
    else:
        g = finite_or_zero(gradient)
    return fma(g, size, delta)


@triton.jit
def within(a, bound):
    return at_most(at_least(a, 0.0 - bound), bound)


@triton.jit
def from_float(x):
    """A float original's value, no zero of it negative."""
    return x + 0.0


@triton.jit
def nothing_or_nan(x):
    """What `project` adds: nothing, or a NaN where the original is none or infinite."""
    return x - x


@triton.jit
def project(delta, x, nothing, lo, hi):
    """Of a delta on its ball, to where lo <= x + delta <= hi.

    ``nothing``: 0, or `nothing_or_nan` of an x that may be any float. With it no zero is negative, and
    so the order of zeros does not show in the result.
    """
    return at_most(at_least(delta + nothing, lo - x), hi - x)


@triton.jit
def adversarial(x, delta, scale, shift, out_lo, out_hi, MAPS: tl.constexpr):
    y = x + delta
    if MAPS:
        y = product(y, scale) + shift
    return at_most(at_least(y, out_lo), out_hi)


@triton.jit
def from_byte(byte, lo, width):
    """lo + byte / 255 * width, the quotient correctly rounded: 1 / 255 is taken in two parts."""
    unit = fma(byte, 0.0039215688593685626983642578125, byte * -2.319175823606301e-10)
    return fma(unit, width, lo)


@triton.jit
def bound_in(eps, dtype: tl.constexpr):
    """The largest value of ``dtype`` that is <= eps: rounding towards zero."""
    eps += 0.0  # -0 is a budget too
    if dtype == tl.float32:
        return eps
    elif dtype == tl.bfloat16:
        bits = eps.to(tl.uint32, bitcast=True) & 0xFFFF0000
        return bits.to(tl.float32, bitcast=True)
    else:
        nearest = eps.to(tl.float16)
        below = (nearest.to(tl.int16, bitcast=True) - 1).to(tl.float16, bitcast=True)
        bound = tl.where(nearest.to(tl.float32) > eps, below, nearest).to(tl.float32)
        return tl.where(eps >= 65504.0, 65504.0, bound)
