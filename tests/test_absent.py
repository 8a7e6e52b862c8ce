"""The train step compiled for accelerators that need not be there: it fits, and devices exchange only gradients."""

import functools

import jax
import pytest

from benchmarks.absent import ENVIRONMENT, Program, lower, missing_compiler
from benchmarks.hlo import Traffic, collectives
from maskformer_jax import memory

pytestmark = [pytest.mark.aot, pytest.mark.slow]

TOPOLOGIES = [
    pytest.param(name, marks=pytest.mark.skipif(bool(problem := missing_compiler(name)), reason=problem))
    for name in ("v5e:2x2", "v4:2x2x1", "h100:1x1x4")
]

# A few layers less than configs/shapes.py has, to compile in half the time.
SMALL = {"model.decoder.num_layers": 1, "data.crop": (64, 64), "data.max_segments": 16}


@pytest.fixture(scope="module", autouse=True)
def environment():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


@functools.cache
def needs(topology: str, batch_size: int) -> tuple[int, dict[str, Traffic], int]:
    """Bytes of memory that the step needs of a device, what devices exchange, and the bytes of the parameters."""
    lowered, trainer = lower(Program("shapes:", topology, {**SMALL, "train.batch_size": batch_size}))
    params = sum(leaf.size * 4 for leaf in jax.tree.leaves(trainer.abstract_state().params))
    compiled = lowered.compile()
    return memory.of_program(compiled), collectives(compiled.as_text()), params


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_the_step_compiles_and_exchanges_gradients_only(topology):
    memory, exchanged, params = needs(topology, 8)
    assert 3 * params < memory < 1 << 30
    assert set(exchanged) == {"all-reduce"}
    count, size = exchanged["all-reduce"]
    assert count < 10
    # A few scalars more, and biases of equal gradients are sent once.
    assert size == pytest.approx(params, rel=0.01)


@pytest.mark.parametrize("topology", [TOPOLOGIES[0], TOPOLOGIES[-1]])
def test_what_devices_exchange_does_not_grow_with_the_batch(topology):
    assert needs(topology, 8)[1] == needs(topology, 16)[1]
