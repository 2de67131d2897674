"""accelerate beside what else is done to networks: training, adapters, hooks, threads, dtypes, saving."""

from __future__ import annotations

import contextlib
import copy
import gc
import itertools
import json
import pickle
import threading
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

pytest.importorskip("diffusers")

from diffusers import Transformer2DModel
from diffusers.models.attention_processor import AttnProcessor2_0
from networks import (
    NETWORKS,
    SD15,
    TWO_SIZES,
    Network,
    assert_same,
    gradient,
    image,
    plain_and_exact,
    relative,
    state,
)

import udp_fast
from udp_fast.compat.diffusers import Acceleration


def frozen(name: str, **changes: Any) -> tuple[Network, nn.Module, Tensor]:
    network = NETWORKS[name]
    return network, network.make(**changes).requires_grad_(False), image(network)


# --- what is done to the network before or after ------------------------------------------------------


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
    as_it_was, exact = plain_and_exact(network, plain, x)
    if adapters_first:
        adapt(module)
    with udp_fast.accelerate(module, freeze=False):
        if not adapters_first:
            adapt(module)
        got = gradient(network, module, x)
    assert relative(without[1].double(), exact[1]) > 1e-2
    assert_same(got, as_it_was, exact)


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


@pytest.mark.parametrize("name", ["ddpm", "sd15"])
def test_trainable_weights_still_train(name: str) -> None:
    network = NETWORKS[name]
    x = image(network)
    module = network.make().train()
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


def test_taking_turns_with_a_surrogate_s_training() -> None:
    network = NETWORKS["ddpm"]
    x = image(network)
    module, plain = network.make(), network.make()
    with udp_fast.accelerate(module) as done:
        assert len(done.frozen) == len(list(module.parameters()))
        for m in (module, plain):
            m.requires_grad_(True)
            network.run(m, x).square().mean().backward()
            with torch.no_grad():
                for p in m.parameters():
                    p -= 0.1 * p.grad
            m.requires_grad_(False)
        assert_same(gradient(network, module, x), *plain_and_exact(network, plain, x))
        assert_same(gradient(network, module, x), *plain_and_exact(network, module, x))
    assert all(p.requires_grad for p in module.parameters())


def test_a_norm_replaced_later() -> None:
    network, module, x = frozen("ddpm")
    plain, exact = plain_and_exact(network, module, x)
    with udp_fast.accelerate(module):
        for block in module.mid_block.resnets:
            for name in ("norm1", "norm2"):
                old = getattr(block, name)
                new = nn.GroupNorm(old.num_groups, old.num_channels, old.eps).requires_grad_(False)
                new.load_state_dict(old.state_dict())
                setattr(block, name, new)
        assert_same(gradient(network, module, x), plain, exact)


def test_a_forward_of_one_s_own_over_an_accelerated_block() -> None:
    network, module, x = frozen("ddpm")
    plain, exact = plain_and_exact(network, module, x)
    block = module.mid_block.resnets[0]

    def forward(h: Tensor, temb: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = block.conv1(block.nonlinearity(block.norm1(h)))
        out = out + block.time_emb_proj(block.nonlinearity(temb))[:, :, None, None]
        out = block.conv2(block.nonlinearity(block.norm2(out)))
        return (h + out) / block.output_scale_factor

    with udp_fast.accelerate(module):
        block.forward = forward
        assert_same(gradient(network, module, x), plain, exact)


def test_forwards_kept_beyond_the_undoing() -> None:
    network, module, x = frozen("ddpm")
    plain, exact = plain_and_exact(network, module, x)

    def keep(forward: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: forward(*args, **kwargs)

    with udp_fast.accelerate(module):
        for m in module.modules():  # as offloading does
            if type(m).__name__.startswith("UDP"):
                m.forward = keep(m.forward)
        assert_same(gradient(network, module, x), plain, exact)
    assert_same(gradient(network, module, x), plain, exact)


def test_hooks_see_what_they_saw() -> None:
    network, module, x = frozen("adm")
    seen: dict[str, list[Tensor]] = {}

    def watch(name: str) -> Callable[..., None]:
        return lambda _module, _args, out: seen.setdefault(name, []).append(out.detach().clone())

    for name, m in module.named_modules():
        if isinstance(m, (nn.GroupNorm, nn.SiLU, nn.Conv2d)):
            m.register_forward_hook(watch(name))
    plain = gradient(network, module, x)
    before, seen = seen, {}
    with udp_fast.accelerate(module):
        got = gradient(network, module, x)
    assert relative(got[1], plain[1]) < 1e-4
    assert {name: len(outs) for name, outs in seen.items()} == {
        name: len(outs) for name, outs in before.items()
    }
    for name, outs in before.items():
        for theirs, ours in zip(outs, seen[name], strict=True):
            assert relative(ours, theirs) < 1e-4, name


def test_what_is_not_known_stays() -> None:
    class MyProcessor(AttnProcessor2_0):
        pass

    class MyNorm(nn.GroupNorm):
        pass

    network, module, x = frozen("sd15")
    mine = MyProcessor()
    module.mid_block.attentions[0].transformer_blocks[0].attn1.set_processor(mine)
    block = module.mid_block.resnets[0]
    block.norm1 = MyNorm(block.norm1.num_groups, block.norm1.num_channels)
    mish = module.mid_block.resnets[1]
    mish.nonlinearity = nn.Mish()
    plain, exact = plain_and_exact(network, module, x)
    hooked = module.down_blocks[0].resnets[0]
    theirs = hooked.forward
    hooked.forward = lambda *args, **kwargs: theirs(*args, **kwargs)  # as accelerate's hooks do
    done = udp_fast.accelerate(module)
    assert module.mid_block.attentions[0].transformer_blocks[0].attn1.processor is mine
    assert type(block.norm1) is MyNorm
    assert type(mish).__name__ == type(hooked).__name__ == "ResnetBlock2D"
    assert {item.name: item.reason for item in done.left} == {
        "mid_block.attentions.0.transformer_blocks.0.attn1": "MyProcessor is not known",
        "mid_block.resnets.0.norm1": "a derived class",
        "mid_block.resnets.1": "its activation is Mish",
        "down_blocks.0.resnets.0": "another library overrides its forward",
    }
    assert_same(gradient(network, module, x), plain, exact)


@pytest.mark.parametrize(
    "layer", ["circular", "same", "unbatched", "strided", "grouped", "dilated"]
)
def test_convolutions_of_every_kind(layer: str) -> None:
    conv = {
        "circular": nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular"),
        "same": nn.Conv2d(16, 16, 4, padding="same"),
        "unbatched": nn.Conv2d(16, 16, 3, padding=1),
        "strided": nn.Conv2d(64, 64, 3, stride=2, padding=(1, 0)),
        "grouped": nn.Conv2d(16, 32, 3, padding=1, groups=4, bias=False),
        "dilated": nn.Conv2d(16, 3, (3, 1), padding=2, dilation=2),
    }[layer]
    module = nn.Sequential(conv, nn.Conv2d(conv.out_channels, 8, 1)).requires_grad_(False)
    x = torch.randn(2, conv.in_channels, 11, 9)
    network = Network(lambda: module, x.shape, lambda m, v: m(v))
    for v in (
        x[0] if layer == "unbatched" else x,
        x[0] if layer == "unbatched" else x.contiguous(memory_format=torch.channels_last),
    ):
        plain, exact = plain_and_exact(network, module, v)
        with udp_fast.accelerate(module) as done:
            assert len(done.left) == (layer in ("circular", "same"))
            assert_same(gradient(network, module, v), plain, exact)


def test_one_activation_for_all_of_a_network() -> None:
    network, module, x = frozen("sd15")
    shared = nn.SiLU()  # as older versions of diffusers had it
    module.conv_act = module.time_embedding.act = shared
    for m in module.modules():
        if isinstance(getattr(m, "nonlinearity", None), nn.SiLU):
            m.nonlinearity = shared
    before = state(module)
    plain, exact = plain_and_exact(network, module, x)
    with udp_fast.accelerate(module):
        assert type(shared) is nn.SiLU
        assert_same(gradient(network, module, x), plain, exact)
    assert state(module) == before


# --- undoing ---------------------------------------------------------------------------------------------


def test_an_accelerate_that_is_interrupted_leaves_nothing() -> None:
    module = SD15()
    last = module.mid_block.attentions[0].transformer_blocks[0].attn2

    def interrupt(_processor: Any) -> None:
        raise KeyboardInterrupt

    last.set_processor = interrupt
    before = state(module)
    with pytest.raises(KeyboardInterrupt):
        udp_fast.accelerate(module)
    assert state(module) == before


def test_the_last_to_let_go_undoes() -> None:
    module = SD15()
    before = state(module)
    part = udp_fast.accelerate(module.mid_block)
    whole = udp_fast.accelerate(module)
    accelerated = state(module)
    part.undo()
    part.undo()
    assert state(module) == accelerated
    whole.undo()
    assert state(module) == before

    activation = udp_fast.accelerate(module.conv_act)  # alone there is nothing to do
    assert activation.replaced == {}
    whole = udp_fast.accelerate(module)
    activation = udp_fast.accelerate(module.conv_act)  # now it is half of a pair
    whole.undo()
    assert type(module.conv_norm_out) is not nn.GroupNorm
    activation.undo()
    assert state(module) == before


def test_an_acceleration_that_nobody_holds_is_there_to_stay() -> None:
    module = SD15()
    udp_fast.accelerate(module)
    accelerated = state(module)
    with udp_fast.accelerate(module) as again:
        assert again.replaced
    assert state(module) == accelerated


ORDERS = [*itertools.permutations(range(2)), *itertools.permutations(range(3))]


def overlapping(
    module: nn.Module, count: int, override: Callable[[], object]
) -> list[Acceleration]:
    """Accelerations of one network, before each of which but the first somebody overrides the last."""
    done = [udp_fast.accelerate(module)]
    for _ in range(count - 1):
        override()
        done.append(udp_fast.accelerate(module))
    return done


@pytest.mark.parametrize("order", ORDERS)
def test_undone_in_any_order_with_training_in_between(order: tuple[int, ...]) -> None:
    module = SD15()
    module.conv_in.requires_grad_(False)
    before = state(module)
    done = overlapping(module, len(order), partial(module.conv_out.requires_grad_, True))
    accelerated = state(module)
    assert not any(accelerated["requires_grad"].values())
    for at in order[:-1]:
        done[at].undo()
        assert state(module)["classes"] == accelerated["classes"]
        assert not module.mid_block.resnets[0].conv1.weight.requires_grad
        if at == len(order) - 1:  # it alone had frozen the last layer, since that was trained
            accelerated = state(module)
            assert module.conv_out.weight.requires_grad
        assert state(module) == accelerated
    done[order[-1]].undo()
    assert state(module) == before


@pytest.mark.parametrize("order", ORDERS)
def test_undone_in_any_order_with_processors_set_in_between(order: tuple[int, ...]) -> None:
    module = SD15()
    before = state(module)
    mine: list[AttnProcessor2_0] = []

    def override() -> None:
        mine.append(AttnProcessor2_0())
        module.set_attn_processor(mine[-1])

    done = overlapping(module, len(order), override)
    for at in order:
        done[at].undo()
        if at == len(order) - 1:
            assert set(state(module)["processors"].values()) == {id(mine[-1])}
    after = state(module)
    assert set(after.pop("processors").values()) == {id(mine[-1])}
    assert after == {what: was for what, was in before.items() if what != "processors"}


@pytest.mark.parametrize("order", ORDERS)
def test_undone_in_any_order_with_layers_given_back_in_between(order: tuple[int, ...]) -> None:
    module = SD15()
    before = state(module)
    act = module.conv_act

    def override() -> None:
        for name, m in module.named_modules():
            m.__class__ = before["classes"][name]
        module.conv_act = act

    done = overlapping(module, len(order), override)
    accelerated = state(module)
    last = order.index(len(order) - 1)
    for at in order[:last]:
        done[at].undo()
        assert state(module) == accelerated
    for at in order[last:]:
        done[at].undo()
        assert state(module)["classes"] == before["classes"]
    assert state(module) == before


@pytest.mark.parametrize("order", ORDERS[2:])
def test_one_that_came_late_holds_what_it_found(order: tuple[int, ...]) -> None:
    module = SD15()
    before = state(module)
    done = overlapping(module, 2, partial(module.requires_grad_, True))
    accelerated = state(module)
    done.append(udp_fast.accelerate(module))
    assert state(module) == accelerated
    for at in order:
        done[at].undo()
        # The second froze the weights again and the third found them so, for which they were free in
        # the first.
        left = set(range(3)) - set(order[: order.index(at) + 1])
        assert all(p.requires_grad for p in module.parameters()) == (not left & {1, 2})
        assert (state(module)["classes"] == accelerated["classes"]) == bool(left)
    assert state(module) == before


def test_one_that_came_and_went_leaves_no_trace() -> None:
    module = SD15()
    before = state(module)
    with udp_fast.accelerate(module):
        ours = dict(module.attn_processors)
        module.set_attn_processor(AttnProcessor2_0())
        module.requires_grad_(True)
        found = state(module)
        with udp_fast.accelerate(module):
            assert state(module) != found
        assert state(module) == found
        module.set_attn_processor(ours)
        module.requires_grad_(False)
    assert state(module) == before


def test_a_processor_of_ours_put_back_is_still_taken_back() -> None:
    module = SD15()
    before = state(module)
    outer = udp_fast.accelerate(module)
    ours = dict(module.attn_processors)
    module.set_attn_processor(AttnProcessor2_0())
    inner = udp_fast.accelerate(module)
    module.set_attn_processor(ours)
    outer.undo()
    inner.undo()
    assert state(module) == before


def test_what_cannot_be_taken_back_keeps_nothing_else() -> None:
    module = SD15()
    before = state(module)
    attn = module.mid_block.attentions[0].transformer_blocks[0].attn2
    done = udp_fast.accelerate(module)

    def refuse(_processor: Any) -> None:
        raise RuntimeError("not now")

    attn.set_processor = refuse
    with pytest.raises(RuntimeError, match="not now"):
        done.undo()
    after = state(module)
    name = "mid_block.attentions.0.transformer_blocks.0.attn2"
    for what, was in before.items():
        kept = (
            {n for n, v in was.items() if after[what][n] != v} if isinstance(was, dict) else set()
        )
        assert kept == ({name} if what in ("processors", "attributes") else set()), what
    with pytest.raises(RuntimeError, match="not now"):
        done.undo()
    del attn.set_processor
    done.undo()
    assert state(module) == before


def test_undoing_where_parts_are_gone_or_other_ones() -> None:
    module = SD15()
    classes = state(module)["classes"]
    blocks = module.mid_block.resnets
    with udp_fast.accelerate(module):
        del module.mid_block.attentions, blocks[0].conv1, blocks[0].norm1.weight, module.conv_act
        attn = module.up_blocks[1].attentions[0].transformer_blocks[0].attn1
        del attn.processor
        blocks[1].conv1 = nn.Conv2d(96, 96, 1)
        blocks[1].conv2.weight = nn.Parameter(blocks[1].conv2.weight.clone(), requires_grad=False)
        blocks[1].norm1.weight.data = torch.ones(96, dtype=torch.int8)
    for name, m in module.named_modules():
        assert type(m) is classes[name], name
    fixed = {name for name, p in module.named_parameters() if not p.requires_grad}
    assert fixed == {"mid_block.resnets.1.conv2.weight", "mid_block.resnets.1.norm1.weight"}


def test_an_accelerate_interrupted_between_doing_and_returning_leaves_nothing() -> None:
    module = SD15()
    attn = module.mid_block.attentions[0].transformer_blocks[0].attn2
    theirs = attn.set_processor
    interruptions = [KeyboardInterrupt()]

    def interrupt(processor: Any) -> None:
        theirs(processor)
        if interruptions:
            raise interruptions.pop()

    attn.set_processor = interrupt
    before = state(module)
    with pytest.raises(KeyboardInterrupt):
        udp_fast.accelerate(module)
    assert state(module) == before


def test_copies_stay_accelerated() -> None:
    network = NETWORKS["ddpm"]
    module, x = network.make(), image(network)
    with udp_fast.accelerate(module):
        twin = copy.deepcopy(module)
        expected = gradient(network, module, x)
    got = gradient(network, twin, x)
    assert torch.equal(got[1], expected[1])


# --- threads ---------------------------------------------------------------------------------------------


def in_threads(*jobs: Callable[[], None]) -> None:
    failures: list[BaseException] = []

    def run(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@pytest.mark.parametrize("modules", [1, 2])
def test_threads_accelerate_run_and_undo_at_once(modules: int) -> None:
    network, module, x = frozen("ddpm")
    module.requires_grad_(True)
    others = [copy.deepcopy(module) for _ in range(modules - 1)]
    before = state(module)
    with udp_fast.accelerate(module):
        expected = gradient(network, module, x)

    def work(m: nn.Module) -> None:
        for _ in range(8):
            with udp_fast.accelerate(m):
                out, dx = gradient(network, m, x)
            assert torch.equal(out, expected[0])
            assert torch.equal(dx, expected[1])

    in_threads(*(lambda m=m: work(m) for m in [module, *others] * (3 - modules)))
    assert state(module) == before


def test_threads_accelerate_and_train_at_once() -> None:
    module = SD15()
    before = state(module)

    def work() -> None:
        for _ in range(8):
            with udp_fast.accelerate(module):
                module.requires_grad_(True)

    in_threads(*[work] * 4)
    assert state(module) == before


# --- precision and memory --------------------------------------------------------------------------------


def errors(
    network: Network, module: nn.Module, x: Tensor, context: Callable[[], Any]
) -> tuple[list[float], list[float]]:
    """Of output and gradient against float64, before and after accelerating."""

    def run() -> list[float]:
        with context():
            return [
                float((got.double() - want).norm() / want.norm())
                for got, want in zip(gradient(network, module, x), exact, strict=True)
            ]

    exact = gradient(network, copy.deepcopy(module).double(), x.double())
    before = run()
    with udp_fast.accelerate(module):
        return before, run()


@pytest.mark.parametrize("name", ["sd15", "vae-encode", "sd3", "flux"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", ["module", "autocast"])
def test_half_precision_is_as_exact_as_it_was(name: str, dtype: torch.dtype, how: str) -> None:
    network, module, x = frozen(name, **(TWO_SIZES if name == "sd15" else {}))
    # Convolutions in these dtypes take seconds on a processor without instructions for them.
    side = {"sd15": 16, "vae-encode": 32}.get(name)
    if side is not None:
        x = x[:1, :, :side, :side]
    context: Callable[[], Any] = contextlib.nullcontext
    if how == "autocast":
        context = partial(torch.autocast, "cpu", dtype)
    else:
        module, x = module.to(dtype), x.to(dtype)
    before, after = errors(network, module, x, context)
    for theirs, ours in zip(before, after, strict=True):
        assert 0 < ours < 1.2 * theirs


def test_the_dtype_may_change_afterwards() -> None:
    network, module, x = frozen("sd15", **TWO_SIZES)
    x = x[:1, :, :16, :16]
    plain, exact = plain_and_exact(network, module, x)
    with udp_fast.accelerate(module):
        got = gradient(network, module.double(), x.double())
        for mine, double in zip(got, exact, strict=True):
            assert relative(mine, double) < 1e-12
        assert_same(gradient(network, module.float(), x), plain, exact)


@pytest.mark.parametrize("name", ["sd15", "sd21", "ddpm", "vae-decode", "sd3", "flux"])
def test_gradient_checkpointing(name: str) -> None:
    network, module, x = frozen(name)
    plain, exact = plain_and_exact(network, module, x)
    module.enable_gradient_checkpointing()
    module.train()
    with udp_fast.accelerate(module):
        assert_same(gradient(network, module, x), plain, exact)


class EveryThird(nn.Dropout):
    """Dropout whose mask depends on places, not on the order in which memory is visited."""

    def forward(self, input: Tensor) -> Tensor:
        kept = torch.arange(input.numel()).reshape(input.shape) % 3 != 0
        return input * kept if self.training else input


@pytest.mark.parametrize("name", ["sd15", "adm"])
def test_dropout_stays_where_it_was(name: str) -> None:
    network, module, x = frozen(name)
    without = gradient(network, module, x)
    for m in module.modules():
        if type(m) is nn.Dropout:
            m.__class__ = EveryThird
    module.train()
    plain, exact = plain_and_exact(network, module, x)
    assert relative(without[0], plain[0]) > 1e-2
    with udp_fast.accelerate(module):
        assert_same(gradient(network, module, x), plain, exact)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("sd15", (3, 4, 32, 32)),
        ("sd15", (1, 4, 37, 29)),
        ("vae-encode", (1, 3, 45, 51)),
        ("vae-decode", (1, 4, 13, 9)),
        ("sd3", (1, 4, 16, 12)),
    ],
)
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_shapes_and_layouts(name: str, shape: tuple[int, ...], form: torch.memory_format) -> None:
    network, module, _ = frozen(name)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(4)).contiguous(
        memory_format=form
    )
    plain, exact = plain_and_exact(network, module, x)
    with udp_fast.accelerate(module):
        assert_same(gradient(network, module, x), plain, exact)


@pytest.mark.parametrize(
    ("name", "shape"), [("vae-encode", (2, 3, 64, 64)), ("vae-decode", (2, 4, 16, 16))]
)
def test_tiles_and_slices(name: str, shape: tuple[int, ...]) -> None:
    network, module, _ = frozen(name)
    module.enable_tiling()
    module.enable_slicing()
    module.tile_sample_min_size, module.tile_latent_min_size = 32, 8
    x = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    plain, exact = plain_and_exact(network, module, x)
    with udp_fast.accelerate(module):
        assert_same(gradient(network, module, x), plain, exact)


def test_the_text_s_gradient() -> None:
    _, module, x = frozen("sd15")

    def run(m: nn.Module, dtype: torch.dtype) -> tuple[Tensor, ...]:
        text = torch.randn(2, 77, 48, generator=torch.Generator().manual_seed(1)).to(dtype)
        inputs = (x.to(dtype).clone().requires_grad_(), text.requires_grad_())
        out = m(inputs[0], torch.tensor([300, 20]), inputs[1]).sample
        return torch.autograd.grad(out.square().mean(), inputs)

    exact = run(copy.deepcopy(module).double(), torch.float64)
    with udp_fast.accelerate(module):
        for got, want in zip(run(module, torch.float32), exact, strict=True):
            assert relative(got.double(), want) < 1e-4


# --- saving ----------------------------------------------------------------------------------------------


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


def test_a_transformer_by_itself_saves_its_own_name(tmp_path: Path) -> None:
    module = Transformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=32, norm_num_groups=8
    )
    with udp_fast.accelerate(module) as done:
        assert done.replaced[""] == "Transformer2DModel"
        module.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == "Transformer2DModel"


@pytest.mark.parametrize("name", ["ddpm", "vae-encode"])
def test_nothing_is_left_to_the_reference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, module, x = frozen(name)
    plain, exact = plain_and_exact(network, module, x)
    monkeypatch.setenv("UDP_FAST_STRICT", "1")
    with udp_fast.accelerate(module):
        assert_same(gradient(network, module, x), plain, exact)


def equal_norm(old: nn.GroupNorm) -> nn.GroupNorm:
    new = nn.GroupNorm(old.num_groups, old.num_channels, old.eps)
    new.load_state_dict({"weight": old.weight.detach(), "bias": old.bias.detach()})
    return new


#: What may become of a network's last normalisation and its activation.
CHANGES: dict[str, Callable[[Any], object]] = {
    "an equal normalisation": lambda m: setattr(m, "conv_norm_out", equal_norm(m.conv_norm_out)),
    "no normalisation": lambda m: setattr(m, "conv_norm_out", nn.Identity()),
    "a wrapper": lambda m: setattr(m, "conv_norm_out", nn.Sequential(m.conv_norm_out)),
    "a parametrised one": lambda m: parametrize.register_parametrization(
        m.conv_norm_out, "weight", nn.Identity()
    ),
    "another SiLU": lambda m: setattr(m, "conv_act", nn.SiLU()),
    "another activation": lambda m: setattr(m, "conv_act", nn.GELU()),
    "a wrapped activation": lambda m: setattr(m, "conv_act", nn.Sequential(m.conv_act)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_becomes_of_the_last_normalisation_and_its_silu(change: str) -> None:
    """Ours applies the SiLU within; each then does its own part again."""
    network = NETWORKS["ddpm"]
    (module, twin), x = (network.make(), network.make()), image(network)
    CHANGES[change](twin)
    plain = gradient(network, twin, x)
    with udp_fast.accelerate(module):
        CHANGES[change](module)
        for mine, theirs in zip(gradient(network, module, x), plain, strict=True):
            assert relative(mine, theirs) < 1e-4


def padded_in_circles(conv: Any) -> None:
    conv.padding_mode = "circular"
    conv._reversed_padding_repeated_twice = [1, 1, 1, 1]


def dilated(conv: Any) -> None:
    conv.padding = conv.dilation = (2, 2)


def strided(conv: Any) -> None:
    conv.stride = (2, 2)


def of_another_forward(conv: Any) -> None:
    conv._conv_forward = lambda x, weight, bias: 3 * nn.functional.conv2d(x, weight, bias)


@pytest.mark.parametrize("change", [padded_in_circles, dilated, strided, of_another_forward])
@pytest.mark.parametrize("name", ["conv1", "conv_shortcut"])
def test_convolutions_look_at_their_settings_when_they_are_called(
    name: str, change: Callable[[nn.Module], None]
) -> None:
    """As those expect who change them for seamless textures."""
    network = NETWORKS["ddpm"]
    module = network.make().requires_grad_(False)
    conv = getattr(module.up_blocks[0].resnets[0], name)
    if name == "conv_shortcut" and change is padded_in_circles:
        conv._reversed_padding_repeated_twice = [0, 0, 0, 0]
    x = torch.randn(1, conv.in_channels, 8, 8)
    with udp_fast.accelerate(module):
        change(conv)
        mine = conv(x)
    theirs = conv(x)
    assert mine.shape == theirs.shape
    assert relative(mine, theirs) < 1e-5


def test_processors_that_were_made_anew_by_their_classes_are_undone() -> None:
    """diffusers does so where an adapter for images is loaded."""
    module = SD15()
    before = {name: type(p) for name, p in module.attn_processors.items()}
    with udp_fast.accelerate(module):
        module.set_attn_processor({n: type(p)() for n, p in module.attn_processors.items()})
    assert {name: type(p) for name, p in module.attn_processors.items()} == before


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_of_an_accelerated_network_looks_at_its_own_parts(
    duplicate: Callable[[nn.Module], Any],
) -> None:
    network = NETWORKS["ddpm"]
    (module, plain), x = (network.make(), network.make()), image(network)
    other = nn.GroupNorm(4, 32)
    with udp_fast.accelerate(module):
        twin = duplicate(module)
        before = network.run(module, x)
        assert relative(network.run(twin, x), before) < 1e-5
        plain.conv_norm_out = twin.conv_norm_out = other
        assert relative(network.run(twin, x), network.run(plain, x)) < 1e-4
        assert torch.equal(network.run(module, x), before)


def test_an_accelerated_network_that_is_dropped_is_freed() -> None:
    module = NETWORKS["ddpm"].make()
    done, alive = udp_fast.accelerate(module), weakref.ref(module)
    gc.collect()
    gc.disable()
    try:
        del module, done
        assert alive() is None
    finally:
        gc.enable()
