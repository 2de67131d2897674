"""pgd_step_multi in Triton: a launch an image.

A Triton kernel takes no list of pointers; a table of them in the GPU's memory would have to be copied
there for each call, and lose the wide accesses that known alignment gives. The CUDA kernel takes 64
images in one launch and is asked first.
"""

from __future__ import annotations

from ..reference.pgd_step_multi import image_by_image
from .pgd_step import pgd_step_

pgd_step_multi_ = image_by_image(pgd_step_)
