"""Shapes that the ops meet."""

#: Eight photographs at the resolution of Stable Diffusion: the shape that the bars are about.
IMAGES = (8, 3, 512, 512)
#: What its VAE makes of them.
LATENTS = (8, 4, 64, 64)
