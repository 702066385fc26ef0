"""intlm.generation: sampling in integers as in docs/numerics.md, the same text for a seed, printed as UTF-8."""

import tracemalloc
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from intlm import generation
from intlm.arithmetic.random_bits import Domain, seed_key, threefry4x32
from intlm.cli import main
from intlm.data.tokenizers.alphabet import AlphabetTokenizer
from intlm.errors import ConfigError
from intlm.generation import generate, inverse_temperature
from intlm.language_model import WRITTEN, LanguageModel
from intlm.model import SEPARATOR, sampling
from intlm.model.sampling import sample

DRAWS = 20_000
SEED = 2**63 + 5


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny.make_model()


def written(model: LanguageModel, prompt: bytes = b"", tokens: int = 60, **settings: object) -> bytes:
    return b"".join(generate(model, prompt, tokens, **settings))  # type: ignore[arg-type]


def draws(logits: np.ndarray, inverse: int, top_k: int, count: int = DRAWS) -> np.ndarray:
    """Returns the tokens drawn at the first positions."""
    key = jnp.array(seed_key(SEED, Domain.SAMPLING), jnp.uint32)

    def draw(position: jax.Array) -> jax.Array:
        return sample(jnp.asarray(logits, jnp.int16), key, position, jnp.int32(inverse), top_k)

    return np.asarray(jax.vmap(draw)(jnp.arange(count, dtype=jnp.uint32)))


def weights(logits: np.ndarray, inverse: int) -> np.ndarray:
    """Returns each token's weight, in exact real arithmetic."""
    return np.exp2(-((logits.max() - logits.astype(np.float64)) * inverse / 256) / 256)


@pytest.mark.parametrize("vocabulary", [2, 5, 256, 1000])
@pytest.mark.parametrize("inverse", [64, 256, 700])
def test_tokens_are_drawn_by_their_probability(vocabulary: int, inverse: int) -> None:
    """The counts are within 5 standard deviations of what the probabilities say, for each token and in sum."""
    logits = np.random.default_rng(vocabulary).normal(0, 500, vocabulary).astype(np.int16)
    shares = weights(logits, inverse) / weights(logits, inverse).sum()
    counts = np.bincount(draws(logits, inverse, vocabulary), minlength=vocabulary)
    assert len(counts) == vocabulary
    deviation = np.sqrt(DRAWS * shares * (1 - shares))
    assert (np.abs(counts - DRAWS * shares) < 5 * deviation + 2).all()
    assert np.abs(counts / DRAWS - shares).sum() < 5 * np.sqrt(shares * (1 - shares) / DRAWS).sum()


def test_a_draw_is_the_published_one() -> None:
    """y = floor(w · C / 2^32) of the exact sum C and the generator's first word w."""
    # Differences of whole bits, whose weights are exact: 2^24 shifted by them.
    logits = np.array([0, -256, -512, -256, -8192, -2560], np.int16)
    terms = [2**24, 2**23, 2**22, 2**23, 0, 2**14]
    ends = np.cumsum(np.array(terms, object))
    key = jnp.array(seed_key(SEED, Domain.SAMPLING), jnp.uint32)
    words = np.asarray(threefry4x32(key, (jnp.arange(DRAWS, dtype=jnp.uint32), 0, 0, 0))[0])
    expected = [sum(int(end) <= int(word) * int(ends[-1]) >> 32 for end in ends) for word in words]
    assert draws(logits, 256, 6).tolist() == expected


def test_the_edges_of_a_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """The words on both sides of where one token ends and the next begins."""
    logits = np.array([-512, 0, -256], np.int16)
    ends = np.cumsum([2**22, 2**24, 2**23])
    key = jnp.zeros(4, jnp.uint32)
    for token, end in enumerate(ends.tolist()):
        first = -(-(end << 32) // int(ends[-1]))  # the first word beyond the token
        for word, expected in ((first - 1, token), (first, token + 1)):
            if word < 2**32:
                monkeypatch.setattr(sampling, "threefry4x32", lambda *_, word=word: (jnp.uint32(word),))
                with jax.disable_jit():
                    drawn = sample(jnp.asarray(logits), key, jnp.uint32(0), jnp.int32(256), 3)
                assert drawn == expected


def test_a_text_is_drawn_token_by_token(model: LanguageModel) -> None:
    """A text is drawn token by token, at positions 0, 1, ..., each after the tokens drawn before."""
    tokens = [SEPARATOR, *model.tokens(b"ab").tolist()]
    key = jnp.array(seed_key(7, Domain.SAMPLING), jnp.uint32)
    for position in range(12):
        logits, _ = model.read(np.array([tokens]), model.start(1))
        drawn = sample(jnp.asarray(logits[0, -1]), key, jnp.uint32(position), jnp.int32(512), 90)
        tokens.append(int(drawn))
    assert SEPARATOR not in tokens[1:]
    expected = model.tokenizer.decode(tokens)
    assert b"ab" + written(model, b"ab", 12, temperature="1/2", top_k=90, seed=7) == expected


def test_top_k_draws_from_the_largest_and_of_equal_ones_from_the_first() -> None:
    logits = np.array([5, 900, 7, 900, 900, 30, 899, 900], np.int16)
    for top_k, allowed in [(1, {1}), (2, {1, 3}), (3, {1, 3, 4}), (4, {1, 3, 4, 7}), (5, {1, 3, 4, 6, 7})]:
        assert set(draws(logits, 256, top_k).tolist()) == allowed
    counts = np.bincount(draws(logits, 256, 3))[[1, 3, 4]]
    assert np.abs(counts / DRAWS - 1 / 3).max() < 5 * np.sqrt(2 / 9 / DRAWS)


@pytest.mark.parametrize("vocabulary", [2, 65536])
def test_the_furthest_logits_overflow_nothing(vocabulary: int) -> None:
    """The whole range of logits, at the lowest and the highest temperature."""
    logits = np.full(vocabulary, -(2**14) + 1, np.int16)
    logits[-1] = 2**14 - 1
    assert set(draws(logits, 1 << 15, vocabulary, 200).tolist()) == {vocabulary - 1}
    drawn = draws(np.zeros(vocabulary, np.int16), 1, vocabulary, 200)
    assert drawn.min() >= 0 and drawn.max() < vocabulary
    assert abs(drawn.mean() / (vocabulary - 1) - 0.5) < 5 * 0.5 / 200**0.5


def test_the_same_for_a_seed_and_another_for_another(model: LanguageModel) -> None:
    texts = [written(model, b"some prompt", seed=seed) for seed in (0, 0, 1, 2**64 - 1)]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3
    # A longer text begins with the shorter one.
    assert written(model, b"some prompt", tokens=80).startswith(texts[0])
    assert written(model, b"another one") != texts[0]


def greedy(model: LanguageModel, prompt: bytes, tokens: int) -> bytes:
    """Greedy generation that reads the whole text again for every token."""
    drawn: list[int] = []
    start = [SEPARATOR, *model.tokens(prompt).tolist()]
    for _ in range(tokens):
        logits, _ = model.read(np.array([start + drawn]), model.start(1))
        token = int(logits[0, -1].argmax())
        if token == SEPARATOR:
            break
        drawn.append(token)
    return model.tokenizer.decode(drawn)


def test_no_temperature_takes_the_likeliest(model: LanguageModel) -> None:
    expected = greedy(model, b"a prompt", 20)
    assert len(expected) > 10
    for settings in ({"temperature": 0}, {"temperature": "0.0"}, {"temperature": "0", "seed": 9}, {"top_k": 1}):
        assert written(model, b"a prompt", 20, **settings) == expected
    assert written(model, b"a prompt", 20, temperature="100") != expected


class Forced(LanguageModel):
    """A model that gives all probability to one token."""

    def __init__(self, like: LanguageModel, token: int) -> None:
        self.architecture, self.tokenizer, self.parameters = like.architecture, like.tokenizer, like.parameters
        self._token = token

    def read(self, tokens: np.ndarray, states: jax.Array) -> tuple[np.ndarray, jax.Array]:
        logits = np.full((*tokens.shape, self.architecture.vocab_size), -16000, np.int16)
        logits[..., self._token] = 16000
        return logits, states

    def write(self, logits: jax.Array, states: jax.Array, *_: object) -> tuple[np.ndarray, jax.Array, jax.Array]:
        return np.full(WRITTEN, logits.argmax()), logits, states


def test_the_document_ends_at_a_separator() -> None:
    """A model that expects a separator writes nothing; one that expects another token writes to the end."""
    model = tiny.make_model(AlphabetTokenizer(b"ab"))
    assert written(Forced(model, SEPARATOR), b"ab", 15) == b""
    assert written(Forced(model, 2), b"ab", 15) == b"a" * 15


@pytest.mark.parametrize("prompt", [b"", b"\x00", b"\xff\xfe\x80", bytes(range(256)), "žluťoučký".encode(), b"x" * 200])
def test_any_prompt(model: LanguageModel, prompt: bytes) -> None:
    """The first token drawn follows the whole prompt, read after a separator."""
    reading = np.concatenate([[SEPARATOR], model.tokens(prompt)])[None]
    logits, _ = model.read(reading, model.start(1))
    assert written(model, prompt, 1, temperature=0) == model.tokenizer.decode([int(logits[0, -1].argmax())])


def test_a_long_prompt_takes_little_memory(model: LanguageModel) -> None:
    """Only its tokens are kept, not their logits, which would take 10 MB here."""
    prompt = b"x" * 20_000
    written(model, prompt[:100], 1)  # compiled
    tracemalloc.start()
    try:
        written(model, prompt, 1)
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()


def test_zero_tokens(model: LanguageModel) -> None:
    assert written(model, b"prompt", 0) == b""


@pytest.mark.parametrize(
    ("temperature", "inverse"),
    [
        ("1", 256), (1, 256), (0.5, 512), ("0.8", 320), ("1/128", 2**15), (256, 1), ("2.56e2", 1), ("0.7", 366),
        ("0", 0), (0.0, 0), ("0.00", 0),
    ],
)  # fmt: skip
def test_temperatures(temperature: str | float, inverse: int) -> None:
    assert inverse_temperature(temperature) == inverse


@pytest.mark.parametrize(
    "temperature",
    [
        "hot",
        "-1",
        "",
        "nan",
        "inf",
        "1/0",
        "0.007",
        "600",
        float("nan"),
        "1e999999999",
        "1e-999999999",
        "1/" + "9" * 9999,
    ],
)
def test_temperatures_that_are_none(model: LanguageModel, temperature: str | float) -> None:
    with pytest.raises(ConfigError, match=r"temperature = .*: expected a number from 1/128 to 256, or 0"):
        generate(model, b"", 1, temperature)


def test_seeds_that_are_none(model: LanguageModel) -> None:
    for seed in (-1, 2**64):
        with pytest.raises(ConfigError, match=f"seed = {seed}: must be from 0 to {2**64 - 1}"):
            generate(model, b"", 1, seed=seed)


def test_it_streams(model: LanguageModel) -> None:
    """A block is yielded before the next is drawn, and the borders between blocks change nothing."""
    pieces = generate(model, b"", 2 * WRITTEN + 10)
    first = next(pieces)
    assert 0 < len(first) <= WRITTEN
    assert first + b"".join(pieces) == written(model, tokens=2 * WRITTEN + 10)
    assert written(model, tokens=30) == first[:30]


def test_command_refuses(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = str(tiny.trained().directory)
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04")
    for arguments, expected in [
        (["--prompt", "some", "--temperature", "hot"], "--temperature = hot: "),
        (["--prompt", "some", "--temperature", "1e999999999"], "--temperature = 1e999999999: "),
        (["--prompt-file", "/no/such/file"], "/no/such/file: "),
        (["--prompt-file", str(tmp_path / "a.zip")], f"{tmp_path}/a.zip: holds a zip archive"),
        (["--prompt-file", "/dev/zero"], "/dev/zero: a device"),
    ]:
        assert main(["generate", run, *arguments]) == 2
        said = capsys.readouterr()
        assert said.out == ""  # not even the prompt
        assert said.err.startswith(f"intlm: {expected}") and said.err.count("\n") == 1
    for arguments in (
        ["--tokens", "-1"],
        ["--top-k", "x"],
        ["--seed", "-1"],
        ["--seed", str(2**64)],
        ["--prompt", "a", "--prompt-file", "b"],
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["generate", run, *arguments])
        assert stopped.value.code == 2


def test_command_shows_utf8(tmp_path: Path) -> None:
    """Works in any locale, with a prompt that is not UTF-8 and a model that writes broken characters."""
    run = tmp_path / "run"
    tiny.write_run(run, tiny.make_model(), data__tokenizer="bytes")
    (tmp_path / "prompt").write_bytes("naïve \x00 ".encode() + b"\xe2\x82")
    script = (
        "import os, subprocess, sys; environment = {**os.environ, 'LC_ALL': 'C', 'PYTHONIOENCODING': 'ascii'};"
        "command = [sys.executable, '-P', '-m', 'intlm.cli', *sys.argv[1:]];"
        "sys.stdout.buffer.write(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout)"
    )
    words = ("generate", run, "--prompt-file", tmp_path / "prompt", "--tokens", 120, "--temperature", 2)
    done = tiny.intlm(*words, python=("-c", script))  # which decodes as UTF-8, strictly
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("naïve \x00 ") and done.stdout.endswith("\n")
    assert "\ufffd" in done.stdout


def test_command_shows_a_character_when_it_is_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes may come in several tokens, the first of them in the prompt."""
    (tmp_path / "prompt").write_bytes(b"1 \xe2\x82")
    pieces = [b"\xac", b"", b" \xc3", b"\xa9\xc3", b"!", b"\xf0\x9f"]
    monkeypatch.setattr(generation, "generate", lambda *_: iter(pieces))
    assert main(["generate", str(tiny.trained().directory), "--prompt-file", str(tmp_path / "prompt")]) == 0
    assert capsys.readouterr().out == "1 € é\ufffd!\ufffd\n"


def test_command_shows_what_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    run = tiny.trained().directory
    shown = []
    for arguments in (["--seed", "1"], ["--seed", "1"], ["--seed", "2"], ["--top-k", "1"], ["--temperature", "0"]):
        assert main(["generate", str(run), "--prompt", "abba ", "--tokens", "40", *arguments]) == 0
        shown.append(capsys.readouterr().out)
    assert all(text.startswith("abba ") for text in shown)
    assert [one == other for one, other in pairwise(shown)] == [True, False, False, True]
