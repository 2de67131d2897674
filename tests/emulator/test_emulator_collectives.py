"""Barriers, shuffles, votes, atomics, indices and what they cost, against plain models of them."""

from __future__ import annotations

import numpy as np
import pytest
from emulation import ROOT, Emulated, EmulatorFault, emulate


@pytest.fixture(scope="module")
def kernels() -> Emulated:
    return emulate(ROOT / "tests/emulator/kernels/collectives.cu")


@pytest.mark.parametrize("columns", [1, 31, 128, 1000])
def test_sums_by_shuffles_and_shared_memory(kernels: Emulated, columns: int) -> None:
    rows = np.random.default_rng(0).standard_normal((5, columns)).astype(np.float32)
    sums = np.zeros(5, np.float32)
    (launch,) = kernels.run("launch_row_sums", sums, rows, 5, columns, writes=[sums], fills=[sums])
    np.testing.assert_allclose(sums, rows.sum(1, dtype=np.float64), rtol=1e-5, atol=1e-5)
    assert launch.kernel == "row_sums<128>"
    assert (launch.load_bytes, launch.store_bytes) == (rows.nbytes, sums.nbytes)
    assert launch.block_barriers == 5
    assert launch.shared_conflicts == 0


@pytest.mark.parametrize("width", [1, 2, 8, 32])
@pytest.mark.parametrize("by", [0, 1, 3, 7, 16, 31])
def test_shuffles(kernels: Emulated, by: int, width: int) -> None:
    data = np.random.default_rng(by).integers(-(2**62), 2**62, 32)
    out = np.zeros((4, 32), np.int64)
    kernels.run("launch_shuffles", out, data, by, width, writes=[out])
    lane = np.arange(32)
    first, last = lane // width * width, lane // width * width + width - 1
    source = [
        first + by % width,
        np.where(lane - by < first, lane, lane - by),
        np.where(lane + by > last, lane, lane + by),
        np.where((lane ^ by) > last, lane, lane ^ by),
    ]
    np.testing.assert_array_equal(out, data[np.array(source)])


def test_width_must_be_a_power_of_two(kernels: Emulated) -> None:
    out, data = np.zeros((4, 32), np.int64), np.zeros(32, np.int64)
    with pytest.raises(EmulatorFault, match="width 12 is not a power of two"):
        kernels.run("launch_shuffles", out, data, 1, 12, writes=[out])


def test_votes_with_an_incomplete_warp(kernels: Emulated) -> None:
    threads = 80
    data = np.random.default_rng(1).integers(0, 100, threads).astype(np.uint32)
    data[32:64] |= 1
    out = np.zeros((8, threads), np.uint32)
    kernels.run("launch_votes", out, data, threads, writes=[out])
    for first in range(0, threads, 32):
        warp = data[first : first + 32].astype(np.int64)
        odd = warp % 2
        bits = 1 << np.arange(len(warp))
        ballot = (odd * bits).sum()
        match = [((warp % 3 == v % 3) * bits).sum() for v in warp]
        everyone = bits.sum()
        active = np.where(odd == 1, ballot, everyone - ballot)
        expected = [ballot, odd.any(), odd.all(), warp.sum(), warp.max(), match, active, everyone]
        for got, want in zip(out[:, first : first + 32], expected, strict=True):
            np.testing.assert_array_equal(got, np.broadcast_to(want, got.shape))


@pytest.mark.parametrize("threads", [1, 33, 1024])
def test_block_votes(kernels: Emulated, threads: int) -> None:
    for data in (np.zeros(threads, np.int32), np.arange(threads, dtype=np.int32) | 1):
        out = np.zeros(3, np.int32)
        kernels.run("launch_block_votes", out, data, threads, writes=[out])
        assert out.tolist() == [np.sum(data % 2), np.all(data % 2), np.any(data % 2)]


def test_three_dimensions(kernels: Emulated) -> None:
    out = np.full((8, 12, 16), -1, np.int32)
    (launch,) = kernels.run("launch_indices", out, writes=[out], fills=[out])
    z, y, x = np.indices(out.shape)
    np.testing.assert_array_equal(out, x + 100 * y + 10000 * z)
    assert (launch.grid, launch.block) == ((2, 3, 4), (8, 4, 2))


def test_atomics(kernels: Emulated) -> None:
    data = np.random.default_rng(2).integers(0, 1000, 777).astype(np.float32)
    histogram, total = np.zeros(16, np.int32), np.zeros(1, np.float64)
    largest, mask = np.zeros(1, np.float32), np.zeros(1, np.uint64)
    arrays = [histogram, total, largest, mask]
    (launch,) = kernels.run("launch_atomics", *arrays, data, len(data), writes=arrays)
    np.testing.assert_array_equal(histogram, np.bincount(data.astype(int) % 16, minlength=16))
    assert total[0] == data.sum(dtype=np.float64)
    assert largest[0] == data.max()
    assert mask[0] == sum(1 << int(b) for b in np.unique(data.astype(int) % 64))
    assert launch.atomics >= 4 * len(data)


def test_last_block_may_read_what_the_others_left(kernels: Emulated) -> None:
    blocks = 9
    data = np.random.default_rng(3).standard_normal(32 * blocks).astype(np.float32)
    total, partial, done = (np.zeros(n, t) for n, t in ((1, "f4"), (blocks, "f4"), (1, "u4")))
    writes = [total, partial, done]
    kernels.run("launch_last_block", *writes, data, blocks, writes=writes, fills=[partial, total])
    np.testing.assert_allclose(total, data.sum(dtype=np.float64), rtol=1e-5)


@pytest.mark.parametrize(("padded", "conflicts"), [(1, 0), (0, 32 * 31)])
def test_bank_conflicts(kernels: Emulated, padded: int, conflicts: int) -> None:
    data = np.random.default_rng(4).standard_normal((32, 32)).astype(np.float32)
    out = np.zeros_like(data)
    (launch,) = kernels.run("launch_transpose", out, data, padded, writes=[out])
    np.testing.assert_array_equal(out, data.T)
    assert launch.shared_conflicts == conflicts
    assert launch.shared_wavefronts == 64 + conflicts


@pytest.mark.parametrize(("every", "sectors"), [(1, 4), (2, 8), (8, 32), (64, 32)])
def test_sectors(kernels: Emulated, every: int, sectors: int) -> None:
    buffer = np.zeros(256 * every + 8, np.float32)
    data = buffer[-(buffer.ctypes.data // 4) % 8 :][: 256 * every]  # begins a 32-byte sector
    out = np.zeros(256, np.float32)
    (launch,) = kernels.run("launch_strided_copy", out, data, every, writes=[out])
    assert launch.load_requests == 8
    assert launch.load_sectors == 8 * sectors
    assert launch.unique_load_bytes == launch.load_bytes == 1024


def test_runtime_refuses_what_a_device_would(kernels: Emulated) -> None:
    out = np.zeros(1, np.float32)
    assert kernels.run("launch_too_many_threads", out, writes=[out]) == []
    # Once a process: what cudaFuncSetAttribute allows stays allowed.
    (launch,) = kernels.run("launch_opt_in_shared", out, writes=[out], seeds=[0])
    assert launch.dynamic_shared_bytes == 64 * 1024
