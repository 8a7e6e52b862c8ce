"""Models ready to use: from every source, for every image, and with an error for everything else."""

import dataclasses
import gc
import io
import pickle
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import maskformer_jax
from maskformer_jax import catalog, convert
from maskformer_jax.catalog import Classes
from maskformer_jax.checkpoints import workdir
from maskformer_jax.checkpoints.formats import MASKFORMER_ORIGINAL, TORCHVISION_RESNET
from maskformer_jax.checkpoints.published import Description
from maskformer_jax.errors import UserError
from maskformer_jax.inference import Frame, panoptic
from maskformer_jax.models import build_network
from maskformer_jax.ops import masks as mask_ops
from maskformer_jax.ops.image import normalize
from maskformer_jax.segmenter import segmenter as segmenter_module
from maskformer_jax.segmenter import tasks
from maskformer_jax.segmenter.images import read_image, to_rgb
from maskformer_jax.segmenter.results import InstanceSegmentation, Segmentation, why_no_segments
from tests.checkpoints.test_convert import SMALL, as_file, random_arrays
from tests.parity.golden import maskformer
from tests.samples import NUM_CLASSES, TINY_MODEL, compiled, slow

CLASSES = Classes.from_dict({"names": list("abcde"), "things": ["a", "b"]}, "test")
MODEL = {"name": "maskformer", "dtype": "float32", **TINY_MODEL}
INFERENCE = {
    "short_edge": 48,
    "longest_edge": 96,
    "size_divisor": 16,
    "upsample": "scores",
    "score_threshold": 0.2,
    "overlap_threshold": 0.5,
}
PER_PIXEL = {name: value for name, value in MODEL.items() if name != "decoder"} | {"name": "per_pixel"}


def write_model(folder, model=MODEL, **inference):
    network = compiled(build_network(NUM_CLASSES, **model))
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
    expected = network.apply(params, frozen, pixel_values).last()
    class_logits, mask_logits = segmenter.logits(pixel_values)
    assert class_logits.shape == (2, 8, NUM_CLASSES + 1)
    assert mask_logits.shape == (2, 8, 10, 14)
    np.testing.assert_allclose(class_logits, expected.class_logits[0], atol=1e-5)
    np.testing.assert_allclose(mask_logits, mask_ops.logits(expected)[0], atol=1e-5)


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (30, 31), slow((20, 200)), slow((100, 49)), (1, 1), (1, 300)])
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
    last = network.apply(params, frozen, normalize(image[None], np.array([[48, 64]]))).last()
    probs = jax.nn.softmax(last.class_logits[0, 0])[:, :-1]
    masks = jax.nn.sigmoid(jax.image.resize(mask_ops.logits(last)[0, 0], (8, 48, 64), "bilinear", antialias=False))
    scores = np.einsum("qk,qhw->khw", probs, masks)
    agree = segmenter.semantic(image).class_map == scores.argmax(axis=0)
    assert agree.mean() > 0.999  # ties aside


def test_instances_are_those_of_the_rule(saved, segmenter):
    """Class probability times mask quality, things alone; 48 x 64 is already at the test size."""
    network, params, frozen = saved[1]
    image = photo(48, 64)
    last = network.apply(params, frozen, normalize(image[None], np.array([[48, 64]]))).last()
    probs = np.asarray(jax.nn.softmax(last.class_logits[0, 0]))[:, :2]
    masks = np.asarray(jax.image.resize(mask_ops.logits(last)[0, 0], (8, 48, 64), "bilinear", antialias=False))
    quality = [jax.nn.sigmoid(mask)[mask > 0].mean() if (mask > 0).any() else 0.0 for mask in masks]
    expected = np.sort((probs * np.array(quality)[:, None]).ravel())[::-1]
    found = segmenter.instances(image, threshold=0.0)
    np.testing.assert_allclose(found.scores, expected[expected > 0], rtol=1e-3)
    assert found.masks.shape == (len(found.scores), 48, 64)
    assert set(found.labels.tolist()) <= {0, 1}
    best = np.unravel_index(np.argmax(probs * np.array(quality)[:, None]), probs.shape)
    assert found.labels[0] == best[1]
    assert (found.masks[0] == (masks[best[0]] > 0)).mean() > 0.999


def test_instances_have_the_size_of_the_image_and_coco_s_run_lengths(segmenter):
    rle = pytest.importorskip("pycocotools.mask")
    found = segmenter.segment(photo(30, 57), "instance", threshold=0.0)
    assert found.masks.shape[1:] == found.id_map.shape == (30, 57)
    for mask, segment in zip(found.masks, found.segments(), strict=True):
        np.testing.assert_array_equal(rle.decode(segment["segmentation"]), mask)
        assert segment["area"] == mask.sum()
        rows, columns = np.nonzero(mask)
        assert segment["box"] == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert segment["is_thing"]


def test_the_smallest_instance_is_on_top():
    masks = np.zeros((2, 4, 6), bool)
    masks[0, 1:3, 1:3], masks[1, :, :5] = True, True
    found = InstanceSegmentation(masks, np.array([0, 1]), np.array([0.5, 0.9]), CLASSES)
    expected = np.where(masks[0], 1, np.where(masks[1], 2, 0))
    np.testing.assert_array_equal(found.id_map, expected)


def test_it_says_why_there_are_no_instances(segmenter):
    assert "is not above the threshold 1" in segmenter.instances(photo(48, 64), threshold=1.0).why_empty()
    assert segmenter.instances(photo(48, 64), threshold=0.0).why_empty() == ""


def test_a_model_that_tells_no_instances_apart_says_so(tmp_path):
    write_model(tmp_path / "pixels", PER_PIXEL)
    with pytest.raises(UserError, match="does not separate instances"):
        maskformer_jax.load(str(tmp_path / "pixels")).instances(photo(48, 64))


def test_void_of_a_panoptic_answer_is_the_ignore_index(segmenter):
    nothing = segmenter.panoptic(photo(48, 64), threshold=1.0)
    assert len(nothing.labels) == 0
    assert (nothing.class_map == CLASSES.ignore_index).all()


def test_thresholds_are_arguments_that_do_not_compile_again(segmenter):
    image = photo(48, 64)
    everything = segmenter.panoptic(image, threshold=0.0, overlap=0.0)
    compiled = segmenter._program.cache_info().misses
    default = segmenter.panoptic(image)
    stricter = segmenter.panoptic(image, threshold=0.9, overlap=0.9)
    assert len(everything.labels) >= len(default.labels) >= len(stricter.labels)
    assert len(everything.labels) > len(stricter.labels)
    assert segmenter._program.cache_info().misses == compiled


def test_sizes_of_images_share_a_program(segmenter):
    """Smaller, larger and longer ones than the network reads; it compiles when the first arrives."""
    sizes = [(60, 62), (10, 11), (301, 299), (64, 60)]
    before = segmenter._program.cache_info().currsize
    assert [segmenter.semantic(photo(*size)).id_map.shape for size in sizes] == sizes
    assert segmenter._program.cache_info().currsize <= before + 1
    program = segmenter._program(segmenter._mesh, "semantic", 1, (64, 64), 0)
    assert program.num_compiled == 1


def test_programs_that_were_not_used_lately_are_freed(saved, monkeypatch):
    def compile_little(*args, **options):
        return jax.jit(lambda pixels: pixels + 1)

    def live():
        gc.collect()
        return len(client.live_executables())

    monkeypatch.setenv("MASKFORMER_MAX_PROGRAMS", "3")
    monkeypatch.setattr(segmenter_module, "BlockProgram", compile_little)
    segmenter, client = maskformer_jax.load(saved[0]), jax.local_devices()[0].client
    before = live()
    for width in range(1, 21):
        segmenter._program(segmenter._mesh, "panoptic", 1, (1, width), 0)(np.zeros((1, width)))
    assert live() - before <= 3
    assert segmenter._program.cache_info()[:2] == (0, 20)
    segmenter._program(segmenter._mesh, "panoptic", 1, (1, 20), 0)
    assert segmenter._program.cache_info().hits == 1
    del segmenter
    assert live() <= before


GREY = np.random.default_rng(5).integers(0, 256, (6, 7), dtype=np.uint8)
COLOR = np.random.default_rng(6).integers(0, 256, (6, 7, 3), dtype=np.uint8)
ALPHA = np.random.default_rng(7).integers(0, 256, (6, 7), dtype=np.uint8)
THRICE = np.stack([GREY] * 3, axis=-1)
KINDS = {
    "RGB": (COLOR, COLOR),
    "a view of BGR": (COLOR[..., ::-1], COLOR[..., ::-1]),
    "grey": (GREY, THRICE),
    "grey, one channel": (GREY[..., None], THRICE),
    "grey and alpha": (np.dstack([GREY, ALPHA]), THRICE),
    "RGBA": (np.dstack([COLOR, ALPHA]), COLOR),
    "jax": (jax.numpy.asarray(COLOR), COLOR),
    "PIL RGB": (Image.fromarray(COLOR), COLOR),
    "PIL L": (Image.fromarray(GREY), THRICE),
    "PIL LA": (Image.fromarray(np.dstack([GREY, ALPHA])), THRICE),
    "PIL RGBA": (Image.fromarray(np.dstack([COLOR, ALPHA])), COLOR),
    "PIL 1": (Image.fromarray(GREY > 99), np.where(THRICE > 99, 255, 0)),
    "PIL 16 bits": (Image.fromarray(GREY.astype(np.uint16) * 256 + ALPHA), THRICE),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_usual_image_becomes_rgb(kind):
    image, expected = KINDS[kind]
    found = to_rgb(image)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("transparency", [2, bytes([0, 128, 255])], ids=["index", "bytes"])
def test_the_colours_of_a_palette_are_looked_up_and_its_transparency_left_out(transparency):
    plain = Image.fromarray(COLOR).quantize(8)
    file = io.BytesIO()
    plain.save(file, "PNG", transparency=transparency)
    with Image.open(file) as image:
        np.testing.assert_array_equal(to_rgb(image), np.asarray(plain.convert("RGB")))
        assert "transparency" in image.info  # the argument is left as it is


def on_its_side(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLOR).save(folder / "a.png", exif=exif)
    return folder / "a.png"


def test_photos_are_turned_as_their_exif_data_say(segmenter, tmp_path):
    path = on_its_side(tmp_path)
    with Image.open(path) as image:
        np.testing.assert_array_equal(to_rgb(image), np.rot90(COLOR, -1))
        assert segmenter.semantic(image).id_map.shape == (7, 6)
    np.testing.assert_array_equal(read_image(str(path)), np.rot90(COLOR, -1))


@pytest.mark.parametrize("kind", ["L", "LA", "RGBA", "P", "1", "I;16", "turned"])
def test_files_are_read_as_training_reads_them(tmp_path, kind):
    schema = pytest.importorskip("maskformer_jax.input_pipeline.schema")
    path = tmp_path / "a.png"
    if kind == "turned":
        on_its_side(tmp_path)
    elif kind == "I;16":
        KINDS["PIL 16 bits"][0].save(path)
    else:
        Image.fromarray(np.dstack([COLOR, ALPHA])).convert(kind).save(path)
    np.testing.assert_array_equal(read_image(str(path)), schema.decode_image(path.read_bytes()))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((0, 8, 3), np.uint8), r"image has no pixels: its shape is \(0, 8, 3\)"),
        (Image.new("RGB", (0, 8)), "image has no pixels"),
        (
            np.zeros((8, 8, 5), np.uint8),
            r"\(8, 8, 5\); expected \[height, width, 3\], or .* for grayscale",
        ),
        (np.zeros((3, 8, 8), np.uint8), r"\(3, 8, 8\); channels come last: image\.transpose\(1, 2, 0\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"pass several images as a list: list\(images\)"),
        (np.ones((8, 8, 3), np.float32), r"float32 \(8, 8, 3\).*Multiply by 255 and cast"),
        (np.full((8, 8, 3), 7.5), "float64.*Scale its values to 0..255"),
        (np.zeros((8, 8, 3), np.int64), r"int64.*image\.astype\(np\.uint8\)"),
        (np.zeros((8, 8), np.uint16), "uint16.*Reduce 16 bits to 8"),
        (np.zeros((8, 8), bool), "bool.*Multiply by 255"),
        (Image.new("F", (8, 8)), "float32.*Multiply by 255"),
        (Image.new("I", (8, 8)), "int32"),
        ("photo.png", r"photo\.png: not a readable image .*No such file"),
        (None, "image is None; expected a path, a numpy array"),
    ],
)
def test_an_image_of_another_kind_is_named(segmenter, image, words):
    for answer in (segmenter.semantic, segmenter.panoptic):
        with pytest.raises(UserError, match=words):
            answer(image)


def test_an_image_may_be_a_path(tmp_path):
    pixels = photo(8, 9)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        np.testing.assert_array_equal(to_rgb(path), pixels)


def test_a_truncated_image_of_pil_is_named():
    file = io.BytesIO()
    Image.fromarray(photo(64, 64)).save(file, "PNG")
    with pytest.raises(UserError, match=r"mode RGB.*cannot be decoded.*truncated"):
        to_rgb(Image.open(io.BytesIO(file.getvalue()[:5000])))


def test_a_list_gives_the_answers_of_its_images(segmenter):
    images = [photo(48, 64), Image.fromarray(photo(40, 40)), GREY]
    for task in ("semantic", "panoptic"):
        answers = segmenter.segment(images, task)
        assert len(answers) == 3
        for image, found in zip(images, answers, strict=True):
            alone = segmenter.segment(image, task)
            np.testing.assert_array_equal(found.id_map, alone.id_map)
            assert found.segments() == alone.segments()
    assert segmenter.panoptic([]) == []
    with pytest.raises(UserError, match=r"at position 1 of the list: image has shape \(8,\)"):
        segmenter.semantic([GREY, np.zeros(8, np.uint8)])


@pytest.mark.parametrize("value", [-0.1, 1.5, 80, float("nan"), "0.5"])
@pytest.mark.parametrize("name", ["threshold", "overlap"])
def test_a_threshold_outside_0_to_1_is_named(segmenter, name, value):
    with pytest.raises(UserError, match=rf"{name} is {re.escape(repr(value))}; it must lie in 0\.\.1"):
        segmenter.panoptic(photo(48, 64), **{name: value})


def test_tasks_are_named_and_thresholds_go_to_the_right_one(segmenter):
    with pytest.raises(
        UserError, match=r"task is 'instances'; it must be one of \('semantic', 'panoptic', 'instance'\)"
    ):
        segmenter.segment(GREY, "instances")
    with pytest.raises(UserError, match="task 'semantic' has no thresholds"):
        segmenter.segment(GREY, "semantic", overlap=0.5)
    with pytest.raises(UserError, match="task 'instance' has no overlap threshold"):
        segmenter.segment(GREY, "instance", overlap=0.5)
    everything = segmenter.segment(photo(48, 64), "panoptic", threshold=0.0, overlap=0.0)
    assert len(everything.labels) > len(segmenter.segment(photo(48, 64), "panoptic", threshold=1.0).labels)


@pytest.mark.parametrize("part", [slow("heads.class_head"), slow("heads.mask_head"), "backbone"])
def test_weights_that_are_not_finite_are_named_with_their_checkpoint(tmp_path, part):
    _, params, _ = write_model(tmp_path / "run")
    name = next(name for name in params if part in name)
    # A checkpoint of such values is refused when it is read; other files are not looked through.
    segmenter = maskformer_jax.load(str(tmp_path / "run"))
    segmenter.params = {**segmenter.params, name: params[name].at[(0,) * params[name].ndim].set(np.nan)}
    words = rf"{re.escape(str(tmp_path / 'run'))}, checkpoint 0: its scores are not finite.*1 of its \d+.*{name}"
    for answer in (segmenter.semantic, segmenter.panoptic):
        with pytest.raises(UserError, match=words):
            answer(photo(48, 64))


def test_an_overflow_of_the_computation_is_not_blamed_on_the_parameters(saved):
    segmenter = maskformer_jax.load(saved[0], dtype="bfloat16")
    segmenter.params = {
        name: array * (1e30 if "class_head" in name or "mask" in name else 1.0)
        for name, array in segmenter.params.items()
    }
    with pytest.raises(UserError, match=r"though all parameters are; the computation overflows in bfloat16.*float32"):
        segmenter.semantic(photo(48, 64))


def test_records_of_segments():
    id_map = np.zeros((5, 7), np.uint16)
    id_map[1:4, 2:6] = 1
    id_map[4, 6] = 2
    id_map[0, 0] = 2
    found = Segmentation(id_map, np.array([1, 4]), np.array([0.91237, 1.0], np.float32), CLASSES)
    assert found.areas.tolist() == [12, 2]
    assert found.segments() == [
        {"id": 1, "class": 1, "name": "b", "is_thing": True, "score": 0.9124, "area": 12, "box": [2, 1, 6, 4]},
        {"id": 2, "class": 4, "name": "e", "is_thing": False, "score": 1.0, "area": 2, "box": [0, 0, 7, 5]},
    ]
    hidden = Segmentation(id_map, np.array([1, 4, 0]), np.ones(3), CLASSES).segments()[2]
    assert (hidden["area"], hidden["box"]) == (0, [0, 0, 0, 0])


def test_boxes_hold_their_segments_exactly():
    rng = np.random.default_rng(3)
    id_map = np.zeros((40, 30), np.uint16)
    for index in range(1, 6):
        top, left = rng.integers(0, 30), rng.integers(0, 20)
        id_map[top : top + 9, left : left + 9][rng.random((9, 9))[: 40 - top, : 30 - left] < 0.1] = index
    found = Segmentation(id_map, np.arange(5), np.ones(5), CLASSES)
    assert (found.areas > 1).all()
    for segment in found.segments():
        rows, columns = np.nonzero(found.id_map == segment["id"])
        assert segment["box"] == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize(
    ("labels", "scores", "threshold", "words"),
    [
        ([0, 5, 1], [0.41, 0.99, 0.42], 0.8, 'the best score, 0.4200 of class "b", is not above the threshold 0.8'),
        ([5, 5, 5], [0.7, 0.61, 0.9], 0.1, '"no object" for all 3 queries (the lowest probability is 0.6100)'),
        ([5, 2, 0], [0.99, 0.9, 0.3], 0.8, 'one candidate scores above the threshold 0.8, 0.9000 of class "c", but no'),
        ([3, 2, 0], [0.85, 0.9, 0.3], 0.8, '2 candidates score above the threshold 0.8, the best 0.9000 of class "c"'),
    ],
)
def test_why_nothing_is_found(labels, scores, threshold, words):
    why = why_no_segments(np.array(labels), np.array(scores, np.float32), threshold, 0.5, CLASSES)
    assert words in why
    nothing = Segmentation(np.zeros((4, 4), np.uint16), np.zeros(0, int), np.zeros(0), CLASSES, why)
    assert nothing.why_empty() == why


def test_why_nothing_is_found_is_computed_from_the_queries(segmenter, monkeypatch):
    seen = []

    def spy(labels, scores, *others):
        seen.append((labels, scores))
        return why_no_segments(labels, scores, *others)

    monkeypatch.setattr(tasks, "why_no_segments", spy)
    image = photo(48, 64)
    everything = segmenter.panoptic(image, threshold=0.0, overlap=0.0)
    assert everything.why_empty() == ""
    assert segmenter.semantic(image).why_empty() == ""
    ((labels, scores),) = seen
    best = scores[labels < NUM_CLASSES].max()
    strict = segmenter.panoptic(image, threshold=1.0)
    assert f'the best score, {best:.4f} of class "' in strict.why_empty()
    assert "is not above the threshold 1" in strict.why_empty()
    # At its own score the best candidate is left out: the comparison is the device's.
    assert "is not above" in segmenter.panoptic(image, threshold=float(best)).why_empty()


def test_candidates_that_cover_each_other_are_told():
    """Both masks fill the image, and each query wins half of it."""
    class_logits = 20 * np.eye(NUM_CLASSES + 1, dtype=np.float32)[None, :2]
    mask_logits = np.full((1, 2, 4, 4), 3.0, np.float32)
    mask_logits[0, 0, :, 2:] = mask_logits[0, 1, :, :2] = 1.0
    size = np.array([[4, 4]])
    found = panoptic(class_logits, mask_logits, Frame(size, size, (4, 4), (4, 4)), np.array(CLASSES.is_thing), 0.5, 0.8)
    assert not found.id_map.any()
    why = why_no_segments(np.asarray(found.label[0]), np.asarray(found.score[0]), 0.5, 0.8, CLASSES)
    assert "2 candidates score above the threshold 0.5, the best 1.0000" in why
    assert "none keeps 0.8 of its mask (the overlap threshold): others cover it" in why


def test_pixel_values_of_another_shape_are_named(segmenter):
    with pytest.raises(UserError, match=r"pixel_values has shape \(3, 32, 32\)"):
        segmenter.logits(np.zeros((3, 32, 32), np.float32))


def test_a_per_pixel_classifier_answers_but_has_no_queries(tmp_path):
    write_model(tmp_path / "m", PER_PIXEL)
    segmenter = maskformer_jax.load(str(tmp_path / "m"))
    found = segmenter.semantic(photo(40, 60))
    np.testing.assert_array_equal(found.class_map, segmenter.panoptic(photo(40, 60)).class_map)
    with pytest.raises(UserError, match="is a per-pixel classifier and has no queries"):
        segmenter.logits(np.zeros((1, 32, 32, 3), np.float32))


def test_bfloat16_is_an_argument(saved, segmenter):
    half = maskformer_jax.load(saved[0], dtype="bfloat16")
    pixel_values = np.random.default_rng(1).normal(size=(1, 32, 32, 3)).astype(np.float32)
    for one, other in zip(half.logits(pixel_values), segmenter.logits(pixel_values), strict=True):
        assert one.dtype == np.float32
        assert not np.array_equal(one, other)
        np.testing.assert_allclose(one, other, atol=0.2)


def test_a_bfloat16_model_keeps_float32_parameters_and_computes_with_rounded_ones(saved, segmenter):
    half = maskformer_jax.load(saved[0], dtype="bfloat16")
    name = "heads.class_head.kernel"
    np.testing.assert_array_equal(half.params[name], segmenter.params[name])
    assert half.weights[0][name].dtype == jnp.bfloat16
    np.testing.assert_array_equal(half.weights[0][name], segmenter.params[name].astype(jnp.bfloat16))
    assert segmenter.weights[0] is segmenter.params


@pytest.fixture(scope="module")
def original_file(tmp_path_factory):
    """A file as the original's model zoo has them: a pickle of numpy arrays under the older names."""
    path = tmp_path_factory.mktemp("zoo") / "model_final.pkl"
    tensors = as_file(random_arrays(maskformer(150, **SMALL), seed=3), MASKFORMER_ORIGINAL)
    old = {name.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): 0.1 * t for name, t in tensors.items()}
    path.write_bytes(pickle.dumps({"model": old, "__author__": "someone"}))
    return path


def test_a_file_of_the_original_needs_nothing_else(original_file, tmp_path):
    segmenter = maskformer_jax.load(str(original_file))
    assert segmenter.classes == catalog.load("ade20k")
    assert segmenter.model["backbone"]["name"] == "resnet18"
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
    tensors = as_file(random_arrays(maskformer(5, **SMALL)), TORCHVISION_RESNET)
    path.write_bytes(safetensors.numpy.save(contiguous(tensors)))
    with pytest.raises(UserError, match=r"torchvision.*segments nothing yet.*--config\.init\.weights="):
        maskformer_jax.load(str(path))


def contiguous(tensors):
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


@pytest.mark.parametrize("source", ["/nowhere/model.pkl", "model.pkl"])
def test_a_path_that_does_not_exist_is_named(source):
    with pytest.raises(UserError, match=rf"{source} does not exist"):
        maskformer_jax.load(source)


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
    [
        (MODEL, r"model\.decoder\.memory='fpn4', model\.backbone\.name='resnet\w+', model\.backbone\.norm='group'"),
        (PER_PIXEL, r"model\.name='per_pixel'"),
    ],
)
def test_what_transformers_cannot_hold_is_named_and_leaves_nothing(tmp_path, model, words):
    write_model(tmp_path / "ours", model)
    with pytest.raises(SystemExit, match=words):
        convert.main([f"--from={tmp_path}/ours", f"--to={tmp_path}/out", "--format=huggingface"])
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def windowed(tmp_path_factory):
    """A model that reads its images in windows of 48 x 48 pixels."""
    folder = tmp_path_factory.mktemp("models") / "windowed"
    write_model(folder, size_divisor=48, window=48, longest_edge=1_000_000, size_rounding="half_even")
    return maskformer_jax.load(str(folder))


@pytest.mark.parametrize("size", [slow((30, 101)), (200, 20), (1, 30), (48, 48)])
def test_windows_see_images_of_any_proportions(windowed, size):
    found = windowed.semantic(photo(*size))
    assert found.class_map.shape == size
    assert windowed.panoptic(photo(*size)).id_map.shape == size


def test_a_square_is_one_window(windowed, segmenter):
    """The two have the same weights."""
    image = photo(48, 48)
    np.testing.assert_array_equal(windowed.semantic(image).class_map, segmenter.semantic(image).class_map)
