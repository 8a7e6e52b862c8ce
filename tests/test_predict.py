"""The command that segments files: input files, names of results, messages."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from maskformer_jax import predict
from maskformer_jax.errors import UserError
from maskformer_jax.segmenter import segmenter as segmenter_module
from tests.segmenter.test_segmenter import write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "ours"
    write_model(folder)
    return str(folder)


def write_image(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path):
    """Two images with the same name in two folders, a third image, and other files."""
    root = tmp_path / "photos"
    for seed, name in enumerate(["a/1.png", "b/c/1.PNG", "2.jpg"]):
        write_image(root / name, seed)
    for name in ("notes.txt", "._2.jpg", ".cache/3.png"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"no image")
    return root


def names_of(*paths):
    images, failed = predict.find_images([str(path) for path in paths])
    assert failed == []
    return {os.path.relpath(image.path, paths[0].parent): name for image, name in named(images)}


def named(images):
    return zip(images, predict.name_results(images), strict=True)


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_folder_is_searched_recursively(photos):
    assert names_of(photos) == {"photos/2.jpg": "2", "photos/a/1.png": "a/1", "photos/b/c/1.PNG": "b/c/1"}
    assert list(names_of(photos)) == ["photos/2.jpg", "photos/a/1.png", "photos/b/c/1.PNG"]


def test_files_are_called_by_their_names_and_by_their_folders_if_these_repeat(photos, tmp_path):
    one, other, third = photos / "a" / "1.png", photos / "b" / "c" / "1.PNG", photos / "2.jpg"
    assert list(names_of(one, third).values()) == ["1", "2"]
    assert list(names_of(one, other, third).values()) == ["a/1", "b/c/1", "2"]
    assert list(names_of(photos / "a", photos / "b" / "c").values()) == ["a/1", "b/c/1"]
    write_image(photos / "a" / "1.jpg")
    assert sorted(names_of(photos / "a").values()) == ["1.jpg", "1.png"]


def test_patterns_match_files_and_folders(photos, monkeypatch):
    for pattern in ("*/1.*", "**/1.*", "[ab]"):
        images, failed = predict.find_images([str(photos / pattern)])
        assert failed == []
        found = {os.path.relpath(image.path, photos): name for image, name in named(images)}
        assert found == {"a/1.png": "a/1", "b/c/1.PNG": "b/c/1"} if pattern != "*/1.*" else {"a/1.png": "a/1"}
    monkeypatch.chdir(photos)
    images, _ = predict.find_images(["**"])
    assert sorted(predict.name_results(images)) == ["2", "a/1", "b/c/1"]


def test_a_file_with_the_letters_of_a_pattern_is_a_file(tmp_path):
    write_image(tmp_path / "a[1].png")
    assert names_of(tmp_path / "a[1].png") == {"a[1].png": "a[1]"}


def test_an_image_is_taken_once(photos):
    assert len(names_of(photos, photos / "a", photos / "a" / ".." / "2.jpg")) == 3


def test_paths_without_images_are_reported(photos, tmp_path):
    (tmp_path / "empty").mkdir()
    images, failed = predict.find_images([str(tmp_path / "empty"), str(photos / "*.gif"), str(photos)])
    assert len(images) == 3
    assert failed[0].startswith(f"{tmp_path / 'empty'}: no images in this folder (.apng .avif ")
    assert failed[1].startswith(f"{photos / '*.gif'}: no images match this pattern")


def test_results_keep_the_folders_of_the_images_and_are_not_images_of_the_next_call(model, photos, capsys):
    out = photos / "found"
    expected = [name + suffix for name in ("2", "a/1", "b/c/1") for suffix in (".json", "_ids.png", "_overlay.png")]
    for threshold in (1, 0):
        # The second call finds the results of the first in the folder that it reads.
        arguments = [f"--model={model}", f"--out={out}", str(photos), f"--threshold={threshold}", "--overlap=0"]
        assert predict.main(arguments) == 0
        assert files_below(out) == expected
        segments = sum(len(json.loads(path.read_text())["segments"]) for path in out.rglob("*.json"))
        assert (segments > 0) == (threshold == 0)  # so that the second call has overwritten the first
        printed = capsys.readouterr().out
        assert f"3 images, {segments} segments, " in printed
        assert "s per image" in printed
        assert ("no segments in 3 (--verbose" in printed) == (threshold == 1)
        assert "the best score" not in printed
    assert json.loads((out / "2.json").read_text())["segments"][0].keys() >= {"box", "is_thing"}


def test_the_reason_for_no_segments_is_reported(model, photos, capsys):
    out = photos.parent / "out"
    arguments = [f"--model={model}", f"--out={out}", "--threshold=1"]
    assert predict.main([*arguments, str(photos / "2.jpg")]) == 0
    why = json.loads((out / "2.json").read_text())["why_empty"]
    assert "the best score, 0." in why
    printed = capsys.readouterr().out
    assert f"2.jpg: no segments: {why}\n" in printed
    assert "1 image, 0 segments" in printed
    assert predict.main([*arguments, str(photos), "--verbose"]) == 0
    assert capsys.readouterr().out.count("is not above the threshold 1\n") == 3
    assert predict.main([f"--model={model}", f"--out={out}", str(photos / "2.jpg"), "--threshold=0"]) == 0
    assert "why_empty" not in json.loads((out / "2.json").read_text())


def test_unreadable_files_are_listed_at_the_end(model, photos, capsys, monkeypatch):
    (photos / "0_broken.png").write_bytes((photos / "a" / "1.png").read_bytes()[:100])
    Image.new("F", (5, 5)).save(photos / "height.tif")
    monkeypatch.setenv("MASKFORMER_MAX_IMAGE_PIXELS", "5000")
    Image.new("RGB", (200, 200)).save(photos / "1_large.png")
    out, missing = photos.parent / "out", str(photos.parent / "missing.png")
    assert predict.main([f"--model={model}", f"--out={out}", missing, str(photos)]) == 1
    printed = capsys.readouterr()
    assert "3 images" in printed.out
    assert "4 errors" in printed.out
    lines = [line for line in printed.err.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert [words in line for words, line in zip(["missing", "0_broken", "1_large", "height"], lines, strict=True)] == [
        True
    ] * 4
    assert "No such file" in lines[0]
    assert "truncated" in lines[1]
    assert "40,000 pixels in an image; the limit is 5,000" in lines[2]
    assert "float32" in lines[3]
    assert len(list(out.rglob("*.json"))) == 3


def test_a_progress_bar_shows_rate_and_remaining_time(model, photos, capsys):
    assert predict.main([f"--model={model}", f"--out={photos.parent / 'out'}", str(photos)]) == 0
    assert "0/3 [00:00<?, ? images/s]" in capsys.readouterr().err


def test_annotations_in_the_folder_are_not_overwritten(model, photos):
    (photos / "2.json").write_text("precious")
    with pytest.raises(SystemExit, match=r"2\.json exists and is not an earlier result.*Use another --out"):
        predict.main([f"--model={model}", f"--out={photos}", str(photos / "2.jpg")])
    assert (photos / "2.json").read_text() == "precious"
    assert not (photos / "2_ids.png").exists()


@pytest.mark.parametrize("value", ["80", "-1", "nan", "much"])
@pytest.mark.parametrize("flag", ["--threshold", "--overlap"])
def test_thresholds_are_checked_before_the_model_is_read(capsys, flag, value):
    with pytest.raises(SystemExit):
        predict.main(["--model=nowhere", "--out=nowhere", "x.png", f"{flag}={value}"])
    assert f"{flag}: {value} is not a number in 0..1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "flag"), [("semantic", "threshold"), ("semantic", "overlap"), ("instance", "overlap")]
)
def test_thresholds_that_do_not_apply_to_a_task_are_rejected(capsys, task, flag):
    with pytest.raises(SystemExit):
        predict.main(["--model=nowhere", "--out=nowhere", "x.png", f"--task={task}", f"--{flag}=0.5"])
    assert f"--{flag} applies to --task=panoptic" in capsys.readouterr().err


def test_instances_are_written_with_their_full_masks(model, photos):
    out = photos.parent / "instances"
    predict.main([f"--model={model}", f"--out={out}", str(photos / "2.jpg"), "--task=instance", "--threshold=0"])
    record = json.loads((out / "2.json").read_text())
    assert record["segments"]
    with Image.open(out / "2_ids.png") as ids:
        assert ids.size == (record["width"], record["height"])
    for segment in record["segments"]:
        assert segment["segmentation"]["size"] == [record["height"], record["width"]]


def test_thresholds_reach_the_model(model, photos, monkeypatch):
    asked = []

    def spy(self, items, read, task, *, keep_pixels, **options):
        asked.append((task, options))
        yield from ()

    monkeypatch.setattr(segmenter_module.Segmenter, "answers", spy)
    arguments = [f"--model={model}", f"--out={photos.parent / 'out'}", str(photos / "2.jpg")]
    predict.main([*arguments, "--threshold=0.25", "--overlap=0.75"])
    predict.main([*arguments, "--task=semantic", "--batch-size=3"])
    # The overlap of masks and that of tiles, which other tools call by the same name.
    predict.main([*arguments, "--tile=64", "--overlap=16"])
    predict.main([*arguments, "--tile=64", "--overlap=0.5", "--tile-overlap=8"])
    none = {"threshold": None, "overlap": None, "tile": None, "tile_overlap": None, "batch_size": None}
    assert asked == [
        ("panoptic", {**none, "threshold": 0.25, "overlap": 0.75}),
        ("semantic", {**none, "batch_size": 3}),
        ("panoptic", {**none, "tile": 64, "tile_overlap": 16}),
        ("panoptic", {**none, "overlap": 0.5, "tile": 64, "tile_overlap": 8}),
    ]


def test_an_overlap_in_pixels_needs_tiles(capsys):
    for flags in (["--overlap=128"], ["--overlap=128", "--tile=512", "--tile-overlap=64"]):
        with pytest.raises(SystemExit):
            predict.main(["--model=nowhere", "--out=nowhere", "x.png", *flags])
        assert "pixels that tiles have in common need --tile, and no --tile-overlap" in capsys.readouterr().err


def test_a_model_that_cannot_work_ends_the_call(model, photos, monkeypatch):
    def read(self, found, inputs, asked):
        raise UserError("its scores are not finite")

    monkeypatch.setattr(segmenter_module.Segmenter, "read", read)
    with pytest.raises(SystemExit, match="error: its scores are not finite"):
        predict.main([f"--model={model}", f"--out={photos.parent / 'out'}", str(photos)])


def test_an_out_that_is_a_file_is_reported(model, photos):
    with pytest.raises(SystemExit, match=r"notes\.txt: cannot create this folder"):
        predict.main([f"--model={model}", f"--out={photos / 'notes.txt'}", str(photos)])
