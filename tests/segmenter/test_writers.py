"""Results in the formats of annotation tools: read again by the library of each format, and as training data."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO

from maskformer_jax.catalog import Classes
from maskformer_jax.errors import UserError
from maskformer_jax.files import writing
from maskformer_jax.input_pipeline import schema
from maskformer_jax.input_pipeline.sources import open_source
from maskformer_jax.segmenter.results import InstanceSegmentation, Segmentation
from maskformer_jax.segmenter.writers import WRITERS, Picture, open_writer
from tests.files.test_outlines import RING

# Stuff stands between things, ids and values have gaps, and names need quotes in YAML.
CLASSES = Classes(
    names=("no", "grass: green", "Katze äß"),
    is_thing=(True, False, True),
    colors=((1, 2, 3), (4, 5, 6), (7, 8, 9)),
    ids=(7, 90, 12),
    values=(10, 30, 20),
)
SIZE = (24, 31)


def picture(folder, name, suffix=".png"):
    pixels = np.random.default_rng(len(name)).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    path = folder / f"{name}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return Picture(name, np.asarray(Image.open(path)), str(path))


def instances():
    """A thing with a hole, one of three parts that lies over it, one of a single pixel, and one without a pixel."""
    masks = np.zeros((4, *SIZE), bool)
    masks[0, 3:10, 5:13] = RING
    masks[1, 8:12, 10:20] = masks[1, 15:18, 2:4] = masks[1, 23, 30] = True
    masks[2, 0, 0] = True
    return InstanceSegmentation(masks, np.array([2, 0, 2, 0]), np.array([0.9, 0.87654, 0.6, 0.5]), CLASSES)


def segments():
    """Stuff around a thing, with void."""
    id_map = np.ones(SIZE, np.uint16)
    id_map[5:9, 3:20], id_map[:2] = 2, 0
    return Segmentation(id_map, np.array([1, 2]), np.array([0.75, 0.5]), CLASSES)


NOTHING = InstanceSegmentation(np.zeros((0, *SIZE), bool), np.zeros(0, int), np.zeros(0), CLASSES)


def write(tmp_path, format, results, **options):
    """A dataset of some results, and the pictures, the second of which is in a folder."""
    names = ["one", "below/images/two", "three"]
    pictures = [
        picture(tmp_path / "photos", name, suffix)
        for name, suffix in zip(names, (".png", ".jpg", ".webp"), strict=True)
    ]
    with open_writer(tmp_path / "out", format, CLASSES, **options) as writer:
        for shown, result in zip(pictures, results, strict=False):
            writer.add(shown, result)
    return tmp_path / "out", pictures


def train(name, folder, tmp_path, split="train"):
    """The classes and examples of a folder of training data, keyed by the last part of their ids."""
    source = open_source(name, str(folder), str(tmp_path / "tfds"))
    examples = (source.example(split, index) for index in range(source.size(split)))
    return source.classes, {example.image_id.rpartition("/")[2]: example for example in examples}


def check_segments(example, classes, result):
    """The segments of training data are those of a result, to the pixel."""
    maps = schema.decode_maps(example.segment_maps)
    found = [
        (classes.names[label], (maps == number).any(axis=0).tobytes())
        for number, label in enumerate(example.labels, start=1)
    ]
    if isinstance(result, InstanceSegmentation):
        masks = result.masks
    else:
        masks = result.id_map == np.arange(1, len(result.labels) + 1)[:, None, None]
    expected = [
        (CLASSES.names[label], mask.tobytes()) for label, mask in zip(result.labels, masks, strict=True) if mask.any()
    ]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("format", ["coco", "coco_rle"])
def test_coco_instances_are_those_of_pycocotools_and_of_training(tmp_path, format):
    out, pictures = write(tmp_path, format, [instances(), NOTHING, segments()])
    coco = COCO(out / "annotations" / "instances_train.json")
    assert {category["id"]: category["name"] for category in coco.cats.values()} == dict(
        zip(CLASSES.ids, CLASSES.names, strict=True)
    )
    for image, result in zip(coco.dataset["images"], (instances(), NOTHING, segments()), strict=True):
        annotations = coco.imgToAnns[image["id"]]
        records = [record for record in result.segments() if record["area"]]
        assert [(a["category_id"], a["score"], a["area"]) for a in annotations] == [
            (CLASSES.ids[record["class"]], record["score"], record["area"]) for record in records
        ]
        for annotation, record in zip(annotations, records, strict=True):
            mask = coco.annToMask(annotation).astype(bool)
            number = record["id"]
            np.testing.assert_array_equal(
                mask, result.masks[number - 1] if hasattr(result, "masks") else result.id_map == number
            )
            x0, y0, x1, y1 = record["box"]
            assert annotation["bbox"] == [x0, y0, x1 - x0, y1 - y0]
    # Copies are the files themselves.
    names = [image["file_name"] for image in coco.dataset["images"]]
    assert names == ["one.png", "below/images/two.jpg", "three.webp"]
    for name, shown in zip(names, pictures, strict=True):
        assert (out / "images" / "train" / name).read_bytes() == pathlib.Path(shown.file).read_bytes()
    classes, examples = train("coco_format", out, tmp_path)
    assert dict(zip(classes.names, classes.is_thing, strict=True)) == dict(
        zip(CLASSES.names, CLASSES.is_thing, strict=True)
    )
    for name, result in (("one", instances()), ("two", NOTHING), ("three", segments())):
        check_segments(examples[name], classes, result)


def test_coco_panoptic_segments_are_those_of_training(tmp_path):
    out, _ = write(tmp_path, "coco_panoptic", [segments()])
    values = json.loads((out / "annotations" / "panoptic_train.json").read_text())
    assert [(category["name"], category["isthing"]) for category in values["categories"]] == list(
        zip(CLASSES.names, map(int, CLASSES.is_thing), strict=True)
    )
    (annotation,) = values["annotations"]
    colors = np.asarray(Image.open(out / "annotations" / "panoptic_train" / annotation["file_name"]))
    np.testing.assert_array_equal(colors.astype(int) @ (1, 256, 65536), segments().id_map)
    assert annotation["segments_info"][1] == {
        "id": 2, "category_id": 12, "area": 68, "bbox": [3, 5, 17, 4], "iscrowd": 0, "score": 0.5
    }  # fmt: skip
    classes, examples = train("coco_format", out, tmp_path)
    check_segments(examples["one"], classes, segments())


def test_class_pngs_hold_the_values_of_the_classes(tmp_path):
    out, _ = write(tmp_path, "png", [segments()])
    labels = Image.open(out / "labels" / "train" / "one.png")
    assert labels.mode == "L"
    np.testing.assert_array_equal(labels, np.array([255, 30, 20])[segments().id_map])
    classes, examples = train("folder", out, tmp_path)
    assert (classes.names, classes.is_thing, classes.values) == (CLASSES.names, CLASSES.is_thing, CLASSES.values)
    check_segments(examples["one"], classes, segments())


def test_instance_pngs_are_those_of_training(tmp_path):
    out, _ = write(tmp_path, "instance_png", [instances(), NOTHING, segments()])
    folder = out / "instances" / "train"
    for name, result in (("one", instances()), ("below/images/two", NOTHING), ("three", segments())):
        numbers = Image.open(folder / f"{name}.png")
        assert numbers.mode == "L"
        np.testing.assert_array_equal(numbers, result.id_map)
    assert json.loads((folder / "one.json").read_text()) == [
        {"id": 1, "class": CLASSES.names[2], "score": 0.9},
        {"id": 2, "class": CLASSES.names[0], "score": 0.8765},
        {"id": 3, "class": CLASSES.names[2], "score": 0.6},
    ]
    classes, examples = train("instance_pngs", out, tmp_path)
    assert (classes.names, classes.is_thing) == (CLASSES.names, CLASSES.is_thing)
    masks = instances().masks
    assert (masks[0] & masks[1]).any()
    assert masks[0].sum() < masks[1].sum()
    masks[1] &= ~masks[0]  # the smaller one lies on top
    for name, result in (
        ("one", dataclasses.replace(instances(), masks=masks)), ("two", NOTHING), ("three", segments()),
    ):  # fmt: skip
        check_segments(examples[name], classes, result)


def test_instance_pngs_leave_out_what_is_hidden(tmp_path):
    masks = np.zeros((4, *SIZE), bool)
    masks[0, 4:8], masks[1, 4:6], masks[2, 6:8], masks[3, 20:] = True, True, True, True
    result = InstanceSegmentation(masks, np.array([0, 2, 2, 0]), np.full(4, 0.5), CLASSES)
    out, _ = write(tmp_path, "instance_png", [result])
    entries = json.loads((out / "instances" / "train" / "one.json").read_text())
    assert [entry["id"] for entry in entries] == [2, 3, 4]
    classes, examples = train("instance_pngs", out, tmp_path)
    masks[0] = False
    check_segments(examples["one"], classes, result)


@pytest.mark.parametrize("count", [300, 70_000])
def test_instance_pngs_hold_any_number_of_instances(tmp_path, count):
    id_map = np.arange(1, 90_001).reshape(300, 300)
    id_map = np.where(id_map > count, 0, id_map).astype(np.uint32)
    result = Segmentation(id_map, np.full(count, 2), np.ones(count), CLASSES)
    with open_writer(tmp_path / "out", "instance_png", CLASSES) as writer:
        writer.add(Picture("a", np.zeros((300, 300, 3), np.uint8)), result)
    pixels = np.asarray(Image.open(tmp_path / "out" / "instances" / "train" / "a.png")).astype(int)
    np.testing.assert_array_equal(pixels @ (1, 256, 65536) if pixels.ndim == 3 else pixels, id_map)


def test_yolo_polygons_are_those_of_training(tmp_path):
    out, _ = write(tmp_path, "yolo", [instances(), NOTHING, segments()])
    config = yaml.safe_load((out / "data.yaml").read_text())
    assert config == {"train": "images/train", "names": dict(enumerate(CLASSES.names))}
    files = {str(path.relative_to(out / "labels" / "train")): path for path in out.rglob("*.txt")}
    # Readers look for the labels of images/a/images/b.jpg elsewhere.
    assert sorted(files) == ["below/images_/two.txt", "one.txt", "three.txt"]
    assert [line.split()[0] for line in files["one.txt"].read_text().splitlines()] == ["2", "0", "2"]
    assert files["below/images_/two.txt"].read_text() == ""  # an image without objects
    classes, examples = train("yolo", out, tmp_path)
    assert classes.names == CLASSES.names
    for name, result in (("one", instances()), ("two", NOTHING), ("three", segments())):
        check_segments(examples[name], classes, result)


@pytest.mark.parametrize(
    ("change", "values", "void"),
    [
        ({"values": (0, 255, 1)}, [0, 1, 2], 255),  # void has the value of a class
        ({"values": (0, -1, 70_000)}, [0, 1, 2], 255),
        ({"ignore_index": 65535}, [10, 30, 20], 65535),
    ],
)
def test_class_pngs_have_values_that_pngs_hold(tmp_path, change, values, void):
    classes = Classes(**{**vars(CLASSES), **change})
    with open_writer(tmp_path, "png", classes) as writer:
        writer.add(Picture("a", np.zeros((*SIZE, 3), np.uint8)), segments())
    np.testing.assert_array_equal(
        Image.open(tmp_path / "labels" / "train" / "a.png"),
        np.array([void, *np.array(values)[[1, 2]]])[segments().id_map],
    )
    described = json.loads((tmp_path / "classes.json").read_text())
    assert (described["values"], described["ignore_index"]) == (values, void)
    assert (tmp_path / "images" / "train" / "a.png").exists()  # of the pixels, for there is no file


def test_a_dataset_takes_several_splits_and_each_once(tmp_path):
    for format in ("yolo", "png", "instance_png", "coco", "coco_panoptic"):
        folder = tmp_path / format
        for split in ("val", "train"):
            write(folder, format, [segments()], split=split)
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        with pytest.raises(UserError, match=r"exists\. Nothing was changed\. Use another --out or --split"):
            write(folder, format, [segments()], split="val")
        if format in ("yolo", "png", "instance_png"):
            with pytest.raises(UserError, match=r"exists with other classes\. Nothing was changed"):
                open_writer(folder / "out", format, Classes.from_dict({"names": ["a"]}, "test"), split="test")
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_annotations_may_be_written_beside_the_images(tmp_path):
    """As a first labelling of images that are where the format wants them."""
    photo = picture(tmp_path / "images" / "train", "one")
    for format in ("coco", "yolo"):
        with open_writer(tmp_path, format, CLASSES, copy_images=False) as writer:
            writer.add(photo, instances())
    assert [path.name for path in (tmp_path / "images").rglob("*.*")] == ["one.png"]
    classes, examples = train("coco_format", tmp_path, tmp_path)
    check_segments(examples["one"], classes, instances())


def test_what_was_added_is_complete_however_the_block_ends(tmp_path):
    for error in (KeyboardInterrupt, writing.WriteError("full", disk=True)):
        out = tmp_path / type(error).__name__

        def end_early(out=out, error=error):
            with open_writer(out, "coco", CLASSES) as writer:
                writer.add(picture(tmp_path, "a"), instances())
                raise error

        with pytest.raises((KeyboardInterrupt, writing.WriteError)):
            end_early()
        values = json.loads((out / "annotations" / "instances_train.json").read_text())
        assert (len(values["images"]), len(values["annotations"])) == (1, 3)


def test_nothing_is_written_where_no_picture_is(tmp_path):
    for format in WRITERS:
        with open_writer(tmp_path / "out", format, CLASSES):
            pass
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", ["coco_panoptic", "png"])
def test_formats_without_overlaps_refuse_instances(tmp_path, format):
    with pytest.raises(UserError, match="instances may overlap"), open_writer(tmp_path, format, CLASSES) as writer:
        writer.add(picture(tmp_path, "a"), instances())


def test_two_pictures_of_a_name_are_refused(tmp_path):
    with open_writer(tmp_path / "out", "coco", CLASSES) as writer:
        writer.add(picture(tmp_path, "a"), NOTHING)
        with pytest.raises(UserError, match=r"a\.jpg: an image of the name a was already written; rename it"):
            writer.add(picture(tmp_path, "a", ".jpg"), NOTHING)


def test_names_are_those_that_every_tool_reads(tmp_path):
    with open_writer(tmp_path / "out", "coco", CLASSES) as writer:
        writer.add(Picture("stra\udcdfe\\\n", np.zeros((*SIZE, 3), np.uint8)), instances())
    assert [path.name for path in (tmp_path / "out").rglob("*.png")] == ["stra%DFe%5C%0A.png"]
    train("coco_format", tmp_path / "out", tmp_path)


def test_values_that_are_not_allowed_are_named(tmp_path):
    for options, words in (
        ({"format": "voc"}, "format is 'voc'; it must be one of overlay, coco"),
        ({"split": "a/b"}, "split is 'a/b'; it must be a word"),
        ({"tolerance": -1}, "tolerance is -1; it must lie in 0..100"),
    ):
        with pytest.raises(UserError, match=words):
            open_writer(tmp_path, **{"format": "coco", "classes": CLASSES, **options})
