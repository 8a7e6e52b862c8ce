"""The wheel holds all that its programs need, and they run from any folder."""

import os
import pathlib
import subprocess
import sys
import textwrap
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
    package = installed / "maskformer_jax"
    for folder in ("configs", "data"):
        files = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*.*") if "__pycache__" not in path.parts}
        files.add(pathlib.Path(folder, "__init__.py"))
        assert files == {path.relative_to(package) for path in (package / folder).rglob("*.*")}
    assert (package / "catalog" / "ade20k.json").exists()
    assert (package / "py.typed").exists()
    models = {path.relative_to(ROOT / "maskformer_jax") for path in (ROOT / "maskformer_jax" / "bundled").rglob("*.*")}
    models = {path for path in models if "__pycache__" not in path.parts}
    assert models == {path.relative_to(package) for path in (package / "bundled").rglob("*.*")}
    assert {path.name.partition("-")[0] for path in installed.iterdir()} == {"maskformer_jax"}


@pytest.fixture
def project(tmp_path) -> pathlib.Path:
    """A user's project with packages `configs` and `data` of its own, and with data in a folder."""
    recipe = """
        from configs import OWNER
        from maskformer_jax.configs import camvid

        assert OWNER == "user"

        def get_config():
            config = camvid.get_config()
            config.data.crop = (32, 32)
            config.train.update(steps=1, batch_size=2)
            return config
        """
    for package in ("configs", "data"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("OWNER = 'user'\n")
        (tmp_path / package / "later.py").write_text("OWNER = 'user'\n")
    (tmp_path / "configs" / "mine.py").write_text(textwrap.dedent(recipe))
    write_folder(tmp_path / "photos")
    return tmp_path


@pytest.mark.slow
def test_it_trains_and_predicts_in_a_project_with_packages_of_the_same_names(installed, project):
    environment = {**os.environ, "PYTHONPATH": str(installed), "XLA_FLAGS": FAST_COMPILE}
    values = {"name": "folder", "eval_split": "val", "dir": "photos", "tfds_dir": "tfds"}
    folder = [f"--config.data.{name}={value}" for name, value in values.items()]

    def run(program: str, *arguments: str) -> str:
        command = [sys.executable, "-m", f"maskformer_jax.{program}", *arguments]
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    # A recipe of the package by its name, and one of the user's that imports it.
    assert "folder/photos-" in run("inspect_data", "--config=configs/camvid.py", "--out=sheet", *folder)
    assert "done: 1 steps" in run("train", "--config=configs/mine.py", "--workdir=w", *folder)
    run("predict", "--model=w", "--out=found", "photos/images/val")
    assert len(list((project / "found").glob("*_overlay.png"))) == 5


USE_OURS = """
import maskformer_jax
from maskformer_jax.engine.config_flag import CONFIG, parse_flags
from maskformer_jax.input_pipeline.sources import open_source

parse_flags(["", "--config", "configs/shapes.py"])
assert CONFIG.value.data.name == "shapes"
assert open_source("folder", "photos", "tfds").size("train")
assert maskformer_jax.load
"""
USE_THEIRS = """
import configs.later, data.later

assert configs.OWNER == data.OWNER == configs.later.OWNER == data.later.OWNER == "user"
"""


@pytest.mark.parametrize("programs", [(USE_OURS, USE_THEIRS), (USE_THEIRS, USE_OURS)], ids=["ours first", "last"])
@pytest.mark.parametrize("place", ["wheel", "checkout"])
def test_packages_of_the_same_names_work_next_to_it(installed, project, place, programs):
    """In either order, and even where a checkout stands in front of the project in sys.path."""
    paths = [str(installed if place == "wheel" else ROOT), str(project)]
    program = "\n".join(["import sys", "before = list(sys.path)", *programs, "assert sys.path == before"])
    command = [sys.executable, "-P", "-c", program]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
