"""Layers shared by backbones, decoders and heads, initialized as the original model's are.

Layers compute in `dtype`; parameters are float32.
"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from maskformer_jax.models.network import Frozen, InitKeys, Stack, Undecayed
from maskformer_jax.ops.attention import multi_head_attention
from maskformer_jax.ops.convolution import convolve
from maskformer_jax.ops.dense import dot_general
from maskformer_jax.ops.image import inside
from maskformer_jax.ops.valid_size import clear
from maskformer_jax.parsing import check_heads
from maskformer_jax.types import Convolution

EPSILON = 1e-5  # of normalization layers, unless another is given

_scaled = nnx.initializers.variance_scaling
# Initializers by the names of detectron2 and PyTorch, so that training from scratch starts as the original's does.
XAVIER_CONV = _scaled(1.0, "fan_in", "uniform")  # detectron2's c2_xavier_fill
KAIMING_CONV = _scaled(2.0, "fan_out", "normal")  # detectron2's c2_msra_fill
XAVIER_LINEAR = _scaled(1.0, "fan_avg", "uniform")  # PyTorch's xavier_uniform
TORCH_LINEAR = _scaled(1.0 / 3.0, "fan_in", "uniform")
# The original draws q, k and v as one [3D, D] matrix, whose Xavier bound is sqrt(6 / 4D).
XAVIER_PACKED = _scaled(0.5, "fan_avg", "uniform")


def uniform_bias(fan_in: int) -> Callable:
    """PyTorch's default bias: uniform within 1 / sqrt(fan_in)."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


class Conv(nnx.Conv):
    """A convolution that reads zeros beyond the valid size of its input, as it does beyond the border."""

    def __call__(self, x: jax.Array, valid_size: jax.Array | None = None) -> jax.Array:
        # A 1x1 convolution mixes no positions, so clearing its input would cost a pass over memory for nothing.
        reads_neighbors = max(self.kernel_size) > 1
        return super().__call__(clear(x, valid_size) if reads_neighbors else x)

    def unapplied(self, x: jax.Array, valid_size: jax.Array | None = None) -> Convolution:
        """The same as a value, for a convolution of stride 1 with a bias."""
        return Convolution(clear(x, valid_size), self.kernel[...], self.bias[...])


def conv(
    in_features: int,
    out_features: int,
    size: int,
    *,
    rngs: InitKeys,
    dtype: jnp.dtype,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    bias: bool = False,
    init: Callable = KAIMING_CONV,
) -> Conv:
    """A square convolution with symmetric padding that keeps ceil(length / stride).

    Args:
        groups: independent groups of channels; `in_features` for a depthwise convolution.
    """
    # Symmetric, unlike XLA's "SAME", which pads stride-2 convolutions at the bottom and right only.
    padding = dilation * (size - 1) // 2
    return Conv(
        in_features,
        out_features,
        (size, size),
        strides=stride,
        padding=[(padding, padding)] * 2,
        kernel_dilation=dilation,
        feature_group_count=groups,
        use_bias=bias,
        kernel_init=init,
        conv_general_dilated=convolve,
        dtype=dtype,
        rngs=rngs,
    )


def dot_float32(*operands, **options) -> jax.Array:
    """`dot_general` that accumulates and returns float32, for `linear(dot_general=...)`."""
    return dot_general(*operands, **{**options, "preferred_element_type": jnp.float32})


def linear(
    in_features: int,
    out_features: int,
    *,
    rngs: InitKeys,
    dtype: jnp.dtype,
    init: Callable = TORCH_LINEAR,
    bias_init: Callable | None = None,
    dot_general: Callable = dot_general,
    bias: bool = True,
) -> nnx.Linear:
    """A dense layer with, by default, a bias and PyTorch's initialization.

    Args:
        dot_general: the product; `dot_float32` for logits.
    """
    bias_init = bias_init or uniform_bias(in_features)
    return nnx.Linear(
        in_features,
        out_features,
        kernel_init=init,
        use_bias=bias,
        bias_init=bias_init,
        dot_general=dot_general,
        dtype=dtype,
        rngs=rngs,
    )


class LayerNorm(nnx.LayerNorm):
    """Layer normalization whose parameters weight decay spares."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.scale, self.bias = Undecayed(self.scale[...]), Undecayed(self.bias[...])


def layer_norm(features: int, *, rngs: InitKeys, dtype: jnp.dtype, epsilon: float = EPSILON) -> LayerNorm:
    return LayerNorm(features, epsilon=epsilon, dtype=dtype, rngs=rngs)


class GroupNorm(nnx.GroupNorm):
    """Group normalization with the statistics of the valid part of its input; weight decay spares its parameters."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.scale, self.bias = Undecayed(self.scale[...]), Undecayed(self.bias[...])

    def __call__(self, x: jax.Array, valid_size: jax.Array | None = None) -> jax.Array:
        mask = None
        if valid_size is not None:
            mask = jnp.broadcast_to(inside(valid_size, *x.shape[1:3])[..., None], x.shape)
        return super().__call__(x, mask=mask)


def group_norm(
    features: int, *, rngs: InitKeys, dtype: jnp.dtype, scale_init: Callable = nnx.initializers.ones
) -> GroupNorm:
    """Group normalization with 32 groups, or groups of four channels where there are fewer than 128."""
    # With fewer than 128 channels, 32 groups would have fewer than four channels each.
    groups = 32 if features % 32 == 0 and features >= 128 else max(features // 4, 1)
    return GroupNorm(features, num_groups=groups, epsilon=EPSILON, scale_init=scale_init, dtype=dtype, rngs=rngs)


class FrozenBatchNorm(nnx.Module):
    """Batch normalization with stored statistics and a stored affine map; nothing in it is trained.

    Called like GroupNorm. Stored statistics do not depend on the valid size.
    """

    def __init__(self, features: int, *, dtype: jnp.dtype):
        self.scale = Frozen(jnp.ones(features))
        self.bias = Frozen(jnp.zeros(features))
        self.mean = Frozen(jnp.zeros(features))
        self.var = Frozen(jnp.ones(features))
        self.dtype = dtype

    def __call__(self, x: jax.Array, valid_size: jax.Array | None = None) -> jax.Array:
        scale = self.scale[...] * jax.lax.rsqrt(self.var[...] + EPSILON)
        bias = self.bias[...] - self.mean[...] * scale
        # In float32 and rounded once; inside one fused loop this is free.
        return (x * scale + bias).astype(self.dtype)


class MultiHeadAttention(nnx.Module):
    """Attention with separate query, key and value inputs and an output projection."""

    def __init__(self, dim: int, num_heads: int, dropout: float, *, rngs: InitKeys, dtype: jnp.dtype):
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.dropout = dropout

        def project(init: Callable) -> nnx.Linear:
            return linear(dim, dim, rngs=rngs, dtype=dtype, init=init, bias_init=nnx.initializers.zeros)

        # Apart, not packed: cross-attention projects three different inputs.
        self.query = project(XAVIER_PACKED)
        self.key = project(XAVIER_PACKED)
        self.value = project(XAVIER_PACKED)
        self.output = project(XAVIER_LINEAR)

    def __call__(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        dropout_key: jax.Array | None,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """Attends from query [B, T, D] to key and value [B, S, D]; see `multi_head_attention` for `mask`."""
        attended = multi_head_attention(
            self.query(query),
            self.key(key),
            self.value(value),
            self.num_heads,
            mask=mask,
            dropout_rate=self.dropout,
            dropout_key=dropout_key,
        )
        return self.output(attended)


def gelu(x: jax.Array) -> jax.Array:
    """The exact Gaussian error linear unit, computed in float32.

    It uses the error function: the complement that `jax.nn.gelu` uses costs three times as much on CPUs.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1.0 + jax.lax.erf(wide * 2.0**-0.5))).astype(x.dtype)


class MLP(nnx.Module):
    """Dense layers with an activation between them."""

    def __init__(
        self,
        dims: list[int],
        *,
        rngs: InitKeys,
        dtype: jnp.dtype,
        activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
    ):
        layers = [linear(a, b, rngs=rngs, dtype=dtype) for a, b in itertools.pairwise(dims)]
        self.layers = Stack(layers)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        for index, layer in enumerate(self.layers):
            x = layer(x if index == 0 else self.activation(x))
        return x
