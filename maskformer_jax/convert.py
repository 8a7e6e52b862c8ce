"""Converts a model from one format to another.

python -m maskformer_jax.convert --from=model_final_d8dbeb.pkl --to=DIR --format=orbax
python -m maskformer_jax.convert --from=WORKDIR --to=DIR --format=huggingface
"""

import argparse
import sys

import jax

from maskformer_jax.checkpoints import huggingface, workdir
from maskformer_jax.checkpoints.published import Description
from maskformer_jax.errors import UserError
from maskformer_jax.segmenter.segmenter import Segmenter, load

FORMATS = ("orbax", "huggingface")


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status 0. On an error, exits with a message that starts with "error:"."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="python -m maskformer_jax.convert")
    parser.add_argument("--from", dest="source", required=True, help="source for maskformer_jax.load")
    parser.add_argument("--to", required=True, help="a new or empty folder")
    parser.add_argument("--format", choices=FORMATS, required=True)
    options = parser.parse_args(argv)
    try:
        workdir.check_empty(options.to)
        segmenter = load(options.source)
        save(segmenter, options.to, options.format)
    except UserError as error:
        sys.exit(f"error: {error}")
    size = sum(array.size for array in segmenter.params.values())
    print(
        f"{segmenter.origin}: {size:,} parameters, {len(segmenter.classes)} classes -> {options.to} ({options.format})"
    )
    return 0


def save(segmenter: Segmenter, directory: str, form: str) -> None:
    """Writes a model in one of FORMATS. `maskformer_jax.load` reads them all."""
    described = Description(segmenter.model, vars(segmenter.inference), segmenter.classes)
    if form == "orbax":
        workdir.save_model(directory, described, segmenter.params, segmenter.frozen)
    else:
        arrays = jax.device_get({**segmenter.params, **segmenter.frozen})
        huggingface.export(directory, arrays, described.model, described.inference, described.classes)


if __name__ == "__main__":
    sys.exit(main())
