"""Published and converted models: the model that weights are of, and the weights."""

from maskformer_jax.checkpoints.published import Description
from maskformer_jax.checkpoints.weights import Weights, open_weights
from maskformer_jax.errors import UserError


def open_model(source: str, base: str = "") -> tuple[Description, Weights]:
    """The description of the model at a source, and its weights; see `segmenter.load`.

    Raises:
        UserError: as `open_weights`, and if the weights are of a backbone alone.
    """
    weights = open_weights(source, base)
    if weights.is_backbone:
        raise UserError(
            f"{source} is {weights.format.label}, which segments nothing yet. Train a model from it: "
            f"--config.init.weights={source}"
        )
    return weights.describe(), weights
