"""The names of a run's checkpoints and of their parts, and which checkpoints are finished. No JAX."""

import contextlib

from etils import epath

MODEL, TRAINING, SCORES = "model", "training", "metrics"  # items of a checkpoint
# Where Orbax moves old checkpoints; they are deleted from there. Cloud storage cannot rename: see `finished_steps`.
DELETED = "deleted"


def finished_steps(directory: epath.Path) -> list[int]:
    """The steps of all finished checkpoints in a folder, the newest first; unfinished ones have other names."""
    if not directory.is_dir():
        return []
    steps = (int(path.name) for path in directory.iterdir() if path.name.isdigit() and is_finished(path))
    return sorted(steps, reverse=True)


def is_finished(path: epath.Path) -> bool:
    # Google's storage cannot rename, so Orbax writes there under the final name and adds this file at the end.
    return not str(path).startswith("gs://") or (path / "commit_success.txt").exists()


def delete_old(directory: epath.Path) -> None:
    """Deletes what Orbax has moved away. What cannot be deleted is left to the next attempt."""
    with contextlib.suppress(OSError):
        (directory / DELETED).rmtree()
