"""Prints the tables of docs/recipes.md: the published recipes, with the scores in the docstrings of their files.

python docs/recipe_table.py
"""

import importlib
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

# Score columns, and the group of ROW that holds each.
SEMANTIC = {"mIoU": "score", "multi-scale": "second"}
PANOPTIC = {"PQ": "score", "things": "things", "stuff": "stuff"}
SIZES = ("crop", "test images", "batch", "images per GPU", "steps")
# A line of a recipe's docstring: a variant, a score, and a second score or those of things and stuff.
ROW = re.compile(
    r"^    (?P<variant>\w+) +(?P<score>\d+\.\d)"
    r"(?: +(?P<second>\d+\.\d)| +\((?P<things>\d+\.\d), (?P<stuff>\d+\.\d)\))?",
    re.MULTILINE,
)


def tables() -> str:
    """Both tables as Markdown."""
    semantic = _table(SEMANTIC, "ade20k", "ade20k_full", "coco_stuff", "cityscapes", "mapillary")
    panoptic = _table(PANOPTIC, "coco_panoptic", "ade20k_panoptic")
    return f"{semantic}\n\n{panoptic}"


def _table(scores: dict[str, str], *names: str) -> str:
    header = ("recipe", *scores, *SIZES)
    rows = [header, ("---", *("---:" for _ in header[1:]))]
    for name in names:
        module = importlib.import_module(f"maskformer_jax.configs.{name}")
        said = {row["variant"]: row for row in ROW.finditer(module.__doc__)}
        for variant in module.VARIANTS:
            numbers = [said[variant][part] or "" for part in scores.values()]
            rows.append((f"`{name}:{variant}`", *numbers, *_sizes(module.get_config(variant))))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _sizes(config) -> tuple[str, ...]:
    height, width = config.data.crop
    test = f"{config.inference.short_edge} / {config.inference.longest_edge}"
    steps = f"{config.train.steps:,}"
    return f"{height} x {width}", test, str(config.train.batch_size), str(config.loss.images_per_gpu), steps


if __name__ == "__main__":
    print(tables())
