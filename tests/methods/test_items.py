import pytest
import torch

from udp_fast.methods import ImageItem


def test_delta_starts_at_zero():
    item = ImageItem(1, torch.zeros(3, 4, 5, dtype=torch.uint8))
    assert item.delta.shape == (3, 4, 5)
    assert item.delta.dtype == torch.float16
    assert item.delta.eq(0).all()
    assert item.batched_mask is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"original": torch.zeros(3, 4, 5)}, r"original: .*float32 \(3, 4, 5\) \(image 7\)"),
        ({"original": torch.zeros(1, 4, 5, dtype=torch.uint8)}, r"original: .*\(1, 4, 5\)"),
        ({"mask": torch.ones(4, 5)}, r"mask: got shape \(4, 5\) .*expected \(1, 4, 5\)"),
        ({"delta": torch.zeros(3, 4, 4)}, r"delta: .*\(3, 4, 4\)"),
    ],
    ids=["float image", "grey image", "mask without channel", "delta of another shape"],
)
def test_errors_name_argument_and_image(arguments, words):
    with pytest.raises(ValueError, match=words):
        ImageItem(
            **{"image_id": 7, "original": torch.zeros(3, 4, 5, dtype=torch.uint8)} | arguments
        )
