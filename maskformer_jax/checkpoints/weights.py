"""Weights from any source: a run of this package, a file, a folder of Hugging Face transformers, a hub id.

A source is located and opened once. Tensors of safetensors files are read when they are used.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from etils import epath

from maskformer_jax.checkpoints import convert, hub, readers, workdir
from maskformer_jax.checkpoints.formats import recognize
from maskformer_jax.checkpoints.formats.format import Format, Tensors
from maskformer_jax.checkpoints.published import Description
from maskformer_jax.checkpoints.store import CheckpointStore
from maskformer_jax.errors import UserError

OURS = Format(
    "a model of this package",
    matches=lambda names: False,  # recognised by its folder
    table=[],
    describe=lambda tensors, folder, origin: workdir.describe(folder),
    transform=lambda name, array, shape: array,
)


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights at one source.

    Attributes:
        origin: the source, for messages; of a run also the checkpoint.
        format: what the names of the tensors mean.
        folder: where the files are.
        read: gives the tensors by the names of the format; called once.
    """

    origin: str
    format: Format
    folder: str
    read: Callable[[], Tensors]

    @functools.cached_property
    def tensors(self) -> Tensors:
        """By the names of the format; each has a `shape`, and `np.asarray` gives its values."""
        return self.read()

    @property
    def is_backbone(self) -> bool:
        """Whether the weights are of a backbone alone, which no model can be built from."""
        return self.format.describe is None

    def describe(self) -> Description:
        """The model that the weights are of, which must not be a backbone alone; raises as `Format.describe`."""
        return self.format.describe(self.tensors, self.folder, self.origin)

    def load_into(
        self, shapes: Mapping[str, Any], reinit: Collection[str] = (), setting: str = "reinit"
    ) -> dict[str, np.ndarray]:
        """The parameters of a model, strictly: every parameter and every tensor is accounted for.

        Args:
            shapes: everything that the model stores, by our names; values have a `shape`.
            reinit: patterns of our names, matched from the start, whose tensors are not used.
            setting: what messages call `reinit`.

        Returns:
            float32 copies for all names in the scope of the format, without those of `reinit` and those that such
            files may lack.

        Raises:
            UserError: if a pattern of `reinit` matches no parameter; if a parameter is not in the file or has another
                shape there, or a tensor of the file is not used. The message names all of them.
        """
        for pattern in reinit:
            if not any(re.match(pattern, name) for name in shapes):
                raise UserError(f"{setting} has {pattern!r}, which is the beginning of no parameter's name")
        form, loaded, used, missing, misshapen = self.format, {}, set(), [], {}
        for name, leaf in shapes.items():
            if not re.search(form.scope, name):
                continue
            source, part = convert.find_source(name, form.table)
            used.add(source)
            if any(re.match(pattern, name) for pattern in reinit):
                continue
            if source not in self.tensors:
                if not re.search(form.missing_ok, name):
                    missing.append(f"{name} ({source})")
                continue
            tensor, shape = np.asarray(self.tensors[source]), tuple(leaf.shape)
            array = form.transform(name, tensor if part is None else convert.take_third(tensor, part), shape)
            if array.shape == shape:
                # A copy: JAX may use the memory of an array, and this one's may be a file that others write to.
                loaded[name] = np.array(array, np.float32, order="C")
            else:
                misshapen[name] = f"{name}: {list(array.shape)} in the file, {list(shape)} in the model"
        unused = [name for name in self.tensors if name not in used and not re.search(form.unused_ok, name)]
        _complain(self, setting, missing=missing, misshapen=misshapen, unused=unused)
        return loaded


def _complain(
    weights: Weights, setting: str, *, missing: list[str], misshapen: dict[str, str], unused: list[str]
) -> None:
    """Raises UserError with everything that does not fit, if anything does not."""
    kinds = {
        "of another shape": list(misshapen.values()),
        "parameters that the file lacks": missing,
        "tensors that the model has no place for": unused,
    }
    if not any(kinds.values()):
        return
    lists = [f"{what}:\n    " + "\n    ".join(names) for what, names in kinds.items() if names]
    counts = ", ".join(f"{len(names)} {what}" for what, names in kinds.items() if names)
    cure = "Use the model settings that the file was made with."
    if not missing and not unused:
        layers = tuple(dict.fromkeys(re.sub(r"\.(kernel|bias)$", "", name) for name in misshapen))
        cure += f" To train on other classes or queries, start these from random values: {setting}={layers}."
    raise UserError(
        "\n".join(lists)
        + f"\n{weights.origin} is {weights.format.label}, and does not fit the model: {counts} (listed above).\n{cure}"
    )


def open_weights(source: str) -> Weights:
    """Locates a source and opens it.

    Args:
        source: the folder of a run (its best checkpoint is taken) or of a converted model, a file, a folder of
            Hugging Face transformers, or a hub id such as "facebook/maskformer-swin-tiny-ade".

    Raises:
        UserError: as `locate`, and if what is there cannot be read or is of no known format.
    """
    path = locate(source)
    if workdir.is_ours(path):
        return _open_run(path)
    tensors = readers.read_tensors(path)
    form = recognize(tensors, source)
    tensors = {form.current_name(name): tensor for name, tensor in tensors.items()}
    folder = path if epath.Path(path).is_dir() else str(epath.Path(path).parent)
    return Weights(source, form, folder, lambda: tensors)


def _open_run(path: str) -> Weights:
    store = CheckpointStore(workdir.checkpoints(path), best_metric=workdir.best_metric(path))
    step = store.best_step()
    if step is None:
        raise UserError(f"{store.directory} has no checkpoint yet")

    def read() -> Tensors:
        tensors = store.read_model(step)
        store.close()
        return tensors

    return Weights(f"{path}, checkpoint {step}", OURS, path, read)


def locate(source: str) -> str:
    """The local path or the cloud storage of a source, which for a hub id is a folder in the hub's cache.

    A hub id may have a revision, "name/model@v1". If a path and a hub id read the same, the path is taken.

    Raises:
        UserError: if nothing is at `source`, or the hub does not give it; see `hub.download`.
    """
    if epath.Path(source).exists():
        return source
    if not hub.is_id(source):
        raise UserError(
            f"{source} does not exist: expected a file, a folder, or a hub id such as 'name/model' or "
            "'name/model@revision'"
        )
    return hub.download(source)
