"""The command that inspects data: its tables, its image and its errors."""

import re
import subprocess
import sys

import numpy as np
import pytest

from maskformer_jax import inspect_data
from maskformer_jax.catalog import Classes
from maskformer_jax.engine.settings import Settings
from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline.sources import open_source
from maskformer_jax.inspection.findings import Finding
from tests.conftest import ROOT
from tests.engine.recipe import recipe
from tests.input_pipeline.folders import NAMES, pixels, resave, write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("data") / "mine", train=6, val=5)
    resave(folder / "labels" / "train" / "002.png", lambda labels: np.full_like(labels, 255))
    return folder


@pytest.fixture(scope="module")
def settings(folder):
    return Settings.from_dict(recipe(folder, steps=1))


def label_images(folder, split):
    return [pixels(path) for path in sorted((folder / "labels" / split).iterdir())]


def row_of(text, name):
    """The cells of the first line that begins with a name, perhaps after a number."""
    line = re.search(rf"^ *(?:\d+ +)?{name}\b.*$", text, re.M).group()
    return [cell for cell in re.split(r"\s{2,}", line.strip()) if cell]


def test_the_printed_counts_are_those_of_the_label_files(folder, settings, capsys, tmp_path):
    inspect_data.inspect(settings, str(tmp_path), examples=2)
    text = capsys.readouterr().out
    truth = {split: label_images(folder, split) for split in ("train", "val")}
    assert row_of(text, "images") == ["images", "6", "5"]
    assert row_of(text, "height x width, smallest")[1:] == ["40 x 56", "40 x 56"]
    assert row_of(text, "largest")[1:] == ["48 x 48", "48 x 48"]  # 50 x 46 has fewer pixels
    assert row_of(text, "portrait")[1:] == ["16.7%", "0.0%"]
    assert row_of(text, "segments")[1:] == ["15", "15"]
    assert row_of(text, "per image")[1:] == ["2.5 on average, 3 at most", "3.0 on average, 3 at most"]
    assert row_of(text, "crowds")[1:] == ["none", "none"]
    void = [np.concatenate([labels.ravel() for labels in truth[split]]) == 255 for split in truth]
    assert row_of(text, "void")[1:] == [f"{part.mean():.1%} of all pixels" for part in void]
    for label, name in enumerate(NAMES):
        cells = row_of(text, name)
        assert cells[:3] == [str(label), name, "stuff"]
        for split, printed in (("train", cells[3:7]), ("val", cells[7:11])):
            has = sum(np.any(labels == label) for labels in truth[split])
            of_class = sum(np.sum(labels == label) for labels in truth[split])
            labeled = sum(np.sum(labels < 255) for labels in truth[split])
            assert printed[:3] == [str(has), str(has), f"{of_class / labeled:.2%}"]


def test_findings_are_printed_with_images_and_advice(settings, capsys, tmp_path):
    found = inspect_data.inspect(settings, str(tmp_path), examples=1)
    text = capsys.readouterr().out
    assert "! images without a segment: 1 of 6 in 'train':\n    002\n  They are entirely void" in text
    assert "! classes in fewer than 10 images of 'train': 3 of 3:\n    sky (5), road (5), car (5)\n" in text
    assert text.count("! ") == len(found) == 2
    assert "sample" not in text


def test_five_images_are_named_at_most():
    finding = Finding("many", [f"image{n}" for n in range(6)], "Do something.")
    assert "image4, ...\n" in inspect_data.report([finding])
    assert "..." not in inspect_data.report([Finding("five", finding.examples[:5], "")])
    assert inspect_data.report([]) == "Nothing suspicious."


def test_a_sample_says_so(settings, capsys, tmp_path):
    inspect_data.inspect(settings, str(tmp_path), limit=4, examples=1)
    text = capsys.readouterr().out
    assert row_of(text, "images") == ["images", "4 of 6", "4 of 5"]
    assert "a sample" in text


def test_one_split_for_both_has_one_column(folder, capsys, tmp_path):
    values = recipe(folder, steps=1)
    values["data"]["eval_split"] = "train"
    inspect_data.inspect(Settings.from_dict(values), str(tmp_path), examples=1)
    text = capsys.readouterr().out
    assert row_of(text, "images") == ["images", "6"]
    assert "images that are also in 'train': 6 of 6" in text


def test_lines_are_aligned_for_any_number_of_classes():
    rows = [["", "class", "images"], ["0", "a", "7"], ["149", "much longer", "20,210"]]
    assert inspect_data._aligned(rows, "><>") == (
        "     class        images\n  0  a                 7\n149  much longer  20,210"
    )


def test_the_image_shows_training_batches(folder, settings, capsys, tmp_path):
    from maskformer_jax.input_pipeline.loader import Host, train_batches

    out = tmp_path / "new" / "folder"
    inspect_data.inspect(settings, str(out), examples=4)
    path = out / "training_examples.png"
    text = capsys.readouterr().out
    assert str(path) in text
    sheet = pixels(path)
    source = open_source("folder", str(folder), settings.data.tfds_dir)
    batch = next(
        train_batches(
            source,
            "train",
            batch_size=4,
            max_segments=3,
            augmentation=settings.data,
            seed=settings.train.seed,
            first_step=0,
            host=Host(),
        )
    )
    assert f"row 1: {', '.join(batch.image_ids[:3])}\n  row 2: {batch.image_ids[3]}\n" in text
    # A crop of 32 pixels is shown at 320, next to its overlay, three in a row.
    assert sheet.shape == (2 * 320 + 6, 3 * 646 + 2 * 24, 3)
    first, overlay = sheet[:320, :320].astype(int), sheet[:320, 326:646].astype(int)
    shown = first.reshape(32, 10, 32, 10, 3).mean(axis=(1, 3))
    assert np.abs(shown - batch.arrays.image[0]).mean() < 8
    assert np.abs(first - overlay).mean() > 10
    # The last example stands alone in its row.
    assert sheet[326:, :320].std() > 10
    assert (sheet[326:, 670:] == 255).all()


def test_overlapping_targets_and_large_crops_fit_on_the_draw_example():
    classes = Classes(("a", "b"), (True, True), ((250, 0, 0), (0, 0, 250)))
    maps = np.full((2, 600, 800), -1, np.int8)
    maps[0, :500] = 0
    maps[1, 200:300, 200:400] = 1
    image = np.full((600, 800, 3), 100, np.uint8)
    drawn = inspect_data._draw_example(image, maps, np.array([0, 1, 0]), np.array([True, True, False]), classes)
    assert drawn.shape == (384, 2 * 512 + 6, 3)
    overlay = drawn[:, 518:]
    assert overlay[10, 10].argmax() == 0
    assert overlay[140, 140].argmax() == 2
    assert overlay[370, 10].max() < 50


@pytest.mark.parametrize("split", ["train_split", "eval_split"])
def test_a_missing_split_is_an_error(folder, split):
    values = recipe(folder, steps=1)
    values["data"][split] = "tests"
    with pytest.raises(UserError, match="no examples in split 'tests'"):
        inspect_data.inspect(Settings.from_dict(values))


def run_command(*arguments):
    command = [sys.executable, "-m", "maskformer_jax.inspect_data", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_the_command_takes_the_settings_of_main(folder, settings, tmp_path):
    done = run_command(
        "--config=configs/custom.py:folder",
        f"--config.data.dir={folder}",
        f"--config.data.tfds_dir={settings.data.tfds_dir}",
        "--config.data.crop=(32, 40)",
        "--config.data.short_edges=(40,)",
        f"--out={tmp_path}",
        "--examples=1",
        "--limit=4",
    )
    assert done.returncode == 0, done.stderr
    assert row_of(done.stdout, "images") == ["images", "4 of 6", "4 of 5"]
    assert "Traceback" not in done.stderr
    assert pixels(tmp_path / "training_examples.png").shape[:2] == (320, 806)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.data.dir=/nowhere"], "error: data.dir is '/nowhere', which is not a folder"),
        (["--config.data.dirr=/nowhere"], "error: not a setting of this config"),
    ],
)
def test_errors_are_one_line(arguments, message, tmp_path):
    done = run_command("--config=configs/custom.py:folder", f"--config.data.tfds_dir={tmp_path}", *arguments)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(message)
    assert "Traceback" not in done.stderr
