"""intlm.bench: everything is measured, and the output follows from the measurements. No timing is asserted."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from intlm import bench as module
from intlm.bench import PARTS, Report, Round, Workload, bench, shown
from intlm.cli import main
from intlm.model import SEPARATOR
from intlm.model.forward import zero_states
from intlm.population import native
from intlm.run import population_of
from intlm.training import prepare_corpus

VOCABULARY = 5
# Of the tiny model, hidden 16 and feed-forward 16: six square matrices of its layer, and the head.
MACS = 6 * 256 + VOCABULARY * 16
TOKENS = tiny.MEMBERS * tiny.TOKENS
NUMBERS = {
    "threads", "rounds", "members", "tokens_per_update", "parameters", "inference_streams", "macs_per_token",
    "macs_per_second", "evaluation_over_inference", "update_over_inference", "noise_values_per_second",
    "peak_memory_bytes",
}  # fmt: skip
OF_THE_PEAK = {"peak_macs_per_second", "share_of_peak"}


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes benchmarks quick: nothing is repeated."""
    monkeypatch.setattr(module, "COUNTED", 0.001)
    monkeypatch.setattr(module, "FEWEST_WRITTEN", 64)


def made(*factors: float, peak: float | None = 4e6, config: Any = None, **fields: Any) -> Report:
    """A report of known rounds, each this much slower than the first."""
    config = config or tiny.load_config()
    seconds = {"inference": 0.5, "evaluation": 1.0, "noise": 0.25, "accumulation": 0.5, "rest": 0.5, "update": 2.0}
    phases = {
        "evaluation": {"noise": 0.5, "products": 1.0, "norm": 0.0, "rest": 0.5},
        "accumulation": {"noise": 0.0, "votes": 0.5},
    }
    rounds = [
        Round(
            {part: took * factor for part, took in {**seconds, "generation": 0.1}.items()},
            {part: {phase: took * factor for phase, took in by_phase.items()} for part, by_phase in phases.items()},
            peak and peak / factor,
            peak and MACS * 1000 / factor,
        )
        for factor in factors
    ]
    told = {"engine": "native", "instruction_set": "some", "streams": tiny.MEMBERS, **fields}
    return Report("tiny", config, population_of(config, VOCABULARY), threads=2, written=50, peak_memory=1 << 30,
                  rounds=rounds, **told)  # fmt: skip


def test_rates_and_ratios() -> None:
    """Rates and ratios are medians over the rounds, of ratios taken within a round: here the same however slow the
    round is."""
    summary = made(1, 4, 2).summary()
    assert summary["rounds"] == 3 and summary["members"] == tiny.MEMBERS and summary["macs_per_token"] == MACS
    assert summary["seconds"]["update"] == 4.0 and summary["seconds"]["noise"] == 0.5
    assert summary["tokens_per_second"] == {
        "inference": TOKENS, "evaluation": TOKENS / 2, "noise": TOKENS * 2, "accumulation": TOKENS,
        "update": TOKENS / 4,
    }  # fmt: skip
    assert summary["macs_per_second"] == TOKENS * MACS / 2
    assert summary["peak_macs_per_second"] == 2e6
    assert summary["share_of_peak"] == pytest.approx(TOKENS * MACS / 4e6)
    assert (summary["update_over_inference"], summary["evaluation_over_inference"]) == (0.25, 0.5)
    assert summary["update_over_inference_range"] == [0.25, 0.25]
    assert summary["generation"] == {"tokens_per_second": 250, "share_of_bound": pytest.approx(0.5)}
    assert summary["peak_memory_bytes"] == 1 << 30


def test_further_streams_are_accounted_for() -> None:
    """Inference on twice the streams in the same time is twice as fast."""
    once, twice = made(1).summary(), made(1, streams=2 * tiny.MEMBERS).summary()
    assert twice["tokens_per_second"]["inference"] == 2 * once["tokens_per_second"]["inference"]
    assert twice["update_over_inference"] == once["update_over_inference"] / 2


def test_products_and_values() -> None:
    """The products and random values of a call, counted from the parameters; rank 3."""
    report = made(1, config=tiny.load_config(eggroll__rank=3))
    assert report.macs("update") == report.macs("evaluation") == report.macs("inference") == TOKENS * MACS
    assert report.macs("generation") == 50 * MACS
    assert report.macs("accumulation") == tiny.MEMBERS // 2 * 3 * (MACS + VOCABULARY * 16)
    assert report.macs("noise") is None and report.macs("rest") is None
    factors, vectors = 6 * (16 + 16) + 2 * (VOCABULARY + 16), 2 * 16
    assert report.noise_values() == tiny.MEMBERS // 2 * (3 * factors + vectors)


def test_the_text_has_a_row_for_each_part() -> None:
    lines = made(1, 2, 4).text().splitlines()
    assert lines[:2] == [
        "engine native (some), 2 threads",
        "tiny: 32 members of 1.73k parameters, 8 tokens each, 1.62k multiply-adds per token",
    ]
    assert len(lines[5 : lines.index("", 5)]) == len(PARTS)
    (whole,) = (line for line in lines if line.startswith("whole update  "))
    assert whole.split()[2:] == ["2,000", "/", "4,000", "/", "8,000", "64.0", "0.000103", "5.17", "0.250"]
    assert any(
        line.startswith("update time over inference time") and line.endswith("0.250 / 0.250 / 0.250") for line in lines
    )
    assert lines[-1].startswith("peak memory of training") and lines[-1].endswith("1.07 GB")


def test_without_the_native_library_there_is_no_peak() -> None:
    report = made(1, 2, peak=None, engine="xla", instruction_set=None)
    summary = report.summary()
    assert (
        summary["peak_macs_per_second"] is summary["share_of_peak"] is summary["generation"]["share_of_bound"] is None
    )
    assert summary["instruction_set"] is None
    (row,) = (line for line in report.text().splitlines() if line.startswith("evaluation  "))
    assert row.split()[-2] == "-"
    assert report.text().startswith("engine xla, 2 threads\n")


def test_a_part_that_takes_no_time_has_no_rate() -> None:
    report = made(1, 2)
    report.rounds[0].seconds["rest"] = 0.0
    assert report.tokens_per_second("rest") is None and report.seconds("rest")
    report.text()


def test_the_breakdown_is_of_the_whole_update() -> None:
    """Phases are scaled to the part's own time; those that take none are left out; the peak's share is set apart."""
    rows = made(2, 2).breakdown()
    groups = {group: sum(seconds for _, of, seconds in rows if of == group) for _, group, _ in rows}
    assert groups == pytest.approx({"evaluation": 2.0, "accumulation": 1.0, "rest of the update": 1.0})
    evaluation = {label: seconds for label, group, seconds in rows if group == "evaluation"}
    least = TOKENS * MACS / 2e6
    assert evaluation == pytest.approx({
        "noise": 0.5,
        "int8 products, at the machine's peak rate": least,
        "product overhead: rescale, perturb, gates": 1.0 - least,
        "everything else, and waiting threads": 0.5,
    })  # fmt: skip
    assert [label for label, group, _ in rows if group == "accumulation"] == ["products of the votes"]


@pytest.mark.parametrize(
    ("number", "expected"),
    [(0, "0"), (1234567.8, "1,234,568"), (999.4, "999"), (12.345, "12.3"), (1, "1.00"), (0.012345, "0.0123")],
)
def test_three_digits(number: float, expected: str) -> None:
    assert shown(number) == expected


@pytest.mark.parametrize("engine", ["auto", "xla"])
def test_json(engine: str, hasty: None, capsys: pytest.CaptureFixture[str]) -> None:
    """The JSON report of everything, measured once; where the parts are numbers, each follows from the others."""
    assert main(["bench", str(tiny.CONFIG), "--json", "--rounds", "1", "--engine", engine]) == 0
    report = json.loads(capsys.readouterr().out)
    there = native.available()
    assert report["config"] == "tiny"
    assert report["engine"] == ("native" if engine == "auto" and there else "xla")
    assert report["instruction_set"] == (native.instruction_set() if there else None)
    timed = ["inference", "evaluation", "noise", "accumulation", "rest", "update"]
    assert list(report["seconds"]) == timed
    assert list(report["tokens_per_second"]) == [part for part in timed if part != "rest"]
    rates = {**report["tokens_per_second"], "generation": report["generation"]["tokens_per_second"]}
    assert all(isinstance(rate, float) and rate > 0 for rate in rates.values())
    for names, known in ((NUMBERS, True), (OF_THE_PEAK, there)):
        assert all((isinstance(report[name], int | float) and report[name] > 0) == known for name in names)
    assert (report["generation"]["share_of_bound"] is not None) == there
    rest = {"config", "engine", "instruction_set", "seconds", "tokens_per_second", "generation"}
    ranges = {"update_over_inference_range", "evaluation_over_inference_range"}
    assert set(report) == NUMBERS | OF_THE_PEAK | rest | ranges

    assert report["rounds"] == 1 and report["inference_streams"] == tiny.MEMBERS
    for part in ("evaluation", "update"):
        ratio = report[f"{part}_over_inference"]
        assert ratio == pytest.approx(rates[part] / rates["inference"])
        assert report[f"{part}_over_inference_range"] == [ratio, ratio]
    assert report["macs_per_second"] == pytest.approx(rates["evaluation"] * report["macs_per_token"])
    if there:
        assert report["share_of_peak"] == pytest.approx(report["macs_per_second"] / report["peak_macs_per_second"])


def test_the_estimator_token(hasty: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Its votes are made within its evaluation, and its noise is no part that is measured."""
    keys = ("--eggroll.estimator", "token", "--eggroll.token.members", "3")
    assert main(["bench", str(tiny.CONFIG), *keys, "--json", "--rounds", "1"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["inference_streams"] == tiny.MEMBERS
    assert all(report["seconds"][part] > 0 for part in ("inference", "evaluation", "update"))
    assert report["seconds"]["noise"] == 0 or report["engine"] == "native"


def test_the_table_and_the_picture(
    hasty: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the picture is written, and the prepared text if it is missing."""
    monkeypatch.chdir(tmp_path)
    keys = [f"--{key}={value}" for key, value in {"eggroll.rank": 2, "data.prepared": "made"}.items()]
    assert main(["bench", str(tiny.CONFIG), *keys, "--picture", "a.png", "--rounds", "2"]) == 0
    out = capsys.readouterr().out
    assert "update time over inference time" in out and "of 2 rounds" in out
    assert out.splitlines()[-1] == "picture: a.png"
    content = (tmp_path / "a.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", content[16:24]) == (1200, 750)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "made"]


def test_rounds_end_where_patience_does(hasty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0)
    report = bench(tiny.load_config(), "tiny")
    assert len(report.rounds) == module.FEWEST_ROUNDS
    for round_ in report.rounds:
        assert set(round_.seconds) == set(PARTS)
        assert all(sum(phases.values()) > 0 for phases in round_.phases.values())


@pytest.mark.parametrize(("most", "reads", "streams"), [(1 << 27, 1, 96), (95, 2, 48), (40, 3, 32), (20, 5, 20)])
def test_inference_reads_as_many_streams_at_once_as_memory_allows(
    most: int, reads: int, streams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each stream reads its member's text, which pairs and groups share, until all texts are read."""
    monkeypatch.setattr(module, "MOST_LOGITS", most * tiny.TOKENS * VOCABULARY)
    config = tiny.load_config(eggroll__population=96, eggroll__group_size=2)
    workload = Workload(config, prepare_corpus(config))
    assert (workload.reads, workload.streams_at_once) == (reads, streams)
    seen: list[Any] = []
    workload.infer = lambda *arguments: seen.append(arguments)  # type: ignore[assignment]
    workload.batch = workload.trainer.streams.batch(0)
    workload.inference()
    assert len(seen) == reads
    for _, tokens, states in seen:
        assert tokens.shape == (streams, tiny.TOKENS) and states.shape == (streams, 1, 16)
    tokens = np.concatenate([tokens for _, tokens, _ in seen])
    np.testing.assert_array_equal(tokens, [workload.batch.tokens[stream % 96 // 4] for stream in range(len(tokens))])


def test_the_stream_that_writes_never_ends(hasty: None) -> None:
    """The separator is the likeliest token of no text, so that as many tokens are written as are counted."""
    workload = Workload(tiny.load_config(), prepare_corpus(tiny.load_config()))
    workload.generation()
    model, rng = workload.trainer.model, np.random.default_rng(0)
    tokens = rng.integers(0, VOCABULARY, (64, 32))
    logits, _ = model.read(tokens, zero_states((64,), model.architecture))
    assert (logits.max(axis=-1) > logits[..., SEPARATOR]).all()


@pytest.mark.skipif(not native.available(), reason="installed without a C++ compiler")
def test_no_part_passes_the_machine_s_bounds(hasty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tested with AVX2, whose int8 products in the kernels are not the fastest of the machine."""
    monkeypatch.setattr(module, "COUNTED", 0.05)
    monkeypatch.setenv("INTLM_ISA", "avx2")
    if not native.instruction_set():
        monkeypatch.delenv("INTLM_ISA")
    shape = {"model__hidden_size": 256, "model__feed_forward_size": 256}
    report = bench(tiny.load_config(threads=1, eggroll__population=48, **shape), "wide", rounds=1)
    for part in ("inference", "evaluation", "update", "generation"):
        share = report.share_of_peak(part)
        assert share and 0 < share.high < 1, part
    bound = report.share_of_bound()
    assert bound and 0 < bound.high < 1


def test_peak_memory_is_this_process_s() -> None:
    """Peak memory is this process's, not that of the program which started it, and grows with the memory held."""
    held = np.ones(1 << 29, np.int8)
    script = """
import numpy as np
from intlm.bench import peak_memory
before = peak_memory()
np.ones(1 << 28, np.int8)
print(before, peak_memory())
"""
    done = tiny.intlm(python=("-c", script))
    before, after = map(int, done.stdout.split())
    assert before < held.nbytes and after >= before + (1 << 27)


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Mistakes are found before anything is made or measured."""
    new = ["--data.prepared", str(tmp_path / "prepared")]
    for given, said in (
        (["--rounds", "0"], "--rounds = 0: must be at least 1"),
        (["--picture", str(tmp_path / "absent" / "a.png")], f"--picture = {tmp_path}/absent/a.png: expected a file in"),
        (["--picture", str(tmp_path)], f"--picture = {tmp_path}: expected a file in"),
    ):
        assert main(["bench", str(tiny.CONFIG), *new, *given]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith(f"intlm: {said}") and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
