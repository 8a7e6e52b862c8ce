"""Your own files in COCO's format: every layout, and the messages for bad files."""

import json
import shutil
import unicodedata

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline import schema
from maskformer_jax.input_pipeline.augment import Augmentation
from maskformer_jax.input_pipeline.sources import open_source
from maskformer_jax.inspection.findings import Inspection, find_suspicious
from maskformer_jax.inspection.statistics import collect
from tests.input_pipeline.folders import class_map, examples, resave, truncate

# Ids with gaps and out of order; things come before stuff, so the classes are dog, cat, grass.
CATEGORIES = [
    {"id": 90, "name": "cat"},
    {"id": 12, "name": "grass", "isthing": 0},
    {"id": 7, "name": "dog", "isthing": 1},
]
NAMES = ("dog", "cat", "grass")
AUGMENTATION = Augmentation(short_edges=(20,), longest_edge=40, crop=(20, 30))
SIZE = (20, 30)


def open_coco(folder, tmp_path):
    return open_source("coco_format", str(folder), str(tmp_path / "tfds"))


def box(left, top, right, bottom):
    return [[left, top, right, top, right, bottom, left, bottom]]


def annotation(number, image, category, segmentation, **values):
    return {"id": number, "image_id": image, "category_id": category, "segmentation": segmentation, "area": 1, **values}


def instances():
    """Three images: two things that overlap with a crowd, a single thing, and nothing."""
    crowd = {"size": list(SIZE), "counts": [0, 5, 595]}  # down the first column
    return {
        "images": [
            {"id": number, "file_name": f"{number}.jpg", "height": SIZE[0], "width": SIZE[1]} for number in (5, 8, 6)
        ],
        "annotations": [
            annotation(1, 8, 12, box(0, 0, 30, 10), area=300.4),
            annotation(2, 5, 90, box(2, 2, 12, 12), area=100),
            annotation(3, 5, 7, box(4, 4, 8, 8), area=16),
            annotation(4, 5, 90, crowd, iscrowd=1, area=5),
        ],
        "categories": CATEGORIES,
    }


def panoptic():
    """Image 5 with a thing on stuff and void, and image 8 without an annotation. The stated areas are wrong."""
    return {
        "images": instances()["images"][:2],
        "annotations": [
            {
                "image_id": 5,
                "file_name": "5.png",
                "segments_info": [
                    {"id": 70_000, "category_id": 12, "area": 200, "iscrowd": 0},
                    {"id": 3, "category_id": 90, "area": 25, "iscrowd": 1},
                ],
            }
        ],
        "categories": CATEGORIES,
    }


def panoptic_ids():
    ids = np.zeros(SIZE, np.int64)
    ids[:10, :20] = 70_000
    ids[2:7, 3:8] = 3
    return ids


def write_json(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def write_images(folder, values):
    for image in values["images"]:
        path = folder / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((image["height"], image["width"], 3), image["id"], np.uint8)
        Image.fromarray(pixels).save(path)


def write_panoptic(json_path, png_folder, image_folder):
    write_json(json_path, panoptic())
    write_images(image_folder, panoptic())
    png_folder.mkdir(parents=True, exist_ok=True)
    ids = panoptic_ids()
    Image.fromarray(np.dstack([ids % 256, ids // 256 % 256, ids // 65536]).astype(np.uint8)).save(png_folder / "5.png")


@pytest.fixture
def folder(tmp_path):
    """The plain layout, with instances in both splits."""
    root = tmp_path / "mine"
    for split in ("train", "val"):
        write_json(root / "annotations" / f"{split}.json", instances())
        write_images(root / "images" / split, instances())
    return root


@pytest.fixture
def panoptic_folder(tmp_path):
    root = tmp_path / "mine"
    write_panoptic(root / "annotations" / "train.json", root / "annotations" / "train", root / "images" / "train")
    return root


def change(path, edit):
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


def check_instances(source, split):
    assert source.classes.names == NAMES
    assert source.classes.is_thing == (True, True, False)
    found = examples(source, split)
    assert set(found) == {"5", "8", "6"}
    assert (source.max_segments(split), source.max_planes(split)) == (2, 2)  # a crowd is never a target
    assert source.image_size(split, 0) == SIZE

    overlapping = found["5"]
    assert overlapping.labels.tolist() == [1, 0, 1]
    assert overlapping.is_crowd.tolist() == [False, False, True]
    assert overlapping.area.tolist() == [100, 16, 5]
    maps = schema.decode_maps(overlapping.segment_maps)
    masks = [np.any(maps == number, axis=0) for number in (1, 2, 3)]
    expected = np.zeros((3, *SIZE), bool)
    expected[0, 2:12, 2:12] = expected[1, 4:8, 4:8] = expected[2, :5, 0] = True
    np.testing.assert_array_equal(masks, expected)

    assert (found["8"].labels.tolist(), found["8"].area.tolist()) == ([2], [300])
    assert (len(found["6"].labels), schema.decode_maps(found["6"].segment_maps).max()) == (0, 0)


def check_panoptic(source, split):
    assert source.classes.names == NAMES
    found = examples(source, split)
    ids = panoptic_ids()
    np.testing.assert_array_equal(class_map(found["5"]), np.select([ids == 3, ids == 70_000], [1, 2], -1))
    assert (found["5"].is_crowd.tolist(), found["5"].area.tolist()) == ([False, True], [175, 25])
    assert (len(found["8"].labels), schema.decode_maps(found["8"].segment_maps).shape) == (0, (1, *SIZE))


def test_instances_in_the_plain_layout(folder, tmp_path):
    source = open_coco(folder, tmp_path)
    check_instances(source, "train")
    check_instances(source, "val")
    assert examples(source, "val")["5"].image == (folder / "images" / "val" / "5.jpg").read_bytes()


def test_instances_as_coco_names_them(tmp_path):
    root = tmp_path / "coco"
    write_json(root / "annotations" / "instances_train2017.json", instances())
    write_json(root / "annotations" / "captions_train2017.json", {"annotations": []})
    write_images(root / "train2017", instances())
    check_instances(open_coco(root, tmp_path), "train2017")


def test_instances_as_roboflow_exports_them(tmp_path):
    root = tmp_path / "export"
    for split in ("train", "valid"):
        write_json(root / split / "_annotations.coco.json", instances())
        write_images(root / split, instances())
    source = open_coco(root, tmp_path)
    check_instances(source, "train")
    check_instances(source, "valid")


def test_panoptic_in_the_plain_layout(panoptic_folder, tmp_path):
    check_panoptic(open_coco(panoptic_folder, tmp_path), "train")


def test_panoptic_as_coco_names_it(tmp_path):
    root = tmp_path / "coco"
    annotations = root / "annotations"
    write_panoptic(annotations / "panoptic_val2017.json", annotations / "panoptic_val2017", root / "val2017")
    check_panoptic(open_coco(root, tmp_path), "val2017")


def test_file_names_may_have_folders(folder, tmp_path):
    for split in ("train", "val"):
        (folder / "images" / split / "a.b").mkdir()
        (folder / "images" / split / "5.jpg").rename(folder / "images" / split / "a.b" / "5.jpg")
        change(
            folder / "annotations" / f"{split}.json", lambda values: values["images"][0].update(file_name="a.b/5.jpg")
        )
    assert set(examples(open_coco(folder, tmp_path), "train")) == {"a.b/5", "8", "6"}


@pytest.mark.parametrize("kind", ["folder", "panoptic_folder"])
def test_the_ids_of_images_and_classes_are_kept(kind, request, tmp_path):
    """Results refer to both by these ids, which file names do not contain."""
    folder = request.getfixturevalue(kind)

    def renumber(values):
        for image in values["images"]:
            image["id"] += 1000
        for entry in values["annotations"]:
            entry["image_id"] += 1000

    change(folder / "annotations" / "train.json", renumber)
    source = open_coco(folder, tmp_path)
    found = source.coco_ids("train")
    assert set(found) == set(examples(source, "train"))
    assert found == {image_id: int(image_id) + 1000 for image_id in found}
    assert source.classes.ids == source.classes.values == (7, 90, 12)


def test_a_file_without_annotations_has_empty_images(folder, tmp_path):
    change(folder / "annotations" / "val.json", lambda values: values.update(annotations=[]))
    source = open_coco(folder, tmp_path)
    assert [len(example.labels) for example in examples(source, "val").values()] == [0, 0, 0]
    assert source.max_segments("val") == 0


def test_a_classes_json_chooses_order_things_and_colors(folder, tmp_path):
    names, colors = ["grass", "dog", "cat"], [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    write_json(folder / "classes.json", {"names": names, "colors": colors, "things": ["cat"]})
    source = open_coco(folder, tmp_path)
    assert (source.classes.names, source.classes.is_thing) == (tuple(names), (False, False, True))
    assert source.classes.ids == source.classes.values == (12, 7, 90)
    assert source.classes.colors[2] == (7, 8, 9)
    assert examples(source, "train")["5"].labels.tolist() == [2, 1, 2]


def test_without_things_in_classes_json_the_categories_decide(folder, tmp_path):
    write_json(folder / "classes.json", {"names": ["grass", "dog", "cat"]})
    assert open_coco(folder, tmp_path).classes.is_thing == (False, True, True)


def test_a_classes_json_may_omit_categories_without_annotations(folder, tmp_path):
    """Roboflow's category 0 is the parent of all others and is never used."""
    for split in ("train", "val"):
        path = folder / "annotations" / f"{split}.json"
        change(path, lambda values: values["categories"].insert(0, {"id": 0, "name": "animals"}))
    assert open_coco(folder, tmp_path).classes.names == ("animals", *NAMES)
    write_json(folder / "classes.json", {"names": NAMES})
    assert open_coco(folder, tmp_path).classes.names == NAMES
    assert open_coco(folder, tmp_path).classes.ids == (7, 90, 12)
    write_json(folder / "classes.json", {"names": ["horse", *NAMES, "cow"], "values": [5, 4, 3, 2, 1]})
    classes = open_coco(folder, tmp_path).classes
    assert (classes.ids, classes.values) == ((91, 7, 90, 12, 92), (5, 4, 3, 2, 1))
    write_json(folder / "classes.json", {"names": ["dog", "cat", "animals"]})
    with pytest.raises(
        UserError, match=r"train\.json: annotation or segment 1 has the category 'grass'.*classes\.json"
    ):
        open_coco(folder, tmp_path)


def test_a_changed_annotation_is_a_new_dataset(folder, tmp_path):
    def annotations():
        source = open_coco(folder, tmp_path)
        return sum(len(source.example("train", index).labels) for index in range(source.size("train")))

    before = annotations()
    change(folder / "annotations" / "train.json", lambda values: values["annotations"].pop())
    assert annotations() == before - 1


def test_files_as_other_tools_write_them(folder, tmp_path, capsys):
    """A byte order mark, backslashes, the other Unicode form, areas of boxes, no areas, and masks without a pixel."""
    stored = unicodedata.normalize("NFD", "Köln.jpg")
    for split in ("train", "val"):
        (folder / "images" / split / "a").mkdir()
        (folder / "images" / split / "8.jpg").rename(folder / "images" / split / "a" / stored)
        values = instances()
        values["images"][1]["file_name"] = unicodedata.normalize("NFC", "a\\Köln.jpg")
        for entry, area in zip(values["annotations"], (0, 400.0, None, 1e6), strict=True):
            entry.update(area=area, segments_info=None, bbox=None)
        del values["annotations"][2]["area"]
        # Between the centers of two pixels, outside of the image, and a line of three points.
        for number, shape in enumerate(([[3.1, 3.1, 3.2, 3.1, 3.2, 3.2]], box(60, 60, 70, 70), [[1, 1, 4, 1, 8, 1]])):
            values["annotations"].insert(number, annotation(20 + number, 5, 90, shape))
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(values), encoding="utf-8-sig")
    source = open_coco(folder, tmp_path)
    found = examples(source, "train")
    assert set(found) == {"5", unicodedata.normalize("NFC", "a/Köln"), "6"}
    assert (found["5"].labels.tolist(), found["5"].area.tolist()) == ([1, 0, 1], [100, 16, 5])
    assert (found["5"].is_crowd.tolist(), source.max_segments("train")) == ([False, False, True], 2)
    for example in found.values():
        maps = schema.decode_maps(example.segment_maps)
        np.testing.assert_array_equal(schema.count_values(maps, len(example.area) + 1)[1:], example.area)
    assert source.remarks("train", schema.EMPTY) == (3, ["20", "21", "22"])
    assert source.remarks("val", schema.AREAS) == (
        3,
        ["2 (400 for 100 pixels)", "4 (1e+06 for 5 pixels)", "1 (0 for 300 pixels)"],
    )
    printed = capsys.readouterr().out
    assert "split 'train': 3 annotations have a mask without a pixel and are left out: 20, 21, 22\n" in printed
    assert "split 'val': 3 annotations state another area than their mask has" in printed

    data = Inspection(source.classes, collect(source, "train"), collect(source, "val"), AUGMENTATION)
    whats = [finding.what for finding in find_suspicious(data)]
    assert "annotations whose mask has no pixel: 3 in 'train'" in whats
    assert "annotations that state another area than their mask has: 3 in 'val'" in whats


def test_good_files_have_no_remarks(folder, tmp_path, capsys):
    for split in ("train", "val"):
        change(folder / "annotations" / f"{split}.json", lambda values: values["annotations"][3].update(area=9))
    source = open_coco(folder, tmp_path)
    assert source.remarks("train", schema.EMPTY) == source.remarks("train", schema.AREAS) == (0, [])
    assert "note:" not in capsys.readouterr().out


def test_a_segment_without_a_pixel_in_its_png_is_no_target(panoptic_folder, tmp_path):
    path = panoptic_folder / "annotations" / "train.json"
    change(path, lambda values: values["annotations"][0]["segments_info"].insert(0, {"id": 9, "category_id": 7}))
    source = open_coco(panoptic_folder, tmp_path)
    assert source.remarks("train", schema.EMPTY) == (1, ["9"])
    check_panoptic(source, "train")


def in_train(edit):
    return lambda folder: change(folder / "annotations" / "train.json", edit)


def twice(key):
    """Two entries with the same id."""
    return in_train(lambda values: values[key].append(values[key][0]))


def normalize(values):
    for entry in values["annotations"][:3]:
        entry["segmentation"] = [[value / 30 for value in line] for line in entry["segmentation"]]


def another_image(folder):
    in_train(lambda values: values["images"].append({**values["images"][0], "height": 3}))(folder)


def rename_category(values):
    values["categories"] = [{**CATEGORIES[0], "name": "lion"}, *CATEGORIES[1:]]


def second_layout(folder):
    write_json(folder / "annotations" / "instances_train.json", instances())


def one_panoptic(values):
    values["annotations"][0]["segments_info"] = []


def a_name_that_leads_out(folder):
    shutil.copy(folder / "images/val/5.jpg", folder / "images/val/9.jpg")
    in_train(lambda values: values["images"][0].update(file_name="../val/9.jpg"))(folder)


def photo_on_its_side(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(folder / "images" / "train" / "5.jpg", exif=exif)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda f: shutil.rmtree(f / "annotations"),
            ["no annotations in COCO's format", "images/SPLIT", "_annotations.coco"],
        ),
        (lambda f: shutil.rmtree(f / "images/val"), ["annotations/val.json has no images", "images/val"]),
        (second_layout, ["instances_train.json", "train.json", "both of the split 'train'"]),
        (
            lambda f: (f / "images/train/5.jpg").unlink(),
            ["train.json: 1 of its 3 images are missing: '5.jpg' (image 5)"],
        ),
        (lambda f: truncate(f / "images/train/5.jpg"), ["images/train/5.jpg: not a readable image"]),
        (photo_on_its_side, ["images/train/5.jpg has 20x30 pixels", "30x20", "EXIF"]),
        (lambda f: (f / "annotations/train.json").write_text("{"), ["train.json is not valid JSON"]),
        (in_train(lambda values: values.pop("categories")), ["train.json", '"categories"']),
        (in_train(lambda values: values["images"][0].update(height=21)), ["images/train/5.jpg has 30x20", "30x21"]),
        (
            in_train(lambda values: values["images"][0].update(height="20")),
            ["train.json: image 5", "\"height\" is '20'"],
        ),
        (in_train(lambda values: values["images"][1].update(file_name="5.jpg")), ["images 5 and 8 have the same file"]),
        (in_train(lambda values: values["annotations"][0].update(category_id=1)), ["train.json", "category 1"]),
        (in_train(lambda values: values["annotations"][0].update(image_id=1)), ["train.json", "image 1"]),
        (in_train(lambda values: values["annotations"][0].update(segmentation=[])), ["train.json", "annotation 1"]),
        (
            in_train(lambda values: values["annotations"][0].update(area="9")),
            ["train.json: annotation or segment 1", '"area"'],
        ),
        (another_image, ["train.json", "images with the id 5"]),
        (twice("annotations"), ["train.json", "annotations with the id 1"]),
        (twice("categories"), ["train.json", "categories with the id 90"]),
        (a_name_that_leads_out, ["train.json: 1 of its 3 images are missing: '../val/9.jpg' (image 5)"]),
        (
            in_train(lambda values: values["images"][0].update(file_name="/etc/a.jpg")),
            ["train.json: 1 of its 3 images are missing: '/etc/a.jpg' (image 5)"],
        ),
        (in_train(normalize), ["train.json: annotation 1", "normalized"]),
        (in_train(rename_category), ["train.json", "val.json", "different categories", "lion"]),
        (in_train(one_panoptic), ["train.json: 1 of 4 annotations", "segments_info"]),
    ],
)
def test_bad_files_are_named_and_nothing_is_left_behind(folder, tmp_path, spoil, words):
    spoil(folder)
    with pytest.raises(UserError) as error:
        open_coco(folder, tmp_path)
    for word in words:
        assert word in str(error.value)
    assert not list((tmp_path / "tfds").glob("coco_format/*/*/dataset_info.json"))


def paint(folder):
    def edit(colors):
        colors[19, 29] = (9, 0, 0)
        return colors

    resave(folder / "annotations" / "train" / "5.png", edit)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (paint, ["annotations/train/5.png has the segment ids [9]"]),
        (lambda f: (f / "annotations/train/5.png").unlink(), ["annotations/train/5.png is missing"]),
        (lambda f: resave(f / "annotations/train/5.png", lambda c: c[..., 0]), ["train/5.png", "three channels"]),
        (lambda f: resave(f / "annotations/train/5.png", lambda c: c[:-1]), ["images/train/5.jpg has 30x20", "30x19"]),
        (twice("annotations"), ["train.json", "annotations of the image 5"]),
        (in_train(lambda values: values["annotations"][0].update(image_id=4)), ["5.png belongs to image 4"]),
        (
            in_train(lambda values: values["annotations"][0].update(file_name="..\\..\\images\\5.png")),
            ["train.json: the annotation of image 5", "leads out"],
        ),
        (
            in_train(lambda values: values["annotations"][0].pop("file_name")),
            ['train.json: a panoptic annotation has no "file_name"'],
        ),
    ],
)
def test_bad_panoptic_files_are_named(panoptic_folder, tmp_path, spoil, words):
    spoil(panoptic_folder)
    with pytest.raises(UserError) as error:
        open_coco(panoptic_folder, tmp_path)
    for word in words:
        assert word in str(error.value)


def test_real_instances(shared_data, tmp_path):
    root = shared_data / "coco_instances"
    values = json.loads((root / "annotations" / "instances_train2017.json").read_text())
    source = open_coco(root, tmp_path)
    assert (source.size("train2017"), len(source.classes), set(source.classes.is_thing)) == (215, 80, {True})
    names = {category["id"]: category["name"] for category in values["categories"]}
    stem = {image["id"]: image["file_name"].removesuffix(".jpg") for image in values["images"]}
    found = examples(source, "train2017")
    expected = {image_id: [] for image_id in found}
    truth = COCO(str(root / "annotations" / "instances_train2017.json"))
    for entry in values["annotations"]:
        row = (names[entry["category_id"]], truth.annToMask(entry).sum(), bool(entry["iscrowd"]))
        expected[stem[entry["image_id"]]].append(row)
    for image_id, example in found.items():
        labels = [source.classes.names[label] for label in example.labels]
        assert list(zip(labels, example.area, example.is_crowd, strict=True)) == expected[image_id]


def test_real_panoptic_files_are_what_the_published_dataset_has(shared_data, tmp_path):
    root = shared_data / "coco_panoptic"
    published = open_source("coco_panoptic", str(root), str(tmp_path / "tfds"))
    source = open_coco(root, tmp_path)
    assert (source.classes.names, source.classes.is_thing) == (published.classes.names, published.classes.is_thing)
    found = examples(source, "val2017")
    for image_id, example in examples(published, "validation").items():
        np.testing.assert_array_equal(class_map(found[image_id]), class_map(example))
        np.testing.assert_array_equal(found[image_id].area, example.area)
