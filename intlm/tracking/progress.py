"""The live progress line of training.

- It gives bits per byte ("bpb") and fits 80 columns.
- On a terminal it is a tqdm bar on stderr; elsewhere (a log file, CI) plain lines, one every ten seconds.
- The time left is that of the updates since the first one, which compiles.
- Text that appears while training goes through `Progress.write`, to stdout, above the bar.
- Output that cannot be written (`intlm train CONFIG | head`) sets `unread`: the run is to save and stop.
"""

import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread
from types import TracebackType
from typing import Any

from tqdm import tqdm

from intlm.tracking.table import human

PLAIN_SECONDS = 10  # between plain lines
SILENT_SECONDS = 2  # after which `waiting` says that it waits, and again
# Text may hold any character: control characters are shown by their Unicode pictures instead.
VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
VISIBLE |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


class _Bar(tqdm):
    """tqdm's bar, whose time left comes from a rate of our own."""

    updates_per_second = 0.0  # 0: not known yet

    @property
    def format_dict(self) -> dict[str, Any]:
        return {**super().format_dict, "rate": self.updates_per_second}


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Shows on stderr what is being done, and for how long, while it takes long: on a terminal in one line."""
    ended, began, terminal = Event(), time.monotonic(), sys.stderr.isatty()

    def show() -> None:
        while not ended.wait(1 if terminal else SILENT_SECONDS):
            line = f"{text}, {time.monotonic() - began:.0f} s"
            with suppress(OSError):
                print(f"\r{line:<79}" if terminal else line, end="" if terminal else "\n", file=sys.stderr, flush=True)

    thread = Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if terminal:
            with suppress(OSError):
                print(f"\r{'':79}\r", end="", file=sys.stderr, flush=True)


class Progress:
    """Shows a run of `total` updates, of which `initial` were done before it started. A context manager.

    unread: whether stdout or stderr could not be written, because its reader has gone or its disk is full.
    """

    def __init__(self, total: int, initial: int = 0) -> None:
        self._total = total
        self._initial = initial
        self._update = initial
        self._latest: dict[str, Any] = {}
        self._first: tuple[float, int] | None = None  # when the first updates were done here, and how many
        self._printed_at = -float("inf")
        self._pending = False
        self._bar: _Bar | None = None
        self.unread = False
        if sys.stderr.isatty():
            try:
                measured = os.get_terminal_size(sys.stderr.fileno()).columns > 0
            except OSError:
                measured = False
            size = (None, None) if measured else shutil.get_terminal_size()  # tqdm would make it 0 x 0
            self._bar = _Bar(
                total=total,
                initial=initial,
                file=sys.stderr,
                dynamic_ncols=measured,
                ncols=size[0],
                nrows=size[1],
                miniters=1,
                bar_format="{n_fmt}/{total_fmt} {bar} {remaining} left{postfix}",
            )

    def update(self, update: int, **fields: Any) -> None:
        """Show that `update` updates are done. `fields` are those of a metrics line; each shows until its next value.

        Shown: train_bits_per_byte, valid_bits_per_byte, tokens_per_second, waiting (the share of an update spent
        waiting for data, from 1 % on), changed (a share, 0 to 1), agreement (a cosine), saturated_weights with
        saturated_states (shares), note (text).
        """
        self._latest.update((name, value) for name, value in fields.items() if value is not None)
        advance, self._update = update - self._update, update
        if self._first is None and update > self._initial:
            self._first = time.monotonic(), update
        if self._bar is not None:
            self._bar.updates_per_second = self._updates_per_second()
            with self._writing():
                self._bar.set_postfix_str(self._state(), refresh=False)
                self._bar.update(advance)
            return
        self._pending = True
        if time.monotonic() - self._printed_at >= PLAIN_SECONDS:
            self._print()

    def write(self, text: str) -> None:
        """Print `text` to stdout, above the bar; control characters but newline and tab are made visible."""
        encoding = sys.stdout.encoding or "utf-8"
        text = text.translate(VISIBLE).encode(encoding, "replace").decode(encoding)
        with self._writing():
            tqdm.write(text)
            sys.stdout.flush()

    def close(self) -> None:
        """Show the last state and leave it on its line. A second call does nothing."""
        if self._bar is not None:
            with self._writing():
                self._bar.refresh()
                self._bar.close()
            self._bar = None
        elif self._pending:
            self._print()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _state(self) -> str:
        """The measured values, the most important first: a narrow terminal cuts the last."""
        values = self._latest
        parts = [values["note"]] if "note" in values else []
        if "train_bits_per_byte" in values:
            parts.append(f"{values['train_bits_per_byte']:.3f} bpb")
        if "valid_bits_per_byte" in values:
            parts.append(f"held-out {values['valid_bits_per_byte']:.3f}")
        if "tokens_per_second" in values:
            parts.append(f"{human(values['tokens_per_second'])} tok/s")
        if values.get("waiting", 0) >= 0.01:
            parts.append(f"{values['waiting']:.0%} waiting for data")
        if "changed" in values:
            parts.append(f"{100 * values['changed']:.3g}% changed")
        if "agreement" in values:
            parts.append(f"agreement {values['agreement']:+.3f}")
        if "saturated_weights" in values:
            parts.append(f"saturated {values['saturated_weights']:.1%} w, {values['saturated_states']:.1%} h")
        return ", ".join(parts)

    def _updates_per_second(self) -> float:
        """The rate since the first updates here; 0 where there is none yet, infinity where nothing is left."""
        if self._update >= self._total:
            return math.inf
        if self._first is None:
            return 0.0
        elapsed = time.monotonic() - self._first[0]
        return (self._update - self._first[1]) / elapsed if elapsed else 0.0

    def _print(self) -> None:
        self._printed_at, self._pending = time.monotonic(), False
        rate = self._updates_per_second()
        left = tqdm.format_interval((self._total - self._update) / rate) if rate else "?"
        state = self._state()
        line = f"update {self._update}/{self._total}, {left} left" + (f", {state}" if state else "")
        with self._writing():
            print(line, file=sys.stderr, flush=True)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self.unread = True
