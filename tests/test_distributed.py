"""Several processes of one run: how they connect, and what happens when one of them is lost."""

import os
import pty
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import tiny
from processes import children_of, finished, free_port, is_free, on_devices, together, wait_for_lines, worker_of

from intlm.checkpoint import Checkpoints
from intlm.distributed import Place, place
from intlm.errors import ConfigError, LostProcess

LONG = ("train", tiny.CONFIG, "--train.updates", 60)


def test_place() -> None:
    """A process's place, from flags and from the environment of SLURM and of Kubernetes."""
    flags = Place("node1:9000", 4, 3)
    assert place(flags, {}) == flags
    assert place(Place(), {}) is None
    assert place(Place(), {"SLURM_STEP_NUM_TASKS": "1"}) is None
    assert place(Place(), {"SLURM_STEP_NUM_TASKS": "2"}) == Place()  # JAX reads the rest
    assert place(flags, {"SLURM_STEP_NUM_TASKS": "2"}) == flags
    assert place(Place(), {"JOB_COMPLETION_INDEX": "1"}) is None  # jobs of their own


def test_place_of_a_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    """In Kubernetes process 0 is in the first pod of the Job."""
    monkeypatch.setattr("socket.getfqdn", lambda: "egg-12.eggs.default.svc.cluster.local")
    result = place(Place(processes=20), {"JOB_COMPLETION_INDEX": "12"})
    assert result == Place("egg-0.eggs.default.svc.cluster.local:55127", 20, 12)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Place("node1:9000", 4), "--process: missing: expected --coordinator HOST:PORT --processes N --process I"),
        (Place(None, 4, 1), "--coordinator: missing"),
        (Place("node1:9000", None, 1), "--processes: missing"),
        (Place("node1", 2, 1), "--coordinator = node1: expected HOST:PORT of process 0"),
        (Place("node1:0", 2, 1), "--coordinator = node1:0: expected HOST:PORT of process 0"),
        (Place("node1:9000", 2, 2), "--process = 2: expected 0 to 1"),
    ],
)
def test_no_place(given: Place, message: str) -> None:
    """Each flag that is missing or impossible is named."""
    with pytest.raises(ConfigError, match=f"^{message}"):
        place(given, {})


def test_a_step_of_slurm(tmp_path: Path) -> None:
    """A SLURM step of two tasks needs no flags."""
    port = next(port for port in range(61440 + os.getpid() % 2048, 1 << 16) if is_free(port))  # as JAX takes it
    step = {"SLURM_JOB_ID": str(port - 61440), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    tasks = []
    for task in ("0", "1"):
        environment = step | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": task, "SLURM_LOCALID": task}
        tasks.append(on_devices(1, "train", tiny.CONFIG, "--run-dir", tmp_path / "run", environment=environment))
    finished(*tasks)
    tiny.assert_same_run(tmp_path / "run", tiny.trained().directory)


def test_an_address_of_another_machine(tmp_path: Path) -> None:
    """Process 0 cannot listen there; this need not be the user's mistake, so --supervise would try again."""
    place = ("--coordinator", "198.51.100.7:5999", "--processes", 2, "--process", 0)
    ((_, err),) = finished(on_devices(1, *LONG, "--run-dir", tmp_path / "run", *place), code=LostProcess.exit_code)
    assert "--coordinator = 198.51.100.7:5999: the run's processes could not connect: " in err
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".token"}


def test_strangers(tmp_path: Path) -> None:
    """Process 0 listens only at the given address. A process of another run, or one that sends anything, cannot join
    and does no harm. Once all processes have joined, nothing listens any more."""
    command = ("train", tiny.CONFIG, "--train.updates", 40, "--run-dir")
    port = free_port()
    place = ("--coordinator", f"127.0.0.1:{port}", "--processes", 2, "--process")
    first = on_devices(1, *command, tmp_path / "run", *place, 0)
    while is_free(port):
        assert first.poll() is None
        time.sleep(0.05)
    with socket.socket() as elsewhere:
        assert elsewhere.connect_ex(("127.0.0.2", port)) != 0  # also this machine's
    stranger = on_devices(1, *command, tmp_path / "other", *place, 1)
    with socket.create_connection(("127.0.0.1", port)) as some, suppress(ConnectionResetError):
        some.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(99))  # as gRPC begins
        while some.recv(1 << 10):
            pass  # it ends
    assert stranger.stderr
    while "another run listens there" not in (line := stranger.stderr.readline()):
        assert line, "it ended"
    assert first.poll() is None and not (tmp_path / "run" / "metrics.jsonl").exists()
    second = on_devices(1, *command, tmp_path / "run", *place, 1)
    wait_for_lines(tmp_path / "run", 1)
    assert is_free(port)
    finished(first, second)
    os.kill(worker_of(stranger), signal.SIGKILL)
    finished(stranger, code=LostProcess.exit_code)
    assert not (tmp_path / "other" / "metrics.jsonl").exists()
    assert (tmp_path / "run" / ".token").stat().st_mode & 0o777 == 0o600


def test_a_lost_process(tmp_path: Path) -> None:
    """A process killed in mid-update stops the others, who say what to do; supervised, the run is started again by
    itself."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    undisturbed = on_devices(1, *LONG, "--run-dir", whole)
    both = together(2, *LONG, "--run-dir", run)
    wait_for_lines(run, 5)
    os.kill(worker_of(both[1]), signal.SIGKILL)
    for _, err in finished(*both, code=LostProcess.exit_code):
        assert "lost" in err and "--resume" in err and "Traceback" not in err
    both = together(2, *LONG, "--run-dir", run, "--resume", "--supervise")
    wait_for_lines(run, 25)
    os.kill(worker_of(both[0]), signal.SIGKILL)
    for _, err in finished(*both):
        assert "starting it again from its last checkpoint" in err
    finished(undisturbed)
    tiny.assert_same_run(run, whole)


def test_supervised(tmp_path: Path) -> None:
    """A supervised single process, killed before its first checkpoint and after; Ctrl-C stops it for good."""
    run = tmp_path / "run"
    alone = on_devices(1, *LONG, "--train.checkpoint_seconds", 3600, "--run-dir", run, "--supervise")
    wait_for_lines(run, 3)
    os.kill(worker_of(alone), signal.SIGKILL)
    while "starting" not in (line := alone.stderr.readline()):  # type: ignore[union-attr]
        assert line, "it ended"
    wait_for_lines(run, 20)
    worker = worker_of(alone)
    alone.send_signal(signal.SIGTERM)  # handed on
    ((out, _),) = finished(alone, code=130)
    assert "stopped and saved" in out and not Path(f"/proc/{worker}").exists()
    finished(on_devices(1, *LONG, "--run-dir", run, "--resume"))
    finished(on_devices(1, *LONG, "--run-dir", tmp_path / "whole"))
    tiny.assert_same_run(run, tmp_path / "whole")


def test_a_supervisor_killed_before_its_trainer_looks(tmp_path: Path) -> None:
    """The trainer, which knows the process that started it, does not begin."""
    alone = on_devices(1, *LONG, "--run-dir", tmp_path / "run", "--supervise")
    while not children_of(alone):
        assert alone.poll() is None
    alone.kill()
    alone.communicate(timeout=60)  # also waits for the trainer, which has the same outputs
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_terminal_that_closes(tmp_path: Path) -> None:
    """Its runs save and stop, although nobody reads their output; under nohup they continue."""
    ends = []
    for name, before, after in (("run", [], ["--supervise"]), ("nohup", ["nohup"], [])):
        master, slave = pty.openpty()
        words = [*map(str, LONG), "--run-dir", str(tmp_path / name), "--train.checkpoint_seconds", "3600", *after]
        script = "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
        script += "os.execvp(sys.argv[1], sys.argv[1:])"
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", script, *before, sys.executable, "-P", "-m", "intlm.cli", *words],
            stdin=slave, stdout=slave, stderr=slave, cwd=tmp_path,
        )  # fmt: skip
        os.close(slave)
        wait_for_lines(tmp_path / name, 3)
        os.close(master)
        ends.append(process.wait(timeout=60))
    assert ends == [130, 0]
    updates = [Checkpoints(tmp_path / name / "checkpoints", read_only=True).updates()[-1] for name in ("run", "nohup")]
    assert 3 <= updates[0] == tiny.lines_of(tmp_path / "run")[-1]["update"] < updates[1] == 60


def test_a_mistake_is_not_tried_again(tmp_path: Path) -> None:
    """A mistake of the user ends a supervised run."""
    ((_, err),) = finished(on_devices(1, *LONG, "--supervise", "--run-dir", tmp_path, "--resume"), code=2)
    assert err.count("nothing to resume") == 1
