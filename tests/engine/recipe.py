"""A run that takes seconds, as a dictionary of settings and as a command.

python -m tests.engine.recipe FOLDER STEPS WORKDIR
"""

import copy
import os
import sys

os.environ.setdefault("PJRT_NPROC", "32")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

from maskformer_jax.configs import base
from tests.samples import TINY_MODEL


def recipe(folder, steps: int, batch_size: int = 8) -> dict:
    """Settings for a folder of the folder builder, with a checkpoint every other step."""
    values = base.get_config().to_dict()
    values["data"].update(name="folder", dir=str(folder), tfds_dir=os.path.join(os.path.dirname(folder), "tfds"))
    values["data"].update(eval_split="val", short_edges=(32, 40), longest_edge=64, crop=(32, 32))
    values["model"].update(copy.deepcopy(TINY_MODEL))
    values["optimizer"].update(learning_rate=2e-3, backbone_factor=1.0)
    values["train"].update(steps=steps, batch_size=batch_size, log_every=1, checkpoint_every=2)
    values["loss"].update(images_per_gpu=0)
    values["inference"].update(short_edge=32, longest_edge=64)
    values["eval"].update(every=6, batch_size=8, num_images=2)
    return values


if __name__ == "__main__":
    from maskformer_jax.engine.settings import Settings
    from maskformer_jax.engine.train import train_and_evaluate

    train_and_evaluate(Settings.from_dict(recipe(sys.argv[1], int(sys.argv[2]))), sys.argv[3])
