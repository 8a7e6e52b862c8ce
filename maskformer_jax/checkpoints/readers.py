"""Tensors by name from the files that other projects publish.

The content of a file decides how it is read, not its suffix: a .pth may be any of three formats.
"""

import dataclasses
import json
import re
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
from etils import epath

from maskformer_jax.checkpoints import pickles
from maskformer_jax.errors import UserError

# In a folder, the first of these that exists.
FOLDER_FILES = [
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
]
# Keys under which a training checkpoint has the tensors of the model, next to its optimizer and counters.
CONTAINERS = ["model", "state_dict", "model_state_dict"]
SAFETENSORS_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "I8": np.dtype(np.int8),
    "I16": np.dtype(np.int16),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
    "U8": np.dtype(np.uint8),
    "U16": np.dtype(np.uint16),
    "U32": np.dtype(np.uint32),
    "U64": np.dtype(np.uint64),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}
# The format's own limit.
MAX_HEADER_BYTES = 100_000_000


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor of a safetensors file, which `np.asarray` reads.

    Attributes:
        file: of `safetensors.safe_open`.
    """

    file: Any
    name: str
    shape: tuple[int, ...]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.file.get_tensor(self.name)
        return array if dtype is None else array.astype(dtype, copy=False)


Tensors = dict[str, np.ndarray | LazyTensor]


def read_tensors(path: str) -> Tensors:
    """The tensors of a file or folder, with the names and dtypes of the file; some may be read-only.

    Reads safetensors, the formats of torch.save and detectron2's pickles. Of a training checkpoint only the model is
    read. The prefix "module." of DistributedDataParallel is removed if all names have it.

    Tensors of local safetensors files are read when they are used; the file must not change before.

    Args:
        path: a file, or a folder that holds one of `FOLDER_FILES`. May be remote, such as gs://...

    Raises:
        UserError: if nothing is at the path, if it is no such file, if it is damaged, or if it asks for code to be
            executed (none is).
    """
    try:
        tensors = _read(epath.Path(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}); expected a file of weights or a folder with one") from error
    if not tensors:
        raise UserError(f"{path}: has no tensors; expected the weights of a model. Give the path of another file.")
    wrapped = all(name.startswith("module.") for name in tensors)
    return {name.removeprefix("module."): tensors[name] for name in tensors} if wrapped else tensors


def _read(path: epath.Path) -> Tensors:
    if not path.exists():
        raise UserError(f"{path} does not exist; expected a file of weights, or a folder that holds one")
    return _read_folder(path) if path.is_dir() else _read_file(path)


def _read_folder(folder: epath.Path) -> Tensors:
    held = sorted(item.name for item in folder.iterdir())
    name = next((name for name in FOLDER_FILES if name in held), None)
    if name is None:
        raise UserError(
            f"{folder} is not the --workdir of a training run, and none of {FOLDER_FILES} is in it; "
            f"it holds {held[:20]}. Give the path of a file."
        )
    return _read_shards(folder / name) if name.endswith(".json") else _read_file(folder / name)


def _read_shards(index: epath.Path) -> Tensors:
    """The tensors that an index names, each from the file in the same folder that the index gives."""
    shard_of = _weight_map(index)
    absent = sorted(shard for shard in set(shard_of.values()) if not (index.parent / shard).exists())
    if absent:
        raise UserError(
            f"{index}: names {len(absent)} files that are not next to it: {absent[:10]}. Download them, too."
        )
    shards = {shard: _read_file(index.parent / shard) for shard in sorted(set(shard_of.values()))}
    missing = [f"{name} in {shard}" for name, shard in shard_of.items() if name not in shards[shard]]
    if missing:
        raise UserError(
            f"{index}: {len(missing)} tensors are not where the index says: {missing[:10]}. "
            "The files are not of one set; download them again."
        )
    return {name: shards[shard][name] for name, shard in shard_of.items()}


def _weight_map(index: epath.Path) -> dict[str, str]:
    try:
        shard_of = dict(json.loads(index.read_bytes())["weight_map"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f'{index}: not an index of weights ({type(error).__name__}: {error}); expected JSON with "weight_map", '
            "from names of tensors to names of files. Download it again."
        ) from error
    for shard in shard_of.values():
        if not isinstance(shard, str) or not re.fullmatch(r"\w[\w.-]*", shard):
            raise UserError(
                f"{index}: refused: it names the file {_shown(shard)}; expected the plain name of a file in its own "
                "folder. Write one there if you trust the index."
            )
    return shard_of


def _read_file(path: epath.Path) -> Tensors:
    with path.open("rb") as file:
        start = file.read(16)
        if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= MAX_HEADER_BYTES:
            return _read_safetensors(path)
        file.seek(0)
        data = file.read()
    if data.startswith((b"PK\x03\x04", b"\x80")):
        return _named_tensors(pickles.load(data, str(path)), path)
    raise UserError(
        f"{path}: {_describe_mistake(data)}, not a weight file that this package reads. It reads safetensors, files of "
        "torch.save (.pth, .pt, .bin) and pickled dicts of numpy arrays (detectron2's .pkl)."
    )


def _describe_mistake(data: bytes) -> str:
    """What a file that is not a weight file seems to be."""
    start = data[:200].lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "a git-LFS pointer in place of the file (fetch it with `git lfs pull`)"
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page (download the file itself, not the page that shows it)"
    return f"{len(data)} bytes that begin with {data[:16]!r}" if data else "an empty file"


def _read_safetensors(path: epath.Path) -> Tensors:
    try:
        if "://" in str(path):
            return _whole_safetensors(path.read_bytes(), path)
        file = safetensors.safe_open(str(path), framework="numpy")
        tensors = {}
        for name in file.keys():  # noqa: SIM118
            entry = file.get_slice(name)
            _dtype(name, entry.get_dtype(), path)
            tensors[name] = LazyTensor(file, name, tuple(entry.get_shape()))
        return tensors
    except (safetensors.SafetensorError, ValueError) as error:
        raise UserError(f"{path}: truncated or damaged safetensors ({error}). Download it again.") from error


def _whole_safetensors(data: bytes, path: epath.Path) -> Tensors:
    """All tensors at once: the library opens no files of cloud storage."""
    # safetensors.numpy.load does the same, but fails on bfloat16.
    return {
        name: np.frombuffer(entry["data"], _dtype(name, entry["dtype"], path)).reshape(entry["shape"])
        for name, entry in safetensors.deserialize(data)
    }


def _dtype(name: str, dtype: str, path: epath.Path) -> np.dtype:
    if dtype not in SAFETENSORS_DTYPES:
        raise UserError(
            f"{path}: {name} is of dtype {dtype}; expected one of {list(SAFETENSORS_DTYPES)}. "
            "Convert it with torch or numpy and save it again."
        )
    return SAFETENSORS_DTYPES[dtype]


def _named_tensors(tree: Any, path: epath.Path) -> Tensors:
    """The tensors in the object of a pickle, without the numbers and texts next to them."""
    if not isinstance(tree, dict):
        raise UserError(f"{path}: holds a {type(tree).__name__}; expected a dict from names to tensors")
    state = next((tree[key] for key in CONTAINERS if isinstance(tree.get(key), dict)), tree)
    tensors = {name: value for name, value in state.items() if isinstance(value, np.ndarray)}
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, np.ndarray | str | bytes | int | float | None):
            raise UserError(
                f"{path}: {_shown(name)} is a {type(value).__name__}; expected tensors by name, bare or under one of "
                f"{CONTAINERS}. Save the model's state_dict alone."
            )
    return tensors


def _shown(value: Any) -> str:
    """Text as it is, cut to a line; the type of anything else, which may be nested without end."""
    return repr(value)[:100] if isinstance(value, str) else f"a {type(value).__name__}"
