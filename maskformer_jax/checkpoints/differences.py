"""Weights that are stored as differences to those that training started from."""

import re
import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from maskformer_jax.errors import UserError

# Nearly every scale of a trained norm is positive.
_POSITIVE = 0.75
_SCALE = re.compile(r"backbone\..*norm\d?\.scale")
_KERNEL = re.compile(r"backbone\.blocks\.(\d+)\..*\.kernel")
# Independent numbers of the size of a block have a cosine below 0.001.
_SHRUNK = -0.005


def add(
    base: Mapping[str, np.ndarray], differences: Mapping[str, np.ndarray], origin: str, base_origin: str
) -> dict[str, np.ndarray]:
    """The weights of a backbone: of each parameter of it, the base and the difference.

    Warns if the base seems to be another one of the same size: training with weight decay shrinks what it starts from,
    so that differences point against the right base, and in no direction of another.

    Args:
        base, differences: by our names, with equal shapes; differences may lack some.

    Raises:
        UserError: if the sum is no trained backbone.
    """
    found = {name: base[name] + difference for name, difference in differences.items() if name in base}
    if not of_trained_norms([array for name, array in found.items() if _SCALE.fullmatch(name)]):
        raise UserError(
            f"{origin} holds differences to pretrained weights, and {base_origin} is not what they are to: scales of "
            "norms come out negative, and a trained model has positive ones. Give the weights that it was trained from."
        )
    if _last_block_cosine(base, differences) > _SHRUNK:
        warnings.warn(
            f"{base_origin} may not be what {origin} was trained from: the weights of the last block have not shrunk "
            "towards zero, as weight decay makes them. Check that it was pretrained on the right data.",
            stacklevel=2,
        )
    return found


def of_trained_norms(scales: Sequence[np.ndarray]) -> bool:
    """Whether nearly all scales are positive, as those of a trained model are and their changes are not."""
    return not scales or bool(np.mean(np.concatenate(scales) > 0) >= _POSITIVE)


def _last_block_cosine(base: Mapping[str, np.ndarray], differences: Mapping[str, np.ndarray]) -> float:
    """The cosine of the angle between the kernels of the last block and their differences; -1 for none."""
    kernels = {name: int(found[1]) for name in differences if (found := _KERNEL.fullmatch(name))}
    last = [name for name, block in kernels.items() if block == max(kernels.values()) and name in base]
    if not last:
        return -1.0
    one, other = (np.concatenate([each[name].ravel() for name in last]) for each in (base, differences))
    return float(one @ other / max(np.linalg.norm(one) * np.linalg.norm(other), 1e-12))
