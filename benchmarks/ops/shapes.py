"""Shapes that the ops meet."""

#: Eight photographs at the resolution of Stable Diffusion: the shape that the bars are about.
IMAGES = (8, 3, 512, 512)
#: What its VAE makes of them.
LATENTS = (8, 4, 64, 64)
#: Where Stable Diffusion 1.5 normalises: in its U-Net with and without guidance's second image, from
#: the highest to the lowest resolution, and in the VAE at full size. The bars are about the first.
FEATURES = (
    (2, 320, 64, 64),
    (2, 960, 64, 64),
    (2, 1280, 16, 16),
    (2, 2560, 8, 8),
    (1, 128, 512, 512),
)
