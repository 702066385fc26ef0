"""`intlm` in processes of their own: with several devices, or several processes of one run."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import tiny


def on_devices(count: int, *arguments: object, environment: Mapping[str, str] | None = None) -> "subprocess.Popen[str]":
    """`intlm` in a process with so many devices."""
    flags = [f"--xla_force_host_platform_device_count={count}", os.environ.get("XLA_FLAGS", "")]
    given = {**os.environ, **(environment or {}), "XLA_FLAGS": " ".join(flags)}
    command = [sys.executable, "-P", "-m", "intlm.cli", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=given, cwd=tiny.HOME, stdout=pipe, stderr=pipe, encoding="utf-8")


def together(
    count: int, *arguments: object, devices: int = 1, each: Sequence[Sequence[object]] = ()
) -> "list[subprocess.Popen[str]]":
    """Runs `intlm` as several processes of one run. each: further arguments of each process."""
    place = ("--coordinator", f"127.0.0.1:{free_port()}", "--processes", count, "--process")
    return [
        on_devices(devices, *arguments, *(each[process] if each else ()), *place, process) for process in range(count)
    ]


def worker_of(process: "subprocess.Popen[str]") -> int:
    """Returns the worker that a process started."""
    (child,) = children_of(process)
    return child


def children_of(process: "subprocess.Popen[str]") -> list[int]:
    """Returns the living child processes of a process."""
    return [int(child) for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def wait_for_lines(run: Path, count: int) -> None:
    """Waits until a run's metrics have a number of lines."""
    path, until = run / "metrics.jsonl", time.monotonic() + 120
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < until, f"{path} has not {count} lines yet"
        time.sleep(0.05)


def finished(*processes: "subprocess.Popen[str]", code: int = 0) -> list[tuple[str, str]]:
    """Waits until processes end with this exit code; returns what they printed."""
    found = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [code] * len(processes), found
    return found


def is_free(port: int) -> bool:
    """Whether nothing listens on a port."""
    with socket.socket() as some:
        return some.connect_ex(("127.0.0.1", port)) != 0


def free_port() -> int:
    """Returns a port that nothing listens on."""
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        return int(some.getsockname()[1])
