"""The wheel holds all that its programs need, and they run from any folder."""

import os
import pathlib
import subprocess
import sys
import zipfile

import pytest

from tests.conftest import FAST_COMPILE, ROOT
from tests.input_pipeline.folders import write_folder


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> pathlib.Path:
    """A folder with the wheel's files, as pip lays them."""
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        files.extractall(out / "site")
    return out / "site"


def test_recipes_builders_and_tables_are_in_it_and_nothing_else(installed):
    shipped = installed / "maskformer_jax" / "shipped"
    for folder in ("configs", "data"):
        files = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*.*") if "__pycache__" not in path.parts}
        assert files == {path.relative_to(shipped) for path in (shipped / folder).rglob("*.*")}
    assert (installed / "maskformer_jax" / "catalog" / "ade20k.json").exists()
    assert (installed / "maskformer_jax" / "py.typed").exists()
    assert {path.name.partition("-")[0] for path in installed.iterdir()} == {"maskformer_jax"}


def test_it_trains_and_predicts_from_any_folder(installed, tmp_path):
    folder = write_folder(tmp_path / "mine")
    environment = {**os.environ, "PYTHONPATH": str(installed), "XLA_FLAGS": FAST_COMPILE}

    def run(program: str, *arguments: str) -> str:
        command = [sys.executable, "-m", f"maskformer_jax.{program}", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    settings = {
        "data.name": "folder",
        "data.dir": str(folder),
        "data.tfds_dir": str(tmp_path / "tfds"),
        "data.crop": "(32,32)",
        "train.steps": "1",
        "train.batch_size": "2",
    }
    overrides = [f"--config.{name}={value}" for name, value in settings.items()]
    said = run("train", "--config=configs/camvid.py", "--workdir=w", *overrides)
    assert "done: 1 steps" in said
    run("predict", "--model=w", "--out=found", str(folder / "images" / "val"))
    assert len(list((tmp_path / "found").glob("*_overlay.png"))) == 5
