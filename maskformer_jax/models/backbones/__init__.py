"""Backbones: image [B, H, W, 3] -> {"res2": Map, ..., "res5": Map}, features at strides 4, 8, 16 and 32.

A backbone is called as (image, valid_size, train). It has `channels`, the width of each feature by name, and
`depth_of(name)`, the blocks from a parameter (named within the backbone) to the end, for layer-wise learning rates.
"""

import functools

from maskformer_jax.models.backbones.resnet import BasicBlock, Bottleneck, ResNet
from maskformer_jax.models.backbones.swin import Swin

_swin = functools.partial(Swin, depths=(2, 2, 18, 2))

BACKBONES = {
    # One block a stage and half the width: a backbone for CPUs and tests.
    "resnet10_slim": functools.partial(ResNet, block=BasicBlock, depths=(1, 1, 1, 1), width=32),
    "resnet18": functools.partial(ResNet, block=BasicBlock, depths=(2, 2, 2, 2)),
    "resnet34": functools.partial(ResNet, block=BasicBlock, depths=(3, 4, 6, 3)),
    "resnet50": functools.partial(ResNet, block=Bottleneck, depths=(3, 4, 6, 3)),
    "resnet101": functools.partial(ResNet, block=Bottleneck, depths=(3, 4, 23, 3)),
    # With the stem of DeepLab and dilations in the last stage.
    "resnet101c": functools.partial(
        ResNet, block=Bottleneck, depths=(3, 4, 23, 3), stem="deeplab", multi_grid=(1, 2, 4)
    ),
    "swin_tiny": functools.partial(Swin, dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
    "swin_small": functools.partial(_swin, dim=96, num_heads=(3, 6, 12, 24)),
    "swin_base": functools.partial(_swin, dim=128, num_heads=(4, 8, 16, 32), window=12),
    "swin_large": functools.partial(_swin, dim=192, num_heads=(6, 12, 24, 48), window=12),
}
