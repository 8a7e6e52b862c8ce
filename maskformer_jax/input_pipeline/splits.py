"""The names of splits, and parts of them.

A part is written as TFDS does: "train[:90%]" is the first nine tenths, "train[90%:]" the rest. Datasets are stored in
an order that is random but always the same, so parts are a fair choice of images.
"""

from collections.abc import Iterable

# What annotation tools and publishers call a split, in lower case, and its name here.
NAMES = {
    "train": "train",
    "training": "train",
    "default": "train",  # CVAT's, of images without one
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def whole(split: str) -> str:
    """The split that a part belongs to: "train" for "train[:90%]"."""
    return split.partition("[")[0]


def meant(split: str, found: Iterable[str]) -> str:
    """A split, or part of one, under the name that it has among those found: "valid" for "val", if that is its name.

    Returns the split as it is if it, or no other or several of the same meaning, are found.
    """
    name, found = whole(split), set(found)
    same = [other for other in found if NAMES.get(other.lower(), other) == NAMES.get(name.lower(), name)]
    return same[0] + split.removeprefix(name) if name not in found and len(same) == 1 else split
