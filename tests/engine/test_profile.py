"""Traces of training steps, and the names by which they can be read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.subjects import draw_batch, settings_of
from maskformer_jax.engine.profile import WARM_UP, profiled
from maskformer_jax.engine.trainer import Trainer
from maskformer_jax.errors import UserError
from maskformer_jax.sharding import make_mesh


@pytest.mark.parametrize(
    ("count", "calls", "traced"),
    [(2, 20, [WARM_UP + 1, WARM_UP + 2]), (2, 3, [2, 3]), (5, 3, [1, 2, 3]), (0, 3, [])],
    ids=["behind the warm-up", "a short run", "a shorter one", "none"],
)
def test_the_steps_that_were_asked_for_are_traced_and_compute_the_same(tmp_path, count, calls, traced):
    add = jax.jit(lambda state, batch: (state + batch, {"loss": state}))
    state = jnp.zeros(())
    with profiled(add, str(tmp_path), count, calls) as step:
        for call in range(1, calls + 1):
            state, scalars = step(state, jnp.float32(call))
            assert scalars["loss"] == sum(range(call))
    found = list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))
    assert len(found) == (1 if traced else 0)
    if traced:
        planes = jax.profiler.ProfileData.from_file(str(found[0])).planes
        events = [event for plane in planes for line in plane.lines for event in line.events if event.name == "train"]
        assert [dict(event.stats)["step_num"] for event in events] == traced


def test_an_error_ends_the_trace_so_that_the_next_run_can_have_one(tmp_path):
    def run(directory):
        with profiled(lambda *given: given, directory, count=5, left=9) as step:
            for _ in range(6):
                step(jnp.zeros(()), jnp.zeros(()))
            raise FloatingPointError

    for name in ("first", "second"):
        with pytest.raises(FloatingPointError):
            run(str(tmp_path / name))
        assert len(list((tmp_path / name).glob("plugins/profile/*/*.xplane.pb"))) == 1


def test_the_parts_of_a_step_have_names():
    settings = settings_of("shapes", {"train.batch_size": 1, "loss.images_per_gpu": 1, "data.crop": (32, 32)})
    trainer = Trainer(settings, 10, make_mesh(jax.devices()[:1]))
    batch = draw_batch(1, (32, 32), 10, segments=2, room=4)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), batch)
    text = trainer.train_step().lower(trainer.abstract_state(), batch).as_text(debug_info=True)
    for part in ("backbone", "pixel_decoder", "decoder", "losses"):
        assert f"jvp({part})/" in text
        assert f"transpose(jvp({part}))/" in text
    assert "jvp(losses)/matching/" in text
    assert "/update/" in text


def test_a_negative_number_of_steps_is_refused():
    with pytest.raises(UserError, match="profile_steps is -1"):
        settings_of("shapes", {"train.profile_steps": -1})
