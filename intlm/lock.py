"""The lock of a run's directory: only one process trains in it, and other processes can see whether one does."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from intlm.errors import RunError


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Lock a run's directory against a second trainer. Raises RunError if another trainer has it."""
    with open(directory / ".lock", "wb") as lock:
        for left in reversed(range(10)):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if not left:
                    raise RunError(f"{directory}: another `intlm train` is running in it") from None
                time.sleep(0.05)  # a call of `alive` may hold it for a moment
        yield


def alive(directory: Path) -> bool:
    """Whether a trainer has locked a run's directory. A run that starts meanwhile is not disturbed."""
    try:
        with open(directory / ".lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False
