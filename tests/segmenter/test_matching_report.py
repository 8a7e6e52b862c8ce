"""The matching to look at is that of the loss, and its picture shows what is in it."""

import copy

import jax
import numpy as np
import pytest

from maskformer_jax import visualize
from maskformer_jax.catalog import Classes
from maskformer_jax.checkpoints import workdir
from maskformer_jax.configs import coco_panoptic, eomt_coco_panoptic, mask2former_coco_panoptic
from maskformer_jax.engine.settings import Settings
from maskformer_jax.errors import UserError
from maskformer_jax.inference import InferenceConfig
from maskformer_jax.losses import make_criterion
from maskformer_jax.models import MODELS, build_network
from maskformer_jax.ops import masks
from maskformer_jax.ops.image import normalize
from maskformer_jax.ops.resize import bilinear
from maskformer_jax.segmenter import matching_report
from maskformer_jax.segmenter.matching_report import PUBLISHED, Matching, report_matching, trained_with
from maskformer_jax.segmenter.segmenter import Segmenter
from maskformer_jax.types import Prediction, Targets
from tests.engine.recipe import recipe
from tests.models.test_valid_size import DEFORMABLE, MASKED
from tests.samples import NUM_CLASSES, TINY_MODEL
from tests.training.test_step import AT_POINTS

CLASSES = Classes.from_dict({"names": list("abcde"), "things": ["a", "b"]}, "test")
INFERENCE = InferenceConfig(48, 96, 16, "scores", 0.2, 0.5)
LOSS = {"name": "set", "class_weight": 3.0, "mask_weight": 7.0, "dice_weight": 2.0}
QUERIES, LAYERS = 8, 2
SIZE = (48, 60)  # its shorter side is that of INFERENCE, so nothing is resized; 60 is padded to 64


def make_segmenter(**changes) -> Segmenter:
    model = {"name": "maskformer", "dtype": "float32", **TINY_MODEL, **changes}
    network = build_network(NUM_CLASSES, **model)
    params, frozen = network.init(jax.random.key(0))
    return Segmenter(network, params, frozen, classes=CLASSES, inference=INFERENCE, model=model, origin="a test's")


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return make_segmenter()


def scene(segments: int):
    """An image, a map of its segments with void between them, and their labels."""
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    column = np.arange(SIZE[1]) * segments // SIZE[1] + 1
    segment_map = np.broadcast_to(column, SIZE).copy()
    segment_map[:5] = 0
    return image, segment_map.astype(np.uint16), np.arange(segments) * 2 % NUM_CLASSES


@pytest.fixture(scope="module")
def prediction(segmenter) -> Prediction:
    """Of the image of every `scene`, as a train step has it."""
    canvas = np.zeros((1, 48, 64, 3), np.uint8)
    canvas[0, :, :60] = scene(1)[0]
    pixels = normalize(canvas, np.array([SIZE]))
    return jax.jit(segmenter.network.apply)(segmenter.params, segmenter.frozen, pixels)


def as_targets(segment_map: np.ndarray, labels: np.ndarray) -> Targets:
    ids = np.full((1, 1, 48, 64), -1, np.int16)
    ids[0, 0, :, :60] = segment_map.astype(int) - 1
    return Targets(ids, labels[None].astype(np.int32), np.ones((1, len(labels)), bool))


@pytest.mark.parametrize("name", ["scipy", "optax"])
def test_queries_and_costs_are_those_of_the_loss(segmenter, prediction, name):
    image, segment_map, labels = scene(QUERIES)  # as many as queries: padding must not cost the matcher any
    targets = as_targets(segment_map, labels)
    loss = {**LOSS, "matcher": name}
    criterion = make_criterion(loss, QUERIES)
    cost = sum(criterion.cost_terms(prediction, targets, None).values())
    expected, _ = criterion.match(prediction, targets)
    found = report_matching(segmenter, image, segment_map, labels, loss=loss)
    np.testing.assert_array_equal(found.query, expected[:, 0])
    assert list(found.costs) == ["class", "mask", "dice"]
    own = np.take_along_axis(np.asarray(cost[:, 0]), found.query[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(sum(found.costs.values()), own, rtol=1e-4, atol=1e-5)
    probs = np.take_along_axis(
        np.asarray(jax.nn.softmax(prediction.class_logits))[:, 0], found.query[..., None], axis=1
    )
    np.testing.assert_allclose(found.probability, probs[:, np.arange(len(labels)), labels], atol=1e-5)
    np.testing.assert_allclose(found.costs["class"], -3.0 * found.probability, rtol=1e-5)


def test_masks_and_iou_are_those_of_the_matched_queries(segmenter, prediction):
    image, segment_map, labels = scene(3)
    found = report_matching(segmenter, image, segment_map, labels)
    np.testing.assert_array_equal(found.truth, segment_map == np.arange(1, 4)[:, None, None])
    full = np.asarray(bilinear(masks.logits(prediction)[:, 0], 48, 64))[:, :, :, :60]
    logits = full[np.arange(LAYERS)[:, None], found.query]
    sure = np.abs(logits) > 1e-3
    assert sure.mean() > 0.9
    np.testing.assert_array_equal(found.masks[sure], logits[sure] > 0)
    both, either = ((f(found.masks, found.truth)).sum(axis=(2, 3)) for f in (np.logical_and, np.logical_or))
    np.testing.assert_allclose(found.iou, both / either, rtol=1e-5)


def test_images_of_nearly_as_many_segments_share_a_compiled_function(segmenter):
    report_matching(segmenter, *scene(3))
    functions = matching_report._compile.cache_info().misses
    report_matching(segmenter, *scene(5))
    assert matching_report._compile.cache_info().misses == functions


def test_what_is_resized_keeps_its_segments(segmenter):
    image, segment_map, labels = scene(4)
    larger = (pixels.repeat(2, axis=0).repeat(2, axis=1) for pixels in (image, segment_map))
    found = report_matching(segmenter, *larger, labels)
    np.testing.assert_array_equal(found.truth, report_matching(segmenter, image, segment_map, labels).truth)
    assert found.image.shape == (*SIZE, 3)


def test_segments_may_overlap(segmenter):
    image, segment_map, labels = scene(3)
    planes = np.stack([segment_map, np.where(segment_map == 2, 1, 0)])
    found = report_matching(segmenter, image, planes, labels)
    np.testing.assert_array_equal(found.truth[0], (segment_map == 1) | (segment_map == 2))
    np.testing.assert_array_equal(found.truth[1], segment_map == 2)


def test_more_segments_than_queries(segmenter):
    found = report_matching(segmenter, *scene(QUERIES + 2))
    unmatched = found.query < 0
    assert unmatched.sum(axis=1).tolist() == [2] * LAYERS
    for values in (found.iou, found.probability, *found.costs.values()):
        np.testing.assert_array_equal(np.isnan(values), unmatched)
    assert not found.masks[unmatched].any()
    assert found.picture().shape[2] == 3
    assert [record["query"] for record in found.records()] == found.query.ravel().tolist()


def test_points_are_the_same_each_time():
    segmenter = make_segmenter(name="mask2former", pixel_decoder=DEFORMABLE, decoder=MASKED)
    first, again = (report_matching(segmenter, *scene(3), loss={"name": "set", **AT_POINTS}) for _ in range(2))
    assert first.query.shape == (MASKED["num_layers"] + 1, 3)  # the learned queries predict, too
    np.testing.assert_array_equal(first.query, again.query)
    for term, cost in first.costs.items():
        np.testing.assert_array_equal(cost, again.costs[term])


def test_matching_by_boxes():
    found = report_matching(make_segmenter(name="box_maskformer"), *scene(3), loss={"name": "box_set"})
    assert list(found.costs) == ["class", "box", "giou"]
    assert (found.costs["box"] > 0).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"segment_map": np.ones((4, 4), int)}, "expected integers \\[48, 60\\], the image's size"),
        ({"segment_map": np.ones(SIZE)}, "segment_map is float64"),
        ({"segment_map": np.full(SIZE, 4)}, "reaches from 4 to 4; expected 0 for void and 1 to 3"),
        ({"labels": [0, 1, NUM_CLASSES]}, "labels reach from 0 to 5; the model has 5 classes"),
        ({"labels": []}, "labels has shape \\(0,\\)"),
        ({"loss": {"name": "set", "matcher": "greedy"}}, "loss: matcher is 'greedy'"),
    ],
)
def test_what_does_not_fit_is_refused(segmenter, changes, said):
    given = dict(zip(("image", "segment_map", "labels"), scene(3), strict=True))
    with pytest.raises(UserError, match=said):
        report_matching(segmenter, **{**given, **changes})


def test_models_without_queries_or_finite_costs_are_refused(segmenter):
    model = {name: value for name, value in TINY_MODEL.items() if name != "decoder"}
    network = build_network(NUM_CLASSES, name="per_pixel", **model)
    weights = network.init(jax.random.key(0))
    pixels = Segmenter(network, *weights, classes=CLASSES, inference=INFERENCE, model=model, origin="a test's")
    with pytest.raises(UserError, match="it has no queries to match"):
        report_matching(pixels, *scene(3))
    damaged = copy.copy(segmenter)
    damaged.params = {name: array * np.nan for name, array in damaged.params.items()}
    with pytest.raises(UserError, match="matching costs of this image are not finite"):
        report_matching(damaged, *scene(3))


def test_every_model_with_queries_has_a_published_loss():
    assert set(MODELS) - set(PUBLISHED) == {"per_pixel", "per_pixel_plus"}


@pytest.mark.parametrize(
    ("model", "config"),
    [
        ("maskformer", coco_panoptic.get_config("resnet50")),
        ("mask2former", mask2former_coco_panoptic.get_config()),
        ("eomt", eomt_coco_panoptic.get_config()),
    ],
)
def test_published_losses_are_those_of_the_recipes(model, config):
    values = config.loss.to_dict()
    del values["images_per_gpu"]  # of no effect on the matching
    assert make_criterion(PUBLISHED[model], QUERIES) == make_criterion(values, QUERIES)


def test_the_loss_is_by_default_that_of_the_model():
    """Its costs are those of the loss when it is given."""
    segmenter = make_segmenter(name="mask2former", pixel_decoder=DEFORMABLE, decoder=MASKED)
    found, given = (report_matching(segmenter, *scene(3), loss=loss) for loss in (None, PUBLISHED["mask2former"]))
    jax.tree.map(np.testing.assert_array_equal, found.costs, given.costs)
    assert not np.allclose(
        found.costs["mask"], report_matching(segmenter, *scene(3), loss={"name": "set"}).costs["mask"]
    )


def test_the_loss_of_a_run_is_read(tmp_path):
    assert trained_with("someone/some-model") is None
    values = recipe(tmp_path / "folder", steps=1)
    values["loss"].update(mask_weight=3.0, matcher="optax")
    workdir.prepare(str(tmp_path / "run"), Settings.from_dict(values).to_dict(), CLASSES)
    loss = trained_with(str(tmp_path / "run"))
    assert loss == values["loss"]
    assert make_criterion(loss, QUERIES).mask_weight == 3.0


@pytest.fixture
def matching() -> Matching:
    """Two layers, two segments: the halves of a grey image. The second layer has the queries the other way round."""
    truth = np.zeros((2, 40, 60), bool)
    truth[0, :, :30] = truth[1, :, 30:] = True
    numbers = np.array([[0.25, 0.5], [0.75, 1.0]], np.float32)
    return Matching(
        image=np.full((40, 60, 3), 100, np.uint8),
        labels=np.array([0, 3]),
        truth=truth,
        query=np.array([[1, 2], [1, 0]], np.int32),
        costs={"class": -numbers, "mask": 2 * numbers},
        probability=numbers,
        iou=numbers / 2,
        masks=np.stack([truth, truth[::-1]]),
        classes=CLASSES,
    )


def test_records_tell_each_pair(matching):
    assert matching.changed.tolist() == [[False, False], [False, True]]
    assert matching.records()[3] == {
        "layer": 2,
        "segment": 2,
        "name": "d",
        "query": 0,
        "class": -1.0,
        "mask": 2.0,
        "cost": 1.0,
        "probability": 1.0,
        "iou": 0.5,
        "changed": True,
    }


def test_the_picture_shows_masks_and_what_changed(matching):
    picture = matching.picture()
    assert picture.dtype == np.uint8
    orange = (picture == visualize.CHANGED).all(axis=-1)
    rows, columns = np.nonzero(orange)
    # One cell of four has another query than the one above it: the last.
    assert rows.min() > picture.shape[0] / 2
    assert columns.min() > visualize.CELL
    assert columns.max() - columns.min() == visualize.CELL - 1
    # What is left of the others is grey: of six cells, each lit in one half.
    dark = (picture == round(100 * visualize.VOID_SHADE)).all(axis=-1).sum()
    cell = visualize.CELL * round(visualize.CELL * 40 / 60)
    assert 0.9 * 3 * cell < dark <= 3 * cell
    # In the second row the lit halves are those of the other segment.
    lit = visualize.segment_colors(matching.labels, CLASSES) * 0.4 + 60
    for color in lit.round().astype(np.uint8):
        shown = np.nonzero((picture == color).all(axis=-1))[1]
        assert 0.9 * 1.5 * cell < len(shown) <= 1.5 * cell
