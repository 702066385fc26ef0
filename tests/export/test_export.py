"""intlm.export: an export, used without its run, is the run's model; writing it changes no other file."""

import hashlib
import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from intlm import checksums
from intlm import config as configuration
from intlm.cli import main
from intlm.evaluation import evaluate
from intlm.export import FORMATS, export
from intlm.generation import generate
from intlm.language_model import LanguageModel
from intlm.run import WEIGHTS, load, text_of
from intlm.version import INFERENCE_VERSION

COMMON = {"config.json", "config.toml", "model.safetensors", "tokenizer.json", "SHA256SUMS"}
TEXT = tiny.words(400, seed=9) + b" \x00 \xff it"


@pytest.fixture(scope="module")
def safetensors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export in another directory than its run, which is deleted."""
    run = tiny.copied(tmp_path_factory.mktemp("runs") / "run")
    out = export(run, FORMATS["safetensors"](), tmp_path_factory.mktemp("far") / "model")
    shutil.rmtree(run)
    return out


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize("form", FORMATS.parts())
def test_the_command_writes_beside_the_run(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tiny.copied(tmp_path / "run")
    assert main(["export", str(run), "--to", form]) == 0
    out = run / "exports" / form
    assert capsys.readouterr().out == f"{out}\n"
    names = {path.name for path in out.iterdir()}
    own = {
        "c": {"Makefile", "README.md", "cell.h", "fixed_point.h", "intlm.c", "intlm.h", "main.c", "tokenizer.h"}
        | {"weights.c", "weights.h"},
        "onnx": {"model.onnx"},
        "safetensors": set(),
    }
    assert names == COMMON | own[form]
    assert not any(path.is_symlink() for path in out.iterdir())
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {(out / "config.toml").stat().st_mode & 0o777}


def test_weights_are_those_of_the_run(safetensors: Path) -> None:
    model = load(tiny.trained().directory)
    weights = load_file(safetensors / WEIGHTS)
    assert weights.keys() == model.parameters.keys()
    for name, value in model.parameters.items():
        assert weights[name].dtype == np.int8
        np.testing.assert_array_equal(weights[name], np.asarray(value))
    described = json.loads((safetensors / "config.json").read_text())
    assert described == {
        "model_type": "intlm",
        "inference_version": INFERENCE_VERSION,
        **model.architecture.described(),
        "weights_sha256": hashlib.sha256((safetensors / WEIGHTS).read_bytes()).hexdigest(),
        "corpus": text_of(tiny.trained().directory),
    }


def test_an_export_evaluates_and_writes_as_its_run(safetensors: Path) -> None:
    def what(model: LanguageModel) -> tuple[object, bytes]:
        evaluation = evaluate(model, [model.tokens(TEXT)])
        return evaluation, b"".join(generate(model, b"ab", 80, temperature="0.8", top_k=5, seed=4))

    assert what(load(safetensors)) == what(load(tiny.trained().directory))


def test_an_export_of_an_export_is_the_same(safetensors: Path, tmp_path: Path) -> None:
    again = export(safetensors, FORMATS["safetensors"](), tmp_path / "again")
    for path in safetensors.iterdir():
        if path.name not in ("config.toml", "SHA256SUMS"):  # which says where it is, and its digest
            assert (again / path.name).read_bytes() == path.read_bytes()
    assert configuration.load(again / "config.toml") == configuration.load(safetensors / "config.toml")


def test_training_begins_with_the_weights_of_an_export(safetensors: Path, tmp_path: Path) -> None:
    """After an update of a tiny step the weights are still the export's; weights from the seed would differ."""
    run = tmp_path / "run"
    keys = {**tiny.KEYS, "train.updates": 1, "eggroll.optimizer": "sgd", "eggroll.sgd.step": 1}
    config = tiny.write_config(tmp_path / "tiny.toml", keys)
    assert main(["train", str(config), "--run-dir", str(run), "--from", str(safetensors)]) == 0
    before, after = load(safetensors).parameters, load(run).parameters
    for name, value in before.items():
        moved = np.abs(np.asarray(after[name], int) - np.asarray(value, int))
        assert moved.max() <= 1 and moved.mean() < 0.1, name
    first = dict(tiny.state_of(run, 0))
    for name, value in before.items():
        np.testing.assert_array_equal(first[f".parameters['{name}']"], np.asarray(value))


def test_training_from_another_kind_of_model_is_refused(
    safetensors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    command = ("train", tiny.CONFIG, "--run-dir", run, "--from", safetensors)
    said = refused(capsys, *command, "--model.hidden_size", 24)
    assert f"{safetensors}: its model has hidden_size = 16, the configuration 24" in said
    prepared = tmp_path / "prepared"
    said = refused(capsys, *command, "--data.tokenizer", "bytes", "--data.prepared", prepared)
    assert f"{safetensors}: its tokenizer is not that of {prepared}" in said
    assert "not a run" in refused(capsys, *command[:-1], tmp_path / "nothing")
    assert not run.exists()


@pytest.mark.parametrize("beside", ["nothing", "another model", "an export"])
def test_nothing_but_an_export_is_replaced(beside: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    if beside == "an export":
        export(tiny.trained().directory, FORMATS["c"](), out)
    elif beside == "another model":
        (out / "config.json").write_text('{"model_type": "another"}')
        checksums.write(out)
    if beside != "another model":
        (out / "thesis.md").write_text("mine")
    before = tiny.contents(tmp_path)
    said = refused(capsys, "export", tiny.trained().directory, "--to", "safetensors", "--out", out)
    what = "thesis.md, which is not listed" if beside == "an export" else "something that is not an export"
    assert f"{out}: holds {what}" in said
    assert tiny.contents(tmp_path) == before


@pytest.mark.parametrize("what", ["a folder", "an empty folder", "a folder of a name", "edited", "a link", "a pipe"])
def test_what_has_the_name_of_a_file_of_an_export_is_kept(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The user's own files are kept: entries of another kind, and files changed since the export."""
    out = export(tiny.trained().directory, FORMATS["c"](), tmp_path / "model")
    name = "model" if what in ("a folder", "an empty folder", "a pipe") else "main.c"
    (out / name).unlink(missing_ok=True)
    if what == "edited":
        (out / name).write_text("/* mine */")
    elif what == "a link":
        (out / name).symlink_to(tiny.CONFIG)
    elif what == "a pipe":
        os.mkfifo(out / name)
    else:
        (out / name).mkdir()
        if what != "an empty folder":
            (out / name / "thesis.md").write_text("mine")
    before = tiny.contents(tmp_path)
    said = refused(capsys, "export", tiny.trained().directory, "--to", "safetensors", "--out", out)
    assert f"{out}: holds {name}, " in said
    assert tiny.contents(tmp_path) == before and (out / name).exists()


def test_a_checkpoint_is_no_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint is not taken for an export, though it has checksums too."""
    run = tiny.copied(tmp_path / "run")
    for out in (run / "checkpoints" / str(tiny.UPDATES), tiny.CONFIG):
        said = refused(capsys, "export", run, "--to", "c", "--out", out)
        assert f"{out}: " in said and "choose another --out" in said
    tiny.assert_same_state(run, tiny.trained().directory)


@pytest.mark.parametrize("by", ["its name", "a link", "a detour", "itself"])
def test_an_export_is_replaced(by: str, tmp_path: Path) -> None:
    out = tmp_path / "model"
    export(tiny.trained().directory, FORMATS["c"](), out)
    (out / "model").write_text("what make built")
    (out / "README.md").unlink()
    (tmp_path / "link").symlink_to(out)
    names = {"its name": out, "a link": tmp_path / "link", "a detour": out / "x" / "..", "itself": out}
    export(out if by == "itself" else tiny.trained().directory, FORMATS["safetensors"](), names[by])
    assert {path.name for path in out.iterdir()} == COMMON
    assert {path.name for path in tmp_path.iterdir()} == {"model", "link"}


def test_the_working_directory_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = export(tiny.trained().directory, FORMATS["c"](), tmp_path / "model")
    before = tiny.contents(tmp_path)
    monkeypatch.chdir(out)
    said = refused(capsys, "export", tiny.trained().directory, "--to", "c", "--out", ".")
    assert "is the working directory" in said
    assert tiny.contents(tmp_path) == before


def test_formats(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["export", str(tiny.trained().directory), "--to", "C"])
    assert "argument --to: invalid choice: 'C' (choose from 'c', 'onnx', 'safetensors')" in capsys.readouterr().err


def test_a_failed_export_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = export(tiny.trained().directory, FORMATS["safetensors"](), tmp_path / "model")
    before = tiny.contents(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)  # as if it were not installed
    capsys.readouterr()
    assert main(["export", str(tiny.trained().directory), "--to", "onnx", "--out", str(out)]) == 3
    said = capsys.readouterr().err
    assert "onnx: not installed" in said and "pip install 'intlm[simulators]'" in said and said.count("\n") == 1
    assert tiny.contents(tmp_path) == before


def test_what_cannot_be_replaced_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = export(tiny.trained().directory, FORMATS["safetensors"](), tmp_path / "model")
    before, replace = tiny.contents(tmp_path), os.replace

    def interrupted(source: Path, target: Path) -> None:
        if Path(source).name == "new":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(tiny.trained().directory, FORMATS["c"](), out)
    assert tiny.contents(tmp_path) == before


def test_an_older_export_is_read(safetensors: Path, tmp_path: Path) -> None:
    """An export with a single version of the arithmetic, under another name, as before there were two."""
    copy = Path(shutil.copytree(safetensors, tmp_path / "copy"))
    save_file(load_file(copy / WEIGHTS), copy / WEIGHTS, {"numerics_version": "3"})
    described = json.loads((copy / "config.json").read_text())
    described["numerics_version"] = described.pop("inference_version")
    described["weights_sha256"] = hashlib.sha256((copy / WEIGHTS).read_bytes()).hexdigest()
    (copy / "config.json").write_text(json.dumps(described))
    for name, value in load(safetensors).parameters.items():
        np.testing.assert_array_equal(load(copy).parameters[name], value)
    assert export(copy, FORMATS["safetensors"](), tmp_path / "again").is_dir()


@pytest.mark.parametrize(
    "damage", ["a bit", "cut", "missing", "shape", "dtype", "value", "version", "text", "float8", "name", "config.json"]
)
def test_damaged_weights_are_named(
    damage: str, safetensors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(safetensors, tmp_path / "copy"))
    path, described = copy / WEIGHTS, copy / "config.json"
    weights, metadata = load_file(path), {"inference_version": str(INFERENCE_VERSION)}
    whole = path.read_bytes()
    reasons = {"a bit": "damaged: its SHA-256", "cut": "damaged", "config.json": "expected that of an export"}
    reasons |= {"value": "head: holds -128: expected -127 to 127"}
    reasons |= {"text": "cannot be read", "float8": "cannot be read", "version": "inference_version = 1: expected 3"}
    reasons |= {"name": "'../a\\nhead': found"}
    if damage == "a bit":
        path.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    elif damage == "cut":
        path.write_bytes(whole[:-5])
    elif damage == "config.json":
        described.write_text("{}")
    else:
        if damage == "missing":
            del weights["head"]
        elif damage == "shape":
            weights["head"] = weights["head"][1:]
        elif damage == "dtype":
            weights["head"] = weights["head"].astype(np.int16)
        elif damage == "value":
            weights["head"][0, 0] = -128
        elif damage == "version":
            metadata = {"inference_version": "1"}
        save_file(weights, path, metadata)
        if damage == "text":
            path.write_text("not weights")
        elif damage in ("float8", "name"):
            of = {"dtype": "F8_E4M3" if damage == "float8" else "I8", "shape": [1], "data_offsets": [0, 1]}
            version = {"__metadata__": {"inference_version": str(INFERENCE_VERSION)}}
            header = json.dumps(version | {"../a\nhead": of}).encode()
            path.write_bytes(struct.pack("<Q", len(header)) + header + b"1")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        described.write_text(json.dumps(json.loads(described.read_text()) | {"weights_sha256": digest}))
    commands: list[tuple[object, ...]] = [("evaluate", copy, "--text", tiny.CONFIG)]
    if damage == "value":
        commands += [("export", copy, "--to", "c", "--out", tmp_path / "c"), ("simulate", copy, "--on", "host")]
        commands += [("train", tiny.CONFIG, "--run-dir", tmp_path / "run", "--from", copy)]
    for command in commands:
        said = refused(capsys, *command)
        assert str(described if damage == "config.json" else path) in said
        assert reasons.get(damage, "head") in said
