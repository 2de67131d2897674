"""Reading machine code: what a compiled kernel does in its main loop."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import triton

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_LABEL = re.compile(r"^\s*(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(@!?U?P[T\d]+\s+)?([A-Z][A-Z0-9_.]*)(.*?);")
_TARGET = re.compile(r"\((\.L_x_\d+)\)")


@dataclass(frozen=True)
class Report:
    """Of one compiled kernel."""

    registers: int
    stack: int  # bytes a thread
    shared: int  # bytes a block
    loop: tuple[str, ...]  # opcodes of the main loop, in order; of the whole kernel if it has none
    total: int  # instructions
    local: int  # accesses of local memory: spills

    def count(self, *prefixes: str) -> int:
        """Instructions of the loop whose opcode starts so."""
        return sum(opcode.startswith(prefixes) for opcode in self.loop)

    def accesses(self) -> Counter[tuple[str, int]]:
        """("LDG" or "STG", bytes) -> how many in the loop."""
        found: Counter[tuple[str, int]] = Counter()
        for opcode in self.loop:
            kind, *suffixes = opcode.split(".")
            if kind in ("LDG", "STG"):
                widths = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
                found[kind, next((widths[s] for s in suffixes if s in widths), 4)] += 1
        return found


def _run(tool: str, *arguments: str) -> str:
    command = [str(_TOOLS / tool), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def report(cubin: bytes) -> Report:
    """Reads a cubin with the disassembler in Triton's wheel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
        code = _run("nvdisasm", "-c", file.name)
    labels: dict[str, int] = {}
    opcodes: list[str] = []
    masked: set[int] = set()  # loads under a predicate
    loops: list[tuple[int, int]] = []
    for line in code.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(opcodes)
        elif instruction := _INSTRUCTION.match(line):
            predicate, opcode, operands = instruction.groups()
            if predicate and opcode.startswith("LDG"):
                masked.add(len(opcodes))
            opcodes.append(opcode)
            target = _TARGET.search(operands)
            if opcode.startswith("BRA") and target and target[1] in labels:
                start = labels[target[1]]
                # The padding at the end of a kernel branches to itself.
                if start < len(opcodes) - 1:
                    loops.append((start, len(opcodes)))
    # The longest of the loops over whole tiles, which have no masks.
    whole = [span for span in loops if masked.isdisjoint(range(*span))]
    start, end = max(whole or loops, key=lambda s: s[1] - s[0], default=(0, len(opcodes)))

    def used(what: str) -> int:
        return sum(int(n) for n in re.findall(rf"\b{what}:(\d+)", usage))

    return Report(
        registers=used("REG"),
        stack=used("STACK"),
        shared=used("SHARED"),
        loop=tuple(opcodes[start:end]),
        total=len(opcodes),
        local=sum(opcode.startswith(("LDL", "STL")) for opcode in opcodes),
    )
