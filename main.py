"""Trains or evaluates a model.

    python main.py --config=configs/shapes.py --workdir=/tmp/shapes
    python main.py --config=configs/shapes.py --workdir=/tmp/shapes --mode=eval
    python main.py --config=configs/shapes.py --workdir=/tmp/shapes --config.train.steps=100

The same command again goes on where the run stopped.
"""

import os

# Host callbacks and collectives of emulated CPU devices share one thread pool, which must be larger than the
# number of devices or they wait for each other for ever. It is read once, at JAX's first use.
os.environ.setdefault("PJRT_NPROC", "32")
# TensorFlow's start-up notes would drown ours.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
# The matcher runs on the host, so the CPU must be a JAX platform beside the accelerator.
if "cpu" not in os.environ.get("JAX_PLATFORMS", "cpu").split(","):
    os.environ["JAX_PLATFORMS"] += ",cpu"

import sys

import jax
from absl import app, flags, logging

from maskformer_jax.engine import workdir
from maskformer_jax.engine.config_flag import CONFIG, parse_flags
from maskformer_jax.engine.log import NonFiniteLoss
from maskformer_jax.engine.settings import Settings
from maskformer_jax.errors import UserError

flags.declare_key_flag("config")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, events, metrics.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "Train, or score the best checkpoint.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other hosts of a TPU slice, Slurm job or GKE.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    # Orbax and TFDS warn of what is meant here, such as a checkpoint without scores.
    logging.set_verbosity(logging.ERROR)
    if _DISTRIBUTED.value:
        jax.distributed.initialize()
    # TensorFlow only reads data; left alone it would take the accelerators' memory.
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    tf.config.set_visible_devices([], "TPU")
    from maskformer_jax.engine.train import evaluate_run, train_and_evaluate

    run = {"train": train_and_evaluate, "eval": evaluate_run}[_MODE.value]
    try:
        run(Settings.from_dict(CONFIG.value.to_dict()), workdir.absolute(_WORKDIR.value))
    except (UserError, NonFiniteLoss) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parse_flags)
