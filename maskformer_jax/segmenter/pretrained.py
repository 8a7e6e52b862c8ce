"""Weights made elsewhere: what model they are of, and what of them training starts with."""

import dataclasses
from collections.abc import Collection

import numpy as np
from etils import epath

from maskformer_jax.checkpoints import workdir
from maskformer_jax.checkpoints.names.huggingface import HUGGINGFACE
from maskformer_jax.checkpoints.published import Description, describe_huggingface, describe_original
from maskformer_jax.checkpoints.weights import OURS, Weights, locate
from maskformer_jax.engine.settings import Settings
from maskformer_jax.errors import UserError
from maskformer_jax.types import Arrays


def open_model(source: str) -> tuple[Description, Weights]:
    """What a source holds: the description of its model, and its weights; see `engine.segmenter.load`.

    Raises:
        UserError: also if it is a backbone alone.
    """
    path = locate(source)
    weights = workdir.read_weights(path)
    if weights.form.holds:
        raise UserError(
            f"{source} is {weights.form.label}, which segments nothing yet. Train a model from it: "
            f"--config.init.weights={source}"
        )
    return _describe(source, path, weights), weights


def settle_model(settings: Settings, directory: str) -> tuple[Settings, list[str]]:
    """Settings whose model is that of `config.init.weights`, if `config.init.model_from_weights` asks for it.

    A run that has begun keeps its model, without another look at the weights. Weights of a backbone alone say nothing
    of a model.

    Args:
        directory: the run's folder.

    Returns:
        The settings, and a line for each setting of the model that was changed.
    """
    init = settings.init
    if not (init.model_from_weights and init.weights):
        return settings, []
    if workdir.has_settings(directory):
        model = workdir.describe(directory)[0].model
    else:
        path = locate(init.weights)
        weights = workdir.read_weights(path)
        if weights.form.holds:
            return settings, []
        model = {**_describe(init.weights, path, weights).model, "dtype": settings.model["dtype"]}
    changes = workdir.differences(settings.model, model, "config.model", ("as set", "of the weights"))
    return dataclasses.replace(settings, model=model), changes


def initial_arrays(settings: Settings, shapes: Arrays) -> tuple[str, dict[str, np.ndarray]]:
    """What `config.init` takes from weights made elsewhere: where they are from, and arrays by name.

    Args:
        shapes: everything that the model stores, by name.

    Raises:
        UserError: if the weights do not fit the model, or `config.init.reinit` has what it does not.
    """
    init = settings.init
    if not init.weights:
        return "", {}
    weights = workdir.read_weights(init.weights)
    return weights.origin, weights.fill(shapes, init.reinit)


def describe_start(origin: str, taken: Collection[str], all_names: Collection[str]) -> str:
    """Which parameters come from a file, and which start at random: whole modules by their first word."""
    random = [name for name in all_names if name not in taken]
    modules = dict.fromkeys(name.split(".")[0] for name in random)
    partly = {name.split(".")[0] for name in taken}
    named = [module for module in modules if module not in partly]
    named += [name for name in random if name.split(".")[0] in partly]
    return f"{len(taken)} of {len(all_names)} tensors from {origin}; at random: {', '.join(named) or 'none'}"


def _describe(source: str, path: str, weights: Weights) -> Description:
    if weights.form is OURS:
        return workdir.describe(path)[0]
    if weights.form.table is HUGGINGFACE:
        folder = path if epath.Path(path).is_dir() else epath.Path(path).parent
        return describe_huggingface(str(folder))
    return describe_original(weights.tensors, source)
