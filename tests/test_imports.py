"""No process that a command starts runs a Python file because it lies in the working directory."""

import os
import sys
from pathlib import Path

import numpy as np
import tiny

REPOSITORY = Path(__file__).parents[1]
INSTALLED = "import sys; del sys.path[0]; from intlm.cli import main; sys.exit(main())"  # as bin/intlm does
TRAP = "import os\nos.write(os.open({!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND), b'{} ')\n"


def set_traps(directory: Path, told: Path) -> None:
    """Writes a file for each standard module, and for some packages, that reports that it was imported."""
    for name in {
        *sys.stdlib_module_names,
        "numpy",
        "jax",
        "orbax",
        "sentencepiece",
        "tqdm",
        "datasets",
        "torch",
        "zstandard",
    }:
        (directory / f"{name}.py").write_text(TRAP.format(str(told), name))


def test_the_working_directory_is_not_imported_from(tmp_path: Path) -> None:
    """Workers of preparation, a supervised trainer and a sweep's, from a checkout that is not installed as well."""
    checkout, told = tmp_path / "checkout", tmp_path / "told"
    checkout.mkdir()
    set_traps(checkout, told)
    # The files do report it.
    assert tiny.intlm(python=("-c", "import queue"), cwd=checkout).returncode == 0 and "queue" in told.read_text()
    told.unlink()

    (checkout / "train.py").write_bytes((REPOSITORY / "train.py").read_bytes())
    (checkout / "intlm").symlink_to(REPOSITORY / "intlm")
    letters = np.random.default_rng(0).integers(ord("a"), ord("e"), 5 << 20, np.uint8)  # more than a block
    (checkout / "text.txt").write_bytes(letters.tobytes())
    keys = {**tiny.KEYS, "train.updates": 2, "data.train": "text.txt", "data.tokenizer": "bpe",
            "data.bpe.vocab_size": 270, "data.bpe.sample_bytes": 1 << 16, "data.prepared": "prepared",
            "data.processes": 2}  # fmt: skip
    tiny.write_config(checkout / "a.toml", keys)
    (checkout / "s.toml").write_text('base = "a.toml"\n')
    done = tiny.intlm("a.toml", "--supervise", python=("train.py",), cwd=checkout)
    assert done.returncode == 0, done.stderr
    words = ("sweep", "s.toml", "--data.prepared", "again")
    done = tiny.intlm(*words, python=("-c", INSTALLED), cwd=checkout)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 runs are done" in done.stdout
    assert not told.exists(), told.read_text()
    assert os.path.exists(checkout / "runs" / "a" / "learning_curve.png")
