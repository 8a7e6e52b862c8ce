"""Datasets made by several processes, or with Apache Beam, are those of one process, byte by byte."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys

import pytest

from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline import workers
from maskformer_jax.input_pipeline.sources import open_source
from tests.conftest import ROOT
from tests.input_pipeline.folders import pixels, truncate, write_folder

in_order = workers.in_order  # not that of conftest.py


@pytest.fixture
def two_processes(monkeypatch):
    monkeypatch.setattr(workers, "in_order", in_order)
    monkeypatch.setattr(workers, "ALONE", 0.0)
    monkeypatch.setenv(workers.VARIABLE, "2")


def write_coco(root, count=6):
    """Images of 40 x 30 with two objects that overlap, a crowd, a box without an outline and a wrong area."""
    (root / "annotations").mkdir(parents=True)
    images = write_folder(root / "folder", train=count, val=1) / "images" / "train"
    shutil.move(images, root / "train")
    names = sorted(path.name for path in (root / "train").iterdir())
    sizes = [pixels(root / "train" / name).shape[:2] for name in names]
    square = [[1, 1, 6, 1, 6, 6, 1, 6]]
    annotations = []
    for number in range(count):
        for segmentation, crowd, area in ((square, 0, 25), (square, 0, 900), (square, 1, 25), ([], 0, 9)):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "segmentation": segmentation,
                    "bbox": [1, 1, 3, 3],
                    "iscrowd": crowd,
                    "area": area,
                }
            )
    values = {
        "images": [
            {"id": number, "file_name": name, "height": size[0], "width": size[1]}
            for number, (name, size) in enumerate(zip(names, sizes, strict=True))
        ],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "thing"}],
    }
    (root / "annotations" / "train.json").write_text(json.dumps(values))
    shutil.rmtree(root / "folder")
    return root


def notes(capfd):
    return [line for line in capfd.readouterr().out.splitlines() if line.startswith("note:")]


def contents(source):
    """The bytes of all files of a dataset."""
    return {path.name: path.read_bytes() for path in sorted(source.builder.data_path.iterdir())}


WRITE = {"folder": lambda root: write_folder(root, train=6, val=3), "coco_format": write_coco}


@pytest.mark.parametrize("name", WRITE)
def test_the_dataset_of_two_processes_is_that_of_one(name, tmp_path, two_processes, monkeypatch, capfd):
    root = str(WRITE[name](tmp_path / "data"))
    many = contents(open_source(name, root, str(tmp_path / "many")))
    said = notes(capfd)
    monkeypatch.setenv(workers.VARIABLE, "1")
    one = contents(open_source(name, root, str(tmp_path / "one")))
    assert many == one
    assert notes(capfd) == said
    assert len(said) == (2 if name == "coco_format" else 0)  # on boxes and areas


def test_a_damaged_image_is_named_and_nothing_is_left(tmp_path, two_processes):
    root = write_folder(tmp_path / "data", train=6, val=3)
    truncate(root / "images" / "train" / "004.png")
    truncate(root / "images" / "train" / "005.png")
    with pytest.raises(UserError, match=f"^{root}/images/train/004.png: not a readable image"):
        open_source("folder", str(root), str(tmp_path / "tfds"))
    assert not list((tmp_path / "tfds" / "folder").glob("*/*"))


KILLED = """
import os, sys
from maskformer_jax.input_pipeline import workers
from maskformer_jax.input_pipeline.sources import open_source
workers.ALONE, in_order = 0.0, workers.in_order
def killed(calls, folders):
    for number, result in enumerate(in_order(calls, folders)):
        yield result
        if number == 3:
            os.kill(os.getpid(), 9)
workers.in_order = killed
open_source("folder", *sys.argv[1:])
"""


def test_a_process_killed_in_the_middle_leaves_no_half_dataset(tmp_path):
    arguments = str(write_folder(tmp_path / "data", train=6, val=3)), str(tmp_path / "tfds")
    environment = {**os.environ, workers.VARIABLE: "2"}
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == -9, done.stderr
    left = [path.name.partition(".")[0] for path in (tmp_path / "tfds" / "folder").glob("data-*/*")]
    assert "incomplete" in left
    assert "2" not in [name for name in left if name.isdecimal()] or not list(tmp_path.rglob("dataset_info.json"))
    found = contents(open_source("folder", *arguments))
    assert found == contents(open_source("folder", arguments[0], str(tmp_path / "other")))
    assert not list((tmp_path / "tfds" / "folder").glob("data-*/incomplete*"))


class TestBeam:
    """With the local runner of Apache Beam (extra "beam")."""

    @pytest.fixture
    def options(self):
        beam = pytest.importorskip("apache_beam")
        return beam.options.pipeline_options.PipelineOptions(["--runner=DirectRunner"])

    @pytest.mark.parametrize("name", WRITE)
    def test_the_dataset_of_beam_is_that_of_one_process(self, name, tmp_path, options, capfd):
        root = str(WRITE[name](tmp_path / "data"))
        by_beam = contents(open_source(name, root, str(tmp_path / "beam"), beam_options=options))
        said = notes(capfd)
        assert by_beam == contents(open_source(name, root, str(tmp_path / "one")))
        assert notes(capfd) == said

    def test_a_damaged_image_is_named(self, tmp_path, options):
        root = write_folder(tmp_path / "data", train=3, val=1)
        truncate(root / "images" / "train" / "001.png")
        with pytest.raises(UserError, match=f"^{root}/images/train/001.png: not a readable image"):
            open_source("folder", str(root), str(tmp_path / "tfds"), beam_options=options)
        assert not list((tmp_path / "tfds" / "folder").glob("*/*"))


@pytest.mark.skipif(bool(importlib.util.find_spec("apache_beam")), reason="Apache Beam is installed")
def test_beam_that_is_not_installed_is_named(tmp_path):
    root = str(write_folder(tmp_path / "data", train=1, val=1))
    with pytest.raises(UserError, match=r'pip install "maskformer_jax\[beam\]"'):
        open_source("folder", root, str(tmp_path / "tfds"), beam_options=object())
