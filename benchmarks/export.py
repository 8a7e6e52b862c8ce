"""Exported models compared with the library: results, size, time of the first call, and latency, in one run.

    PYTHONPATH=. python benchmarks/export.py
    PYTHONPATH=. python benchmarks/export.py --formats jax onnx --task logits --repeats 20
    PYTHONPATH=. python benchmarks/export.py --model eomt --size 640 640 --task panoptic

Random weights, as in `benchmarks/inference.py`, which requires PyTorch and transformers to write the model (`--from`
reads one instead). The library's time includes its own resizing and padding. Differences are those of the exported
function's outputs to what it gives without being exported: of floats the largest, of other values the fraction that
differs. Prints the cause for formats that do not support the task.
"""

import argparse
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

import maskformer_jax
from maskformer_jax import export
from maskformer_jax.errors import UserError
from maskformer_jax.ops.image import normalize
from maskformer_jax.segmenter.export import export_function
from maskformer_jax.segmenter.function import FUNCTIONS

Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]  # the library gives other results


def open_jax(path: str) -> Run:
    run = jax.jit(jax.export.deserialize(pathlib.Path(path).read_bytes()).call)
    return lambda given: jax.device_get(run(*given.values()))


def open_saved_model(path: str) -> Run:
    import tensorflow as tf

    loaded = tf.saved_model.load(path)
    run = loaded.signatures["serving_default"]

    def answer(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        loaded  # noqa: B018 -- holds the variables
        return {name: value.numpy() for name, value in run(**{k: tf.constant(v) for k, v in given.items()}).items()}

    return answer


def open_litert(path: str) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(path, num_threads=2).get_signature_runner("serving_default")
    return lambda given: run(**given)


def open_onnx(path: str) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda given: dict(zip(names, session.run(None, given), strict=True))


OPEN = {"jax": open_jax, "saved_model": open_saved_model, "litert": open_litert, "onnx": open_onnx}


def library(segmenter: maskformer_jax.Segmenter, task: str) -> Run:
    def answer(given: dict[str, np.ndarray]) -> object:
        image = given["images"][0]
        if task == "logits":
            return jax.device_get(segmenter.logits(normalize(jnp.asarray(image[None]), jnp.array([image.shape[:2]]))))
        return segmenter.segment(image, task)

    return answer


def difference(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> str:
    """How far outputs are from what is expected, by name."""
    told = []
    for name, values in expected.items():
        same = np.asarray(found[name])
        if np.issubdtype(values.dtype, np.floating):
            told.append(f"{name} {np.abs(same - values).max():.0e}")
        else:
            told.append(f"{name} {np.mean(same != values):.4%}")
    return ", ".join(told)


def size_of(path: str) -> int:
    """Bytes of an artifact: the files of a folder, or a file and those next to it, without the manifest."""
    place = pathlib.Path(path)
    files = place.rglob("*") if place.is_dir() else place.parent.iterdir()
    return sum(file.stat().st_size for file in files if file.is_file() and file.name != export.MANIFEST)


def write(folder: pathlib.Path, model: str, backbone: str | None, side: int) -> str:
    """Writes a model of transformers with random weights."""
    from benchmarks.theirs import default_backbone, write_model

    write_model(folder, model, backbone or default_backbone(model), side)
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--model", default="maskformer", help="maskformer, mask2former or eomt")
    parser.add_argument("--backbone", help="of these, as in benchmarks/theirs.py")
    parser.add_argument("--from", dest="source", help="a model that is there, instead")
    parser.add_argument("--task", choices=FUNCTIONS, default="semantic")
    parser.add_argument("--formats", nargs="+", choices=export.FORMATS, default=list(export.FORMATS))
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    size = tuple(arguments.size)
    given = {"images": np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        source = arguments.source or write(folder / "model", arguments.model, arguments.backbone, min(size))
        segmenter = maskformer_jax.load(source)
        if arguments.task == "panoptic":
            thresholds = segmenter.inference.score_threshold, segmenter.inference.overlap_threshold
            given["thresholds"] = np.array(thresholds, np.float32)
        runs, told, firsts = {"library": library(segmenter, arguments.task)}, {}, {}
        for form in arguments.formats:
            started = time.perf_counter()
            try:
                path = export.FORMATS[form](segmenter, str(folder / form), arguments.task, size, 1)
                told[form] = f"{size_of(path) / 1e6:.0f} MB, written in {time.perf_counter() - started:.0f} s"
                runs[form] = OPEN[form](path)
            except UserError as error:
                print(f"{form:12s} {error}")
        function = export_function(segmenter, arguments.task, size)
        expected = jax.device_get(jax.jit(function.function)(function.weights, *given.values()))
        for form, run in runs.items():
            started = time.perf_counter()
            found = run(given)
            firsts[form] = time.perf_counter() - started
            if form != "library":
                told[form] += f"; differences: {difference(found, expected)}"
        seconds = {form: [] for form in runs}
        for _ in range(arguments.repeats):
            for form, run in runs.items():
                started = time.perf_counter()
                run(given)
                seconds[form].append(time.perf_counter() - started)
    print(f"{arguments.source or arguments.model}, {arguments.task}, {size[0]} x {size[1]}, one image:")
    own = statistics.median(seconds["library"])
    for form, values in seconds.items():
        median = statistics.median(values)
        print(
            f"{form:12s} {1000 * median:.0f} ms (ratio {own / median:.2f}), first answer after {firsts[form]:.1f} s"
            f"{', ' + told[form] if form in told else ''}",
            flush=True,
        )


if __name__ == "__main__":
    main()
