"""Prints the tables of docs/recipes.md: the published recipes, with the scores in the docstrings of their files.

python docs/recipe_table.py
"""

import importlib
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

# Columns of scores, in the order in which the docstrings have them; a row may lack the last ones.
SEMANTIC = ("mIoU", "multi-scale")
PANOPTIC = ("PQ", "things", "stuff")
PANOPTIC_MASK2FORMER = ("PQ", "mIoU", "AP", "things", "stuff")
INSTANCE = ("AP",)
SIZES = ("crop", "test images", "batch", "images per GPU", "steps")
# A line of a recipe's docstring: a variant and its scores, some of them in parentheses.
ROW = re.compile(r"^    (?P<variant>\w+)(?P<scores>(?:[ (,]+\d+\.\d\)?)+)", re.MULTILINE)


def tables() -> tuple[str, ...]:
    """The tables of MaskFormer, semantic and panoptic, of Mask2Former, also instances, and of EoMT, as Markdown."""
    return (
        _table(SEMANTIC, "ade20k", "ade20k_full", "coco_stuff", "cityscapes", "mapillary"),
        _table(PANOPTIC, "coco_panoptic", "ade20k_panoptic"),
        _table(SEMANTIC, *_mask2former("ade20k", "cityscapes", "mapillary")),
        _table(
            PANOPTIC_MASK2FORMER,
            *_mask2former("coco_panoptic", "ade20k_panoptic", "cityscapes_panoptic", "mapillary_panoptic"),
        ),
        _table(INSTANCE, *_mask2former("coco_instance", "ade20k_instance", "cityscapes_instance")),
        _table(PANOPTIC[:1], "eomt_coco_panoptic", "eomt_ade20k_panoptic"),
        _table(INSTANCE, "eomt_coco_instance"),
        _table(SEMANTIC[:1], "eomt_ade20k", "eomt_cityscapes"),
    )


def _mask2former(*datasets: str) -> list[str]:
    return [f"mask2former_{dataset}" for dataset in datasets]


def _table(scores: tuple[str, ...], *names: str) -> str:
    header = ("recipe", *scores, *SIZES)
    rows = [header, ("---", *("---:" for _ in header[1:]))]
    for name in names:
        module = importlib.import_module(f"maskformer_jax.configs.{name}")
        said = {row["variant"]: re.findall(r"\d+\.\d", row["scores"]) for row in ROW.finditer(module.__doc__)}
        for variant in module.VARIANTS:
            numbers = (*said.get(variant, ()), *("" for _ in scores))[: len(scores)]
            rows.append((f"`{name}:{variant}`", *numbers, *_sizes(module.get_config(variant))))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _sizes(config) -> tuple[str, ...]:
    height, width = config.data.crop
    inference = config.inference
    test = (
        f"windows of {inference.window}" if inference.window else f"{inference.short_edge} / {inference.longest_edge}"
    )
    steps = f"{config.train.steps:,}"
    return f"{height} x {width}", test, str(config.train.batch_size), str(config.loss.images_per_gpu), steps


if __name__ == "__main__":
    print("\n\n".join(tables()))
