"""Single images that arrive at any time, on any thread, through a model: those that wait together form batches.

One thread gives the device its work. An image that finds the device idle is computed at once, and alone; those that
arrive meanwhile form the next batches. So no image waits for a batch to fill, and batches are as large as the load.
"""

import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import jax

from maskformer_jax.inference.compiled import Found
from maskformer_jax.segmenter.images import Pixels
from maskformer_jax.segmenter.inputs import Input
from maskformer_jax.segmenter.results import AnySegmentation
from maskformer_jax.segmenter.stream import batch_size_of
from maskformer_jax.segmenter.tasks import Request

if TYPE_CHECKING:
    from maskformer_jax.segmenter.segmenter import Segmenter

_IN_FLIGHT = 2  # batches: one is computed, the results of another are read


@dataclasses.dataclass(eq=False)
class _Waiting:
    asked: Request
    compute: Input | Pixels  # pixels of an image that is larger than a tile
    answer: Future

    @property
    def group(self) -> object:
        """Images of equal groups can be one batch."""
        return (self.asked, self.compute.padded) if isinstance(self.compute, Input) else self


class Live:
    """Results of images as they arrive. All methods are thread-safe.

    Args:
        batch_size: images that are computed at once, at most; as of `Segmenter.batch`.
        on_batch: called with the number of images of each batch, on the device's thread.
    """

    def __init__(
        self,
        segmenter: "Segmenter",
        batch_size: int | None = None,
        on_batch: Callable[[int], None] = lambda count: None,
    ):
        self._segmenter, self._on_batch = segmenter, on_batch
        self.batch_size = batch_size_of(batch_size, jax.local_devices())
        self._changed = threading.Condition()
        self._waiting: list[_Waiting] = []  # in the order of arrival
        self._closed = False
        self._room = threading.Semaphore(_IN_FLIGHT)
        self._readers = ThreadPoolExecutor(_IN_FLIGHT, "answer")
        self._device = threading.Thread(target=self._serve, name="device", daemon=True)
        self._device.start()

    @property
    def is_alive(self) -> bool:
        """Whether images are computed; False after `close`."""
        return self._device.is_alive()

    def submit(self, rgb: Pixels, asked: Request) -> Future[AnySegmentation]:
        """The future result of an image; one that is cancelled before its batch begins is not computed.

        Resizes the image on the caller's thread.

        Args:
            rgb: [H, W, 3] uint8.

        Raises:
            UserError: if instances are asked for and the model does not separate them.
            RuntimeError: after `close`.
        """
        if asked.task == "instance":
            self._segmenter.check_instances()
        by_tiles = len(self._segmenter.tiles_of(rgb, asked)) > 1
        image = _Waiting(asked, rgb if by_tiles else self._segmenter.prepare(rgb[:, :]), Future())
        with self._changed:
            if self._closed:
                raise RuntimeError("no images are taken after close()")
            self._waiting.append(image)
            self._changed.notify()
        return image.answer

    def warm_up(self, rgb: Pixels, asked: Request) -> None:
        """Compiles what images of this size need, alone and in batches. Errors as of `Segmenter.read`."""
        one = self._segmenter.prepare(rgb[:, :])
        for inputs in ([one], [one] * min(2, self.batch_size)):
            self._segmenter.read(self._run(inputs, asked), inputs, asked)

    def close(self) -> None:
        """Takes no more images, and waits until all that were taken have their answers."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._device.join()
        self._readers.shutdown()

    def _serve(self) -> None:
        while True:
            # Room first: images that arrive while there is none join the batch.
            self._room.acquire()
            if not (batch := self._next()):
                return
            self._on_batch(len(batch))
            try:
                read = self._start(batch)
            except Exception as error:  # also of the device, such as too little memory: the next batch may succeed
                self._give(batch, error=error)
            else:
                self._readers.submit(self._read, batch, read)

    def _next(self) -> list[_Waiting]:
        """The image that has waited longest with others of its group; none after the last one."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return []
                group = self._waiting[0].group
                found = [image for image in self._waiting if image.group == group][: self.batch_size]
                self._waiting = [image for image in self._waiting if image not in found]
                if batch := [image for image in found if image.answer.set_running_or_notify_cancel()]:
                    return batch

    def _start(self, batch: list[_Waiting]) -> Callable[[], list[AnySegmentation]]:
        """Gives the device a batch, without waiting for it; returns what reads its results."""
        segmenter, asked, first = self._segmenter, batch[0].asked, batch[0].compute
        if not isinstance(first, Input):
            return lambda: [segmenter.segment_tiles(first, segmenter.tiles_of(first, asked), asked)]
        inputs = [image.compute for image in batch]
        found = self._run(inputs, asked)
        return lambda: segmenter.read(found, inputs, asked)

    def _run(self, inputs: list[Input], asked: Request) -> Found:
        # Two functions for each padded size, whatever the load: an image alone need not wait for a whole batch.
        several = len(inputs) > 1
        return self._segmenter.run(inputs, asked, number=self.batch_size if several else 1, spread=several)

    def _read(self, batch: list[_Waiting], read: Callable[[], list[AnySegmentation]]) -> None:
        try:
            results = read()
        except Exception as error:
            self._give(batch, error=error)
        else:
            self._give(batch, results)

    def _give(
        self, batch: list[_Waiting], results: list[AnySegmentation] | None = None, error: Exception | None = None
    ) -> None:
        self._room.release()
        for place, image in enumerate(batch):
            if error is None:
                image.answer.set_result(results[place])
            else:
                image.answer.set_exception(error)
