"""The files of a workdir: read whatever they hold, and written completely."""

import json
import os

import pytest

from maskformer_jax import catalog
from maskformer_jax.checkpoints import workdir
from maskformer_jax.errors import UserError

SETTINGS = {
    "model": {"name": "maskformer"},
    "inference": {"short_edge": 32},
    "train": {"ema_decay": 0.0, "freeze": []},
    "eval": {"best_metric": "semantic/miou"},
}
VALUES = ["null", "true", "7", "-0.5", '"text"', "[]", "[[1]]", "[" * 4000, "{", ""]


@pytest.fixture
def made(tmp_path):
    """A workdir as a run leaves it."""
    workdir.prepare(str(tmp_path), SETTINGS, catalog.load("shapes"))
    return tmp_path


def readers(folder):
    classes = catalog.load("shapes")
    yield lambda: workdir.describe(str(folder))
    yield lambda: workdir.best_metric(str(folder))
    yield lambda: workdir.check(str(folder), SETTINGS, classes)


def test_what_was_written_is_read(made):
    described = workdir.describe(str(made))
    assert described.model == SETTINGS["model"]
    assert described.classes == catalog.load("shapes")
    assert workdir.best_metric(str(made)) == "semantic/miou"
    workdir.check(str(made), SETTINGS, catalog.load("shapes"))
    assert sorted(os.listdir(made)) == ["classes.json", "config.json", "versions.json"]


@pytest.mark.parametrize("text", VALUES)
def test_a_config_of_any_other_content_is_named(made, text):
    (made / "config.json").write_text(text)
    for read in readers(made):
        with pytest.raises(UserError, match=r"config\.json"):
            read()


@pytest.mark.parametrize("text", VALUES[:-3])
@pytest.mark.parametrize("section", ["model", "inference", "train", "eval", "version"])
def test_a_section_of_any_other_content_is_named(made, section, text):
    values = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps({**values, section: json.loads(text)}))
    for read in readers(made):
        with pytest.raises(UserError, match=r"config\.json") as error:
            read()
        assert section in str(error.value)


@pytest.mark.parametrize("text", [*VALUES[:-3], ""])
def test_classes_of_any_other_content_are_named(made, text):
    (made / "classes.json").write_text(text)
    for read in (lambda: workdir.describe(str(made)), lambda: workdir.check(str(made), SETTINGS, None)):
        with pytest.raises(UserError, match=r"classes\.json"):
            read()


def test_a_metric_of_any_other_content_is_named(made):
    values = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps({**values, "eval": {"best_metric": ["pq"]}}))
    with pytest.raises(UserError, match=r"config\.json: eval\.best_metric is \['pq'\]; expected a text"):
        workdir.best_metric(str(made))


def test_a_number_of_classes_beside_the_classes_is_refused(made):
    values = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps({**values, "model": {"name": "maskformer", "num_classes": 3}}))
    with pytest.raises(UserError, match=r"config\.json: model\.num_classes is not a setting"):
        workdir.describe(str(made))


def test_a_byte_order_mark_is_no_obstacle(made):
    (made / "config.json").write_text((made / "config.json").read_text(), encoding="utf-8-sig")
    assert workdir.describe(str(made)).model == SETTINGS["model"]


def test_scores_that_cannot_be_written_are_an_error_with_the_path(made):
    (made / "eval.json").mkdir()
    with pytest.raises(UserError, match=r"eval\.json cannot be written"):
        workdir.write_scores(str(made), 3, "val", {"pq": 1.0}, {}, {}, "whole images")
    with pytest.raises(UserError, match=r"eval\.json cannot be written: a folder has this name"):
        workdir.check_writable(str(made))


@pytest.mark.parametrize("name", ["classes.json", "images", "results", "metrics.jsonl"])
def test_a_folder_of_other_files_is_not_written_over(tmp_path, name):
    """Such as the folder of the data, which has a classes.json and images, too."""
    if "." in name:
        (tmp_path / name).write_text('{"names": ["cat"]}')
    else:
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=rf"is not the folder of a run .*, but has {name}, .* Use another --workdir"):
        workdir.prepare(str(tmp_path), SETTINGS, catalog.load("shapes"))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_start_that_was_killed_is_repeated(made):
    (made / "config.json").unlink()
    workdir.prepare(str(made), SETTINGS, catalog.load("shapes"))
    assert (made / "config.json").exists()


def test_a_workdir_may_hold_other_files(tmp_path):
    (tmp_path / "slurm-1.out").touch()
    workdir.prepare(str(tmp_path), SETTINGS, catalog.load("shapes"))
