"""Finds the checkpoint from which a run resumes, and tidies what kills and damage have left."""

import orbax.checkpoint as ocp
from etils import epath

from maskformer_jax.checkpoints import manifest
from maskformer_jax.checkpoints.damage import damage, damage_at_a_glance, unchecked_message
from maskformer_jax.checkpoints.hosts import from_first_process
from maskformer_jax.checkpoints.layout import delete_old, finished_steps, is_finished
from maskformer_jax.errors import UserError


def recover(directory: str) -> tuple[int, list[str]]:
    """Finds the newest checkpoint that can be read completely, and moves damaged ones aside.

    Every process must call it before a run resumes, and only training may: it removes what an earlier run left
    unfinished. The first process reads the files and decides for all.

    Args:
        directory: of the checkpoints; need not exist.

    Returns:
        The step of that checkpoint, 0 if there are no checkpoints; and messages: one for each damaged checkpoint, and
        one if that checkpoint has no manifest.

    Raises:
        UserError: on every process, if there are checkpoints but none is intact. Nothing is changed then.
    """
    step, messages = from_first_process(lambda: _recover(epath.Path(directory)))
    return step, messages


def _recover(directory: epath.Path) -> tuple[int, list[str]]:
    # Checkpoint 0 is a converted model, which cannot be trained further.
    steps = [step for step in finished_steps(directory) if step > 0]
    reasons, whole = {}, 0
    for step in steps:
        path = directory / str(step)
        # Of checkpoints before the newest intact one, a resumed run reads only the scores.
        reason = damage_at_a_glance(path) if whole else damage(path)
        if reason:
            reasons[step] = reason
        else:
            whole = whole or step
    if steps and not whole:
        found = "\n".join(f"  {directory / str(step)}: {reason}" for step, reason in reasons.items())
        raise UserError(
            f"no checkpoint of this run can be read:\n{found}\n"
            "Nothing was changed. Restore one from a copy, or start again with another --workdir."
        )
    messages = [f"{_set_aside(directory / str(step))}: {reason}" for step, reason in reasons.items()]
    if whole and not manifest.is_promised(directory / str(whole)):
        messages.append(unchecked_message(directory / str(whole)))
    for path in directory.iterdir() if directory.is_dir() else ():
        # Left unfinished by a kill or a full disk. It takes space, and nothing else would remove it.
        unfinished = ocp.utils.TMP_DIR_SUFFIX in path.name or (path.name.isdigit() and not is_finished(path))
        if unfinished:
            path.rmtree()
    delete_old(directory)
    return whole, messages


def _set_aside(path: epath.Path) -> str:
    """Renames a checkpoint, so that its step can be saved again; returns a message."""
    aside = path.with_name(f"{path.name}.damaged")
    count = 1
    while aside.exists():
        count += 1
        aside = path.with_name(f"{path.name}.damaged{count}")
    try:
        path.rename(aside)
    except Exception as error:  # cloud storage has errors of its own
        raise UserError(
            f"checkpoint {path} is damaged and cannot be renamed ({error}). Move it away or delete it, and run the "
            "same command again."
        ) from error
    return f"checkpoint {path} is damaged, and is now {aside}, which may be deleted"
