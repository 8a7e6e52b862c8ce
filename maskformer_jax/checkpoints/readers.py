"""Tensors by name from the files that other projects publish.

The content of a file decides how it is read, not its suffix: a .pth may be any of three formats.
"""

import dataclasses
import math
import re
import warnings
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
from etils import epath

from maskformer_jax.checkpoints import known_files, pickles, wrappers
from maskformer_jax.errors import UserError
from maskformer_jax.files import json_file, paths

# In a folder, the first of these that exists.
FOLDER_FILES = [
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
]
# Keys under which a training checkpoint has the tensors of the model, next to its optimizer and counters: of
# detectron2, Lightning and others, and of DeepSpeed. The first that is there is read.
CONTAINERS = ["model", "state_dict", "model_state_dict", "module", "network", "net", "weights", "params", "teacher"]
# Those of a moving average of the weights (EMA), which is read if there is nothing else.
AVERAGES = ["model_ema", "state_dict_ema", "ema_state_dict", "ema_model", "ema", "params_ema"]
_MAX_NESTING = 4
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
# What numpy can describe; the format has no limits.
_MAX_DIMENSIONS, _MAX_ELEMENTS = 32, 2**48


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
    read. What torch.compile, FSDP, DeepSpeed and DistributedDataParallel add to names is removed.

    Tensors of local safetensors files are read when they are used; the file must not change before.

    Args:
        path: a file, the index of shards, or a folder that holds one of `FOLDER_FILES`. May be remote, such as gs://...

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
    return wrappers.strip_marks(tensors, str(path))


def _read(path: epath.Path) -> Tensors:
    if not path.exists():
        raise UserError(f"{path} does not exist; expected a file of weights, or a folder that holds one")
    if path.is_dir():
        return _read_folder(path)
    return _read_shards(path) if path.name.endswith(".index.json") else _read_file(path)


def _read_folder(folder: epath.Path) -> Tensors:
    held = sorted(item.name for item in folder.iterdir())
    name = next((name for name in FOLDER_FILES if name in held), None)
    if name is None:
        raise UserError(
            f"{folder} is not the --workdir of a training run, and none of {FOLDER_FILES} is in it; "
            f"it holds {held[:20]}. {_other_folder(folder, held)}"
        )
    return _read_shards(folder / name) if name.endswith(".json") else _read_file(folder / name)


def _other_folder(folder: epath.Path, held: list[str]) -> str:
    """What to do with a folder without weights of a known name."""
    if ".metadata" in held or any(name.endswith(".distcp") for name in held):
        return (
            "It is a distributed checkpoint of torch. Make it one file: python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {folder} FILE.pth"
        )
    below = [name for name in held[:100] if any((folder / name / file).exists() for file in FOLDER_FILES)]
    return f"Weights are in {folder / below[0]}; give this path." if below else "Give the path of a file."


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
    shard_of = json_file.read(index).get("weight_map")
    if not isinstance(shard_of, dict):
        raise UserError(
            f'{index}: not an index of weights: "weight_map" is {json_file.shown(shard_of)}; expected an object from '
            "names of tensors to names of files. Download it again."
        )
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
        if not start.startswith((b"PK\x03\x04", b"\x80")):
            raise UserError(
                f"{path}: {_describe_mistake(file.read(1024), path)}, not a weight file that this package reads. It "
                "reads safetensors, files of torch.save (.pth, .pt, .bin, .ckpt) and pickled dicts of numpy arrays "
                "(detectron2's .pkl)."
            )
        data = file.read()
    known_files.check(path, data)  # before anything in it is interpreted
    return _named_tensors(pickles.load(data, str(path)), path)


# What files begin with -> what they are.
_KINDS = {
    b"version https://git-lfs": "a git-LFS pointer in place of the file (fetch it with `git lfs pull`)",
    b"<!doctype html": "a web page (download the file itself, not the page that shows it)",
    b"<html": "a web page (download the file itself, not the page that shows it)",
    b"<?xml": "a message of a server in place of the file (download it again)",
    b"\x1f\x8b": "a file compressed with gzip (extract it with gunzip or tar, and give the path of the weights)",
    b"bzh": "a file compressed with bzip2 (extract it, and give the path of the weights)",
    b"\xfd7zxz": "a file compressed with xz (extract it, and give the path of the weights)",
    b"\x28\xb5\x2f\xfd": "a file compressed with zstd (extract it, and give the path of the weights)",
    b"7z\xbc\xaf": "a 7-zip archive (extract it, and give the path of the weights)",
    b"rar!": "a RAR archive (extract it, and give the path of the weights)",
    b"\x89hdf": "an HDF5 file, such as Keras writes",
    b"\x93numpy": "a single array of numpy",
    b"gguf": "a GGUF file, which holds quantized weights",
    b"\x89png": "an image",
    b"\xff\xd8\xff": "an image",
}


def _describe_mistake(start: bytes, path: epath.Path) -> str:
    """What a file that is not a weight file seems to be, by its first 1024 bytes."""
    if not start:
        return "an empty file"
    text = start[:200].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if kind := next((_KINDS[begin] for begin in _KINDS if text.startswith(begin)), None):
        return kind
    if start[257:262] == b"ustar":
        return "a tar archive (extract it, and give the path of the weights)"
    if text.startswith((b"{", b"[")):
        return "a text, perhaps JSON (give the folder, or the file of the weights)"
    # Its first field is a small version number, and most have the name of a producer behind it.
    if re.match(rb"\x08[\x01-\x20][\x10\x12\x1a\x22\x3a]", start):
        return "an ONNX file, as it seems (its graph has no place here; give the weights that it was exported from)"
    if path.name.endswith(".msgpack"):
        return "a msgpack file, such as Flax writes"
    return f"{path.stat().length} bytes that begin with {start[:16]!r}"


def _read_safetensors(path: epath.Path) -> Tensors:
    try:
        if not paths.is_local(path):
            return _whole_safetensors(path.read_bytes(), path)
        file = safetensors.safe_open(str(path), framework="numpy")
        tensors = {}
        for name in file.keys():  # noqa: SIM118
            entry = file.get_slice(name)
            _dtype(name, entry.get_dtype(), path)
            tensors[name] = LazyTensor(file, name, _shape(name, entry.get_shape(), path))
        return tensors
    except UserError:
        raise
    except (safetensors.SafetensorError, ValueError) as error:
        raise UserError(f"{path}: truncated or damaged safetensors ({error}). Download it again.") from error


def _whole_safetensors(data: bytes, path: epath.Path) -> Tensors:
    """All tensors at once: the library opens no files of cloud storage."""
    # safetensors.numpy.load does the same, but fails on bfloat16.
    return {
        name: np.frombuffer(entry["data"], _dtype(name, entry["dtype"], path)).reshape(
            _shape(name, entry["shape"], path)
        )
        for name, entry in safetensors.deserialize(data)
    }


def _dtype(name: str, dtype: str, path: epath.Path) -> np.dtype:
    if dtype not in SAFETENSORS_DTYPES:
        raise UserError(
            f"{path}: {name} is of dtype {dtype}; expected one of {list(SAFETENSORS_DTYPES)}. "
            "Convert it with torch or numpy and save it again."
        )
    return SAFETENSORS_DTYPES[dtype]


def _shape(name: str, shape: list[int], path: epath.Path) -> tuple[int, ...]:
    if len(shape) > _MAX_DIMENSIONS or math.prod(size for size in shape if size) > _MAX_ELEMENTS:
        raise UserError(
            f"{path}: {_shown(name)} has {len(shape)} dimensions, {shape[:8]} the first of them; no weights have that "
            "shape. The file is damaged, or none of weights."
        )
    return tuple(shape)


def _named_tensors(tree: Any, path: epath.Path) -> Tensors:
    """The tensors in the object of a pickle, without the numbers and texts next to them."""
    if not isinstance(tree, dict):
        raise UserError(f"{path}: holds a {type(tree).__name__}; expected a dict from names to tensors")
    state = _state(tree, path)
    tensors = {name: value for name, value in state.items() if isinstance(value, np.ndarray)}
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, np.ndarray | str | bytes | int | float | None):
            raise UserError(
                f"{path}: {_shown(name)} is a {type(value).__name__}; expected tensors by name, bare or under one of "
                f"{CONTAINERS}. Save the model's state_dict alone."
            )
    return tensors


def _state(tree: dict, path: epath.Path) -> dict:
    """The dict with the tensors of the model within the dict of a training checkpoint."""
    for _ in range(_MAX_NESTING):
        held = [key for key in (*CONTAINERS, *AVERAGES) if isinstance(tree.get(key), dict) and tree[key]]
        if not held:
            # One that is called by another name, if it is the only one.
            others = [key for key, value in tree.items() if isinstance(value, dict) and _has_arrays(value)]
            held = others if len(others) == 1 and not _has_arrays(tree) else []
        if not held:
            return tree
        averages = [key for key in held[1:] if key in AVERAGES]
        if averages and held[0] in CONTAINERS:
            warnings.warn(
                f"{path} holds weights under {held[0]!r}, which are read, and their moving average under "
                f"{averages[0]!r}. For the average, save it alone: torch.save(checkpoint[{averages[0]!r}], FILE).",
                stacklevel=2,
            )
        tree = tree[held[0]]
    return tree


def _has_arrays(tree: dict) -> bool:
    return any(isinstance(value, np.ndarray) and value.ndim for value in tree.values())


def _shown(value: Any) -> str:
    """Text as it is, cut to a line; the type of anything else, which may be nested without end."""
    return repr(value)[:100] if isinstance(value, str) else f"a {type(value).__name__}"
