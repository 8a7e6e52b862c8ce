"""The narrow waist between Flax and the rest: a module becomes two pure functions over flat dictionaries.

Flax NNX describes models; everything outside `models/` sees `{dotted name: array}` and never a module.
"""

import dataclasses
import re
from collections.abc import Callable, Collection
from typing import Any

import jax
from flax import nnx

from maskformer_jax.errors import UserError

Arrays = dict[str, jax.Array]


class Frozen(nnx.Variable):
    """A stored array that is never trained, such as the statistics of a frozen batch norm."""


class Stack(nnx.Module):
    """An ordered list of modules, named "0", "1", ... (plain lists are refused by some Flax versions)."""

    def __init__(self, modules: list[nnx.Module]):
        self.length = len(modules)
        self.remat = False
        for index, module in enumerate(modules):
            setattr(self, str(index), module)

    def __iter__(self):
        modules = (getattr(self, str(index)) for index in range(self.length))
        return map(jax.checkpoint, modules) if self.remat else modules

    def __len__(self) -> int:
        return self.length


class InitKeys:
    """The keys of initialisers, where NNX layers expect an `nnx.Rngs`.

    That class counts its keys in a traced variable, whose every change searches the whole trace so far: the
    time to build a network would grow with the square of its size.
    """

    def __init__(self, key: jax.Array):
        self._key = key
        self._count = 0

    def params(self) -> jax.Array:
        """The next key."""
        key = jax.random.fold_in(self._key, self._count)
        self._count += 1
        return key


@dataclasses.dataclass(frozen=True)
class Network:
    """A model as pure functions.

    init(key) -> (params, frozen): what is trained, and what is stored but not trained. An array is the same in either.
    apply(params, frozen, *inputs, key=None, extent=None, every_layer=True) -> outputs: a key means training (dropout),
        none means inference; extent [B, 2] is the part of each input that counts, none means all of it; without
        every_layer only the last decoder layer predicts.
    """

    init: Callable[[jax.Array], tuple[Arrays, Arrays]]
    apply: Callable[..., Any]
    module: Callable[[Arrays, Arrays], nnx.Module]  # what apply calls, to look at features inside


def as_network(build: Callable[[InitKeys], nnx.Module], remat: bool = False, freeze: Collection[str] = ()) -> Network:
    """Turns a constructor of an NNX module into a Network.

    Args:
        build: makes the module from the keys of its initialisers.
        remat: whether gradients compute the insides of every module of a Stack again, and keep its inputs only.
        freeze: patterns of the dotted names of parameters, matched from the start, that are not to be trained.

    Raises:
        UserError: if one of `freeze` matches no parameter, or nothing is left to train.
    """
    abstract = nnx.eval_shape(lambda: build(InitKeys(jax.random.key(0))))
    for _, module in nnx.iter_graph(abstract):
        if isinstance(module, Stack):
            module.remat = remat
    graph, trainable, constant = nnx.split(abstract, nnx.Param, Frozen)
    kinds = dict.fromkeys(_names(trainable), nnx.Param) | dict.fromkeys(_names(constant), Frozen)
    trained = _trained(_names(trainable), freeze)

    @jax.jit
    def init(key: jax.Array) -> tuple[Arrays, Arrays]:
        arrays = _flatten(nnx.state(build(InitKeys(key)), (nnx.Param, Frozen)))
        frozen = {name: array for name, array in arrays.items() if name not in trained}
        return {name: arrays[name] for name in trained}, frozen

    def module(params: Arrays, frozen: Arrays) -> nnx.Module:
        arrays = {**params, **frozen}
        variables = [(tuple(name.split(".")), kind(arrays[name])) for name, kind in kinds.items()]
        return nnx.merge(graph, nnx.from_flat_state(variables))

    def apply(
        params: Arrays,
        frozen: Arrays,
        *inputs: Any,
        key: jax.Array | None = None,
        extent: jax.Array | None = None,
        every_layer: bool = True,
    ) -> Any:
        return module(params, frozen)(*inputs, key=key, extent=extent, every_layer=every_layer)

    return Network(init, apply, module)


def _trained(names: Collection[str], freeze: Collection[str]) -> list[str]:
    """Names of the parameters that are left to train."""
    for pattern in freeze:
        if not any(re.match(pattern, name) for name in names):
            parts = sorted({name.partition(".")[0] for name in names})
            raise UserError(
                f"config.train.freeze has {pattern!r}, which is the beginning of no parameter's name. They begin "
                f"with {', '.join(parts)}; the start of a run's log lists all."
            )
    trained = [name for name in names if not any(re.match(pattern, name) for pattern in freeze)]
    if not trained:
        raise UserError(f"config.train.freeze={tuple(freeze)} leaves nothing to train; remove a part of it")
    return trained


def _names(state: nnx.State) -> list[str]:
    return [".".join(map(str, path)) for path, _ in nnx.to_flat_state(state)]


def _flatten(state: nnx.State) -> Arrays:
    return {".".join(map(str, path)): variable[...] for path, variable in nnx.to_flat_state(state)}
