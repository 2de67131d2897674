"""What GPUs can do at most, and what therefore bounds a kernel: a prediction, not a measurement.

Limits of a multiprocessor: NVIDIA, CUDA Programming Guide, "Compute Capabilities"
(docs.nvidia.com/cuda/cuda-programming-guide/05-appendices/compute-capabilities.html). Rates by kind of
instruction: CUDA C++ Best Practices Guide, "Throughput of Native Arithmetic Instructions"
(docs.nvidia.com/cuda/cuda-c-best-practices-guide). Which pipeline an instruction takes, and where the
table is silent or too kind, is measured by others, on a B300 (sm_103) with Nsight Compute: comparisons,
minima, selections, logic and shifts 64 a clock on one pipeline, which is less than the 128 that the
table gives 10.0 for minima; packing two floats into 16-bit ones 32 on the same; wide products and
widening of a float16 64, on half of the float32 units. All of it errs on the side of the instructions,
and so does the reading that conversions between floats and integers count as special functions.

Chips, with the float32 peak that number of multiprocessors and clock amount to:
- A100 80 GB SXM: 108 × 1.41 GHz, 2039 GB/s, 19.5 TFLOPS. NVIDIA A100 datasheet (1758950).
- RTX 4090: 128 × 2.52 GHz, 1008 GB/s, 82.6 TFLOPS. NVIDIA Ada GPU Architecture, appendix A.
- H100 SXM: 132 × 1.98 GHz, 3350 GB/s, 66.9 TFLOPS. NVIDIA H100 Tensor Core GPU Architecture, table 3:
  the clock without tensor cores; with them it is 1.83 GHz.
- B200: NVIDIA states no number of multiprocessors, and bandwidth as "up to 8 TB/s". 148 and 7672 GB/s
  are what a B200's driver reports (7680 bits at 3996 MHz, twice a clock: github.com/pytorch/ao/pull/4002);
  1.965 GHz is the clock that openxla/xla assumes (stream_executor/cuda/cuda_core_info_table.cc).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from types import MappingProxyType


@dataclass(frozen=True)
class Multiprocessor:
    warps: int
    blocks: int
    shared: int  # bytes
    #: Threads' instructions a clock.
    rates: Mapping[str, int]


REGISTERS = 65536  # of a multiprocessor, since 8.0
SHARED_RESERVED = 1024  # bytes a block, by the system, since 8.0
#: That any of the architectures gives a block: what 8.6 and 8.9 have, less the reserved part.
SHARED_OF_BLOCK = 99 << 10


def _multiprocessor(
    warps: int, blocks: int, shared_kib: int, float32: int, float64: int, tensor: int
) -> Multiprocessor:
    rates = {
        "issue": 128,
        "integer": 64,
        "multiply": 64,
        "float": float32,
        "float64": float64,
        "special": 16,
        "shared": 32,
        "global": 32,
        "tensor": tensor,
    }
    return Multiprocessor(warps, blocks, shared_kib << 10, MappingProxyType(rates))


#: By compute capability. tensor: HMMA.16816 with float32 sums, 2048 multiply-adds for 32 threads, at the
#: peak of the whitepapers (A100 312, RTX 4090 165, H100 989 TFLOPS); 9.0 reaches it by other
#: instructions only, and 10.0's own are not these: it is given 9.0's. Its own, UTCHMMA, do 2.25 PFLOPS
#: on a B200 (HGX B200 datasheet: 4.5 with sparsity, which is half of it without): twice as much.
MULTIPROCESSORS = {
    "80": _multiprocessor(64, 32, 164, 64, 32, 16),
    "86": _multiprocessor(48, 16, 100, 128, 2, 4),
    "89": _multiprocessor(48, 24, 100, 128, 2, 4),
    "90": _multiprocessor(64, 32, 228, 128, 64, 32),
    "100": _multiprocessor(64, 32, 228, 128, 64, 32),
}
ARCHITECTURES = tuple(MULTIPROCESSORS)


@dataclass(frozen=True)
class Chip:
    name: str
    architecture: str
    multiprocessors: int
    gigahertz: float
    gigabytes: float  # a second

    @property
    def bytes_a_clock(self) -> float:
        """For each multiprocessor."""
        return self.gigabytes / (self.gigahertz * self.multiprocessors)


CHIPS = (
    Chip("A100", "80", 108, 1.41, 2039),
    Chip("RTX 4090", "89", 128, 2.52, 1008),
    Chip("H100", "90", 132, 1.98, 3350),
    Chip("B200", "100", 148, 1.965, 7672),
)

#: Class -> names of instructions. What is in none of them (moves, uniform registers, reading of
#: special registers) is "other" and takes a turn to issue, nothing else.
CLASSES = {
    "global": "LDG LD STG ST LDGSTS ATOMG ATOM RED",
    "shared": "LDS STS LDSM STSM ATOMS SHFL REDUX",
    "integer": "IADD IADD3 IMAD IMUL LOP3 LOP SHF SHL SHR LEA PRMT ISETP SEL IMNMX VIMNMX VIADD"
    " VIADDMNMX IABS PLOP3 P2R R2P POPC FLO BREV SGXT BMSK I2FP F2FP VOTE",
    "float": "FADD FADD2 FMUL FMUL2 FFMA FFMA2 FSETP FSEL FMNMX FMNMX3 FCHK FSET HADD2 HMUL2 HFMA2"
    " HSETP2 HSET2 HMNMX2",
    "float64": "DADD DMUL DFMA DSETP DMNMX",
    "special": "MUFU I2F F2I F2F FRND",
    "tensor": "HMMA HGMMA UTCHMMA IMMA BMMA DMMA QMMA OMMA",
    "control": "BRA BRX BRXU JMP CALL RET EXIT BSSY BSYNC BREAK BMOV WARPSYNC BAR NOP DEPBAR LDGDEPBAR"
    " YIELD NANOSLEEP",
}
_CLASS_OF = {name: kind for kind, names in CLASSES.items() for name in names.split()}


def class_of(opcode: str) -> str:
    return _CLASS_OF.get(opcode.split(".")[0], "other")


def _units_of(opcode: str) -> tuple[str, ...]:
    """The units that an instruction keeps busy; twice where it does so for twice as long."""
    name, *suffixes = opcode.split(".")
    if name == "F2FP":
        return ("integer", "integer")
    if name == "HADD2" and "F32" in suffixes:  # widens a float16
        return ("multiply", "float")
    if name in ("FSETP", "FSEL", "FMNMX", "FMNMX3", "FSET"):
        return ("integer",)  # comparisons are not for the units that multiply and add
    if name in ("IMAD", "IMUL"):
        return ("multiply", "float")  # on a part of them, which floats then do without
    if name in ("F2F", "I2F", "F2I") and "F64" in suffixes:
        return ("float64",)
    return (class_of(opcode),)


def _wavefronts(opcode: str) -> int:
    """Passes over the banks of shared memory, 128 bytes each, that a warp's access takes at least."""
    name, *suffixes = opcode.split(".")
    if name == "HGMMA":  # 64 x N x 16 by four warps, as so many HMMA.16816
        return int(suffixes[0].split("x")[1]) // 8
    if name == "LDSM":  # matrices of 128 bytes
        return int(suffixes[-1]) if suffixes and suffixes[-1] in ("2", "4") else 1
    if name in ("LDS", "STS"):
        return 4 if "128" in suffixes else 2 if "64" in suffixes else 1
    return 1


def by_class(opcodes: Mapping[str, int]) -> Counter[str]:
    found: Counter[str] = Counter()
    for opcode, n in opcodes.items():
        found[class_of(opcode)] += n
    return found


@dataclass(frozen=True)
class Prediction:
    limiter: str  # "memory", "issue" or a class of instructions
    share: float  # of the time that the limiter takes: memory's; 1 where it is the limiter
    clocks: Mapping[str, float]  # of a multiprocessor for an element, for each candidate


def predict(
    chip: Chip,
    opcodes: Mapping[str, int],
    elements: float,
    bytes_each: float,
    products: int | None = None,
) -> Prediction:
    """Of a loop whose turn has these instructions, handles `elements` a thread and moves so much.

    Every unit is taken to be busy all the time; the one that takes longest is the limiter. `products`:
    the HMMA.16816 that a turn's matrix products come to, where instructions do not show their size.
    """
    rates = MULTIPROCESSORS[chip.architecture].rates
    units: dict[str, float] = defaultdict(float)
    for opcode, n in opcodes.items():
        units["issue"] += n
        for unit in _units_of(opcode):
            if unit in rates:
                units[unit] += n * _wavefronts(opcode)
    if any(opcode.startswith("UTCHMMA") for opcode in opcodes):
        if products is None:
            del units["tensor"]
        else:
            units["tensor"] = products / 2
    clocks = {unit: n / elements / rates[unit] for unit, n in units.items()}
    # Wide accesses keep the first-level cache busy for longer than the load-store unit.
    clocks["global"] = max(clocks.get("global", 0.0), bytes_each / 128)
    clocks["memory"] = bytes_each / chip.bytes_a_clock
    limiter = max(clocks, key=lambda unit: (clocks[unit], unit == "memory"))
    return Prediction(limiter, clocks["memory"] / clocks[limiter], clocks)


def own_shared(architecture: str, reported: int) -> int:
    """Bytes of shared memory without the system's, which newer GPUs count in."""
    if architecture in ("90", "100") and reported >= SHARED_RESERVED:
        return reported - SHARED_RESERVED
    return reported


def occupancy(architecture: str, threads: int, registers: int, shared: int) -> float:
    """The share of a multiprocessor's warps that are resident, in [0, 1]. shared: a block's own."""
    limits = MULTIPROCESSORS[architecture]
    warps = ceil(threads / 32)
    # Registers are handed out to warps in units of 256, of which each of the four parts has a fourth.
    each = max(256, ceil(registers * 32 / 256) * 256)
    by_registers = REGISTERS // 4 // each * 4 // warps
    by_shared = limits.shared // (ceil(shared / 128) * 128 + SHARED_RESERVED)
    blocks = min(limits.warps // warps, limits.blocks, by_registers, by_shared)
    return blocks * warps / limits.warps
