"""Times small attention as whole calls: torch's function, and the op by our kernels and left to torch.

    python -m benchmarks.attention_calls [--dtype bfloat16] [--threads 1] [--seconds 1]

From which size on our kernels are worth what is around a call: `udp_fast.backends.preference.MEASURED`'s
``least_work``. Forward where nothing is differentiated; forward and backward for dq alone and for all
gradients; with few keys also where a bias pads them, as a text's are. One call at a time, in any order, so
that each finds the caches as another left them.
"""

from __future__ import annotations

import gc
import importlib
import math
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from udp_fast.backends import preference
from udp_fast.ops import attention
from udp_fast.ops.remembered import Remembered

from .attention_kernels import operands, read_options
from .measure import OURS

#: B, H, N, M, D.
SHAPES = (
    *((1, 8, n, n, 40) for n in (16, 32, 64, 100)),
    *((1, 8, n, 77, 40) for n in (32, 64, 128)),
    *((1, 8, n, n, 64) for n in (80, 112)),
    *((1, 8, n, 77, 80) for n in (16, 64)),
    *((1, 8, n, n, 160) for n in (16, 32, 64, 96, 128)),
    *((1, 8, n, 77, 160) for n in (16, 32, 64)),
    *((1, 4, 64, 200, 64), (2, 4, 64, 256, 64), (1, 8, 64, 160, 160)),
)

#: By name, which of q, k and v require a gradient.
NEEDS = {"forward": (False,) * 3, "dq": (True, False, False), "all": (True,) * 3}

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def torchs(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, bias)


def op(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    return attention(q, k, v, bias=bias)


class TakenBy:
    """The op where one backend takes every call, whatever the table says, and is remembered for it."""

    def __init__(self, name: str) -> None:
        self.others = {"cpu", "sdpa"} - {name}
        self.memory = Remembered(constants=2), Remembered(constants=2)

    def __call__(self) -> Attend:
        # The module, whose name in the package is the function's.
        module: Any = importlib.import_module("udp_fast.ops.attention")
        module._remembered, module._remembered_backward = self.memory
        preference.leaves = lambda name, op, args: name in self.others
        return op


def ratios(
    shape: tuple[int, ...],
    needs: tuple[bool, ...],
    dtype: torch.dtype,
    seconds: float,
    padded: bool = False,
) -> str:
    """Torch's median time over that of the op by our kernels and left to torch."""
    ways = {
        "torch": lambda: torchs,
        OURS: TakenBy("cpu"),
        "left": TakenBy("sdpa"),
    }
    q, k, v, grad = operands(shape, dtype)
    q, k, v = (x.requires_grad_(needed) for x, needed in zip((q, k, v), needs, strict=True))
    leaves = [x for x in (q, k, v) if x.requires_grad]
    bias = None
    if padded:
        bias = torch.zeros(shape[0], 1, 1, shape[3], dtype=dtype)
        bias[..., shape[3] // 2 :] = -torch.inf

    def timed(name: str) -> tuple[float, float]:
        attend = ways[name]()
        start = time.perf_counter()
        out = attend(q, k, v, bias)
        middle = time.perf_counter()
        if leaves:
            torch.autograd.grad(out, leaves, grad)
        return middle - start, time.perf_counter() - start

    # The first calls, which are checked, chosen for and kept, do not count.
    for name in ways:
        timed(name)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    order, end = list(ways), time.perf_counter() + seconds
    while time.perf_counter() < end:
        random.shuffle(order)
        for name in order:
            times[name].append(timed(name))
    first, both = ({w: statistics.median(t[i] for t in times[w]) for w in ways} for i in (0, 1))
    found = f"torch {both['torch'] * 1e6:7.0f} us"
    for name in (OURS, "left"):
        found += f" | {name} {both['torch'] / both[name]:.2f}x"
        if leaves:
            found += f" (forward {first['torch'] / first[name]:.2f}x)"
    return found


def main() -> None:
    dtype, seconds = read_options("attention_calls", __doc__, 1.0)
    gc.disable()  # or one player's turn would clean up after another
    for shape in SHAPES:
        work = math.prod(shape) / 1e6
        for name, needs in NEEDS.items():
            for padded in (False, True) if shape[3] == 77 else (False,):
                found = ratios(shape, needs, dtype, seconds, padded)
                case = f"{work:6.2f} M {'×'.join(map(str, shape)):17} {name:7}"
                print(f"{case} {'padded' if padded else '':6} {found}", flush=True)


if __name__ == "__main__":
    main()
