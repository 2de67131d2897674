"""accelerate on small networks of the real architectures: same results, less kept, all undone."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch

pytest.importorskip("diffusers")

from networks import NETWORKS, SD15, assert_same, gradient, image, plain_and_exact, state

import udp_fast
from benchmarks.unet import saved_bytes
from udp_fast.compat import diffusers as plugin


@pytest.mark.parametrize("name", NETWORKS)
def test_output_and_image_gradient_are_the_same(name: str) -> None:
    network = NETWORKS[name]
    module, x = network.make().requires_grad_(False), image(network)
    plain, exact = plain_and_exact(network, module, x)
    with udp_fast.accelerate(module) as done:
        assert done.replaced
        assert_same(gradient(network, module, x), plain, exact)


def test_the_comparison_notices_a_small_difference() -> None:
    network = NETWORKS["ddpm"]
    module, x = network.make().requires_grad_(False), image(network)
    exact = gradient(network, copy.deepcopy(module).double(), x.double())
    plain = gradient(network, module, x)
    with udp_fast.accelerate(module), torch.no_grad():
        module.mid_block.resnets[0].norm1.eps = 0.01
    with pytest.raises(AssertionError):
        assert_same(gradient(network, module, x), plain, exact)


def test_what_is_replaced_in_sd15() -> None:
    done = udp_fast.accelerate(SD15(layers_per_block=2))
    counts = {
        kind: list(done.replaced.values()).count(kind) for kind in set(done.replaced.values())
    }
    # 22 residual blocks and 16 transformers with two attentions each; besides the blocks' norms the
    # 16 of the transformers and the last one.
    assert counts["ResnetBlock2D"] == 22
    assert counts["Attention"] == 32
    assert counts["GEGLU"] == counts["Transformer2DModel"] == 16
    assert counts["GroupNorm"] == 2 * 22 + 16 + 1
    # 44 in the blocks, the first, the last, 3 before which the image is enlarged and 3 that reduce it;
    # 14 shortcuts and 32 projections of 1×1.
    assert counts["Conv2d"] == 44 + 2 + 3 + 3 + 14 + 32
    assert done.left == []
    assert str(done).splitlines()[1:] == ["left as is: nothing", "frozen: 686 parameters"]


@pytest.mark.parametrize("name", ["adm", "sd15", "vae-encode", "sd3", "flux"])
def test_undo_restores_everything(name: str) -> None:
    network = NETWORKS[name]
    module, x = network.make(), image(network)
    first = next(module.parameters()).requires_grad_(False)
    before, result = state(module), gradient(network, module, x)
    done = udp_fast.accelerate(module)
    assert state(module)["classes"] != before["classes"] or name in ("sd3", "flux")
    assert state(module)["processors"] != before["processors"]
    assert not any(p.requires_grad for p in module.parameters())
    assert state(module)["keys"] == before["keys"]
    assert state(module)["strides"] == before["strides"]
    done.undo()
    done.undo()
    assert state(module) == before
    assert not first.requires_grad
    again = gradient(network, module, x)
    assert torch.equal(again[0], result[0])
    assert torch.equal(again[1], result[1])


def test_the_context_undoes_on_an_error() -> None:
    module = SD15()
    before = state(module)
    with pytest.raises(KeyError), udp_fast.accelerate(module):
        raise KeyError
    assert state(module) == before


def test_a_second_call_changes_nothing_and_takes_nothing_back() -> None:
    module = SD15()
    before = state(module)
    with udp_fast.accelerate(module) as outer:
        accelerated = state(module)
        with udp_fast.accelerate(module) as inner:
            assert state(module) == accelerated
            assert inner.replaced == outer.replaced
            assert inner.left == outer.left
        assert state(module) == accelerated
    assert state(module) == before


def test_saved_bytes() -> None:
    network = NETWORKS["sd15"]
    module, x = SD15().requires_grad_(False), image(network)
    plain = saved_bytes(lambda v: network.run(module, v), x, module)
    with udp_fast.accelerate(module):
        ours = saved_bytes(lambda v: network.run(module, v), x, module)
    assert 0 < ours <= 0.75 * plain


@pytest.mark.parametrize("name", ["sd15", "sd21"])
def test_activations_are_channels_last_throughout(name: str) -> None:
    network = NETWORKS[name]
    module = network.make()
    seen: list[tuple[int, ...]] = []
    with udp_fast.accelerate(module):
        hooks = [
            m.register_forward_pre_hook(lambda _, args: seen.append(args[0].stride()))
            for m in module.modules()
            if type(m).__name__ == "UDPResnetBlock2D"
        ]
        with torch.no_grad():
            network.run(module, image(network))
    assert len(seen) == len(hooks) == 14
    assert all(stride[1] == 1 for stride in seen)


def test_pipeline() -> None:
    from diffusers import DDPMPipeline, DDPMScheduler

    pipeline = DDPMPipeline(NETWORKS["ddpm"].make(), DDPMScheduler())
    with udp_fast.accelerate(pipeline) as done:
        assert "unet.mid_block.resnets.0" in done.replaced
        assert type(pipeline.unet.mid_block.resnets[0]).__name__ == "UDPResnetBlock2D"
    assert type(pipeline.unet.mid_block.resnets[0]).__name__ == "ResnetBlock2D"


def test_the_processor_by_itself() -> None:
    network = NETWORKS["sd15"]
    module, x = SD15().requires_grad_(False), image(network)
    exact = gradient(network, copy.deepcopy(module).double(), x.double())
    plain = gradient(network, module, x)
    module.set_attn_processor(plugin.UDPAttnProcessor())
    assert_same(gradient(network, module, x), plain, exact)


def test_wrong_target() -> None:
    with pytest.raises(TypeError, match=r"target: got str, expected a torch module or"):
        udp_fast.accelerate("unet")


def test_import_brings_no_diffusers() -> None:
    code = "import sys, udp_fast; udp_fast.explain; assert 'diffusers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
