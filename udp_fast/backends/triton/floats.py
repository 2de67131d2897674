"""Floating-point steps that every kernel shares, in the meaning that csrc/math/lanes.h gives them.

The kernels are compiled with `enable_fp_fusion=False`: an fma is where the source says fma, so that
their results are the CPU kernels' bits.
"""

# ruff: noqa: RET505 - Triton compiles what follows an early return of a constant branch
import triton
import triton.language as tl

from . import INTERPRETS

#: Triton's interpreter rounds an fma twice and truncates where it makes a bfloat16.
INTERPRET = tl.constexpr(INTERPRETS)


@triton.jit
def fma(a, b, c):
    """a * b + c, rounded once."""
    if INTERPRET:
        b = tl.cast(b, tl.float32).to(tl.float64)
        c = tl.cast(c, tl.float32).to(tl.float64)
        return (a.to(tl.float64) * b + c).to(tl.float32)
    else:
        return tl.fma(a, b, c)


@triton.jit
def product(a, b):
    """a * b of float32 blocks, rounded even where a sum follows.

    torch.compile builds kernels by its own options, with contraction: it would make them an fma.
    """
    if INTERPRET:
        return a * b
    else:
        return tl.inline_asm_elementwise(
            "mul.rn.f32 $0, $1, $2;", "=f,f,f", [a, b], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def saturated_product(a, b):
    """a * b within [0, 1], in one instruction."""
    if INTERPRET:
        return tl.minimum(tl.maximum(a * b, 0.0), 1.0)
    else:
        return tl.inline_asm_elementwise(
            "mul.rn.sat.f32 $0, $1, $2;", "=f,f,f", [a, b], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def widen(a):
    """A loaded value as float32."""
    if INTERPRET and a.dtype == tl.bfloat16:
        return (a.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return a.to(tl.float32)


@triton.jit
def narrow(a, dtype: tl.constexpr):
    """A float32 as it is stored, rounded to nearest even."""
    if INTERPRET and dtype == tl.bfloat16:
        bits = a.to(tl.uint32, bitcast=True)
        rounded = bits + 0x7FFF + ((bits >> 16) & 1)
        half = tl.where(a == a, rounded, 0x7FC00000) >> 16
        return half.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return a.to(dtype)


@triton.jit
def at_most(a, bound):
    """In one instruction. A NaN passes; of two zeros either may come out."""
    return tl.minimum(a, bound, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def at_least(a, bound):
    return tl.maximum(a, bound, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def flip(a, sign):
    """``a``, negated where the sign bit of the float32 ``sign`` is set."""
    bits = tl.cast(a, tl.float32).to(tl.uint32, bitcast=True)
    return (bits ^ (sign.to(tl.uint32, bitcast=True) & 0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def reciprocal(a):
    """1 / a by the special-function unit, relative error about 2^-23; subnormals may become zero."""
    if INTERPRET:
        return 1.0 / a
    else:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [a], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def exp2(a):
    """2 to the power of a by the special-function unit, relative error about 2^-22."""
    if INTERPRET:
        return tl.exp2(a)
    else:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [a], dtype=tl.float32, is_pure=True, pack=1
        )
