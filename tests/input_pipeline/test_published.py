"""Builders of published datasets: on real samples, on small trees of the same layout, and on bad files.

The builders for COCO's JSON files are tested in test_coco.py.
"""

import importlib
import io
import json
import shutil
import types

import cv2
import h5py
import numpy as np
import pytest
import scipy.io
from PIL import Image

from maskformer_jax import catalog
from maskformer_jax.data.ade20k_full import ade20k_full_dataset_builder
from maskformer_jax.data.cityscapes_panoptic import cityscapes_panoptic_dataset_builder
from maskformer_jax.data.coco_stuff import coco_stuff_dataset_builder
from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline.sources import open_source
from tests.input_pipeline.made import make, pixels, write


def refuses(name, root, tmp_path, words):
    """Checks that making a dataset fails with a message that has the words, and that nothing is left behind."""
    with pytest.raises(UserError) as error:
        open_source(name, str(root), str(tmp_path / "tfds"))
    for word in words:
        assert word in str(error.value)
    assert not list((tmp_path / "tfds" / name).glob("*"))


@pytest.mark.parametrize("name", ["ade20k", "camvid", "cityscapes_panoptic", "coco_instances", "mapillary"])
def test_an_empty_folder_is_named(tmp_path, name):
    (tmp_path / "empty").mkdir()
    refuses(name, tmp_path / "empty", tmp_path, ["data.dir is '", "/empty', which is empty. ", "FOLDER"])


# ----------------------------------------------------------------------------------------------------------- ADE20K


def ade20k_tree(root):
    for folder in ("training", "validation"):
        write(root / "images" / folder / "ADE_1.jpg", np.zeros((10, 15, 3)))
        write(root / "annotations" / folder / "ADE_1.png", np.arange(150).reshape(10, 15) + 1)
    return root


def test_ade20k_samples(shared_data, tmp_path):
    root = shared_data / "ade20k" / "ADEChallengeData2016"
    made = make("ade20k", root, tmp_path)
    assert len(made) == 3
    for image_id, one in made.items():
        labels = pixels(root / "annotations" / "validation" / f"{image_id}.png")
        np.testing.assert_array_equal(one.class_map(), labels - 1)
        np.testing.assert_array_equal(one.image, pixels(root / "images" / "validation" / f"{image_id}.jpg"))
        assert one.area == [np.sum(labels == label + 1) for label in one.labels]
        assert not any(one.is_crowd)


def test_ade20k_has_all_150_classes_and_other_is_void(tmp_path):
    root = ade20k_tree(tmp_path / "ade")
    write(root / "annotations" / "training" / "ADE_1.png", np.maximum(np.arange(150).reshape(10, 15) - 1, 0))
    assert make("ade20k", root, tmp_path)["ADE_1"].labels == list(range(150))
    one = make("ade20k", root, tmp_path, "train")["ADE_1"]
    assert np.sum(one.planes == 0) == 2
    assert one.labels == list(range(148))


def test_a_prepared_dataset_does_not_need_its_files(tmp_path):
    root = ade20k_tree(tmp_path / "ade")
    open_source("ade20k", str(root), str(tmp_path / "tfds"))
    shutil.rmtree(root)
    assert open_source("ade20k", "", str(tmp_path / "tfds")).size("validation") == 1


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda root: write(root / "annotations/training/ADE_1.png", np.full((10, 15), 151)),
            ["annotations/training/ADE_1.png has class 150", "150 classes"],
        ),
        (lambda root: (root / "annotations/training/ADE_1.png").unlink(), ["training/ADE_1.png is missing"]),
        (lambda root: write(root / "images/training/ADE_1.jpg", np.zeros((10, 14, 3))), ["14x10", "15x10"]),
        (lambda root: (root / "images/training/ADE_1.jpg").write_bytes(b"no"), ["ADE_1.jpg: not a readable image"]),
        (lambda root: shutil.rmtree(root / "images"), ["images/training", "ADEChallengeData2016.zip"]),
    ],
)
def test_bad_files_of_ade20k_are_named(tmp_path, spoil, words):
    root = ade20k_tree(tmp_path / "ade")
    spoil(root)
    refuses("ade20k", root, tmp_path, words)


def test_missing_files_are_explained(tmp_path):
    with pytest.raises(UserError, match=r"--config\.data\.dir=FOLDER\. Unpack leftImg8bit_trainvaltest"):
        open_source("cityscapes_semantic", "", str(tmp_path / "tfds"))


BUILDING, SKY, BED, PERSON = 1, 2, 7, 12  # classes; bed is the first thing class, and person the fourth


def ade20k_panoptic_tree(root, instance=(4, 2)):
    """Building on the left, sky on the right; two persons on the building, and a bed without an instance."""
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
    one = make("ade20k_panoptic", ade20k_panoptic_tree(tmp_path / "ade"), tmp_path)["a"]
    assert one.labels == [BUILDING, SKY, PERSON, PERSON]
    # Building has 7 x 5 pixels minus the labels of person and bed; the second person covers 5 more of them.
    assert one.area == [7 * 5 - 4 - 4, 7 * 5, 3, 6]
    assert [int(one.mask(number).sum()) for number in range(4)] == [7 * 5 - 4 - 4 - 5, 7 * 5, 3, 6]
    assert not one.planes[0, 0].any()
    assert not one.planes[0, 6:, :2].any()


def test_an_ade20k_instance_with_two_classes_is_named(tmp_path):
    root = ade20k_panoptic_tree(tmp_path / "ade", instance=(7, 1))
    refuses("ade20k_panoptic", root, tmp_path, ["validation/a.png: instance 1 has the classes [4, 7]"])


def test_ade20k_instances_are_the_things_of_the_panoptic_dataset(tmp_path):
    root = ade20k_panoptic_tree(tmp_path / "ade")
    shutil.rmtree(root / "annotations")  # semantic labels are not needed
    one = make("ade20k_instances", root, tmp_path)["a"]
    person = catalog.load("ade20k_instances").names.index("person")
    assert (one.labels, one.area, one.is_crowd) == ([person] * 2, [3, 6], [False] * 2)
    instances = pixels(root / "annotations_instance" / "validation" / "a.png")[..., 1]
    for number in range(2):
        np.testing.assert_array_equal(one.mask(number), instances == number + 1)


def test_an_ade20k_image_without_instances_has_no_segment(tmp_path):
    root = ade20k_panoptic_tree(tmp_path / "ade")
    write(root / "annotations_instance" / "validation" / "a.png", np.zeros((8, 10, 3)))
    one = make("ade20k_instances", root, tmp_path)["a"]
    assert (one.labels, one.planes.shape, one.planes.any()) == ([], (1, 8, 10), False)


@pytest.mark.parametrize(
    ("instances", "words"),
    [
        (np.full((8, 10), 1), ["validation/a.png has shape (8, 10)", "three channels"]),
        (np.full((8, 10, 3), 101), ["validation/a.png: instance 101 has the classes [101]", "1..100"]),
        (np.full((8, 11, 3), 1), ["images/validation/a.jpg has 10x8 pixels", "11x8"]),
    ],
)
def test_bad_files_of_ade20k_instances_are_named(tmp_path, instances, words):
    root = ade20k_panoptic_tree(tmp_path / "ade")
    write(root / "annotations_instance" / "validation" / "a.png", instances)
    refuses("ade20k_instances", root, tmp_path, words)


def test_the_numbers_of_ade20k_things_are_the_published_mapping(shared_data):
    lines = (shared_data / "metadata" / "categoryMapping.txt").read_text().splitlines()[1:]
    mapping = {}
    for line in lines:
        kind, label = (field.split(":")[0] for field in line.split()[:2])
        mapping[int(kind)] = int(label) - 1
    things = np.flatnonzero(catalog.load("ade20k_panoptic").is_thing)
    assert mapping == {kind: label for kind, label in enumerate(things.tolist(), start=1)}


def test_a_label_beyond_the_classes_of_ade20k_panoptic_is_named(tmp_path):
    root = ade20k_panoptic_tree(tmp_path / "ade")
    write(root / "annotations" / "validation" / "a.png", np.full((8, 10), 151))
    refuses("ade20k_panoptic", root, tmp_path, ["annotations/validation/a.png has label 151", "0 to 150"])


# -------------------------------------------------------------------------------------------------------- ADE20K-full


def raw_colors(raw_ids):
    """[..., 3] as in *_seg.png; the last digit of red and the blue channel are not part of the number."""
    raw_ids = np.asarray(raw_ids)
    return np.stack([raw_ids // 256 * 10 + raw_ids % 7, raw_ids % 256, raw_ids % 200 + 3], axis=-1)


def all_raw_ids():
    return json.loads(ade20k_full_dataset_builder.RAW_IDS.read_text())


def ade20k_full_tree(root, labels=None, image=None):
    """One image whose name makes it a validation image, as published."""
    labels = np.array(all_raw_ids()).reshape(7, 121) if labels is None else labels
    folder = root / "images" / "ADE" / "validation" / "urban" / "street"
    write(folder / "ADE_val_1.jpg", np.zeros((*labels.shape, 3)) if image is None else image)
    write(folder / "ADE_val_1_seg.png", raw_colors(labels))
    write(folder / "ADE_val_1_parts_1.png", np.zeros((4, 4, 3)))
    write(folder / "ADE_val_1" / "instance_000_ADE_val_1.png", np.zeros((4, 4)))
    return root


def prepared_ade20k_full_tree(root, labels):
    for folder in ("training", "validation"):
        write(root / "images_detectron2" / folder / "ADE_1.jpg", np.zeros((*labels.shape, 3)))
        write(root / "annotations_detectron2" / folder / "ADE_1.tif", labels, dtype=np.uint16)
    return root


def test_ade20k_full_has_all_847_classes_and_other_numbers_are_void(tmp_path):
    others = sorted(set(range(3500)) - set(all_raw_ids()))[: 9 * 121]
    labels = np.concatenate([all_raw_ids(), others]).reshape(16, 121)
    one = make("ade20k_full", ade20k_full_tree(tmp_path / "ade", labels), tmp_path)["ADE_val_1"]
    np.testing.assert_array_equal(one.class_map()[:7], np.arange(847).reshape(7, 121))
    assert (one.class_map()[7:] == -1).all()
    assert one.planes.max() == 847  # more than 8 bits can hold


def test_raw_ids_of_ade20k_full_are_the_published_ones(shared_data):
    published = json.loads((shared_data / "metadata" / "ade20k_full_847.json").read_text())
    names = catalog.load("ade20k_full").names
    for index, (raw_id, entry) in enumerate(zip(all_raw_ids(), published, strict=True)):
        assert (entry["trainId"], entry["id"]) == (index, raw_id)
        assert names[index] in (entry["name"], entry["name"].split(",")[0])


def test_ade20k_full_splits_by_the_names_of_files(tmp_path):
    root = ade20k_full_tree(tmp_path / "ade")
    for folder, name in (("training/a", "ADE_train_7"), ("training/b", "ADE_val_9"), ("validation/c", "ADE_train_8")):
        write(root / "images" / "ADE" / folder / f"{name}.jpg", np.zeros((3, 4, 3)))
        write(root / "images" / "ADE" / folder / f"{name}_seg.png", raw_colors(np.full((3, 4), 2978)))
    assert set(make("ade20k_full", root, tmp_path)) == {"ADE_val_1", "ADE_val_9"}
    assert set(make("ade20k_full", root, tmp_path, "train")) == {"ADE_train_7", "ADE_train_8"}
    write(root / "images" / "ADE" / "training" / "photo.jpg", np.zeros((3, 4, 3)))
    refuses("ade20k_full", root, tmp_path / "again", ["photo.jpg", "ADE_train_"])


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((521, 777), (512, 764)),  # 763.6
        ((777, 521), (764, 512)),
        ((600, 600), (512, 512)),
        ((513, 600), (512, 599)),  # 598.8
        ((512, 900), None),
        ((300, 2000), None),
    ],
)
def test_large_images_of_ade20k_full_are_shrunk(tmp_path, size, expected):
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8), size[::-1])
    labels = rng.integers(0, 847, size)
    root = ade20k_full_tree(tmp_path / "ade", np.array(all_raw_ids())[labels], image)
    one = make("ade20k_full", root, tmp_path)["ADE_val_1"]
    path = root / "images" / "ADE" / "validation" / "urban" / "street" / "ADE_val_1.jpg"
    if expected is None:
        assert one.data == path.read_bytes()
        np.testing.assert_array_equal(one.class_map(), labels)
        return
    assert one.image.shape == (*expected, 3)
    rows, columns = (np.arange(new) * old // new for new, old in zip(expected, size, strict=True))
    np.testing.assert_array_equal(one.class_map(), labels[rows][:, columns])
    assert one.area == [np.sum(one.class_map() == label) for label in one.labels]

    file = io.BytesIO()
    shrunk = cv2.resize(pixels(path).astype(np.uint8), expected[::-1], interpolation=cv2.INTER_LINEAR)
    Image.fromarray(shrunk).save(file, "JPEG")
    assert one.data == file.getvalue()


def test_ade20k_full_as_prepared(tmp_path):
    labels = np.arange(900).reshape(20, 45)
    labels[labels >= 847] = 65535
    root = prepared_ade20k_full_tree(tmp_path / "ade", labels)
    for split in ("train", "validation"):
        one = make("ade20k_full", root, tmp_path, split)["ADE_1"]
        np.testing.assert_array_equal(one.class_map(), np.where(labels == 65535, -1, labels))


def test_ade20k_full_as_published_comes_first(tmp_path):
    root = prepared_ade20k_full_tree(ade20k_full_tree(tmp_path / "ade"), np.zeros((5, 6)))
    assert set(make("ade20k_full", root, tmp_path)) == {"ADE_val_1"}
    assert set(make("ade20k_full", root, tmp_path, "train")) == {"ADE_1"}  # only prepared


STREET = "images/ADE/validation/urban/street"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: (root / STREET / "ADE_val_1_seg.png").unlink(), ["ADE_val_1_seg.png is missing"]),
        (
            lambda root: write(root / STREET / "ADE_val_1_seg.png", np.zeros((7, 121))),
            ["ADE_val_1_seg.png has shape (7, 121)", "three channels"],
        ),
        (lambda root: write(root / STREET / "ADE_val_1.jpg", np.zeros((7, 120, 3))), ["120x7", "121x7"]),
        (lambda root: (root / "images").rename(root / "pictures"), ["images/ADE/training", "ADE20K_2021_17_01"]),
        (
            lambda root: write(root / STREET.replace("urban", "rural") / "ADE_val_1.jpg", np.zeros((3, 4, 3))),
            ["ADE_val_1_seg.png is missing"],
        ),
        (
            lambda root: shutil.copytree(root / STREET, root / "images" / "ADE" / "again"),
            ["'validation': two images have the id 'ADE_val_1'"],
        ),
    ],
)
def test_bad_files_of_ade20k_full_are_named(tmp_path, spoil, words):
    root = ade20k_full_tree(tmp_path / "ade")
    spoil(root)
    refuses("ade20k_full", root, tmp_path, words)


@pytest.mark.parametrize("labels", [np.full((4, 5), 847), np.full((4, 5), 254)[..., None].repeat(3, axis=-1)])
def test_prepared_labels_of_another_shape_or_range_are_refused(tmp_path, labels):
    root = prepared_ade20k_full_tree(tmp_path / "ade", np.zeros((4, 5)))
    path = root / "annotations_detectron2" / "validation" / "ADE_1.tif"
    write(path, labels, dtype=np.uint16 if labels.ndim == 2 else np.uint8)
    refuses("ade20k_full", root, tmp_path, [f"{path} has shape", str(labels.max()), "0 to 846"])


# --------------------------------------------------------------------------------------------------------- COCO-Stuff

VOID_1_0, VOID_1_1 = 1, 0


def write_mat(path, labels, names, kind=5, dtype=np.uint8):
    """A MATLAB file like the publisher's: version 5, or 7.3, which is HDF5 after 512 bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = np.array([f"class {index}" for index in range(names)], object)
    if kind == 5:
        scipy.io.savemat(path, {"S": labels.astype(dtype), "names": cells, "captions": cells[:2]})
        return
    with h5py.File(path, "w", userblock_size=512) as file:
        file["S"] = labels.astype(dtype).T
        file["names"] = np.zeros((names, 1), np.uint64)
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")


def coco_stuff_tree(root, labels, names=172, **options):
    for name, image_id in (("train", "COCO_train2014_1"), ("test", "COCO_train2014_2")):
        write(root / "images" / f"{image_id}.jpg", np.zeros((*labels.shape, 3)))
        write_mat(root / "annotations" / f"{image_id}.mat", labels, names, **options)
        (root / "imageLists").mkdir(exist_ok=True)
        (root / "imageLists" / f"{name}.txt").write_text(f"{image_id}\n")
    write(root / "images" / "COCO_train2014_3.jpg", np.zeros((4, 4, 3)))  # in no list
    return root


def published_coco_stuff_ids(shared_data):
    return [entry["id"] for entry in json.loads((shared_data / "metadata" / "coco_stuff_171.json").read_text())]


@pytest.mark.parametrize("kind", [5, 7.3])
def test_coco_stuff_1_0_in_both_formats(tmp_path, kind):
    labels = np.arange(1, 173).reshape(4, 43)  # 1 is unlabeled
    root = coco_stuff_tree(tmp_path / "stuff", labels, kind=kind)
    one = make("coco_stuff", root, tmp_path)["COCO_train2014_2"]
    np.testing.assert_array_equal(one.class_map(), labels - 2)
    assert set(make("coco_stuff", root, tmp_path, "train")) == {"COCO_train2014_1"}


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_coco_stuff_1_1_numbers_classes_as_coco_does(shared_data, tmp_path, dtype):
    ids = np.array(published_coco_stuff_ids(shared_data))
    labels = np.append(ids, VOID_1_1).reshape(4, 43)
    root = coco_stuff_tree(tmp_path / "stuff", labels, names=182, dtype=dtype)
    one = make("coco_stuff", root, tmp_path)["COCO_train2014_2"]
    np.testing.assert_array_equal(one.class_map().ravel(), [*range(171), -1])


def test_coco_stuff_as_prepared(tmp_path):
    labels = np.append(np.arange(171), 255).reshape(4, 43)
    root = tmp_path / "stuff"
    for folder in ("train", "test"):
        write(root / "images_detectron2" / folder / "a.jpg", np.zeros((4, 43, 3)))
        write(root / "annotations_detectron2" / folder / "a.png", labels)
    for split in ("train", "validation"):
        one = make("coco_stuff", root, tmp_path, split)["a"]
        np.testing.assert_array_equal(one.class_map(), np.where(labels == 255, -1, labels))
    shutil.rmtree(tmp_path / "tfds")
    write(root / "annotations_detectron2" / "test" / "a.png", labels + 1)
    refuses("coco_stuff", root, tmp_path, ["test/a.png", "labels [171]", "0 to 170", "255 for void"])


def lack(key, root):
    path = root / "annotations" / "COCO_train2014_1.mat"
    values = scipy.io.loadmat(path)
    scipy.io.savemat(path, {name: values[name] for name in ("S", "names") if name != key})


TWO = np.full((4, 5), 2)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: coco_stuff_tree(root, TWO - 2), ["COCO_train2014_1.mat", "labels [0]", "2 to 172", "1 for void"]),
        (lambda root: coco_stuff_tree(root, TWO + 171), ["labels [173]", "2 to 172"]),
        (lambda root: coco_stuff_tree(root, TWO + 10, names=182), ["labels [12]", "1 to 182", "0 for void"]),
        (lambda root: coco_stuff_tree(root, TWO, names=91), ["names 91 classes", "182 (release 1.1)"]),
        (lambda root: lack("S", root), ["COCO_train2014_1.mat lacks", "'S'"]),
        (lambda root: lack("names", root), ["COCO_train2014_1.mat lacks", "'names'"]),
        (lambda root: (root / "annotations/COCO_train2014_1.mat").unlink(), ["COCO_train2014_1.mat is missing"]),
        (lambda root: (root / "annotations/COCO_train2014_1.mat").write_bytes(b"no"), ["1.mat: not a readable MATLAB"]),
        (lambda root: (root / "images/COCO_train2014_1.jpg").unlink(), ["COCO_train2014_1.jpg is missing"]),
        (lambda root: write(root / "images/COCO_train2014_1.jpg", np.zeros((4, 6, 3))), ["6x4", "5x4"]),
        (lambda root: (root / "imageLists/train.txt").write_text("a\na\n"), ["a.mat is missing"]),
        (lambda root: (root / "imageLists/train.txt").write_text("../../a\n"), ["imageLists/train.txt", "leads out"]),
        (lambda root: (root / "imageLists/train.txt").write_bytes(b"\xff\n"), ["imageLists/train.txt cannot be read"]),
        (
            lambda root: (root / "imageLists/train.txt").write_text("COCO_train2014_1\nCOCO_train2014_1\n"),
            ["two images have the id 'COCO_train2014_1'"],
        ),
        (lambda root: shutil.rmtree(root / "imageLists"), ["imageLists/train.txt", "cocostuff-10k-v1.1.zip"]),
    ],
)
def test_bad_files_of_coco_stuff_are_named(tmp_path, spoil, words):
    root = coco_stuff_tree(tmp_path / "stuff", TWO)
    spoil(root)
    refuses("coco_stuff", root, tmp_path, words)


def test_a_damaged_file_of_matlab_7_3_is_named(tmp_path):
    root = coco_stuff_tree(tmp_path / "stuff", TWO, kind=7.3)
    path = root / "annotations" / "COCO_train2014_1.mat"
    path.write_bytes(path.read_bytes()[:700])
    refuses("coco_stuff", root, tmp_path, [f"{path}: not a readable MATLAB file"])


def test_the_labels_of_both_releases_name_the_same_classes(shared_data):
    (old, _), (new, _) = (coco_stuff_dataset_builder.RELEASES[names] for names in (172, 182))
    assert list(old) == list(range(2, 173))
    assert list(new) == published_coco_stuff_ids(shared_data)


# --------------------------------------------------------------------------------------------------------- Cityscapes


def published_cityscapes_labels(shared_data):
    return json.loads((shared_data / "metadata" / "cityscapes_labels.json").read_text())


def test_cityscapes_sample_has_the_official_train_ids(shared_data, tmp_path):
    root = shared_data / "cityscapes"
    ((image_id, one),) = make("cityscapes_semantic", root, tmp_path).items()
    train_ids = pixels(root / "gtFine" / "val" / "frankfurt" / f"{image_id}_gtFine_labelTrainIds.png")
    np.testing.assert_array_equal(one.class_map(), np.where(train_ids == 255, -1, train_ids))


def test_cityscapes_panoptic_sample_has_the_official_classes(shared_data, tmp_path):
    # From its labels: 77 train ids of this frame, which was scaled, differ from the labels next to them.
    root = shared_data / "cityscapes"
    ((image_id, one),) = make("cityscapes_panoptic", root, tmp_path).items()
    train_id = {entry["id"]: entry["trainId"] for entry in published_cityscapes_labels(shared_data)}
    labels = pixels(root / "gtFine" / "val" / "frankfurt" / f"{image_id}_gtFine_labelIds.png")
    expected = np.vectorize(train_id.get)(labels)
    np.testing.assert_array_equal(one.class_map(), np.where(expected == 255, -1, expected))


def test_cityscapes_sample_has_every_instance(shared_data, tmp_path):
    root = shared_data / "cityscapes"
    ((image_id, one),) = make("cityscapes_panoptic", root, tmp_path).items()
    instances = pixels(root / "gtFine" / "val" / "frankfurt" / f"{image_id}_gtFine_instanceIds.png")
    things = [value for value in np.unique(instances) if value >= 1000]
    assert len(things) == 7
    is_thing = catalog.load("cityscapes_panoptic").is_thing
    found = [number for number, label in enumerate(one.labels) if is_thing[label]]
    for number, value in zip(found, things, strict=True):
        np.testing.assert_array_equal(one.mask(number), instances == value)
    assert one.area == [one.mask(number).sum() for number in range(len(one.labels))]
    assert not any(one.is_crowd)


def cityscapes_tree(root, instances):
    for folder in ("train", "val"):
        path = root / "gtFine" / folder / "ulm" / "ulm_1_2_gtFine_instanceIds.png"
        write(path, instances, dtype=np.uint16)
        write(root / "leftImg8bit" / folder / "ulm" / "ulm_1_2_leftImg8bit.png", np.zeros((*instances.shape[:2], 3)))
    return root


def test_cityscapes_groups_are_crowds(tmp_path):
    road, person, car, bicycle = 0, 11, 13, 18
    row = [7, 0, 24, 24, 24001, 24002, 26, 26013, 29, 29001, 33000, 5, 7]
    made = make("cityscapes_panoptic", cityscapes_tree(tmp_path / "city", np.array([row] * 2)), tmp_path)
    one = made["ulm_1_2"]
    assert list(zip(one.labels, one.is_crowd, one.area, strict=True)) == [
        (road, False, 4),
        (person, True, 4),
        (car, True, 2),
        (person, False, 2),
        (person, False, 2),
        (car, False, 2),
        (bicycle, False, 2),
    ]
    # A caravan (29) is also a thing, but not evaluated: void, like "unlabeled" and "dynamic".
    assert one.planes[0, 0].tolist() == [1, 0, 2, 2, 4, 5, 3, 6, 0, 0, 7, 0, 1]


def test_cityscapes_instances_are_the_things_of_the_panoptic_dataset(tmp_path):
    person, car, bicycle = 0, 2, 7
    row = [7, 0, 24, 24, 24001, 24002, 26, 26013, 29, 29001, 33000, 5, 7]
    root = cityscapes_tree(tmp_path / "city", np.array([row] * 2))
    one = make("cityscapes_instances", root, tmp_path)["ulm_1_2"]
    assert list(zip(one.labels, one.is_crowd, one.area, strict=True)) == [
        (person, True, 4),
        (car, True, 2),
        (person, False, 2),
        (person, False, 2),
        (car, False, 2),
        (bicycle, False, 2),
    ]
    assert one.planes[0, 0].tolist() == [0, 0, 1, 1, 3, 4, 2, 5, 0, 0, 6, 0, 0]
    refuses(
        "cityscapes_instances", cityscapes_tree(tmp_path / "bad", np.full((2, 3), 34001)), tmp_path / "b", ["34001"]
    )


def test_cityscapes_instances_of_the_sample(shared_data, tmp_path):
    root = shared_data / "cityscapes"
    ((image_id, one),) = make("cityscapes_instances", root, tmp_path).items()
    instances = pixels(root / "gtFine" / "val" / "frankfurt" / f"{image_id}_gtFine_instanceIds.png")
    things = [value for value in np.unique(instances) if value >= 1000]
    ids = catalog.load("cityscapes_instances").ids
    assert [ids[label] for label in one.labels] == [value // 1000 for value in things]
    for number, value in enumerate(things):
        np.testing.assert_array_equal(one.mask(number), instances == value)


def test_labels_of_cityscapes_are_the_published_ones(shared_data):
    published = published_cityscapes_labels(shared_data)
    builder = cityscapes_panoptic_dataset_builder
    evaluated = [entry for entry in published if not entry["ignoreInEval"]]
    assert [(entry["id"], entry["trainId"]) for entry in evaluated] == [
        (label, index) for index, label in enumerate(catalog.load("cityscapes_panoptic").ids)
    ]
    classes = catalog.load("cityscapes_panoptic")
    assert list(classes.is_thing) == [entry["hasInstances"] for entry in evaluated]
    assert [entry["id"] for entry in published if entry["id"] >= 0] == list(builder.LABELS)


@pytest.mark.parametrize(
    ("instances", "words"),
    [
        (np.full((2, 3), 255), ["instanceIds.png has shape (2, 3) and the value 255", "0 to 33"]),
        (np.full((2, 3), 34001), ["the value 34001"]),
    ],
)
def test_unknown_cityscapes_labels_are_named(tmp_path, instances, words):
    refuses("cityscapes_panoptic", cityscapes_tree(tmp_path / "city", instances), tmp_path, words)


def test_cityscapes_files_that_are_missing_or_differ_are_named(tmp_path):
    root = cityscapes_tree(tmp_path / "city", np.full((2, 3), 7))
    write(root / "leftImg8bit" / "train" / "ulm" / "ulm_1_2_leftImg8bit.png", np.zeros((3, 2, 3)))
    refuses("cityscapes_panoptic", root, tmp_path, ["2x3", "3x2"])
    (root / "gtFine" / "train" / "ulm" / "ulm_1_2_gtFine_instanceIds.png").unlink()
    refuses("cityscapes_panoptic", root, tmp_path, ["train/ulm/ulm_1_2_gtFine_instanceIds.png is missing"])


# -------------------------------------------------------------------------------------------------- CamVid, Mapillary


def camvid_tree(root, layout):
    labels = np.arange(12).reshape(3, 4)
    for shift, folder in enumerate(("train", "val", "test")):
        images, annotations = layout.format(folder).split()
        write(root / images / f"{folder}_1.png", np.full((3, 4, 3), shift))
        write(root / annotations / f"{folder}_1.png", (labels + shift) % 12)
    return root


@pytest.mark.parametrize("layout", ["{0} {0}annot", "images/{0} labels/{0}"])
def test_camvid_in_both_layouts(tmp_path, layout):
    root = camvid_tree(tmp_path / "CamVid", layout)
    for shift, (split, folder) in enumerate((("train", "train"), ("validation", "val"), ("test", "test"))):
        one = make("camvid", root, tmp_path, split)[f"{folder}_1"]
        labels = (np.arange(12).reshape(3, 4) + shift) % 12
        np.testing.assert_array_equal(one.class_map(), np.where(labels == 11, -1, labels))
        assert (one.image == shift).all()


def test_camvid_samples(shared_data, tmp_path):
    root = tmp_path / "camvid"
    for kind in ("images", "labels"):  # all 101 validation images, and a few to train on
        (root / kind).mkdir(parents=True)
        (root / kind / "val").symlink_to(shared_data / "camvid" / kind / "val")
        (root / kind / "train").mkdir()
        for path in sorted((shared_data / "camvid" / kind / "train").iterdir())[:3]:
            (root / kind / "train" / path.name).symlink_to(path)
    made = make("camvid", root, tmp_path)
    assert len(made) == 101
    for image_id, one in made.items():
        labels = pixels(root / "labels" / "val" / f"{image_id}.png")
        np.testing.assert_array_equal(one.class_map(), np.where(labels == 11, -1, labels))
        assert one.data == (root / "images" / "val" / f"{image_id}.jpg").read_bytes()
    assert len(make("camvid", root, tmp_path, "train")) == 3
    classes = json.loads((shared_data / "camvid" / "classes.json").read_text())
    known = catalog.load("camvid")
    assert list(known.names) == classes["names"]
    assert [list(color) for color in known.colors] == classes["colors"]
    assert known.ignore_index == classes["ignore_index"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda root: write(root / "valannot" / "val_1.png", np.full((3, 4), 12)),
            ["valannot/val_1.png has class 12", "11 classes"],
        ),
        (lambda root: (root / "testannot" / "test_1.png").unlink(), ["testannot/test_1.png is missing"]),
        (lambda root: write(root / "val" / "val_1.png", np.zeros((4, 4, 3))), ["4x4", "4x3"]),
        (lambda root: shutil.copy(root / "val" / "val_1.png", root / "val" / "val_1.jpg"), ["two images", "'val_1'"]),
    ],
)
def test_bad_files_of_camvid_are_named(tmp_path, spoil, words):
    root = camvid_tree(tmp_path / "CamVid", "{0} {0}annot")
    spoil(root)
    refuses("camvid", root, tmp_path, words)


def mapillary_tree(root):
    for folder, shift in (("training", 0), ("validation", 40)):
        write(root / folder / "images" / "a.jpg", np.zeros((4, 6, 3)))
        write(root / folder / "labels" / "a.png", np.arange(24).reshape(4, 6) + 2 + shift, mode="P")
    return root


def test_mapillary_palette_indices_are_classes_and_65_is_void(tmp_path):
    root = mapillary_tree(tmp_path / "vistas")
    expected = np.arange(24).reshape(4, 6) + 42
    one = make("mapillary", root, tmp_path)["a"]
    np.testing.assert_array_equal(one.class_map(), np.where(expected == 65, -1, expected))
    one = make("mapillary", root, tmp_path, "train")["a"]
    np.testing.assert_array_equal(one.class_map(), np.arange(24).reshape(4, 6) + 2)


ROAD, CAR, POLE = 13, 55, 45  # classes; their ids in the JSON file are one higher


def mapillary_panoptic_tree(root, **changes):
    """Road with two cars, a crowd of poles, and a void corner."""
    ids = np.full((4, 6), 700_000)
    ids[1, :2], ids[1, 2:4], ids[3], ids[0, 0] = 1, 256, 65_536, 0
    classes = catalog.load("mapillary_panoptic")
    infos = [(1, CAR, 0, 2), (256, CAR, 0, 2), (700_000, ROAD, 0, 13), (65_536, POLE, 1, 6)]
    segments = [
        {"id": number, "category_id": label + 1, "iscrowd": crowd, "area": area} for number, label, crowd, area in infos
    ]
    categories = [
        {"id": number, "name": name, "isthing": int(thing)}
        for number, name, thing in zip(classes.ids, classes.names, classes.is_thing, strict=True)
    ]
    for folder in ("training", "validation"):
        write(root / folder / "images" / "a.jpg", np.zeros((4, 6, 3)))
        write(root / folder / "panoptic" / "a.png", np.stack([ids % 256, ids // 256 % 256, ids // 65_536], axis=-1))
        values = {
            "images": [{"id": "a", "file_name": "a.jpg", "height": 4, "width": 6}],
            "annotations": [{"image_id": "a", "file_name": "a.png", "segments_info": segments}],
            "categories": categories,
        }
        (root / folder / "panoptic" / "panoptic_2018.json").write_text(json.dumps({**values, **changes}))
    return root


@pytest.mark.parametrize("split", ["train", "validation"])
def test_mapillary_panoptic_keeps_the_order_of_the_semantic_classes(tmp_path, split):
    one = make("mapillary_panoptic", mapillary_panoptic_tree(tmp_path / "vistas"), tmp_path, split)["a"]
    assert (one.labels, one.is_crowd, one.area) == (
        [CAR, CAR, ROAD, POLE],
        [False, False, False, True],
        [2, 2, 13, 6],
    )
    assert one.planes[0].tolist() == [[0, 3, 3, 3, 3, 3], [1, 1, 2, 2, 3, 3], [3] * 6, [4] * 6]


def test_categories_that_are_not_mapillarys_are_named(tmp_path):
    root = mapillary_panoptic_tree(
        tmp_path / "vistas", categories=[{"id": 1, "name": "Cat"}, {"id": 3, "name": "Curb"}]
    )
    refuses("mapillary_panoptic", root, tmp_path, ["panoptic_2018.json has 2 categories", "((1, 'Cat'), (1, 'Bird'))"])


# --------------------------------------------------------------------------------------------------- the values written


@pytest.mark.parametrize("name", ["ade20k", "camvid", "mapillary"])
def test_results_and_label_files_use_the_same_values(name):
    """Results are written with the values of the catalog; the builders read the publisher's files."""
    builder = importlib.import_module(f"maskformer_jax.data.{name}.{name}_dataset_builder").Builder
    classes = catalog.load(name)
    reader = types.SimpleNamespace(classes=classes)
    assert builder.to_classes(reader, np.array(classes.values)).tolist() == list(range(len(classes)))
