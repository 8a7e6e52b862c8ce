"""From the command to the first step: what is compiled is kept, and compiling goes on beside reading."""

import time

import jax
from etils import epath

from maskformer_jax.engine.log import duration


def keep_programs() -> None:
    """Keeps compiled programs on disk for the next start, where JAX was told no place for them.

    `JAX_COMPILATION_CACHE_DIR` names another place, which may be a bucket; `JAX_ENABLE_COMPILATION_CACHE=false` keeps
    none. JAX never keeps programs that call the host: with scipy's matcher the train step is compiled at every start.
    """
    if not jax.config.jax_compilation_cache_dir:
        folder = epath.Path("~/.cache/maskformer_jax/programs").expanduser()
        jax.config.update("jax_compilation_cache_dir", str(folder))


class StartClock:
    """Where the time before the first step goes."""

    def __init__(self) -> None:
        self._last = self._began = time.monotonic()
        self._phases: list[tuple[str, float]] = []

    def lap(self, phase: str) -> None:
        """Ends a phase, named by what was done in it."""
        now = time.monotonic()
        self._phases.append((phase, now - self._last))
        self._last = now

    def __str__(self) -> str:
        phases = ", ".join(f"{duration(seconds)} {phase}" for phase, seconds in self._phases)
        return f"first step after {duration(self._last - self._began)}: {phases}"
