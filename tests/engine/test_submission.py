"""Result files: official tools read them, they have the publishers' numbers, and they are complete or absent."""

import dataclasses
import errno
import json
import pathlib

import numpy as np
import pytest
from hotcoco.panoptic import pq_compute
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskformer_jax import catalog
from maskformer_jax.engine import submission
from maskformer_jax.engine.scoring import TASKS
from maskformer_jax.engine.submission import Submission
from maskformer_jax.errors import UserError
from maskformer_jax.inference import Instances, Panoptic, Result
from maskformer_jax.input_pipeline import schema
from maskformer_jax.input_pipeline.sources import open_source
from maskformer_jax.metrics.average_precision import NAMES
from maskformer_jax.types import GroundTruth
from tests.engine.test_scoring import CLASSES, SIZE, answer, random_image, truth
from tests.engine.writing_hosts import IMAGES, write
from tests.processes import run_together


def image_of(segment_map, labels, image_id="x", is_crowd=None):
    area = np.bincount(segment_map.ravel(), minlength=len(labels) + 1)[1:]
    crowd = np.zeros(len(labels), bool) if is_crowd is None else is_crowd
    return GroundTruth(image_id, segment_map[None], segment_map, np.array(labels, int), crowd, area)


def perfect(image, dtype=np.int32):
    """The result of a model that predicts the ground truth, on a larger canvas, with twice as many queries."""
    count = len(image.labels)
    numbers, leads = np.arange(1, count + 1), np.ones(count, bool)
    segment_id, leads = np.append(numbers, 0 * numbers)[None], np.append(leads, ~leads)[None]
    label, score = np.tile(image.labels, 2)[None], np.linspace(0.9, 0.7, 2 * count, dtype=np.float32)[None]
    id_map = np.pad(image.segment_map.astype(dtype), [(0, 9), (0, 3)], constant_values=count + 1)
    class_map = np.append(0, image.labels)[id_map % (count + 1)]
    no_mask = np.zeros((1, 0, *id_map.shape), np.uint8)
    instances = Instances(*np.zeros((3, 1, 0), int), no_mask)
    return Result(class_map[None], None, Panoptic(id_map[None], segment_id, leads, label, score), instances)


def save(folder, tasks, classes, images, coco_ids=None):
    results = Submission(str(folder), tasks, classes, coco_ids)
    for image, found in images:
        results.add(image, found, 0)
    results.finish()


def read(path):
    return json.loads(path.read_text())


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def stored(folder):
    """The files of a folder, keyed by relative path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def eval_images(name, folder, tmp_path):
    """A dataset made from a publisher's files, and the ground truth of its validation images."""
    source = open_source(name, str(folder), str(tmp_path / "tfds"))
    images = []
    for index in range(source.size("validation")):
        example = source.example("validation", index)
        planes = schema.decode_maps(example.segment_maps)
        flat = schema.flatten_planes(planes, example.area)
        images.append(GroundTruth(example.image_id, planes, flat, example.labels, example.is_crowd, example.area))
    return source, images


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32])
def test_panoptic_files_of_the_ground_truth_score_100_with_cocos_files(shared_data, tmp_path, dtype):
    root = shared_data / "coco_panoptic"
    if not root.is_dir():
        pytest.skip(f"no {root}")
    source, images = eval_images("coco_panoptic", root, tmp_path)
    # A perfect model does not predict crowds: their pixels are void.
    seen = []
    for image in images:
        kept = np.flatnonzero(~image.is_crowd)
        number = np.zeros(len(image.labels) + 1, int)
        number[kept + 1] = np.arange(1, len(kept) + 1)
        seen.append((image, perfect(image_of(number[image.segment_map], image.labels[kept]), dtype)))
    coco_ids = source.coco_ids("validation")
    save(tmp_path / "out", ["panoptic"], source.classes, seen, coco_ids)

    true = root / "annotations" / "panoptic_val2017.json"
    found = tmp_path / "out" / "panoptic.json"
    official = pq_compute(str(true), str(found), str(true.with_suffix("")), str(found.with_suffix("")))
    for group in ("All", "Things", "Stuff"):
        assert official[group]["pq"] == pytest.approx(1.0, abs=1e-12)
    true, found = read(true), read(found)
    names = {category["id"]: (category["name"], category["isthing"]) for category in true["categories"]}
    assert {category["id"]: (category["name"], category["isthing"]) for category in found["categories"]} == names
    for annotation in found["annotations"]:
        (expected,) = [entry for entry in true["annotations"] if entry["image_id"] == annotation["image_id"]]
        assert type(annotation["image_id"]) is int
        assert annotation["file_name"] == expected["file_name"]
        rows = sorted((entry["category_id"], entry["area"]) for entry in annotation["segments_info"])
        things = [entry for entry in expected["segments_info"] if not entry["iscrowd"]]
        assert rows == sorted((entry["category_id"], entry["area"]) for entry in things)


def test_panoptic_files_hold_void_and_many_segments_but_no_invisible_ones(tmp_path):
    segment_map = np.arange(700).reshape(20, 35)
    segment_map[segment_map == 300] = 0
    image = image_of(segment_map, np.arange(699) % 3)
    save(tmp_path / "out", ["panoptic"], CLASSES, [(image, perfect(image))])
    values = read(tmp_path / "out" / "panoptic.json")
    (annotation,) = values["annotations"]
    assert (annotation["image_id"], annotation["file_name"]) == ("x", "x.png")
    colors = pixels(tmp_path / "out" / "panoptic" / "x.png")
    np.testing.assert_array_equal(colors.astype(int) @ (1, 256, 65536), segment_map)
    assert [entry["id"] for entry in annotation["segments_info"]] == [*range(1, 300), *range(301, 700)]
    assert all(entry["area"] == 1 for entry in annotation["segments_info"])
    assert [entry["isthing"] for entry in values["categories"]] == [1, 1, 0]


def test_an_image_without_segments_is_listed(tmp_path):
    image = image_of(np.zeros((4, 5), int), [])
    save(tmp_path / "out", TASKS, CLASSES, [(image, perfect(image))])
    assert read(tmp_path / "out" / "panoptic.json")["annotations"][0]["segments_info"] == []
    assert not pixels(tmp_path / "out" / "panoptic" / "x.png").any()
    assert read(tmp_path / "out" / "instances.json") == []


def test_instances_score_the_same_in_the_official_tool(tmp_path):
    classes = dataclasses.replace(CLASSES, ids=(18, 3, 7))
    images = [random_image(number) for number in range(12)]
    coco_ids = {image.image_id: 1000 - number for number, (image, _) in enumerate(images)}
    save(tmp_path / "out", ["instance"], classes, images, coco_ids)

    annotations = []
    for image, _ in images:
        for position, label in enumerate(image.labels):
            if classes.is_thing[label]:
                mask = (image.segment_maps == position + 1).any(axis=0)
                annotation = {"id": len(annotations) + 1, "image_id": coco_ids[image.image_id], "iscrowd": 0}
                annotation |= {"category_id": classes.ids[label], "area": int(image.area[position])}
                annotations.append({**annotation, "segmentation": coco_mask.encode(np.asfortranarray(mask))})
    true = COCO()
    true.dataset = {
        "info": {},
        "images": [{"id": coco_id, "height": SIZE[0], "width": SIZE[1]} for coco_id in coco_ids.values()],
        "annotations": annotations,
        "categories": [{"id": number} for number in classes.ids],
    }
    true.createIndex()
    official = COCOeval(true, true.loadRes(str(tmp_path / "out" / "instances.json")), "segm")
    official.evaluate()
    official.accumulate()
    official.summarize()

    scorer = TASKS["instance"](classes)
    for image, found in images:
        scorer.update(image, found, 0)
    ours = scorer.summary()
    assert 5 < ours["AP"] < 95
    for name, value in zip(NAMES, official.stats, strict=True):
        expected = np.nan if value == -1 else 100 * value
        assert ours[name] == pytest.approx(expected, abs=1e-9, nan_ok=True), name


def test_instances_keep_their_scores_and_those_with_zero_are_omitted(tmp_path):
    masks, image = truth()
    found = answer(masks, image)
    score = np.array([[0.7, 1e-7, 0]], np.float32)
    found = dataclasses.replace(found, instances=dataclasses.replace(found.instances, score=score))
    save(tmp_path / "out", ["instance"], CLASSES, [(image, found)])
    entries = read(tmp_path / "out" / "instances.json")
    assert [np.float32(entry["score"]) for entry in entries] == [np.float32(0.7), np.float32(1e-7)]
    assert all(set(entry) == {"image_id", "category_id", "segmentation", "score"} for entry in entries)
    for entry, mask in zip(entries, masks, strict=False):
        np.testing.assert_array_equal(coco_mask.decode(entry["segmentation"]), mask)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("cityscapes_semantic", {0: 7, 10: 23, 18: 33}),
        ("cityscapes_panoptic", {0: 7, 13: 26}),
        ("ade20k", {0: 1, 149: 150}),
        ("ade20k_panoptic", {0: 1, 149: 150}),
        ("ade20k_full", {0: 0, 846: 846}),
        ("coco_panoptic", {0: 1, 79: 90, 132: 200}),
        ("coco_stuff", {0: 1, 170: 182}),
        ("mapillary", {64: 64}),
    ],
)
def test_semantic_files_hold_the_publishers_values(tmp_path, name, values):
    classes = catalog.load(name)
    labels = np.arange(len(classes))
    image = image_of((labels + 1)[:, None].repeat(2, 1), labels)
    save(tmp_path / "out", ["semantic"], classes, [(image, perfect(image))])
    found = pixels(tmp_path / "out" / "semantic" / "x.png")
    assert found.shape == (len(classes), 2)
    assert found.dtype == (np.uint16 if name == "ade20k_full" else np.uint8)
    assert {label: int(found[label, 0]) for label in values} == values


@pytest.mark.parametrize(
    ("name", "folder", "labels"),
    [
        ("cityscapes_panoptic", "cityscapes", "gtFine/val/frankfurt/{}_gtFine_labelIds.png"),
        ("ade20k", "ade20k/ADEChallengeData2016", "annotations/validation/{}.png"),
    ],
)
def test_semantic_files_of_the_ground_truth_equal_the_publishers_label_files(
    shared_data, tmp_path, name, folder, labels
):
    root = shared_data / folder
    if not root.is_dir():
        pytest.skip(f"no {root}")
    source, images = eval_images(name, root, tmp_path)
    save(tmp_path / "out", ["semantic"], source.classes, [(image, perfect(image)) for image in images])
    for image in images:
        published = pixels(root / labels.format(image.image_id))
        found = pixels(tmp_path / "out" / "semantic" / f"{image.image_id}.png")
        labeled = image.segment_map > 0
        np.testing.assert_array_equal(found[labeled], published[labeled])
        assert labeled.mean() > 0.5


def test_values_that_no_label_image_holds_are_named(tmp_path):
    classes = dataclasses.replace(CLASSES, values=(1, 70_000, 2))
    with pytest.raises(UserError, match=r'number 70000.*"values"'):
        Submission(str(tmp_path / "out"), ["semantic"], classes)
    assert not (tmp_path / "out").exists()


def test_unusual_image_ids_have_distinct_files_in_the_folder(tmp_path):
    ids = ["a", "a/b", "a_b", "a.png/b", "a.png", "../a", "a/../b", "/a", "a//b", "..", "", "Zürich 1 #2", "5%", "5%25"]
    images = [image_of(np.full((2, 3), 1), [number % 3], image_id) for number, image_id in enumerate(ids)]
    save(tmp_path / "in" / "out", ["panoptic", "semantic"], CLASSES, [(image, perfect(image)) for image in images])
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["out"]
    annotations = read(tmp_path / "in" / "out" / "panoptic.json")["annotations"]
    assert [annotation["image_id"] for annotation in annotations] == ids
    names = [annotation["file_name"] for annotation in annotations]
    assert len(set(names)) == len(ids)
    assert names[1:3] == ["a/b.png", "a_b.png"]
    for kind in ("panoptic", "semantic"):
        assert set(stored(tmp_path / "in" / "out" / kind)) == set(names)
    for number, name in enumerate(names):
        assert (pixels(tmp_path / "in" / "out" / "semantic" / name) == number % 3).all()


def test_a_killed_evaluation_leaves_no_results_and_does_not_touch_older_ones(tmp_path):
    def killed():
        results = Submission(str(folder), TASKS, CLASSES)
        results.add(*random_image(7), 0)

    folder = tmp_path / "results"
    killed()
    assert not folder.exists()
    write(str(folder), range(3))
    older = stored(folder)
    assert len(older) == 2 + 2 * 3
    killed()
    assert stored(folder) == older
    write(str(folder), range(2))
    assert set(older) - set(stored(folder)) == {"panoptic/2.png", "semantic/2.png"}
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_several_processes_write_one_complete_result(tmp_path):
    write(str(tmp_path / "one" / "results"), range(IMAGES))
    folder = tmp_path / "several" / "results"
    names = run_together("tests.engine.writing_hosts", 2, "2", str(folder), timeout=300)
    assert names == [["results"]] * 2
    one, several = stored(tmp_path / "one" / "results"), stored(folder)
    assert set(one) == set(several)
    for name, data in one.items():
        if name.endswith(".png"):
            assert several[name] == data

    def entries(files, name):
        values = json.loads(files[name])
        return sorted(values["annotations"] if name == "panoptic.json" else values, key=lambda entry: entry["image_id"])

    for name in ("panoptic.json", "instances.json"):
        assert entries(several, name) == entries(one, name)
    assert len(entries(one, "panoptic.json")) == IMAGES


def test_hosts_that_do_not_share_a_folder_get_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    alone = {
        "sync_global_devices": lambda name: None,
        "broadcast_one_to_all": lambda values: values,
        "process_allgather": lambda values: values[None],
    }
    for name, function in alone.items():
        monkeypatch.setattr(f"jax.experimental.multihost_utils.{name}", function)
    with pytest.raises(UserError, match=r"instances\.json\.1 is missing: 2 hosts"):
        save(tmp_path / "out", ["instance"], CLASSES, [random_image(0)])
    assert not pathlib.Path(tmp_path / "out").exists()


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_a_full_disk_does_not_stop_the_scores_and_keeps_the_older_files(tmp_path, monkeypatch, task):
    """The error comes when the scores are there, and names the reason."""
    image, found = random_image(0)
    save(tmp_path / "results", [task], CLASSES, [(image, found)])
    before = sorted(tmp_path.rglob("*"))
    results = Submission(str(tmp_path / "results"), [task], CLASSES)

    def refuse(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(submission, "write_png" if task == "panoptic" else "run_lengths_of_crop", refuse)
    results.add(image, found, 0)
    monkeypatch.undo()
    results.add(image, found, 0)
    with pytest.raises(UserError, match=r"results was not replaced, .*: the disk is full"):
        results.finish()
    assert sorted(path for path in tmp_path.rglob("*") if ".partial" not in str(path)) == before


def test_a_folder_that_cannot_be_made_is_an_error_before_any_work(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"results.partial cannot be written: a part of its path is a file"):
        Submission(str(tmp_path / "file" / "results"), ["panoptic"], CLASSES)


def test_a_folder_with_files_of_another_origin_is_not_replaced(tmp_path):
    folder = tmp_path / "results"
    save(folder, TASKS, CLASSES, [])
    save(folder, TASKS, CLASSES, [])
    (folder / "notes.txt").write_text("precious")
    with pytest.raises(UserError, match=r"notes\.txt is not of an earlier evaluation.* Move it away"):
        Submission(str(folder), TASKS, CLASSES)
    assert (folder / "notes.txt").read_text() == "precious"
