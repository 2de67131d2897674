"""The ops: one file each, holding the contract (docstring), the schema, the fake and the autograd.

The formulas in code are in `udp_fast.backends.reference`, one file of the same name each.
"""

from ..backends import trace
from .attention import attention
from .budget import Budget
from .conv3x3 import conv3x3
from .denoising_loss import accumulate_timesteps_, denoising_loss
from .geglu import geglu
from .group_norm_silu import group_norm_silu
from .image_scale import image_scale
from .noise import Stream, image_id, noise_key
from .pgd_step import FunctionalPGDStep, PGDStep, pgd_step, pgd_step_
from .pgd_step_multi import PGDStepMulti, pgd_step_multi_
from .q_sample import q_sample
from .quantize import quantize

trace.install()

__all__ = [
    "Budget",
    "FunctionalPGDStep",
    "PGDStep",
    "PGDStepMulti",
    "Stream",
    "accumulate_timesteps_",
    "attention",
    "conv3x3",
    "denoising_loss",
    "geglu",
    "group_norm_silu",
    "image_id",
    "image_scale",
    "noise_key",
    "pgd_step",
    "pgd_step_",
    "pgd_step_multi_",
    "q_sample",
    "quantize",
]
