"""The project's own error types, which the command line turns into one line and an exit code."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

INTERNAL = 70  # exit code of an error that is no IntlmError: EX_SOFTWARE of sysexits.h


class IntlmError(Exception):
    """A failure that the user can act on. The message names the file or key, its value and what was expected.

    The command line prints it without a traceback and exits with `exit_code`.
    """

    exit_code = 2


class ConfigError(IntlmError):
    """A configuration that does not validate: unknown key, wrong type, impossible value."""


class DataError(IntlmError):
    """A corpus, a shard or a tokenizer that is missing, damaged or of another kind than expected."""


class RunError(IntlmError):
    """A run directory that is missing, damaged, or does not match what is asked of it."""


class LostProcess(IntlmError):
    """Another process of the same run has ended or cannot be reached, or this one cannot."""

    exit_code = 4

    def __init__(self, reason: str) -> None:
        reason = reason.strip().split("\n")[0][:200]
        super().__init__(f"another process of this run was lost; resume all of them with --resume ({reason})")


def reason(error: BaseException) -> str:
    """The message of an error, in a line that is never empty."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)[:300]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError inside into a RunError that names the file: the OSError of a full disk names none."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives the path of a temporary file that replaces the file `path` atomically as the context ends.

    A device or a pipe is written directly; of a link, its target is replaced. An OSError becomes a RunError that
    names the file.
    """
    with writing(path):
        if path.exists() and not path.is_file():
            yield path
            return
        there = Path(os.path.realpath(path))
        temporary = there.with_name(f".{there.name}.tmp")  # after a kill, the next time overwrites it
        try:
            yield temporary
            os.replace(temporary, there)
        finally:
            temporary.unlink(missing_ok=True)


class MissingPackage(IntlmError):
    """A required package or program is not installed; nothing was done."""

    exit_code = 3

    def __init__(self, package: str, purpose: str, remedy: str = "pip install 'intlm[simulators]'") -> None:
        super().__init__(f"{package}: not installed, and {purpose} needs it: {remedy}")
