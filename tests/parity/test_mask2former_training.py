"""Mask2Former: twenty training steps compared with transformers; see `tests/parity/training.py`."""

import jax
import numpy as np
import pytest

from maskformer_jax.configs import mask2former_ade20k
from maskformer_jax.engine.settings import Settings
from maskformer_jax.engine.trainer import Trainer
from maskformer_jax.sharding import make_mesh

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from transformers.models.mask2former import modeling_mask2former

from tests.parity import training
from tests.parity.test_huggingface import ALL_STAGES
from tests.parity.test_huggingface_mask2former import weight
from tests.parity.training import SCHEDULED

pytestmark = [pytest.mark.parity, pytest.mark.slow]

SIZE, CLASSES, QUERIES, POINTS = (64, 96), 7, 10, 256
LAYERS = 4  # predictions: before the decoder's three layers, and after each
SEGMENTS = (4, 3)  # of each image
SEED = 17  # of points
BACKBONE = {"dim": 24, "depths": (1, 2, 1, 1), "num_heads": (2, 2, 4, 4), "window": 4}
PARTS = ("backbone.", "pixel_decoder.", "decoder.", "heads.")


def settings() -> Settings:
    """The recipe for ADE20K with a smaller model, fewer points and fewer steps."""
    config = mask2former_ade20k.get_config("swin_tiny")
    with config.unlocked():
        config.model.backbone = {"name": "swin_tiny", "drop_path": 0.0, **BACKBONE}
    config.model.pixel_decoder.update(dim=128, mask_dim=64, num_layers=2, num_heads=4, hidden_dim=96)
    config.model.decoder.update(dim=128, num_queries=QUERIES, num_layers=LAYERS - 1, num_heads=4, hidden_dim=160)
    config.loss.match_at.num_points = POINTS
    config.loss.compare_at.update(num_points=POINTS, oversample=1.0, importance=1.0)
    config.data.crop = SIZE
    config.train.update(steps=SCHEDULED, batch_size=len(SEGMENTS), seed=SEED)
    return Settings.from_dict(config.to_dict())


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
        oversample_ratio=1.0,
        importance_sample_ratio=1.0,
    )
    model = transformers.Mask2FormerForUniversalSegmentation(config)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and name != "criterion.empty_weight":
            tensor.copy_(torch.from_numpy(np.asarray(weight(name, tuple(tensor.shape)), np.float32)))
    return model


def their_groups(model):
    """The groups of the original, which go by the kind of a module."""
    config, groups = settings().optimizer, []
    for path, module in model.named_modules():
        kept = isinstance(module, (torch.nn.LayerNorm, torch.nn.GroupNorm, torch.nn.Embedding))
        factor = config.backbone_factor if "pixel_level_module.encoder" in path else 1.0
        for name, parameter in module.named_parameters(recurse=False):
            decayed = not (kept or name == "relative_position_bias_table")
            decay = config.weight_decay if decayed else 0.0
            groups.append({"params": [parameter], "lr": config.learning_rate * factor, "weight_decay": decay})
    return groups


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    theirs = training.Theirs(
        modeling_mask2former,
        their_model,
        their_groups,
        factor=lambda group, step: (1 - step / SCHEDULED) ** 0.9,
        layers=LAYERS,
        last_layer_first=True,
    )
    trainer = Trainer(settings(), CLASSES, make_mesh(jax.devices()[:1]))
    batch = training.some_batch(SIZE, SEGMENTS, CLASSES)
    return training.train_both(theirs, trainer, batch, lambda: tmp_path_factory.mktemp("theirs"))


def test_rounding_decides_nothing(runs):
    training.check_decisions(runs)


def test_losses_of_all_steps_agree(runs):
    training.check_losses(runs, falls_to=0.8)


def test_parameters_agree_in_the_end(runs):
    training.check_parameters(runs, PARTS)


def test_what_has_no_gradient_only_decays(runs):
    # Softmax does not depend on the biases of keys: their gradient is rounding.
    names = [name for name in runs.rates if name.endswith("attention.key.bias")]
    assert len(names) == 5 + 2 * (LAYERS - 1)
    decayed = {name: runs.start[name] * (1 - 0.05 * runs.rates[name]) for name in names}
    found = training.distances(runs.ours, decayed, {name: runs.rates[name] for name in names})
    assert max(found.values()) < 1e-3
