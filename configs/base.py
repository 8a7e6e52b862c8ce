"""Every setting, with the values that most recipes share: MaskFormer R50 on semantic data (paper, appendix A).

A recipe takes this configuration and changes values. It is locked: a misspelt name is an error. What each
setting means stands in maskformer_jax/engine/settings.py.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    config.data = {
        "name": "",
        "dir": "",
        "tfds_dir": "",
        "train_split": "train",
        "eval_split": "validation",
        "short_edges": tuple(int(512 * tenths / 10) for tenths in range(5, 21)),
        "longest_edge": 2048,
        "scales": (),
        "scale_range": (),
        "early_crop_edges": (),
        "early_crop": (),
        "crop": (512, 512),
        "pad": "gray",
        "right_angles": False,
        "color_jitter": True,
        "grayscale": 0.0,
        "copy_paste": 0.0,
        "label_rounding": "floor",
        "keep_empty_segments": False,
        "skip_empty_images": False,
        "transforms": "detectron2",
        "redraw_empty_crops": False,
        "max_segments": 0,
    }
    config.model = {
        "name": "maskformer",
        "dtype": "float32",
        "backbone": {"name": "resnet50", "norm": "frozen_batch"},
        "pixel_decoder": {"name": "fpn", "dim": 256, "mask_dim": 256},
        "decoder": {
            "name": "detr",
            "memory": "res5",
            "num_queries": 100,
            "num_layers": 6,
            "dim": 256,
            "num_heads": 8,
            "hidden_dim": 2048,
            "dropout": 0.1,
            "self_attention": True,
        },
    }
    config.init = {"weights": "", "model_from_weights": False, "reinit": (), "base_weights": ""}
    config.loss = {
        "name": "set",
        "matcher": "scipy",
        "match_at": {"name": "cells"},
        "compare_at": {"name": "pixels"},
        "mask_term": "focal",
        "class_weight": 1.0,
        "mask_weight": 20.0,
        "dice_weight": 1.0,
        "no_object_weight": 0.1,
        "images_per_gpu": 2,
    }
    config.optimizer = {
        "learning_rate": 1e-4,
        "schedule": {"name": "poly", "power": 0.9, "warmup_steps": 0, "warmup_factor": 1.0},
        "weight_decay": 1e-4,
        "clip_norm": 0.01,
        "backbone_factor": 0.1,
        "layer_decay": 1.0,
        "full_rate_blocks": 0,
        "decay_all": False,
    }
    config.train = {
        "steps": 160_000,
        "batch_size": 16,
        "grad_accum_steps": 1,
        "remat": False,
        "zero_shards": 1,
        "freeze": (),
        "ema_decay": 0.0,
        "seed": 0,
        "log_every": 50,
        "profile_steps": 0,
        "checkpoint_every": 5000,
        "keep_checkpoints": 3,
    }
    config.inference = {
        "short_edge": 512,
        "longest_edge": 2048,
        "size_divisor": 32,
        "upsample": "scores",
        "score_threshold": 0.8,
        "overlap_threshold": 0.8,
        "panoptic_rule": "maskformer",
        "stretch_to": (),
        "size_rounding": "half_up",
        "window": 0,
        "tile": 0,
        "tile_overlap": 0,
    }
    config.eval = {
        "every": 5000,
        "batch_size": 8,
        "num_padded_shapes": 8,
        "num_images": 8,
        "num_worst": 10,
        "tasks": ("panoptic", "semantic"),
        "best_metric": "semantic/miou",
        "save_results": False,
        "augment": False,
        "augment_scales": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
        "patience": 0,
        "patience_metric": "",
        "min_improvement": 0.0,
    }
    config.log = {"hooks": ("tensorboard",), "project": "", "name": ""}
    return config.lock()


def from_scratch(config: ml_collections.ConfigDict, *, num_queries: int, memory: str = "") -> None:
    """Changes a configuration to a small model that learns without pretrained weights, on a CPU if need be.

    Group norm, as there are no statistics to freeze; one learning rate for all, with a warm-up; a decoder that
    reads a finer feature than stride 32, since small images have few cells there.

    Args:
        memory: the feature of a decoder that reads a single one; empty for one that reads several.
    """
    config.model.backbone.update(name="resnet10_slim", norm="group")
    config.model.pixel_decoder.update(dim=64, mask_dim=64)
    config.model.decoder.update(num_queries=num_queries, num_layers=3, dim=128, hidden_dim=256, dropout=0.0)
    if memory:
        config.model.decoder.memory = memory
    config.loss.update(class_weight=2.0, mask_weight=5.0, dice_weight=2.0, images_per_gpu=0)
    config.optimizer.update(learning_rate=1e-3, weight_decay=0.05, backbone_factor=1.0)
    config.optimizer.schedule.update(warmup_steps=100, warmup_factor=0.001)
