"""accelerate under torch.compile: one graph, and what it computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

from networks import (
    NETWORKS,
    TWO_SIZES,
    Network,
    assert_same,
    gradient,
    image,
    plain_and_exact,
    relative,
)

import udp_fast

#: A second layer of the same kind in each block teaches nothing and is traced as long as the first;
#: nor do more sizes of blocks, but SDXL's and ADM's have a way down and up.
ONE_SIZE: dict[str, Any] = {"layers_per_block": 1, "block_out_channels": (32,)}
SMALLER: dict[str, dict[str, Any]] = {
    "sd15-masked": {
        **ONE_SIZE,
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("UpBlock2D",),
    },
    "sdxl": {
        **TWO_SIZES,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 4),
        "transformer_layers_per_block": 1,
        "upcast_attention": True,  # as SD2.1 has it
    },
    "ddpm": {
        **ONE_SIZE,
        "down_block_types": ("AttnDownBlock2D",),
        "up_block_types": ("UpBlock2D",),
    },
    "adm": {"layers_per_block": 1},
    "vae-decode": {
        **ONE_SIZE,
        "down_block_types": ("DownEncoderBlock2D",),
        "up_block_types": ("UpDecoderBlock2D",),
    },
}


def compiled(name: str, backend: str) -> Network:
    """Whose runs are compiled without a graph break, forward and backward."""
    network = NETWORKS[name]
    module = network.make(**SMALLER.get(name, {})).requires_grad_(False)
    torch._dynamo.reset()
    run = torch.compile(
        lambda m, v: network.run(m, v), fullgraph=True, backend=backend, dynamic=False
    )
    return Network(lambda: module, network.shape, run)


#: Inductor, whose compiler takes minutes for a UNet; and what comes before its code.
IN_FULL, BUT_FOR_CODE = "inductor", "aot_eager_decomp_partition"
COMPILED = [
    (name, IN_FULL if name == "vae-decode" else BUT_FOR_CODE)
    for name in NETWORKS
    # The masked one and SDXL's have all they have.
    if name not in ("sd15", "sd15-odd-size", "sd21")
]


@pytest.mark.parametrize(("name", "backend"), COMPILED)
def test_one_graph_with_the_same_results(name: str, backend: str) -> None:
    network, run = NETWORKS[name], compiled(name, backend)
    module, x = run.make(), image(network)
    plain, exact = plain_and_exact(network, module, x)
    with udp_fast.accelerate(module):
        assert_same(gradient(run, module, x), plain, exact)


@pytest.mark.slow
def test_compiled_first_and_accelerated_later() -> None:
    network = NETWORKS["ddpm"]
    module, x = network.make(**SMALLER["ddpm"]).requires_grad_(False), image(network)
    torch._dynamo.reset()
    run = torch.compile(module, backend="aot_eager")
    plain = gradient(network, run, x)
    with udp_fast.accelerate(run) as done:
        assert done.replaced
        got = gradient(network, run, x)
    again: tuple[Tensor, Tensor] = gradient(network, run, x)
    assert relative(got[1], plain[1]) < 1e-4
    assert torch.equal(again[1], plain[1])
