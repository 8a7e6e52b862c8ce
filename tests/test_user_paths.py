"""Paths that begin with "~" mean the user's home folder: in every flag and setting that is a path, in every program."""

import argparse
import contextlib
import sys

import jax
import pytest
from absl import flags

import maskformer_jax
from maskformer_jax import convert, demo, export, inspect_data, predict, score_cityscapes, score_lvis, serve, train
from maskformer_jax.checkpoints import weights
from maskformer_jax.checkpoints.store import absolute
from maskformer_jax.engine import config_flag, start
from maskformer_jax.errors import UserError
from maskformer_jax.files import paths, writing
from maskformer_jax.input_pipeline.sources import open_source
from maskformer_jax.segmenter.matching_report import trained_with
from tests.engine.recipe import recipe

# Every flag of every program, and whether it is a path. A new flag must be entered here, and tried below if it is one.
ARGUMENTS = {
    predict: {"paths": True, "model": True, "out": True, "task": False, "threshold": False, "overlap": False}
    | {
        "verbose": False,
        "format": False,
        "split": False,
        "copy_images": False,
        "tolerance": False,
        "tile": False,
        "tile_overlap": False,
        "batch_size": False,
        "overwrite": False,
        "distributed": False,
        "num_processes": False,
        "process_id": False,
    },
    convert: {"source": True, "to": True, "format": False, "dtype": False, "base": True},
    export: {
        **{"model": True, "to": True, "format": False, "task": False, "size": False, "batch": False, "dtype": False},
        "precision": False,
    },
    score_cityscapes: {"results": True, "data": True, "to": True, "split": False},
    score_lvis: {"results": True, "annotations": True},
    demo: {"model": True, "examples": True, "host": False, "port": False},
    serve: {"model": True, "host": False, "port": False, "batch_size": False, "queue": False, "timeout": False}
    | {"warm_up": False},
}
ABSL = {
    train: {"workdir": True, "mode": False, "distributed": False, "coordinator": False, "num_processes": False}
    | {"process_id": False, "heartbeat_timeout": False},
    inspect_data: {"out": True, "limit": False, "examples": False},
    config_flag: {"config": True},
}
# Every setting that is a text, and whether it is a path.
SETTINGS = {
    "data.dir": True,
    "data.tfds_dir": True,
    "init.weights": True,
    "init.base_weights": True,
    "data.name": False,
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The home folder; the current folder is another, in which nothing called "~" may appear."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "home"
    assert list((tmp_path / "here").iterdir()) == []


def message(run, *arguments) -> str:
    with pytest.raises((SystemExit, UserError)) as caught:
        run(*arguments)
    return str(caught.value.code if isinstance(caught.value, SystemExit) else caught.value)


@pytest.mark.parametrize("program", ARGUMENTS, ids=lambda program: program.__name__.rpartition(".")[2])
def test_every_flag_of_a_program_is_known(program):
    parser: argparse.ArgumentParser = program._parser()
    assert {action.dest for action in parser._actions} - {"help"} == ARGUMENTS[program].keys()


@pytest.mark.parametrize("module", ABSL, ids=lambda module: module.__name__.rpartition(".")[2])
def test_every_flag_of_training_and_inspection_is_known(module):
    assert {flag.name for flag in flags.FLAGS.get_flags_for_module(module.__name__)} == ABSL[module].keys()


def test_every_text_of_data_and_init_is_known(tmp_path):
    values = recipe(tmp_path, steps=1)
    found = {f"{section}.{name}" for section in ("data", "init") for name, value in values[section].items() if
             isinstance(value, str) and not name.endswith(("split", "rounding", "transforms", "pad"))}  # fmt: skip
    assert found == SETTINGS.keys()


def test_predict(home):
    assert f"{home}/model does not exist" in message(predict.main, ["~/x.png", "--model=~/model", "--out=~/found"])
    assert (home / "found").is_dir()
    (home / "photos").mkdir()
    (home / "photos" / "1.png").touch()
    for argument in ("~/photos", "~/photos/*.png", "~/photos/1.png"):
        images, failed = predict.find_images([argument])
        assert ([image.path for image in images], failed) == ([str(home / "photos" / "1.png")], [])


def test_load(home):
    assert f"{home}/model does not exist" in message(maskformer_jax.load, "~/model")
    assert f"{home}/model does not exist" in message(weights.open_weights, "~/model")  # config.init.weights
    assert f"{home}/model does not exist" in message(weights._open_base, "~/model")  # config.init.base_weights
    assert trained_with("~/model") is None


def test_convert(home):
    arguments = ["--from=~/model", "--to=~/new", "--format=orbax", "--base=~/base"]
    assert f"{home}/model does not exist" in message(convert.main, arguments)
    (home / "new").mkdir()
    (home / "new" / "file").touch()
    assert f"{home}/new exists and is not an empty folder" in message(convert.main, arguments)


def test_export(home):
    arguments = ["--model=~/model", "--to=~/new", "--format=jax", "--task=semantic", "--size=8x8"]
    assert f"{home}/model does not exist" in message(export.main, arguments)
    assert (home / "new").is_dir()
    with writing.new_folder("~/other") as folder:
        (folder / "file").touch()
    assert (home / "other" / "file").exists()


def test_score_cityscapes(home):
    arguments = ["--results=~/instances.json", "--data=~/city", "--to=~/scores"]
    assert f"{home}/city/gtFine/val" in message(score_cityscapes.main, arguments)
    options = score_cityscapes._parser().parse_args(arguments)
    assert [str(path) for path in (options.results, options.to)] == [f"{home}/instances.json", f"{home}/scores"]


def test_score_lvis(home):
    (home / "instances.json").write_text("[]")
    arguments = ["--results=~/instances.json", "--annotations=~/lvis.json"]
    assert f"{home}/lvis.json is missing" in message(score_lvis.main, arguments)


def test_demo(home, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", object())
    monkeypatch.setattr(demo, "_check_port", lambda *address: None)
    assert f"{home}/photos/1.png: no such file" in message(demo.main, ["--model=x", "--examples", "~/photos/1.png"])
    assert f"{home}/model does not exist" in message(demo.main, ["--model=~/model"])


def test_serve(home, monkeypatch):
    monkeypatch.setattr(serve, "_libraries", lambda: (None, None))
    monkeypatch.setattr(serve, "listen", lambda *address: contextlib.nullcontext())
    assert f"{home}/model does not exist" in message(serve.main, ["--model=~/model"])


def test_configurations(home):
    (home / "mine.py").touch()
    for config in ("~/mine.py", "~/mine.py:variant"):
        expected = config.replace("~", str(home))
        assert config_flag._resolve_config([f"--config={config}", "--config", config]) == [
            *(f"--config={expected}", "--config", expected)
        ]
    assert f"the file {home}/missing.py does not exist" in message(
        config_flag._resolve_config, ["--config=~/missing.py"]
    )


def test_data(home):
    assert f"{home}/photos" in message(open_source, "folder", "~/photos", "~/datasets")
    assert f"{home}/datasets" in message(open_source, "cityscapes_semantic", "", "~/datasets")


def test_inspect_data(home):
    inspect_data._check_out("~/found")
    assert (home / "found").is_dir()
    (home / "found" / inspect_data.SHEET).write_bytes(b"own")
    assert "was not made by this program" in message(inspect_data._check_out, "~/found")


def test_workdirs(home):
    assert absolute("~/run") == f"{home}/run"
    assert paths.expand("gs://bucket/~/run") == "gs://bucket/~/run"
    assert paths.expand("facebook/model") == "facebook/model"


def test_a_home_that_is_not_known_is_an_error_and_costs_only_the_cache(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(UserError, match="~/model: the home folder is not known"):
        paths.expand("~/model")
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        start.enable_compilation_cache()
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
