"""Kill a run with SIGKILL at random moments, again and again, and compare its end with an undisturbed run's.

    python benchmarks/soak.py [--kills 100] [--processes 2] [--seed S]

If the run reaches its end before all kills are done, another begins. With several processes one is killed, after all
have connected (before that the others would wait for it for five minutes); the others must end by themselves within a
minute, say that one was lost, and show no traceback. Compared are the last checkpoint's bits (weights, optimizer,
members' states) and every line of the metrics but its timings.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from intlm.checkpoint import Checkpoints
from intlm.errors import LostProcess
from intlm.run import open_run, population_of
from intlm.tracking import metrics
from intlm.update import initial_state

CONFIG = """
[model]
hidden_size = 32
num_layers = 2
feed_forward_size = 32
[eggroll]
population = 128
group_size = 4
optimizer = "adam"
[train]
tokens_per_update = 16
updates = 200
evaluate_every = 50
sample_every = 100
checkpoint_seconds = 1
[data]
train = "text.txt"
valid_bytes = 5000
"""
TIMINGS = ("seconds", "tokens_per_second", "waiting")


def start(directory: Path, run: str, processes: int) -> list[subprocess.Popen[bytes]]:
    """Start or resume the run."""
    resume = ["--resume"] if (directory / run / "config.toml").exists() else []
    command = [sys.executable, "-P", "-m", "intlm.cli", "train", "soak.toml", "--run-dir", run, *resume]
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        port = some.getsockname()[1]
    place = ["--coordinator", f"127.0.0.1:{port}", "--processes", str(processes), "--process"]
    with (directory / "log").open("ab") as log:
        places = [[*place, str(i)] for i in range(processes)] if processes > 1 else [[]]
        return [subprocess.Popen([*command, *own], cwd=directory, stdout=log, stderr=log) for own in places]


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process that does the work; with several processes it is the child of another."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        workers = children.read_text().split()
        os.kill(int(workers[0]) if workers else process.pid, signal.SIGKILL)
    except (OSError, ProcessLookupError):
        return  # it has ended by itself


def count(run: Path) -> int:
    """The number of lines of a run's metrics."""
    log = run / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def last_checkpoint(run: Path) -> int:
    """The update of a run's last checkpoint, 0 if it has none."""
    names = os.listdir(run / "checkpoints") if (run / "checkpoints").is_dir() else []
    return max((int(name) for name in names if name.isdecimal()), default=0)


def end(run: Path) -> tuple[str, list[dict[str, object]]]:
    """The result of a run: the digest of its state, and its metrics."""
    config, tokenizer = open_run(run)
    population = population_of(config, tokenizer.vocab_size)
    like = jax.eval_shape(lambda: initial_state(population, config.eggroll.optimizer))
    checkpoints = Checkpoints(run / "checkpoints", read_only=True)
    last = checkpoints.updates()[-1]
    checkpoints.meta(last)
    digest = hashlib.sha256(str(last).encode())
    for leaf in jax.tree.leaves(checkpoints.restore(last, like)):
        digest.update(np.asarray(leaf).tobytes())
    lines = [{k: v for k, v in line.items() if k not in TIMINGS} for line in metrics.read(run / "metrics.jsonl")]
    return digest.hexdigest(), lines


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "soak.toml").write_text(CONFIG)
        words = ["egg", "roll", "integer", "vote", "noise", "pair"]
        (directory / "text.txt").write_text(" ".join(rng.choices(words, k=20000)))
        began = time.monotonic()
        assert start(directory, "alone", 1)[0].wait() == 0, (directory / "log").read_text()
        whole = time.monotonic() - began
        expected = end(directory / "alone")
        kills = runs = 0
        at, slowest = [], 0.0
        wrong: list[str] = []
        bar = tqdm(total=args.kills, desc="kills")
        while kills < args.kills:
            runs += 1
            run, reached = f"run{runs}", 0
            while True:
                processes = start(directory, run, args.processes)
                lines = count(directory / run)
                while args.processes > 1 and count(directory / run) == lines and processes[0].poll() is None:
                    time.sleep(0.01)
                if kills < args.kills:
                    until = time.monotonic() + rng.uniform(0, whole)
                    while time.monotonic() < until and any(p.poll() is None for p in processes):
                        time.sleep(0.01)
                if kills < args.kills and all(p.poll() is None for p in processes):
                    kill(rng.choice(processes))
                    killed = time.monotonic()
                    kills += 1
                    bar.update()
                    for process in processes:
                        try:
                            code = process.wait(60)
                            if args.processes > 1 and code not in (0, LostProcess.exit_code):  # 0: the run had ended
                                wrong.append(f"{run}: exit code {code} after another process was killed")
                        except subprocess.TimeoutExpired:
                            wrong.append(f"{run}: a process goes on a minute after another was killed")
                            process.kill()
                    slowest = max(slowest, time.monotonic() - killed)
                    at.append(count(directory / run))
                    if (now := last_checkpoint(directory / run)) < reached:
                        wrong.append(f"{run}: a checkpoint was lost: {now} after {reached}")
                    reached = now
                    continue
                if all(process.wait() == 0 for process in processes):
                    break
                wrong.append(f"{run}: ended by itself")
                break
            ended = end(directory / run)
            if ended != expected:
                wrong.append(f"{run}: {'state' if ended[0] != expected[0] else 'metrics'} differ")
        bar.close()
        _, found_traceback, rest = (directory / "log").read_text(errors="replace").partition("Traceback")
        if found_traceback:
            wrong.append(f"a traceback:{rest[:10000]}")
    training = [update for update in at if update]
    result = {
        "processes": args.processes,
        "kills": kills,
        "before_the_first_update": len(at) - len(training),
        "runs": runs,
        "wrong": wrong,
        "slowest_end_of_the_others": round(slowest, 1),
        "seconds": round(time.monotonic() - began),
    }
    print(json.dumps(result))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
