"""Models ready to use, and what they find in images: id maps, segments, overlays. No TensorFlow."""

import dataclasses
import json
import numbers
from collections.abc import Callable, Sequence
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
RESULT_SUFFIXES = ("_overlay.png", "_ids.png", ".json")  # of what `write_result` writes, in that order
# Answers are computed at sizes of whole multiples of it: photos of nearly one size share a compiled program.
_CANVAS_STEP = 64

Picture = np.ndarray | Image.Image  # one image, of any of the kinds that `to_rgb` takes


@dataclasses.dataclass(frozen=True)
class Queries:
    """What each query of a model says of one image, and what it takes for a segment."""

    labels: np.ndarray  # [Q] the most likely class; the number of classes is "no object"
    scores: np.ndarray  # [Q] its probability
    threshold: float
    overlap: float

    def why_none(self, classes: Classes) -> str:
        """In words why none of these queries shows as a segment."""
        is_object = self.labels < len(classes)
        if not is_object.any():
            surest = f"the least sure with {self.scores.min():.4f}"
            return f'the model sees "no object" everywhere (all {len(self.labels)} queries say so, {surest})'
        best = int(np.argmax(np.where(is_object, self.scores, -1.0)))
        told = f'{self.scores[best]:.4f} of class "{classes.names[self.labels[best]]}"'
        # The comparison that was made on the device, in its precision.
        candidates = int(np.sum(is_object & (self.scores > np.float32(self.threshold))))
        if not candidates:
            return f"the best score, {told}, is not above the threshold {self.threshold:g}"
        empty = "no pixel belongs to its mask with a probability of 0.5 or more"
        if candidates == 1:
            return f"one candidate scores above the threshold {self.threshold:g}, {told}, but {empty}"
        return (
            f"{candidates} candidates score above the threshold {self.threshold:g}, the best {told}, but none keeps "
            f"{self.overlap:g} of its mask (the overlap threshold): others cover it, or {empty}"
        )


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """What was found in one image, at the image's own size (of a photo that EXIF data turn: after turning)."""

    id_map: np.ndarray  # [H, W] uint16; 0 is void, v the segment at position v - 1
    labels: np.ndarray  # [M] class of each segment
    scores: np.ndarray  # [M] in 0..1
    classes: Classes
    queries: Queries | None = None  # what a panoptic answer was made of

    @property
    def class_map(self) -> np.ndarray:
        """[H, W] class of each pixel; the ignore index of the classes where nothing is seen."""
        lookup = np.append(self.classes.ignore_index, self.labels).astype(np.int32)
        return lookup[self.id_map]

    @property
    def areas(self) -> np.ndarray:
        """[M] pixels of each segment."""
        return np.bincount(self.id_map.ravel(), minlength=len(self.labels) + 1)[1:]

    def segments(self) -> list[dict[str, Any]]:
        """A plain record per segment, for JSON.

        id (its value in the map), class (index), name, is_thing, score, area (pixels), and box: [x0, y0, x1, y1]
        in pixels, the smallest that holds the segment, x1 and y1 not included, so that x1 - x0 is its width.
        """
        top, bottom = _extents(self.id_map, len(self.labels))
        left, right = _extents(self.id_map.T, len(self.labels))
        boxes = np.stack([left, top, right, bottom], axis=-1).tolist()
        return [
            {
                "id": index + 1,
                "class": int(label),
                "name": self.classes.names[label],
                "is_thing": bool(self.classes.is_thing[label]),
                "score": round(float(score), 4),
                "area": int(area),
                "box": box,
            }
            for index, (label, score, area, box) in enumerate(
                zip(self.labels, self.scores, self.areas, boxes, strict=True)
            )
        ]

    def why_empty(self) -> str:
        """In words why nothing was found; empty if something was."""
        if len(self.labels):
            return ""
        return self.queries.why_none(self.classes) if self.queries else "no class has a pixel"


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

    def semantic(self, image: Picture | Sequence[Picture]) -> Segmentation | list[Segmentation]:
        """A class for every pixel of an image, or of each in a list: one segment for each class that occurs.

        Raises:
            UserError: for an image that `to_rgb` does not take, or if the model's scores are not finite.
        """

        def answer(rgb: np.ndarray) -> Segmentation:
            return _semantic(self._see(rgb), rgb.shape[:2], self.classes)

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
            found = self._see(rgb, threshold, overlap).panoptic
            labels, scores = segments_of(found, 0)
            queries = Queries(found.label[0], found.score[0], threshold, overlap)
            id_map = _cut(found.id_map, rgb.shape[:2]).astype(np.uint16)
            return Segmentation(id_map, labels, scores, self.classes, queries)

        return _for_each(image, answer)

    def segment(
        self,
        image: Picture | Sequence[Picture],
        task: str,
        *,
        threshold: float | None = None,
        overlap: float | None = None,
    ) -> Segmentation | list[Segmentation]:
        """`semantic` or `panoptic` by name; thresholds are for the second alone."""
        if task not in TASKS:
            raise UserError(f"task is {task!r}; it must be one of {TASKS}")
        if task == "panoptic":
            return self.panoptic(image, threshold, overlap)
        if threshold is not None or overlap is not None:
            raise UserError("task 'semantic' has no thresholds; leave them out, or use 'panoptic'")
        return self.semantic(image)

    def _see(self, image: np.ndarray, threshold: float = 0.0, overlap: float = 0.0) -> Answer:
        """The answer for [H, W, 3] uint8, on the host; its maps may be larger than the image."""
        resized = _resize(image, self.inference)
        divisor = self.inference.size_divisor
        padded = np.zeros((1, _up(resized.shape[0], divisor), _up(resized.shape[1], divisor), 3), np.uint8)
        padded[0, : resized.shape[0], : resized.shape[1]] = resized
        sizes = np.array([resized.shape[:2], image.shape[:2]], np.int32)
        thresholds = np.array([threshold, overlap], np.float32)
        canvas = (_up(image.shape[0], _CANVAS_STEP), _up(image.shape[1], _CANVAS_STEP))
        found = jax.device_get(self._answer(self.params, self.frozen, padded, sizes[:1], sizes[1:], thresholds, canvas))
        # A wrong mask alone shows in the scores of the classes, a wrong class in both.
        if not (np.isfinite(found.class_score).all() and np.isfinite(found.panoptic.score).all()):
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


def to_rgb(image: Picture) -> np.ndarray:
    """[H, W, 3] uint8 RGB of any usual image: the pixels that training would read from its file.

    Grey becomes three equal channels. Transparency is left out: the colours under it count. An image of PIL is also
    turned as its EXIF data say, its palette is looked up, and sixteen bits are cut to eight.

    Args:
        image: an image of PIL, or uint8 [H, W, 3] RGB, [H, W] or [H, W, 1] grey, [H, W, 4] RGB and transparency, or
            [H, W, 2] grey and transparency. It is left as it is; the result may be a view of it.

    Raises:
        UserError: for an image without pixels or of another kind; it says what to do.
    """
    array = _decode(image) if isinstance(image, Image.Image) else np.asarray(image)
    if array.ndim == 0:
        raise UserError(f"image is {image!r}; expected a numpy array or an image of PIL: PIL.Image.open(path)")
    if 0 in array.shape:
        raise UserError(f"image has no pixels: its shape is {array.shape}")
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 2, 3, 4):
        raise UserError(f"image has shape {array.shape}; {_cure_of_shape(array)}")
    if array.dtype != np.uint8:
        raise UserError(f"image is {array.dtype} {array.shape}; expected uint8. {_cure_of_dtype(array)}")
    if channels > 2:
        return array[..., :3]
    return np.repeat(array.reshape(*array.shape[:2], channels)[..., :1], 3, axis=-1)


def _decode(image: Image.Image) -> np.ndarray:
    """[H, W] or [H, W, 3] uint8 of an image of PIL; float for one of mode "F", for `to_rgb` to refuse."""
    # Pillow's readers raise errors of many kinds for damaged files.
    try:
        turned = ImageOps.exif_transpose(image)
        # Files of sixteen bits; older versions of Pillow open such PNGs as "I".
        if turned.mode.startswith("I;16") or (turned.mode == "I" and image.format == "PNG"):
            return (np.asarray(turned) >> 8).astype(np.uint8)
        if turned.mode in ("I", "F"):
            return np.asarray(turned)
        # Transparency that a palette holds would only make Pillow warn; `turned` is a copy.
        turned.info.pop("transparency", None)
        return np.asarray(turned.convert("RGB"))
    except Exception as error:
        raise UserError(f"image (of PIL, mode {image.mode}) cannot be decoded: {error}") from error


def _cure_of_shape(array: np.ndarray) -> str:
    if array.ndim == 4:
        return "for several images give a list: list(images)"
    if array.ndim == 3 and array.shape[0] in (1, 3, 4):
        return "channels come last: image.transpose(1, 2, 0)"
    return "expected [height, width, 3], or [height, width] for grey"


def _cure_of_dtype(array: np.ndarray) -> str:
    if array.dtype == bool:
        return "Multiply by 255 and cast: (image * 255).astype(np.uint8)"
    if array.dtype == np.uint16:
        return "Cut sixteen bits to eight: (image >> 8).astype(np.uint8)"
    if array.dtype.kind == "f" and not array.max() > 1:
        return "Multiply by 255 and cast: (image * 255).round().astype(np.uint8)"
    if array.dtype.kind in "fiu":
        return "Bring its values to 0..255 (values in 0..1: multiply by 255) and cast: image.astype(np.uint8)"
    return "It holds no numbers."


def _for_each(
    images: Picture | Sequence[Picture], answer: Callable[[np.ndarray], Segmentation]
) -> Segmentation | list[Segmentation]:
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
    class_map = _cut(found.class_map, size)
    labels, index = np.unique(class_map, return_inverse=True)
    id_map = index.reshape(size).astype(np.uint16) + 1
    return Segmentation(id_map, labels, found.class_score[0][labels], classes)


def _cut(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H, W] of the only image of maps [1, >= H, >= W]."""
    return maps[0, : size[0], : size[1]]


def _up(length: int, step: int) -> int:
    """The next whole multiple of a step."""
    return -(-length // step) * step


def _extents(id_map: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """First row [count] of each segment and the row after its last; both 0 for one without pixels."""
    occurs = np.zeros((count + 1, id_map.shape[0]), bool)
    occurs[id_map, np.arange(id_map.shape[0])[:, None]] = True
    occurs = occurs[1:]
    ends = id_map.shape[0] - np.argmax(occurs[:, ::-1], axis=1)
    return np.argmax(occurs, axis=1), np.where(occurs.any(axis=1), ends, 0)


def _resize(image: np.ndarray, inference: Inference) -> np.ndarray:
    """To the test size: the shorter side to `short_edge`, unless the longer would exceed `longest_edge`."""
    height, width = image.shape[:2]
    scale = min(inference.short_edge / min(height, width), inference.longest_edge / max(height, width))
    # A strip of a few pixels would vanish otherwise.
    size = (max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def read_image(path: str) -> np.ndarray:
    """[H, W, 3] uint8 RGB of a file, by the rules of `to_rgb`; raises UserError for one that is no image."""
    # Pillow's readers raise errors of many kinds for damaged files, and one of its own for more than 178 megapixels.
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:
        raise UserError(f"{path}: not a readable image ({error})") from error


def write_result(image: Picture, found: Segmentation, out: str, name: str) -> None:
    """Writes NAME_overlay.png (with a legend), NAME_ids.png (16 bit, 0 is void) and NAME.json; over older ones.

    Args:
        image: what `found` was found in.
        out: a folder, made if need be.
        name: may have folders in it, which are made, too.
    """
    rgb = to_rgb(image)
    target = epath.Path(out) / name
    target.parent.mkdir(parents=True, exist_ok=True)
    larger, id_map = visualize.enlarge(rgb, found.id_map)
    overlay = visualize.overlay(larger, id_map, found.labels, found.classes)
    overlay = visualize.with_legend(overlay, found.labels, found.classes, found.areas)
    record = {"height": rgb.shape[0], "width": rgb.shape[1], "segments": found.segments()}
    if not len(found.labels):
        record["why_empty"] = found.why_empty()
    overlay_file, ids_file, record_file = (target.parent / f"{target.name}{suffix}" for suffix in RESULT_SUFFIXES)
    for path, pixels in ((overlay_file, overlay), (ids_file, found.id_map)):
        with path.open("wb") as file:
            Image.fromarray(pixels).save(file, format="PNG")
    record_file.write_text(json.dumps(record, indent=2) + "\n")
