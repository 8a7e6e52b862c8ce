"""The Vision Transformer (Dosovitskiy et al., 2021) of DINOv2 and DINOv3: registers, layer scale, any input size."""

import math
import re
from collections.abc import Collection

import jax
import jax.numpy as jnp
from flax import nnx

from maskformer_jax.errors import UserError
from maskformer_jax.models.layers import gelu, layer_norm, linear
from maskformer_jax.models.network import InitKeys, Stack, Undecayed
from maskformer_jax.ops.attention import attention_with_masked_rows, multi_head_attention
from maskformer_jax.ops.dropout import keys_of
from maskformer_jax.ops.resample import resample_table
from maskformer_jax.ops.rotary import Rotation, rotate_last, rotation
from maskformer_jax.parsing import check_at_least, check_choice, check_heads, check_layers, check_sizes
from maskformer_jax.types import Train

NUM_REGISTERS = 4
PROJECTIONS = ("query", "key", "value")
_RESCALE = 2.0  # in training, coordinates of patches are multiplied by up to this or divided by it
_NORMAL = nnx.initializers.truncated_normal(0.02)


class PatchEmbedding(nnx.Module):
    """A convolution of patches that do not overlap, as one product of matrices."""

    def __init__(self, dim: int, patch_size: int, *, rngs: InitKeys, dtype: jnp.dtype):
        self.dtype = dtype
        self.kernel = nnx.Param(_NORMAL(rngs.params(), (patch_size, patch_size, 3, dim), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(dim))

    def __call__(self, image: jax.Array) -> jax.Array:
        """[B, H, W, 3] to [B, H / p, W / p, D]."""
        kernel = self.kernel[...].astype(self.dtype)
        size, (batch, height, width, channels) = kernel.shape[0], image.shape
        cells = image.astype(self.dtype).reshape(batch, height // size, size, width // size, size, channels)
        product = jnp.einsum("byixjc,ijcd->byxd", cells, kernel)
        return product + self.bias[...].astype(self.dtype)


class SelfAttention(nnx.Module):
    """Attention among tokens.

    Args:
        biases: those of PROJECTIONS that have a bias.
    """

    def __init__(self, dim: int, num_heads: int, biases: Collection[str], *, rngs: InitKeys, dtype: jnp.dtype):
        self.num_heads = num_heads
        for name in PROJECTIONS:
            setattr(self, name, _dense(dim, dim, bias=name in biases, rngs=rngs, dtype=dtype))
        self.output = _dense(dim, dim, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array, turn: Rotation | None, mask: jax.Array | None) -> jax.Array:
        """Attends within tokens [B, T, D].

        Args:
            turn: of the last tokens; None if positions are in the tokens.
            mask: [B, Q, T] bool, what the first Q tokens see; all others see everything.
        """
        query, key, value = (getattr(self, name)(x) for name in PROJECTIONS)
        if turn is not None:
            query, key = (rotate_last(projected, self.num_heads, turn) for projected in (query, key))
        if mask is None:
            return self.output(multi_head_attention(query, key, value, self.num_heads))
        return self.output(attention_with_masked_rows(query, key, value, self.num_heads, mask))


class FeedForward(nnx.Module):
    """Two dense layers with a GELU between them."""

    def __init__(self, dim: int, hidden_dim: int, *, rngs: InitKeys, dtype: jnp.dtype):
        self.linear1 = _dense(dim, hidden_dim, rngs=rngs, dtype=dtype)
        self.linear2 = _dense(hidden_dim, dim, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear2(gelu(self.linear1(x)))


class GatedFeedForward(nnx.Module):
    """Two dense layers whose hidden channels are multiplied by a gate (SwiGLU; Shazeer, 2020)."""

    def __init__(self, dim: int, hidden_dim: int, *, rngs: InitKeys, dtype: jnp.dtype):
        self.gate = _dense(dim, hidden_dim, rngs=rngs, dtype=dtype)
        self.up = _dense(dim, hidden_dim, rngs=rngs, dtype=dtype)
        self.down = _dense(hidden_dim, dim, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """Attention and feed-forward layer, each with a norm before it and a learned scale of each channel behind it."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden_dim: int,
        gated: bool,
        biases: Collection[str],
        epsilon: float,
        *,
        rngs: InitKeys,
        dtype: jnp.dtype,
    ):
        options = {"rngs": rngs, "dtype": dtype}
        self.norm1 = layer_norm(dim, epsilon=epsilon, **options)
        self.attention = SelfAttention(dim, num_heads, biases, **options)
        self.scale1 = Undecayed(jnp.ones(dim))
        self.norm2 = layer_norm(dim, epsilon=epsilon, **options)
        self.mlp = (GatedFeedForward if gated else FeedForward)(dim, hidden_dim, **options)
        self.scale2 = Undecayed(jnp.ones(dim))

    def __call__(self, x: jax.Array, turn: Rotation | None = None, mask: jax.Array | None = None) -> jax.Array:
        """Tokens [B, T, D] to tokens; see `SelfAttention`."""
        x = x + self.scale1[...].astype(x.dtype) * self.attention(self.norm1(x), turn, mask)
        return x + self.scale2[...].astype(x.dtype) * self.mlp(self.norm2(x))


class ViT(nnx.Module):
    """Patches of an image as tokens, behind a class token and registers.

    Args:
        dim: width of the tokens, D.
        depth: number of blocks.
        num_heads: attention heads.
        positions: "table" adds a learned vector to each patch, "rotary" rotates queries and keys of patches.
        epsilon: of the norms.
        image_size: the side, or height and width, of the images that the table is for; it is resampled for others.
            None for rotary positions, which need none.
        patch_size: side of the patches.
        hidden_dim: width of the feed-forward layers; 0 for 4 * dim.
        gated: whether the feed-forward layers have a gate.
        biases: see `SelfAttention`.
        remat: see `Stack`.
        scan: see `Stack`.

    Raises:
        UserError: for sizes that do not fit together.
    """

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        num_heads: int,
        positions: str,
        epsilon: float,
        rngs: InitKeys,
        image_size: int | tuple[int, int] | None = None,
        patch_size: int = 16,
        hidden_dim: int = 0,
        gated: bool = False,
        biases: Collection[str] = PROJECTIONS,
        dtype: jnp.dtype = jnp.float32,
        remat: bool = False,
        scan: bool = False,
    ):
        check_sizes(dim=dim, patch_size=patch_size)
        check_heads(dim, num_heads)
        check_layers(depth=depth)
        check_at_least(0, hidden_dim=hidden_dim)
        check_choice("positions", positions, ("table", "rotary"))
        if (image_size is None) != (positions == "rotary"):
            raise UserError(f"image_size is {image_size}; a ViT with a position table needs it, and only such a ViT")
        options = {"rngs": rngs, "dtype": dtype}
        self.dim, self.depth, self.num_heads, self.patch_size, self.dtype = dim, depth, num_heads, patch_size, dtype
        self.patch = PatchEmbedding(dim, patch_size, **options)
        self.cls_token = Undecayed(_NORMAL(rngs.params(), (1, dim), jnp.float32))
        self.registers = Undecayed(_NORMAL(rngs.params(), (NUM_REGISTERS, dim), jnp.float32))
        self.has_table = positions == "table"
        if self.has_table:
            sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
            if len(sides) != 2 or min(sides) < 1:
                raise UserError(f"image_size is {image_size}; expected a side, or a height and a width")
            self.position_table = Undecayed(_NORMAL(rngs.params(), (*self.grid(sides), dim), jnp.float32))
        sizes = (dim, num_heads, hidden_dim or 4 * dim, gated, tuple(biases), epsilon)
        self.blocks = Stack([Block(*sizes, **options) for _ in range(depth)], remat, scan)
        self.norm = layer_norm(dim, epsilon=epsilon, **options)

    num_prefix = 1 + NUM_REGISTERS  # tokens before the patches

    def __call__(self, image: jax.Array) -> jax.Array:
        """Images [B, H, W, 3] to normalized tokens [B, 5 + N, D]: class token, registers, and patches row by row."""
        tokens, turn = self.embed(image)
        return self.norm(self.blocks.run(tokens, turn))

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """The patches in a column and in a row of an image; raises UserError if they do not fill it."""
        if any(side % self.patch_size for side in size):
            raise UserError(f"image sides {size} must be multiples of the patch size {self.patch_size}")
        return size[0] // self.patch_size, size[1] // self.patch_size

    def embed(self, image: jax.Array, train: Train | None = None) -> tuple[jax.Array, Rotation | None]:
        """The tokens before the first block [B, 5 + N, D], and the rotation of patches in every block.

        In training the coordinates behind a rotation are rescaled at random, in the same way for a whole image.
        """
        height, width = self.grid(image.shape[1:3])
        patches = self.patch(image)
        turn = None
        if self.has_table:
            patches = patches + resample_table(self.position_table[...], (height, width)).astype(self.dtype)
        else:
            turn = rotation(height, width, self.dim // self.num_heads, _rescaling(keys_of(train)))
        prefix = jnp.concatenate([self.cls_token[...], self.registers[...]]).astype(self.dtype)
        batch = image.shape[0]  # no number in a function that is exported for any number of images
        prefix = jnp.broadcast_to(prefix, (batch, *prefix.shape))
        return jnp.concatenate([prefix, patches.reshape(batch, height * width, self.dim)], axis=1), turn

    def depth_of(self, name: str) -> int:
        """Blocks from a parameter to the end of the backbone; what lies before the first block counts to it."""
        if inside := re.match(r"blocks\.(\d+)\.", name):
            return self.depth - 1 - int(inside[1])
        return 0 if name.startswith("norm.") else self.depth - 1


def _dense(in_features: int, out_features: int, *, rngs: InitKeys, dtype: jnp.dtype, bias: bool = True) -> nnx.Linear:
    zeros = nnx.initializers.zeros
    return linear(in_features, out_features, rngs=rngs, dtype=dtype, init=_NORMAL, bias_init=zeros, bias=bias)


def _rescaling(keys: jax.Array | None) -> jax.Array | None:
    """Factors of coordinates [B], log-uniform; None for no keys."""
    if keys is None:
        return None
    bound = math.log(_RESCALE)
    return jnp.exp(jax.vmap(lambda key: jax.random.uniform(key, minval=-bound, maxval=bound))(keys))
