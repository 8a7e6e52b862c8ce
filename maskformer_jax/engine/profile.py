"""A trace of some training steps, which TensorBoard's profiler and XProf show by the parts of the model."""

import itertools

import jax

from maskformer_jax.training.state import TrainState
from maskformer_jax.training.step import Scalars, TrainStep
from maskformer_jax.types import Batch

WARM_UP = 10  # steps of a start before the first that is traced


def profiled(step: TrainStep, directory: str, count: int, left: int) -> TrainStep:
    """The same step, of whose calls `count` are traced into `directory`/plugins/profile; 0 for none.

    The device is waited for behind the last of them, once.

    Args:
        left: how many calls there will be; the trace begins earlier and is shorter where they are few.
    """
    if not count:
        return step
    last = min(WARM_UP + count, left)
    first = max(last - count, 0) + 1
    calls = itertools.count(1)

    def traced(state: TrainState, batch: Batch) -> tuple[TrainState, Scalars]:
        call = next(calls)
        if call == first:
            jax.profiler.start_trace(directory)
        with jax.profiler.StepTraceAnnotation("train", step_num=call):
            results = step(state, batch)
        if call == last:
            jax.block_until_ready(results)
            jax.profiler.stop_trace()
        return results

    return traced
