"""What a test wants to know of an ELF file, read without any tool (System V ABI, 64 bits, either byte order)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

PT_LOAD, PT_DYNAMIC, PT_GNU_STACK, PT_GNU_RELRO = 1, 2, 0x6474E551, 0x6474E552
EXECUTABLE, WRITABLE = 1, 2
"""Bits of a segment's flags."""
_DT_TEXTREL, _DT_BIND_NOW, _DT_FLAGS, _DT_FLAGS_1 = 22, 24, 30, 0x6FFFFFFB
_DF_TEXTREL, _DF_BIND_NOW, _DF_1_NOW = 4, 8, 1
_SHT_DYNSYM = 11


@dataclass
class Elf:
    """A shared object.

    Attributes:
        kind: Of the file; 3 is a shared object, which can be loaded anywhere.
        segments: Flags by type.
        imported: Names of symbols that it takes from others.
        bind_now: Whether all of them are found when it is loaded, and never later.
        text_relocations: Whether code is changed when it is loaded.
    """

    kind: int
    segments: dict[int, list[int]] = field(default_factory=dict)
    imported: set[str] = field(default_factory=set)
    bind_now: bool = False
    text_relocations: bool = False


def read(path: Path) -> Elf:
    """Reads a file's headers."""
    data = path.read_bytes()
    assert data[:5] == b"\x7fELF\x02", f"{path} is no ELF file of 64 bits"
    order = "<" if data[5] == 1 else ">"
    (kind, programs, sections, program_size, program_count, section_size, section_count) = _header(data, order)
    elf = Elf(kind)
    for at in range(programs, programs + program_size * program_count, program_size):
        (what, flags, offset, _, _, length, _, _) = struct.unpack_from(order + "IIQQQQQQ", data, at)
        elf.segments.setdefault(what, []).append(flags)
        if what == PT_DYNAMIC:
            _dynamic(elf, data[offset : offset + length], order)
    table = [
        struct.unpack_from(order + "IIQQQQIIQQ", data, at)
        for at in range(sections, sections + section_size * section_count, section_size)
    ]
    for _, what, _, _, offset, length, names, _, _, _ in table:
        if what == _SHT_DYNSYM:
            texts = data[table[names][4] :]
            for at in range(offset, offset + length, 24):
                name, _, _, section, _, _ = struct.unpack_from(order + "IBBHQQ", data, at)
                if section == 0 and name:
                    elf.imported.add(texts[name : texts.index(b"\0", name)].decode("ascii"))
    return elf


def _header(data: bytes, order: str) -> tuple[int, ...]:
    kind, _, _, _, programs, sections, _, _, program_size, program_count, section_size, section_count, _ = (
        struct.unpack_from(order + "HHIQQQIHHHHHH", data, 16)
    )
    return kind, programs, sections, program_size, program_count, section_size, section_count


def _dynamic(elf: Elf, data: bytes, order: str) -> None:
    for tag, value in struct.iter_unpack(order + "QQ", data):
        elf.bind_now |= (
            tag == _DT_BIND_NOW
            or (tag == _DT_FLAGS and bool(value & _DF_BIND_NOW))
            or (tag == _DT_FLAGS_1 and bool(value & _DF_1_NOW))
        )
        elf.text_relocations |= tag == _DT_TEXTREL or (tag == _DT_FLAGS and bool(value & _DF_TEXTREL))
