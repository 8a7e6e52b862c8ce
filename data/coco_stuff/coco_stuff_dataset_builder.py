"""COCO-Stuff-10k with 171 classes, semantic: release 1.0 or 1.1, or as prepared by detectron2."""

import functools
import io
from collections.abc import Iterator, Sequence
from typing import ClassVar

import h5py
import numpy as np
import scipy.io
from etils import epath

from maskformer_jax import catalog
from maskformer_jax.errors import UserError
from maskformer_jax.files import paths
from maskformer_jax.input_pipeline import schema
from maskformer_jax.input_pipeline.builders import LayoutsBuilder, Reads, read_image, read_png
from maskformer_jax.input_pipeline.schema import Annotated

LISTS = {"train": "train", "validation": "test"}  # the publisher's names of the splits
PREPARED_VOID = 255

# The number of names in a file identifies its release, and thus the label of each class and that of void.
#   release 1.0, 172 names: 1 is unlabeled, followed by the 171 classes
#   release 1.1, 182 names: 0 is unlabeled, 1 to 91 are COCO's things and 92 to 182 stuff; eleven are never used
RELEASES = {
    172: (range(2, 173), 1),
    182: (catalog.load("coco_stuff").ids, 0),
}


class Builder(LayoutsBuilder):
    """9,000 training and 1,000 validation images; the publisher calls the latter test images."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Unpack cocostuff-10k-v1.1.zip or cocostuff-10k-v1.0.zip. FOLDER holds images/, annotations/ and imageLists/; "
        "or images_detectron2/ and annotations_detectron2/, each with train/ and test/."
    )
    CATALOG = "coco_stuff"
    LAYOUTS: ClassVar = (
        {split: f"imageLists/{name}.txt" for split, name in LISTS.items()},
        {split: f"images_detectron2/{name}" for split, name in LISTS.items()},
    )

    def read(self, root: epath.Path, split: str) -> Reads:
        found = root / self.folder(root, split)
        pairs = _published_pairs(root, found) if found.suffix == ".txt" else _prepared_pairs(root, found)
        for image_path, label_path in pairs:
            yield image_path.stem, functools.partial(_read, image_path, label_path, len(self.classes))


def _read(image_path: epath.Path, label_path: epath.Path, num_classes: int) -> Annotated:
    if label_path.suffix == ".mat":
        labels = _published_labels(label_path)
    else:
        labels = _lookup(read_png(label_path), range(num_classes), PREPARED_VOID, label_path)
    image = read_image(image_path, labels.shape, label_path)
    return Annotated(image, *schema.semantic_segments(labels, num_classes))


def _published_pairs(root: epath.Path, names: epath.Path) -> Iterator[tuple[epath.Path, epath.Path]]:
    try:
        listed = names.read_text().split()
    except (OSError, ValueError) as error:  # ValueError: bytes that are no text
        raise UserError(f"{names} cannot be read: {error}. Unpack it again.") from error
    for name in listed:
        image, labels = (
            paths.inside(root / folder, name + suffix, f"{names}: an image")
            for folder, suffix in (("images", ".jpg"), ("annotations", ".mat"))
        )
        yield image, labels


def _prepared_pairs(root: epath.Path, folder: epath.Path) -> Iterator[tuple[epath.Path, epath.Path]]:
    for image in sorted(folder.glob("*.jpg")):
        yield image, root / "annotations_detectron2" / folder.name / f"{image.stem}.png"


def _published_labels(path: epath.Path) -> np.ndarray:
    labels, names = _read_mat(path)
    if names not in RELEASES:
        raise UserError(f"{path} names {names} classes; expected 172 (release 1.0) or 182 (release 1.1)")
    return _lookup(labels, *RELEASES[names], path)


def _lookup(labels: np.ndarray, known: Sequence[int], void: int, path: epath.Path) -> np.ndarray:
    """[H, W] the position of each label in `known`, -1 for void; raises UserError for any other label."""
    class_of = {void: -1, **{label: index for index, label in enumerate(known)}}
    values, index = np.unique(labels, return_inverse=True)
    unknown = [int(value) for value in values if value not in class_of]
    if labels.ndim != 2 or unknown:
        raise UserError(
            f"{path} has shape {labels.shape} and the labels {unknown[:5]}, which this release does not have; expected "
            f"[height, width] with {known[0]} to {known[-1]} for classes and {void} for void. Replace the file."
        )
    return np.array([class_of[value] for value in values.tolist()])[index.reshape(labels.shape)]


def _read_mat(path: epath.Path) -> tuple[np.ndarray, int]:
    """The labels [H, W] of a MATLAB file in either format, and the number of classes that it names."""
    try:
        data = io.BytesIO(path.read_bytes())
        try:
            values = scipy.io.loadmat(data, variable_names=("S", "names"))
            return values["S"], values["names"].size
        except NotImplementedError:  # MATLAB 7.3 files are HDF5; their rows are MATLAB's columns
            with h5py.File(data) as values:
                return values["S"][()].T, values["names"].size
    except FileNotFoundError:
        raise UserError(f"{path} is missing: every image of imageLists/ needs labels") from None
    except KeyError as error:
        raise UserError(f'{path} lacks "S" (labels) or "names" (of the classes): {error}. Unpack it again.') from error
    except Exception as error:  # SciPy and h5py raise errors of many types for a damaged file
        raise UserError(f"{path}: not a readable MATLAB file ({error}). Unpack it again.") from error
