"""Folders of images with maps of instances."""

import json

import numpy as np
import pytest
from PIL import Image

from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline.sources import open_source
from tests.input_pipeline.folders import class_map, examples, masks_of

SIZE = (8, 12)
NAMES = ["cell", "tissue", "fiber"]
CELL, TISSUE, FIBER = range(3)


def numbers():
    found = np.zeros(SIZE, np.uint16)
    found[1:4, 1:4] = 7
    found[1:4, 4:7] = 300  # touches the first
    found[6:, 8:] = 2
    return found


def labels():
    found = np.full(SIZE, TISSUE, np.uint8)
    found[1:4, 1:7] = CELL
    found[6:, 8:] = FIBER
    found[5, 1:3] = CELL  # without an instance
    found[0] = 255
    return found


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "mine"
    save(root / "images" / "train" / "sub" / "a.png", np.zeros((*SIZE, 3), np.uint8))
    save(root / "instances" / "train" / "sub" / "a.png", numbers())
    (root / "classes.json").write_text(json.dumps({"names": NAMES, "things": ["cell", "fiber"]}))
    return root


def read(root):
    source = open_source("instance_pngs", str(root), str(root.parent / "tfds"))
    return source, examples(source, "train")["sub/a"]


def by_json(root):
    (root / "instances" / "train" / "sub" / "a.json").write_text('{"7": "cell", "300": "cell", "2": 2, "9": "fiber"}')


def by_list(root):
    values = [{"id": 7, "category_id": 0, "score": 0.5}, {"id": 300, "category_id": 0}, {"id": 2, "category_id": 2}]
    (root / "instances" / "train" / "sub" / "a.json").write_text(json.dumps(values))


def by_one_json(root):
    values = {"sub/a": {"7": "cell", "300": "cell", "2": "fiber"}}
    (root / "instances" / "train.json").write_text(json.dumps(values))


def by_colors_and_json(root):
    ids = numbers().astype(np.int64)
    save(root / "instances" / "train" / "sub" / "a.png", np.dstack([ids % 256, ids // 256, 0 * ids]).astype(np.uint8))
    by_json(root)


def by_tiff(root):
    (root / "instances" / "train" / "sub" / "a.png").unlink()
    save(root / "instances" / "train" / "sub" / "a.tif", numbers().astype(np.float32))  # as ImageJ writes them
    by_json(root)


@pytest.mark.parametrize("give", [by_json, by_list, by_one_json, by_colors_and_json, by_tiff])
def test_classes_from_json(give, root, capsys):
    give(root)
    source, found = read(root)
    assert source.classes.is_thing == (True, False, True)
    assert sorted(zip(found.labels.tolist(), found.area.tolist(), strict=True)) == [(CELL, 9), (CELL, 9), (FIBER, 8)]
    for number in (7, 300, 2):
        assert any(np.array_equal(numbers() == number, mask) for mask in masks_of(found))
    assert (class_map(found) >= 0).sum() == 26
    assert ("have a mask without a pixel" in capsys.readouterr().out) == (give not in (by_list, by_one_json))


def test_classes_from_label_images(root):
    save(root / "labels" / "train" / "sub" / "a.png", labels())
    source, found = read(root)
    np.testing.assert_array_equal(class_map(found), np.where(labels() == 255, -1, labels().astype(int)))
    apart = dict(zip(found.labels[~found.is_crowd].tolist(), found.area[~found.is_crowd].tolist(), strict=True))
    assert sorted(found.labels.tolist()) == [CELL, CELL, CELL, TISSUE, FIBER]
    assert apart[FIBER] == 8
    assert found.area[found.is_crowd].tolist() == [2]  # a thing without an instance
    assert source.max_segments("train") == 4


def test_a_single_class_needs_no_names(root):
    (root / "classes.json").write_text('{"names": ["cell"]}')
    source, found = read(root)
    assert source.classes.is_thing == (True,)
    assert found.area.tolist() == [8, 9, 9]


def two_places(root):
    by_json(root)
    by_one_json(root)


def wrong_json(text):
    return lambda root: (root / "instances" / "train" / "sub" / "a.json").write_text(text)


def without_image(root):
    by_json(root)
    (root / "images" / "train" / "sub" / "a.png").unlink()


def with_alpha(root):
    by_json(root)
    save(root / "instances" / "train" / "sub" / "a.png", np.zeros((*SIZE, 4), np.uint8))


def wrong_labels(root):
    save(root / "labels" / "train" / "sub" / "a.png", np.arange(96).reshape(SIZE).astype(np.uint8) % 3)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda root: None, "classes of the instances of 'train' are not given. Expected .*labels/train/"),
        (two_places, "given twice"),
        (wrong_labels, "instance 2 lies on pixels of several classes: 'cell'"),
        (wrong_json('{"7": "cell"}'), r"has the instances \[2, 300\], whose class is not given"),
        (wrong_json('{"7": "cel"}'), "instance 7 has the class 'cel'; expected one of"),
        (wrong_json('{"x": "cell"}'), "the number of an instance is 'x'; expected a whole number"),
        (wrong_json("3"), "expected {"),
        (wrong_json('[{"id": 7}]'), 'expected {"id": 1, "class": "car"}'),
        (wrong_json('[{"id": 7, "class": "cell"}, {"id": 7, "class": "fiber"}]'), "instance 7 has two classes"),
        (without_image, "a.png has no counterpart"),
        (lambda root: (root / "instances" / "train.json").write_text("{}"), "has no entry in .*train.json 'sub/a'"),
        (with_alpha, "expected one channel"),
    ],
)
def test_what_is_wrong_is_named(edit, message, root):
    edit(root)
    with pytest.raises(UserError, match=message):
        read(root)
