"""Pictures to look at: an overlay, an id map and the segments of each image. Datasets are the other formats."""

from collections.abc import Callable
from typing import Any

from etils import epath

from maskformer_jax.catalog import Classes
from maskformer_jax.files import paths
from maskformer_jax.segmenter.journal import Journal
from maskformer_jax.segmenter.results import (
    AnySegmentation,
    check_target,
    encode_result,
    result_files,
    write_encoded,
)
from maskformer_jax.segmenter.writers.writer import Picture, Writer, WriterOptions


class Overlays(Writer):
    """OUT/NAME_overlay.png, OUT/NAME_ids.png and OUT/NAME.json; unchanged ones of an earlier call are replaced."""

    TASKS = ("panoptic", "semantic", "instance")

    def __init__(self, out: str, classes: Classes, options: WriterOptions, journal: Journal | None = None):
        del classes, options  # results have their classes
        self.out, self._journal = paths.expand(out), journal

    @classmethod
    def files(cls, out: str, name: str) -> list[epath.Path]:
        return result_files(out, name)

    @classmethod
    def check(cls, out: str, name: str) -> dict[str, Any] | None:
        return check_target(out, name)

    def encode(self, picture: Picture, result: AnySegmentation) -> Callable[[], None]:
        contents = encode_result(picture.pixels, result, self._journal and self._journal.made(picture.name))

        def write() -> None:
            write_encoded(contents, self.out, picture.name)
            if self._journal:
                file = result_files(self.out, picture.name)[-1]
                self._journal.note(picture.name, len(result.labels), str(file.relative_to(self.out)))

        return write

    def add(self, picture: Picture, result: AnySegmentation) -> None:
        self.encode(picture, result)()
