"""Scores the instances of an evaluation by the official script of Cityscapes.

python -m maskformer_jax.score_cityscapes --results=W/results/instances.json --data=FOLDER --to=DIR

DIR then holds the results in the format of the Cityscapes server: a text file for each image, and masks as PNG.
"""

import argparse
import json
import pathlib
import sys

from maskformer_jax.errors import UserError
from maskformer_jax.metrics import cityscapes


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status 0. On an error, exits with a message that starts with "error:"."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], prog="python -m maskformer_jax.score_cityscapes"
    )
    parser.add_argument("--results", type=pathlib.Path, required=True, help="instances.json of --mode=eval")
    parser.add_argument("--data", type=pathlib.Path, required=True, help="the folder that holds gtFine")
    parser.add_argument("--to", type=pathlib.Path, required=True, help="a new or empty folder")
    parser.add_argument("--split", default="val", help="a folder of gtFine (default: val)")
    options = parser.parse_args(argv)
    try:
        truth = cityscapes.truth_files(options.data, options.split)
        cityscapes.official_script()  # before minutes of writing
        cityscapes.write_results(json.loads(options.results.read_text()), truth, options.to)
        for name, score in cityscapes.official_scores(options.to, truth).items():
            print(f"{name:<12} {score:6.2f}")
    except (OSError, UserError) as error:
        sys.exit(f"error: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
