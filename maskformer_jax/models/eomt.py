"""EoMT, the encoder-only mask transformer (Kerssies et al., 2025): a plain ViT with queries among its tokens."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from maskformer_jax.errors import UserError
from maskformer_jax.models.layers import MLP, TORCH_LINEAR, dot_float32, gelu, layer_norm, linear, uniform_bias
from maskformer_jax.models.network import InitKeys, Stack, Undecayed
from maskformer_jax.models.vits import VITS
from maskformer_jax.ops import masks
from maskformer_jax.ops.convolution import depthwise
from maskformer_jax.ops.dropout import split, split_train
from maskformer_jax.ops.resize import bilinear_maps
from maskformer_jax.ops.rotary import Rotation
from maskformer_jax.ops.storage import stored_in_training
from maskformer_jax.parsing import check_at_least, check_choice, check_sizes, construct
from maskformer_jax.types import Prediction, Train

STRIDE = 4  # of masks
_EPSILON = 1e-6  # of the norms in upscaling
_POWER = 0.9  # of the fall of masking

Grid = tuple[int, int]
Activation = Callable[[jax.Array], jax.Array]

ACTIVATIONS = {"gelu": gelu, "silu": jax.nn.silu}


class QueryHeads(nnx.Module):
    """A class head and a mask head with three layers, as wide as the tokens."""

    def __init__(self, dim: int, num_classes: int, activation: Activation, *, rngs: InitKeys, dtype: jnp.dtype):
        self.class_head = linear(dim, num_classes + 1, dot_general=dot_float32, rngs=rngs, dtype=dtype)
        self.mask_head = MLP([dim] * 4, activation=activation, rngs=rngs, dtype=dtype)

    def __call__(self, queries: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Normalized queries [B, Q, D] to class logits [B, Q, K1] float32 and mask embeddings [B, Q, D]."""
        return self.class_head(queries), self.mask_head(queries)


class Upscaling(nnx.Module):
    """Doubles the sides of a map: a transposed convolution, a depthwise one, and a norm (section 3.2)."""

    def __init__(self, dim: int, activation: Activation, *, rngs: InitKeys, dtype: jnp.dtype):
        self.activation = activation
        self.deconv = Deconvolution(dim, rngs=rngs, dtype=dtype)
        self.depthwise = Depthwise(dim, rngs=rngs, dtype=dtype)
        self.norm = layer_norm(dim, epsilon=_EPSILON, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, D] to [B, 2h, 2w, D]."""
        # XLA would widen the map to float32, transposed, and keep three of these for the gradient.
        return self.norm(self.depthwise(self.activation(stored_in_training(self.deconv(x)))))


class Deconvolution(nnx.Module):
    """A transposed 2 x 2 convolution with stride 2. Its outputs do not overlap: it is one product of matrices."""

    def __init__(self, dim: int, *, rngs: InitKeys, dtype: jnp.dtype):
        self.dtype = dtype
        # As of PyTorch's layer, whose fan-in counts the outputs.
        bound = uniform_bias(4 * dim)
        self.kernel = nnx.Param(bound(rngs.params(), (2, 2, dim, dim), jnp.float32))  # output channels before input
        self.bias = nnx.Param(bound(rngs.params(), (dim,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, dim = x.shape
        cells = jnp.einsum("bhwi,yxoi->bhywxo", x, self.kernel[...].astype(self.dtype))
        return cells.reshape(batch, 2 * height, 2 * width, dim) + self.bias[...].astype(self.dtype)


class Depthwise(nnx.Module):
    """A 3 x 3 convolution of each channel alone, without a bias."""

    def __init__(self, dim: int, *, rngs: InitKeys, dtype: jnp.dtype):
        self.dtype = dtype
        self.kernel = nnx.Param(TORCH_LINEAR(rngs.params(), (3, 3, 1, dim), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        return depthwise(x, self.kernel[...].astype(self.dtype))


class EoMT(nnx.Module):
    """Queries join the tokens before the last blocks of a ViT, and are read after the last one (section 3.2).

    In training, queries are also read before each of those blocks: L = num_blocks + 1. The masks that they give limit
    which patches the queries see in the block, less and less often. At inference nothing is masked and L = 1.

    Args:
        backbone: a name of `models.vits.VITS` and the arguments of its constructor.
        num_queries: Q.
        num_blocks: the last blocks, which see queries.
        mask_annealing: of each of these blocks, the fractions of the training at which masking starts to fall and at
            which it has ended (section 3.3); of the first and the last of them alone, if those between follow evenly.
            Empty: queries are always masked in training.
        head_activation: of the mask head and of upscaling: "gelu", or "silu" as in transformers' models with a DINOv3
            whose layers are gated.
        num_classes: K.
        remat: whether gradients recompute the inside of blocks instead of keeping it.
    """

    accepts_padding = False
    black_padding = True

    def __init__(
        self,
        backbone: Mapping[str, Any],
        num_queries: int,
        num_blocks: int,
        mask_annealing: Sequence[Sequence[float]] = (),
        head_activation: str = "gelu",
        *,
        num_classes: int,
        rngs: InitKeys,
        dtype: jnp.dtype,
        remat: bool = False,
    ):
        options = {"rngs": rngs, "dtype": dtype}
        self.backbone = construct(VITS, backbone, "backbone", remat=remat, **options)
        check_sizes(num_queries=num_queries)
        check_at_least(1, num_blocks=num_blocks)
        check_choice("head_activation", head_activation, ACTIVATIONS)
        activation = ACTIVATIONS[head_activation]
        if num_blocks > self.backbone.depth:
            raise UserError(f"num_blocks is {num_blocks}; the backbone has {self.backbone.depth} blocks")
        self.num_queries, self.num_blocks, self.dtype = num_queries, num_blocks, dtype
        self.mask_annealing = _check_annealing(mask_annealing, num_blocks)
        dim, steps = self.backbone.dim, (self.backbone.patch_size // STRIDE).bit_length() - 1
        if self.backbone.patch_size != STRIDE * 2**steps or steps < 1:
            raise UserError(f"patch_size is {self.backbone.patch_size}; masks at stride {STRIDE} need 8, 16 or 32")
        self.queries = Undecayed(jax.random.normal(rngs.params(), (num_queries, dim)))
        self.heads = QueryHeads(dim, num_classes, activation, **options)
        self.upscale = Stack([Upscaling(dim, activation, **options) for _ in range(steps)], remat)

    def __call__(self, image: jax.Array, valid_size: jax.Array | None = None, train: Train | None = None) -> Prediction:
        """See `types.Network`; sides of images are multiples of the patch size, and there is no valid size."""
        if valid_size is not None:
            raise ValueError("a plain ViT has no valid size: every token sees the whole image")
        grid = self.backbone.grid(image.shape[1:3])
        embed_train, mask_train = split_train(train, 2)
        first = self.backbone.depth - self.num_blocks
        with jax.named_scope("backbone"):
            x, turn = self.backbone.embed(image, embed_train)
            x = self.backbone.blocks.run(x, turn, last=first)
        queries = self.queries[...].astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(queries, (x.shape[0], *queries.shape)), x], axis=1)
        with jax.named_scope("decoder"):
            if mask_train is not None:
                return self._masked(x, turn, grid, mask_train)
            x = self.backbone.blocks.run(x, turn, first=first)
            return Prediction(*(part[None] for part in self.read(x, grid)))

    def _masked(self, x: jax.Array, turn: Rotation | None, grid: Grid, train: Train) -> Prediction:
        """The predictions before each of the last blocks, which limit what queries see in it, and after them."""
        blocks = list(self.backbone.blocks)[-self.num_blocks :]
        read = [self.read(x, grid)]
        for index, (block, keys) in enumerate(zip(blocks, split(train.key, self.num_blocks), strict=True)):
            _, mask_embed, pixel_embed = read[-1]
            masked = draws(keys, self.num_queries) < self.masked_fraction(index, train.progress)
            visible = visible_patches(mask_embed, pixel_embed, grid) | ~masked[..., None]
            # Queries, the class token and registers are seen in any case: no row of the softmax is empty.
            others = x.shape[1] - visible.shape[2]
            x = block(x, turn, jnp.pad(visible, ((0, 0), (0, 0), (others, 0)), constant_values=True))
            read.append(self.read(x, grid))
        return Prediction(*(jnp.stack(layers) for layers in zip(*read, strict=True)))

    def read(self, x: jax.Array, grid: Grid) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Class logits [B, Q, K1], mask embeddings [B, Q, D] and pixel embeddings [B, h, w, D] of tokens [B, T, D]."""
        # Blocks continue from tokens without this norm.
        x = self.backbone.norm(x)
        patches = x[:, self.num_queries + self.backbone.num_prefix :]
        pixels = patches.reshape(x.shape[0], *grid, -1)
        for upscale in self.upscale:
            pixels = upscale(pixels)
        return *self.heads(x[:, : self.num_queries]), pixels

    def masked_fraction(self, index: int, progress: jax.Array) -> jax.Array:
        """The probability that a query is masked in one of the last blocks, in [0, 1] (section 3.3).

        Args:
            progress: see `types.Train`.
        """
        if not self.mask_annealing:
            return jnp.ones_like(progress)
        start, end = self.mask_annealing[index]
        return jnp.clip(1.0 - (progress - start) / (end - start), 0.0, 1.0) ** _POWER

    def depth_of(self, name: str) -> int | None:
        """See `as_network`."""
        part, _, inside = name.partition(".")
        return self.backbone.depth_of(inside) if part == "backbone" else None


def draws(keys: jax.Array, count: int) -> jax.Array:
    """Uniform numbers [B, count] in [0, 1)."""
    return jax.vmap(lambda key: jax.random.uniform(key, (count,)))(keys)


def visible_patches(mask_embed: jax.Array, pixel_embed: jax.Array, grid: Grid) -> jax.Array:
    """The patches inside the mask of each query [B, Q, N] bool; no gradient flows through it.

    Args:
        mask_embed: [B, Q, D].
        pixel_embed: [B, h, w, D] at stride 4.
    """
    # Resizing commutes with the product that makes masks: one of the size of the patches is a 16th of the work.
    pixels = bilinear_maps(pixel_embed, *grid)
    pixels = pixels.reshape(len(pixels), -1, pixels.shape[-1])
    return masks.product("bqd,bnd->bqn", mask_embed, pixels) > 0


def _check_annealing(windows: Sequence[Sequence[float]], num_blocks: int) -> tuple[tuple[float, float], ...]:
    """The windows of all blocks."""
    if not all(isinstance(window, Sequence) for window in windows):
        raise UserError(f"mask_annealing is {windows}; expected windows ((start, end), ...), one for each block")
    windows = tuple(map(tuple, windows))
    for window in windows:
        if len(window) != 2 or not window[0] < window[1]:
            raise UserError(f"mask_annealing has {window}; expected the start and the later end of a window")
    if len(windows) == 2 < num_blocks:
        # Weights may have another number of blocks than the recipe that fine-tunes them.
        places = [index / (num_blocks - 1) for index in range(num_blocks)]
        first, last = windows
        return tuple(tuple(a + place * (b - a) for a, b in zip(first, last, strict=True)) for place in places)
    if windows and len(windows) != num_blocks:
        raise UserError(
            f"mask_annealing has {len(windows)} windows; expected one for each of {num_blocks} blocks, or those of the "
            "first and the last"
        )
    return windows
