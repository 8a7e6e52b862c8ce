"""Many images through a model: read and resized on threads, segmented in batches on all devices, results in order.

The caller's thread forms batches and never waits for a device while it can give it work: `_IN_FLIGHT` batches are under
way, so that one is copied to the devices while another is computed and the results of a third are read.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import jax
import numpy as np

from maskformer_jax.errors import UserError
from maskformer_jax.files import processes
from maskformer_jax.files.large import PartError
from maskformer_jax.inference import Grid
from maskformer_jax.segmenter.images import Pixels
from maskformer_jax.segmenter.inputs import Input, Size
from maskformer_jax.segmenter.results import AnySegmentation
from maskformer_jax.segmenter.tasks import Request

if TYPE_CHECKING:
    from maskformer_jax.segmenter.segmenter import Segmenter

Item = TypeVar("Item")

_IN_FLIGHT = 3
_GROUPS = 8  # batches that are formed at once, for as many padded sizes
_MOST_PIXELS = 1 << 28  # of the images that are under way, which bounds memory


@dataclasses.dataclass(frozen=True)
class Answer(Generic[Item]):
    """What became of one image."""

    item: Item
    result: AnySegmentation | UserError  # the error if the image could not be read
    pixels: Pixels | None = None  # [H, W, 3] uint8, if they were asked for


@dataclasses.dataclass(frozen=True)
class _Loaded:
    pixels: Pixels | None
    area: int
    input: Input | None = None  # None for an image that is larger than a tile
    grid: Grid | None = None


@dataclasses.dataclass(eq=False)
class _Image:
    """An image under way."""

    item: Any
    loading: Future
    loaded: _Loaded | None = None
    error: UserError | None = None
    computing: Future | None = None  # of the results of its batch
    place: int = 0  # in that batch


def batch_size_of(given: int | None, devices: Sequence[jax.Device], of_accelerator: int = 8) -> int:
    """Images in a batch, a multiple of the number of devices. Without a given one, some for each accelerator.

    On a CPU it is one then: larger batches are not faster there, and images, batches and tiles share their functions.

    Raises:
        UserError: for a number that is not whole and at least 1.
    """
    if given is None:
        return len(devices) * (1 if devices[0].platform == "cpu" else of_accelerator)
    if isinstance(given, bool) or not isinstance(given, int | np.integer) or given < 1:
        raise UserError(f"batch_size is {given!r}; expected a whole number of at least 1")
    return -(-int(given) // len(devices)) * len(devices)


def stream(
    segmenter: "Segmenter",
    items: Iterable[Item],
    read: Callable[[Item, int], Pixels],
    asked: Request,
    batch_size: int | None = None,
    keep_pixels: bool = False,
) -> Iterator[Answer[Item]]:
    """What becomes of each image, in order.

    Args:
        items: taken as they are needed, on the caller's thread.
        read: gives the image of an item by tiles of a side, or raises UserError; see `pixels_of`. Called on threads.
        batch_size: see `batch_size_of`.
        keep_pixels: whether answers have the pixels.

    Raises:
        UserError: if the model's scores are not finite.
    """
    size = batch_size_of(batch_size, jax.local_devices())
    return _Stream(segmenter, read, asked, size, keep_pixels).answers(items)


class _Stream:
    def __init__(self, segmenter: "Segmenter", read: Callable, asked: Request, batch_size: int, keep_pixels: bool):
        self._segmenter, self._read, self._asked = segmenter, read, asked
        self._batch_size, self._keep_pixels = batch_size, keep_pixels
        self._threads = processes.worker_threads()
        # Enough to fill batches of all padded sizes.
        self._most_images = 2 * self._threads + _GROUPS * batch_size
        self._waiting: collections.deque[_Image] = collections.deque()  # without an answer, in order
        self._loading: collections.deque[_Image] = collections.deque()
        self._ready: list[_Image] = []  # for a batch, in order
        self._in_flight: list[Future] = []

    def answers(self, items: Iterable[Item]) -> Iterator[Answer[Item]]:
        more = iter(items)
        with ThreadPoolExecutor(self._threads, "reader") as readers, ThreadPoolExecutor(_IN_FLIGHT, "answer") as pool:
            try:
                while True:
                    while more is not None and self._has_room():
                        try:
                            item = next(more)
                        except StopIteration:
                            more = None
                            break
                        image = _Image(item, readers.submit(self._load, item))
                        self._waiting.append(image)
                        self._loading.append(image)
                    self._take_loaded()
                    self._dispatch(pool)
                    if not self._waiting:
                        return
                    if self._is_answered(self._waiting[0]):
                        yield self._answer(self._waiting.popleft())
                    elif self._is_stuck(last=more is None):
                        self._dispatch_some(pool, last=more is None)
                    elif self._loading and len(self._in_flight) < _IN_FLIGHT:
                        self._wait(self._loading[0].loading)
                    else:
                        self._wait(self._in_flight[0])
            finally:
                for threads in (readers, pool):
                    threads.shutdown(wait=False, cancel_futures=True)

    def _has_room(self) -> bool:
        if len(self._waiting) >= self._most_images or len(self._loading) >= 2 * self._threads:
            return False
        return sum(image.loaded.area for image in self._waiting if image.loaded) < _MOST_PIXELS

    def _is_stuck(self, last: bool) -> bool:
        """Whether a batch that is not whole is the best that the devices can get now."""
        if self._loading or not self._ready or len(self._in_flight) >= _IN_FLIGHT:
            return False
        return last or not self._in_flight or self._waiting[0] in self._ready

    def _load(self, item: Any) -> _Loaded:
        """On a thread: reads an image and resizes it."""
        pixels = self._read(item, self._asked.tile)
        area, kept = pixels.shape[0] * pixels.shape[1], pixels if self._keep_pixels else None
        if len(grid := self._segmenter.tiles_of(pixels, self._asked)) > 1:
            return _Loaded(pixels, area, grid=grid)
        return _Loaded(kept, area, self._segmenter.prepare(pixels[:, :]))

    def _take_loaded(self) -> None:
        while self._loading and self._loading[0].loading.done():
            image = self._loading.popleft()
            try:
                image.loaded = image.loading.result()
            except UserError as error:
                image.error = error
            else:
                self._ready.append(image)

    def _dispatch(self, pool: ThreadPoolExecutor) -> None:
        """Gives the devices whole batches, and images by tiles, the first ones first."""
        self._in_flight = [future for future in self._in_flight if not future.done()]
        while len(self._in_flight) < _IN_FLIGHT and (batch := self._whole_batch()):
            self._start(pool, batch, batch[0].loaded.input and batch[0].loaded.input.padded)

    def _whole_batch(self) -> list[_Image]:
        groups: dict[Size, list[_Image]] = {}
        for image in self._ready:
            if image.loaded.grid:
                return [image]
            group = groups.setdefault(image.loaded.input.padded, [])
            group.append(image)
            if len(group) == self._batch_size:
                return group
        return []

    def _dispatch_some(self, pool: ThreadPoolExecutor, last: bool) -> None:
        """Gives the devices a batch that is not whole: no image can join it before one is answered.

        Images of smaller padded sizes fill it up.
        """
        sizes = [image.loaded.input.padded for image in self._ready]
        # At the end the largest, which most of the others fit; before it that of the image which the caller waits for.
        padded = max(sizes, key=math.prod) if last else sizes[0]
        first = [image for image in self._ready if image.loaded.input.padded == padded]
        exact = first[0].loaded.input.exact
        others = [image for image in self._ready if not exact and image not in first and _fits(image, padded)]
        self._start(pool, [*first, *others][: self._batch_size], padded)

    def _start(self, pool: ThreadPoolExecutor, batch: list[_Image], padded: Size | None) -> None:
        segmenter, asked = self._segmenter, self._asked
        if padded is None:
            loaded = batch[0].loaded
            future = pool.submit(lambda: [segmenter.segment_tiles(loaded.pixels, loaded.grid, asked)])
        else:
            inputs = [image.loaded.input for image in batch]
            found = segmenter.run(inputs, asked, padded=padded, number=self._batch_size, spread=True)
            future = pool.submit(segmenter.read, found, inputs, asked)
        for place, image in enumerate(batch):
            image.computing, image.place = future, place
            self._ready.remove(image)
        self._in_flight.append(future)

    def _is_answered(self, image: _Image) -> bool:
        return image.error is not None or (image.computing is not None and image.computing.done())

    def _answer(self, image: _Image) -> Answer:
        if image.error is not None:
            return Answer(image.item, image.error)
        kept = image.loaded.pixels if self._keep_pixels else None
        try:
            return Answer(image.item, image.computing.result()[image.place], kept)
        except PartError as error:
            return Answer(image.item, error)

    def _wait(self, future: Future) -> None:
        future.exception()


def _fits(image: _Image, padded: Size) -> bool:
    own = image.loaded.input.padded
    return own[0] <= padded[0] and own[1] <= padded[1]
