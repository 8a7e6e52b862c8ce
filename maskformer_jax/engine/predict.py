"""A trained model and image files: overlays, id maps and segments. No TensorFlow."""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
from etils import epath
from PIL import Image, ImageOps

from maskformer_jax import visualize
from maskformer_jax.catalog import Classes
from maskformer_jax.checkpoints.store import CheckpointStore
from maskformer_jax.engine import workdir
from maskformer_jax.engine.answering import make_answer
from maskformer_jax.engine.settings import Settings
from maskformer_jax.errors import UserError
from maskformer_jax.inference import Answer, segments_of
from maskformer_jax.models import build_network
from maskformer_jax.training.sharding import make_mesh, replicated

TASKS = ("semantic", "panoptic")
SIZE_DIVISOR = 32  # network inputs are padded to a multiple, as in the original


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """What was found in one image, at the image's own size."""

    id_map: np.ndarray  # [H, W] uint16; 0 is void, v the segment at position v - 1
    labels: np.ndarray  # [M] class of each segment
    scores: np.ndarray  # [M] in 0..1
    classes: Classes

    def segments(self) -> list[dict[str, Any]]:
        """A plain record per segment: id, class (index), name, score, area in pixels."""
        areas = np.bincount(self.id_map.ravel(), minlength=len(self.labels) + 1)[1:]
        return [
            {
                "id": index + 1,
                "class": int(label),
                "name": self.classes.names[label],
                "score": round(float(score), 4),
                "area": int(area),
            }
            for index, (label, score, area) in enumerate(zip(self.labels, self.scores, areas, strict=True))
        ]


class Predictor:
    """The best checkpoint of a run, ready for images of any size.

    Args:
        directory: the --workdir of a training run.
    """

    def __init__(self, directory: str):
        self.settings, self.classes = workdir.read(directory)
        mesh = make_mesh(jax.local_devices()[:1])
        network = build_network(len(self.classes), **vars(self.settings.model))
        store = CheckpointStore(workdir.checkpoints(directory), best_metric=self.settings.eval.best_metric)
        self.step = store.best_step()
        if self.step is None:
            raise UserError(f"{store.directory} has no checkpoint yet")
        model = jax.jit(network.init, out_shardings=replicated(mesh))(jax.random.key(0))
        self._params, self._frozen = store.restore_model(self.step, *model)
        store.close()
        self._answer = make_answer(network, self.classes, self.settings.eval, mesh)

    def __call__(self, image: np.ndarray, task: str) -> Segmentation:
        """Segments one image [H, W, 3] uint8 RGB; `task` is one of TASKS."""
        height, width = image.shape[:2]
        resized = _resize(image, self.settings)
        canvas = np.zeros((*_round_up(resized.shape[:2]), 3), np.uint8)
        canvas[: resized.shape[0], : resized.shape[1]] = resized
        sizes = np.array([resized.shape[:2], (height, width)], np.int32)
        found = self._answer(self._params, self._frozen, canvas[None], sizes[:1], sizes[1:], (height, width))
        found = jax.device_get(found)
        if task == "panoptic":
            labels, scores = segments_of(found.panoptic, 0)
            return Segmentation(found.panoptic.id_map[0].astype(np.uint16), labels, scores, self.classes)
        if task == "semantic":
            return _semantic(found, self.classes)
        raise UserError(f"task is {task!r}; it must be one of {TASKS}")


def _semantic(found: Answer, classes: Classes) -> Segmentation:
    """One segment for each class that occurs, in the order of the classes."""
    labels, index = np.unique(found.class_map[0], return_inverse=True)
    id_map = index.reshape(found.class_map[0].shape).astype(np.uint16) + 1
    return Segmentation(id_map, labels, found.class_score[0][labels], classes)


def _resize(image: np.ndarray, settings: Settings) -> np.ndarray:
    """To the test size: the shorter side to `short_edge`, unless the longer would exceed `longest_edge`."""
    height, width = image.shape[:2]
    scale = min(settings.eval.short_edge / min(height, width), settings.eval.longest_edge / max(height, width))
    size = (int(width * scale + 0.5), int(height * scale + 0.5))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def _round_up(size: tuple[int, int]) -> tuple[int, int]:
    return tuple(-(-length // SIZE_DIVISOR) * SIZE_DIVISOR for length in size)


def read_image(path: str) -> np.ndarray:
    """[H, W, 3] uint8 RGB, turned as its EXIF data say; raises UserError for a file that is no image."""
    try:
        with Image.open(path) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise UserError(f"{path}: not a readable image ({error})") from error


def write_result(image: np.ndarray, found: Segmentation, out: str, stem: str) -> None:
    """Writes STEM_overlay.png, STEM_ids.png (16 bit, 0 is void) and STEM.json into a folder."""
    folder = epath.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    larger, id_map = visualize.enlarge(image, found.id_map)
    overlay = visualize.overlay(larger, id_map, found.labels, found.classes)
    pictures = {"overlay": Image.fromarray(overlay), "ids": Image.fromarray(found.id_map)}
    for name, picture in pictures.items():
        with (folder / f"{stem}_{name}.png").open("wb") as file:
            picture.save(file, format="PNG")
    record = {"height": image.shape[0], "width": image.shape[1], "segments": found.segments()}
    (folder / f"{stem}.json").write_text(json.dumps(record, indent=2) + "\n")
