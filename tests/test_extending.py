"""Each file of tests/extending adds a part from outside the package: trained and resumed by the command line."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiny

from intlm import config as configuration
from intlm.cli import main
from intlm.errors import ConfigError
from intlm.export import FORMATS
from intlm.simulate.targets import TARGETS

ROOT = Path(__file__).parents[1]
EXTENDING = ROOT / "tests" / "extending"
PARTS = {
    "lion": ["--eggroll.optimizer", "lion", "--eggroll.lion.memory", "2"],
    "clear": ["--eggroll.member.fitness", "clear", "--eggroll.member.clear.share", "4"],
    "letters": ["--objective", "letters", "--letters.least", "4"],
    "pairs": ["--data.tokenizer", "pairs", "--data.pairs.most", "20"],
    "signs": ["--eggroll.estimator", "signs", "--eggroll.signs.group_size", "2"],
}


def words(name: str, run: Path, updates: int, *more: str) -> list[str]:
    """A command that trains with a plugin's part."""
    plugin = ["--plugin", str(EXTENDING / f"{name}.py")] if name in PARTS else []
    given = ["--run-dir", str(run), *PARTS.get(name, ()), "--train.updates", str(updates), "--train.sample_every", "0"]
    if name == "pairs":  # a text of other tokens is another directory
        given += ["--data.prepared", str(run.parent / "prepared")]
    return ["train", str(tiny.CONFIG), *given, *plugin, *more]


@cache
def plain() -> dict[str, np.ndarray]:
    """The weights of the same run without a plugin."""
    run = tiny.HOME / "plain"
    assert main(words("", run, 4, "--train.checkpoint_seconds", "1000")) == 0
    return dict(tiny.state_of(run))


@pytest.mark.parametrize("name", PARTS)
def test_a_part_is_trained_and_resumed(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert main(words(name, whole, 4)) == 0
    assert main(words(name, resumed, 2)) == 0
    assert main(words(name, resumed, 4, "--resume")) == 0
    tiny.assert_same_state(whole, resumed)
    # It changes what is learnt, and its settings are kept.
    weights, others = dict(tiny.state_of(whole)), plain()
    assert not all(np.array_equal(weights[key], others[key]) for key in weights if key.startswith(".parameters"))
    settings = configuration.flatten(configuration.load(whole / "config.toml"))
    assert all(
        str(settings[flag[2:]]) == value for flag, value in zip(PARTS[name][::2], PARTS[name][1::2], strict=True)
    )


def test_a_run_is_used_without_its_plugin_but_not_resumed(tmp_path: Path) -> None:
    """The commands run in other processes: in this one the plugin is loaded already."""
    run = tmp_path / "run"
    assert main(words("lion", run, 2)) == 0
    done = tiny.intlm("evaluate", run)
    assert done.returncode == 0, done.stderr
    refused = tiny.intlm("train", run / "config.toml", "--run-dir", run, "--resume")
    assert refused.returncode == 2
    plugin = EXTENDING / "lion.py"
    assert refused.stderr.splitlines()[-1] == (
        f'intlm: {run / "config.toml"}: eggroll.optimizer = "lion": there is no optimizer of that name; the run '
        f"was started with --plugin {plugin}: give the flag again if you trust the file"
    )


def test_a_model_is_not_used_without_its_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, plugin = tmp_path / "run", EXTENDING / "pairs.py"
    assert main(words("pairs", run, 2)) == 0
    done = tiny.intlm("generate", run, "--tokens", 3)
    assert (done.returncode, done.stderr) == (
        2,
        f'intlm: {run / "config.toml"}: data.tokenizer = "pairs": there is no tokenizer of that name; the run was '
        f"started with --plugin {plugin}: give the flag again if you trust the file\n",
    )
    assert main(["generate", str(run), "--tokens", "3", "--plugin", str(plugin)]) == 0
    assert main(["export", str(run), "--to", "onnx", "--out", str(tmp_path / "onnx"), "--plugin", str(plugin)]) == 0
    capsys.readouterr()
    # The C program has a table of codes, and says so of the tokenizer that has none.
    assert main(["export", str(run), "--to", "c", "--out", str(tmp_path / "c"), "--plugin", str(plugin)]) == 2
    assert "tokenizer 'pairs': " in capsys.readouterr().err


def test_processes_that_prepare_text_have_the_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("intlm.data.prepare.BLOCK", 5000)
    asked = ["prepare", str(tiny.CONFIG), *PARTS["pairs"], "--plugin", str(EXTENDING / "pairs.py")]
    for processes in ("1", "2"):
        assert main([*asked, "--data.processes", processes, "--data.prepared", str(tmp_path / processes)]) == 0
    made = [{path.name: path.read_bytes() for path in (tmp_path / name).glob("*.bin")} for name in ("1", "2")]
    assert made[0] and made[0] == made[1]
    # By itself, and taken from its file.
    out, words = tmp_path / "tokenizer.json", ["--plugin", str(EXTENDING / "pairs.py")]
    assert main(["tokenizer", "train", str(tiny.CONFIG), *PARTS["pairs"], "--out", str(out), *words]) == 0
    words += ["--data.prepared", str(tmp_path / "3"), "--data.tokenizer_file", str(out)]
    assert main(["prepare", str(tiny.CONFIG), *words]) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "3").glob("*.bin")} == made[0]


def test_a_target_and_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    run, plugin = str(tiny.trained().directory), ["--plugin", str(EXTENDING / "slow.py")]

    def cost(*flags: str) -> float:
        assert main(["simulate", run, *flags, "--tokens", "3", "--json"]) == 0
        return json.loads(capsys.readouterr().out)["cost_per_token"]

    assert cost("--on", "slow", "--cycles", "7", *plugin) == 7 * cost("--on", "riscv32")
    assert cost("--on", "slow", *plugin) == 4 * cost("--on", "riscv32")
    for flags, said in (
        (["--on", "host", "--cycles", "7"], "intlm: --cycles = 7: only for --on slow\n"),
        (["--on", "slow", "--cycles", "0"], 'intlm: command line: cycles = "0": must be at least 1\n'),
    ):
        assert main(["simulate", run, *flags, *plugin]) == 2
        assert capsys.readouterr().err == said
    with pytest.raises(SystemExit):
        main(["simulate", "--help", *plugin])
    assert "slow: RV32IM at several cycles an instruction" in " ".join(capsys.readouterr().out.split())


def test_a_setting_whose_name_is_a_flag_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = tmp_path / "wrong.py"
    text = (
        (EXTENDING / "slow.py").read_text().replace("cycles: int", "tokens: int").replace("self.cycles", "self.tokens")
    )
    plugin.write_text(text.replace('"slow"', '"wrong"'))
    done = tiny.intlm("runs", tmp_path, "--plugin", plugin)
    assert (done.returncode, done.stderr) == (
        2, "intlm: target 'wrong': setting 'tokens': the command has a flag --tokens already: expected another name\n"
    )  # fmt: skip


def test_a_mistake_names_the_section_of_the_part_that_is_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    """The settings of a part that is made from another are named by its own section, not by the other's."""
    signs = ["--plugin", str(EXTENDING / "signs.py"), "--eggroll.estimator", "signs", "--eggroll.signs.group_size", "3"]
    assert main(["train", str(tiny.CONFIG), *signs]) == 2
    assert "eggroll.signs.group_size = 3: must divide the number of pairs" in capsys.readouterr().err
    letters = ["--plugin", str(EXTENDING / "letters.py"), "--objective", "letters", "--letters.targets", "3"]
    assert main(["train", str(tiny.CONFIG), *letters]) == 2
    assert "letters.targets = 3: must be a power of two" in capsys.readouterr().err


def test_the_page_shows_these_files() -> None:
    page = (ROOT / "docs" / "extending.md").read_text()
    for file in EXTENDING.glob("*.py"):
        assert f"`tests/extending/{file.name}`" in page and f"```python\n{file.read_text()}```" in page, file


def test_the_page_lists_what_is_registered() -> None:
    keys = configuration.keys().items()
    own = {name: key for name, key in keys if not {part for _, part in key.of} & PARTS.keys()}  # none of the examples'
    families = [(f"`{name}`", key.family or key.some_of) for name, key in own.items()]
    families += [("`intlm simulate --on`", TARGETS), ("`intlm export --to`", FORMATS)]
    rows = ["| part | chosen by | folder | shipped |", "|---|---|---|---|"]
    for chosen_by, family in families:
        if family:
            shipped = [name for name, part in family.parts().items() if part.__module__.startswith("intlm.")]
            folder = family.package.replace(".", "/")
            rows.append(f"| {family.kind} | {chosen_by} | `{folder}` | {', '.join(f'`{name}`' for name in shipped)} |")
    assert "\n".join(["", *rows, ""]) in (ROOT / "docs" / "extending.md").read_text(), "\n".join(rows)


def test_a_plugin_that_a_run_names_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that a run from somebody else names is not run; a file that the user's own configuration names is."""
    run, mark = tiny.copied(tmp_path / "run"), tmp_path / "mark"
    plugin = tmp_path / "evil.py"
    plugin.write_text(f"open({str(mark)!r}, 'w').close()\n")
    config = run / "config.toml"
    text = config.read_text()
    config.write_text(f'plugins = ["{plugin}"]\nneeds_plugins = ["{plugin}"]\n{text}')
    for command in (["evaluate", str(run)], ["train", str(config), "--run-dir", str(run), "--resume"]):
        assert main(command) == 0
    assert not mark.exists()
    own = tmp_path / "own.toml"
    own.write_text(f'plugins = ["evil.py"]\n{text}')
    assert main(["train", str(own), "--run-dir", str(tmp_path / "other")]) == 0
    assert mark.exists()


def test_a_plugin_that_is_wrong_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "--plugin", str(tmp_path / "absent.py")]) == 2
    assert (
        capsys.readouterr().err
        == f"intlm: --plugin {tmp_path / 'absent.py'}: expected a Python file that registers parts\n"
    )
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_of_that_name\n")
    assert main(["runs", "--plugin", str(broken)]) == 2
    assert (
        capsys.readouterr().err
        == f"intlm: --plugin {broken}: ModuleNotFoundError: No module named 'nothing_of_that_name'\n"
    )
    taken = tmp_path / "taken.py"
    taken.write_text((EXTENDING / "lion.py").read_text().replace('register("lion")', 'register("adam")'))
    assert main(["runs", "--plugin", str(taken)]) == 2
    assert "optimizer 'adam' is there already (intlm.optimizers.adam)" in capsys.readouterr().err


def test_the_examples_are_of_a_researchers_size() -> None:
    assert len((EXTENDING / "lion.py").read_text().splitlines()) < 30
    with pytest.raises(ConfigError):
        configuration.load(tiny.CONFIG, {"eggroll.optimizer": "absent"})
