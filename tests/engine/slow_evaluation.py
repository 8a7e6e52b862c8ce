"""main.py with an evaluation that says where it is and takes its time: python -m tests.engine.slow_evaluation ..."""

import time

from maskformer_jax import train
from maskformer_jax.engine import evaluate

make_batches = evaluate.eval_batches


def slow_batches(*arguments, **options):
    for number, batch in enumerate(make_batches(*arguments, **options)):
        print(f"batch {number} of the evaluation", flush=True)
        time.sleep(1)
        yield batch
    print("all batches of the evaluation", flush=True)
    time.sleep(2)  # before the scores of all processes are joined


if __name__ == "__main__":
    evaluate.eval_batches = slow_batches
    train.console()
