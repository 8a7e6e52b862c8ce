"""A profiler trace of some training steps, for TensorBoard and XProf. Operations carry the names of model parts."""

import contextlib
import itertools
import warnings
from collections.abc import Iterator

import jax

from maskformer_jax.files import writing
from maskformer_jax.training.state import TrainState
from maskformer_jax.training.step import Scalars, TrainStep
from maskformer_jax.types import Batch

WARM_UP = 10  # steps after a start that are not traced


@contextlib.contextmanager
def profiled(step: TrainStep, directory: str, count: int, left: int) -> Iterator[TrainStep]:
    """Wraps a train step so that `count` of its calls are traced into `directory`/plugins/profile.

    The wrapper blocks once, after the last traced call. If an error ends the context early, the trace is still written.

    Args:
        count: number of calls to trace; 0 for none.
        left: number of calls still to come. If they are few, the trace starts earlier and is shorter.
    """
    last = min(WARM_UP + count, left)
    first = max(last - count, 0) + 1
    calls = itertools.count(1)
    tracing = contextlib.ExitStack()

    def traced(state: TrainState, batch: Batch) -> tuple[TrainState, Scalars]:
        call = next(calls)
        if call == first:
            jax.profiler.start_trace(directory)
            tracing.callback(_stop_trace)
        with jax.profiler.StepTraceAnnotation("train", step_num=call):
            results = step(state, batch)
        if call == last:
            jax.block_until_ready(results)
            tracing.close()
        return results

    with tracing:
        yield traced if count else step


def _stop_trace() -> None:
    try:
        jax.profiler.stop_trace()
    except Exception as error:  # JAX raises errors of several types where files cannot be written
        why = writing.reason(error)
        if not why:
            raise
        warnings.warn(f"the profile cannot be written: {why}. Training continues without.", stacklevel=2)
