"""Weights from wherever they lie: a run of ours, a file, a folder of Hugging Face's, a hub id."""

import dataclasses
import re
from collections.abc import Collection, Mapping

import numpy as np
from etils import epath

from maskformer_jax.checkpoints import convert, hub, readers
from maskformer_jax.checkpoints.convert import Format
from maskformer_jax.checkpoints.store import CheckpointStore
from maskformer_jax.errors import UserError

OURS = Format("a model of this package", signature="", table=[], torch_layout=False)
CHECKPOINTS = "checkpoints"  # folder of a run or a converted model


@dataclasses.dataclass(frozen=True)
class Weights:
    """Tensors by the names of their format."""

    origin: str
    form: Format
    tensors: Mapping[str, np.ndarray]

    def fill(self, shapes: Mapping, fresh: Collection[str] = ()) -> dict[str, np.ndarray]:
        """Our parameters; see `convert.fill`.

        Raises:
            UserError: also for a pattern in `fresh` that no parameter matches.
        """
        for pattern in fresh:
            if not any(re.match(pattern, name) for name in shapes):
                raise UserError(f"config.init.fresh has {pattern!r}, which is the beginning of no parameter's name")
        return convert.fill(shapes, self.tensors, self.form, fresh=fresh, origin=self.origin)


def locate(source: str) -> str:
    """A local path or bucket for a path, or for a hub id such as "facebook/maskformer-swin-tiny-ade".

    A hub id may have a revision, "name/model@v1"; of a path and a hub id that read the same, the path is taken.

    Raises:
        UserError: if there is nothing at `source`, or the hub does not give it; see `hub.download`.
    """
    if epath.Path(source).exists():
        return source
    if not hub.is_id(source):
        raise UserError(
            f"{source} does not exist: expected a file, a folder, or a hub id such as 'name/model' or "
            "'name/model@revision'"
        )
    return hub.download(source)


def open_weights(source: str, best_metric: str = "") -> Weights:
    """Reads the weights at a path or hub id.

    Args:
        best_metric: of a run of ours, decides which checkpoint is taken; the newest without it.
    """
    path = locate(source)
    if is_ours(path):
        store = CheckpointStore(str(epath.Path(path) / CHECKPOINTS), best_metric=best_metric)
        step = store.best_step()
        if step is None:
            raise UserError(f"{store.directory} has no checkpoint yet")
        tensors = store.read_model(step)
        store.close()
        return Weights(f"{path}, checkpoint {step}", OURS, tensors)
    tensors = convert.current_names(readers.read_tensors(path))
    return Weights(source, convert.recognize(tensors, source), tensors)


def is_ours(path: str) -> bool:
    """Whether a folder is a run of ours or a model converted by us."""
    return (epath.Path(path) / CHECKPOINTS).is_dir()
