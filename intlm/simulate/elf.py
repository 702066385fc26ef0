"""Reads ELF files: segments, functions, and whether there are floating-point instructions."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intlm.errors import MissingPackage
from intlm.simulate.build import BuildError

SOFT_FLOAT = re.compile(r"__(\w+[sdtx]f[23]?|aeabi_[fd]\w+|aeabi_\w+2[fd]|\w*float\w*|\w*fix\w*)$")


@dataclass
class Image:
    """A program to load."""

    segments: list[tuple[int, bytes]]  # address, contents
    functions: dict[str, int]
    code: int  # bytes
    constants: int  # bytes


def read(path: Path) -> Image:
    """Raises BuildError where there are floating-point instructions, or calls of floating point in software."""
    try:
        from elftools.elf.elffile import ELFFile
    except ImportError:
        raise MissingPackage("pyelftools", "reading what was compiled") from None
    with path.open("rb") as file:
        elf: Any = ELFFile(file)
        loaded = list(elf.iter_segments("PT_LOAD"))
        symbols = list(elf.get_section_by_name(".symtab").iter_symbols())
        text = elf.get_section_by_name(".text")
        soft = sorted({s.name for s in symbols if SOFT_FLOAT.match(s.name)})
        floating = {"EM_RISCV": _riscv, "EM_ARM": _thumb}[elf["e_machine"]]
        at = next(floating(text.data()), None)
        if soft or at is not None:
            what = f"it calls {', '.join(soft)}" if soft else f"instruction at {text['sh_addr'] + at:#x}"
            raise BuildError(f"{path.name}: floating point: {what}")
        return Image(
            [(s["p_vaddr"], s.data()) for s in loaded],
            {s.name: s["st_value"] for s in symbols if s["st_info"]["type"] == "STT_FUNC"},
            text["sh_size"],
            elf.get_section_by_name(".rodata")["sh_size"],
        )


def _riscv(text: bytes) -> Iterator[int]:
    """The places of RV32 instructions of the extensions F and D, by their major opcodes."""
    for at in range(0, len(text), 4):
        if text[at] & 0x7F in (0x07, 0x27, 0x43, 0x47, 0x4B, 0x4F, 0x53):
            yield at


def thumb_lengths(text: bytes) -> Iterator[tuple[int, int]]:
    """The place and the bytes of each Thumb instruction."""
    at = 0
    while at < len(text):
        length = 4 if text[at + 1] >> 3 in (0b11101, 0b11110, 0b11111) else 2
        yield at, length
        at += length


def _thumb(text: bytes) -> Iterator[int]:
    """The places of instructions for coprocessors 10 and 11, the floating-point unit's.

    Data between functions is read as instructions too, which can only find too much.
    """
    for at, length in thumb_lengths(text):
        if length == 4 and text[at + 1] & 0xEC == 0xEC and text[at + 3] & 0x0E == 0x0A:
            yield at
