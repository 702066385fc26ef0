"""Pretraining: one update after another, each a pure function of the state before it and of its number.

The output on the way (metrics, samples, checkpoints) depends on time only in its timings, so a run that is stopped
anywhere and resumed ends with the same weights and the same metrics as one that was never stopped.
"""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import jax

from intlm import config as configuration
from intlm import distributed
from intlm.checkpoint import Checkpoints, check_path
from intlm.config import Config, flatten
from intlm.data.prepare import corpora, prepare
from intlm.data.shards import Corpus
from intlm.data.streams import ReadAhead
from intlm.errors import RunError
from intlm.hooks import Hook, Measure, Sample, Save, Tell
from intlm.lock import exclusive
from intlm.run import open_corpus, open_run, write_whole
from intlm.settings import names_in
from intlm.tracking.log import Log
from intlm.tracking.progress import Progress
from intlm.tracking.trackers import check_installed
from intlm.trainer import Trainer

# The keys that each process of a run may set for itself.
TEXTS = {"data.train", "data.valid", "data.tokenizer_file", "data.mixture"}  # paths: compared by their contents
OF_A_MACHINE = {"engine", "threads", "eggroll.chunk_size", "data.prepared", "data.processes"}
# The keys that a resumed run may change: how long to train and what to report, but nothing that changes a bit.
FREE_ON_RESUME = OF_A_MACHINE | {
    "train.updates", "train.evaluate_every", "train.sample_every", "train.checkpoint_seconds", "train.trackers",
}  # fmt: skip


def prepare_corpus(config: Config) -> Corpus:
    """Returns the corpus of a configuration, and prepares it where needed, without the corpora of its mixture."""
    return prepare(config.data)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C (or SIGTERM) into a request to stop; a second one stops at once.

    The end of the terminal (SIGHUP) is a request too, however often it comes, unless `nohup` has it ignored.
    """
    requested: list[int] = []
    terminals = [file for file in (1, 2) if os.isatty(file)]

    def request(number: int, frame: FrameType | None) -> None:
        if requested and number != signal.SIGHUP:
            raise KeyboardInterrupt
        requested.append(number)
        for file in terminals:
            if not os.isatty(file):  # the terminal is gone: further output must not fail
                os.dup2(os.open(os.devnull, os.O_WRONLY), file)

    with distributed.handling(request):
        yield lambda: bool(requested)


def check_directory(config: Config, directory: Path, resume: bool) -> None:
    """Check that a run can start in a directory, or that the one in it can be resumed with this configuration.

    Raises RunError, before anything is written, where the directory holds something else or another run.
    """
    check_path(directory)
    saved = directory / "config.toml"
    if not resume:
        if directory.exists() and any(not _begun(path) for path in directory.iterdir()):
            what = "holds a run already: add --resume to go on with it, or" if saved.exists() else "is not empty:"
            raise RunError(f"{directory}: {what} choose another --run-dir")
    elif not saved.exists():
        raise RunError(f"{directory}: nothing to resume: expected a run with config.toml in it")
    else:
        old, new = kept(configuration.load(saved)), kept(config)
        for key in old | new:
            was, now = old.get(key), new.get(key)
            if was != now and key not in FREE_ON_RESUME:
                raise RunError(
                    f"{directory}: {key} = {now!r}, but the run was started with {was!r}: it would not be the same "
                    "run any more; resume with the value it had, or start another in a new --run-dir"
                )


def _begun(path: Path) -> bool:
    """Whether a file is left from a run that was killed while its directory was being made: a hidden file, or a copy of
    the weights that it begins with (`start`), a checkpoint of update 0 that may be incomplete."""
    weights = path.name == "checkpoints" and path.is_dir() and not path.with_name("config.toml").exists()
    return path.name.startswith(".") or (weights and all(inner.name.split(".")[0] == "0" for inner in path.iterdir()))


def kept(config: Config) -> dict[str, Any]:
    """The settings that a resumed run must keep, by key. Texts are compared by content; only shares are here."""
    found = {key: value for key, value in flatten(config).items() if key not in TEXTS}
    return found | {"data.mixture": [share for share, _ in config.data.others]}


def train(config: Config, directory: Path, resume: bool = False, start: Path | None = None) -> bool:
    """Run a configuration in a directory. Returns whether it reached its end (False: stopped by Ctrl-C).

    start: a run, or an export, whose weights a new run begins with. Raises ConfigError, DataError or RunError for
    mistakes that the user can correct.
    """
    with distributed.losses_named():
        return _train(config, directory, resume, start)


def _train(config: Config, directory: Path, resume: bool, start: Path | None) -> bool:
    processes = distributed.Processes()
    writes = processes.writes
    check_directory(config, directory, resume)
    if writes:
        check_installed(names_in(config.train.trackers))
    shared = {key: value for key, value in flatten(config).items() if key not in OF_A_MACHINE}
    processes.same("configuration", json.dumps(shared))
    if writes:
        corpora(config.data)
    processes.wait("prepared")
    corpus = prepare_corpus(config)
    devices = jax.devices() if jax.device_count() > 1 else None
    trainer = Trainer(config, directory, corpus, devices)  # before anything is written: it may refuse the configuration
    processes.same("text", trainer.identity)
    if start:
        trainer.start_from(start)
    if writes:
        for _, some in trainer.mixture:
            some.verify()
        directory.mkdir(parents=True, exist_ok=True)
    with exclusive(directory) if writes else nullcontext(), interruptible() as stopped:
        if writes:
            check_directory(config, directory, resume)  # another process may have trained here meanwhile
        tokenizer = directory / "tokenizer.json"
        if resume and tokenizer.exists():
            open_corpus(config, open_run(directory)[1])
        if resume:
            trainer.resume()
        processes.same("state", trainer.digest())
        if writes and not resume and (directory / "checkpoints").exists():
            shutil.rmtree(directory / "checkpoints")  # left from a run that was killed early (_begun)
        if start:  # before the directory is a run: a resumed run needs its starting weights
            trainer.save(Checkpoints(directory / "checkpoints") if writes else None)
        if writes:
            # First: it makes the directory a run.
            write_whole(directory / "config.toml", configuration.dumps(config, directory))
            write_whole(tokenizer, json.dumps(corpus.tokenizer.to_json()))
        processes.wait("begun")
        if writes:
            trainer.references()
        processes.wait("ladder")
        done = run(trainer, stopped)
        if done and writes:
            print(trainer.summary())
        processes.wait("ended")  # JAX gives a process little time to end after another
        return done


def run(trainer: Trainer, stopped: Callable[[], bool]) -> bool:
    """Train to the configured update. Returns whether it was reached; either way the state is saved.

    stopped: whether the user has asked this process to stop.
    """
    settings, processes, directory = trainer.config.train, trainer.processes, trainer.directory
    with ExitStack() as stack:
        progress = log = checkpoints = None
        if processes.writes:
            checkpoints = Checkpoints(directory / "checkpoints")
            progress = stack.enter_context(Progress(settings.updates, trainer.update))
            log = stack.enter_context(Log(directory, trainer.config))
        ahead = stack.enter_context(closing(ReadAhead(trainer.streams, trainer.update, settings.updates)))
        measure = Measure(settings)
        shown: list[Hook] = [measure, Sample(settings, progress)]  # the other processes wait for these
        told: list[Hook] = [Tell(log, progress)] if log and progress else []
        save = Save(settings, checkpoints, log)

        def wants_to_stop() -> bool:
            return stopped() or bool(progress and progress.unread)

        stop = processes.alone and wants_to_stop()
        while trainer.update < settings.updates and not stop:
            batch = ahead.next()
            due = [hook for hook in shown if hook.due(trainer.update + 1)]
            line = trainer.advance(batch, ahead.waited, health=measure in due)
            for hook in (*due, *told):
                hook(trainer, line)
            if due:
                processes.wait(f"shown {trainer.update}")
            # If any process wishes it, all processes do it.
            stop, wished, trainer.late = processes.any((wants_to_stop(), save.wished(), trainer.late))
            if wished:
                save(trainer)
        save(trainer)
    return trainer.update >= settings.updates
