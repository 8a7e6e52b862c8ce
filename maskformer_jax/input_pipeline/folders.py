"""Your own dataset: the files in a folder, and a name for what the folder holds.

All access goes through etils.epath, so folders may also be in cloud storage (gs://...).
"""

import dataclasses
import hashlib
import itertools
import json
import os
import re
import shlex
import shutil
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from maskformer_jax import catalog
from maskformer_jax.errors import UserError
from maskformer_jax.files.identity import Content, content, note, size_in_words
from maskformer_jax.files.images import image_suffixes
from maskformer_jax.files.paths import expand, is_local, printable
from maskformer_jax.input_pipeline.builders import SchemaBuilder
from maskformer_jax.input_pipeline.labels import LabelFiles
from maskformer_jax.input_pipeline.making import INFO, folder_size

IMAGE_SUFFIXES = image_suffixes()
# What operating systems and archives leave in folders, in addition to hidden files.
_NOT_DATA = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin"})
_LONGEST = 80  # bytes of a folder's name in that of its dataset; file systems allow 255 bytes


class FolderConfig(tfds.core.BuilderConfig):
    """A folder, and the name of its dataset on disk: the name of the folder with a digest of what it holds.

    The digest makes a changed folder a new dataset, so that nobody trains on an outdated copy of it. A folder that was
    copied or touched is the same dataset, and so is one whose classes have other names.
    """

    def __init__(self, folder: epath.Path, name: str, found: Content, uncolored: str, datasets: epath.Path):
        self.folder = folder
        self.content = found
        self.uncolored = uncolored  # the digest if colors in classes.json do not count
        self.datasets = datasets  # the folder of all datasets that the builder made
        super().__init__(name=name)


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
            tfds_dir: as the user wrote it; keeps the index of the folder's files.
        """
        if not folder:
            raise UserError(f"data.dir is empty; dataset {name!r} needs a folder: --config.data.dir=FOLDER")
        root = epath.Path(expand(folder))
        if not root.is_dir():
            raise UserError(f"data.dir is {folder!r}, which is not a folder")
        datasets = datasets_folder(tfds_dir) / cls.name
        found, without = cls._content(root, datasets)
        name = cls._made(datasets, found.digest, without) or f"{plain(_name(root))}-{_short(found.digest)}"
        return FolderConfig(root, name, found, without, datasets)

    @classmethod
    def _content(cls, root: epath.Path, datasets: epath.Path) -> tuple[Content, str]:
        """What a folder holds, with the encoding of its labels; and the digest if colors do not count."""
        place = hashlib.sha256(os.fsencode(_resolved(root))).hexdigest()[:8]
        files = content(root, cls.files(root), datasets / f"{plain(_name(root))}-{place}.index.json")
        encoding = cls.encoding(root)
        digest, without = (_digest(files.digest, value) for value in (encoding, uncolored(encoding)))
        return Content(digest, files.size), without

    @classmethod
    def _made(cls, datasets: epath.Path, digest: str, uncolored: str) -> str:
        """The name of a dataset that was made of the same; "" if there is none."""
        # A copy of the folder under another name holds the same.
        for info in _finished(datasets, f"*-{_short(digest)}", str(cls.VERSION)):
            return info.parent.parent.name
        # And so does a folder whose classes have other colors, if no label file was colored.
        for info in _finished(datasets, "*", str(cls.VERSION)):
            if _metadata(info).get("uncolored") == uncolored:
                return info.parent.parent.name
        return ""

    @classmethod
    def files(cls, root: epath.Path) -> Iterable[epath.Path]:
        """The files below `root` that the dataset is made from, without classes.json."""
        raise NotImplementedError

    @classmethod
    def encoding(cls, root: epath.Path) -> Any:
        """What classes.json says that changes the stored labels, as JSON: names, colors to draw and things do not."""
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
        self.info.metadata["folder"] = printable(_resolved(root))
        self._tell_full_disk()
        return {split: self._generate_examples(root, split) for split in splits}

    def finish(self) -> None:
        config = self.builder_config
        root = config.folder
        if not any(summary.colored for summary in self._summaries.values()):
            self.info.metadata["uncolored"] = config.uncolored
        if self._content(root, config.datasets)[0].digest != config.content.digest:
            raise UserError(
                f"{root} changed while its dataset was made, so the dataset may hold both old and new files, and was "
                "not kept. Start again when the folder is complete."
            )

    def _tell_full_disk(self) -> None:
        # No error: labels and some images become smaller, and a folder may hold images without annotations.
        free, needed = free_bytes(self.data_path), self.builder_config.content.size
        if is_local(self.data_path) and free < needed:
            note(
                f"the dataset of {self.builder_config.folder} may need {size_in_words(needed)}, and "
                f"{self.data_dir_root} has {size_in_words(free)} free. Another folder: --config.data.tfds_dir=FOLDER"
            )

    def name_earlier(self) -> None:
        """Names the datasets that were made of earlier states of the same folder, and how to delete them."""
        root, earlier = printable(_resolved(self.builder_config.folder)), []
        if not is_local(self.data_path):
            return
        for info in _finished(self.data_path.parent.parent, "*", "*"):
            if _metadata(info).get("folder") == root and info.parent != self.data_path:
                # Another version of the program makes another version of the same dataset, in the same folder.
                is_version = info.parent.parent == self.data_path.parent
                earlier.append(info.parent if is_version else info.parent.parent)
        if earlier:
            datasets = self.data_path.parent.parent
            listed = ", ".join(f"{path.relative_to(datasets)} ({size_in_words(folder_size(path))})" for path in earlier)
            command = shlex.join(["rm", "-r", *map(str, earlier)])
            note(
                f"{root} has changed, or what reads it, so a new dataset was made of it. Of earlier states there are "
                f"still {listed}. If no run needs them any more: {command}"
            )


def datasets_folder(tfds_dir: str) -> epath.Path:
    """The folder of all datasets, from `config.data.tfds_dir`."""
    return epath.Path(expand(tfds_dir or tfds.core.constants.DATA_DIR))


def label_encoding(label_files: LabelFiles) -> dict[str, Any]:
    """What a `classes.json` says about the labels in files, as JSON. Other names for the same labels do not change it.

    Colors count only where label files are colored, which is known when all have been read.
    """
    return {
        "classes": len(label_files.classes),
        "values": label_files.classes.values,
        "void_values": sorted(set(label_files.void_values)),
        "colors": label_files.colors,
        "void_colors": sorted(set(label_files.void_colors)),
    }


def names_in_classes_json(root: epath.Path) -> list[str]:
    """The names in a folder's classes.json, for `encoding` of data that name their classes; empty without the file."""
    own = root / "classes.json"
    return list(catalog.read(own).names) if own.exists() else []


def chosen_classes(root: epath.Path, categories: Mapping[int, tuple[str, bool]], origin: Any) -> catalog.Classes:
    """The classes of data that name them: all, or those that the folder's classes.json chooses.

    Args:
        categories: the name and `is_thing` of each id, in the order of the classes.
        origin: the file with the categories, for messages.
    """
    things = [name for name, is_thing in categories.values() if is_thing]
    id_of = {name: category for category, (name, _) in categories.items()}
    own = root / "classes.json"
    if not own.exists():
        values = {"names": [name for name, _ in categories.values()], "things": things, "ids": list(categories)}
        return catalog.Classes.from_dict(values, str(origin))
    values = catalog.read_values(own)
    classes = catalog.Classes.from_dict(values, str(own))
    free = itertools.count(max(categories) + 1)  # for names without a category
    ids = tuple(id_of[name] if name in id_of else next(free) for name in classes.names)
    is_thing = tuple(name in things for name in classes.names)
    return dataclasses.replace(
        classes,
        is_thing=classes.is_thing if "things" in values else is_thing,
        ids=ids,
        values=classes.values if "values" in values else ids,
    )


def class_position(classes: catalog.Classes, name: str, root: epath.Path, where: str) -> int:
    """The class with a name; raises UserError, naming the annotation `where`, if classes.json has left it out."""
    if name not in classes.names:
        raise UserError(
            f'{where} has the category {name!r}, which is not in "names" in {root / "classes.json"}. Add it there, or '
            "remove its annotations."
        )
    return classes.names.index(name)


def encoding_name(encoding: Any) -> str:
    """Twelve hexadecimal digits of an encoding."""
    return _short(hashlib.sha256(json.dumps(encoding, sort_keys=True).encode()).hexdigest())


def free_bytes(path: epath.Path) -> int:
    """The free bytes on the disk of a path, which need not exist."""
    return shutil.disk_usage(next(parent for parent in path.parents if parent.exists())).free


def plain(name: str) -> str:
    """A text with characters that TFDS does not allow in the name of a dataset replaced, and not too long."""
    allowed = re.sub(r"[^\w.-]+", "_", name).encode("utf-8", "replace")
    if len(allowed) > _LONGEST:
        cut = allowed[:_LONGEST].decode(errors="ignore")
        return f"{cut}-{_short(hashlib.sha256(allowed).hexdigest())}"
    return allowed.decode() or "root"


def uncolored(encoding: Any) -> Any:
    """An encoding of labels without colors."""
    colors = ("colors", "void_colors")
    return {k: v for k, v in encoding.items() if k not in colors} if isinstance(encoding, dict) else encoding


def _digest(files: str, encoding: Any) -> str:
    return hashlib.sha256(f"{files} {json.dumps(encoding, sort_keys=True)}".encode()).hexdigest()


def _metadata(info: epath.Path) -> dict[str, Any]:
    """The metadata of a finished dataset; empty if they are damaged."""
    try:
        found = json.loads(info.with_name("metadata.json").read_text())
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def _short(digest: str) -> str:
    return digest[:12]


def _name(root: epath.Path) -> str:
    return epath.Path(_resolved(root)).name


def _resolved(root: epath.Path) -> str:
    return os.path.realpath(root) if is_local(root) else os.fspath(root)


def _finished(datasets: epath.Path, name: str, version: str) -> list[epath.Path]:
    """The last file of finished datasets of a builder."""
    try:
        if is_local(datasets):
            return sorted(datasets.glob(f"{name}/{version}/{INFO}"))
        # One request for the list of datasets.
        folders = [path for path in datasets.iterdir() if path.match(name)] if datasets.is_dir() else []
        return [path / version / INFO for path in sorted(folders) if (path / version / INFO).exists()]
    except OSError:
        return []


def is_data(name: str) -> bool:
    """Whether a file or folder is no hidden one, no backup, and none that an operating system leaves."""
    return not (name.startswith(".") or name.endswith("~") or name.lower() in _NOT_DATA)


def files_below(folder: epath.Path, inside: tuple[str, ...] = ()) -> Iterator[epath.Path]:
    """Every file in a folder and its subfolders, sorted by name, without hidden files.

    Links to files and folders are followed, except to a folder that contains the link.

    Args:
        inside: the folders that contain `folder`, without links in their paths.
    """
    real = _resolved(folder)
    if real in inside:
        return
    for path, is_folder in _entries(folder):
        if is_folder:
            yield from files_below(path, (*inside, real))
        else:
            yield path


def _entries(folder: epath.Path) -> list[tuple[epath.Path, bool]]:
    """The paths in a folder that are data, sorted, and whether each is a folder."""
    try:
        if is_local(folder):
            with os.scandir(folder) as found:
                entries = [(entry.name, entry.is_dir()) for entry in found if is_data(entry.name)]
            return [(folder / name, is_folder) for name, is_folder in sorted(entries)]
        paths = sorted(path for path in folder.iterdir() if is_data(path.name))
    except OSError as error:
        raise UserError(f"{printable(folder)} cannot be read: {error.strerror or error}") from error
    # `is_dir` is a request in cloud storage, and most paths are images.
    return [(path, path.suffix.lower() not in IMAGE_SUFFIXES and path.is_dir()) for path in paths]


def folders_in(folder: epath.Path) -> list[str]:
    """The names of the folders in a folder, sorted; empty if it does not exist."""
    return [path.name for path, is_folder in _entries(folder) if is_folder] if folder.is_dir() else []


def images_by_id(folder: epath.Path) -> dict[str, epath.Path]:
    """The image files below a folder, keyed by id: the relative path without its suffix, as in "city/001".

    Ids are composed Unicode, since macOS decomposes names; bytes that are not UTF-8 are escaped, as in "caf\\xe9".

    Raises:
        UserError: for two files with the same id.
    """
    found = {}
    for path in files_below(folder) if folder.is_dir() else ():
        if path.suffix.lower() in IMAGE_SUFFIXES:
            image_id = text_of(path.relative_to(folder).with_suffix("").as_posix())
            if image_id in found:
                raise UserError(
                    f"{printable(found[image_id])} and {printable(path)} differ only in their suffix, or in how "
                    "accents are encoded. Rename or remove one."
                )
            found[image_id] = path
    return found


def text_of(name: str) -> str:
    """The name of a file as text that can be stored: composed, with bytes that are not UTF-8 escaped."""
    return unicodedata.normalize("NFC", os.fsencode(name).decode("utf-8", "backslashreplace"))
