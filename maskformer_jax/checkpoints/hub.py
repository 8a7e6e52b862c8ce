"""Models of the Hugging Face hub: downloads the files of a model that are needed, and no others."""

import hashlib
import os
import pathlib
import re
from collections.abc import Collection, Iterator, Mapping

from maskformer_jax.checkpoints.formats import ARCHITECTURES
from maskformer_jax.checkpoints.published import read_config
from maskformer_jax.errors import UserError

# "name/model", optionally with @ and a branch, a tag, a commit or "refs/pr/1".
_ID = re.compile(r"(?P<name>[\w-][\w.-]*/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
# What the hub states of a file: the SHA-256 of a large one, git's hash of a small one. The client makes the name of a
# file in its cache of it, so that anything else may lead out of the cache.
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_CHUNK = 2**20
_DESCRIPTIONS = ["config.json", "classes.json", "preprocessor_config.json", "*.index.json"]
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
        UserError: if the hub cannot be reached or refuses the model, if the model has another architecture or no
            weights, or if a file that comes now has another hash than the hub states.
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


def upload(folder: str, repo: str, private: bool, token: str | None = None) -> str:
    """Creates a repository of models, if there is none, and commits all files of a folder to it.

    Returns:
        The address of the commit.

    Raises:
        UserError: for no valid id, a missing library, a refused token, or if the hub cannot be reached.
    """
    if not is_id(repo) or "@" in repo:
        raise UserError(f"{repo!r} is not the id of a model on the hub; expected 'name/model'")
    api = _client(repo)(token=token)
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        return api.upload_folder(repo_id=repo, folder_path=folder, commit_message="maskformer_jax").commit_url
    except Exception as error:
        reason = str(error).strip().partition("\n")[0][:300]
        raise UserError(
            f"{repo} was not pushed: {reason}. It needs a token that may write there (`hf auth login`, or HF_TOKEN) "
            "and a connection to the hub."
        ) from error


def _client(repo: str) -> type:
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise UserError(f"to push {repo} to the Hugging Face hub: pip install huggingface_hub") from None
    return HfApi


def _fetch(source: str, revision: str | None, patterns: list[str]) -> pathlib.Path:
    """The folder of a model at a revision, with all files that match the patterns.

    Files that are downloaded now have the hash that the hub states.
    """
    try:
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.file_download import repo_folder_name
    except ImportError:
        raise UserError(
            f"{source} does not exist here. To load it from the Hugging Face hub: pip install huggingface_hub"
        ) from None
    name = _ID.fullmatch(source)["name"]
    try:
        cache = pathlib.Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
        known = {blob.name for blob in (cache / "blobs").glob("*")}
        stated = _stated_hashes(source, name, revision, patterns, cache)
        folder = pathlib.Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except UserError:
        raise
    except Exception as error:
        # The message has the text of the last cause; the chain is pages of tracebacks of client libraries.
        raise UserError(_why(error, source)) from None
    files = [file for pattern in patterns for file in folder.glob(pattern)]
    for file in files:
        _verify(source, file, known, stated)
    return folder


def _stated_hashes(
    source: str, name: str, revision: str | None, patterns: list[str], cache: pathlib.Path
) -> dict[str, str]:
    """The hash of each file that is to be downloaded; raises UserError for what is none.

    Asked before the client downloads, which would write wherever an answer leads to. Empty if the hub is not reached:
    then the client says so, or has all files.
    """
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import filter_repo_objects

    try:
        info = HfApi().model_info(name, revision=revision)
    except Exception:
        return {}
    stated = {}
    for file in filter_repo_objects([entry.rfilename for entry in info.siblings], allow_patterns=patterns):
        if not (cache / "snapshots" / info.sha / file).exists():
            stated[file] = get_hf_file_metadata(hf_hub_url(name, file, revision=info.sha)).etag
            if not _HASH.fullmatch(stated[file] or ""):
                raise UserError(
                    f"{source}: the hub states {stated[file]!r:.100} as the hash of {file!r:.100}; expected a SHA-256 "
                    "or a hash of git. Nothing was downloaded. Is HF_ENDPOINT a mirror? Copy the files yourself and "
                    "give their folder."
                )
    return stated


def _verify(source: str, file: pathlib.Path, known: Collection[str], stated: Mapping[str, str]) -> None:
    """Raises UserError if a file lies outside of the model's cache, or was downloaded now and has another hash.

    A file whose hash is wrong is removed, since the client would take it for complete.

    Args:
        file: in the folder of a commit, where the client has links to files that are called by their hashes.
        known: the names of the files that were there before, which are not read again.
    """
    cache, real = file.parents[2].resolve(), file.resolve()
    if not real.is_relative_to(cache):
        raise UserError(f"{source}: {file} leads out of its cache, to {real}; remove {cache} and download again")
    expected = real.name if _HASH.fullmatch(real.name) else stated.get(file.name)
    if expected is None or real.name in known:
        return
    found = _hash_of(real, len(expected))
    if found != expected or stated.get(file.name, expected) != expected:
        file.unlink()
        real.unlink(missing_ok=True)
        raise UserError(
            f"{source}: {file.name} was damaged on its way: its hash is {found}, and the hub states "
            f"{stated.get(file.name, expected)}. The file was removed; run again. If it happens again, the hub or a "
            "proxy gives other files than it states."
        )


def _hash_of(file: pathlib.Path, length: int) -> str:
    """The SHA-256 of a file, or git's hash for a length of 40 digits."""
    # SHA-1 is what git has, and no protection here.
    digest = hashlib.sha256() if length == 64 else hashlib.sha1(f"blob {file.stat().st_size}\0".encode())
    with file.open("rb") as content:
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


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
