"""The programs of benchmarks/ run: the figures of the documentation name the commands that give them."""

import os
import subprocess
import sys

import pytest

from tests.conftest import FAST_COMPILE, ROOT

# Small arguments of each program; {data} is the folder of real images.
COMMANDS = {
    "checkpoint_stall": "--saves=2 --rounds=1",
    "cpu_forms": "--small --repeats=1",
    "damage": "--count=2",
    "dataset_making": "--coco={data}/coco_instances --images=20 --repeats=1",
    "fuzz": "--reader=coco_json --seconds=5",
    "inference": "--backbone=resnet50 --size 64 64 --repeats=1 --no-memory",
    "input_memory": "--images=20 --instances=5 --epochs=1",
    "input_pipeline": "--images=16 --batches=2 --rounds=1",
    "large_images": "--sides 1500 --tasks semantic",
    "matcher": "--segments 20 --size=64 --step-batch=1 --batch=2 --steps=2 --repeats=1",
    "metrics": "--images=10 --repeats=1",
    "padding": "--size=64 --repeats=1",
    "postprocess_memory": "--batch=1",
    "predict_memory": "--images=4 --every=2",
    "predict_processes": "--images=60 --processes 2",
    "profile_step": "--size=64 --steps=1 --top=3",
    "service": "--clients 1 --seconds=1 --over=9",
    "throughput": "--models ade20k:resnet50 --short-edge=64 --images=4 --repeats=1",
    "train_step": "--size=64 --batch=1 --repeats=1 --variants eager --no-memory",
}
NEEDS = {"large_images": ("pyvips",), "service": ("starlette", "uvicorn", "prometheus_client")}  # of optional extras
# Tested elsewhere, started by others, for compilers of absent devices, or drawn from finished runs.
OTHERS = {
    *("accelerator", "attention", "deformable", "export", "guard", "tpu_table", "traffic"),
    *("detectron2_mappers", "inference_program", "export_scores", "plot_runs"),
}


def test_no_program_is_forgotten():
    programs = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text("utf-8")}
    assert programs == {*COMMANDS, *OTHERS}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_it_runs_and_prints(name, request):
    for module in NEEDS.get(name, ()):
        pytest.importorskip(module)
    arguments = COMMANDS[name]
    if "{data}" in arguments:
        arguments = arguments.format(data=request.getfixturevalue("shared_data"))
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments.split()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": FAST_COMPILE}  # on one device
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip()
