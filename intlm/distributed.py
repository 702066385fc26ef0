"""The processes of one run: they connect, wait for each other, and end when one of them is lost.

Each process computes a part of every update (intlm.population.sharding). Process 0 alone writes checkpoints, metrics
and output; all read the run's directory and the prepared text, on a file system that they share.

On CPUs a collective operation fails when a process waits for the others longer than half a minute. So processes that
may be late call `wait` first, which has no time limit, and ends when a process is lost.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax._src import clusters  # finds the address of process 0 under SLURM and others

from intlm import door
from intlm.config import shown
from intlm.errors import INTERNAL, ConfigError, IntlmError, LostProcess, MissingPackage, RunError

HEARTBEAT = 20  # seconds without a sign of life after which a process counts as lost
_PORT = 55127  # the port of process 0 where none is given
_PARENT = "INTLM_PARENT"  # set in a worker process: the id of the process that started it
_INTERRUPTED = 130
_ENDS = (0, IntlmError.exit_code, MissingPackage.exit_code, _INTERRUPTED)  # exit codes of a run that was not lost
_PATIENCE = 5  # failures in a row without a new checkpoint after which nothing is started again


class Place(NamedTuple):
    """A process's number among those of its run, and their meeting point; None: JAX asks SLURM or Open MPI."""

    coordinator: str | None = None  # HOST:PORT of process 0
    processes: int | None = None
    process: int | None = None


def place(given: Place, environment: Mapping[str, str]) -> Place | None:
    """Returns this process's place from its flags and its environment; None where it is alone.

    SLURM: a step of several tasks. Kubernetes: a pod of an indexed Job (or of a JobSet's), given the number of
    processes. Raises ConfigError where something is missing or impossible.
    """
    coordinator, processes, process = given
    if given == Place():
        return given if (_number(environment, "SLURM_STEP_NUM_TASKS") or 1) > 1 else None
    index = _number(environment, "JOB_COMPLETION_INDEX")
    if processes is not None and index is not None:
        process = index if process is None else process
        coordinator = coordinator or f"{_first_pod(socket.getfqdn(), str(index))}:{_PORT}"
    for flag, value in (("coordinator", coordinator), ("processes", processes), ("process", process)):
        if value is None:
            raise ConfigError(f"--{flag}: missing: expected --coordinator HOST:PORT --processes N --process I")
    assert coordinator is not None and processes is not None and process is not None
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port[:6]) < 1 << 16:
        raise ConfigError(f"--coordinator = {coordinator}: expected HOST:PORT of process 0")
    if not 0 <= process < processes:
        raise ConfigError(f"--process = {process}: expected 0 to {processes - 1}, one less than --processes")
    return Place(coordinator, processes, process)


def _number(environment: Mapping[str, str], name: str) -> int | None:
    """The number in a variable of the environment; None where it is not set, or empty."""
    text = environment.get(name, "").strip()
    if text and not (text.isdecimal() and len(text) < 10):
        raise ConfigError(f"the environment: {name} = {shown(text)}: expected a number, or that it is not set")
    return int(text) if text else None


def _first_pod(name: str, index: str) -> str:
    """The host name of an indexed Job's first pod from that of the pod `index`: JOB-INDEX.SUBDOMAIN..."""
    own, dot, domain = name.partition(".")
    return own.removesuffix(f"-{index}") + "-0" + dot + domain


def join(place: Place, directory: Path) -> None:
    """Connect to the other processes of the run in a directory. Must come before any other use of JAX.

    Raises RunError where the others do not connect within five minutes.
    """
    jax.config.update("jax_enable_preemption_service", False)  # intlm handles SIGTERM itself: it saves
    try:
        given = place._replace(coordinator=place.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS"))
        coordinator, processes, process, devices = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            *given, None, None, 300
        )
        if coordinator is None:
            raise ValueError("the address of process 0 is not given")
        if process == 0:
            coordinator = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", coordinator)
        host, _, port = coordinator.rpartition(":")
        enter = door.opened if process == 0 else door.entered
        with enter((host.strip("[]"), int(port)), door.token(directory)) as coordinator:
            jax.distributed.initialize(
                coordinator, processes, process, devices, initialization_timeout=300,
                heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=10, coordinator_bind_address=coordinator,
            )  # fmt: skip
    except (RuntimeError, ValueError, OSError, LookupError) as error:  # JAX raises some for environment variables
        reason = str(error).strip().split("\n")[0]
        missing = f"{reason} is not set" if isinstance(error, KeyError) else reason
        where = f"--coordinator = {place.coordinator}" if place.coordinator else "the environment"
        failed = RunError(f"{where}: the run's processes could not connect: {missing}")
        if not isinstance(error, ValueError | LookupError):  # some may be lost: --supervise tries again
            failed.exit_code = LostProcess.exit_code
        raise failed from None


class Processes:
    """The processes of this run: whether this one writes, and barriers. A single process never waits."""

    def __init__(self) -> None:
        self.alone = jax.process_count() == 1
        self.writes = jax.process_index() == 0

    def wait(self, what: str) -> None:
        """Wait until every process has called this. what: a name that no other call uses."""
        if self.alone:
            return
        from jax._src.distributed import global_state  # jax.distributed has no barrier of its own

        try:
            assert global_state.client
            global_state.client.wait_at_barrier(what, timeout_in_ms=1 << 30)
        except jax.errors.JaxRuntimeError as error:
            raise LostProcess(str(error)) from None

    def same(self, what: str, text: str) -> None:
        """Wait for the others and compare `text`: RunError where a process has a different one."""
        if self.alone:
            return
        self.wait(what)
        digests = self._all(np.frombuffer(sha256(text.encode()).digest(), np.uint8))
        others = [number for number, digest in enumerate(digests) if (digest != digests[0]).any()]
        if others:
            raise RunError(f"{what}: not the same in process {others[0]} of this run as in process 0")

    def any(self, wishes: Sequence[bool]) -> list[bool]:
        """For each wish, whether any process has it."""
        if self.alone:
            return list(wishes)
        return [bool(wish) for wish in self._all(np.array(wishes, np.uint8)).max(axis=0)]

    def told(self, numbers: Sequence[int]) -> list[int]:
        """Process 0's numbers, each an int32, on every process."""
        return list(numbers) if self.alone else self._all(np.array(numbers, np.int32))[0].tolist()

    @staticmethod
    def _all(own: np.ndarray) -> np.ndarray:
        """Gathers an array of every process: [processes] + its shape."""
        from jax.experimental.multihost_utils import process_allgather

        return np.asarray(process_allgather(own))


@contextmanager
def losses_named() -> Iterator[None]:
    """Turns the exceptions of JAX when a process is lost into a LostProcess."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        # Not all exceptions of a collective operation on CPUs (by Gloo) are of JAX's own class.
        of_a_loss = isinstance(error, jax.errors.JaxRuntimeError) or "gloo" in str(error).lower()
        if jax.process_count() == 1 or not of_a_loss:
            raise
        raise LostProcess(str(error)) from None


def start_worker(arguments: Sequence[str], **options: Any) -> "subprocess.Popen[bytes]":
    """Run `intlm` with these arguments in a process that ends with this one. options: of subprocess.Popen."""
    command = [sys.executable, "-P", str(Path(__file__).with_name("__main__.py").absolute()), *arguments]
    return subprocess.Popen(command, env={**os.environ, _PARENT: str(os.getpid())}, **options)


def is_worker() -> bool:
    """Whether another process started this one to do the work."""
    return _PARENT in os.environ


def end_with_parent() -> None:
    """Make this worker stop, as by SIGTERM, once the process that started it has ended, or if it has ended already."""
    parent = int(os.environ[_PARENT])

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def leave(code: int) -> None:
    """End a process at once where others may be gone: JAX would wait for them."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def supervise(arguments: Sequence[str], directory: Path, restart: bool) -> int:
    """Run `intlm train` with these arguments in a process of its own. Returns its exit code.

    restart: start it again, to resume, whenever it is lost, until it is lost _PATIENCE times in a row without a new
    checkpoint.
    """
    failures, reached, begun = 0, _last_checkpoint(directory), _begun(directory)
    while True:
        child = start_worker(arguments)
        with _passed_on(child) as asked:
            code = child.wait()
        if code in _ENDS or (code == INTERNAL and not restart):
            return code
        if asked:
            return _INTERRUPTED
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if not restart:
            if code != LostProcess.exit_code:  # it has printed a message itself
                what = f"this process of the run was lost ({how}) or could not reach the others; resume with --resume"
                print(f"intlm: {what}", file=sys.stderr)
            return LostProcess.exit_code
        now = _last_checkpoint(directory)
        failures, reached = (failures + 1 if now == reached else 1), now
        if failures == _PATIENCE:
            print(f"intlm: lost {failures} times without a new checkpoint ({how}): not started again", file=sys.stderr)
            return LostProcess.exit_code
        print(
            f"intlm: the run was lost ({how}); starting it again from its last checkpoint", file=sys.stderr, flush=True
        )
        time.sleep(failures)
        if _begun(directory) != begun:  # it was planned too
            arguments = _resuming(arguments)


def _begun(directory: Path) -> int | None:
    """When the run in a directory was begun or resumed last; None: never."""
    path = directory / "config.toml"
    return path.stat().st_mtime_ns if path.exists() else None


def _last_checkpoint(directory: Path) -> int | None:
    """The update of a run's last checkpoint."""
    path = directory / "checkpoints"
    names = os.listdir(path) if path.is_dir() else []
    return max((int(name) for name in names if name.isdecimal()), default=None)


def _resuming(arguments: Sequence[str]) -> list[str]:
    """The arguments that resume the run that these arguments started, as it was planned."""
    kept: list[str] = []
    once = ("--from", "--minutes", "--train.minutes")
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if argument.partition("=")[0] not in (*once, "--resume", "--finish-now") and before not in once:
            kept.append(argument)
    return [*kept, "--resume"]


@contextmanager
def handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle the signals that ask a command to stop: Ctrl-C, SIGTERM, and SIGHUP unless it is ignored."""
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        numbers.remove(signal.SIGHUP)
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def _passed_on(child: "subprocess.Popen[bytes]") -> Iterator[list[int]]:
    """Passes signals on to the child, except Ctrl-C, which it gets anyway. Gives the list of signals received."""
    asked: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if number != signal.SIGINT:
            child.send_signal(number)

    with handling(hand_on):
        yield asked
