"""Network, criterion, optimizer and train step of a run: everything but its data and its files."""

import contextlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.stages import Compiled

from maskformer_jax.engine.settings import Settings
from maskformer_jax.engine.start import collector_paused
from maskformer_jax.errors import UserError
from maskformer_jax.losses import make_criterion
from maskformer_jax.models import build_network
from maskformer_jax.ops.segments import ids_dtype
from maskformer_jax.sharding import batch_sharding, check_batch_size, param_specs
from maskformer_jax.training.optimizer import make_optimizer
from maskformer_jax.training.state import TrainState, create_state
from maskformer_jax.training.step import TrainStep, make_train_step
from maskformer_jax.types import Batch, Targets


class Trainer:
    """What is trained and how, over a mesh.

    Args:
        num_classes: K of the data.

    Raises:
        UserError: for settings that cannot work.
    """

    def __init__(self, settings: Settings, num_classes: int, mesh: Mesh):
        train = settings.train
        check_batch_size(train.batch_size, mesh, "config.train.batch_size", train.grad_accum_steps)
        self.settings = settings
        self.mesh = mesh
        with _settings_named():
            self.network = build_network(num_classes, **settings.model, remat=train.remat, freeze=train.freeze)
            self.criterion = make_criterion(settings.loss, self.network.num_queries)
        self.optimizer = make_optimizer(settings.optimizer, self.network.group_of, train.steps)

    def initial_state(self) -> TrainState:
        """The state before the first update, on the devices."""
        places = jax.tree.map(lambda x: x.sharding, self.abstract_state())
        return jax.jit(self._create, out_shardings=places)(jax.random.key(self.settings.train.seed))

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state."""
        shapes = jax.eval_shape(self._create, jax.random.key(0))
        return jax.tree.map(
            lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(self.mesh, spec)),
            shapes,
            param_specs(shapes, self.mesh),
        )

    def abstract_batch(self, max_segments: int, planes: int = 1) -> Batch:
        """Shapes, dtypes and shardings of a training batch."""
        images, (height, width) = self.settings.train.batch_size, self.settings.data.crop

        def array(shape: tuple[int, ...], dtype: type) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((images, *shape), dtype, sharding=batch_sharding(self.mesh))

        targets = Targets(
            segment_ids=array((planes, height, width), ids_dtype(max_segments)),
            labels=array((max_segments,), np.int32),
            valid=array((max_segments,), np.bool_),
        )
        return Batch(array((height, width, 3), np.uint8), array((2,), np.int32), targets)

    def train_step(self) -> TrainStep:
        train = self.settings.train
        return make_train_step(
            self.network,
            self.criterion,
            self.optimizer,
            self.settings.optimizer.learning_rate_at(train.steps),
            self.mesh,
            seed=train.seed,
            steps=train.steps,
            grad_accum_steps=train.grad_accum_steps,
            ema_decay=train.ema_decay,
        )

    def compile_step(self, max_segments: int, planes: int) -> Compiled:
        """The train step for batches of that shape, ready to run; it knows the memory that it needs."""
        with collector_paused():
            lowered = self.train_step().lower(self.abstract_state(), self.abstract_batch(max_segments, planes))
        return lowered.compile()

    def _create(self, key: jax.Array) -> TrainState:
        return create_state(self.network, self.optimizer, key, keep_ema=self.settings.train.ema_decay > 0)


@contextlib.contextmanager
def _settings_named() -> Iterator[None]:
    """Puts the full name of a setting into errors of models and losses, which name their own arguments."""
    try:
        yield
    except UserError as error:
        section = "" if str(error).startswith(("model", "loss")) else "train."
        raise UserError(f"config.{section}{error}") from error
