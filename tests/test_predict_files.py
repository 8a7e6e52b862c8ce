"""What `predict` reads and writes, with a stand-in for the model: nothing of the user's is lost."""

import errno
import json
import os
import pathlib
import unicodedata

import numpy as np
import pytest
from PIL import Image

from maskformer_jax import bundled, predict, visualize
from maskformer_jax.catalog import Classes
from maskformer_jax.errors import UserError
from maskformer_jax.files import writing
from maskformer_jax.inference import InferenceConfig
from maskformer_jax.segmenter.results import (
    RESULT_SUFFIXES,
    InstanceSegmentation,
    Segmentation,
    is_result,
    write_result,
)
from maskformer_jax.segmenter.stream import Answer
from maskformer_jax.segmenter.writers.coco import CocoInstances

CLASSES = Classes.from_dict({"names": ["a", "b"]}, "stand-in")


class StandIn:
    origin, classes, tasks = "stand-in", CLASSES, ("semantic", "panoptic", "instance")
    fingerprint = "stand-in"
    inference = InferenceConfig(64, 128, 32, "logits", 0.5, 0.5)

    def segment(self, image, task, **thresholds):
        if task == "instance":
            mask = np.zeros((1, *image.shape[:2]), bool)
            mask[0, 2:9, 3:7] = True
            return InstanceSegmentation(mask, np.array([1]), np.array([0.8]), CLASSES)
        return Segmentation(np.ones(image.shape[:2], np.uint16), np.array([0]), np.array([0.9]), CLASSES)

    def answers(self, items, read, task, *, batch_size, keep_pixels, **options):
        for item in items:
            try:
                pixels = read(item, 0)
            except UserError as error:
                yield Answer(item, error)
            else:
                yield Answer(item, self.segment(pixels, task, **options), pixels)


@pytest.fixture(autouse=True)
def loaded(monkeypatch):
    """The models that were loaded."""
    models = []
    monkeypatch.setattr(predict, "load", lambda source: models.append(source) or StandIn())
    return models


def draw(path: pathlib.Path, color=(200, 0, 0)) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 12), color).save(path)
    return path


def run(*arguments) -> int | str:
    try:
        return predict.main([*map(str, arguments), "--model=x"])
    except SystemExit as stopped:
        return stopped.code


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(loaded, folder: pathlib.Path, *arguments, words: str) -> None:
    """Runs with arguments that would write over something: all of a folder stays, and no model is loaded."""
    before = contents(folder)
    status = run(*arguments)
    assert words in str(status)
    assert "Nothing was changed. Use another --out" in str(status)
    assert contents(folder) == before
    assert loaded == []


def test_a_result_is_no_image_of_the_same_call(loaded, tmp_path):
    dog, mask = draw(tmp_path / "dog.jpg"), draw(tmp_path / "dog_ids.png")
    words = f"{mask} would be a result of {dog}, but is an image of this call"
    refused(loaded, tmp_path, dog, mask, f"--out={tmp_path}", words=words)
    refused(loaded, tmp_path, tmp_path, f"--out={tmp_path}/.", words="dog_ids.png would be a result of")


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_result_is_no_image_of_the_same_call_by_another_name(loaded, tmp_path, link):
    dog, own, out = draw(tmp_path / "dog.jpg"), draw(tmp_path / "scan.png"), tmp_path / "out"
    out.mkdir()
    link(own, out / "dog_overlay.png")
    refused(loaded, tmp_path, dog, own, f"--out={out}", words=f"dog_overlay.png would be a result of {dog}")
    (tmp_path / "linked").symlink_to(out)
    refused(loaded, tmp_path, dog, own, f"--out={tmp_path / 'linked'}", words="would be a result of")


@pytest.mark.parametrize("suffix", ["_ids.png", "_overlay.png", ".json"])
@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_files_of_another_origin_are_not_replaced(loaded, tmp_path, suffix, kind):
    dog, target = draw(tmp_path / "dog.jpg"), tmp_path / "out" / f"dog{suffix}"
    target.parent.mkdir()
    match kind:
        case "file":
            target.write_text("{}")
        case "folder":
            target.mkdir()
        case _:
            target.symlink_to(tmp_path / "missing")
    refused(loaded, tmp_path, dog, f"--out={target.parent}", words=f"{target} exists and is not an earlier result")


def test_three_files_of_another_origin_are_not_replaced(loaded, tmp_path):
    draw(tmp_path / "dog.jpg")
    for suffix in ("ids", "overlay"):
        draw(tmp_path / "out" / f"dog_{suffix}.png")
    for text in ('{"height": 12, "width": 16, "segments": []}', '{"sha256": {}}', "[]", "no JSON"):
        (tmp_path / "out" / "dog.json").write_text(text)
        refused(loaded, tmp_path, tmp_path / "dog.jpg", f"--out={tmp_path / 'out'}", words="is not an earlier result")


def edit_json(out: pathlib.Path) -> None:
    record = json.loads((out / "dog.json").read_text())
    record["segments"][0]["name"] = "corrected"
    (out / "dog.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    "edit",
    [edit_json, lambda out: draw(out / "dog_ids.png"), lambda out: (out / "dog_overlay.png").unlink()],
    ids=["record", "ids", "removed"],
)
def test_results_are_replaced_unless_they_were_edited(loaded, tmp_path, edit):
    out, dog = tmp_path / "out", draw(tmp_path / "dog.jpg")
    assert run(dog, f"--out={out}") == 0
    assert run(dog, f"--out={out}") == 0
    # What a program without an interest in the content does to a file: another layout and date.
    (out / "dog.json").write_text(json.dumps(json.loads((out / "dog.json").read_text())))
    assert run(dog, f"--out={out}") == 0
    edit(out)
    loaded.clear()
    refused(loaded, out, dog, f"--out={out}", words="is not an earlier result")


def test_a_file_that_appears_during_the_call_is_not_replaced(tmp_path, capsys, monkeypatch):
    for name in ("ant", "bee", "cat"):
        draw(tmp_path / f"{name}.jpg")
    out, segment = tmp_path / "out", StandIn.segment

    def slowly(self, image, task, **thresholds):
        (out / "bee_ids.png").write_text("precious")
        return segment(self, image, task)

    monkeypatch.setattr(StandIn, "segment", slowly)
    assert run(tmp_path, f"--out={out}") == 1
    assert (out / "bee_ids.png").read_text() == "precious"
    assert is_result(str(out), "ant")
    assert is_result(str(out), "cat")
    assert "bee_ids.png exists and is not an earlier result" in capsys.readouterr().err


def test_results_in_the_folder_of_the_images_are_known_in_the_next_call(tmp_path, capsys):
    draw(tmp_path / "dog.jpg")
    draw(tmp_path / "cat_ids.png")  # of somebody else, so an image
    for _ in range(2):
        assert run(tmp_path, f"--out={tmp_path}") == 0
        assert "2 images, 2 segments" in capsys.readouterr().out
    assert is_result(str(tmp_path), "cat_ids")


def test_names_that_differ_in_case_or_composition_keep_apart(tmp_path, monkeypatch):
    composed, decomposed = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    for name in ("Dog.jpg", "dog.png", f"{composed}.jpg", f"{decomposed}.png"):
        draw(tmp_path / name)
    images, _ = predict.find_images([str(tmp_path)])
    assert sorted(predict.name_results(images)) == sorted(
        ["Dog.jpg", "dog.png", f"{composed}.jpg", f"{decomposed}.png"]
    )
    draw(tmp_path / "DOG.jpg")
    assert run(tmp_path, f"--out={tmp_path.parent / 'out'}") == 0
    monkeypatch.setattr(writing, "ignores_case", lambda folder: True)
    assert "DOG.jpg and Dog.jpg for one name. Segment them separately" in run(tmp_path, f"--out={tmp_path / 'o'}")


def test_a_full_disk_ends_the_call_and_the_results_so_far_are_whole(tmp_path, capsys, monkeypatch):
    for name in ("ant", "bee", "cat"):
        draw(tmp_path / f"{name}.jpg")
    out, fsync, written = tmp_path / "out", os.fsync, []

    def full(descriptor):
        written.append(descriptor)
        if len(written) > 6:  # the check of --out, three files of a result and two of the next
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    assert run(tmp_path, f"--out={out}") == 1
    assert sorted(contents(out)) == ["ant.json", "ant_ids.png", "ant_overlay.png"]
    printed = capsys.readouterr()
    assert "1 image, 1 segment, 2 errors" in printed.out
    assert "bee.json cannot be written: the disk is full (No space left on device)" in printed.err
    assert "stopped at " in printed.err


def test_an_out_that_cannot_be_written_is_reported_before_any_work(loaded, tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "fsync", fail)
    status = run(draw(tmp_path / "dog.jpg"), f"--out={tmp_path / 'out'}")
    assert f"error: --out={tmp_path / 'out'}: cannot write in this folder: the file system is read-only" in status
    assert loaded == []


def test_a_name_that_is_too_long_fails_alone(tmp_path, capsys):
    draw(tmp_path / f"{'n' * 250}.png")
    draw(tmp_path / "dog.png")
    assert run(tmp_path, f"--out={tmp_path / 'out'}") == 1
    assert "its name is too long for this file system" in capsys.readouterr().err
    assert is_result(str(tmp_path / "out"), "dog")


def test_names_of_any_bytes_are_segmented_and_printed(tmp_path, capsys):
    raw = os.fsencode(tmp_path) + b"/caf\xe9\x1b[31m.png"
    draw(tmp_path / "dog.png").rename(os.fsdecode(raw))
    os.mkfifo(tmp_path / "pipe.txt")
    assert run(tmp_path, f"--out={tmp_path / 'out'}") == 0
    assert r"caf\udce9\x1b[31m.png: a 0.90" in capsys.readouterr().out
    assert is_result(str(tmp_path / "out"), os.fsdecode(b"caf\xe9\x1b[31m"))


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPEG", ".pgm", ".pnm", ".webp"])
def test_suffixes(tmp_path, suffix):
    (tmp_path / f"a{suffix}").touch()
    assert len(predict.find_images([str(tmp_path)])[0]) == 1


def test_linked_folders_are_searched(tmp_path):
    draw(tmp_path / "store" / "1.png")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "day").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "loop").symlink_to(tmp_path / "photos")
    images, failed = predict.find_images([str(tmp_path / "photos")])
    assert (predict.name_results(images), failed) == (["day/1"], [])


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch, capsys):
    draw(tmp_path / "photos" / "dog.png")
    draw(tmp_path / "photos" / "private" / "cat.png")
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("private"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert run(tmp_path / "photos", f"--out={tmp_path / 'out'}") == 1
    assert f"{tmp_path / 'photos' / 'private'}: cannot read this folder: Permission denied" in capsys.readouterr().err


def test_a_result_that_was_moved_is_still_a_result(tmp_path):
    rgb = np.zeros((4, 4, 3), np.uint8)
    write_result(rgb, StandIn().segment(rgb, "panoptic"), str(tmp_path / "a"), "sub/dog")
    (tmp_path / "a" / "sub").rename(tmp_path / "b")
    for path in (tmp_path / "b").iterdir():
        path.rename(path.with_name(path.name.replace("dog", "wolf")))
    assert is_result(str(tmp_path / "b"), "wolf")


@pytest.mark.parametrize(
    ("form", "annotations"),
    [
        ("coco", ["annotations/instances_val.json"]),
        ("coco_rle", ["annotations/instances_val.json"]),
        ("coco_panoptic", ["annotations/panoptic_val.json", "annotations/panoptic_val/a/dog.png"]),
        ("yolo", ["data.yaml", "labels/val/a/dog.txt"]),
        ("png", ["classes.json", "labels/val/a/dog.png"]),
    ],
)
def test_formats_make_datasets_once(loaded, tmp_path, capsys, form, annotations):
    dog, out = draw(tmp_path / "photos" / "a" / "dog.jpg"), tmp_path / "out"
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image")
    arguments = [tmp_path / "photos", f"--out={out}", f"--format={form}", "--split=val"]
    assert run(*arguments) == 1
    assert "1 image, 1 segment, 1 error" in capsys.readouterr().out
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert found == sorted([*annotations, "images/val/a/dog.jpg"])
    assert (out / "images" / "val" / "a" / "dog.jpg").read_bytes() == dog.read_bytes()
    loaded.clear()
    refused(loaded, out, *arguments, words="exists")


def test_a_format_takes_the_first_of_its_tasks_that_the_model_has(loaded, tmp_path, monkeypatch):
    dog = draw(tmp_path / "dog.jpg")
    for tasks, out in ((("semantic", "panoptic", "instance"), "a"), (("semantic",), "b")):
        monkeypatch.setattr(StandIn, "tasks", tasks)
        assert run(dog, f"--out={tmp_path / out}", "--format=coco", "--no-images", "--polygon-tolerance=2") == 0
        assert contents(tmp_path / out).keys() == {"instances_train.json"}
        (annotation,) = json.loads((tmp_path / out / "annotations" / "instances_train.json").read_text())["annotations"]
        assert annotation["area"] == (28 if "instance" in tasks else 16 * 12)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--format=png", "--task=instance"], "--format=png takes --task=semantic or --task=panoptic, not instance"),
        (["--split=val"], "--split applies to --format=coco, coco_rle, coco_panoptic, yolo, png"),
        (["--no-images"], "--no-images applies to --format=coco"),
        (["--format=png", "--polygon-tolerance=1"], "--polygon-tolerance applies to --format=coco, yolo, not to png"),
        (["--format=coco", "--overlap=0.5"], "--overlap applies to --task=panoptic, not to instance"),
        (["--format=png", "--threshold=0.5"], "--threshold applies to --task=panoptic and --task=instance"),
        (["--format=voc"], "invalid choice: 'voc'"),
    ],
)
def test_flags_that_a_format_does_not_have_are_refused(loaded, tmp_path, capsys, flags, words):
    assert run(tmp_path, f"--out={tmp_path}", *flags) == 2
    assert words in capsys.readouterr().err
    assert loaded == []


def test_an_index_that_cannot_be_written_is_an_error_of_the_call(tmp_path, monkeypatch, capsys):
    def full(self):
        raise writing.WriteError("instances_train.json cannot be written: the disk is full", disk=True)

    monkeypatch.setattr(CocoInstances, "close", full)
    assert run(draw(tmp_path / "dog.jpg"), f"--out={tmp_path / 'out'}", "--format=coco") == 1
    printed = capsys.readouterr()
    assert "1 image, 1 segment, 1 error" in printed.out
    assert "error: instances_train.json cannot be written: the disk is full" in printed.err


def test_without_paths_a_model_of_the_package_segments_its_examples(loaded, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert predict.main(["--model=shapes"]) == 0
    assert loaded == ["shapes"]
    names = [pathlib.Path(path).stem for path in bundled.examples("shapes")]
    assert len(names) == 4
    assert set(contents(tmp_path / "results")) == {name + suffix for name in names for suffix in RESULT_SUFFIXES}
    assert predict.main(["--model=shapes", str(draw(tmp_path / "dog.png")), "--out=own"]) == 0
    assert set(contents(tmp_path / "own")) == {"dog" + suffix for suffix in RESULT_SUFFIXES}
    assert run() == 2
    assert "give one PATH or more; only models of the package have examples: shapes" in capsys.readouterr().err


def test_results_of_small_images_are_drawn_larger():
    rgb = np.zeros((40, 30, 3), np.uint8)
    for found in (
        Segmentation(np.ones((40, 30), np.uint16), np.array([0]), np.array([0.9]), CLASSES),
        InstanceSegmentation(np.ones((1, 40, 30), bool), np.array([1]), np.array([0.9]), CLASSES),
    ):
        drawn = found.draw(rgb)
        larger = visualize.enlarge(rgb, found.id_map, visualize.LEGIBLE)
        assert min(larger[0].shape[:2]) >= visualize.LEGIBLE
        expected = visualize.overlay(*larger, found.labels, CLASSES)
        np.testing.assert_array_equal(drawn[:, : expected.shape[1]], expected)
        assert drawn.shape[1] > expected.shape[1]  # the legend
