"""Builders of published datasets: on real samples, on small trees of the same layout, and on bad files."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from maskformer_jax import catalog
from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline.loader import _decode
from maskformer_jax.input_pipeline.sources import open_source


def read(name, folder, tmp_path, split="validation"):
    """The examples of a split by image id: (image, segment map, segments as a list)."""
    source = open_source(name, str(folder), str(tmp_path / "tfds"))
    assert source.classes == catalog.load(name)
    examples = {}
    for example in source.examples(split):
        image, segment_map = _decode(example)
        rows = {key: value.numpy().tolist() for key, value in example["segments"].items()}
        segments = [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]
        examples[example["image_id"].numpy().decode()] = image.numpy(), segment_map.numpy(), segments
    assert source.max_segments(split) == max(len(segments) for _, _, segments in examples.values())
    return examples


def class_map(segment_map, segments):
    return np.array([-1] + [segment["label"] for segment in segments])[segment_map]


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_ade20k_samples(shared_data, tmp_path):
    root = shared_data / "ade20k" / "ADEChallengeData2016"
    examples = read("ade20k", root, tmp_path)
    assert len(examples) == 3
    for image_id, (image, segment_map, segments) in examples.items():
        labels = pixels(root / "annotations" / "validation" / f"{image_id}.png")
        np.testing.assert_array_equal(class_map(segment_map, segments), labels - 1)
        np.testing.assert_array_equal(image, pixels(root / "images" / "validation" / f"{image_id}.jpg"))
        for segment in segments:
            assert segment["area"] == np.sum(labels == segment["label"] + 1)
            assert not segment["is_crowd"]


def test_cityscapes_sample_has_the_official_train_ids(shared_data, tmp_path):
    root = shared_data / "cityscapes"
    examples = read("cityscapes", root, tmp_path)
    ((image_id, (_, segment_map, segments)),) = examples.items()
    train_ids = pixels(root / "gtFine" / "val" / "frankfurt" / f"{image_id}_gtFine_labelTrainIds.png")
    np.testing.assert_array_equal(class_map(segment_map, segments), np.where(train_ids == 255, -1, train_ids))


def test_coco_panoptic_samples_have_every_area_box_and_crowd(shared_data, tmp_path):
    root = shared_data / "coco_panoptic"
    examples = read("coco_panoptic", root, tmp_path)
    truth = json.loads((root / "annotations" / "panoptic_val2017.json").read_text())
    names = {category["id"]: category["name"] for category in truth["categories"]}
    crowds = 0
    for annotation in truth["annotations"]:
        _, segment_map, segments = examples[annotation["file_name"].removesuffix(".png")]
        assert len(segments) == len(annotation["segments_info"])
        for number, (segment, info) in enumerate(zip(segments, annotation["segments_info"], strict=True), start=1):
            rows, columns = np.nonzero(segment_map == number)
            assert len(rows) == segment["area"] == info["area"]
            x, y, width, height = info["bbox"]
            assert (columns.min(), rows.min()) == (x, y)
            assert (columns.max() + 1 - x, rows.max() + 1 - y) == (width, height)
            assert catalog.load("coco_panoptic").names[segment["label"]] == names[info["category_id"]]
            assert segment["is_crowd"] == bool(info["iscrowd"])
            crowds += info["iscrowd"]
        colors = pixels(root / "annotations" / "panoptic_val2017" / annotation["file_name"])
        np.testing.assert_array_equal(segment_map == 0, ~colors.any(axis=-1))
    assert crowds > 0


def write(path, values, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, np.uint8))
    if mode == "P":
        image.putpalette([value for index in range(256) for value in (index, 255 - index, 0)])
    image.save(path)


def mapillary_tree(root):
    for folder, shift in (("training", 0), ("validation", 40)):
        write(root / folder / "images" / "a.jpg", np.zeros((4, 6, 3)))
        write(root / folder / "labels" / "a.png", np.arange(24).reshape(4, 6) + 2 + shift, mode="P")
    return root


def ade20k_tree(root):
    for folder in ("training", "validation"):
        write(root / "images" / folder / "ADE_1.jpg", np.zeros((10, 15, 3)))
        write(root / "annotations" / folder / "ADE_1.png", np.arange(150).reshape(10, 15) + 1)
    return root


def test_mapillary_palette_indices_are_classes_and_65_is_void(tmp_path):
    root = mapillary_tree(tmp_path / "vistas")
    _, segment_map, segments = read("mapillary", root, tmp_path)["a"]
    expected = np.arange(24).reshape(4, 6) + 42
    np.testing.assert_array_equal(class_map(segment_map, segments), np.where(expected == 65, -1, expected))
    _, segment_map, segments = read("mapillary", root, tmp_path, "train")["a"]
    np.testing.assert_array_equal(class_map(segment_map, segments), np.arange(24).reshape(4, 6) + 2)


def test_ade20k_has_all_150_classes_and_other_is_void(tmp_path):
    root = ade20k_tree(tmp_path / "ade")
    write(root / "annotations" / "training" / "ADE_1.png", np.maximum(np.arange(150).reshape(10, 15) - 1, 0))
    _, segment_map, segments = read("ade20k", root, tmp_path)["ADE_1"]
    assert [segment["label"] for segment in segments] == list(range(150))
    _, segment_map, segments = read("ade20k", root, tmp_path, "train")["ADE_1"]
    assert np.sum(segment_map == 0) == 2
    assert [segment["label"] for segment in segments] == list(range(148))


BUILDING, SKY, BED, PERSON = 1, 2, 7, 12  # classes; bed is the first kind of thing, and person the fourth


def ade20k_panoptic_tree(root, instance=(4, 2)):
    """Building on the left and sky on the right; over the building two persons, and a bed without an instance."""
    labels = np.full((8, 10), BUILDING + 1)
    labels[:, 5:] = SKY + 1
    labels[0, :] = 0
    labels[6:, :2] = BED + 1
    labels[1:3, 1:3] = PERSON + 1
    instances = np.zeros((8, 10, 3))
    instances[1:3, 1:3] = (4, 1, 0)
    instances[2:5, 2:4] = (*instance, 0)
    write(root / "images" / "validation" / "a.jpg", np.zeros((8, 10, 3)))
    write(root / "annotations" / "validation" / "a.png", labels)
    write(root / "annotations_instance" / "validation" / "a.png", instances)
    return root


def test_ade20k_panoptic_pastes_things_over_stuff(tmp_path):
    root = ade20k_panoptic_tree(tmp_path / "ade")
    _, segment_map, segments = read("ade20k_panoptic", root, tmp_path)["a"]
    assert [segment["label"] for segment in segments] == [BUILDING, SKY, PERSON, PERSON]
    # Building has 7 x 5 pixels, less the labels of person and bed; the second person covers 5 of them as well.
    assert [segment["area"] for segment in segments] == [7 * 5 - 4 - 4, 7 * 5, 3, 6]
    assert [int(np.sum(segment_map == number)) for number in (1, 2, 3, 4)] == [7 * 5 - 4 - 4 - 5, 7 * 5, 3, 6]
    assert not segment_map[0].any()
    assert not segment_map[6:, :2].any()


def test_an_ade20k_instance_of_two_kinds_is_named(tmp_path):
    root = ade20k_panoptic_tree(tmp_path / "ade", instance=(7, 1))
    with pytest.raises(UserError, match=r"annotations_instance/validation/a\.png: instance 1 is of the kinds \[4, 7\]"):
        open_source("ade20k_panoptic", str(root), str(tmp_path / "tfds"))


def test_a_dataset_once_made_needs_its_files_no_more(tmp_path):
    root = ade20k_tree(tmp_path / "ade")
    open_source("ade20k", str(root), str(tmp_path / "tfds"))
    shutil.rmtree(root)
    assert open_source("ade20k", "", str(tmp_path / "tfds")).size("validation") == 1


def out_of_range(root):
    write(root / "annotations" / "training" / "ADE_1.png", np.full((10, 15), 151))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (out_of_range, ["annotations/training/ADE_1.png has class 150", "150 classes"]),
        (lambda root: (root / "annotations/training/ADE_1.png").unlink(), ["training/ADE_1.png is missing"]),
        (lambda root: write(root / "images/training/ADE_1.jpg", np.zeros((10, 14, 3))), ["14x10", "15x10"]),
        (lambda root: (root / "images/training/ADE_1.jpg").write_bytes(b"no"), ["ADE_1.jpg: not a readable image"]),
        (lambda root: shutil.rmtree(root / "images"), ["images/training", "ADEChallengeData2016.zip"]),
    ],
)
def test_bad_files_are_named_and_nothing_is_left_behind(tmp_path, spoil, words):
    root = ade20k_tree(tmp_path / "ade")
    spoil(root)
    with pytest.raises(UserError) as error:
        open_source("ade20k", str(root), str(tmp_path / "tfds"))
    for word in words:
        assert word in str(error.value)
    assert not (tmp_path / "tfds" / "ade20k" / "1.0.0").exists()


def test_without_files_it_says_which(tmp_path):
    with pytest.raises(UserError, match=r"--config\.data\.dir=FOLDER\. Unpack leftImg8bit_trainvaltest"):
        open_source("cityscapes", "", str(tmp_path / "tfds"))


def test_a_coco_image_that_is_missing_is_named(shared_data, tmp_path):
    root = tmp_path / "coco"
    shutil.copytree(shared_data / "coco_panoptic" / "annotations", root / "annotations")
    with pytest.raises(UserError, match=r"val2017/\d+\.jpg is missing, but there are labels for it: .*\.png"):
        open_source("coco_panoptic", str(root), str(tmp_path / "tfds"))


def test_coco_ids_that_no_annotation_lists_are_named(shared_data, tmp_path):
    root = tmp_path / "coco"
    shutil.copytree(shared_data / "coco_panoptic", root, copy_function=shutil.copyfile)
    path = sorted((root / "annotations" / "panoptic_val2017").iterdir())[0]
    colors = pixels(path)
    colors[0, 0] = (9, 9, 9)
    path.chmod(0o644)
    write(path, colors)
    with pytest.raises(UserError, match=rf"{path.name} has the segment ids \[592137\]"):
        open_source("coco_panoptic", str(root), str(tmp_path / "tfds"))


def test_the_kinds_of_ade20k_things_are_the_published_mapping(shared_data):
    lines = (shared_data / "metadata" / "categoryMapping.txt").read_text().splitlines()[1:]
    mapping = {}
    for line in lines:
        kind, label = (field.split(":")[0] for field in line.split()[:2])
        mapping[int(kind)] = int(label) - 1
    things = np.flatnonzero(catalog.load("ade20k_panoptic").is_thing)
    assert mapping == {kind: label for kind, label in enumerate(things.tolist(), start=1)}
