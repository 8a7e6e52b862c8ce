"""Results written while others are computed: encoded on threads, then written in order on one."""

import collections
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from maskformer_jax.errors import UserError
from maskformer_jax.files import processes
from maskformer_jax.segmenter.stream import Answer, Item
from maskformer_jax.segmenter.writers.writer import Picture, Writer

_THREADS = 8


def write_behind(
    writer: Writer, answers: Iterable[Answer[Item]], picture_of: Callable[[Answer[Item]], Picture]
) -> Iterator[tuple[Answer[Item], UserError | None]]:
    """Writes the results of answers, those without errors, and gives each answer when it is written, in order.

    The second value is why it has not been written: the error of the answer, or that of the writer. After an error of
    the disk nothing more is written. What has begun is complete when the iterator is closed.

    Args:
        picture_of: the picture of an answer.
    """
    threads = max(1, min(_THREADS, processes.cores()))
    full = threading.Event()

    def write(encoded: Future) -> None:
        rest = encoded.result()
        if not full.is_set():
            try:
                rest()
            except UserError as error:
                if getattr(error, "disk", False):
                    full.set()
                raise

    def settled(answer: Answer[Item], written: Future | None) -> tuple[Answer[Item], UserError | None]:
        try:
            if written is not None:
                written.result()
        except UserError as error:
            return answer, error
        return answer, answer.result if written is None else None

    pending: collections.deque[tuple[Answer[Item], Future | None]] = collections.deque()
    with ThreadPoolExecutor(threads, "encoder") as encoders, ThreadPoolExecutor(1, "writer") as disk:
        try:
            for answer in answers:
                written = None
                if not isinstance(answer.result, UserError):
                    written = disk.submit(write, encoders.submit(writer.encode, picture_of(answer), answer.result))
                pending.append((answer, written))
                # As many images wait as keep the threads busy: their pixels are in memory.
                while pending and (len(pending) > 2 * threads or pending[0][1] is None or pending[0][1].done()):
                    yield settled(*pending.popleft())
            while pending:
                yield settled(*pending.popleft())
        finally:
            # In this order: a writer that is under way waits for its encoder.
            disk.shutdown(wait=False, cancel_futures=True)
            encoders.shutdown(wait=False)
