"""Imported datasets of TFDS, without a network: small ones with the features of those in its catalog."""

import io
import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from maskformer_jax import catalog
from maskformer_jax.data.tfds_import.tfds_import_dataset_builder import find_fields
from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline import schema
from maskformer_jax.input_pipeline.sources import open_source
from tests.input_pipeline.folders import class_map, examples

COCO = catalog.load("coco_panoptic")
SIZE = (20, 30)


def encoded(pixels, kind, **options):
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file, kind, **options)
    return file.getvalue()


def photo(index):
    return np.random.default_rng(index).integers(0, 255, (*SIZE, 3), np.uint8)


def trimap(index):
    """Values 1 to 3, as in the pets dataset."""
    return np.random.default_rng([index, 1]).integers(1, 4, SIZE, np.uint8)


class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A dataset of given examples, with encoded images."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, features, splits, **options):
        self._features, self._splits = features, splits
        super().__init__(**options)

    def _info(self):
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(self._features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(rows) for split, rows in self._splits.items()}

    def _generate_examples(self, rows):
        yield from enumerate(rows)


def make(name, features, splits, tmp_path, file_format="tfrecord"):
    """Makes a dataset, which TFDS finds by its files alone."""
    builder_class = type(name, (Tiny,), {"name": name, "pkg_dir_path": tmp_path}, skip_registration=True)
    builder = builder_class(features=features, splits=splits, data_dir=tmp_path / "tfds", file_format=file_format)
    builder.download_and_prepare()


def features_of(name, tmp_path):
    """The features of a dataset in the catalog of TFDS."""
    return dict(tfds.builder(name, data_dir=tmp_path / "none").info.features)


def pets(tmp_path, file_format="tfrecord", **changes):
    def row(split, index):
        return {
            "image": encoded(photo(index), "JPEG"),
            "segmentation_mask": encoded(trimap(index), "PNG"),
            "label": 3,
            "species": 1,
            "file_name": f"{split}_{index}.jpg",
            "head_bbox": tfds.features.BBox(0.0, 0.0, 1.0, 1.0),
            **changes,
        }

    splits = {split: [row(split, index) for index in range(count)] for split, count in (("train", 4), ("test", 2))}
    make("tiny_pets", features_of("oxford_iiit_pet", tmp_path), splits, tmp_path, file_format)


def panoptic_ids():
    ids = np.zeros(SIZE, np.int64)
    ids[:10, :20] = 70_000
    ids[2:7, 3:8] = 3
    return ids


def panoptic(tmp_path, names=COCO.names):
    features = features_of("coco/2017_panoptic", tmp_path)
    objects = {key: features["panoptic_objects"][key] for key in ("id", "area", "bbox", "is_crowd")}
    objects["label"] = tfds.features.ClassLabel(names=list(names))
    features["panoptic_objects"] = tfds.features.Sequence(objects)
    ids = panoptic_ids()
    colors = np.dstack([ids % 256, ids // 256 % 256, ids // 65536])
    box = tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
    row = {
        "image": encoded(photo(0), "JPEG"),
        "image/filename": "000000000009.jpg",
        "image/id": 9,
        "panoptic_image": encoded(colors, "PNG"),
        "panoptic_image/filename": "000000000009.png",
        "panoptic_objects": [
            {"id": 9, "area": 40, "bbox": box, "label": names[1], "is_crowd": False},  # without a pixel
            {"id": 70_000, "area": 900, "bbox": box, "label": names[-1], "is_crowd": False},  # 175 pixels
            {"id": 3, "area": 25, "bbox": box, "label": names[0], "is_crowd": True},
        ],
    }
    nothing = {
        **row,
        "image/filename": "000000000012.jpg",
        "panoptic_image": encoded(np.zeros((*SIZE, 3)), "PNG"),
        "panoptic_objects": [],
    }
    make("tiny_panoptic", features, {"validation": [row, nothing]}, tmp_path)


def write_classes(tmp_path, **values):
    folder = tmp_path / "classes"
    folder.mkdir(exist_ok=True)
    (folder / "classes.json").write_text(json.dumps(values))
    return str(folder)


def trimap_classes(tmp_path):
    return write_classes(tmp_path, names=["pet", "background"], values=[1, 2], ignore_index=3, things=["pet"])


def open_import(name, folder, tmp_path):
    return open_source(name, folder, str(tmp_path / "tfds"))


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_an_image_of_labels(tmp_path, file_format):
    pets(tmp_path, file_format)
    source = open_import("tfds:tiny_pets", trimap_classes(tmp_path), tmp_path)
    assert (source.size("train"), source.size("test")) == (4, 2)
    assert (source.classes.names, source.classes.is_thing) == (("pet", "background"), (True, False))
    assert source.image_size("train", 0) == SIZE
    found = examples(source, "train")
    assert set(found) == {f"train_{index}" for index in range(4)}
    for index in range(4):
        example = found[f"train_{index}"]
        assert example.image == encoded(photo(index), "JPEG")
        np.testing.assert_array_equal(class_map(example), np.array([0, 0, 1, -1])[trimap(index)])


def test_other_classes_are_another_dataset(tmp_path):
    pets(tmp_path)
    first = open_import("tfds:tiny_pets", trimap_classes(tmp_path), tmp_path)
    other = write_classes(tmp_path, names=["pet", "background", "border"], values=[1, 2, 3])
    second = open_import("tfds:tiny_pets", other, tmp_path)
    assert (len(first.classes), len(second.classes)) == (2, 3)
    assert first.builder.data_path != second.builder.data_path
    assert all(len(example.labels) == 3 for example in examples(second, "test").values())


def test_panoptic_with_the_classes_of_coco(tmp_path):
    panoptic(tmp_path)
    source = open_import("tfds:tiny_panoptic", "", tmp_path)
    assert source.classes == COCO
    found = examples(source, "validation")
    example, ids = found["000000000009"], panoptic_ids()
    np.testing.assert_array_equal(class_map(example), np.select([ids == 3, ids == 70_000], [0, 132], -1))
    assert (example.area.tolist(), example.is_crowd.tolist()) == ([175, 25], [False, True])
    assert source.remarks("validation", schema.EMPTY) == (1, ["9"])
    assert source.remarks("validation", schema.AREAS) == (1, ["70000 (900 for 175 pixels)"])
    assert example.image == encoded(photo(0), "JPEG")
    assert len(found["000000000012"].labels) == 0
    assert source.coco_ids("validation") == {"000000000009": 9, "000000000012": 12}


def test_panoptic_with_other_classes(tmp_path):
    panoptic(tmp_path, names=("grass", "cat", "sky"))
    with pytest.raises(
        UserError, match=r"tiny_panoptic/1\.0\.0 has the classes \['grass', 'cat', 'sky'\].*classes\.json"
    ):
        open_import("tfds:tiny_panoptic", "", tmp_path)
    folder = write_classes(tmp_path, names=["cat", "sky", "grass"], things=["cat"])
    source = open_import("tfds:tiny_panoptic", folder, tmp_path)
    assert (source.classes.names, source.classes.is_thing) == (("cat", "sky", "grass"), (True, False, False))
    assert examples(source, "validation")["000000000009"].labels.tolist() == [1, 2]


def test_images_are_not_rotated_by_their_exif_data(tmp_path):
    """TFDS returns images as stored, and their labels match them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pets(tmp_path, image=encoded(photo(0), "JPEG", exif=exif))
    source = open_import("tfds:tiny_pets", trimap_classes(tmp_path), tmp_path)
    with Image.open(io.BytesIO(encoded(photo(0), "JPEG"))) as image:
        expected = np.asarray(image)
    np.testing.assert_array_equal(schema.decode_image(source.example("train", 0).image), expected)


def test_names_that_repeat_are_numbered(tmp_path):
    pets(tmp_path, file_name="same.jpg")
    source = open_import("tfds:tiny_pets", trimap_classes(tmp_path), tmp_path)
    assert set(examples(source, "train")) == {"same", "same-1", "same-2", "same-3"}


def test_an_imported_dataset_does_not_need_the_original(tmp_path):
    panoptic(tmp_path)
    open_import("tfds:tiny_panoptic", "", tmp_path)
    for path in (tmp_path / "tfds" / "tiny_panoptic").glob("*/*.tfrecord*"):
        path.unlink()
    assert open_import("tfds:tiny_panoptic", "", tmp_path).size("validation") == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"segmentation_mask": encoded(np.full(SIZE, 9), "PNG")}, ["'segmentation_mask' has label 9"]),
        ({"segmentation_mask": encoded(np.ones((9, 9)), "PNG")}, ["'image' has 30x20", "9x9"]),
        ({"image": encoded(photo(0), "JPEG")[:300]}, ["'image': not a readable image"]),
    ],
)
def test_bad_examples_are_named(tmp_path, changes, words):
    pets(tmp_path, **changes)
    with pytest.raises(UserError) as error:
        open_import("tfds:tiny_pets", trimap_classes(tmp_path), tmp_path)
    for word in ("tiny_pets/1.0.0, split 't", "example 0", *words):
        assert word in str(error.value)


def test_the_meaning_of_labels_is_required(tmp_path):
    pets(tmp_path)
    with pytest.raises(UserError, match=r"'segmentation_mask' of tiny_pets/1\.0\.0 mean.*\"values\".*data\.dir=FOLDER"):
        open_import("tfds:tiny_pets", "", tmp_path)
    with pytest.raises(UserError, match=r"classes\.json is missing"):
        open_import("tfds:tiny_pets", str(tmp_path), tmp_path)


PLANE = tfds.features.Image(shape=(None, None, 1))
PHOTO = tfds.features.Image(shape=(None, None, 3))


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ({"image": PHOTO, "label": tfds.features.ClassLabel(num_classes=3)}, ["found []", "label: ClassLabel ()"]),
        ({"image": PHOTO, "fine": PLANE, "coarse": PLANE}, ["found ['fine', 'coarse']", "fine: Image (None, None, 1)"]),
        ({"left": PHOTO, "right": PHOTO, "fine": PLANE}, ["found ['left', 'right']", "right: Image (None, None, 3)"]),
    ],
)
def test_features_that_do_not_fit_are_listed(tmp_path, features, words):
    builder = Tiny(features=features, splits={}, data_dir=tmp_path)
    with pytest.raises(UserError) as error:
        find_fields(builder.info)
    for word in ("tiny/1.0.0 cannot be imported", "config.data.name=folder", *words):
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("name", "image", "labels"),
    [
        ("oxford_iiit_pet", "image", "segmentation_mask"),
        ("cityscapes/semantic_segmentation", "image_left", "segmentation_label"),
        ("coco/2017_panoptic", "image", "panoptic_image"),
    ],
)
def test_the_fields_of_datasets_in_the_catalog(tmp_path, name, image, labels):
    fields = find_fields(tfds.builder(name, data_dir=tmp_path).info)
    assert (fields.image, fields.labels) == (image, labels)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tfds:oxford_iit_pet", ["'tfds:oxford_iit_pet'", "Did you mean oxford_iiit_pet"]),
        ("tfds:coco/2017_nothing", ["'tfds:coco/2017_nothing'", "2017_nothing not found"]),
        ("tfds:", ["'tfds:'", "tfds:oxford_iiit_pet"]),
        ("tfds_import", ["'tfds_import'", "write tfds:NAME"]),
    ],
)
def test_unknown_names_are_named(tmp_path, name, words):
    with pytest.raises(UserError) as error:
        open_import(name, "", tmp_path)
    for word in words:
        assert word in str(error.value)


def test_a_dataset_that_cannot_be_made_is_named(tmp_path):
    """Cityscapes must be downloaded manually, so no network is used."""
    folder = write_classes(tmp_path, names=["road"])
    with pytest.raises(
        UserError, match=r"(?s)could not make cityscapes/semantic_segmentation/1\.0\.0: .*`tfds build.*/tfds`"
    ):
        open_import("tfds:cityscapes/semantic_segmentation", folder, tmp_path)
