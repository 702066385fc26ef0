"""The progress of runs: a list of many, or a comparison of some. Runs are only read; they may be training."""

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from intlm import config as configuration
from intlm import pictures
from intlm.config import Config, flatten, keys, shown
from intlm.data.references import LADDER, read_ladder
from intlm.errors import ConfigError, IntlmError, RunError
from intlm.lock import alive
from intlm.model.parameters import specifications
from intlm.pictures import Curve, Point
from intlm.run import WEIGHTS, architecture_of, open_run
from intlm.tracking import metrics, results
from intlm.tracking.table import duration, format_table, human

COLUMNS = 4  # the most runs that are shown side by side
_ROWS: list[tuple[str, str, Callable[[Any], str]]] = [
    ("state", "state", str),
    ("seeds", "seeds", str),
    ("model", "model", str),
    ("parameters", "parameters", human),
    ("best held-out", "best", "{:.3f}".format),
    ("last held-out", "last", "{:.3f}".format),
    ("updates", "updates", "{:,}".format),
    ("evaluated tokens", "tokens_evaluated", human),
    ("training", "seconds", duration),
    ("tokens/s", "tokens_per_second", human),
]


@dataclass(frozen=True)
class Status:
    """The progress of a run."""

    directory: Path
    config: Config
    lines: list[dict[str, Any]]  # the lines of metrics.jsonl
    parameters: int | None  # the number of parameters; None: the vocabulary is not known yet
    alive: bool  # whether a process is training it
    age: float  # seconds since it last wrote a line, or started

    @property
    def update(self) -> int:
        """The number of updates done."""
        return self.lines[-1]["update"] if self.lines else 0

    @property
    def state(self) -> str:
        """ "alive", "finished" or "dead"."""
        return "alive" if self.alive else "finished" if self.update >= self.config.train.updates else "dead"

    @property
    def measured(self) -> list[float]:
        """The held-out bits per byte of all measurements, in order."""
        return [line["valid_bits_per_byte"] for line in self.lines if "valid_bits_per_byte" in line]

    @property
    def model(self) -> str:
        """The model's shape in words."""
        model = self.config.model
        layers = f"{model.num_layers} layer{'s' if model.num_layers > 1 else ''}"
        kind = f"{model.cell.name}, {model.nonlinearity}"
        return f"hidden {model.hidden_size}, {layers}, ff {model.feed_forward_size}, {kind}"

    def summary(self) -> dict[str, Any]:
        """The status as one JSON object; values that are not there yet are null."""
        last = self.lines[-1] if self.lines else {}
        tokens, seconds = last.get("tokens_evaluated", 0), last.get("seconds", 0.0)
        return {
            "state": self.state,
            "model": self.model,
            "parameters": self.parameters,
            "best": min(self.measured, default=None),
            "last": self.measured[-1] if self.measured else None,
            "updates": self.update,
            "of_updates": self.config.train.updates,
            "tokens_evaluated": tokens,
            "tokens_read": last.get("tokens_read", 0),
            "seconds": seconds,
            "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
            "age": round(self.age, 1),
        }

    def curve(self, label: str) -> Curve:
        """The curve of held-out bits per byte, or of training bits per byte where nothing is measured yet."""
        name = "valid_bits_per_byte" if self.measured else "train_bits_per_byte"
        points = [
            Point(line["tokens_evaluated"], line["seconds"], line["tokens_read"], line[name])
            for line in self.lines if name in line
        ]  # fmt: skip
        return Curve(label, [points], not self.measured)


def status(directory: Path) -> Status:
    """Reads the status of a run. Raises RunError or ConfigError where the directory is no run, or is damaged."""
    saved, log = directory / "config.toml", directory / "metrics.jsonl"
    if not saved.is_file() or (directory / WEIGHTS).exists():
        raise RunError(f"{directory}: not a run: expected a directory with config.toml in it, as `intlm train` leaves")
    config, parameters = configuration.load(saved, trained=True), None
    if (directory / "tokenizer.json").exists():
        architecture = architecture_of(config, open_run(directory)[1].vocab_size)
        parameters = sum(int(np.prod(s.shape)) for s in specifications(architecture))
    lines = metrics.read(log) if log.exists() else []
    age = max(0.0, time.time() - (log if lines else saved).stat().st_mtime)
    return Status(directory, config, lines, parameters, alive(directory), age)


@dataclass(frozen=True)
class Listing:
    """The runs of a directory by name, the last to write first; and the errors of the damaged ones."""

    runs: dict[str, Status]
    damaged: dict[str, str]

    def text(self) -> str:
        """The runs as a table."""
        rows = []
        for name, run in self.runs.items():
            of, measured = run.config.train.updates, run.measured
            bits = (f"{min(measured):.3f}", f"{measured[-1]:.3f}") if measured else (None, None)
            share = int(100 * min(run.update / of, 1.0))
            size = None if run.parameters is None else human(run.parameters)
            progress = f"{run.update:,} / {of:,}"
            rows.append(
                (name, run.model, size, *bits, progress, f"{share}%", run.state, f"{duration(round(run.age))} ago")
            )
        headers = ["run", "model", "parameters", "best", "last", "updates", "", "", "last line"]
        table = format_table(headers, rows, "ll" + "r" * 5 + "lr") if rows else "no runs"
        return "\n".join([table, *(f"damaged: {error}" for error in self.damaged.values())])

    def summary(self) -> list[dict[str, Any]]:
        """The runs as JSON."""
        whole: list[dict[str, Any]] = [{"run": name, **run.summary()} for name, run in self.runs.items()]
        return whole + [{"run": name, "state": "damaged", "error": error} for name, error in self.damaged.items()]


def runs(directory: Path) -> Listing:
    """Lists the runs in a directory, at any depth. Directories that are not runs are ignored."""
    if not directory.is_dir():
        raise RunError(f"{directory}: no such directory")
    places = []
    for place, inner, files in os.walk(directory):
        if "config.toml" in files:
            inner.clear()  # there are no runs inside a run
            if WEIGHTS not in files:
                places.append(Path(place))
        inner[:] = [name for name in inner if not name.startswith(".")]
    read: dict[str, Status] = {}
    damaged: dict[str, str] = {}
    for path in tqdm(sorted(places), "reading runs", disable=None, delay=1, leave=False):
        name = str(path.relative_to(directory)) if path != directory else path.absolute().name
        try:
            read[name] = status(path)
        except IntlmError as error:
            damaged[name] = str(error)
        except OSError as error:
            damaged[name] = f"{error.filename or path}: cannot be read: {error.strerror}"
    return Listing(dict(sorted(read.items(), key=lambda item: item[1].age)), damaged)


@dataclass(frozen=True)
class Entry:
    """One column of a comparison."""

    label: str
    summary: dict[str, Any]
    settings: dict[str, Any]  # dotted key -> value; of results only the keys that their sweep set
    curve: Curve


@dataclass(frozen=True)
class Comparison:
    """A comparison of runs and results of sweeps."""

    entries: list[Entry]
    picture: Path

    @property
    def differing(self) -> dict[str, list[Any]]:
        """The keys in which the entries differ, with each one's value; None where its sweep did not set the key."""
        whole = [entry for entry in self.entries if "data.train" in entry.settings]
        differing = {}
        for key in dict.fromkeys(key for entry in self.entries for key in entry.settings):
            values = [entry.settings.get(key) for entry in self.entries]
            known = [value for value in values if value is not None or not whole]
            if any(value != known[0] for value in known[1:]):
                differing[key] = values
        return differing

    def text(self) -> str:
        """The comparison as a table, a column for each entry; a row for each where the columns do not fit a screen."""
        columns = [entry.summary for entry in self.entries]
        table = {name: [_cell(show, column.get(key)) for column in columns] for name, key, show in _ROWS}
        table = {name: cells for name, cells in table.items() if any(cells)}
        settings = {key: _shown(key, values) for key, values in self.differing.items()}
        labels = [entry.label for entry in self.entries]
        if len(labels) <= COLUMNS:
            return format_table(["", *labels], [(name, *cells) for name, cells in (table | settings).items()])
        changed = [
            " ".join(f"{key}={cells[number]}" for key, cells in settings.items() if cells[number] is not None)
            for number in range(len(labels))
        ]
        rows = zip(labels, *table.values(), changed, strict=True)
        return format_table(["", *table, "what differs"], rows, "l" + "r" * len(table) + "l")

    def summary(self) -> dict[str, Any]:
        """The comparison as one JSON object."""
        entries = [{"run": entry.label, **entry.summary} for entry in self.entries]
        return {"runs": entries, "differing": self.differing, "picture": str(self.picture)}


def compare(sources: Sequence[str], references: Sequence[str], out: Path) -> Comparison:
    """Read runs, draw their curves to the PNG `out`, and say how they differ.

    sources: each a run's directory, or results of a sweep, FILE.jsonl or FILE.jsonl:STUDY[/VARIANT[/TEXT]]; =LABEL
    after it names it. references: LABEL=BITS, levels to draw; without any, the ladder of the runs, if all have the
    same. Raises ConfigError, DataError or RunError.
    """
    levels = {}
    for reference in references:
        label, _, level = reference.rpartition("=")
        try:
            levels[label] = float(level)
            if not math.isfinite(levels[label]):
                raise ValueError
        except ValueError:
            raise ConfigError(f"--reference {reference[:60]}: expected LABEL=BITS, such as trigram=2.773") from None
    entries: list[Entry] = []
    ladders: list[dict[str, float] | None] = []
    for source in tqdm(sources, "reading runs", disable=None, delay=1, leave=False):
        name, _, label = source.rpartition("=") if "=" in source and not Path(source).exists() else (source, "", "")
        file, _, selected = name.partition(".jsonl:")
        if name.endswith(".jsonl") or selected:
            path = Path(name if name.endswith(".jsonl") else f"{file}.jsonl")
            entries += _of_results(path, selected.split("/") if selected else [], label)
            ladders.append(None)
            continue
        run = status(Path(name))
        short = Path(name).absolute().name
        label = label or (short if sum(Path(s).absolute().name == short for s in sources) == 1 else name)
        settings = flatten(run.config)
        entries.append(Entry(label, run.summary(), settings, run.curve(label)))
        ladder = Path(name) / LADDER
        ladders.append(read_ladder(ladder) if ladder.exists() else None)
    if not levels and ladders[0] and all(ladder == ladders[0] for ladder in ladders):
        levels = ladders[0]
    out.parent.mkdir(parents=True, exist_ok=True)
    pictures.comparison([entry.curve for entry in entries], levels, out)
    return Comparison(entries, out)


def _cell(show: Callable[[Any], str], value: Any) -> str | None:
    return None if value is None else show(value)


def _shown(key: str, values: Sequence[Any]) -> list[str | None]:
    """A key's values for a table: paths are cut to their names, where the names differ."""
    given = {value for value in values if value}
    if key in (known := keys()) and known[key].is_path and len({Path(path).name for path in given}) == len(given):
        values = [Path(value).name if value else value for value in values]
    return [None if value is None else shown(value) for value in values]


def _of_results(path: Path, selected: Sequence[str], label: str) -> list[Entry]:
    """The groups of a results file whose study, variant and text are those selected."""
    if not path.is_file():
        raise RunError(f"{path}: no such results file")
    entries = []
    for group in results.groups(results.read(path)):
        first = group[0]
        names = [first["study"], first["variant"], first["text"]]
        if names[: len(selected)] != list(selected):
            continue
        ends = [line["curve"][-1] for line in group]
        updates, tokens = ends[0][:2]
        seconds = sum(end[2] for end in ends) / len(ends)
        called = label or "/".join(names)
        summary = {
            "seeds": len(group),
            "parameters": first.get("parameters"),
            "best": sum(min(point[3] for point in line["curve"]) for line in group) / len(group),
            "last": sum(end[3] for end in ends) / len(ends),
            "updates": updates,
            "tokens_evaluated": tokens,
            "seconds": round(seconds, 3),
            "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
        }
        entries.append(Entry(called, summary, first["keys"], results.curve(group, called)))
    if not entries:
        raise RunError(f"{path}: no results of {'/'.join(selected)}" if selected else f"{path}: holds no results")
    return entries
