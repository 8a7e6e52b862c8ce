"""Backbones: image [B, H, W, 3] -> {"res2" .. "res5"}, features at strides 4, 8, 16 and 32.

A backbone has `channels`, the width of each of its features by the same names.
"""

import functools

from maskformer_jax.models.backbones.resnet import BasicBlock, Bottleneck, ResNet

BACKBONES = {
    # One block a stage and half the width: a backbone for CPUs and tests.
    "resnet10_slim": functools.partial(ResNet, block=BasicBlock, depths=(1, 1, 1, 1), width=32),
    "resnet18": functools.partial(ResNet, block=BasicBlock, depths=(2, 2, 2, 2)),
    "resnet34": functools.partial(ResNet, block=BasicBlock, depths=(3, 4, 6, 3)),
    "resnet50": functools.partial(ResNet, block=Bottleneck, depths=(3, 4, 6, 3)),
    "resnet101": functools.partial(ResNet, block=Bottleneck, depths=(3, 4, 23, 3)),
}
