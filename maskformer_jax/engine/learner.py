"""What is learned and how: everything of a run but its data and its files."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from maskformer_jax.engine.settings import Settings
from maskformer_jax.errors import UserError
from maskformer_jax.losses import Shares, make_matcher, pixel_loss, pixel_shares, set_loss, set_shares
from maskformer_jax.models import build_network
from maskformer_jax.ops.segments import ids_dtype
from maskformer_jax.sharding import batch_sharding, check_batch_size, param_specs
from maskformer_jax.training.optimizer import make_optimizer
from maskformer_jax.training.schedule import SCHEDULES
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
        train = settings.train
        check_batch_size(train.batch_size, mesh, "config.train.batch_size", train.microbatches)
        self.settings = settings
        self.mesh = mesh
        self.network = build_network(num_classes, **vars(settings.model), remat=train.remat, freeze=train.freeze)
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
            layer_decay=optimizer.layer_decay,
        )

    def initial_state(self) -> TrainState:
        """The state before the first update, on the devices."""
        places = jax.tree.map(lambda x: x.sharding, self.abstract_state())
        return jax.jit(self._create, out_shardings=places)(jax.random.key(self.settings.train.seed))

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and placement of the state."""
        shapes = jax.eval_shape(self._create, jax.random.key(0))
        return jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(self.mesh, place)),
            shapes,
            param_specs(shapes, self.mesh),
        )

    def abstract_batch(self, max_segments: int, planes: int = 1) -> Batch:
        """Shapes, dtypes and placement of a training batch."""
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
            self._loss(),
            self.optimizer,
            self.schedule,
            self.mesh,
            train.seed,
            microbatches=train.microbatches,
            ema_decay=train.ema_decay,
        )

    def compile_step(self, max_segments: int, planes: int) -> TrainStep:
        """The train step for batches of that shape, ready to run."""
        return self.train_step().lower(self.abstract_state(), self.abstract_batch(max_segments, planes)).compile()

    def _create(self, key: jax.Array) -> TrainState:
        return create_state(self.network, self.optimizer, key, averaged=self.settings.train.ema_decay > 0)

    def _loss(self) -> Loss:
        """The loss of whatever kind of prediction the network makes."""
        settings = self.settings.loss
        matcher, weights = make_matcher(settings.matcher), settings.weights()
        if self.settings.model.name != "maskformer":

            def pixels(prediction: PixelPrediction, targets: Targets, shares: Shares):
                return pixel_loss(prediction, targets, settings.pixel_loss, weights, shares)

            return Loss(lambda targets: pixel_shares(targets, weights), pixels)

        def masks(prediction: Prediction, targets: Targets, shares: Shares):
            return set_loss(prediction, targets, matcher, weights, shares)

        queries = self._count_queries()
        return Loss(lambda targets: set_shares(targets, queries, matcher, weights), masks)

    def _count_queries(self) -> int:
        state = self.abstract_state()
        embedding = {**state.params, **state.frozen}.get("decoder.query_embed")
        if embedding is None:
            raise UserError(
                f"the decoder {self.settings.model.decoder['name']!r} has no parameter `query_embed` with a row for "
                "each query, which the loss takes their number from; see models/decoders/__init__.py"
            )
        return embedding.shape[0]
