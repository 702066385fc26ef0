"""SHA256SUMS: the checksums of a directory's files in the format of `sha256sum`, so that every change is noticed."""

import hashlib
import os
from collections.abc import Container
from pathlib import Path

CHECKSUMS = "SHA256SUMS"


def write(directory: Path) -> None:
    """List every file below `directory`. The list appears atomically, once all files that it lists are on the disk."""
    paths = sorted(directory.rglob("*"))
    for path in paths:
        _sync(path)
    lines = [f"{_sha256(path)}  {path.relative_to(directory)}\n" for path in paths if path.is_file()]
    temporary = directory / f"{CHECKSUMS}.tmp"
    temporary.write_text("".join(lines), encoding="utf-8")
    _sync(temporary)
    os.replace(temporary, directory / CHECKSUMS)
    _sync(directory)
    _sync(directory.parent)


def difference(directory: Path, unlisted: Container[str] = ()) -> tuple[Path, str] | None:
    """Returns the first file below `directory` that differs from the list, and how it differs; None where none does.

    unlisted: names of files that may be there without being listed.
    """
    path = directory / CHECKSUMS
    if not path.is_file():
        return path, "missing"
    lines = path.read_text("utf-8", "replace").splitlines()
    listed = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    present = {str(path.relative_to(directory)): path for path in sorted(directory.rglob("*")) if not path.is_dir()}
    del present[CHECKSUMS]
    for name, path in present.items():
        if name not in listed and not (name in unlisted and path.is_file()):
            return path, f"not listed in {CHECKSUMS}"
        if name in listed and (not path.is_file() or _sha256(path) != listed[name]):
            return path, "damaged"
    return next(((directory / name, "missing") for name in listed if name not in present), None)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Sync a file, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
