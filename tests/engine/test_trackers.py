"""W&B, MLflow and Trackio by their real libraries, without a network: what they keep of a run that resumes.

Each is skipped where its library, an extra, is not installed.
"""

import json
import pathlib
import struct
import time

import numpy as np
import pytest

from maskformer_jax.engine.hooks import HOOKS, Hooks
from tests.engine.test_hooks import info

IMAGE = np.dstack([np.full((20, 30), value, np.uint8) for value in (200, 100, 0)])


def follow(tracker, folder, said):
    """A run of six steps that is interrupted after a checkpoint of step 4, and repeats two steps when it resumes."""
    for first, last in ((0, 6), (4, 8)):
        run = info(folder, name="my run", project="", first_step=first, settings={"data": {"crop": (32, 32)}})
        hooks = Hooks.start({tracker: HOOKS[tracker]()}, run, said.append)
        for step in range(first + 1, last + 1):
            hooks.log(step, {"train/loss": 10.0 / step})
        hooks.evaluation(last, {"panoptic/pq": 5.0 * last}, {"pq/tv, red; old": 5.0})
        hooks.images(last, {"validation/0": IMAGE})
        hooks.checkpoint(last, f"{folder}/checkpoints/{last}")
        hooks.end("finished") if first else hooks.error(KeyboardInterrupt())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A workdir, which is the current folder; nothing of the user's own set-up applies."""
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_PROJECT", "WANDB_MODE", "WANDB_API_KEY", "MLFLOW_EXPERIMENT_NAME", "TRACKIO_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_wandb_without_a_key_keeps_the_run_offline_and_resumes_it(folder, capfd):
    pytest.importorskip("wandb")
    said = []
    follow("wandb", folder, said)
    assert said == []
    assert capfd.readouterr().out.count("note: not logged in to W&B") == 2
    files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    runs = [complete_records(file) for file in files]
    ids = {record.run.run_id for run in runs for record in run if record.HasField("run")}
    assert ids == {json.loads((folder / "hooks.json").read_text())["wandb"]}
    (begun,) = [record.run for record in runs[0] if record.HasField("run")]
    assert (begun.project, begun.display_name) == ("maskformer_jax", "my run")
    config = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert config["data"] == {"crop": [32, 32]}
    histories = [[history_of(record) for record in run if record.HasField("history")] for run in runs]
    losses = [[(row["step"], row["train/loss"]) for row in history if "train/loss" in row] for history in histories]
    assert losses == [
        [(step, 10.0 / step) for step in range(1, 7)],
        [(step, 10.0 / step) for step in range(5, 9)],
    ]
    (scored,) = [row for row in histories[1] if "panoptic/pq" in row]
    assert (scored["step"], scored["panoptic/pq"], scored["pq/tv, red; old"]) == (8, 40.0, 5.0)
    assert len(list(folder.glob("wandb/offline-run-*/files/media/images/validation/*.png"))) == 2
    assert [record.exit.exit_code for run in runs for record in run if record.HasField("exit")] == [1, 0]


def test_mlflow_resumes_one_run_with_its_status_parameters_and_images(folder, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    said = []
    follow("mlflow", folder, said)
    assert said == []
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("maskformer_jax")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == json.loads((folder / "hooks.json").read_text())["mlflow"]
    assert (run.info.run_name, run.info.status) == ("my run", "FINISHED")
    assert run.data.params["data.crop"] == "(32, 32)"
    assert run.data.tags["checkpoint"] == f"{folder}/checkpoints/8"
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert {each.step: each.value for each in losses} == {step: 10.0 / step for step in range(1, 9)}
    assert run.data.metrics["panoptic/pq"] == 40.0
    assert run.data.metrics["pq/tv_ red_ old"] == 5.0
    images = [file.path for file in client.list_artifacts(run.info.run_id, "images") if file.path.endswith(".png")]
    assert len(images) == 2
    # A run that was deleted, or another server: the run begins anew there.
    client.delete_run(run.info.run_id)
    hooks = Hooks.start({"mlflow": HOOKS["mlflow"]()}, info(folder), said.append)
    hooks.end("preempted")
    (again,) = client.search_runs([client.get_experiment_by_name("n").experiment_id])
    assert again.info.status == "KILLED"
    assert said == []


def test_trackio_resumes_its_run_under_a_name_of_its_own(folder, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(folder / "trackio"))  # which it reads when it is imported
    trackio = pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    said = []
    follow("trackio", folder, said)
    assert said == []
    (run,) = trackio.Api().runs("maskformer_jax")
    assert run.name == json.loads((folder / "hooks.json").read_text())["trackio"]
    assert run.name.startswith("my run-")
    assert run.config["data"] == {"crop": [32, 32]}
    rows = SQLiteStorage.get_logs("maskformer_jax", run.name)
    losses = [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert losses == [(step, 10.0 / step) for step in (*range(1, 7), *range(5, 9))]
    assert [row["panoptic/pq"] for row in rows if "panoptic/pq" in row] == [30.0, 40.0]
    assert [row["validation/0"]["caption"] for row in rows if "validation/0" in row] == ["validation/0"] * 2
    assert len(list(folder.rglob("*.png"))) == 2


def complete_records(file: pathlib.Path) -> list:
    """The records of a run that has finished: W&B's own process may still be writing them for a moment."""
    deadline = time.monotonic() + 60
    while True:
        records = list(wandb_records(file))
        if any(record.HasField("exit") for record in records) or time.monotonic() > deadline:
            return records
        time.sleep(0.05)


def wandb_records(file: pathlib.Path):
    """The records of a .wandb file: after seven bytes, blocks of 32 KiB with pieces of records, as in LevelDB."""
    from wandb.proto import wandb_internal_pb2

    data, place, held = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        _, length, kind = struct.unpack_from("<IHB", data, place)
        left = 32768 - place % 32768
        if left < 7 or not kind:
            place += left
            continue
        held += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the whole of a record, or its last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(held)
            held = b""
            yield record


def history_of(record) -> dict:
    items = record.history.item
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
