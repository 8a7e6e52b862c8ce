"""Hooks: what follows a training run. One file for each tracker, and an entry here."""

import dataclasses
import importlib.util
import pathlib
import pkgutil
from collections.abc import Callable
from types import ModuleType

from maskformer_jax.engine.hooks.hook import Hook, RunInfo
from maskformer_jax.engine.hooks.mlflow import MLflow
from maskformer_jax.engine.hooks.tensorboard import TensorBoard
from maskformer_jax.engine.hooks.threads import Hooks
from maskformer_jax.engine.hooks.trackio import Trackio
from maskformer_jax.engine.hooks.wandb import Wandb
from maskformer_jax.errors import UserError
from maskformer_jax.files import paths

HOOKS: dict[str, Callable[[], Hook]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": MLflow,
    "trackio": Trackio,
}
# Of the table, those whose library is an extra of the same name.
EXTRAS = ("wandb", "mlflow", "trackio")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """What follows a run: the section `log` of the settings.

    Args:
        hooks: any of "tensorboard", "wandb", "mlflow" and "trackio", and hooks of your own as "package.module:Class" or
            "FILE.py:Class".
        project: what trackers group runs by; empty for their environment variables, or "maskformer_jax".
        name: what trackers call the run; empty for the name of its folder.
    """

    hooks: tuple[str, ...] = ("tensorboard",)
    project: str = ""
    name: str = ""


def make_hooks(config: LogConfig) -> dict[str, Hook]:
    """The hooks of a run by the names that the settings have.

    Raises:
        UserError: for an unknown name, an extra that is not installed, or a class that cannot be made.
    """
    return {name: _make(name) for name in config.hooks}


def _make(name: str) -> Hook:
    if ":" in name:
        return _make_own(name)
    if name not in HOOKS:
        raise UserError(
            f"config.log.hooks has {name!r}; expected any of {sorted(HOOKS)}, or a hook of your own as "
            "'package.module:Class' or 'FILE.py:Class'"
        )
    if name in EXTRAS and importlib.util.find_spec(name) is None:
        raise UserError(
            f"config.log.hooks has {name!r}, and its library is not installed: pip install 'maskformer-jax[{name}]', "
            "or leave it out"
        )
    return HOOKS[name]()


def _make_own(name: str) -> Hook:
    """The hook of a user, from a module or a file of Python."""
    module, _, attribute = name.rpartition(":")
    try:
        if module.endswith(".py"):
            made = getattr(_module_of(paths.expand(module)), attribute)()
        else:
            made = pkgutil.resolve_name(name)()
    except Exception as error:
        raise UserError(
            f"config.log.hooks has {name!r}, which cannot be made: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(made, Hook):
        raise UserError(f"config.log.hooks has {name!r}, which is no maskformer_jax.engine.hooks.Hook")
    return made


def _module_of(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


__all__ = ["EXTRAS", "HOOKS", "Hook", "Hooks", "LogConfig", "RunInfo", "make_hooks"]
