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
        "crop": (512, 512),
        "flip": True,
        "color_jitter": True,
        "keep_emptied": False,
        "shuffle_buffer": 4096,
    }
    config.model = {
        "backbone": {"name": "resnet50", "norm": "frozen_batch"},
        "pixel_decoder": {"name": "fpn", "dim": 256, "mask_dim": 256},
        "decoder": {
            "name": "detr",
            "num_queries": 100,
            "num_layers": 6,
            "dim": 256,
            "num_heads": 8,
            "hidden_dim": 2048,
            "dropout": 0.1,
        },
        "memory": "res5",
        "dtype": "float32",
    }
    config.loss = {
        "matcher": "scipy",
        "class_weight": 1.0,
        "mask_weight": 20.0,
        "dice_weight": 1.0,
        "no_object_weight": 0.1,
    }
    config.optimizer = {
        "learning_rate": 1e-4,
        "schedule": "poly",
        "warmup_steps": 0,
        "warmup_factor": 1.0,
        "weight_decay": 1e-4,
        "clip_norm": 0.01,
        "backbone_factor": 0.1,
    }
    config.train = {
        "steps": 160_000,
        "batch_size": 16,
        "seed": 0,
        "log_every": 50,
        "checkpoint_every": 5000,
        "keep_checkpoints": 3,
    }
    config.eval = {
        "every": 5000,
        "batch_size": 8,
        "short_edge": 512,
        "longest_edge": 2048,
        "canvas": (512, 2048),
        "score_threshold": 0.8,
        "overlap_threshold": 0.8,
        "pictures": 8,
        "best_metric": "semantic/miou",
    }
    return config.lock()
