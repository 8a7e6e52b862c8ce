"""Datasets of one's own: what lies in a folder, and a name for the state that it is in.

Folders are reached through etils.epath alone, so they may lie in a bucket (gs://...) too.
"""

import concurrent.futures
import hashlib
import re
from collections.abc import Iterable, Iterator

import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline.builders import SchemaBuilder

# Every kind that PIL knows: one that cannot be stored is then refused by name instead of being overlooked.
IMAGE_SUFFIXES = frozenset(Image.registered_extensions())


class FolderConfig(tfds.core.BuilderConfig):
    """A folder, and the dataset's name on disk: the folder's own and a digest of the files it is made from.

    The digest makes a changed folder a new dataset, so nobody trains on files that are no longer there.
    """

    def __init__(self, folder: epath.Path, parts: Iterable[epath.Path]):
        self.folder = folder
        super().__init__(name=f"{plain(folder.resolve().name)}-{digest(folder, parts)}")


class FolderBuilder(SchemaBuilder, skip_registration=True):
    """A dataset that is made from a folder of one's own.

    Every file is checked while it is read; the first bad one stops the builder with its path, what is wrong and
    the cure.
    """

    builder_config: FolderConfig

    @classmethod
    def make_config(cls, name: str, folder: str, tfds_dir: str) -> FolderConfig:
        """The configuration of a folder as it is now.

        Args:
            name: as the user wrote it, for messages.
            folder: as the user wrote it.
            tfds_dir: has no part in it.
        """
        if not folder:
            raise UserError(f"data.dir is empty; dataset {name!r} needs a folder: --config.data.dir=FOLDER")
        root = epath.Path(folder).expanduser()
        if not root.is_dir():
            raise UserError(f"data.dir is {folder!r}, which is not a folder")
        return FolderConfig(root, cls.parts(root))

    @classmethod
    def parts(cls, root: epath.Path) -> Iterable[epath.Path]:
        """The files and folders below `root` that the dataset is made from; they need not be there."""
        raise NotImplementedError

    def splits(self, root: epath.Path) -> Iterable[str]:
        """The names of all splits; raises UserError if there is none."""
        raise NotImplementedError

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        del dl_manager
        root = self.builder_config.folder
        splits = list(self.splits(root))
        for split in splits:
            if not re.fullmatch(r"[\w-]+", split) or split == "all":
                raise UserError(
                    f"{root}: a split cannot be called {split!r}, which TFDS would not find. Name it in letters, "
                    'digits, "-" and "_", and not "all".'
                )
        return {split: self._generate_examples(root, split) for split in splits}


def plain(name: str) -> str:
    """A text as TFDS can have it in the name of a dataset."""
    return re.sub(r"[^\w.-]+", "_", name) or "root"


def digest(root: epath.Path, parts: Iterable[epath.Path]) -> str:
    """Twelve hexadecimal digits of the names, sizes and times of files and of all files in folders.

    Args:
        root: the folder above them; where it lies does not count.
        parts: those that are not there are left out.
    """
    files = sorted({path for part in parts for path in _files_of(part)})
    with concurrent.futures.ThreadPoolExecutor(32) as pool:  # each file of a bucket is a request
        states = list(pool.map(lambda path: path.stat(), files))
    found = hashlib.sha256()
    for path, state in zip(files, states, strict=True):
        found.update(f"{path.relative_to(root).as_posix()} {state.length} {state.mtime}\n".encode())
    return found.hexdigest()[:12]


def _files_of(part: epath.Path) -> Iterable[epath.Path]:
    if part.is_dir():
        return files_below(part)
    return [part] if part.exists() else []


def files_below(folder: epath.Path) -> Iterator[epath.Path]:
    """Every file in a folder and the folders in it, in the order of their names; hidden ones are left out."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):  # .DS_Store, and the ._photo.jpg that some systems put beside photo.jpg
            continue
        # To ask what a path is takes a request in a bucket, and most are images.
        if path.suffix.lower() not in IMAGE_SUFFIXES and path.is_dir():
            yield from files_below(path)
        else:
            yield path


def folders_in(folder: epath.Path) -> list[str]:
    """The names of the folders in a folder, in order; none if it is not there."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path.name for path in paths if not path.name.startswith(".") and path.is_dir()]


def images_by_id(folder: epath.Path) -> dict[str, epath.Path]:
    """The image files below a folder by their ids: the path from there without its ending, as in "city/001".

    Raises:
        UserError: for two files of one id.
    """
    found = {}
    for path in files_below(folder) if folder.is_dir() else ():
        if path.suffix.lower() in IMAGE_SUFFIXES:
            image_id = path.relative_to(folder).with_suffix("").as_posix()
            if image_id in found:
                raise UserError(f"{found[image_id]} and {path} differ in their endings alone. Rename or remove one.")
            found[image_id] = path
    return found
