"""Converts a model from one format to another.

python -m maskformer_jax.convert --from=model_final_d8dbeb.pkl --to=DIR --format=orbax
python -m maskformer_jax.convert --from=WORKDIR --to=DIR --format=huggingface
python -m maskformer_jax.convert --from=pytorch_model.bin --base=dinov3_vitl16.pth --to=DIR --format=orbax
"""

import argparse
import os
import sys

import jax

from maskformer_jax.checkpoints import workdir
from maskformer_jax.checkpoints.formats import FORMATS
from maskformer_jax.checkpoints.published import Description
from maskformer_jax.errors import UserError
from maskformer_jax.files import paths, writing
from maskformer_jax.programs import reporting
from maskformer_jax.segmenter.segmenter import Segmenter, load

TARGETS = ("orbax", "huggingface")


@reporting
def main(argv: list[str] | None = None) -> int:
    """Returns the exit status 0. On an error, exits with a message that starts with "error:"."""
    options = _parser().parse_args(argv)
    with writing.new_folder(options.to) as folder:
        segmenter = load(options.source, base=options.base)
        save(segmenter, os.fspath(folder), options.format)
    size = sum(array.size for array in segmenter.params.values())
    made = f"{size:,} parameters, {len(segmenter.classes)} classes -> {options.to} ({options.format})"
    print(paths.printable(f"{segmenter.origin}: {made}"))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="python -m maskformer_jax.convert")
    parser.add_argument("--from", dest="source", required=True, help="source for maskformer_jax.load")
    parser.add_argument("--to", required=True, help="a new or empty folder")
    parser.add_argument("--format", choices=TARGETS, required=True)
    parser.add_argument(
        "--base", default="", help="pretrained backbone, for a model that is stored as differences to it"
    )
    return parser


def save(segmenter: Segmenter, directory: str, target: str) -> None:
    """Writes a model that `maskformer_jax.load` takes.

    Args:
        target: one of TARGETS.

    Raises:
        UserError: for "huggingface", if transformers has no place for the model; nothing was written then.
    """
    described = Description(segmenter.model, vars(segmenter.inference), segmenter.classes)
    if target == "orbax":
        workdir.save_model(directory, described, segmenter.params, segmenter.frozen)
        return
    arrays = jax.device_get({**segmenter.params, **segmenter.frozen})
    kind = segmenter.model["name"]
    form = next((form for form in FORMATS if form.writes == kind), None)
    if form is None:
        known = ", ".join(repr(form.writes) for form in FORMATS if form.writes)
        raise UserError(f"transformers has no place for model.name={kind!r}; it has {known}")
    form.write(directory, arrays, described)


if __name__ == "__main__":
    sys.exit(main())
