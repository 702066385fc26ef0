"""Sweeps: every variant of a base configuration with every seed, one line of results for each run.

A sweep is a TOML file:

    base = "../../configs/quickstart.toml"     # a configuration; the path is relative to this file
    seeds = [0, 1, 2]                          # without it, the base's own
    keys = { "train.updates" = 400 }           # set for every run

    [variants.adam]                            # a variant: keys set anew, by name
    "eggroll.optimizer" = "adam"

    [grid]                                     # every variant with every combination of these
    "eggroll.sgd.step" = [128, 256]
    "model.hidden_size" = { from = 32, to = 128, times = 2 }   # 32, 64, 128; or step = 32

Everything is checked, and the text prepared, before the first run starts. Each run is a separate `intlm train` process
with its own directory. Runs in the results are not repeated; stopped runs resume from their checkpoint.
"""

import dataclasses
import difflib
import itertools
import os
import re
import subprocess
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from intlm import config as configuration
from intlm import pictures, plugins
from intlm.config import RENAMED, Config, DataConfig, flatten, shown
from intlm.data.prepare import corpora
from intlm.distributed import start_worker
from intlm.errors import ConfigError, IntlmError, RunError
from intlm.lock import alive
from intlm.model.parameters import specifications
from intlm.run import architecture_of, open_run
from intlm.schema import read_toml
from intlm.settings import names_in
from intlm.tracking import metrics, results
from intlm.tracking.progress import Progress
from intlm.tracking.trackers import check_installed
from intlm.training import FREE_ON_RESUME, check_directory, interruptible

PARTS = ("base", "seeds", "keys", "variants", "grid", "plugins")
POLL_SECONDS = 0.2
# Keys that do not affect the identity of a run's result.
UNCOUNTED = FREE_ON_RESUME - {"train.updates", "train.evaluate_every"} | {"seed", "data.train"}


@dataclasses.dataclass(frozen=True)
class Study:
    """A sweep's file, checked as far as it can be without its configurations."""

    path: Path
    base: Path
    seeds: list[int] | None
    variants: dict[str, dict[str, Any]]  # name -> dotted key -> value, one for every combination with the grid


@dataclasses.dataclass(frozen=True)
class Planned:
    """A run of a sweep."""

    identity: dict[str, Any]  # the fields of its line of results that identify it
    config: Config
    directory: Path
    command: list[str]  # the arguments of `intlm`

    @property
    def title(self) -> str:
        """The name of the run."""
        return f"{self.identity['variant']}, seed {self.identity['seed']}"

    def finished(self) -> bool:
        """Whether its last update is done and no process trains it any more."""
        log = self.directory / "metrics.jsonl"
        return not alive(self.directory) and _updates(log) == self.config.train.updates

    def result(self) -> dict[str, Any]:
        """The run's line of results, once it is finished."""
        lines = [line for line in metrics.read(self.directory / "metrics.jsonl") if "valid_bits_per_byte" in line]
        columns = ("update", "tokens_evaluated", "seconds", "valid_bits_per_byte")
        if not lines:
            raise RunError(f"{self.directory / 'metrics.jsonl'}: damaged: no line has valid_bits_per_byte")
        curve = [[*(line[name] for name in columns[:3]), round(line[columns[3]], 4)] for line in lines]
        architecture = architecture_of(self.config, open_run(self.directory)[1].vocab_size)
        parameters = sum(int(np.prod(s.shape)) for s in specifications(architecture))
        read = [line["tokens_read"] for line in lines]
        return {**self.identity, "bits_per_byte": curve[-1][3], "curve": curve, "parameters": parameters, "read": read}


def load_study(path: Path) -> Study:
    """Read a sweep's file. Raises ConfigError that names what is wrong in it."""
    tables = read_toml(path)
    for name in tables:
        if name not in PARTS:
            near = difflib.get_close_matches(name, PARTS, 1)
            hint = f"; did you mean {near[0]}?" if near else f": a sweep has {', '.join(PARTS)}"
            raise ConfigError(f"{path}: {name}: unknown" + hint)
    base = tables.get("base")
    if not isinstance(base, str) or "\0" in base:
        raise ConfigError(f"{path}: base: expected the path of a configuration")
    for named in (path, path.parent / base):
        for plugin in plugins.named_by(named):
            plugins.load(plugin)
    seeds = _values(path, "seeds", tables["seeds"]) if "seeds" in tables else None
    if seeds is not None and any(type(seed) is not int for seed in seeds):
        raise ConfigError(f"{path}: seeds = {shown(seeds)}: expected integers")
    shared, variants = _table(path, "keys", tables), _table(path, "variants", tables)
    grid = _flat(path, "grid", _table(path, "grid", tables))
    lists = {key: _values(path, f"grid: {key}", entry) for key, entry in grid.items()}
    combinations = [dict(zip(lists, chosen, strict=True)) for chosen in itertools.product(*lists.values())]
    by_name: dict[str, dict[str, Any]] = {}
    for variant in variants or [""]:
        own = _flat(path, f"variants.{variant}", _table(path, variant, variants, "variants."))
        for combination in combinations:
            parts = [variant, *(_part(key, chosen) for key, chosen in combination.items())]
            name = "+".join(filter(None, parts)) or "base"
            if "/" in name or "\0" in name:
                raise ConfigError(f"{path}: variants.{shown(name)}: expected a name without a slash, or NUL")
            if name in by_name:
                raise ConfigError(f"{path}: two variants would be called {name}")
            by_name[name] = _flat(path, "keys", shared) | own | combination
    return Study(path, path.parent / base, seeds, by_name)


def _table(path: Path, name: str, tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    value = tables.get(name, {})
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {prefix}{name} = {shown(value)}: expected a table")
    return value


def _flat(path: Path, where: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a table by dotted keys, quoted or nested in the file. Raises ConfigError for an unknown key."""
    flat = configuration.dotted(table, f"{path}: {where}")
    known = configuration.keys()
    for name in flat:
        if name not in known and name not in RENAMED:
            raise ConfigError(f"{path}: {where}: {name}: unknown key{configuration.nearest(name)}")
        if name == "seed":
            raise ConfigError(f"{path}: {where}: seed: expected in seeds = [...]")
    return flat


def _values(path: Path, where: str, entry: Any) -> list[Any]:
    """Returns a list unchanged, and the values of a range."""
    if isinstance(entry, list) and entry:
        return entry
    if isinstance(entry, dict) and {"from", "to"} < set(entry) and all(type(n) is int for n in entry.values()):
        first, last = entry["from"], entry["to"]
        if set(entry) == {"from", "to", "step"} and entry["step"] > 0 and first <= last:
            return list(range(first, last + 1, entry["step"]))
        if set(entry) == {"from", "to", "times"} and entry["times"] > 1 and 0 < first <= last:
            powers = itertools.accumulate(itertools.repeat(entry["times"]), int.__mul__, initial=first)
            return list(itertools.takewhile(lambda number: number <= last, powers))
    expected = "a list, { from = A, to = B, step = S } or { from = A, to = B, times = F }"
    raise ConfigError(f"{path}: {where} = {shown(entry)}: expected {expected}")


def _part(key: str, chosen: Any) -> str:
    """The part of a variant's name for one key's value."""
    known = configuration.keys()
    text = Path(str(chosen)).stem if key in known and known[key].is_path else str(chosen)
    return f"{key.rpartition('.')[2]}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', text)}"


def plan(study: Study, overrides: Mapping[str, str], runs: Path, jobs: int) -> list[Planned]:
    """Returns a sweep's runs, seed by seed, with checked configurations. Raises ConfigError for the first wrong one."""
    if "seed" in overrides:
        raise ConfigError("command line: seed: a sweep has seeds of its own; --seeds N takes the first N")
    planned = []
    base = flatten(configuration.load(study.base))
    own = base["seed"] if study.seeds is None else 0
    for seed in study.seeds or [own]:
        for variant, keys in study.variants.items():
            try:
                layer = {"train.minutes": 0, **keys, "seed": seed}  # the base's minutes do not count: its updates do
                config = configuration.load(study.base, overrides, [(study.path, layer)])
                if config.train.minutes:
                    what = f"train.minutes = {config.train.minutes:g}"
                    raise ConfigError(f"{study.path}: {what}: runs of a sweep are compared: expected train.updates")
                check_installed(names_in(config.train.trackers))
                data = config.data
                if not (data.valid or data.valid_split or data.valid_bytes):
                    raise ConfigError(f"{study.path}: no text is held out: set data.valid or data.valid_bytes")
            except ConfigError as error:
                raise ConfigError(f"{error} (variant {variant})") from None
            if jobs > 1:
                threads = max(1, (config.threads or os.cpu_count() or 1) // jobs)
                config = dataclasses.replace(config, threads=threads)
            flat, always = flatten(config), {"seed", "threads", *overrides}
            counted = {key: flat.get(key, given) for key, given in overrides.items() if key not in UNCOUNTED}
            text = Path(data.train)
            identity = {"study": study.path.stem, "variant": variant, "seed": seed, "keys": keys | counted}
            identity |= {"text": text.name, "numerics": config.eggroll.estimator.training_version}
            directory = runs / f"{variant}-{text.stem}-{seed}"
            flags = [f"--{key}={setting}" for key, setting in flat.items() if key in always or base.get(key) != setting]
            command = ["train", str(study.base), "--run-dir", str(directory), *plugins.flags(), *flags]
            planned.append(Planned(identity, config, directory, command))
    return planned


@dataclasses.dataclass
class Sweep:
    """A sweep, from its plan to its table."""

    planned: list[Planned]
    jobs: int
    out: Path
    picture: Path
    failures: list[str] = dataclasses.field(default_factory=list)
    stopped: bool = False

    def __post_init__(self) -> None:
        self.running: dict[int, tuple[Planned, subprocess.Popen[bytes] | None]] = {}
        known = results.read(self.out)
        self.done = [run for run in self.planned if self._known(run, known)]

    @staticmethod
    def _known(run: Planned, known: list[dict[str, Any]]) -> bool:
        return any(all(line.get(key) == entry for key, entry in run.identity.items()) for line in known)

    def check(self) -> None:
        """Check every run that is not done, as `intlm train` does, and prepare its text."""
        vocabularies: dict[DataConfig, int] = {}
        at: dict[str, DataConfig] = {}
        for run in self.planned:
            if run in self.done:
                continue
            if at.setdefault(run.config.data.prepared, run.config.data) != run.config.data:
                where = shown(run.config.data.prepared)
                raise ConfigError(
                    f"data.prepared = {where}: two variants would prepare different text there: leave it empty"
                )
            try:
                check_directory(run.config, run.directory, resume=(run.directory / "config.toml").exists())
                if run.config.data not in vocabularies:
                    vocabularies[run.config.data] = corpora(run.config.data)[0][1].tokenizer.vocab_size
                configuration.check_limits(run.config, vocabularies[run.config.data])
            except ConfigError as error:
                raise ConfigError(f"{error} (variant {run.identity['variant']})") from None

    def run(self) -> None:
        """Run the runs that are not done. At a signal, the running ones save and stop first."""
        waiting = deque(run for run in self.planned if run not in self.done)
        total = sum(run.config.train.updates for run in self.planned)
        updates = {id(run): self._progress(run) for run in self.planned}
        with interruptible() as stopped, Progress(total, sum(updates.values())) as progress:
            try:
                while (waiting or self.running) and not (stopped() or progress.unread):
                    while waiting and len(self.running) < self.jobs:
                        run = waiting.popleft()
                        self.running[id(run)] = run, self._start(run)
                    time.sleep(POLL_SECONDS)
                    updates |= {key: self._progress(run) for key, (run, _) in self.running.items()}
                    for run, process in list(self.running.values()):
                        code = process.poll() if process else (None if alive(run.directory) else 0)
                        if code is not None:
                            del self.running[id(run)]
                            if process or run.finished():
                                progress.write(self._end(run, code))
                            else:
                                waiting.appendleft(run)
                    progress.update(sum(updates.values()), note=self._note())
            finally:
                self.stopped = bool(waiting or self.running)
                self._stop()

    def _start(self, run: Planned) -> subprocess.Popen[bytes] | None:
        """Start or resume a run; None where it is finished or another process trains it: then only wait."""
        if alive(run.directory) or run.finished():
            return None
        run.directory.parent.mkdir(parents=True, exist_ok=True)
        resume = ["--resume"] if (run.directory / "config.toml").exists() else []
        with self._log(run).open("ab") as log:
            # In a session of its own: a Ctrl-C goes to the sweep, which passes it on.
            return start_worker([*run.command, *resume], stdout=log, stderr=log, start_new_session=True)

    def _end(self, run: Planned, code: int) -> str:
        """Record that a run ended. Returns the message about it."""
        if code or not run.finished():
            log = self._log(run)
            last = log.read_text("utf-8", "replace").strip().split("\n")[-1]
            self.failures.append(f"{run.title}: exit code {code}: {last[:300]} ({log})")
            return f"{run.title}: failed"
        try:
            line = run.result()
        except IntlmError as error:
            self.failures.append(f"{run.title}: {error}")
            return f"{run.title}: failed"
        if not self._known(run, results.read(self.out)):
            results.append(self.out, line)
        self.done.append(run)
        _, _, seconds, bits = line["curve"][-1]
        return f"{run.title}: {bits:.3f} bits per byte after {seconds:.0f} s of training"

    def _stop(self) -> None:
        """Let the running runs save and end; a second signal ends them at once."""
        processes = [process for _, process in self.running.values() if process]
        for process in processes:
            process.terminate()  # training handles it like a Ctrl-C
        try:
            for process in processes:
                process.wait()
        except KeyboardInterrupt:
            for process in processes:
                process.kill()
            raise
        for run, _ in self.running.values():
            if run.finished():  # it finished before the signal
                self._end(run, 0)
        self.running.clear()

    @staticmethod
    def _log(run: Planned) -> Path:
        return run.directory.with_name(f"{run.directory.name}.log")

    def _progress(self, run: Planned) -> int:
        """The number of updates that a run has done."""
        done = run in self.done
        return run.config.train.updates if done else _updates(run.directory / "metrics.jsonl")

    def _note(self) -> str:
        failed = f", {len(self.failures)} failed" if self.failures else ""
        now = "; ".join(run.title for run, _ in self.running.values())
        return f"{len(self.done)}/{len(self.planned)} runs{failed}" + (f", now {now}" if now else "")

    def text(self) -> str:
        """The table of finished runs, and the failures; also draws the curves."""
        known = results.read(self.out)
        lines = [line for run in self.planned for line in known if self._known(run, [line])]
        report = [f"{len(self.done)} of {len(self.planned)} runs are done"]
        if lines:
            groups = results.groups(lines)
            several = len({group[0]["text"] for group in groups}) > 1
            curves = [
                results.curve(group, " ".join([group[0]["variant"], *([group[0]["text"]] if several else [])]))
                for group in groups
            ]
            self.picture.parent.mkdir(parents=True, exist_ok=True)
            pictures.comparison(curves, {}, self.picture)
            report = [results.summary(lines), "", report[0], f"results: {self.out}", f"curves: {self.picture}"]
        return "\n".join([*report, *(f"failed: {failure}" for failure in self.failures)])


def sweep(
    path: Path,
    overrides: Mapping[str, str],
    *,
    jobs: int = 1,
    only: list[str] | None = None,
    seeds: int | None = None,
    runs: Path | None = None,
    out: Path | None = None,
    drawn: Path | None = None,
) -> Sweep:
    """Run or continue the sweep of a file. Returns the sweep, which may be `stopped`, have `failures`, or be complete.

    overrides: dotted key -> text, for every run. jobs: how many run at once, the threads divided among them. only:
    variants to run. seeds: how many. runs, out, drawn: the runs' directory (default: runs/ and the file's name), the
    results (results.jsonl in it) and the picture (curves.png). Raises ConfigError, DataError or RunError before
    anything is run.
    """
    study = load_study(path)
    for name in only or []:
        if name not in study.variants:
            near = difflib.get_close_matches(name, study.variants, 1)
            raise ConfigError(f"{path}: no variant {name}" + (f"; did you mean {near[0]}?" if near else ""))
    runs = runs or Path("runs") / path.stem
    planned = plan(study, overrides, runs, jobs)
    if only:
        planned = [run for run in planned if run.identity["variant"] in only]
    if seeds is not None:
        first = list(dict.fromkeys(run.identity["seed"] for run in planned))[:seeds]
        planned = [run for run in planned if run.identity["seed"] in first]
    made = Sweep(planned, jobs, out or runs / "results.jsonl", drawn or runs / "curves.png")
    made.check()
    made.run()
    return made


def _updates(log: Path) -> int:
    """The update of a metrics file's last whole line, 0 where there is none. Reads its end only."""
    if not log.exists():
        return 0
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - (1 << 16)))
        lines = file.read().split(b"\n")[:-1]
    match = re.match(rb'\{"update": (\d{1,18}),', lines[-1]) if lines else None
    return int(match[1]) if match else 0
