"""The steps of benchmarks/gpu.sh that are not already commands: python benchmarks/gpu_steps.py STEP OUT.

text      OUT/text.txt, the quickstart's corpus
products  whether the xla engine's byte products and the kernels reach the matrix units, from what XLA compiled
resume    ten more updates from a checkpoint made on the CPU, by the CPU and by the gpu engine: the same bits?
table     the results of all steps, as OUT/table.md and OUT/table.json
"""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from intlm import config as configuration
from intlm.checkpoint import Checkpoints
from intlm.model.parameters import specifications
from intlm.population import gpu, make_engine
from intlm.run import open_run, population_of
from intlm.tracking.table import format_table
from intlm.update import initial_state

ROOT = Path(__file__).resolve().parent.parent
DRY = bool(os.environ.get("DRY"))
DTYPE = re.compile(r"%?([\w.-]+)(?: =|:) (\w+)\[")
PRODUCT = re.compile(r" = (\w+\[[\d,]*\])\S* (?:dot|custom-call)\(%([^,\s)]+), %([^,\s)]+)\).*")
MATRIX_UNIT = re.compile(r"(?:wgmma\.mma_async|mma)\.sync\.\S+")


def text(out: Path) -> None:
    """Write the quickstart's corpus as one file, and a configuration for a dry run."""
    documents = runpy.run_path(str(ROOT / "data" / "python_stdlib.py"))["documents"]()
    (out / "text.txt").write_bytes(b"\n".join(documents))
    small = (ROOT / "benchmarks" / "gpu.toml").read_text()
    for was, now in (("131072", "64"), ("= 256", "= 16"), ("= 1024", "= 64"), ("= 6", "= 1"), ("= 100\n", "= 4\n")):
        small = small.replace(was, now, 1)
    (out / "dry.toml").write_text(small)


def of_matrix_units(compiled: str) -> tuple[list[str], list[str]]:
    """The byte products of a compiled program that the matrix units compute, and its other products.

    XLA gives a product to the matrix units in a fusion for its Triton compiler, or as a call of cuBLAS.
    """
    good: list[str] = []
    bad: list[str] = []
    fused = set(re.findall(r"calls=%([^\s,]+),.*__triton", compiled))
    for computation in re.split(r"\n(?=%|ENTRY )", compiled):
        name = computation.lstrip("%").split(" ")[0]
        dtypes = dict(DTYPE.findall(computation))
        for match in PRODUCT.finditer(computation):
            call = "custom-call(" in match[0]
            if call and "__cublas" not in match[0]:
                continue
            of = [dtypes.get(operand, "?") for operand in match.groups()[1:]]
            known = set(of) == {"s8"} and (call or name in fused)
            (good if known else bad).append(f"{match[1]} of {of[0]} and {of[1]}")
    return good, bad


def products(out: Path) -> None:
    """Compile both engines' calls and report which products reach the matrix units."""
    size = ["--model.num_layers", "2", "--eggroll.population", "8192", "--train.tokens_per_update", "8"]
    if DRY:
        size += ["--eggroll.population", "64", "--model.hidden_size", "16", "--model.feed_forward_size", "32"]
    keys = dict(zip((key[2:] for key in size[::2]), size[1::2], strict=True))
    config = configuration.load(ROOT / "benchmarks" / "gpu.toml", {**keys, "data.train": str(out / "text.txt")})
    population = population_of(config, 256)
    by_call: dict[str, Any] = {}
    for name in ("xla", "gpu"):
        engine = make_engine(name, population)
        texts, length = (population.units, config.train.tokens_per_update), jnp.uint16
        evaluate = (
            {s.name: jax.ShapeDtypeStruct(s.shape, jnp.int8) for s in specifications(population.architecture)},
            jax.ShapeDtypeStruct(texts, length),
            jax.ShapeDtypeStruct((*texts, 1), length),
            jax.ShapeDtypeStruct((population.units, 2, config.model.num_layers, config.model.hidden_size), jnp.int8),
            jax.ShapeDtypeStruct((), jnp.uint32),
        )
        calls: dict[str, tuple[Any, tuple[Any, ...]]] = {
            "evaluate": (engine.evaluate, evaluate),
            "accumulate": (engine.accumulate, (jax.ShapeDtypeStruct((population.units,), jnp.int8), evaluate[-1])),
        }
        for call, (function, arguments) in calls.items():
            compiled = jax.jit(function).lower(*arguments).compile()
            good, bad = of_matrix_units(compiled.as_text() or "")
            by_call[f"{name} {call}"] = {"on matrix units": good, "not": bad}
    kernels: dict[str, dict[str, int]] = {}
    for path in (out / "dump").glob("*.ptx"):
        code = path.read_text()
        for entry in re.findall(r"\.entry (\w+)", code):
            counts: dict[str, int] = {}
            for instruction in MATRIX_UNIT.findall(code):
                counts[instruction] = counts.get(instruction, 0) + 1
            if counts:
                kernels[entry] = counts
    by_call["instructions of matrix units"] = kernels
    (out / "products.json").write_text(json.dumps(by_call, indent=1))
    print(json.dumps(by_call, indent=1))
    if not DRY and (by_call["xla evaluate"]["not"] or not kernels):
        sys.exit("products that do not reach the matrix units")


def resume(out: Path) -> None:
    """Five updates on the CPU, then ten more on the CPU and on the GPU; compare every array of the last checkpoints."""
    runs = out / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    keys = {"model.hidden_size": 64, "model.num_layers": 2, "model.feed_forward_size": 256, "eggroll.population": 512}
    if DRY:
        keys |= {
            "model.hidden_size": 16,
            "model.num_layers": 1,
            "model.feed_forward_size": 32,
            "eggroll.population": 16,
        }
    flags = [part for key, value in keys.items() for part in (f"--{key}", str(value))]

    def train(name: str, updates: int, engine: str, platform: str, *further: str) -> None:
        command = [
            sys.executable, "-P", "-m", "intlm.cli", "train", "benchmarks/gpu.toml", "--run-dir", str(runs / name),
            "--data.train", str(out / "text.txt"), "--data.prepared", str(out / "prepared"), "--engine", engine,
            "--train.updates", str(updates), "--train.tokens_per_update", "40", *flags, *further,
        ]  # fmt: skip
        subprocess.run(command, cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": platform}, check=True)

    platform = os.environ.get("JAX_PLATFORMS", "")
    train("cpu", 5, "auto", "cpu")
    shutil.copytree(runs / "cpu", runs / "gpu")
    train("cpu", 15, "auto", "cpu", "--resume")
    train("gpu", 15, "gpu", platform, "--resume")
    states = []
    for name in ("cpu", "gpu"):
        config, tokenizer = open_run(runs / name)
        population = population_of(config, tokenizer.vocab_size)
        like = jax.eval_shape(partial(initial_state, population, config.eggroll.optimizer))
        states.append(Checkpoints(runs / name / "checkpoints", read_only=True).restore(15, like))
    different = [
        jax.tree_util.keystr(path)
        for (path, leaf), other in zip(
            jax.tree_util.tree_leaves_with_path(states[0]), jax.tree.leaves(states[1]), strict=True
        )
        if not np.array_equal(leaf, other)
    ]
    arrays = len(jax.tree.leaves(states[0]))
    (out / "resume.json").write_text(json.dumps({"arrays": arrays, "different": different}))
    print(f"{arrays} arrays, {len(different)} different: {different}")
    if different:
        sys.exit(1)


def table(out: Path) -> None:
    """Write one row for each required figure, and list those that were not measured."""

    def read(name: str) -> dict[str, Any]:
        path = out / f"{name}.json"
        return json.loads(path.read_text() or "{}") if path.exists() else {}

    narrow, wide, baseline, resumed, compiled = map(read, ("gpu-256", "gpu-1024", "xla-256", "resume", "products"))

    def shown(value: Any, form: str = ".2f", unit: float = 1) -> str:
        return "not measured" if value is None else format(value / unit, form)

    def tokens(report: dict[str, Any]) -> Any:
        return report.get("tokens_per_second", {}).get("update")

    ratio = None
    log = out / "peer.log"
    if log.exists() and (match := re.search(r"ratio: min \S+, median (\S+),", log.read_text())):
        ratio = float(match[1])
    beyond = None
    if narrow:
        given = json.loads((out / "gpu-256.json").read_text())
        weights = given["parameters"]
        hidden, layers = (16, 1) if DRY else (256, 6)
        streams = given["members"] * (layers * hidden + given["tokens_per_update"] * 2)
        beyond = given["peak_memory_bytes"] - weights - streams
    same = None if not resumed else "the same bits" if not resumed["different"] else "DIFFERENT BITS"
    products = compiled.get("xla evaluate", {})
    off = f"{len(products['not'])} of {sum(len(products[k]) for k in ('on matrix units', 'not'))}" if products else None
    rows = [
        ("whole update, evaluated tokens/s, hidden 256: gpu", shown(tokens(narrow), ",.0f"), ""),
        ("the same: xla", shown(tokens(baseline), ",.0f"), ""),
        ("gpu over nano-egg beside it", shown(ratio), "5"),
        ("whole update over pure inference", shown(narrow.get("update_over_inference")), "0.95"),
        ("share of the int8 matrix peak, hidden 256", shown(narrow.get("share_of_peak"), ".3f"), "0.35"),
        ("the same, hidden 1024", shown(wide.get("share_of_peak"), ".3f"), "0.60"),
        ("the same, hidden 256, xla", shown(baseline.get("share_of_peak"), ".3f"), ""),
        ("the peak, TMAC/s", shown(narrow.get("peak_macs_per_second"), ".0f", 1e12), ""),
        ("memory beyond weights, states and tokens, GB", shown(beyond, ".2f", 1e9), "1"),
        ("a CPU checkpoint resumed on the GPU, ten updates", same or "not measured", "the same bits"),
        ("products of xla's evaluation that are off the matrix units", off or "not measured", "0"),
    ]
    steps = [line.split() for line in (out / "steps.txt").read_text().splitlines()]
    outcome = {"0": "done", "124": "out of time", "137": "out of time"}
    head = "DRY RUN ON A CPU: no figure here is a measurement of a GPU\n\n" if DRY else ""
    device = f"{jax.devices()[0].device_kind}, jax {jax.__version__}, kernels interpreted: {gpu.interpreted()}\n\n"
    parts = [
        format_table(["what", "reached", "goal"], rows),
        format_table(["step", "outcome", "s"], [(n, outcome.get(s, f"failed ({s})"), t) for n, s, t in steps]),
    ]
    (out / "table.md").write_text(head + device + "\n\n".join(parts) + "\n")
    (out / "table.json").write_text(json.dumps({"rows": rows, "steps": steps}))
    print((out / "table.md").read_text())


if __name__ == "__main__":
    {"text": text, "products": products, "resume": resume, "table": table}[sys.argv[1]](Path(sys.argv[2]).resolve())
