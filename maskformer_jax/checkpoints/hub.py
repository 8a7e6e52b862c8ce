"""Models of the Hugging Face hub: downloads the files of a model that are needed, and no others."""

import os
import pathlib
import re
from collections.abc import Iterator

from maskformer_jax.checkpoints.formats import ARCHITECTURES
from maskformer_jax.checkpoints.published import read_config
from maskformer_jax.errors import UserError

# "name/model", optionally with @ and a branch, a tag, a commit or "refs/pr/1".
_ID = re.compile(r"(?P<name>[\w-][\w.-]*/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_DESCRIPTIONS = ["config.json", "preprocessor_config.json", "*.index.json"]
# Whole or in shards. Most repositories have the same tensors in both formats; the first format that exists is taken.
_WEIGHTS = (
    ["model.safetensors", "model-*-of-*.safetensors"],
    ["pytorch_model.bin", "pytorch_model-*-of-*.bin"],
)
_ELSEWHERE = "or copy the files from another machine (`hf download {wanted} --local-dir DIR`) and give DIR"
# Reasons by the names of the client's errors, since versions of the client have them in different modules. The first
# reason here that an error or one of its causes has is reported.
_REASONS = {
    "HFValidationError": "is neither a path that exists nor a valid hub id ({error})",
    "OfflineModeIsEnabled": "is not in the cache, or only in part, and offline mode is on. Unset HF_HUB_OFFLINE for "
    "one run to download it, " + _ELSEWHERE,
    "GatedRepoError": "is gated: ask for access at {page}, then log in with `hf auth login` or set HF_TOKEN",
    "RepositoryNotFoundError": "is not a local path, and {endpoint} shows no such model. Check the spelling; if it "
    "is private, log in with `hf auth login` or set HF_TOKEN",
    "RevisionNotFoundError": "does not exist: the model has no such revision. {page}/tree/main lists branches, tags "
    "and commits",
    "DisabledRepoError": "is disabled on the hub",
    "Unauthorized": "was refused: {endpoint} does not accept your token. Log in again (`hf auth login`) or correct "
    "HF_TOKEN",
    "TransportError": "is not in the cache, or only in part, and the connection to {endpoint} failed ({error}). "
    "Complete files are kept: run again, " + _ELSEWHERE,
}
_OTHERWISE = "could not be downloaded from {endpoint} ({error}). Complete files are kept: run again, " + _ELSEWHERE
_REASONS |= {kind: _REASONS["TransportError"] for kind in ("ConnectionError", "Timeout")}  # clients before 1.0


def is_id(source: str) -> bool:
    """Whether a string has the form of a hub id, "name/model" or "name/model@revision"."""
    return _ID.fullmatch(source) is not None


def download(source: str) -> str:
    """The folder in the client's cache with the description and the weights of a model; downloads missing files.

    If the cache has the model, the hub is only asked for its newest commit; in offline mode (HF_HUB_OFFLINE=1) it is
    not asked at all.

    Args:
        source: a hub id, with or without a revision.

    Raises:
        UserError: if the hub cannot be reached or refuses the model, or if the model has another architecture or no
            weights.
    """
    name, revision = _ID.fullmatch(source).group("name", "revision")
    folder = _fetch(source, revision, _DESCRIPTIONS)
    if (folder / "config.json").exists():
        # Backbones of timm have a config.json without a model_type.
        read_config(folder / "config.json", f"{source}: config.json", {**ARCHITECTURES, None: ""})
    for patterns in _WEIGHTS:
        # The name of the folder is the commit: the weights must be of the same one as the description.
        folder = _fetch(source, folder.name, _DESCRIPTIONS + patterns)
        # A model without a description has no folder before its weights are fetched.
        held = folder.iterdir() if folder.exists() else ()
        if any(file.match(pattern) for file in held for pattern in patterns):
            return str(folder)
    raise UserError(_no_weights(source, name, folder))


def _fetch(source: str, revision: str | None, patterns: list[str]) -> pathlib.Path:
    """The folder of a model at a revision, with all files that match the patterns."""
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
        # The message has the text of the last cause; the chain is pages of tracebacks of client libraries.
        raise UserError(_why(error, source)) from None


def _why(error: Exception, source: str) -> str:
    """The message for an error of the hub's client."""
    causes = list(_causes(error))
    kinds = {kind.__name__ for cause in causes for kind in type(cause).__mro__}
    if any(getattr(getattr(cause, "response", None), "status_code", None) == 401 for cause in causes):
        kinds.add("Unauthorized")
    name, revision = _ID.fullmatch(source).group("name", "revision")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    reason = next((_REASONS[kind] for kind in _REASONS if kind in kinds), _OTHERWISE).format(
        wanted=f"{name} --revision {revision}" if revision else name,
        endpoint=endpoint,
        page=f"{endpoint}/{name}",
        error=str(causes[-1]).strip().split("\n")[0][:300],
    )
    return f"{source} {reason}."


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, its cause, the cause of that, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


def _no_weights(source: str, name: str, folder: pathlib.Path) -> str:
    """The message for a model without weights in its folder of the cache."""
    expected = "model.safetensors or pytorch_model.bin, whole or in shards"
    try:
        from huggingface_hub import HfApi

        held = HfApi().list_repo_files(name, revision=folder.name)
    except Exception:
        return (
            f"{source}: its weights ({expected}) are not in the cache ({folder}), and the hub cannot be "
            "reached. Run again with network access and without HF_HUB_OFFLINE."
        )
    return (
        f"{source} has no weights that can be read; expected {expected}, found {held[:20]}. If the weights are in "
        f"another file, download it (`hf download {name} FILE`) and give its path."
    )
