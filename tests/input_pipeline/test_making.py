"""Datasets that several processes make at the same time, and what killed ones leave."""

import json
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds

from maskformer_jax.errors import UserError
from maskformer_jax.files.processes import this_process
from maskformer_jax.input_pipeline import making
from maskformer_jax.input_pipeline.making import make_once
from tests.conftest import ROOT

OPTIONS = tfds.download.DownloadConfig()


class Numbers(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A dataset of three numbers."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = tfds.core.Path(ROOT)
    progress = staticmethod(lambda: None)
    before = staticmethod(lambda builder: None)  # called before the first example

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"number": np.int64}))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        self.before(self)
        for number in range(3):
            self.progress()
            yield number, {"number": number}


@pytest.fixture
def make(tmp_path):
    return lambda data_dir=str(tmp_path): Numbers(data_dir=data_dir)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(making, "PATIENCE", 0.5)
    monkeypatch.setattr(making, "_POLL", 0.05)
    monkeypatch.setattr(making, "_BEAT", 0.05)


def names(tmp_path):
    return sorted(path.name for path in (tmp_path / "numbers").iterdir())


def claim_of(tmp_path, process, folder=""):
    (tmp_path / "numbers").mkdir(exist_ok=True)
    path = tmp_path / "numbers" / "1.0.0.claim"
    path.write_text(json.dumps({"process": process, "count": 0, "folder": folder}))
    return path


def test_a_dataset_is_made_and_nothing_else_is_left(make, tmp_path):
    assert make_once(make, OPTIONS).info.splits["train"].num_examples == 3
    assert names(tmp_path) == ["1.0.0"]


def test_others_wait_while_there_is_progress(make, tmp_path, monkeypatch, capfd):
    """The second waits longer than its patience, as the first shows progress, and makes nothing itself."""
    started, made = threading.Event(), []

    def slow(builder):
        made.append(builder)
        started.set()
        for _ in range(30):
            builder.progress()
            time.sleep(0.05)

    monkeypatch.setattr(Numbers, "before", staticmethod(slow))
    first = threading.Thread(target=make_once, args=(make, OPTIONS))
    first.start()
    assert started.wait(20)
    second = make_once(make, OPTIONS)
    first.join()
    assert len(made) == 1
    assert second.info.splits["train"].num_examples == 3
    assert f"process {os.getpid()} on" in capfd.readouterr().err
    assert names(tmp_path) == ["1.0.0"]


def test_a_process_without_progress_is_not_waited_for(make, tmp_path, monkeypatch, capfd):
    """The first stops for as long as the second works, then finds the dataset finished, and uses it."""
    found = []

    def stop(builder):
        if not found:
            found.append(None)
            found.append(make_once(make, OPTIONS))

    monkeypatch.setattr(Numbers, "before", staticmethod(stop))
    assert make_once(make, OPTIONS).info.splits["train"].num_examples == 3
    assert found[1].info.splits["train"].num_examples == 3
    assert names(tmp_path) == ["1.0.0"]
    said = capfd.readouterr().err
    assert "makes no progress" in said
    assert "another process has finished" in said


KILLED = """
import os, signal, sys
from tests.input_pipeline import test_making
from maskformer_jax.input_pipeline.making import make_once
test_making.Numbers.before = staticmethod(lambda builder: (builder.progress(), os.kill(os.getpid(), signal.SIGKILL)))
make_once(lambda: test_making.Numbers(data_dir=sys.argv[1]), test_making.OPTIONS)
"""


def test_a_killed_process_blocks_nobody_and_its_files_are_deleted(make, tmp_path, capfd):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    claim, folder = sorted(names(tmp_path))
    assert (claim, folder[:11]) == ("1.0.0.claim", "incomplete.")
    assert make_once(make, OPTIONS).info.splits["train"].num_examples == 3
    assert names(tmp_path) == ["1.0.0"]
    assert f"deleting {tmp_path}/numbers/{folder}" in capfd.readouterr().err


def test_a_claim_of_another_machine_is_taken_over(make, tmp_path, capfd):
    claim_of(tmp_path, {"host": "node7", "pid": 5})
    make_once(make, OPTIONS)
    assert "process 5 on node7 makes no progress" in capfd.readouterr().err
    assert names(tmp_path) == ["1.0.0"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"process": 3}', "\xff"])
def test_a_damaged_claim_is_taken_over(make, tmp_path, text):
    claim_of(tmp_path, {}).write_text(text)
    make_once(make, OPTIONS)
    assert names(tmp_path) == ["1.0.0"]


def test_folders_of_unknown_processes_are_named_and_kept(make, tmp_path, capfd):
    claim_of(tmp_path, {**this_process(), "started": "1"}, folder="../elsewhere")
    for folder in ("numbers/incomplete.AAAAAA_1.0.0", "elsewhere"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "data").write_bytes(bytes(1500))
    make_once(make, OPTIONS)
    assert names(tmp_path) == ["1.0.0", "incomplete.AAAAAA_1.0.0"]
    assert (tmp_path / "elsewhere" / "data").exists()
    assert "incomplete.AAAAAA_1.0.0 (1.5 kB) is left" in capfd.readouterr().err


def test_an_incomplete_dataset_is_named(make, tmp_path):
    made = make_once(make, OPTIONS).data_path
    (made / "dataset_info.json").unlink()
    with pytest.raises(UserError, match=r"1\.0\.0 has no dataset_info\.json.*rm -r"):
        make_once(make, OPTIONS)


def test_errors_of_a_builder_release_the_claim(make, tmp_path, monkeypatch):
    def fail(builder):
        raise UserError("a bad file")

    monkeypatch.setattr(Numbers, "before", staticmethod(fail))
    with pytest.raises(UserError, match="a bad file"):
        make_once(make, OPTIONS)
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_named_before_work(make, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(Numbers, "before", staticmethod(started.append))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.tfds_dir=FOLDER sets another folder: a part of its path is a file"):
        make_once(lambda: make(str(tmp_path / "file")), OPTIONS)
    assert not started


def test_a_full_disk_is_named(make, tmp_path, monkeypatch):
    def fail(builder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Numbers, "before", staticmethod(fail))
    with pytest.raises(UserError, match=r"numbers/1\.0\.0 cannot be written.*the disk is full"):
        make_once(make, OPTIONS)
    assert names(tmp_path) == []
