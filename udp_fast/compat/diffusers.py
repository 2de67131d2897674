"""diffusers' networks on our ops, for gradients with respect to the image.

`accelerate` gives the modules it knows another class, derived from their own, and the attention
modules another processor. Nothing is wrapped and no parameter moves: names, state dict, hooks and
adapters stay what they were, and undoing it is giving the classes back.

A class's forward asks at each call what it has before it: whoever later wraps a layer, replaces it,
hooks on to it or keeps its forward method beyond the undoing gets what the layer means.

What the classes do for an image's gradient through a network whose weights are frozen:

- a normalisation and its SiLU are one op, which saves its input alone;
- convolutions save nothing; 3×3 ones take a quarter of the multiplications, on the CPU (on a GPU they
  stay torch's, that is cuDNN's);
- a gated feed-forward saves its input alone;
- attention computes the gradients that are wanted: for cross-attention to a text that of the
  queries alone, for which nothing but the queries is saved;
- on the CPU the activations are channels_last from the first convolution on, so that tokens and
  pixels are two views of one tensor.

A layer whose weights require a gradient computes that, too.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any
from weakref import WeakSet, WeakValueDictionary, ref

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

from ..backends import dispatch
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


def _is_interleaved(x: Tensor) -> bool:
    return x.dim() == 4 and x.stride(1) == 1


def _interleaved(x: Tensor) -> Tensor:
    """With the channels side by side, where there are kernels that want them so."""
    if x.is_cpu and x.dtype == torch.float32 and not _is_interleaved(x):
        return x.contiguous(memory_format=torch.channels_last)
    return x


def _autocast(*tensors: Any) -> tuple[Any, ...]:
    """As autocast casts for torch's own functions; of our ops it knows nothing."""
    device = tensors[0].device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x if x is None or x.dtype == torch.float64 else x.to(dtype) for x in tensors)


def _is_usual(conv: nn.Conv2d) -> bool:
    """Pads with zeros, as many as it says: whoever wants seamless textures changes that later on."""
    return (
        conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and "_conv_forward" not in conv.__dict__
    )


#: Stride, padding, dilation and groups of a 3×3 convolution that leaves the size as it is.
_ONE_TO_ONE = ((1, 1), (1, 1), (1, 1), 1)


class _ByConstants(torch.autograd.Function):
    """torch's convolution by weights that are constants, whose input is then nothing to keep."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.settings, ctx.shape, ctx.interleaved = settings, x.shape, _is_interleaved(x)
        # For interleaved channels torch reorders all the weights in every call, on the CPU: in a deep
        # and narrow layer that takes longer than reordering the pixels there and back.
        ctx.deep = x.is_cpu and weight[0, 0].numel() > 1 and weight.numel() > 2 * x.numel()
        if not (ctx.deep and ctx.interleaved):
            return F.conv2d(x, weight, bias, *settings)
        y = F.conv2d(x.contiguous(), weight, bias, *settings)
        return y.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.settings
        form = torch.channels_last if ctx.interleaved and not ctx.deep else torch.contiguous_format
        # Of x the shape is read, and the memory format.
        x = torch.empty(ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=form)
        dx, _, _ = torch.ops.aten.convolution_backward(
            *(grad.contiguous() if ctx.deep else grad, x, weight, None),
            *(stride, padding, dilation, False, (0, 0), groups, (True, False, False)),
        )
        if ctx.deep and ctx.interleaved:
            dx = dx.contiguous(memory_format=torch.channels_last)
        return dx, *[None] * 6


class UDPConv(nn.Conv2d):
    """torch's own kernels, of which nothing is kept for the backward."""

    def forward(self, input: Tensor) -> Tensor:
        if _trains(self) or input.dim() != 4 or not _is_usual(self):
            return nn.Conv2d.forward(self, input)
        x, weight, bias = _autocast(input, self.weight, self.bias)
        y = _ByConstants.apply(
            *(_interleaved(x), weight, bias),
            *(self.stride, self.padding, self.dilation, self.groups),
        )
        assert isinstance(y, Tensor)
        return y


class UDPConv3x3(UDPConv):
    """Our kernel where there is one: on the CPU, in float32."""

    def forward(self, input: Tensor) -> Tensor:
        if (
            not input.is_cpu
            or input.dtype != torch.float32
            or torch.is_autocast_enabled("cpu")
            or input.dim() != 4
            or _trains(self)
            or not _is_usual(self)
            or (self.stride, self.padding, self.dilation, self.groups) != _ONE_TO_ONE
        ):
            return UDPConv.forward(self, input)
        try:
            return conv3x3(_interleaved(input), self.weight, self.bias)
        except dispatch.BackendError:  # a backend is pinned that has no kernel for it
            return UDPConv.forward(self, input)


def _normalised(norm: nn.GroupNorm, x: Tensor, act: str | None) -> Tensor:
    return group_norm_silu(
        x, norm.weight, norm.bias, num_groups=norm.num_groups, eps=norm.eps, act=act
    )


class UDPGroupNorm(nn.GroupNorm):
    """Of channels side by side, which torch's own would reorder or walk with long strides. Otherwise
    there is nothing to gain: without an activation both keep the same."""

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() < 3 or input.stride(1) != 1:
            return nn.GroupNorm.forward(self, input)
        return _normalised(self, input, None)


class _Network:
    """A network, for two of its parts: not kept alive by them, and copied or pickled with them."""

    def __init__(self, network: nn.Module | None) -> None:
        self._network = ref(network) if network is not None else lambda: None

    def has_folded(self, part: nn.Module) -> bool:
        """Whether its last normalisation and SiLU are ours and in their places, the part among them:
        either may be wrapped, replaced or parametrised meanwhile."""
        network = self._network()
        if network is None:
            return False
        norm, act = network.conv_norm_out, network.conv_act
        ours = type(norm) is UDPGroupNormSiLU and type(act) is UDPFoldedSiLU
        return ours and (part is norm or part is act)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Network:
        network = self._network()
        return _Network(memo.get(id(network), network))

    def __reduce__(self) -> tuple[type, tuple[nn.Module | None]]:
        return _Network, (self._network(),)


class UDPGroupNormSiLU(UDPGroupNorm):
    """With the SiLU that its network calls next, as long as that one is a `UDPFoldedSiLU`."""

    def forward(self, input: Tensor) -> Tensor:
        network = getattr(self, "_network", None)  # None, once this is undone
        is_last = network is not None and network.has_folded(self)
        return _normalised(self, input, "silu" if is_last else None)


class UDPFoldedSiLU(nn.SiLU):
    """A SiLU that the normalisation before it has applied already, as long as that is ours."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = _Network(network)

    def forward(self, input: Tensor) -> Tensor:
        return input if self._network.has_folded(self) else F.silu(input)


def _is_overridden(module: nn.Module) -> bool:
    """Whether another library put a forward of its own over the class's, as offloading does."""
    return "forward" in module.__dict__


def _is_watched(module: nn.Module) -> bool:
    """Whether a call of the module does more than its forward."""
    return bool(
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
        or _is_overridden(module)
    )


def _norm_silu(norm: nn.Module, act: nn.Module, x: Tensor) -> Tensor:
    """act(norm(x)), in one op where both are what they seem."""
    if (
        type(norm) in (nn.GroupNorm, UDPGroupNorm)
        and type(act) is nn.SiLU
        and not _is_watched(norm)
        and not _is_watched(act)
    ):
        assert isinstance(norm, nn.GroupNorm)
        return _normalised(norm, x, "silu")
    result = act(norm(x))
    assert isinstance(result, Tensor)
    return result


class UDPGEGLU(GEGLU):  # type: ignore[misc]
    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        hidden_states = self.proj(hidden_states)
        if hidden_states.is_cpu and hidden_states.dtype != torch.float32:
            values, gates = hidden_states.chunk(2, dim=-1)  # for which there is no kernel of ours
            return values * self.gelu(gates)
        return geglu(hidden_states)


class UDPResnetBlock2D(ResnetBlock2D):  # type: ignore[misc]
    """Each normalisation and its SiLU are one op, unless a scale and a shift come in between."""

    def forward(
        self, input_tensor: Tensor, temb: Tensor | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        hidden = _norm_silu(self.norm1, self.nonlinearity, input_tensor)
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
            if temb is not None and self.time_embedding_norm == "default":
                hidden = hidden + temb
            hidden = _norm_silu(self.norm2, self.nonlinearity, hidden)
        hidden = self.conv2(self.dropout(hidden))
        if self.conv_shortcut is not None:
            input_tensor = self.conv_shortcut(input_tensor)
        output = input_tensor + hidden
        return output if self.output_scale_factor == 1.0 else output / self.output_scale_factor


class UDPTransformer2DModel(Transformer2DModel):  # type: ignore[misc]
    """Where pixels have their channels side by side, tokens are pixels already, without a copy."""

    def _get_output_for_continuous_inputs(
        self,
        hidden_states: Tensor,
        residual: Tensor,
        batch_size: int,
        height: int,
        width: int,
        inner_dim: int,
    ) -> Tensor:
        if not _is_interleaved(residual):
            output = Transformer2DModel._get_output_for_continuous_inputs(
                self, hidden_states, residual, batch_size, height, width, inner_dim
            )
            assert isinstance(output, Tensor)
            return output
        if self.use_linear_projection:
            hidden_states = self.proj_out(hidden_states)
        hidden_states = hidden_states.unflatten(1, (height, width)).permute(0, 3, 1, 2)
        if not self.use_linear_projection:
            hidden_states = self.proj_out(hidden_states)
        return hidden_states + residual


#: One that stands alone writes the name of its class into its configuration, for loading.
UDPTransformer2DModel.__name__ = Transformer2DModel.__name__


# --- attention -----------------------------------------------------------------------------------


def _heads(x: Tensor, heads: int) -> Tensor:
    """[B, N, H * D] as [B, H, N, D], a view."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _merged(x: Tensor) -> Tensor:
    """[B, H, N, D] as [B, N, H * D]; no copy where `attention` returned the order of `_heads`."""
    return x.transpose(1, 2).flatten(2)


def _attend(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """Attention of [B, H, N, D] queries, as [B, N, H * D]."""
    q, k, v = _autocast(q, k, v)
    return _merged(attention(q, k, v, **options))


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
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
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
            attention_mask = attention_mask.reshape(batch, attn.heads, -1, keys)
        out = _attend(q, k, v, scale=attn.scale, bias=attention_mask)

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
        out = _attend(q, k, v)

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
        out = _attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), bias=attention_mask)
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
        chosen = (
            getattr(theirs, name, None) for name in ("_attention_backend", "_parallel_config")
        )
        if any(setting is not None for setting in chosen):
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
        if attn.norm_q is not None or attn.norm_k is not None:
            return "its processor leaves out its norm_q and norm_k"
        return UDPAttnProcessor()
    return f"{type(theirs).__name__} is not known"


# --- accelerate ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Left:
    """A module that stays as it was, and why."""

    name: str
    kind: str
    reason: str


@dataclass(eq=False)
class _Change:
    """Something done to one object or to a pair; the last acceleration that lets go takes it back.

    Where somebody has overridden a change, the next acceleration makes another of the same object.
    Whoever holds that one holds those under it as well: none is taken back beneath it.

    Attributes:
        take_back: leaves a class or processor that was set since, and may be repeated.
        under: the changes of the same objects that were held when this one was made, oldest first.
    """

    keys: tuple[_Key, ...]
    take_back: Callable[[], object]
    under: tuple[_Change, ...]
    holders: int = 0

    def forget(self) -> None:
        for key in self.keys:
            if _changes.get(key) is self:
                del _changes[key]
                below = (c for c in reversed(self.under) if key in c.keys and c.holders)
                if (top := next(below, None)) is not None:
                    _changes[key] = top


#: What was done, and the id of the object that it was done to.
_Key = tuple[str, int]

#: What some acceleration holds, of each object the latest. A change keeps its objects alive, so no id
#: is given away meanwhile.
_changes: WeakValueDictionary[_Key, _Change] = WeakValueDictionary()

#: One `accelerate` or `undo` at a time; the modules' forward methods share no state.
_lock = threading.Lock()


@dataclass
class Acceleration:
    """What `accelerate` did. Prints as two or three lines; a context manager that undoes it on leaving.

    Attributes:
        replaced: the names of the modules that run on our ops, and their (former) class.
        left: the modules of a kind that we have ops for which stay untouched, each with a reason.
        frozen: the names of the parameters that required a gradient before and do not now.
    """

    replaced: dict[str, str] = field(default_factory=dict)
    left: list[Left] = field(default_factory=list)
    frozen: list[str] = field(default_factory=list)
    _held: dict[int, _Change] = field(default_factory=dict, repr=False)

    def undo(self) -> None:
        """Takes back classes, processors and requires_grad, as far as no other acceleration of the
        same modules still wants them. Safe to repeat, and from any thread.

        Accelerations that overlap may be undone in any order. The last leaves what was before the first,
        or what somebody has set since: a class or processor of his stays, and one that a later
        acceleration replaced comes back when that is undone. A frozen parameter requires its gradient
        again, whatever it was told meanwhile; one that was put in the place of another stays as it is.

        Raises the first error of those that came up, when all else is taken back; a further call tries
        once more what failed.
        """
        first: BaseException | None = None
        with _lock:
            for key, change in reversed(list(self._held.items())):
                if change.holders == 1:
                    try:
                        change.take_back()
                    except BaseException as error:  # an interruption waits as well
                        first = first or error
                        continue
                    change.forget()
                change.holders -= 1
                del self._held[key]
        if first is not None:
            raise first

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
        lines = [
            f"accelerated: {count(Counter(self.replaced.values()))}",
            f"left as is: {count(left)}",
        ]
        if self.frozen:
            lines.append(f"frozen: {len(self.frozen)} parameters")
        return "\n".join(lines)

    def _hold(self, change: _Change | None) -> None:
        """None: of an acceleration that nobody holds any more, which is there to stay."""
        for each in () if change is None else (*change.under, change):
            if id(each) not in self._held:
                self._held[id(each)] = each
                each.holders += 1

    def _will_change(
        self, what: str, objects: Iterable[object], take_back: Callable[[], object]
    ) -> None:
        """To be called before the change is made: it may be interrupted at any point."""
        keys = tuple((what, id(x)) for x in objects)
        found = [top for top in map(_changes.get, keys) if top is not None]
        under = dict.fromkeys(change for top in found for change in (*top.under, top))
        change = _Change(keys, take_back, tuple(under))
        self._hold(change)
        _changes.update(dict.fromkeys(keys, change))


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


def _has_kernel(conv: nn.Conv2d) -> bool:
    """Whether dispatch has more than the definition for such weights, on the CPU and in float32."""
    empty = partial(torch.empty_strided, device="cpu", dtype=torch.float32)
    x = empty((1, conv.in_channels, 64, 64), (0, 1, 0, 0))
    weight = empty((conv.out_channels, conv.in_channels, 3, 3), (0, 0, 0, 0))
    chosen = dispatch.willing("conv3x3", (x, weight, None))
    return chosen is not None and chosen.name != "reference"


def _conv_class(conv: nn.Conv2d) -> type[nn.Module] | str:
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        padding = conv.padding_mode if conv.padding_mode != "zeros" else conv.padding
        return f"its padding is {padding}"
    plain = (conv.stride, conv.dilation, conv.groups) == ((1, 1), (1, 1), 1)
    if plain and conv.kernel_size == (3, 3) and conv.padding == (1, 1) and _has_kernel(conv):
        return UDPConv3x3
    return UDPConv


def _classes(module: Any) -> dict[nn.Module, type[nn.Module]] | str | None:
    """The classes that a module and its parts get, or why it stays, or None where there is nothing
    to say about it."""
    kind = type(module)
    if kind is ResnetBlock2D:
        if type(module.nonlinearity) is not nn.SiLU:
            return f"its activation is {type(module.nonlinearity).__name__}"
        return {module: UDPResnetBlock2D}
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
    UDPConv,
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
    blocks inside, and pipelines of them; devices and dtypes are the network's own, and may change
    later. Outputs and first derivatives stay what they were up to rounding; the state dict,
    adapters and hooks stay exactly what they were. On the CPU outputs and gradients of images may lie in
    memory with their channels side by side: ``reshape`` them, ``view`` may refuse. Call it before
    torch.compile.

        with udp_fast.accelerate(unet) as done:
            print(done)         # what was replaced, and what was left and why
            ...                 # gradients with respect to the latents

    A surrogate that also trains, adapters included, does so under ``freeze=False``, or after a
    ``requires_grad_(True)`` within the block: every layer looks at its weights when it is called.

    Threads may accelerate, run and undo one network at a time as they like, each within an
    acceleration of its own: a network is given back by the last of them. A copy.deepcopy of an
    accelerated network is accelerated for good.

    A hook put on a network's last normalisation (conv_norm_out) while it is accelerated sees it with its
    SiLU. With dropout in training mode a seed gives other masks than before (of equal distribution), since
    torch draws them in the order of memory, which is channels_last here. diffusers'
    ``set_default_attn_processor`` does not know our processors: call it before or after.

    Args:
        target: a torch module, or a diffusers pipeline (each of its modules).
        freeze: also ``requires_grad_(False)`` on every parameter, undone with the rest. With False
            weights that require a gradient get it, from layers that then keep what it takes.

    Returns an `Acceleration`. A second call changes nothing more.

    Raises:
        TypeError: ``target`` is neither.
    """
    report = Acceleration()
    named = list(_named_modules(target))
    try:
        with _lock:
            for name, module in named:
                if hasattr(module, "set_processor") and hasattr(module, "processor"):
                    _set_processor(report, name, module)
                else:
                    _set_classes(report, name, module)
            if freeze:
                _freeze(report, named)
    except BaseException:
        report.undo()
        raise
    return report


#: All that were set by an acceleration.
_processors: WeakSet[Any] = WeakSet()


def _set_processor(report: Acceleration, name: str, attn: Any) -> None:
    theirs, kind = attn.processor, type(attn).__name__
    if isinstance(theirs, _OUR_PROCESSORS):
        report.replaced[name] = kind
        report._hold(_changes.get(("processor", id(attn))))
        return
    ours = "another library overrides its forward" if _is_overridden(attn) else _processor_for(attn)
    if isinstance(ours, str):
        report.left.append(Left(name, kind, ours))
        return
    report.replaced[name] = kind

    def take_back() -> None:
        found = getattr(attn, "processor", None)  # if not ours, somebody set another one since
        # diffusers makes processors anew by their classes, where it loads an adapter for images.
        if found is ours or (type(found) is type(ours) and found not in _processors):
            attn.set_processor(theirs)

    _processors.add(ours)
    report._will_change("processor", [attn], take_back)
    attn.set_processor(ours)


def _set_classes(report: Acceleration, name: str, module: nn.Module) -> None:
    if type(module) in _OURS:
        report.replaced[name] = _theirs(module).__name__
        report._hold(_changes.get(("class", id(module))))
        return
    if type(module) in (UNet2DModel, UNet2DConditionModel, Encoder, Decoder):
        _fold(report, name, module)
        return
    found = _classes(module)
    if isinstance(found, dict) and any(map(_is_overridden, found)):
        found = "another library overrides its forward"
    if isinstance(found, str):
        report.left.append(Left(name, type(module).__name__, found))
    if not isinstance(found, dict):
        return
    if module in found:
        report.replaced[name] = type(module).__name__
    before = {part: type(part) for part in found}

    def take_back() -> None:
        for part, theirs in before.items():
            if type(part) is found[part]:  # else somebody gave it another one since
                part.__class__ = theirs

    report._will_change("class", found, take_back)
    for part, ours in found.items():
        part.__class__ = ours


def _fold(report: Acceleration, name: str, module: Any) -> None:
    """A network's last normalisation and its SiLU, which the network calls one after the other."""
    norm, act = module.conv_norm_out, module.conv_act
    if type(norm) is not nn.GroupNorm or type(act) is not nn.SiLU:
        return
    if _is_watched(norm) or _is_watched(act):
        return
    # Another object: older versions of diffusers have one SiLU for all networks.
    folded = UDPFoldedSiLU(module).train(act.training)
    report.replaced[f"{name}.conv_act".lstrip(".")] = "SiLU"

    def take_back() -> None:
        norm.__dict__.pop("_network", None)
        if type(norm) is UDPGroupNormSiLU:
            norm.__class__ = nn.GroupNorm  # type: ignore[assignment]
        if getattr(module, "conv_act", None) is folded:
            module.conv_act = act

    report._will_change("class", [norm, folded], take_back)
    norm.__dict__["_network"] = _Network(module)
    norm.__class__, module.conv_act = UDPGroupNormSiLU, folded


def _freeze(report: Acceleration, named: list[tuple[str, nn.Module]]) -> None:
    for prefix, module in named:
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if not parameter.requires_grad:
                report._hold(_changes.get(("requires_grad", id(parameter))))
                continue
            report.frozen.append(name)
            report._will_change("requires_grad", [parameter], partial(_thaw, parameter))
            parameter.requires_grad_(False)


def _thaw(parameter: nn.Parameter) -> None:
    if parameter.is_floating_point() or parameter.is_complex():  # else it was quantised since
        parameter.requires_grad_(True)
