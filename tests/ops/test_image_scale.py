"""image_scale and its form in place, on every backend."""

from __future__ import annotations

import re

import pytest
import torch
from cases import BF16, F16, F32, floats, same_bits

from udp_fast.backends.registry import backend
from udp_fast.ops.image_scale import image_scale, image_scale_


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_in_place_is_the_same(backend_name: str, dtype: torch.dtype, layout: str) -> None:
    for shape in ((3, 3, 8, 12), (3, 4, 5, 7), (3, 37), (3, 0), (0, 4)):
        x, scale = floats(shape, 1, dtype, layout), torch.tensor([1.0, 0.3, 2.0])[: shape[0]]
        exact = (x.double() * scale.double().reshape(-1, *[1] * (x.dim() - 1))).to(dtype)
        expected = image_scale(x, scale)
        assert same_bits(expected.contiguous(), exact.contiguous())
        image_scale_(x, scale)
        assert same_bits(x.contiguous(), expected.contiguous())


def test_bad_arguments_are_named() -> None:
    for x, scale, error, message in (
        (torch.ones(2, 3), torch.ones(3), ValueError, "scale: got shape [3], expected [2]"),
        (torch.ones(2, 3, requires_grad=True), torch.ones(2), ValueError, "x: requires grad"),
        (torch.ones(2, 1).expand(2, 3), torch.ones(2), ValueError, "x: got an expanded tensor"),
        (torch.ones(2, 3, dtype=torch.int32), torch.ones(2), TypeError, "x: got dtype int32"),
    ):
        with pytest.raises(error, match=re.escape(f"image_scale_: {message}")):
            image_scale_(x, scale)


def test_every_backend_has_both() -> None:
    for name in ("cuda", "triton", "cpu", "reference"):
        assert {"image_scale", "image_scale_"} <= set(backend(name).ops)
