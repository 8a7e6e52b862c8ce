"""The flag --config of programs that take a recipe of `configs/`, and how their flags are read."""

import sys

from absl import app
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "configs/NAME.py or configs/NAME.py:VARIANT")


def parse_flags(argv: list[str]) -> list[str]:
    """As absl does, but a setting that does not exist is an error of one line."""
    try:
        return app.parse_flags_with_usage(argv)
    except AttributeError as error:
        given = [argument for argument in argv if argument.startswith("--config.")]
        # ml_collections wraps its own message, which proposes the nearest name.
        reason = " ".join(str(getattr(error.args[0], "args", [error])[0]).split())
        sys.exit(f"error: not a setting of this config, among {' '.join(given)}: {reason}")
