import pytest


@pytest.fixture
def tiny_unet():
    """Builds a UNet2DModel of a few thousand parameters with seeded weights."""
    diffusers = pytest.importorskip("diffusers")
    import torch

    def build(channels_in=3, widths=(8, 16), seed=0):
        torch.manual_seed(seed)
        return diffusers.UNet2DModel(
            sample_size=16,
            in_channels=channels_in,
            out_channels=channels_in,
            block_out_channels=widths,
            down_block_types=("DownBlock2D",) * len(widths),
            up_block_types=("UpBlock2D",) * len(widths),
            layers_per_block=1,
            norm_num_groups=4,
            add_attention=False,
        ).eval()

    return build
