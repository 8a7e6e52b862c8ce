"""The narrow waist between Flax and the rest: a module becomes two pure functions over flat dictionaries.

Flax NNX describes models; everything outside `models/` sees `{dotted name: array}` and never a module.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

Arrays = dict[str, jax.Array]


class Frozen(nnx.Variable):
    """A stored array that is never trained, such as the statistics of a frozen batch norm."""


class Stack(nnx.Module):
    """An ordered list of modules, named "0", "1", ... (plain lists are refused by some Flax versions)."""

    def __init__(self, modules: list[nnx.Module]):
        self.length = len(modules)
        for index, module in enumerate(modules):
            setattr(self, str(index), module)

    def __iter__(self):
        return (getattr(self, str(index)) for index in range(self.length))

    def __len__(self) -> int:
        return self.length


@dataclasses.dataclass(frozen=True)
class Network:
    """A model as pure functions.

    init(key) -> (params, frozen): what is trained, and what is stored but not trained.
    apply(params, frozen, *inputs, key=None) -> outputs: a key means training (dropout), none means inference.
    """

    init: Callable[[jax.Array], tuple[Arrays, Arrays]]
    apply: Callable[..., Any]


def as_network(build: Callable[[nnx.Rngs], nnx.Module]) -> Network:
    """Turns a constructor of an NNX module into a Network.

    Args:
        build: makes the module from the random streams of its initialisers.
    """
    abstract = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    graph, *_ = nnx.split(abstract, nnx.Param, Frozen)

    @jax.jit
    def init(key: jax.Array) -> tuple[Arrays, Arrays]:
        _, params, frozen = nnx.split(build(nnx.Rngs(key)), nnx.Param, Frozen)
        return _flatten(params), _flatten(frozen)

    def apply(params: Arrays, frozen: Arrays, *inputs: Any, key: jax.Array | None = None) -> Any:
        module = nnx.merge(graph, _unflatten(params, nnx.Param), _unflatten(frozen, Frozen))
        return module(*inputs, key=key)

    return Network(init, apply)


def _flatten(state: nnx.State) -> Arrays:
    return {".".join(map(str, path)): variable[...] for path, variable in nnx.to_flat_state(state)}


def _unflatten(arrays: Arrays, kind: type[nnx.Variable]) -> nnx.State:
    return nnx.from_flat_state([(tuple(name.split(".")), kind(array)) for name, array in arrays.items()])
