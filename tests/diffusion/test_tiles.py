import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from udp_fast.diffusion import TileGrid


@st.composite
def grids(draw):
    multiple = draw(st.sampled_from([1, 4, 8]))
    tile = draw(st.integers(max(multiple, 4), 48))
    overlap = draw(st.integers(0, tile // multiple * multiple // 2))
    slack = draw(st.integers(0, 16))
    shift = (draw(st.integers(0, slack)), draw(st.integers(0, slack)))
    sides = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    grid = TileGrid.fit(
        *sides, tile=tile, overlap=overlap, multiple=multiple, shift=shift, slack=slack
    )
    return sides, tile, multiple, grid


@settings(max_examples=60, deadline=None)
@given(grids())
def test_partition_of_unity(case):
    """Cutting and blending gives the image back, whatever the grid: the windows add up to one."""
    (height, width), tile, multiple, grid = case
    image = torch.rand(2, height, width, generator=torch.Generator().manual_seed(0))
    tiles = grid.cut(image)
    assert tiles.shape == (len(grid), 2, *grid.tile_shape)
    assert all(side % multiple == 0 and side <= max(tile, multiple) for side in grid.tile_shape)
    torch.testing.assert_close(grid.blend(tiles), image, rtol=0, atol=1e-6)


def test_512_takes_four_equal_tiles_a_side():
    grid = TileGrid.fit(512, 512, tile=160, overlap=16, multiple=8, slack=16)
    assert len(grid) == 16
    assert grid.tile_shape == (144, 144)


def test_slack_makes_tiles_independent_of_the_shift():
    shapes = {
        TileGrid.fit(100, 77, tile=64, overlap=8, multiple=8, shift=(s, 8 - s), slack=8).tile_shape
        for s in range(9)
    }
    assert len(shapes) == 1


def test_reflects_at_the_borders():
    row = torch.arange(5.0).expand(1, 1, 5)
    grid = TileGrid.fit(1, 5, tile=8, overlap=0, shift=(0, 2), slack=3)
    assert grid.cut(row)[0, 0, 0].tolist() == [2, 1, 0, 1, 2, 3, 4, 3]


def test_windows_are_smooth():
    """No jump at tile borders: blending tiles of constant 0 and 1 ramps up gently."""
    grid = TileGrid.fit(8, 56, tile=32, overlap=8)
    tiles = torch.zeros(len(grid), 1, *grid.tile_shape)
    tiles[1] = 1
    profile = grid.blend(tiles)[0, 0]
    assert profile[0] == 0
    assert profile[-1] == 1
    assert profile.diff().min() >= 0
    assert profile.diff().max() < 0.25


def test_gradient_equals_the_whole_image_inside():
    """Tiled and whole-image gradients agree farther than twice the receptive field from seams."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 3, padding=1)
    ).double()
    image = torch.rand(3, 64, 64, dtype=torch.float64)

    whole = image.clone().requires_grad_()
    (expected,) = torch.autograd.grad(net(whole[None]).square().sum(), whole)

    grid = TileGrid.fit(64, 64, tile=40, overlap=16)
    assert len(grid) == 4
    tiles = grid.cut(image).requires_grad_()
    (slopes,) = torch.autograd.grad(net(tiles).square().sum(), tiles)
    blended = grid.blend(slopes)

    # Seams lie at 24 and 40; the loss reaches 2 pixels, its gradient 2 more.
    inside = torch.ones(64, dtype=torch.bool)
    inside[20:44] = False
    inside = inside[:, None] & inside[None, :]
    torch.testing.assert_close(blended[:, inside], expected[:, inside], rtol=1e-10, atol=1e-12)
    # Across the seams only the outermost, lightly weighted pixels of a tile are off.
    assert (blended - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"height": 0, "width": 5, "tile": 8, "overlap": 0}, "height, width.*0 x 5"),
        ({"height": 5, "width": 5, "tile": 4, "overlap": 0, "multiple": 8}, "tile.*got 4"),
        ({"height": 5, "width": 5, "tile": 8, "overlap": 5}, "overlap.*got 5"),
        (
            {"height": 5, "width": 5, "tile": 8, "overlap": 0, "shift": (2, 0), "slack": 1},
            r"shift.*\(2, 0\)",
        ),
    ],
)
def test_errors_name_the_argument(arguments, words):
    with pytest.raises(ValueError, match=words):
        TileGrid.fit(**arguments)


def test_shapes_are_checked():
    grid = TileGrid.fit(20, 20, tile=16, overlap=4)
    with pytest.raises(ValueError, match=r"image: .*\(3, 20, 21\)"):
        grid.cut(torch.zeros(3, 20, 21))
    with pytest.raises(ValueError, match="tiles: got 3, expected 4 tiles"):
        grid.blend(torch.zeros(3, 3, *grid.tile_shape))
