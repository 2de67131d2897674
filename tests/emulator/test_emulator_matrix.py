"""mma.sync, ldmatrix, cp.async and the 16-bit formats, against float64 and numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from emulation import ROOT, Emulated, emulate


@pytest.fixture(scope="module")
def kernels() -> Emulated:
    return emulate(ROOT / "tests/emulator/kernels/matrix.cu")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mma_equals_the_float64_product(kernels: Emulated, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(16, n, generator=generator).to(dtype) for n in (16, 8))
    c, d = torch.randn(16, 8, generator=generator), torch.zeros(16, 8)
    is_bfloat16 = int(dtype == torch.bfloat16)
    (launch,) = kernels.run("launch_one_mma", is_bfloat16, d, c, a, b, writes=[d], fills=[d])
    exact = c.double() + a.double() @ b.double()
    torch.testing.assert_close(d.double(), exact, rtol=2**-23, atol=0.0)
    assert launch.mma == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_mma_equals_the_float64_product(kernels: Emulated, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, 8, generator=generator).to(dtype) for n in (16, 8))
    c, d = torch.randn(16, 8, generator=generator), torch.zeros(16, 8)
    is_bfloat16 = int(dtype == torch.bfloat16)
    (launch,) = kernels.run("launch_one_narrow_mma", is_bfloat16, d, c, a, b, writes=[d], fills=[d])
    exact = c.double() + a.double() @ b.double()
    torch.testing.assert_close(d.double(), exact, rtol=2**-23, atol=0.0)
    assert launch.mma == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pairs_of_halfs(kernels: Emulated, dtype: torch.dtype) -> None:
    x = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
    packed, back = torch.zeros(32, dtype=torch.int32), torch.zeros(32, 2)
    is_bfloat16 = int(dtype == torch.bfloat16)
    kernels.run("launch_pairs", is_bfloat16, packed, back, x, writes=[packed], fills=[back])
    rounded = x.to(dtype)
    assert torch.equal(back, rounded.float())
    stored = torch.arange(32) % 3 == 0
    assert torch.equal(packed.view(dtype).view(32, 2)[stored], rounded[stored])
    assert packed[~stored].count_nonzero() == 0


def test_products_of_pairs(kernels: Emulated) -> None:
    a, b = torch.randn(2, 64, generator=torch.Generator().manual_seed(0)).half()
    out = torch.zeros(64, dtype=torch.float16)
    kernels.run("launch_float16_products", out, a, b, writes=[out], fills=[out])
    assert torch.equal(out, a * b)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("matrices", [1, 2, 4])
def test_ldmatrix(kernels: Emulated, matrices: int, transposed: int) -> None:
    data = np.arange(64 * matrices, dtype=np.uint16).reshape(matrices, 8, 8)
    out = np.zeros((32, matrices), np.uint32)
    (launch,) = kernels.run("launch_load_matrices", matrices, transposed, out, data, writes=[out])
    for lane in range(32):
        for m in range(matrices):
            matrix = data[m].T if transposed else data[m]
            low, high = (int(matrix[lane // 4, 2 * (lane % 4) + k]) for k in (0, 1))
            assert out[lane, m] == low | high << 16
    assert launch.ldmatrix_conflicts == 0


@pytest.mark.parametrize(("rows", "depth"), [(32, 32), (64, 160), (45, 104), (1, 8)])
def test_gemm_by_cp_async_ldmatrix_and_mma(kernels: Emulated, rows: int, depth: int) -> None:
    generator = torch.Generator().manual_seed(depth)
    a = torch.randn(rows, depth, generator=generator).bfloat16()
    b = torch.randn(depth, 32, generator=generator).bfloat16()
    c = torch.zeros(rows, 32)
    exact = a.double() @ b.double()
    for padded in (1, 0):
        c.zero_()
        (launch,) = kernels.run("launch_gemm", padded, c, a, b, rows, depth, writes=[c], fills=[c])
        torch.testing.assert_close(c.double(), exact, rtol=1e-5, atol=1e-5)
        assert (launch.ldmatrix_conflicts == 0) == bool(padded)
    blocks = -(-rows // 32)
    assert launch.cp_async_bytes == 2 * (a.numel() + blocks * b.numel())
    assert launch.unique_load_bytes == 2 * (a.numel() + b.numel())
    assert launch.mma == blocks * -(-depth // 32) * 2 * 2 * 4


@pytest.mark.parametrize("size", [4, 8, 16])
def test_cp_async_fills_with_zeros(kernels: Emulated, size: int) -> None:
    data = np.random.default_rng(size).integers(1, 256, (32, size)).astype(np.uint8)
    out = np.zeros_like(data)
    kernels.run("launch_partial_copy", size, out, data, writes=[out], fills=[out])
    for lane in range(32):
        n = lane % (size + 1)
        np.testing.assert_array_equal(out[lane], np.where(np.arange(size) < n, data[lane], 0))


def test_rounding_to_16_bits(kernels: Emulated) -> None:
    rng = np.random.default_rng(5)
    bits = rng.integers(0, 2**32, 20000, dtype=np.uint32)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519.99, 65520, 2**-24, 2**-25, 3e-8]
    ties = (np.arange(4000, dtype=np.uint32) << 12) + 0x38001000
    data = np.concatenate([bits, ties]).view(np.float32)
    data = np.concatenate([data, np.float32(special), rng.standard_normal(5000).astype("f4")])
    half, bfloat16 = np.zeros(len(data), np.uint16), np.zeros(len(data), np.uint16)
    kernels.run("launch_round", half, bfloat16, data, len(data), writes=[half, bfloat16], seeds=[0])
    nan = np.isnan(data)
    with np.errstate(over="ignore"):
        want = data.astype(np.float16).view(np.uint16)
    np.testing.assert_array_equal(half, np.where(nan, 0x7FFF, want))
    want = torch.from_numpy(data).bfloat16().view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(bfloat16, np.where(nan, 0x7FFF, want))


def test_widening_from_16_bits(kernels: Emulated) -> None:
    from_half, from_bfloat16 = np.zeros(65536, np.float32), np.zeros(65536, np.float32)
    writes = [from_half, from_bfloat16]
    kernels.run("launch_widen", *writes, writes=writes, fills=writes, seeds=[0, 1])
    bits = np.arange(65536, dtype=np.uint32)
    np.testing.assert_array_equal(from_half, bits.astype(np.uint16).view(np.float16).astype("f4"))
    np.testing.assert_array_equal(from_bfloat16, (bits << 16).view(np.float32))
