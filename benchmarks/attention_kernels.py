"""Times attention's CPU kernels alone beside those behind torch's function, forward and backward.

    python -m benchmarks.attention_kernels [--dtype bfloat16] [--threads 1] [--seconds 2]

Without ops, autograd or dispatch, in turns in one process: what `udp_fast.backends.preference.MEASURED`
is made from, at each number of threads. From which size on ours are worth what is around a call
`benchmarks/attention_calls.py` measures.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from udp_fast import _native
from udp_fast.backends.outputs import needs_no_statistics
from udp_fast.backends.registry import backend

from .measure import OURS, turn

#: B, H, N, M, D: texts and images themselves, heads narrow and wide, few rows and many.
SHAPES = (
    *((1, 8, n, 77, d) for n, d in ((64, 160), (256, 160), (1024, 80), (1024, 160), (4096, 40))),
    *((1, 8, n, n, 160) for n in (64, 256, 512, 1024)),
    *((1, 8, 1024, 1024, d) for d in (40, 64, 80, 128)),
    *((1, 8, 1024, 256, 160), (1, 4, 512, 512, 128), (1, 4, 256, 256, 320)),
    *((1, 1, n, n, 512) for n in (512, 1024)),
)

Players = dict[str, Callable[[], object]]


def operands(shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[Tensor]:
    """q, k, v and a gradient for what comes of them, as diffusers' layers make them."""
    b, h, n, m, d = shape
    return (torch.randn(b, rows, h, d).to(dtype).transpose(1, 2) for rows in (n, m, m, n))


def games(shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[tuple[str, Players]]:
    """By name: forward with what a backward needs, dq alone, and all three gradients."""
    q, k, v, grad = operands(shape, dtype)
    scale, m = q.shape[3] ** -0.5, k.shape[2]
    ours, aten = backend("cpu").ops, torch.ops.aten
    forward = aten._scaled_dot_product_flash_attention_for_cpu
    backward = aten._scaled_dot_product_flash_attention_for_cpu_backward
    out, lse = forward(q, k, v, 0.0, False, scale=scale)
    yield (
        "forward",
        {
            OURS: lambda: ours["attention"](q, k, v, None, scale, True),
            "torch": lambda: forward(q, k, v, 0.0, False, scale=scale),
        },
    )
    for name, needs in (("dq", [True, False, False]), ("all", [True, True, True])):
        saved = (None, None) if needs_no_statistics(needs, m) else (out, lse)
        arguments = (grad, q, k, v, None, *saved, scale, needs)
        yield (
            name,
            {
                OURS: lambda a=arguments: ours["attention_backward"](*a),  # type: ignore[misc]
                "torch": lambda: backward(grad, q, k, v, out, lse, 0.0, False, scale=scale),
            },
        )


def ratio(players: Players, seconds: float) -> tuple[float, float]:
    """Ours in seconds, and the median over the rounds of turns of torch's time over ours."""
    times: dict[str, list[float]] = {name: [] for name in players}
    names = list(players)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not times[OURS]:
        random.shuffle(names)
        for name in names:
            times[name].append(turn(players[name]))
    pairs = zip(times["torch"], times[OURS], strict=True)
    return statistics.median(times[OURS]), statistics.median(a / b for a, b in pairs)


def read_options(module: str, does: str, seconds: float) -> tuple[torch.dtype, float]:
    """The command line, done and named in the first line printed: the dtype, and seconds for each case."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{module}", description=does.split("\n")[0]
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--seconds", type=float, default=seconds, help=f"each, about (default {seconds:g})"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{options.dtype}, {_native.isa()}, threads {options.threads}, torch {torch.__version__}")
    return getattr(torch, options.dtype), options.seconds


def main() -> None:
    dtype, seconds = read_options("attention_kernels", __doc__, 2.0)
    for shape in SHAPES:
        for name, players in games(shape, dtype):
            ours, torchs = ratio(players, seconds)
            title = f"{'×'.join(map(str, shape))} {name}"
            print(f"{title:30} {ours * 1e3:8.3f} ms, torch {torchs:.2f}×", flush=True)


if __name__ == "__main__":
    main()
