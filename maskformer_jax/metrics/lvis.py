"""Average precision of instance masks by the rules of LVIS, whose images are annotated for some classes only.

An image states the classes that it surely does not show ("neg_category_ids") and those of which not every instance is
outlined ("not_exhaustive_category_ids"). Detections of a class that is neither annotated nor surely absent do not
count, nor do unmatched ones of a class that is not exhaustive. hotcoco computes the scores of the official package.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

from hotcoco import COCO, LVISEval, LVISResults

from maskformer_jax.errors import UserError, naming
from maskformer_jax.files import json_file, masks

MOST_DETECTIONS = 300  # of an image that count
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf", "AR@300", "ARs@300", "ARm@300", "ARl@300")
_OF_IMAGES = ("neg_category_ids", "not_exhaustive_category_ids")
_FREQUENCIES = ("r", "c", "f")


def scores(truth: pathlib.Path, results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The official scores in percent, NaN where the ground truth has no instance.

    Args:
        truth: LVIS's annotation file.
        results: entries of COCO's result format with run lengths, as in `instances.json` of an evaluation. Their images
            and categories have the ids of the file.

    Returns:
        NAMES: AP over the IoU thresholds 0.50 to 0.95, at one of them, of small, medium and large instances, and of
        classes that are rare, common and frequent in training images; and the recalls.

    Raises:
        UserError: for a file that is not of LVIS, and for results of other images or categories or with wrong values.
    """
    values = json_file.read(truth)
    images, categories = (_checked(values, key, truth) for key in ("images", "categories"))
    for entry in images.values():
        for key in _OF_IMAGES:
            json_file.items(entry.get(key), f'{truth}: image {entry["id"]}: "{key}" (is it a file of LVIS?)', int)
    for entry in categories.values():
        if entry.get("frequency") not in _FREQUENCIES:
            raise UserError(
                f'{truth}: category {entry["id"]}: "frequency" is {json_file.shown(entry.get("frequency"))}; expected '
                "r, c or f. Is it a file of LVIS?"
            )
    found = [_detection(entry, number, images, categories) for number, entry in enumerate(results)]
    if not found:
        raise UserError("the results are empty: the model has found no instance")
    with naming(f"{truth} cannot be scored"):
        annotated = COCO(str(truth))
        evaluation = LVISEval(annotated, LVISResults(annotated, found, MOST_DETECTIONS), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summary_lines()
        computed = evaluation.get_results()
    return {name: float("nan") if computed[name] == -1 else 100.0 * computed[name] for name in NAMES}


def _checked(values: dict[str, Any], key: str, truth: pathlib.Path) -> dict[int, dict[str, Any]]:
    entries = json_file.items(values.get(key), f'{truth}: "{key}"')
    return {json_file.whole(entry.get("id"), f'{truth}: "{key}": "id"'): entry for entry in entries}


def _detection(
    entry: dict[str, Any], number: int, images: dict[int, Any], categories: dict[int, Any]
) -> dict[str, Any]:
    where = f"the results: entry {number}"
    image = json_file.whole(entry.get("image_id"), f'{where}: "image_id"')
    category = json_file.whole(entry.get("category_id"), f'{where}: "category_id"')
    for known, value, what in ((images, image, "image"), (categories, category, "category")):
        if value not in known:
            raise UserError(
                f"{where} is of the {what} {value}, which is not among the {len(known)} of the ground truth. Are the "
                "results of another dataset or split?"
            )
    score = json_file.number(entry.get("score"), f'{where}: "score"')
    masks.mask_of_runs(entry.get("segmentation"), where)
    return {"image_id": image, "category_id": category, "segmentation": entry["segmentation"], "score": score}
