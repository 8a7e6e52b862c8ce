"""A trained model, ready to use: images in, segments out. No TensorFlow.

The path of an image has three steps: `inputs.prepare` on the host, `Segmenter.run` on the device, `tasks.read` on
the host. The first and the last are pure.
"""

import functools
import hashlib
import itertools
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from maskformer_jax.catalog import Classes
from maskformer_jax.checkpoints.published import Description
from maskformer_jax.errors import UserError
from maskformer_jax.files import limits, paths
from maskformer_jax.inference import NUM_CANDIDATES, Grid, InferenceConfig, Mosaic, Result, separated_classes, tile_grid
from maskformer_jax.inference.blocks import layout_of
from maskformer_jax.inference.compiled import BlockProgram, Found
from maskformer_jax.models import build_network
from maskformer_jax.ops import masks
from maskformer_jax.parsing import parse
from maskformer_jax.segmenter.function import Function, Weights, function_of
from maskformer_jax.segmenter.images import ImageLike, Pixels, pixels_of
from maskformer_jax.segmenter.inputs import Input, Size, padded_sizes, prepare, stack
from maskformer_jax.segmenter.pretrained import open_model
from maskformer_jax.segmenter.results import AnySegmentation, InstanceSegmentation, Segmentation
from maskformer_jax.segmenter.stream import Answer, batch_size_of, stream
from maskformer_jax.segmenter.tasks import INSTANCE_THRESHOLD, TASKS, Request, read, request
from maskformer_jax.sharding import make_mesh, replicated
from maskformer_jax.types import Arrays, Network, Prediction

Images = Sequence[ImageLike]
Item = TypeVar("Item")


class Segmenter:
    """A model with its weights and classes, ready for images of any size and of every kind that `to_rgb` takes.

    A list of images gives the list of their results. They are computed one after another: each is, to the bit, the
    result of the image alone, and many images take no more memory than the largest. Images of all sizes share a few
    compiled functions, see `inputs.padded_sizes`: at most 8 for each task. Each compiles when it is first needed, which
    takes longer than a result. The `limits.PROGRAMS` used last are kept.

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
        self.params, self.frozen = params, frozen
        if not network.rounded:  # else the device holds nothing but `weights`
            self.params, self.frozen = jax.device_put((params, frozen), replicated(self._mesh))
        self._padded_sizes = padded_sizes(inference, network.accepts_padding)
        self._one_compiles = threading.Lock()  # threads that need a function at once would each compile it
        # A function for each shape: JAX keeps what it has compiled for as long as the function exists.
        self._logits = functools.lru_cache(limits.PROGRAMS.value)(lambda shape: jax.jit(_last_logits(network)))
        self._program = functools.lru_cache(limits.PROGRAMS.value)(
            functools.partial(_program, network, classes, inference)
        )

    @property
    def tasks(self) -> tuple[str, ...]:
        """Those of TASKS that differ for this model; a per-pixel classifier has one result for all."""
        if self.network.num_queries is None:
            return ("semantic",)
        return TASKS if any(self.classes.is_thing) else ("semantic", "panoptic")

    @property
    def weights(self) -> Weights:
        """`params` and `frozen` as functions of the model take them, on the first local device.

        A model that computes in bfloat16 rounds most parameters before it uses them. Here they are rounded, which takes
        half of the memory, and no time for each image.
        """
        return self._rounded if self.network.rounded else (self.params, self.frozen)

    @functools.cached_property
    def _rounded(self) -> Weights:
        dtypes = self.network.rounded
        rounded = [
            {name: jnp.asarray(array, dtypes.get(name, array.dtype)) for name, array in arrays.items()}
            for arrays in (self.params, self.frozen)
        ]
        return jax.device_put(tuple(rounded), replicated(self._mesh))

    @property
    def description(self) -> Description:
        """What is stored with the weights of the model."""
        return Description(self.model, vars(self.inference), self.classes)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A text that another model does not have: other settings, classes or values of parameters."""
        described = {"model": self.model, "inference": vars(self.inference), "classes": self.classes.to_dict()}
        digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
        for name, array in sorted({**self.params, **self.frozen}.items()):
            values = np.ascontiguousarray(jax.device_get(array))
            digest.update(f"{name} {values.dtype} {values.shape}".encode())
            digest.update(values.view(np.uint8))
        return digest.hexdigest()[:32]

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
        return self._logits(pixel_values.shape)(*self.weights, pixel_values)

    @overload
    def semantic(
        self, image: ImageLike, *, tile: int | None = None, tile_overlap: int | None = None
    ) -> Segmentation: ...
    @overload
    def semantic(
        self, image: Images, *, tile: int | None = None, tile_overlap: int | None = None
    ) -> list[Segmentation]: ...
    def semantic(self, image, *, tile=None, tile_overlap=None):
        """A class for every pixel of an image, or of each in a list: one segment for each class that occurs.

        Args:
            tile: the side in pixels of the tiles that a larger image is segmented by, each as an image of its own; 0
                for the image at once. By default that of the model (`inference.tile`).
            tile_overlap: how many pixels neighboring tiles have in common at least; 0 for an eighth of a tile.

        Raises:
            UserError: for an image that `to_rgb` does not take, if the model's scores are not finite, or for tiles
                that cannot be.
        """
        return self._results(image, request("semantic", self.inference, None, None, tile, tile_overlap))

    @overload
    def panoptic(
        self,
        image: ImageLike,
        threshold: float | None = None,
        overlap: float | None = None,
        *,
        tile: int | None = None,
        tile_overlap: int | None = None,
    ) -> Segmentation: ...
    @overload
    def panoptic(
        self,
        image: Images,
        threshold: float | None = None,
        overlap: float | None = None,
        *,
        tile: int | None = None,
        tile_overlap: int | None = None,
    ) -> list[Segmentation]: ...
    def panoptic(self, image, threshold=None, overlap=None, *, tile=None, tile_overlap=None):
        """Segments of an image, or of each in a list: one for each thing and for each class of stuff.

        A per-pixel classifier gives the segments of `semantic`, and ignores thresholds.

        Args:
            threshold: a query is a segment if its score is above it, 0..1,
            overlap: and if others leave it at least this fraction of its mask, 0..1. Both default to the model's.
            tile, tile_overlap: as of `semantic`; things are joined over seams, and stuff is one segment for each class.

        Raises:
            UserError: as `semantic`, and for a threshold outside 0..1.
        """
        return self._results(image, request("panoptic", self.inference, threshold, overlap, tile, tile_overlap))

    @overload
    def instances(
        self,
        image: ImageLike,
        threshold: float = INSTANCE_THRESHOLD,
        *,
        tile: int | None = None,
        tile_overlap: int | None = None,
    ) -> InstanceSegmentation: ...
    @overload
    def instances(
        self,
        image: Images,
        threshold: float = INSTANCE_THRESHOLD,
        *,
        tile: int | None = None,
        tile_overlap: int | None = None,
    ) -> list[InstanceSegmentation]: ...
    def instances(self, image, threshold=INSTANCE_THRESHOLD, *, tile=None, tile_overlap=None):
        """The things in an image, or in each of a list: masks that may overlap, each with a class and a score.

        Args:
            threshold: of the score, 0..1: the probability of the class times that of the mask's pixels.
            tile, tile_overlap: as of `semantic`; things are joined over seams. The number of instances is bounded for
                each tile, not for the image.

        Raises:
            UserError: as `semantic`, for a threshold outside 0..1, and for a model without things or without queries.
        """
        return self._results(image, request("instance", self.inference, threshold, None, tile, tile_overlap))

    def segment(
        self,
        image: ImageLike | Images,
        task: str,
        *,
        threshold: float | None = None,
        overlap: float | None = None,
        tile: int | None = None,
        tile_overlap: int | None = None,
    ) -> Any:
        """`semantic`, `panoptic` or `instances` by the name of the task.

        The semantic task has no thresholds, and the instance task has no overlap.
        """
        return self._results(image, request(task, self.inference, threshold, overlap, tile, tile_overlap))

    def batch(
        self,
        images: Iterable[ImageLike],
        task: str = "panoptic",
        *,
        batch_size: int | None = None,
        threshold: float | None = None,
        overlap: float | None = None,
        tile: int | None = None,
        tile_overlap: int | None = None,
    ) -> Iterator[Any]:
        """The results of many images, in order, as fast as the devices can: an iterator.

        Images are read and resized on threads, segmented in batches on all local devices, and their results are read on
        threads, all at once. Each result is that of the image alone, within the tolerance of floats. Results take no
        more memory than the images that are under way: the iterator runs no further ahead than full batches need.

            for path, result in zip(paths, segmenter.batch(paths, "instance")):
                if isinstance(result, UserError):  # maskformer_jax.errors
                    print(result)  # names the file, and says why it cannot be read

        Args:
            images: as `to_rgb` takes them; taken from an iterator as they are needed.
            batch_size: images that are computed at once, rounded up to a multiple of the local devices. By default 8
                for each accelerator. On a CPU it is 1, where larger batches are not faster.
            task, threshold, overlap, tile, tile_overlap: as of `segment`.

        Yields:
            The result of each image. An image that cannot be read, or that `to_rgb` does not take, has a UserError that
            names it in the place of its result.

        Raises:
            UserError: at once for arguments as of `segment`, and while iterating if the model's scores are not finite.
        """
        asked = {"threshold": threshold, "overlap": overlap, "tile": tile, "tile_overlap": tile_overlap}
        answers = self.answers(enumerate(images), _read_numbered, task, batch_size=batch_size, **asked)
        return (answer.result for answer in answers)

    def answers(
        self,
        items: Iterable[Item],
        read: Callable[[Item, int], Pixels],
        task: str,
        *,
        batch_size: int | None = None,
        keep_pixels: bool = False,
        threshold: float | None = None,
        overlap: float | None = None,
        tile: int | None = None,
        tile_overlap: int | None = None,
    ) -> Iterator[Answer[Item]]:
        """`batch` for images of any origin: what becomes of each item, see `stream`.

        Args:
            read: gives the image of an item, of which a tile has this side, or raises UserError; called on threads.
                See `images.pixels_of`.
            keep_pixels: whether the answers have the images, too.
        """
        asked = request(task, self.inference, threshold, overlap, tile, tile_overlap)
        if task == "instance":
            self.check_instances()
        return stream(self, items, read, asked, batch_size, keep_pixels)

    def as_function(self, task: str, size: Size) -> tuple[Function, Weights]:
        """The model as a pure function of weights and images, for programs of your own, and its weights.

            function, weights = segmenter.as_function("semantic", (512, 683))
            class_map = jax.jit(function)(weights, images)["class_map"]

        The function (weights, images, thresholds) is not compiled: use it under `jax.jit`, `vmap`, or `shard_map` with
        `check_vma=False`. It is what `maskformer-export` exports; `docs/export.md` has its outputs, a dictionary of
        arrays.

        - images: `[b, *size, 3]` RGB, uint8 or floats of 0..255, already resized as the model expects. Padding to the
          size divisor and normalization are inside, and results have this size.
        - thresholds: [2] float32 of the panoptic task, of score and overlap. By default the model's.
        - weights: a pytree of arrays on the first local device. For a mesh, `jax.device_put` them first.

        Args:
            task: "semantic", "panoptic", "instance", or "logits", what the last layer predicts.
            size: height and width.

        Raises:
            UserError: for a task or size that cannot be; the function, for images of another shape.
        """
        if task == "instance":
            self.check_instances()
        return function_of(self.network, self.classes, self.inference, task, size), self.weights

    def prepare(self, rgb: np.ndarray) -> Input:
        """The first step: [H, W, 3] uint8 resized, with the padded size that it shares with others. Thread-safe."""
        return prepare(rgb, self.inference, self._padded_sizes)

    def run(
        self,
        inputs: Sequence[Input],
        asked: Request,
        *,
        padded: Size | None = None,
        number: int | None = None,
        spread: bool = False,
        num_candidates: int = 0,
    ) -> Found:
        """The second step, on the device: the result for a batch of inputs. It does not wait for the device.

        Thread-safe, as the other steps.

        Args:
            padded: holds all inputs; by default the padded size that all of them have.
            number: of images in the batch, those missing are black; by default that of the inputs.
            spread: over all local devices, which divide `number`, instead of on the first.
            num_candidates: of inputs that are tiles of an image; see `Result.candidates`.

        Raises:
            UserError: for a model that does not separate instances, if they are asked for.
        """
        if asked.task == "instance":
            self.check_instances()
        padded, number = padded or inputs[0].padded, number or len(inputs)
        view, originals = stack(inputs, padded, number)
        with self._one_compiles:
            mesh, weights = self._everywhere if spread else (self._mesh, self.weights)
            program = self._program(mesh, asked.task, number, padded, num_candidates)
            return program(*weights, view, originals, asked.thresholds)

    @functools.cached_property
    def _everywhere(self) -> tuple[Mesh, Weights]:
        """All local devices, and the weights on each."""
        devices, weights = jax.local_devices(), self.weights
        if len(devices) == 1:  # with the compiled functions of single images
            return self._mesh, weights
        mesh = make_mesh(devices)
        return mesh, jax.device_put(weights, replicated(mesh))

    def fetch(self, found: Found, inputs: Sequence[Input], asked: Request) -> list[Result]:
        """The results of `run` on the host: of each input, as of a batch of one. It waits for the device.

        Raises:
            UserError: if the model's scores are not finite.
        """
        results = found.fetch([each.original for each in inputs], asked.task)
        if not all(result.finite.all() for result in results):
            raise UserError(self._why_not_finite())
        return results

    def read(self, found: Found, inputs: Sequence[Input], asked: Request) -> list[AnySegmentation]:
        """The last step: waits for the device, and reads the result of each input.

        Raises:
            UserError: if the model's scores are not finite.
        """
        results = zip(self.fetch(found, inputs, asked), inputs, strict=True)
        return [read(result, 0, each.original, asked, self.classes) for result, each in results]

    def _results(self, images: ImageLike | Images, asked: Request) -> Any:
        """The result of an image, or the list of the results of a list of them."""
        if asked.task == "instance":
            self.check_instances()
        if not isinstance(images, list | tuple):
            return self._result(pixels_of(images, asked.tile), asked)
        results = []
        for index, image in enumerate(images):
            try:
                rgb = pixels_of(image, asked.tile)
            except UserError as error:
                raise UserError(f"at position {index} of the list: {error}") from error
            results.append(self._result(rgb, asked))
        return results

    def _result(self, rgb: Pixels, asked: Request) -> AnySegmentation:
        if len(grid := self.tiles_of(rgb, asked)) > 1:
            return self.segment_tiles(rgb, grid, asked)
        inputs = [self.prepare(rgb[:, :])]
        return self.read(self.run(inputs, asked), inputs, asked)[0]

    def tiles_of(self, rgb: Pixels, asked: Request) -> Grid:
        """The tiles that an image is segmented by; one for the image at once."""
        return tile_grid(rgb.shape[:2], asked.tile or max(rgb.shape[:2]), asked.tile_overlap)

    def segment_tiles(self, rgb: Pixels, grid: Grid, asked: Request) -> AnySegmentation:
        """The result for an image from those of its tiles, all three steps. The device computes some tiles while others
        are prepared and joined.

        Raises:
            UserError: as of `run` and `fetch`, and for parts that cannot be read.
        """
        is_thing = separated_classes(self.network, self.classes)
        mosaic = Mosaic((asked.task,), grid, is_thing, threshold=asked.threshold, overlap=asked.overlap)
        candidates = NUM_CANDIDATES if asked.task == "semantic" else 0
        at_once, before = batch_size_of(None, jax.local_devices(), of_accelerator=4), None
        for start in range(0, len(grid), at_once):
            inputs = [self.prepare(rgb[box.slices]) for box in itertools.islice(grid, start, start + at_once)]
            running = self.run(inputs, asked, number=at_once, spread=True, num_candidates=candidates), inputs
            if before is not None:
                self._join(mosaic, *before, asked)
            before = running
        self._join(mosaic, *before, asked)
        return read(mosaic.result(), 0, grid.size, asked, self.classes)

    def _join(self, mosaic: Mosaic, found: Found, inputs: Sequence[Input], asked: Request) -> None:
        for result in self.fetch(found, inputs, asked):
            mosaic.add(result, 0)

    def push_to_hub(
        self, repo: str, *, license: str = "", data: str = "", private: bool = False, token: str | None = None
    ) -> str:
        """Uploads the model, with a model card, to the Hugging Face hub; `load(repo)` then takes it from there.

        Args:
            repo: "name/model"; created if there is none.
            license: of the weights, as the hub abbreviates it ("apache-2.0"); the card says if none is stated.
            data: what the model was trained on, in words, besides what its run has recorded.
            private: whether a repository that is created is private.
            token: of the hub; by default that of `hf auth login` or HF_TOKEN.

        Returns:
            The address of the commit.

        Raises:
            UserError: if the hub cannot be reached, or refuses the token or the id.
        """
        from maskformer_jax.segmenter.publishing import push_to_hub

        return push_to_hub(self, repo, license=license, data=data, private=private, token=token)

    def _why_not_finite(self) -> str:
        if broken := not_finite(self.params, self.frozen):
            return (
                f"{self.origin}: its scores are not finite, because {len(broken)} of its "
                f"{len(self.params) + len(self.frozen)} parameters hold NaN or infinity, {broken[0]} among them. The "
                "training had diverged or the file is damaged: use an earlier checkpoint or a fresh copy."
            )
        cure = "" if self.model["dtype"] == "float32" else " Load it with dtype='float32'."
        return (
            f"{self.origin}: its scores are not finite, though all parameters are; the computation overflows in "
            f"{self.model['dtype']}.{cure}"
        )


def not_finite(*parts: Arrays) -> list[str]:
    """Names of the arrays that hold NaN or infinity."""
    arrays = (item for part in parts for item in part.items())
    return [name for name, array in arrays if not np.isfinite(jax.device_get(array)).all()]


def _read_numbered(numbered: tuple[int, ImageLike], tile: int) -> Pixels:
    """The pixels of an image, see `pixels_of`; its number names an image without a path."""
    number, image = numbered
    try:
        return pixels_of(image, tile)
    except UserError as error:
        if isinstance(image, str | os.PathLike):  # the error names it
            raise
        raise UserError(f"image {number}, counted from 0: {error}") from error


def load(source: str, *, dtype: str | None = None, base: str = "") -> Segmenter:
    """A model ready to use, without TensorFlow.

    Args:
        source: the --workdir of a run (its best checkpoint is taken), a folder made by
            `python -m maskformer_jax.convert`, a folder of Hugging Face's, a file of the original model zoo, a hub id
            such as "facebook/maskformer-swin-tiny-ade", or the name of a model that comes with the package, such as
            "shapes" (`maskformer_jax.bundled`). If a path and a name read the same, the path is taken.
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
    params, frozen = network.shapes
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


def _program(
    network: Network,
    classes: Classes,
    inference: InferenceConfig,
    mesh: Mesh,
    task: str,
    number: int,
    padded: Size,
    num_candidates: int,
) -> BlockProgram:
    """The function of a task for batches of this number of images of a padded size, and for no others."""
    options = {name: getattr(inference, name) for name in ("upsample", "panoptic_rule", "window")}
    options["num_candidates"] = num_candidates
    windows = inference.window if task == "semantic" else 0
    return BlockProgram(network, classes, mesh, layout_of(padded, windows), task=task, **options)


def _last_logits(network: Network) -> Callable[[Arrays, Arrays, jax.Array], tuple[jax.Array, jax.Array]]:
    """A function (params, frozen, pixel_values) -> class logits [B, Q, K1] and mask logits [B, Q, h, w]."""

    def run(params: Arrays, frozen: Arrays, pixel_values: jax.Array) -> tuple[jax.Array, jax.Array]:
        last: Prediction = network.apply(params, frozen, pixel_values).last()
        return last.class_logits[0], masks.logits(last)[0]

    return run
