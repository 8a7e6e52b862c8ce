"""A trace of some training steps, which TensorBoard's profiler and XProf show by the parts of the model."""

import contextlib
import itertools
from collections.abc import Iterator

import jax

from maskformer_jax.training.state import TrainState
from maskformer_jax.training.step import Scalars, TrainStep
from maskformer_jax.types import Batch

WARM_UP = 10  # steps of a start before the first that is traced


@contextlib.contextmanager
def profiled(step: TrainStep, directory: str, count: int, left: int) -> Iterator[TrainStep]:
    """The same step, of whose calls `count` are traced into `directory`/plugins/profile; 0 for none.

    The device is waited for behind the last of them, once. A trace that an error cuts short is written, too.

    Args:
        left: how many calls there will be; the trace begins earlier and is shorter where they are few.
    """
    last = min(WARM_UP + count, left)
    first = max(last - count, 0) + 1
    calls = itertools.count(1)
    tracing = contextlib.ExitStack()

    def traced(state: TrainState, batch: Batch) -> tuple[TrainState, Scalars]:
        call = next(calls)
        if call == first:
            tracing.enter_context(jax.profiler.trace(directory))
        with jax.profiler.StepTraceAnnotation("train", step_num=call):
            results = step(state, batch)
        if call == last:
            jax.block_until_ready(results)
            tracing.close()
        return results

    with tracing:
        yield traced if count else step
