"""Each file of tests/extending adds a part from outside the package: trained and resumed by the command line."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiny

from intlm import config as configuration
from intlm.cli import main
from intlm.errors import ConfigError

EXTENDING = Path(__file__).parent / "extending"
PARTS = {
    "lion": ["--eggroll.optimizer", "lion", "--eggroll.lion.memory", "2"],
    "clear": ["--eggroll.member.fitness", "clear", "--eggroll.member.clear.share", "4"],
    "letters": ["--objective", "letters", "--letters.least", "4"],
    "signs": ["--eggroll.estimator", "signs", "--eggroll.signs.group_size", "2"],
}


def words(name: str, run: Path, updates: int, *more: str) -> list[str]:
    """A command that trains with a plugin's part."""
    plugin = ["--plugin", str(EXTENDING / f"{name}.py")] if name in PARTS else []
    given = ["--run-dir", str(run), *PARTS.get(name, ()), "--train.updates", str(updates), "--train.sample_every", "0"]
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
    assert any((weights[key] != others[key]).any() for key in weights if key.startswith("[0]"))
    found = configuration.flatten(configuration.load(whole / "config.toml"))
    assert all(str(found[flag[2:]]) == value for flag, value in zip(PARTS[name][::2], PARTS[name][1::2], strict=True))


def test_a_run_is_used_without_its_plugin_but_not_resumed(tmp_path: Path) -> None:
    """In processes of their own: here the plugin would be there already."""
    run = tmp_path / "run"
    assert main(words("lion", run, 2)) == 0
    done = tiny.intlm("evaluate", run)
    assert done.returncode == 0, done.stderr
    refused = tiny.intlm("train", run / "config.toml", "--run-dir", run, "--resume")
    assert refused.returncode == 2
    plugin = EXTENDING / "lion.py"
    assert refused.stderr.splitlines()[-1] == (
        f'intlm: {run / "config.toml"}: eggroll.optimizer = "lion": no optimizer here has that name; the run was '
        f"started with --plugin {plugin}: give it again, if you trust it"
    )


def test_a_plugin_that_a_run_names_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that somebody sends may name any file; a configuration of one's own may too, and there it is run."""
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
