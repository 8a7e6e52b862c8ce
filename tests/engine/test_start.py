"""The compilation cache, and the clock of a start."""

import os
import subprocess
import sys

from maskformer_jax.engine.start import StartClock
from tests.conftest import ROOT

PROGRAM = """
import sys
import jax, jax.numpy as jnp
from maskformer_jax.engine.start import enable_compilation_cache
enable_compilation_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8)))
print(jax.config.jax_compilation_cache_dir)
"""


def run(home, **variables):
    inherited = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment = {**inherited, "HOME": str(home), "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert "persistent compilation cache" not in done.stderr
    return done.stdout.strip()


def test_compiled_functions_are_cached_in_the_configured_folder(tmp_path):
    folder = run(tmp_path)
    assert folder == str(tmp_path / ".cache" / "maskformer_jax" / "programs")
    assert os.listdir(folder)
    assert run(tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine")) == str(tmp_path / "mine")
    assert os.listdir(tmp_path / "mine")


def test_a_home_that_cannot_be_written_costs_the_cache_alone(tmp_path):
    home = tmp_path / "home"
    home.write_text("no folder")  # permissions would not stop the superuser
    assert run(home) == "None"


def test_the_clock_reports_the_phases_of_a_start():
    clock = StartClock()
    clock.lap("to open the data")
    clock.lap("more for the compiler")
    assert str(clock) == "first step after 0:00: 0:00 to open the data, 0:00 more for the compiler"
