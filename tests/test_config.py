"""intlm.config: every kind of mistake is named; a configuration is resolved as it is loaded, and can be saved."""

import argparse
import dataclasses
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intlm import config as config_module
from intlm.config import (
    Config,
    DataConfig,
    EggrollConfig,
    ModelConfig,
    TrainConfig,
    add_arguments,
    check_limits,
    dumps,
    from_toml,
    load,
    overrides_from,
)
from intlm.data.tokenizers.byte import Bytes
from intlm.errors import ConfigError
from intlm.estimators.member import Member
from intlm.fitness.sign import Sign
from intlm.objectives.next_token import NextToken
from intlm.optimizers.adam import Adam
from intlm.optimizers.momentum import Momentum
from intlm.optimizers.sgd import Sgd
from intlm.optimizers.threshold import Threshold
from intlm.settings import flatten, names_in

KEYS = config_module.keys()
FILE = Path("configs/a.toml")
DATA = '[data]\ntrain = "x.txt"\n'


def parse(text: str = "", overrides: dict[str, str] | None = None) -> Config:
    return from_toml(text if "[data]" in text else text + "\n" + DATA, FILE, overrides)


def message(text: str = "", overrides: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, overrides)
    return str(caught.value)


def flags(*words: str) -> dict[str, str]:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("config")
    add_arguments(parser)
    return overrides_from(parser.parse_args(["a.toml", *words]))


def test_defaults_are_the_documented_ones() -> None:
    config = parse()
    assert config == Config(data=config.data)
    assert (config.seed, config.engine) == (0, "auto")
    assert config.model == ModelConfig(hidden_size=64, num_layers=2, feed_forward_size=256, nonlinearity="clip")
    assert config.eggroll == EggrollConfig(
        population=4096, chunk_size=0, optimizer=Threshold(alpha=4, decay_updates=1000),
        estimator=Member(rank=1, sigma_shift=4, noise_reuse=1, group_size=1, fitness=Sign()),
    )  # fmt: skip
    assert config.objective == NextToken(targets=1)
    assert config.train == TrainConfig(
        tokens_per_update=32, updates=1000, evaluate_every=50, sample_every=200, checkpoint_seconds=60
    )
    assert config.data == DataConfig(
        train=config.data.train, valid="", valid_bytes=0, tokenizer=Bytes(), document_separator="",
        prepared=config.data.prepared,
    )  # fmt: skip


def test_keys_are_read_from_their_sections() -> None:
    config = parse('seed = 7\n[model]\nhidden_size = 1_024\nnonlinearity = "table"\n[eggroll.member]\nrank = 3')
    assert config.seed == 7
    assert config.model == ModelConfig(hidden_size=1024, nonlinearity="table")
    assert config.eggroll.estimator == Member(rank=3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[model]\nhiden_size = 8", "model.hiden_size: unknown key; did you mean model.hidden_size?"),
        ("[modle]\nhidden_size = 8", "modle: unknown key; did you mean model?"),
        ("[eggroll]\nvalid_bytes = 8", "eggroll.valid_bytes: unknown key; did you mean data.valid_bytes?"),
        ("[data]\ntrain = 'x'\nseed = 3", "data.seed: unknown key; did you mean seed?"),
        ("popluation = 8", "popluation: unknown key; did you mean eggroll.population?"),
        ("qqqqqqqqqqqq = 8", "qqqqqqqqqqqq: unknown key"),
        ("model = 3", "model = 3: expected a section, [model]"),
        ("[[model]]\nnum_layers = 1", "model = [{'num_layers': 1}]: expected a section, [model]"),
        ('[model]\nhidden_size = "x"', 'model.hidden_size = "x": expected an integer'),
        ("[model]\nhidden_size = 64.0", "model.hidden_size = 64.0: expected an integer"),
        ("[train]\nupdates = true", "train.updates = true: expected an integer"),
        ("[seed]", "seed = {}: expected an integer"),
        ("engine = 1", "engine = 1: expected a string"),
        ("[model]\nhidden_size = 60", "model.hidden_size = 60: must be a multiple of 8 (the kernels and the "
         "exported model work on whole groups of 8 channels)"),
        ("[model]\nhidden_size = 0", "model.hidden_size = 0: must be at least 8"),
        ("[model]\nhidden_size = 65544", "model.hidden_size = 65544: must be at most 65536"),
        ("[model]\nfeed_forward_size = 12", "model.feed_forward_size = 12: must be a multiple of 8 (the "
         "kernels and the exported model work on whole groups of 8 channels)"),
        ("[eggroll]\npopulation = 7", "eggroll.population = 7: must be even (members come in antithetic "
         "pairs)"),
        ("[eggroll]\npopulation = 0", "eggroll.population = 0: must be at least 2"),
        ("[eggroll.member]\nrank = 257", "eggroll.member.rank = 257: must be at most 256"),
        ("[eggroll]\nchunk_size = 3", "eggroll.chunk_size = 3: must be even (members come in antithetic "
         "pairs)"),
        ("[eggroll.member]\ngroup_size = 3", "eggroll.member.group_size = 3: must divide the number of pairs, "
         "eggroll.population / 2 = 2048"),
        ("seed = -1", "seed = -1: must be at least 0"),
        ("seed = 18446744073709551616", "seed = 18446744073709551616: must be at most 18446744073709551615"),
        ("[model]\nnonlinearity = 'cilp'", 'model.nonlinearity = "cilp": expected "clip" or "table"; '
         'did you mean "clip"?'),
        ("[eggroll]\noptimizer = 'nadam'", 'eggroll.optimizer = "nadam": expected "adam" or "momentum" or "sgd" or '
         '"threshold"; did you mean "adam"?'),
        ("[eggroll]\noptimizer = 'momentum'\n[eggroll.momentum]\nmomentum = 11",
         "eggroll.momentum.momentum = 11: must be at most 10"),
        ("[eggroll]\noptimizer = 'sgd'\n[eggroll.sgd]\nweight_decay = 256",
         "eggroll.sgd.weight_decay = 256: must be at most 255"),
        ("[eggroll.threshold]\ndecay_updates = 0", "eggroll.threshold.decay_updates = 0: must be at least 1"),
        ("[eggroll.adam]\nstep = 3", 'eggroll.adam.step = 3: a setting of eggroll.optimizer = "adam", but '
         'eggroll.optimizer is "threshold": remove it, or choose "adam"'),
        ("[eggroll.adm]\nstep = 3", "eggroll.adm: unknown key; did you mean eggroll.adam?"),
        ("[next_token]\ntargets = 6", "next_token.targets = 6: must be a power of two (the mean over them is a shift)"),
        ("[next_token]\ntargets = 2048", "next_token.targets = 2048: must be at most 1024"),
        ("[next_token]\ntargets = 0", "next_token.targets = 0: must be at least 1"),
        ("[train]\ntrackers = 'wandb, wandbb'", 'train.trackers = "wandb, wandbb": expected any of trackio, wandb; '
         'did you mean "wandb"?'),
        ("[data]\ntrain = 'x'\nvalid = 'y'\nvalid_bytes = 1", "data.valid_bytes = 1: must be 0 where "
         "data.valid names the held-out text"),
        ("[data]\ntrain = 'x'\nvalid_split = 'y'\nvalid_bytes = 1", "data.valid_bytes = 1: must be 0 where "
         "data.valid_split names the held-out text"),
        ("[data]\ntrain = 'x'\nvalid = 'y'\nvalid_split = 'z'", 'data.valid_split = "z": must be empty where '
         "data.valid names the held-out text"),
        ("[data]\ntrain = 'x'\nmixture = '3 a.toml, b.toml'", 'data.mixture = "3 a.toml, b.toml": expected SHARE PATH, '
         "SHARE PATH, ..., each share a positive integer"),
        ("[data]\ntrain = 'x'\nmixture = '0 a.toml'", 'data.mixture = "0 a.toml": expected SHARE PATH, '
         "SHARE PATH, ..., each share a positive integer"),
        ("[data]\nvalid_bytes = 1", "data.train: missing: expected a text file, a directory of text files, a .py file "
         "that yields documents, JSON Lines, Parquet, or hub:OWNER/NAME[@REVISION]"),
        ("[data]\ntrain = ''", "data.train: missing: expected a text file, a directory of text files, a .py file "
         "that yields documents, JSON Lines, Parquet, or hub:OWNER/NAME[@REVISION]"),
    ],
)  # fmt: skip
def test_a_mistake_names_file_key_value_and_what_was_expected(text: str, expected: str) -> None:
    assert message(text) == f"configs/a.toml: {expected}"


def test_an_override_wins_and_is_parsed_by_the_keys_type() -> None:
    text = "[model]\nhidden_size = 64\nnum_layers = 3"
    config = parse(
        text, {"model.hidden_size": "1_024", "seed": "0xff", "engine": "xla", "data.document_separator": "12"}
    )
    assert config.model == ModelConfig(hidden_size=1024, num_layers=3)
    assert (config.seed, config.engine, config.data.document_separator) == (255, "xla", "12")


def test_a_mistake_in_an_override_names_the_command_line() -> None:
    size = "model.hidden_size"
    assert message(overrides={size: "x"}) == 'command line: model.hidden_size = "x": expected an integer'
    assert message(overrides={size: "6.4"}) == 'command line: model.hidden_size = "6.4": expected an integer'
    assert message(overrides={size: "60"}).startswith('command line: model.hidden_size = "60": must be a ')
    assert message(overrides={"sede": "1"}) == "command line: sede: unknown key; did you mean seed?"
    # A conflict between keys names wherever they came from.
    assert message(overrides={"eggroll.member.group_size": "3"}).startswith(
        "command line: eggroll.member.group_size = 3: "
    )
    both = message("[eggroll]\npopulation = 8", {"eggroll.member.group_size": "3"})
    assert both.startswith("command line, configs/a.toml: eggroll.member.group_size = 3: ")


def test_a_layer_is_over_the_file_and_under_the_command_line(tmp_path: Path) -> None:
    """A layer of configuration: its values are TOML's, its paths relative to it, and its mistakes its own."""
    base, over = tmp_path / "base.toml", tmp_path / "studies" / "over.toml"
    base.write_text("seed = 1\n[eggroll.member]\nrank = 1\n[eggroll.threshold]\nalpha = 1\n[data]\ntrain = 'x.txt'\n")
    layer = {"eggroll.member.rank": 2, "eggroll.threshold.alpha": 2, "data.valid": "y.txt"}
    found = load(base, {"eggroll.threshold.alpha": "3"}, [(over, layer)])
    assert (found.seed, found.eggroll.estimator, found.eggroll.optimizer) == (1, Member(rank=2), Threshold(alpha=3))
    assert (found.data.train, found.data.valid) == (str(tmp_path / "x.txt"), str(tmp_path / "studies" / "y.txt"))
    for keys, said in [
        ({"eggroll.member.rank": "2"}, 'eggroll.member.rank = "2": expected an integer'),
        ({"rank": 2}, "rank: unknown"),
    ]:
        with pytest.raises(ConfigError) as caught:
            load(base, {}, [(over, keys)])
        assert str(caught.value).startswith(f"{over}: {said}")


def test_a_later_choice_leaves_the_settings_of_the_one_before_behind(tmp_path: Path) -> None:
    base = tmp_path / "base.toml"
    base.write_text('[eggroll]\noptimizer = "sgd"\n[eggroll.sgd]\nstep = 7\n[data]\ntrain = "x.txt"\n')
    assert load(base).eggroll.optimizer == Sgd(step=7)
    assert load(base, {"eggroll.optimizer": "adam"}).eggroll.optimizer == Adam()
    with pytest.raises(ConfigError, match=r'command line: eggroll\.sgd\.step = "8": a setting of eggroll\.optimizer'):
        load(base, {"eggroll.optimizer": "adam", "eggroll.sgd.step": "8"})


@pytest.mark.parametrize(
    ("eggroll", "expected"),
    [
        ('optimizer = "momentum"\nmomentum = 0\nstep = 9\nalpha = 3', Sgd(step=9)),
        ('optimizer = "momentum"\nstep = 9', Sgd(step=9)),
        ('optimizer = "momentum"\nmomentum = 2', Momentum(momentum=2)),
        ('optimizer = "adam"\nmomentum = 2\nwarmup_updates = 4', Adam(momentum=2, warmup_updates=4)),
        ("alpha = 3\nstep = 9", Threshold(alpha=3)),
    ],
)
def test_files_of_earlier_versions_are_read(eggroll: str, expected: object, capsys: pytest.CaptureFixture[str]) -> None:
    """Configurations of version 0.1 are read as it read them: it passed over settings of optimizers that were not
    chosen. One line says so."""
    config_module._say_once.cache_clear()
    config = parse(f"[eggroll]\nrank = 2\n{eggroll}\n[train]\ntargets = 4")
    assert config.eggroll.optimizer == expected
    assert (config.eggroll.estimator, config.objective) == (Member(rank=2), NextToken(targets=4))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("intlm: configs/a.toml: written for an earlier version: ")
    assert from_toml(dumps(config), FILE) == config and not capsys.readouterr().err


def test_flags_of_earlier_versions_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    config_module._say_once.cache_clear()
    assert parse(overrides=flags("--eggroll.rank", "3", "--eggroll.alpha", "2")).eggroll == EggrollConfig(
        estimator=Member(rank=3), optimizer=Threshold(alpha=2)
    )
    said = capsys.readouterr().err
    assert said == (
        "intlm: command line: written for an earlier version: eggroll.rank is now eggroll.member.rank (and 1 more)\n"
    )
    assert message(overrides={"eggroll.step": "3"}) == (
        'command line: eggroll.step = "3": eggroll.optimizer = "threshold" has no such setting'
    )


@pytest.mark.parametrize("name", ["bytes", "alphabet", "unigram", "bpe"])
def test_settings_of_tokenizers_as_earlier_versions_had_them(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Settings of tokenizers are also read as keys of [data], where earlier versions had them."""
    data = f"[data]\ntrain = 'x'\ntokenizer = '{name}'\n"
    config, flag = parse(f"{data}vocab_size = 300\nsample_bytes = 9"), {"data.vocab_size": "400"}
    has = name in ("unigram", "bpe")
    assert flatten(config.data.tokenizer) == ({"vocab_size": 300, "sample_bytes": 9} if has else {})
    assert config.data.tokenizer.name == name
    said = f"is now data.{name}.vocab_size (and 1 more)" if has else ""
    assert said in capsys.readouterr().err
    if has:
        assert flatten(parse(data, flag).data.tokenizer) == {"vocab_size": 400, "sample_bytes": 1 << 24}
    else:
        said = f'command line: data.vocab_size = "400": data.tokenizer = "{name}" has no such setting'
        assert message(data, flag) == said


def test_trackers_are_named_once() -> None:
    assert names_in(parse("[train]\ntrackers = ' trackio,wandb , trackio'").train.trackers) == ["trackio", "wandb"]
    assert names_in(parse().train.trackers) == []


def test_a_file_that_is_missing_or_not_toml(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    with pytest.raises(ConfigError, match=r"a\.toml: cannot be read: No such file"):
        load(path)
    with pytest.raises(ConfigError, match=r"cannot be read: "):
        load(tmp_path)
    path.write_text("seed = 1\n[model\nhidden_size = 8\n")
    with pytest.raises(ConfigError, match=r"a\.toml: not TOML: .*line 2"):
        load(path)
    path.write_text('seed = 1\nengine = """\nauto')
    with pytest.raises(ConfigError, match=r"a\.toml: not TOML: .*line 3"):
        load(path)
    path.write_bytes(b"seed = 1 # \xff")
    with pytest.raises(ConfigError, match=r"a\.toml: not UTF-8 text \(byte 11\)"):
        load(path)


def test_paths_are_resolved_against_their_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, configs = tmp_path / "work", tmp_path / "configs"
    work.mkdir()
    configs.mkdir()
    monkeypatch.chdir(work)
    (configs / "a.toml").write_text('[data]\ntrain = "../texts/x.txt"\nvalid = "/abs/y.txt"\nprepared = "shards"')

    def paths(overrides: dict[str, str]) -> tuple[str, ...]:
        data = load(Path("../configs/a.toml"), overrides).data
        return data.train, data.valid, data.prepared

    texts = tmp_path / "texts"
    assert paths({}) == (str(texts / "x.txt"), "/abs/y.txt", str(configs / "shards"))
    assert paths({"data.train": "z.txt", "data.valid": "", "data.prepared": "p"}) == (
        str(work / "z.txt"), "", str(work / "p"),
    )  # fmt: skip


def test_the_directory_of_shards_is_named_by_config_and_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = Path(parse().data.prepared)
    assert first.parent == tmp_path / "prepared"
    stem, digest = first.name.split("-")
    assert stem == "a" and len(digest) == 8 and int(digest, 16) >= 0
    # The data alone names it: another model shares the shards, another tokenizer does not.
    assert parse(overrides={"model.hidden_size": "8", "data.processes": "8"}).data.prepared == str(first)
    assert parse(overrides={"data.tokenizer": "alphabet"}).data.prepared != str(first)
    assert parse(overrides={"data.train": "other.txt"}).data.prepared != str(first)


def test_a_mixture_is_relative_to_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = parse("[data]\ntrain = 'x'\nmixture = '3 ../a b.toml,1 ~/c.toml'").data
    assert data.others == [(3, str(tmp_path / "a b.toml")), (1, str(Path.home() / "c.toml"))]
    assert parse(overrides={"data.mixture": "2 d.toml"}).data.others == [(2, str(tmp_path / "d.toml"))]
    assert parse("[data]\ntrain = 'x'").data.others == []


def test_text_that_utf8_cannot_write_is_refused() -> None:
    assert "UTF-8" in message(overrides={"data.train": "caf\udce9.txt"})  # as argv holds a non-UTF-8 name


@pytest.mark.parametrize("key", ["data.train", "data.valid", "data.tokenizer_file", "data.prepared", "data.mixture"])
def test_a_path_with_nul_is_refused(key: str) -> None:
    value = "1 a\0b" if key == "data.mixture" else "a\0b"
    assert f"{key} = " in (said := message(overrides={"data.train": "x", key: value})) and "NUL" in said


@pytest.mark.parametrize(
    "text",
    [
        "[data]\nx = " + "[" * 10**5,
        "[data]\nx = " + "9" * 5000,
        "[data]\nx = 0x" + "f" * 5000,
        "[" + ".".join("a" * 2000) + "]",
        "model." + ".".join("a" * 2000) + " = 1",
    ],
)
def test_what_no_message_could_show_is_refused(text: str) -> None:
    """Values nested too deeply, and numbers of too many digits, are refused."""
    said = message(text)
    assert said.startswith(f"{FILE}: not TOML: ") and ("nested too deeply" in said or "4300 digits" in said)


def test_a_share_of_many_digits() -> None:
    assert "data.mixture = " in message(overrides={"data.train": "x", "data.mixture": "9" * 5000 + " a.toml"})


def values_of(name: str) -> st.SearchStrategy[float | str]:
    key, limits = KEYS[name], KEYS[name].field.metadata
    if name == "next_token.targets":
        return st.integers(0, 10).map(lambda n: 2**n)
    if name == "train.trackers":
        return st.sampled_from(["", "wandb", " trackio,wandb , "])
    if key.choices:
        return st.sampled_from(key.choices)
    if limits["path"]:
        text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
        return text.map(lambda tail: "/" + tail.replace("/", "").replace(".", "") + "x")
    if limits["shares"]:
        return st.sampled_from(["", "3 /a.toml", "12 /b c.toml, 1 /d.toml"])
    if name == "train.schedule":
        return st.sampled_from(["", "0-5: 0-9, 3-8: 1-2147483647"])
    if key.is_decimal:
        return st.just(0.0)  # train.minutes: a flag for the updates excludes it
    if not key.is_number:
        return st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    # 4096 keeps the cross-key limits out of the way; they are tested on their own.
    step, high = limits["multiple"], 4096 if limits["high"] is None else limits["high"]
    return st.integers(-(-limits["low"] // step), high // step).map(lambda n: n * step)


@settings(max_examples=60, deadline=None)
@given(st.fixed_dictionaries({name: values_of(name) for name in KEYS}))
def test_what_is_dumped_loads_as_the_same_config(values: dict[str, float | str]) -> None:
    values |= {"eggroll.member.group_size": 1, "data.valid_bytes": 0, "data.valid_split": ""}
    values["eggroll.population"] = int(values["eggroll.population"]) // 2 * 2
    if values["eggroll.estimator"] == "token":  # the tokens of its texts are limited
        values |= {"eggroll.token.members": 1, "eggroll.population": 2 + values["eggroll.population"] % 1000}
    values = {name: value for name, value in values.items() if all(values[f] == part for f, part in KEYS[name].of)}
    overrides = {name: str(value) for name, value in values.items()}
    config = from_toml("", Path("b.toml"), overrides)
    assert from_toml(dumps(config), Path("/elsewhere/config.toml")) == config
    # Every key is written out, with the value given.
    tables = tomllib.loads(dumps(config))
    written: dict[str, Any] = dict.fromkeys(values, tables)
    for name in values:
        for part in name.split("."):
            written[name] = written[name][part]
    assert written == values


def test_flags_exist_for_every_key_and_carry_text_through(capsys: pytest.CaptureFixture[str]) -> None:
    assert flags() == {}
    assert flags("--model.hidden_size", "60", "--seed=3", "--data.valid", "") == {
        "seed": "3", "model.hidden_size": "60", "data.valid": "",
    }  # fmt: skip
    everything = dict.fromkeys(KEYS, "1")
    assert flags(*(word for name in KEYS for word in (f"--{name}", "1"))) == everything
    with pytest.raises(SystemExit):
        flags("--help")
    shown = "".join(capsys.readouterr().out.split())  # without the breaks of lines
    for name, key in KEYS.items():
        assert f"--{name}" in shown
        assert key.help.replace(" ", "") in shown
    for words in (
        "(integer 8 to 65536, a multiple of 8; default 64)", "(integer from 2; default 4096)",
        '("clip" or "table"; default "clip")', "(path; required)",
    ):  # fmt: skip
        assert words.replace(" ", "") in shown


def with_population(population: int, rank: int = 1) -> Config:
    eggroll = EggrollConfig(population=population, estimator=Member(rank=rank))
    return Config(eggroll=eggroll, data=DataConfig(train="/x", prepared="/p"))


def test_votes_must_fit_int32() -> None:
    for rank in (2, 3, 64, 256):
        pairs = (2**31 - 1) // (2116 * rank)
        check_limits(with_population(2 * pairs, rank), None)
        with pytest.raises(ConfigError) as caught:
            check_limits(with_population(2 * pairs + 2, rank), None)
        assert str(caught.value) == (
            f"eggroll.population = {2 * pairs + 2}, eggroll.member.rank = {rank}: votes would overflow int32: "
            f"population/2 * rank * 46^2 = {(pairs + 1) * rank * 46**2} exceeds 2147483647; "
            "lower eggroll.population or eggroll.member.rank"
        )


def test_pairs_are_bounded_by_the_mean_absolute_difference() -> None:
    check_limits(with_population(2**20), None)
    with pytest.raises(ConfigError, match=r"population = 1048578: must be at most 1048576 .* two int32"):
        check_limits(with_population(2**20 + 2), None)


def test_a_texts_loss_must_fit_int32() -> None:
    assert parse("[train]\ntokens_per_update = 32768").train.tokens_per_update == 32768
    assert message("[train]\ntokens_per_update = 32769") == (
        "configs/a.toml: train.tokens_per_update = 32769: must be at most 32768 (a text's loss is summed in int32)"
    )


@pytest.mark.parametrize(("vocab_size", "fits"), [(1, False), (2, True), (65536, True), (65537, False)])
def test_the_vocabulary_is_bounded(vocab_size: int, fits: bool) -> None:
    config = parse()
    if fits:
        check_limits(config, vocab_size)
    else:
        with pytest.raises(ConfigError, match=f"vocabulary of {vocab_size} tokens; must be 2 to 65536"):
            check_limits(config, vocab_size)


def test_load_checks_the_limits_and_names_the_source() -> None:
    wide = message("[eggroll]\npopulation = 2097152")
    assert wide.startswith("configs/a.toml: eggroll.population = 2097152, eggroll.member.rank = 1: votes would")
    deep = message("[eggroll.member]\nrank = 256", {"eggroll.population": "8192"})
    assert deep.startswith("command line, configs/a.toml: eggroll.population = 8192, eggroll.member.rank = 256: ")


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse().model.hidden_size = 8  # type: ignore[misc]


def test_configuration_imports_nothing_heavy() -> None:
    code = textwrap.dedent("""
        import sys
        import intlm.config, intlm.pictures, intlm.tracking.metrics
        intlm.config.keys()  # loads every part
        assert not {"jax", "matplotlib"} & set(sys.modules), "imported too much"
    """)
    root = Path(config_module.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
