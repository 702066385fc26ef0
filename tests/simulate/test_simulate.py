"""`intlm simulate`: its output, its refusals, and that no program with floating point passes."""

import json
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from unicorn import UC_HOOK_BLOCK

from intlm.cli import main
from intlm.data.tokenizers.pieces import PieceTokenizer
from intlm.errors import MissingPackage
from intlm.evaluation import evaluate
from intlm.export import FORMATS, c, export
from intlm.language_model import LanguageModel
from intlm.model import SEPARATOR
from intlm.run import load
from intlm.simulate import build, elf, wasm
from intlm.simulate.comparison import compare
from intlm.simulate.machine import Layout
from intlm.simulate.targets import TARGETS, MachineTarget
from intlm.simulate.targets.cortex_m import CortexMMachine
from intlm.simulate.targets.host import Host, HostMachine
from intlm.simulate.targets.riscv32 import RiscVMachine

TEXT = tiny.words(60, seed=11)
FLOATING = "float intlm_draw(float x, float y);\nfloat intlm_draw(float x, float y) { return x * y + 0.5f; }\n"
SOFTWARE = ("__mulsf3", "__addsf3", "__aeabi_fmul", "__aeabi_fadd")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_bytes(TEXT)
    return tmp_path / "text.txt"


@pytest.mark.parametrize("target", [name for name, part in TARGETS.parts().items() if issubclass(part, MachineTarget)])
def test_a_run_on_a_machine(target: str, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tiny.trained().directory
    assert main(["simulate", str(run), "--on", target, "--text", str(text), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    model = load(run)
    a = model.architecture
    assert report["same_bits"] is True and report["difference"] is None
    assert report["tokens"] == len(model.tokens(TEXT)) and report["bytes"] == len(TEXT)
    assert report["bits_per_byte"] == evaluate(model, [model.tokens(TEXT)]).summary()["bits_per_byte_integer"]
    assert report["state"] == a.num_layers * a.hidden_size
    assert report["weights"] == sum(np.asarray(w).nbytes for w in model.parameters.values())
    assert report["cost_per_token"] > 0
    if target in ("riscv32", "cortex-m"):
        # Each multiplication is at least an instruction, and there are no vectors.
        assert report["cost_per_token"] > report["weights"] - 2 * a.vocab_size * a.hidden_size
        assert report["clock_hz"] == 100 * report["cost_per_token"]
        assert report["code"] <= 16 << 10
        assert report["constants"] >= report["weights"]
    if target not in ("onnxruntime",):
        widest = 2 * max(a.hidden_size, a.feed_forward_size)
        assert report["state"] + report["buffers"] <= 8 * a.hidden_size * a.num_layers + 2 * a.vocab_size + widest


def test_an_export_on_a_machine(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = export(tiny.trained().directory, FORMATS["c"](), tmp_path / "model")
    assert main(["simulate", str(out), "--on", "host", "--text", str(text), "--tokens", "50"]) == 0
    said = capsys.readouterr().out
    assert "the same" in said and "tokens compared" in said and "50" in said


def test_the_held_out_split_and_its_separators(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", str(tiny.trained().directory), "--on", "host", "--tokens", "200", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == 200


def test_a_separator_is_read_but_not_counted(tmp_path: Path) -> None:
    model = tiny.make_model()
    one, two = (model.tokens(text) for text in (b"some text", b"another"))
    tokens = np.concatenate([[SEPARATOR], one, [SEPARATOR], two]).astype(np.int32)
    result = compare(model, HostMachine(model, tmp_path), tokens)
    assert result.difference is None and result.tokens == len(tokens) - 1
    assert result.loss == evaluate(model, [one, two]).integer_loss


def test_pieces_of_several_bytes(tmp_path: Path) -> None:
    """A tokenizer of pieces: the exported program has no encoder for them, and simulation needs none."""
    text = Path(__file__).read_bytes()
    model = tiny.make_model(PieceTokenizer.train("bpe", [text], 300))
    tokens = np.concatenate([[SEPARATOR], model.tokens(text[:200])]).astype(np.int32)
    assert len(tokens) < 200
    result = compare(model, HostMachine(model, tmp_path), tokens)
    assert result.difference is None
    assert result.loss == evaluate(model, [tokens[1:]]).integer_loss


def test_one_wrong_bit_is_an_exit_code(
    text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The machine is given the model with one weight changed."""

    def other(model: LanguageModel, work: Path) -> HostMachine:
        wrong = tiny.make_model(model.tokenizer, model.architecture.hidden_size, model.architecture.num_layers)
        wrong.architecture = model.architecture
        name = "layers.0.gate_bias"
        wrong.parameters = {**model.parameters, name: model.parameters[name].at[3].add(60)}
        return HostMachine(wrong, work)

    monkeypatch.setattr(Host, "machine", staticmethod(other))
    command = ["simulate", str(tiny.trained().directory), "--on", "host", "--text", str(text)]
    assert main(command) == 1
    assert "DIFFER: token 0: state: layer 0, index 3" in capsys.readouterr().out
    assert main([*command, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["same_bits"], report["tokens"], report["bits_per_byte"]) == (False, 0, None)
    assert {k: report["difference"][k] for k in ("token", "what", "layer", "index")} == {
        "token": 0,
        "what": "state",
        "layer": 0,
        "index": 3,
    }


PACKAGES = {
    "riscv32": ("unicorn", "elftools", "ziglang"),
    "cortex-m": ("unicorn",),
    "wasm": ("wasmtime", "ziglang"),
    "onnxruntime": ("onnxruntime", "onnx"),
}


@pytest.mark.parametrize(("target", "package"), [(t, p) for t, packages in PACKAGES.items() for p in packages])
def test_what_is_not_installed_is_named(
    target: str, package: str, text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("tempfile.tempdir", str(text.parent))
    before = sorted(text.parent.iterdir())
    assert main(["simulate", str(tiny.trained().directory), "--on", target, "--text", str(text)]) == 3
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert {"elftools": "pyelftools"}.get(package, package) + ": not installed" in said.err
    assert "pip install 'intlm[simulators]'" in said.err
    assert sorted(text.parent.iterdir()) == before  # nothing half done


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingPackage, match=r"a C compiler: not installed.*host"):
        build.host(tmp_path)


@pytest.mark.parametrize("target", ["host", "model"])
@pytest.mark.parametrize("what", ["an empty text", "half a byte", "not a run"])
def test_refused(what: str, target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"\xff" if what == "half a byte" else b"")  # not of the alphabet: an escape and two more tokens
    run = tmp_path if what == "not a run" else tiny.trained().directory
    command = ["simulate", str(run), "--on", target, "--text", str(text), "--tokens", "1"]
    hardware = ["--hardware", str(Path(__file__).parents[2] / "configs" / "hardware" / "gemmini.toml")]
    assert main([*command, *(hardware if target == "model" else [])]) == 2
    expected = {"an empty text": f"{text}: no text in it", "half a byte": f"{text}: nothing to simulate"}
    assert expected.get(what, what) in capsys.readouterr().err


def test_no_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["simulate", "run", "--on", "host", "--tokens", "0"])
    assert stopped.value.code == 2
    assert '--tokens: "0": expected a whole number from 1' in capsys.readouterr().err


def test_another_layout_does_not_compile(tmp_path: Path) -> None:
    exported(tmp_path)
    header = tmp_path / "intlm.h"
    header.write_text(
        header.read_text().replace("uint8_t scratch[INTLM_SCRATCH];", "uint8_t scratch[INTLM_SCRATCH + 2];")
    )
    with pytest.raises(build.BuildError, match="intlm_size_check"):
        build.host(tmp_path)


def test_an_interrupt_stops_an_emulator(tmp_path: Path) -> None:
    """The signal comes in the middle of a step, where an exception would be lost in the simulator's callback."""
    machine = RiscVMachine(tiny.make_model(), tmp_path)
    machine.step(0)
    machine._machine.hook_add(UC_HOOK_BLOCK, lambda *_: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            machine.step(1)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def exported(work: Path) -> LanguageModel:
    model = tiny.make_model()
    c.write(model, work)
    (work / "layout.c").write_text(Layout(model.architecture).check())
    return model


def with_floats(work: Path) -> Path:
    """An export one of whose functions computes in floating point."""
    exported(work)
    source = (work / "intlm.c").read_text()
    at = source.index("/* Section 10. */")
    (work / "intlm.h").write_text((work / "intlm.h").read_text().replace("uint16_t intlm_draw", "int intlm_other"))
    (work / "intlm.c").write_text(source[:at] + FLOATING)
    return work


@pytest.mark.parametrize("machine", [RiscVMachine, CortexMMachine])
def test_floating_point_in_software_is_found(machine: type[RiscVMachine], tmp_path: Path) -> None:
    with_floats(tmp_path)
    with pytest.raises(build.BuildError, match=r"__(mulsf3|aeabi_fmul)"):  # nothing of the kind is linked
        build.cross(tmp_path, *machine.compiled_for)
    with (tmp_path / "intlm.c").open("a") as file:
        for name in SOFTWARE:
            file.write(f"int {name}(int x, int y);\nint {name}(int x, int y) {{ return x + y; }}\n")
    with pytest.raises(build.BuildError, match="floating point: it calls __"):
        elf.read(build.cross(tmp_path, *machine.compiled_for))


@pytest.mark.parametrize(
    ("target", "processor"),
    [("riscv32-freestanding-none", "generic_rv32+m+f"), ("thumb-freestanding-eabihf", "cortex_m4+vfp4d16sp")],
)
def test_floating_point_instructions_are_found(target: str, processor: str, tmp_path: Path) -> None:
    made = build.cross(with_floats(tmp_path), target, processor)
    with pytest.raises(build.BuildError, match="floating point: instruction at 0x"):
        elf.read(made)


def test_floating_point_in_webassembly_is_found(tmp_path: Path) -> None:
    made = build.wasm(with_floats(tmp_path))
    with pytest.raises(build.BuildError, match="floating point"):
        wasm.check(made.read_bytes())


def test_a_compiler_that_refuses_is_quoted(tmp_path: Path) -> None:
    exported(tmp_path)
    (tmp_path / "intlm.c").write_text("int broken(void) { return nothing; }\n")
    with pytest.raises(build.BuildError, match="nothing"):
        build.host(tmp_path)


def test_the_same_instructions_are_counted_again(tmp_path: Path) -> None:
    """A token that is run again from the same state takes exactly as many instructions."""
    model = tiny.make_model()
    machine = RiscVMachine(model, tmp_path)
    costs = []
    for token in (0, 7, 0, 7):
        machine.step(token)
        costs.append(machine.cost())
    assert costs[:2] == costs[2:]
