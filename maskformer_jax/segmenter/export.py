"""From images to a result in one function of fixed size, with a manifest to run it without this package."""

import dataclasses
from typing import Any

import jax
import jax.export

from maskformer_jax.errors import UserError
from maskformer_jax.inference import InferenceConfig
from maskformer_jax.ops import platforms
from maskformer_jax.segmenter.function import Function, Size, Weights
from maskformer_jax.segmenter.segmenter import Segmenter, not_finite

_MEANING = {
    "images": "RGB images of this size, already resized as the model expects; normalized inside",
    "thresholds": "a segment needs a score above the first and this share of its mask for itself, both in 0..1",
    "class_map": "the class of each pixel, a place in the list of names",
    "class_scores": "how sure each class is, in 0..1: the mean of its pixels; 0 for a class without pixels",
    "id_map": "the id of the segment at each pixel, from 1; 0 is void",
    "labels": "the class of each segment or instance, a place in the list of names; -1 for none",
    "scores": "how sure each of them is, in 0..1; 0 for none",
    "masks": "the pixels of each instance, which may overlap; best first",
    "finite": "False for an image whose scores overflowed: nothing else means anything then",
    "class_logits": "of each query; the last class is 'no object'",
    "mask_logits": "of each query at a quarter of the resolution, of the image with its padding",
    "logits": "of each class at a quarter of the resolution, of the image with its padding",
}
_BY_ID = {
    "labels": "the class of the segment of each id, a place in the list of names; -1 for void and for no segment",
    "scores": "how sure the segment of each id is, in 0..1; 0 for void and for no segment",
}


@dataclasses.dataclass(frozen=True)
class ExportedFunction:
    """A model from images to the result of one task, and what a person must know to use it."""

    function: Function  # (weights, *inputs) -> outputs by name
    weights: Weights  # on the host
    inputs: dict[str, tuple[tuple[int | str, ...], str]]  # in order: shape, "b" for the batch, and dtype
    manifest: dict[str, Any]

    def specs(self, batch: int | None) -> list[jax.ShapeDtypeStruct]:
        """Of the inputs; None is any number of images, as one symbol."""
        size = jax.export.symbolic_shape("b")[0] if batch is None else batch
        return [
            jax.ShapeDtypeStruct([size if length == "b" else length for length in shape], dtype)
            for shape, dtype in self.inputs.values()
        ]

    def describe(self, batch: int | None) -> dict[str, Any]:
        """The manifest with the shape, dtype and meaning of every input and output, as plain JSON values."""
        meaning = {**_MEANING, **_BY_ID} if self.manifest["task"] == "panoptic" else _MEANING

        def described(name: str, array: jax.ShapeDtypeStruct) -> dict[str, Any]:
            shape = [length if isinstance(length, int) else str(length) for length in array.shape]
            return {"shape": shape, "dtype": str(array.dtype), "meaning": meaning[name]}

        arrays = {"inputs": dict(zip(self.inputs, self.specs(batch), strict=True)), "outputs": self.outputs(batch)}
        ends = {end: {name: described(name, array) for name, array in named.items()} for end, named in arrays.items()}
        return {**self.manifest, **ends}

    def outputs(self, batch: int | None) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes by name, in order."""
        return jax.eval_shape(self.function, self.weights, *self.specs(batch))


def export_function(segmenter: Segmenter, task: str, size: Size) -> ExportedFunction:
    """The function of a task for RGB images [b, *size, 3] uint8; `docs/export.md` has its outputs.

    Images count as resized already: the result has their size. They are padded to the size divisor inside.

    Raises:
        UserError: for a task or size that cannot be, and for weights that are not finite, or not once rounded.
    """
    function, weights = segmenter.as_function(task, size)
    # Files that run elsewhere cannot contain the kernels of one platform.
    function, weights = platforms.without_kernels()(function), jax.device_get(weights)
    if overflowing := not_finite(*weights):
        if broken := not_finite(segmenter.params, segmenter.frozen):
            raise UserError(
                f"{segmenter.origin}: {len(broken)} parameters hold NaN or infinity, {broken[0]} among them; nothing "
                "was exported. Use an earlier checkpoint or a fresh copy."
            )
        raise UserError(
            f"{segmenter.origin}: {len(overflowing)} parameters overflow in {segmenter.model['dtype']}, "
            f"{overflowing[0]} among them; nothing was exported. Load the model with dtype='float32'."
        )
    inputs = {"images": (("b", *size, 3), "uint8")}
    if task == "panoptic":
        inputs["thresholds"] = ((2,), "float32")
    return ExportedFunction(function, weights, inputs, _manifest(segmenter, task, size))


def _resize(inference: InferenceConfig) -> dict[str, Any]:
    sides = {"short_edge": inference.short_edge, "longest_edge": inference.longest_edge}
    return {**({"stretch_to": list(inference.stretch_to)} if inference.stretch_to else sides), "by": "bilinear"}


def _manifest(segmenter: Segmenter, task: str, size: Size) -> dict[str, Any]:
    inference = segmenter.inference
    manifest = {
        "task": task,
        "size": list(size),
        "origin": segmenter.origin,
        "resize": _resize(inference),
        "classes": segmenter.classes.to_dict(),
    }
    if task == "panoptic":
        manifest["default_thresholds"] = [inference.score_threshold, inference.overlap_threshold]
    return manifest
