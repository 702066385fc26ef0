"""A disk that is full: what was saved stays, the message says where, and the run goes on once there is room."""

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
    """Whether this machine lets a user do that."""
    command = ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="needs a file system of its own: unshare --mount")
@pytest.mark.parametrize("size", [330, 420])
def test_a_full_disk(size: int, tmp_path: Path) -> None:
    """It fills while checkpoints are written: at least one is whole, and the run ends as if nothing had been."""
    mounted, kept = tmp_path / "small", tmp_path / "kept"
    mounted.mkdir()
    found = on_small_disk(size, mounted, kept, "train", tiny.CONFIG)
    assert "code 2" in found.stdout and "No space left" in found.stderr, found
    assert "Traceback" not in found.stderr and str(mounted / "run") in found.stderr
    assert Checkpoints(kept / "checkpoints", read_only=True).updates(), "nothing was saved"
    finished(on_devices(1, "train", tiny.CONFIG, "--run-dir", kept, "--resume"))
    tiny.assert_same_run(kept, tiny.trained().directory)
