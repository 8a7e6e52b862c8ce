"""The memory of a step is said before it runs, and what would need less."""

import types

import jax
import jax.numpy as jnp
import pytest

from maskformer_jax.engine import step_memory, train
from maskformer_jax.engine.memory_report import first_that_fits, report_memory
from maskformer_jax.engine.settings import Settings
from maskformer_jax.engine.step_memory import StepMemory
from maskformer_jax.engine.trainer import Trainer
from maskformer_jax.errors import UserError
from maskformer_jax.sharding import make_mesh
from tests.engine.recipe import recipe
from tests.input_pipeline.folders import write_folder

MIB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "mine")


def settings_for(folder="", batch_size=8, **changes):
    return Settings.from_dict(recipe(folder, 2, batch_size)).changed(changes)


def devices(count, platform):
    one = types.SimpleNamespace(platform=platform, device_kind=platform.upper())
    return types.SimpleNamespace(size=count, local_devices=[one] * count)


def names(settings, mesh):
    return {saving.name: saving.values for saving in step_memory.savings(settings, mesh)}


def test_savings_come_in_order_of_their_cost():
    found = names(settings_for(batch_size=16), devices(2, "gpu"))
    assert list(found) == ["model.dtype", "train.grad_accum_steps", "train.zero_shards", "train.remat"]
    assert found["train.grad_accum_steps"] == (2, 4, 8)
    assert found["train.zero_shards"] == (2,)


def test_only_what_can_be_changed_is_a_saving():
    changes = {"model.dtype": "bfloat16", "train.remat": True, "train.zero_shards": 4, "data.crop": (96, 128)}
    changes["train.grad_accum_steps"] = 2
    assert names(settings_for(batch_size=16, **changes), devices(4, "tpu")) == {
        "train.grad_accum_steps": (4,),
        "data.crop": ((64, 96), (32, 64)),
    }
    assert names(settings_for(batch_size=1), devices(1, "cpu")) == {"train.remat": (True,)}


def test_savings_are_settings_that_training_takes():
    mesh = make_mesh(jax.devices()[:2])
    settings = settings_for(batch_size=8, **{"data.crop": (96, 96)})
    for saving in step_memory.savings(settings, mesh):
        settings = settings.changed({saving.name: saving.values[-1]})
    assert (settings.train.grad_accum_steps, settings.data.crop) == (4, (32, 32))
    Trainer(settings, 3, mesh)


def test_a_step_that_does_not_fit_is_a_warning_with_the_cure(monkeypatch):
    settings, mesh = settings_for(batch_size=8), devices(2, "gpu")
    fitting, large = (StepMemory(MIB, 2 * MIB, 3 * MIB, available) for available in (6 * MIB, 6 * MIB - 1))
    assert step_memory.describe(fitting, mesh) == (
        "memory of a step on each of 2 devices: 6.0 MiB (1.0 MiB state, 2.0 MiB batch, 3.0 MiB temporary); "
        "available: 6.0 MiB (GPU)"
    )
    assert step_memory.warning(fitting, settings, mesh) == ""
    assert step_memory.warning(fitting._replace(available=None), settings, mesh) == ""
    assert step_memory.warning(None, settings, mesh) == ""
    assert "may end with an error" in step_memory.warning(large, settings, mesh)
    assert "\n  --config.train.grad_accum_steps=2 or 4: " in step_memory.warning(large, settings, mesh)
    assert "may be killed by the system" in step_memory.warning(large, settings, devices(1, "cpu"))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    assert "\n  XLA_PYTHON_CLIENT_MEM_FRACTION=0.95" in step_memory.advice(settings, mesh)


def exhausted(*_):
    jnp.zeros(1 << 50, jnp.uint8).block_until_ready()


def test_memory_that_is_exhausted_in_training_has_a_cure(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "_train", exhausted)
    with pytest.raises(UserError, match=r"^training needs more memory(.|\n)*--config\.train\.remat=True"):
        train.train_and_evaluate(settings_for(folder), str(tmp_path / "w"))


def test_memory_that_is_exhausted_in_an_evaluation_has_a_cure(tmp_path):
    run = types.SimpleNamespace(evaluator=exhausted, whole=lambda model: model, settings=settings_for())
    with pytest.raises(UserError, match=r"^evaluation needs more memory.*smaller config\.eval\.batch_size than 8"):
        train._evaluate(run, types.SimpleNamespace(model=()), None, 2)


@pytest.mark.parametrize(
    ("limit", "changes", "printed"),
    [
        (32, {}, 1),
        (16, {"train.grad_accum_steps": 2}, 2),
        (4, {"train.grad_accum_steps": 4, "train.zero_shards": 8, "train.remat": True}, 5),
        (3, None, 5),
    ],
)
def test_savings_are_added_until_the_step_fits(capsys, limit, changes, printed):
    def measure(settings):
        needed = settings.train.batch_size // settings.train.grad_accum_steps // (1 + settings.train.remat)
        return needed <= limit, f"needs {needed}"

    assert first_that_fits(settings_for(batch_size=32), make_mesh(), measure) == changes
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == printed
    assert lines[0] == "as it is: needs 32"
    assert lines[-1].startswith("as it is" if changes == {} else "--config." if printed == 2 else "and --config.")


def test_a_report_writes_nothing_and_takes_the_refusal_of_a_compiler(folder, tmp_path, monkeypatch, capsys):
    """TPU programs that do not fit are refused."""

    def compile_step(self, *_):
        if self.settings.train.zero_shards == 1:
            exhausted()
        return jax.jit(lambda x: x).lower(1.0).compile()

    monkeypatch.setattr(Trainer, "compile_step", compile_step)
    assert report_memory(settings_for(folder), str(tmp_path / "w")) == {"train.zero_shards": 8}
    refused, fitting = capsys.readouterr().out.splitlines()
    assert refused.startswith("as it is: does not fit: RESOURCE_EXHAUSTED")
    assert fitting.startswith("--config.train.zero_shards=8: memory of a step on each of 8 devices: ")
    assert not (tmp_path / "w").exists()
