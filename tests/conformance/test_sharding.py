"""The population divided among devices, and among processes, gives the bits of one device."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny



def on_devices(count: int, *arguments: object) -> subprocess.Popen[str]:
    """`intlm` in a process with so many devices."""
    flags = f"--xla_force_host_platform_device_count={count}"
    command = [sys.executable, "-m", "intlm.cli", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, env={**os.environ, "XLA_FLAGS": flags}, cwd=tiny.HOME, stdout=pipe, stderr=pipe, encoding="utf-8"
    )


def finished(*processes: "subprocess.Popen[str]", code: int = 0) -> list[tuple[str, str]]:
    """What they printed, once all ended with this exit code."""
    found = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [code] * len(processes), found
    return found


def free_port() -> int:
    """One that nothing listens on."""
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        return int(some.getsockname()[1])


def together(count: int, *arguments: object, devices: int = 1) -> "list[subprocess.Popen[str]]":
    """`intlm` as so many processes of one run."""
    place = ("--coordinator", f"127.0.0.1:{free_port()}", "--processes", count, "--process")
    return [on_devices(devices, *arguments, *place, process) for process in range(count)]


@pytest.mark.parametrize(
    ("devices", "settings"),
    [
        (2, ()),
        (4, ("--engine", "xla", "--eggroll.chunk_size", 2)),
        (8, ()),
    ],
)
def test_devices(devices: int, settings: tuple[object, ...], tmp_path: Path) -> None:
    """Of one process, by both engines, in chunks; and what it tells is the same."""
    finished(on_devices(devices, "train", tiny.CONFIG, "--run-dir", tmp_path / "run", *settings))
    tiny.assert_same_run(tmp_path / "run", tiny.trained().directory)


@pytest.mark.parametrize("count", [2, 3])
def test_processes(count: int, tmp_path: Path) -> None:
    """Over loopback; of three, eight texts do not divide evenly."""
    printed = finished(*together(count, "train", tiny.CONFIG, "--run-dir", tmp_path / "run"))
    tiny.assert_same_run(tmp_path / "run", tiny.trained().directory)
    assert "this model" in printed[0][0] and not any(out for out, _ in printed[1:])
