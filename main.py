"""Trains or evaluates a model.

    python main.py --config=configs/shapes.py --workdir=/tmp/shapes
    python main.py --config=configs/shapes.py --workdir=/tmp/shapes --mode=eval
    python main.py --config=configs/shapes.py --workdir=/tmp/shapes --config.train.steps=100

Repeat the command to resume a run that stopped. To start processes by hand, run this on each machine with its own
--process_id:

    python main.py ... --coordinator=HOST0:1234 --num_processes=2 --process_id=0

Exit status: 0 if all steps are done, 143 if SIGTERM stopped the run after it saved a checkpoint, otherwise 1 or that of
a signal.
"""

from maskformer_jax.train import console

if __name__ == "__main__":
    console()
