"""Plain-text tables and short numbers, for terminals and logs."""

from collections.abc import Iterable, Sequence


def format_table(headers: Sequence[str], rows: Iterable[Sequence[object]], align: str | None = None) -> str:
    """`rows` under `headers`, in columns two spaces apart; None is an empty cell.

    `align` has a letter a column, "l" or "r"; without it the first column is left-aligned, the others right.
    Raises ValueError where a row or `align` has another number of columns than `headers`.
    """
    align = "l" + "r" * (len(headers) - 1) if align is None else align
    cells = [["" if cell is None else str(cell) for cell in row] for row in (headers, *rows)]
    if any(len(row) != len(headers) for row in (*cells, align)):
        raise ValueError(f"expected {len(headers)} columns in every row and in align")
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    lines = (
        "  ".join(
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(row, widths, align, strict=True)
        )
        for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def human(n: float) -> str:
    """`n` to three significant digits with a suffix: 999, 1.2k, 3.45M, 12B."""
    for suffix in ("", "k", "M", "B"):
        if abs(n) < 999.5:  # from here on three digits would round to 1e+03
            return f"{n:.3g}{suffix}"
        n /= 1000
    return f"{n:.0f}T" if abs(n) >= 999.5 else f"{n:.3g}T"


def duration(seconds: float) -> str:
    """`seconds` to two or three significant digits with a unit: 0.5 s, 12 s, 3.5 min, 2 h, 4 d."""
    for unit, size in (("s", 60), ("min", 60), ("h", 24)):
        if abs(seconds) < 0.995 * size:
            return f"{seconds:.2g} {unit}"
        seconds /= size
    return f"{seconds:.3g} d"
