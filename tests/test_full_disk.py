"""A disk that is full, or few files that may be open: what was saved stays, the message says what is missing, and a run
goes on once it is there."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from processes import finished, on_devices

from intlm.checkpoint import Checkpoints

# In a mount namespace of its own a user may mount: the run's directory is a small file system.
FULL = """
set -e
mount -t tmpfs -o size={size}k tmpfs {mounted}
{train} || echo code $?
cp -r {mounted}/run {kept}
"""


def on_small_disk(size: int, mounted: Path, kept: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """`intlm` into `mounted`/run, on a file system of so many KiB; what is there at its end is copied to `kept`."""
    train = " ".join([sys.executable, "-P", "-m", "intlm.cli", *map(str, arguments), "--run-dir", str(mounted / "run")])
    script = FULL.format(size=size, mounted=mounted, kept=kept, train=train)
    return subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
        capture_output=True, encoding="utf-8", cwd=tiny.HOME, timeout=300,
    )  # fmt: skip


def can_mount() -> bool:
    """Whether this machine lets a user mount a file system."""
    command = ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="needs a file system of its own: unshare --mount")
@pytest.mark.parametrize("size", [330, 420])
def test_a_full_disk(size: int, tmp_path: Path) -> None:
    """The disk fills while checkpoints are written: at least one is whole, and the run, resumed, ends with the same
    bits."""
    mounted, kept = tmp_path / "small", tmp_path / "kept"
    mounted.mkdir()
    found = on_small_disk(size, mounted, kept, "train", tiny.CONFIG)
    assert "code 2" in found.stdout and "No space left" in found.stderr, found
    assert "Traceback" not in found.stderr and str(mounted / "run") in found.stderr
    assert Checkpoints(kept / "checkpoints", read_only=True).updates(), "nothing was saved"
    finished(on_devices(1, "train", tiny.CONFIG, "--run-dir", kept, "--resume"))
    tiny.assert_same_run(kept, tiny.trained().directory)


FEW = """
import os, resource, sys
from pathlib import Path
import jax.numpy as jnp
from intlm.checkpoint import Checkpoints
from intlm.errors import RunError
from intlm.update import TrainState

state = TrainState({"a": jnp.zeros((4, 4), jnp.int8)}, (), jnp.zeros(8, jnp.int8))
checkpoints = Checkpoints(Path(sys.argv[1]))
checkpoints.save(1, state, {})
last = max(map(int, os.listdir("/proc/self/fd"))) + 99
resource.setrlimit(resource.RLIMIT_NOFILE, (last, last))
held = []
try:
    while True:
        held.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
for update in range(2, 34):  # three more may be opened each time
    try:
        checkpoints.save(update, state, {})
    except RunError as error:
        print(error)
    else:
        checkpoints.meta(update)
        sys.exit(print(checkpoints.updates() == [1, update]))
    for _ in range(3):
        os.close(held.pop())
"""


def test_few_open_files(tmp_path: Path) -> None:
    """However few files may be open, a checkpoint is whole, or the message names it and the reason, which is not the
    disk."""
    *refused, done = tiny.intlm(tmp_path / "checkpoints", python=("-P", "-c", FEW)).stdout.splitlines()
    assert done == "True" and len(refused) > 3
    for number, line in enumerate(refused, start=2):
        assert f"the checkpoint of update {number} was not written: " in line and "Too many open files" in line
