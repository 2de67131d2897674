"""diffusers' networks on our ops, for gradients with respect to the image.

`accelerate` gives the modules it knows another class, derived from their own, and the attention
modules another processor. Nothing is wrapped and no parameter moves: names, state dict, hooks and
adapters stay what they were, and undoing it is giving the classes back.

What the classes do for an image's gradient through a network whose weights are frozen:

- a normalisation and its SiLU are one op, which saves its input alone;
- 3×3 convolutions save nothing and, on the CPU, take a quarter of the multiplications (on a GPU they
  stay torch's, that is cuDNN's); 1×1 convolutions are on the CPU matrix products, which save nothing
  either, and on a GPU what they were;
- a gated feed-forward saves its input alone;
- attention computes the gradients that are wanted: for cross-attention to a text that of the
  queries alone, for which nothing but the queries is saved;
- on the CPU the activations are channels_last from the first convolution on, so that tokens and
  pixels are two views of one tensor.

A layer whose weights require a gradient runs as it did.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    JointAttnProcessor2_0,
)
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from ..ops import attention, conv3x3, geglu, group_norm_silu

try:  # FLUX's attention has a module of its own from diffusers 0.35 on
    from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor
except ImportError:
    FluxAttention = FluxAttnProcessor = None

__all__ = [
    "Acceleration",
    "UDPAttnProcessor",
    "UDPFluxAttnProcessor",
    "UDPJointAttnProcessor",
    "accelerate",
]


# --- layers --------------------------------------------------------------------------------------


def _trains(conv: nn.Conv2d) -> bool:
    if not torch.is_grad_enabled():
        return False
    return conv.weight.requires_grad or (conv.bias is not None and conv.bias.requires_grad)


def _interleaved(x: Tensor) -> Tensor:
    """On the CPU with the channels side by side, where the kernels want them."""
    if x.is_cpu and not (x.dim() == 4 and x.stride(1) == 1):
        return x.contiguous(memory_format=torch.channels_last)
    return x


class UDPConv3x3(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        if _trains(self):
            return super().forward(input)
        return conv3x3(_interleaved(input), self.weight, self.bias)


class UDPConv1x1(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        if _trains(self) or not input.is_cpu:
            return super().forward(input)
        tokens = _interleaved(input).permute(0, 2, 3, 1)
        return F.linear(tokens, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class UDPGroupNorm(nn.GroupNorm):
    act: str | None = None

    def forward(self, input: Tensor) -> Tensor:
        return group_norm_silu(
            input,
            self.weight,
            self.bias,
            num_groups=self.num_groups,
            eps=self.eps,
            act=self.act,
        )


class UDPGroupNormSiLU(UDPGroupNorm):
    """With the activation that its parent applies next: that one is skipped or does nothing."""

    act = "silu"


class UDPFoldedSiLU(nn.SiLU):
    """A SiLU that the normalisation before it has applied already."""

    def forward(self, input: Tensor) -> Tensor:
        return input


class UDPGEGLU(GEGLU):  # type: ignore[misc]
    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        hidden_states = self.proj(hidden_states)
        if hidden_states.is_cpu and hidden_states.dtype != torch.float32:
            values, gates = hidden_states.chunk(2, dim=-1)  # for which there is no kernel of ours
            return values * self.gelu(gates)
        return geglu(hidden_states)


class UDPResnetBlock2D(ResnetBlock2D):  # type: ignore[misc]
    """norm1 is a `UDPGroupNormSiLU`, and so is norm2 unless a scale and a shift come in between."""

    def forward(
        self, input_tensor: Tensor, temb: Tensor | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        hidden = self.norm1(input_tensor)
        resample = self.upsample if self.upsample is not None else self.downsample
        if resample is not None:
            input_tensor, hidden = resample(input_tensor), resample(hidden)
        hidden = self.conv1(hidden)
        if self.time_emb_proj is not None:
            if temb is None:
                raise ValueError("temb: got None, expected the embedding of the timestep")
            temb = self.time_emb_proj(temb if self.skip_time_act else self.nonlinearity(temb))
            temb = temb[:, :, None, None]
        if self.time_embedding_norm == "scale_shift":
            if temb is None:
                raise ValueError("temb: got None, expected a scale and a shift")
            scale, shift = temb.chunk(2, dim=1)
            hidden = self.nonlinearity(self.norm2(hidden) * (1 + scale) + shift)
        else:
            hidden = self.norm2(hidden if temb is None else hidden + temb)
        hidden = self.conv2(self.dropout(hidden))
        if self.conv_shortcut is not None:
            input_tensor = self.conv_shortcut(input_tensor)
        output = input_tensor + hidden
        return output if self.output_scale_factor == 1.0 else output / self.output_scale_factor


class UDPTransformer2DModel(Transformer2DModel):  # type: ignore[misc]
    """Tokens become pixels again without a copy: they are the channels_last image already."""

    def _get_output_for_continuous_inputs(
        self,
        hidden_states: Tensor,
        residual: Tensor,
        batch_size: int,
        height: int,
        width: int,
        inner_dim: int,
    ) -> Tensor:
        if not hidden_states.is_cpu:
            output = super()._get_output_for_continuous_inputs(
                hidden_states, residual, batch_size, height, width, inner_dim
            )
            assert isinstance(output, Tensor)
            return output
        if self.use_linear_projection:
            hidden_states = self.proj_out(hidden_states)
        hidden_states = hidden_states.unflatten(1, (height, width)).permute(0, 3, 1, 2)
        if not self.use_linear_projection:
            hidden_states = self.proj_out(hidden_states)
        return hidden_states + residual


# --- attention -----------------------------------------------------------------------------------


def _heads(x: Tensor, heads: int) -> Tensor:
    """[B, N, H * D] as [B, H, N, D], a view."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _merged(x: Tensor) -> Tensor:
    """[B, H, N, D] as [B, N, H * D]; no copy where `attention` returned the order of `_heads`."""
    return x.transpose(1, 2).flatten(2)


class UDPAttnProcessor:
    """What `AttnProcessor2_0` does, on `udp_fast.ops.attention`, with the module's own scale.

    Layers are called, never read: an adapter around to_q, to_k, to_v or to_out keeps its effect.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        residual = hidden_states
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        size = None
        if hidden_states.dim() == 4:
            size = hidden_states.shape[2:]
            if attn.group_norm is not None:
                hidden_states = attn.group_norm(hidden_states)
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        elif attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        if encoder_hidden_states is None:
            encoder_hidden_states = hidden_states
        elif attn.norm_cross is not None:
            encoder_hidden_states = attn.norm_encoder_hidden_states(encoder_hidden_states)

        q = _heads(attn.to_q(hidden_states), attn.heads)
        k = _heads(attn.to_k(encoder_hidden_states), attn.heads)
        v = _heads(attn.to_v(encoder_hidden_states), attn.heads)
        if attn.norm_q is not None:
            q = attn.norm_q(q)
        if attn.norm_k is not None:
            k = attn.norm_k(k)
        if attention_mask is not None:
            batch, keys = encoder_hidden_states.shape[:2]
            attention_mask = attn.prepare_attention_mask(attention_mask, keys, batch)
            attention_mask = attention_mask.unflatten(0, (batch, attn.heads))
        out = _merged(attention(q, k, v, scale=attn.scale, bias=attention_mask))

        out = attn.to_out[1](attn.to_out[0](out))
        if size is not None:
            out = out.transpose(1, 2).unflatten(2, size)
        if attn.residual_connection:
            out = out + residual
        factor = attn.rescale_output_factor
        return out if factor == 1.0 else out / factor


class UDPJointAttnProcessor:
    """What `JointAttnProcessor2_0` does: SD3's attention over an image and a text side by side."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        tokens = hidden_states.shape[1]
        q = _heads(attn.to_q(hidden_states), attn.heads)
        k = _heads(attn.to_k(hidden_states), attn.heads)
        v = _heads(attn.to_v(hidden_states), attn.heads)
        if attn.norm_q is not None:
            q = attn.norm_q(q)
        if attn.norm_k is not None:
            k = attn.norm_k(k)
        if encoder_hidden_states is not None:
            text_q = _heads(attn.add_q_proj(encoder_hidden_states), attn.heads)
            text_k = _heads(attn.add_k_proj(encoder_hidden_states), attn.heads)
            text_v = _heads(attn.add_v_proj(encoder_hidden_states), attn.heads)
            if attn.norm_added_q is not None:
                text_q = attn.norm_added_q(text_q)
            if attn.norm_added_k is not None:
                text_k = attn.norm_added_k(text_k)
            q = torch.cat([q, text_q], dim=2)
            k = torch.cat([k, text_k], dim=2)
            v = torch.cat([v, text_v], dim=2)
        out = _merged(attention(q, k, v))

        image = attn.to_out[1](attn.to_out[0](out[:, :tokens]))
        if encoder_hidden_states is None:
            assert isinstance(image, Tensor)
            return image
        text = out[:, tokens:]
        return image, text if attn.context_pre_only else attn.to_add_out(text)


class UDPFluxAttnProcessor:
    """What `FluxAttnProcessor` does: FLUX's attention, with rotary embeddings."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (-1, attn.head_dim))

        q = attn.norm_q(split(attn.to_q(hidden_states)))
        k = attn.norm_k(split(attn.to_k(hidden_states)))
        v = split(attn.to_v(hidden_states))
        if attn.added_kv_proj_dim is not None:
            text_q = attn.norm_added_q(split(attn.add_q_proj(encoder_hidden_states)))
            text_k = attn.norm_added_k(split(attn.add_k_proj(encoder_hidden_states)))
            text_v = split(attn.add_v_proj(encoder_hidden_states))
            q = torch.cat([text_q, q], dim=1)
            k = torch.cat([text_k, k], dim=1)
            v = torch.cat([text_v, v], dim=1)
        if image_rotary_emb is not None:
            q = apply_rotary_emb(q, image_rotary_emb, sequence_dim=1)
            k = apply_rotary_emb(k, image_rotary_emb, sequence_dim=1)
        out = attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), bias=attention_mask
        )
        out = _merged(out)
        if encoder_hidden_states is None:
            return out
        tokens = encoder_hidden_states.shape[1]
        image = attn.to_out[1](attn.to_out[0](out[:, tokens:].contiguous()))
        return image, attn.to_add_out(out[:, :tokens].contiguous())


_OUR_PROCESSORS = (UDPAttnProcessor, UDPJointAttnProcessor, UDPFluxAttnProcessor)


def _processor_for(attn: Any) -> Any:
    """Our processor for this module, or why there is none (a string)."""
    theirs = attn.processor
    if getattr(attn, "fused_projections", False):
        return "its projections are fused"
    if FluxAttention is not None and type(attn) is FluxAttention:
        if type(theirs) is not FluxAttnProcessor:
            return f"{type(theirs).__name__} is not known"
        if theirs._attention_backend is not None or theirs._parallel_config is not None:
            return "an attention backend was chosen for it"
        return UDPFluxAttnProcessor()
    if type(attn) is not Attention:
        return f"{type(attn).__name__} is not known"
    if type(theirs) is JointAttnProcessor2_0:
        return UDPJointAttnProcessor()
    if type(theirs) is AttnProcessor2_0:
        # Its scale is always that of the heads' size.
        size = attn.inner_kv_dim // attn.heads
        if attn.inner_kv_dim != attn.inner_dim or abs(attn.scale * size**0.5 - 1.0) > 1e-6:
            return "its scale or number of key heads is not the usual one"
        return UDPAttnProcessor()
    if type(theirs) is AttnProcessor:
        if attn.inner_kv_dim != attn.inner_dim or attn.upcast_attention or attn.upcast_softmax:
            return "it computes in another precision"
        return UDPAttnProcessor()
    return f"{type(theirs).__name__} is not known"


# --- accelerate ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Left:
    """A module that stays as it was, and why."""

    name: str
    kind: str
    reason: str


@dataclass
class Acceleration:
    """What `accelerate` did. Prints as two lines; a context manager that undoes it on leaving.

    Attributes:
        replaced: the names of the modules that run on our ops, and their (former) class.
        left: the modules of a kind that we have ops for which stay untouched, each with a reason.
    """

    replaced: dict[str, str] = field(default_factory=dict)
    left: list[Left] = field(default_factory=list)
    _undo: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def undo(self) -> None:
        """Takes back what this call changed: classes, processors, requires_grad. Safe to repeat."""
        with _lock:
            while self._undo:
                self._undo.pop()()

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()

    def __str__(self) -> str:
        def count(items: Counter[str]) -> str:
            return ", ".join(f"{n} {what}" for what, n in items.items()) or "nothing"

        left = Counter(f"{item.kind} ({item.reason})" for item in self.left)
        return f"accelerated: {count(Counter(self.replaced.values()))}\nleft as is: {count(left)}"


#: One `accelerate` or `undo` at a time; the modules' forward methods share no state.
_lock = threading.Lock()


def _named_modules(target: Any) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a network or, under their component's name, of a pipeline."""
    if isinstance(target, nn.Module):
        yield from target.named_modules()
        return
    if not isinstance(target, diffusers.DiffusionPipeline):
        raise TypeError(
            f"accelerate: target: got {type(target).__name__}, expected a torch module or a"
            " diffusers pipeline"
        )
    for name, component in target.components.items():
        if isinstance(component, nn.Module):
            yield from component.named_modules(prefix=name)


def _conv_class(conv: nn.Conv2d) -> type[nn.Module] | str:
    if conv.padding_mode != "zeros" or conv.groups != 1 or conv.dilation != (1, 1):
        return "padded, grouped or dilated"
    if conv.stride != (1, 1):
        return "strided"
    if conv.kernel_size == (3, 3) and conv.padding in ((1, 1), "same"):
        return UDPConv3x3
    if conv.kernel_size == (1, 1) and conv.padding in ((0, 0), "same", "valid"):
        return UDPConv1x1
    return f"{conv.kernel_size[0]}×{conv.kernel_size[1]} taps"


def _classes(module: Any) -> dict[nn.Module, type[nn.Module]] | str | None:
    """The classes that a module and its parts get, or why it stays, or None where there is nothing
    to say about it."""
    kind = type(module)
    if kind is ResnetBlock2D:
        if type(module.nonlinearity) is not nn.SiLU:
            return f"its activation is {type(module.nonlinearity).__name__}"
        if {type(module.norm1), type(module.norm2)} != {nn.GroupNorm}:
            return "its normalisations are not known"
        scaled = module.time_embedding_norm == "scale_shift"
        return {
            module: UDPResnetBlock2D,
            module.norm1: UDPGroupNormSiLU,
            module.norm2: UDPGroupNorm if scaled else UDPGroupNormSiLU,
        }
    if kind in (UNet2DModel, UNet2DConditionModel, Encoder, Decoder):
        norm, act = module.conv_norm_out, module.conv_act
        if type(norm) is nn.GroupNorm and type(act) is nn.SiLU:
            return {norm: UDPGroupNormSiLU, act: UDPFoldedSiLU}
        return None
    if kind is nn.Conv2d:
        found = _conv_class(module)
        return found if isinstance(found, str) else {module: found}
    if kind is GEGLU:
        return {module: UDPGEGLU}
    if kind is Transformer2DModel and module.is_input_continuous:
        return {module: UDPTransformer2DModel}
    if kind is nn.GroupNorm:
        return {module: UDPGroupNorm}
    if isinstance(module, (ResnetBlock2D, nn.GroupNorm, nn.Conv2d, GEGLU)):
        return "a derived class"
    return None


_OURS = (
    UDPConv1x1,
    UDPConv3x3,
    UDPFoldedSiLU,
    UDPGEGLU,
    UDPGroupNorm,
    UDPGroupNormSiLU,
    UDPResnetBlock2D,
    UDPTransformer2DModel,
)


def _theirs(module: nn.Module) -> type[nn.Module]:
    """The class that a module of ours had."""
    return next(c for c in type(module).__mro__ if c not in _OURS)


def accelerate(target: Any, *, freeze: bool = True) -> Acceleration:
    """Runs the known parts of a diffusers network on our ops, until the result's ``undo()``.

    Made for image gradients (protection), where weights are constants. Works on UNet2DModel,
    UNet2DConditionModel, AutoencoderKL, SD3's and FLUX's transformers, any torch module with their
    blocks inside, and pipelines of them. Outputs and image gradients stay what they were up to
    rounding; the state dict, adapters and hooks stay exactly what they were. Call it before
    torch.compile.

        with udp_fast.accelerate(unet) as done:
            print(done)         # what was replaced, and what was left and why
            ...                 # gradients with respect to the latents

    Args:
        target: a torch module, or a diffusers pipeline (each of its modules).
        freeze: also ``requires_grad_(False)`` on every parameter, undone with the rest. With False, a
            layer whose weights require a gradient runs as it did.

    Returns an `Acceleration`. A second call changes nothing more, and its undo takes nothing back.

    Raises:
        TypeError: ``target`` is neither.
    """
    report = Acceleration()
    with _lock:
        named = list(_named_modules(target))
        for name, module in named:
            if type(module) in _OURS:
                report.replaced[name] = _theirs(module).__name__
            elif "forward" in module.__dict__:
                if _classes(module) is not None or hasattr(module, "set_processor"):
                    report.left.append(
                        Left(name, type(module).__name__, "another library overrides its forward")
                    )
            elif hasattr(module, "set_processor") and hasattr(module, "processor"):
                _set_processor(report, name, module)
            else:
                _set_classes(report, name, module)
        if freeze:
            for _, module in named:
                for parameter in module.parameters(recurse=False):
                    if parameter.requires_grad:
                        parameter.requires_grad_(False)
                        report._undo.append(lambda p=parameter: p.requires_grad_(True))  # type: ignore[misc]
    return report


def _set_processor(report: Acceleration, name: str, attn: Any) -> None:
    theirs = attn.processor
    if isinstance(theirs, _OUR_PROCESSORS):
        report.replaced[name] = type(attn).__name__
        return
    ours = _processor_for(attn)
    if isinstance(ours, str):
        report.left.append(Left(name, type(attn).__name__, ours))
        return
    attn.set_processor(ours)
    report.replaced[name] = type(attn).__name__

    def undo() -> None:
        if attn.processor is ours:  # else somebody set another one since
            attn.set_processor(theirs)

    report._undo.append(undo)


def _set_classes(report: Acceleration, name: str, module: nn.Module) -> None:
    found = _classes(module)
    if found is None:
        return
    if isinstance(found, str):
        report.left.append(Left(name, type(module).__name__, found))
        return
    if any("forward" in part.__dict__ for part in found):
        report.left.append(
            Left(name, type(module).__name__, "another library overrides the forward of a part")
        )
        return
    if module in found:
        report.replaced[name] = type(module).__name__
    for part, ours in found.items():
        theirs = type(part)
        part.__class__ = ours

        def undo(part: nn.Module = part, theirs: Any = theirs, ours: Any = ours) -> None:
            if type(part) is ours:
                part.__class__ = theirs

        report._undo.append(undo)
