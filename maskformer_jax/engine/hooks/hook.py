"""What follows a training run: the interface of trackers, and of hooks that users write."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """The run that a hook follows.

    Attributes:
        directory: the workdir.
        project: what a tracker groups runs by; "" for its own default.
        name: what a tracker calls the run.
        settings: all sections of the settings, as plain values.
        versions: of the code, of packages and of devices, by name.
        first_step: steps that are done already; above 0 if the run resumes.
        steps: of the whole training.
        id: what `start` returned when the run began in this workdir; "" if it begins now.
    """

    directory: str
    project: str
    name: str
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    first_step: int
    steps: int
    id: str = ""

    @property
    def config(self) -> dict[str, Any]:
        """What trackers show of the run: the sections of the settings, "versions" and "workdir"."""
        return {**self.settings, "versions": dict(self.versions), "workdir": self.directory}


class Hook:
    """Follows a training run. Every method does nothing; override those that you need.

    Only the first process of a run has hooks. The methods of a hook are called one after another, in the order of
    events, on a thread of the hook's own: a slow server does not delay training. A hook that raises does not stop the
    run: its first error is a warning, and if `start` raises, the hook is not called again.

    The last call is `end` or `error`. A process that is killed calls neither. When the same command resumes the run,
    `start` is called again, and the steps since the last checkpoint are repeated, with the same values.
    """

    def start(self, run: RunInfo) -> str | None:
        """A run starts or resumes.

        Returns:
            What identifies the run in a tracker, if anything does: `run.id` of later starts in the same workdir.
        """

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """The means of a few training steps, the last of which is `step`: "train/loss", "train/learning_rate", ...

        All values are finite. Steps may be repeated, see above.
        """

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """[H, W, 3] uint8 images of an evaluation by name: "validation/0", ..., "confusion"."""

    def evaluation(self, step: int, scores: Mapping[str, float], per_class: Mapping[str, float]) -> None:
        """The scores of the evaluation split in percent.

        Args:
            scores: "panoptic/pq", "semantic/miou", ... Scores without a value are left out.
            per_class: "pq/CLASS", "iou/CLASS", "ap/CLASS". Classes without a score are left out.
        """

    def checkpoint(self, step: int, path: str) -> None:
        """A checkpoint is complete. That is known when the next one is saved, and at the end of the run."""

    def end(self, outcome: str) -> None:
        """The run ends: "finished", "stopped early" or "preempted"; the same command resumes the last kind."""

    def error(self, error: BaseException) -> None:
        """The run ends with an error, or is interrupted from the keyboard."""
