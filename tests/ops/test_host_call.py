"""Calls of Python functions from compiled programs."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskformer_jax.ops.host_call import call_on_host
from tests.conftest import ROOT

RESULT = (
    jax.ShapeDtypeStruct((2, 3), np.float32),
    jax.ShapeDtypeStruct((), np.int32),
    jax.ShapeDtypeStruct((0,), bool),
)


def halves(x: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, ...]:
    return np.where(known, x / 2, -1), np.count_nonzero(known), np.zeros(0, bool)


def fail(x: np.ndarray) -> tuple[np.ndarray, ...]:
    raise ValueError(f"no result for {x.tolist()}")


def test_a_program_gets_what_the_function_returns():
    x, known = jnp.arange(6.0).reshape(2, 3), jnp.array([True, False, True])
    half, count, nothing = jax.jit(lambda x, known: call_on_host(halves, RESULT, x * 2, known))(x, known)
    np.testing.assert_array_equal(half, [[0, -1, 2], [3, -1, 5]])
    assert int(count) == 2
    assert nothing.shape == (0,)


def test_an_error_of_the_function_ends_the_program_and_is_told():
    result = (jax.ShapeDtypeStruct((2,), np.float32),)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"ValueError: no result for \[1.0, 2.0\]"):
        jax.block_until_ready(jax.jit(lambda x: call_on_host(fail, result, x))(jnp.array([1.0, 2.0])))


PROGRAM = """
import json
import jax, jax.numpy as jnp
from maskformer_jax.losses.matching import Matcher
from maskformer_jax.types import Targets
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name.rpartition("/")[2]))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
valid = jnp.array([[True, True]])
targets = Targets(jnp.zeros((1, 1, 4, 4), jnp.uint8), jnp.zeros((1, 2), jnp.int32), valid)
cost = jnp.array([[[[3.0, 1.0], [0.0, 2.0], [1.0, 1.5]]]])
assignment, ok = jax.jit(Matcher("scipy"))(cost, targets)
print(json.dumps([assignment.tolist(), ok.tolist(), events.count("cache_misses"), events.count("cache_hits")]))
"""


def test_a_second_start_compiles_no_program_that_matches_with_scipy(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    starts = []
    for _ in range(2):
        command = [sys.executable, "-c", PROGRAM]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        starts.append(json.loads(done.stdout))
    (*answer, compiled, _), (*again, compiled_again, read) = starts
    assert answer == again == [[[[1, 0]]], [[True]]]
    assert compiled > 0
    assert (compiled_again, read) == (0, compiled)
