"""What a method works on and what it reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["ImageItem", "Progress", "ProgressCallback"]


@dataclass(eq=False)
class ImageItem:
    """One image and its perturbation.

    Args:
        image_id: 64-bit integer that identifies the image: all noise drawn for it depends on this
            and the seed, never on its place in a batch.
        original: uint8 [3, H, W], H and W at least 1.
        mask: None, or {0, 1} [1, H, W] of any dtype pgd_step takes: where the image may change.
        delta: float16 [3, H, W] in units of an image in [0, 1]; filled in place by a method.
            Default zeros.
    """

    image_id: int
    original: Tensor
    mask: Tensor | None = None
    delta: Tensor = field(default_factory=lambda: torch.empty(0))

    def __post_init__(self) -> None:
        x = self.original
        if x.dtype != torch.uint8 or x.ndim != 3 or x.shape[0] != 3 or x.numel() == 0:
            raise ValueError(
                f"original: got {x.dtype} {tuple(x.shape)} (image {self.image_id}), expected uint8"
                " [3, H, W]"
            )
        if self.mask is not None and tuple(self.mask.shape) != (1, *x.shape[1:]):
            raise ValueError(
                f"mask: got shape {tuple(self.mask.shape)} (image {self.image_id}), expected"
                f" {(1, *x.shape[1:])}"
            )
        if self.delta.ndim == 1 and self.delta.numel() == 0:
            self.delta = torch.zeros(x.shape, dtype=torch.float16, device=x.device)
        if self.delta.shape != x.shape or not self.delta.is_floating_point():
            raise ValueError(
                f"delta: got {self.delta.dtype} {tuple(self.delta.shape)} (image {self.image_id}),"
                f" expected a floating-point tensor {tuple(x.shape)}"
            )

    @property
    def batched_mask(self) -> Tensor | None:
        """The mask as [1, 1, H, W], as the ops take it."""
        return None if self.mask is None else self.mask.unsqueeze(0)


@dataclass(frozen=True)
class Progress:
    """Where a method stands. One unit of work is one optimiser step or one PGD step of one image.

    Attributes:
        phase: "surrogate" while the surrogate is trained, "perturb" while the images are.
        round, step: counted from zero; step within the phase.
        total_steps_done, total_steps: units done, this one included, and units in all.
        image_id: the image of a PGD step, None for an optimiser step.
        loss: mean denoising loss before the step.
    """

    phase: str
    round: int
    step: int
    total_steps_done: int
    total_steps: int
    image_id: int | None
    loss: float


#: Called after every unit of work; whatever it raises ends the method, KeyboardInterrupt included.
ProgressCallback = Callable[[Progress], None]
