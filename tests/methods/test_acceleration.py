"""The ascent runs a network of diffusers' on our ops, and gives it back as it was."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

from udp_fast.compat.diffusers import UDPConv3x3, UDPResnetBlock2D
from udp_fast.diffusion import load_denoiser
from udp_fast.evaluate.denoising import tile_losses
from udp_fast.methods import Settings, alternation, protect
from udp_fast.methods.acceleration import accelerated


def kinds(module):
    return [type(part) for part in module.modules()]


def test_layers_are_ours_during_the_ascent_alone(make_items):
    denoiser = load_denoiser()
    before, seen = kinds(denoiser.module), {"surrogate": set(), "perturb": set()}

    def watch(progress):
        seen[progress.phase].add(tuple(kinds(denoiser.module)))

    settings = Settings.for_method("eudp", rounds=2, steps=1, surrogate_steps=1)
    protect(make_items(1), method="eudp", settings=settings, denoiser=denoiser, on_progress=watch)
    assert seen["surrogate"] == {tuple(before)}
    assert len(seen["perturb"]) == 1
    (during,) = seen["perturb"]
    assert {UDPConv3x3, UDPResnetBlock2D} <= set(during)
    assert kinds(denoiser.module) == before


def test_the_perturbation_is_that_of_the_network_as_it_is(make_items, monkeypatch):
    settings = Settings.for_method("eudp", rounds=1, steps=1, surrogate_steps=1, random_start=False)
    deltas = []
    for context in (accelerated, lambda module: contextlib.nullcontext()):
        monkeypatch.setattr(alternation, "accelerated", context)
        items = make_items(1, 2, size=(96, 80))
        protect(items, method="eudp", settings=settings, denoiser=load_denoiser())
        deltas.append(torch.stack([item.delta for item in items]))
    assert deltas[0].any()
    assert (deltas[0].sign() == deltas[1].sign()).float().mean() > 0.999


def test_losses_are_measured_on_our_ops(make_items):
    denoiser, seen = load_denoiser(), []
    before = kinds(denoiser.module)
    denoiser.module.register_forward_pre_hook(lambda module, _: seen.append(kinds(module)))
    tile_losses(make_items(1)[0].original, denoiser, seed=0, image_id=1, draws=1)
    assert seen
    assert all(UDPConv3x3 in during for during in seen)
    assert kinds(denoiser.module) == before


@pytest.mark.parametrize("pinned", ["cpu", "reference"])
def test_a_pinned_backend_serves_what_it_can(pinned, make_items, monkeypatch):
    """Tiles of 16 pixels are 2 x 2 ones at the network's lowest level, of which no kernel is ours."""
    monkeypatch.setenv("UDP_FAST_BACKEND", pinned)
    settings = Settings.for_method("eudp", rounds=1, steps=1, surrogate_steps=0, tile=16, overlap=4)
    (item,) = make_items(1, size=(16, 16))
    protect([item], method="eudp", settings=settings, denoiser=load_denoiser())
    assert item.delta.any()


def test_another_network_stays_as_it_is():
    network = nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 4, 3, padding=1))
    before = kinds(network)
    with accelerated(network):
        assert kinds(network) == before


def test_an_error_gives_the_network_back():
    module = load_denoiser().module
    before = kinds(module)

    def interrupted():
        with accelerated(module):
            assert kinds(module) != before
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert kinds(module) == before
