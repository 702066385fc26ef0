"""Measures the cost of dividing a population on this machine, and computes it from that for more devices.

    python benchmarks/scaling.py ratio [--rounds 5]     two processes of one thread over one process of two
    python benchmarks/scaling.py bytes                  bytes that each of two processes sends per update
    python benchmarks/scaling.py paper --out docs/pictures/scaling.png [--faster 1000 --gigabits 400]

`ratio` also compares the fastest tenth of the updates: where other work takes now one core, now the other, two
processes wait for the slower one, which says nothing about communication. `bytes` counts the traffic of its own
loopback (Linux: unshare, ip). `paper` measures the parts of an update for hidden 256 to 2048 and adds the time that a
network takes; docs/scaling.md has the model.
"""

import argparse
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
SIZES = {
    "hidden 48": [],
    "hidden 256": ["--model.hidden_size", "256", "--model.num_layers", "6", "--model.feed_forward_size", "256",
                   "--eggroll.population", "2048"],
}  # fmt: skip
QUIET = ["--train.evaluate_every", "0", "--train.sample_every", "0", "--next_token.targets", "1", "--threads", "1"]


def train(directory: Path, name: str, processes: int, flags: Sequence[str]) -> list[dict[str, Any]]:
    """The metrics of a run of the quickstart with these flags."""
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        port = some.getsockname()[1]
    command = [sys.executable, "-P", "-m", "intlm.cli", "train", str(REPOSITORY / "configs/quickstart.toml")]
    command += [*QUIET, *flags, "--run-dir", name, "--data.prepared", str(directory / "prepared")]
    place = ["--coordinator", f"127.0.0.1:{port}", "--processes", str(processes), "--process"]
    with (directory / f"{name}.log").open("wb") as log:
        places = [[*place, str(i)] for i in range(processes)] if processes > 1 else [[]]
        running = [subprocess.Popen([*command, *own], cwd=directory, stdout=log, stderr=log) for own in places]
    codes = [process.wait() for process in running]
    if any(codes):
        sys.exit((directory / f"{name}.log").read_text())
    return [json.loads(line) for line in (directory / name / "metrics.jsonl").read_text().splitlines()]


def ratio(rounds: int) -> None:
    """See the module."""
    for label, size in SIZES.items():
        by_name: dict[str, list[float]] = {"median update": [], "fastest tenth": []}
        with tempfile.TemporaryDirectory() as name:
            for round_ in range(rounds):
                speeds = []
                for processes in (1, 2):
                    flags = [*size, "--train.updates", "40" if size else "200", "--threads", str(3 - processes)]
                    lines = train(Path(name), f"{round_}-{processes}", processes, flags)
                    tenths = statistics.quantiles((line["tokens_per_second"] for line in lines[5:]), n=10)
                    speeds.append((tenths[4], tenths[8]))
                for i, ratios in enumerate(by_name.values()):
                    ratios.append(speeds[1][i] / speeds[0][i])
                told = " and ".join(f"{speed[0]:,.0f} ({speed[1]:,.0f})" for speed in speeds)
                print(
                    f"{label}: one process and two, tokens/s of the median update (the fastest tenth): {told}",
                    flush=True,
                )
        for what, ratios in by_name.items():
            print(f"{label}, {what}: {min(ratios):.3f} / {statistics.median(ratios):.3f} / {max(ratios):.3f}")


def sent() -> int:
    """Bytes that this network namespace's loopback has carried."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split()[9]) for line in lines if line.strip().startswith("lo:"))


def count_bytes() -> None:
    """See the module."""
    if "INTLM_OWN_LOOPBACK" not in os.environ:
        inside = f"ip link set lo up && exec {sys.executable} {Path(__file__).resolve()} bytes"
        command = ["unshare", "--map-root-user", "--net", "sh", "-c", inside]
        sys.exit(subprocess.run(command, env={**os.environ, "INTLM_OWN_LOOPBACK": "1"}).returncode)
    from intlm import config as configuration
    from intlm.trainer import Trainer
    from intlm.training import prepare_corpus

    for label, size in SIZES.items():
        with tempfile.TemporaryDirectory() as name:
            carried = []
            for updates in (10, 60):
                before = sent()
                train(Path(name), str(updates), 2, [*size, "--train.updates", str(updates)])
                carried.append(sent() - before)
            config = configuration.load(Path(name) / "10" / "config.toml")
            weights = Trainer(config, Path(os.devnull), prepare_corpus(config)).weights
        each = (carried[1] - carried[0]) / 50 / 2
        allowed = 4 * weights + config.eggroll.population / 4
        print(f"{label}: {each:,.0f} bytes each and update, {each / weights:.2f} a parameter ({weights:,} parameters, "
              f"{config.eggroll.population // 2:,} pairs); {each / allowed:.2f} of 4 a parameter "
              "and 1 a pair of its own")  # fmt: skip


def timed(call: Callable[[], Any]) -> float:
    """The shortest time of three calls in seconds, after one call to warm up."""
    import jax

    jax.block_until_ready(call())
    times = []
    for _ in range(3):
        began = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - began)
    return min(times)


def parts(hidden: int) -> dict[str, float]:
    """Seconds for 6 layers of this size: evaluation per pair and token, the votes' noise and their products per pair,
    and the optimizer for all parameters."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from intlm.estimators.member import Member
    from intlm.fitness.normalised import Normalised
    from intlm.model.forward import zero_states
    from intlm.model.parameters import Architecture, initialise, specifications
    from intlm.optimizers.sgd import Sgd
    from intlm.population import Population, make_engine, native

    pairs, tokens = max(16, 262144 // hidden), 4
    architecture = Architecture(256, hidden, 6, hidden, "clip")
    population = Population(architecture, Member(sigma_shift=3, fitness=Normalised()), 2 * pairs)
    engine = make_engine("native", population)
    parameters = initialise(architecture, 0)
    rng = np.random.default_rng(0)
    read = jnp.asarray(rng.integers(1, 256, (pairs, tokens)), jnp.uint16)
    follow, states = read[..., None], zero_states((pairs, 2), architecture)
    evaluate = jax.jit(engine.evaluate)
    evaluation = timed(lambda: evaluate(parameters, read, follow, states, np.uint32(0)))
    accumulate, fitness = jax.jit(engine.accumulate), jnp.asarray(rng.integers(1, 15, pairs), jnp.int8)
    votes = accumulate(fitness, np.uint32(0))
    voting = timed(lambda: accumulate(fitness, np.uint32(0)))
    with native.phases() as spent:
        jax.block_until_ready(accumulate(fitness, np.uint32(0)))
    noise = voting * spent["noise"] / sum(spent.values())
    described = specifications(architecture)
    kinds = {s.name: s.kind for s in described}
    deviations = {s.name: jnp.int32(99) for s in described}
    sgd = Sgd()
    step = jax.jit(lambda votes, state: sgd.update(kinds, parameters, votes, state, deviations, jnp.int32(9)))
    state = sgd.init(parameters)
    optimizer = timed(lambda: step(votes, state))
    return {
        "hidden": hidden,
        "parameters": sum(int(np.prod(s.shape)) for s in described),
        "evaluation": evaluation / pairs / tokens,
        "noise": noise / pairs,
        "votes": (voting - noise) / pairs,
        "optimizer": optimizer,
    }


PAIRS, TOKENS = 1 << 17, 100  # of the update on paper
LATENCY = 50e-6  # seconds per message


def update_seconds(seconds: dict[str, float], devices: int, bandwidth: float, fitness_crosses: bool = False) -> float:
    """Computed seconds of an update of PAIRS pairs. seconds: `parts`; bandwidth: bytes a second that a device sends."""
    own = -(-PAIRS // devices)
    share = (devices - 1) / devices
    waiting = 3 * math.ceil(math.log2(devices)) * LATENCY
    evaluation = own * TOKENS * seconds["evaluation"]
    optimizer = seconds["optimizer"] / devices
    if fitness_crosses:  # B of every pair and a device's rows of A; its rows of the products; int8 weights
        votes = PAIRS * (seconds["noise"] * (0.5 + 0.5 / devices) + seconds["votes"] / devices)
        crossing = (PAIRS + seconds["parameters"]) * share / bandwidth
    else:
        votes = own * (seconds["noise"] + seconds["votes"])
        crossing = 5 * seconds["parameters"] * share / bandwidth
    return evaluation + votes + optimizer + crossing + waiting


def paper(out: Path, faster: float, gigabits: float) -> None:
    """See the module."""
    from matplotlib.figure import Figure

    counts = [1 << i for i in range(13)]
    figure = Figure(figsize=(12, 7.5), dpi=100)
    axes = figure.add_axes((0.07, 0.1, 0.9, 0.8))
    for hidden in (256, 512, 1024, 2048):
        seconds = parts(hidden)
        print(json.dumps(seconds), flush=True)
        seconds = {name: v / (1 if name in ("hidden", "parameters") else faster) for name, v in seconds.items()}
        bandwidth = gigabits * 1e9 / 8
        one = update_seconds(seconds, 1, bandwidth)
        for crosses in (False, True):
            efficiency = [one / (n * update_seconds(seconds, n, bandwidth, crosses)) for n in counts]
            half = next((n for n, e in zip(counts, efficiency, strict=True) if e < 0.5), None)
            named = {n: (round(update_seconds(seconds, n, bandwidth, crosses), 4), round(e, 3))
                     for n, e in zip(counts, efficiency, strict=True) if n in (1, 64, 1024)}  # fmt: skip
            print(f"hidden {hidden}, {'fitness' if crosses else 'votes'} cross: {named}; half: {half}", flush=True)
            axes.plot(
                counts, efficiency, linewidth=2, linestyle="--" if crosses else "-",
                color=f"C{(256, 512, 1024, 2048).index(hidden)}",
                label=f"hidden {hidden}, {'fitness crosses' if crosses else 'votes cross'}",
            )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [f"{n:,}" for n in counts], fontsize=11)
    axes.set_ylim(0, 1.05)
    like = "as fast as" if faster == 1 else f"{faster:,.0f} times as fast as"
    machine = f"this machine's {os.cpu_count()} cores"
    axes.set_xlabel(f"devices, each {like} {machine}; {gigabits:g} Gb/s between them", fontsize=12)
    axes.set_ylabel("speed over devices times that of one", fontsize=12)
    title = f"An update of {2 * PAIRS:,} members of 6 layers, {TOKENS} tokens each, on paper"
    axes.set_title(title, loc="left", fontsize=14)
    axes.grid(alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(fontsize=11, frameon=False, loc="lower left", ncols=2)
    figure.savefig(out, format="png")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("ratio", "bytes", "paper"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--faster", type=float, default=1, help="than this machine, of a device")
    parser.add_argument("--gigabits", type=float, default=10, help="a second, of a device's network")
    parser.add_argument("--out", type=Path, default=Path("scaling.png"))
    args = parser.parse_args()
    if args.what == "ratio":
        ratio(args.rounds)
    elif args.what == "bytes":
        count_bytes()
    else:
        paper(args.out, args.faster, args.gigabits)


if __name__ == "__main__":
    main()
