"""Any contents of a file are read, or refused by the project's own errors; a command then ends with one line."""

import dataclasses
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from intlm import checksums
from intlm import config as configuration
from intlm.cli import main
from intlm.data import shards
from intlm.data.shards import Corpus
from intlm.data.tokenizers import load_tokenizer
from intlm.errors import IntlmError
from intlm.export import FORMATS, export
from intlm.run import WEIGHTS, exported_parameters, load, open_run, population_of
from intlm.tracking import metrics

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
WORK = Path(tempfile.mkdtemp(dir=tiny.HOME))


@cache
def prepared() -> Path:
    """The tiny run's shards, to damage."""
    return Path(open_run(tiny.trained().directory)[0].data.prepared)


@cache
def exported() -> Path:
    """The tiny run's export, to damage."""
    return export(tiny.trained().directory, FORMATS["safetensors"](), WORK / "export")


def own_errors_only(read: Callable[[], object]) -> None:
    """Reads damaged input, and lets only the project's own errors pass."""
    try:
        read()
    except IntlmError as error:
        assert str(error)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file's bytes cut, overwritten, and put into each other."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(content)))
        length = draw(st.integers(0, 16))
        content[at : at + length] = draw(st.binary(max_size=16))
        if draw(st.booleans()):
            del content[draw(st.integers(0, len(content))) :]
    return bytes(content)


@st.composite
def altered(draw: st.DrawFn, value: Any) -> Any:
    """JSON in which a value somewhere is another, or not there."""
    if isinstance(value, dict) and value and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(value)))
        if draw(st.integers(0, 5)) == 0:
            return {k: v for k, v in value.items() if k != key}
        return value | {key: draw(altered(value[key]))}
    if isinstance(value, list) and value and draw(st.integers(0, 4)):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], draw(altered(value[at])), *value[at + 1 :]]
    return draw(JSON)


KEYS = st.sampled_from([*configuration.keys(), "data", "model", "nothing", "model.nothing"])
VALUES = st.integers() | st.text(max_size=12) | st.booleans() | st.floats() | st.lists(st.integers(), max_size=2)


@given(st.data())
def test_configurations(data: st.DataObject) -> None:
    """Any bytes, the tiny configuration's damaged, and values of any kind under any key."""
    path = WORK / "config.toml"
    if data.draw(st.booleans()):
        path.write_bytes(data.draw(st.binary(max_size=60) | damaged(tiny.CONFIG.read_bytes())))
    else:
        given_keys = data.draw(st.dictionaries(KEYS, VALUES, max_size=4))
        try:
            tiny.write_config(path, {**tiny.KEYS, **given_keys})
        except (TypeError, AttributeError, UnicodeEncodeError):  # not to be written as TOML at all
            return
    own_errors_only(lambda: configuration.load(path))
    overrides = data.draw(st.dictionaries(KEYS, st.text(max_size=8), max_size=2))
    own_errors_only(lambda: configuration.load(tiny.CONFIG, overrides))


@given(st.data())
def test_indexes(data: st.DataObject) -> None:
    """Damaged bytes, and an index that was written with other values and the right checksum."""
    directory = WORK / "prepared"
    shutil.copytree(prepared(), directory, dirs_exist_ok=True)
    path = directory / "index.json"
    if data.draw(st.booleans()):
        path.write_bytes(data.draw(damaged(path.read_bytes())))
    else:
        index = json.loads(path.read_text())
        index.pop("checksum")
        index = data.draw(altered(index))
        if isinstance(index, dict):
            index |= {"checksum": shards._digest(index)}
        path.write_text(json.dumps(index))

    def read() -> None:
        corpus = Corpus.open(directory)
        corpus.verify()
        for split in corpus.splits.values():
            list(split.document_spans())
            split.to_bytes(100)

    own_errors_only(read)


@given(st.data())
def test_shards(data: st.DataObject) -> None:
    """Every changed bit is noticed; reading without checking raises no foreign errors."""
    directory = WORK / "shards"
    shutil.copytree(prepared(), directory, dirs_exist_ok=True)
    path = sorted(directory.glob("*.bin"))[0]
    good = path.read_bytes()
    bad = data.draw(damaged(good) | st.integers(0, 8 * len(good) - 1).map(lambda bit: flipped(good, bit)))
    path.write_bytes(bad)
    if bad != good:
        with pytest.raises(IntlmError, match=str(path.name)):
            Corpus.open(directory).verify()
    own_errors_only(lambda: list(Corpus.open(directory).split("train").document_spans()))
    own_errors_only(lambda: Corpus.open(directory).split("train").to_bytes())


def flipped(content: bytes, bit: int) -> bytes:
    """Returns the bytes with one bit changed."""
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@given(st.data())
def test_safetensors(data: st.DataObject) -> None:
    """Damaged bytes, under the old checksum and under one that fits them."""
    directory = exported()
    config, tokenizer = open_run(directory)
    architecture = population_of(config, tokenizer.vocab_size).architecture
    copy = WORK / "weights"
    copy.mkdir(exist_ok=True)
    good = (directory / WEIGHTS).read_bytes()
    bad = data.draw(damaged(good) | st.binary(max_size=40))
    (copy / WEIGHTS).write_bytes(bad)
    described = json.loads((directory / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(described))
    if bad != good:
        with pytest.raises(IntlmError, match="damaged"):
            exported_parameters(copy / WEIGHTS, architecture)
    described = data.draw(altered(described) if data.draw(st.booleans()) else st.just(described))
    if isinstance(described, dict):
        described["weights_sha256"] = sha256(bad).hexdigest()
    (copy / "config.json").write_text(json.dumps(described))
    own_errors_only(lambda: exported_parameters(copy / WEIGHTS, architecture))


TOKENIZERS = [
    {"name": "bytes"},
    {"name": "alphabet", "alphabet": "6162"},
    {"name": "unigram", "model": "AAAA"},
    {"name": "bpe", "model": 7},
]


@given(st.data())
def test_tokenizers(data: st.DataObject) -> None:
    """Tokenizer files with damaged bytes and with other values."""
    path = WORK / "tokenizer.json"
    good = data.draw(st.sampled_from([*TOKENIZERS, json.loads((prepared() / "index.json").read_text())["tokenizer"]]))
    bad = data.draw(damaged(json.dumps(good).encode()) | altered(good).map(lambda v: json.dumps(v).encode()))
    path.write_bytes(bad)
    own_errors_only(lambda: load_tokenizer(path))


@given(st.data())
def test_metrics(data: st.DataObject) -> None:
    """Metrics with damaged bytes."""
    path = WORK / "metrics.jsonl"
    path.write_bytes(data.draw(damaged((tiny.trained().directory / "metrics.jsonl").read_bytes())))
    own_errors_only(lambda: metrics.read(path))


@settings(max_examples=25)
@given(st.data())
def test_checkpoints(data: st.DataObject) -> None:
    """A file of the last checkpoint that is cut, changed or missing is noticed and named."""
    run = WORK / "run"
    shutil.rmtree(run, ignore_errors=True)
    tiny.copied(run)
    last = max((run / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    files = sorted(path for path in last.rglob("*") if path.is_file() and path.name != "SHA256SUMS")
    path = data.draw(st.sampled_from(files))
    good = path.read_bytes()
    bad = data.draw(st.none() | damaged(good))
    if bad is None:
        path.unlink()
    else:
        path.write_bytes(bad)
    if bad != good:
        with pytest.raises(IntlmError, match=str(last.name)):
            load(run)


DEEP = 10**5
HOSTILE = [
    b"", b"{", b"{}", b"[]", b"[1]", b"3", b"null", b"\"x\"", b"\xff\xfe", b"\0", b"NaN", b"9" * 5000, b"1e999",
    b"[" * DEEP,
    b'{"a":' * DEEP, b'{"a":' * 900 + b"1" + b"}" * 900, b"a = " + b"[" * DEEP, b"a = 0x" + b"f" * 5000,
    b"[" + b".".join([b"a"] * 2000) + b"]", b'{"update": 1' + b"0" * 5000 + b"}",
]  # fmt: skip
"""Contents that are wrong for every file of intlm, in any format."""


@cache
def victim() -> Path:
    """A folder with a run, its export and its shards, the results of a sweep, a sweep and hardware, to damage."""
    work = WORK / "victim"
    shutil.copytree(prepared(), work / "prepared")
    run = tiny.copied(work / "runs" / "run")
    config = configuration.load(run / "config.toml")
    moved = dataclasses.replace(config, data=dataclasses.replace(config.data, prepared=str(work / "prepared")))
    (run / "config.toml").write_text(configuration.dumps(moved))
    tiny.copied(work / "runs" / "whole")
    export(run, FORMATS["safetensors"](), work / "export")
    line = {"study": "s", "variant": "v", "seed": 1, "keys": {"seed": 1}, "text": "t", "bits_per_byte": 2.5}
    line |= {"curve": [[1, 2, 3.5, 4.5]], "numerics": 3, "parameters": 9, "read": [4]}
    (work / "results.jsonl").write_text(json.dumps(line) + "\n")
    (work / "sweep.toml").write_text(
        'base = "absent.toml"\nseeds = [1, 2]\nkeys = { "train.updates" = 4 }\n[variants.a]\n'
    )
    shutil.copy(next((Path(__file__).parents[1] / "configs" / "hardware").glob("*.toml")), work / "hardware.toml")
    return work


def commands_that_read(name: str) -> list[list[object]]:
    """Returns the commands to try with a damaged file of `victim`."""
    work = victim()
    run, new = work / "runs" / "run", work / "new"
    prepare = ["prepare", tiny.CONFIG, "--data.prepared", work / "prepared"]
    compare = ["compare", run, "--picture", work / "compare.png"]
    listed = ["runs", work / "runs"]
    if name.startswith("runs/run/checkpoints"):
        return [["generate", run, "--tokens", "1"]]
    if name.startswith("export"):
        return [["generate", work / "export", "--tokens", "1"]]
    return {
        "runs/run/config.toml": [listed, compare, ["generate", run, "--tokens", "1"]],
        "runs/run/tokenizer.json": [listed, ["generate", run, "--tokens", "1"]],
        "runs/run/metrics.jsonl": [listed, compare],
        "runs/run/references.json": [compare],
        "prepared/index.json": [prepare, ["evaluate", run, "--batch", "1"]],
        "results.jsonl": [["compare", work / "results.jsonl", "--picture", work / "compare.png"]],
        "sweep.toml": [["sweep", work / "sweep.toml", "--runs", new]],
        "hardware.toml": [["simulate", work / "absent", "--on", "model", "--hardware", work / "hardware.toml"]],
    }[name]


STEP = f"runs/run/checkpoints/{tiny.UPDATES}"
READ = ["runs/run/config.toml", "runs/run/tokenizer.json", "runs/run/metrics.jsonl", "runs/run/references.json"]
READ += ["prepared/index.json", "results.jsonl", "sweep.toml", "hardware.toml"]
BY_SUM = ["export/config.json", f"{STEP}/meta/metadata", f"{STEP}/_CHECKPOINT_METADATA", f"{STEP}/parameters/_METADATA"]


def ends_well(arguments: list[object]) -> str:
    """Runs a command, which must succeed or print one line about the mistake. Returns its output."""
    out, said = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO()
    with redirect_stdout(out), redirect_stderr(said):
        code = main([str(argument) for argument in arguments])
    assert code in (0, 2), said.getvalue()
    assert code == 0 or (said.getvalue().startswith("intlm: ") and said.getvalue().count("\n") == 1), said.getvalue()
    out.seek(0)
    return out.read() + said.getvalue()


def try_commands(name: str, content: bytes) -> None:
    """Damages a file, corrects its checksums, tries every command that reads it, and restores it."""
    path = victim() / name
    good = path.read_bytes()
    step = victim() / STEP
    sums = (step / "SHA256SUMS").read_bytes()
    try:
        path.write_bytes(content)
        if path.is_relative_to(step):
            (step / "SHA256SUMS").unlink()
            checksums.write(step)
        for command in commands_that_read(name):
            said = ends_well(command)
            assert command[0] != "runs" or "whole" in said  # whatever one run is, the others are shown
    finally:
        path.write_bytes(good)
        (step / "SHA256SUMS").write_bytes(sums)


@pytest.mark.parametrize("name", [*READ, *BY_SUM])
def test_commands_with_what_is_none_of_our_files(name: str) -> None:
    for content in HOSTILE:
        try_commands(name, content)


@pytest.mark.parametrize("name", [*READ, *BY_SUM])
@settings(max_examples=8)
@given(st.data())
def test_commands_with_damaged_files(name: str, data: st.DataObject) -> None:
    """Bytes changed, and, of JSON, values of other types."""
    good = (victim() / name).read_bytes()
    bad = data.draw(damaged(good))
    if name.endswith((".json", ".jsonl", "metadata", "METADATA")) and data.draw(st.booleans()):
        first, newline, rest = good.partition(b"\n") if name.endswith("l") else (good, b"", b"")
        value = json.loads(first)
        value = data.draw(altered(value))
        if name == "prepared/index.json" and isinstance(value, dict):
            value.pop("checksum", None)
            value["checksum"] = shards._digest(value)
        bad = json.dumps(value).encode() + newline + rest
    try_commands(name, bad)
