"""Measures tokens per second of a whole update, from the command line as a user runs it, beside the field's reference.

    python benchmarks/throughput.py --text TEXT [--config CONFIG] [--peer PATH/TO/nano-egg/run.py]

Prints one table: evaluated tokens per second of the whole update (median over the updates after the fifth), time
from the command to the end of its first update, peak memory. The peer is the reference implementation's single
file (github.com/ESHyperscale/nano-egg), run with --peer-python, an interpreter that has its packages (tyro, wandb,
datasets, scipy, tqdm, jax); it gets the same text, shapes, population and tokens. The two run in turn, `--rounds`
times, and the ratio is taken round by round.

The parts of an update, and their share of what the machine can do, are what `intlm bench CONFIG` prints.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from intlm import config as configuration
from intlm.tracking.table import format_table

ROOT = Path(__file__).resolve().parent.parent
WARM_UP = 5  # updates not counted


class Measurement(NamedTuple):
    """The measurements of one run of a trainer."""

    tokens_per_second: float
    first_update: float  # seconds from the command
    peak_gigabytes: float


def watch(command: list[str], directory: Path, environment: dict[str, str], pattern: str) -> tuple[str, float, float]:
    """Run a command; returns its output, the seconds until `pattern` first showed in it, its peak memory in GB."""
    began = time.monotonic()
    process = subprocess.Popen(
        command, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    seen: list[float] = []
    lines: list[str] = []

    def read() -> None:
        for line in process.stdout or []:
            lines.append(line)
            if not seen and re.search(pattern, line):
                seen.append(time.monotonic() - began)

    reader = threading.Thread(target=read)
    reader.start()
    _, status, usage = os.wait4(process.pid, 0)
    reader.join()
    output = "".join(lines)
    if status or not seen:
        sys.exit(f"{' '.join(command)} failed:\n{output[-3000:]}")
    return output, seen[0], usage.ru_maxrss / 1e6


def ours(config: Path, text: Path, updates: int, scratch: Path, engine: str) -> Measurement:
    """Measure `intlm train`, with every update logged."""
    run = scratch / "run"
    shutil.rmtree(run, ignore_errors=True)
    command = [
        sys.executable, "-u", "-P", "-m", "intlm.cli", "train", str(config), "--run-dir", str(run),
        "--data.train", str(text), "--data.prepared", str(scratch / "prepared"), "--train.updates", str(updates),
        "--train.sample_every", "0", "--train.evaluate_every", "0", "--engine", engine,
    ]  # fmt: skip
    _, first, memory = watch(command, ROOT, dict(os.environ), "update 1/")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return Measurement(statistics.median(line["tokens_per_second"] for line in lines[WARM_UP:]), first, memory)


def peer(
    script: Path, python: str, config: configuration.Config, text: Path, updates: int, scratch: Path
) -> Measurement:
    """Measure the reference's single file; its feed-forward is always four times its hidden size, its tokens bytes."""
    import numpy as np

    model, eggroll = config.model, config.eggroll
    group = 2 * eggroll.estimator.units_of_a_text()
    if model.feed_forward_size != 4 * model.hidden_size:
        sys.exit("the peer's feed-forward is four times its hidden size")
    files = scratch / "peer"
    files.mkdir(exist_ok=True)
    data = np.frombuffer(text.read_bytes(), np.uint8)
    np.save(files / "train.npy", np.concatenate([[0], data[: -config.data.valid_bytes]]).astype(np.uint8))
    np.save(files / "valid.npy", np.concatenate([[0], data[-config.data.valid_bytes :]]).astype(np.uint8))
    command = [
        python, "-u", str(script), "--dir_path", str(files), "--train_output_path", "train.npy", "--valid_output_path",
        "valid.npy", "--n_embd", str(model.hidden_size), "--n_layer", str(model.num_layers),
        "--parallel_generations_per_gpu", str(eggroll.population), "--tokens_per_update",
        str(config.train.tokens_per_update), "--group_size", str(group), "--num_epochs", str(updates),
        "--validate_every", "0",
    ]  # fmt: skip
    environment = {"JAX_PLATFORMS": "cpu", **os.environ, "HF_HOME": str(scratch / "hub"), "WANDB_MODE": "disabled"}
    output, first, memory = watch(command, files, environment, "throughput: ")
    rates = [float(value) for value in re.findall(r"throughput: ([0-9.]+)", output)]  # every tenth update
    return Measurement(statistics.median(rates[1:]), first, memory)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=ROOT / "benchmarks" / "reference_model.toml")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--updates", type=int, default=31)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--peer-python", default=sys.executable)
    args = parser.parse_args()
    text = args.text.resolve()
    config = configuration.load(args.config, {"data.train": str(text)})

    rows: list[tuple[str, ...]] = []
    ratios = []
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        for round_ in range(args.rounds):
            mine = ours(args.config, text, args.updates, scratch, args.engine)
            rows.append((f"intlm, round {round_ + 1}", *show(mine), ""))
            if args.peer:
                other = peer(args.peer.resolve(), args.peer_python, config, text, args.updates, scratch)
                ratios.append(mine.tokens_per_second / other.tokens_per_second)
                rows.append((f"peer, round {round_ + 1}", *show(other), f"{ratios[-1]:.2f}"))
    print(format_table(["whole update", "tokens/s", "first update, s", "peak GB", "intlm / peer"], rows))
    if ratios:
        print(f"ratio: min {min(ratios):.2f}, median {statistics.median(ratios):.2f}, max {max(ratios):.2f}")


def show(measured: Measurement) -> tuple[str, ...]:
    """A row's figures."""
    return f"{measured.tokens_per_second:,.0f}", f"{measured.first_update:.1f}", f"{measured.peak_gigabytes:.2f}"


if __name__ == "__main__":
    main()
