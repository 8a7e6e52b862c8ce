"""Twenty training steps beside transformers and torch's AdamW: same weights, images, segments and points.

How far two correct implementations part in float32 is measured and not assumed: transformers trains in float64, for
reference, and in float32, from the same weights and from weights that differ by a rounding. What float32 does to
transformers is what it may do here, but for a small factor. Rounding changes more than last digits: it decides about
points and keys of equal rank, and AdamW divides a gradient by its own size.

Distances are in units of the farthest that AdamW moves a parameter, the sum of its learning rates. So parameters
without a gradient need no exception: softmax does not depend on the biases of keys, whose gradient is rounding alone,
1e-11 and less after clipping. Compared with AdamW's epsilon of 1e-8, that moves nothing.
"""

import jax
import numpy as np
import pytest

from maskformer_jax.checkpoints.convert import to_tensors
from maskformer_jax.checkpoints.formats import MASK2FORMER_HUGGINGFACE
from maskformer_jax.checkpoints.weights import open_weights
from maskformer_jax.configs import mask2former_ade20k
from maskformer_jax.engine.settings import Settings
from maskformer_jax.engine.trainer import Trainer
from maskformer_jax.ops.dropout import split_train
from maskformer_jax.ops.image import normalize
from maskformer_jax.ops.segments import unfold_masks
from maskformer_jax.sharding import make_mesh, shard_batch
from maskformer_jax.types import Batch, Targets, Train

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.parity.drawn_points import rand_of
from tests.parity.test_huggingface import ALL_STAGES
from tests.parity.test_huggingface_mask2former import weight

pytestmark = pytest.mark.parity

SIZE, CLASSES, QUERIES, POINTS = (64, 96), 7, 10, 256
LAYERS = 4  # predictions: before the decoder's three layers, and after each
SEGMENTS = (4, 3)  # of each image
STEPS, SCHEDULED = 20, 40  # taken, and of the whole schedule
BACKBONE = {"dim": 24, "depths": (1, 2, 1, 1), "num_heads": (2, 2, 4, 4), "window": 4}
ROUNDING = 2.0**-24  # of float32, relative


def settings() -> Settings:
    """The recipe for ADE20K with a smaller model, fewer points and fewer steps."""
    config = mask2former_ade20k.get_config("swin_tiny")
    with config.unlocked():
        config.model.backbone = {"name": "swin_tiny", "drop_path": 0.0, **BACKBONE}
    config.model.pixel_decoder.update(dim=128, mask_dim=64, num_layers=2, num_heads=4, hidden_dim=96)
    config.model.decoder.update(dim=128, num_queries=QUERIES, num_layers=LAYERS - 1, num_heads=4, hidden_dim=160)
    config.loss.match_at.num_points = config.loss.compare_at.num_points = POINTS
    config.data.crop = SIZE
    config.train.update(steps=SCHEDULED, batch_size=len(SEGMENTS))
    return Settings.from_dict(config.to_dict())


def some_batch() -> Batch:
    """Noise, and rectangles of which later ones cover earlier ones."""
    rng = np.random.default_rng(0)
    batch, room = len(SEGMENTS), max(SEGMENTS) + 2
    ids = np.full((batch, 1, *SIZE), -1, np.int8)
    for image, count in enumerate(SEGMENTS):
        for segment in range(count):
            top, left = rng.integers(0, 40, 2)
            ids[image, 0, top : top + 24, left : left + 50] = segment
    valid = np.arange(room) < np.array(SEGMENTS)[:, None]
    targets = Targets(ids, rng.integers(0, CLASSES, (batch, room)).astype(np.int32), valid)
    image = rng.integers(0, 256, (batch, *SIZE, 3), dtype=np.uint8)
    return Batch(image, np.tile(np.int32(SIZE), (batch, 1)), targets)


def points_of(trainer: Trainer, step: int, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """The points of our train step: for matching [L, B, S, 2], and of all segments [L, B, N, S, 2]."""
    images, segments = batch.targets.labels.shape
    keys = jax.random.split(jax.random.fold_in(jax.random.key(trainer.settings.train.seed), step), images)
    _, of_loss = split_train(Train(keys, step / SCHEDULED), 2)
    of_match, of_pairs = split_train(of_loss, 2)
    criterion = trainer.criterion
    matching = criterion.match_at._draw(of_match.key, images, POINTS, LAYERS)
    of_segment = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    keys = jax.vmap(of_segment, in_axes=(0, None))(of_pairs.key, np.arange(segments))
    pairs = criterion.compare_at._draw(keys.reshape(-1), images * segments, criterion.compare_at._num_drawn(), LAYERS)
    pairs = pairs.reshape(len(pairs), images, segments, -1, 2)
    return tuple(np.repeat(np.asarray(x), LAYERS // len(x), axis=0) for x in (matching, pairs))


def their_model():
    backbone = transformers.SwinConfig(
        embed_dim=BACKBONE["dim"],
        depths=list(BACKBONE["depths"]),
        num_heads=list(BACKBONE["num_heads"]),
        window_size=BACKBONE["window"],
        drop_path_rate=0.0,
        **ALL_STAGES,
    )
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=128,
        mask_feature_size=64,
        hidden_dim=128,
        num_attention_heads=4,
        encoder_layers=2,
        decoder_layers=LAYERS,
        encoder_feedforward_dim=96,
        dim_feedforward=160,
        num_queries=QUERIES,
        num_labels=CLASSES,
        train_num_points=POINTS,
    )
    model = transformers.Mask2FormerForUniversalSegmentation(config)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and name != "criterion.empty_weight":
            tensor.copy_(torch.from_numpy(np.asarray(weight(name, tuple(tensor.shape)), np.float32)))
    return model


def their_optimizer(model, config):
    """AdamW and its schedule, with the groups of the original, which go by the kind of a module."""
    groups = []
    for path, module in model.named_modules():
        kept = isinstance(module, (torch.nn.LayerNorm, torch.nn.GroupNorm, torch.nn.Embedding))
        factor = config.backbone_factor if "pixel_level_module.encoder" in path else 1.0
        for name, parameter in module.named_parameters(recurse=False):
            decayed = not (kept or name == "relative_position_bias_table")
            decay = config.weight_decay if decayed else 0.0
            groups.append({"params": [parameter], "lr": config.learning_rate * factor, "weight_decay": decay})
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 - step / SCHEDULED) ** 0.9)


def run_theirs(model, trainer: Trainer, batch: Batch, dtype, monkeypatch) -> np.ndarray:
    """Trains the model; the losses of all steps."""
    model = model.to(dtype).train()
    optimizer, schedule = their_optimizer(model, trainer.settings.optimizer)
    pixels = torch.from_numpy(np.array(normalize(batch.image, batch.image_size)).transpose(0, 3, 1, 2)).to(dtype)
    own = [np.flatnonzero(valid) for valid in batch.targets.valid]
    unfolded = np.asarray(unfold_masks(batch.targets.segment_ids, batch.targets.labels.shape[1]))
    masks = [torch.tensor(unfolded[image, numbers], dtype=dtype) for image, numbers in enumerate(own)]
    labels = [torch.tensor(batch.targets.labels[image, numbers], dtype=torch.int64) for image, numbers in enumerate(own)]
    matched, losses = [], []
    model.criterion.matcher.register_forward_hook(lambda module, inputs, indices: matched.append(indices))
    for step in range(STEPS):
        points = (torch.from_numpy(x).to(dtype).numpy() for x in points_of(trainer, step, batch))
        rand, left = rand_of(*points, 3 * POINTS, matched, own)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "rand", rand)
            loss = model(pixels, mask_labels=masks, class_labels=labels).loss
        assert next(left, None) is None
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), trainer.settings.optimizer.clip_norm)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return np.array(losses)


if __name__ == "__main__":
    import time, tempfile, sys
    batch = some_batch()
    trainer = Trainer(settings(), CLASSES, make_mesh(jax.devices()[:1]))
    def load(model):
        with tempfile.TemporaryDirectory() as f:
            model.float().save_pretrained(f)
            state = trainer.abstract_state()
            return open_weights(f).load_into({**state.params, **state.frozen})
    start = load(their_model())
    print("params", sum(x.size for x in start.values()), len(start))
    out = {}
    t=time.time()
    state = trainer.initial_state().with_arrays(start)
    placed = shard_batch(batch, trainer.mesh)
    step = trainer.train_step().lower(state, placed).compile()
    print("compiled", time.time()-t); t=time.time()
    losses=[]
    norms=[]
    for i in range(STEPS):
        state, sc = step(state, placed)
        losses.append(float(sc["loss"])); norms.append(float(sc["gradient_norm"]))
    print("ours", time.time()-t)
    out["ours"] = np.array(losses), jax.device_get(state.params)
    print(norms)
    for name, dtype in (("double", torch.float64), ("float", torch.float32), ("pert", torch.float32), ("pert2", torch.float32)):
        m = their_model()
        if name.startswith("pert"):
            g = torch.Generator().manual_seed(len(name))
            with torch.no_grad():
                for p in m.parameters():
                    p.mul_(1 + 2.0**-23 * (2*torch.randint(0, 2, p.shape, generator=g)-1))
        t=time.time()
        l = run_theirs(m, trainer, batch, dtype, pytest.MonkeyPatch)
        print(name, time.time()-t)
        out[name] = l, load(m)
    import pickle
    pickle.dump((start, out), open("/work/tmp/bench/training.pkl", "wb"))
    for n,(l,_) in out.items(): print(n, l)
