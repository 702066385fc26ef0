"""Settings and the parts that they choose between.

- A setting is a field of a frozen dataclass, made by `key`: its type, range and help text stand there and nowhere else.
  The TOML loader, the command line flags, the error messages and the tables of the docs are all made from it.
- A *family* is a folder of parts of one kind (optimizers, estimators, cells, ...). A part is one file: a frozen
  dataclass whose fields are its settings and whose methods are the algorithm, registered under the name that a
  configuration uses. A field made by `choice` holds one part of a family; the part's own settings stand in a section
  named after it: `eggroll.optimizer = "adam"`, `[eggroll.adam]`.
- Nothing else names a part: to add a part, add its file. A plugin registers parts in the same way.

This module does not use JAX, and the modules of a family import JAX only when it is used (`intlm.lazy`).
"""

import dataclasses
import difflib
import importlib
import json
import math
import os
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from intlm.errors import ConfigError

INT32_MAX, INT64_MAX = 2**31 - 1, 2**63 - 1
COMMAND_LINE = "command line"

_NAME = re.compile(r"[a-z][a-z0-9_-]*")


class Part:
    """A part of a family: a frozen dataclass whose fields are its settings."""

    name: ClassVar[str] = ""  # set by `Family.register`

    def check(self, config: Any) -> Iterator[tuple[tuple[str, ...], str]]:
        """Yields every reason why this part cannot work in a configuration (`intlm.config.Config`): the full names of
        the keys involved, and the message, which names key, value and limit."""
        return iter(())


@dataclasses.dataclass(frozen=True)
class Missing(Part):
    """A placeholder for a part of a plugin that is not loaded, in the configuration of a trained model."""

    name: str  # type: ignore[misc]


AnyPart = TypeVar("AnyPart", bound=Part)
PartClass = TypeVar("PartClass", bound=type[Part])


class Family(Generic[AnyPart]):
    """The parts of one kind, by name.

    kind: the word for one of the parts, such as "optimizer". package: the folder whose files register the shipped ones.
    of_training: whether only training needs its parts, so that a trained model can be used without them.
    """

    def __init__(self, kind: str, package: str, of_training: bool = False) -> None:
        self.kind, self.of_training, self.package = kind, of_training, package
        self._parts: dict[str, type[AnyPart]] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[PartClass], PartClass]:
        """Add a part under `name`: small letters, digits, - and _. Raises ValueError where the name is taken."""

        def add(part: PartClass) -> PartClass:
            shipped = part.__module__.startswith(f"{self.package}.")
            if not _NAME.fullmatch(name):
                raise ValueError(f"{self.kind} {name!r}: expected a name of small letters, digits, - and _")
            if name in (self._parts if shipped else self.parts()):
                raise ValueError(f"{self.kind} {name!r} is there already ({self._parts[name].__module__})")
            if "__dataclass_params__" not in vars(part) or not part.__dataclass_params__.frozen:  # type: ignore[attr-defined]
                raise ValueError(f"{self.kind} {name!r}: expected a class decorated by dataclass(frozen=True)")
            part.name = name
            self._parts[name] = part  # type: ignore[assignment]
            return part

        return add

    def parts(self) -> Mapping[str, type[AnyPart]]:
        """All parts by name: those of the folder in alphabetical order, then those of plugins."""
        if not self._loaded:
            self._loaded = True  # before the imports: a file may ask for its own family
            for module in pkgutil.iter_modules(importlib.import_module(self.package).__path__):
                importlib.import_module(f"{self.package}.{module.name}")
            self._parts = dict(sorted(self._parts.items()))
        return self._parts

    def __getitem__(self, name: str) -> type[AnyPart]:
        return self.parts()[name]


def key(
    help: str,
    default: Any = dataclasses.MISSING,
    *,
    low: int | None = None,
    high: int | None = None,
    multiple: int = 1,
    why: str = "",
    choices: tuple[str, ...] = (),
    path: bool = False,
    shares: bool = False,
    some_of: Family[Any] | None = None,
) -> Any:
    """A setting, int, float or str by its annotation: `low` and `high` are inclusive, `why` says why `multiple`.

    path: the value is a path. shares: it is several paths, a number before each. some_of: it is names of parts of that
    family, separated by commas, or empty; such parts have no settings.
    """
    limits = {"low": low, "high": high, "multiple": multiple, "why": why, "choices": choices}
    return dataclasses.field(
        default=default, metadata={"help": help, "path": path, "shares": shares, "some_of": some_of, **limits}
    )


def choice(help: str, family: Family[AnyPart], default: str) -> Any:
    """A setting that holds a part of a family; TOML and flags give its name."""
    return dataclasses.field(
        default_factory=lambda: family[default](), metadata={"help": help, "family": family, "default": default}
    )


@dataclasses.dataclass(frozen=True)
class Key:
    """A setting by its full name."""

    name: str  # dotted, such as "eggroll.adam.step"
    field: dataclasses.Field[Any]
    of: tuple[tuple[str, str], ...] = ()  # the choices whose setting it is: (("eggroll.optimizer", "adam"),)

    @property
    def section(self) -> str:
        """The section it stands in; empty at the top of a file."""
        return self.name.rpartition(".")[0]

    @property
    def help(self) -> str:
        """The help text, one line."""
        return self.field.metadata["help"]

    @property
    def family(self) -> Family[Any] | None:
        """The family of the part that it holds; None where it holds no part."""
        return self.field.metadata.get("family")

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that it can have, where they are few."""
        return tuple(self.family.parts()) if self.family else self.field.metadata["choices"]

    @property
    def some_of(self) -> Family[Any] | None:
        """The family of the parts that it lists by name; None where it is no such list."""
        return self.field.metadata.get("some_of")

    @property
    def is_number(self) -> bool:
        """Whether it is an integer. Annotations are text where a module's are not evaluated."""
        return self.field.type in (int, "int")

    @property
    def is_decimal(self) -> bool:
        """Whether it is a number that may have a fraction."""
        return self.field.type in (float, "float")

    @property
    def is_path(self) -> bool:
        """Whether it is a path."""
        return not self.family and self.field.metadata["path"]

    @property
    def is_several_paths(self) -> bool:
        """Whether it is several paths, a share before each."""
        return not self.family and self.field.metadata["shares"]

    @property
    def default(self) -> Any:
        """The default value; dataclasses.MISSING where a value is required."""
        return self.field.metadata["default"] if self.family else self.field.default

    @property
    def expected(self) -> str:
        """The type and range, in words."""
        if self.choices:
            return " or ".join(f'"{choice}"' for choice in self.choices)
        limits = self.field.metadata
        if self.some_of:
            return f"any of {', '.join(self.some_of.parts())}"
        if limits["path"]:
            return "path"
        if limits["shares"]:
            return "SHARE PATH, SHARE PATH, ..., each share a positive integer"
        if self.is_decimal:
            return f"number from {limits['low']}"
        if not self.is_number:
            return "string"
        open_ended = limits["high"] in (None, INT32_MAX)
        span = f" from {limits['low']}" if open_ended else f" {limits['low']} to {limits['high']}"
        multiple = {1: "", 2: ", even"}.get(limits["multiple"], f", a multiple of {limits['multiple']}")
        return f"integer{span}{multiple}"

    def valid(self, value: Any, source: str, directory: Path, written_in: str | Path) -> float | str:
        """Checks `value` by itself and returns it; parses text from the command line, and makes a path absolute.

        directory: paths are relative to it. written_in: the directory when the file was written. Raises ConfigError
        that names the source, the key, the value and what was expected.
        """

        def refuse(expected: str) -> ConfigError:
            return ConfigError(f"{source}: {self.name} = {shown(value)}: {expected}")

        if self.is_number:
            return self._valid_number(value, source, refuse)
        if self.is_decimal:
            return self._valid_decimal(value, source, refuse)
        if not isinstance(value, str):
            raise refuse("expected a string")
        if self.choices and value not in self.choices:
            close = difflib.get_close_matches(value, self.choices, 1)
            raise refuse(f"expected {self.expected}" + (f'; did you mean "{close[0]}"?' if close else ""))
        if self.some_of and (unknown := set(names_in(value)) - self.some_of.parts().keys()):
            close = difflib.get_close_matches(min(unknown), self.some_of.parts(), 1)
            raise refuse(f"expected {self.expected}" + (f'; did you mean "{close[0]}"?' if close else ""))
        if self.is_several_paths and value:
            entries = [entry.strip().split(maxsplit=1) for entry in value.split(",")]
            if not all(len(entry) == 2 and re.fullmatch("0*[1-9][0-9]{0,8}", entry[0]) for entry in entries):
                raise refuse(f"expected {self.expected}")
        if self.is_path or self.is_several_paths:
            if "\0" in value:
                raise refuse("expected a path, which has no NUL")
            made = self.name == "data.prepared"
            value = self.each_path(value, lambda path: _absolute(path, directory, written_in, made))
        if not is_utf8(value):
            raise refuse("expected text that UTF-8 can write")
        return value

    def each_path(self, value: Any, change: Callable[[str], str]) -> Any:
        """Returns the key's value with every path in it changed; a value without paths stays."""
        if self.is_several_paths and value:
            entries = (entry.split(maxsplit=1) for entry in value.split(","))
            return ", ".join(f"{share} {change(path.strip())}" for share, path in entries)
        return change(value) if self.is_path and value and not value.startswith("hub:") else value

    def _valid_number(self, value: Any, source: str, refuse: Callable[[str], ConfigError]) -> int:
        limits, number = self.field.metadata, value
        if source == COMMAND_LINE:
            try:
                number = int(value, 0)  # base 0: 1_000 and 0xff, as in TOML
            except ValueError:
                raise refuse("expected an integer") from None
        if type(number) is not int:  # bool is a subclass of int
            raise refuse("expected an integer")
        if limits["low"] is not None and number < limits["low"]:
            raise refuse(f"must be at least {limits['low']}")
        high = INT64_MAX if limits["high"] is None else limits["high"]
        if number > high:
            raise refuse(f"must be at most {high}")
        if number % limits["multiple"]:
            wanted = "even" if limits["multiple"] == 2 else f"a multiple of {limits['multiple']}"
            raise refuse(f"must be {wanted} ({limits['why']})")
        return number

    def _valid_decimal(self, value: Any, source: str, refuse: Callable[[str], ConfigError]) -> float:
        low, high = self.field.metadata["low"], self.field.metadata["high"]
        try:
            number = float(value) if source == COMMAND_LINE or type(value) in (int, float) else math.nan
        except (ValueError, OverflowError):
            number = math.nan
        if not low <= number <= high:  # also false of NaN
            raise refuse(f"expected a number from {low} to {high}")
        return number


def keys_of(cls: type, prefix: str = "", of: tuple[tuple[str, str], ...] = ()) -> Iterator[Key]:
    """Yields the keys of a dataclass of settings, including those of its sections and of every part to choose."""
    for field in dataclasses.fields(cls):
        name = prefix + field.name
        if "help" not in field.metadata:  # a section
            yield from keys_of(field.type, f"{name}.", of)  # type: ignore[arg-type]
            continue
        yield Key(name, field, of)
        for part_name, part in field.metadata["family"].parts().items() if "family" in field.metadata else ():
            yield from keys_of(part, f"{prefix}{part_name}.", (*of, (name, part_name)))


def build(cls: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    """Builds a dataclass of settings from valid values by full name; values of parts not chosen are ignored."""
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        name = prefix + field.name
        if "help" not in field.metadata:
            arguments[field.name] = build(field.type, values, f"{name}.")  # type: ignore[arg-type]
        elif family := field.metadata.get("family"):
            chosen = values.get(name, field.metadata["default"])
            known = chosen in family.parts()
            arguments[field.name] = build(family[chosen], values, f"{prefix}{chosen}.") if known else Missing(chosen)
        elif name in values:
            arguments[field.name] = values[name]
    return cls(**arguments)


def flatten(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Returns every setting by its full name, a part as its name: the reverse of `build`."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        name, value = prefix + field.name, getattr(settings, field.name)
        if "help" not in field.metadata:
            values |= flatten(value, f"{name}.")
        elif "family" in field.metadata:
            values[name] = value.name
            if not isinstance(value, Missing):
                values |= flatten(value, f"{prefix}{value.name}.")
        else:
            values[name] = value
    return values


def names_in(text: str) -> list[str]:
    """The names in a setting that separates them by commas, each once."""
    return list(dict.fromkeys(filter(None, (name.strip() for name in text.split(",")))))


def parts_of(settings: Any) -> Iterator[Part]:
    """Yields every part that a dataclass of settings holds or names, outermost first."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if some_of := field.metadata.get("some_of"):
            yield from (some_of[name]() for name in names_in(value) if name in some_of.parts())
        if isinstance(value, Part):
            yield value
        if dataclasses.is_dataclass(value) and not isinstance(value, Missing):
            yield from parts_of(value)


def is_utf8(text: str) -> bool:
    """Whether UTF-8 can encode `text`, as a config.toml needs. Names of files that are not UTF-8 hold surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _absolute(path: str, directory: Path, written_in: str | Path, made: bool) -> str:
    """`path` as seen from `directory`, absolute.

    If the file that names it was written elsewhere, either its project was moved or only the file. The project was
    moved if the path exists at the same place relative to the file, or if it is made when missing and its old place is
    gone.
    """
    place = os.path.abspath(directory / os.path.expanduser(path))
    moved = os.path.abspath(directory / os.path.relpath(place, written_in))
    gone = made and not os.path.exists(place) and not os.path.exists(os.path.dirname(place))
    return moved if os.path.exists(moved) or gone else place


def shown(value: Any) -> str:
    """`value` as TOML would write it, cut to 60 characters."""
    if isinstance(value, int) and abs(value) >= 1 << 256:
        text = hex(value)  # Python refuses to write thousands of digits in base 10
    else:
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
