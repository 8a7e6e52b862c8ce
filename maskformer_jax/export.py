"""Makes a model a file that runs without this package.

python -m maskformer_jax.export --model=WORKDIR --to=DIR --format=jax --task=panoptic --size=512x512
"""

import argparse
import contextlib
import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.export
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from etils import epath

from maskformer_jax.engine.segmenter import TASKS, Segmenter, load
from maskformer_jax.errors import UserError
from maskformer_jax.inference import TOP_INSTANCES, Answer, Frame, Instances, Panoptic, answer
from maskformer_jax.models.network import Arrays
from maskformer_jax.ops.image import normalize, round_up, shortest_edge_size
from maskformer_jax.types import PixelPrediction, Prediction, last_layer

PLATFORMS = ("cpu", "cuda", "tpu")
EXPORTED_TASKS = (*TASKS, "logits")
CARD = "model.json"  # beside every artefact: what goes in, what comes out, and the classes
# Of StableHLO, in which SavedModels hold programs: newer than every operation used here, older than what every
# supported TensorFlow reads. JAX alone would take the version of a month ago, which a released TensorFlow may not know.
_STABLEHLO = "1.10.0"

Size = tuple[int, int]
Weights = tuple[Arrays, Arrays]

_MEANING = {
    "images": "RGB images of this size, already resized as the model expects; normalised inside",
    "thresholds": "a segment needs a score above the first and this share of its mask for itself, both in 0..1",
    "class_map": "the class of each pixel, a place in the list of names",
    "class_scores": "how sure each class is, in 0..1: the mean of its pixels; 0 for a class without pixels",
    "id_map": "the id of the segment at each pixel, from 1; 0 is void",
    "labels": "the class of each segment or instance, a place in the list of names; -1 for none",
    "scores": "how sure each of them is, in 0..1; 0 for none",
    "masks": "the pixels of each instance, which may overlap; best first",
    "finite": "False for an image whose scores overflowed: nothing else means anything then",
    "class_logits": "of each query; the last class is 'no object'",
    "mask_logits": "of each query at a quarter of the resolution, of the image with its padding",
    "logits": "of each class at a quarter of the resolution, of the image with its padding",
}
_BY_ID = {
    "labels": "the class of the segment of each id, a place in the list of names; -1 for void and for no segment",
    "scores": "how sure the segment of each id is, in 0..1; 0 for void and for no segment",
}


@dataclasses.dataclass(frozen=True)
class Program:
    """A model's way from images to the answer of one task, and what a person must know to use it."""

    function: Callable[..., dict[str, jax.Array]]  # (weights, *inputs) -> outputs by name
    weights: Weights  # on the host
    inputs: dict[str, tuple[tuple[int | str, ...], str]]  # in order: shape, "b" for the batch, and dtype
    card: dict[str, Any]

    def specs(self, batch: int | None) -> list[jax.ShapeDtypeStruct]:
        """Of the inputs; None is any number of images, as one symbol."""
        size = jax.export.symbolic_shape("b")[0] if batch is None else batch
        return [
            jax.ShapeDtypeStruct([size if length == "b" else length for length in shape], dtype)
            for shape, dtype in self.inputs.values()
        ]


def make_program(segmenter: Segmenter, task: str, size: Size) -> Program:
    """The program of a task for RGB images [b, *size, 3] uint8; `docs/export.md` has its outputs.

    Images count as resized already: the answer has their size. They are padded to the size divisor inside.

    Raises:
        UserError: for a task or size that cannot be, and for weights that are not finite.
    """
    if task not in EXPORTED_TASKS:
        raise UserError(f"task is {task!r}; it must be one of {EXPORTED_TASKS}")
    if len(size) != 2 or min(size) < 1:
        raise UserError(f"size is {size}; expected a height and a width of at least 1")
    weights = jax.device_get((segmenter.params, segmenter.frozen))
    broken = [name for arrays in weights for name, array in arrays.items() if not np.isfinite(array).all()]
    if broken:
        raise UserError(
            f"{segmenter.origin}: {len(broken)} parameters hold NaN or infinity, {broken[0]} among them; nothing was "
            "exported. Use an earlier checkpoint or a fresh copy."
        )
    function = _answer_function(segmenter, task, size)
    inputs = {"images": (("b", *size, 3), "uint8")}
    if task == "panoptic":
        inputs["thresholds"] = ((2,), "float32")
    return Program(function, weights, inputs, _card(segmenter, task, size))


def _answer_function(segmenter: Segmenter, task: str, size: Size) -> Callable[..., dict[str, jax.Array]]:
    network, classes, inference = segmenter.network, segmenter.classes, segmenter.inference
    height, width = round_up(np.array(size), inference.size_divisor).tolist()
    padding = (0, 0), (0, height - size[0]), (0, width - size[1]), (0, 0)

    def function(weights: Weights, images: jax.Array, thresholds: jax.Array | None = None) -> dict[str, jax.Array]:
        sizes = jnp.broadcast_to(jnp.array(size, jnp.int32), (images.shape[0], 2))
        pixels = jnp.pad(normalize(images, sizes), padding)
        prediction = network.apply(*weights, pixels, every_layer=False)
        if task == "logits":
            return _logits(last_layer(prediction))
        by_pixel = isinstance(prediction, PixelPrediction)
        if task == "instance" and (by_pixel or not any(classes.is_thing)):
            raise UserError(f"{segmenter.origin} tells no instances apart: it has no things, or classifies pixels")
        found = answer(
            [prediction],
            [Frame(sizes, sizes, (height, width), size)],
            jnp.array(classes.is_thing),
            tasks=(task,),
            resample=inference.resample,
            rule=inference.rule,
            score_threshold=0.0 if thresholds is None else thresholds[0],
            overlap_threshold=0.0 if thresholds is None else thresholds[1],
            top_instances=TOP_INSTANCES,
        )
        return {**_FIELDS[task](found, size), "finite": found.finite}

    return function


def _logits(last: Prediction | PixelPrediction) -> dict[str, jax.Array]:
    if isinstance(last, PixelPrediction):
        return {"logits": last.logits}
    return {"class_logits": last.class_logits, "mask_logits": last.mask_logits}


def _semantic(found: Answer, size: Size) -> dict[str, jax.Array]:
    return {"class_map": found.class_map.astype(jnp.int32), "class_scores": found.class_score}


def _panoptic(found: Answer, size: Size) -> dict[str, jax.Array]:
    return {"id_map": found.panoptic.id_map, **_by_id(found.panoptic)}


def _by_id(found: Panoptic) -> dict[str, jax.Array]:
    """Labels and scores [b, N + 1] at the ids of segments, where queries are places [b, N] in any order."""
    ids = jnp.arange(found.label.shape[1] + 1)
    leads = found.leads[:, None, :] & (found.segment_id[:, None, :] == ids[:, None])  # [b, id, N]
    labels = jnp.sum(jnp.where(leads, found.label[:, None, :] + 1, 0), axis=-1) - 1
    scores = jnp.sum(jnp.where(leads, found.score[:, None, :], 0.0), axis=-1)
    return {"labels": labels, "scores": scores}


def _instance(found: Answer, size: Size) -> dict[str, jax.Array]:
    best: Instances = found.instances
    packed = jnp.take_along_axis(best.packed_masks, best.query[:, :, None, None], axis=1)
    masks = jnp.unpackbits(packed, axis=-1, count=size[1]).astype(bool)
    labels = jnp.where(best.score > 0, best.label, -1)
    return {"masks": masks, "labels": labels, "scores": best.score}


_FIELDS = {"semantic": _semantic, "panoptic": _panoptic, "instance": _instance}


def _card(segmenter: Segmenter, task: str, size: Size) -> dict[str, Any]:
    inference = segmenter.inference
    card = {
        "task": task,
        "size": list(size),
        "origin": segmenter.origin,
        "resize": {"short_edge": inference.short_edge, "longest_edge": inference.longest_edge, "by": "bilinear"},
        "classes": segmenter.classes.to_dict(),
    }
    if task == "panoptic":
        card["default_thresholds"] = [inference.score_threshold, inference.overlap_threshold]
    return card


def to_jax(segmenter: Segmenter, directory: str, task: str, size: Size, batch: int | None = None) -> str:
    """Writes one artefact of `jax.export` for CPUs, NVIDIA GPUs and TPUs, with the weights inside.

    It takes any number of images, or exactly `batch`.

    Args:
        directory: a folder that does not exist yet, or is empty.
        task, size: see `make_program`.

    Returns:
        The path of the artefact; its card lies beside it.

    Raises:
        UserError: as `make_program`; if the folder is not empty; or if a library is missing.
    """
    with _needs("flatbuffers"):
        import flatbuffers  # noqa: F401
    program = make_program(segmenter, task, size)
    exported = jax.export.export(
        jax.jit(lambda *inputs: program.function(program.weights, *inputs)), platforms=PLATFORMS
    )(*program.specs(batch))
    folder = _make_folder(directory)
    (folder / "model.jax").write_bytes(exported.serialize())
    return _finish(program, folder, "model.jax", "jax", batch)


def to_saved_model(segmenter: Segmenter, directory: str, task: str, size: Size, batch: int | None = None) -> str:
    """As `to_jax`, but a SavedModel of TensorFlow, whose signature "serving_default" takes the inputs by name."""
    program = make_program(segmenter, task, size)
    folder = _make_folder(directory)
    _write_saved_model(program, folder / "saved_model", batch)
    return _finish(program, folder, "saved_model", "saved_model", batch)


def to_litert(segmenter: Segmenter, directory: str, task: str, size: Size, batch: int | None = None) -> str:
    """As `to_jax`, but a file of LiteRT (TensorFlow Lite), in float32 and for exactly `batch` images, 1 if not given.

    Raises:
        UserError: as `to_jax`, and if LiteRT lacks an operation of the answer: it does of "instance".
    """
    with _needs("tensorflow"):
        import tensorflow as tf
    program = make_program(segmenter, task, size)
    folder, batch = _make_folder(directory), batch or 1
    saved = folder / "saved_model"
    _write_saved_model(program, saved, batch)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(saved))
    try:
        data = converter.convert()
    except Exception as error:  # the converter has several types of its own, which no module exports
        raise UserError(
            f"LiteRT cannot hold the answer for task {task!r}: {_first_line(error)} "
            "Use --task=logits, or --format=saved_model."
        ) from error
    finally:
        saved.rmtree()
    (folder / "model.tflite").write_bytes(data)
    return _finish(program, folder, "model.tflite", "litert", batch)


def _write_saved_model(program: Program, folder: epath.Path, batch: int | None) -> None:
    with _needs("tensorflow"):
        import tensorflow as tf
        from jax.experimental import jax2tf
    # Constants would count towards the two gigabytes that a graph may have.
    variables = jax.tree.map(tf.Variable, program.weights)
    shapes = [tuple(batch if length == "b" else length for length in shape) for shape, _ in program.inputs.values()]
    convert = jax2tf.convert(
        program.function,
        polymorphic_shapes=[None, *(str(shape).replace("'", "") for shape in shapes)],
        with_gradient=False,
        native_serialization_platforms=PLATFORMS,
    )
    signature = [
        tf.TensorSpec([None if length == "b" else length for length in shape], dtype, name)
        for shape, (name, (_, dtype)) in zip(shapes, program.inputs.items(), strict=True)
    ]
    run = tf.function(lambda *inputs: convert(variables, *inputs), input_signature=signature, autograph=False)
    module = tf.Module()
    module.weights = jax.tree.leaves(variables)
    tf.saved_model.save(module, str(folder), signatures={"serving_default": run})
    _age(folder / "saved_model.pb")


def _age(path: epath.Path) -> None:
    """Rewrites the programs of a SavedModel in the version _STABLEHLO."""
    from jaxlib.mlir.dialects import stablehlo
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    for graph in saved.meta_graphs:
        for function in graph.graph_def.library.function:
            for node in function.node_def:
                if node.op == "XlaCallModule":
                    module = stablehlo.deserialize_portable_artifact_str(node.attr["module"].s)
                    node.attr["module"].s = stablehlo.serialize_portable_artifact_str(module, _STABLEHLO)
    path.write_bytes(saved.SerializeToString())


def to_onnx(segmenter: Segmenter, directory: str, task: str, size: Size, batch: int | None = None) -> str:
    """As `to_jax`, but ONNX for exactly `batch` images, 1 if not given; large weights are a file beside it.

    Raises:
        UserError: as `to_jax`, and if ONNX Runtime cannot run it: see `docs/export.md`.
    """
    with _needs("jax2onnx", "onnx"):
        import jax2onnx
        import onnxruntime
    program = make_program(segmenter, task, size)
    batch = batch or 1
    specs = program.specs(batch)
    # From primitives alone: jax2onnx would replace layers of Flax, and not every way in which they can be called.
    flat = jax.extend.core.jaxpr_as_fun(
        jax.make_jaxpr(lambda *inputs: program.function(program.weights, *inputs))(*specs)
    )
    names = list(jax.eval_shape(program.function, program.weights, *specs))
    path = _make_folder(directory) / "model.onnx"
    try:
        jax2onnx.to_onnx(
            lambda *inputs: tuple(flat(*inputs)),
            specs,
            return_mode="file",
            output_path=str(path),
            input_names=list(program.inputs),
            output_names=names,
        )
        # What is written need not run: only the runtime knows which operations it has for which dtypes and ranks.
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        session.run(None, {name: np.zeros(x.shape, x.dtype) for name, x in zip(program.inputs, specs, strict=True)})
    except Exception as error:  # both libraries raise types that have nothing in common
        for file in path.parent.iterdir():
            file.unlink()
        raise UserError(
            f"ONNX cannot hold this model's answer for task {task!r}: {_first_line(error)} "
            "docs/export.md says which it can. Use --format=saved_model."
        ) from error
    return _finish(program, path.parent, "model.onnx", "onnx", batch)


FORMATS = {"jax": to_jax, "saved_model": to_saved_model, "litert": to_litert, "onnx": to_onnx}


def _make_folder(directory: str) -> epath.Path:
    folder = epath.Path(directory)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{directory} exists and is not an empty folder; nothing was changed. Use another --to.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _finish(program: Program, folder: epath.Path, name: str, form: str, batch: int | None) -> str:
    """Writes the card; returns the path of the artefact."""
    outputs = jax.eval_shape(program.function, program.weights, *program.specs(batch))
    by_id = _BY_ID if program.card["task"] == "panoptic" else {}
    meaning = {**_MEANING, **by_id}

    def told(name: str, array: jax.ShapeDtypeStruct) -> dict[str, Any]:
        shape = [length if isinstance(length, int) else str(length) for length in array.shape]
        return {"shape": shape, "dtype": str(array.dtype), "meaning": meaning[name]}

    specs = dict(zip(program.inputs, program.specs(batch), strict=True))
    card = {
        "format": form,
        "file": name,
        **program.card,
        "inputs": {name: told(name, array) for name, array in specs.items()},
        "outputs": {name: told(name, array) for name, array in outputs.items()},
        "made_with": {"jax": jax.__version__},
    }
    (folder / CARD).write_text(json.dumps(card, indent=2))
    return str(folder / name)


@contextlib.contextmanager
def _needs(library: str, extra: str = "export") -> Iterator[None]:
    """Turns a missing library into what to install."""
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"this format needs {library}, which is not installed or not complete ({error}): "
            f'pip install "maskformer-jax[{extra}]"'
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].strip().rstrip(".") + "."


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status 0; ends the program with a line that starts with "error:" otherwise."""
    options = _parser().parse_args(argv)
    try:
        _make_folder(options.to)
        segmenter = load(options.model, dtype=options.dtype)
        path = FORMATS[options.format](segmenter, options.to, options.task, options.size, options.batch)
    except UserError as error:
        sys.exit(f"error: {error}")
    inference, size = segmenter.inference, options.size
    expected = shortest_edge_size(size, inference.short_edge, inference.longest_edge)
    if expected != size:
        print(f"note: {_pair(size)} images are {_pair(expected)} where this model was tested; expect other answers")
    print(f"{segmenter.origin}: {options.task} of {_pair(size)} -> {path}, described by {CARD} beside it")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="python -m maskformer_jax.export")
    parser.add_argument("--model", required=True, help="what maskformer_jax.load takes: a --workdir, file or hub id")
    parser.add_argument("--to", required=True, help="a folder that does not exist yet, or is empty")
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--task", choices=EXPORTED_TASKS, required=True)
    parser.add_argument("--size", type=_size, required=True, metavar="HxW", help="of the images, already resized")
    parser.add_argument("--batch", type=_count, help="this number of images only; else any, of litert and onnx one")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the computation, else as trained")
    return parser


def _size(text: str) -> Size:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text} is no height and width such as 512x683")
    return int(match[1]), int(match[2])


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text} is no number of images, 1 or more")
    return int(text)


def _pair(size: Size) -> str:
    return f"{size[0]} x {size[1]}"


if __name__ == "__main__":
    sys.exit(main())
