"""Every type that JSON has, at every key of the files that users and publishers write: read, or named."""

import contextlib
import copy
import math

import numpy as np
import pytest

from maskformer_jax import catalog
from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline import coco, labels, schema

VALUES = [None, True, False, 0, 1, -1, 3.0, 0.5, 2**63, -(2**63) - 1, 1e9, 1e300, math.nan, math.inf, 10**400]
VALUES += ["", "0", "1", "text", "../a.png", "\ud800", [], {}, [[]], [None], [1, 2], {"a": 1}, [[1, 2, 3, 4, 5, 6]]]
IMAGES = [
    {"id": 1, "file_name": "a.jpg", "height": 6, "width": 8},
    {"id": 2, "file_name": "b.jpg", "height": 6, "width": 8},
]
CATEGORIES = [{"id": 3, "name": "cat", "isthing": 1}, {"id": 7, "name": "sky", "isthing": 0}]
SEGMENT = {"category_id": 3, "iscrowd": 0, "area": 6}
INSTANCES = {
    "images": IMAGES,
    "annotations": [
        {"id": 1, "image_id": 1, "segmentation": [[1, 1, 4, 1, 4, 3, 1, 3]], **SEGMENT},
        {"id": 2, "image_id": 1, "segmentation": {"size": [6, 8], "counts": [4, 6, 38]}, **SEGMENT},
        {"id": 3, "image_id": 2, "segmentation": {"size": [6, 8], "counts": "46V1"}, **SEGMENT},
    ],
    "categories": CATEGORIES,
}
PANOPTIC = {
    "images": IMAGES,
    "annotations": [
        {"image_id": 1, "file_name": "a.png", "segments_info": [{"id": 300, **SEGMENT}, {"id": 5, **SEGMENT}]}
    ],
    "categories": CATEGORIES,
}
CLASSES = {
    "names": ["sky", "cat"],
    "things": ["cat"],
    "colors": [[1, 2, 3], [4, 5, 6]],
    "ignore_index": 255,
    "ids": [7, 3],
    "values": [0, 1],
    "void_values": [9],
    "void_colors": [[0, 0, 0]],
}
COLORS = np.zeros((6, 8, 3), np.uint8)
COLORS[:3, :4], COLORS[4:, :4] = (44, 1, 0), (5, 0, 0)


def read_instances(values):
    for key in coco.KEYS:
        coco.json_file.items(values[key], f"a.json: {key}")
    _, _, class_of = coco.classes_of(values["categories"], "a.json")
    by_image = coco.instances_by_image(values, "a.json")
    for image in coco.images_of(values, "a.json"):
        found = coco.instance_masks(by_image[image.id], image.size, "a.json")
        for segment in coco.segments_of(by_image[image.id], class_of, "a.json", [int(mask.sum()) for mask in found]):
            assert type(segment.label) is int
            assert type(segment.area) is int
            assert type(segment.is_crowd) is bool


def read_panoptic(values):
    for key in coco.KEYS:
        coco.json_file.items(values[key], f"a.json: {key}")
    _, _, class_of = coco.classes_of(values["categories"], "a.json")
    coco.images_of(values, "a.json")
    for entry in coco.panoptic_entries(values, "a.json"):
        segment_map = coco.panoptic_map(COLORS, entry["segments_info"], "a.json")
        coco.counted_segments(segment_map[None], entry["segments_info"], class_of, "a.json")


def read_classes(values):
    found = labels.label_files_of(values, "a.json")
    assert catalog.Classes.from_dict(found.classes.to_dict(), "again") == found.classes
    for pixels in (np.zeros((2, 2), np.uint8), np.ones((2, 2, 3), np.uint8)):
        with contextlib.suppress(UserError):
            found.to_classes(pixels, "a.json")


def places(values):
    """Every value in lists and objects, as the path of keys that leads to it."""
    pairs = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in pairs:
        yield (key,)
        for rest in places(value):
            yield (key, *rest)


def refusal(read, values, what):
    """The message of the UserError for values, None without one; any other exception is a failure."""
    try:
        read(values)
    except UserError as error:
        return str(error)
    except Exception as error:
        raise AssertionError(what) from error
    return None


@pytest.mark.parametrize(
    ("good", "read"), [(INSTANCES, read_instances), (PANOPTIC, read_panoptic), (CLASSES, read_classes)]
)
def test_every_value_at_every_key_is_read_or_named(good, read):
    read(copy.deepcopy(good))
    refused, found = 0, list(places(good))
    for place in found:
        for value in [*VALUES, "absent"]:
            values = copy.deepcopy(good)
            parent = values
            for key in place[:-1]:
                parent = parent[key]
            if value == "absent":
                del parent[place[-1]]
                if len(place) == 1 and place[0] in coco.KEYS:
                    continue  # `read_annotations` names it
            else:
                parent[place[-1]] = copy.deepcopy(value)
            message = refusal(read, values, f"{value!r} at {place}")
            assert message is None or message.startswith("a.json"), (place, value)
            refused += message is not None
    assert refused > 0.5 * len(found) * len(VALUES)


@pytest.mark.parametrize("value", ["0", "1", "false", [], {}, 2, -1, 0.5, math.nan])
def test_flags_are_true_or_false(value):
    with pytest.raises(UserError, match=r'^a\.json: the category \'sky\': "isthing" is .*; expected 0 or 1'):
        coco.classes_of([{"id": 1, "name": "sky", "isthing": value}], "a.json")
    with pytest.raises(UserError, match=r'^a\.json: annotation or segment 8: "iscrowd" is .*; expected 0 or 1'):
        coco.segments_of([{"id": 8, "category_id": 1, "area": 9, "iscrowd": value}], {1: 0}, "a.json")


def test_whole_floats_null_and_text_ids_are_read():
    values = copy.deepcopy(INSTANCES)
    values["images"][0].update(id=1.0, height=6.0)
    values["images"][1]["id"] = "b"
    values["annotations"][0].update(iscrowd=None, area=None, category_id=3.0)
    values["annotations"][2].update(id="x", image_id="b")
    values["categories"][1]["isthing"] = 0.0
    read_instances(values)
    first, second = coco.images_of(values, "a.json")
    assert (first, type(first.id), type(first.size[0])) == ((1, "a.jpg", (6, 8)), int, int)
    assert second.id == "b"
    found = coco.instances_by_image(values, "a.json")
    assert [len(entries) for entries in (found[1], found["b"])] == [2, 1]
    (segment, *_) = coco.segments_of(found[1], {3: 0}, "a.json", [7, 8])
    assert (segment.area, segment.is_crowd) == (7, False)


def test_an_image_that_is_repeated_without_a_difference_counts_once():
    values = copy.deepcopy(INSTANCES)
    values["images"].append({**values["images"][0], "license": 3})
    assert [image.id for image in coco.images_of(values, "a.json")] == [1, 2]
    values["images"][-1]["height"] = 7
    with pytest.raises(UserError, match="several images with the id 1"):
        coco.images_of(values, "a.json")


@pytest.mark.parametrize("number", [0, -1, 2**24, 1.5, "5", True])
def test_ids_of_panoptic_segments_are_colors(number):
    with pytest.raises(UserError, match=r'^a\.png: a segment: "id" is'):
        coco.panoptic_map(COLORS, [{"id": 300}, {"id": 5}, {"id": number}], "a.png")


def test_areas_of_own_data_are_counted_and_masks_without_a_pixel_are_no_segments():
    segment_maps = np.zeros((2, 6, 8), np.uint8)
    segment_maps[0, :2, :5], segment_maps[1, 1:, 2:] = 1, 3
    entries = [{"id": n, "category_id": 7, **area} for n, area in enumerate(({"area": 10.4}, {"area": 5}, {}), start=1)]
    found = coco.counted_segments(segment_maps, entries, {7: 0}, "a.json")
    assert [segment.area for segment in found.segments] == [10, 30]
    np.testing.assert_array_equal(found.segment_maps, np.where(segment_maps == 3, 2, segment_maps))
    assert found.remarks == ((schema.EMPTY, "2"),)
    for stated in (0, 13, 3000):  # nothing, that of the box, that of a larger image
        entries[2]["area"] = stated
        found = coco.counted_segments(segment_maps, entries, {7: 0}, "a.json")
        assert [segment.area for segment in found.segments] == [10, 30]
        assert found.remarks == ((schema.EMPTY, "2"), (schema.AREAS, f"3 ({stated} for 30 pixels)"))


def test_more_segments_than_a_map_can_number_are_refused():
    with pytest.raises(UserError, match=r"^a\.json: an image has 65536 segments"):
        coco.segments_of([{"id": 1, "category_id": 1, "area": 1}] * 65536, {1: 0}, "a.json")


def test_normalized_coordinates_are_refused_unless_an_image_has_others():
    small = {"id": 4, "segmentation": [[0.1, 0.1, 0.8, 0.1, 0.8, 0.9]]}
    with pytest.raises(UserError, match=r"^a\.json: annotation 4 .*normalized.*by the width, 8, .* height, 6"):
        coco.instance_masks([small, {**small, "id": 5}], (6, 8), "a.json")
    speck, other = coco.instance_masks([small, {"id": 5, "segmentation": [[1, 1, 5, 1, 5, 4]]}], (6, 8), "a.json")
    assert speck.sum() <= 1 < other.sum()
