"""Checkpoints with orbax: everything needed to go on with the same bits, written atomically, the last few kept.

A checkpoint is a directory `checkpoints/<update>` with the items `parameters`, `optimizer` (where the optimizer
has a state), `members` (recurrent states) and `meta` (JSON: both versions of the arithmetic and whatever the caller
adds). The position in the data and in the noise is a function of the update alone. Beside the items lies SHA256SUMS, as
`sha256sum` writes it: orbax itself does not notice every changed byte.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from intlm.errors import RunError
from intlm.model.parameters import Architecture, Parameters, specifications
from intlm.version import INFERENCE_VERSION, TRAINING_VERSION

KEPT = 3
CHECKSUMS = "SHA256SUMS"
_VERSIONS = {"inference_version": INFERENCE_VERSION, "training_version": TRAINING_VERSION}
_SPARE = 1 << 17  # bytes of a checkpoint beside its arrays, blocks that are not full included


class Checkpoints:
    """The checkpoints in one directory."""

    def __init__(self, directory: Path, read_only: bool = False) -> None:
        import orbax.checkpoint as ocp  # slow to import

        for name in ("absl", "asyncio"):  # orbax reports every step of every save, and what it raises once more
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._ocp = ocp
        self._directory = directory.absolute()
        if not read_only:
            self._directory.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else KEPT,
            read_only=read_only,
            enable_async_checkpointing=False,
            create=False,
            # Of several processes one writes; they do not meet here.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=jax.process_index(),
                active_processes={jax.process_index()},
                barrier_sync_key_prefix=f"process{jax.process_index()}",
            )
            if jax.process_count() > 1
            else ocp.options.MultiprocessingOptions(),
        )
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def updates(self) -> list[int]:
        """The updates that have a whole checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def save(
        self, update: int, parameters: Parameters, optimizer: Any, members: jax.Array, meta: Mapping[str, Any]
    ) -> None:
        """Write the checkpoint of `update`, then drop the oldest. Does nothing if it is there already."""
        if update in self._manager.all_steps():
            return
        ocp = self._ocp

        def standard(tree: Any) -> Any:
            return ocp.args.StandardSave(jax.tree.map(np.asarray, tree))  # orbax would look for a device's other parts

        items = {
            "parameters": standard(parameters),
            "members": standard({"states": members}),
            "meta": ocp.args.JsonSave({**meta, "update": update, **_VERSIONS}),
        }
        if jax.tree.leaves(optimizer):
            items["optimizer"] = standard(optimizer)
        free = shutil.disk_usage(self._directory).free
        needed = _SPARE + sum(x.nbytes for x in jax.tree.leaves((parameters, optimizer, members)))
        if free < needed:  # orbax's own words for it are long
            raise RunError(
                f"{self._directory}: the checkpoint of update {update} was not written: No space left on device: "
                f"{free} bytes are free, {needed} needed"
            )
        try:
            self._manager.save(update, args=ocp.args.Composite(**items))
            step = self._directory / str(update)
            sums = "".join(f"{_sha256(path)}  {path.relative_to(step)}\n" for path in sorted(_files(step)))
            temporary = step / f"{CHECKSUMS}.tmp"
            temporary.write_text(sums)
            os.replace(temporary, step / CHECKSUMS)
        except (OSError, ValueError) as error:  # orbax's storage has errors of its own for a full disk
            full = isinstance(error, ValueError) and "RESOURCE_EXHAUSTED" in str(error)
            if isinstance(error, ValueError) and not full:
                raise
            reason = "No space left on device" if full else str(error)
            raise RunError(f"{self._directory}: the checkpoint of update {update} was not written: {reason}") from None

    def meta(self, update: int, resume: bool = False) -> dict[str, Any]:
        """The meta item, after the checksums of the whole checkpoint.

        Raises RunError where the inference version is not this package's, or, to `resume` training, the training
        version. A checkpoint from before there were two has one number for both.
        """
        self._verify(update)
        meta = self._restore(update, {"meta": self._ocp.args.JsonRestore()})["meta"]
        for name in _VERSIONS if resume else ("inference_version",):
            if (found := meta.get(name, meta.get("numerics_version"))) != _VERSIONS[name]:
                raise RunError(
                    f"{self._directory}/{update}: {name} = {found}: expected {_VERSIONS[name]}, the one that this "
                    "intlm computes: the bits of another differ"
                )
        return meta

    def parameters(self, update: int, architecture: Architecture) -> Parameters:
        """The parameters, int8, their names and shapes checked against the architecture."""
        expected = {s.name: jax.ShapeDtypeStruct(s.shape, "int8") for s in specifications(architecture)}
        return _uncommitted(self._restore(update, {"parameters": self._standard(expected)})["parameters"])

    def restore(self, update: int, like: tuple[Parameters, Any, jax.Array]) -> tuple[Parameters, Any, jax.Array]:
        """Parameters, optimizer state and member states, of the shapes and dtypes of `like`."""
        parameters, optimizer, members = like
        items = {"parameters": self._standard(parameters), "members": self._standard({"states": members})}
        if jax.tree.leaves(optimizer):
            items["optimizer"] = self._standard(optimizer)
        found = self._restore(update, items)
        return _uncommitted((found["parameters"], found.get("optimizer", optimizer), found["members"]["states"]))

    def _verify(self, update: int) -> None:
        """Raise RunError where a file is not as it was saved. A run killed before the sums were written has none."""
        step = self._directory / str(update)
        if not (step / CHECKSUMS).exists():
            return
        for line in (step / CHECKSUMS).read_text(errors="replace").splitlines():
            digest, _, name = line.partition("  ")
            path = step / name
            if not path.is_file() or _sha256(path) != digest:
                what = "damaged" if path.exists() else "missing"
                raise RunError(
                    f"{path}: {what}: the checkpoint cannot be used; delete {step} to go back to the one before it"
                )

    def _standard(self, tree: Any) -> Any:
        local = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=local), tree)
        return self._ocp.args.StandardRestore(shapes)

    def _restore(self, update: int, items: dict[str, Any]) -> Any:
        try:
            return self._manager.restore(update, args=self._ocp.args.Composite(**items))
        except Exception as error:  # orbax raises many kinds for a damaged checkpoint
            reason = str(error).strip().split("\n")[0][:300]
            raise RunError(f"{self._directory}/{update}: the checkpoint cannot be read: {reason}") from None


def _uncommitted(tree: Any) -> Any:
    """The same arrays bound to no device, as new ones are: programs compiled for those serve these too."""
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), tree)


def _files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
