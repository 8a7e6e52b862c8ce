"""The catalog of classes: orders and counts as defined by the datasets."""

import json
import pathlib

import pytest

from maskformer_jax import catalog
from maskformer_jax.errors import UserError

FILES = sorted(pathlib.Path(catalog.__file__).parent.glob("*.json"))

# Number of classes, number of things, value of void.
SIZES = {
    "ade20k": (150, 0, 255),
    "ade20k_full": (847, 0, 65535),
    "ade20k_instances": (100, 100, 255),
    "ade20k_panoptic": (150, 100, 255),
    "camvid": (11, 0, 11),
    "cityscapes_semantic": (19, 0, 255),
    "cityscapes_panoptic": (19, 8, 255),
    "cityscapes_instances": (8, 8, 255),
    "coco_instances": (80, 80, 255),
    "coco_panoptic": (133, 80, 255),
    "coco_stuff": (171, 0, 255),
    "mapillary": (65, 0, 65),
    "mapillary_panoptic": (65, 37, 65),
    "shapes": (10, 5, 255),
}

POSITIONS = {
    "ade20k": {0: "wall", 2: "sky", 8: "window", 12: "person", 48: "skyscraper", 149: "flag"},
    "ade20k_full": {0: "wall", 1: "building", 2: "sky", 3: "tree", 4: "road", 5: "floor", 846: "adding machine"},
    "ade20k_panoptic": {0: "wall", 2: "sky", 12: "person", 149: "flag"},
    "camvid": {0: "Sky", 5: "Tree", 10: "Bicyclist"},
    "cityscapes_semantic": {0: "road", 10: "sky", 11: "person", 18: "bicycle"},
    "cityscapes_panoptic": {0: "road", 10: "sky", 11: "person", 18: "bicycle"},
    "coco_instances": {0: "person", 79: "toothbrush"},
    "coco_panoptic": {0: "person", 79: "toothbrush", 80: "banner", 116: "tree-merged", 132: "rug-merged"},
    "coco_stuff": {0: "person", 79: "toothbrush", 80: "banner", 149: "stairs", 170: "wood"},
    "mapillary": {0: "Bird", 13: "Road", 27: "Sky", 55: "Car", 64: "Ego Vehicle"},
}

ADE20K_STUFF = [
    *(0, 1, 2, 3, 4, 5, 6, 9, 11, 13, 16, 17, 21, 25, 26, 28, 29, 34, 40, 46, 48, 51, 52, 54, 59),
    *(60, 61, 63, 68, 77, 79, 84, 91, 94, 96, 99, 100, 101, 105, 106, 109, 113, 114, 117, 122, 128, 131, 140, 141, 145),
]


def thing_ids(name):
    return [index for index, is_thing in enumerate(catalog.load(name).is_thing) if is_thing]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_is_well_formed(path):
    values = json.loads(path.read_text())
    names, things = values["names"], values["things"]
    assert set(values) <= {"names", "things", "colors", "ignore_index", "ids", "values"}
    assert len(set(names)) == len(names)
    assert len({"ids", "values"} & set(values)) <= 1 or values["ids"] != values["values"]  # each is the other's default
    assert all(name and name == name.strip() for name in names)
    assert things == [name for name in names if name in things]  # no repeats, and in the order of the labels
    if "colors" in values:
        assert len(values["colors"]) == len(names)
        assert all(len(color) == 3 for color in values["colors"])
        assert len({tuple(color) for color in values["colors"]}) == len(names)

    classes = catalog.load(path.stem)
    assert classes.names == tuple(names)
    assert all(type(value) is int and 0 <= value <= 255 for color in classes.colors for value in color)
    assert classes.ignore_index not in range(len(classes))
    assert catalog.Classes.from_dict(classes.to_dict(), "again") == classes


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name):
    classes = catalog.load(name)
    assert (len(classes), sum(classes.is_thing), classes.ignore_index) == SIZES[name]


@pytest.mark.parametrize("name", POSITIONS)
def test_positions(name):
    names = catalog.load(name).names
    assert {index: names[index] for index in POSITIONS[name]} == POSITIONS[name]


def test_which_classes_are_things():
    assert thing_ids("ade20k_panoptic") == sorted(set(range(150)) - set(ADE20K_STUFF))
    assert 12 in thing_ids("ade20k_panoptic")
    assert thing_ids("coco_panoptic") == list(range(80))
    assert thing_ids("cityscapes_panoptic") == list(range(11, 19))


@pytest.mark.parametrize("name", ["ade20k", "ade20k_full", "camvid", "cityscapes_semantic", "coco_stuff", "mapillary"])
def test_datasets_with_one_segment_per_class_have_no_things(name):
    """Queries of a thing class are not merged, but the ground truth of these datasets has no instances."""
    assert thing_ids(name) == []


@pytest.mark.parametrize(
    ("semantic", "panoptic"),
    [
        ("ade20k", "ade20k_panoptic"),
        ("cityscapes_semantic", "cityscapes_panoptic"),
        ("mapillary", "mapillary_panoptic"),
    ],
)
def test_datasets_of_the_same_labels_agree(semantic, panoptic):
    semantic, panoptic = catalog.load(semantic), catalog.load(panoptic)
    assert semantic.names == panoptic.names
    assert semantic.colors == panoptic.colors
    assert semantic.values == panoptic.values


@pytest.mark.parametrize("dataset", ["ade20k", "cityscapes", "coco"])
def test_instances_are_the_things_of_the_panoptic_dataset(dataset):
    instances, panoptic = catalog.load(f"{dataset}_instances"), catalog.load(f"{dataset}_panoptic")
    things = thing_ids(f"{dataset}_panoptic")
    for field in ("names", "colors", "ids"):
        assert getattr(instances, field) == tuple(getattr(panoptic, field)[index] for index in things)


def test_the_things_of_coco_agree():
    assert catalog.load("coco_stuff").names[:80] == catalog.load("coco_panoptic").names[:80]


@pytest.mark.parametrize(
    ("name", "file", "key", "thing_key"),
    [
        ("ade20k_panoptic", "ade20k_150_panoptic.json", "name", "isthing"),
        ("ade20k_full", "ade20k_full_847.json", "name", None),
        ("cityscapes_semantic", "cityscapes_labels.json", "name", None),
        ("cityscapes_panoptic", "cityscapes_labels.json", "name", "hasInstances"),
        ("coco_panoptic", "panoptic_coco_categories.json", "name", "isthing"),
        ("coco_stuff", "coco_stuff_171.json", "name", None),
        ("mapillary", "mapillary_vistas_65.json", "readable", None),
        ("mapillary_panoptic", "mapillary_vistas_65.json", "readable", "instances"),
    ],
)
def test_agrees_with_the_published_lists(shared_data, name, file, key, thing_key):
    path = shared_data / "metadata" / file
    if not path.is_file():
        pytest.skip(f"no {path}")
    # Mapillary's list ends with void, which is not a class.
    published = [entry for entry in json.loads(path.read_text()) if entry.get("evaluate", True)]
    if name.startswith("cityscapes"):
        published = sorted((c for c in published if c["trainId"] in range(19)), key=lambda c: c["trainId"])
    classes = catalog.load(name)
    assert len(classes) == len(published)
    for index, entry in enumerate(published):
        # ADE20K names a class by its synonyms; the catalog keeps the first one if it is unique.
        allowed = {entry[key].strip()} | ({entry[key].split(",")[0].strip()} if "ade20k" in name else set())
        assert classes.names[index] in allowed
        if "id" in entry and name != "ade20k_full":  # its builder reads labels from other numbers
            assert classes.ids[index] == entry["id"]
        if thing_key:
            assert classes.is_thing[index] == bool(entry[thing_key])
        # Road and skyscraper have the same color in the published palette; the authors later changed the second.
        if "color" in entry and name != "coco_stuff" and classes.names[index] != "skyscraper":
            assert classes.colors[index] == tuple(entry["color"])


# The numbers of the first and the last class, in annotation files and in label images.
@pytest.mark.parametrize(
    ("name", "ids", "values"),
    [
        ("ade20k", (1, 150), (1, 150)),
        ("ade20k_instances", (7, 149), (7, 149)),
        ("ade20k_panoptic", (0, 149), (1, 150)),
        ("ade20k_full", (0, 846), (0, 846)),
        ("camvid", (0, 10), (0, 10)),
        ("cityscapes_semantic", (7, 33), (7, 33)),
        ("cityscapes_panoptic", (7, 33), (7, 33)),
        ("cityscapes_instances", (24, 33), (24, 33)),
        ("coco_instances", (1, 90), (1, 90)),
        ("coco_panoptic", (1, 200), (1, 200)),
        ("coco_stuff", (1, 182), (1, 182)),
        ("mapillary", (0, 64), (0, 64)),
        ("mapillary_panoptic", (1, 65), (0, 64)),
    ],
)
def test_numbers_are_those_of_the_publishers(name, ids, values):
    classes = catalog.load(name)
    assert (classes.ids[0], classes.ids[-1]) == ids
    assert (classes.values[0], classes.values[-1]) == values


def test_numbers_that_are_omitted():
    def numbers(**values):
        classes = catalog.Classes.from_dict({"names": ["a", "b"], **values}, "mine")
        return classes.ids, classes.values

    assert numbers() == ((0, 1), (0, 1))
    assert numbers(ids=[5, 3]) == ((5, 3), (5, 3))
    assert numbers(values=[5, 3]) == ((5, 3), (5, 3))
    assert numbers(ids=[5, 3], values=[0, 9]) == ((5, 3), (0, 9))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"ids": [1]}, "1 entries in ids for 2 names"),
        ({"ids": [1, 1]}, r"ids must differ, but these are repeated: \[1\]"),
        ({"values": [2, 2]}, r"values must differ, but these are repeated: \[2\]"),
        ({"ids": ["1", "2"]}, '"ids" is .*expected a list of integers'),
    ],
)
def test_invalid_numbers_are_named(values, words):
    with pytest.raises(UserError, match=f"^mine: .*{words}"):
        catalog.Classes.from_dict({"names": ["a", "b"], **values}, "mine")


@pytest.mark.parametrize(("key", "meant"), [("thing", "things"), ("colour", "colors"), ("Names", "names")])
def test_a_misspelled_key_is_named(tmp_path, key, meant):
    path = tmp_path / "classes.json"
    path.write_text(json.dumps({"names": ["a"], "comment": "mine", key: ["a"]}))
    with pytest.raises(UserError, match=rf"classes\.json has the key '{key}'; did you mean \"{meant}\"\?"):
        catalog.read_values(path)


def test_other_keys_are_ignored_and_any_encoding_is_read(tmp_path):
    path = tmp_path / "classes.json"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_text(json.dumps({"names": ["caf\u00e9"], "source": "mine"}, ensure_ascii=False), encoding)
        assert catalog.read(path).names == ("caf\u00e9",)
