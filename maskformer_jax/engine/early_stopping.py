"""Ends a run when a score has stopped improving."""

import math


class EarlyStopping:
    """Counts evaluations without a new best score.

    Args:
        metric: the score that is watched, as in metrics.jsonl; higher is better.
        patience: evaluations without an improvement after which to stop; 0 for never.
        least: an improvement is more than this above the best so far, in percent.
    """

    def __init__(self, metric: str, patience: int, least: float = 0.0):
        self.metric, self.patience, self.least = metric, patience, least
        self.best, self.best_step, self.waited = -math.inf, 0, 0

    def update(self, step: int, score: float | None) -> bool:
        """Takes the score of an evaluation; whether to stop now.

        Args:
            score: in percent. None or NaN, for no value, counts neither way.
        """
        if score is None or math.isnan(score):
            return self.reached
        if score > self.best + self.least:
            self.best, self.best_step, self.waited = score, step, 0
        else:
            self.waited += 1
        return self.reached

    @property
    def reached(self) -> bool:
        return 0 < self.patience <= self.waited

    def __str__(self) -> str:
        return (
            f"{self.metric} has not improved in {self.waited} evaluations: its best is {self.best:.2f}, at step "
            f"{self.best_step}"
        )
