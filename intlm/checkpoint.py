"""Checkpoints with orbax: everything needed to go on with the same bits, written atomically, the last few kept.

A checkpoint is a directory `checkpoints/<update>` with the items `parameters`, `optimizer` (where the optimizer
has a state), `members` (recurrent states) and `meta` (JSON: numerics version and whatever the caller adds). The
position in the data and in the noise is a function of the update alone. Beside the items lies SHA256SUMS, as
`sha256sum` writes it: orbax itself does not notice every changed byte.
"""

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from intlm.errors import RunError
from intlm.model.parameters import Architecture, Parameters, specifications
from intlm.version import NUMERICS_VERSION

KEPT = 3
CHECKSUMS = "SHA256SUMS"
_DROPPED = ".dropped"  # where old checkpoints are until their files are deleted
_SPARE = 1 << 17  # bytes of a checkpoint beside its arrays, blocks that are not full included


def check_path(directory: Path) -> None:
    """Raise RunError where the path of a run is not UTF-8, or Python does not take it for that: orbax does."""
    path = os.path.abspath(directory)
    shown = path.encode("utf-8", "replace").decode()
    if shown != path:
        raise RunError(f"{shown}: not a path in UTF-8, which checkpoints need: choose another --run-dir, or rename it")
    if os.fsencode(path) != path.encode():
        raise RunError(f"{path}: checkpoints need names of files in UTF-8, as Python has them with PYTHONUTF8=1")


class Checkpoints:
    """The checkpoints in one directory."""

    def __init__(self, directory: Path, read_only: bool = False) -> None:
        check_path(directory)
        import orbax.checkpoint as ocp  # slow to import

        for name in ("absl", "asyncio"):  # orbax reports every step of every save, and what it raises once more
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._ocp = ocp
        self._directory = directory.absolute()
        if not read_only:
            self._directory.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else KEPT,
            todelete_subdir=_DROPPED,  # so that a checkpoint is gone for readers at once
            read_only=read_only,
            enable_async_checkpointing=False,
            create=False,
            lightweight_initialize=True,  # the names alone: what is in them may be dropped meanwhile
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
        if not read_only:
            self._clear()

    def updates(self) -> list[int]:
        """The updates that have a whole checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def _clear(self) -> None:
        """Delete the checkpoints that were dropped, also by a run that was killed meanwhile."""
        shutil.rmtree(self._directory / _DROPPED, ignore_errors=True)

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
            "meta": ocp.args.JsonSave({**meta, "update": update, "numerics_version": NUMERICS_VERSION}),
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
            temporary.write_text(sums, "utf-8")
            os.replace(temporary, step / CHECKSUMS)
            self._clear()
        except (OSError, ValueError) as error:  # orbax's storage has errors of its own, for a full disk for one
            reason, of_system = str(error), re.search(r"os_error_code='(\d+)'", str(error))
            if isinstance(error, ValueError):
                if "RESOURCE_EXHAUSTED" not in reason and not of_system:
                    raise
                reason = os.strerror(int(of_system[1])) if of_system else "No space left on device"
            raise RunError(f"{self._directory}: the checkpoint of update {update} was not written: {reason}") from None

    def meta(self, update: int) -> dict[str, Any]:
        """The meta item, its numerics version checked, after the checksums of the whole checkpoint."""
        self._verify(update)
        meta = self._restore(update, {"meta": self._ocp.args.JsonRestore()})["meta"]
        if (found := meta.get("numerics_version")) != NUMERICS_VERSION:
            raise RunError(
                f"{self._directory}/{update}: computed by numerics version {found}; this intlm computes version "
                f"{NUMERICS_VERSION}, whose bits differ"
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
        for line in (step / CHECKSUMS).read_text("utf-8", "replace").splitlines():
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
