"""How attention's dimensions are cut into the powers of two that Triton wants. Needs no GPU."""

from __future__ import annotations

import pytest

from udp_fast.backends.triton.attention import key_parts, parts


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
