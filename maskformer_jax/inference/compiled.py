"""From images to results in one compiled function, shared by evaluation and the segmenter."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from maskformer_jax.catalog import Classes
from maskformer_jax.inference.blocks import Layout, assemble, num_calls
from maskformer_jax.inference.geometry import Blocks, Frame
from maskformer_jax.inference.instance import TOP_INSTANCES
from maskformer_jax.inference.postprocess import Blocked, Result, last_logits, postprocess, postprocess_blocks
from maskformer_jax.inference.windows import Windows, read_windows
from maskformer_jax.ops.image import normalize
from maskformer_jax.sharding import REPLICATED, SHARDED, batch_sharding, replicated, shard_mapped
from maskformer_jax.types import Arrays, Network


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class View:
    """Images as a network reads them."""

    image: jax.Array | np.ndarray  # [B, H, W, 3] uint8; pixels outside of the image are ignored
    image_size: jax.Array | np.ndarray  # [B, 2] int32 height and width of the image inside the canvas
    # [B, 2] int32, what the network reads: the image and the zeros that make its sides multiples of the size divisor.
    # None if that is the whole canvas for all of them, which takes less time.
    valid_size: jax.Array | np.ndarray | None = None


def segment(
    network: Network,
    params: Arrays,
    frozen: Arrays,
    views: tuple[View, ...],
    original_size: jax.Array,
    thresholds: jax.Array,
    canvas: tuple[int, int],
    *,
    is_thing: jax.Array,
    tasks: tuple[str, ...],
    upsample: str,
    panoptic_rule: str,
    window: int = 0,
    flips: tuple[bool, ...] = (False,),
    num_candidates: int = 0,
) -> Result:
    """What `compile_postprocess` compiles; for those who compile otherwise.

    Args:
        is_thing: [K] bool.
    """

    def read(view: View, flipped: bool, window: int) -> tuple[Any, Frame]:
        # Mirrored within its valid part, so that padding stays at the bottom and right.
        image = _mirror(view.image, view.image_size) if flipped else view.image
        frame = Frame(view.image_size, original_size, image.shape[1:3], canvas, view.valid_size, flipped)
        if window:
            return read_windows(network, params, frozen, image, view.image_size, window), frame
        pixels = normalize(image, view.image_size, network.black_padding)
        return network.apply(params, frozen, pixels, valid_size=view.valid_size), frame

    def results(tasks: tuple[str, ...], window: int = 0) -> Result:
        predictions, frames = zip(*(read(view, flipped, window) for view in views for flipped in flips), strict=True)
        return postprocess(
            predictions,
            frames,
            is_thing,
            tasks=tasks,
            upsample=upsample,
            panoptic_rule=panoptic_rule,
            score_threshold=thresholds[0],
            overlap_threshold=thresholds[1],
            top_instances=TOP_INSTANCES,
            num_candidates=num_candidates,
        )

    if not window or "semantic" not in tasks:
        return results(tasks)
    semantic = results(("semantic",), window)
    # Segments do not come from windows: the queries of one know nothing of those of another.
    others = tuple(task for task in tasks if task != "semantic")
    if not others:
        return semantic
    rest = results(others)
    maps = {name: getattr(semantic, name) for name in ("class_map", "class_score", "candidates")}
    return dataclasses.replace(rest, **maps, finite=semantic.finite & rest.finite)


def compile_postprocess(
    network: Network,
    classes: Classes,
    mesh: Mesh,
    *,
    tasks: tuple[str, ...],
    upsample: str,
    panoptic_rule: str,
    window: int = 0,
    flips: tuple[bool, ...] = (False,),
    num_candidates: int = 0,
) -> Callable[..., Result]:
    """A function (params, frozen, views, original_size, thresholds, canvas) -> Result of the tasks.

    It compiles once for each combination of shapes, and takes images of any sizes within them. Each device processes
    its shard of the batch, which must divide over the mesh.

    Args of the function:
        views: a tuple of View, all of the same images.
        original_size: [B, 2] int32.
        thresholds: two numbers, of score and of overlap; see `inference.panoptic`.
        canvas: a pair that holds every original size; static.

    Args:
        tasks, upsample, panoptic_rule: see `postprocess`.
        window: see `InferenceConfig`. Unless 0, the canvas of each view is the next multiples of it for every image,
            and there is no `valid_size`.
        flips: each view is read as it is (False), as its mirror image (True), or both.
        num_candidates: of classes for each pixel, for images that are tiles of another; see `Result.candidates`.
    """
    # A constant of the compiled function; classes never change within a model.
    is_thing = np.array(classes.is_thing)

    def part(
        params: Arrays,
        frozen: Arrays,
        views: tuple[View, ...],
        original_size: jax.Array,
        thresholds: jax.Array,
        canvas: tuple[int, int],
    ) -> Result:
        options = {"tasks": tasks, "upsample": upsample, "panoptic_rule": panoptic_rule}
        options.update(is_thing=jnp.asarray(is_thing), window=window, flips=flips, num_candidates=num_candidates)
        return segment(network, params, frozen, views, original_size, thresholds, canvas, **options)

    whole, split = replicated(mesh), batch_sharding(mesh)

    # Arrays come in order and `canvas` last: in_shardings allows no keyword arguments.
    @functools.partial(
        jax.jit,
        static_argnums=5,
        in_shardings=(whole, whole, split, split, whole),
        out_shardings=split,
    )
    def run(params, frozen, views, original_size, thresholds, canvas):
        # On each device alone: its loops are as long as its own images need.
        specs = (REPLICATED, REPLICATED, SHARDED, SHARDED, REPLICATED)
        on_device = shard_mapped(functools.partial(part, canvas=canvas), mesh, specs, SHARDED)
        return on_device(params, frozen, views, original_size, thresholds)

    return run


class BlockProgram:
    """One task for batches of one padded size, whatever the sizes of their results: one compiled function.

    Each device processes its shard of the batch, which must divide over the mesh.

    Args:
        layout: of that size.
        task, upsample, panoptic_rule: see `postprocess_blocks`.
        window, num_candidates: see `compile_postprocess`.
    """

    def __init__(
        self,
        network: Network,
        classes: Classes,
        mesh: Mesh,
        layout: Layout,
        *,
        task: str,
        upsample: str,
        panoptic_rule: str,
        window: int = 0,
        num_candidates: int = 0,
    ):
        self._layout, self._split = layout, batch_sharding(mesh)
        self._nothing_carried = None
        is_thing = np.array(classes.is_thing)

        def read(params: Arrays, frozen: Arrays, view: View) -> tuple[jax.Array, ...] | Windows:
            # Segments do not come from windows: the queries of one know nothing of those of another.
            if window and task == "semantic":
                return read_windows(network, params, frozen, view.image, view.image_size, window)
            pixels = normalize(view.image, view.image_size, network.black_padding)
            return last_logits(network.apply(params, frozen, pixels, valid_size=view.valid_size))

        def blocks_of(
            logits: tuple[jax.Array, ...] | Windows,
            view: View,
            original_size: jax.Array,
            columns: jax.Array,
            thresholds: jax.Array,
            first: jax.Array,
            sums: jax.Array | None,
        ) -> Blocked:
            blocks = Blocks(first, columns, layout.pixels, layout.width, layout.span)
            size, canvas = view.image.shape[1:3], (1, layout.width)
            frame = Frame(view.image_size, original_size, size, canvas, view.valid_size, blocks=blocks)
            options = {"task": task, "upsample": upsample, "panoptic_rule": panoptic_rule}
            options.update(score_threshold=thresholds[0], overlap_threshold=thresholds[1], top_instances=TOP_INSTANCES)
            options.update(num_candidates=num_candidates)
            return postprocess_blocks(logits, frame, jnp.asarray(is_thing), sums, **options)

        def part(params, frozen, view, original_size, columns, thresholds, first, carried):
            # One program for the first call and for all others: the network is a branch of it.
            logits = jax.lax.cond(first == 0, lambda: read(params, frozen, view), lambda: carried[0])
            sums = jnp.where(first == 0, 0, jnp.moveaxis(carried[1], 0, 1))
            found = blocks_of(logits, view, original_size, columns, thresholds, first, sums)
            # The batch comes first, as in all that is sharded.
            return logits, dataclasses.replace(found, sums=jnp.moveaxis(found.sums, 1, 0))

        def carried(params, frozen, view, original_size, columns, thresholds):
            logits = read(params, frozen, view)
            sums = blocks_of(logits, view, original_size, columns, thresholds, jnp.int32(0), None).sums
            return logits, jnp.moveaxis(sums, 1, 0)

        self._carried = carried
        whole, split = (replicated(mesh), REPLICATED), (self._split, SHARDED)
        shardings, specs = zip(whole, whole, split, split, split, whole, whole, split, strict=True)
        on_device = shard_mapped(part, mesh, specs, SHARDED)
        self._run = jax.jit(on_device, in_shardings=shardings, out_shardings=self._split)

    @property
    def num_compiled(self) -> int:
        """How often it has compiled: once, unless batches differ in shape."""
        return self._run._cache_size()

    def __call__(
        self, params: Arrays, frozen: Arrays, view: View, original_size: np.ndarray, thresholds: np.ndarray
    ) -> "Found":
        """The blocks of the results. It does not wait for the devices.

        Args:
            view: on the host, as `original_size` [B, 2] int32.
            thresholds: two numbers, of score and of overlap; see `inference.panoptic`.
        """
        widths = zip(original_size[:, 1].tolist(), np.asarray(view.image_size)[:, 1].tolist(), strict=True)
        columns = np.array([self._layout.columns(*each) for each in widths], np.int32)
        placed = jax.device_put((view, original_size, columns), self._split)
        arrays = params, frozen, *placed, thresholds
        if self._nothing_carried is None:
            shapes = jax.eval_shape(self._carried, *arrays)
            # Made for each batch: kept, the logits of all programs would be gigabytes.
            zeros = functools.partial(jax.tree.map, lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            self._nothing_carried = jax.jit(zeros, out_shardings=self._split)
        calls, carry, total, first = [], self._nothing_carried(), 1, 0
        while len(calls) < total:
            logits, found = self._run(*arrays, np.int32(first), carry)
            calls.append(found)
            carry, first = (logits, found.sums), first + found.values.shape[1]
            total = num_calls(found, original_size.tolist(), columns.tolist())
        return Found(calls, columns.tolist())


@dataclasses.dataclass(frozen=True)
class Found:
    """The result of a batch, in blocks; on the devices until it is fetched."""

    calls: list[Blocked]
    columns: list[int]  # see `Layout.columns`

    def fetch(self, originals: Sequence[tuple[int, int]], task: str) -> list[Result]:
        """Waits for the devices: the result of each image, as of a batch of one, with maps of its original size."""
        calls = jax.device_get(self.calls)
        each = zip(originals, self.columns, strict=False)  # what is left fills the batch up
        return [assemble(calls, index, *sizes, task) for index, sizes in enumerate(each)]


def _mirror(image: jax.Array, image_size: jax.Array) -> jax.Array:
    """The images within canvases [B, H, W, 3] mirrored; undefined outside of them."""
    columns = image_size[:, 1:] - 1 - jnp.arange(image.shape[2])
    return jnp.take_along_axis(image, jnp.maximum(columns, 0)[:, None, :, None], axis=2)
