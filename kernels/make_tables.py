"""Write kernels/tables.h, the lookup tables as C; `--check` only says whether it is up to date."""

import sys
from pathlib import Path

import numpy as np

from intlm.arithmetic.tables import SHA256, tables

CTYPES = {"int8": "int8_t", "int16": "int16_t", "int32": "int32_t"}


def header() -> str:
    """The whole file."""
    lines = [
        "/* Made by kernels/make_tables.py from intlm.arithmetic.tables (docs/numerics.md, section 3).",
        f" * SHA-256 of the tables: {SHA256} */",
        "#ifndef INTLM_TABLES_H",
        "#define INTLM_TABLES_H",
        "#include <stdint.h>",
    ]
    for name, table in tables()._asdict().items():
        lines.append(f"static const {CTYPES[str(table.dtype)]} intlm_{name}[{len(table)}] = {{")
        for row in np.array_split(table, -(-len(table) // 16)):
            lines.append("    " + ", ".join(map(str, row)) + ",")
        lines.append("};")
    return "\n".join([*lines, "#endif", ""])


if __name__ == "__main__":
    path = Path(__file__).with_name("tables.h")
    if "--check" in sys.argv:
        sys.exit(path.read_text("utf-8") != header())
    path.write_text(header(), "utf-8")
