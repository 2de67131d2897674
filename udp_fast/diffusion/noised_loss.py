"""The denoising loss of a denoiser, whatever it predicts, at noise that is drawn or given."""

from __future__ import annotations

from torch import Tensor

from udp_fast.diffusion.denoiser import Denoiser
from udp_fast.ops import denoising_loss, q_sample

__all__ = ["noised_loss"]


def noised_loss(
    denoiser: Denoiser,
    x: Tensor,  # float32 [B, 3, H, W]
    t: Tensor,  # int64 [B]
    table: Tensor,  # float32 [T]
    *,
    noise: Tensor | None = None,  # like x
    key: Tensor | None = None,  # int64 [B, 3]
    weight: Tensor | None = None,  # float32 [B]
    reduction: str = "mean",
) -> Tensor:
    """Noise ``x``, ask the denoiser, and compare with what it should have said.

    Args:
        x: clean images around [-1, 1]; the loss is differentiable in them and in the weights.
        t: their timesteps.
        table: the denoiser's alphas_cumprod, on the device of ``x``.
        noise, key: one of the two, as for ``q_sample``.
        weight, reduction: as for ``denoising_loss``.

    Returns:
        float32, a scalar or [B].
    """
    prediction = denoiser(q_sample(x, t, table, noise=noise, key=key), t)
    if denoiser.prediction_type == "sample":
        noise = key = None  # the target is x: denoising_loss refuses noise that it would not use
    return denoising_loss(
        prediction,
        x=x,
        t=t,
        alphas_cumprod=table,
        noise=noise,
        key=key,
        weight=weight,
        prediction_type=denoiser.prediction_type,
        reduction=reduction,
    )
