"""The training loop, and evaluation of a finished run."""

import contextlib
import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from etils import epath
from jax.experimental import multihost_utils
from jax.stages import Compiled

from maskformer_jax import visualize
from maskformer_jax.catalog import Classes
from maskformer_jax.checkpoints import workdir
from maskformer_jax.checkpoints.hosts import from_first_process
from maskformer_jax.checkpoints.ownership import Owner, owned
from maskformer_jax.checkpoints.recovery import recover
from maskformer_jax.checkpoints.store import CheckpointStore
from maskformer_jax.checkpoints.weights import Weights
from maskformer_jax.engine import log, step_memory
from maskformer_jax.engine.early_stopping import EarlyStopping
from maskformer_jax.engine.evaluate import Evaluator, Scores
from maskformer_jax.engine.hooks import Hook, Hooks, RunInfo, make_hooks
from maskformer_jax.engine.initialization import (
    describe_start,
    initial_arrays,
    notes_on_classes,
    settle_model,
    whole_model,
)
from maskformer_jax.engine.preemption import Preempted, PreemptionWatch
from maskformer_jax.engine.profile import profiled
from maskformer_jax.engine.settings import Settings
from maskformer_jax.engine.start import StartClock
from maskformer_jax.engine.submission import Submission
from maskformer_jax.engine.tables import COLUMNS, class_table, score_table, worst_classes, worst_images
from maskformer_jax.engine.trainer import Trainer
from maskformer_jax.errors import UserError
from maskformer_jax.files import paths
from maskformer_jax.input_pipeline.loader import Host, TrainBatch, max_targets, train_batches
from maskformer_jax.input_pipeline.sources import Source, open_source
from maskformer_jax.inspection.warnings import warnings_of
from maskformer_jax.segmenter.images import write_png
from maskformer_jax.sharding import make_mesh, place_params, replicated, to_devices
from maskformer_jax.training.state import TrainState
from maskformer_jax.types import Arrays


class Run:
    """What training and evaluation of one set of settings share: data, model, checkpoints.

    Whatever is wrong with settings or data is found here, before anything is written to the run's folder.

    Args:
        augment: whether evaluation does as `config.eval.augment*` say.
    """

    def __init__(self, settings: Settings, directory: str, augment: bool = False):
        self.settings = settings
        self.directory = directory
        self.mesh = make_mesh(zero_shards=settings.train.zero_shards)
        self.source = _open_on_all_hosts(settings)
        self.trainer = Trainer(settings, len(self.source.classes), self.mesh)
        self.max_segments = _max_segments(self.source, settings, self.trainer.network.num_queries)
        self.trainer.criterion.check(self.max_segments, len(self.source.classes), settings.queries_setting)
        self.evaluator = Evaluator(self.trainer.network, self.source, settings, self.mesh, augment)

    def warnings(self) -> list[str]:
        """What looks like a mistake in the data, a line each."""
        data, evaluation = self.settings.data, self.settings.eval
        queries = self.trainer.network.num_queries or 0
        scored = evaluation.tasks, evaluation.best_metric
        return warnings_of(
            self.source, data.train_split, data.eval_split, *scored, queries, self.settings.queries_setting
        )

    def open_checkpoints(self) -> CheckpointStore:
        train = self.settings.train
        return CheckpointStore(
            workdir.checkpoints(self.directory), train.keep_checkpoints, self.settings.eval.best_metric
        )

    def describe_data(self) -> dict[str, Any]:
        """What a run records of its data, to notice when it resumes with others."""
        data = self.settings.data
        return {
            role: self.source.describe(split)
            for role, split in (("training", data.train_split), ("validation", data.eval_split))
        }

    def open_submission(self) -> Submission:
        """Files of the results, for official servers and tools."""
        split = self.settings.data.eval_split
        folder = str(epath.Path(self.directory) / "results")
        return Submission(folder, self.settings.eval.tasks, self.source.classes, self.source.coco_ids(split))

    def compile_step(self) -> Future[Compiled]:
        """Starts to compile the train step in the background."""
        compiler = ThreadPoolExecutor(1, thread_name_prefix="compiler")
        compiled = compiler.submit(self.trainer.compile_step, self.max_segments, self.planes)
        compiler.shutdown(wait=False)
        return compiled

    @property
    def planes(self) -> int:
        """The largest number of planes of a training image."""
        return self.source.max_planes(self.settings.data.train_split)

    def whole(self, model: tuple[Arrays, Arrays]) -> tuple[Arrays, Arrays]:
        """Parameters, trained and frozen, replicated on every device."""
        return jax.device_put(model, replicated(self.mesh))

    def batches(self, first_step: int) -> Iterator[TrainBatch]:
        """Training batches from a step on, with their arrays on the devices."""
        data, train = self.settings.data, self.settings.train
        host_batches = train_batches(
            self.source,
            data.train_split,
            batch_size=train.batch_size,
            max_segments=self.max_segments,
            augmentation=data,
            seed=train.seed,
            first_step=first_step,
            host=Host(jax.process_index(), jax.process_count()),
        )
        return to_devices(host_batches, self.mesh)


def train_and_evaluate(settings: Settings, directory: str, hooks: Sequence[Hook] = ()) -> TrainState:
    """Trains to `settings.train.steps` updates, from the newest checkpoint in `directory` if there is one.

    A run that was killed and started again ends with the same bits as one that was not. Every
    `eval.every` steps and at the end the evaluation split is scored.

    Args:
        hooks: follow the run, besides those that `settings.log.hooks` names; of different classes.

    Raises:
        UserError: for settings or data that cannot work, if another run owns the folder, and if no checkpoint can be
            read; nothing has been changed then. When the disk is full, the folder is removed or memory is exhausted,
            too; finished checkpoints stay good.
        NonFiniteLoss: when training diverges; the checkpoints stay good.
        Preempted: when SIGTERM asked to stop, behind a checkpoint.
    """
    clock = StartClock()
    followers = {**make_hooks(settings.log), **{type(hook).__name__: hook for hook in hooks}}
    settings, changes, weights = settle_model(settings, directory)
    run = Run(settings, directory)
    clock.lap("to open the data")
    origin, pretrained = "", {}
    if not workdir.has_checkpoints(directory):
        shapes = run.trainer.abstract_state()
        origin, pretrained = initial_arrays(settings, {**shapes.params, **shapes.frozen}, weights)
        changes += notes_on_classes(settings, weights, run.source.classes)
    del weights  # a file of weights would stay in memory as long as training takes
    workdir.check(directory, settings.to_dict(), run.source.classes)
    with owned(directory) as owner, step_memory.explained(settings, run.mesh):
        return _train(run, owner, changes, origin, pretrained, clock, followers)


def _train(
    run: Run,
    owner: Owner,
    changes: list[str],
    origin: str,
    pretrained: dict[str, np.ndarray],
    clock: StartClock,
    hooks: dict[str, Hook],
) -> TrainState:
    """Trains in a workdir that is ours.

    Args:
        changes: settings that were taken from the weights, and what else there is to know of these, a line each.
        origin: of the pretrained arrays, for messages.
    """
    settings, directory = run.settings, run.directory
    train, shapes = settings.train, run.trainer.abstract_state()
    first, messages = recover(workdir.checkpoints(directory))
    changed = workdir.changes(directory, settings.to_dict(), run.source.classes, run.describe_data())
    workdir.prepare(directory, settings.to_dict(), run.source.classes, run.describe_data())
    stopping = _early_stopping(run, first)
    compiled = run.compile_step() if first < train.steps and not stopping.reached else None
    store = run.open_checkpoints()
    logger = log.RunLog(directory, train.steps, train.batch_size, first, train.log_every)
    _introduce(logger, run, shapes, first)
    for words in messages:
        logger.say(f"warning: {words}")
    for words in changed:
        logger.say(f"warning: {words}")
    for words in changes:
        logger.say(f"note: {words}")
    state = store.restore(first, shapes, checked=True) if first else run.trainer.initial_state()
    if pretrained and not first:  # another run may have begun and ended here meanwhile
        logger.say(describe_start(origin, pretrained, {**state.params, **state.frozen}))
        state = state.with_arrays(place_params(pretrained, run.mesh))
    elif state.frozen and not first:
        logger.say(
            f"note: {len(state.frozen)} arrays are frozen, the first is {min(state.frozen)}, and nothing was learned "
            "before. Give config.init.weights; or, to learn from scratch, set config.model.backbone.norm='group' and "
            "config.train.freeze=()."
        )
    with contextlib.ExitStack() as at_the_end:
        # In reverse, and each though another fails: what was saved before an error must reach the disk.
        preemption = at_the_end.enter_context(PreemptionWatch())
        at_the_end.push(lambda kind, error, trace: logger.close(error))
        at_the_end.callback(store.close)
        at_the_end.callback(store.wait)
        if compiled is None:
            all_done = f"all {train.steps} steps are done; raise config.train.steps to continue"
            stopped = f"stopped early: {stopping}. Raise config.eval.patience, or set it to 0, to continue"
            logger.say(stopped if stopping.reached else all_done)
            return state
        if jax.process_index() == 0:
            logger.hooks = Hooks.start(hooks, _describe_run(run, first), logger.say)
        clock.lap("for the model and its weights")
        return _loop(run, owner, state, store, logger, first, preemption, compiled, clock, stopping)


def _loop(
    run: Run,
    owner: Owner,
    state: TrainState,
    store: CheckpointStore,
    logger: log.RunLog,
    first: int,
    preemption: PreemptionWatch,
    compiled: Future[Compiled],
    clock: StartClock,
    stopping: EarlyStopping,
) -> TrainState:
    train, evaluation = run.settings.train, run.settings.eval
    batches = run.batches(first)
    batches = itertools.chain([next(batches)], batches)  # while the compiler works
    clock.lap("for the first batch")
    step_function = compiled.result()
    clock.lap("more for the compiler")
    needed = step_memory.measure(step_function, state, run.mesh)
    logger.say(step_memory.describe(needed, run.mesh))
    if words := step_memory.warning(needed, run.settings, run.mesh):
        logger.say(words)
    saved, last_saved = first, f"{store.directory}/{first}" if first else "none yet"
    logger.start_clock()
    with profiled(step_function, run.directory, train.profile_steps, train.steps - first) as step_function:
        for step in range(first + 1, train.steps + 1):
            with logger.waiting():
                batch = next(batches)
            state, scalars = step_function(state, batch.arrays)
            logger.record(step, batch.image_ids, batch.dropped, scalars)
            logger.throttle()
            if step == first + 1:
                jax.block_until_ready(scalars)
                clock.lap("for the step")
                logger.say(str(clock))
            finished = step == train.steps
            evaluate = finished or step % evaluation.every == 0
            stop = preemption.reached(step) and not finished
            save = evaluate or stop or step % train.checkpoint_every == 0
            if (step - log.AHEAD) % train.log_every == 0:
                # Steps that are done: waiting for the others would leave the device without work.
                logger.flush(last_saved, keep=log.AHEAD)
            if save:
                logger.flush(last_saved)
                logger.stop_clock()
                scores = _evaluate(run, state, logger, step) if evaluate else None
                owner.check()
                store.save(step, state, scores.summary if scores else None)
                if saved > first:  # this one is complete, since the next is being written
                    logger.hooks.checkpoint(saved, last_saved)
                saved, last_saved = step, f"{store.directory}/{step}"
                if scores and stopping.update(step, {**scores.summary, **scores.of_classes()}.get(stopping.metric)):
                    logger.outcome = "stopped early"
                    break
                if stop:
                    store.wait()
                    logger.hooks.checkpoint(saved, last_saved)
                    raise Preempted(f"stopped by SIGTERM after step {step}; the same command resumes from there")
                logger.start_clock()
    store.wait()
    logger.hooks.checkpoint(saved, last_saved)
    owner.check()
    if stopping.reached and step < train.steps:
        logger.say(f"stopped early after step {step}: {stopping}")
    logger.say(f"done: {step} steps; checkpoints, events and metrics.jsonl are in {run.directory}")
    return state


def evaluate_run(settings: Settings, directory: str) -> Scores:
    """Scores a model, prints tables and writes `eval.json`, images and, if wanted, `results/`.

    The model is the best checkpoint of the run, or, in a folder without checkpoints, that of `config.init.weights`.

    Raises:
        UserError: if there is neither, the results are not finite, or a file cannot be written. The tables have
            been printed then, unless the folder could not be written from the start.
    """
    settings, _, weights = settle_model(settings, directory)
    run = Run(settings, directory, settings.eval.augment)
    workdir.check(directory, settings.to_dict(), run.source.classes)
    from_first_process(lambda: workdir.check_writable(directory))
    origin, step, model = _model_to_score(run, weights)
    if jax.process_index() == 0:
        changed = workdir.changes(directory, settings.to_dict(), run.source.classes, run.describe_data())
        lines = (*run.warnings(), *(f"warning: {words}" for words in changed))
        print("".join(f"{words}\n" for words in lines), end="", flush=True)
    submission = run.open_submission() if settings.eval.save_results else None
    with step_memory.explained_evaluation(settings):
        scores = run.evaluator(*run.whole(model()), submission, draw_worst=True)
    with contextlib.ExitStack() as outputs:
        # In reverse, and each though another fails: an evaluation may have taken hours.
        if submission:
            outputs.callback(submission.finish)
        if jax.process_index() == 0:
            split, how = settings.data.eval_split, run.evaluator.how
            print(f"{origin}, split {split!r}, {how}")
            print(score_table(scores.summary, scores.per_class, scores.scored))
            print(_worst_table(scores, run.source.classes))
            outputs.callback(_save_images, scores, run, f"eval_{step:06d}")
            summary = scores.recorded(), scores.per_class, scores.worst
            outputs.callback(workdir.write_scores, directory, step, split, *summary, how)
    return scores


def _model_to_score(run: Run, weights: Weights | None) -> tuple[str, int, Callable[[], tuple[Arrays, Arrays]]]:
    """What `evaluate_run` scores: its name, its step (0 for weights of others), and how it is read."""
    shapes = run.trainer.abstract_state()
    if workdir.has_checkpoints(run.directory):
        store = run.open_checkpoints()
        step = store.best_step()
        return f"checkpoint {step}", step, lambda: store.restore_model(step, *shapes.model)
    if not run.settings.init.weights:
        raise UserError(
            f"{workdir.checkpoints(run.directory)} has no checkpoint; train first with --mode=train, or give the "
            "weights of a whole model as config.init.weights"
        )
    origin, arrays = whole_model(run.settings, {**shapes.params, **shapes.frozen}, weights)
    return origin, 0, lambda: run.trainer.initial_state().with_arrays(place_params(arrays, run.mesh)).model


def _evaluate(run: Run, state: TrainState, logger: log.RunLog, step: int) -> Scores:
    with step_memory.explained_evaluation(run.settings):
        scores = run.evaluator(*run.whole(state.model))
    logger.say(score_table(scores.summary, scores.per_class, scores.scored))
    best = run.settings.eval.best_metric
    if math.isnan(scores.summary[best]):
        logger.say(
            f"warning: {best} has no value here, so this checkpoint cannot become the best; see eval.best_metric"
        )
    logger.write_evaluation(step, scores.summary, scores.of_classes(), scores.counts())
    images = {f"validation/{i}": image for i, image in enumerate(scores.images)}
    logger.write_images(step, {**images, **_confusion(scores, run.source.classes)})
    if jax.process_index() == 0:
        with logger.optional("images"):
            _save_images(scores, run, f"step_{step:06d}")
    return scores


def _worst_table(scores: Scores, classes: Classes) -> str:
    """The classes and images with the lowest scores of each task."""
    tables = []
    for task, scorer in scores.scorers.items():
        values = scorer.per_class(), scorer.true_pixels(), scorer.confusion()
        tables.append(worst_classes(scorer.COLUMN, classes.names, *values))
        tables.append(worst_images(scorer.COLUMN, scores.worst[task]))
    return "\n".join(tables)


def _confusion(scores: Scores, classes: Classes) -> dict[str, np.ndarray]:
    """The confusion matrix as an image, if the semantic task was scored."""
    if "semantic" not in scores.scorers:
        return {}
    return {"confusion": visualize.confusion_matrix(scores.scorers["semantic"].confusion(), classes)}


def _worst_sheet(pictures: list[np.ndarray], images: list[tuple[float, str]], column: str) -> np.ndarray:
    """The images with the lowest scores, the worst first."""
    captions = (f"{COLUMNS[column]} {score:.1f}   {paths.printable(image_id)}" for score, image_id in images)
    return visualize.sheet(list(map(visualize.captioned, pictures, captions)))


def _save_images(scores: Scores, run: Run, name: str) -> None:
    """Writes predictions on one sheet, those of the worst images, and the confusion matrix."""
    sheets = {name: visualize.sheet(scores.images)} if scores.images else {}
    for kind, picture in _confusion(scores, run.source.classes).items():
        sheets[f"{name}_{kind}"] = picture
    for task, pictures in scores.worst_pictures.items():
        if pictures:
            sheets[f"{name}_worst_{task}"] = _worst_sheet(pictures, scores.worst[task], scores.scorers[task].COLUMN)
    for name, picture in sheets.items():
        write_png(epath.Path(run.directory) / "images" / f"{name}.png", picture)


def _early_stopping(run: Run, first: int) -> EarlyStopping:
    """Early stopping, with the evaluations of a run that resumes from a step."""
    evaluation = run.settings.eval
    metric = evaluation.patience_metric or evaluation.best_metric
    stopping = EarlyStopping(metric, evaluation.patience, evaluation.min_improvement)
    if first and evaluation.patience:
        for step, score in from_first_process(lambda: log.scores_of(run.directory, metric, first)):
            if not stopping.reached:
                stopping.update(step, score)
    return stopping


def _describe_run(run: Run, first: int) -> RunInfo:
    settings = run.settings
    return RunInfo(
        run.directory,
        project=settings.log.project,
        name=settings.log.name or epath.Path(run.directory).name,
        settings=settings.to_dict(),
        versions=workdir.versions(),
        first_step=first,
        steps=settings.train.steps,
    )


def _introduce(logger: log.RunLog, run: Run, state: TrainState, first: int) -> None:
    settings = run.settings
    logger.say(parameter_overview.get_parameter_overview(state.params, include_stats=False))
    logger.say(class_table(run.source.classes))
    logger.say(
        f"dataset {run.source.builder.info.full_name}: {run.source.size(settings.data.train_split)} training and "
        f"{run.source.size(settings.data.eval_split)} validation images, up to {run.max_segments} segments"
    )
    start = f"resuming from step {first}" if first else "from the start"
    batch = settings.train.batch_size
    logger.say(f"{settings.train.steps} steps of {batch} images on {run.mesh.size} devices, {start}")
    for words in run.warnings():
        logger.say(words)


def _open_on_all_hosts(settings: Settings) -> Source:
    """Lets the first process make the dataset before the others look for it."""
    data = settings.data
    if jax.process_index() == 0:
        source = open_source(data.name, data.dir, data.tfds_dir)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("dataset")
    if jax.process_index() > 0:
        source = open_source(data.name, data.dir, data.tfds_dir)
    if jax.process_count() > 1:
        _refuse_different_data(source, (data.train_split, data.eval_split))
    return source


def _refuse_different_data(source: Source, splits: tuple[str, ...]) -> None:
    """Raises UserError, on every process, if one has other examples: hosts with disks of their own may differ.

    Each host makes its part of every batch, so examples would be trained twice or never, without a word.
    """
    content = repr([(split, source.describe(split)["content"]) for split in splits if source.has(split)])
    # As int32: JAX would cut larger integers.
    digest = np.frombuffer(hashlib.sha256(content.encode()).digest()[:16], np.int32)
    found = multihost_utils.process_allgather(digest)
    different = np.flatnonzero((found != found[0]).any(axis=1)).tolist()
    if different:
        raise UserError(
            f"the dataset {source.builder.info.full_name} does not have the same examples on all hosts: those of "
            f"processes {different} differ from those of process 0, in {splits}. Delete the folder of the dataset in "
            "config.data.tfds_dir on these hosts, or copy it there from the host of process 0."
        )


def _max_segments(source: Source, settings: Settings, num_queries: int | None) -> int:
    """The largest number of segments that a training image keeps; raises UserError for splits without any."""
    source.size(settings.data.eval_split)
    source.size(settings.data.train_split)
    segments = max_targets(source, settings.data, num_queries)
    if segments == 0:
        raise UserError(
            f"no image of {source.builder.info.full_name}, split {settings.data.train_split!r}, has a segment: every "
            "pixel is void or of a crowd. Look at the labels, and at the ignore label of the classes."
        )
    return segments
