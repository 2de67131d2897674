"""Our attention processors against those of diffusers, on one layer with every option that it has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers")

from diffusers.models.attention_processor import (
    Attention,
    AttnAddedKVProcessor2_0,
    AttnProcessor,
    IPAdapterAttnProcessor2_0,
    SlicedAttnProcessor,
)
from networks import relative

import udp_fast
from udp_fast.compat.diffusers import UDPAttnProcessor

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True, "out_bias": False},
    "norm": {"norm_num_groups": 8},
    "residual": {"norm_num_groups": 8, "residual_connection": True, "rescale_output_factor": 1.7},
    "spatial norm": {"spatial_norm_dim": 8, "norm_num_groups": 8, "residual_connection": True},
    "norms of q and k": {"qk_norm": "layer_norm"},
    "text": {"cross_attention_dim": 24},
    "text, layer norm": {"cross_attention_dim": 24, "cross_attention_norm": "layer_norm"},
    "text, group norm": {
        "cross_attention_dim": 32,
        "cross_attention_norm": "group_norm",
        "cross_attention_norm_num_groups": 8,
    },
    "asks for float32": {"upcast_attention": True},
    "older processor": {"processor": AttnProcessor()},
    "older processor, no scale": {"scale_qk": False},
}


def layer(**options: Any) -> Attention:
    torch.manual_seed(0)
    attn = Attention(32, heads=2, dim_head=16, **options).requires_grad_(False).eval()
    with torch.no_grad():
        for p in attn.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    return attn


def results(attn: nn.Module, x: Tensor, **inputs: Any) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    out = attn(x, **inputs)
    (dx,) = torch.autograd.grad(out.square().sum(), x)
    return out.detach(), dx


@pytest.mark.parametrize("mask", ["no mask", "keys", "keys by queries", "two dimensions"])
@pytest.mark.parametrize("pixels", [False, True], ids=["tokens", "pixels"])
@pytest.mark.parametrize("options", OPTIONS)
def test_same_as_theirs(options: str, pixels: bool, mask: str) -> None:
    attn, generator = layer(**OPTIONS[options]), torch.Generator().manual_seed(1)
    shape = (2, 32, 3, 3) if pixels else (2, 9, 32)
    x = torch.randn(shape, generator=generator)
    inputs: dict[str, Tensor] = {}
    keys = 9
    if "cross_attention_dim" in OPTIONS[options]:
        keys = 5
        text = (2, keys, OPTIONS[options]["cross_attention_dim"])
        inputs["encoder_hidden_states"] = torch.randn(text, generator=generator)
    if "spatial_norm_dim" in OPTIONS[options]:
        if not pixels:
            pytest.skip("a spatial norm is for pixels")
        inputs["temb"] = torch.randn((2, 8, 6, 6), generator=generator)
    if mask != "no mask":
        if mask == "two dimensions" and options.startswith("older"):
            pytest.skip("AttnProcessor takes it for one row a query")
        form = {"keys": (2, 1, keys), "keys by queries": (2, 9, keys), "two dimensions": (2, keys)}
        dropped = torch.rand(form[mask], generator=generator) < 0.3
        inputs["attention_mask"] = dropped * -10000.0
    theirs = results(attn, x, **inputs)
    with udp_fast.accelerate(attn) as done:
        assert isinstance(attn.processor, UDPAttnProcessor)
        assert done.left == []
        ours = results(attn, x, **inputs)
    for mine, other in zip(ours, theirs, strict=True):
        assert relative(mine, other) < 1e-5


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {
                "added_kv_proj_dim": 8,
                "norm_num_groups": 8,
                "bias": True,
                "processor": AttnAddedKVProcessor2_0(),
            },
            "AttnAddedKVProcessor2_0 is not known",
        ),
        (
            {"cross_attention_dim": 24, "processor": IPAdapterAttnProcessor2_0(32, 24)},
            "IPAdapterAttnProcessor2_0 is not known",
        ),
        ({"processor": SlicedAttnProcessor(1)}, "SlicedAttnProcessor is not known"),
        (
            {"processor": AttnProcessor(), "upcast_attention": True},
            "it computes in another precision",
        ),
        (
            {"processor": AttnProcessor(), "qk_norm": "layer_norm"},
            "its processor leaves out its norm_q and norm_k",
        ),
        ({"kv_heads": 1}, "its scale or number of key heads is not the usual one"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_left_alone_and_said_in_one_line(options: dict[str, Any], reason: str) -> None:
    attn = layer(**options)
    theirs = attn.processor
    with udp_fast.accelerate(attn) as done:
        assert attn.processor is theirs
    assert f"left as is: 1 Attention ({reason})" in str(done).splitlines()


def test_a_processor_set_later_stays() -> None:
    attn = layer()
    with udp_fast.accelerate(attn):
        attn.set_processor(AttnProcessor())
    assert type(attn.processor) is AttnProcessor


def test_fused_projections() -> None:
    attn = layer()
    attn.fuse_projections()
    with udp_fast.accelerate(attn) as done:
        assert [item.reason for item in done.left] == ["its projections are fused"]
