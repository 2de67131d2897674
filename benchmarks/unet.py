"""An image gradient through Stable Diffusion 1.5's UNet, before and after `udp_fast.accelerate`.

    python -m benchmarks.unet [--size 64] [--rounds 5] [--write docs/performance.md]

The network has its true configuration and random weights, all frozen before and after; a step is
the loss on an ε prediction and its gradient with respect to the latents. Before and after take
turns in one process. `--write` replaces the section of the document that this command wrote last,
or puts one before its first table.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import udp_fast
from udp_fast.backends import dispatch
from udp_fast.backends.registry import Backend

#: Stable Diffusion 1.5's UNet. attention_head_dim is the number of heads, as diffusers has it here.
SD15 = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}

#: The bars: wall time before over after at least, saved bytes after over before at most.
FASTER, SAVED = 1.25, 0.75

BEGIN, END = "<!-- unet: begin -->", "<!-- unet: end -->"


def random_unet(config: dict[str, Any]) -> nn.Module:
    """With weights of the scale that keeps activations near one, made without the slow default."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet: nn.Module = UNet2DConditionModel(**config)
    unet.to_empty(device="cpu").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, p in unet.named_parameters():
        if p.dim() == 1:
            p.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.1)
        else:
            bound = (3.0 / p[0].numel()) ** 0.5
            p.uniform_(-bound, bound, generator=generator)
    return unet


def saved_bytes(run: Callable[[Tensor], Tensor], x: Tensor, module: nn.Module) -> int:
    """What autograd keeps from the forward to the backward: each storage once, weights apart."""
    weights = {p.untyped_storage().data_ptr() for p in (*module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run(x.detach().clone().requires_grad_())
    assert out.requires_grad  # its graph has held every storage, so no address came twice
    return sum(kept.values())


def _conv_flops(x: Tensor, out: int) -> int:
    images, channels, height, width = x.shape
    return 2 * 36 * images * -(-height // 4) * -(-width // 4) * channels * out


def _attention_flops(q: Tensor, k: Tensor, products: int) -> int:
    return 2 * products * q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] * q.shape[3]


def _native_flops(op: str, args: tuple[Any, ...]) -> int:
    """Multiplications and additions of the matrix products in a native kernel."""
    if op == "conv3x3":
        return _conv_flops(args[0], args[1].shape[0])
    if op == "conv3x3_dx":
        return _conv_flops(args[0], args[1].shape[1])
    if op == "attention":
        return _attention_flops(args[0], args[1], 2)
    if op == "attention_backward":
        return _attention_flops(args[1], args[2], 5 if any(args[-1][1:]) else 3)
    return 0


def _torch_attention(q: Any, k: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * 2 * q[0] * q[1] * q[2] * k[2] * q[3]


def _torch_attention_backward(grad: Any, q: Any, k: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * 5 * q[0] * q[1] * q[2] * k[2] * q[3]


#: torch counts its attention on GPUs, not on the CPU. Arguments are the tensors' shapes.
_UNCOUNTED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _torch_attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _torch_attention_backward,
}


class Kernels(TorchDispatchMode):
    """Counts the operators that compute: neither views nor allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name
        if not func.is_view and not re.match(r"aten::(empty|new_empty|detach|_unsafe_view)", name):
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))


@dataclass
class Figures:
    """One side of the comparison."""

    seconds: list[float] = field(default_factory=list)
    saved: int = 0
    flops: int = 0
    kernels: int = 0
    peak: int = 0


def _status(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def peak_memory(step: Callable[[], object]) -> int:
    """Bytes by which the process's resident memory rose during the step."""
    # What the allocator keeps of memory freed before would hide a part of the rise: the more, the later
    # a step comes.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    step()
    return _status("VmHWM") - before


def count(step: Callable[[], object]) -> tuple[int, int]:
    """FLOPs of the matrix products and convolutions as they are carried out, and kernels."""
    native: list[tuple[str, int]] = []
    select = dispatch.select

    def counted(op: str, args: tuple[Any, ...]) -> Backend:
        chosen = select(op, args)
        if chosen.name == "cpu":
            native.append((op, _native_flops(op, args)))
        return chosen

    kernels = Kernels()
    flops = FlopCounterMode(display=False, custom_mapping=_UNCOUNTED)
    dispatch.select = counted
    try:
        with flops, kernels:
            step()
    finally:
        dispatch.select = select
    return (
        flops.get_total_flops() + sum(n for _, n in native),
        sum(kernels.calls.values()) + len(native),
    )


def measure(size: int, rounds: int) -> tuple[Figures, Figures, float, float]:
    """Before, after, and how far output and gradient of the two differ, relative to the largest."""
    unet = random_unet({**SD15, "sample_size": size})
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 4, size, size, generator=generator)
    noise = torch.randn(1, 4, size, size, generator=generator)
    text, t = torch.randn(1, 77, 768, generator=generator), torch.tensor([500])

    def run(x: Tensor) -> Tensor:
        out = unet(x, t, text).sample
        assert isinstance(out, Tensor)
        return out

    def step() -> tuple[Tensor, Tensor]:
        x = latents.clone().requires_grad_()
        out = run(x)
        (out - noise).square().mean().backward()  # all else is frozen
        assert x.grad is not None
        return out.detach(), x.grad

    before, after = Figures(), Figures()
    results: list[tuple[Tensor, Tensor]] = []
    for figures in (before, after):
        done = udp_fast.accelerate(unet) if figures is after else None
        figures.flops, figures.kernels = count(step)  # and the first touch of everything
        figures.saved = saved_bytes(run, latents, unet)
        figures.peak = peak_memory(lambda: results.append(step()))
        if done is not None:
            print(done, flush=True)
            done.undo()
    for _ in range(rounds):
        for figures in (before, after):
            done = udp_fast.accelerate(unet) if figures is after else None
            start = time.perf_counter()
            step()
            figures.seconds.append(time.perf_counter() - start)
            if done is not None:
                done.undo()
        print(f"before {before.seconds[-1]:.2f} s, after {after.seconds[-1]:.2f} s", flush=True)
    out, grad = (
        float((mine - theirs).abs().max() / theirs.abs().max())
        for mine, theirs in zip(results[1], results[0], strict=True)
    )
    return before, after, out, grad


def section(
    size: int, before: Figures, after: Figures, out: float, grad: float, about: str
) -> tuple[str, list[str]]:
    """The section, and the bars that are missed."""
    faster = statistics.median(b / a for b, a in zip(before.seconds, after.seconds, strict=True))
    saved = after.saved / before.saved
    bars = [
        (f"≥ {FASTER}×", faster >= FASTER, f"the wall time's ratio is {faster:.2f}"),
        (f"≤ {SAVED:.0%}", saved <= SAVED, f"saved bytes are {saved:.0%}"),
    ]
    wall, kept = (f"{text}: {'met' if met else 'MISSED'}" for text, met, _ in bars)

    def row(name: str, b: float, a: float, unit: str, digits: int, bar: str = "") -> str:
        change = f"{b / a:.2f}×" if unit == "s" else f"{a / b:.0%}"
        return f"| {name} | {b:.{digits}f} {unit} | {a:.{digits}f} {unit} | {change} | {bar} |"

    seconds = [statistics.median(f.seconds) for f in (before, after)]
    rows = [
        "| | before | after | | bar |",
        "| --- | --- | --- | --- | --- |",
        f"| wall time | {seconds[0]:.2f} s | {seconds[1]:.2f} s | {faster:.2f}× faster | {wall} |",
        row("saved for the backward", before.saved / 2**20, after.saved / 2**20, "MiB", 0, kept),
        row("peak memory above the weights'", before.peak / 2**20, after.peak / 2**20, "MiB", 0),
        row("FLOPs carried out", before.flops / 1e9, after.flops / 1e9, "G", 0),
        row("kernels launched", before.kernels, after.kernels, "", 0),
    ]
    table = "\n".join(rows).replace("  |", " |")
    return (
        f"""{BEGIN}
## End to end: an image gradient through Stable Diffusion 1.5's UNet

Written by `python -m benchmarks.unet --size {size} --write docs/performance.md`. {about}.

The UNet has its true configuration (channels 320, 640, 1280, 1280; 8 heads; text of 77 × 768) and random
weights. A step is the loss on an ε prediction for latents of 1 × 4 × {size} × {size} in float32 and its gradient
with respect to them. *Before* is diffusers' module with frozen weights, *after* the same module under
`udp_fast.accelerate`. They take turns; wall times are medians, and their ratio is the median of the
turns' ratios. Saved: storages that autograd keeps, each once, without the weights. FLOPs: two for each
multiplication in matrix products, convolutions and attention, as the kernels carry them out. Kernels:
operators that compute something, so neither views nor allocations. The largest difference between
the two, over the largest value: {out:.1e} in the output, {grad:.1e} in the gradient.

{table}
{END}
""",
        [text for _, met, text in bars if not met],
    )


_SECTION = re.compile(rf"{re.escape(BEGIN)}.*?{re.escape(END)}\n", re.DOTALL)


def carried_over(old: str, new: str) -> str:
    """The new document with the section of the old one, if that has one, below the title."""
    found = _SECTION.search(old)
    if found is None:
        return new
    head, rest = _SECTION.sub("", new).split("\n\n", 1)
    return f"{head}\n\n{found[0]}\n{rest.lstrip()}"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.unet", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--size", type=int, default=64, help="of the latents (default 64)")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each (default 5)")
    parser.add_argument("--threads", type=int, default=2, help="default 2")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the section into FILE")
    options = parser.parse_args()
    from . import __main__ as ops

    torch.set_num_threads(options.threads)
    before, after, out, grad = measure(options.size, options.rounds)
    # The processes that wanted a core in the last minutes, these threads among them: with more of
    # them than cores, times say little.
    facts = {**ops.machine(), "load": round(os.getloadavg()[1], 1)}
    about = ", ".join(f"{key} {value}" for key, value in facts.items())
    text, missed = section(options.size, before, after, out, grad, about)
    print(text)
    if options.write is not None:
        options.write.write_text(carried_over(text, options.write.read_text()))
    print("\n".join(missed) or "every bar is met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
