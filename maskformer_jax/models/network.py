"""The narrow waist between Flax and the rest: a module becomes pure functions over flat dictionaries.

Flax NNX describes models; everything outside `models/` sees `{dotted name: array}` and never a module.
"""

import re
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from maskformer_jax.errors import UserError
from maskformer_jax.types import Arrays, Group, Network, Train


class Frozen(nnx.Variable):
    """A stored array that is never trained, such as the statistics of a frozen batch norm."""


class Undecayed(nnx.Param):
    """A parameter that weight decay spares: those of norms, and embeddings.

    The type says it, not the name: two parameters of one name may differ, as Mask2Former's level embeddings do.
    """


class Stack(nnx.Module):
    """An ordered list of modules, named "0", "1", ... (some supported versions of Flax refuse plain lists).

    Args:
        remat: whether gradients recompute the inside of every module and keep only its inputs.
        scan: whether `run` compiles one module and loops over the parameters of all, which must be alike. Programs are
            small and compile fast, but hold a second copy of the parameters.
    """

    def __init__(self, modules: list[nnx.Module], remat: bool = False, scan: bool = False):
        self.length = len(modules)
        self.remat = remat
        self.scan = scan
        for index, module in enumerate(modules):
            setattr(self, str(index), module)

    def __iter__(self):
        modules = (getattr(self, str(index)) for index in range(self.length))
        return map(jax.checkpoint, modules) if self.remat else modules

    def __len__(self) -> int:
        return self.length

    def run(self, x: jax.Array, *inputs: Any, first: int = 0, last: int | None = None) -> jax.Array:
        """Modules `first` up to `last`, one after another: each maps x and the same other inputs to the next x."""
        modules = [getattr(self, str(index)) for index in range(self.length)[first:last]]
        if not self.scan or len(modules) < 2:
            for module in map(jax.checkpoint, modules) if self.remat else modules:
                x = module(x, *inputs)
            return x
        graphs, states = zip(*(nnx.split(module) for module in modules), strict=True)

        def step(x: jax.Array, state: nnx.State) -> tuple[jax.Array, None]:
            return nnx.merge(graphs[0], state)(x, *inputs), None

        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        return jax.lax.scan(jax.checkpoint(step) if self.remat else step, x, stacked)[0]


class InitKeys:
    """The keys of initializers, where NNX layers expect an `nnx.Rngs`.

    `nnx.Rngs` counts its keys in a traced variable, and every change of it searches the whole trace so far: building
    a network would take time that grows with the square of its size.

    Args:
        key: what all keys are made from.
        total: how many will be asked for, if known. They are then made together, by one kernel instead of one for each.
    """

    def __init__(self, key: jax.Array, total: int | None = None):
        self.count = 0
        self._key = key
        self._keys = None if total is None else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(total))

    def params(self) -> jax.Array:
        """The next key."""
        index, self.count = self.count, self.count + 1
        return jax.random.fold_in(self._key, index) if self._keys is None else self._keys[index]


def as_network(build: Callable[[InitKeys], nnx.Module], freeze: Collection[str] = ()) -> Network:
    """Turns a constructor of an NNX module into a Network.

    Args:
        build: makes the module from the keys of its initializers. The module has `num_queries` (None for a per-pixel
            classifier), `accepts_padding`, `black_padding`, and `depth_of(name)`: of a parameter of the backbone the
            blocks from it to the backbone's end, None for any other.
        freeze: patterns of the dotted names of parameters, matched from the start, that are not to be trained.

    Raises:
        UserError: if one of `freeze` matches no parameter, or nothing is left to train.
    """
    keys = []

    def counted() -> nnx.Module:
        keys.append(InitKeys(jax.random.key(0)))
        return build(keys[-1])

    # Shapes alone: building a network of any size allocates nothing.
    abstract = nnx.eval_shape(counted)
    total = keys[-1].count
    graph, trainable, constant = nnx.split(abstract, nnx.Param, Frozen)
    kinds = _kinds(trainable) | _kinds(constant)
    trained = _trained(_kinds(trainable), freeze)

    # Compiled as a whole, which is much faster than one initializer after another.
    @jax.jit
    def init(key: jax.Array) -> tuple[Arrays, Arrays]:
        return divide(_flatten(nnx.state(build(InitKeys(key, total)), (nnx.Param, Frozen))))

    def divide(arrays: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        frozen = {name: array for name, array in arrays.items() if name not in trained}
        return {name: arrays[name] for name in trained}, frozen

    def module(params: Arrays, frozen: Arrays) -> nnx.Module:
        arrays = {**params, **frozen}
        # Merging is Python work while tracing; nothing of it is left in the compiled program.
        variables = [(tuple(name.split(".")), kind(arrays[name])) for name, kind in kinds.items()]
        return nnx.merge(graph, nnx.from_flat_state(variables))

    def apply(
        params: Arrays,
        frozen: Arrays,
        image: jax.Array,
        *,
        valid_size: jax.Array | None = None,
        train: Train | None = None,
    ) -> Any:
        return module(params, frozen)(image, valid_size, train)

    def group_of(name: str) -> Group:
        depth = abstract.depth_of(name)
        return Group(depth is not None, depth or 0, not issubclass(kinds[name], Undecayed))

    facts = abstract.num_queries, abstract.accepts_padding, abstract.black_padding
    shapes = divide(_flatten(nnx.state(abstract, (nnx.Param, Frozen))))
    return Network(init, apply, module, *facts, group_of, shapes, _rounded(abstract))


def _trained(names: Collection[str], freeze: Collection[str]) -> list[str]:
    """Names of the parameters that are left to train."""
    for pattern in freeze:
        if not any(re.match(pattern, name) for name in names):
            parts = sorted({name.partition(".")[0] for name in names})
            raise UserError(
                f"freeze has {pattern!r}, which is the beginning of no parameter's name. Names begin with "
                f"{', '.join(parts)}; the log of a run lists all of them at its start."
            )
    trained = [name for name in names if not any(re.match(pattern, name) for pattern in freeze)]
    if not trained:
        raise UserError(f"freeze={tuple(freeze)} leaves nothing to train; remove a part of it")
    return trained


def _rounded(module: nnx.Module) -> dict[str, Any]:
    """See `Network.rounded`. Layers with a kernel cast it and their bias to the dtype that they compute in."""
    return {
        ".".join(map(str, (*path, name))): layer.dtype
        for path, layer in nnx.iter_graph(module)  # iter_modules is not in the Flax of jax 0.7.2
        if isinstance(layer, nnx.Module) and hasattr(layer, "kernel") and layer.dtype != jnp.float32
        for name in ("kernel", "bias")
        if getattr(layer, name, None) is not None
    }


def _kinds(state: nnx.State) -> dict[str, type[nnx.Variable]]:
    """The type of each variable, by dotted name."""
    return {".".join(map(str, path)): _kind(variable) for path, variable in nnx.to_flat_state(state)}


def _kind(variable: Any) -> type[nnx.Variable]:
    # Flax before 0.12 has states of VariableState, which only names the type.
    return type(variable) if isinstance(variable, nnx.Variable) else variable.type


def _flatten(state: nnx.State) -> dict[str, Any]:
    """The array of each variable, or its shape, by dotted name."""
    return {".".join(map(str, path)): jax.tree.leaves(variable)[0] for path, variable in nnx.to_flat_state(state)}
