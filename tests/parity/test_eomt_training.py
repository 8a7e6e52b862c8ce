"""EoMT: twenty training steps compared with transformers; see `tests/parity/training.py`.

Both warm-ups and the fall of masking happen within them.
"""

import jax
import numpy as np
import pytest

from maskformer_jax.configs import base
from maskformer_jax.engine.settings import Settings
from maskformer_jax.engine.trainer import Trainer
from maskformer_jax.models.eomt import draws
from maskformer_jax.ops.dropout import split
from maskformer_jax.sharding import make_mesh

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from transformers.models.eomt import modeling_eomt

from tests.parity import training
from tests.parity.test_eomt_golden import weight
from tests.parity.training import SCHEDULED

pytestmark = [pytest.mark.parity, pytest.mark.slow]

SIZE, CLASSES, QUERIES, POINTS = (64, 64), 7, 10, 256
DIM, DEPTH, HEADS, MASKED_BLOCKS = 64, 5, 4, 3
SEGMENTS = (4, 3)  # of each image
SEED = 7
WARMUP = (2, 3)  # of the heads, and then of the backbone
# Masking falls in all blocks, has fallen to the end in the first, and not begun in the first step of the last.
ANNEALING = ((0.0, 0.25), (0.1, 0.6), (0.3, 0.9))
PARTS = ("backbone.", "queries", "heads.", "upscale.")


def settings() -> Settings:
    config = base.get_config()
    points = {"num_points": POINTS}
    with config.unlocked():
        config.model = {
            "name": "eomt",
            "dtype": "float32",
            "backbone": {"name": "vit_tiny", "image_size": SIZE[0], "dim": DIM, "depth": DEPTH, "num_heads": HEADS},
            "num_queries": QUERIES,
            "num_blocks": MASKED_BLOCKS,
            "mask_annealing": ANNEALING,
        }
        config.loss.match_at = {"name": "points", **points}
        config.loss.compare_at = {"name": "uncertain_points", **points, "oversample": 1.0, "importance": 1.0}
        config.optimizer.schedule = {
            "name": "two_stage",
            "head_warmup_steps": WARMUP[0],
            "backbone_warmup_steps": WARMUP[1],
            "power": 0.9,
        }
    config.loss.update(mask_term="bce", class_weight=2.0, mask_weight=5.0, dice_weight=5.0)
    config.optimizer.update(
        learning_rate=1e-4, weight_decay=0.05, backbone_factor=1.0, layer_decay=0.8, full_rate_blocks=2, decay_all=True
    )
    config.data.crop = SIZE
    config.train.update(steps=SCHEDULED, batch_size=len(SEGMENTS), seed=SEED)
    return Settings.from_dict(config.to_dict())


def their_model():
    config = transformers.EomtConfig(
        hidden_size=DIM,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        image_size=SIZE[0],
        num_blocks=MASKED_BLOCKS,
        num_queries=QUERIES,
        num_labels=CLASSES,
        train_num_points=POINTS,
        oversample_ratio=1.0,
        importance_sample_ratio=1.0,
    )
    model = transformers.EomtForUniversalSegmentation(config)
    # torch's fused attention gives wrong values for float64 queries and the float32 masks of transformers.
    model.set_attn_implementation("eager")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and name not in ("criterion.empty_weight", "attn_mask_probs"):
            tensor.copy_(torch.from_numpy(weight(name, tuple(tensor.shape))))
    return model


def their_groups(model):
    """One for each parameter: the decay of layers of the original spares the last two blocks here."""
    groups = []
    for name, parameter in model.named_parameters():
        part, _, inside = name.partition(".")
        depth = {"layers": DEPTH - 1 - int(inside.split(".")[0]) if part == "layers" else 0, "embeddings": DEPTH - 1}
        decay = 0.8 ** depth.get(part, 0) if depth.get(part, 0) >= 2 else 1.0
        pretrained = part in ("layers", "embeddings", "layernorm")
        groups.append({"params": [parameter], "lr": 1e-4 * decay, "weight_decay": 0.05, "pretrained": pretrained})
    return groups


def their_factor(group, step: int) -> float:
    """The original's schedule: t / a, then the decay over what is left; the backbone waits for the heads."""
    first, second = WARMUP
    start, rise = (first, second) if group["pretrained"] else (0, first)
    if step < start:
        return 0.0
    if step < start + rise:
        return (step - start) / rise
    return (1 - (step - start - rise) / (SCHEDULED - start - rise)) ** 0.9


def probability(window: tuple[float, float], step: int) -> float:
    """That a query is masked, after `step` updates."""
    start, end = (fraction * SCHEDULED for fraction in window)
    return 1.0 if step < start else 0.0 if step >= end else (1 - (step - start) / (end - start)) ** 0.9


def prepare(model, keys: jax.Array, step: int) -> list[np.ndarray]:
    """Sets the probabilities of masking, and gives our draws for the blocks whose queries may be unmasked."""
    probabilities = [probability(window, step) for window in ANNEALING]
    model.attn_mask_probs.copy_(torch.tensor(probabilities))
    of_blocks = split(split(keys, 2)[1], MASKED_BLOCKS)
    return [np.asarray(draws(key, QUERIES)) for key, p in zip(of_blocks, probabilities, strict=True) if p < 1]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    theirs = training.Theirs(
        modeling_eomt,
        their_model,
        their_groups,
        their_factor,
        MASKED_BLOCKS + 1,
        last_layer_first=False,
        prepare=prepare,
    )
    trainer = Trainer(settings(), CLASSES, make_mesh(jax.devices()[:1]))
    batch = training.some_batch(SIZE, SEGMENTS, CLASSES)
    return training.train_both(theirs, trainer, batch, lambda: tmp_path_factory.mktemp("theirs"))


def test_rounding_decides_nothing(runs):
    training.check_decisions(runs)


def test_losses_of_all_steps_agree(runs):
    training.check_losses(runs, falls_to=0.9)


def test_parameters_agree_in_the_end(runs):
    training.check_parameters(runs, PARTS)
