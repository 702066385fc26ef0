"""Plans a run's length: so many minutes (`--minutes`), or an early end (`--finish-now`).

- Both are decided once, before training goes on, and written into the run's config.toml as numbers: `train.updates` and
  `train.schedule`. From then on the run depends on its configuration alone, like any other.
- For `--minutes` the run's own updates, measurements, samples and checkpoints are timed on its own text and engine; the
  results are thrown away. The minutes begin when the text is prepared: compiling and this measurement are part of them.
- A plan is a leg of the schedule (intlm.schedule). A run of N minutes goes through all of its schedule, and reports as
  often as the configured run would. A run that is made longer by minutes goes back in its schedule to where a run of
  that length would be.
"""

import math
import shutil
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import NamedTuple

from intlm import schedule
from intlm.checkpoint import Checkpoints
from intlm.config import Config
from intlm.data.streams import ReadAhead
from intlm.errors import RunError
from intlm.hooks import PROGRESS_TOKENS, SAVING_SHARE, Measure
from intlm.schedule import Leg
from intlm.settings import INT32_MAX
from intlm.tracking.log import Log
from intlm.tracking.progress import waiting
from intlm.trainer import Trainer

SCRATCH = ".measuring"  # in the run's directory, while its speed is measured
LONGEST = 5  # seconds for which updates are timed, at most
FEWEST = 3  # updates that are timed, at least
REPORTING = 10  # measurements and samples take at most one part in so many
STRETCH = 10  # the last stretch of a run that is finished early: one part in so many of what is done


class Costs(NamedTuple):
    """Seconds of each thing that a run does."""

    update: float
    measurement: float
    sample: float
    last: float  # what the last measurement takes beyond the others, and the last checkpoint
    saving: float  # the share of the time that checkpoints take


class Plan(NamedTuple):
    """The length of a run, and how often it reports."""

    updates: int  # further ones
    evaluate_every: int
    sample_every: int


def for_minutes(trainer: Trainer, began: float, stopped: Callable[[], bool]) -> tuple[Config, str]:
    """The trainer's configuration, planned from its present update on for `train.minutes`, and what was decided.

    began: when the minutes began, by time.monotonic(). All processes call it; process 0 decides. Raises RunError where
    the minutes are too few, and KeyboardInterrupt when `stopped` says so at any process.
    """
    config, done = trainer.config, trainer.update
    train = config.train
    seconds = 60 * train.minutes
    costs = measure(trainer, seconds, stopped)
    left = seconds - (time.monotonic() - began)
    plan = Plan(*trainer.processes.told(make_plan(config, done, costs, left)))
    if plan.updates < 1:
        raise RunError(
            f"train.minutes = {train.minutes:g}: too short: compiling and measuring this machine took "
            f"{seconds - left:.1f} s of it, and an update takes {costs.update:.3g} s: expected more minutes"
        )
    last = done + plan.updates
    end = schedule.position(train.schedule, train.updates)
    legs = schedule.with_leg(train.schedule, Leg(done, last, done * end // last, end))
    train = replace(
        train, minutes=0.0, updates=last, evaluate_every=plan.evaluate_every, sample_every=plan.sample_every,
        schedule=legs,
    )  # fmt: skip
    what = f"{plan.updates:,} updates of {costs.update:.3g} s"
    what += f" more, from update {done:,} on" if done else f" in place of {config.train.updates:,}"
    often = [f"measured every {train.evaluate_every:,}"] if train.evaluate_every else []
    often += [f"a sample every {train.sample_every:,}"] if train.sample_every else []
    said = f"train.minutes = {config.train.minutes:g} on this machine: {', '.join([what, *often])}"
    return replace(config, train=train), said


def make_plan(config: Config, done: int, costs: Costs, seconds: float) -> Plan:
    """What fits into so many seconds after `done` updates. Too few seconds: no updates."""
    train, free = config.train, max(0.0, seconds - costs.last) * (1 - costs.saving)
    if done:  # it reports as often as before
        each = costs.update + costs.measurement / (train.evaluate_every or math.inf)
        each += costs.sample / (train.sample_every or math.inf)
        updates = (free - costs.measurement) / each
        return Plan(_whole(updates, INT32_MAX - done), train.evaluate_every, train.sample_every)
    measurements = math.ceil(train.updates / train.evaluate_every) if train.evaluate_every else 1
    samples = math.ceil(train.updates / train.sample_every) if train.sample_every else 0
    reporting = measurements * costs.measurement + samples * costs.sample
    share = min(1.0, free / REPORTING / reporting) if reporting else 1.0
    measurements, samples = max(1, int(measurements * share)), max(min(1, samples), int(samples * share))
    updates = _whole((free - measurements * costs.measurement - samples * costs.sample) / costs.update, INT32_MAX)
    return Plan(
        updates,
        train.evaluate_every and max(1, math.ceil(updates / measurements)),
        train.sample_every and max(1, math.ceil(updates / samples)),
    )


def _whole(updates: float, most: int) -> int:
    return min(max(0, int(updates)), most)


def measure(trainer: Trainer, seconds: float, stopped: Callable[[], bool]) -> Costs:
    """Time what a run does, at the trainer's present state, which stays. seconds: of the whole run.

    All processes call it; the times are process 0's. Raises KeyboardInterrupt when `stopped` says so at any process.
    """
    processes, place = trainer.processes, trainer.directory / SCRATCH
    quiet = replace(trainer.config, train=replace(trainer.config.train, updates=INT32_MAX, trackers=""))

    def agreed(wish: bool) -> bool:
        """Whether process 0 wishes it."""
        wish, stop, trainer.late = processes.any((wish and processes.writes, stopped(), trainer.late))
        if stop:
            raise KeyboardInterrupt
        return wish

    def timed(what: str, call: Callable[[], object], times: int = 2) -> float:
        """Seconds of a call: of the second one, because the first may compile."""
        with waiting(f"measuring this machine: {what}") if processes.writes else nullcontext():
            for number in range(times):
                began = time.monotonic()
                call()
                took = time.monotonic() - began
                processes.wait(f"measured {what} {number}")
                agreed(False)
        return took

    try:
        with trainer.undone(), closing(ReadAhead(trainer.streams, trainer.update, INT32_MAX)) as ahead:
            checkpoints = log = None
            if processes.writes:
                place.mkdir()
                checkpoints, log = Checkpoints(place / "checkpoints"), Log(place, quiet)

            def update(health: bool = False) -> None:
                line = trainer.advance(ahead.next(), ahead.waited, health)
                if log:
                    log.write(line)

            def report() -> None:
                update(health=True)
                Measure(quiet.train)(trainer, {})

            def save() -> None:
                trainer.saved = None
                trainer.save(checkpoints)

            with log or nullcontext():
                timed("updates", update, times=1)  # compiles
                measurement = timed("held-out text", report)
                sample = 0.0
                if quiet.train.sample_every:
                    sample = timed("a sample", lambda: trainer.sample() if processes.writes else None)
                began = time.monotonic()
                save()
                saving = time.monotonic() - began
                with waiting("measuring this machine: speed") if processes.writes else nullcontext():
                    began, count = time.monotonic(), 0
                    while agreed(count < FEWEST or time.monotonic() - began < min(LONGEST, seconds / 20)):
                        update()
                        count += 1
                each = (time.monotonic() - began) / count
                measurement = max(0.0, measurement - each)
    finally:
        if processes.writes:
            shutil.rmtree(place, ignore_errors=True)
    last = saving
    if trainer.valid:
        last += measurement * max(0.0, trainer.valid.tokens / PROGRESS_TOKENS - 1)
    if not quiet.train.checkpoint_seconds:
        return Costs(each + saving, measurement, sample, last, 0.0)
    between = max(quiet.train.checkpoint_seconds, SAVING_SHARE * saving)
    return Costs(each, measurement, sample, last, saving / (between + saving))


def finishing(config: Config, done: int) -> tuple[Config, str]:
    """The configuration of a run that goes through the rest of its schedule in a last stretch after `done` updates,
    and ends; and what was decided. A run that ends as soon in any case stays as it is."""
    train = config.train
    here, end = schedule.position(train.schedule, done), schedule.position(train.schedule, train.updates)
    whole = config.eggroll.optimizer.schedule_end() or end
    stretch = max(STRETCH, done // STRETCH)
    if train.updates - done <= stretch and (end >= whole or train.updates <= done):
        return config, ""
    stretch = min(stretch, train.updates - done)
    legs = schedule.with_leg(train.schedule, Leg(done, done + stretch, here, max(here, whole)))
    said = f"--finish-now after update {done:,}: the last {stretch:,} updates, in place of {train.updates - done:,}"
    return replace(config, train=replace(train, updates=done + stretch, schedule=legs)), said
