"""The memory that a train step needs, said before it runs, and the settings that need less."""

import contextlib
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from jax.stages import Compiled

from maskformer_jax import memory
from maskformer_jax.engine.settings import Settings
from maskformer_jax.training.state import TrainState

_MOST_SHARDS = 8  # neighbors beyond these are often on another host
_SMALLER_CROPS = (0.75, 0.5)


class StepMemory(NamedTuple):
    """Bytes of one device in a step."""

    state: int
    batch: int
    temporary: int  # activations above all
    available: int | None  # on the device before the state is there; None if unknown

    @property
    def needed(self) -> int:
        return self.state + self.batch + self.temporary

    @property
    def fits(self) -> bool:
        return self.available is None or self.needed <= self.available

    def __str__(self) -> str:
        parts = ", ".join(f"{memory.shown(size)} {name}" for name, size in self._asdict().items() if name in _PARTS)
        return f"{memory.shown(self.needed)} ({parts})"


_PARTS = StepMemory._fields[:3]


def measure(step: Compiled, state: TrainState, mesh: Mesh) -> StepMemory | None:
    """The memory of a compiled step; None if its backend does not tell.

    Args:
        state: on the devices already; or its description, for a step that will not run.
    """
    needed = memory.of_program(step)
    if needed is None:
        return None
    held, left = memory.of_arrays(state), memory.available(mesh.local_devices)
    if left is not None and any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state)):
        left += held
    batch = max(step.memory_analysis().argument_size_in_bytes - held, 0)
    return StepMemory(held, batch, needed - held - batch, left)


def describe(found: StepMemory | None, mesh: Mesh) -> str:
    """What a step needs and what there is, in a line."""
    if found is None:
        return "memory of a step: not told by this backend"
    has = "unknown" if found.available is None else memory.shown(found.available)
    of = f"each of {mesh.size} devices" if mesh.size > 1 else "the device"
    return f"memory of a step on {of}: {found}; available: {has} ({mesh.local_devices[0].device_kind})"


def warning(found: StepMemory | None, settings: Settings, mesh: Mesh) -> str:
    """What to do about a step that does not fit; empty if it fits."""
    if found is None or found.fits:
        return ""
    # CPUs have no allocator with a limit: the system ends the process, without a word.
    end = "be killed by the system" if mesh.local_devices[0].platform == "cpu" else "end with an error"
    return f"warning: the step needs more memory than there is, so the run may {end}. {advice(settings, mesh)}"


class Saving(NamedTuple):
    """A setting that saves memory."""

    name: str  # without `config.`
    values: tuple[Any, ...]  # the more a value saves, the later it comes
    cost: str

    def __str__(self) -> str:
        values = " or ".join(str(value).replace(" ", "") for value in self.values)
        return f"--config.{self.name}={values}: {self.cost}"


def savings(settings: Settings, mesh: Mesh) -> list[Saving]:
    """Settings that need less memory, in order of cost: first what is free, last what changes the scores."""
    train, platform = settings.train, mesh.local_devices[0].platform
    images = train.batch_size // mesh.size
    parts = tuple(parts for parts in range(train.grad_accum_steps + 1, images + 1) if images % parts == 0)
    shards = max(count for count in range(1, _MOST_SHARDS + 1) if mesh.size % count == 0)
    crops = [tuple(int(side * part) // 32 * 32 for side in settings.data.crop) for part in _SMALLER_CROPS]
    found = []
    if platform != "cpu" and settings.model["dtype"] == "float32":  # CPUs compute most of it in float32 all the same
        found.append(Saving("model.dtype", ("bfloat16",), "faster on accelerators; logits are rounded by 1 to 2 %"))
    if parts:
        cost = "the same update; each part of the batch is computed after the other"
        found.append(Saving("train.grad_accum_steps", parts, cost))
    if shards > train.zero_shards:
        cost = "the same update; devices share the state and gather the parameters in each step"
        found.append(Saving("train.zero_shards", (shards,), cost))
    if not train.remat:
        found.append(Saving("train.remat", (True,), "the same update; one more forward pass"))
    if min(map(min, crops)) > 0:
        found.append(Saving("data.crop", tuple(crops), "other scores, and config.inference may have to follow"))
    return found


def advice(settings: Settings, mesh: Mesh) -> str:
    """What needs less memory, in order of cost; a sentence, a line for each setting, and where to learn more."""
    lines = [str(saving) for saving in savings(settings, mesh)]
    if memory.is_limited_on_gpu():
        lines.insert(0, "XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 in front of the command: JAX takes 75 % otherwise")
    last = (
        "a smaller config.train.batch_size, which saves what gradient accumulation saves, and needs another "
        "config.optimizer.learning_rate; more devices; a smaller model"
    )
    listed = "".join(f"\n  {line}" for line in [*lines, last])
    return (
        f"What needs less, the cheapest first:{listed}\n"
        "--mode=memory with the same command compiles them one after another and reports what each needs."
    )


def explained(settings: Settings, mesh: Mesh) -> contextlib.AbstractContextManager[None]:
    """Turns exhausted memory of training into a UserError with the cure."""
    return memory.explained("training needs more memory than there is", advice(settings, mesh))


def explained_evaluation(settings: Settings) -> contextlib.AbstractContextManager[None]:
    """The same of evaluation."""
    cures = []
    if settings.eval.batch_size > 1:
        cures.append(f"a smaller config.eval.batch_size than {settings.eval.batch_size}")
    if settings.eval.augment:
        cures.append("smaller numbers in config.eval.augment_scales")
    cures.append(f"a smaller config.inference.longest_edge than {settings.inference.longest_edge}, at a cost in scores")
    cure = f"What needs less, the cheapest first: {'; '.join(cures)}."
    return memory.explained("evaluation needs more memory than there is", cure)
