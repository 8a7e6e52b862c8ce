"""Models ready to use, and what they find in images: id maps, segments, overlays. No TensorFlow."""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
from etils import epath
from PIL import Image, ImageOps

from maskformer_jax import visualize
from maskformer_jax.catalog import Classes
from maskformer_jax.checkpoints.names.huggingface import HUGGINGFACE
from maskformer_jax.checkpoints.published import Description, describe_huggingface, describe_original
from maskformer_jax.checkpoints.weights import OURS, Weights, locate
from maskformer_jax.engine import workdir
from maskformer_jax.engine.answering import make_answer
from maskformer_jax.engine.settings import Inference, Model, build
from maskformer_jax.errors import UserError
from maskformer_jax.inference import Answer, segments_of
from maskformer_jax.models import Network, build_network
from maskformer_jax.models.network import Arrays
from maskformer_jax.training.sharding import make_mesh, replicated
from maskformer_jax.types import Prediction, last_layer

TASKS = ("semantic", "panoptic")


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """What was found in one image, at the image's own size."""

    id_map: np.ndarray  # [H, W] uint16; 0 is void, v the segment at position v - 1
    labels: np.ndarray  # [M] class of each segment
    scores: np.ndarray  # [M] in 0..1
    classes: Classes

    @property
    def class_map(self) -> np.ndarray:
        """[H, W] class of each pixel; the ignore index of the classes where nothing is seen."""
        lookup = np.append(self.classes.ignore_index, self.labels).astype(np.int32)
        return lookup[self.id_map]

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


class Segmenter:
    """A model with its weights and classes, ready for images of any size.

    Every new shape of input compiles once.

    Args:
        network, params, frozen: the model.
        classes: what it sees.
        inference: how images are resized and answers are read.
        model: the settings that the network was built from.
        origin: where the weights come from, for people.
    """

    def __init__(
        self,
        network: Network,
        params: Arrays,
        frozen: Arrays,
        *,
        classes: Classes,
        inference: Inference,
        model: Model,
        origin: str,
    ):
        mesh = make_mesh(jax.local_devices()[:1])
        self.classes = classes
        self.inference = inference
        self.model = model
        self.origin = origin
        self.params, self.frozen = jax.device_put((params, frozen), replicated(mesh))
        self._apply = jax.jit(network.apply)
        self._answer = make_answer(network, classes, inference.resample, mesh)

    def logits(self, pixel_values: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What the last layer says of normalised images, without any resizing or padding.

        Args:
            pixel_values: [B, H, W, 3] float, as `ops.image.normalize` gives; any size.

        Returns:
            class_logits [B, Q, K+1], the last class being "no object", and mask_logits [B, Q, h, w] at stride 4.

        Raises:
            UserError: for another shape, or if the model classifies pixels and has no queries.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[-1] != 3:
            raise UserError(f"pixel_values has shape {tuple(pixel_values.shape)}; expected [batch, height, width, 3]")
        last = last_layer(self._apply(self.params, self.frozen, pixel_values))
        if not isinstance(last, Prediction):
            raise UserError(f"{self.origin} classifies pixels and has no queries; use semantic(image)")
        return last.class_logits, last.mask_logits

    def semantic(self, image: np.ndarray) -> Segmentation:
        """A class for every pixel of an image [H, W, 3] uint8 RGB: one segment for each class that occurs."""
        return _semantic(self._see(image, None, None), self.classes)

    def panoptic(self, image: np.ndarray, threshold: float | None = None, overlap: float | None = None) -> Segmentation:
        """Segments of an image [H, W, 3] uint8 RGB, one for each thing and for each class of stuff.

        Args:
            threshold: queries are segments if their score is above it.
            overlap: and if this share of their mask is not covered by others. Both default to the model's.
        """
        found = self._see(image, threshold, overlap)
        labels, scores = segments_of(found.panoptic, 0)
        return Segmentation(found.panoptic.id_map[0].astype(np.uint16), labels, scores, self.classes)

    def segment(self, image: np.ndarray, task: str) -> Segmentation:
        """`semantic` or `panoptic` by name."""
        if task not in TASKS:
            raise UserError(f"task is {task!r}; it must be one of {TASKS}")
        return self.semantic(image) if task == "semantic" else self.panoptic(image)

    def _see(self, image: np.ndarray, threshold: float | None, overlap: float | None) -> Answer:
        if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
            raise UserError(f"image is {image.dtype} {image.shape}; expected uint8 [height, width, 3], RGB")
        resized = _resize(image, self.inference)
        height, width = (
            -(-length // self.inference.size_divisor) * self.inference.size_divisor for length in resized.shape[:2]
        )
        canvas = np.zeros((1, height, width, 3), np.uint8)
        canvas[0, : resized.shape[0], : resized.shape[1]] = resized
        sizes = np.array([resized.shape[:2], image.shape[:2]], np.int32)
        thresholds = np.array(
            [
                self.inference.score_threshold if threshold is None else threshold,
                self.inference.overlap_threshold if overlap is None else overlap,
            ],
            np.float32,
        )
        found = self._answer(self.params, self.frozen, canvas, sizes[:1], sizes[1:], thresholds, image.shape[:2])
        return jax.device_get(found)


def load(source: str, *, dtype: str | None = None) -> Segmenter:
    """A model ready to use, without TensorFlow.

    Args:
        source: the --workdir of a run (its best checkpoint is taken), a folder made by
            `python -m maskformer_jax.convert`, a folder of Hugging Face's, a file of the original model zoo, or a
            hub id such as "facebook/maskformer-swin-tiny-ade".
        dtype: of the computation, "float32" or "bfloat16"; as the model was trained if not given.

    Raises:
        UserError: if the source is not there or not readable, or if any tensor of it has no place in the model
            or any parameter of the model is not in it.
    """
    described, weights = open_model(source)
    model = build(Model, described.model, f"{source}: model")
    if dtype is not None:
        model = dataclasses.replace(model, dtype=dtype)
    network = build_network(len(described.classes), **vars(model))
    params, frozen = jax.eval_shape(network.init, jax.random.key(0))
    filled = weights.fill({**params, **frozen})
    return Segmenter(
        network,
        {name: filled[name] for name in params},
        {name: filled[name] for name in frozen},
        classes=described.classes,
        inference=build(Inference, described.inference, f"{source}: inference").check(),
        model=model,
        origin=weights.origin,
    )


def open_model(source: str) -> tuple[Description, Weights]:
    """What a source holds: the description of its model, and its weights."""
    path = locate(source)
    weights = workdir.read_weights(path)
    if weights.form is OURS:
        return workdir.describe(path)[0], weights
    if weights.form.holds:
        raise UserError(
            f"{source} is {weights.form.label}, which segments nothing yet. Train a model from it: "
            f"--config.init.weights={source}"
        )
    if weights.form.table is HUGGINGFACE:
        folder = path if epath.Path(path).is_dir() else epath.Path(path).parent
        return describe_huggingface(str(folder)), weights
    return describe_original(weights.tensors, source), weights


def _semantic(found: Answer, classes: Classes) -> Segmentation:
    """One segment for each class that occurs, in the order of the classes."""
    labels, index = np.unique(found.class_map[0], return_inverse=True)
    id_map = index.reshape(found.class_map[0].shape).astype(np.uint16) + 1
    return Segmentation(id_map, labels, found.class_score[0][labels], classes)


def _resize(image: np.ndarray, inference: Inference) -> np.ndarray:
    """To the test size: the shorter side to `short_edge`, unless the longer would exceed `longest_edge`."""
    height, width = image.shape[:2]
    scale = min(inference.short_edge / min(height, width), inference.longest_edge / max(height, width))
    size = (int(width * scale + 0.5), int(height * scale + 0.5))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


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
