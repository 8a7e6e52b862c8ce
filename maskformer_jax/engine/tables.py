"""Tables of an evaluation, as text for the console."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from maskformer_jax.catalog import Classes

COLUMNS = {"iou": "IoU", "pq": "PQ", "ap": "AP"}  # the scores of a class, in the order of a table


def class_table(classes: Classes) -> str:
    """Thing classes on one line, stuff classes on the next."""
    lines = []
    for kind, wanted in (("thing", True), ("stuff", False)):
        names = [name for name, thing in zip(classes.names, classes.is_thing, strict=True) if thing == wanted]
        lines.append(f"{len(names)} {kind} classes: {', '.join(names) or 'none'}")
    return "\n".join(lines)


def score_table(
    scores: dict[str, float],
    per_class: dict[str, dict[str, float]],
    scored: Mapping[str, tuple[int, int]] | None = None,
) -> str:
    """The summary of an evaluation, with the number of classes of each mean, then one row per class. NaN is a dash.

    Args:
        scores: "panoptic/pq" and the like, in percent.
        per_class: for each class name its scores in percent, by the keys of COLUMNS.
        scored: over how many classes each mean is taken, and of how many, by the keys of `scores`; unsaid if missing.
    """
    lines, scored = [], scored or {}
    if "panoptic/pq" in scores:
        lines.append("           all  things   stuff")
    for name in ("pq", "sq", "rq") if lines else ():
        row = [scores[f"panoptic/{name}{suffix}"] for suffix in ("", "_things", "_stuff")]
        lines.append(f"  {name.upper()}    " + "  ".join(_cell(value) for value in row))
    if "panoptic/pq" in scored:
        things, stuff = (" of ".join(map(str, scored[f"panoptic/pq_{kind}"])) for kind in ("things", "stuff"))
        lines.append(f"       {_over(scored, 'panoptic/pq')} ({things} things, {stuff} stuff)")
    if "semantic/miou" in scores:
        mean = f"{_cell(scores['semantic/miou'])}{_over(scored, 'semantic/miou')}"
        lines.append(f"  mIoU  {mean}   pixel accuracy {_cell(scores['semantic/pixel_accuracy'])}")
    if "instance/AP" in scores:
        names = ("AP50", "AP75", "APs", "APm", "APl")
        row = "   ".join(f"{name} {_cell(scores[f'instance/{name}'])}" for name in names)
        lines.append(f"  AP    {_cell(scores['instance/AP'])}{_over(scored, 'instance/AP')}   {row}")
    width = max(map(len, per_class))
    kinds = [kind for kind in COLUMNS if kind in next(iter(per_class.values()))]
    lines.append(f"  {'class':{width}}" + "".join(f"  {COLUMNS[kind]:>6}" for kind in kinds))
    for name, row in per_class.items():
        lines.append(f"  {name:{width}}" + "".join(f"  {_cell(row[kind])}" for kind in kinds))
    return "\n".join(lines)


def worst_classes(
    column: str,
    names: Sequence[str],
    scores: np.ndarray,
    true_pixels: np.ndarray,
    confusion: np.ndarray | None = None,
    most: int = 10,
) -> str:
    """A table of the classes with the lowest scores, worst first. Equal scores are ordered by size, largest first.

    Args:
        column: key of COLUMNS that the scores belong to.
        names: the K class names.
        scores: [K] in percent. Classes without a score (NaN) are omitted.
        true_pixels: [K] ground-truth pixels of each class. The table shows them as a percentage of all.
        confusion: [K, K+1] pixel counts, ground truth by prediction, the last column void. If given, the table shows
            for each class the most frequent wrong prediction and the percentage of its pixels.
        most: maximum number of rows.
    """
    percentage = 100.0 * true_pixels / max(true_pixels.sum(), 1)
    # lexsort puts NaN last.
    order = np.lexsort((-percentage, scores))[: min(most, np.count_nonzero(~np.isnan(scores)))]
    mistaken_for = [""] * len(names) if confusion is None else _mistaken_for(confusion, names)
    width = max(map(len, ["worst classes", *(names[label] for label in order)]))
    title = "" if confusion is None else "  mostly taken for"
    lines = [f"  {'worst classes':{width}}  {COLUMNS[column]:>6}  % of pixels{title}"]
    for label in order:
        row = f"  {names[label]:{width}}  {_cell(scores[label])}  {percentage[label]:11.2f}  {mistaken_for[label]}"
        lines.append(row.rstrip())
    return "\n".join(lines)


def worst_images(column: str, images: Sequence[tuple[float, str]]) -> str:
    """A table of the images with the lowest scores.

    Args:
        column: key of COLUMNS that the scores belong to.
        images: (score in percent, image id) in the order of the rows; see `WorstImages`.
    """
    width = max(map(len, ["worst images", *(image_id for _, image_id in images)]))
    lines = [f"  {'worst images':{width}}  {COLUMNS[column]:>6}"]
    return "\n".join(lines + [f"  {image_id:{width}}  {_cell(score)}" for score, image_id in images])


def _mistaken_for(confusion: np.ndarray, names: Sequence[str]) -> list[str]:
    """The most frequent wrong prediction for each class, possibly void; "-" if all its pixels are correct."""
    wrong = confusion * ~np.eye(*confusion.shape, dtype=bool)
    percentages = 100.0 * wrong.max(axis=1) / np.maximum(confusion.sum(axis=1), 1)
    others = np.append(names, "void")[wrong.argmax(axis=1)]
    return [f"{other} ({value:.1f} %)" if value else "-" for other, value in zip(others, percentages, strict=True)]


def _over(scored: Mapping[str, tuple[int, int]], name: str) -> str:
    return f" over {scored[name][0]} of {scored[name][1]} classes" if name in scored else ""


def _cell(value: float) -> str:
    return "     -" if math.isnan(value) else f"{value:6.2f}"
