"""Models of the Hugging Face hub: from an id to a folder that holds what is needed of it, and no more."""

import os
import pathlib
import re
from collections.abc import Iterator

from maskformer_jax.checkpoints.formats import ARCHITECTURES
from maskformer_jax.checkpoints.published import read_config
from maskformer_jax.errors import UserError

# "name/model", and after @ a branch, a tag, a commit or "refs/pr/1".
_ID = re.compile(r"(?P<name>[\w-][\w.-]*/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_DESCRIPTIONS = ["config.json", "preprocessor_config.json", "*.index.json"]
# Whole or in shards. Most repositories have the same tensors in both formats, so the first that is there is taken.
_WEIGHTS = (
    ["model.safetensors", "model-*-of-*.safetensors"],
    ["pytorch_model.bin", "pytorch_model-*-of-*.bin"],
)
_ELSEWHERE = "or bring the files from another machine (`hf download {wanted} --local-dir DIR`) and give DIR"
# Why the hub gave nothing, by the names of the client's errors, which its versions keep in different modules. Of an
# error and its causes, the first that is here counts.
_REASONS = {
    "HFValidationError": "is neither a path that exists nor a valid hub id ({error})",
    "OfflineModeIsEnabled": "is not in the cache, or not all of it, and offline mode is on. Unset HF_HUB_OFFLINE for "
    "one run to download it, " + _ELSEWHERE,
    "GatedRepoError": "is gated: ask for access at {page}, then log in with `hf auth login` or set HF_TOKEN",
    "RepositoryNotFoundError": "is no local path, and {endpoint} shows no such model. Look for a misprint; if it is "
    "private, log in with `hf auth login` or set HF_TOKEN",
    "RevisionNotFoundError": "is not there: the model is, but not this revision. {page}/tree/main lists branches, tags "
    "and commits",
    "DisabledRepoError": "is disabled on the hub",
    "Unauthorized": "was not given: {endpoint} refuses your token. Log in again (`hf auth login`) or correct HF_TOKEN",
    "TransportError": "is not in the cache, or not all of it, and the connection to {endpoint} failed ({error}). Files "
    "that arrived whole are kept: run again, " + _ELSEWHERE,
}
_OTHERWISE = "was not given by {endpoint} ({error}). Files that arrived whole are kept: run again, " + _ELSEWHERE
_REASONS |= {kind: _REASONS["TransportError"] for kind in ("ConnectionError", "Timeout")}  # clients before 1.0


def is_id(source: str) -> bool:
    """Whether a text has the form of a hub id, "name/model" or "name/model@revision"."""
    return _ID.fullmatch(source) is not None


def download(source: str) -> str:
    """The folder in the client's cache with the description and the weights of a model; fetches what it lacks.

    Of a model that is there, the hub is asked for its newest commit only; in offline mode (HF_HUB_OFFLINE=1), nothing.

    Args:
        source: a hub id, with or without a revision.

    Raises:
        UserError: the hub cannot be reached or does not give it, it is of another architecture, or has no weights.
    """
    name, revision = _ID.fullmatch(source).group("name", "revision")
    folder = _fetch(source, revision, _DESCRIPTIONS)
    if (folder / "config.json").exists():
        # Backbones of timm have a config.json without a model_type.
        read_config(folder / "config.json", f"{source}: config.json", {**ARCHITECTURES, None: ""})
    for patterns in _WEIGHTS:
        # The name of the folder is the commit, so both parts are of one.
        folder = _fetch(source, folder.name, _DESCRIPTIONS + patterns)
        if any(file.match(pattern) for file in folder.iterdir() for pattern in patterns):
            return str(folder)
    raise UserError(_no_weights(source, name, folder))


def _fetch(source: str, revision: str | None, patterns: list[str]) -> pathlib.Path:
    """The folder of a model at a revision, with all files that match."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(
            f"{source} does not exist here. To load it from the Hugging Face hub: pip install huggingface_hub"
        ) from None
    try:
        name = _ID.fullmatch(source)["name"]
        return pathlib.Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:
        # The reason has the words of the last cause; the chain is pages of the clients of clients.
        raise UserError(_why(error, source)) from None


def _why(error: Exception, source: str) -> str:
    """What to tell the user of an error of the hub's client."""
    causes = list(_causes(error))
    kinds = {kind.__name__ for cause in causes for kind in type(cause).__mro__}
    if any(getattr(getattr(cause, "response", None), "status_code", None) == 401 for cause in causes):
        kinds.add("Unauthorized")
    name, revision = _ID.fullmatch(source).group("name", "revision")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    words = next((_REASONS[kind] for kind in _REASONS if kind in kinds), _OTHERWISE).format(
        wanted=f"{name} --revision {revision}" if revision else name,
        endpoint=endpoint,
        page=f"{endpoint}/{name}",
        error=str(causes[-1]).strip().split("\n")[0][:300],
    )
    return f"{source} {words}."


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


def _no_weights(source: str, name: str, folder: pathlib.Path) -> str:
    """What to tell the user of a model without weights in a folder of the cache."""
    expected = "model.safetensors or pytorch_model.bin, whole or in shards"
    try:
        from huggingface_hub import HfApi

        held = HfApi().list_repo_files(name, revision=folder.name)
    except Exception:
        return (
            f"{source}: its weights ({expected}) are not in the cache ({folder}), and the hub cannot be asked for "
            "them. Run again with network and without HF_HUB_OFFLINE."
        )
    return (
        f"{source} has no weights that can be read; expected {expected}, found {held[:20]}. If another file is the "
        f"weights, download it (`hf download {name} FILE`) and give its path."
    )
