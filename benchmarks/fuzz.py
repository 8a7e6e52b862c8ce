"""Reads damaged files for some time: each must be read, or refused with a UserError; never a crash, a hang or another
exception.

    python -m benchmarks.fuzz --reader=coco_json --seconds=600 --seed=0
    python -m benchmarks.fuzz --reader=coco_json --trial=12345     # repeats one trial, with its traceback

A trial writes good files, damages some of them at random (bytes, or values of JSON), and reads them. Trials run in a
worker process, which is replaced after a crash or a hang. A trial depends only on its number.
"""

import argparse
import atexit
import collections
import copy
import functools
import io
import json
import logging
import math
import multiprocessing
import os
import pathlib
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import unicodedata
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

HANG = 20.0  # seconds of a processor; other processes of a busy machine do not count
WAIT = 180.0  # seconds of any clock: for a deadlock, and for the imports of the first trial
MEMORY = 24 * 2**30  # bytes of address space; more is an error, so that the machine survives
UNDAMAGED = -1  # the trial that damages nothing, and that must be read
GOOD = ("read", "refused")
FAILURES = ("raised", "crashed", "hung")
# Errors of careless code. Where a net for all errors of a library turns them into a UserError, the fuzz tells of them.
DEFECTS = (TypeError, LookupError, AttributeError, RecursionError, ArithmeticError, AssertionError, MemoryError)
SHOWN = 5  # failures of a kind that are printed

# ------------------------------------------------------------------------------------------------------------ readers


def _coco_files(folder: pathlib.Path) -> None:
    """A folder in COCO's format with a split of instances or of panoptic segments, and classes.json."""
    import numpy as np
    from PIL import Image
    from pycocotools import mask as rle

    rng = np.random.default_rng(1)
    (folder / "annotations").mkdir()
    (folder / "images" / "train").mkdir(parents=True)
    images = [{"id": number, "file_name": f"{number}.png", "height": 12 + number, "width": 16} for number in (1, 2)]
    for image in images:
        pixels = rng.integers(0, 256, (image["height"], 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / "train" / image["file_name"])
    categories = [{"id": 3, "name": "cat", "isthing": 1}, {"id": 7, "name": "sky", "isthing": 0}]
    entry = {"category_id": 3, "iscrowd": 0, "area": 30, "bbox": [1, 1, 8, 6]}
    mask = np.zeros((13, 16), np.uint8, "F")
    mask[3:9, 4:9] = 1
    compressed = {"size": [13, 16], "counts": rle.encode(mask)["counts"].decode()}
    shapes = [[[1, 1, 9.5, 1, 9, 7, 1, 7]], {"size": [13, 16], "counts": [20, 30, 158]}, compressed]
    instances = [{"id": n, "image_id": 1, "segmentation": shape, **entry} for n, shape in enumerate(shapes, start=1)]
    # Panoptic instead, where the folder of its PNGs exists.
    panoptic = [
        {
            "image_id": 1,
            "file_name": "1.png",
            "segments_info": [{"id": 300, **entry}, {"id": 5, **entry, "category_id": 7}],
        }
    ]
    (folder / "annotations" / "train").mkdir()
    ids = np.repeat(np.array([0, 5, 300, 300]), 4)[None].repeat(13, axis=0)
    colors = np.dstack([ids % 256, ids // 256, 0 * ids]).astype(np.uint8)
    Image.fromarray(colors).save(folder / "annotations" / "train" / "1.png")
    values = {"images": images, "annotations": instances, "categories": categories}
    _write_json(folder / "annotations" / "train.json", values)
    _write_json(folder / "panoptic.json", {**values, "annotations": panoptic})
    _write_json(folder / "classes.json", {"names": ["sky", "cat"], "things": ["cat"], "ignore_index": 255})


def _read_coco(folder: pathlib.Path, rng: random.Random) -> None:
    if rng.random() < 0.4:
        (folder / "panoptic.json").replace(folder / "annotations" / "train.json")
    if rng.random() < 0.5:
        (folder / "classes.json").unlink()
    _read_dataset("coco_format", folder, rng)


def _label_files(folder: pathlib.Path) -> None:
    """A folder of images and label PNGs: gray values in one image, colors in the other."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(2)
    for kind in ("images", "labels"):
        (folder / kind / "train").mkdir(parents=True)
    colors = np.array([[90, 140, 220], [110, 110, 110], [200, 40, 40]], np.uint8)
    labels = np.repeat(rng.integers(0, 3, (12, 4), dtype=np.uint8), 4, axis=1)
    labels[0, :3] = 255
    for name, pixels in (("a", labels), ("b", colors[labels % 3])):
        image = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / "images" / "train" / f"{name}.jpg")
        Image.fromarray(pixels).save(folder / "labels" / "train" / f"{name}.png")
    values = {
        "names": ["sky", "road", "car"],
        "things": ["car"],
        "values": [0, 1, 2],
        "colors": colors.tolist(),
        "void_values": [254],
        "void_colors": [[0, 0, 0]],
        "ignore_index": 255,
    }
    _write_json(folder / "classes.json", values)


def _read_folder(folder: pathlib.Path, rng: random.Random) -> None:
    _read_dataset("folder", folder, rng)


def _read_dataset(name: str, folder: pathlib.Path, rng: random.Random) -> None:
    """Makes a dataset; in most trials without TFDS's writing, which takes most of the time."""
    from maskformer_jax.input_pipeline import schema, sources

    with tempfile.TemporaryDirectory() as made:
        if rng.random() < 0.02:
            source = sources.open_source(name, str(folder), made)
            for index in range(source.size("train")):
                example = source.example("train", index)
                schema.decode_image(example.image)
                schema.decode_maps(example.segment_maps)
            return
        builder_class = sources._builder_class(name)
        builder = builder_class(config=builder_class.make_config(name, str(folder), made), data_dir=made)
        root = builder.builder_config.folder
        for split in builder.splits(root):
            for _, example in builder._generate_examples(root, split):
                schema.decode_image(example["image"].getvalue())
                schema.decode_maps(plane.getvalue() for plane in example["segment_maps"])


def _dataset_files(folder: pathlib.Path) -> None:
    """A dataset that was made before."""
    for name, data in _made_dataset()[1].items():
        path = folder / "tfds" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


@functools.cache
def _made_dataset() -> tuple[pathlib.Path, dict[str, bytes]]:
    """A folder, and the files of its dataset."""
    from maskformer_jax.input_pipeline import sources

    root = pathlib.Path(tempfile.mkdtemp(prefix="fuzz_"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    folder, made = root / "mine", root / "tfds"
    folder.mkdir()
    _label_files(folder)
    sources.open_source("folder", str(folder), str(made))
    files = (path for path in made.rglob("*") if path.is_file() and path.parent.parent.parent == made / "folder")
    return folder, {str(path.relative_to(made)): path.read_bytes() for path in files}


def _read_made_dataset(folder: pathlib.Path, rng: random.Random) -> None:
    from maskformer_jax.input_pipeline import schema, sources

    source = sources.open_source("folder", str(_made_dataset()[0]), str(folder / "tfds"))
    for index in range(source.size("train")):
        example = source.example("train", index)
        schema.decode_image(example.image)
        schema.decode_maps(example.segment_maps)


def _image_files(folder: pathlib.Path) -> None:
    """Images of every format, some with an orientation, a palette or metadata."""
    for name, data in _encoded_images().items():
        (folder / name).write_bytes(data)


@functools.cache
def _encoded_images() -> dict[str, bytes]:
    import numpy as np
    from PIL import Image, PngImagePlugin

    def add(name: str, image: Image.Image, kind: str, **options: Any) -> None:
        file = io.BytesIO()
        image.save(file, kind, **options)
        encoded[name] = file.getvalue()

    encoded: dict[str, bytes] = {}
    pixels = np.random.default_rng(3).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    xmp = '<x:xmpmeta><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp)
    text.add_text("comment", "x" * 300, zip=True)
    for kind in ("AVIF", "BMP", "GIF", "JPEG2000", "PPM", "TIFF", "WEBP"):
        add(kind, image.copy(), kind)
    add("jpeg", image.copy(), "JPEG", exif=exif, xmp=xmp.encode())
    add("cmyk", image.convert("CMYK"), "JPEG", progressive=True)
    add("mpo", image.copy(), "MPO", save_all=True, append_images=[image.rotate(180)])
    add("png", image.copy(), "PNG", pnginfo=text)
    add("palette", image.quantize(8), "PNG", transparency=bytes(8), exif=exif)
    add("apng", image.copy(), "PNG", save_all=True, append_images=[image.rotate(180)], default_image=True)
    add("deep", Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), "TIFF", compression="tiff_lzw")
    encoded["pgm"] = b"P5 16 12 4095\n" + pixels[..., 0].astype(">u2").tobytes()
    return encoded


def _read_images(folder: pathlib.Path, rng: random.Random) -> None:
    """Reads every image as prediction and as training do, which must see the same pixels."""
    from maskformer_jax.errors import UserError
    from maskformer_jax.input_pipeline import builders, schema
    from maskformer_jax.segmenter.images import read_image

    refused = {}
    for path in sorted(folder.iterdir()):
        try:
            pixels = read_image(str(path))
            stored = builders.read_image(path, pixels.shape[:2], "labels")
        except UserError as error:
            refused[path.name] = error
            continue
        assert (schema.decode_image(stored) == pixels).all(), path
    assert all(name in str(error) for name, error in refused.items())
    for error in refused.values():
        raise error


def _weight_files(folder: pathlib.Path) -> None:
    """Weights in every format: safetensors whole and in shards, both formats of torch.save, pickles of numpy."""
    for name, data in _encoded_weights().items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)


@functools.cache
def _encoded_weights() -> dict[str, bytes]:
    import pickle

    import ml_dtypes
    import numpy as np
    import safetensors.numpy
    import torch

    arrays = {
        "layers.0.downsample.norm.weight": np.arange(4, dtype=np.float32),
        "layers.0.blocks.0.attn.qkv.weight": np.ones((12, 4), np.float16),
        "patch_embed.proj.bias": np.ones(4, ml_dtypes.bfloat16),
        "steps": np.array(3, np.int64),
    }
    plain = {name: array for name, array in arrays.items() if array.dtype != ml_dtypes.bfloat16}
    state = {f"module.{name}": torch.from_numpy(array) for name, array in plain.items()}
    tied = torch.ones(6, 2)
    state |= {"module.tied": tied, "module.view": tied.T[1:], "module.half": tied.bfloat16()}
    tree = {"state_dict": state, "optimizer": {"state": {0: {"step": 3}}, "param_groups": [{"lr": 0.1}]}, "epoch": 2}
    index = {"weight_map": dict.fromkeys(plain, "model-1.safetensors")}
    encoded = {
        "whole.safetensors": safetensors.numpy.save(arrays),
        "numpy.pkl": pickle.dumps({"model": plain, "__author__": "x", "matching_heuristics": True}, 2),
        "new.pkl": pickle.dumps(plain, 5),
        "shards/model-1.safetensors": safetensors.numpy.save(plain),
        "shards/model.safetensors.index.json": json.dumps(index).encode(),
    }
    for name, is_zip in (("zip.pth", True), ("old.pth", False)):
        file = io.BytesIO()
        torch.save(tree, file, _use_new_zipfile_serialization=is_zip)
        encoded[name] = file.getvalue()
    return encoded


def _read_weights(folder: pathlib.Path, rng: random.Random) -> None:
    """Reads every file as `load` does, up to the format that its names are of."""
    import warnings

    import numpy as np

    from maskformer_jax.checkpoints import readers
    from maskformer_jax.checkpoints.weights import open_weights
    from maskformer_jax.errors import UserError

    warnings.simplefilter("ignore")
    refused = {}
    for path in [folder / "shards", *(path for path in sorted(folder.iterdir()) if path.is_file())]:
        try:
            for tensor in readers.read_tensors(str(path)).values():
                np.asarray(tensor)
            open_weights(str(path))
        except UserError as error:
            refused[path.name] = error
    assert all(name in str(error) for name, error in refused.items())
    for error in refused.values():
        raise error


_CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "maskformer": {
        "architectures": ["MaskFormerForInstanceSegmentation"],
        "backbone_config": {"model_type": "swin", "embed_dim": 96, "depths": [2, 2, 6, 2], "window_size": 7},
        "decoder_config": {"model_type": "detr", "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4},
        "mask_feature_size": 32,
        "fpn_feature_size": 32,
        "label_ids_to_fuse": [1],
    },
    "mask2former": {
        "backbone_config": {"model_type": "resnet", "depths": [2, 2, 2, 2], "layer_type": "basic"},
        "hidden_dim": 32,
        "feature_size": 128,
        "encoder_layers": 1,
        "decoder_layers": 3,
        "num_attention_heads": 4,
    },
    "eomt": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "num_blocks": 1, "image_size": 64},
    "eomt_dinov3": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "num_blocks": 1},
}


def _configuration_files(folder: pathlib.Path) -> None:
    """Hugging Face's config.json of each model, a preprocessor_config.json, and settings of this package."""
    from maskformer_jax.configs import few_images

    processor = {"size": {"shortest_edge": 64, "longest_edge": 128}, "size_divisor": 32, "do_resize": True}
    for kind, values in _CONFIGURATIONS.items():
        (folder / kind).mkdir()
        labels = {"id2label": {"0": "cat", "1": "sky"}, "label2id": {"cat": 0, "sky": 1}}
        _write_json(folder / kind / "config.json", {"model_type": kind, **values, **labels})
        _write_json(folder / kind / "preprocessor_config.json", processor)
    _write_json(folder / "settings.json", few_images.get_config().to_dict())


def _read_configurations(folder: pathlib.Path, rng: random.Random) -> None:
    """Describes the model of each configuration; in some trials builds it, too."""
    from maskformer_jax.checkpoints.formats import FORMATS
    from maskformer_jax.engine.settings import Settings
    from maskformer_jax.errors import UserError
    from maskformer_jax.files import json_file
    from maskformer_jax.inference import InferenceConfig
    from maskformer_jax.losses import make_criterion
    from maskformer_jax.models import build_network
    from maskformer_jax.parsing import parse

    def described(form: Any) -> None:
        kind = form.model_type
        found = form.describe({}, str(folder / kind), kind)
        try:
            parse(InferenceConfig, found.inference, "inference")
            if rng.random() < 0.02:
                build_network(len(found.classes), **found.model)
        except UserError as error:
            raise UserError(f"{folder / kind}: {error}") from error.__cause__

    def settings() -> None:
        path = folder / "settings.json"
        values = json_file.read(path)
        try:
            found = Settings.from_dict(values)
            make_criterion(found.loss, 20)
            if rng.random() < 0.05:
                build_network(3, **found.model)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error.__cause__

    forms = [form for form in FORMATS if form.model_type in _CONFIGURATIONS]
    refused = []
    for read in [*(functools.partial(described, form) for form in forms), settings]:
        try:
            read()
        except UserError as error:
            refused.append(error)
    for error in refused:
        raise error


# A function that writes good files to an empty folder, and one that reads them after they were damaged. The reader may
# draw from its random numbers which way it reads.
READERS: dict[str, tuple[Callable[[pathlib.Path], None], Callable[[pathlib.Path, random.Random], None]]] = {
    "coco_json": (_coco_files, _read_coco),
    "folder": (_label_files, _read_folder),
    "images": (_image_files, _read_images),
    "weights": (_weight_files, _read_weights),
    "configs": (_configuration_files, _read_configurations),
    "dataset": (_dataset_files, _read_made_dataset),
}


def _write_json(path: pathlib.Path, values: Any) -> None:
    path.write_text(json.dumps(values))


# ------------------------------------------------------------------------------------------------------------- damage

NUMBERS = [0, 1, -1, 2, 0.5, 3.0, -0.0, 255, 256, 65535, 65536, 2**24, 2**31, -(2**31), 2**53, 2**63, 2**64, -(2**63)]
NUMBERS += [1e5, 1e7, 1e8, 1e9, 1e30, -1e9, 10**30, 10**400, math.nan, math.inf, -math.inf]
TEXTS = ["", "0", "1", "a", " ", "../a.png", "/etc/passwd", "a\\b.png", "a\0b", "\ud800", "a\nb", "x" * 5000, "é"]
VALUES = [None, True, False, *NUMBERS, *TEXTS, [], {}, [[]], [None], {"a": 1}, [1, 2, 3], "A" * 70]


def damage(folder: pathlib.Path, rng: random.Random) -> None:
    """Damages one to three of the files in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for _ in range(rng.choice([1, 1, 2, 3])):
        path = rng.choice(files)
        if not path.exists():
            continue
        if path.suffix == ".json" and rng.random() < 0.8:
            try:
                values = json.loads(path.read_bytes())
            except (ValueError, RecursionError):
                continue
            for _ in range(rng.choice([1, 1, 1, 2, 4])):
                values = damage_json(values, rng)
            text = json.dumps(values, ensure_ascii=rng.random() < 0.5)
            if rng.random() < 0.02:
                text = text.replace("[", "[" * 100_000, 1)
            path.write_bytes(text.encode(rng.choice(["utf-8"] * 8 + ["utf-8-sig", "utf-16"]), "surrogatepass"))
        else:
            path.write_bytes(damage_bytes(path.read_bytes(), rng))


def damage_json(values: Any, rng: random.Random) -> Any:
    """JSON values in which one value, key or list is changed, in place where that is possible."""
    places = list(_places(values))
    if not places or rng.random() < 0.02:
        return rng.choice(VALUES)
    parent, key = rng.choice(places)
    old, kind = parent[key], rng.random()
    if kind < 0.55:
        parent[key] = copy.deepcopy(rng.choice(VALUES))
    elif kind < 0.65 and isinstance(old, int | float) and not isinstance(old, bool) and abs(old) < 10**300:
        parent[key] = rng.choice(
            [float(max(min(old, 1e300), -1e300)), -old, str(old), old + 1, old * 10**9, bool(old), [old]]
        )
    elif kind < 0.75 and isinstance(old, str):
        forms = [old.upper(), old + "\u0301", unicodedata.normalize("NFD", old), old[::-1], old * 3, old[:-1]]
        parent[key] = rng.choice(forms)
    elif kind < 0.85:
        del parent[key]
    elif kind < 0.93 and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(rng.choice(parent)))
    elif kind < 0.95:
        parent[key] = _nested(old, rng.choice([2, 10]))
    else:
        other, other_key = rng.choice(places)
        parent[key] = copy.deepcopy(other[other_key])
    return values


def _nested(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = [value]
    return value


def _places(values: Any):
    """Every value in lists and objects, as its container and its key or index."""
    pairs = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in list(pairs):
        yield values, key
        yield from _places(value)


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bytes with some of them changed, removed, repeated or moved."""
    damaged = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        place = rng.randrange(len(damaged) + 1)
        end = min(len(damaged), place + rng.choice([1, 1, 4, 16, 256]))
        match rng.randrange(6):
            case 0:
                damaged[place:end] = rng.randbytes(end - place)
            case 1 if place < len(damaged):
                damaged[place] ^= 1 << rng.randrange(8)
            case 2:
                del damaged[place:end]
            case 3:
                damaged[place:place] = damaged[place:end]
            case 4:
                damaged[place:end] = rng.choice([b"\0", b"\xff", b"\x80"]) * (end - place)
            case 5 if rng.random() < 0.1:
                del damaged[place:]
    return bytes(damaged)


# ------------------------------------------------------------------------------------------------------------- trials


def run_trial(reader: str, trial: int) -> str:
    """Returns "read", or "refused" and what is remarkable about it; raises what the reader raises but UserError."""
    from maskformer_jax.errors import UserError

    make, read = READERS[reader]
    rng = random.Random(f"{reader} {trial}")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name) / "data"
        folder.mkdir()
        make(folder)
        if trial == UNDAMAGED:
            read(folder, rng)
            return "read"
        damage(folder, rng)
        try:
            read(folder, rng)
        except UserError as error:
            return _refusal(error, folder)
    return "read"


def _refusal(error: Exception, folder: pathlib.Path) -> str:
    """ "refused"; longer if a net for all errors caught another one, or if the message names no file."""
    if isinstance(error.__cause__, DEFECTS):
        return f"refused by a net: {_place(error.__cause__)}"
    return "refused" if str(folder) in str(error) else "refused, without a path"


def _place(error: BaseException) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {pathlib.Path(place.filename).name}:{place.lineno}"


def _work(reader: str, connection: Connection) -> None:
    """Runs the trials that come, and returns for each its result and, for a failure, the last line of its code."""
    os.environ.update(CUDA_VISIBLE_DEVICES="", JAX_PLATFORMS="cpu", TF_CPP_MIN_LOG_LEVEL="3")
    # What libraries print about each trial would hide the failures.
    logging.disable(logging.CRITICAL)
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    while True:
        trial = connection.recv()
        try:
            connection.send((run_trial(reader, trial), ""))
        except Exception as error:  # this is what the fuzz looks for
            connection.send((f"raised {_place(error)}", f"{error!s:.150}"))


class _Worker:
    def __init__(self, reader: str):
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_work, args=(reader, other), daemon=True)
        self._process.start()
        other.close()
        self.is_warm, self.spent = False, 0.0

    def run(self, trial: int) -> tuple[str, str]:
        self._connection.send(trial)
        # The first trial imports TensorFlow or JAX.
        began, used = time.monotonic(), self._processor_seconds()
        while not self._connection.poll(0.5):
            spent = self._processor_seconds() - used
            if time.monotonic() - began > WAIT or (self.is_warm and spent > HANG):
                self.stop()
                return f"hung for {spent:.0f} s of a processor", ""
        try:
            result = self._connection.recv()
        except EOFError:
            self._process.join()
            return f"crashed with exit status {self._process.exitcode}", ""
        self.is_warm, self.spent = True, self._processor_seconds() - used
        return result

    def _processor_seconds(self) -> float:
        """What the worker has used; 0 where the system does not tell."""
        try:
            fields = pathlib.Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def is_alive(self) -> bool:
        return self._process.is_alive()

    def stop(self) -> None:
        self._process.kill()
        self._process.join()


def fuzz(reader: str, seconds: float, seed: int) -> collections.Counter:
    """Runs trials `seed * 10**9`, + 1, ... for some time, prints failures, and returns how often each result came."""
    counts, slowest = collections.Counter(), (0.0, 0)
    worker, trial = _Worker(reader), seed * 10**9
    result = worker.run(UNDAMAGED)
    if result[0] != "read":
        sys.exit(f"the undamaged files of {reader} cannot be read: {result}")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not worker.is_alive():
            worker = _Worker(reader)
        was_warm = worker.is_warm
        result, detail = worker.run(trial)
        if was_warm:
            slowest = max(slowest, (worker.spent, trial))
        counts[result] += 1
        if result not in GOOD and counts[result] <= SHOWN:
            print(f"trial {trial}: {result} {detail!a}", flush=True)
        trial += 1
    worker.stop()
    slow = f"the slowest took {slowest[0]:.1f} s of a processor (trial {slowest[1]})"
    print(f"{reader}: {counts.total()} trials in {seconds:.0f} s; {slow}")
    for result, count in counts.most_common():
        print(f"  {count:7d} {result}")
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reader", choices=READERS, required=True)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trial", type=int, help="repeat this trial alone")
    options = parser.parse_args()
    if options.trial is not None:
        print(run_trial(options.reader, options.trial))
        return 0
    counts = fuzz(options.reader, options.seconds, options.seed)
    return int(any(result.startswith(FAILURES) for result in counts))


if __name__ == "__main__":
    sys.exit(main())
