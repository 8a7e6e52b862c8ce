"""Makes a dataset, the files of a run and results for classes whose names are not ASCII.

    python -m tests.engine.other_locale FOLDER

Prints what it finds in them as JSON, escaped.
"""

import json
import locale
import pathlib
import sys

from maskformer_jax import programs
from maskformer_jax.catalog import Classes
from maskformer_jax.checkpoints import workdir
from maskformer_jax.engine import log
from maskformer_jax.engine.submission import Submission
from maskformer_jax.engine.tables import score_table
from maskformer_jax.input_pipeline.sources import open_source
from tests.engine.recipe import recipe

NAMES = ("İstanbul", "straße", "空")


@programs.reporting
def main(root: pathlib.Path) -> None:
    print("encoding", locale.getpreferredencoding(False))
    source = open_source("folder", str(root / "mine"), str(root / "tfds"))
    assert source.classes.names == NAMES
    settings = recipe(root / "mine", 1)
    workdir.prepare(str(root / "run"), settings, source.classes)
    workdir.check(str(root / "run"), settings, source.classes)
    logger = log.RunLog(str(root / "run"), steps=1, batch_size=1, first_step=0)
    logger.say(score_table({}, {name: {"iou": 1.0} for name in NAMES}))
    logger.write_evaluation(1, {}, {f"iou/{name}": 1.0 for name in NAMES})
    logger.close()
    results = Submission(str(root / "results"), ("panoptic",), source.classes, {})
    results.finish()
    described = workdir.describe(str(root / "run")).classes
    assert isinstance(described, Classes)
    print("RESULT " + json.dumps({"described": described.names, "ids": source.example("val", 0).image_id}))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
