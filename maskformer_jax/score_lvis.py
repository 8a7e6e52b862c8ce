"""Scores the instances of an evaluation by the rules of LVIS.

python -m maskformer_jax.score_lvis --results=W/results/instances.json --annotations=FOLDER/lvis_v1_val.json
"""

import argparse
import pathlib
import sys

from maskformer_jax.files import json_file, paths
from maskformer_jax.metrics import lvis
from maskformer_jax.programs import reporting


@reporting
def main(argv: list[str] | None = None) -> int:
    """Returns the exit status 0. On an error, exits with a message that starts with "error:"."""
    options = _parser().parse_args(argv)
    results = json_file.items(json_file.read(options.results, list), str(options.results))
    for name, score in lvis.scores(options.annotations, results).items():
        print(f"{name:<8} {score:6.2f}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="python -m maskformer_jax.score_lvis")
    parser.add_argument("--results", type=_path, required=True, help="instances.json of --mode=eval")
    parser.add_argument("--annotations", type=_path, required=True, help="lvis_v1_val.json")
    return parser


def _path(text: str) -> pathlib.Path:
    return pathlib.Path(paths.expand(text))


if __name__ == "__main__":
    sys.exit(main())
