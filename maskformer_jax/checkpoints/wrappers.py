"""Names of tensors without what wrappers of a model put into them."""

import collections
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from maskformer_jax.errors import UserError

# torch.compile, FSDP and activation checkpointing wrap any part of a model; no publisher has names with such parts.
_MARKS = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
# DataParallel, DistributedDataParallel and DeepSpeed wrap the whole model.
_PARALLEL = "module."
_MAX_DEPTH = 4
# A model is at least this fraction of the tensors of a file, so few beginnings are tried.
_LEAST_FRACTION = 0.2
# What a training module has next to its model, and no model needs.
_BESIDE = re.compile(r"(\w+_)?(criterion|loss(es)?|loss_fn|metrics?)\.")


def strip_marks(tensors: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The tensors by their names without the parts that torch.compile, FSDP, DeepSpeed and DataParallel add.

    Raises:
        UserError: if two tensors then have one name, or FSDP has flattened them.
    """
    if flat := [name for name in tensors if name.rpartition(".")[2] in ("_flat_param", "flat_param")]:
        raise UserError(
            f"{origin}: {flat[0]!r} is a flattened part of many parameters, as FSDP has them on one device. Save the "
            "model with StateDictType.FULL_STATE_DICT."
        )
    names = {name: _MARKS.sub("", name) for name in tensors}
    while names and all(name.startswith(_PARALLEL) for name in names.values()):
        names = {name: _MARKS.sub("", short.removeprefix(_PARALLEL)) for name, short in names.items()}
    return renamed(tensors, names, origin)


def renamed(tensors: Mapping[str, Any], names: Mapping[str, str], origin: str) -> dict[str, Any]:
    """The tensors by new names; raises UserError if two would have one name."""
    found = {names[name]: tensor for name, tensor in tensors.items()}
    if len(found) < len(tensors):
        counts = collections.Counter(names.values())
        both = next([name for name in tensors if names[name] == short] for short, n in counts.items() if n > 1)
        raise UserError(
            f"{origin}: {both[0]!r} and {both[1]!r} are two tensors of one place in the model. Save one model alone."
        )
    return found


def inner_names(names: Collection[str], matches: Callable[[Collection[str]], Any], origin: str) -> dict[str, str]:
    """The names as their publisher has them, by those of a file: without the beginning that a wrapper has added.

    Lightning and other training code keep the model as `self.model`, `self.network`, `self.net` and so on. The shortest
    beginning is taken after which the names match; names without it, which are not the model's, stay as they are,
    except that those of losses and metrics are left out.

    Args:
        matches: of names, whether they are of a known model.

    Raises:
        UserError: if several beginnings match, such as those of a model and its average.
    """
    same = {name: name for name in names}
    if matches(names):
        return same
    for depth in range(1, _MAX_DEPTH + 1):
        groups = collections.defaultdict(list)
        for name in names:
            parts = name.split(".", depth)
            if len(parts) > depth:
                groups[".".join(parts[:depth]) + "."].append(name)
        large = {start: group for start, group in groups.items() if len(group) >= _LEAST_FRACTION * len(names)}
        found = [start for start, group in large.items() if matches([name[len(start) :] for name in group])]
        if len(found) > 1:
            raise UserError(
                f"{origin}: its tensors are of several models, whose names begin with {' and '.join(map(repr, found))}."
                " Save the tensors of one of them alone, such as {name: tensor for name, tensor in state.items() if "
                f"name.startswith({found[0]!r})}}."
            )
        if found:
            inner = {name: _without(name, found[0]) for name in names}
            return {
                name: short for name, short in inner.items() if name.startswith(found[0]) or not _BESIDE.match(short)
            }
    return same


def _without(name: str, start: str) -> str:
    """A name without the parts of a beginning, or without the first of them, as the classifier beside a backbone."""
    parts = start.split(".")
    starts = [".".join(parts[:count]) + "." for count in range(len(parts) - 1, 0, -1)]
    return next((name.removeprefix(each) for each in starts if name.startswith(each)), name)
