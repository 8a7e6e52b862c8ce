"""The flag --config, shared by the commands that take a recipe, and how these commands parse their flags."""

import os
import pathlib
import sys

from absl import app
from ml_collections import config_flags

from maskformer_jax import configs
from maskformer_jax.files import paths

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "FILE.py or FILE.py:VARIANT, such as configs/shapes.py. Python runs FILE.py, so trust its origin."
)


def parse_flags(argv: list[str]) -> list[str]:
    """Parses flags as absl does. Finds our recipes from any folder, and reports a wrong setting in one line."""
    try:
        return app.parse_flags_with_usage(_resolve_config(argv))
    except AttributeError as error:
        given = [argument for argument in argv if argument.startswith("--config.")]
        # ml_collections wraps its own message, which suggests the closest name.
        reason = " ".join(str(getattr(error.args[0], "args", [error])[0]).split())
        sys.exit(f"error: not a setting of this config, among {' '.join(given)}: {reason}")


def _resolve_config(argv: list[str]) -> list[str]:
    """The arguments, with the value of --config resolved by `_locate`."""
    found = list(argv)
    for index, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag == "--config" and equals:
            found[index] = f"--config={_locate(value)}"
        elif flag == "--config" and index + 1 < len(argv):
            found[index + 1] = _locate(argv[index + 1])
    return found


def _locate(config: str) -> str:
    """FILE or FILE:VARIANT with an existing file: the user's, else for configs/NAME.py ours. Exits if there is none."""
    path, colon, variant = config.partition(":")
    path = paths.expand(path)
    if os.path.exists(path):
        return f"{path}{colon}{variant}"
    wanted = pathlib.PurePath(path)
    ours = configs.FOLDER / wanted.name
    if wanted.parent != pathlib.PurePath("configs") or not ours.is_file():
        names = sorted(file.name for file in configs.FOLDER.glob("[!_]*.py"))
        recipes = ", ".join(f"configs/{name}" for name in names if name not in ("base.py", "recipes.py"))
        sys.exit(f"error: --config={config}: the file {path} does not exist. The built-in recipes are {recipes}")
    return f"{ours}{colon}{variant}"
