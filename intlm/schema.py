"""Reads JSON and TOML files that may be damaged, as a type; a file that does not fit is refused in one line."""

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
    """Reads the JSON object in a file, for `convert`. Raises DataError, see `read_json`.

    It is read as Python's `json.dump` wrote it: names of files that are not UTF-8 are kept.
    """
    try:
        value = json.loads(read_bytes(path, DataError, hint))
        str(value)  # refuses a value that is nested too deeply for a message
    except (ValueError, RecursionError) as failure:
        raise DataError(f"{path}: damaged: not JSON: {_reason(failure)}{hint}") from None
    return convert(value, dict[str, Any], path, hint=hint)


def read_json(path: Path, kind: type[T], error: type[IntlmError] = DataError, hint: str = "") -> T:
    """Reads the JSON file at `path` as a `kind`: a type that msgspec knows. Keys without a field in it are dropped.

    Raises `error` that names the file, the key and what was expected; `hint` says there what the user can do.
    """
    return parse_json(read_bytes(path, error, hint), kind, path, error, hint)


def parse_json(content: bytes, kind: type[T], place: object, error: type[IntlmError] = DataError, hint: str = "") -> T:
    """Like `read_json`, but from bytes; errors name `place`."""
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as failure:
        raise error(f"{place}: damaged: {_reason(failure)}{hint}") from None
    except (msgspec.MsgspecError, ValueError, RecursionError) as failure:
        raise error(f"{place}: damaged: not JSON: {_reason(failure)}{hint}") from None


def convert(value: Any, kind: type[T], place: object, error: type[IntlmError] = DataError, hint: str = "") -> T:
    """Like `read_json`, but from parsed JSON; errors name `place`."""
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
    """Reads the tables of a TOML file. Raises ConfigError where it cannot be read or is not TOML."""
    return parse_toml(read_text(path), path)


def read_text(path: Path) -> str:
    """Reads a file of UTF-8 text. Raises ConfigError."""
    try:
        return read_bytes(path, ConfigError).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from None


def read_bytes(path: Path, error: type[IntlmError], hint: str = "") -> bytes:
    """Reads the bytes of a file. Raises `error`."""
    try:
        return Path(path).read_bytes()
    except OSError as failure:
        raise error(f"{path}: cannot be read: {failure.strerror}{hint}") from None


def parse_toml(text: str, path: Path) -> dict[str, Any]:
    """Like `read_toml`, but from text already read."""
    try:
        tables = tomllib.loads(text)
        str(tables)  # refuses values too deep, or numbers too long, for a message
    except ValueError as error:
        last = f"at end of document, line {text.count(chr(10)) + 1}"
        raise ConfigError(f"{path}: not TOML: {_reason(error).replace('at end of document', last)}") from None
    except RecursionError as error:
        raise ConfigError(f"{path}: not TOML: {_reason(error)}") from None
    return tables


def _reason(error: Exception) -> str:
    """The message of an error of the parser, shortened to what concerns the file."""
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).partition("; use sys.")[0]
