"""The whole road on a small folder: train, resume to the same bits, evaluate, predict, and fail well."""

import contextlib
import json
import math
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest
from PIL import Image

from maskformer_jax import predict
from maskformer_jax.checkpoints.store import CheckpointStore
from maskformer_jax.checkpoints.weights import open_weights
from maskformer_jax.engine.evaluate import Scores
from maskformer_jax.engine.log import NonFiniteLoss
from maskformer_jax.engine.settings import Settings
from maskformer_jax.engine.train import Run, _evaluate, evaluate_run, train_and_evaluate
from maskformer_jax.errors import UserError
from tests.conftest import ROOT
from tests.engine.recipe import recipe
from tests.engine.test_hooks import Recorder
from tests.input_pipeline.folders import NAMES, write_folder

STEPS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "mine")


def settings_for(folder, **changes):
    return Settings.from_dict(recipe(folder, STEPS, **changes))


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """The workdir of a run that was never interrupted."""
    workdir = str(tmp_path_factory.mktemp("runs") / "finished")
    train_and_evaluate(settings_for(folder), workdir)
    return workdir


def read(workdir, name):
    return pathlib.Path(workdir, name).read_text()


def read_metrics(workdir):
    return [json.loads(line) for line in read(workdir, "metrics.jsonl").splitlines()]


def final_arrays(folder, workdir):
    run = Run(settings_for(folder), workdir)
    store = run.open_checkpoints()
    state = store.restore(STEPS, run.trainer.initial_state())
    store.close()
    return {"params": state.params, "optimizer": state.optimizer, "step": state.step}


def assert_same_bits(folder, first, second):
    import jax

    one, other = final_arrays(folder, first), final_arrays(folder, second)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), one, other)


def test_a_run_leaves_what_it_promises(finished):
    files = set(os.listdir(finished))
    assert {"checkpoints", "config.json", "classes.json", "versions.json", "metrics.jsonl", "images"} <= files
    assert any(name.startswith("events.out.tfevents") for name in files)
    assert {"git", "python", "jax", "flax"} <= set(json.loads(read(finished, "versions.json")))
    lines = read_metrics(finished)
    last = lines[-1]
    assert last["step"] == STEPS
    assert {"panoptic/pq", "panoptic/pq_things", "panoptic/pq_stuff", "semantic/miou"} <= set(last)
    assert last["panoptic/pq_things"] is None  # this folder has no things
    assert 0 <= last["semantic/miou"] <= 100
    assert (last["semantic/miou_classes"], last["panoptic/pq_things_classes"]) == (3, 0)
    trained = [line for line in lines if "train/loss" in line]
    assert {"train/loss_class", "train/loss_mask_0", "train/learning_rate", "train/images_per_second"} <= set(
        trained[0]
    )
    assert all(line["train/unmatched_images"] == 0 for line in trained)
    with Image.open(f"{finished}/images/step_{STEPS:06d}.png") as picture:
        assert picture.width > 900


@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_killed_run_ends_with_the_same_bits(folder, finished, tmp_path, kills):
    """kill -9 at a random moment of training, then the same command again."""
    workdir = str(tmp_path / "killed")
    command = [sys.executable, "-m", "tests.engine.recipe", str(folder), str(STEPS), workdir]
    metrics = os.path.join(workdir, "metrics.jsonl")
    delay = random.Random()
    for _ in range(kills):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = os.path.getsize(metrics) if os.path.exists(metrics) else 0
        while process.poll() is None and (not os.path.exists(metrics) or os.path.getsize(metrics) <= before):
            time.sleep(0.02)
        time.sleep(delay.uniform(0.0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_bits(folder, finished, workdir)
    steps = [line["step"] for line in read_metrics(workdir)]
    assert steps == sorted(steps)
    assert steps == [line["step"] for line in read_metrics(finished)]


def test_the_same_command_on_a_finished_run_changes_nothing(folder, finished):
    before = read_metrics(finished)
    train_and_evaluate(settings_for(folder), finished)
    assert read_metrics(finished) == before


def test_evaluation_of_a_run(folder, finished, capsys):
    scores = evaluate_run(settings_for(folder), finished)
    record = json.loads(read(finished, "eval.json"))
    assert record["semantic/miou"] == pytest.approx(scores.summary["semantic/miou"])
    assert set(record["classes"]) == set(NAMES)
    assert record["how"] == "one view of each image"
    assert re.search(r"mIoU +[\d.]+ over 3 of 3 classes ", capsys.readouterr().out)
    assert record["semantic/miou_classes"] == 3
    scored = {line["step"]: line["semantic/miou"] for line in read_metrics(finished) if "semantic/miou" in line}
    assert len(scored) > 1
    assert scored[record["step"]] == max(scored.values())
    assert not pathlib.Path(finished, "results").exists()


def test_weights_of_others_are_scored_without_a_run(folder, finished, tmp_path, capsys):
    expected = evaluate_run(settings_for(folder), finished).summary
    values = recipe(folder, STEPS)
    # What fine-tuning starts at random is scored as it is in the weights.
    values["init"].update(weights=finished, reinit=("heads.class_head",))
    capsys.readouterr()
    found = evaluate_run(Settings.from_dict(values), str(tmp_path)).summary
    assert found == pytest.approx(expected, nan_ok=True)
    assert f"{finished}, checkpoint " in capsys.readouterr().out
    assert json.loads(read(tmp_path, "eval.json"))["step"] == 0
    assert not (tmp_path / "checkpoints").exists()


def test_without_checkpoint_and_weights_there_is_nothing_to_score(folder, tmp_path):
    with pytest.raises(
        UserError, match=r"no checkpoint; train first with --mode=train, or give .* config\.init\.weights"
    ):
        evaluate_run(settings_for(folder), str(tmp_path))


def test_evaluation_shows_where_a_run_is_wrong_and_saves_results(folder, finished, capsys):
    values = recipe(folder, STEPS)
    values["eval"].update(save_results=True, num_worst=2)
    scores = evaluate_run(Settings.from_dict(values), finished)
    told = capsys.readouterr().out
    for title in ("worst classes", "mostly taken for", "worst images"):
        assert title in told
    assert all(len(images) == 2 for images in scores.worst.values())
    step = json.loads(read(finished, "eval.json"))["step"]
    assert [len(pictures) for pictures in scores.worst_pictures.values()] == [2, 2]
    for name in ("", "_confusion", "_worst_panoptic", "_worst_semantic"):
        with Image.open(pathlib.Path(finished, "images", f"eval_{step:06d}{name}.png")) as picture:
            picture.load()
    images = {f"{number:03d}.png" for number in range(5)}
    results = pathlib.Path(finished, "results")
    assert {path.name for path in results.iterdir()} == {"panoptic", "panoptic.json", "semantic"}
    assert {path.name for path in (results / "semantic").iterdir()} == images
    assert {
        entry["file_name"] for entry in json.loads((results / "panoptic.json").read_text())["annotations"]
    } == images


@pytest.mark.parametrize("task", ["semantic", "panoptic"])
def test_prediction_writes_overlay_ids_and_segments(folder, finished, tmp_path, task):
    images = sorted(str(p) for p in (folder / "images" / "val").iterdir())[:2]
    out = tmp_path / task
    assert predict.main([f"--model={finished}", *images, f"--task={task}", f"--out={out}"]) == 0
    for path in images:
        stem = os.path.basename(path).removesuffix(".png")
        with Image.open(path) as image, Image.open(out / f"{stem}_ids.png") as ids:
            assert ids.size == image.size
            id_map = np.asarray(ids)
        segments = json.loads((out / f"{stem}.json").read_text())["segments"]
        assert [s["id"] for s in segments] == list(range(1, len(segments) + 1))
        for segment in segments:
            assert segment["name"] == NAMES[segment["class"]]
            assert segment["area"] == np.sum(id_map == segment["id"])
            assert 0 <= segment["score"] <= 1
        if task == "semantic":
            assert id_map.min() == 1
        with Image.open(out / f"{stem}_overlay.png") as overlay:
            assert min(overlay.size) >= 320


def test_prediction_goes_on_past_an_unreadable_image(folder, finished, tmp_path, capsys):
    good = str(folder / "images" / "val" / "000.png")
    bad = tmp_path / "bad.png"
    bad.write_bytes(pathlib.Path(good).read_bytes()[:200])
    assert predict.main([f"--model={finished}", str(bad), good, f"--out={tmp_path / 'out'}"]) == 1
    assert "bad.png" in capsys.readouterr().err
    assert (tmp_path / "out" / "000.json").exists()


def test_prediction_needs_a_run(tmp_path):
    with pytest.raises(SystemExit, match="not the --workdir of a training run"):
        predict.main([f"--model={tmp_path}", "x.png", f"--out={tmp_path}"])


def test_a_workdir_of_another_model_is_refused_and_kept(folder, finished):
    other = recipe(folder, STEPS)
    other["model"]["decoder"]["num_layers"] = 3
    before = read(finished, "config.json")
    with pytest.raises(UserError, match=r"config\.model\.decoder\.num_layers: there 2, now 3"):
        train_and_evaluate(Settings.from_dict(other), finished)
    averaged = recipe(folder, STEPS)
    averaged["train"]["ema_decay"] = 0.9
    with pytest.raises(UserError, match=r"config\.train\.ema_decay: there 0\.0, now 0\.9"):
        train_and_evaluate(Settings.from_dict(averaged), finished)
    assert read(finished, "config.json") == before


@pytest.mark.slow
def test_a_run_with_everything_that_saves_memory_resumes_and_is_scored_by_its_average(
    folder, finished, tmp_path, capsys
):
    """From weights, with ZeRO-style sharding, gradient accumulation and rematerialization; it stops early."""
    values = recipe(folder, 2, batch_size=16)
    values["train"].update(zero_shards=4, grad_accum_steps=2, remat=True, ema_decay=0.5)
    values["init"].update(weights=finished)
    values["eval"].update(every=2)
    first = train_and_evaluate(Settings.from_dict(values), str(tmp_path))
    # It stops at the second evaluation, and remembers the first, which was before it was started again.
    values["train"].update(steps=6)
    values["eval"].update(patience=1, min_improvement=200.0)
    hook = Recorder()
    state = train_and_evaluate(Settings.from_dict(values), str(tmp_path), [hook])
    assert (first.step, state.step) == (2, 4)
    assert hook.run.first_step == 2
    told = [name for name, *_ in hook.calls]
    assert told == ["start", "log", "log", "evaluation", "images", "checkpoint", "end"]
    assert hook.calls[-2:] == [("checkpoint", 4, f"{tmp_path}/checkpoints/4"), ("end", "stopped early")]
    assert hook.calls[3][2]["semantic/miou"] == read_metrics(str(tmp_path))[-1]["semantic/miou"]
    capsys.readouterr()
    assert train_and_evaluate(Settings.from_dict(values), str(tmp_path), [hook]).step == 4
    assert "stopped early: semantic/miou has not improved in 1 evaluations: its best is" in capsys.readouterr().out
    assert len(hook.calls) == len(told)
    kernel = state.params["backbone.stem.0.conv.kernel"]
    assert kernel.addressable_data(0).size == kernel.size / 4
    name = "heads.class_head.bias"
    assert not np.array_equal(state.ema[name], state.params[name])
    scored = evaluate_run(Settings.from_dict(values), str(tmp_path)).summary["semantic/miou"]
    best = max(line["semantic/miou"] for line in read_metrics(str(tmp_path)) if "semantic/miou" in line)
    assert scored == pytest.approx(best)
    store = CheckpointStore(f"{tmp_path}/checkpoints")
    np.testing.assert_array_equal(store.read_model(4)[name], state.ema[name])


def test_an_evaluation_without_the_best_metric_says_so(folder, tmp_path, capsys):
    values = recipe(folder, STEPS)
    values["eval"].update(best_metric="panoptic/pq_things")
    scores = Scores({"panoptic/pq_things": math.nan}, {}, {"sky": {"pq": math.nan}}, {}, {}, [], {})
    run = types.SimpleNamespace(
        evaluator=lambda: scores,
        whole=lambda model: model,
        settings=Settings.from_dict(values),
        directory=tmp_path,
        source=types.SimpleNamespace(classes=None),
    )
    written = {"write_evaluation": lambda *line: None, "write_images": lambda *images: None}
    logger = types.SimpleNamespace(say=print, optional=contextlib.nullcontext, **written)
    _evaluate(run, types.SimpleNamespace(model=()), logger, 2)
    assert "warning: panoptic/pq_things has no value here" in capsys.readouterr().out


def test_more_segments_than_queries_are_refused(folder, tmp_path):
    few = recipe(folder, STEPS)
    few["model"]["decoder"]["num_queries"] = 2
    with pytest.raises(UserError, match=r"3 segments.*2 queries.*config\.model\.decoder\.num_queries to at least 3"):
        train_and_evaluate(Settings.from_dict(few), str(tmp_path / "w"))
    assert not (tmp_path / "w").exists()


def test_a_dataset_of_nothing_but_void_is_refused(tmp_path):
    blank = write_folder(tmp_path / "blank")
    for path in (blank / "labels" / "train").iterdir():
        with Image.open(path) as labels:
            size = labels.size
        Image.new("L", size, 255).save(path)
    with pytest.raises(UserError, match=r"split 'train', has a segment: every pixel is void"):
        train_and_evaluate(Settings.from_dict(recipe(blank, STEPS)), str(tmp_path / "w"))
    assert not (tmp_path / "w").exists()


def test_a_batch_that_does_not_divide_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"config\.train\.batch_size is 6.*8 devices"):
        train_and_evaluate(settings_for(folder, batch_size=6), str(tmp_path / "w"))


@pytest.mark.slow
def test_a_diverging_run_stops_with_step_images_and_checkpoint(folder, tmp_path):
    workdir = str(tmp_path / "w")
    train_and_evaluate(Settings.from_dict(recipe(folder, 4)), workdir)
    wild = recipe(folder, STEPS)
    wild["optimizer"].update(learning_rate=1e38, clip_norm=1e30)
    with pytest.raises(NonFiniteLoss) as error:
        train_and_evaluate(Settings.from_dict(wild), workdir)
    message = str(error.value)
    assert "step " in message
    assert "Images of that batch: 0" in message
    assert "checkpoints/" in message
    named = int(message.split("checkpoints/")[1].split(".")[0])
    store = CheckpointStore(os.path.join(workdir, "checkpoints"))
    assert store.latest_step() == named


def fine_tuning(folder, source, *reinit):
    """Settings that begin with the weights of another run, and hardly change them."""
    values = recipe(folder, 1)
    values["init"].update(weights=source, reinit=reinit)
    values["optimizer"].update(learning_rate=1e-9, weight_decay=0.0)
    return values


def names_of_programs():
    """The names of programs that are compiled from now on; it fills as they are."""
    names = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration, **tags: names.append(tags["fun_name"]) if "backend_compile" in event else None
    )
    return names


def test_fine_tuning_takes_all_but_what_is_named_and_says_so(folder, finished, tmp_path, capsys):
    values = fine_tuning(folder, finished, "heads.class_head", "decoder.query_embed")
    values["model"]["decoder"]["num_queries"] = 11
    programs = names_of_programs()
    state = train_and_evaluate(Settings.from_dict(values), str(tmp_path / "w"))
    said = capsys.readouterr().out
    assert f"from {finished}, checkpoint" in said
    assert [name for name in programs if "step" in name] == ["jit(step)"], "its memory costs no compilation"
    (line,) = re.findall(r"^memory of a step on each of 8 devices: .* state, .* batch, .* temporary.*$", said, re.M)
    assert said.index(line) < said.index("first step after")
    assert "at random: decoder.query_embed, heads.class_head\n" in said
    source = open_weights(finished).tensors
    assert state.params["decoder.query_embed"].shape == (11, 16)
    for name, value in state.params.items():
        if name.startswith("heads.class_head") or name == "decoder.query_embed":
            continue
        np.testing.assert_allclose(value, source[name], atol=1e-7, err_msg=name)


@pytest.mark.slow  # a shorter one is in test_finetune.py
def test_a_run_that_goes_on_does_not_read_its_first_weights_again(folder, finished, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(finished, source)
    values = fine_tuning(folder, str(source))
    train_and_evaluate(Settings.from_dict(values), str(tmp_path / "w"))
    shutil.rmtree(source)
    values["train"]["steps"] = 2
    assert train_and_evaluate(Settings.from_dict(values), str(tmp_path / "w")).step == 2


@pytest.mark.slow
def test_a_run_killed_in_its_first_checkpoint_begins_with_its_weights_again(folder, finished, tmp_path):
    (tmp_path / "w" / "checkpoints" / "2.orbax-checkpoint-tmp").mkdir(parents=True)
    state = train_and_evaluate(Settings.from_dict(fine_tuning(folder, finished)), str(tmp_path / "w"))
    source = open_weights(finished).tensors
    np.testing.assert_allclose(state.params["heads.class_head.kernel"], source["heads.class_head.kernel"], atol=1e-7)


@pytest.mark.parametrize(
    ("reinit", "words"),
    [
        ((), r"decoder\.query_embed: \[8, 16\] in the file, \[11, 16\] in the model"),
        (("decoder.query_embedding",), r"'decoder\.query_embedding', which is the beginning of no parameter"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(folder, finished, tmp_path, reinit, words):
    values = fine_tuning(folder, finished, *reinit)
    values["model"]["decoder"]["num_queries"] = 11
    with pytest.raises(UserError, match=words):
        train_and_evaluate(Settings.from_dict(values), str(tmp_path / "w"))
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("name", "decoder"),
    [("per_pixel", {}), ("per_pixel_plus", {"num_queries": len(NAMES)})],
    ids=str,
)
@pytest.mark.slow
def test_per_pixel_baselines_train_and_are_scored(folder, tmp_path, name, decoder):
    values = recipe(folder, 2)
    values["model"]["name"] = name
    values["loss"] = {"name": "per_pixel"}
    if decoder:
        values["model"]["decoder"].update(decoder)
    else:
        del values["model"]["decoder"]
    workdir = str(tmp_path / "w")
    train_and_evaluate(Settings.from_dict(values), workdir)
    lines = read_metrics(workdir)
    assert np.isfinite(lines[0]["train/loss_pixel"])
    assert np.isfinite(lines[-1]["semantic/miou"])
    image = str(folder / "images" / "val" / "000.png")
    assert predict.main([f"--model={workdir}", image, f"--out={tmp_path / 'out'}"]) == 0


def test_fixed_matching_needs_a_query_for_each_class(folder, tmp_path):
    values = recipe(folder, 2)
    values["loss"]["matcher"] = "fixed"
    with pytest.raises(UserError, match=rf"one query for each of the {len(NAMES)} classes"):
        train_and_evaluate(Settings.from_dict(values), str(tmp_path / "w"))
