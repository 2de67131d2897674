"""Words to uniforms and normals as in csrc/math/normal.h, which explains the formulas."""

import triton
import triton.language as tl

from .floats import flip, fma


@triton.jit
def uniform(word):
    """[0, 1): a multiple of 2^-24."""
    return (word >> 8).to(tl.int32, bitcast=True).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def minus_two_log(u):
    bits = u.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) & -0x800000
    f = (bits - exponent).to(tl.float32, bitcast=True) - 1.0
    p = fma(f, 0.202138032287, -0.324451666355)
    p = fma(p, f, 0.34501658482)
    p = fma(p, f, -0.398003305356)
    p = fma(p, f, 0.499398181503)
    p = fma(p, f, -0.666701178814)
    p = fma(p, f, 1.00000730246)
    p = fma(p, f, -1.99999989062)
    return fma(exponent.to(tl.float32), -1.38629436112 * 1.1920928955078125e-07, p * f)


@triton.jit
def normal_pair(a, b):
    """Two independent standard normals from two uint32 words."""
    u = ((a >> 9) | 0x3F800000).to(tl.float32, bitcast=True) - 0.999999940395355224609375
    # The fast square root, one instruction. Its relative error of 2^-23 is 7e-7 at the largest radius,
    # 5.8, where the rest of the calculation errs by 3e-7; u = 0 and u = 1 do not occur.
    radius = tl.sqrt(minus_two_log(u))
    rho = flip(radius, b.to(tl.float32, bitcast=True))

    y = (((b >> 7) & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True) - 1.5
    z = y * y
    s = fma(z, -0.00460217698109, 0.0796802280623)
    s = fma(s, z, -0.645963478641)
    s = fma(s, z, 1.57079632197)
    c = fma(z, -0.0204262502975, 0.253606361919)
    c = fma(c, z, -1.23369795397)

    sine = rho * (y * s)
    cosine = fma(rho * z, c, rho)
    swap = (b & 0x40000000) != 0
    return tl.where(swap, sine, cosine), tl.where(swap, cosine, sine)
