"""accelerate under torch.compile: one graph, and what it computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

from networks import NETWORKS, Network, assert_same, gradient, image, plain_and_exact, relative

import udp_fast


def compiled(network: Network, backend: str) -> Network:
    """Whose runs are compiled without a graph break, forward and backward."""
    module = network.make().requires_grad_(False)
    torch._dynamo.reset()
    run = torch.compile(
        lambda m, v: network.run(m, v), fullgraph=True, backend=backend, dynamic=False
    )
    return Network(lambda: module, network.shape, run)


#: These take seconds to compile in full, a UNet up to a minute and a half on one core: of those one.
QUICK = ("vae-decode", "sd3", "flux")
COMPILED = [
    *((name, "aot_eager") for name in NETWORKS),
    *((name, "inductor") for name in QUICK),
    pytest.param("sd15", "inductor", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "backend"), COMPILED)
def test_one_graph_with_the_same_results(name: str, backend: str) -> None:
    network = NETWORKS[name]
    run, x = compiled(network, backend), image(network)
    module = run.make()
    plain, exact = plain_and_exact(network, module, x)
    with udp_fast.accelerate(module):
        assert_same(gradient(run, module, x), plain, exact)


@pytest.mark.slow
def test_compiled_first_and_accelerated_later() -> None:
    network = NETWORKS["ddpm"]
    module, x = network.make().requires_grad_(False), image(network)
    torch._dynamo.reset()
    run = torch.compile(module, backend="aot_eager")
    plain = gradient(network, run, x)
    with udp_fast.accelerate(run) as done:
        assert done.replaced
        got = gradient(network, run, x)
    again: tuple[Tensor, Tensor] = gradient(network, run, x)
    assert relative(got[1], plain[1]) < 1e-4
    assert torch.equal(again[1], plain[1])
