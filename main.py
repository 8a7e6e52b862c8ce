"""Trains or evaluates a model.

    python main.py --config=configs/shapes.py --workdir=/tmp/shapes
    python main.py --config=configs/shapes.py --workdir=/tmp/shapes --mode=eval
    python main.py --config=configs/shapes.py --workdir=/tmp/shapes --config.train.steps=100

The same command again goes on where the run stopped. By hand on several machines, on each with another --process_id:

    python main.py ... --coordinator=HOST0:1234 --num_processes=2 --process_id=0

Exit status: 0 when all is done, 143 when SIGTERM stopped the run behind a checkpoint, otherwise 1 or a signal's.
"""

from maskformer_jax.train import console

if __name__ == "__main__":
    console()
