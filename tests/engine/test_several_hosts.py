"""Scores over real processes are those of one: integers and COCO's matches are joined exactly."""

import json

import numpy as np
import pytest

from maskformer_jax.engine import train
from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline.sources import open_source
from tests.engine.recipe import recipe
from tests.engine.several_hosts import IMAGES, joined
from tests.input_pipeline.folders import write_classes, write_folder
from tests.processes import run_together


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of seven sizes, as a dataset."""
    folder = write_folder(tmp_path_factory.mktemp("hosts") / "mine", train=1, val=IMAGES)
    write_classes(folder, ignore_index=255, things=["car"])
    data = recipe(folder, 1)["data"]
    open_source(data["name"], data["dir"], data["tfds_dir"])
    return str(folder)


@pytest.fixture(scope="module")
def alone(folder):
    (result,) = run_together("tests.engine.several_hosts", 1, "1", folder, timeout=300)
    return result


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_scores_are_those_of_one_process(folder, alone, processes):
    """PQ adds up IoUs, whose last bit depends on their order; everything else is made of integers."""

    def tolerance(name):
        return 1e-14 if "pq" in name or "sq" in name else 0

    expected = json.loads(json.dumps(joined(range(IMAGES))))
    assert 5 < expected["panoptic"][0]["pq"] < 95
    assert 5 < expected["instance"][0]["AP"] < 95
    assert sum(map(sum, alone["folder"]["counts"]["confusion"])) > 0
    for found in run_together("tests.engine.several_hosts", processes, str(processes), folder, timeout=300):
        for task, (summary, per_class) in expected.items():
            for name, value in summary.items():
                np.testing.assert_allclose(found["parts"][task][0][name], value, rtol=tolerance(name), err_msg=name)
            np.testing.assert_allclose(found["parts"][task][1], per_class, rtol=tolerance(task[0] + "q"))
        assert found["agreed"] == [True, False]
        assert found["folder"]["counts"] == alone["folder"]["counts"]
        for name, value in alone["folder"]["summary"].items():
            np.testing.assert_allclose(found["folder"]["summary"][name], value, rtol=tolerance(name), err_msg=name)
        for task, images in alone["folder"]["worst"].items():
            assert [name for _, name in found["folder"]["worst"][task]] == [name for _, name in images]


def test_hosts_with_other_examples_are_named(folder, tmp_path, monkeypatch):
    """Hosts with disks of their own, of which one has another state of the data."""
    here = open_source("folder", folder, recipe(folder, 1)["data"]["tfds_dir"])
    other = open_source("folder", str(write_folder(tmp_path / "mine", train=2, val=IMAGES)), str(tmp_path / "tfds"))
    digests = []
    monkeypatch.setattr(train.multihost_utils, "process_allgather", lambda mine: digests.append(mine) or mine[None])
    for source in (here, other):
        train._refuse_different_data(source, ("train", "val"))
    monkeypatch.setattr(train.multihost_utils, "process_allgather", lambda mine: np.stack([digests[0], mine, mine]))
    train._refuse_different_data(here, ("train", "val"))
    with pytest.raises(UserError, match=r"not have the same examples on all hosts: those of processes \[1, 2\]"):
        train._refuse_different_data(other, ("train", "val"))
