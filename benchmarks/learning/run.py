"""Runs a study: every variant of a base configuration with every seed, one line of results a run.

    python benchmarks/learning/run.py STUDY.toml --text TEXT --out RESULTS.jsonl [--only VARIANT] [--seeds N]
    python benchmarks/learning/run.py --out RESULTS.jsonl --picture FILE.png --curves STUDY/VARIANT/TEXT=LABEL ...

A study names a base configuration, seeds, keys set for all, and variants: keys set anew, as for `intlm train --KEY`. A
run that is in the results is not run again; one that was stopped goes on from its checkpoint.
"""

import argparse
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from intlm.tracking import metrics
from intlm.tracking.table import format_table
from intlm.version import NUMERICS_VERSION


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, nargs="?")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"), help="where the runs are kept")
    parser.add_argument("--only", action="append", help="a variant to run; may be given again")
    parser.add_argument("--seeds", type=int, help="so many of the study's seeds")
    parser.add_argument("--picture", type=Path, help="draw the curves of --curves to this PNG")
    parser.add_argument("--curves", nargs="+", default=[], metavar="STUDY/VARIANT/TEXT=LABEL")
    parser.add_argument("--reference", nargs="+", default=[], metavar="LABEL=BITS", help="a level to draw beside them")
    args = parser.parse_args()
    if args.picture:
        draw(results(args.out), args.curves, args.reference, args.picture)
        return
    if not (args.study and args.text):
        parser.error("expected a study and --text")
    study = tomllib.loads(args.study.read_text())
    for seed in study["seeds"][: args.seeds]:
        for name, keys in study["variants"].items():
            if not args.only or name in args.only:
                run(args, study, name, keys, seed)
    print(summary(results(args.out)))


def results(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file, none where there is none yet."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(args: argparse.Namespace, study: dict[str, Any], name: str, keys: dict[str, Any], seed: int) -> None:
    """One variant with one seed, unless its result is there."""
    text, base = args.text.resolve(), args.study.parent / study["base"]
    keys = study.get("keys", {}) | keys
    identity = {"study": args.study.stem, "variant": name, "seed": seed, "keys": keys, "text": text.name}
    identity["numerics"] = NUMERICS_VERSION
    if any(all(line.get(key) == value for key, value in identity.items()) for line in results(args.out)):
        return
    directory = args.runs / f"{args.study.stem}-{name}-{text.stem}-{seed}"
    settings = {"data.train": text, "seed": seed, **keys}
    flags = [f"--{key}={value}" for key, value in settings.items()]
    resume = ["--resume"] if (directory / "config.toml").exists() else []
    command = [sys.executable, "-m", "intlm.cli", "train", str(base), "--run-dir", str(directory), *flags, *resume]
    print(f"{name}, seed {seed}", file=sys.stderr)
    if code := subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        sys.exit(code)
    lines = metrics.read(directory / "metrics.jsonl")
    curve = [
        [line["update"], line["tokens_evaluated"], line["seconds"], round(line["valid_bits_per_byte"], 4)]
        for line in lines
        if "valid_bits_per_byte" in line
    ]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("a") as file:
        file.write(json.dumps({**identity, "bits_per_byte": curve[-1][-1], "curve": curve}) + "\n")


def summary(lines: list[dict[str, Any]]) -> str:
    """Each variant's mean and spread over its seeds, the best first."""
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for line in lines:
        found.setdefault((line["study"], line["variant"], line["text"]), []).append(line)
    rows = []
    for (study, variant, text), runs in found.items():
        bits = [r["bits_per_byte"] for r in runs]
        _, tokens, seconds, _ = runs[0]["curve"][-1]
        mean = sum(bits) / len(bits)
        rows.append((mean, study, variant, text, len(bits), f"{min(bits):.3f}", f"{mean:.3f}", f"{max(bits):.3f}",
                     f"{tokens / 1e6:.0f} M", f"{seconds:.0f}"))  # fmt: skip
    headers = ["study", "variant", "text", "seeds", "least", "mean", "most", "evaluated tokens", "s"]
    return format_table(headers, [row[1:] for row in sorted(rows)], "lll" + "r" * 6)


def draw(lines: list[dict[str, Any]], curves: list[str], references: list[str], path: Path) -> None:
    """Held-out bits per byte over evaluated tokens and over seconds of training: a line a variant, the mean of its
    seeds, a band from the least to the most."""
    figure = Figure(figsize=(14, 7), dpi=100, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for number, curve in enumerate(curves):
        name, _, label = curve.partition("=")
        study, variant, text = name.split("/")
        runs = [r for r in lines if (r["study"], r["variant"], r["text"]) == (study, variant, text)]
        if not runs:
            sys.exit(f"--curves {curve}: no such results")
        shown = np.array([run["curve"] for run in runs])  # [seeds, points, update tokens seconds bits]
        bits, colour = shown[..., 3], f"C{number}"
        seeds = f" ({len(runs)} seeds)" if len(runs) > 1 else ""
        for axes, column in zip(panels, (1, 2), strict=True):
            x = shown[..., column].mean(axis=0)
            axes.plot(x, bits.mean(axis=0), color=colour, label=f"{label or variant}: {bits[:, -1].mean():.3f}{seeds}")
            axes.fill_between(x, bits.min(axis=0), bits.max(axis=0), color=colour, alpha=0.2, linewidth=0)
    for axes, what in zip(panels, ("tokens evaluated", "seconds of training"), strict=True):
        for reference in references:
            label, _, level = reference.rpartition("=")
            axes.axhline(float(level), color="#5b6470", linewidth=0.9, linestyle=(0, (5, 4)))
            beside = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "bottom", "fontsize": 10}
            axes.text(0.99, float(level), label, **beside)
        axes.set_xscale("log")
        axes.set_xlabel(what, fontsize=12)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("held-out bits per byte", fontsize=12)
    panels[1].legend(fontsize=10, frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
