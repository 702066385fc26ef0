"""Decides which files of a folder are read, as text or as rows, and why others are not.

A folder that holds any JSON Lines or Parquet is a data set: its rows are read, and its other files are left out. The
split of a file is given by a README.md with `configs`, as on the hub, or else by its path: `data/SPLIT-00000-of-
00001...`, or a word such as train, validation or test in the name of a folder or of the file; any other file belongs
to the split "train". So no row file is dropped because of its name.
"""

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from intlm.data import files
from intlm.errors import DataError

_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF = {word: split for split, words in _SPLITS.items() for word in words}
_WORD = re.compile(rf"(?:^|[-._ 0-9])({'|'.join(_SPLIT_OF)})(?=$|[-._ 0-9])", re.IGNORECASE)
_SHARD = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*\.[^/]*")
_PROBED = 16  # chunks at the beginning of a .json file that must hold its first row


class Layout(NamedTuple):
    """The files at or below a path that are read, and those that are left out."""

    files: list[Path]  # in the order of reading
    has_rows: bool
    left_out: dict[str, list[Path]]  # files that are not read, by the reason
    folders: set[tuple[int, int]]  # the folders that were searched, by `files.identity`


def layout(place: Path, columns: Sequence[str], subset: str = "", split: str = "train") -> Layout:
    """Returns the files of a file or folder that are read. A single file is read whole.

    columns: the text columns; a .json file in a folder is read as rows where its first object has them.
    DataError where there is nothing to read, or no such subset or split.
    """
    found = files.find(place)
    if not place.is_dir():
        return Layout(found.files, files.form(place) != "text", found.left_out, found.folders)
    rows = [path for path in found.files if _has_rows(path, tuple(columns))]
    if not rows:
        return Layout(found.files, False, found.left_out, found.folders)
    left_out = dict(found.left_out)
    with_rows = set(rows)
    if others := [path for path in found.files if path not in with_rows]:
        left_out["not rows of the data set"] = others
    with files.reading(place / "README.md"):
        splits = _splits(place, rows, subset)
    if split not in splits:
        only = f"only {', '.join(map(repr, splits))}" if splits else "as README.md names no file that is there"
        raise DataError(f"{place}: no split {split!r}, {only}")
    taken = set(splits[split])
    for name, paths in splits.items():
        if others := [path for path in paths if path not in taken]:
            left_out[f"split {name!r}"] = others
    named = taken.union(*splits.values())
    if others := [path for path in rows if path not in named]:
        left_out["not in the configs of README.md"] = others
    return Layout([path for path in rows if path in taken], True, left_out, found.folders)


def _has_rows(path: Path, columns: tuple[str, ...]) -> bool:
    form = files.form(path)
    if form != "json":
        return form == "jsonl" or (form == "parquet" and not files.is_compressed(path))
    status = path.stat()
    return _begins_with_a_row(path, columns, status.st_size, status.st_mtime_ns)


@lru_cache(1 << 16)
def _begins_with_a_row(path: Path, columns: tuple[str, ...], size: int, time: int) -> bool:
    """Whether a JSON file has one object per line, or an array of objects, and the first one has all the columns."""
    text = b"".join(islice(files.chunks(path), _PROBED)).decode("utf-8-sig", "replace").lstrip()
    try:
        if text.startswith("["):
            value = json.JSONDecoder().raw_decode(text[1:].lstrip())[0]
        else:
            value = json.loads(text.partition("\n")[0])
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.keys() >= set(columns)


def split_of(name: str) -> str:
    """The split of a file of a data set by its path within it."""
    if shard := _SHARD.fullmatch(name):
        return shard[1]
    for part in name.split("/"):
        if word := _WORD.search(part):
            return _SPLIT_OF[word[1].lower()]
    return "train"


def _splits(place: Path, rows: list[Path], subset: str) -> dict[str, list[Path]]:
    """The files of each split of a subset."""
    names = {path: path.relative_to(place).as_posix() for path in rows}
    config = _config(place / "README.md", subset)
    within = str(config.get("data_dir") or "").strip("./")
    if within:
        names = {path: name.removeprefix(f"{within}/") for path, name in names.items() if name.startswith(f"{within}/")}
    splits: dict[str, list[Path]] = {}
    given = config.get("data_files")
    if not given:
        for path, name in names.items():
            splits.setdefault(split_of(name), []).append(path)
        return splits
    from fsspec.utils import glob_translate

    if not isinstance(given, list) or not all(isinstance(entry, dict) for entry in given):
        given = [{"split": "train", "path": given}]
    for entry in given:
        patterns = entry.get("path") or []
        patterns = [patterns] if isinstance(patterns, str) else patterns
        wanted = [re.compile(glob_translate(str(pattern).removeprefix("./"))) for pattern in patterns]
        chosen = [path for path, name in names.items() if any(pattern.match(name) for pattern in wanted)]
        splits.setdefault(str(entry.get("split", "train")), []).extend(chosen)
    return {split: paths for split, paths in splits.items() if paths}


def _config(readme: Path, subset: str) -> dict[str, Any]:
    """The configuration of a subset in the README.md of a data set; empty where the README.md has none."""
    configs: list[dict[str, Any]] = []
    if readme.is_file():
        from huggingface_hub import metadata_load  # slow to import

        configs = (metadata_load(readme) or {}).get("configs") or []
        named = {str(config.get("config_name", "default")): config for config in configs}
    if not configs:
        if subset:
            raise DataError(f"{readme.parent}: no subset {subset!r}: expected a README.md with configs that names it")
        return {}
    default = [name for name, config in named.items() if config.get("default")]
    default = default or [name for name in named if name == "default" or len(named) == 1]
    name = subset or next(iter(default), "")
    if name not in named:
        what = f"no subset {subset!r}, only" if subset else "data.subset: expected one of"
        raise DataError(f"{readme.parent}: {what} {', '.join(map(repr, named))}")
    return named[name]
