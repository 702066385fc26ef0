"""intlm.tracking.progress: a bar on a terminal, plain lines elsewhere, and printed text that disturbs neither."""

import fcntl
import io
import os
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from intlm.tracking import progress as progress_module
from intlm.tracking.progress import Progress

LINE = {
    "train_bits_per_byte": 4.2134,
    "valid_bits_per_byte": 4.3,
    "tokens_per_second": 1_234_567,
    "changed": 0.0123,
    "tokens_evaluated": 10**9,
}
STATE = "4.213 bpb, held-out 4.300, 1.23M tok/s, 1.23% changed"


class Terminal(io.StringIO):
    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_every_ten_seconds_and_at_the_end(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(total=1000, initial=900) as progress:
        clock[0] += 60  # the first update compiles: it does not count
        for update in range(901, 951):
            clock[0] += 0.5
            fields = LINE if update == 901 else {"train_bits_per_byte": 4.0, "valid_bits_per_byte": None}
            progress.update(update=update, **fields)
    progress.close()
    out, err = capsys.readouterr()
    assert out == "" and "\r" not in err and err.endswith("\n")
    lines = err.splitlines()
    updates = [int(line.split()[1].split("/")[0]) for line in lines]
    assert updates == [901, 921, 941, 950]
    assert lines[0] == f"update 901/1000, ? left, {STATE}"
    # The last held-out value stays; the time left counts only the updates of this process.
    assert lines[-1] == ("update 950/1000, 00:25 left, 4.000 bpb, held-out 4.300, 1.23M tok/s, 1.23% changed")


def test_health_is_shown_last(capsys: pytest.CaptureFixture[str]) -> None:
    health = {"agreement": 0.01234, "saturated_weights": 0.0123, "saturated_states": 0.5}
    with Progress(total=10) as progress:
        progress.update(update=1, **health, **LINE)
    assert capsys.readouterr().err.endswith(f", {STATE}, agreement +0.012, saturated 1.2% w, 50.0% h\n")


def test_a_note_is_shown_first(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(total=10) as progress:
        progress.update(update=1, note="1/3 runs", **LINE)
    assert capsys.readouterr().err.endswith(f" left, 1/3 runs, {STATE}\n")


def test_nothing_done_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(total=10, initial=10):
        pass
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    with Progress(total=1000, initial=900) as progress:
        progress.update(update=901, **LINE)
        first = terminal.getvalue().split("\r")[-1]
        clock[0] += 98
        progress.update(update=950, train_bits_per_byte=4.0)
    assert " ? left" in first
    last = terminal.getvalue().rstrip("\n").split("\r")[-1]
    assert last.startswith("950/1000 ")
    assert "01:40 left, 4.000 bpb, held-out 4.300, 1.23M tok/s, 1.23% changed" in last
    assert terminal.getvalue().endswith("\n")


@pytest.mark.parametrize("columns", [0, 80])
def test_the_bar_fits_80_columns(columns: int) -> None:
    """Tested on a real terminal, also on one of unknown width."""
    child, parent = os.openpty()
    size = struct.pack("HHHH", columns and 24, columns, 0, 0)
    fcntl.ioctl(parent, termios.TIOCSWINSZ, size)
    code = f"""if True:
        from intlm.tracking.progress import Progress
        with Progress(total=1000, initial=900) as progress:
            progress.update(update=1000, **{LINE})
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    root = Path(progress_module.__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, stderr=parent, env=environment, cwd=root)
    screen = os.read(child, 65536).decode()
    os.close(parent)
    os.close(child)
    last = screen.rstrip().split("\r")[-1]
    assert last.startswith("1000/1000 ") and last.endswith(f"00:00 left, {STATE}")
    assert len(last) <= 80


def test_text_stands_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", terminal)
    with Progress(total=10) as progress:
        progress.update(update=1, **LINE)
        progress.write("a sample\nof text")
        progress.update(update=2)
    screen = terminal.getvalue()
    before, after = screen.split("a sample\nof text\n")
    # The bar's line was blanked before the text, and drawn again after it.
    assert before.endswith("\r") and before.split("\r")[-2].strip() == ""
    assert "/10 " in after


@pytest.mark.parametrize("text", ["\r", "\x1b[2J", "\b", "\x00", "\x7f", "\x85", "\x9b2J"])
def test_a_sample_cannot_move_the_cursor(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(total=10) as progress:
        progress.write(f"a{text}b\tc\nd é")
    out = capsys.readouterr().out
    assert out.startswith("a") and out.endswith("b\tc\nd é\n") and len(out) == len(f"a{text}b\tc\nd é\n")
    assert all(character.isprintable() or character in "\n\t" for character in out)


def test_a_terminal_of_few_characters_gets_what_it_can_show(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with Progress(total=10) as progress:
        progress.write("d é")
    assert raw.getvalue() == b"d ?\n"


def test_the_bar_ends_on_its_own_line_when_training_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(KeyboardInterrupt), Progress(total=10) as progress:
        progress.update(update=1, **LINE)
        raise KeyboardInterrupt
    assert terminal.getvalue().endswith("\n")
