"""A trained model in other forms: integer C, an integer ONNX graph, safetensors (`intlm export`).

Every export holds what is needed to use it far from its run, whatever else is in it:

model.safetensors    the weights, int8, by the names of `intlm.model.parameters`
config.json          the architecture and the numerics version, for other tools
config.toml          the run's configuration
tokenizer.json       the tokenizer

so that `intlm evaluate`, `generate`, `simulate` and `train --from` read it as they read a run.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from intlm import config as configuration
from intlm.errors import RunError
from intlm.export import c, onnx
from intlm.run import WEIGHTS, LanguageModel, load, open_run
from intlm.version import NUMERICS_VERSION

FORMS = ("c", "onnx", "safetensors")


def export(run: Path, to: str, out: Path) -> Path:
    """Write the model of a run (or of another export) as one of FORMS to a directory, whole or not at all.

    Replaces an export that is there. Raises RunError where something else is.
    """
    if out.exists() and any(out.iterdir()) and not (out / "config.json").is_file():
        raise RunError(f"{out}: holds something that is not an export: choose another --out")
    model = load(run)
    out.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        made.chmod(0o777 & ~_umask())
        _write_common(run, model, made)
        if to == "c":
            c.write(model, made)
        elif to == "onnx":
            onnx.write(model, made)
        shutil.rmtree(out, ignore_errors=True)
        os.replace(made, out)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return out


def _write_common(run: Path, model: LanguageModel, out: Path) -> None:
    from safetensors.numpy import save

    config, tokenizer = open_run(run)
    weights = {name: np.ascontiguousarray(value) for name, value in model.parameters.items()}
    # One entry: safetensors writes several in any order, and an export is the same bytes every time.
    (out / WEIGHTS).write_bytes(save(weights, {"numerics_version": str(NUMERICS_VERSION)}))
    architecture = {"model_type": "intlm", "numerics_version": NUMERICS_VERSION, **model.architecture._asdict()}
    (out / "config.json").write_text(json.dumps(architecture, indent=2) + "\n")
    (out / "config.toml").write_text(configuration.dumps(config))
    (out / "tokenizer.json").write_text(json.dumps(tokenizer.to_json()))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
