"""Small networks of the real architectures, image gradients through them, and their comparison."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from torch import Tensor, nn


@dataclass(frozen=True)
class Network:
    """``run(module, x)`` is the module's output for the image or latent x of this shape.

    ``make`` takes changes of the module's configuration.
    """

    make: Callable[..., nn.Module]
    shape: tuple[int, ...]
    run: Callable[[nn.Module, Tensor], Tensor]


def _seeded(cls: Any, **config: Any) -> Callable[..., nn.Module]:
    def make(**changes: Any) -> nn.Module:
        torch.manual_seed(0)
        module: nn.Module = cls(**{**config, **changes}).eval()
        with torch.no_grad():
            # A normalisation's weight is one and its bias zero at first: formulas that confuse them
            # would go unnoticed. FLUX and SD3 start with zeros in their last layers.
            for p in module.parameters():
                if p.dim() == 1:
                    p.add_(0.1 * torch.randn_like(p))
                elif p.abs().max() == 0:
                    p.normal_(std=0.05)
        return module

    return make


def _tensor(x: Tensor, *shape: int) -> Tensor:
    """Numbers all over [-1.4, 1.4], the same in every dtype, that torch.compile can trace."""
    return (1.4 * (12.9898 * torch.arange(math.prod(shape))).sin()).reshape(shape).to(x)


def _pixel(module: nn.Module, x: Tensor) -> Tensor:
    return module(x, torch.tensor([300] * x.shape[0])).sample


def _text(module: nn.Module, x: Tensor) -> Tensor:
    context = _tensor(x, x.shape[0], 77, 48)
    return module(x, torch.tensor([300] * x.shape[0]), context).sample


def _masked_text(module: nn.Module, x: Tensor) -> Tensor:
    context = _tensor(x, x.shape[0], 77, 48)
    mask = torch.ones(x.shape[0], 77, dtype=torch.bool)
    mask[:, 50:] = False
    t = torch.tensor([300] * x.shape[0])
    return module(x, t, context, encoder_attention_mask=mask).sample


def _sdxl(module: nn.Module, x: Tensor) -> Tensor:
    added = {
        "text_embeds": _tensor(x, x.shape[0], 32),
        "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * x.shape[0]).to(x),
    }
    context = _tensor(x, x.shape[0], 77, 48)
    t = torch.tensor([300] * x.shape[0])
    return module(x, t, context, added_cond_kwargs=added).sample


def _sd3(module: nn.Module, x: Tensor) -> Tensor:
    return module(
        hidden_states=x,
        encoder_hidden_states=_tensor(x, x.shape[0], 20, 32),
        pooled_projections=_tensor(x, x.shape[0], 24),
        timestep=torch.tensor([300] * x.shape[0]),
    ).sample


def _flux(module: nn.Module, x: Tensor) -> Tensor:
    return module(
        hidden_states=x,
        encoder_hidden_states=_tensor(x, x.shape[0], 20, 32),
        pooled_projections=_tensor(x, x.shape[0], 24),
        timestep=torch.tensor([0.3] * x.shape[0]).to(x),
        img_ids=torch.cartesian_prod(torch.zeros(1), torch.arange(8.0), torch.arange(8.0)).to(x),
        txt_ids=torch.zeros(20, 3).to(x),
        guidance=torch.ones(x.shape[0]).to(x),
    ).sample


_BLOCKS = {
    "block_out_channels": (32, 64, 96, 96),
    "layers_per_block": 1,  # SDXL's and DDPM's below have two
    "cross_attention_dim": 48,
    "sample_size": 32,
}
_VAE = _seeded(
    AutoencoderKL,
    block_out_channels=(32, 64, 64),
    down_block_types=("DownEncoderBlock2D",) * 3,
    up_block_types=("UpDecoderBlock2D",) * 3,
    layers_per_block=1,
    latent_channels=4,
)

#: Of a text-conditioned UNet: one block that attends and one that does not, a way down and up.
TWO_SIZES: dict[str, Any] = {
    "layers_per_block": 1,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
#: Stable Diffusion 1.5's UNet, narrower and shallower.
SD15 = _seeded(UNet2DConditionModel, attention_head_dim=4, **_BLOCKS)

NETWORKS = {
    "ddpm": Network(
        _seeded(
            UNet2DModel,
            sample_size=32,
            block_out_channels=(32, 64, 64),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=8,
        ),
        (2, 3, 16, 16),
        _pixel,
    ),
    "adm": Network(  # scale and shift, blocks that resample, another output scale
        _seeded(
            UNet2DModel,
            sample_size=32,
            block_out_channels=(32, 64),
            down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
            attention_head_dim=16,
            resnet_time_scale_shift="scale_shift",
            mid_block_scale_factor=1.5,
        ),
        (1, 3, 32, 32),
        _pixel,
    ),
    "sd15": Network(SD15, (2, 4, 16, 16), _text),
    "sd15-masked": Network(SD15, (2, 4, 16, 16), _masked_text),
    "sd15-odd-size": Network(SD15, (1, 4, 40, 24), _text),
    "sd21": Network(
        _seeded(
            UNet2DConditionModel,
            attention_head_dim=(2, 4, 6, 6),
            use_linear_projection=True,
            upcast_attention=True,
            **_BLOCKS,
        ),
        (1, 4, 16, 16),
        _text,
    ),
    "sdxl": Network(
        _seeded(
            UNet2DConditionModel,
            block_out_channels=(32, 64, 96),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4, 6),
            transformer_layers_per_block=(1, 2, 3),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 32,
            cross_attention_dim=48,
            sample_size=32,
        ),
        (1, 4, 16, 16),
        _sdxl,
    ),
    "vae-encode": Network(_VAE, (2, 3, 64, 64), lambda m, x: m.encode(x).latent_dist.mean),
    "vae-decode": Network(_VAE, (1, 4, 16, 16), lambda m, x: m.decode(x).sample),
    "sd3": Network(
        _seeded(
            SD3Transformer2DModel,
            sample_size=16,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=4,
            joint_attention_dim=32,
            caption_projection_dim=64,
            pooled_projection_dim=24,
            pos_embed_max_size=16,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        ),
        (1, 4, 16, 16),
        _sd3,
    ),
    "flux": Network(
        _seeded(
            FluxTransformer2DModel,
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=4,
            joint_attention_dim=32,
            pooled_projection_dim=24,
            axes_dims_rope=(4, 6, 6),
            guidance_embeds=True,
        ),
        (1, 64, 16),
        _flux,
    ),
}


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


def plain_and_exact(
    network: Network, module: nn.Module, x: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The module's results as it is, and in float64."""
    return gradient(network, module, x), gradient(
        network, copy.deepcopy(module).double(), x.double()
    )


def state(module: nn.Module) -> dict[str, Any]:
    """What must be as before once all is undone."""
    return {
        "modules": {name: id(m) for name, m in module.named_modules()},
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
