"""Philox4x32-10 as in csrc/math/philox.h: the same words, bit for bit."""

import triton
import triton.language as tl


@triton.jit
def noise_key(
    key,  # *int64 [B, 3] from `udp_fast.ops.noise_key`
    image,
):
    """(key0, key1, draw, step, stream) of one image, uint32 scalars."""
    state = tl.load(key + image * 3).to(tl.uint64, bitcast=True)
    counters = tl.load(key + image * 3 + 1).to(tl.uint64, bitcast=True)
    stream = tl.load(key + image * 3 + 2).to(tl.uint32)
    return (
        state.to(tl.uint32),
        (state >> 32).to(tl.uint32),
        counters.to(tl.uint32),
        (counters >> 32).to(tl.uint32),
        stream,
    )


@triton.jit
def philox4x32_10(c0, c1, c2, c3, key0, key1):
    """The four words of counter (c0, c1, c2, c3); all uint32, scalars or blocks."""
    for _ in tl.static_range(10):
        # One 64-bit product gives both halves in one instruction, tl.umulhi and * take two.
        p0 = c0.to(tl.uint64) * 0xD2511F53
        p1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ key0
        c1 = p1.to(tl.uint32)
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ key1
        c3 = p0.to(tl.uint32)
        key0 += 0x9E3779B9
        key1 += 0xBB67AE85
    return c0, c1, c2, c3
