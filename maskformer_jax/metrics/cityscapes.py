"""Average precision of instance masks by the official script of Cityscapes, whose rules are not COCO's."""

import copy
import pathlib
import types
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from maskformer_jax.errors import UserError
from maskformer_jax.files import json_file, masks, paths

TRUTH = "_gtFine_instanceIds.png"


def write_results(results: Iterable[Mapping[str, Any]], image_ids: Iterable[str], folder: pathlib.Path) -> None:
    """Writes IMAGE.txt for each image and the masks that it lists, as the server and the official script read them.

    Args:
        results: entries of COCO's result format, as in `instances.json`; the categories are Cityscapes' label ids.
        image_ids: all images of the split: one without instances has an empty file.
        folder: a new or empty folder.

    Raises:
        UserError: for a result of an image that is not in the split or with a wrong value, and if the folder is not
            empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not an empty folder")
    of_image = {image_id: [] for image_id in image_ids}
    for number, entry in enumerate(results):
        where = f"the results: entry {number}"
        image_id = json_file.text(entry.get("image_id"), f'{where}: "image_id"')
        if image_id not in of_image:
            raise UserError(
                f"the results are of image {image_id!r}, which is not among the {len(of_image)} images of the "
                "ground truth. Are they of another dataset or split?"
            )
        category = json_file.whole(entry.get("category_id"), f'{where}: "category_id"')
        score = json_file.number(entry.get("score"), f'{where}: "score"')
        of_image[image_id].append((category, score, entry.get("segmentation"), where))
    (folder / "masks").mkdir(parents=True)
    for image_id, entries in of_image.items():
        lines = []
        for number, (category, score, segmentation, where) in enumerate(entries):
            name = f"masks/{image_id}_{number}.png"
            mask = masks.mask_of_runs(segmentation, where)
            Image.fromarray(255 * mask.astype(np.uint8)).save(folder / name)
            lines.append(f"{name} {category} {score}\n")
        (folder / f"{image_id}.txt").write_text("".join(lines), encoding="utf-8")


def official_scores(folder: pathlib.Path, truth: Mapping[str, pathlib.Path]) -> dict[str, float]:
    """Scores of the official script in percent.

    It averages over the IoU thresholds 0.50, 0.55, ..., 0.95, and over classes. Instances of fewer than 100 pixels are
    left out of the ground truth. A false positive does not count if more of it than the IoU threshold lies in void, in
    groups, and in instances that are left out.

    Args:
        folder: as `write_results` makes it.
        truth: the published file of instance ids of each image.

    Returns:
        "AP" and "AP50", and the AP of each class keyed by its name; NaN for a class without instances.

    Raises:
        UserError: if the package of the script is missing.
    """
    script = official_script()
    args = copy.copy(script.args)
    args.predictionPath, args.quiet = str(folder.absolute()), True
    script.setInstanceLabels(args)
    found = [str(folder.absolute() / f"{image_id}.txt") for image_id in truth]
    files = [str(path.absolute()) for path in truth.values()]
    # The steps of its `evaluateImgLists`, which would also write files into its own and into the current folder.
    matches = script.matchGtWithPreds(found, files, script.instances2dict(files), args)
    averages = script.computeAverages(script.evaluateMatches(matches, args), args)
    classes = {name: 100.0 * float(scores["ap"]) for name, scores in averages["classes"].items()}
    return {"AP": 100.0 * float(averages["allAp"]), "AP50": 100.0 * float(averages["allAp50%"]), **classes}


def truth_files(data: pathlib.Path, split: str) -> dict[str, pathlib.Path]:
    """The files of instance ids of a split by image; raises UserError if there are none."""
    folder = pathlib.Path(paths.expand(data)).absolute() / "gtFine" / split
    found = {path.name.removesuffix(TRUTH): path for path in sorted(folder.glob(f"*/*{TRUTH}"))}
    if not found:
        raise UserError(f"{folder}/CITY/IMAGE{TRUTH}: there are no such files")
    return found


def official_script() -> Any:
    """The module of the official script; raises UserError if its package is missing."""
    try:
        from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as script
    except ImportError as error:
        raise UserError(
            f'this needs the official scripts of Cityscapes ({error}): pip install "maskformer-jax[cityscapes]"'
        ) from error
    if not hasattr(np, "in1d"):  # numpy 2.4 has removed what version 2.3.0 of the scripts calls
        script.np = types.SimpleNamespace(**vars(np), in1d=np.isin)
    return script
