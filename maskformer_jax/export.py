"""Makes a model a file that runs without this package.

python -m maskformer_jax.export --model=WORKDIR --to=DIR --format=jax --task=panoptic --size=512x512
"""

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Iterator

import jax
import jax.export
import jax.extend.core
import numpy as np
from etils import epath

from maskformer_jax.checkpoints.workdir import check_empty
from maskformer_jax.errors import UserError
from maskformer_jax.ops.image import shortest_edge_size
from maskformer_jax.segmenter.export import EXPORTED, ExportedFunction, Size, export_function
from maskformer_jax.segmenter.segmenter import Segmenter, load

PLATFORMS = ("cpu", "cuda", "tpu")
MANIFEST = "model.json"  # beside every artefact: what goes in, what comes out, and the classes
# Of StableHLO, the dialect of SavedModels: newer than every operation used here, older than what every
# supported TensorFlow reads. JAX alone would take the version of a month ago, which a released TensorFlow may not know.
_STABLEHLO = "1.10.0"


def to_jax(segmenter: Segmenter, directory: str, task: str, size: Size, batch: int | None = None) -> str:
    """Writes one artefact of `jax.export` for CPUs, NVIDIA GPUs and TPUs, with the weights inside.

    It takes any number of images, or exactly `batch`.

    Args:
        directory: a folder that does not exist yet, or is empty.
        task, size: see `export_function`.

    Returns:
        The path of the artefact; its manifest lies next to it.

    Raises:
        UserError: as `export_function`; if the folder is not empty; or if a library is missing.
    """
    with _needs("flatbuffers"):
        import flatbuffers  # noqa: F401
    function = export_function(segmenter, task, size)
    exported = jax.export.export(
        jax.jit(lambda *inputs: function.function(function.weights, *inputs)), platforms=PLATFORMS
    )(*function.specs(batch))
    folder = _make_folder(directory)
    (folder / "model.jax").write_bytes(exported.serialize())
    return _finish(function, folder, "model.jax", "jax", batch)


def to_saved_model(segmenter: Segmenter, directory: str, task: str, size: Size, batch: int | None = None) -> str:
    """As `to_jax`, but a SavedModel of TensorFlow, whose signature "serving_default" takes the inputs by name."""
    function = export_function(segmenter, task, size)
    folder = _make_folder(directory)
    _write_saved_model(function, folder / "saved_model", batch)
    return _finish(function, folder, "saved_model", "saved_model", batch)


def to_litert(segmenter: Segmenter, directory: str, task: str, size: Size, batch: int | None = None) -> str:
    """As `to_jax`, but a file of LiteRT (TensorFlow Lite), in float32 and for exactly `batch` images, 1 if not given.

    Raises:
        UserError: as `to_jax`, and if LiteRT lacks an operation of the answer: it does of "instance".
    """
    with _needs("tensorflow"):
        import tensorflow as tf
    function = export_function(segmenter, task, size)
    folder, batch = _make_folder(directory), batch or 1
    saved = folder / "saved_model"
    _write_saved_model(function, saved, batch)
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
    return _finish(function, folder, "model.tflite", "litert", batch)


def _write_saved_model(function: ExportedFunction, folder: epath.Path, batch: int | None) -> None:
    with _needs("tensorflow"):
        import tensorflow as tf
        from jax.experimental import jax2tf
    # Constants would count towards the two gigabytes that a graph may have.
    variables = jax.tree.map(tf.Variable, function.weights)
    shapes = [tuple(batch if length == "b" else length for length in shape) for shape, _ in function.inputs.values()]
    convert = jax2tf.convert(
        function.function,
        polymorphic_shapes=[None, *(str(shape).replace("'", "") for shape in shapes)],
        with_gradient=False,
        native_serialization_platforms=PLATFORMS,
    )
    signature = [
        tf.TensorSpec([None if length == "b" else length for length in shape], dtype, name)
        for shape, (name, (_, dtype)) in zip(shapes, function.inputs.items(), strict=True)
    ]
    run = tf.function(lambda *inputs: convert(variables, *inputs), input_signature=signature, autograph=False)
    module = tf.Module()
    module.weights = jax.tree.leaves(variables)
    tf.saved_model.save(module, str(folder), signatures={"serving_default": run})
    _age(folder / "saved_model.pb")


def _age(path: epath.Path) -> None:
    """Rewrites the functions of a SavedModel in the version _STABLEHLO."""
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
    function = export_function(segmenter, task, size)
    batch = batch or 1
    specs = function.specs(batch)
    # From primitives alone: jax2onnx would replace layers of Flax, and not every way in which they can be called.
    flat = jax.extend.core.jaxpr_as_fun(
        jax.make_jaxpr(lambda *inputs: function.function(function.weights, *inputs))(*specs)
    )
    names = list(function.outputs(batch))
    path = _make_folder(directory) / "model.onnx"
    try:
        jax2onnx.to_onnx(
            lambda *inputs: tuple(flat(*inputs)),
            specs,
            return_mode="file",
            output_path=str(path),
            input_names=list(function.inputs),
            output_names=names,
        )
        # What is written need not run: only the runtime knows which operations it has for which dtypes and ranks.
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        session.run(None, {name: np.zeros(x.shape, x.dtype) for name, x in zip(function.inputs, specs, strict=True)})
    except Exception as error:  # both libraries raise types that have nothing in common
        for file in path.parent.iterdir():
            file.unlink()
        raise UserError(
            f"ONNX cannot hold this model's answer for task {task!r}: {_first_line(error)} "
            "docs/export.md says which it can. Use --format=saved_model."
        ) from error
    return _finish(function, path.parent, "model.onnx", "onnx", batch)


FORMATS = {"jax": to_jax, "saved_model": to_saved_model, "litert": to_litert, "onnx": to_onnx}


def _make_folder(directory: str) -> epath.Path:
    check_empty(directory)
    folder = epath.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _finish(function: ExportedFunction, folder: epath.Path, name: str, form: str, batch: int | None) -> str:
    """Writes the manifest; returns the path of the artefact."""
    manifest = {"format": form, "file": name, **function.describe(batch), "made_with": {"jax": jax.__version__}}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2))
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
    """Returns the exit status 0; ends the function with a line that starts with "error:" otherwise."""
    options = _parser().parse_args(argv)
    try:
        check_empty(options.to)
        segmenter = load(options.model, dtype=options.dtype)
        path = FORMATS[options.format](segmenter, options.to, options.task, options.size, options.batch)
    except UserError as error:
        sys.exit(f"error: {error}")
    inference, size = segmenter.inference, options.size
    expected = shortest_edge_size(size, inference.short_edge, inference.longest_edge)
    if expected != size:
        print(f"note: {_pair(size)} images are {_pair(expected)} where this model was tested; expect other answers")
    print(f"{segmenter.origin}: {options.task} of {_pair(size)} -> {path}, described by {MANIFEST} beside it")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="python -m maskformer_jax.export")
    parser.add_argument("--model", required=True, help="what maskformer_jax.load takes: a --workdir, file or hub id")
    parser.add_argument("--to", required=True, help="a folder that does not exist yet, or is empty")
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--task", choices=EXPORTED, required=True)
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
