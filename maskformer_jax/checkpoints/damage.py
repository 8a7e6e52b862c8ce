"""Whether a checkpoint is what was written: its manifest, or whether it can be read at all, and finite values."""

import json
from typing import Any

import jax
import numpy as np
import tensorstore
from etils import epath
from jax.experimental import multihost_utils

from maskformer_jax.checkpoints import manifest
from maskformer_jax.checkpoints.layout import MODEL, SCORES, TRAINING
from maskformer_jax.errors import UserError
from maskformer_jax.files import paths

# Beginnings of tensorstore's messages for reads that failed for other reasons than damaged files.
_NOT_THE_FILES = ("PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")


def damage(path: epath.Path) -> str:
    """Why a checkpoint that training wrote is not what was written; "" if it is.

    Reads everything once, on this process alone, and compares it with the manifest. Checkpoints of earlier versions
    have no manifest: there only what makes them unreadable is found, and a turned bit may go unnoticed.

    Raises:
        UserError: if it cannot be read for another reason than damaged files, such as missing permission.
    """
    return damage_of_items(path, (MODEL, TRAINING))


def damage_of_items(path: epath.Path, items: tuple[str, ...]) -> str:
    """Why some items of a checkpoint, or its scores, are not what was written; "" if they are."""
    if reason := _damage_of_file(path / "_CHECKPOINT_METADATA"):
        return reason
    if manifest.is_promised(path):
        return manifest.difference(path, (*items, SCORES))
    parts = (damage_of_scores(path), *(_damage_of_item(path / item) for item in items))
    return next(filter(None, parts), "")


def damage_at_a_glance(path: epath.Path) -> str:
    """Why the scores of a checkpoint cannot be trusted, or which of its files are not there; "" if nothing is found."""
    if manifest.is_promised(path) and (reason := manifest.difference(path, contents=False)):
        return reason
    return damage_of_scores(path)


def _damage_of_file(path: epath.Path, required: bool = True) -> str:
    """Why a JSON file cannot be read; "" if it can, or if it is missing and not required."""
    if not path.exists():
        return f"{path.name} is missing" if required else ""
    try:
        json.loads(path.read_text())
    except ValueError as error:
        return f"{path.parent.name}/{path.name} is not JSON: {error}"
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    return ""


def damage_of_scores(path: epath.Path) -> str:
    if manifest.is_promised(path) and (reason := manifest.difference(path, (SCORES,))):
        return reason
    return _damage_of_file(path / SCORES / "metrics", required=False)


def _damage_of_item(path: epath.Path) -> str:
    """Why one item of a checkpoint, such as the model, cannot be read; "" if it can."""
    if not path.is_dir():
        return f"{path.name} is missing"
    for part in (path / "_METADATA", path / "_sharding", *path.glob("array_metadatas/*")):
        # A restore works without the others, but not if they are damaged.
        if reason := _damage_of_file(part, required=part.name == "_METADATA"):
            return reason
    try:
        _read_arrays(str(path))
    except (ValueError, OSError) as error:
        if isinstance(error, PermissionError) or str(error).startswith(_NOT_THE_FILES):
            raise UserError(f"{path} cannot be read: {error}") from error
        return str(error).splitlines()[0]
    return ""


def _read_arrays(path: str) -> None:
    """Reads and discards every array that Orbax wrote to a folder.

    Unlike Orbax this does not wait for other processes, and after a failure no reads are left in the background.
    """
    database = {"driver": "ocdbt", "base": f"file://{path}" if paths.is_local(path) else path}
    keys = tensorstore.KvStore.open(database).result().list().result()
    names = [key.decode().removesuffix(".zarray") for key in keys if key.endswith(b".zarray")]
    if not names:
        raise ValueError(f"{path} has no arrays")
    for start in range(0, len(names), 64):  # the number of arrays in memory at once
        specs = [{"driver": "zarr", "kvstore": {**database, "path": name}} for name in names[start : start + 64]]
        arrays = [tensorstore.open(spec) for spec in specs]
        reads = [array.result().read() for array in arrays]
        for read in reads:
            read.result()


def damaged_message(path: epath.Path, reason: str) -> str:
    return (
        f"checkpoint {path} is damaged: {reason}.\n"
        f"Restore it from a copy; or move that folder away, and the same command takes the best of the others."
    )


def unchecked_message(path: epath.Path) -> str:
    return (
        f"checkpoint {path} has no {manifest.NAME}: an earlier version of this package wrote it. It can be read, but "
        "whether each bit is what was written cannot be known."
    )


def non_finite(items: Any) -> list[str]:
    """The names of arrays in a tree that hold a NaN or an infinity, on any process; every process must call it."""
    leaves = jax.tree_util.tree_leaves_with_path(items)
    bad = np.array([not _is_finite(leaf) for _, leaf in leaves], bool)
    if jax.process_count() > 1:
        bad = np.asarray(multihost_utils.process_allgather(bad)).any(axis=0)
    return ["/".join(_key(part) for part in path) for (path, _), wrong in zip(leaves, bad, strict=True) if wrong]


def _is_finite(array: Any) -> bool:
    """Whether all values of an array that this process has are finite."""
    if not jax.numpy.issubdtype(array.dtype, jax.numpy.inexact):
        return True
    shards = {str(shard.index): shard.data for shard in getattr(array, "addressable_shards", ())}
    # On the host: a compiled check would have to be compiled for every shape.
    return all(bool(np.isfinite(np.asarray(values)).all()) for values in shards.values() or [array])


def _key(part: Any) -> str:
    return str(next(getattr(part, name) for name in ("key", "name", "idx") if hasattr(part, name)))
