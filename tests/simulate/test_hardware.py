"""intlm.simulate.hardware, cost and what_if: descriptions and their mistakes, ZigZag's answers, the command."""

import dataclasses
import importlib.util
import json
import struct
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
import tomli_w

from intlm.cli import main
from intlm.errors import ConfigError, IntlmError
from intlm.model.parameters import Architecture
from intlm.simulate import hardware as descriptions
from intlm.simulate.cost import Cost, cost, products
from intlm.simulate.hardware import Hardware, load

SHIPPED = sorted((Path(__file__).parents[2] / "configs" / "hardware").glob("*.toml"))
SMALL = Architecture(96, 48, 2, 64, "clip")
WEIGHTS = 2 * (4 * 48 * 48 + 2 * 48 * 64) + 96 * 48  # of its matrix products
KEYS: dict[str, Any] = {
    "name": "mine",
    "clock_mhz": 100,
    "accumulator.bits": 24,
    "accumulator.overflow": "saturate",
    "accumulator.per_column": 4,
    "array.rows": 8,
    "array.columns": 8,
    "array.systolic": True,
    "array.picojoules": 0.5,
    "on_chip.bytes": 65536,
    "on_chip.bytes_per_cycle": 8,
    "on_chip.picojoules_per_byte": 2.0,
    "on_chip.keeps_weights": True,
    "on_chip.keeps_activations": True,
    "off_chip.bytes_per_cycle": 4,
    "off_chip.picojoules_per_byte": 64.0,
}


def write(path: Path, **changes: object) -> Path:
    """Writes a description with changed values; two underscores stand for a key's dot, None leaves the key out."""
    keys = KEYS | {key.replace("__", "."): value for key, value in changes.items()}
    return tiny.write_config(path / "mine.toml", {key: value for key, value in keys.items() if value is not None})


@cache
def described(**changes: object) -> Hardware:
    return load(write(tiny.HOME, **changes))


@cache
def costs(streams: int = 1, **changes: object) -> Cost:
    return cost(described(**changes), SMALL, streams)


def test_what_is_written_is_loaded() -> None:
    loaded = described()
    assert loaded.clock_mhz == 100.0 and type(loaded.clock_mhz) is float
    given = {name: getattr(loaded, name) for name in ("name", "clock_mhz")}
    for section in descriptions.SECTIONS:
        fields = dataclasses.asdict(getattr(loaded, section))
        given |= {f"{section}.{key}": value for key, value in fields.items()}
    assert given == KEYS


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("accumulator.bits", 7, "accumulator.bits = 7: expected an integer from 8 to 64"),
        ("accumulator.bits", 16.0, "accumulator.bits = 16.0: expected an integer from 8 to 64"),
        ("accumulator.bits", True, "accumulator.bits = true: expected an integer from 8 to 64"),
        ("accumulator.overflow", "clip", 'accumulator.overflow = "clip": expected "saturate" or "wrap"'),
        ("array.rows", 0, "array.rows = 0: expected an integer from 1 to 65536"),
        ("array.systolic", 1, "array.systolic = 1: expected true or false"),
        ("array.picojoules", -0.5, "array.picojoules = -0.5: expected a number from 0"),
        ("array.picojoules", float("nan"), "array.picojoules = nan: expected a number from 0"),
        ("clock_mhz", float("inf"), "clock_mhz = inf: expected a number from 1"),
        ("clock_mhz", "fast", 'clock_mhz = "fast": expected a number from 1'),
        ("name", 3, "name = 3: expected a string"),
        ("on_chip.bytes", None, "on_chip.bytes: missing: expected an integer from 1"),
        ("on_chip.byts", 3, "on_chip.byts: unknown key; did you mean on_chip.bytes?"),
        ("colour", "red", "colour: unknown key"),
    ],
)
def test_descriptions_that_are_none(tmp_path: Path, key: str, value: object, said: str) -> None:
    path = write(tmp_path, **{key.replace(".", "__"): value})
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value) == f"{path}: {said}"


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    with pytest.raises(ConfigError, match=r"mine\.toml: cannot be read: No such file"):
        load(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"mine\.toml: not UTF-8 text"):
        load(path)
    path.write_text(tomli_w.dumps({"array": 3}))
    with pytest.raises(ConfigError, match=r"array = 3: expected a section, \[array\]"):
        load(path)


def test_every_weight_is_read_once() -> None:
    """Weights are read once: from on-chip memory if kept there, else from off-chip memory and written on chip; energy
    follows the bytes moved."""
    near, far = costs(), costs(on_chip__keeps_weights=False)
    assert (near.weights_kept, near.activations_kept) == (True, True)
    assert (far.weights_kept, far.activations_kept) == (False, True)
    ins = 2 * (4 * 48 + 48 + 64) + 48
    outs = 2 * (2 * (4 * 48 + 64 + 48)) + 2 * 96  # int16
    for total in (near, far):
        assert total.multiply_accumulates == WEIGHTS
        assert total.picojoules["array"] == WEIGHTS * 0.5
        assert WEIGHTS + ins <= total.bytes_read["on_chip"] < WEIGHTS + 8 * ins  # once for 8 columns
        moved = total.bytes_read["on_chip"] + total.bytes_written["on_chip"]
        assert total.picojoules["on_chip"] == 2.0 * moved
    assert near.bytes_read["off_chip"] == near.bytes_written["off_chip"] == near.picojoules["off_chip"] == 0
    assert near.bytes_written["on_chip"] == outs
    assert far.bytes_read["off_chip"] == WEIGHTS and far.bytes_written["off_chip"] == 0
    assert far.bytes_written["on_chip"] == outs + WEIGHTS
    assert far.picojoules["off_chip"] == 64.0 * WEIGHTS


def test_no_memory_is_faster_than_its_port() -> None:
    """No memory is faster than its port, no array than its multipliers; a slower memory costs cycles."""
    near, far = costs(), costs(on_chip__keeps_weights=False)
    assert near.cycles > WEIGHTS / 8 > WEIGHTS / 64
    assert far.cycles > WEIGHTS / 4 > near.cycles
    assert costs(array__systolic=False).cycles < near.cycles


def test_streams_share_the_weights() -> None:
    one, two = costs(on_chip__keeps_weights=False), costs(2, on_chip__keeps_weights=False)
    assert two.bytes_read["off_chip"] == one.bytes_read["off_chip"] / 2
    assert two.picojoules["array"] == one.picojoules["array"]
    assert two.cycles < 0.75 * one.cycles


def test_what_does_not_fit_does_not_stay() -> None:
    assert not costs(on_chip__bytes=WEIGHTS).weights_kept  # the embedding and the activations need room too
    assert costs(on_chip__bytes=WEIGHTS).bytes_read["off_chip"] == WEIGHTS
    none = costs(on_chip__bytes=256)
    assert not none.activations_kept and none.bytes_written["off_chip"] > 0
    with pytest.raises(IntlmError, match=r"mine: ZigZag finds no way to compute .* on_chip.bytes = 8 may be too few"):
        cost(described(on_chip__bytes=8), SMALL, 1)


def test_products() -> None:
    assert sum(p.fan_in * p.fan_out * p.times for p in products(SMALL)) == WEIGHTS


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_descriptions(path: Path) -> None:
    """Each shipped description loads, and a token costs at least what its memories and multipliers allow."""
    hardware = load(path)
    total = cost(hardware, SMALL, 1)
    assert total.cycles > WEIGHTS / (hardware.array.rows * hardware.array.columns)
    assert total.cycles > WEIGHTS / hardware.on_chip.bytes_per_cycle
    assert total.weights_kept == hardware.on_chip.keeps_weights
    assert total.bytes_read["off_chip"] >= (0 if total.weights_kept else WEIGHTS)
    lines = [line for line in path.read_text().splitlines() if " = " in line and not line.startswith(("#", "name"))]
    assert all("  # " in line for line in lines), "a number without its source"


def simulate(*arguments: object) -> int:
    return main(["simulate", str(tiny.trained().directory), *map(str, arguments)])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command: the same digits in another process, whose hashes differ; the picture; exit code 1 if bits differ."""
    words = ["--on", "model", "--hardware", write(tmp_path), "--tokens", "70", "--json"]
    assert simulate(*words) == 0
    report = json.loads(capsys.readouterr().out)
    again = tiny.intlm("simulate", tiny.trained().directory, *words)
    assert again.returncode == 0 and json.loads(again.stdout) == report
    assert again.stderr == ""
    assert report["tokens"] == 70 and report["same_bits"] and report["bits_per_byte_lost"] == 0
    assert report["tokens_per_second"] == 100e6 / report["per_token"]["cycles"]
    assert max(report["narrowest_bits"].values()) <= report["narrowest_bits_of_any_text"] < 24

    narrow = write(tmp_path, accumulator__bits=8)
    assert simulate("--on", "model", "--hardware", narrow, "--picture", tmp_path / "a.png", "--tokens", 70) == 1
    out = capsys.readouterr().out
    assert "DIFFER" in out and out.endswith(f"picture: {tmp_path / 'a.png'}\n")
    assert struct.unpack(">II", (tmp_path / "a.png").read_bytes()[16:24]) == (1200, 750)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--on", "model"], "--on model: expected --hardware FILE"),
        (["--on", "host", "--hardware", "mine.toml"], "--hardware = mine.toml: only for --on model"),
        (["--on", "host", "--streams", "1"], "--streams = 1: only for --on model"),
        (["--on", "host", "--picture", "a.png"], "--picture = a.png: only for --on model"),
        (["--on", "model", "--hardware", "absent.toml"], "absent.toml: cannot be read: "),
        (
            ["--on", "model", "--hardware", "a.toml", "--picture", "no/a.png"],
            "--picture = no/a.png: expected a file",
        ),
    ],
)
def test_arguments_that_are_none(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(*words) == 2
    assert capsys.readouterr().err.startswith(f"intlm: {said}")


def test_without_zigzag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "zigzag" else find(name))
    assert simulate("--on", "model", "--hardware", write(tmp_path)) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "intlm: zigzag-dse: not installed, and --on model needs it: pip install 'intlm[simulators]'\n"
