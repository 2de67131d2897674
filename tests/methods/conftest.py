import pytest
import torch
from torch import nn

from udp_fast.diffusion import NoiseSchedule
from udp_fast.methods import ImageItem


class ToyDenoiser:
    """A convolution net that knows nothing of t: small, smooth, deterministic."""

    prediction_type = "epsilon"
    multiple = 2

    def __init__(self, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.schedule = NoiseSchedule.linear()
        self.module = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 3, 3, padding=1)
        )
        for parameter in self.module.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)
        self.module.eval()
        self.wanted_weight_gradients = []

    def __call__(self, x_t, t):
        assert x_t.shape[2] % self.multiple == 0
        assert x_t.shape[3] % self.multiple == 0
        assert t.shape == (len(x_t),)
        assert t.dtype == torch.int64
        if torch.is_grad_enabled():
            self.wanted_weight_gradients.append(
                any(p.requires_grad for p in self.module.parameters())
            )
        return self.module(x_t)


@pytest.fixture(autouse=True)
def one_thread():
    """These images are tiny: more threads would only wait for each other."""
    used = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(used)


@pytest.fixture
def denoiser():
    return ToyDenoiser()


@pytest.fixture
def make_items():
    def make(*ids, size=(40, 33), mask=None):
        items = []
        for image_id in ids:
            generator = torch.Generator().manual_seed(image_id)
            pixels = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
            pixels[:, :4] = 0
            pixels[:, -4:] = 255
            items.append(ImageItem(image_id, pixels, mask))
        return items

    return make
