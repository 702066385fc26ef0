"""Reads WebAssembly modules: the sizes of code and data; refuses floating-point instructions.

The binary format is that of the WebAssembly core specification, sections 5.4 (instructions) and 5.5 (modules).
"""

from collections.abc import Iterator

from intlm.simulate.build import BuildError

_CODE, _DATA = 10, 11
_FLOAT = {
    *range(0x2A, 0x2C),  # load
    *range(0x38, 0x3A),  # store
    *range(0x43, 0x45),  # const
    *range(0x5B, 0x67),  # comparisons
    *range(0x8B, 0xA7),  # arithmetic
    *range(0xA8, 0xAC),  # truncation to i32
    *range(0xAE, 0xC0),  # truncation to i64, conversions, reinterpretation
}
_FLOAT_TYPES = {0x7C, 0x7D}
# How many LEB128 numbers follow an opcode.
_ONE = {0x02, 0x03, 0x04, 0x0C, 0x0D, 0x10, 0x3F, 0x40, 0x41, 0x42, *range(0x20, 0x27)}
_TWO = {0x11, *range(0x28, 0x3F)}
_NONE = {0x00, 0x01, 0x05, 0x0B, 0x0F, 0x1A, 0x1B, *range(0x45, 0xC5)}
_PREFIXED = {8: 2, 9: 1, 10: 2, 11: 1}  # bulk memory


def check(binary: bytes) -> tuple[int, int]:
    """Returns the bytes of code and of data. Raises BuildError for floating-point instructions or local variables."""
    sizes = {_CODE: 0, _DATA: 0}
    at = 8
    while at < len(binary):
        kind = binary[at]
        size, at = _number(binary, at + 1)
        if kind in sizes:
            sizes[kind] = size
        if kind == _CODE:
            for place, opcode in _instructions(binary, at):
                if opcode in _FLOAT:
                    raise BuildError(f"model.wasm: floating point: opcode {opcode:#x} at {place:#x}")
        at += size
    return sizes[_CODE], sizes[_DATA]


def _instructions(binary: bytes, at: int) -> Iterator[tuple[int, int]]:
    """The place and the opcode of each instruction of a code section."""
    functions, at = _number(binary, at)
    for _ in range(functions):
        size, at = _number(binary, at)
        end = at + size
        groups, at = _number(binary, at)
        for _ in range(groups):
            _, at = _number(binary, at)
            if binary[at] in _FLOAT_TYPES:
                raise BuildError(f"model.wasm: floating point: a local variable at {at:#x}")
            at += 1
        while at < end:
            opcode, place = binary[at], at
            at += 1
            yield place, opcode
            if opcode in _NONE:
                following = 0
            elif opcode in _ONE:
                following = 1
            elif opcode in _TWO:
                following = 2
            elif opcode == 0x0E:  # br_table: a vector and a number
                count, at = _number(binary, at)
                following = count + 1
            elif opcode == 0xFC:
                which, at = _number(binary, at)
                following = _PREFIXED.get(which, -1)
            else:
                following = -1
            if following < 0:
                raise BuildError(f"model.wasm: opcode {opcode:#x} at {place:#x} is not one that integer C compiles to")
            for _ in range(following):
                _, at = _number(binary, at)


def _number(binary: bytes, at: int) -> tuple[int, int]:
    """Returns a LEB128 number, its sign ignored, and the place after it."""
    value = shift = 0
    while True:
        byte = binary[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
