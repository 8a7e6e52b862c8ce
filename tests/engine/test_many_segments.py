"""Two thousand segments in one image: made, trained on, and scored in the memory of its maps, not of its masks."""

import json
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from maskformer_jax import visualize
from maskformer_jax.engine.scoring import TASKS
from maskformer_jax.errors import UserError
from maskformer_jax.inference import Instances, Panoptic, Result
from maskformer_jax.input_pipeline import coco, schema
from maskformer_jax.input_pipeline.augment import Augmentation
from maskformer_jax.input_pipeline.loader import Host, train_batches
from maskformer_jax.input_pipeline.sources import open_source
from maskformer_jax.losses import make_criterion
from maskformer_jax.types import GroundTruth
from tests.engine.recipe import recipe

COUNT, QUERIES = 2000, 100
SIZE = (320, 500)  # cells of 8 x 10 pixels
NAMES = ("cell", "spot", "crack")


def annotations():
    """Boxes of 6 x 8 pixels in a grid; every seventh is twice as wide, and overlaps the next one."""
    found = []
    for number in range(COUNT):
        top, left = 8 * (number // 50), 10 * (number % 50)
        right, bottom = left + (16 if number % 7 == 0 else 8), top + 6
        outline = [left, top, right, top, right, bottom, left, bottom]
        found.append({"id": number, "image_id": 0, "category_id": number % 3, "segmentation": [outline], "iscrowd": 0})
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("many")
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES)]
    image = {"id": 0, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}
    (root / "annotations").mkdir()
    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True)
        Image.fromarray(np.full((*SIZE, 3), len(split), np.uint8)).save(root / "images" / split / "a.png")
        values = {"images": [image], "categories": categories, "annotations": annotations()}
        (root / "annotations" / f"{split}.json").write_text(json.dumps(values), encoding="utf-8")
    return open_source("coco_format", str(root), str(root / "tfds"))


def test_segments_beyond_eight_bits_are_stored_and_are_targets(source):
    example = source.example("train", 0)
    maps = schema.decode_maps(example.segment_maps)
    assert source.max_segments("train") == maps.max() == COUNT
    assert (maps.dtype, len(maps)) == (np.uint16, source.max_planes("train"))
    for number in (0, 1, 255, 256, 1999):
        np.testing.assert_array_equal(
            (maps == number + 1).any(axis=0), coco.instance_masks([annotations()[number]], SIZE, "")[0]
        )
    augmentation = Augmentation(short_edges=(320,), longest_edge=500, crop=SIZE)
    for most, kept in ((COUNT, COUNT), (QUERIES, QUERIES)):
        options = {"batch_size": 1, "max_segments": most, "augmentation": augmentation, "seed": 0, "first_step": 0}
        batch = next(train_batches(source, "train", host=Host(), **options))
        targets = batch.arrays.targets
        assert targets.valid.sum() == kept
        assert len(np.unique(targets.segment_ids)) == kept + 1
        assert batch.dropped == [COUNT - kept]


def test_more_segments_than_queries_are_refused_before_anything_is_compiled(source):
    criterion = make_criterion(recipe("", 1)["loss"], QUERIES)
    with pytest.raises(UserError, match=r"2000 segments.*100 queries"):
        criterion.check(source.max_segments("train"), 3, "config.model.decoder.num_queries")
    criterion.check(source.max_segments("train", QUERIES), 3, "config.model.decoder.num_queries")


def test_scores_need_the_memory_of_maps(source):
    """The first hundred segments are found: all of them, and nothing else, are right."""
    example = source.example("val", 0)
    maps = schema.decode_maps(example.segment_maps).astype(np.uint16)
    flat = schema.flatten_planes(maps, example.area)
    truth = GroundTruth("a", maps, flat, example.labels, example.is_crowd, example.area)
    masks = np.stack([(maps == number + 1).any(axis=0) for number in range(QUERIES)])
    labels, numbers = example.labels[None, :QUERIES], np.arange(QUERIES)[None]
    packed = np.packbits(np.pad(masks, [(0, 0), (0, 0), (0, 4)]), axis=-1)[None]
    scores = np.linspace(0.9, 0.1, QUERIES, dtype=np.float32)[None]
    found = np.where(flat <= QUERIES, flat, 0)
    panoptic = Panoptic(found[None], numbers + 1, np.ones((1, QUERIES), bool), labels, scores)
    result = Result(None, None, panoptic, Instances(numbers, labels, scores, packed))
    for task, name in (("panoptic", "rq"), ("instance", "AR100")):
        scorer = TASKS[task](source.classes)
        tracemalloc.start()
        scorer.update(truth, result, 0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 0.25 * COUNT * flat.size  # bytes of a mask for each
        recall = QUERIES / COUNT
        expected = recall / (0.5 + 0.5 * recall) if task == "panoptic" else recall
        assert scorer.summary()[name] == pytest.approx(100 * expected, rel=0.01)
    drawn = visualize.truth_and_prediction(
        np.zeros((*SIZE, 3), np.uint8), (flat, example.labels), (found, labels[0]), source.classes
    )
    assert drawn.shape[1] >= 3 * SIZE[1]
