"""The results file of sweeps: JSON Lines, one object for each run that reached its end.

study, variant, seed     which run of which sweep
keys                     the keys that the sweep set: dotted key -> value
text                     the name of the training text
numerics                 the training version of the run's estimator
bits_per_byte            held-out, at the end
curve                    [update, tokens evaluated, seconds of training, held-out bits per byte], one a measurement
parameters, read         int8 parameters; tokens of the text read at each measurement (lines of older sweeps lack both)
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec

from intlm.errors import DataError, writing
from intlm.pictures import Curve, Point
from intlm.schema import Amount, Count, parse_json
from intlm.tracking.table import duration, format_table, human

Line = Mapping[str, Any]


class _Line(msgspec.Struct):
    study: str
    variant: str
    seed: Count
    keys: dict[str, int | float | str]
    text: str
    bits_per_byte: Amount
    curve: Annotated[list[tuple[Count, Count, Amount, Amount]], msgspec.Meta(min_length=1)]
    numerics: int | None = None
    parameters: Count | None = None
    read: list[Count] | None = None


def read(path: Path) -> list[dict[str, Any]]:
    """Reads the lines of a results file, none where there is no file. Raises DataError where one is damaged."""
    if not path.exists():
        return []
    results = []
    lines = path.read_bytes()
    for number, text in enumerate(lines[: lines.rfind(b"\n") + 1].splitlines(), start=1):  # without a torn last one
        place, hint = f"{path}: line {number}", ": expected the result of a run, as `intlm sweep` writes it"
        line = parse_json(text, _Line, place, DataError, hint)
        if line.read and len(line.read) != len(line.curve):
            raise DataError(f"{place}: damaged: read: expected {len(line.curve)} numbers, as many as curve has")
        results.append(parse_json(text, dict[str, Any], place))
    return results


def append(path: Path, line: Line) -> None:
    """Append a line to the file, which is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path), path.open("a+b") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)  # a torn line that a full disk left
        file.write(json.dumps(line).encode() + b"\n")


def groups(lines: Iterable[Line]) -> list[list[Line]]:
    """Groups of the lines that differ only in the seed, in the order of their first lines."""
    by_setting: dict[str, list[Line]] = {}
    for line in lines:
        same = [line["study"], line["variant"], line["text"], line["keys"], line.get("numerics")]
        by_setting.setdefault(json.dumps(same, sort_keys=True), []).append(line)
    return list(by_setting.values())


def curve(group: Sequence[Line], label: str) -> Curve:
    """The learning curve of a group's measurements, for a picture."""
    runs = []
    for line in group:
        read = line.get("read") or [None] * len(line["curve"])
        points = zip(line["curve"], read, strict=True)
        runs.append([Point(tokens, seconds, seen, bits) for (_, tokens, seconds, bits), seen in points])
    return Curve(label, runs)


def summary(lines: Iterable[Line]) -> str:
    """Each group's mean and spread over its seeds as a table, the best first."""
    rows = []
    for group in groups(lines):
        first, bits = group[0], [line["bits_per_byte"] for line in group]
        _, tokens, _, _ = first["curve"][-1]
        seconds = sum(line["curve"][-1][2] for line in group) / len(group)
        mean = sum(bits) / len(bits)
        parameters = human(first["parameters"]) if "parameters" in first else None
        rows.append((mean, first["variant"], first["text"], parameters, len(bits), f"{min(bits):.3f}", f"{mean:.3f}",
                     f"{max(bits):.3f}", human(tokens), duration(seconds)))  # fmt: skip
    rows.sort(key=lambda row: row[0])
    headers = ["variant", "text", "parameters", "seeds", "least", "mean", "most", "evaluated tokens", "training"]
    return format_table(headers, [row[1:] for row in rows], "ll" + "r" * 7)
