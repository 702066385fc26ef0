"""intlm.inspection: the tables are complete, and their numbers are those of the arrays."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from intlm.checkpoint import Checkpoints
from intlm.cli import main
from intlm.data.tokenizers.alphabet import AlphabetTokenizer
from intlm.data.tokenizers.byte import ByteTokenizer
from intlm.inspection import activations, inspect, statistics
from intlm.model.parameters import initialise, specifications
from intlm.run import load, open_corpus, open_run
from intlm.training import prepare_corpus


def rows(table: str) -> dict[str, list[str]]:
    """The lines of a table by their first cell, cells being two spaces apart; the header included."""
    cells = [re.split(r" {2,}", line) for line in table.splitlines() if line]
    return {row[0]: row[1:] for row in cells}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 0, 0, 0], ("0 … 0", "0.0", "0.00", "0.00%")),
        ([-3, 5], ("-3 … 5", "4.0", "1.00", "0.00%")),
        ([127, -127, 126, -126], ("-127 … 127", "126.5", "2.00", "50.00%")),
        ([1, 1, 1, 2], ("1 … 2", "1.2", "0.81", "0.00%")),
        ([127] * 3 + [-127], ("-127 … 127", "127.0", "0.81", "100.00%")),
        (list(range(-127, 128)), ("-127 … 127", "63.7", "7.99", "0.78%")),
    ],
)
def test_statistics(values: list[int], expected: tuple[str, ...]) -> None:
    assert statistics(np.array(values, np.int8)) == expected


def test_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    """Every parameter has a row, with its changes since the last checkpoint and since the start."""
    run = tiny.trained().directory
    assert main(["inspect", str(run)]) == 0
    title, weights, seen, logits = capsys.readouterr().out.strip().split("\n\n")
    assert title == f"{run}, update {tiny.UPDATES}"
    table = rows(weights)
    checkpoints, architecture = Checkpoints(run / "checkpoints", read_only=True), load(run).architecture
    now, before = (checkpoints.parameters(update, architecture) for update in (tiny.UPDATES, tiny.UPDATES - 1))
    first = initialise(architecture, tiny.KEYS["seed"])
    assert list(table)[2:] == [s.name for s in specifications(architecture)]
    assert table["weights"][-2:] == [f"changed since {tiny.UPDATES - 1}", "since 0"]
    for name, value in now.items():
        changed = [f"{float((value != other[name]).mean()):.2%}" for other in (before, first)]
        shape = "×".join(map(str, value.shape))
        assert table[name] == [shape, *statistics(np.asarray(value)), *changed]
    assert any(table[name][-2] != "0.00%" for name in now)
    assert "held-out text" in seen.splitlines()[0]
    assert logits.startswith("logits: ")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with weights set by hand, in two checkpoints one weight of the head apart; see tiny.write_run."""
    run = tmp_path_factory.mktemp("inspected") / "run"
    model = tiny.make_model(AlphabetTokenizer(b" ab"), layers=2)
    model.parameters["embedding"] = jnp.full((5, 16), 127, jnp.int8).at[0].set(0).at[1].set(-127)
    model.parameters["layers.1.up"] = jnp.zeros((24, 16), jnp.int8).at[0, 0].set(-5)
    prepare_corpus(tiny.write_run(run, model, updates=(6, 8)))
    return run


def test_weights_by_hand(run: Path) -> None:
    table = rows(inspect(run).split("\n\n")[1])
    assert "changed since 6" in table["weights"]
    # 16 zeros, 16 of -127 and 48 of 127 among 80.
    assert table["embedding"][:5] == ["5×16", "-127 … 127", "101.6", "1.37", "80.00%"]
    assert table["layers.1.up"][:6] == ["24×16", "-5 … 0", "0.0", "0.03", "0.00%", "0.00%"]
    assert table["head"][-2] == "1.25%"
    assert {row[-2] for name, row in table.items() if "." in name} == {"0.00%"}


def _embedding() -> np.ndarray:
    return np.repeat([[0], [-127], [127], [127], [127]], 16, axis=1)


def test_activations_of_a_run(run: Path) -> None:
    """One row for the embedding, five for each layer, one for the output; the embedding's numbers by hand."""
    *_, seen, logits = inspect(run).split("\n\n")
    table = rows(seen)
    assert len(table) == 2 + 1 + 2 * 5 + 1
    assert sum(name.startswith("layers.0: ") for name in table) == 5
    assert sum(name.startswith("layers.1: ") for name in table) == 5
    config, tokenizer = open_run(run)
    split = open_corpus(config, tokenizer).split("valid")
    starts = np.arange(32) * (split.tokens // 32)
    tokens = np.stack([split.read(int(start), 128) for start in starts])
    assert table["embedding"] == list(statistics(_embedding()[tokens].astype(np.int8)))
    assert re.fullmatch(r"logits: -\d+\.\d\d … \d+\.\d\d bits, \d+\.\d\d between .*", logits)


def test_activations() -> None:
    """Activations, layer by layer, as the model computes them: states before each token, and logits after it."""
    model = tiny.make_model(ByteTokenizer(), layers=2)
    tokens = np.random.default_rng(5).integers(0, 4, (3, 7))
    assert (tokens == 0).any()
    seen, logits = activations(model, tokens)
    states, expected = model.start(3), []
    for t, token in enumerate(tokens.T):
        found, after = model.read(token[:, None], states)
        expected.append(found[:, 0])
        before = np.where((token == 0)[:, None, None], 0, np.asarray(states))  # [streams, layers, hidden]
        for layer in range(2):
            np.testing.assert_array_equal(seen["gate_state"][t, layer], before[:, layer])
        states = after
    np.testing.assert_array_equal(logits, np.stack(expected))
    embedded = np.asarray(model.parameters["embedding"])[tokens.T]
    np.testing.assert_array_equal(seen["embedding"].reshape(embedded.shape), embedded)


def test_without_text(tmp_path: Path) -> None:
    """A corpus of other tokens, or none: the weights are shown all the same. Text shorter than what is read."""
    model = tiny.make_model(AlphabetTokenizer(b"ab"), layers=1)
    tiny.write_run(tmp_path / "absent", model, data__prepared=tmp_path / "nothing")
    report = inspect(tmp_path / "absent")
    assert "embedding" in report and f"no activations: {tmp_path / 'nothing'}: no prepared text there: " in report
    assert "changed since" not in report  # one checkpoint alone

    prepare_corpus(tiny.load_config())
    tiny.write_run(tmp_path / "other", model)
    assert "no activations: " in inspect(tmp_path / "other")

    (tmp_path / "short.txt").write_bytes(b"ab" * 15)
    for valid_bytes, what in ((0, "training"), (3, "held-out")):
        run, prepared = tmp_path / f"short-{valid_bytes}", tmp_path / f"prepared-{valid_bytes}"
        config = tiny.write_run(
            run, model, data__train=tmp_path / "short.txt", data__prepared=prepared, data__valid_bytes=valid_bytes
        )
        prepare_corpus(config)
        assert f"activations on {what} text" in inspect(run)
