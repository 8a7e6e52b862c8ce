"""Models ready to use: from every source, for every image, and with an error for everything else."""

import dataclasses
import pickle
import sys
import types

import jax
import numpy as np
import pytest
import safetensors.numpy

import maskformer_jax
from maskformer_jax import catalog, convert
from maskformer_jax.catalog import Classes
from maskformer_jax.checkpoints.published import Description
from maskformer_jax.engine import workdir
from maskformer_jax.errors import UserError
from maskformer_jax.models import build_network
from maskformer_jax.ops.image import normalize
from maskformer_jax.types import last_layer
from tests.checkpoints.test_convert import SMALL, as_file, random_arrays
from tests.parity.golden import ORIGINAL, maskformer
from tests.samples import NUM_CLASSES, TINY_MODEL

CLASSES = Classes.from_dict({"names": list("abcde"), "things": ["a", "b"]}, "test")
MODEL = {**TINY_MODEL, "name": "maskformer", "box_head": False, "dtype": "float32"}
INFERENCE = {
    "short_edge": 48,
    "longest_edge": 96,
    "size_divisor": 16,
    "resample": "scores",
    "score_threshold": 0.2,
    "overlap_threshold": 0.5,
}
PER_PIXEL = {**MODEL, "name": "per_pixel", "decoder": {}, "memory": ""}


def write_model(folder, model=MODEL, **inference):
    network = build_network(NUM_CLASSES, **model)
    params, frozen = network.init(jax.random.key(0))
    described = Description(model, {**INFERENCE, **inference}, CLASSES)
    workdir.save_model(str(folder), described, params, frozen)
    return network, params, frozen


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "ours"
    return str(folder), write_model(folder)


@pytest.fixture(scope="module")
def segmenter(saved):
    return maskformer_jax.load(saved[0])


def photo(height, width):
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_logits_are_those_of_the_network(saved, segmenter):
    network, params, frozen = saved[1]
    pixel_values = np.random.default_rng(0).normal(size=(2, 40, 56, 3)).astype(np.float32)
    expected = last_layer(network.apply(params, frozen, pixel_values))
    class_logits, mask_logits = segmenter.logits(pixel_values)
    assert class_logits.shape == (2, 8, NUM_CLASSES + 1)
    assert mask_logits.shape == (2, 8, 10, 14)
    np.testing.assert_allclose(class_logits, expected.class_logits, atol=1e-5)
    np.testing.assert_allclose(mask_logits, expected.mask_logits, atol=1e-5)


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (30, 31), (20, 200), (100, 49)])
def test_answers_have_the_size_of_the_image(segmenter, size):
    semantic = segmenter.semantic(photo(*size))
    assert semantic.id_map.shape == semantic.class_map.shape == size
    assert semantic.id_map.min() == 1
    assert set(np.unique(semantic.class_map)) == set(semantic.labels.tolist())
    panoptic = segmenter.panoptic(photo(*size))
    assert panoptic.id_map.shape == size
    for segment in panoptic.segments():
        assert segment["area"] == np.sum(panoptic.id_map == segment["id"])


def test_the_network_sees_the_resized_image_padded_to_the_divisor(saved, segmenter, monkeypatch):
    """48 x 64 is already at the test size, so that the answer can be computed by hand."""
    network, params, frozen = saved[1]
    image = photo(48, 64)
    last = last_layer(network.apply(params, frozen, normalize(image[None], np.array([[48, 64]]))))
    probs = jax.nn.softmax(last.class_logits[0])[:, :-1]
    masks = jax.nn.sigmoid(jax.image.resize(last.mask_logits[0], (8, 48, 64), "bilinear", antialias=False))
    scores = np.einsum("qk,qhw->khw", probs, masks)
    agree = segmenter.semantic(image).class_map == scores.argmax(axis=0)
    assert agree.mean() > 0.999  # ties aside


def test_void_of_a_panoptic_answer_is_the_ignore_index(segmenter):
    nothing = segmenter.panoptic(photo(48, 64), threshold=1.0)
    assert len(nothing.labels) == 0
    assert (nothing.class_map == CLASSES.ignore_index).all()


def test_thresholds_are_arguments_that_do_not_compile_again(segmenter):
    image = photo(48, 64)
    everything = segmenter.panoptic(image, threshold=0.0, overlap=0.0)
    compiled = segmenter._answer._cache_size()
    default = segmenter.panoptic(image)
    stricter = segmenter.panoptic(image, threshold=0.9, overlap=0.9)
    assert len(everything.labels) >= len(default.labels) >= len(stricter.labels)
    assert len(everything.labels) > len(stricter.labels)
    assert segmenter._answer._cache_size() == compiled


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((8, 8), np.uint8), r"image is uint8 \(8, 8\); expected uint8 \[height, width, 3\]"),
        (np.zeros((8, 8, 4), np.uint8), r"image is uint8 \(8, 8, 4\)"),
        (np.zeros((8, 8, 3), np.float32), r"image is float32 \(8, 8, 3\)"),
    ],
)
def test_an_image_of_another_kind_is_named(segmenter, image, words):
    for answer in (segmenter.semantic, segmenter.panoptic):
        with pytest.raises(UserError, match=words):
            answer(image)


def test_pixel_values_of_another_shape_are_named(segmenter):
    with pytest.raises(UserError, match=r"pixel_values has shape \(3, 32, 32\)"):
        segmenter.logits(np.zeros((3, 32, 32), np.float32))


def test_a_per_pixel_classifier_answers_but_has_no_queries(tmp_path):
    write_model(tmp_path / "m", PER_PIXEL)
    segmenter = maskformer_jax.load(str(tmp_path / "m"))
    found = segmenter.semantic(photo(40, 60))
    np.testing.assert_array_equal(found.class_map, segmenter.panoptic(photo(40, 60)).class_map)
    with pytest.raises(UserError, match="classifies pixels and has no queries"):
        segmenter.logits(np.zeros((1, 32, 32, 3), np.float32))


def test_bfloat16_is_an_argument(saved, segmenter):
    half = maskformer_jax.load(saved[0], dtype="bfloat16")
    pixel_values = np.random.default_rng(1).normal(size=(1, 32, 32, 3)).astype(np.float32)
    for one, other in zip(half.logits(pixel_values), segmenter.logits(pixel_values), strict=True):
        assert one.dtype == np.float32
        assert not np.array_equal(one, other)
        np.testing.assert_allclose(one, other, atol=0.2)


@pytest.fixture(scope="module")
def original_file(tmp_path_factory):
    """A file as the original's model zoo has them: a pickle of numpy arrays under the older names."""
    path = tmp_path_factory.mktemp("zoo") / "model_final.pkl"
    tensors = as_file(random_arrays(maskformer(150, **SMALL), seed=3), ORIGINAL)
    old = {name.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): 0.1 * t for name, t in tensors.items()}
    path.write_bytes(pickle.dumps({"model": old, "__author__": "someone"}))
    return path


def test_a_file_of_the_original_needs_nothing_else(original_file, tmp_path):
    segmenter = maskformer_jax.load(str(original_file))
    assert segmenter.classes == catalog.load("ade20k")
    assert segmenter.model.backbone["name"] == "resnet18"
    assert (segmenter.inference.short_edge, segmenter.inference.longest_edge) == (512, 2048)
    assert convert.main([f"--from={original_file}", f"--to={tmp_path}/ours", "--format=orbax"]) == 0
    converted = maskformer_jax.load(f"{tmp_path}/ours")
    assert dataclasses.replace(converted.inference) == segmenter.inference
    assert converted.classes == segmenter.classes
    pixel_values = np.random.default_rng(2).normal(size=(1, 32, 64, 3)).astype(np.float32)
    for one, other in zip(converted.logits(pixel_values), segmenter.logits(pixel_values), strict=True):
        np.testing.assert_array_equal(one, other)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_hostile_file_is_refused_and_not_executed(tmp_path):
    marker = tmp_path / "marker"
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"model": {"sem_seg_head.x": Hostile(marker)}}))
    with pytest.raises(UserError, match=r"model\.pkl"):
        maskformer_jax.load(str(path))
    assert not marker.exists()
    pickle.loads(path.read_bytes())["model"]["sem_seg_head.x"].close()
    assert marker.exists()  # as it would have been


def test_a_truncated_file_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors.numpy.save({"a": np.zeros(1000, np.float32)})[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors.*[Dd]ownload"):
        maskformer_jax.load(str(path))


def test_a_backbone_is_for_training(tmp_path):
    path = tmp_path / "resnet18.safetensors"
    form = next(form for form in convert_formats() if "torchvision" in form.label)
    path.write_bytes(safetensors.numpy.save(contiguous(as_file(random_arrays(maskformer(5, **SMALL)), form))))
    with pytest.raises(UserError, match=r"torchvision.*segments nothing yet.*--config\.init\.weights="):
        maskformer_jax.load(str(path))


def convert_formats():
    from maskformer_jax.checkpoints.convert import FORMATS

    return FORMATS


def contiguous(tensors):
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


@pytest.mark.parametrize("source", ["/nowhere/model.pkl", "model.pkl"])
def test_a_path_that_does_not_exist_is_named(source):
    with pytest.raises(UserError, match=rf"{source} does not exist"):
        maskformer_jax.load(source)


def test_a_hub_id_is_fetched(saved, monkeypatch):
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append(name)
        return saved[0]

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    assert maskformer_jax.load("facebook/maskformer-swin-tiny-ade").classes == CLASSES
    assert asked == ["facebook/maskformer-swin-tiny-ade"]


def test_a_hub_that_cannot_be_reached_is_named(monkeypatch):
    def snapshot_download(name, allow_patterns):
        raise OSError("no route to host")

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    with pytest.raises(UserError, match=r"someone/model is no local path.*no route to host"):
        maskformer_jax.load("someone/model")


def test_a_hub_id_without_the_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="pip install huggingface_hub"):
        maskformer_jax.load("someone/model")


def test_converting_never_writes_over_something(saved, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("...")
    with pytest.raises(SystemExit, match="is not an empty folder; nothing was changed"):
        convert.main([f"--from={saved[0]}", f"--to={tmp_path}/mine", "--format=orbax"])
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("model", "words"),
    [(MODEL, r"model\.memory='fpn4', model\.backbone\.norm='group'"), (PER_PIXEL, r"model\.name='per_pixel'")],
)
def test_what_transformers_cannot_hold_is_named_and_leaves_nothing(tmp_path, model, words):
    write_model(tmp_path / "ours", model)
    with pytest.raises(SystemExit, match=words):
        convert.main([f"--from={tmp_path}/ours", f"--to={tmp_path}/out", "--format=huggingface"])
    assert not (tmp_path / "out").exists()
