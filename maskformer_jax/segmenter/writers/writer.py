"""What all formats have in common: a name for each picture, and the images of a split of a dataset."""

import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from etils import epath

from maskformer_jax.catalog import Classes
from maskformer_jax.errors import UserError
from maskformer_jax.files import images, outlines, paths, writing
from maskformer_jax.inference.crops import Crop
from maskformer_jax.inference.tiles import Box
from maskformer_jax.segmenter.images import ImageLike, Pixels, pixels_of
from maskformer_jax.segmenter.journal import Journal
from maskformer_jax.segmenter.results import AnySegmentation, InstanceSegmentation


class Found(NamedTuple):
    """A segment or instance with at least one pixel."""

    crop: Crop  # its mask
    label: int
    score: float
    area: int
    box: list[int]  # [x0, y0, x1, y1], where x1 and y1 are exclusive

    def outlines(self, tolerance: float) -> list[np.ndarray]:
        """Polygons in the image; see `outlines.outlines_of`."""
        corner = np.array(self.box[:2])
        return [polygon + corner for polygon in outlines.outlines_of(self.crop.pixels, tolerance)]


def found_in(result: AnySegmentation) -> Iterator[Found]:
    """The segments or instances of a result, in their order."""
    for number, segment in enumerate(result.segments()):
        if segment["area"]:
            left, top, right, bottom = segment["box"]
            yield Found(
                result.crop(number, Box(top, left, bottom, right)),
                segment["class"],
                segment["score"],
                segment["area"],
                segment["box"],
            )


@dataclasses.dataclass(frozen=True)
class WriterOptions:
    """How a dataset is written; formats without such a thing ignore it.

    Raises:
        UserError: for a value that is not allowed.
    """

    split: str = "train"
    copy_images: bool = True
    tolerance: float = 0.0  # of polygons, in pixels

    def __post_init__(self):
        if not re.fullmatch(r"[\w-]+", self.split) or self.split == "all":
            raise UserError(
                f'split is {self.split!r}; it must be a word of letters, digits, "-" and "_", and not "all"'
            )
        if not 0 <= self.tolerance <= 100:
            raise UserError(f"tolerance is {self.tolerance!r}; it must lie in 0..100 pixels")


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image whose result is written."""

    name: str  # unique, with "/" between folders, without a suffix
    pixels: Pixels  # [H, W, 3] uint8
    file: str = ""  # that holds the image; "" if there is none

    @staticmethod
    def of(image: ImageLike, file: str = "", name: str = "") -> "Picture":
        """A picture of any image; its name is that of the file, unless another is given.

        Raises:
            UserError: as `pixels_of`, and without a file or a name.
        """
        name = name or os.path.splitext(os.path.basename(file))[0]
        if not name:
            raise UserError("the picture has no name: give its file, or a name")
        return Picture(name, pixels_of(image), file)


class Writer:
    """Writes results to a folder, as a context: what was added is complete when the block ends, in whatever way.

    Its methods may be called on any thread, one call at a time; `encode` while others run.
    """

    TASKS: ClassVar[tuple[str, ...]]  # whose results it takes, best first
    OPTIONS: ClassVar[tuple[str, ...]] = ()  # the fields of `WriterOptions` that change what it writes

    def __init__(self, out: str, classes: Classes, options: WriterOptions, journal: Journal | None = None):
        """Raises UserError if the folder cannot be used; nothing in it has changed then.

        Args:
            journal: of a call with a list of images, which notes each result; `check_folder` has been called then.
        """
        raise NotImplementedError

    @classmethod
    def key(cls, format: str, options: WriterOptions) -> str:
        """Of the journals of a format: those who write the same files that belong to all pictures have the same."""
        return f"{format}-{options.split}" if "split" in cls.OPTIONS else format

    @classmethod
    def name_of(cls, name: str) -> str:
        """The name of a picture in the results."""
        return name

    @classmethod
    def folders(cls, out: str, options: WriterOptions) -> list[epath.Path]:
        """Folders in which everything is a result."""
        del out, options
        return []

    @classmethod
    def check_folder(cls, out: str, options: WriterOptions) -> None:
        """Raises UserError if the folder cannot be used, whatever the classes; nothing in it has changed then."""

    @classmethod
    def files(cls, out: str, name: str) -> list[epath.Path]:
        """The files that may replace earlier results when a picture of this name is written."""
        del out, name
        return []

    @classmethod
    def check(cls, out: str, name: str) -> dict[str, Any] | None:
        """What the earlier result of this name says of itself, if it does: see `results.check_target`.

        Raises UserError if a picture of this name cannot be written.
        """

    def add(self, picture: Picture, result: AnySegmentation) -> None:
        """Writes one result. Raises UserError, or WriteError for the disk; nothing of the picture is left then."""
        raise NotImplementedError

    def encode(self, picture: Picture, result: AnySegmentation) -> Callable[[], None]:
        """`add` in two steps: what can be computed on many threads at once, and the function that does the rest."""
        return functools.partial(self.add, picture, result)

    def close(self) -> None:
        """Completes the files that belong to all pictures. Raises WriteError."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # An interruption after hours leaves a dataset of what was done; its own error matters more than one from here.
        with contextlib.suppress(*(() if error is None else (UserError,))):
            self.close()


class DatasetWriter(Writer):
    """A format with images and annotations of a split: OUT/images/SPLIT/NAME, unless images are not copied."""

    OPTIONS = ("split", "copy_images")

    def __init__(self, out: str, classes: Classes, options: WriterOptions, journal: Journal | None = None):
        self.out = epath.Path(paths.expand(out))
        self.classes = classes
        self.options = options
        self._names: set[str] = set()
        if journal is None:
            self.check_folder(out, options)
        # The files that belong to all pictures are made at the end, of what it has noted by then.
        self._journal = journal or Journal(self.out, self.key(type(self).__name__, options))

    @classmethod
    def folders(cls, out: str, options: WriterOptions) -> list[epath.Path]:
        folder = epath.Path(paths.expand(out))
        images_of_split = [folder / "images" / options.split] if options.copy_images else []
        return [*images_of_split, *cls.split_files(folder, options.split)]

    @classmethod
    def check_folder(cls, out: str, options: WriterOptions) -> None:
        for path in cls.folders(out, options):
            with writing.explained(path):
                if path.exists() and (not path.is_dir() or any(path.iterdir())):
                    raise UserError(
                        f"{paths.printable(path)} exists. Nothing was changed. Use another --out or --split, or move "
                        "it away."
                    )

    @classmethod
    def split_files(cls, folder: epath.Path, split: str) -> list[epath.Path]:
        """What a dataset keeps of a split apart from images: files and folders."""
        raise NotImplementedError

    def write(self, picture: Picture, file_name: str, result: AnySegmentation) -> dict[epath.Path, bytes]:
        """The files of one picture beside its image, and their content.

        Args:
            file_name: of the image, relative to OUT/images/SPLIT.
        """
        del picture, file_name, result
        return {}

    def record(self, picture: Picture, file_name: str, result: AnySegmentation) -> Any:
        """What the files that belong to all pictures have of one, in JSON values; None for nothing."""
        del picture, file_name, result
        return None

    def write_index(self, records: Iterator[Any]) -> None:
        """Writes the files that belong to all pictures, from their records in order."""

    def add(self, picture: Picture, result: AnySegmentation) -> None:
        if isinstance(result, InstanceSegmentation) and "instance" not in self.TASKS:
            raise UserError(f"this format takes the results of {' and '.join(self.TASKS)}; instances may overlap")
        name = self.name_of(picture.name)
        if name in self._names:
            raise UserError(taken(picture.file or name, name))
        copy = self.options.copy_images
        file_name = name + _suffix(picture, copy)
        contents = self.write(picture, file_name, result)
        if copy:
            contents[self.out / "images" / self.options.split / file_name] = _content(picture)
        record = self.record(picture, file_name, result)
        writing.write_files(contents)
        self._names.add(name)
        last = next(reversed(contents), None)
        file = "" if last is None else str(last.relative_to(self.out))
        self._journal.note(picture.name, len(result.labels), file, record)

    def close(self) -> None:
        look, missing = self._journal.outcome()
        is_of_one = not self._journal.keeps or self._journal.part.count == 1
        # Of several processes, the last does it.
        if look.has_results and not look.is_complete and (is_of_one or not missing):
            self.write_index(look.records())
        if not self._journal.keeps:
            self._journal.discard()

    @classmethod
    def name_of(cls, name: str) -> str:
        return portable(name)


def taken(image: str, name: str) -> str:
    """The message for an image whose name in a dataset is that of another."""
    return f"{image}: an image of the name {name} was already written; rename it"


def other_classes(path: epath.Path) -> UserError:
    """The error for a file that says that the dataset in a folder has other classes."""
    return UserError(f"{paths.printable(path)} exists with other classes. Nothing was changed. Use another --out.")


def portable(name: str) -> str:
    """A name that all tools read alike: bytes that are not UTF-8, backslashes and control characters become %XX."""
    kept = name.replace(os.sep, "/")
    return "".join(char if char.isprintable() and char != "\\" else _escape(char) for char in kept)


def _escape(char: str) -> str:
    return "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogateescape"))


def _suffix(picture: Picture, copy: bool) -> str:
    """Of the file of an image, or of its copy, which is a PNG if readers would not take the file for an image."""
    suffix = os.path.splitext(picture.file)[1]
    return suffix if suffix.lower() in images.suffixes() or (picture.file and not copy) else ".png"


def _content(picture: Picture) -> bytes | epath.Path:
    """Of the copy of an image: that of its file, or a PNG of its pixels."""
    if os.path.splitext(picture.file)[1].lower() in images.suffixes():
        # A file that is read by parts may be larger than memory.
        is_array = isinstance(picture.pixels, np.ndarray)
        return images.read_bytes(picture.file) if is_array else epath.Path(picture.file)
    return images.encode_png(picture.pixels)
