"""Puts a model on the Hugging Face hub, with its card."""

import re
import tempfile
from typing import TYPE_CHECKING

import jax
from etils import epath

from maskformer_jax.checkpoints import hub, workdir
from maskformer_jax.checkpoints.formats import OURS
from maskformer_jax.checkpoints.model_card import model_card
from maskformer_jax.checkpoints.published import Description
from maskformer_jax.files import writing

if TYPE_CHECKING:
    from maskformer_jax.segmenter.segmenter import Segmenter


def push_to_hub(segmenter: "Segmenter", repo: str, *, license: str, data: str, private: bool, token: str | None) -> str:
    """See `Segmenter.push_to_hub`."""
    described = Description(segmenter.model, vars(segmenter.inference), segmenter.classes)
    parameters = sum(array.size for array in segmenter.params.values())
    source = re.sub(r", checkpoint \d+$", "", segmenter.origin)
    card = model_card(repo, described, parameters, license, data, source if workdir.is_ours(source) else "")
    with tempfile.TemporaryDirectory() as folder:
        OURS.write(folder, jax.device_get({**segmenter.params, **segmenter.frozen}), described)
        writing.write_text(epath.Path(folder) / "README.md", card)
        return hub.upload(folder, repo, private, token)
