"""COCO's JSON files: their reader, and the builders of COCO's instances and panoptic segments."""

import collections
import json
import re
import shutil

import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO

from maskformer_jax import catalog, data
from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline import coco, sources
from maskformer_jax.input_pipeline.loader import Host, Views, eval_batches
from maskformer_jax.input_pipeline.padded_shapes import choose_padded_shapes
from maskformer_jax.input_pipeline.schema import Segment
from maskformer_jax.input_pipeline.sources import open_source
from tests.input_pipeline.made import make, pixels, write

SIZE = (6, 8)
SQUARE = [[1, 1, 5, 1, 5, 4, 1, 4]]


def mask_of(rows, columns, size=SIZE):
    mask = np.zeros(size, bool)
    mask[rows, columns] = True
    return mask


def compressed(mask):
    runs = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": runs["counts"].decode()}


def uncompressed(mask):
    counts, value = [0], 0
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


def masks_of(*segmentations, size=SIZE):
    annotations = [{"id": number, "segmentation": value} for number, value in enumerate(segmentations, start=1)]
    return coco.instance_masks(annotations, size, "a.json")


# ------------------------------------------------------------------------------------------------------------- masks


def test_polygons_are_the_pixels_of_pycocotools():
    polygons = [[1.2, 1, 5, 1.4, 4.5, 4, 1, 4], [6, 0, 8, 0, 8, 5.5]]
    expected = rle.decode(rle.merge(rle.frPyObjects(polygons, *SIZE)))
    assert 0 < expected.sum() < expected.size
    (found,) = masks_of(polygons)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, expected)


def test_points_and_lines_among_polygons_add_nothing():
    for extra in ([2, 2], [0, 0, 6, 5], []):
        np.testing.assert_array_equal(*masks_of(SQUARE, [extra, *SQUARE]))


@pytest.mark.parametrize("form", [compressed, uncompressed])
@pytest.mark.parametrize("size", [SIZE, (1, 1), (480, 640)])
def test_run_lengths_of_both_forms(form, size):
    rng = np.random.default_rng(1)
    masks = [np.zeros(size, bool), np.ones(size, bool)]
    masks += [rng.random(size) < share for share in (0.01, 0.5, 0.99)]
    for mask, found in zip(masks, masks_of(*map(form, masks), size=size), strict=True):
        np.testing.assert_array_equal(found, mask)


FULL = compressed(np.ones(SIZE, bool))


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        (None, "has the segmentation None; expected polygons"),
        ([], r"has the segmentation \[\]; expected polygons"),
        ("text", "has the segmentation 'text'"),
        ([[1, 2, 3, 4, 5]], "expected pairs of numbers"),
        ([[1, 2, 3, 4, 5, float("nan")]], "has the coordinate nan"),
        ([["1", 2, 3, 4, 5, 6]], "expected pairs of numbers"),
        ([1, 2, 3, 4, 5, 6], "has the polygon 1; expected pairs"),
        ([[1, 1, 4, 4]], "fewer than three points"),
        ({"counts": [48]}, r"for the size None, but its image has \[6, 8\]"),
        ({"size": [8, 6], "counts": [48]}, r"for the size \[8, 6\], but its image has \[6, 8\]"),
        ({"size": [6, 8]}, "expected run lengths that add up to the 48 pixels"),
        ({"size": [6, 8], "counts": [40]}, "add up to the 48 pixels"),
        ({"size": [6, 8], "counts": [50, -2]}, "add up to the 48 pixels"),
        ({"size": [6, 8], "counts": ""}, "add up to the 48 pixels"),  # pycocotools decodes uninitialized memory
        ({"size": [6, 8], "counts": FULL["counts"][:-1]}, "add up to the 48 pixels"),
        ({"size": [6, 8], "counts": "ç~"}, "add up to the 48 pixels"),
    ],
)
def test_bad_segmentations_are_named(segmentation, words):
    with pytest.raises(UserError, match=f"^a.json: annotation 2 .*{words}"):
        masks_of(SQUARE, segmentation)


def test_panoptic_colors_are_ids():
    colors = np.zeros((2, 3, 3), np.uint8)
    colors[0, 1] = (1, 0, 0)
    colors[1, 0] = (0, 1, 0)
    colors[1, 2] = (255, 255, 255)
    infos = [{"id": 256}, {"id": 2**24 - 1}, {"id": 1}, {"id": 77}]  # the last has no pixels
    np.testing.assert_array_equal(coco.panoptic_map(colors, infos, "a.png"), [[0, 3, 0], [1, 0, 2]])
    with pytest.raises(UserError, match=r"^a\.png has the segment ids \[1\]"):
        coco.panoptic_map(colors, infos[:2], "a.png")
    with pytest.raises(UserError, match=r"^a\.png: there are several segments with the id 256"):
        coco.panoptic_map(colors, [*infos, {"id": 256}], "a.png")
    with pytest.raises(UserError, match=r"^a\.png has shape \(2, 3\)"):
        coco.panoptic_map(colors[..., 0], infos, "a.png")
    with pytest.raises(UserError, match='a segment has no "id"'):
        coco.panoptic_map(colors, [{}], "a.png")


# ------------------------------------------------------------------------------------------------- files and classes


def test_classes_are_things_and_then_stuff_by_their_ids():
    categories = [
        {"id": 9, "name": "sky", "isthing": 0},
        {"id": 7, "name": "dog", "isthing": 1},
        {"id": 2, "name": "road", "isthing": 0},
        {"id": 3, "name": "cat"},
    ]
    names, is_thing, class_of = coco.classes_of(categories, "a.json")
    assert names == ("cat", "dog", "road", "sky")
    assert is_thing == (True, True, False, False)
    assert class_of == {3: 0, 7: 1, 2: 2, 9: 3}


@pytest.mark.parametrize(
    ("categories", "words"),
    [
        ([], '"categories" is empty'),
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "several categories with the id 1"),
        ([{"id": 1, "name": "a"}, {"id": 2, "name": "a"}], "several categories with the name 'a'"),
        ([{"id": 1}], 'a category has no "name"'),
        ([{"id": "1", "name": "a"}], "the category 'a': \"id\" is '1'; expected a whole number"),
    ],
)
def test_bad_categories_are_named(categories, words):
    with pytest.raises(UserError, match=f"^a.json: .*{words}"):
        coco.classes_of(categories, "a.json")


def values(**changes):
    image = {"file_name": "x.jpg", "height": 6, "width": 8}
    return {
        "images": [{"id": 5, **image}, {"id": 3, **image}],
        "annotations": [
            {"id": 1, "image_id": 3, "category_id": 2},
            {"id": 2, "image_id": 3, "category_id": 2},
        ],
        "categories": [{"id": 2, "name": "cat"}],
        **changes,
    }


def test_annotations_are_grouped_by_image_in_order():
    found = coco.instances_by_image(values(), "a.json")
    assert list(found) == [5, 3]
    assert [annotation["id"] for annotation in found[3]] == [1, 2]
    assert found[5] == []


ONE = {"id": 1, "image_id": 3, "category_id": 2}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": values()["images"] + [{**values()["images"][0], "width": 9}]}, "several images with the id 5"),
        ({"images": [{"id": 3, "height": 1, "width": 1}]}, 'an image has no "file_name"'),
        (
            {"images": [{"id": 3, "file_name": "x", "height": None, "width": 1}]},
            'image 3: "height" is None; expected a whole number',
        ),
        ({"annotations": [ONE, ONE]}, "several annotations with the id 1"),
        ({"annotations": [{**ONE, "image_id": 4}]}, 'annotation 1 belongs to image 4, which is not in "images"'),
        ({"annotations": [{**ONE, "image_id": "3"}]}, "belongs to image '3', which"),
        ({"annotations": [{**ONE, "category_id": 1}]}, 'segment 1 has the category 1, which is not in "categories"'),
        ({"annotations": [{"id": 1, "image_id": 3}]}, 'an annotation has no "category_id"'),
        ({"annotations": [{"image_id": 3, "category_id": 2}]}, 'an annotation has no "id"'),
    ],
)
def test_bad_annotations_are_named(changes, words):
    with pytest.raises(UserError, match=f"^a.json: .*{re.escape(words)}"):
        coco.instances_by_image(values(**changes), "a.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "is missing"),
        ("{", "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        ("[]", "holds a list; expected an object"),
        ('{"images": [], "categories": []}', "has no list of objects \"annotations\"; found: ['categories', 'images']"),
        ('{"images": [], "annotations": [], "categories": {}}', '"categories" is {}; expected a list'),
        ('{"images": [1], "annotations": [], "categories": []}', '"images": entry 0 is 1; expected an object'),
    ],
)
def test_files_of_another_kind_are_named(tmp_path, text, words):
    path = tmp_path / "a.json"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=f"^{path}:? .*{re.escape(words)}"):
        coco.read_annotations(path)


def test_segments_have_the_stated_area_rounded_to_pixels():
    entries = [
        {"id": 1, "category_id": 7, "area": 1024.6},
        {"id": 2, "category_id": 9, "area": 3, "iscrowd": 1},
    ]
    assert coco.segments_of(entries, {7: 0, 9: 1}, "a.json") == [Segment(0, 1025), Segment(1, 3, is_crowd=True)]
    for bad, words in (
        ({"category_id": 8}, "segment 1 has the category 8"),
        ({"area": None}, 'segment 1: "area" is None; expected a number'),
    ):
        with pytest.raises(UserError, match=words):
            coco.segments_of([{**entries[0], **bad}], {7: 0}, "a.json")
    with pytest.raises(UserError, match='has no "area"'):
        coco.segments_of([{"id": 1, "category_id": 7}], {7: 0}, "a.json")


@pytest.mark.parametrize("border", [32**2, 96**2])
def test_rounding_an_area_does_not_change_its_size_category(border):
    """The borders between COCO's small, medium and large instances belong to both sides."""
    stated = [border - 0.6, border - 0.4, border, border + 0.4, border + 0.6, border / 3]
    entries = [{"id": number, "category_id": 7, "area": area} for number, area in enumerate(stated)]
    for area, segment in zip(stated, coco.segments_of(entries, {7: 0}, "a.json"), strict=True):
        assert (segment.area <= border, segment.area >= border) == (area <= border, area >= border)
        assert abs(segment.area - area) <= 1


# --------------------------------------------------------------------------------------------------------- instances


def test_coco_instances_samples_have_every_mask_area_and_crowd(shared_data, tmp_path):
    root = shared_data / "coco_instances"
    path = root / "annotations" / "instances_train2017.json"
    truth = COCO(str(path))
    made = make("coco_instances", root, tmp_path, "train")
    names = catalog.load("coco_instances").names
    assert len(made) == 215
    crowds, kinds, planes = 0, set(), collections.Counter()
    for image in truth.dataset["images"]:
        one = made[image["file_name"].removesuffix(".jpg")]
        assert one.data == (root / "train2017" / image["file_name"]).read_bytes()
        annotations = [entry for entry in truth.dataset["annotations"] if entry["image_id"] == image["id"]]
        assert len(one.labels) == len(annotations)
        for number, annotation in enumerate(annotations):
            np.testing.assert_array_equal(one.mask(number), truth.annToMask(annotation))
            assert abs(one.area[number] - annotation["area"]) <= 0.5
            assert one.is_crowd[number] == bool(annotation["iscrowd"])
            assert names[one.labels[number]] == truth.cats[annotation["category_id"]]["name"]
            crowds += annotation["iscrowd"]
        kinds |= set(one.labels)
        planes[len(one.planes)] += 1
    assert crowds == 19
    assert kinds == set(range(80))
    assert planes == {1: 36, 2: 106, 3: 53, 4: 17, 5: 3}


def coco_categories():
    """The 80 categories as in COCO's file."""
    classes = catalog.load("coco_instances")
    pairs = zip(classes.ids, classes.names, strict=True)
    return [{"id": number, "name": name, "supercategory": "thing"} for number, name in pairs]


def instances_tree(root, annotations, split="val", images=((1, "a.jpg"), (2, "b.jpg"))):
    listed = [{"id": number, "file_name": name, "height": 6, "width": 8} for number, name in images]
    for _, name in images:
        write(root / f"{split}2017" / name, np.zeros((*SIZE, 3)))
    values = {"images": listed, "annotations": annotations, "categories": coco_categories()}
    path = root / "annotations" / f"instances_{split}2017.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))
    return root


def instance(number, mask, **changes):
    return {
        **{"id": number, "image_id": 1, "category_id": 1, "area": float(mask.sum()), "iscrowd": 0},
        "segmentation": compressed(mask),
        **changes,
    }


def test_instances_that_overlap_stay_whole_and_images_without_any_are_kept(tmp_path):
    masks = [mask_of(slice(0, 4), slice(0, 4)), mask_of(slice(2, 6), slice(2, 6)), mask_of(5, slice(0, 2))]
    crowd = uncompressed(masks[1])
    annotations = [
        instance(11, masks[0], category_id=90, area=15.2),
        instance(12, masks[1], segmentation=crowd, iscrowd=1),
        instance(13, masks[2]),
    ]
    made = make("coco_instances", instances_tree(tmp_path / "coco", annotations), tmp_path)
    one = made["a"]
    for number, mask in enumerate(masks):
        np.testing.assert_array_equal(one.mask(number), mask)
    assert one.planes.shape == (2, *SIZE)
    assert (one.labels, one.area, one.is_crowd) == ([79, 0, 0], [15, 16, 2], [False, True, False])
    assert (made["b"].labels, made["b"].planes.tolist()) == ([], np.zeros((1, *SIZE)).tolist())
    source = open_source("coco_instances", "", str(tmp_path / "tfds"))
    assert source.coco_ids("validation") == {"a": 1, "b": 2}


def spoil_json(root, change):
    path = root / "annotations" / "instances_val2017.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: (root / "val2017" / "b.jpg").unlink(), ["val2017/b.jpg is missing", "instances_val2017.json"]),
        (lambda root: write(root / "val2017" / "a.jpg", np.zeros((6, 9, 3))), ["9x6", "8x6", "instances_val2017.json"]),
        (
            lambda root: spoil_json(root, lambda values: values["categories"].pop()),
            ["has 79 categories", "80", "another dataset"],
        ),
        (
            lambda root: spoil_json(root, lambda values: values["categories"][3].update(name="motorbike")),
            ["instances_val2017.json", "((4, 'motorbike'), (4, 'motorcycle'))"],
        ),
        (
            lambda root: spoil_json(root, lambda values: values["annotations"][0].update(category_id=91)),
            ["annotation or segment 11", "category 91"],
        ),
        (
            lambda root: spoil_json(root, lambda values: values["annotations"][0].update(segmentation=[])),
            ["instances_val2017.json: annotation 11 has the segmentation []"],
        ),
        (
            lambda root: spoil_json(root, lambda values: values["images"][1].update(file_name="a.jpg")),
            ["two images have the id 'a'"],
        ),
        (lambda root: (root / "annotations").rename(root / "labels"), ["annotations/instances_train2017.json"]),
    ],
)
def test_bad_files_of_coco_instances_are_named(tmp_path, spoil, words):
    root = instances_tree(tmp_path / "coco", [instance(11, mask_of(0, 0))])
    spoil(root)
    with pytest.raises(UserError) as error:
        open_source("coco_instances", str(root), str(tmp_path / "tfds"))
    for word in words:
        assert word in str(error.value)
    assert not list((tmp_path / "tfds" / "coco_instances").glob("*"))


# ---------------------------------------------------------------------------------------------------------- panoptic


def test_coco_panoptic_samples_have_every_area_box_and_crowd(shared_data, tmp_path):
    root = shared_data / "coco_panoptic"
    made = make("coco_panoptic", root, tmp_path)
    truth = json.loads((root / "annotations" / "panoptic_val2017.json").read_text())
    names = {category["id"]: category["name"] for category in truth["categories"]}
    crowds = 0
    for annotation in truth["annotations"]:
        one = made[annotation["file_name"].removesuffix(".png")]
        assert len(one.labels) == len(annotation["segments_info"])
        for number, info in enumerate(annotation["segments_info"]):
            rows, columns = np.nonzero(one.mask(number))
            assert len(rows) == one.area[number] == info["area"]
            x, y, width, height = info["bbox"]
            assert (columns.min(), rows.min()) == (x, y)
            assert (columns.max() + 1 - x, rows.max() + 1 - y) == (width, height)
            assert catalog.load("coco_panoptic").names[one.labels[number]] == names[info["category_id"]]
            assert one.is_crowd[number] == bool(info["iscrowd"])
            crowds += info["iscrowd"]
        colors = pixels(root / "annotations" / "panoptic_val2017" / annotation["file_name"])
        np.testing.assert_array_equal(one.class_map() == -1, ~colors.any(axis=-1))
    assert crowds > 0


def test_coco_panoptic_in_the_folders_of_detectron2(shared_data, tmp_path):
    root = panoptic_tree(shared_data, tmp_path / "coco")
    (root / "annotations" / "panoptic_val2017").rename(root / "panoptic_val2017")
    found = make("coco_panoptic", root, tmp_path / "moved")
    expected = make("coco_panoptic", shared_data / "coco_panoptic", tmp_path / "published")
    assert found.keys() == expected.keys()
    for name, one in expected.items():
        np.testing.assert_array_equal(found[name].class_map(), one.class_map())
        np.testing.assert_array_equal(found[name].area, one.area)


def panoptic_tree(shared_data, root):
    """A copy of the sample that can be changed."""
    shutil.copytree(shared_data / "coco_panoptic", root, copy_function=shutil.copyfile)
    for path in (root, *root.rglob("*")):
        path.chmod(0o755)
    return root


def change_panoptic(root, change):
    path = root / "annotations" / "panoptic_val2017.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def recolor(root):
    path = sorted((root / "annotations" / "panoptic_val2017").iterdir())[0]
    colors = pixels(path)
    colors[0, 0] = (9, 9, 9)
    write(path, colors)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: shutil.rmtree(root / "val2017"), r"val2017/\d+\.jpg is missing, but its labels exist"),
        (recolor, r"\d+\.png has the segment ids \[592137\]"),
        (
            lambda root: change_panoptic(root, lambda values: values["categories"].pop()),
            r"panoptic_val2017\.json has 132 categories",
        ),
        (
            lambda root: change_panoptic(root, lambda values: values["annotations"][0].pop("segments_info")),
            'a panoptic annotation has no "segments_info"',
        ),
        (
            lambda root: change_panoptic(root, lambda values: values["annotations"].append(values["annotations"][0])),
            r"several annotations of the image \d+",
        ),
        (
            lambda root: change_panoptic(
                root, lambda values: values["annotations"][0]["segments_info"][0].update(category_id=12)
            ),
            r"panoptic_val2017\.json: annotation or segment \d+ has the category 12",
        ),
        (lambda root: (root / "annotations" / "panoptic_val2017.json").unlink(), r"panoptic_val2017\.json is missing"),
    ],
)
def test_bad_files_of_coco_panoptic_are_named(shared_data, tmp_path, spoil, words):
    root = panoptic_tree(shared_data, tmp_path / "coco")
    spoil(root)
    with pytest.raises(UserError, match=words):
        open_source("coco_panoptic", str(root), str(tmp_path / "tfds"))


def test_evaluation_takes_the_areas_that_a_published_panoptic_dataset_states(shared_data, tmp_path):
    """As the official tool does, even if they are wrong; entries without an area have that of their pixels."""
    root = panoptic_tree(shared_data, tmp_path / "coco")

    def half(values):
        for annotation in values["annotations"]:
            annotation["segments_info"][0].pop("area")
            for info in annotation["segments_info"][1:]:
                info["area"] = info["area"] / 2

    change_panoptic(root, half)
    source = open_source("coco_panoptic", str(root), str(tmp_path / "tfds"))
    assert source.trusts_area
    views = Views(64, 128)
    original = source.image_size("validation", 0)
    shapes = choose_padded_shapes(np.array([views.sizes(original)]), np.array([original]), 1, 1)
    (truth,) = next(
        eval_batches(source, "validation", views=views, padded_shapes=shapes, batch_size=1, host=Host())
    ).truth
    pixels = np.bincount(truth.segment_map.ravel())[1:]
    expected = [pixels[0], *(round(value / 2) for value in pixels[1:])]
    assert np.abs(truth.visible_area() - expected).max() <= 1


def test_which_datasets_state_the_areas_of_published_scores():
    names = sorted(path.parent.name for path in data.FOLDER.glob("*/*_dataset_builder.py"))
    found = {name for name in names if sources._builder_class(name).TRUSTS_AREA}
    assert found == {"ade20k_panoptic", "coco_panoptic", "mapillary_panoptic"}
