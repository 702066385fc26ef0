"""An accelerator that may not exist, described in TOML (docs/hardware.md, configs/hardware/).

A key is a field of one of the dataclasses below. All are required, so that every number is the user's own. A mistake is
a `ConfigError` that names the file, the key, the value and what was expected.
"""

import dataclasses
import difflib
from pathlib import Path
from typing import Any

from intlm.config import shown
from intlm.errors import ConfigError
from intlm.schema import read_toml
from intlm.simulate.accumulator import NARROWEST, OVERFLOWS


def _key(low: int = 1, high: int | None = None, choices: tuple[str, ...] = ()) -> Any:
    """A key; for numbers `low` and `high` are inclusive."""
    return dataclasses.field(metadata={"low": low, "high": high, "choices": choices})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accumulator:
    """The accumulators, in which products are summed."""

    bits: int = _key(NARROWEST, 64)
    overflow: str = _key(choices=OVERFLOWS)
    per_column: int = _key()  # sums that a column of the array can hold, one per stream


@dataclasses.dataclass(frozen=True, kw_only=True)
class Array:
    """Multipliers of 8 by 8 bits, each holding a weight: a column's products are added."""

    rows: int = _key(1, 65536)  # along a matrix's fan-in
    columns: int = _key(1, 65536)  # along its fan-out
    systolic: bool = (
        _key()
    )  # whether values move from multiplier to multiplier, one per cycle, so that the last are late
    picojoules: float = _key(0)  # energy of a multiply-accumulate, registers included


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnChip:
    """The memory beside the array. In a cycle it reads and writes one whole word of `bytes_per_cycle` each."""

    bytes: int = _key()
    bytes_per_cycle: int = _key()
    picojoules_per_byte: float = _key(0)
    keeps_weights: bool = _key()  # whether weights stay from token to token, if they fit
    keeps_activations: bool = _key()  # whether activations stay from product to product, if they fit


@dataclasses.dataclass(frozen=True, kw_only=True)
class OffChip:
    """The memory behind it, of any size. In a cycle it reads or writes one word of `bytes_per_cycle`."""

    bytes_per_cycle: int = _key()
    picojoules_per_byte: float = _key(0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hardware:
    """An accelerator."""

    name: str = _key()
    clock_mhz: float = _key()
    accumulator: Accumulator
    array: Array
    on_chip: OnChip
    off_chip: OffChip


SECTIONS: dict[str, type] = {"accumulator": Accumulator, "array": Array, "on_chip": OnChip, "off_chip": OffChip}
KEYS: dict[str, dataclasses.Field[Any]] = {
    f"{section}.{key.name}" if section else key.name: key
    for section, cls in {"": Hardware, **SECTIONS}.items()
    for key in dataclasses.fields(cls)
    if key.metadata
}


def load(path: Path) -> Hardware:
    """The description in a TOML file. Raises ConfigError."""
    tables = read_toml(path)
    given: dict[str, Any] = {}
    for name, value in tables.items():
        if name not in SECTIONS:
            given[name] = value
        elif isinstance(value, dict):
            given.update((f"{name}.{key}", inner) for key, inner in value.items())
        else:
            raise ConfigError(f"{path}: {name} = {shown(value)}: expected a section, [{name}]")
    for name in given:
        if name not in KEYS:
            close = difflib.get_close_matches(name, KEYS, 1)
            raise ConfigError(f"{path}: {name}: unknown key" + (f"; did you mean {close[0]}?" if close else ""))
    values: dict[str, dict[str, Any]] = {section: {} for section in ("", *SECTIONS)}
    for name, key in KEYS.items():
        if name not in given:
            raise ConfigError(f"{path}: {name}: missing: expected {_expected(key)}")
        value, section = given[name], name.rpartition(".")[0]
        if not _valid(key, value):
            raise ConfigError(f"{path}: {name} = {shown(value)}: expected {_expected(key)}")
        values[section][key.name] = key.type(value)  # type: ignore[operator]
    return Hardware(**values[""], **{section: cls(**values[section]) for section, cls in SECTIONS.items()})


def _valid(key: dataclasses.Field[Any], value: Any) -> bool:
    if key.type is not float:
        if type(value) is not key.type:
            return False
    elif type(value) not in (int, float):
        return False
    if key.metadata["choices"]:
        return value in key.metadata["choices"]
    low, high = key.metadata["low"], key.metadata["high"]
    return key.type in (bool, str) or low <= value <= (high or 2**62)


def _expected(key: dataclasses.Field[Any]) -> str:
    """The type and range of a key, in words."""
    if key.metadata["choices"]:
        return " or ".join(f'"{choice}"' for choice in key.metadata["choices"])
    if key.type in (bool, str):
        return "true or false" if key.type is bool else "a string"
    what, low, high = "an integer" if key.type is int else "a number", key.metadata["low"], key.metadata["high"]
    return f"{what} from {low}" + (f" to {high}" if high is not None else "")
