"""Weights made elsewhere: what model they are of, and what of them training starts with."""

import dataclasses
from collections.abc import Collection

import numpy as np

from maskformer_jax.checkpoints import workdir
from maskformer_jax.checkpoints.published import Description
from maskformer_jax.checkpoints.weights import Weights, open_weights
from maskformer_jax.engine.settings import Model, Settings, build
from maskformer_jax.errors import UserError
from maskformer_jax.models.network import Arrays


def open_model(source: str) -> tuple[Description, Weights]:
    """The description of the model at a source, and its weights; see `segmenter.load`.

    Raises:
        UserError: as `open_weights`, and if the weights are of a backbone alone.
    """
    weights = open_weights(source)
    if weights.is_backbone:
        raise UserError(
            f"{source} is {weights.format.label}, which segments nothing yet. Train a model from it: "
            f"--config.init.weights={source}"
        )
    return weights.describe(), weights


def settle_model(settings: Settings, directory: str) -> tuple[Settings, list[str], Weights | None]:
    """Settings with the model of `config.init.weights`, if `config.init.same_model` asks for it.

    A run that has started keeps its model and does not open the weights. A backbone alone does not determine a model.

    Args:
        directory: the run's folder.

    Returns:
        The settings; a line for each setting of the model that was changed; and the weights, if they were opened, for
        `initial_arrays`.
    """
    init, weights = settings.init, None
    if not (init.same_model and init.weights):
        return settings, [], None
    if workdir.has_settings(directory):
        found = workdir.describe(directory).model
    else:
        weights = open_weights(init.weights)
        if weights.is_backbone:
            return settings, [], weights
        found = {**weights.describe().model, "dtype": settings.model.dtype}
    model = build(Model, found, f"{init.weights}: model")
    changes = workdir.differences(vars(settings.model), vars(model), "config.model", ("as set", "of the weights"))
    return dataclasses.replace(settings, model=model), changes, weights


def initial_arrays(
    settings: Settings, shapes: Arrays, weights: Weights | None = None
) -> tuple[str, dict[str, np.ndarray]]:
    """The parameters that training starts with, as `config.init` says, and where they come from.

    Args:
        shapes: everything that the model stores, by name.
        weights: those of `config.init.weights`, if they are open already.

    Raises:
        UserError: if the weights do not fit the model, or a pattern of `config.init.fresh` matches no parameter.
    """
    init = settings.init
    if not init.weights:
        return "", {}
    weights = weights or open_weights(init.weights)
    return weights.origin, weights.load_into(shapes, init.fresh, setting="config.init.fresh")


def describe_start(origin: str, loaded: Collection[str], all_names: Collection[str]) -> str:
    """A message: how many arrays were loaded, and which are random; of a module without any, its name alone."""
    random = [name for name in all_names if name not in loaded]
    modules = dict.fromkeys(name.split(".")[0] for name in random)
    partly = {name.split(".")[0] for name in loaded}
    named = [module for module in modules if module not in partly]
    named += [name for name in random if name.split(".")[0] in partly]
    return f"{len(loaded)} of {len(all_names)} tensors from {origin}; at random: {', '.join(named) or 'none'}"
