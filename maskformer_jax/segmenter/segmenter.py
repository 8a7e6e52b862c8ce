"""Models ready to use."""

import functools
import numbers
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

import jax
import numpy as np
from jax.sharding import Mesh

from maskformer_jax.catalog import Classes
from maskformer_jax.errors import UserError
from maskformer_jax.files import limits, paths
from maskformer_jax.inference import InferenceConfig, Result, instances_of, segments_of
from maskformer_jax.inference.compiled import View, compile_postprocess
from maskformer_jax.input_pipeline.resize import resize_to_test_size
from maskformer_jax.models import build_network
from maskformer_jax.ops import masks
from maskformer_jax.ops.image import round_up
from maskformer_jax.parsing import parse
from maskformer_jax.segmenter.images import ImageLike, to_rgb
from maskformer_jax.segmenter.pretrained import open_model
from maskformer_jax.segmenter.results import (
    InstanceSegmentation,
    Segmentation,
    one_segment_per_class,
    why_no_instances,
    why_no_segments,
)
from maskformer_jax.sharding import make_mesh, replicated
from maskformer_jax.types import Arrays, Network, Prediction

TASKS = ("semantic", "panoptic", "instance")
INSTANCE_THRESHOLD = 0.5  # of scores, unless another is given
# Canvases are multiples of it, so that photos of nearly one size share a compiled function.
_STEP = 64

Images = Sequence[ImageLike]


class Segmenter:
    """A model with its weights and classes, ready for images of any size and of every kind that `to_rgb` takes.

    A list of images gives the list of their results. They are computed one after another: each is, to the bit, the
    result of the image alone, and many images take no more memory than the largest. Every new size compiles once, which
    takes longer than a result; sizes that round up to the same multiples of 64 pixels share the compiled function. Of
    these the `limits.PROGRAMS` used last are kept, so that images of any number of sizes need bounded memory.

    Args:
        network, params, frozen: the model.
        classes: what it sees.
        inference: how images are prepared and results are read.
        model: the configuration that the network was built from.
        origin: where the weights come from, for messages.
    """

    def __init__(
        self,
        network: Network,
        params: Arrays,
        frozen: Arrays,
        *,
        classes: Classes,
        inference: InferenceConfig,
        model: dict[str, Any],
        origin: str,
    ):
        self.network, self._mesh = network, make_mesh(jax.local_devices()[:1])
        self.classes = classes
        self.inference = inference
        self.model = model
        self.origin = origin
        self.params, self.frozen = jax.device_put((params, frozen), replicated(self._mesh))
        # A function for each shape: JAX keeps what it has compiled for as long as the function exists.
        self._logits = functools.lru_cache(limits.PROGRAMS.value)(lambda shape: jax.jit(_last_logits(network)))
        self._run = functools.lru_cache(limits.PROGRAMS.value)(functools.partial(_compile, network, classes, inference))

    @property
    def tasks(self) -> tuple[str, ...]:
        """Those of TASKS that differ for this model; a per-pixel classifier has one result for all."""
        if self.network.num_queries is None:
            return ("semantic",)
        return TASKS if any(self.classes.is_thing) else ("semantic", "panoptic")

    def check_instances(self) -> None:
        """Raises UserError if the model does not separate instances."""
        if "instance" not in self.tasks:
            raise UserError(
                f"{self.origin} does not separate instances: it has no thing classes, or is a per-pixel classifier"
            )

    def logits(self, pixel_values: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What the last layer predicts for normalized images, without any resizing or padding.

        Args:
            pixel_values: [B, H, W, 3] float, as `ops.image.normalize` gives; any size.

        Returns:
            class_logits [B, Q, K+1], the last class being "no object", and mask_logits [B, Q, h, w] at stride 4.

        Raises:
            UserError: for another shape, or if the model is a per-pixel classifier and has no queries.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[-1] != 3:
            raise UserError(f"pixel_values has shape {tuple(pixel_values.shape)}; expected [batch, height, width, 3]")
        if self.network.num_queries is None:
            raise UserError(f"{self.origin} is a per-pixel classifier and has no queries; use semantic(image)")
        return self._logits(pixel_values.shape)(self.params, self.frozen, pixel_values)

    @overload
    def semantic(self, image: ImageLike) -> Segmentation: ...
    @overload
    def semantic(self, image: Images) -> list[Segmentation]: ...
    def semantic(self, image):
        """A class for every pixel of an image, or of each in a list: one segment for each class that occurs.

        Raises:
            UserError: for an image that `to_rgb` does not take, or if the model's scores are not finite.
        """

        def segment(rgb: np.ndarray) -> Segmentation:
            return _semantic(self._see(rgb, "semantic"), rgb.shape[:2], self.classes)

        return _for_each(image, segment)

    @overload
    def panoptic(
        self, image: ImageLike, threshold: float | None = None, overlap: float | None = None
    ) -> Segmentation: ...
    @overload
    def panoptic(
        self, image: Images, threshold: float | None = None, overlap: float | None = None
    ) -> list[Segmentation]: ...
    def panoptic(self, image, threshold=None, overlap=None):
        """Segments of an image, or of each in a list: one for each thing and for each class of stuff.

        A per-pixel classifier gives the segments of `semantic`, and ignores thresholds.

        Args:
            threshold: a query is a segment if its score is above it, 0..1,
            overlap: and if others leave it at least this fraction of its mask, 0..1. Both default to the model's.

        Raises:
            UserError: as `semantic`, and for a threshold outside 0..1.
        """
        threshold = _fraction("threshold", self.inference.score_threshold if threshold is None else threshold)
        overlap = _fraction("overlap", self.inference.overlap_threshold if overlap is None else overlap)

        def segment(rgb: np.ndarray) -> Segmentation:
            found = self._see(rgb, "panoptic", threshold, overlap).panoptic
            labels, scores = segments_of(found, 0)
            why_empty = why_no_segments(found.label[0], found.score[0], threshold, overlap, self.classes)
            id_map = _cut(found.id_map, rgb.shape[:2]).astype(np.uint16)
            return Segmentation(id_map, labels, scores, self.classes, why_empty)

        return _for_each(image, segment)

    @overload
    def instances(self, image: ImageLike, threshold: float = INSTANCE_THRESHOLD) -> InstanceSegmentation: ...
    @overload
    def instances(self, image: Images, threshold: float = INSTANCE_THRESHOLD) -> list[InstanceSegmentation]: ...
    def instances(self, image, threshold=INSTANCE_THRESHOLD):
        """The things in an image, or in each of a list: masks that may overlap, each with a class and a score.

        Args:
            threshold: of the score, 0..1: the probability of the class times that of the mask's pixels.

        Raises:
            UserError: as `semantic`, for a threshold outside 0..1, and for a model without things or without queries.
        """
        threshold = _fraction("threshold", threshold)
        self.check_instances()

        def segment(rgb: np.ndarray) -> InstanceSegmentation:
            found = self._see(rgb, "instance").instances
            masks, labels, scores = instances_of(found, 0, rgb.shape[:2], threshold)
            why_empty = why_no_instances(int(found.label[0, 0]), float(found.score[0, 0]), threshold, self.classes)
            return InstanceSegmentation(masks, labels, scores, self.classes, why_empty)

        return _for_each(image, segment)

    def segment(
        self,
        image: ImageLike | Images,
        task: str,
        *,
        threshold: float | None = None,
        overlap: float | None = None,
    ) -> Any:
        """`semantic`, `panoptic` or `instances` by the name of the task.

        The semantic task has no thresholds, and the instance task has no overlap.
        """
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

    def _see(self, image: np.ndarray, task: str, threshold: float = 0.0, overlap: float = 0.0) -> Result:
        """The result for [H, W, 3] uint8, on the host; its maps may be larger than the image."""
        how = self.inference
        resized = resize_to_test_size(image, how.short_edge, how.longest_edge, how.stretch_to, how.size_rounding)
        size, original = (np.array([pixels.shape[:2]], np.int32) for pixels in (resized, image))
        valid_size = round_up(size, how.size_divisor)
        accepts_padding = self.network.accepts_padding and not how.window
        height, width = round_up(valid_size, _STEP)[0] if accepts_padding else valid_size[0]
        padded = np.zeros((1, height, width, 3), np.uint8)
        padded[0, : resized.shape[0], : resized.shape[1]] = resized
        view = View(padded, size, None if (height, width) == tuple(valid_size[0]) else valid_size)
        thresholds = np.array([threshold, overlap], np.float32)
        canvas = tuple(round_up(original, _STEP)[0].tolist())
        run = self._run(self._mesh, task, padded.shape, view.valid_size is None, canvas)
        found = jax.device_get(run(self.params, self.frozen, (view,), original, thresholds, canvas))
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
        cure = "" if self.model["dtype"] == "float32" else " Load it with dtype='float32'."
        return (
            f"{self.origin}: its scores are not finite, though all parameters are; the computation overflows in "
            f"{self.model['dtype']}.{cure}"
        )


def load(source: str, *, dtype: str | None = None, base: str = "") -> Segmenter:
    """A model ready to use, without TensorFlow.

    Args:
        source: the --workdir of a run (its best checkpoint is taken), a folder made by
            `python -m maskformer_jax.convert`, a folder of Hugging Face's, a file of the original model zoo, or a
            hub id such as "facebook/maskformer-swin-tiny-ade".
        dtype: of the computation, "float32" or "bfloat16"; as the model was trained if not given.
        base: for a model whose backbone is stored as differences: the pretrained backbone that they are to.

    Raises:
        UserError: if the source is not there or not readable, or if any tensor of it has no place in the model
            or any parameter of the model is not in it.
    """
    described, weights = open_model(paths.expand(source), paths.expand(base))
    model = dict(described.model) if dtype is None else {**described.model, "dtype": dtype}
    try:
        network = build_network(len(described.classes), **model)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    params, frozen = jax.eval_shape(network.init, jax.random.key(0))
    filled = weights.load_into({**params, **frozen})
    return Segmenter(
        network,
        {name: filled[name] for name in params},
        {name: filled[name] for name in frozen},
        classes=described.classes,
        inference=parse(InferenceConfig, described.inference, f"{source}: inference"),
        model=model,
        origin=weights.origin,
    )


def _compile(
    network: Network, classes: Classes, inference: InferenceConfig, mesh: Mesh, task: str, *shapes: Any
) -> Callable[..., Result]:
    """The function of a task, to call with arrays of these shapes alone."""
    options = {name: getattr(inference, name) for name in ("upsample", "panoptic_rule", "window")}
    return compile_postprocess(network, classes, mesh, tasks=(task,), **options)


def _last_logits(network: Network) -> Callable[[Arrays, Arrays, jax.Array], tuple[jax.Array, jax.Array]]:
    """A function (params, frozen, pixel_values) -> class logits [B, Q, K1] and mask logits [B, Q, h, w]."""

    def run(params: Arrays, frozen: Arrays, pixel_values: jax.Array) -> tuple[jax.Array, jax.Array]:
        last: Prediction = network.apply(params, frozen, pixel_values).last()
        return last.class_logits[0], masks.logits(last)[0]

    return run


_Segments = TypeVar("_Segments", Segmentation, InstanceSegmentation)


def _for_each(images: ImageLike | Images, segment: Callable[[np.ndarray], _Segments]) -> _Segments | list[_Segments]:
    """The result of an image, or the list of the results of a list of them."""
    if not isinstance(images, list | tuple):
        return segment(to_rgb(images))
    results = []
    for index, image in enumerate(images):
        try:
            rgb = to_rgb(image)
        except UserError as error:
            raise UserError(f"at position {index} of the list: {error}") from error
        results.append(segment(rgb))
    return results


def _fraction(name: str, value: float) -> float:
    # NaN fails the comparison, too.
    if not isinstance(value, numbers.Real) or not 0 <= value <= 1:
        raise UserError(f"{name} is {value!r}; it must lie in 0..1 (80 % is 0.8)")
    return float(value)


def _semantic(found: Result, size: tuple[int, int], classes: Classes) -> Segmentation:
    """One segment for each class that occurs, in the order of the classes."""
    id_map, labels = one_segment_per_class(_cut(found.class_map, size), len(classes))
    return Segmentation(id_map, labels, found.class_score[0][labels], classes)


def _cut(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H, W] of the only image of maps [1, >= H, >= W]."""
    return maps[0, : size[0], : size[1]]
