"""Weights from any source: a run, a model of this package, a file, a folder of Hugging Face transformers, a hub id.

A source is located and opened once. Tensors of safetensors files are read when they are used.
"""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from maskformer_jax import bundled
from maskformer_jax.checkpoints import convert, differences, hub, readers, workdir, wrappers
from maskformer_jax.checkpoints.formats import OURS, is_known, recognize
from maskformer_jax.checkpoints.formats.format import Format, Tensors
from maskformer_jax.checkpoints.published import Description
from maskformer_jax.checkpoints.store import CheckpointStore
from maskformer_jax.errors import UserError
from maskformer_jax.files import paths

_RANK_ERRORS = (ValueError, IndexError, TypeError, ZeroDivisionError)
_MOST_NAMES = 1000  # more than the largest model has


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights at one source.

    Attributes:
        origin: the source, for messages; of a run also the checkpoint.
        format: what the names of the tensors mean.
        folder: where the files are.
        read: gives the tensors by the names of the format; called once.
        base: the weights that those of the backbone are differences to; None if they are whole.
    """

    origin: str
    format: Format
    folder: str
    read: Callable[[], Tensors]
    base: "Weights | None" = None

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
        with _ranks_of(self.format, self.origin):
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
                shape there, or a tensor of the file is not used, and the message names all of them; if the base has
                other parameters, or the sum with it is no trained backbone.
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
            array = _transform(form, name, tensor, part, shape)
            if array.shape == shape:
                # A copy: JAX may use the memory of an array, and this one's may be a file that others write to.
                loaded[name] = np.array(array, np.float32, order="C")
            else:
                misshapen[name] = f"{name}: {list(array.shape)} in the file, {list(shape)} in the model"
        unused = [name for name in self.tensors if name not in used and not re.search(form.unused_ok, name)]
        _complain(self, setting, missing=missing, misshapen=misshapen, unused=unused)
        if self.base is None:
            return loaded
        return loaded | differences.add(self.base.load_into(shapes), loaded, self.origin, self.base.origin)


def _transform(
    form: Format, name: str, tensor: np.ndarray, part: convert.Part | None, shape: tuple[int, ...]
) -> np.ndarray:
    """The array of a parameter; the tensor as it is if it has fewer axes than the format knows."""
    try:
        return form.transform(name, tensor if part is None else convert.take_part(tensor, part), shape)
    except _RANK_ERRORS:
        return tensor


@contextlib.contextmanager
def _ranks_of(form: Format, origin: str) -> Iterator[None]:
    """Names tensors with another number of axes than the format knows, which formats do not check one by one."""
    try:
        yield
    except UserError:
        raise
    except _RANK_ERRORS as error:
        raise UserError(
            f"{origin} has the names of {form.label}, but tensors of other shapes ({error}). Is it damaged? "
            "Download it again."
        ) from None


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
    lists = [f"{what}:\n    " + "\n    ".join(_first(names)) for what, names in kinds.items() if names]
    counts = ", ".join(f"{len(names)} {what}" for what, names in kinds.items() if names)
    cure = "Use the model settings that the file was made with."
    if not missing and not unused:
        layers = tuple(dict.fromkeys(re.sub(r"\.(kernel|bias)$", "", name) for name in misshapen))
        cure += f" To train on other classes or queries, start these from random values: {setting}={layers}."
    raise UserError(
        "\n".join(lists)
        + f"\n{weights.origin} is {weights.format.label}, and does not fit the model: {counts} (listed above).\n{cure}"
    )


def _first(names: list[str]) -> list[str]:
    """Names for a message: a file may have very many, and very long ones."""
    more = [f"... and {len(names) - _MOST_NAMES} more"] if len(names) > _MOST_NAMES else []
    return [name[:300] for name in names[:_MOST_NAMES]] + more


def open_weights(source: str, base: str = "") -> Weights:
    """Locates a source and opens it.

    Args:
        source: the folder of a run (its best checkpoint is taken) or of a converted model, a file, a folder of
            Hugging Face transformers, a hub id such as "facebook/maskformer-swin-tiny-ade", or the name of a model that
            comes with the package.
        base: a source of the backbone that the weights are differences to; empty for weights that are whole.

    Raises:
        UserError: as `locate`, if what is there cannot be read or is of no known format, if differences have no base,
            or whole weights have one.
    """
    source = paths.expand(source)
    path = locate(source)
    if workdir.is_ours(path):
        _check_base(source, OURS, is_difference=False, base=base)
        return _open_run(path)
    with _hint_at_bundled(source):
        tensors = readers.read_tensors(path)
    names = wrappers.inner_names(tensors, is_known, source)
    form = recognize(names.values(), source)
    tensors = {name: tensor for name, tensor in tensors.items() if name in names}
    tensors = wrappers.renamed(tensors, {name: form.current_name(inner) for name, inner in names.items()}, source)
    with _ranks_of(form, source):
        tensors = form.prepare(tensors)
        is_difference = form.is_difference(tensors)
    _check_base(source, form, is_difference, base)
    folder = path if epath.Path(path).is_dir() else str(epath.Path(path).parent)
    return Weights(source, form, folder, lambda: tensors, _open_base(base) if base else None)


@contextlib.contextmanager
def _hint_at_bundled(source: str) -> Iterator[None]:
    """Says of a path that holds no weights, but reads like the name of a bundled model, where that model is."""
    try:
        yield
    except UserError as error:
        if source not in bundled.MODELS:
            raise
        raise UserError(
            f"{error}\n{source!r} exists here, so it was taken for a path. The model of this name that comes with the "
            f"package is {bundled.folder(source)}; give that path, or run in another folder."
        ) from None


def _check_base(source: str, form: Format, is_difference: bool, base: str) -> None:
    if is_difference and not base:
        raise UserError(
            f"{source} is {form.label} that holds only what training has changed in the backbone. Give the pretrained "
            "backbone, too, such as facebook/dinov3-vitl16-pretrain-lvd1689m or a file of Meta's release: "
            f"python -m maskformer_jax.convert --from={source} --base=FILE --to=DIR --format=orbax makes a whole "
            "model. In training, set --config.init.base_weights=FILE."
        )
    if base and not is_difference:
        raise UserError(f"{source} is {form.label} that is whole, so {base} cannot be its base; leave out the base")


def _open_base(source: str) -> Weights:
    base = open_weights(source)
    if not base.is_backbone:
        raise UserError(f"{source} is {base.format.label}; the base of differences must be a pretrained backbone alone")
    return base


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

    A hub id may have a revision, "name/model@v1". If a path and a hub id, or the name of a model that comes with the
    package, read the same, the path is taken.

    Raises:
        UserError: if nothing is at `source`, or the hub does not give it; see `hub.download`.
    """
    if epath.Path(source).exists():
        return source
    if source in bundled.MODELS:
        return str(bundled.folder(source))
    if not hub.is_id(source):
        raise UserError(
            f"{source} does not exist: expected a file, a folder, a hub id such as 'name/model' or "
            f"'name/model@revision', or a model that comes with the package ({', '.join(bundled.MODELS)})"
        )
    return hub.download(source)
