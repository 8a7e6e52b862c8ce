"""The train step compiled for TPUs, which takes no TPU: it fits, and chips exchange gradients and nothing else."""

import functools

import jax
import pytest

from benchmarks import tpu_table

pytest.importorskip("libtpu")

pytestmark = [pytest.mark.aot, pytest.mark.slow]

# A few layers less than configs/shapes.py has, to compile in half the time.
SMALL = {"model.decoder.num_layers": 1, "data.crop": (64, 64), "data.max_segments": 16}


@pytest.fixture(scope="module", autouse=True)
def environment():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in tpu_table.ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


@functools.cache
def needs(topology, batch_size):
    """What the step needs of a chip, and the bytes of the parameters."""
    program = tpu_table.Program("shapes:", topology, {**SMALL, "train.batch_size": batch_size})
    lowered, learner = tpu_table.lower(program)
    params = sum(leaf.size * 4 for leaf in jax.tree.leaves(learner.abstract_state().params))
    return tpu_table.needs(lowered.compile()), params


@pytest.mark.parametrize("topology", ["v5e:2x2", "v4:2x2x1"])
def test_the_step_compiles_and_exchanges_gradients_only(topology):
    found, params = needs(topology, 8)
    assert 3 * params < found["memory"] < 1 << 30
    assert set(found["collectives"]) == {"all-reduce"}
    count, size = found["collectives"]["all-reduce"]
    assert count < 10
    # A few scalars more, and biases of equal gradients are sent once.
    assert size == pytest.approx(params, rel=0.01)


def test_what_chips_exchange_does_not_grow_with_the_batch():
    assert needs("v5e:2x2", 8)[0]["collectives"] == needs("v5e:2x2", 16)[0]["collectives"]
