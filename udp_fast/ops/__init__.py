"""The ops: one file each, holding the contract (docstring), the schema, the fake and the autograd.

The formulas in code are in `udp_fast.backends.reference`, one file of the same name each.
"""

from ..backends import trace
from .attention import attention
from .budget import Budget
from .denoising_loss import accumulate_timesteps_, denoising_loss
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
    "denoising_loss",
    "image_id",
    "image_scale",
    "noise_key",
    "pgd_step",
    "pgd_step_",
    "pgd_step_multi_",
    "q_sample",
    "quantize",
]
