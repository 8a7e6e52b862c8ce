"""Exports a model to a file that runs without this package.

python -m maskformer_jax.export --model=WORKDIR --to=DIR --format=jax --task=panoptic --size=512x512
"""

import argparse
import contextlib
import re
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.export
import numpy as np
from etils import epath

from maskformer_jax import bundled
from maskformer_jax.errors import UserError
from maskformer_jax.files import json_file, paths, writing
from maskformer_jax.ops.image import input_size
from maskformer_jax.programs import reporting, size_of
from maskformer_jax.segmenter import export_check, export_weights
from maskformer_jax.segmenter.export import ExportedFunction, export_function
from maskformer_jax.segmenter.export_primitives import run_in_basic_primitives
from maskformer_jax.segmenter.function import FUNCTIONS, Size
from maskformer_jax.segmenter.segmenter import Segmenter, load

PLATFORMS = ("cpu", "cuda", "tpu")
# How files hold weights; what the rest computes in is --dtype.
PRECISIONS = {
    "jax": ("float32",),
    "saved_model": ("float32",),
    "litert": ("float32", "float16", "int8"),
    "onnx": ("float32", "float16", "int8"),
}
MANIFEST = "model.json"  # next to every exported file: inputs, outputs and classes
# The StableHLO version inside SavedModels: it has all operations used here, and every supported TensorFlow reads it. By
# default JAX writes a version one month old, which a released TensorFlow may not read.
_STABLEHLO = "1.10.0"


def to_jax(
    segmenter: Segmenter, directory: str, task: str, size: Size, batch: int | None = None, *, check: bool = True
) -> str:
    """Writes one file of `jax.export` for CPUs, NVIDIA GPUs and TPUs, including the weights.

    Args:
        directory: a new or empty folder.
        task, size: see `export_function`.
        batch: the number of images that the exported function takes; None for any number.
        check: whether to run the file once beside the library. The largest differences are in the manifest.

    Returns:
        The path of the exported file. The folder also contains its manifest.

    Raises:
        UserError: as `export_function`; also if the folder is not empty, a library is missing, or the file differs from
            the library by more than `export_check.TOLERANCES`.
    """
    with _needs("flatbuffers"):
        import flatbuffers  # noqa: F401
    function = export_function(segmenter, task, size)
    exported = jax.export.export(
        jax.jit(lambda *inputs: function.function(function.weights, *inputs)), platforms=PLATFORMS
    )(*function.specs(batch))
    with writing.new_folder(directory) as folder:
        (folder / "model.jax").write_bytes(exported.serialize())
        _finish(segmenter, function, folder / "model.jax", "jax", batch, check)
    return _exported(directory, "model.jax")


def to_saved_model(
    segmenter: Segmenter, directory: str, task: str, size: Size, batch: int | None = None, *, check: bool = True
) -> str:
    """Like `to_jax`, but a TensorFlow SavedModel, whose signature "serving_default" takes the inputs by name."""
    function = export_function(segmenter, task, size)
    with writing.new_folder(directory) as folder:
        _write_saved_model(function, folder / "saved_model", batch)
        _finish(segmenter, function, folder / "saved_model", "saved_model", batch, check)
    return _exported(directory, "saved_model")


def to_litert(
    segmenter: Segmenter,
    directory: str,
    task: str,
    size: Size,
    batch: int | None = None,
    *,
    check: bool = True,
    precision: str = "float32",
) -> str:
    """Like `to_jax`, but a LiteRT (TensorFlow Lite) file, in float32 and for exactly `batch` images, by default 1.

    Args:
        precision: of the weights, one of `PRECISIONS["litert"]`; see `docs/export.md`.

    Raises:
        UserError: as `to_jax`; also if LiteRT lacks an operation, as it does for the task "instance".
    """
    with _needs("tensorflow"):
        import tensorflow as tf
    _check_precision("litert", precision, segmenter)
    function = export_function(segmenter, task, size)
    batch = batch or 1
    with writing.new_folder(directory) as folder:
        saved = folder / "saved_model"
        _write_saved_model(function, saved, batch)
        converter = tf.lite.TFLiteConverter.from_saved_model(str(saved))
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]  # weights of 8 bits, unless others are given
            converter.target_spec.supported_types = {"float16": [tf.float16], "int8": []}[precision]
        try:
            data = converter.convert()
        except Exception as error:  # the converter raises several types that no module exports
            if writing.reason(error):  # a full disk
                raise
            raise UserError(
                f"LiteRT cannot represent the result of task {task!r}: {_first_line(error)} "
                "Use --task=logits, or --format=saved_model."
            ) from error
        saved.rmtree()
        (folder / "model.tflite").write_bytes(data)
        _finish(segmenter, function, folder / "model.tflite", "litert", batch, check, precision)
    return _exported(directory, "model.tflite")


def _write_saved_model(function: ExportedFunction, folder: epath.Path, batch: int | None) -> None:
    with _needs("tensorflow"):
        import tensorflow as tf
        from jax.experimental import jax2tf
    # Constants would count towards the 2 GB limit of a graph.
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
    _downgrade_stablehlo(folder / "saved_model.pb")


def _downgrade_stablehlo(path: epath.Path) -> None:
    """Rewrites the StableHLO modules of a SavedModel in the version _STABLEHLO."""
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


def to_onnx(
    segmenter: Segmenter,
    directory: str,
    task: str,
    size: Size,
    batch: int | None = None,
    *,
    check: bool = True,
    precision: str = "float32",
) -> str:
    """Like `to_jax`, but ONNX for exactly `batch` images, by default 1. Large weights go to a separate file next to it.

    Args:
        precision: of the weights, one of `PRECISIONS["onnx"]`; see `docs/export.md`.

    Raises:
        UserError: as `to_jax`; also if ONNX Runtime cannot run the model.
    """
    with _needs("jax2onnx", "onnx"):
        import jax2onnx
        import onnxruntime  # noqa: F401
    _check_precision("onnx", precision, segmenter)
    function = export_function(segmenter, task, size)
    batch = batch or 1
    specs = function.specs(batch)
    # Give jax2onnx primitives only: it would replace Flax layers, but does not support every way to call them.
    jaxpr = jax.make_jaxpr(lambda *inputs: function.function(function.weights, *inputs))(*specs)
    names = list(function.outputs(batch))
    with writing.new_folder(directory) as folder:
        path = folder / "model.onnx"
        try:
            jax2onnx.to_onnx(
                lambda *inputs: tuple(run_in_basic_primitives(jaxpr, *inputs)),
                specs,
                return_mode="file",
                output_path=str(path),
                input_names=list(function.inputs),
                output_names=names,
            )
            export_weights.drop_unread(path)
            # Run the file once: only the runtime knows which operations it supports for which dtypes and ranks.
            _run_onnx(path, {name: np.zeros(x.shape, x.dtype) for name, x in zip(function.inputs, specs, strict=True)})
        except Exception as error:  # both libraries raise unrelated types
            if writing.reason(error):  # a full disk
                raise
            raise UserError(
                f"ONNX cannot represent this model with task {task!r}: {_first_line(error)} "
                "docs/export.md lists what works. Use --format=saved_model."
            ) from error
        if precision != "float32":
            export_weights.WEIGHTS[precision](path)
        _finish(segmenter, function, path, "onnx", batch, check, precision)
    return _exported(directory, "model.onnx")


FORMATS = {"jax": to_jax, "saved_model": to_saved_model, "litert": to_litert, "onnx": to_onnx}


def _check_precision(form: str, precision: str, segmenter: Segmenter) -> None:
    """Raises UserError for what a format cannot be written in, and for other precisions of models in bfloat16."""
    if precision not in PRECISIONS[form]:
        others = [other for other, possible in PRECISIONS.items() if precision in possible]
        raise UserError(
            f"--precision={precision} does not apply to --format={form}, which has {', '.join(PRECISIONS[form])}"
            + (f"; these formats have it: {', '.join(others)}" if others else "")
        )
    dtype = segmenter.model["dtype"]
    if precision != "float32" and dtype != "float32":
        raise UserError(
            f"--precision={precision} is for models that compute in float32; this one computes in {dtype}. Add "
            "--dtype=float32."
        )


def _finish(
    segmenter: Segmenter,
    function: ExportedFunction,
    path: epath.Path,
    form: str,
    batch: int | None,
    check: bool,
    precision: str = "float32",
) -> None:
    """Compares an exported file with the library, if asked for, and writes the manifest."""
    manifest = {
        "format": form,
        "precision": precision,
        "file": path.name,
        **function.describe(batch),
        "made_with": {"jax": jax.__version__},
    }
    if check:
        tolerances = segmenter.model["dtype"] if precision == "float32" else precision
        manifest["differences"] = _differences(segmenter, function, path, form, batch or 1, tolerances)
    writing.write_json(path.parent / MANIFEST, manifest)


def _differences(
    segmenter: Segmenter, function: ExportedFunction, path: epath.Path, form: str, batch: int, tolerances: str
) -> dict[str, float]:
    task, size = function.manifest["task"], tuple(function.manifest["size"])
    inputs = {"images": np.stack([np.roll(export_check.check_image(size), 7 * n, axis=1) for n in range(batch)])}
    if "thresholds" in function.inputs:
        inputs["thresholds"] = np.array(function.manifest["default_thresholds"], np.float32)
    ours, weights = segmenter.as_function(task, size)
    expected, found = (
        {name: np.asarray(array) for name, array in outputs.items()}
        for outputs in (jax.jit(ours)(weights, *inputs.values()), _RUN[form](path, inputs))
    )
    return export_check.check(task, expected, found, tolerances, f"the {form} file")


def _run_jax(path: epath.Path, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    return jax.jit(jax.export.deserialize(path.read_bytes()).call)(*inputs.values())


def _run_saved_model(path: epath.Path, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    import tensorflow as tf

    run = tf.saved_model.load(str(path)).signatures["serving_default"]
    return run(**{name: tf.constant(array) for name, array in inputs.items()})


def _run_litert(path: epath.Path, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    import tensorflow as tf

    return tf.lite.Interpreter(str(path)).get_signature_runner("serving_default")(**inputs)


def _run_onnx(path: epath.Path, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of constants in loops that nothing reads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, inputs), strict=True))


# How a file of each format is run, as docs/export.md shows.
_RUN = {"jax": _run_jax, "saved_model": _run_saved_model, "litert": _run_litert, "onnx": _run_onnx}


def _exported(directory: str, name: str) -> str:
    return str(epath.Path(paths.expand(directory)) / name)


@contextlib.contextmanager
def _needs(library: str, extra: str = "export") -> Iterator[None]:
    """Turns an ImportError into a UserError that says what to install."""
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"this format needs {library}, which is missing or incomplete ({error}): "
            f'pip install "maskformer-jax[{extra}]"'
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].strip().rstrip(".") + "."


@reporting
def main(argv: list[str] | None = None) -> int:
    """Returns the exit status 0. On an error, exits with a message that starts with "error:"."""
    options = _parser().parse_args(argv)
    writing.check_empty(options.to)
    writing.check_folder(options.to, "--to")
    segmenter = load(options.model, dtype=options.dtype)
    _check_precision(options.format, options.precision, segmenter)
    given = {} if options.precision == "float32" else {"precision": options.precision}
    path = FORMATS[options.format](segmenter, options.to, options.task, options.size, options.batch, **given)
    inference, size = segmenter.inference, options.size
    sides = inference.short_edge, inference.longest_edge, inference.stretch_to
    expected = input_size(size, *sides, inference.size_rounding)
    if expected != size:
        print(f"note: evaluation resizes {_pair(size)} images to {_pair(expected)}; results for this size may differ")
    made = f"{options.task} of {_pair(size)} -> {path}, described by {MANIFEST}"
    print(paths.printable(f"{segmenter.origin}: {made}"))
    differences = json_file.read(epath.Path(path).parent / MANIFEST)["differences"]
    said = ", ".join(f"{name} {value:.2g}" for name, value in differences.items())
    print(f"largest differences from the library, on one image: {said}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="python -m maskformer_jax.export")
    parser.add_argument("--model", required=True, help=bundled.SOURCES)
    parser.add_argument("--to", required=True, help="a new or empty folder")
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--task", choices=FUNCTIONS, required=True)
    parser.add_argument(
        "--size", type=size_of, required=True, metavar="HxW", help="size of the images, already resized"
    )
    parser.add_argument("--batch", type=_count, help="number of images (default: any; 1 for litert and onnx)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="dtype of computation (default: as trained)")
    parser.add_argument(
        "--precision",
        choices=sorted({precision for possible in PRECISIONS.values() for precision in possible}),
        default="float32",
        help="of the weights in the file; float16 and int8: litert and onnx",
    )
    return parser


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text} is not a number of images, 1 or more")
    return int(text)


def _pair(size: Size) -> str:
    return f"{size[0]} x {size[1]}"


if __name__ == "__main__":
    sys.exit(main())
