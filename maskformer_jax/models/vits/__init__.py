"""Plain Vision Transformers by name: image [B, H, W, 3] -> tokens; every block has the same width.

The sizes are those that DINOv2 with registers and DINOv3 were published in. A ViT is no entry of BACKBONES: it has one
feature map, at the stride of its patches, where those have four.
"""

import functools

from maskformer_jax.models.vits.vit import ViT

_dinov2 = functools.partial(ViT, positions="table", epsilon=1e-6)
_dinov3 = functools.partial(ViT, positions="rotary", epsilon=1e-5, biases=("query", "value"))

VITS = {
    "vit_tiny": functools.partial(_dinov2, dim=192, depth=6, num_heads=3),  # for CPUs and tests
    "dinov2_small": functools.partial(_dinov2, dim=384, depth=12, num_heads=6),
    "dinov2_base": functools.partial(_dinov2, dim=768, depth=12, num_heads=12),
    "dinov2_large": functools.partial(_dinov2, dim=1024, depth=24, num_heads=16),
    "dinov2_giant": functools.partial(_dinov2, dim=1536, depth=40, num_heads=24, gated=True, hidden_dim=4096),
    "dinov3_small": functools.partial(_dinov3, dim=384, depth=12, num_heads=6),
    "dinov3_small_plus": functools.partial(_dinov3, dim=384, depth=12, num_heads=6, gated=True),
    "dinov3_base": functools.partial(_dinov3, dim=768, depth=12, num_heads=12),
    "dinov3_large": functools.partial(_dinov3, dim=1024, depth=24, num_heads=16),
    "dinov3_huge_plus": functools.partial(_dinov3, dim=1280, depth=32, num_heads=20, gated=True),
    "dinov3_7b": functools.partial(_dinov3, dim=4096, depth=40, num_heads=32, gated=True, hidden_dim=8192, biases=()),
}
