"""Formats that a trained model is exported to (`intlm export`). One file each.

Every export holds what is needed to use it far from its run, whatever else is in it:

model.safetensors    the weights, int8, by the names of `intlm.model.parameters`
config.json          the architecture, the inference version, the weights' SHA-256 and the text's identity
config.toml          the run's configuration
tokenizer.json       the tokenizer
SHA256SUMS           checksums of the files, so that another export replaces only files that an export wrote

so that `intlm evaluate`, `generate`, `simulate` and `train --from` read it as they read a run.
"""

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import msgspec

from intlm import checksums
from intlm import config as configuration
from intlm.errors import RunError
from intlm.lazy import np
from intlm.schema import read_json
from intlm.settings import Family, Part
from intlm.version import INFERENCE_VERSION

if TYPE_CHECKING:
    from intlm.language_model import LanguageModel

MODEL_TYPE = "intlm"


class Format(Part):
    """A format of exports: its own files, beside those of every export. Its settings are flags of `intlm export`."""

    built: ClassVar[tuple[str, ...]] = ()  # files that are made from an export later, and replaced with it

    def write(self, model: "LanguageModel", out: Path) -> None:
        """Write a model's files to a directory, which has those of every export already.

        Raises MissingPackage, or RunError where the format does not serve the model.
        """
        raise NotImplementedError


FORMATS: Family[Format] = Family("export format", "intlm.export")


def export(run: Path, to: Format, out: Path) -> Path:
    """Write the model of a run (or of another export) in a format to a directory, whole or not at all.

    Replaces an existing export if it is unchanged. Raises RunError where the directory holds anything else or is the
    working directory.
    """

    from intlm.run import load

    there = out.resolve()  # or a link, or the .. of a path, would be replaced
    if Path.cwd().is_relative_to(there):
        raise RunError(f"{out}: is the working directory, or holds it: choose another --out")
    if there.exists() and (why := _refusal(there)):
        raise RunError(f"{out}: {why}: choose another --out")
    model = load(run)
    there.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{there.name}.", dir=there.parent) as work:
        made, old = Path(work, "new"), Path(work, "old")
        made.mkdir()
        _write_common(run, model, made, there)
        to.write(model, made)
        checksums.write(made)
        if there.exists():
            os.replace(there, old)
        try:
            os.replace(made, there)
        except BaseException:  # an interrupt too: what was there is not lost
            if old.exists():
                os.replace(old, there)
            raise
    return out


def _refusal(directory: Path) -> str | None:
    """Why the directory must not be replaced, in words; None where it is empty or an unchanged export."""
    if not directory.is_dir():
        return "is not a directory"
    inside = sorted(directory.iterdir())
    if folder := next((path.name for path in inside if path.is_dir()), None):
        return f"holds {folder}, a directory, and exports have none"
    built = tuple(name for format in FORMATS.parts().values() for name in format.built)
    if changed := checksums.difference(directory, built) if inside else None:
        path, what = changed
        if path.name == checksums.CHECKSUMS:
            return f"holds something that is not an export: there is no {checksums.CHECKSUMS}"
        if what != "missing":
            return f"holds {path.name}, which is {what}: not as the export was written"
    with suppress(RunError):
        if not inside or read_json(directory / "config.json", _Kind, RunError).model_type == MODEL_TYPE:
            return None
    return "holds something that is not an export"


class _Kind(msgspec.Struct):
    """The field of config.json that identifies an export."""

    model_type: str


def _write_common(run: Path, model: "LanguageModel", out: Path, there: Path) -> None:
    """Write the files that every export has to `out`, which becomes `there`."""
    from safetensors.numpy import save

    from intlm.run import WEIGHTS, open_run, text_of

    config, tokenizer = open_run(run)
    weights = {name: np.ascontiguousarray(value) for name, value in model.parameters.items()}
    # One entry: safetensors writes several in any order, and an export is the same bytes every time.
    saved = save(weights, {"inference_version": str(INFERENCE_VERSION)})
    (out / WEIGHTS).write_bytes(saved)
    described = {"model_type": MODEL_TYPE, "inference_version": INFERENCE_VERSION, **model.architecture.described()}
    described["weights_sha256"] = hashlib.sha256(saved).hexdigest()
    if text := text_of(run):
        described["corpus"] = text
    (out / "config.json").write_text(json.dumps(described, indent=2) + "\n", "utf-8")
    (out / "config.toml").write_text(configuration.dumps(config, there), "utf-8")
    (out / "tokenizer.json").write_text(json.dumps(tokenizer.to_json()), "utf-8")
