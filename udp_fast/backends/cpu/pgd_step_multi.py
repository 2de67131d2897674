"""pgd_step_multi on csrc/cpu. A call costs so little here that a loop is all there is to do."""

from __future__ import annotations

from ..reference.pgd_step_multi import image_by_image
from .pgd_step import pgd_step_

pgd_step_multi_ = image_by_image(pgd_step_)
