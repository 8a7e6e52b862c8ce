"""What a run leaves in its folder in addition to checkpoints and events: settings, classes, versions."""

import importlib.metadata
import math
import os
import platform
import subprocess
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from maskformer_jax import catalog
from maskformer_jax.catalog import Classes
from maskformer_jax.checkpoints.layout import finished_steps
from maskformer_jax.checkpoints.published import Description
from maskformer_jax.checkpoints.store import CheckpointStore
from maskformer_jax.errors import UserError
from maskformer_jax.files import json_file, paths, writing
from maskformer_jax.types import Arrays

# Of config.json, and of the names of parameters in checkpoints. To be raised when either changes, since a folder is
# read by the version that wrote it and by no other.
VERSION = 1
_CHECKPOINTS = "checkpoints"
_SETTINGS, _CLASSES, _VERSIONS, _SCORES = "config.json", "classes.json", "versions.json", "eval.json"
_DATASET = "dataset.json"
# What runs write, besides events.
_WRITTEN = (_SETTINGS, _CLASSES, _VERSIONS, _SCORES, _DATASET, "metrics.jsonl", "hooks.json")
_FOLDERS = (_CHECKPOINTS, "images")
# Of classes: what may change under a model that has learned them. Of models: what is not in their parameters.
_NUMBERS = ("colors", "ignore_index", "ids", "values")
_NOT_LEARNED = ("dtype", "dropout", "drop_path", "mask_annealing")
_PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "tensorflow-cpu", "tensorflow"),
    *("pillow", "opencv-python-headless"),  # they make the training images
)


def checkpoints(workdir: str) -> str:
    """The folder of the checkpoints of a run or a converted model."""
    return str(epath.Path(workdir) / _CHECKPOINTS)


def is_ours(path: str) -> bool:
    """Whether a path is the folder of a run, or of a model that `save_model` wrote."""
    return epath.Path(checkpoints(path)).is_dir()


def has_checkpoints(workdir: str) -> bool:
    """Whether a run here has a finished checkpoint."""
    return bool(finished_steps(epath.Path(checkpoints(workdir))))


def has_settings(workdir: str) -> bool:
    """Whether a run has started here."""
    return (epath.Path(workdir) / _SETTINGS).exists()


def check(workdir: str, settings: Mapping[str, Any], classes: Classes) -> None:
    """Checks that a run may start or resume in a folder, which need not exist.

    Args:
        settings: all sections of the run's settings, as plain values.

    Raises:
        UserError: if the folder is of a run with another model or other classes, naming what differs; of another
            version of this package; or if it is no run's, and has files that a run would replace.
    """
    if not has_settings(workdir):
        _check_free(workdir, classes)
        return
    values = read_settings(workdir)
    found = _differences_of_model(values["model"], settings["model"], learned=True)
    found += differences(_of_model(_read_classes(workdir)), _of_model(classes), "classes")
    # A checkpoint has an EMA of the parameters or has none, and optimizer state of those that are trained.
    old, new = values.get("train", {}), settings["train"]
    if bool(old.get("ema_decay")) != bool(new["ema_decay"]):
        found.append(f"config.train.ema_decay: there {old.get('ema_decay', 0.0)}, now {new['ema_decay']}")
    if set(old.get("freeze", ())) != set(new["freeze"]):
        found += differences(old.get("freeze", ()), new["freeze"], "config.train.freeze")
    if found:
        raise UserError(
            f"{workdir} holds a different model:\n  " + "\n  ".join(found) + "\n"
            "Nothing was changed. Use another --workdir, or the settings that the folder was made with."
        )


def _check_free(workdir: str, classes: Classes) -> None:
    """Raises UserError if a folder without a run has files of the names that a run writes, such as a dataset's."""
    root = epath.Path(workdir)
    found = [name for name in (*_WRITTEN, "images", "results") if (root / name).exists()]
    if set(found) <= {_CLASSES, _VERSIONS} and _CLASSES in found:
        there = json_file.read(root / _CLASSES)
        if not differences(there, classes.to_dict(), "classes"):
            return  # left by a run that was killed before it wrote its settings, a moment later
    if found:
        raise UserError(
            f"{workdir} is not the folder of a run (it has no {_SETTINGS}), but has {', '.join(found)}, which a run "
            "would write over. Is it the folder of the data? Nothing was changed. Use another --workdir, or move them "
            "away."
        )


def changes(
    workdir: str, settings: Mapping[str, Any], classes: Classes, dataset: Mapping[str, Any] | None = None
) -> list[str]:
    """A line for each thing that has changed since a run last started here, though it may resume.

    Args:
        dataset: as in `prepare`; its examples are compared by their digests.
    """
    if not has_settings(workdir):
        return []
    found = _differences_of_model(read_settings(workdir)["model"], settings["model"], learned=False)
    old, new = _read_classes(workdir).to_dict(), classes.to_dict()
    found += differences({key: old[key] for key in _NUMBERS}, {key: new[key] for key in _NUMBERS}, "classes")
    path = epath.Path(workdir) / _DATASET
    before = {k: v for k, v in json_file.read(path).items() if isinstance(v, dict)} if path.exists() else {}
    for role, now in (dataset or {}).items():
        there = before.get(role)
        # The order of examples depends on the name of their split, and on nothing else that has a name.
        if there and any(there.get(key) != now[key] for key in ("split", "content")):
            found.append(
                f"the {role} data are not those that the run had before: there {_of_split(there)}, now "
                f"{_of_split(now)}. Its results will not be those of an uninterrupted run."
            )
    return found


def _differences_of_model(old: Mapping[str, Any], new: Mapping[str, Any], learned: bool) -> list[str]:
    """Lines for the settings of a model that parameters depend on, or for those that only training does."""
    lines = differences(old, new, "config.model")
    return [line for line in lines if (line.split(":")[0].split(".")[-1] in _NOT_LEARNED) != learned]


def _of_model(classes: Classes) -> dict[str, Any]:
    """What a model has learned of its classes, without how they are drawn and the numbers that files give them."""
    return {key: value for key, value in classes.to_dict().items() if key not in _NUMBERS}


def _of_split(described: Mapping[str, Any]) -> str:
    return f"{described.get('images')} images of {described.get('name')}, split {described.get('split')!r}"


def prepare(
    workdir: str, settings: Mapping[str, Any], classes: Classes, dataset: Mapping[str, Any] | None = None
) -> None:
    """Makes the folder and records the run in it; arguments and errors as in `check`, before anything is changed.

    Args:
        dataset: for the training data and the validation data, what `Source.describe` says of the split.
    """
    check(workdir, settings, classes)
    if jax.process_index() == 0:
        _record(workdir, settings, classes)
        if dataset:
            writing.write_json(epath.Path(workdir) / _DATASET, dataset)


def _record(workdir: str, settings: Mapping[str, Any], classes: Classes) -> None:
    writing.write_json(writing.make_folder(workdir) / _VERSIONS, versions())
    _write_settings(workdir, settings, classes)


def _write_settings(folder: str, settings: Mapping[str, Any], classes: Classes) -> None:
    root = writing.make_folder(folder)
    writing.write_json(root / _CLASSES, classes.to_dict())
    writing.write_json(root / _SETTINGS, {"version": VERSION, **settings})


def write_scores(
    workdir: str,
    step: int,
    split: str,
    summary: dict[str, float],
    per_class: dict[str, dict[str, float]],
    worst: dict[str, list[tuple[float, str]]],
    how: str,
) -> None:
    """Writes the scores of a checkpoint as `eval.json`; NaN becomes null. Raises WriteError.

    Args:
        worst: score and id of images, by task.
        how: the views of each image that were evaluated, in words.
    """

    def finite(values: dict[str, float]) -> dict[str, float | None]:
        return {name: value if math.isfinite(value) else None for name, value in values.items()}

    scores = {"step": step, "split": split, "how": how, **finite(summary)}
    scores["classes"] = {name: finite(row) for name, row in per_class.items()}
    scores["worst_images"] = {task: {image_id: score for score, image_id in rows} for task, rows in worst.items()}
    writing.write_json(epath.Path(workdir) / _SCORES, scores)


def describe(workdir: str) -> Description:
    """The model of a run, or of a folder that `save_model` wrote.

    Raises:
        UserError: if the folder is neither, or was written by another version of this package.
    """
    values = read_settings(workdir)
    if "num_classes" in values["model"]:
        raise UserError(
            f"{epath.Path(workdir) / _SETTINGS}: model.num_classes is not a setting; classes.json has the classes"
        )
    return Description(values["model"], values["inference"], _read_classes(workdir))


def best_metric(workdir: str) -> str:
    """The metric by which a run chooses its best checkpoint; "" for a folder that `save_model` wrote."""
    metric = read_settings(workdir).get("eval", {}).get("best_metric", "")
    if not isinstance(metric, str):
        path = epath.Path(workdir) / _SETTINGS
        raise UserError(f"{path}: eval.best_metric is {json_file.shown(metric)}; expected a text")
    return metric


def read_settings(workdir: str) -> dict[str, Any]:
    """The settings in a folder by section; "model" and "inference" are among them.

    Raises:
        UserError: if there are none, or none that this version understands.
    """
    path = epath.Path(workdir) / _SETTINGS
    values = json_file.read(path, missing=f"{workdir!r} is not the --workdir of a training run, nor a converted model")
    version = values.pop("version", 0)
    if isinstance(version, bool) or version != VERSION:
        age = "an earlier" if version in range(VERSION) else "another"
        raise UserError(
            f"{path} has version {json_file.shown(version) if version else 'none'}, and this package reads version "
            f"{VERSION}: {workdir!r} was made by {age} version of maskformer_jax, whose settings and parameters have "
            "other names. Train the model again in another --workdir, or convert it again from its source; or use the "
            "version that made it."
        )
    missing = {"model", "inference"} - values.keys()
    if missing:
        raise UserError(f"{path} is damaged: it has no section {min(missing)!r}. Restore it from a copy.")
    for section, found in values.items():
        if not isinstance(found, dict):
            raise UserError(
                f"{path} is damaged: section {section!r} is {json_file.shown(found)}; expected an object. Restore it "
                "from a copy."
            )
    return values


def _read_classes(workdir: str) -> Classes:
    return catalog.read(epath.Path(workdir) / _CLASSES)


def save_model(workdir: str, described: Description, params: Arrays, frozen: Arrays) -> None:
    """Makes a folder like that of a run, with a model that is ready to use but has no training state."""
    store = CheckpointStore(checkpoints(workdir))
    store.save_model(0, params, frozen)
    store.wait()
    store.close()
    _record(workdir, {"model": described.model, "inference": described.inference}, described.classes)


def write_description(folder: str, described: Description) -> None:
    """Writes what `describe` reads, and nothing else: for weights that are no checkpoint."""
    _write_settings(folder, {"model": described.model, "inference": described.inference}, described.classes)


def versions() -> dict[str, str]:
    """The git revision of the code, the versions of Python and of packages that change results, and the devices."""
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


def check_writable(workdir: str) -> None:
    """Creates a workdir, and raises UserError if a run could not write one of its files there."""
    root = writing.check_folder(workdir, "--workdir")
    for name in _WRITTEN:
        path = root / name
        # Cloud storage has no folders, and tells permissions only when it is written to.
        if paths.is_local(workdir) and path.exists() and (path.is_dir() or not os.access(path, os.W_OK)):
            why = "a folder has this name" if path.is_dir() else "permission denied"
            raise UserError(f"{path} cannot be written: {why}. Move it away, or use another --workdir.")
    for name in _FOLDERS:
        path = root / name
        if path.exists():
            if not path.is_dir():
                raise UserError(f"{path} is not a folder. Move it away, or use another --workdir.")
            writing.check_folder(path, "--workdir")


def differences(old: Any, new: Any, name: str, sides: tuple[str, str] = ("there", "now")) -> list[str]:
    """A line for each value that differs between two trees of settings.

    Args:
        sides: what the old and the new values are called.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(set(old) | set(new))
        return [line for key in keys for line in differences(old.get(key), new.get(key), f"{name}.{key}", sides)]
    if _as_lists(old) == _as_lists(new):
        return []
    return [f"{name}: {sides[0]} {_format_value(old)}, {sides[1]} {_format_value(new)}"]


def _as_lists(value: Any) -> Any:
    """A value whose tuples, at any depth, are lists, as in JSON."""
    return [_as_lists(part) for part in value] if isinstance(value, (list, tuple)) else value


def _format_value(value: Any) -> str:
    return "nothing" if value is None else repr(value)
