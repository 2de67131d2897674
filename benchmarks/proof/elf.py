"""Joins compiled kernels into one file.

nvdisasm takes one file, and a fifth of a second to know an architecture's instructions before it reads
the first: twelve kernels in one file cost little more than one. What is joined is only for reading: there
are instructions and names, and nothing of what else a GPU or a debugger would be told.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

# Names of the fields are those of the ELF specification, Elf64_Ehdr, Elf64_Shdr and Elf64_Sym.


class _Header(NamedTuple):
    ident: bytes
    type: int
    machine: int
    version: int
    entry: int
    phoff: int
    shoff: int
    flags: int
    ehsize: int
    phentsize: int
    phnum: int
    shentsize: int
    shnum: int
    shstrndx: int


class _Section(NamedTuple):
    name: int
    type: int
    flags: int
    addr: int
    offset: int
    size: int
    link: int
    info: int
    addralign: int
    entsize: int


class _Symbol(NamedTuple):
    name: int
    info: int
    other: int
    shndx: int
    value: int
    size: int

    @property
    def is_local(self) -> bool:
        return self.info >> 4 == 0


_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_EMPTY = _Section(*[0] * len(_Section._fields))
_SYMTAB, _STRTAB, _NOTE, _NOBITS = 2, 3, 7, 8
_OF_NAMES = _EMPTY._replace(type=_STRTAB, addralign=1)
_COMPAT = 0x70000086  # .nv.compat, without which nvdisasm refuses a file
_CODE = b".text."


@dataclass(frozen=True)
class _Piece:
    """A section with its name and content."""

    name: bytes
    head: _Section
    data: bytes


class _Names:
    """A table of strings, each under the place where it begins."""

    def __init__(self) -> None:
        self.data = bytearray(1)

    def add(self, name: bytes) -> int:
        at = len(self.data)
        self.data += name + b"\0"
        return at


def _string(table: bytes, at: int) -> bytes:
    return table[at : table.index(b"\0", at)]


def _pieces(cubin: bytes) -> list[_Piece]:
    header = _Header(*_HEADER.unpack_from(cubin))
    heads = [
        _Section(*_SECTION.unpack_from(cubin, header.shoff + i * _SECTION.size))
        for i in range(header.shnum)
    ]
    content = [
        b"" if head.type == _NOBITS else cubin[head.offset : head.offset + head.size]
        for head in heads
    ]
    names = content[header.shstrndx]
    return [
        _Piece(_string(names, head.name), head, data)
        for head, data in zip(heads, content, strict=True)
    ]


def _symbols(pieces: Sequence[_Piece]) -> Iterator[tuple[bytes, _Symbol]]:
    for piece in pieces:
        if piece.head.type == _SYMTAB:
            names = pieces[piece.head.link].data
            for fields in _SYMBOL.iter_unpack(piece.data):
                symbol = _Symbol(*fields)
                yield _string(names, symbol.name), symbol


def joined(cubins: Sequence[bytes]) -> bytes:
    """The code of all, with the kernel ``name`` of cubins[i] under ``i.name``.

    Raises ValueError: they are of several architectures.
    """
    header = _Header(*_HEADER.unpack_from(cubins[0]))
    if any(_Header(*_HEADER.unpack_from(c)).flags != header.flags for c in cubins):
        raise ValueError("cubins: of several architectures, expected one")
    sections = [_Piece(b"", _EMPTY, b"")]
    symbols: list[tuple[bytes, _Symbol]] = []
    for i, cubin in enumerate(cubins):
        pieces = _pieces(cubin)
        moved = {}  # a section's place in its cubin -> in the joined file
        for place, piece in enumerate(pieces):
            # What says which architecture it is, once.
            if i == 0 and piece.head.type in (_NOTE, _COMPAT):
                sections.append(replace(piece, head=piece.head._replace(link=0, info=0)))
            if piece.name.startswith(_CODE):
                moved[place] = len(sections)
                head = piece.head._replace(link=0, info=0)
                sections.append(replace(piece, name=_renamed(piece.name, i), head=head))
        symbols += [
            # A section's own symbol bears its name, which nvdisasm prints.
            (_renamed(name, i), symbol._replace(shndx=moved[symbol.shndx]))
            for name, symbol in _symbols(pieces)
            if symbol.shndx in moved
        ]
    symbols.sort(key=lambda named: not named[1].is_local)  # local ones come first
    names = _Names()
    table = bytes(_SYMBOL.size) + b"".join(
        _SYMBOL.pack(*symbol._replace(name=names.add(name))) for name, symbol in symbols
    )
    first = 1 + sum(symbol.is_local for _, symbol in symbols)
    of_symbols = _EMPTY._replace(
        type=_SYMTAB, link=len(sections), info=first, addralign=8, entsize=_SYMBOL.size
    )
    sections += [
        _Piece(b".strtab", _OF_NAMES, bytes(names.data)),
        _Piece(b".symtab", of_symbols, table),
    ]
    return _written(header, sections)


def _renamed(name: bytes, i: int) -> bytes:
    prefix = _CODE if name.startswith(_CODE) else b""
    return prefix + b"%d." % i + name.removeprefix(prefix)


def _written(header: _Header, sections: Sequence[_Piece]) -> bytes:
    """The file of these sections and a table of their names."""
    names = _Names()
    places = [names.add(piece.name) if piece.name else 0 for piece in sections]
    places.append(names.add(b".shstrtab"))
    table = _Piece(b".shstrtab", _OF_NAMES, bytes(names.data))
    body, heads = bytearray(_HEADER.size), []
    for piece, name in zip([*sections, table], places, strict=True):
        body += bytes(-len(body) % max(piece.head.addralign, 1))
        heads.append(piece.head._replace(name=name, addr=0, offset=len(body), size=len(piece.data)))
        body += piece.data
    body += bytes(-len(body) % 8)
    header = header._replace(
        entry=0,
        phoff=0,
        phnum=0,
        shoff=len(body),
        shentsize=_SECTION.size,
        shnum=len(heads),
        shstrndx=len(heads) - 1,
    )
    body[: _HEADER.size] = _HEADER.pack(*header)
    return bytes(body) + b"".join(_SECTION.pack(*head) for head in heads)
