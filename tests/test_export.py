"""Exported models run without this package and give the same results."""

import importlib.util
import itertools
import json
import re
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import maskformer_jax
from maskformer_jax import export
from maskformer_jax.errors import UserError
from maskformer_jax.inference import geometry
from maskformer_jax.ops.image import normalize, round_up
from maskformer_jax.segmenter import export_primitives
from maskformer_jax.segmenter.export_check import check as compare
from maskformer_jax.segmenter.export_check import differences
from maskformer_jax.segmenter.function import FUNCTIONS
from tests.models.test_valid_size import DEFORMABLE, MASKED
from tests.samples import slow
from tests.segmenter.test_segmenter import MODEL, PER_PIXEL, photo, write_model

SIZE = (48, 60)  # its shorter side is the model's, so that nothing is resized; its width needs padding
THRESHOLDS = np.array([0.2, 0.0], np.float32)
# With random weights all queries predict the same. These factors make them differ.
GAINS = {"decoder.query_embed": 1000.0, "heads.class_head.kernel": 10.0}

ONNX = pytest.mark.skipif(importlib.util.find_spec("jax2onnx") is None, reason="needs jax2onnx")
EOMT = {
    "name": "eomt",
    "dtype": "float32",
    "backbone": {"name": "vit_tiny", "dim": 32, "depth": 3, "num_heads": 2, "image_size": 48},
    "num_queries": 6,
    "num_blocks": 2,
}
WINDOWS = {"size_divisor": 48, "window": 48, "longest_edge": 1_000_000}
MASK2FORMER = {**MODEL, "name": "mask2former", "pixel_decoder": DEFORMABLE, "decoder": MASKED}

# A program without this package. Its arguments are the folder of the exported file, a file with the inputs, and one for
# the outputs.
BLOCKED = """
import json, os, sys
import numpy as np
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ImportError(f"{{name}} is blocked")
sys.meta_path.insert(0, Block())
folder, inputs, outputs = sys.argv[1:]
manifest = json.load(open(f"{{folder}}/model.json"))
path, given = f"{{folder}}/{{manifest['file']}}", dict(np.load(inputs))
{run}
np.savez(outputs, **{{name: np.asarray(value) for name, value in found.items()}})
"""
PACKAGE = ("maskformer_jax", "flax", "optax", "orbax", "etils")
RUN_JAX = """
import jax
import jax.export
run = jax.jit(jax.export.deserialize(open(path, "rb").read()).call)
found = run(*(given[name] for name in manifest["inputs"]))
"""
RUN_SAVED_MODEL = """
import tensorflow as tf
run = tf.saved_model.load(path).signatures["serving_default"]
found = run(**{name: tf.constant(value) for name, value in given.items()})
"""
RUN_LITERT = """
try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:
    import tensorflow
    Interpreter = tensorflow.lite.Interpreter
found = Interpreter(path).get_signature_runner("serving_default")(**given)
"""
RUN_ONNX = """
import onnxruntime
session = onnxruntime.InferenceSession(path)
found = dict(zip([output.name for output in session.get_outputs()], session.run(None, given)))
"""


def run_without_the_package(folder, tmp_path, given, run, blocked=PACKAGE):
    inputs, outputs = tmp_path / "inputs.npz", tmp_path / "outputs.npz"
    np.savez(inputs, **given)
    command = [sys.executable, "-c", BLOCKED.format(blocked=set(blocked), run=run), str(folder)]
    done = subprocess.run([*command, str(inputs), str(outputs)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(np.load(outputs))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "ours"
    write_model(folder)
    return str(folder)


@pytest.fixture(scope="module")
def plain(model):
    """Without GAINS, which would multiply the errors of logits."""
    return maskformer_jax.load(model)


@pytest.fixture(scope="module")
def segmenter(model):
    return _sharpen(maskformer_jax.load(model))


def _sharpen(segmenter):
    for name, gain in GAINS.items():
        segmenter.params[name] = segmenter.params[name] * gain
    return segmenter


def images(count):
    return np.stack([np.roll(photo(*SIZE), 7 * index, axis=1) // (index + 1) for index in range(count)])


def inputs_of(task, count):
    return {"images": images(count), **({"thresholds": THRESHOLDS} if task == "panoptic" else {})}


def expected_of(segmenter, task, image):
    """The result of the library for one image, in the form of the exported outputs."""
    if task == "logits":
        height, width = round_up(np.array(SIZE), segmenter.inference.size_divisor) - SIZE
        padded = jnp.pad(image[None], ((0, 0), (0, height), (0, width), (0, 0)))
        pixels = normalize(padded, jnp.array([SIZE]), segmenter.network.black_padding)
        class_logits, mask_logits = segmenter.logits(pixels)
        return {"class_logits": class_logits[0], "mask_logits": mask_logits[0]}
    if task == "semantic":
        found = segmenter.semantic(image)
        scores = np.zeros(len(segmenter.classes), np.float32)
        scores[found.labels] = found.scores
        return {"class_map": found.class_map, "class_scores": scores}
    if task == "panoptic":
        found = segmenter.panoptic(image, *map(float, THRESHOLDS))
        return {"id_map": found.id_map, "labels": found.labels, "scores": found.scores}
    found = segmenter.instances(image, threshold=0.0)
    return {"masks": found.masks, "labels": found.labels, "scores": found.scores}


def check(segmenter, task, found, photos):
    """Maps and labels are equal, numbers within 1e-4."""
    found = {name: np.asarray(values) for name, values in found.items()}
    if task == "panoptic":
        assert found["id_map"].max() > 1  # otherwise the maps have no content
    for index, image in enumerate(photos):
        own = {name: values[index] for name, values in found.items()}
        expected = expected_of(segmenter, task, image)
        assert set(own) == set(expected) | ({"finite"} if task != "logits" else set())
        assert own.pop("finite", True)
        if task == "panoptic":
            assert own["labels"][0] == -1
            count = len(expected["labels"])
            assert set(own["labels"][count + 1 :]) <= {-1}
            assert not own["scores"][count + 1 :].any()
            own.update({name: own[name][1 : count + 1] for name in ("labels", "scores")})
        if task == "instance":
            count = len(expected["labels"])
            assert count > 1
            assert not own["scores"][count:].any()
            own = {name: values[:count] for name, values in own.items()}
        for name, values in expected.items():
            if np.issubdtype(values.dtype, np.floating):
                np.testing.assert_allclose(own[name], values, atol=1e-4, err_msg=name)
            else:
                np.testing.assert_array_equal(own[name], values, err_msg=name)


@pytest.mark.parametrize("task", FUNCTIONS)
def test_the_jax_file_has_the_results_of_the_library(segmenter, plain, tmp_path, task):
    segmenter = plain if task == "logits" else segmenter
    path = export.to_jax(segmenter, str(tmp_path / "out"), task, SIZE, check=task == "logits")
    exported = jax.export.deserialize((tmp_path / "out" / "model.jax").read_bytes())
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert not exported.disabled_safety_checks
    assert path == str(tmp_path / "out" / "model.jax")
    given = inputs_of(task, 3)
    check(segmenter, task, exported.call(*given.values()), given["images"])


def test_the_jax_file_runs_in_a_process_without_the_package(segmenter, tmp_path):
    export.to_jax(segmenter, str(tmp_path / "out"), "panoptic", SIZE, check=False)
    for count in (1, 3):
        given = inputs_of("panoptic", count)
        found = run_without_the_package(tmp_path / "out", tmp_path, given, RUN_JAX)
        check(segmenter, "panoptic", found, given["images"])


@pytest.mark.parametrize("task", [slow("panoptic"), "instance", slow("semantic"), slow("logits")])
def test_the_saved_model_has_the_results_of_the_library(segmenter, plain, tmp_path, task):
    pytest.importorskip("tensorflow")
    segmenter = plain if task == "logits" else segmenter
    export.to_saved_model(segmenter, str(tmp_path / "out"), task, SIZE, check=task == "instance")
    given = inputs_of(task, 2)
    found = run_without_the_package(tmp_path / "out", tmp_path, given, RUN_SAVED_MODEL, (*PACKAGE, "jax"))
    check(segmenter, task, found, given["images"])


@pytest.mark.parametrize("task", ["semantic", "panoptic", slow("logits")])
def test_the_litert_file_has_the_results_of_the_library(segmenter, plain, tmp_path, task, monkeypatch):
    pytest.importorskip("tensorflow")
    segmenter = plain if task == "logits" else segmenter
    # Compute maps seven rows at a time and crop them, as for large images.
    monkeypatch.setattr(geometry, "_AT_ONCE", 7 * SIZE[1] * 16)
    export.to_litert(segmenter, str(tmp_path / "out"), task, SIZE, batch=2, check=task == "semantic")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["model.json", "model.tflite"]
    given = inputs_of(task, 2)
    found = run_without_the_package(tmp_path / "out", tmp_path, given, RUN_LITERT, (*PACKAGE, "jax"))
    check(segmenter, task, found, given["images"])


def test_unsupported_operations_of_litert_are_reported(segmenter, tmp_path):
    pytest.importorskip("tensorflow")
    with pytest.raises(UserError, match="LiteRT cannot represent the result of task 'instance'"):
        export.to_litert(segmenter, str(tmp_path / "out"), "instance", SIZE)


@ONNX
@pytest.mark.parametrize("task", [slow(task) for task in FUNCTIONS])
@pytest.mark.parametrize(
    ("name", "backbone"),
    [*itertools.product(("maskformer", "mask2former"), ("swin", "resnet")), ("eomt", "vit")],
)
def test_the_onnx_file_has_the_results_of_the_library(tmp_path, name, backbone, task):
    small_swin = {"name": "swin_tiny", "dim": 12, "depths": (2, 2, 2, 2), "num_heads": (1, 1, 2, 2), "window": 4}
    model = {"maskformer": MODEL, "mask2former": MASK2FORMER, "eomt": EOMT}[name]
    divisor = {"size_divisor": 48} if name == "eomt" else {}
    write_model(tmp_path / "model", {**model, "backbone": small_swin} if backbone == "swin" else model, **divisor)
    segmenter = maskformer_jax.load(str(tmp_path / "model"))
    if task != "logits":
        sharpen = {"maskformer": _sharpen, "mask2former": _sharpen_features, "eomt": _sharpen_heads}
        segmenter = sharpen[name](segmenter)
    export.to_onnx(segmenter, str(tmp_path / "out"), task, SIZE)
    given = inputs_of(task, 1)
    found = run_without_the_package(tmp_path / "out", tmp_path, given, RUN_ONNX, (*PACKAGE, "jax"))
    check(segmenter, task, found, given["images"])


@ONNX
@pytest.mark.slow
@pytest.mark.parametrize("task", FUNCTIONS)
def test_openvino_has_the_results_of_onnx_runtime(segmenter, plain, tmp_path, capfd, task):
    openvino, onnxruntime = pytest.importorskip("openvino"), pytest.importorskip("onnxruntime")
    path = export.to_onnx(plain if task == "logits" else segmenter, str(tmp_path / "out"), task, SIZE)
    given = inputs_of(task, 1)
    session = onnxruntime.InferenceSession(path)
    assert "not used by any node" not in capfd.readouterr().err
    expected = dict(zip([output.name for output in session.get_outputs()], session.run(None, given), strict=True))
    run = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = dict(zip(expected, run(given).values(), strict=True))
    if task == "instance":  # the rest has no meaning
        used = expected["labels"] >= 0
        assert used.sum() > 1
        expected["masks"], found["masks"] = expected["masks"][used], found["masks"][used]
    for name, values in expected.items():
        if np.issubdtype(values.dtype, np.floating):
            np.testing.assert_allclose(found[name], values, atol=1e-4, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], values, err_msg=name)


@ONNX
@pytest.mark.slow
def test_unsupported_operations_of_onnx_are_reported(segmenter, tmp_path, monkeypatch):
    # As jax2onnx writes it, ONNX Runtime cannot run the pooling of a ResNet.
    monkeypatch.setattr(export_primitives, "_REPLACED", {})
    with pytest.raises(UserError, match="ONNX cannot represent this model"):
        export.to_onnx(segmenter, str(tmp_path / "out"), "logits", SIZE)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", [export.to_litert, pytest.param(export.to_onnx, marks=ONNX)])
@pytest.mark.slow
def test_weights_of_fewer_bits_make_smaller_files_of_about_the_same_results(plain, tmp_path, to):
    pytest.importorskip("tensorflow")
    sizes, found = {}, {}
    for precision in ("float32", "float16", "int8"):
        folder = tmp_path / precision
        to(plain, str(folder), "logits", SIZE, precision=precision)  # a file that differs by too much is an error
        manifest = json.loads((folder / "model.json").read_text())
        assert manifest["precision"] == precision
        found[precision] = manifest["differences"]["logits"]
        files = [file for file in folder.iterdir() if file.name != "model.json"]
        assert {file.name for file in files} <= {"model.tflite", "model.onnx", "model.onnx.data"}
        sizes[precision] = sum(file.stat().st_size for file in files)
    assert sizes["int8"] < sizes["float16"] < sizes["float32"]
    assert found["float32"] < found["float16"] < found["int8"]


def test_a_precision_that_a_format_lacks_is_refused(model, tmp_path):
    arguments = [f"--model={model}", f"--to={tmp_path / 'out'}", "--task=logits", "--size=48x48", "--precision=int8"]
    with pytest.raises(SystemExit, match=r"--precision=int8 does not apply to --format=jax, which has float32; these"):
        export.main([*arguments, "--format=jax"])
    with pytest.raises(SystemExit, match=r"this one computes in bfloat16\. Add --dtype=float32"):
        export.main([*arguments, "--format=litert", "--dtype=bfloat16"])
    assert not list(tmp_path.rglob("model*"))


@pytest.fixture(scope="module")
def mask2former(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "mask2former"
    write_model(folder, MASK2FORMER, panoptic_rule="mask2former")
    return _sharpen_features(maskformer_jax.load(str(folder)))


def _sharpen_features(segmenter):
    """With queries that differ: little is added to their learned features, and more is made of them."""
    for name in segmenter.params:
        if re.match(r"decoder\..*(attention\.output|linear2)\.kernel", name):
            segmenter.params[name] = 0.1 * segmenter.params[name]
    segmenter.params["heads.mask_head.layers.2.kernel"] *= 5
    segmenter.params["heads.class_head.kernel"] *= 10
    return segmenter


@pytest.mark.parametrize(
    ("to", "task", "run"),
    [
        (export.to_jax, "panoptic", RUN_JAX),
        slow(export.to_jax, "instance", RUN_JAX),
        slow(export.to_saved_model, "instance", RUN_SAVED_MODEL),
        slow(export.to_litert, "panoptic", RUN_LITERT),
    ],
)
def test_mask2former_has_the_results_of_the_library(mask2former, tmp_path, to, task, run):
    pytest.importorskip("tensorflow")
    to(mask2former, str(tmp_path / "out"), task, SIZE, batch=2, check=False)
    given = inputs_of(task, 2)
    found = run_without_the_package(tmp_path / "out", tmp_path, given, run)
    check(mask2former, task, found, given["images"])


def test_a_per_pixel_classifier_is_exported_too(tmp_path):
    write_model(tmp_path / "model", PER_PIXEL)
    segmenter = maskformer_jax.load(str(tmp_path / "model"))
    export.to_jax(segmenter, str(tmp_path / "out"), "semantic", SIZE, check=False)
    exported = jax.export.deserialize((tmp_path / "out" / "model.jax").read_bytes())
    check(segmenter, "semantic", exported.call(images(2)), images(2))
    with pytest.raises(UserError, match="does not separate instances"):
        export.to_jax(segmenter, str(tmp_path / "none"), "instance", SIZE)
    assert not (tmp_path / "none").exists()


def test_the_command_writes_a_file_and_its_manifest(model, tmp_path, capsys):
    arguments = [f"--model={model}", f"--to={tmp_path / 'out'}", "--format=jax", "--task=panoptic"]
    assert export.main([*arguments, "--size=32x32", "--batch=2"]) == 0
    printed = capsys.readouterr().out
    assert "evaluation resizes 32 x 32 images to 48 x 48" in printed
    assert re.search(r"largest differences from the library, on one image: pixels \S+, scores \S+\n", printed)
    manifest = json.loads((tmp_path / "out" / "model.json").read_text())
    assert manifest["classes"]["names"] == list("abcde")
    assert manifest["default_thresholds"] == [0.2, 0.5]
    assert manifest["differences"] == {"pixels": 0.0, "scores": pytest.approx(0.0, abs=1e-6)}
    exported = jax.export.deserialize((tmp_path / "out" / manifest["file"]).read_bytes())
    for kind, arrays in (("inputs", exported.in_avals), ("outputs", exported.out_avals)):
        written = sorted((entry["shape"], entry["dtype"]) for entry in manifest[kind].values())
        assert written == sorted((list(array.shape), str(array.dtype)) for array in arrays)
    with pytest.raises(SystemExit, match="not an empty folder"):
        export.main([*arguments, "--size=32x32"])


def test_a_file_that_differs_from_the_library_is_not_kept(plain, tmp_path, monkeypatch):
    run = export._RUN["jax"]

    def wrong(path, inputs):
        found = run(path, inputs)
        return {**found, "class_scores": found["class_scores"] + 0.01}

    monkeypatch.setitem(export._RUN, "jax", wrong)
    with pytest.raises(UserError, match=r"the jax file differs from the library by 0\.01 in scores, above the 0\.001"):
        export.to_jax(plain, str(tmp_path / "out"), "semantic", SIZE)
    assert not (tmp_path / "out").exists()


def test_what_is_compared_does_not_depend_on_the_order():
    masks = np.zeros((1, 2, 4, 4), bool)
    masks[0, 0, :2], masks[0, 1, 2:] = True, True
    one = {"masks": masks, "labels": np.array([[0, 1]]), "scores": np.array([[0.9, 0.9]], np.float32)}
    swapped = {"masks": masks[:, ::-1], "labels": np.array([[1, 0]]), "scores": one["scores"]}
    assert differences("instance", one, swapped) == {"pixels": 0.0, "scores": 0.0}
    empty = {**one, "masks": masks & (np.arange(2) == 0)[:, None, None]}
    assert differences("instance", one, empty) == {"pixels": 0.5, "scores": 0.0}

    ids = np.array([[[1, 1, 2, 0]]])
    tables = {"labels": np.array([[-1, 3, 4]]), "scores": np.array([[0.0, 0.8, 0.7]], np.float32)}
    renamed = {"labels": np.array([[-1, 4, 3]]), "scores": np.array([[0.0, 0.7, 0.8]], np.float32)}
    one, other = {"id_map": ids, **tables}, {"id_map": np.array([[[2, 2, 1, 0]]]), **renamed}
    assert differences("panoptic", one, other) == {"pixels": 0.0, "scores": 0.0}
    assert differences("panoptic", one, {**other, "id_map": ids})["pixels"] == 0.75
    with pytest.raises(UserError, match=r"the file has the outputs \['id_map'\]"):
        compare("panoptic", one, {"id_map": ids}, "float32", "the file")


def test_invalid_exports_are_errors(segmenter, model, tmp_path):
    with pytest.raises(UserError, match="task is 'depth'"):
        export.to_jax(segmenter, str(tmp_path / "out"), "depth", SIZE)
    with pytest.raises(UserError, match="size is"):
        export.to_jax(segmenter, str(tmp_path / "out"), "semantic", (0, 5))
    broken = maskformer_jax.load(model)
    name = next(iter(broken.params))
    broken.params[name] = broken.params[name] * jnp.nan
    with pytest.raises(UserError, match=rf"1 parameters hold NaN or infinity, {name} among"):
        export.to_jax(broken, str(tmp_path / "out"), "semantic", SIZE)
    large = maskformer_jax.load(model, dtype="bfloat16")
    name = next(iter(large.network.rounded))
    large.params[name] = np.full_like(large.params[name], np.finfo(np.float32).max)
    with pytest.raises(UserError, match=rf"1 parameters overflow in bfloat16, {name} among .* dtype='float32'"):
        export.to_jax(large, str(tmp_path / "out"), "semantic", SIZE)
    assert not (tmp_path / "out").exists()


def test_a_missing_library_is_named_with_the_command_to_install_it(segmenter, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(UserError, match=r"needs jax2onnx.*pip install .maskformer-jax\[onnx\]"):
        export.to_onnx(segmenter, str(tmp_path / "out"), "logits", SIZE)


@pytest.fixture(scope="module")
def eomt(tmp_path_factory):
    """A semantic model of windows: the image of SIZE is two of them, side by side."""
    folder = tmp_path_factory.mktemp("models") / "eomt"
    write_model(folder, EOMT, **WINDOWS)
    return _sharpen_heads(maskformer_jax.load(str(folder)))


def _sharpen_heads(segmenter):
    for name, gain in {"heads.class_head.kernel": 10.0, "heads.mask_head.layers.2.kernel": 5.0}.items():
        segmenter.params[name] = segmenter.params[name] * gain
    return segmenter


@pytest.mark.parametrize(
    ("to", "task", "run", "batch"),
    [
        (export.to_jax, "semantic", RUN_JAX, None),
        slow(export.to_jax, "panoptic", RUN_JAX, None),
        slow(export.to_saved_model, "semantic", RUN_SAVED_MODEL, 2),
        (export.to_litert, "semantic", RUN_LITERT, 2),
        pytest.param(export.to_onnx, "semantic", RUN_ONNX, 2, marks=[pytest.mark.slow, ONNX]),
    ],
)
def test_windows_have_the_results_of_the_library(eomt, tmp_path, to, task, run, batch):
    pytest.importorskip("tensorflow")
    to(eomt, str(tmp_path / "out"), task, SIZE, batch=batch, check=to is export.to_onnx)
    given = inputs_of(task, 2)
    found = run_without_the_package(tmp_path / "out", tmp_path, given, run)
    check(eomt, task, found, given["images"])
    assert task != "semantic" or len(np.unique(found["class_map"])) > 1
