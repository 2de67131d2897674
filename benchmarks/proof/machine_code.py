"""Reads compiled kernels: what ptxas allotted, and one turn of the main loop.

A turn is the longest way through the loop by number of instructions, so that branches that exclude
each other are not added up. Left out are blocks that call a subroutine and those a warp enters only
when its threads have diverged: ptxas puts the rare cases of roots and divisions into the former and
those of shuffles into the latter. Left out, too, are turns of a loop that does nothing but wait, as for
what sm_100's tensor cores have begun.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .elf import joined


@dataclass(frozen=True)
class Code:
    """One compiled kernel."""

    registers: int  # a thread
    stack: int  # bytes a thread
    shared: int  # bytes a block
    local: int  # accesses of local memory: spills, or arrays that found no registers
    instructions: int  # of the whole kernel
    loop: dict[str, int]  # opcode -> how many in one turn of the main loop; empty: there is none
    widths: tuple[int, ...]  # bytes of the global accesses anywhere in the main loop
    spilled: int = 0  # bytes, by ptxas' own report where there is one
    products: int = 0  # instructions of the tensor cores, of the whole kernel

    def accesses(self) -> Counter[tuple[str, int]]:
        """("load" or "store", bytes) -> how many of a turn."""
        found: Counter[tuple[str, int]] = Counter()
        for opcode, n in self.loop.items():
            if access := global_access(opcode):
                found[access] += n
        return found

    def count(self, *names: str) -> int:
        """Instructions of a turn of these names, suffixes aside."""
        return sum(n for opcode, n in self.loop.items() if opcode.split(".")[0] in names)

    @property
    def turn(self) -> int:
        """Instructions of a turn."""
        return sum(self.loop.values())


#: Of 16-bit floats or tfloat32: since 8.0, on 9.0 by four warps together, on 10.0.
PRODUCTS = ("HMMA", "HGMMA", "UTCHMMA")

#: So many fused multiply-adds in one turn of a loop make it a product of matrices.
MATRIX_FMA = 200

_KINDS = {"LDG": "load", "LD": "load", "LDGSTS": "load", "STG": "store", "ST": "store"}
_WIDTHS = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}


def global_access(opcode: str) -> tuple[str, int] | None:
    """("load" or "store", bytes), or None of any other instruction."""
    name, *suffixes = opcode.split(".")
    if name not in _KINDS:
        return None
    return _KINDS[name], next((_WIDTHS[s] for s in suffixes if s in _WIDTHS), 4)


def tools() -> Path:
    """Where cuobjdump and nvdisasm are: Triton's wheel brings its own."""
    import triton

    return Path(triton.__file__).parent / "backends/nvidia/bin"


def run(tool: str, *arguments: str, folder: str | None = None) -> str:
    command = [str(tools() / tool), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    return done.stdout


def read(*cubins: bytes) -> list[dict[str, Code]]:
    """The kernels of each cubin, by their mangled names; all of one architecture."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.cubin" for i in range(len(cubins))]
        for file, cubin in zip(files, cubins, strict=True):
            file.write_bytes(cubin)
        usage = [_usage(run("cuobjdump", "-res-usage", str(file))) for file in files]
        graphs = _disassembled(files)
    return [
        {name: _code(blocks[name], used) for name, used in kernels.items()}
        for kernels, blocks in zip(usage, graphs, strict=True)
    ]


def _disassembled(files: Sequence[Path]) -> list[dict[str, list[Block]]]:
    """The graphs of each file, by kernel.

    A third of nvdisasm's time is its analysis of data flow, and most of the rest its beginning, so
    that all are read without the one and in one file; see elf.py. Only branches through a table need
    the analysis and what else is in their file, to have their targets listed.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(joined([f.read_bytes() for f in files]))
        file.flush()
        text = run("nvdisasm", "-c", "-ndf", file.name)
    if _TABLE.search(text):
        return [_graphs(run("nvdisasm", "-c", str(file))) for file in files]
    found: list[dict[str, list[Block]]] = [{} for _ in files]
    for name, blocks in _graphs(text).items():
        i, _, own = name.partition(".")
        found[int(i)][own] = blocks
    return found


def _usage(text: str) -> dict[str, dict[str, int]]:
    found = re.findall(r"^ *Function (\S+):\n(.*)$", text, re.M)
    return {
        name: {key: int(n) for key, n in re.findall(r"\b([A-Z]+):(\d+)", line)}
        for name, line in found
    }


# --- the graph of a kernel's basic blocks ---------------------------------------------------------

_SECTION = re.compile(r"^\.text\.(\S+):$")
_LABEL = re.compile(r"^\s*(\S+):$")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(@!?U?P[T\d]+\s+)?([A-Z][A-Z0-9_.x]*)(.*?);?\s*$")
_TARGET = re.compile(r"\.L_x_\d+")
_TABLE = re.compile(r"\b(?:BRX|JMX)U?\b")
_CONDITION = re.compile(r"^\s*!?U?P[T\d]+\s*,")  # newer GPUs: in front of a branch's target


@dataclass
class Block:
    opcodes: list[str] = field(default_factory=list)
    masked: set[int] = field(default_factory=set)  # which of them are loads under a predicate
    targets: list[str] = field(default_factory=list)
    falls: bool = True  # through to the next block
    cold: bool = False
    successors: list[int] = field(default_factory=list)


def _graphs(text: str) -> dict[str, list[Block]]:
    graphs: dict[str, list[Block]] = {}
    labels: dict[str, tuple[list[Block], int]] = {}
    joins: dict[str, str] = {}  # barrier register -> label at which its warps join again
    blocks: list[Block] = []
    for line in text.splitlines():
        if section := _SECTION.match(line):
            blocks = graphs[section[1]] = [Block()]
        elif not graphs:
            continue
        elif label := _LABEL.match(line):
            if blocks[-1].opcodes:
                blocks.append(Block())
            labels[label[1]] = (blocks, len(blocks) - 1)
        elif instruction := _INSTRUCTION.match(line):
            _append(blocks, joins, *instruction.groups())
    for blocks in graphs.values():
        for i, block in enumerate(blocks):
            # A branch to another section is a call.
            inside = [labels[t][1] for t in block.targets if t in labels and labels[t][0] is blocks]
            falls = [i + 1] if block.falls and i + 1 < len(blocks) else []
            block.successors = list(dict.fromkeys(inside + falls))
    return graphs


def _append(
    blocks: list[Block], joins: dict[str, str], predicate: str | None, opcode: str, operands: str
) -> None:
    block, (name, *suffixes) = blocks[-1], opcode.split(".")
    if predicate and name in ("LDG", "LD"):
        block.masked.add(len(block.opcodes))
    block.opcodes.append(opcode)
    targets = _TARGET.findall(operands)
    if name == "BSSY":
        joins[operands.split(",")[0].strip()] = targets[0]
    if name == "CALL" and not targets:  # by ptxas' name for it; a call of a plain label is a jump
        block.cold = True
        return
    if name not in ("BRA", "BRX", "BRXU", "CALL", "JMP", "EXIT", "RET", "BSYNC"):
        return
    conditional = bool(predicate) or bool(_CONDITION.match(operands))
    if name == "BSYNC":
        joined = joins.get(operands.strip())
        block.targets = [joined] if joined else []
        block.falls = conditional or not joined
    elif "DIV" in suffixes:  # where the warp is not whole
        block.falls = True
    else:
        block.targets = targets
        block.falls = conditional
    blocks.append(Block())


# --- loops ----------------------------------------------------------------------------------------


def _order(blocks: list[Block]) -> list[int]:
    """Blocks that can be reached, each before its successors but for back edges."""
    seen, order = {0}, []
    stack: list[tuple[int, Iterator[int]]] = [(0, iter(blocks[0].successors))]
    while stack:
        block, rest = stack[-1]
        following = next((s for s in rest if s not in seen), None)
        if following is None:
            order.append(block)
            stack.pop()
        else:
            seen.add(following)
            stack.append((following, iter(blocks[following].successors)))
    return order[::-1]


def _dominators(blocks: list[Block], order: list[int]) -> dict[int, set[int]]:
    before: dict[int, list[int]] = {b: [] for b in order}
    for b in order:
        for s in blocks[b].successors:
            before[s].append(b)
    dominators = {b: set(order) for b in order}
    dominators[0] = {0}
    changed = True
    while changed:
        changed = False
        for b in order[1:]:
            new = set.intersection(*(dominators[p] for p in before[b])) | {b}
            changed |= new != dominators[b]
            dominators[b] = new
    return dominators


#: What a loop is made of that asks whether something has arrived, and asks again.
_WAITING = frozenset(("SYNCS", "BRA", "NOP", "NANOSLEEP"))


def _waits(blocks: list[Block], body: set[int]) -> bool:
    names = {opcode.split(".")[0] for b in body for opcode in blocks[b].opcodes}
    return "SYNCS" in names and names <= _WAITING


@dataclass(frozen=True)
class Loop:
    head: int
    body: frozenset[int]


def _loops(blocks: list[Block], order: list[int]) -> list[Loop]:
    """The innermost natural loops but those that wait, whose blocks become cold."""
    dominators = _dominators(blocks, order)
    before: dict[int, list[int]] = {b: [] for b in order}
    for b in order:
        for s in blocks[b].successors:
            before[s].append(b)
    bodies: dict[int, set[int]] = {}
    for b in order:
        for head in blocks[b].successors:
            if head not in dominators[b]:
                continue
            body, todo = bodies.setdefault(head, {head}), [b]
            while todo:
                block = todo.pop()
                if block not in body:
                    body.add(block)
                    todo += before[block]
    waiting = {head for head, body in bodies.items() if _waits(blocks, body)}
    for head in waiting:
        for b in bodies.pop(head):
            blocks[b].cold = True
    return [
        Loop(head, frozenset(body))
        for head, body in bodies.items()
        if not any(other in body for other in bodies if other != head)
    ]


def _turn(blocks: list[Block], order: list[int], loop: Loop) -> list[int]:
    """The blocks of the longest way from the head back to it."""
    for warm in (True, False):
        ways: dict[int, tuple[int, list[int]]] = {}
        for b in (b for b in order if b in loop.body):
            if warm and blocks[b].cold:
                continue
            arriving = [ways[p] for p in ways if b in blocks[p].successors and b != loop.head]
            if b == loop.head:
                arriving = [(0, [])]
            if arriving:
                length, way = max(arriving, key=lambda found: found[0])
                ways[b] = (length + len(blocks[b].opcodes), [*way, b])
        whole = [ways[b] for b in ways if loop.head in blocks[b].successors]
        if whole:
            return max(whole, key=lambda found: found[0])[1]
    return []


def _code(blocks: list[Block], used: dict[str, int]) -> Code:
    order = _order(blocks)
    best = (0, 0, 0, 0, 0)
    loop: Counter[str] = Counter()
    widths: set[int] = set()
    for candidate in _loops(blocks, order):
        turn = _turn(blocks, order, candidate)
        opcodes = [opcode for b in turn for opcode in blocks[b].opcodes]
        whole = [
            o for b in turn for i, o in enumerate(blocks[b].opcodes) if i not in blocks[b].masked
        ]
        # Where there are none, but a product of matrices all the same, its loop.
        fused = sum(opcode.split(".")[0] == "FFMA" for opcode in opcodes)
        fused = fused if fused >= MATRIX_FMA else 0
        # Where there are tensor cores, the loop that keeps them busy; of two that do so alike, one for
        # whole tiles and one with masks for the last or for a bias, the former, which is shorter.
        products = sum(opcode.split(".")[0] in PRODUCTS for opcode in opcodes)
        length = -len(opcodes) if products else 0
        # Loops over whole groups have no masks, and move more than those over what remains.
        weight = (products, 0 if products else fused, length, _moved(whole), _moved(opcodes))
        if weight > best:
            best, loop = weight, Counter(opcodes)
            accesses = map(global_access, (o for b in candidate.body for o in blocks[b].opcodes))
            widths = {access[1] for access in accesses if access}
    everything = [opcode for block in blocks for opcode in block.opcodes]
    return Code(
        registers=used["REG"],
        stack=used["STACK"],
        shared=used["SHARED"],
        local=sum(opcode.startswith(("LDL", "STL")) for opcode in everything),
        instructions=len(everything),
        loop=dict(loop),
        widths=tuple(sorted(widths)),
        products=sum(opcode.split(".")[0] in PRODUCTS for opcode in everything),
    )


def _moved(opcodes: list[str]) -> int:
    return sum(access[1] for access in map(global_access, opcodes) if access)
