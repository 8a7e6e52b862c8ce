"""Eight emulated CPU devices for every test, and where real data lie."""

import importlib.metadata
import os
import tempfile

# Both are read once, when JAX first runs; PJRT_NPROC keeps callbacks and collectives from waiting for each other.
os.environ.setdefault("PJRT_NPROC", "32")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile much and run little: without optimisation they take half the time.
FAST_COMPILE = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
# Splitting a program for many threads costs a tenth of its compilation; the workers keep all cores busy without it.
FAST_COMPILE += " --xla_cpu_parallel_codegen_split_count=1"
# Saves another quarter. XLA ends a process for a flag that it does not know, and newer ones do not know this one.
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    FAST_COMPILE += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=8 {FAST_COMPILE}")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
# One cache of compiled programs for all workers and the programs that they start: modules compile much in common.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    COMPILED = tempfile.TemporaryDirectory(prefix="maskformer_tests_", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import gc
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run tests that take minutes, too")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="takes minutes; run with --slow"))


def pytest_collection_finish(session):
    """Leaves what was imported out of every collection: millions of objects, visited again and again otherwise."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real images, from MASKFORMER_TEST_DATA; tests that need it skip without it."""
    folder = pathlib.Path(os.environ.get("MASKFORMER_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set MASKFORMER_TEST_DATA")
    return folder


@pytest.fixture(scope="module", autouse=True)
def drop_compiled_programs():
    """Frees the compiled programs of a module after its tests: kept, they grow to gigabytes in each worker."""
    yield
    import jax

    jax.clear_caches()
    gc.collect()
