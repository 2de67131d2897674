"""accelerate on small networks of the real architectures: same results, less kept, all undone."""

from __future__ import annotations

import copy
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers")

from networks import NETWORKS, SD15, Network

import udp_fast
from benchmarks.unet import saved_bytes
from udp_fast.compat import diffusers as plugin


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def image(network: Network) -> Tensor:
    return torch.randn(network.shape, generator=torch.Generator().manual_seed(2))


def gradient(network: Network, module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and the gradient of a loss on it with respect to x."""
    x = x.detach().clone().requires_grad_()
    out = network.run(module, x)
    target = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(out)
    (dx,) = torch.autograd.grad((out - target).square().mean(), x)
    return out.detach(), dx


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def assert_same(
    got: tuple[Tensor, Tensor], plain: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor]
) -> None:
    """Within 1e-4 of float64, and signs as float64's wherever float32 itself knows the sign."""
    for mine, double in zip(got, exact, strict=True):
        assert relative(mine.double(), double) < 1e-4
    rounding = (plain[1].double() - exact[1]).abs().max()
    sure = exact[1].abs() > rounding
    assert sure.double().mean() > 0.5
    agree = got[1].sign()[sure] == exact[1].sign()[sure]
    assert agree.double().mean() >= 0.999


@pytest.mark.parametrize("name", NETWORKS)
def test_output_and_image_gradient_are_the_same(name: str) -> None:
    network = NETWORKS[name]
    module, x = network.make().requires_grad_(False), image(network)
    exact = gradient(network, copy.deepcopy(module).double(), x.double())
    plain = gradient(network, module, x)
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
    done = udp_fast.accelerate(SD15())
    counts = {
        kind: list(done.replaced.values()).count(kind) for kind in set(done.replaced.values())
    }
    # 22 residual blocks and 16 transformers with two attentions each; besides the blocks' norms the
    # 16 of the transformers and the last one.
    assert counts["ResnetBlock2D"] == 22
    assert counts["Attention"] == 32
    assert counts["GEGLU"] == counts["Transformer2DModel"] == 16
    assert counts["GroupNorm"] == 2 * 22 + 16 + 1
    # 44 in the blocks, the first, the last, 3 before which the image is enlarged; 14 shortcuts and
    # 32 projections of 1×1.
    assert counts["Conv2d"] == 44 + 2 + 3 + 14 + 32
    assert {item.reason for item in done.left} == {"strided"}
    assert len(done.left) == 3
    assert "3 Conv2d (strided)" in str(done).splitlines()[1]


def state(module: nn.Module) -> dict[str, Any]:
    return {
        "classes": {name: type(m) for name, m in module.named_modules()},
        "attributes": {name: set(vars(m)) for name, m in module.named_modules()},
        "processors": {
            name: id(m.processor) for name, m in module.named_modules() if hasattr(m, "processor")
        },
        "requires_grad": {name: p.requires_grad for name, p in module.named_parameters()},
        "strides": {name: p.stride() for name, p in module.named_parameters()},
        "addresses": {name: p.data_ptr() for name, p in module.named_parameters()},
        "keys": list(module.state_dict()),
    }


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


def test_threads_may_accelerate_undo_and_run_at_once() -> None:
    network = NETWORKS["sd15"]
    module, x = SD15().requires_grad_(False), image(network)
    before = state(module)
    with udp_fast.accelerate(module):
        expected = gradient(network, module, x)
        results: list[tuple[Tensor, Tensor]] = []
        start = threading.Barrier(4)

        def run() -> None:
            start.wait()
            udp_fast.accelerate(module).undo()
            results.append(gradient(network, module, x))

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) == 4
    for out, dx in results:
        assert torch.equal(out, expected[0])
        assert torch.equal(dx, expected[1])
    assert state(module) == before

    reports: list[plugin.Acceleration] = []
    threads = [
        threading.Thread(target=lambda: reports.append(udp_fast.accelerate(module)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(bool(report._undo) for report in reports) == 1
    for report in reports:
        report.undo()
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
    assert len(seen) == len(hooks) == 22
    assert all(stride[1] == 1 for stride in seen)


def test_save_pretrained(tmp_path: Path) -> None:
    network = NETWORKS["sd15"]
    module, x = SD15(), image(network)
    keys = list(module.state_dict())
    with udp_fast.accelerate(module):
        module.save_pretrained(tmp_path)
        assert list(module.state_dict()) == keys
    loaded = type(module).from_pretrained(tmp_path).eval()
    assert type(loaded) is type(module)
    for name, value in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    with torch.no_grad():
        assert torch.equal(network.run(loaded, x), network.run(module, x))


class LowRank(nn.Module):
    """What adapters make of a linear layer: its weight is not the whole of it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 4, bias=False)
        self.up = nn.Linear(4, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def adapt(module: nn.Module) -> None:
    torch.manual_seed(5)
    for m in list(module.modules()):
        for name in ("to_q", "to_k", "to_v", "time_emb_proj"):
            if isinstance(getattr(m, name, None), nn.Linear):
                setattr(m, name, LowRank(getattr(m, name)))


@pytest.mark.parametrize("adapters_first", [True, False])
def test_wrapped_layers_keep_their_effect(adapters_first: bool) -> None:
    network = NETWORKS["sd15"]
    x = image(network)
    plain, module = SD15(), SD15()
    without = gradient(network, plain, x)
    adapt(plain)
    exact = gradient(network, copy.deepcopy(plain).double(), x.double())
    if adapters_first:
        adapt(module)
    with udp_fast.accelerate(module, freeze=False):
        if not adapters_first:
            adapt(module)
        got = gradient(network, module, x)
    assert relative(without[1].double(), exact[1]) > 1e-2
    assert_same(got, gradient(network, plain, x), exact)


@pytest.mark.parametrize("adapters_first", [True, False])
def test_lora(adapters_first: bool) -> None:
    peft = pytest.importorskip("peft")
    network = NETWORKS["sd15"]
    x = image(network)

    def add(module: Any) -> None:
        torch.manual_seed(6)
        targets = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "proj_in", "proj"]
        module.add_adapter(
            peft.LoraConfig(r=4, target_modules=targets, init_lora_weights="gaussian")
        )
        for name, p in module.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.05)

    def gradients(module: nn.Module, v: Tensor) -> dict[str, Tensor]:
        v = v.clone().requires_grad_()
        network.run(module, v).square().mean().backward()
        found = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
        return {"the image": v.grad, **found}

    plain, module = SD15().requires_grad_(False), SD15().requires_grad_(False)
    add(plain)
    exact = gradients(copy.deepcopy(plain).double(), x.double())
    if adapters_first:
        add(module)
    with udp_fast.accelerate(module, freeze=False):
        if not adapters_first:
            add(module)
        got = gradients(module, x)
    assert set(got) == set(exact)
    assert any("lora_A" in name for name in got)
    for name, grad in got.items():
        assert relative(grad.double(), exact[name]) < 1e-4, name


def test_trainable_weights_still_train() -> None:
    network = NETWORKS["ddpm"]
    x = image(network)
    module = network.make()
    plain = copy.deepcopy(module).double()
    network.run(plain, x.double()).square().mean().backward()
    with udp_fast.accelerate(module, freeze=False):
        network.run(module, x).square().mean().backward()
    expected = {name: p.grad for name, p in plain.named_parameters()}
    # Some gradients are zero, like those of a bias that a normalisation takes away again.
    least = 1e-3 * max(float(grad.abs().max()) for grad in expected.values())
    for name, p in module.named_parameters():
        assert p.grad is not None, name
        grad = expected[name]
        error = float((p.grad.double() - grad).abs().max())
        assert error < 1e-4 * max(float(grad.abs().max()), least), name


def test_what_is_not_known_stays() -> None:
    from diffusers.models.attention_processor import AttnProcessor2_0

    class MyProcessor(AttnProcessor2_0):
        pass

    class MyNorm(nn.GroupNorm):
        pass

    network = NETWORKS["sd15"]
    module = SD15().requires_grad_(False)
    mine = MyProcessor()
    module.mid_block.attentions[0].transformer_blocks[0].attn1.set_processor(mine)
    block = module.mid_block.resnets[0]
    block.norm1 = MyNorm(block.norm1.num_groups, block.norm1.num_channels)
    x = image(network)
    exact = gradient(network, copy.deepcopy(module).double(), x.double())
    plain = gradient(network, module, x)
    hooked = module.mid_block.resnets[1]
    theirs = hooked.forward
    hooked.forward = lambda *args, **kwargs: theirs(*args, **kwargs)  # as accelerate's hooks do
    done = udp_fast.accelerate(module)
    assert module.mid_block.attentions[0].transformer_blocks[0].attn1.processor is mine
    assert type(block).__name__ == "ResnetBlock2D"
    assert type(block.norm1) is MyNorm
    assert type(hooked).__name__ == "ResnetBlock2D"
    left = {item.name: item.reason for item in done.left}
    assert left["mid_block.attentions.0.transformer_blocks.0.attn1"] == "MyProcessor is not known"
    assert left["mid_block.resnets.0"] == "its normalisations are not known"
    assert left["mid_block.resnets.0.norm1"] == "a derived class"
    assert left["mid_block.resnets.1"] == "another library overrides its forward"
    assert_same(gradient(network, module, x), plain, exact)


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


def test_copies_stay_accelerated() -> None:
    network = NETWORKS["ddpm"]
    module, x = network.make(), image(network)
    with udp_fast.accelerate(module):
        twin = copy.deepcopy(module)
        expected = gradient(network, module, x)
    got = gradient(network, twin, x)
    assert torch.equal(got[1], expected[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddpm", "sd15", "vae-encode", "sd3", "flux"])
def test_no_graph_break(name: str) -> None:
    network = NETWORKS[name]
    module, x = network.make().requires_grad_(False), image(network)
    torch._dynamo.reset()
    with udp_fast.accelerate(module):
        expected = gradient(network, module, x)
        run = torch.compile(
            lambda v: network.run(module, v), fullgraph=True, backend="aot_eager", dynamic=False
        )
        got = gradient(Network(network.make, network.shape, lambda _, v: run(v)), module, x)
    assert relative(got[0], expected[0]) < 1e-5
    assert relative(got[1], expected[1]) < 1e-5


def test_import_brings_no_diffusers() -> None:
    code = "import sys, udp_fast; udp_fast.explain; assert 'diffusers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
