"""Command line flags that choose a part of a family and its settings."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from intlm.errors import ConfigError
from intlm.settings import COMMAND_LINE, AnyPart, Family, Key, keys_of, shown


def add(parser: argparse.ArgumentParser, flag: str, family: Family[Any], metavar: str) -> None:
    """Add --FLAG, which chooses a part, and a flag for each setting that a part has.

    Raises ConfigError where the command has a flag of a setting's name already.
    """
    names = tuple(family.parts())
    about = "; ".join(f"{name}: {(part.__doc__ or '').partition('.')[0]}" for name, part in family.parts().items())
    parser.add_argument(f"--{flag}", choices=names, required=True, metavar=metavar, help=about.replace("%", "%%"))
    for name, by_part in _settings(family).items():
        setting = next(iter(by_part.values()))
        default = "required" if setting.default is dataclasses.MISSING else f"default: {shown(setting.default)}"
        about = f"{', '.join(by_part)}: {setting.help} ({default})".replace("%", "%%")
        try:
            parser.add_argument(f"--{name}", dest=f"{flag}.{name}", metavar=_metavar(setting), help=about)
        except argparse.ArgumentError:
            where = f"{family.kind} {next(iter(by_part))!r}: setting {name!r}"
            raise ConfigError(f"{where}: the command has a flag --{name} already: expected another name") from None


def chosen(args: argparse.Namespace, flag: str, family: Family[AnyPart]) -> AnyPart:
    """Returns the part that parsed arguments choose, with its settings.

    Raises ConfigError for a setting that the part does not have, that is not valid, or that is required and missing.
    """
    part, given = getattr(args, flag), {}
    for name, by_part in _settings(family).items():
        value = getattr(args, f"{flag}.{name}")
        if value is None:
            if part in by_part and by_part[part].default is dataclasses.MISSING:
                wanted = f"--{name} {_metavar(by_part[part])}, {by_part[part].help}"
                raise ConfigError(f"--{flag} {part}: expected {wanted}")
        elif part not in by_part:
            raise ConfigError(f"--{name} = {value}: only for --{flag} {' or '.join(by_part)}")
        else:
            setting, here = by_part[part], Path.cwd()
            given[name] = value if setting.is_path else setting.valid(value, COMMAND_LINE, here, here)
    return family[part](**given)


def _settings(family: Family[Any]) -> dict[str, dict[str, Key]]:
    """Each setting's name -> the parts that have it, by name."""
    by_name: dict[str, dict[str, Key]] = {}
    for name, part in family.parts().items():
        for key in keys_of(part):
            by_name.setdefault(key.name, {})[name] = key
    return by_name


def _metavar(setting: Key) -> str:
    if setting.choices:
        return "|".join(setting.choices)
    return "FILE" if setting.is_path else "N" if setting.is_number else "TEXT"
