"""Converts a model from one format to another.

python -m maskformer_jax.convert --from=model_final_d8dbeb.pkl --to=DIR --format=orbax
python -m maskformer_jax.convert --from=WORKDIR --to=DIR --format=huggingface
python -m maskformer_jax.convert --from=WORKDIR --to=DIR --format=safetensors --dtype=float16
python -m maskformer_jax.convert --from=pytorch_model.bin --base=dinov3_vitl16.pth --to=DIR --format=orbax
"""

import argparse
import os
import sys
from collections.abc import Mapping

import jax
import numpy as np

from maskformer_jax.checkpoints import workdir
from maskformer_jax.checkpoints.formats import FORMATS, OURS
from maskformer_jax.errors import UserError
from maskformer_jax.files import paths, writing
from maskformer_jax.programs import reporting
from maskformer_jax.segmenter.segmenter import Segmenter, load

TARGETS = ("orbax", "safetensors", "huggingface")
DTYPES = ("float32", "float16")  # of the file; a model computes in that of its settings


@reporting
def main(argv: list[str] | None = None) -> int:
    """Returns the exit status 0. On an error, exits with a message that starts with "error:"."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.dtype != "float32" and options.format != "safetensors":
        parser.error(f"--dtype={options.dtype} applies to --format=safetensors, not to {options.format}")
    with writing.new_folder(options.to) as folder:
        segmenter = load(options.source, base=options.base)
        save(segmenter, os.fspath(folder), options.format, options.dtype)
    size = sum(array.size for array in segmenter.params.values())
    made = f"{size:,} parameters, {len(segmenter.classes)} classes -> {options.to} ({options.format})"
    print(paths.printable(f"{segmenter.origin}: {made}"))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="python -m maskformer_jax.convert")
    parser.add_argument("--from", dest="source", required=True, help="source for maskformer_jax.load")
    parser.add_argument("--to", required=True, help="a new or empty folder")
    parser.add_argument("--format", choices=TARGETS, required=True)
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the numbers in a safetensors file")
    parser.add_argument(
        "--base", default="", help="pretrained backbone, for a model that is stored as differences to it"
    )
    return parser


def save(segmenter: Segmenter, directory: str, target: str, dtype: str = "float32") -> None:
    """Writes a model that `maskformer_jax.load` takes.

    Args:
        target: one of TARGETS.
        dtype: one of DTYPES, for "safetensors".

    Raises:
        UserError: for "huggingface", if transformers has no place for the model; for "float16", if a parameter is too
            large for it. Nothing was written then.
    """
    described = segmenter.description
    if target == "orbax":
        workdir.save_model(directory, described, segmenter.params, segmenter.frozen)
        return
    arrays = jax.device_get({**segmenter.params, **segmenter.frozen})
    if target == "safetensors":
        OURS.write(directory, _cast(arrays, dtype), described)
        return
    kind = segmenter.model["name"]
    form = next((form for form in FORMATS if form.writes == kind), None)
    if form is None:
        known = ", ".join(repr(form.writes) for form in FORMATS if form.writes)
        raise UserError(f"transformers has no place for model.name={kind!r}; it has {known}")
    form.write(directory, arrays, described)


def _cast(arrays: Mapping[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    with np.errstate(over="ignore"):
        cast = {name: np.ascontiguousarray(array, dtype) for name, array in arrays.items()}
    large = [name for name, array in cast.items() if np.isinf(array).any() and np.isfinite(arrays[name]).all()]
    if large:
        raise UserError(f"{large[0]} has values that are too large for {dtype}; use --dtype=float32")
    return cast


if __name__ == "__main__":
    sys.exit(main())
