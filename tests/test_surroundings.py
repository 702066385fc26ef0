"""A command's surroundings: a moved folder, other locales, closed streams, odd environments, exit codes."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

from intlm import config as configuration
from intlm.checkpoint import Checkpoints
from intlm.cli import TRACEBACK, main
from intlm.errors import INTERNAL
from intlm.tracking import metrics

REPOSITORY = Path(__file__).parents[1]
KEYS = {**tiny.KEYS, "data.train": "text.txt"}
del KEYS["data.prepared"]


def command(*arguments: object) -> list[str]:
    """`intlm` in a process of its own."""
    return [sys.executable, "-m", "intlm.cli", *map(str, arguments)]


def project(directory: Path, text: bytes | None = None) -> Path:
    """A folder with a text and a configuration of it."""
    directory.mkdir()
    (directory / "text.txt").write_bytes(text or tiny.words(4000))
    tiny.write_config(directory / "tiny.toml", KEYS)
    return directory


# ---- A folder that was moved ----


def test_a_moved_project_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command finds the text of a run and of an export in its new place, and does not prepare it again."""
    monkeypatch.chdir(project(tmp_path / "before"))
    assert main(["train", "tiny.toml", "--run-dir", "runs/a", "--train.updates", "5"]) == 0
    assert main(["export", "runs/a", "--to", "safetensors"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "runs/a", "--json"]) == 0
    expected = capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    Path("before").rename("after")
    monkeypatch.chdir(tmp_path / "after")
    (prepared,) = Path("prepared").iterdir()
    before = tiny.contents(prepared)

    for place in ("runs/a", "runs/a/exports/safetensors"):
        assert main(["evaluate", place, "--json"]) == 0
        assert capsys.readouterr().out == expected
    if shutil.which("cc"):
        assert main(["simulate", "runs/a", "--on", "host", "--tokens", "5"]) == 0
    assert main(["inspect", "runs/a"]) == 0
    assert "activations on held-out text" in capsys.readouterr().out
    # Resumed with the run's own configuration, which names the old place, and with the first one.
    assert main(["train", "runs/a/config.toml", "--run-dir", "runs/a", "--resume", "--train.updates", "8"]) == 0
    assert main(["train", "tiny.toml", "--run-dir", "runs/a", "--resume"]) == 0
    tiny.assert_same_state(Path("runs/a"), tiny.trained().directory)
    assert list(Path("prepared").iterdir()) == [prepared] and tiny.contents(prepared) == before

    # Without its prepared text: what makes it again.
    shutil.rmtree("prepared")
    capsys.readouterr()
    assert main(["evaluate", "runs/a"]) == 2
    said = capsys.readouterr().err
    remedy = "intlm prepare runs/a/config.toml"
    assert said == f"intlm: {prepared.absolute()}: no prepared text there: {remedy} makes it again\n"
    assert main(shlex.split(remedy)[1:]) == 0
    assert main(["evaluate", "runs/a"]) == 0


def test_a_run_moved_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It finds its text in the old place; beside another text it does not mistake that for its own."""
    for name, text in (("mine", tiny.words(4000)), ("other", tiny.words(4000)[::-1])):
        monkeypatch.chdir(project(tmp_path / name, text))
        assert main(["train", "tiny.toml", "--run-dir", "runs/a", "--train.updates", "1"]) == 0
    shutil.copy(tmp_path / "mine" / "runs" / "a" / "config.toml", tmp_path / "other" / "runs")
    for place in ("runs/config.toml", "runs/a/config.toml"):  # the first is no run's: it means what it says
        text = "mine" if place == "runs/config.toml" else "other"
        assert configuration.load(Path(place)).data.train == str(tmp_path / text / "text.txt")
    (tmp_path / "mine" / "runs" / "a").rename(tmp_path / "alone")
    assert main(["evaluate", str(tmp_path / "alone")]) == 0
    (tmp_path / "alone").rename(tmp_path / "other" / "runs" / "b")
    capsys.readouterr()
    resume = ["train", "runs/b/config.toml", "--run-dir", "runs/b", "--resume", "--train.updates", "2"]
    assert main(["evaluate", "runs/b"]) == 2
    assert "not the text that runs/b was trained with" in capsys.readouterr().err
    assert main(resume) == 2
    assert "is not what the run was started with" in capsys.readouterr().err


# ---- Locales ----


def locales(directory: Path) -> list[dict[str, str]]:
    """Environments of a locale that is not UTF-8: ASCII, and Latin-1 where one can be made."""
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    make = ["localedef", "-f", "ISO-8859-1", "-i", "en_US", str(directory / "en_US.ISO-8859-1")]
    if not shutil.which("localedef") or subprocess.run(make, capture_output=True).returncode:
        return [plain]
    return [plain, {"LC_ALL": "en_US.ISO-8859-1", "LOCPATH": str(directory)}]


def test_other_locales(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path with é, under locales that are not UTF-8: the files are the same, the terminal gets what it can show."""
    home = project(tmp_path / "café")
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    ascii_only, *latin = locales(tmp_path)

    def run(environment: dict[str, str], *arguments: object) -> bytes:
        done = subprocess.run(command(*arguments), cwd=home, env=inherited | environment, capture_output=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    shown = run((latin or [ascii_only])[0], "train", "tiny.toml", "--run-dir", "rün", "--train.updates", 1)
    assert b"run: " + ("rün".encode("latin-1") if latin else b"r?n") + b"\n" in shown and b"\n? this model" in shown
    assert b"\nr?n " in run(ascii_only, "runs", ".")
    config = configuration.load(home / "rün" / "config.toml")
    assert config.data.train == str(home / "text.txt")
    assert "café" in (home / "rün" / "config.toml").read_text("utf-8")
    monkeypatch.chdir(home)
    assert main(["train", "rün/config.toml", "--run-dir", "rün", "--resume", "--train.updates", str(tiny.UPDATES)]) == 0
    tiny.assert_same_state(home / "rün", tiny.trained().directory)


def test_names_that_are_not_utf8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names that are not UTF-8 are refused before anything is made: checkpoints and configurations cannot be kept
    under one."""
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(b"r\xe9")
    assert main(["train", str(tiny.CONFIG), "--run-dir", name]) == 2
    assert f"intlm: {tmp_path}/r?: not a path in UTF-8" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    tiny.copied(tmp_path / name)
    assert main(["generate", name]) == 2
    assert "not a path in UTF-8" in capsys.readouterr().err
    for words in (["--data.prepared", name], ["--data.train", name]):
        assert main(["prepare", str(tiny.CONFIG), *words]) == 2
        assert "expected text that UTF-8 can write" in capsys.readouterr().err
    project(tmp_path / f"{name}2")
    monkeypatch.chdir(tmp_path / f"{name}2")
    assert main(["train", "tiny.toml", "--run-dir", "../run"]) == 2
    assert "data.train" in capsys.readouterr().err and not (tmp_path / "run").exists()


def takes_the_locales_encoding(call: ast.Call) -> bool:
    """Whether a call reads or writes text and does not say how."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    given = {keyword.arg for keyword in call.keywords}
    values = [*call.args, *(keyword.value for keyword in call.keywords)]
    texts = [str(value.value) for value in values if isinstance(value, ast.Constant)]
    if name in ("read_text", "write_text"):
        is_text = isinstance(call.func, ast.Attribute) and "utf-8" not in texts  # else `intlm.schema.read_text`
    elif name in ("open", "fdopen", "NamedTemporaryFile"):
        is_path = isinstance(call.func, ast.Name)
        is_text = any(re.fullmatch(r"[rwxa]\+?", text) for text in texts) or len(values) == is_path
    else:
        is_text = bool(given & {"text", "universal_newlines"}) and name in ("run", "Popen", "check_output")
    return is_text and "encoding" not in given


def test_every_text_on_disk_has_an_encoding() -> None:
    for text in ("open(p)", "p.open()", "open(p, 'w')", "p.read_text()", "p.write_text(x)", "run(c, text=True)"):
        assert takes_the_locales_encoding(ast.parse(text, mode="eval").body), text
    wrong = []
    for folder in ("intlm", "kernels", "data"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            calls = (node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.Call))
            wrong += [f"{path}:{call.lineno}" for call in calls if takes_the_locales_encoding(call)]
    assert not wrong


# ---- Streams, environments, exit codes ----


def test_a_reader_that_leaves_a_run(tmp_path: Path) -> None:
    """`intlm train CONFIG | head -1`: the run is saved, stderr says how to go on, and nothing is lost."""
    run = tmp_path / "run"
    words = command("train", tiny.CONFIG, "--run-dir", run, "--train.sample_every", 1)
    words += ["--train.checkpoint_seconds", "1000"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(words, stdout=pipe, stderr=pipe, encoding="utf-8", cwd=tiny.HOME)
    assert process.stdout and process.stdout.readline().startswith("--- after 1 updates")
    process.stdout.close()
    assert process.stderr
    said = process.stderr.read()
    assert process.wait(60) == 130 and "Traceback" not in said
    last = said.splitlines()[-1]
    assert last.startswith("stopped and saved; resume with: intlm train ")
    lines = len(metrics.read(run / "metrics.jsonl"))
    assert lines < tiny.UPDATES and Checkpoints(run / "checkpoints", read_only=True).updates() == [lines]
    again = shlex.split(last.partition(": intlm ")[2])
    assert main([*again, "--train.sample_every", str(tiny.SAMPLE_EVERY)]) == 0
    tiny.assert_same_state(run, tiny.trained().directory)


def test_a_run_that_nobody_can_read(tmp_path: Path) -> None:
    """Neither stdout nor stderr can be written, as on a terminal that is gone: the run is saved."""
    words = [*command("train", tiny.CONFIG, "--run-dir", tmp_path / "run"), "--train.checkpoint_seconds", "1000"]
    with open("/dev/full", "w") as full:
        assert subprocess.run(words, stdout=full, stderr=full, cwd=tiny.HOME).returncode == 130
    assert Checkpoints(tmp_path / "run" / "checkpoints", read_only=True).updates()


@pytest.mark.parametrize(("redirected", "code"), [(">&- 2>&- <&-", 0), (">/dev/full", 2)])
def test_streams_that_cannot_be_written(redirected: str, code: int) -> None:
    """A closed stream counts as /dev/null; a stream to a full device is an error, as for any other file."""
    words = shlex.join(command("runs", tiny.trained().directory))
    done = subprocess.run(f"{words} {redirected}", shell=True, capture_output=True, encoding="utf-8", cwd=tiny.HOME)
    assert done.returncode == code
    assert done.stderr == ("intlm: input/output: No space left on device\n" if redirected == ">/dev/full" else "")


def test_without_a_home_and_a_user() -> None:
    """Works without $HOME and for a user without a name, as in a container that runs under a numeric user id."""
    other = ["unshare", "--user", "--map-user=54321"]
    if not shutil.which("unshare") or subprocess.run([*other, "true"], capture_output=True).returncode:
        pytest.skip("needs a user of another number: unshare --user --map-user")
    environment = {name: text for name, text in os.environ.items() if name not in ("HOME", "JAX_COMPILATION_CACHE_DIR")}
    words = [*other, *command("runs", tiny.trained().directory)]
    done = subprocess.run(words, env=environment, capture_output=True, encoding="utf-8", cwd=tiny.HOME)
    assert (done.returncode, done.stderr) == (0, "") and "run " in done.stdout


@pytest.mark.parametrize(("name", "text"), [("JAX_PLATFORMS", "nonsense"), ("JAX_ENABLE_X64", "perhaps")])
def test_an_environment_that_jax_refuses(name: str, text: str) -> None:
    words = command("generate", tiny.trained().directory)
    done = subprocess.run(words, env={**os.environ, name: text}, capture_output=True, encoding="utf-8", cwd=tiny.HOME)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("intlm: ") and name in done.stderr and text in done.stderr


@pytest.mark.parametrize("text", ["2(x2)", "two", "9" * 5000])
def test_an_odd_step_of_slurm(text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", text)
    assert main(["train", str(tiny.CONFIG), "--run-dir", "absent"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("intlm: the environment: SLURM_STEP_NUM_TASKS = ") and said.count("\n") == 1


def test_a_batch_larger_than_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    """It takes no more memory than the text needs."""
    run = str(tiny.trained().directory)
    found = []
    for flags in ([], ["--batch", str(configuration.INT32_MAX)]):
        assert main(["evaluate", run, *flags]) == 0
        found.append(capsys.readouterr().out)
    assert found[0] == found[1]
    for text in ("9" * 10, "9" * 5000):
        with pytest.raises(SystemExit) as stopped:
            main(["evaluate", run, "--batch", text])
        assert stopped.value.code == 2
        assert capsys.readouterr().err.endswith(f"expected a whole number from 0 to {configuration.INT32_MAX}\n")


def test_an_error_of_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is one line with its own exit code; the traceback is in a file, or printed if the environment says so."""

    def broken(*arguments: object) -> None:
        raise TypeError("something\nlong")

    monkeypatch.setattr("intlm.inspection.inspect", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    words = ["inspect", str(tiny.trained().directory)]
    assert main(words) == INTERNAL == 70
    said = capsys.readouterr().err
    (written,) = tmp_path.iterdir()
    assert said.startswith("intlm: internal error: TypeError: something: please report it ")
    assert said.endswith(f"the traceback is in {written}\n") and said.count("\n") == 1
    assert "in broken" in written.read_text("utf-8")

    monkeypatch.setenv(TRACEBACK, "1")
    assert main(words) == INTERNAL
    assert "in broken" in capsys.readouterr().err and list(tmp_path.iterdir()) == [written]


def test_memory_that_does_not_suffice(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Too little memory for the requested size is reported as the user's mistake."""
    monkeypatch.setattr("intlm.inspection.inspect", lambda run: np.empty(1 << 60, np.int8))
    assert main(["inspect", str(tiny.trained().directory)]) == 2
    assert capsys.readouterr().err.startswith("intlm: not enough memory: Unable to allocate 1.00 EiB")


def test_the_tests_that_the_promises_name_exist() -> None:
    text = (REPOSITORY / "docs" / "promises.md").read_text("utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)(?::\s+([\w,\s]+))?`", text)
    assert len(named) == text.count("`tests/") > 20
    for path, names in named:
        code = (REPOSITORY / path).read_text("utf-8")
        for name in filter(None, re.split(r"[,\s]+", names)):
            assert f"\ndef {name}(" in code, f"{path}: {name}"


def test_a_result_into_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    """`--documents /dev/stdout`: a device or pipe is written to, and not replaced by a file."""
    read, write = os.pipe()
    with os.fdopen(read, "rb") as reader:
        assert main(["evaluate", str(tiny.trained().directory), "--documents", f"/dev/fd/{write}"]) == 0
        os.close(write)
        assert reader.read().count(b"\n") == 1


def test_an_odd_compiler(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CC", "'cc")
    assert main(["simulate", str(tiny.trained().directory), "--on", "host"]) == 2
    assert capsys.readouterr().err == "intlm: the environment: CC = 'cc: No closing quotation\n"
