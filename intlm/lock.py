"""The lock of a run's directory: one process trains in it, and others see that it does."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from intlm.errors import RunError


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Hold a run's directory against a second trainer. Raises RunError if one has it."""
    with open(directory / ".lock", "wb") as lock:
        for left in reversed(range(10)):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if not left:
                    raise RunError(f"{directory}: another `intlm train` is running in it") from None
                time.sleep(0.05)  # it may be `alive` that looks
        yield


def alive(directory: Path) -> bool:
    """Whether a trainer holds a run's directory. A run that starts meanwhile is not disturbed."""
    try:
        with open(directory / ".lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False
