"""The flag --config of programs that take a recipe of `configs/`, and how their flags are read."""

import os
import sys

from absl import app
from ml_collections import config_flags

from maskformer_jax.home import home, make_importable

CONFIG = config_flags.DEFINE_config_file("config", None, "configs/NAME.py or configs/NAME.py:VARIANT")


def parse_flags(argv: list[str]) -> list[str]:
    """As absl does, but recipes of this package are found from any folder, and a wrong setting is one line."""
    make_importable()
    try:
        return app.parse_flags_with_usage(_find_config(argv))
    except AttributeError as error:
        given = [argument for argument in argv if argument.startswith("--config.")]
        # ml_collections wraps its own message, which proposes the nearest name.
        reason = " ".join(str(getattr(error.args[0], "args", [error])[0]).split())
        sys.exit(f"error: not a setting of this config, among {' '.join(given)}: {reason}")


def _find_config(argv: list[str]) -> list[str]:
    """Arguments with the file of --config as it is from here, or else that of this package."""
    found = list(argv)
    for index, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag == "--config" and equals:
            found[index] = f"--config={_locate(value)}"
        elif flag == "--config" and index + 1 < len(argv):
            found[index + 1] = _locate(argv[index + 1])
    return found


def _locate(config: str) -> str:
    """FILE or FILE:VARIANT with a file that is there; ends the program if there is none."""
    path, colon, variant = config.partition(":")
    if os.path.exists(path):
        return config
    ours = home() / path
    if not ours.is_file():
        files = (file.name for file in (home() / "configs").glob("[!_]*.py"))
        recipes = ", ".join(f"configs/{name}" for name in sorted(files) if name not in ("base.py", "recipes.py"))
        sys.exit(f"error: --config={config}: there is no file {path}; recipes are {recipes}")
    return f"{ours}{colon}{variant}"
