"""The start of a program: the compilation cache, and the times before the first step."""

import contextlib
import gc
import os
import pathlib
import time
from collections.abc import Iterator

import jax

from maskformer_jax.engine.log import duration
from maskformer_jax.errors import UserError
from maskformer_jax.files import paths


def enable_compilation_cache() -> None:
    """Enables JAX's persistent compilation cache, in ~/.cache unless JAX has a folder for it.

    `JAX_COMPILATION_CACHE_DIR` sets another folder, which may be in cloud storage. `JAX_ENABLE_COMPILATION_CACHE=false`
    disables the cache. JAX does not cache functions with host callbacks: on a GPU or TPU every start with the scipy
    matcher compiles the train step, while on a CPU `ops/host_call.py` avoids the callback. Where the folder cannot be
    written, as in containers, there is no cache.
    """
    if not jax.config.jax_compilation_cache_dir:
        # JAX would warn of each function that it compiles.
        with contextlib.suppress(UserError, OSError):
            folder = pathlib.Path(paths.expand("~/.cache/maskformer_jax/programs"))
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                jax.config.update("jax_compilation_cache_dir", str(folder))


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Pauses Python's collector of reference cycles, for the whole process.

    Of what imports and tracing make, nearly everything stays; to look through it again and again takes a fifth of their
    time. JAX's programs and devices do not depend on the collector.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class StartClock:
    """Measures the phases before the first step."""

    def __init__(self) -> None:
        self._last = self._began = time.monotonic()
        self._phases: list[tuple[str, float]] = []

    def lap(self, phase: str) -> None:
        """Ends a phase. Its name follows the duration in the message, as in "for the first batch"."""
        now = time.monotonic()
        self._phases.append((phase, now - self._last))
        self._last = now

    def __str__(self) -> str:
        phases = ", ".join(f"{duration(seconds)} {phase}" for phase, seconds in self._phases)
        return f"first step after {duration(self._last - self._began)}: {phases}"
