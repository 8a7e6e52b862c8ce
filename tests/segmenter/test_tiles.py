"""Large images by tiles, with a network that sees every thing it is shown: what goes wrong is wrong with the tiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskformer_jax.catalog import Classes
from maskformer_jax.engine.evaluate import Evaluator
from maskformer_jax.engine.settings import Settings
from maskformer_jax.errors import UserError
from maskformer_jax.files import images, limits, scratch
from maskformer_jax.inference import InferenceConfig
from maskformer_jax.input_pipeline import schema
from maskformer_jax.ops.image import PIXEL_MEAN, PIXEL_STD
from maskformer_jax.segmenter.results import (
    InstanceSegmentation,
    InstancesOfTiles,
    Segmentation,
    flatten_masks,
    id_type,
    write_result,
)
from maskformer_jax.segmenter.segmenter import Segmenter
from maskformer_jax.segmenter.writers import Picture, open_writer
from maskformer_jax.sharding import make_mesh
from maskformer_jax.types import Network, Prediction
from tests.engine.recipe import recipe
from tests.inference.test_seams import nuclei

CLASSES = Classes.from_dict({"names": ["nucleus", "sand", "sea"], "things": ["nucleus"]}, "test")
QUERIES = 60  # fewer than the image has nuclei
HOW = {"short_edge": 128, "longest_edge": 128, "size_divisor": 4, "upsample": "logits"}
HOW |= {"score_threshold": 0.5, "overlap_threshold": 0.5, "panoptic_rule": "mask2former"}
TILE, OVERLAP = 128, 64  # of the image below: tiles begin at multiples of 64, where squares of four pixels begin


def oracle(queries):
    """A network that finds what an image says of itself: red numbers a nucleus, green is the class of other pixels.

    It finds as many nuclei as it has queries but two, those of the smallest numbers.
    """

    def apply(params, frozen, image, *, valid_size=None, train=None):
        cells = jnp.round(image[:, 2::4, 2::4] * jnp.array(PIXEL_STD) + jnp.array(PIXEL_MEAN)).astype(jnp.int32)
        number, stuff = cells[..., 0], cells[..., 1]
        seen = jnp.any(number[..., None] == jnp.arange(256), axis=(1, 2)).at[:, 0].set(False)
        numbers = jnp.argsort(~seen, axis=1, stable=True)[:, : queries - 2]
        things = (number[..., None] == numbers[:, None, None]) & (number > 0)[..., None]
        masks = jnp.concatenate([stuff[..., None] == jnp.array([1, 2]), things], axis=-1)
        # A query that has found nothing is no object: its faint mask would add to the score of nuclei everywhere.
        of_things = jnp.where(jnp.take_along_axis(seen, numbers, axis=1), 0, 3)
        label = jnp.concatenate([jnp.broadcast_to(jnp.array([1, 2]), (len(image), 2)), of_things], axis=1)
        class_logits = jnp.where(jnp.arange(4) == label[..., None], 9.0, -9.0)[None]
        embed = jnp.broadcast_to(jnp.eye(queries), (1, len(image), queries, queries))
        return Prediction(class_logits, embed, jnp.where(masks, 9.0, -9.0)[None])

    return Network(lambda key: ({}, {}), apply, None, queries, True, False, lambda name: None, ({}, {}))


def model(queries, **inference):
    options = {"inference": InferenceConfig(**{**HOW, **inference}), "model": {"dtype": "float32"}, "origin": "oracle"}
    return Segmenter(oracle(queries), {}, {}, classes=CLASSES, **options)


@pytest.fixture(scope="module")
def scene():
    """An image [H, W, 3] and the id map of its segments: nuclei, sand and sea, in squares of four pixels."""
    ids = nuclei(0, (64, 80), 300, (2, 5))
    assert QUERIES < ids.max() < 256
    stuff = np.where(np.arange(80) < 40, 1, 2) * (ids == 0)
    image = np.stack([ids, stuff, 0 * ids], axis=-1).astype(np.uint8)
    ids = np.where(ids > 0, ids, ids.max() + stuff)
    return tuple(np.repeat(np.repeat(x, 4, axis=0), 4, axis=1) for x in (image, ids))


@pytest.fixture(scope="module")
def segmenter():
    return model(QUERIES)


@pytest.fixture(scope="module")
def all_at_once():
    """A network that sees the whole image at once, and has queries for all that is there."""
    return model(200, short_edge=256, longest_edge=320)


def agreement(one, two):
    """The fraction of pixels at which two id maps agree, whatever the ids."""
    pairs, counts = np.unique(one.astype(np.int64) * 2**16 + two, return_counts=True)
    matched = {}
    for pair in pairs[np.argsort(-counts)].tolist():
        if pair >> 16 not in matched and pair % 2**16 not in matched.values():
            matched[pair >> 16] = pair % 2**16
    lookup = np.zeros(one.max() + 1, int)
    lookup[list(matched)] = list(matched.values())
    return np.mean(lookup[one] == two)


def test_a_large_image_has_more_things_than_the_network_has_queries(segmenter, scene):
    image, ids = scene
    things = ids.max() - 2
    found = segmenter.instances(image, tile=TILE, tile_overlap=OVERLAP)
    assert len(found.labels) == things > QUERIES
    assert len(segmenter.instances(image, tile=0).labels) < QUERIES
    np.testing.assert_array_equal(found.masks.sum(axis=(1, 2)), found.areas)
    assert [each["area"] for each in found.segments()] == found.areas.tolist()
    np.testing.assert_array_equal(found.id_map, flatten_masks(found.masks))


def test_tiles_give_what_the_image_at_once_would(segmenter, all_at_once, scene):
    """Things are joined over seams, and stuff is one segment for each class."""
    image, ids = scene
    tiled = segmenter.panoptic(image, tile=TILE, tile_overlap=OVERLAP)
    alone = all_at_once.panoptic(image)
    assert len(tiled.labels) == len(alone.labels) == ids.max()
    assert sorted(tiled.labels)[-2:] == [1, 2]
    assert agreement(tiled.id_map, alone.id_map) > 0.999
    tiled, alone = segmenter.semantic(image, tile=TILE, tile_overlap=OVERLAP), all_at_once.semantic(image)
    assert np.mean(tiled.class_map == alone.class_map) > 0.999


@pytest.mark.parametrize("task", ["semantic", "panoptic", "instance"])
def test_an_image_that_fits_a_tile_has_the_result_without_tiles(segmenter, scene, task):
    image = scene[0][:TILE, :TILE]
    alone, tiled = (segmenter.segment(image, task, tile=tile) for tile in (0, TILE))
    np.testing.assert_array_equal(tiled.id_map, alone.id_map)
    np.testing.assert_array_equal(tiled.scores, alone.scores)
    assert len(alone.labels) > 1


class Sliced:
    """An array of another library, as zarr's: its parts are read when they are asked for."""

    def __init__(self, array):
        self._array, self.shape, self.dtype, self.largest = array, array.shape, array.dtype, 0

    def __getitem__(self, place):
        part = self._array[place]
        self.largest = max(self.largest, *part.shape[:2])
        return part


@pytest.mark.parametrize("task", ["semantic", "panoptic", "instance"])
def test_large_images_are_read_and_answered_by_parts(segmenter, scene, task, monkeypatch):
    image, tiles = scene[0], {"tile": TILE, "tile_overlap": OVERLAP}
    expected = segmenter.segment(image, task, **tiles)
    monkeypatch.setattr(scratch, "IN_MEMORY", 0)
    monkeypatch.setattr(scratch, "_BLOCK", 5000)
    monkeypatch.setenv(limits.IMAGE_PIXELS.variable, str(TILE**2))
    parts = Sliced(image)
    found = segmenter.segment(parts, task, **tiles)
    assert parts.largest == TILE
    assert isinstance(found.id_map, np.memmap)
    np.testing.assert_array_equal(found.id_map, expected.id_map)
    np.testing.assert_array_equal(found.areas, expected.areas)
    assert found.segments() == expected.segments()
    with pytest.raises(UserError, match="81,920 pixels in an image; the limit is 16,384"):
        segmenter.segment(image, task, tile=0)
    monkeypatch.setenv(limits.TILED_IMAGE_PIXELS.variable, "80000")
    with pytest.raises(UserError, match="81,920 pixels in an image that is read by tiles; the limit is 80,000"):
        segmenter.segment(parts, task, **tiles)


@pytest.mark.parametrize("format", ["coco", "coco_rle", "yolo"])
def test_writers_of_many_instances_make_no_whole_masks(segmenter, scene, tmp_path, format, monkeypatch):
    found = segmenter.instances(scene[0], tile=TILE, tile_overlap=OVERLAP)
    whole = InstanceSegmentation(found.masks.copy(), found.labels, found.scores, found.classes)

    def refuse(self):
        raise AssertionError("masks of the whole image")

    assert [(crop.box, crop.area) for crop in whole.crops] == [(crop.box, crop.area) for crop in found.crops]
    monkeypatch.setattr(InstancesOfTiles, "masks", property(refuse))
    files = []
    for number, result in enumerate((found, whole)):
        with open_writer(str(tmp_path / str(number)), format, CLASSES) as writer:
            writer.add(Picture.of(scene[0], name="scene"), result)
        paths = sorted(path for path in (tmp_path / str(number)).rglob("*") if path.is_file())
        files.append([path.read_bytes() for path in paths])
    assert files[0] == files[1]


def test_more_segments_than_16_bits_number_are_colors(tmp_path):
    assert id_type(2**16 - 1) == np.uint16
    assert id_type(2**16) == np.uint32
    # As many have this type, see `id_type`.
    id_map = np.array([[0, 1], [260, 2]], np.uint32)
    result = Segmentation(id_map, np.zeros(260, int), np.ones(260), CLASSES)
    write_result(np.zeros((2, 2, 3), np.uint8), result, str(tmp_path), "a")
    colors = np.asarray(images.open_image(tmp_path / "a_ids.png")).astype(int)
    np.testing.assert_array_equal(colors @ [1, 256, 65536], id_map)


def test_tiles_that_cannot_be_are_named(segmenter, scene):
    for given, message in (
        ({"tile": 8}, "tile is 8 pixels; expected at least 16"),
        ({"tile": 64, "tile_overlap": 33}, "tile_overlap is 33; expected 0 to 32, half of tile=64"),
        ({"tile": 64, "tile_overlap": -1}, "tile_overlap is -1; expected 0 to 32"),
        ({"tile": 96.5}, "tile is 96.5; expected a whole number of pixels"),
        ({"tile": "64"}, "tile is '64'; expected a whole number"),
        ({"tile_overlap": 8}, "tile_overlap is 8, but tile is 0"),
    ):
        with pytest.raises(UserError, match=message):
            segmenter.semantic(scene[0], **given)


class Scenes:
    """A source of one image of the evaluation split, and of smaller parts of it."""

    classes, trusts_area = CLASSES, False

    def __init__(self, image, ids):
        self._parts = [(image, ids), (image[:128, :120], ids[:128, :120]), (image[:, :120], ids[:, :120])]

    def size(self, split):
        return len(self._parts)

    def image_size(self, split, index):
        return self._parts[index][1].shape

    def example(self, split, index):
        image, ids = self._parts[index]
        numbers, ids = np.unique(ids, return_inverse=True)
        largest = self._parts[0][1].max()
        labels = np.where(numbers > largest - 2, numbers - largest + 2, 0)
        planes = (images.encode_png((ids.reshape(image.shape[:2]) + 1).astype(np.uint16)),)
        area = np.bincount(ids.ravel())
        crowd = np.zeros(len(labels), bool)
        return schema.Example(str(index), images.encode_png(image), planes, labels, crowd, area)


def test_evaluation_scores_the_joined_result(scene):
    values = recipe("nowhere", 1)
    values["inference"].update(HOW, tile=TILE, tile_overlap=OVERLAP)
    values["eval"].update(batch_size=4, num_images=1, tasks=("panoptic", "semantic", "instance"))
    settings = Settings.from_dict(values)
    evaluator = Evaluator(oracle(QUERIES), Scenes(*scene), settings, make_mesh(jax.devices()[:1]))
    scores = evaluator({}, {})
    # Every segment is found once; masks at a quarter of the resolution have round corners.
    assert scores.summary["panoptic/rq"] == 100
    assert scores.summary["panoptic/pq"] > 90
    assert scores.summary["semantic/miou"] > 90
    assert scores.summary["instance/AP50"] > 90  # COCO counts 100 detections of an image, which has more things
    (drawn,) = scores.images
    assert drawn.shape[0] >= scene[1].shape[0]
