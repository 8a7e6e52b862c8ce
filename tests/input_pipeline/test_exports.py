"""COCO's files as annotation tools export them, in miniature."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline import exports, schema
from maskformer_jax.input_pipeline.sources import open_source
from tests.input_pipeline.folders import examples, masks_of

HEIGHT, WIDTH = SIZE = (20, 30)
SQUARE = [2, 2, 12, 2, 12, 10, 2, 10]
TRIANGLE = [14.5, 4, 26, 4.5, 26, 18]
BOX = [4.0, 12.0, 6.0, 5.0]


def open_coco(folder, tmp_path):
    return open_source("coco_format", str(folder), str(tmp_path / "tfds"))


def write(folder, path, values):
    """A file of annotations, and its images in a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))
    for shade, image in enumerate(values["images"]):
        place = folder / image["file_name"]
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*SIZE, 3), 40 * shade, np.uint8)).save(place)


def image(number, name, **values):
    return {"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH, **values}


def annotation(number, of_image, category, segmentation, **values):
    return {"id": number, "image_id": of_image, "category_id": category, "segmentation": segmentation, **values}


def roboflow(root):
    """The project is called as its only class. Each split has a file; a box was not outlined."""
    for split, start in (("train", 0), ("valid", 5), ("test", 9)):
        values = {
            "info": {"year": "2026", "version": "3", "description": "Exported from roboflow.com", "contributor": ""},
            "licenses": [{"id": 1, "url": "https://creativecommons.org/licenses/by/4.0/", "name": "CC BY 4.0"}],
            "categories": [
                {"id": 0, "name": "cell", "supercategory": "none"},
                {"id": 1, "name": "cell", "supercategory": "cell"},
                {"id": 2, "name": "unused", "supercategory": "cell"},
            ],
            "images": [
                image(start, f"{split}_a_jpg.rf.0aB{start}.jpg", license=1, date_captured="2026-01-01T00:00:00+00:00"),
                image(start + 1, f"{split}_b_jpg.rf.1c{start}.jpg", extra={"name": "b.jpg"}),
            ],
            "annotations": [
                annotation(0, start, 1, [SQUARE], bbox=[2, 2, 10, 8], area=80, iscrowd=0),
                annotation(1, start, 1, [], bbox=BOX, area=30, iscrowd=0),
            ],
        }
        write(root / split, root / split / "_annotations.coco.json", values)


def cvat(root):
    """What Datumaro writes: run lengths are crowds, also those of a brush; names of images have folders."""
    runs = np.zeros(SIZE, np.uint8)
    runs[2:10, 2:12] = 1
    changes = np.flatnonzero(np.diff(runs.T.ravel(), prepend=0, append=1 - runs.T.ravel()[-1]))
    counts = np.diff(changes, prepend=0).tolist()
    values = {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": dict.fromkeys(("contributor", "date_created", "description", "url", "version", "year"), ""),
        "categories": [
            {"id": 1, "name": "cell", "supercategory": ""},
            {"id": 2, "name": "unused", "supercategory": ""},
        ],
        "images": [image(1, "cam 1/a.png", license=0, flickr_url="", coco_url="", date_captured=0), image(2, "b.png")],
        "annotations": [
            annotation(
                1,
                1,
                1,
                {"counts": counts, "size": list(SIZE)},
                area=80.0,
                bbox=[2.0, 2.0, 9.0, 7.0],
                iscrowd=1,
                attributes={"occluded": False},
            ),
            annotation(2, 1, 1, [], area=30.0, bbox=BOX, iscrowd=0, attributes={"occluded": False, "rotation": 0.0}),
        ],
    }
    write(root / "images" / "default", root / "annotations" / "instances_default.json", values)


def label_studio(root):
    """All images are one split; an image without annotations has no size, and names are those of the server."""
    names = ("images/0aB-a b.png", "..\\..\\label-studio\\media\\upload\\4\\1c-b.png")
    values = {
        "images": [image(0, "images/0aB-a%20b.png"), {"width": None, "height": None, "id": 1, "file_name": names[1]}],
        "categories": [{"id": 0, "name": "cell"}, {"id": 1, "name": "unused"}],
        "annotations": [
            annotation(0, 0, 0, [SQUARE], bbox=[2, 2, 10, 8], ignore=0, iscrowd=0, area=80.0),
            annotation(1, 0, 0, [], bbox=BOX, ignore=0, iscrowd=0, area=30.0),
        ],
        "info": {"year": 2026, "version": "1.0", "description": "", "contributor": "Label Studio", "url": ""},
    }
    (root / "images").mkdir(parents=True)
    (root / "result.json").write_text(json.dumps(values))
    for shade, name in enumerate(("0aB-a b.png", "1c-b.png")):
        Image.fromarray(np.full((*SIZE, 3), 40 * shade, np.uint8)).save(root / "images" / name)


@pytest.mark.parametrize(
    ("export", "sizes", "image_ids"),
    [
        (roboflow, {"train": 2, "val": 2, "test": 2}, ("train_a_jpg.rf.0aB0", "train_b_jpg.rf.1c0")),
        (cvat, {"train": 2}, ("cam 1/a", "b")),
        (label_studio, {"train": 2}, ("0aB-a b", "1c-b")),
    ],
)
def test_exports_are_read_as_they_are(export, sizes, image_ids, tmp_path, capsys):
    root = tmp_path / "mine"
    export(root)
    source = open_coco(root, tmp_path)
    assert source.classes.names == ("cell", "unused")
    assert {split: source.size(split) for split in sizes} == sizes
    found = examples(source, "train")
    assert set(found) == set(image_ids)
    example = found[image_ids[0]]
    outlined, boxed = masks_of(example)
    assert example.is_crowd.tolist() == [False, True]
    expected = np.zeros((2, *SIZE), bool)
    expected[0, 2:10, 2:12] = expected[1, 12:17, 4:10] = True
    np.testing.assert_array_equal([outlined, boxed], expected)
    assert len(found[image_ids[1]].labels) == 0
    said = capsys.readouterr().out
    assert "1 annotations have a box and no outline" in said
    assert source.remarks("train", schema.GROUPS) == ((1, ["'cell'"]) if export is roboflow else (0, []))
    assert source.remarks("train", schema.BRUSHED) == ((1, ["1"]) if export is cvat else (0, []))
    assert source.remarks("train", schema.AREAS) == (0, [])


def test_what_the_converter_of_label_studio_writes(tmp_path):
    pytest.importorskip("label_studio_sdk.converter", exc_type=ImportError)
    from label_studio_sdk.converter import Converter

    config = (
        '<View><Image name="image" value="$image"/><PolygonLabels name="label" toName="image">'
        '<Label value="cell"/><Label value="no"/></PolygonLabels></View>'
    )
    root, uploads = tmp_path / "mine", tmp_path / "upload"
    uploads.mkdir()
    for name in ("a b.png", "c.png"):
        Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(uploads / name)
    points = [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in zip(SQUARE[::2], SQUARE[1::2], strict=True)]
    result = {
        "from_name": "label",
        "to_name": "image",
        "type": "polygonlabels",
        "original_width": WIDTH,
        "original_height": HEIGHT,
        "value": {"points": points, "polygonlabels": ["cell"]},
    }
    tasks = [
        {
            "id": number,
            "data": {"image": f"/data/upload/4/{name}"},
            "annotations": [{"id": number, "was_cancelled": False, "completed_by": {"id": 1}, "result": results}],
        }
        for number, (name, results) in enumerate((("a%20b.png", [result]), ("c.png", [])))
    ]
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    converter = Converter(config, str(tmp_path), upload_dir=str(uploads), download_resources=True)
    converter.convert_to_coco(str(tmp_path / "tasks.json"), str(root), is_dir=False)
    for path in uploads.iterdir():  # what the server adds to the archive
        if not (root / "images" / path.name).exists():
            shutil.copy(path, root / "images" / path.name)
    found = examples(open_coco(root, tmp_path), "train")
    assert sorted(len(example.labels) for example in found.values()) == [0, 1]
    (mask,) = next(masks_of(example) for example in found.values() if len(example.labels))
    assert mask.sum() == 80


def test_categories_that_group_others():
    def ids(*categories, used=()):
        entries = [dict(zip(("id", "name", "supercategory"), category, strict=False)) for category in categories]
        return set(exports.grouping([entries], used))

    roots = ((0, "cells", "none"), (1, "round", "cells"), (2, "long", "cells"))
    assert ids(*roots) == {0}
    assert ids(*roots, used={0}) == set()  # annotated, so that it is a class
    assert ids((1, "person", "person"), (2, "car", "vehicle")) == set()  # as in COCO itself
    assert ids((0, "cell", "none"), (1, "cell", "cell")) == {0}
    assert ids((0, "a", "b"), (1, "b", "a")) == set()  # not all
    assert ids((None, "a", "b"), ("x", [], {}), (True, "b"), (float("nan"), "c")) == set()
    assert exports.categories_used([{"category_id": 3.0}, {"segments_info": [{"category_id": 4}, 5]}, {}]) == {3, 4}


@pytest.mark.parametrize(
    "name",
    [
        "cam/a b.png",
        "/home/me/set/cam/a b.png",
        r"C:\set\cam\a b.png",
        "../set/./cam/a b.png",
        "cam/a%20b.png",
        "https://host:8080/data/upload/4/a%20b.png?X-Amz-Signature=0",
        "/data/local-files/?d=set%5Ccam%5Ca%20b.png",
        "s3://bucket/cam/a b.png",
        "cam/a b.jfif",
    ],
)
def test_names_of_other_machines_mean_their_ends(name, tmp_path):
    place = "a b" if "upload" in name else "cam/a b"
    path = tmp_path / (f"{place}.jfif" if name.endswith("jfif") else f"{place}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    assert exports.ImageFiles(tmp_path).find({7: name}, "a.json") == {7: (place, path)}


def test_images_that_are_missing_or_shared_are_named(tmp_path):
    for path in (tmp_path / "set" / "a.png", tmp_path / "secret.png"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    files = exports.ImageFiles(tmp_path / "set")
    names = {number: f"images/{number}.png" for number in range(9)} | {9: "a.png"}
    with pytest.raises(
        UserError, match=r"a\.json: 9 of its 10 images are missing: 'images/0\.png' \(image 0\), .*\.\.\."
    ):
        files.find(names, "a.json")
    for outside in ("../secret.png", str(tmp_path / "secret.png"), "..", "/", "http://[", "a.png/..\0"):
        with pytest.raises(UserError, match="1 of its 1 images are missing"):
            files.find({1: outside}, "a.json")
    with pytest.raises(UserError, match=r"images 1 and 2 have the same file, .*a\.png"):
        files.find({1: "cam1/a.png", 2: "cam2/a.png"}, "a.json")


def test_crowds_and_boxes():
    runs = {"size": [2, 2], "counts": [0, 4]}
    crowd, box = annotation(1, 1, 1, runs, iscrowd=1), annotation(2, 1, 1, [], bbox=[1, 2, 3, 4], area=12)
    assert exports.as_coco([crowd], of_cvat=False) == ([crowd], [])  # COCO's own crowds
    assert exports.as_coco([crowd], of_cvat=True) == ([{**crowd, "iscrowd": 0}], [(schema.BRUSHED, "1")])
    (found,), remarks = exports.as_coco([box], of_cvat=True)
    assert (found["segmentation"], found["iscrowd"], remarks) == ([[1, 2, 4, 2, 4, 6, 1, 6]], 1, [(schema.BOXES, "2")])
    for wrong in ({"bbox": [1, 2, 3]}, {"bbox": None}, {"bbox": [1, 2, -3, 4]}, {"bbox": [1, 2, 3, True]}):
        assert not exports.is_box({**box, **wrong})
    assert not exports.is_of_cvat({"info": {"description": "COCO 2017 Dataset"}})
    assert not exports.is_of_cvat({})


@pytest.mark.parametrize(
    "place", ["train.json", "instances_train.json", "my-project.json", "annotations/instances.json"]
)
def test_other_places_of_a_single_file(place, tmp_path):
    root = tmp_path / "mine"
    values = {
        "images": [image(1, "a.png")],
        "annotations": [annotation(1, 1, 4, [TRIANGLE])],
        "categories": [{"id": 4, "name": "cell"}],
    }
    write(root / ("data" if "/" in place else ""), root / place, values)
    (root / "classes.json").write_text('{"names": ["cell"]}')
    assert set(examples(open_coco(root, tmp_path), "train")) == {"a"}


def test_labels_for_detection_are_refused(tmp_path):
    root = tmp_path / "mine"
    label_studio(root)
    values = json.loads((root / "result.json").read_text())
    values["annotations"].pop(0)
    (root / "result.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="every annotation is a box without an outline"):
        open_coco(root, tmp_path)


def test_files_of_lvis(tmp_path):
    """Images have a URL and no name, and a split has images of several folders of COCO."""
    root = tmp_path / "lvis"
    unnamed = {"height": HEIGHT, "width": WIDTH, "neg_category_ids": [2], "not_exhaustive_category_ids": []}
    for split in ("train", "val"):
        images = [
            {"id": n, "coco_url": f"http://images.cocodataset.org/{folder}/{n:012d}.jpg", **unnamed}
            for n, folder in ((1, "train2017"), (2, f"{split}2017"))
        ]
        values = {
            "images": images,
            "annotations": [annotation(1, 2, 1, [SQUARE], area=80.0, bbox=[2.0, 2.0, 10.0, 8.0])],
            "categories": [
                {"id": 1, "name": "urn", "synset": "urn.n.01", "frequency": "r", "image_count": 1},
                {"id": 2, "name": "yak", "synset": "yak.n.02", "frequency": "c", "image_count": 9},
            ],
        }
        named = [{"file_name": entry["coco_url"].partition("org/")[2]} for entry in images]
        write(root, root / f"lvis_v1_{split}.json", {**values, "images": named})
        (root / f"lvis_v1_{split}.json").write_text(json.dumps(values))
    source = open_coco(root, tmp_path)
    assert source.classes.names == ("urn", "yak")
    assert source.coco_ids("val") == {"train2017/000000000001": 1, "val2017/000000000002": 2}
    found = examples(source, "val")["val2017/000000000002"]
    assert (found.labels.tolist(), found.area.tolist()) == ([0], [80])
