"""Where training starts: with which model, and with which of the weights that were made elsewhere."""

import dataclasses
import re
from collections.abc import Collection

import numpy as np

from maskformer_jax.catalog import Classes
from maskformer_jax.checkpoints import workdir
from maskformer_jax.checkpoints.weights import Weights, open_weights
from maskformer_jax.engine.settings import Settings
from maskformer_jax.errors import UserError
from maskformer_jax.types import Arrays


def settle_model(settings: Settings, directory: str) -> tuple[Settings, list[str], Weights | None]:
    """Settings with the model of `config.init.weights`, if `config.init.model_from_weights` asks for it.

    A run that has started keeps its model and does not open the weights. A backbone alone does not determine a model.

    Args:
        directory: the run's folder.

    Returns:
        The settings; a line for each setting of the model that was changed; and the weights, if they were opened, for
        `initial_arrays`.

    Raises:
        UserError: if the model of the weights has another name than `config.model`.
    """
    init, weights = settings.init, None
    if not (init.model_from_weights and init.weights):
        return settings, [], None
    if workdir.has_settings(directory):
        model = workdir.describe(directory).model
    else:
        weights = open_weights(init.weights, init.base_weights)
        if weights.is_backbone:
            return settings, [], weights
        found = weights.describe().model
        _check_same_model(settings, found["name"], weights.origin)
        # Settings that no weights tell, such as when masking ends, stay as they are.
        model = {**settings.model, **found, "dtype": settings.model["dtype"]}
    changes = workdir.differences(settings.model, model, "config.model", ("as set", "of the weights"))
    settled = dataclasses.replace(settings, model=model)
    queries, most = settled.num_queries, settings.data.max_segments
    if queries and most > queries:
        # Recipes set it to the queries of their own model, so that of too many segments the largest are targets.
        settled = dataclasses.replace(settled, data=dataclasses.replace(settings.data, max_segments=queries))
        changes.append(f"config.data.max_segments: as set {most}, of the weights {queries}, their number of queries")
    return settled, changes, weights


def _check_same_model(settings: Settings, name: str, origin: str) -> None:
    # Loss, optimizer and inference belong to the model, and the weights do not have them.
    if name != settings.model["name"]:
        raise UserError(
            f"config.init.weights: {origin} is a {name}, and this recipe, with its loss, is for a "
            f"{settings.model['name']}. Choose the variant of the recipe for that model, such as "
            f"--config=configs/custom.py:folder,{name}"
        )


def initial_arrays(
    settings: Settings, shapes: Arrays, weights: Weights | None = None
) -> tuple[str, dict[str, np.ndarray]]:
    """The parameters that training starts with, as `config.init` says, and where they come from.

    Args:
        shapes: everything that the model stores, by name.
        weights: those of `config.init.weights`, if they are open already.

    Raises:
        UserError: if the weights do not fit the model, or a pattern of `config.init.reinit` matches no parameter.
    """
    init = settings.init
    if not init.weights:
        return "", {}
    weights = weights or open_weights(init.weights, init.base_weights)
    return weights.origin, weights.load_into(shapes, init.reinit, setting="config.init.reinit")


def notes_on_classes(settings: Settings, weights: Weights | None, classes: Classes) -> list[str]:
    """What to know of the classification layer: random although the weights know the classes, or kept for others.

    Args:
        weights: those of `config.init.weights`, if they are open.
        classes: of the data.
    """
    if weights is None or weights.is_backbone:
        return []
    known = weights.describe().classes.names
    if any(re.match(pattern, "heads.class_head.kernel") for pattern in settings.init.reinit):
        if known != classes.names:
            return []
        return ['the weights know these classes; config.init.reinit="()" keeps the classification layer']
    for there, here in zip(known, classes.names, strict=False):
        if there != here:
            return [
                f"the classification layer is that of the weights, whose classes have other names or another order: "
                f"{there!r} there is {here!r} here. classes.json next to the data sets the order"
            ]
    return []


def whole_model(
    settings: Settings, shapes: Arrays, weights: Weights | None = None
) -> tuple[str, dict[str, np.ndarray]]:
    """The parameters of `config.init.weights` as they are, to score a model that was not trained here.

    Args:
        shapes: everything that the model stores, by name.
        weights: those of `config.init.weights`, if they are open already.

    Returns:
        Where they come from, and all of them.

    Raises:
        UserError: if they are a backbone alone, or of another model or of other classes than the settings and the data.
    """
    init = settings.init
    weights = weights or open_weights(init.weights, init.base_weights)
    if weights.is_backbone:
        raise UserError(f"config.init.weights: {weights.origin} is a backbone alone, which has no scores; train first")
    # Not without `config.init.reinit`, the recipes' setting for new classes: a random layer has no scores either.
    return weights.origin, weights.load_into(shapes, (), setting="config.init.reinit")


def describe_start(origin: str, loaded: Collection[str], all_names: Collection[str]) -> str:
    """A message: how many arrays were loaded, and which modules start at random."""
    partly = {prefix for name in loaded for prefix in _prefixes(name)}
    random = (name for name in all_names if name not in loaded)
    modules = dict.fromkeys(next(prefix for prefix in _prefixes(name) if prefix not in partly) for name in random)
    return f"{len(loaded)} of {len(all_names)} tensors from {origin}; at random: {', '.join(modules) or 'none'}"


def _prefixes(name: str) -> list[str]:
    """The modules that a parameter is in, from the outermost on, and the parameter itself."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
