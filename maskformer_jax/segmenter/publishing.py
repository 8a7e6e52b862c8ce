"""Puts a model on the Hugging Face hub, with its card."""

import re
import tempfile
from typing import TYPE_CHECKING

import jax
import numpy as np
from etils import epath

from maskformer_jax import bundled
from maskformer_jax.checkpoints import hub, workdir
from maskformer_jax.checkpoints.formats import OURS
from maskformer_jax.checkpoints.model_card import model_card
from maskformer_jax.checkpoints.weights import locate
from maskformer_jax.files import writing

if TYPE_CHECKING:
    from maskformer_jax.segmenter.segmenter import Segmenter


def push_to_hub(segmenter: "Segmenter", repo: str, *, license: str, data: str, private: bool, token: str | None) -> str:
    """See `Segmenter.push_to_hub`."""
    with tempfile.TemporaryDirectory() as folder:
        arrays = jax.device_get({**segmenter.params, **segmenter.frozen})
        OURS.write(folder, _in_half_precision(arrays), segmenter.description)
        writing.write_text(epath.Path(folder) / "README.md", _card(segmenter, repo, license, data))
        return hub.upload(folder, repo, private, token)


def _card(segmenter: "Segmenter", repo: str, license: str, data: str) -> str:
    """The card of a model of the package, unless something is said of it; else one of what is known."""
    origin = segmenter.origin
    if origin in bundled.MODELS and not (license or data) and locate(origin) == str(bundled.folder(origin)):
        card = (bundled.folder(origin) / "README.md").read_text()
        return card.replace(f'load("{origin}")', f'load("{repo}")')
    parameters = sum(array.size for array in segmenter.params.values())
    run = re.fullmatch(r"(?P<workdir>.*), checkpoint (?P<step>\d+)", origin, re.DOTALL)
    recorded = {"run": run["workdir"], "step": int(run["step"])} if run and workdir.is_ours(run["workdir"]) else {}
    return model_card(repo, segmenter.description, parameters, license, data, **recorded)


def _in_half_precision(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays in float16 if that holds every value, as that of a model that was stored in it; else as they are."""
    with np.errstate(over="ignore"):
        half = {name: array.astype(np.float16) for name, array in arrays.items()}
    return half if all(np.array_equal(half[name], array) for name, array in arrays.items()) else arrays
