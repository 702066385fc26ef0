"""Files that may have been changed by others: JSON and TOML, read as a type or refused in one line."""

import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from intlm.errors import ConfigError, DataError, IntlmError, RunError

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")

Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Positive = Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
Amount = Annotated[float, Meta(ge=0, le=1e18)]
Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]


def read_object(path: Path, hint: str = "") -> dict[str, Any]:
    """The JSON object in a file, for `convert`. Raises DataError, see `read_json`.

    Read as Python's `json.dump` wrote it: names of files that are not UTF-8 stay what they are.
    """
    try:
        value = json.loads(read_bytes(path, DataError, hint))
        str(value)  # what is too deep to be shown in a message is refused here
    except (ValueError, RecursionError) as failure:
        raise DataError(f"{path}: damaged: not JSON: {_reason(failure)}{hint}") from None
    return convert(value, dict[str, Any], path, hint=hint)


def read_json(path: Path, kind: type[T], error: type[IntlmError] = DataError, hint: str = "") -> T:
    """The JSON file at `path` as a `kind`: a type that msgspec knows, which drops keys that it has no field for.

    Raises `error` that names the file, the key and what was expected; `hint` says there what the user can do.
    """
    return parse_json(read_bytes(path, error, hint), kind, path, error, hint)


def parse_json(content: bytes, kind: type[T], place: object, error: type[IntlmError] = DataError, hint: str = "") -> T:
    """As `read_json`, of bytes; errors name `place`."""
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as failure:
        raise error(f"{place}: damaged: {_reason(failure)}{hint}") from None
    except (msgspec.MsgspecError, ValueError, RecursionError) as failure:
        raise error(f"{place}: damaged: not JSON: {_reason(failure)}{hint}") from None


def convert(value: Any, kind: type[T], place: object, error: type[IntlmError] = DataError, hint: str = "") -> T:
    """As `read_json`, of what JSON was read as; errors name `place`."""
    try:
        return msgspec.convert(value, kind)
    except (msgspec.MsgspecError, RecursionError) as failure:
        raise error(f"{place}: damaged: {_reason(failure)}{hint}") from None


def check_range(array: "np.ndarray", low: int, high: int, place: object, error: type[IntlmError] = RunError) -> None:
    """Raise `error` that names `place` where integers of any shape are not all in low..high."""
    if not array.size:
        return
    for value in (int(array.min()), int(array.max())):
        if not low <= value <= high:
            raise error(f"{place}: holds {value}: expected {low} to {high}")


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises ConfigError where it cannot be read or is none."""
    return parse_toml(read_text(path), path)


def read_text(path: Path) -> str:
    """The text of a file in UTF-8. Raises ConfigError."""
    try:
        return read_bytes(path, ConfigError).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from None


def read_bytes(path: Path, error: type[IntlmError], hint: str = "") -> bytes:
    """What a file holds. Raises `error`."""
    try:
        return Path(path).read_bytes()
    except OSError as failure:
        raise error(f"{path}: cannot be read: {failure.strerror}{hint}") from None


def parse_toml(text: str, path: Path) -> dict[str, Any]:
    """As `read_toml`, of text already read."""
    try:
        tables = tomllib.loads(text)
        str(tables)  # what is too deep, or too long a number, to be shown in a message is refused here
    except ValueError as error:
        last = f"at end of document, line {text.count(chr(10)) + 1}"
        raise ConfigError(f"{path}: not TOML: {_reason(error).replace('at end of document', last)}") from None
    except RecursionError as error:
        raise ConfigError(f"{path}: not TOML: {_reason(error)}") from None
    return tables


def _reason(error: Exception) -> str:
    """What an error says, in words of the file."""
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).partition("; use sys.")[0]
