"""What is learned and how: everything of a run but its data and its files."""

import functools

import jax
import numpy as np
from jax.sharding import Mesh

from maskformer_jax.engine.settings import Settings
from maskformer_jax.losses import make_matcher, pixel_loss, set_loss
from maskformer_jax.models import build_network
from maskformer_jax.ops.segments import ids_dtype
from maskformer_jax.training.optimizer import make_optimizer
from maskformer_jax.training.schedule import SCHEDULES
from maskformer_jax.training.sharding import check_batch_size, over_batch, replicated
from maskformer_jax.training.state import TrainState, create_state
from maskformer_jax.training.step import Loss, TrainStep, make_train_step
from maskformer_jax.types import Batch, PixelPrediction, Prediction, Targets


class Learner:
    """Network, loss, optimiser and train step of a run, over a mesh.

    Args:
        num_classes: K of the data.

    Raises:
        UserError: for settings that cannot work.
    """

    def __init__(self, settings: Settings, num_classes: int, mesh: Mesh):
        check_batch_size(settings.train.batch_size, mesh, "config.train.batch_size")
        self.settings = settings
        self.mesh = mesh
        self.network = build_network(num_classes, **vars(settings.model))
        optimizer = settings.optimizer
        self.schedule = SCHEDULES[optimizer.schedule](
            optimizer.learning_rate,
            settings.train.steps,
            warmup_steps=optimizer.warmup_steps,
            warmup_factor=optimizer.warmup_factor,
        )
        self.optimizer = make_optimizer(
            self.schedule,
            weight_decay=optimizer.weight_decay,
            clip_norm=optimizer.clip_norm,
            backbone_factor=optimizer.backbone_factor,
        )

    def initial_state(self) -> TrainState:
        """The state before the first update, on the devices."""
        create = jax.jit(self._create, out_shardings=replicated(self.mesh))
        return create(jax.random.key(self.settings.train.seed))

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and placement of the state."""
        shapes = jax.eval_shape(self._create, jax.random.key(0))
        place = replicated(self.mesh)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)

    def abstract_batch(self, max_segments: int, planes: int = 1) -> Batch:
        """Shapes, dtypes and placement of a training batch."""
        images, (height, width) = self.settings.train.batch_size, self.settings.data.crop

        def array(shape: tuple[int, ...], dtype: type) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((images, *shape), dtype, sharding=over_batch(self.mesh))

        targets = Targets(
            segment_ids=array((planes, height, width), ids_dtype(max_segments)),
            labels=array((max_segments,), np.int32),
            valid=array((max_segments,), np.bool_),
        )
        return Batch(array((height, width, 3), np.uint8), array((2,), np.int32), targets)

    def train_step(self) -> TrainStep:
        seed = self.settings.train.seed
        return make_train_step(self.network, self._loss(), self.optimizer, self.schedule, self.mesh, seed)

    @property
    def _create(self):
        return functools.partial(create_state, self.network, self.optimizer)

    def _loss(self) -> Loss:
        """The loss of whatever kind of prediction the network makes."""
        settings = self.settings.loss
        matcher, weights = make_matcher(settings.matcher, self.mesh), settings.weights()

        def loss(prediction: Prediction | PixelPrediction, targets: Targets):
            if isinstance(prediction, PixelPrediction):
                return pixel_loss(prediction, targets, settings.pixel_loss, weights)
            return set_loss(prediction, targets, matcher, weights)

        return loss
