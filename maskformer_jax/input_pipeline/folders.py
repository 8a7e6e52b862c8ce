"""Your own dataset: the files in a folder, and a name for the state of the folder.

All access goes through etils.epath, so folders may also be in cloud storage (gs://...).
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

# All suffixes that PIL knows, so that an unsupported image raises an error that names it, instead of being skipped.
IMAGE_SUFFIXES = frozenset(Image.registered_extensions())


class FolderConfig(tfds.core.BuilderConfig):
    """A folder, and the name of its dataset on disk: the name of the folder with a digest of its files.

    The digest makes a changed folder a new dataset, so that nobody trains on an outdated copy of it.
    """

    def __init__(self, folder: epath.Path, parts: Iterable[epath.Path]):
        self.folder = folder
        super().__init__(name=f"{plain(folder.resolve().name)}-{digest(folder, parts)}")


class FolderBuilder(SchemaBuilder, skip_registration=True):
    """A dataset made from your own folder.

    Every file is checked while it is read. The first bad one stops the builder with a message that holds its path,
    the problem and the remedy.
    """

    builder_config: FolderConfig

    @classmethod
    def make_config(cls, name: str, folder: str, tfds_dir: str) -> FolderConfig:
        """The configuration of a folder in its present state.

        Args:
            name: of the dataset, as the user wrote it, for messages.
            folder: as the user wrote it.
            tfds_dir: unused.
        """
        if not folder:
            raise UserError(f"data.dir is empty; dataset {name!r} needs a folder: --config.data.dir=FOLDER")
        root = epath.Path(folder).expanduser()
        if not root.is_dir():
            raise UserError(f"data.dir is {folder!r}, which is not a folder")
        return FolderConfig(root, cls.parts(root))

    @classmethod
    def parts(cls, root: epath.Path) -> Iterable[epath.Path]:
        """The files and folders below `root` that the dataset is made from; they need not exist."""
        raise NotImplementedError

    def splits(self, root: epath.Path) -> Iterable[str]:
        """The names of all splits; raises UserError if there are none."""
        raise NotImplementedError

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        del dl_manager
        root = self.builder_config.folder
        splits = list(self.splits(root))
        for split in splits:
            if not re.fullmatch(r"[\w-]+", split) or split == "all":
                raise UserError(
                    f"{root}: a split cannot be called {split!r}, because TFDS would not find it. Use letters, digits, "
                    '"-" and "_", and another name than "all".'
                )
        return {split: self._generate_examples(root, split) for split in splits}


def plain(name: str) -> str:
    """A text with characters that TFDS does not allow in the name of a dataset replaced."""
    return re.sub(r"[^\w.-]+", "_", name) or "root"


def digest(root: epath.Path, parts: Iterable[epath.Path]) -> str:
    """Twelve hexadecimal digits that change with the names, sizes and modification times of files.

    Args:
        root: the folder that contains them. Its own location does not change the digest.
        parts: files, and folders of which all files count; those that do not exist are skipped.
    """
    files = sorted({path for part in parts for path in _files_of(part)})
    with concurrent.futures.ThreadPoolExecutor(32) as pool:  # in cloud storage, each file is a request
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
    """Every file in a folder and its subfolders, sorted by name, without hidden files."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):  # .DS_Store, and the ._photo.jpg that macOS adds to photo.jpg
            continue
        # `is_dir` is a request in cloud storage, and most paths are images.
        if path.suffix.lower() not in IMAGE_SUFFIXES and path.is_dir():
            yield from files_below(path)
        else:
            yield path


def folders_in(folder: epath.Path) -> list[str]:
    """The names of the folders in a folder, sorted; empty if it does not exist."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path.name for path in paths if not path.name.startswith(".") and path.is_dir()]


def images_by_id(folder: epath.Path) -> dict[str, epath.Path]:
    """The image files below a folder, keyed by id: the relative path without its suffix, as in "city/001".

    Raises:
        UserError: for two files with the same id.
    """
    found = {}
    for path in files_below(folder) if folder.is_dir() else ():
        if path.suffix.lower() in IMAGE_SUFFIXES:
            image_id = path.relative_to(folder).with_suffix("").as_posix()
            if image_id in found:
                raise UserError(f"{found[image_id]} and {path} differ only in their suffix. Rename or remove one.")
            found[image_id] = path
    return found
