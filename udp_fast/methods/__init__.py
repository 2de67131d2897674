"""UDP and EUDP and their controls: each a short composition of `diffusion` and `ops`."""

from udp_fast.methods.items import ImageItem, Progress, ProgressCallback
from udp_fast.methods.registry import METHODS, protect
from udp_fast.methods.settings import Settings

__all__ = ["METHODS", "ImageItem", "Progress", "ProgressCallback", "Settings", "protect"]
