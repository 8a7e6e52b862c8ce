"""Models ready to use. No TensorFlow."""

import dataclasses
import functools
import numbers
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import numpy as np
from PIL import Image

from maskformer_jax.catalog import Classes
from maskformer_jax.engine.settings import Inference, Model, build
from maskformer_jax.errors import UserError
from maskformer_jax.inference import Answer, instances_of, segments_of
from maskformer_jax.inference.compiled import View, make_answer
from maskformer_jax.models import Network, build_network
from maskformer_jax.models.network import Arrays
from maskformer_jax.ops.image import round_up, shortest_edge_size
from maskformer_jax.segmenter.images import Picture, to_rgb
from maskformer_jax.segmenter.pretrained import open_model
from maskformer_jax.segmenter.results import InstanceSegmentation, Queries, Segmentation, one_segment_a_class
from maskformer_jax.sharding import make_mesh, replicated
from maskformer_jax.types import Prediction, last_layer

TASKS = ("semantic", "panoptic", "instance")
INSTANCE_THRESHOLD = 0.5  # of scores, unless another is given
# Networks read and answers have sizes of whole multiples of it: photos of nearly one size share a compiled program.
_STEP = 64

Found = TypeVar("Found")  # Segmentation or InstanceSegmentation


class Segmenter:
    """A model with its weights and classes, ready for images of any size and of every kind that `to_rgb` takes.

    A list of images gives the list of their answers. They are computed one after another: each is, to the bit, what
    the image alone gives, and many images take no more memory than the largest. Every new size compiles once, which
    takes longer than an answer; sizes that fall into the same steps of 64 pixels share what was compiled.

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
        self.network, self._mesh = network, make_mesh(jax.local_devices()[:1])
        self.classes = classes
        self.inference = inference
        self.model = model
        self.origin = origin
        self.params, self.frozen = jax.device_put((params, frozen), replicated(self._mesh))
        self._apply = jax.jit(functools.partial(network.apply, every_layer=False))
        options = {"resample": inference.resample, "rule": inference.rule}
        self._answer = {task: make_answer(network, classes, self._mesh, tasks=(task,), **options) for task in TASKS}

    @property
    def tasks(self) -> tuple[str, ...]:
        """Those of TASKS that have an answer of their own; a classifier of pixels has one for all."""
        if self.model.name != "maskformer":
            return ("semantic",)
        return TASKS if any(self.classes.is_thing) else ("semantic", "panoptic")

    def check_instances(self) -> None:
        """Raises UserError if the model tells no instances apart."""
        if "instance" not in self.tasks:
            raise UserError(f"{self.origin} tells no instances apart: it has no things, or classifies pixels")

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

    def semantic(self, image: Picture | Sequence[Picture]) -> Segmentation | list[Segmentation]:
        """A class for every pixel of an image, or of each in a list: one segment for each class that occurs.

        Raises:
            UserError: for an image that `to_rgb` does not take, or if the model's scores are not finite.
        """

        def answer(rgb: np.ndarray) -> Segmentation:
            return _semantic(self._see(rgb, "semantic"), rgb.shape[:2], self.classes)

        return _for_each(image, answer)

    def panoptic(
        self, image: Picture | Sequence[Picture], threshold: float | None = None, overlap: float | None = None
    ) -> Segmentation | list[Segmentation]:
        """Segments of an image, or of each in a list, one for each thing and for each class of stuff.

        A classifier of pixels gives the segments of `semantic`; thresholds mean nothing to it.

        Args:
            threshold: queries are segments if their score is above it, 0..1.
            overlap: and if this share of their mask, 0..1, is not covered by others. Both default to the model's.

        Raises:
            UserError: as `semantic`, and for a threshold outside 0..1.
        """
        threshold = _share("threshold", self.inference.score_threshold if threshold is None else threshold)
        overlap = _share("overlap", self.inference.overlap_threshold if overlap is None else overlap)

        def answer(rgb: np.ndarray) -> Segmentation:
            found = self._see(rgb, "panoptic", threshold, overlap).panoptic
            labels, scores = segments_of(found, 0)
            queries = Queries(found.label[0], found.score[0], threshold, overlap)
            id_map = _cut(found.id_map, rgb.shape[:2]).astype(np.uint16)
            return Segmentation(id_map, labels, scores, self.classes, queries)

        return _for_each(image, answer)

    def instances(
        self, image: Picture | Sequence[Picture], threshold: float = INSTANCE_THRESHOLD
    ) -> InstanceSegmentation | list[InstanceSegmentation]:
        """The things in an image, or in each of a list: masks that may overlap, each with a class and a score.

        Args:
            threshold: of the score, 0..1: the probability of the class times that of the mask's pixels.

        Raises:
            UserError: as `semantic`, for a threshold outside 0..1, and for a model without things or without queries.
        """
        threshold = _share("threshold", threshold)
        self.check_instances()

        def answer(rgb: np.ndarray) -> InstanceSegmentation:
            found = self._see(rgb, "instance").instances
            masks, labels, scores = instances_of(found, 0, rgb.shape[:2], threshold)
            best = int(found.label[0, 0]), float(found.score[0, 0])
            return InstanceSegmentation(masks, labels, scores, self.classes, threshold, best)

        return _for_each(image, answer)

    def segment(
        self,
        image: Picture | Sequence[Picture],
        task: str,
        *,
        threshold: float | None = None,
        overlap: float | None = None,
    ) -> Found | list[Found]:
        """`semantic`, `panoptic` or `instance` by name; the first has no thresholds, and the last no overlap."""
        if task not in TASKS:
            raise UserError(f"task is {task!r}; it must be one of {TASKS}")
        if task == "panoptic":
            return self.panoptic(image, threshold, overlap)
        if task == "instance":
            if overlap is not None:
                raise UserError("task 'instance' has no overlap threshold, since instances may overlap; leave it out")
            return self.instances(image) if threshold is None else self.instances(image, threshold)
        if threshold is not None or overlap is not None:
            raise UserError("task 'semantic' has no thresholds; leave them out, or use 'panoptic'")
        return self.semantic(image)

    def _see(self, image: np.ndarray, task: str, threshold: float = 0.0, overlap: float = 0.0) -> Answer:
        """The answer for [H, W, 3] uint8, on the host; its maps may be larger than the image."""
        resized = _resize(image, self.inference)
        size, original = (np.array([pixels.shape[:2]], np.int32) for pixels in (resized, image))
        extent = round_up(size, self.inference.size_divisor)
        height, width = round_up(extent, _STEP)[0]
        padded = np.zeros((1, height, width, 3), np.uint8)
        padded[0, : resized.shape[0], : resized.shape[1]] = resized
        view = View(padded, size, None if (height, width) == tuple(extent[0]) else extent)
        thresholds = np.array([threshold, overlap], np.float32)
        canvas = tuple(round_up(original, _STEP)[0].tolist())
        found = jax.device_get(self._answer[task](self.params, self.frozen, (view,), original, thresholds, canvas))
        if not found.finite[0]:
            raise UserError(self._why_not_finite())
        return found

    def _why_not_finite(self) -> str:
        parameters = {**self.params, **self.frozen}
        broken = [name for name, array in parameters.items() if not np.isfinite(jax.device_get(array)).all()]
        if broken:
            return (
                f"{self.origin}: its scores are not finite, because {len(broken)} of its {len(parameters)} parameters "
                f"hold NaN or infinity, {broken[0]} among them. The training had diverged or the file is damaged: "
                "use an earlier checkpoint or a fresh copy."
            )
        cure = "" if self.model.dtype == "float32" else " Load it with dtype='float32'."
        return (
            f"{self.origin}: its scores are not finite, though all parameters are; the computation overflows in "
            f"{self.model.dtype}.{cure}"
        )


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
    filled = weights.load_into({**params, **frozen})
    return Segmenter(
        network,
        {name: filled[name] for name in params},
        {name: filled[name] for name in frozen},
        classes=described.classes,
        inference=build(Inference, described.inference, f"{source}: inference").check(),
        model=model,
        origin=weights.origin,
    )


def _for_each(images: Picture | Sequence[Picture], answer: Callable[[np.ndarray], Found]) -> Found | list[Found]:
    """The answer for an image, or the list of answers for a list of them."""
    if not isinstance(images, list | tuple):
        return answer(to_rgb(images))
    answers = []
    for index, image in enumerate(images):
        try:
            rgb = to_rgb(image)
        except UserError as error:
            raise UserError(f"at position {index} of the list: {error}") from error
        answers.append(answer(rgb))
    return answers


def _share(name: str, value: float) -> float:
    # NaN fails the comparison, too.
    if not isinstance(value, numbers.Real) or not 0 <= value <= 1:
        raise UserError(f"{name} is {value!r}; it must lie in 0..1 (80 % is 0.8)")
    return float(value)


def _semantic(found: Answer, size: tuple[int, int], classes: Classes) -> Segmentation:
    """One segment for each class that occurs, in the order of the classes."""
    id_map, labels = one_segment_a_class(_cut(found.class_map, size), len(classes))
    return Segmentation(id_map, labels, found.class_score[0][labels], classes)


def _cut(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H, W] of the only image of maps [1, >= H, >= W]."""
    return maps[0, : size[0], : size[1]]


def _resize(image: np.ndarray, inference: Inference) -> np.ndarray:
    """To the test size: the shorter side to `short_edge`, unless the longer would exceed `longest_edge`."""
    height, width = shortest_edge_size(image.shape[:2], inference.short_edge, inference.longest_edge)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
