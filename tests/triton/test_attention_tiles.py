"""How attention's dimensions are cut into the powers of two that Triton wants. Needs no GPU."""

from __future__ import annotations

import pytest
import torch

from udp_fast.backends.triton.attention import attention, attention_backward, key_parts, parts
from udp_fast.backends.triton.launch import recorded


@pytest.mark.parametrize(
    ("dim", "expected"),
    {
        8: (16, 0), 16: (16, 0), 40: (32, 16), 64: (64, 0), 80: (64, 16), 96: (64, 32),
        120: (128, 0), 128: (128, 0), 160: (128, 32),
    }.items(),
)  # fmt: skip
def test_head_dims(dim, expected):
    assert parts(dim) == expected


@pytest.mark.parametrize("dim", range(1, 161))
def test_parts_hold_the_head_and_waste_less_than_the_next_power_of_two(dim):
    first, second = parts(dim)
    assert dim <= first + second <= max(16, 1 << (dim - 1).bit_length())
    assert {first, second} <= {0, 16, 32, 64, 128, 256}
    assert second == 0 or first < dim


@pytest.mark.parametrize(
    ("keys", "expected"),
    {1: (16, 0), 17: (32, 0), 33: (32, 16), 64: (64, 0), 77: (64, 16), 96: (64, 32), 97: (128, 0)}.items(),
)  # fmt: skip
def test_77_keys_cost_80(keys, expected):
    assert key_parts(keys) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("dim", [1, 16, 40, 64, 160, 512])
def test_offsets_within_a_tile_fit_into_their_bits(dim, dtype):
    """Of rows as far apart as 32 bits allow a tile to have them, and further."""
    for far in (2**31 // 512, 2**31 // 256, 2**31 // 128):
        x = torch.empty_strided((1, 2, 300, dim), (0, 8, far, 1), dtype=dtype, device="meta")
        lse = torch.empty((1, 2, 300), device="meta")
        with recorded() as launches:
            attention(x, x, x, None, 1.0, True)
            attention_backward(x, x, x, x, None, x, lse, 1.0, (True, True, True))
            few = x[:, :, :77]
            attention_backward(x, x, few, few, None, None, None, 1.0, (True, False, False))
        assert len(launches) >= 5
        for launch in launches:
            names = ("ROWS", "KEYS", "KEYS0", "KEYS1", "KEPT", "WALKED")
            most = max(launch.arguments.get(name, 0) for name in names)
            assert launch.arguments["OFFSET"] == 64 or most * far + dim <= 2**31, launch.kernel
