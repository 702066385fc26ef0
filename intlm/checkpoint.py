"""Checkpoints with orbax: everything needed to resume with the same bits, written atomically; the last few are kept.

A checkpoint is a directory `checkpoints/<update>` with the items `parameters`, `optimizer` (where the optimizer
has a state), `members` (recurrent states, and what members share) and `meta` (JSON: both versions of the arithmetic
and the caller's entries). The position in the data and in the noise is a function of the update alone. Beside the items
lies SHA256SUMS (intlm.checksums): orbax itself does not notice every changed byte. It is written last, when all else is
on the disk, so a checkpoint without it is incomplete.
"""

import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from intlm import checksums, schema
from intlm.arithmetic.fixed_point import MAX8
from intlm.errors import RunError
from intlm.model.parameters import Architecture, Parameters, specifications
from intlm.schema import check_range
from intlm.version import INFERENCE_VERSION

if TYPE_CHECKING:
    from intlm.update import TrainState

KEPT = 3
_DROPPED = ".dropped"  # where old checkpoints are until their files are deleted
_SPARE = 1 << 17  # bytes of a checkpoint beside its arrays, blocks that are not full included


def check_path(directory: Path) -> None:
    """Raise RunError where a run's path is not UTF-8, or Python does not read it as UTF-8, because orbax does."""
    path = os.path.abspath(directory)
    shown = path.encode("utf-8", "replace").decode()
    if shown != path:
        raise RunError(f"{shown}: not a path in UTF-8, which checkpoints need: choose another --run-dir, or rename it")
    if os.fsencode(path) != path.encode():
        raise RunError(f"{path}: checkpoints need UTF-8 file names: set PYTHONUTF8=1")


class Meta(msgspec.Struct, frozen=True):
    """The fields of the meta item that are read."""

    update: schema.Count
    inference_version: int | None = None
    training_version: int | None = None
    numerics_version: int | None = None  # both, in a checkpoint from before there were two
    corpus: str = ""  # the identity of the text (intlm.training)


def _kept(members: Any, common: Any) -> dict[str, Any]:
    """The item `members`; orbax writes no empty part."""
    return {"states": members, "common": common} if jax.tree.leaves(common) else {"states": members}


class Checkpoints:
    """The checkpoints in one directory."""

    def __init__(self, directory: Path, read_only: bool = False) -> None:
        check_path(directory)
        import orbax.checkpoint as ocp  # slow to import

        for name in ("absl", "asyncio"):  # orbax logs every step of every save, and its exceptions as well
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
            lightweight_initialize=True,  # reads the names alone: another process may delete the contents meanwhile
            # Only one of several processes writes; orbax is not to wait for the others.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=jax.process_index(),
                active_processes={jax.process_index()},
                barrier_sync_key_prefix=f"process{jax.process_index()}",
            )
            if jax.process_count() > 1
            else ocp.options.MultiprocessingOptions(),
        )
        with self._reading(self._directory):
            self._manager = ocp.CheckpointManager(self._directory, options=options)
        if not read_only:
            self._clear()

    def updates(self) -> list[int]:
        """The updates that have a whole checkpoint, oldest first."""
        return sorted(update for update in self._manager.all_steps() if self._is_whole(update))

    def _is_whole(self, update: int) -> bool:
        return (self._directory / str(update) / checksums.CHECKSUMS).is_file()

    def _clear(self) -> None:
        """Delete the files of dropped checkpoints, including those that a killed run left."""
        shutil.rmtree(self._directory / _DROPPED, ignore_errors=True)

    def save(self, update: int, state: "TrainState", meta: Mapping[str, Any]) -> None:
        """Write the checkpoint of `update`, then drop the oldest. Does nothing if it is there already.

        meta: the fields of `Meta` that are not set here, and others.
        """
        parameters, optimizer, members, common = state
        if update in self._manager.all_steps():
            if self._is_whole(update):
                return
            self._manager.delete(update)  # incomplete: the run was killed while writing it
        ocp = self._ocp

        def standard(tree: Any) -> Any:
            return ocp.args.StandardSave(jax.tree.map(np.asarray, tree))  # of device arrays orbax looks for other parts

        items = {
            "parameters": standard(parameters),
            "members": standard(_kept(members, common)),
            "meta": ocp.args.JsonSave({**meta, "update": update, "inference_version": INFERENCE_VERSION}),
        }
        if jax.tree.leaves(optimizer):
            items["optimizer"] = standard(optimizer)
        free = shutil.disk_usage(self._directory).free
        needed = _SPARE + sum(x.nbytes for x in jax.tree.leaves(state))
        if free < needed:  # orbax's own message is long
            raise RunError(
                f"{self._directory}: the checkpoint of update {update} was not written: No space left on device: "
                f"{free} bytes are free, {needed} needed"
            )
        try:
            self._manager.save(update, args=ocp.args.Composite(**items))
            checksums.write(self._directory / str(update))
            self._clear()
        except (OSError, ValueError) as error:  # orbax's storage has its own errors, such as for a full disk
            reason, of_system = str(error), re.search(r"os_error_code='(\d+)'", str(error))
            if isinstance(error, ValueError):
                if "RESOURCE_EXHAUSTED" not in reason and not of_system:
                    raise
                reason = os.strerror(int(of_system[1])) if of_system else "No space left on device"
            raise RunError(f"{self._directory}: the checkpoint of update {update} was not written: {reason}") from None

    def meta(self, update: int, training_version: int | None = None) -> Meta:
        """Reads the meta item, after checking the checksums of the whole checkpoint.

        training_version: that of the run's estimator, where the run is to be resumed. Raises RunError where the
        checkpoint has another, or another inference version than this package.
        """
        step = self._directory / str(update)
        if changed := checksums.difference(step):
            raise RunError(
                f"{changed[0]}: {changed[1]}: the checkpoint cannot be used; delete {step} to go back to the one before"
            )
        item = self._restore(update, {"meta": self._ocp.args.JsonRestore()})["meta"]
        meta = schema.convert(item, Meta, f"{step}/meta", RunError)
        for name, expected in (("inference_version", INFERENCE_VERSION), ("training_version", training_version)):
            if expected is not None and (found := getattr(meta, name) or meta.numerics_version) != expected:
                raise RunError(
                    f"{step}: {name} = {found}: expected {expected}, the one that this intlm computes: the bits of "
                    "another differ"
                )
        if meta.update != update:
            raise RunError(f"{step}/meta: damaged: of update {meta.update}, expected {update}")
        return meta

    def parameters(self, update: int, architecture: Architecture) -> Parameters:
        """Reads the parameters, int8, and checks their names and shapes against the architecture."""
        expected = {s.name: jax.ShapeDtypeStruct(s.shape, "int8") for s in specifications(architecture)}
        return self._arrays(update, {"parameters": self._standard(expected)})["parameters"]

    def restore(self, update: int, like: "TrainState", former: Sequence[str] = ()) -> "TrainState":
        """Reads a whole state; checks shapes and dtypes (`like`), and for int8 -128.

        former: fields, like those of the optimizer's state, that a checkpoint of an earlier version may have beside
        them; they are dropped.
        """
        parameters, optimizer, members, common = like
        items = {"parameters": self._standard(parameters), "members": self._standard(_kept(members, common))}
        if former:
            with self._reading(self._directory / str(update)):
                there = self._ocp.StandardCheckpointHandler().metadata(self._directory / str(update) / "optimizer").tree
            more = {field: optimizer[0] for field in former if field in there}
            items["optimizer"] = self._standard({**optimizer._asdict(), **more})
        elif jax.tree.leaves(optimizer):
            items["optimizer"] = self._standard(optimizer)
        found = self._arrays(update, items)
        state = found.get("optimizer", optimizer)
        if former:
            state = type(optimizer)(*(state[field] for field in optimizer._fields))
        return type(like)(
            found["parameters"], state, found["members"]["states"], found["members"].get("common", common)
        )

    def _standard(self, tree: Any) -> Any:
        local = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=local), tree)
        return self._ocp.args.StandardRestore(shapes)

    def _restore(self, update: int, items: dict[str, Any]) -> Any:
        with self._reading(self._directory / str(update)):
            return self._manager.restore(update, args=self._ocp.args.Composite(**items))

    @staticmethod
    @contextmanager
    def _reading(place: Path) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # orbax raises many kinds for a damaged checkpoint
            reason = str(error).strip().split("\n")[0][:300]
            raise RunError(f"{place}: the checkpoint cannot be read: {reason}") from None

    def _arrays(self, update: int, items: dict[str, Any]) -> Any:
        """Reads items of arrays, bound to no device like new ones, so that programs compiled for new ones take them."""
        found = jax.tree.map(np.asarray, dict(self._restore(update, items).items()))
        for path, array in jax.tree_util.tree_leaves_with_path(found):
            if array.dtype == np.int8:
                name = "/".join(str(getattr(key, "key", key)) for key in path)
                check_range(array, -MAX8, MAX8, f"{self._directory}/{update}: {name}")
        return jax.tree.map(jnp.asarray, found)
