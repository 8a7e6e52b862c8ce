"""Puts a model on the Hugging Face hub, with its card."""

import re
import tempfile
from typing import TYPE_CHECKING

import jax
from etils import epath

from maskformer_jax.checkpoints import hub, workdir
from maskformer_jax.checkpoints.formats import OURS
from maskformer_jax.checkpoints.model_card import model_card
from maskformer_jax.files import writing

if TYPE_CHECKING:
    from maskformer_jax.segmenter.segmenter import Segmenter


def push_to_hub(segmenter: "Segmenter", repo: str, *, license: str, data: str, private: bool, token: str | None) -> str:
    """See `Segmenter.push_to_hub`."""
    parameters = sum(array.size for array in segmenter.params.values())
    run = re.fullmatch(r"(?P<workdir>.*), checkpoint (?P<step>\d+)", segmenter.origin, re.DOTALL)
    recorded = {"run": run["workdir"], "step": int(run["step"])} if run and workdir.is_ours(run["workdir"]) else {}
    card = model_card(repo, segmenter.description, parameters, license, data, **recorded)
    with tempfile.TemporaryDirectory() as folder:
        OURS.write(folder, jax.device_get({**segmenter.params, **segmenter.frozen}), segmenter.description)
        writing.write_text(epath.Path(folder) / "README.md", card)
        return hub.upload(folder, repo, private, token)
