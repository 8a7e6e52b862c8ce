"""The image files of paths that a user gives, and unique names for their results."""

import dataclasses
import glob
import os
import unicodedata
from collections.abc import Iterator

from maskformer_jax.files import paths, walk
from maskformer_jax.files.images import suffixes
from maskformer_jax.segmenter.results import RESULT_SUFFIXES, is_result

SUFFIXES = tuple(sorted(suffixes()))  # in folders and patterns


@dataclasses.dataclass(frozen=True)
class Found:
    """An image file, and the folder of the argument that matched it."""

    path: str
    root: str


def find_images(arguments: list[str]) -> tuple[list[Found], list[str]]:
    """Finds the image files of some paths, each file once, and returns a message for each path without images.

    Folders and patterns do not match the results of earlier calls. Links to folders are followed.

    Args:
        arguments: files with any suffix; folders, searched recursively for files with one of SUFFIXES that are not
            hidden; patterns of Python's `glob`, where ** matches any number of folders, for such files and folders.
    """
    images: dict[str, Found] = {}
    failed: list[str] = []

    def unreadable(error: OSError) -> None:
        failed.append(f"{error.filename}: cannot read this folder: {error.strerror}")

    for argument in arguments:
        path = paths.existing(paths.expand(argument))
        if os.path.isdir(path):
            found, missing = list(_below(path, path, unreadable)), "no images in this folder"
        elif glob.has_magic(path) and not os.path.lexists(path):
            found, missing = list(_matching(path, unreadable)), "no images match this pattern"
        else:
            # A missing file is reported later, as one that cannot be read.
            found, missing = [Found(path, os.path.dirname(path))], ""
        if not found:
            failed.append(f"{path}: {missing} ({' '.join(SUFFIXES)})")
        for image in found:
            images.setdefault(os.path.abspath(image.path), image)
    return list(images.values()), failed


def _below(folder: str, root: str, unreadable: walk.OnError) -> Iterator[Found]:
    """The images in a folder and its subfolders."""
    for parent, names in walk.walk(folder, unreadable):
        for name in names:
            if _is_image(os.path.join(parent, name)):
                yield Found(os.path.join(parent, name), root)


def _matching(pattern: str, unreadable: walk.OnError) -> Iterator[Found]:
    """The images that match a pattern; their root is the folder where the wildcards start."""
    root, parts = walk.split_pattern(pattern)
    for path in walk.matching(root, parts, unreadable):
        if os.path.isdir(path or os.curdir):
            yield from _below(path or os.curdir, root, unreadable)
        elif _is_image(path):
            yield Found(path, root)


def _is_image(path: str) -> bool:
    """Whether a file has the suffix of an image and is not the result of an earlier call."""
    folder, name = os.path.split(path)
    if name.startswith(".") or not name.lower().endswith(SUFFIXES):
        return False
    return not any(name.endswith(suffix) and is_result(folder, name.removesuffix(suffix)) for suffix in RESULT_SUFFIXES)


def name_results(images: list[Found]) -> list[str]:
    """Unique names for the results of the images, by the rule in `maskformer-predict --help`.

    Names that differ only in case or in the composition of Unicode count as one, since many disks do not distinguish
    them. If even whole paths differ in no more, they are taken nevertheless.
    """
    parents = [os.path.dirname(os.path.abspath(image.path)) for image in images]
    common = os.path.commonpath(parents) if images else ""
    below_root = [os.path.relpath(image.path, image.root or os.curdir) for image in images]
    below_common = [os.path.relpath(image.path, common) for image in images]
    for found in (below_root, below_common):
        names = [os.path.splitext(path)[0] for path in found]
        if len(set(map(folded, names))) == len(names):
            return names
    return below_common


def folded(name: str) -> str:
    """What is the same for names that many disks do not distinguish: in case, or in the composition of Unicode."""
    return unicodedata.normalize("NFC", name).casefold()
