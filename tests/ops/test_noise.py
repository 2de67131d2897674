"""The noise contract: published Philox vectors, the shape of the numbers, and whose they are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from cases import F32, F64

from udp_fast.backends.reference import philox
from udp_fast.ops import Stream, denoising_loss, image_id, noise_key, q_sample

# Random123's known-answer file, philox4x32 with 10 rounds: counter, key, result.
KNOWN_ANSWERS = [
    (
        (0x00000000, 0x00000000, 0x00000000, 0x00000000),
        (0x00000000, 0x00000000),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def draw(shape, key, dtype=F32):
    """N(0, 1) through the public op: x_t at the end of a flow is the noise."""
    x = torch.zeros(shape, dtype=dtype)
    t = torch.zeros(shape[0], dtype=torch.int64)
    return q_sample(x, t, sigmas=torch.ones(1), key=key)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_reference_philox_known_answers(counter, key, expected):
    as_tensors = [tuple(torch.tensor(w) for w in words) for words in (counter, key)]
    assert tuple(int(w) for w in philox.philox4x32_10(*as_tensors)) == expected


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_native_philox_known_answers(counter, key, expected):
    native = pytest.importorskip("udp_fast._native", reason="the native kernels are not built")
    assert tuple(native.philox4x32_10(counter, key)) == expected


def test_normals_are_those_of_the_float64_definition(backend_name):
    shape = (4, 3, 200, 101)
    key = noise_key(11, [1, 2, 3, 4], draw=7, step=9)
    exact = philox.normals(key, torch.Size(shape), F64)
    assert (draw(shape, key).double() - exact).abs().max() <= 1e-6


def test_normals_have_the_right_distribution(backend_name):
    from scipy import stats  # long to import, and every worker imports this module

    n = draw((4, 250_000), noise_key(3, [1, 2, 3, 4])).double().flatten()
    count = n.numel()
    # Four standard errors of the mean, variance, skewness and excess kurtosis of a million normals.
    assert abs(n.mean()) < 4 * count**-0.5
    assert abs(n.var() - 1) < 4 * (2 / count) ** 0.5
    assert abs((n**3).mean()) < 4 * (15 / count) ** 0.5
    assert abs((n**4).mean() - 3) < 4 * (96 / count) ** 0.5
    assert stats.kstest(n.cpu().numpy(), "norm").pvalue > 1e-3


def test_neighbours_and_draws_are_uncorrelated(backend_name):
    count = 100_000
    rows = draw((3, count), noise_key(3, [5, 5, 6], draw=torch.tensor([0, 1, 0]))).double()
    for lag in range(1, 9):
        assert abs((rows[0, lag:] * rows[0, :-lag]).mean()) < 4.5 * count**-0.5
    for a, b in itertools.combinations(range(3), 2):
        assert abs((rows[a] * rows[b]).mean()) < 4.5 * count**-0.5


def test_noise_belongs_to_the_image_not_to_its_place(backend_name):
    shape = (3, 3, 17, 19)
    together = draw(shape, noise_key(1, [10, 20, 30], draw=2, step=5))
    for row, image in enumerate([10, 20, 30]):
        alone = draw((1, *shape[1:]), noise_key(1, [image], draw=2, step=5))
        assert torch.equal(alone[0], together[row])


def test_noise_does_not_depend_on_the_memory_format(backend_name):
    key, t = noise_key(1, [1, 2]), torch.tensor([0, 0])
    for channels in (1, 2, 3, 4, 5):
        x = torch.zeros(2, channels, 13, 11)
        contiguous = q_sample(x, t, sigmas=torch.ones(1), key=key)
        last = x.contiguous(memory_format=torch.channels_last)
        assert torch.equal(q_sample(last, t, sigmas=torch.ones(1), key=key), contiguous)


def test_every_part_of_the_key_changes_the_noise():
    keys = [
        noise_key(1, [1]),
        noise_key(2, [1]),
        noise_key(1, [2]),
        noise_key(1, [1], draw=1),
        noise_key(1, [1], step=1),
        noise_key(1, [1], stream=Stream.QUANTIZE),
    ]
    words = [philox.words(key, 64) for key in keys]
    for a, b in itertools.combinations(words, 2):
        assert (a == b).float().mean() < 0.1


def test_key_columns_hold_what_the_contract_says():
    key = noise_key(0, [1, 2], draw=torch.tensor([3, 2**32 - 1]), step=2**32 - 2, stream=7)
    assert key.dtype == torch.int64
    assert (key[:, 1] & 0xFFFFFFFF).tolist() == [3, 2**32 - 1]
    assert ((key[:, 1] >> 32) & 0xFFFFFFFF).tolist() == [2**32 - 2] * 2
    assert key[:, 2].tolist() == [7, 7]


def test_ids_are_taken_signed_or_unsigned():
    assert torch.equal(noise_key(0, [-1]), noise_key(0, [2**64 - 1]))
    assert -(2**63) <= image_id(b"pixels") < 2**63
    assert image_id(b"pixels") != image_id(b"pixel")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draw": -1}, "draw: got -1"),
        ({"step": 2**32}, "step: got 4294967296"),
        ({"draw": torch.tensor([1, 2, 3])}, "draw: got 3 values, expected 1 or 2"),
        ({"stream": 2**33}, "stream: got"),
    ],
)
def test_bad_counters_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        noise_key(0, [1, 2], **options)


@pytest.mark.parametrize(
    ("seed", "ids", "message"),
    [
        (0, ["a.png"], "image_ids: got 'a.png' among them, expected integers"),
        (0, [True], "image_ids: got True among them, expected integers"),
        (0, torch.ones(2), "image_ids: got 1.0 among them, expected integers"),
        (0, 2, "image_ids: got 2, expected integers, one an image"),
        (0, np.int64(2), "image_ids: got .*2.*, expected integers, one an image"),
        (0, "12", "image_ids: got '12', expected integers, one an image"),
        (0.5, [1], "seed: got 0.5, expected an integer"),
        (True, [1], "seed: got True, expected an integer"),
    ],
)
def test_bad_ids_and_seeds_are_named(seed, ids, message):
    with pytest.raises(TypeError, match=f"noise_key: {message}"):
        noise_key(seed, ids)


def test_noise_is_asked_for_by_what_came():
    x, t, table = torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64), torch.ones(3)
    both = {"noise": x, "key": noise_key(0, [1, 2])}
    with pytest.raises(
        ValueError, match="q_sample: got neither, expected exactly one of noise and"
    ):
        q_sample(x, t, table)
    with pytest.raises(
        ValueError, match="q_sample: got both, expected exactly one of noise and key"
    ):
        q_sample(x, t, table, **both)
    with pytest.raises(ValueError, match="q_sample: got neither, expected exactly one of alphas_"):
        q_sample(x, t, key=both["key"])
    with pytest.raises(
        ValueError, match="denoising_loss: got neither target nor noise nor key, exp"
    ):
        denoising_loss(x)
    with pytest.raises(ValueError, match="denoising_loss: got both, expected exactly one of noise"):
        denoising_loss(x, **both)


def test_numpys_integers_are_integers():
    expected = noise_key(3, [0, 1], draw=torch.tensor([4, 5]), step=6)
    assert torch.equal(
        noise_key(np.int64(3), np.arange(2), draw=np.array([4, 5]), step=np.uint8(6)), expected
    )
    assert torch.equal(noise_key(3, [np.int32(0), np.int64(1)], draw=[4, 5], step=6), expected)
    assert torch.equal(noise_key(0, np.array([2**64 - 1], np.uint64)), noise_key(0, [-1]))
