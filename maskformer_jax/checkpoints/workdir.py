"""What a run leaves in its folder beside checkpoints and events: settings, classes, versions."""

import importlib.metadata
import json
import math
import platform
import subprocess
from typing import Any

import jax
from etils import epath

from maskformer_jax import catalog
from maskformer_jax.catalog import Classes
from maskformer_jax.checkpoints.published import Description
from maskformer_jax.checkpoints.store import CheckpointStore, finished_steps
from maskformer_jax.checkpoints.weights import CHECKPOINTS, Weights, is_ours, locate, open_weights
from maskformer_jax.engine.settings import Settings
from maskformer_jax.errors import UserError
from maskformer_jax.types import Arrays

_SETTINGS, _CLASSES, _VERSIONS = "config.json", "classes.json", "versions.json"
_PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "tensorflow-cpu", "tensorflow"),
    *("pillow", "opencv-python-headless"),  # they make the training images
)


def checkpoints(workdir: str) -> str:
    return str(epath.Path(workdir) / CHECKPOINTS)


def has_checkpoints(workdir: str) -> bool:
    """Whether a run here has a finished checkpoint."""
    return bool(finished_steps(epath.Path(checkpoints(workdir))))


def has_settings(workdir: str) -> bool:
    """Whether a run here has begun."""
    return (epath.Path(workdir) / _SETTINGS).exists()


def check(workdir: str, settings: Settings, classes: Classes) -> None:
    """Raises UserError if the folder is of a run with another model or other classes, naming what differs."""
    if not has_settings(workdir):
        return
    old, _ = describe(workdir)
    found = differences(old.model, settings.to_dict()["model"], "config.model")
    found += differences(_of_model(old.classes), _of_model(classes), "classes")
    train = json.loads((epath.Path(workdir) / _SETTINGS).read_text()).get("train", {})
    # Checkpoints have an average of the parameters or have none, and moments of those that are trained.
    decay, freeze = train.get("ema_decay", 0.0), train.get("freeze", ())
    if bool(decay) != bool(settings.train.ema_decay):
        found.append(f"config.train.ema_decay: there {decay}, now {settings.train.ema_decay}")
    found += differences(freeze, settings.train.freeze, "config.train.freeze")
    if found:
        raise UserError(
            f"{workdir} holds a different model:\n  " + "\n  ".join(found) + "\n"
            "Nothing was changed. Use another --workdir, or the settings that the folder was made with."
        )


def _of_model(classes: Classes) -> dict[str, Any]:
    """What a model has learned of its classes; how a dataset numbers them is no part of it."""
    return {key: value for key, value in classes.to_dict().items() if key not in ("ids", "values")}


def prepare(workdir: str, settings: Settings, classes: Classes) -> None:
    """Makes the folder and records the run in it; raises as `check` does before it changes anything."""
    check(workdir, settings, classes)
    if jax.process_index() == 0:
        root = epath.Path(workdir)
        root.mkdir(parents=True, exist_ok=True)
        _write(root / _CLASSES, classes.to_dict())
        _write(root / _VERSIONS, versions())
        _write(root / _SETTINGS, settings.to_dict())


def write_scores(
    workdir: str,
    step: int,
    split: str,
    summary: dict[str, float],
    per_class: dict[str, dict[str, float]],
    worst: dict[str, list[tuple[float, str]]],
    how: str,
) -> None:
    """Writes the scores of a checkpoint as `eval.json`; NaN becomes null.

    Args:
        worst: score and id of images, by task.
        how: in words, how each image was looked at.
    """

    def finite(values: dict[str, float]) -> dict[str, float | None]:
        return {name: value if math.isfinite(value) else None for name, value in values.items()}

    scores = {"step": step, "split": split, "how": how, **finite(summary)}
    scores["classes"] = {name: finite(row) for name, row in per_class.items()}
    scores["worst_images"] = {task: {image_id: score for score, image_id in rows} for task, rows in worst.items()}
    _write(epath.Path(workdir) / "eval.json", scores)


def describe(workdir: str) -> tuple[Description, str]:
    """The model of a run, or of a folder that `save_model` made, and the metric that tells its best checkpoint.

    Raises:
        UserError: if the folder is neither.
    """
    path = epath.Path(workdir) / _SETTINGS
    if not path.exists():
        raise UserError(f"{path} is missing: {workdir!r} is not the --workdir of a training run")
    try:
        values = json.loads(path.read_text())
        model, inference = values["model"], values["inference"]
    except (ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged, or of another version: {error!r}") from error
    classes = catalog.read(epath.Path(workdir) / _CLASSES)
    return Description(model, inference, classes), values.get("eval", {}).get("best_metric", "")


def read_weights(source: str) -> Weights:
    """The weights at a path or hub id; of a run, those of its best checkpoint."""
    path = locate(source)
    return open_weights(path, describe(path)[1] if is_ours(path) else "")


def save_model(workdir: str, described: Description, params: Arrays, frozen: Arrays) -> None:
    """Makes a folder like that of a run, with a model that is ready to use but has no training state."""
    root = epath.Path(workdir)
    root.mkdir(parents=True, exist_ok=True)
    store = CheckpointStore(checkpoints(workdir))
    store.save_model(0, params, frozen)
    store.wait()
    store.close()
    _write(root / _CLASSES, described.classes.to_dict())
    _write(root / _VERSIONS, versions())
    _write(root / _SETTINGS, {"model": described.model, "inference": described.inference})


def versions() -> dict[str, str]:
    """The git revision of the code, Python, the packages that matter, and the devices."""
    found = {"git": _git_revision(), "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    found["devices"] = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return found


def _git_revision() -> str:
    here = epath.Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def replace_text(path: epath.Path, text: str) -> None:
    """Writes a file so that a kill leaves the old one or the new one, never half of one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


def _write(path: epath.Path, values: Any) -> None:
    replace_text(path, json.dumps(values, indent=2) + "\n")


def differences(old: Any, new: Any, name: str, sides: tuple[str, str] = ("there", "now")) -> list[str]:
    """A line for each value that is not the same in two trees of settings.

    Args:
        sides: what the old and the new values are called.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(set(old) | set(new))
        return [line for key in keys for line in differences(old.get(key), new.get(key), f"{name}.{key}", sides)]
    same = list(old) == list(new) if isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)) else old == new
    return [] if same else [f"{name}: {sides[0]} {_format_value(old)}, {sides[1]} {_format_value(new)}"]


def _format_value(value: Any) -> str:
    return "nothing" if value is None else repr(value)


def check_empty(directory: str) -> None:
    """Raises UserError if a folder, which is to be made, holds something."""
    folder = epath.Path(directory)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{directory} exists and is not an empty folder; nothing was changed. Use another --to.")
