"""Preparation continues from the remains of an interrupted `intlm prepare`, or drops them; the corpus is the same."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from intlm.cli import main
from intlm.data import prepare, shards
from intlm.data.shards import PROGRESS, Corpus, CorpusWriter, scratch

TEXT = b"\xff|".join(tiny.words(60, seed) for seed in range(70))
KILLED = """
import json, os, shutil, signal, sys
from functools import partial
from pathlib import Path

import jax
from intlm.cli import main
from intlm.data import prepare, shards
import sentencepiece  # before the forks

prepare.SAVE_SECONDS, prepare.BLOCK = 0, 2000
prepare.CorpusWriter = partial(shards.CorpusWriter, shard_tokens=3000)
folder, prepared = Path(sys.argv[1]), Path(sys.argv[2])
before, seen = prepared.with_name("before"), 0
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir")


def forked(dying):
    '''The command in a process of its own, with what kills it. Returns how it ended.'''
    child = os.fork()
    if not child:
        sys.stdout = sys.stderr = open(os.devnull, "w")
        dying()
        os._exit(main(["prepare", str(folder / "config.toml")]))
    return os.waitpid(child, 0)[1]


def at_event(number):
    '''SIGKILL before the change of that number in the folder.'''
    def watch(event, arguments):
        global seen
        changes = arguments[2] & (os.O_WRONLY | os.O_RDWR) if event == "open" else event in CHANGES
        if changes and str(arguments[0]).startswith(str(folder)):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(watch)


def after(seconds):
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def files():
    return {path.name: path.read_bytes() for path in [*prepared.glob("*.bin"), prepared / "index.json"]}
"""

EVERYWHERE = """
forked(lambda: None)
expected, kills = files(), 0
while True:
    shutil.rmtree(prepared)
    if before.exists():
        shutil.copytree(before, prepared)
    how = forked(partial(at_event, kills + 1))
    if how == 0:
        break
    assert how == signal.SIGKILL, (kills, how)
    kills += 1
    assert forked(lambda: None) == 0 and files() == expected, kills
    assert not prepared.with_name(f".{prepared.name}.partial").exists()
print(kills)
"""

IN_TIME = """
import random, time

forked(lambda: None)
expected, kills = files(), 0
shutil.rmtree(prepared)
began = time.monotonic()
forked(lambda: None)
whole = time.monotonic() - began
for number in range(12):
    shutil.rmtree(prepared)
    kills += forked(partial(after, max(whole * (number + 0.5) / 13, 1e-4))) == signal.SIGALRM
    assert forked(lambda: None) == 0 and files() == expected, number
print(kills)
"""

ONCE = """
def dying():
    save, saves = shards.CorpusWriter.save, []
    def save_and_die(writer, progress):
        save(writer, progress)
        saves.append(progress)
        if len(saves) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
    shards.CorpusWriter.save = save_and_die

assert forked(dying) == signal.SIGKILL
print(1)
"""


def killed(folder: Path, what: str, **keys: Any) -> int:
    """Lets a script kill the command on a config in `folder`; returns how often it did."""
    folder.mkdir(exist_ok=True)
    data = {
        "train": "text",
        "prepared": "corpus",
        "document_separator": "|",
        "valid_bytes": 1500,
        "processes": 1,
    } | keys
    tiny.write_config(folder / "config.toml", {f"data.{key}": value for key, value in data.items()})
    command = [sys.executable, "-c", KILLED + what, str(folder), str(folder / "corpus")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout)


def files(corpus: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(corpus.glob("*.bin"))}


def test_a_kill_before_any_change(tmp_path: Path) -> None:
    """A kill before any change of a file or folder, also of an older corpus: the next command makes the same bits."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "text").write_bytes(b"an older text")
    tiny.write_config(folder / "config.toml", {"data.train": "text", "data.prepared": "before"})
    assert main(["prepare", str(folder / "config.toml")]) == 0
    (folder / "text").write_bytes(TEXT[:5000])
    assert killed(folder, EVERYWHERE, valid_bytes=500) > 15
    assert sorted(path.name for path in folder.iterdir()) == ["before", "config.toml", "corpus", "text"]


def test_a_kill_at_any_time(tmp_path: Path) -> None:
    """A kill at any time, also while a tokenizer is trained, changes nothing in the corpus."""
    (tmp_path / "text").write_bytes(TEXT)
    assert killed(tmp_path, IN_TIME, tokenizer="bpe", **{"bpe.vocab_size": 265}) > 1


def test_a_tokenizer_whose_training_was_killed(tmp_path: Path) -> None:
    """A tokenizer whose training was killed leaves nothing, and the next one is the same."""
    (tmp_path / "text").write_bytes(TEXT)
    config = tmp_path / "config.toml"
    out = tmp_path / "tokenizer.json"
    tiny.write_config(config, {"data.train": "text", "data.tokenizer": "bpe", "data.bpe.vocab_size": 265})
    arguments = ["tokenizer", "train", str(config), "--out", str(out)]
    assert main(arguments) == 0
    expected = out.read_bytes()
    out.unlink()
    script = f"""
import os, signal, sentencepiece, threading
from intlm.cli import main
train = sentencepiece.SentencePieceTrainer.train
def killed(**options):
    threading.Timer(0.005, os.kill, (os.getpid(), signal.SIGKILL)).start()
    while True:
        train(**options | {{"sentence_iterator": iter(list(options["sentence_iterator"]) * 50)}})
sentencepiece.SentencePieceTrainer.train = killed
main({arguments!r})
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.toml", "text"]
    assert main(arguments) == 0 and out.read_bytes() == expected


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a kill leaves it: with several shards, and more text to read."""
    folder = tmp_path_factory.mktemp("interrupted")
    (folder / "text").write_bytes(TEXT)
    assert killed(folder, ONCE) == 1
    names = {path.name for path in scratch(folder / "corpus").iterdir()}
    assert names == {".lock", "cuts.npy", PROGRESS, "valid-00000.bin", *(f"train-0000{i}.bin" for i in range(3))}
    return folder


def shortened(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def noted(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Changes the notes, and corrects their checksum."""

    def damage(path: Path) -> None:
        progress = json.loads(path.read_bytes())
        del progress["checksum"]
        change(progress)
        path.write_text(json.dumps(progress | {"checksum": shards._digest(progress)}))

    return damage


def further(by: int) -> Callable[[Path], None]:
    def change(progress: dict[str, Any]) -> None:
        progress["position"][2] += by

    return noted(change)


def other_cuts(path: Path) -> None:
    cuts = np.load(path)
    buffer = io.BytesIO()
    np.save(buffer, cuts[::-1] // 2)
    path.write_bytes(buffer.getvalue())


def other_text(path: Path) -> None:
    """Changes the text; its size and time stay the same."""
    status = path.stat()
    path.write_bytes(b"c" + path.read_bytes()[1:])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((f"train-0000{number}.bin", damage) for number in (0, 2) for damage in (shortened, flipped, Path.unlink)),
        *((PROGRESS, damage) for damage in (shortened, emptied, flipped, further(1), further(-1), further(1000))),
        ("cuts.npy", other_cuts),
        ("cuts.npy", Path.unlink),
        ("../text", other_text),
        ("", None),
    ],
)
def test_what_was_left_is_not_trusted(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    interrupted: Path,
    name: str,
    damage: Callable[[Path], None] | None,
) -> None:
    """If the remains or the text were changed, everything is made anew, and one line says so."""
    monkeypatch.setattr(prepare, "CorpusWriter", partial(CorpusWriter, shard_tokens=3000))
    there = scratch(interrupted / "corpus")
    kept = shutil.copytree(interrupted, tmp_path / "kept")
    try:
        if damage:
            damage(there / name)
        assert main(["prepare", str(interrupted / "config.toml")]) == 0
        made = Corpus.open(interrupted / "corpus")
        said = capfd.readouterr().err
        assert said.count("preparing from the beginning") == said.count("\n") == (damage is not None)
        assert damage is None or "text: " in said or f"{name}: " in said
        whole = ["prepare", str(interrupted / "config.toml"), "--data.prepared", str(tmp_path / "whole")]
        assert main(whole) == 0
        made.verify()
        assert files(made.directory) == files(tmp_path / "whole")
        assert (made.identity, made.found) == (Corpus.open(tmp_path / "whole").identity, made.found)
        assert not there.exists()
    finally:
        shutil.rmtree(interrupted)
        shutil.copytree(kept, interrupted)
