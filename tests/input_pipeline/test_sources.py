"""Which folders are which dataset, unusual names in folders, and datasets that are damaged."""

import collections
import itertools
import json
import os
import shutil
import unicodedata

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline import folders, labels
from maskformer_jax.input_pipeline.augment import Augmentation
from maskformer_jax.input_pipeline.loader import Host, train_batches
from maskformer_jax.input_pipeline.sources import open_source
from tests.input_pipeline.folders import COLORS, NAMES, class_map, examples, write_classes, write_folder


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "mine", train=3, val=1)


def open_folder(folder, tmp_path, kind="folder"):
    return open_source(kind, str(folder), str(tmp_path / "tfds"))


def made(tmp_path, kind="folder"):
    return sorted(path.parent.parent.name for path in (tmp_path / "tfds" / kind).glob("*/*/dataset_info.json"))


# What a dataset is made of.


def test_names_colors_and_things_change_without_a_new_dataset(folder, tmp_path):
    before = open_folder(folder, tmp_path)
    write_classes(folder, names=["air", "street", "bus"], things=["bus"], ids=[5, 6, 7], values=[0, 1, 2])
    after = open_folder(folder, tmp_path)
    assert after.classes.names == ("air", "street", "bus")
    assert after.classes.is_thing == (False, False, True)
    assert after.classes.ids == (5, 6, 7)
    assert after.builder.data_path == before.builder.data_path
    assert len(made(tmp_path)) == 1


@pytest.mark.parametrize(
    "values",
    [
        {"values": [2, 1, 0]},
        {"names": [*NAMES, "bus"]},
        {"void_values": [9]},
        {"ignore_index": 255, "void_values": [4]},
    ],
)
def test_what_labels_mean_makes_a_new_dataset(folder, tmp_path, values):
    open_folder(folder, tmp_path)
    write_classes(folder, **{"ignore_index": 255, **values})
    source = open_folder(folder, tmp_path)
    assert len(made(tmp_path)) == 2
    if "values" in values:
        before, after = {0: 2, 1: 1, 2: 0}, examples(source, "val")["000"]
        assert {before[label] for label in np.unique(class_map(after)) if label >= 0} <= {0, 1, 2}
        assert class_map(after)[8, 8] == 2  # a pixel of value 0


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_a_file_of_the_same_size_and_time_is_noticed(folder, tmp_path, kind):
    path = folder / kind / "train" / "001.png"
    open_folder(folder, tmp_path)
    state, data = path.stat(), path.read_bytes()
    other = Image.fromarray(np.zeros_like(np.asarray(Image.open(path))))
    other.save(path)
    path.write_bytes(path.read_bytes() + bytes(len(data) - path.stat().st_size))  # zeros behind the end do not count
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns)
    source = open_folder(folder, tmp_path)
    assert len(made(tmp_path)) == 2
    if kind == "labels":
        assert examples(source, "train")["001"].labels.tolist() == [0]


def test_a_copied_folder_is_the_same_dataset(folder, tmp_path, monkeypatch):
    before = open_folder(folder, tmp_path)
    copy = tmp_path / "another name"
    shutil.copytree(folder, copy, copy_function=shutil.copyfile)
    (copy / "images" / "train" / "Thumbs.db").write_text("x")
    (copy / "images" / "train" / ".DS_Store").write_text("x")
    (copy / "images" / "train" / "notes.txt").write_text("x")

    def fail(self, path):
        raise AssertionError("nothing is made")

    monkeypatch.setattr(labels.LabelFiles, "read", fail)
    assert open_folder(copy, tmp_path).builder.data_path == before.builder.data_path


def test_earlier_datasets_of_a_folder_are_named(folder, tmp_path, capfd):
    first = open_folder(folder, tmp_path).builder.data_path.parent
    same_name = write_folder(tmp_path / "elsewhere" / "mine", train=1, val=1)
    other = open_folder(same_name, tmp_path).builder.data_path.parent
    assert "Of earlier states" not in capfd.readouterr().err
    write_classes(folder, void_values=[9])
    open_folder(folder, tmp_path)
    said = capfd.readouterr().err
    assert f"rm -r {first}" in said
    assert f"{first.name} (" in said
    assert "kB)" in said
    assert str(other) not in said
    open_folder(folder, tmp_path)
    assert "Of earlier states" not in capfd.readouterr().err


def test_a_dataset_of_an_earlier_version_is_named_without_the_new_one(folder, tmp_path, monkeypatch, capfd):
    first = open_folder(folder, tmp_path).builder
    monkeypatch.setattr(type(first), "VERSION", tfds.core.Version("99.0.0"))
    second = open_folder(folder, tmp_path).builder
    assert second.data_path.parent == first.data_path.parent
    said = capfd.readouterr().err
    assert f"{first.data_path.parent.name}/{first.data_path.name} (" in said
    assert f"rm -r {first.data_path}\n" in said


def test_a_folder_that_changes_while_its_dataset_is_made(folder, tmp_path, monkeypatch):
    read = labels.LabelFiles.read

    def change(self, path):
        if path.parent.name == "val":
            with (folder / "images" / "train" / "000.png").open("ab") as file:
                file.write(b"more")
        return read(self, path)

    monkeypatch.setattr(labels.LabelFiles, "read", change)
    with pytest.raises(UserError, match=r"mine changed while its dataset was made"):
        open_folder(folder, tmp_path)
    assert not made(tmp_path)


def test_a_disk_without_room_for_the_images_is_named_before_work(folder, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(folders, "free_bytes", lambda path: 10)
    said = []
    read = labels.LabelFiles.read
    monkeypatch.setattr(
        labels.LabelFiles, "read", lambda self, path: said.append(capfd.readouterr().err) or read(self, path)
    )
    open_folder(folder, tmp_path)
    assert "mine may need " in said[0]
    assert "tfds has 10 bytes free" in said[0]


def colored(folder):
    table = np.zeros((256, 3), np.uint8)
    table[:3] = COLORS
    for path in (folder / "labels").glob("*/*.png"):
        Image.fromarray(table[np.asarray(Image.open(path))]).save(path)


def test_other_colors_make_a_new_dataset_only_if_labels_are_colored(folder, tmp_path):
    before = open_folder(folder, tmp_path)
    write_classes(folder, ignore_index=255, colors=[[1, 1, 1], [2, 2, 2], [3, 3, 3]], void_colors=[[0, 0, 0]])
    after = open_folder(folder, tmp_path)
    assert after.builder.data_path == before.builder.data_path
    assert after.classes.colors == ((1, 1, 1), (2, 2, 2), (3, 3, 3))
    write_classes(folder, ignore_index=255, colors=COLORS, void_colors=[[0, 0, 0]])
    colored(folder)
    before = open_folder(folder, tmp_path)
    assert len(made(tmp_path)) == 2
    write_classes(folder, ignore_index=255, colors=[COLORS[1], COLORS[0], COLORS[2]], void_colors=[[0, 0, 0]])
    after = open_folder(folder, tmp_path)
    assert len(made(tmp_path)) == 3
    swapped = np.array([1, 0, 2, -1])
    np.testing.assert_array_equal(class_map(after.example("val", 0)), swapped[class_map(before.example("val", 0))])


def test_classes_json_of_coco_changes_positions_alone(tmp_path):
    root = tmp_path / "coco"
    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True)
        Image.new("RGB", (32, 24), (len(split), 2, 3)).save(root / "images" / split / "a.jpg")
        image = {"id": 1, "file_name": "a.jpg", "height": 24, "width": 32}
        box = {"id": 1, "image_id": 1, "category_id": 2, "segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]], "iscrowd": 0}
        values = {"images": [image], "annotations": [{**box, "area": 64, "bbox": [1, 1, 8, 8]}]}
        values["categories"] = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"{split}.json").write_text(json.dumps(values))
    (root / "classes.json").write_text(json.dumps({"names": ["cat", "dog"]}))
    first = open_folder(root, tmp_path, "coco_format")
    (root / "classes.json").write_text(
        json.dumps({"names": ["cat", "dog"], "things": ["dog"], "colors": [[1, 2, 3]] * 2})
    )
    second = open_folder(root, tmp_path, "coco_format")
    assert second.builder.data_path == first.builder.data_path
    assert (first.classes.is_thing, second.classes.is_thing) == ((True, True), (False, True))
    (root / "classes.json").write_text(json.dumps({"names": ["dog", "cat"]}))
    third = open_folder(root, tmp_path, "coco_format")
    assert third.builder.data_path != first.builder.data_path
    assert (first.example("val", 0).labels.tolist(), third.example("val", 0).labels.tolist()) == ([1], [0])


# Names and links in folders.


def test_linked_folders_and_loops(folder, tmp_path):
    before = set(examples(open_folder(folder, tmp_path), "train"))
    for kind in ("images", "labels"):
        split = (folder / kind / "train").rename(tmp_path / f"{kind} on another disk")
        (folder / kind / "train").symlink_to(split)
        more = tmp_path / f"more {kind}"
        more.mkdir()
        shutil.copy(split / "001.png", more / "001.png")
        (split / "linked").symlink_to(more)
        (more / "back").symlink_to(split)
        (split / "itself").symlink_to(split)
    assert set(examples(open_folder(folder, tmp_path), "train")) == before | {"linked/001"}


def test_composed_and_decomposed_names_belong_together(folder, tmp_path):
    name = "caf\u00e9 \u00fcber"
    for kind, form in (("images", "NFC"), ("labels", "NFD")):
        path = folder / kind / "train" / "001.png"
        path.rename(path.with_name(unicodedata.normalize(form, name) + ".PNG"))
    assert set(examples(open_folder(folder, tmp_path), "train")) == {"000", name, "002"}
    path = folder / "images" / "train" / (unicodedata.normalize("NFD", name) + ".png")
    shutil.copy(folder / "images" / "train" / "000.png", path)
    with pytest.raises(UserError, match="differ only in their suffix, or in how accents"):
        open_folder(folder, tmp_path)


def test_names_that_are_not_utf8(folder, tmp_path):
    for kind in ("images", "labels"):
        place = os.path.join(os.fsencode(folder / kind), b"train")
        os.rename(os.path.join(place, b"001.png"), os.path.join(place, b"stra\xdfe.png"))
    assert set(examples(open_folder(folder, tmp_path), "train")) == {"000", "stra\\xdfe", "002"}
    os.remove(os.path.join(os.fsencode(folder), b"labels/train/stra\xdfe.png"))
    with pytest.raises(UserError, match=r"stra\\xdfe\.png is missing") as caught:
        open_folder(folder, tmp_path)
    str(caught.value).encode()


def test_long_names(tmp_path):
    folder = write_folder(tmp_path / ("ä" * 120), train=1, val=1)
    for kind in ("images", "labels"):
        (folder / kind / "val" / "000.png").rename(folder / kind / "val" / ("x" * 251 + ".png"))
    assert set(examples(open_folder(folder, tmp_path), "val")) == {"x" * 251}


def test_a_split_of_hidden_files_alone(folder, tmp_path):
    for kind in ("images", "labels"):
        for path in (folder / kind / "val").iterdir():
            path.rename(path.with_name(f"._{path.name}"))
        (folder / kind / "val" / "Thumbs.db").write_text("x")
        (folder / kind / "__MACOSX").mkdir()
    with pytest.raises(UserError, match="images/val has no images"):
        open_folder(folder, tmp_path)


def test_a_folder_that_cannot_be_read_is_named(folder, tmp_path, monkeypatch):
    scan = os.scandir

    def refuse(path="."):
        if str(path).endswith("images/train"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(folders.os, "scandir", refuse)
    with pytest.raises(UserError, match=r"images/train cannot be read: Permission denied"):
        open_folder(folder, tmp_path)


# Damaged datasets.


def truncated(data):
    return data[: len(data) // 2]


def zeroed(data):
    return bytes(len(data))


def zeroed_end(data):
    return truncated(data) + bytes(len(data) - len(truncated(data)))


DAMAGES = [truncated, zeroed, zeroed_end, lambda data: b"", lambda data: b"null", lambda data: b"[1]"]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    root = tmp_path_factory.mktemp("good")
    open_folder(write_folder(root / "mine", train=3, val=1), root)
    return root


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["dataset_info.json", "metadata.json", "folder-train.array_record-00000-of-00001"])
def test_a_damaged_dataset_is_named(good, tmp_path, name, damage):
    shutil.copytree(good / "tfds", tmp_path / "tfds")
    [path] = (tmp_path / "tfds").glob(f"folder/*/*/{name}")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=rf"{path.parent}.* cannot be read .*damaged: delete {path.parent}"):
        examples(open_folder(good / "mine", tmp_path), "train")


def test_a_missing_file_of_a_dataset_is_named_at_once(good, tmp_path):
    shutil.copytree(good / "tfds", tmp_path / "tfds")
    [path] = (tmp_path / "tfds").glob("folder/*/*/folder-val.array_record*")
    path.unlink()
    with pytest.raises(UserError, match=rf"{path} cannot be read \(the file is missing\)"):
        open_folder(good / "mine", tmp_path)


def test_damage_that_training_finds_is_named(good, tmp_path):
    """A turned bit in the middle of a record, found by the threads that read ahead."""
    shutil.copytree(good / "tfds", tmp_path / "tfds")
    [path] = (tmp_path / "tfds").glob("folder/*/*/folder-train.array_record*")
    source = open_folder(good / "mine", tmp_path)
    data = bytearray(path.read_bytes())
    data[data.index(b"\x89PNG") + 40] ^= 4
    path.write_bytes(data)
    options = {"batch_size": 1, "max_segments": 3, "seed": 3, "host": Host(), "first_step": 0}
    batches = train_batches(source, "train", augmentation=Augmentation((32, 40), 64, (32, 40)), **options)
    with pytest.raises(UserError, match=rf"{path}, example \d of split 'train' cannot be read .*delete"):
        collections.deque(itertools.islice(batches, 6))


def test_the_content_of_a_split(folder, tmp_path):
    def content(source, split):
        return source.describe(split)["content"]

    before = open_folder(folder, tmp_path)
    again = open_source("folder", str(folder), str(tmp_path / "again"))
    assert content(again, "train") == content(before, "train") != content(before, "val")
    path = folder / "labels" / "train" / "001.png"
    Image.fromarray(np.zeros_like(np.asarray(Image.open(path)))).save(path)
    after = open_folder(folder, tmp_path)
    assert content(after, "train") != content(before, "train")
    assert content(after, "val") == content(before, "val")
    assert before.describe("val")["images"] == 1


def test_the_content_of_a_dataset_of_an_earlier_version(good, tmp_path):
    shutil.copytree(good / "tfds", tmp_path / "tfds")
    [path] = (tmp_path / "tfds").glob("folder/*/*/metadata.json")
    values = json.loads(path.read_text())
    del values["content"]
    path.write_text(json.dumps(values))
    assert "bytes in [3]" in open_folder(good / "mine", tmp_path).describe("train")["content"]


def test_long_names_stay_different():
    names = ["x" * 200 + end for end in "ab"]
    assert len({folders.plain(name) for name in names}) == 2
    assert max(len(folders.plain(name).encode()) for name in [*names, "ä" * 200]) < 100
    assert folders.plain("my photos/2024") == "my_photos_2024"
