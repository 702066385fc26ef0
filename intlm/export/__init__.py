"""A trained model in other forms: integer C, an integer ONNX graph, safetensors (`intlm export`).

Every export holds what is needed to use it far from its run, whatever else is in it:

model.safetensors    the weights, int8, by the names of `intlm.model.parameters`
config.json          the architecture, the inference version and the weights' SHA-256
config.toml          the run's configuration
tokenizer.json       the tokenizer

so that `intlm evaluate`, `generate`, `simulate` and `train --from` read it as they read a run.
"""

import hashlib
import json
import os
import tempfile
from pathlib import Path

import numpy as np

from intlm import config as configuration
from intlm.errors import RunError
from intlm.export import c, onnx
from intlm.run import WEIGHTS, LanguageModel, load, open_run
from intlm.version import INFERENCE_VERSION

MODEL_TYPE = "intlm"
COMMON = (WEIGHTS, "config.json", "config.toml", "tokenizer.json")
FORMS = {"c": c.FILES, "onnx": onnx.FILES, "safetensors": ()}  # what else each holds
BUILT = ("model",)  # by the C form's Makefile


def export(run: Path, to: str, out: Path) -> Path:
    """Write the model of a run (or of another export) as one of FORMS to a directory, whole or not at all.

    Replaces an export that is there. Raises RunError where anything else is, or the directory is in use.
    """
    if to not in FORMS:
        raise RunError(f"{to}: no form of an export: expected one of {', '.join(FORMS)}")
    there = out.resolve()  # or a link, or the .. of a path, would be replaced
    if Path.cwd().is_relative_to(there):
        raise RunError(f"{out}: is the working directory, or holds it: choose another --out")
    if there.exists():
        found = {path.name for path in there.iterdir()} if there.is_dir() else {there.name}
        others = sorted(found.difference(COMMON, BUILT, *FORMS.values()))
        if others or (found and not is_export(there)):
            what = f"{others[0]}, which is no part of an export" if others else "something that is not an export"
            raise RunError(f"{out}: holds {what}: choose another --out")
    model = load(run)
    there.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{there.name}.", dir=there.parent) as work:
        made, old = Path(work, "new"), Path(work, "old")
        made.mkdir()
        _write_common(run, model, made)
        if to == "c":
            c.write(model, made)
        elif to == "onnx":
            onnx.write(model, made)
        if there.exists():
            os.replace(there, old)
        try:
            os.replace(made, there)
        except BaseException:  # an interrupt too: what was there is not lost
            if old.exists():
                os.replace(old, there)
            raise
    return out


def is_export(directory: Path) -> bool:
    """Whether its config.json is that of an export."""
    try:
        return json.loads((directory / "config.json").read_text()).get("model_type") == MODEL_TYPE
    except (OSError, ValueError, AttributeError):
        return False


def _write_common(run: Path, model: LanguageModel, out: Path) -> None:
    from safetensors.numpy import save

    config, tokenizer = open_run(run)
    weights = {name: np.ascontiguousarray(value) for name, value in model.parameters.items()}
    # One entry: safetensors writes several in any order, and an export is the same bytes every time.
    found = save(weights, {"inference_version": str(INFERENCE_VERSION)})
    (out / WEIGHTS).write_bytes(found)
    described = {"model_type": MODEL_TYPE, "inference_version": INFERENCE_VERSION, **model.architecture._asdict()}
    described["weights_sha256"] = hashlib.sha256(found).hexdigest()
    (out / "config.json").write_text(json.dumps(described, indent=2) + "\n")
    (out / "config.toml").write_text(configuration.dumps(config))
    (out / "tokenizer.json").write_text(json.dumps(tokenizer.to_json()))
