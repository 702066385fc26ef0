"""intlm.cli: what each command says, and its exit code: 0 done, 2 the user's mistake, 130 interrupted."""

import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import tiny

import intlm
from intlm import checksums, config
from intlm.checkpoint import Checkpoints
from intlm.checksums import CHECKSUMS
from intlm.cli import main
from intlm.export import FORMATS
from intlm.run import load
from intlm.simulate.targets import TARGETS

REPOSITORY = Path(__file__).parents[1]
COMMANDS = (
    "prepare", "tokenizer", "train", "sweep", "runs", "compare", "evaluate", "harness", "generate", "export",
    "simulate", "inspect", "bench",
)  # fmt: skip


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Returns the one line that a command prints for a mistake. An exception, which would be a traceback, fails the
    test."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("intlm: ") and said.err.count("\n") == 1 and len(said.err) < 500
    return said.err.strip()


def usage(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Returns the message that argparse prints for a mistake."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    versions = f"inference version {intlm.INFERENCE_VERSION}, training version {intlm.TRAINING_VERSION}"
    assert capsys.readouterr().out == f"intlm {intlm.__version__}, {versions}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`--help` explains each key where a configuration is read, and every flag."""
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as stopped:
        main([command, *(["train"] if command == "tokenizer" else []), "--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, key in config.keys().items():
        kind = "PATH" if key.is_path else "N" if key.is_number or key.is_decimal else "TEXT"
        flag = f"--{name} {'|'.join(key.choices) or kind}"
        assert (f"{flag} {key.help} (" in text) == (command in ("prepare", "tokenizer", "train", "sweep", "bench"))
    wanted = {
        "bench": ["--json", "--picture FILE", "--rounds N"],
        "prepare": ["--report"],
        "tokenizer": ["--out FILE"],
        "train": ["--run-dir DIR", "--resume", "--from RUN", "--minutes N", "--finish-now"],
        "sweep": ["FILE", "--jobs N", "--only VARIANT", "--seeds N", "--runs DIR", "--out FILE", "--picture FILE"],
        "runs": ["DIR", "--json"],
        "compare": ["RUN", "--picture FILE", "--reference LABEL=BITS", "--json"],
        "export": ["--to FORMAT", *(f"{name}: " for name in FORMATS.parts()), "--out DIR"],
        "simulate": [
            "--on TARGET",
            *(f"{name}: " for name in TARGETS.parts()),
            "--hardware FILE",
            "--tokens N",
            "--picture FILE",
        ],
        "evaluate": ["--text FILE", "--json", "--batch N", "--wikitext", "--documents FILE", "--picture FILE"],
        "harness": ["RUN", "lm_eval"],
        "generate": ["--prompt TEXT", "--prompt-file FILE", "--tokens N", "--temperature T", "--top-k K", "--seed N"],
    }
    assert all(flag in text for flag in wanted.get(command, []))


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(f"\n    {command}" in text for command in COMMANDS)


def test_what_needs_no_jax_does_not_load_it() -> None:
    """Help and `import intlm` load no heavy package, so that they take no time."""
    script = """
import sys
import intlm, intlm.cli
heavy = {"jax", "numpy", "orbax", "matplotlib", "datasets", "sentencepiece", "tensorboardX", "wandb", "trackio"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
for arguments in (["--help"], ["--version"], ["train", "--help"], ["generate", "--help"], ["train"], ["nonsense"]):
    try:
        intlm.cli.main(arguments)
    except SystemExit:
        pass
assert not heavy & set(sys.modules), heavy & set(sys.modules)
intlm.load
assert "jax" in sys.modules
"""
    done = tiny.intlm(python=("-c", script))
    assert done.returncode == 0, done.stderr


def test_the_command_is_installed() -> None:
    (found,) = entry_points(group="console_scripts", name="intlm")
    assert found.load() is main


def test_train_script() -> None:
    """`python train.py CONFIG` is `intlm train CONFIG`; tests/test_training.py also ends a run with it."""
    done = tiny.intlm("absent.toml", "--seed", "3", python=(str(REPOSITORY / "train.py"),))
    assert done.returncode == 2 and done.stderr.startswith("intlm: absent.toml: "), done.stderr


def test_arguments_that_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert "COMMAND" in usage(capsys)
    assert "invalid choice: 'trian'" in usage(capsys, "trian")
    assert "CONFIG" in usage(capsys, "train")
    assert "RUN" in usage(capsys, "evaluate")
    # An unknown key, with the nearest one; no abbreviation is taken for a flag.
    run = tiny.trained().directory
    for given, meant in [("--model.hiden_size", "--model.hidden_size"), ("--updates", "--train.updates")]:
        for words in ([given, "8"], [f"{given}=8"]):
            said = usage(capsys, "train", tiny.CONFIG, *words)
            assert f"unrecognized arguments: {' '.join(words)}; did you mean {meant}?\n" in said
    assert "unrecognized arguments: --js" in usage(capsys, "evaluate", run, "--js")
    assert "unrecognized arguments: --res" in usage(capsys, "train", tiny.CONFIG, "--res")


def test_configurations_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Invalid configurations: the message names the file or the command line, the key, and what was expected; nothing
    is made."""
    path = tmp_path / "a.toml"
    for command in ("prepare", "train", "bench"):
        words = [command, path]
        assert refused(capsys, *words).startswith(f"intlm: {path}: cannot be read: ")
        tiny.write_config(path, {**tiny.KEYS, "model.hiden_size": 8})
        assert refused(capsys, *words).endswith(
            f"{path}: model.hiden_size: unknown key; did you mean model.hidden_size?"
        )
        tiny.write_config(path, {**tiny.KEYS, "model.hidden_size": 12})
        assert f"{path}: model.hidden_size = 12: must be a multiple of 8 (" in refused(capsys, *words)
        tiny.write_config(path, {**tiny.KEYS, "data.train": "absent.txt"})
        assert f"{tmp_path / 'absent.txt'}: no such " in refused(capsys, *words, "--data.prepared", tmp_path / "new")
        tiny.write_config(path)
        said = refused(capsys, *words, "--eggroll.population", "33")
        assert said == "intlm: command line: eggroll.population = 33: must be even (members come in antithetic pairs)"
        path.unlink()
    assert list(tmp_path.iterdir()) == []


def test_prepare(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of splits; by default the shards are below the working directory. Held-out text is not needed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_bytes(b"a b\n" * 300)
    keys = {"data.train": "text.txt", "data.tokenizer": "alphabet"}
    path = tiny.write_config(tmp_path / "mine.toml", keys)
    assert main(["prepare", str(path)]) == 0
    out = capsys.readouterr().out
    assert [line.split() for line in out.splitlines()[2:3]] == [["train", "1", "1,201", "1,200", "1.000"]]
    assert ["train", "0", "0", "0", "0", "1,200"] in [line.split() for line in out.splitlines()]
    (made,) = (tmp_path / "prepared").iterdir()
    assert made.name.startswith("mine-")
    assert out.splitlines()[-1] == f"{made}: 6 tokens in the vocabulary (alphabet)"

    assert main(["prepare", str(path), "--data.valid_bytes", "200", "--data.prepared", "there"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:4]]
    assert rows == [["train", "1", "1,001", "1,000", "1.000"], ["valid", "1", "201", "200", "1.000"]]
    assert (tmp_path / "there" / "index.json").exists()

    assert main(["prepare", str(path), "--report"]) == 0
    out = capsys.readouterr().out
    assert "train: 4 of 5 tokens occur" in out and f"picture: {made / 'lengths.png'}" in out
    assert (made / "lengths.png").read_bytes().startswith(b"\x89PNG")


def test_pieces(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer of pieces is trained once, then a corpus and a run are made with it, and every command uses the
    run."""
    monkeypatch.chdir(tmp_path)
    keys = {"data.tokenizer": "unigram", "data.unigram.vocab_size": 262}
    path = tiny.write_config(tmp_path / "mine.toml", {**tiny.KEYS, **keys, "train.updates": 4, "data.prepared": "made"})
    assert main(["tokenizer", "train", str(path)]) == 0
    assert capsys.readouterr().out == "tokenizer.json: 262 tokens in the vocabulary (unigram)\n"
    assert main(["train", str(path), "--run-dir", "run", "--data.tokenizer_file", "tokenizer.json"]) == 0
    run = tmp_path / "run"
    assert (run / "tokenizer.json").read_text() == (tmp_path / "tokenizer.json").read_text()

    # Bits per byte are of the text's bytes, however many tokens they are.
    capsys.readouterr()
    text = tiny.words(50, seed=5) + b"\0\xff \xe2\x96\x81"
    (tmp_path / "text.txt").write_bytes(text)
    assert main(["evaluate", str(run), "--text", "text.txt", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    model = load(run)
    assert found["bytes"] == len(text) and found["tokens"] == len(model.tokens(text)) < len(text)
    assert found["bits_per_byte_integer"] * 256 * len(text) == model.losses(text).sum()
    assert main(["evaluate", str(run)]) == main(["generate", str(run), "--tokens", "20"]) == 0

    # The tokenizer goes with an export; C has none for it.
    assert main(["export", str(run), "--to", "safetensors"]) == 0
    assert (load(run / "exports" / "safetensors").losses(text) == model.losses(text)).all()
    assert "tokenizer 'unigram': the C program encodes text" in refused(capsys, "export", run, "--to", "c")

    # Shards of another tokenizer are refused.
    other = ["--data.tokenizer", "bpe", "--data.bpe.vocab_size", "262"]
    assert main(["prepare", str(path), "--data.prepared", "made", *other]) == 0
    assert "its tokenizer is not the one that the run was trained with" in refused(capsys, "evaluate", run)
    said = refused(capsys, "train", path, "--run-dir", "new", "--from", run, *other)
    assert f"{run}: its tokenizer is not that of {tmp_path / 'made'}: prepare the text with the same" in said


def test_directories_that_are_no_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("evaluate", "generate", "inspect"):
        for path in (tmp_path, tmp_path / "absent", tiny.CONFIG):
            assert refused(capsys, command, path).startswith(f"intlm: {path}: not a run: expected a directory with")
    run = tiny.copied(tmp_path / "run")
    (run / "tokenizer.json").write_text("{")
    assert f"{run / 'tokenizer.json'}: " in refused(capsys, "generate", run)
    (run / "tokenizer.json").write_text('{"name": "unknown"}')
    assert "tokenizer" in refused(capsys, "generate", run)
    (run / "tokenizer.json").unlink()
    assert f"{run / 'tokenizer.json'}: cannot be read" in refused(capsys, "generate", run)
    run = tiny.copied(tmp_path / "another")
    (run / "checkpoints").rename(run / "elsewhere")
    for command in ("evaluate", "generate", "inspect"):
        assert refused(capsys, command, run) == f"intlm: {run}: has no checkpoint yet"
    (run / "checkpoints").mkdir()
    assert refused(capsys, "generate", run) == f"intlm: {run}: has no checkpoint yet"
    (run / "config.toml").write_text("[model")
    assert f"{run / 'config.toml'}: not TOML" in refused(capsys, "generate", run)


def step_of(run: Path) -> Path:
    """The directory of a run's last checkpoint."""
    return run / "checkpoints" / str(tiny.UPDATES)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


def test_damaged_checkpoints(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A checkpoint is refused if any of its files is cut by a byte, has one bit changed, or is gone."""
    run = tiny.copied(tmp_path / "run")
    files = [path for path in step_of(run).rglob("*") if path.is_file() and path.name != CHECKSUMS]
    assert len(files) > 5
    for path in files:
        whole = path.read_bytes()
        for damage, what in ((truncate, "damaged"), (flip, "damaged"), (Path.unlink, "missing")):
            damage(path)
            said = refused(capfd, "generate", run)
            assert said.startswith(f"intlm: {path}: {what}: ")
            assert str(step_of(run)) in said
            path.write_bytes(whole)
    sums = step_of(run) / CHECKSUMS
    lines = sums.read_text().splitlines(keepends=True)
    for cut in ("", "".join(lines[1:]), "".join(lines[:-1]), lines[0], lines[0].replace("  ", "  ../")):
        sums.write_text(cut)
        assert f"{step_of(run)}/" in (said := refused(capfd, "generate", run)) and "not listed in SHA256SUMS" in said
    sums.write_text("".join([*lines, f"{'0' * 64}  ../../config.toml\n"]))
    assert f"{step_of(run)}/../../config.toml: missing" in refused(capfd, "generate", run)
    sums.write_text("".join(lines))
    (step_of(run) / "parameters" / "another").write_text("unlisted")
    assert "another: not listed" in refused(capfd, "generate", run)
    (step_of(run) / "parameters" / "another").unlink()
    load(run)
    flip(sums)
    assert str(step_of(run)) in refused(capfd, "generate", run)


@pytest.mark.parametrize("command", ["evaluate", "inspect"])
def test_a_damaged_checkpoint_serves_no_command(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny.copied(tmp_path / "run")
    (path,) = step_of(run).glob("parameters/manifest.ocdbt")
    flip(path)
    assert refused(capsys, command, run).startswith(f"intlm: {path}: damaged: ")


def test_a_checkpoint_without_checksums_is_not_whole(tmp_path: Path) -> None:
    """A run killed before the checksums were written: the checkpoint before is used, and the resumed run saves it
    anew."""
    run = tiny.copied(tmp_path / "run")
    (step_of(run) / CHECKSUMS).unlink()
    truncate(step_of(run) / "meta" / "metadata")
    assert load(run)
    assert main(["train", str(tiny.CONFIG), "--run-dir", str(run), "--resume"]) == 0
    tiny.assert_same_run(run, tiny.trained().directory)


def change_versions(run: Path, **versions: int) -> None:
    """Writes these versions of the arithmetic, and no others, into a run's last checkpoint."""
    path = step_of(run) / "meta" / "metadata"
    meta = {key: value for key, value in json.loads(path.read_text()).items() if not key.endswith("_version")}
    path.write_text(json.dumps(meta | versions))
    (step_of(run) / CHECKSUMS).unlink()
    checksums.write(step_of(run))


@pytest.mark.parametrize(
    ("versions", "refused_by"),
    [
        ({"numerics_version": 3}, {}),  # as checkpoints were before there were two versions
        ({"inference_version": 3, "training_version": 3}, {}),
        *(
            ({"inference_version": 3, "training_version": other}, {"train": f"training_version = {other}: expected 3"})
            for other in (2, 4)
        ),
        ({"numerics_version": 2}, dict.fromkeys(("train", "generate", "export"), "inference_version = 2: expected 3")),
        ({}, dict.fromkeys(("train", "generate", "export"), "inference_version = None: expected 3")),
    ],
)
def test_versions_of_a_run(
    versions: dict[str, int], refused_by: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run of another version of training is not resumed, but its model is used; of another inference, it is not
    used. That of the estimator `member` is 3 also under later ones."""
    run = tiny.copied(tmp_path / "run")
    assert json.loads((step_of(run) / "meta" / "metadata").read_text())["training_version"] == 3
    change_versions(run, **versions)
    exported = run / "exports" / "safetensors"
    for command in (
        ["train", tiny.CONFIG, "--run-dir", run, "--resume"],
        ["generate", run, "--tokens", 3],
        ["export", run, "--to", "safetensors"],
    ):
        if command[0] in refused_by:
            assert f"{step_of(run)}: {refused_by[command[0]]}" in refused(capsys, *command)
        else:
            assert main([str(word) for word in command]) == 0
    assert exported.exists() == ("export" not in refused_by)
    assert not exported.exists() or main(["generate", str(exported), "--tokens", "3"]) == 0


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    """A model whose configuration was changed by hand is refused. In a process of its own: orbax says a few things
    afterwards."""
    run = tiny.copied(tmp_path / "run")
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("hidden_size = 16", "hidden_size = 24"))
    done = tiny.intlm("generate", run)
    assert done.returncode == 2 and done.stdout == ""
    assert f"intlm: {step_of(run)}: the checkpoint cannot be read: " in done.stderr


def test_an_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C outside of training, where there is nothing to save."""

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("intlm.inspection.inspect", interrupted)
    assert main(["inspect", str(tiny.trained().directory)]) == 130
    assert capsys.readouterr().err == "intlm: interrupted\n"


def test_a_reader_that_leaves() -> None:
    """`intlm evaluate RUN | head -0`: no traceback, and nothing said."""
    command = [sys.executable, "-P", "-m", "intlm.cli", "evaluate", str(tiny.trained().directory)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 130


def test_from_python() -> None:
    """The three lines of the README."""
    run = tiny.trained().directory
    model = intlm.load(run)
    text = "abba bab"
    logits, losses = model.logits(text), model.losses(text)
    assert (logits.shape, logits.dtype) == ((len(text), model.architecture.vocab_size), np.int16)
    assert (losses.shape, losses.dtype) == ((len(text),), np.int32)
    assert (intlm.load(str(run)).losses(text.encode()) == losses).all()
    assert isinstance(model, intlm.LanguageModel)
    pieces = list(intlm.generate(model, b"abba", tokens=5, temperature=0))
    assert 0 < len(pieces) <= 5 and all(isinstance(piece, bytes) for piece in pieces)
    assert model.logits("").shape == (0, model.architecture.vocab_size) and model.losses(b"").shape == (0,)
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = intlm.absent

    # Causal: what comes later changes nothing before.
    assert (model.logits(text + " more")[: len(text)] == logits).all()
    last = Checkpoints(run / "checkpoints", read_only=True).parameters(tiny.UPDATES, model.architecture)
    assert all((model.parameters[name] == value).all() for name, value in last.items())


def test_losses_are_those_that_evaluate_sums(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, text = tiny.trained().directory, b"abba baab !\x00 ab"
    (tmp_path / "text.txt").write_bytes(text)
    assert main(["evaluate", str(run), "--text", str(tmp_path / "text.txt"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bits_per_byte_integer"] * 256 * len(text) == intlm.load(run).losses(text).sum()


def test_quickstart() -> None:
    """The quickstart configuration: its text is there on a fresh machine, and its settings validate."""
    found = config.load(REPOSITORY / "configs" / "quickstart.toml")
    config.check_limits(found, 1024)
    assert Path(found.data.train).is_file()
    assert found.data.valid_bytes > 0
    assert found.train.updates * found.eggroll.population * found.train.tokens_per_update >= 5e7


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").glob("*.toml")), ids=lambda path: path.name)
def test_every_configuration_validates(path: Path) -> None:
    config.load(path)


def test_default_run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default run directory is runs/NAME below the working directory."""
    seen: list[Path] = []

    def done(config: object, directory: Path, *more: object) -> bool:
        seen.append(directory)
        return True

    monkeypatch.setattr("intlm.training.train", done)
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(tiny.CONFIG)]) == 0
    assert main(["train", str(tiny.CONFIG), "--run-dir", "there"]) == 0
    assert seen == [Path("runs/tiny"), Path("there")]


def test_numbers_of_any_size_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Numbers out of range, even with huge exponents or thousands of digits, are refused by every flag, at once, in
    one line."""
    run, digits = tiny.trained().directory, "9" * 9999
    for arguments in (
        ["generate", run, "--tokens"], ["generate", run, "--top-k"], ["generate", run, "--seed"],
        ["evaluate", run, "--batch"], ["simulate", run, "--on", "host", "--tokens"], ["bench", tiny.CONFIG, "--rounds"],
        ["sweep", tiny.CONFIG, "--jobs"], ["train", tiny.CONFIG, "--processes"],
    ):  # fmt: skip
        for number in (digits, "1e999999999", "0x" + digits):
            said = usage(capsys, *arguments, number).splitlines()[-1]
            assert "expected a whole number from" in said and len(said) < 250
    for number in (digits, "1e999999999", "0x" + digits):
        for key, found in config.keys().items():
            if found.is_number:
                assert f"{key} = " in refused(capsys, "train", tiny.CONFIG, f"--{key}", number)
        assert "data.mixture = " in refused(capsys, "train", tiny.CONFIG, "--data.mixture", f"{number} x.toml")
        assert "--reference" in refused(capsys, "compare", run, "--reference", f"x={number}")
    toml = tmp_path / "big.toml"
    toml.write_text(f"seed = 0x{digits}\n[data]\ntrain = 'x'\n")
    assert f"{toml}: not TOML: Exceeds the limit" in refused(capsys, "prepare", toml)
