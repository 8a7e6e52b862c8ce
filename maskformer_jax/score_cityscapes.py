"""Scores the instances of an evaluation by the official script of Cityscapes.

python -m maskformer_jax.score_cityscapes --results=W/results/instances.json --data=FOLDER --to=DIR

DIR then holds the results in the format of the Cityscapes server: a text file for each image, and masks as PNG.
"""

import argparse
import math
import pathlib
import sys

from maskformer_jax.files import json_file, paths, writing
from maskformer_jax.metrics import cityscapes
from maskformer_jax.programs import reporting


@reporting
def main(argv: list[str] | None = None) -> int:
    """Returns the exit status 0. On an error, exits with a message that starts with "error:"."""
    options = _parser().parse_args(argv)
    truth = cityscapes.truth_files(options.data, options.split)
    cityscapes.official_script()  # before minutes of writing
    results = json_file.items(json_file.read(options.results, list), str(options.results))
    with writing.new_folder(options.to) as folder:
        cityscapes.write_results(results, truth, pathlib.Path(folder))
    scores = cityscapes.official_scores(options.to, truth)
    for name, score in scores.items():
        print(f"{name:<12} {score:6.2f}")
    of_classes = [score for name, score in scores.items() if name not in ("AP", "AP50")]
    print(f"AP and AP50 are over {sum(map(math.isfinite, of_classes))} of {len(of_classes)} classes")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], prog="python -m maskformer_jax.score_cityscapes"
    )
    parser.add_argument("--results", type=_path, required=True, help="instances.json of --mode=eval")
    parser.add_argument("--data", type=_path, required=True, help="the folder that holds gtFine")
    parser.add_argument("--to", type=_path, required=True, help="a new or empty folder")
    parser.add_argument("--split", default="val", help="a folder of gtFine (default: val)")
    return parser


def _path(text: str) -> pathlib.Path:
    return pathlib.Path(paths.expand(text))


if __name__ == "__main__":
    sys.exit(main())
