"""Where `configs/` and `data/` lie: beside this package in a checkout, inside it where a wheel was installed."""

import pathlib
import sys

_PACKAGE = pathlib.Path(__file__).parent


def home() -> pathlib.Path:
    """The folder that holds `configs/` and `data/`, which import one another by these names."""
    shipped = _PACKAGE / "shipped"
    return shipped if shipped.is_dir() else _PACKAGE.parent


def make_importable() -> None:
    """Lets `import configs` and `import data` find these folders from wherever the program was started."""
    if str(home()) not in sys.path:
        sys.path.insert(0, str(home()))
