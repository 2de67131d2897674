import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("diffusers")

from udp_fast.diffusion import load_denoiser
from udp_fast.diffusion.train_surrogate import load_pyramids, main, random_crops


def test_pyramid_halves_down_to_the_smallest(tmp_path):
    Image.new("RGB", (2400, 1200)).save(tmp_path / "wide.png")
    Image.new("L", (300, 400)).save(tmp_path / "grey.png")
    grey, wide = load_pyramids(tmp_path)
    assert [level.shape for level in wide] == [(1024, 2048, 3), (512, 1024, 3), (256, 512, 3)]
    assert [level.shape for level in grey] == [(400, 300, 3)]


def test_no_pictures(tmp_path):
    with pytest.raises(ValueError, match="images: expected pictures"):
        load_pyramids(tmp_path)


def test_crops_follow_the_seed():
    pyramids = [[np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)]]

    def crops(seed):
        rng = np.random.default_rng(seed)
        return random_crops(pyramids, count=5, size=16, rng=rng).numpy()

    assert crops(1).shape == (5, 3, 16, 16)
    assert np.array_equal(crops(1), crops(1))
    assert not np.array_equal(crops(1), crops(2))


def test_command_trains_reproducibly(tmp_path, capsys):
    rows = np.linspace(0, 255, 32).astype(np.uint8)
    images = np.broadcast_to(rows[None, :, None, None], (6, 32, 32, 3))
    np.savez(tmp_path / "images.npz", images=images)
    arguments = [
        str(tmp_path / "images.npz"),
        *("--seed", "3", "--channels", "8,16", "--steps", "40", "--batch", "4", "--crop", "16"),
        *("--learning-rate", "0.01"),
    ]
    for out in ("a", "b"):
        main([*arguments, "-o", str(tmp_path / out), "--threads", "1"])
    weights = "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "a" / weights).read_bytes() == (tmp_path / "b" / weights).read_bytes()
    record = json.loads((tmp_path / "a" / "training.json").read_text())
    assert record["seed"] == 3
    assert record["steps"] == 40
    assert record["loss"][-1][1] < 0.9  # predicting nothing scores 1
    assert "step 40/40" in capsys.readouterr().out
    assert load_denoiser(tmp_path / "a").patch_size == 2
