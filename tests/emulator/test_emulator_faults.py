"""The emulator catches planted faults, and nothing in the same kernels without them."""

from __future__ import annotations

import numpy as np
import pytest
from emulation import ROOT, SEEDS, Emulated, EmulatorFault, emulate

#: What is reported, in any schedule. Without a barrier a thread may find another's write, or miss
#: it, or be overtaken by it.
FAULTS = {
    "missing_barrier": "(race|uninitialised): .* of 4 bytes at faults.cu:2. .* of __shared__ tile",
    "missing_syncwarp": "(race|uninitialised): .* of 4 bytes at faults.cu:3. .* of __shared__ tile",
    "missing_second_barrier": "race: .* of __shared__ tile: thread .* of the block (read|wrote) it",
    "shared_overrun": "out of bounds: load .* byte 512 from the start of __shared__ tile, .* 512 b",
    "dynamic_shared_overrun": "out of bounds: store .* byte 512 .* dynamic shared memory",
    "global_overrun": "out of bounds: store .* byte 1024 from the start of argument 1",
    "wide_load_overrun": "out of bounds: load of 16 bytes .* byte 1024 from the start of argu.* 2",
    "misaligned_load": "misaligned: load of 16 bytes .* of argument 2",
    "divergent_barrier": "divergent barrier: .*threads 0-39 wait in __syncthreads at faults.cu",
    "early_return": "divergent barrier: .*threads 77 returned from the kernel",
    "two_barriers": "divergent barrier: .*threads 0, 2, 4",
    "missing_wait": "load .* of __shared__ tile: thread .*'s cp.async there was not waited for",
    "wait_without_barrier": "of 4 bytes at faults.cu.* of __shared__ tile",
    "wrong_mask": "__shfl_down_sync at .*: mask 0xffffffff names lane .*, which has returned",
    "reads_outside_mask": "__shfl_xor_sync at faults.cu:.* reads lane 1., which is not in the mask",
    "not_in_own_mask": "__ballot_sync at .*: lane 31 is not in its own mask 0x7fffffff",
    "uninitialised_shared": "uninitialised: load .* byte 20 of __shared__ tile",
    "uninitialised_byte": "uninitialised: load of 16 bytes .* byte 9 of __shared__ tile, which was nev",
    "race_for_a_byte": "race: (load of 16 bytes|store of 1 byte) .* at byte [46] of __shared__ tile",
    "race_between_blocks": "race: store .* argument 1: another block's thread .* wrote it",
    "read_only_of_written": "load .* through the read-only path .* of argument 1, which this",
    "writes_an_input": "store .* at byte 12 of argument 2, which is an input",
}


@pytest.fixture(scope="module")
def faults() -> Emulated:
    return emulate(ROOT / "tests/emulator/kernels/faults.cu")


def arguments() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return np.zeros(256, np.float32), rng.standard_normal(256).astype(np.float32)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_caught_in_every_schedule(faults: Emulated, name: str, seed: int) -> None:
    out, data = arguments()
    with pytest.raises(EmulatorFault, match=f"(?s){FAULTS[name]}"):
        faults.run(f"launch_{name}", 1, out, data, writes=[out], seeds=[seed])


@pytest.mark.parametrize("name", FAULTS)
def test_correct_twin_passes(faults: Emulated, name: str) -> None:
    out, data = arguments()
    faults.run(f"launch_{name}", 0, out, data, writes=[out])
    assert np.isfinite(out).all()


def test_spinning_thread_is_reported_not_hung_on(faults: Emulated) -> None:
    out, data = arguments()
    faults.run("launch_endless_loop", 0, out, data, writes=[out])
    with pytest.raises(EmulatorFault, match="an endless loop"):
        faults.run("launch_endless_loop", 1, out, data, writes=[out], seeds=[0])
