"""Scaled dot-product attention over heads: one function for all models, and the only place that chooses a kernel.

The plain form writes the scores of all queries and keys to memory. Fused kernels never do: cuDNN's on NVIDIA GPUs,
splash attention on TPUs. A program's platform is known when it is lowered, and the choice is made then. Kernels take
part where they pay, in float16 and bfloat16, without mask, bias and dropout: the long sequences of plain ViTs.

For one block of ViT-L in bfloat16, with its gradients, compiled for a v5e (benchmarks/attention.py), the plain form
needs 5.6 GB of temporary memory at 6605 tokens and 242 MB at 1805; with the kernel it is 233 MB, and nothing beyond the
memory on the chip. At 1024 tokens the scores of an image fit there, too, and a kernel for TPUs would bring little.

On CPUs there is no kernel, but the scores of some queries at a time stay in the cache. For one block of ViT-S at 1805
tokens on one core, that takes a third of the time of the plain form, and 40 % with its gradient.

Masks and biases take the plain form everywhere. cuDNN wants them as one additive array of the dtype of the queries,
repeated for every query, and always computes a gradient of it, which in turn needs an even number of queries and keys
and, by the version of JAX, a batch of one image (jax issues 28974, 30593 and 36702). Splash attention has no arrays as
masks that differ by image. Queries that have masks are few, or see the few keys of a window.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from maskformer_jax.ops.dropout import dropout
from maskformer_jax.ops.platforms import kernels_allowed

# The fewest queries and keys for which a kernel takes the place of the plain form.
FEWEST_FOR_CUDNN, FEWEST_FOR_SPLASH, FEWEST_FOR_ROWS = 256, 1024, 512
_ROWS = 128  # queries at a time on CPUs
_LARGEST_HEAD = 128
# A sequence is filled up to a multiple of the block that wastes least of it. The scores of two blocks, in float32, and
# what the kernel keeps beside them, have to fit 16 MB of memory on the chip.
_BLOCKS = (384, 512, 640, 768, 896, 1024)

Form = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def multi_head_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    num_heads: int,
    *,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Attention with dropout on the probabilities, softmax in float32.

    Args:
        query: [..., T, D]; key, value: [..., S, D]. Heads are consecutive blocks of D / num_heads channels.
        bias: added to the scores; broadcasts to [..., num_heads, T, S].
        mask: bool, True where a query sees a key; broadcasts to the same. Every query must see one.

    Returns:
        [..., T, D] in the dtype of `query`.
    """

    def heads(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], num_heads, x.shape[-1] // num_heads)

    def plain(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return _plain(query, key, value, bias, mask, dropout_rate, dropout_key)

    query, key, value = heads(query), heads(key), heads(value)
    dropped = dropout_rate > 0.0 and dropout_key is not None
    kernels = {} if bias is not None or mask is not None or dropped else _kernels(query, key, value)
    if kernels:
        output = jax.lax.platform_dependent(query, key, value, **kernels, default=plain)
    else:
        output = plain(query, key, value)
    return output.reshape(*output.shape[:-2], num_heads * output.shape[-1])


def attention_with_masked_rows(
    query: jax.Array, key: jax.Array, value: jax.Array, num_heads: int, mask: jax.Array
) -> jax.Array:
    """Attention in which a mask limits the first queries and the others see every key.

    The two groups of queries run apart with the same keys and values: no mask of all queries exists, and all but a few
    take the path without a mask.

    Args:
        query: [B, T, D]; key, value: [B, S, D].
        mask: bool [B, Q, S] for the first Q queries, True where one sees a key; 0 <= Q <= T. Every query must see one.

    Returns:
        [B, T, D] in the dtype of `query`.
    """
    count = mask.shape[-2]
    masked = multi_head_attention(query[:, :count], key, value, num_heads, mask=mask[:, None])
    free = multi_head_attention(query[:, count:], key, value, num_heads)
    return jnp.concatenate([masked, free], axis=1)


def _plain(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None,
    mask: jax.Array | None,
    dropout_rate: float,
    dropout_key: jax.Array | None,
) -> jax.Array:
    """[..., T, heads, D] from arrays of that form; for the others see `multi_head_attention`."""
    query = query * query.shape[-1] ** -0.5
    scores = jnp.einsum("...thd,...shd->...hts", query, key, preferred_element_type=jnp.float32)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    probs = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    probs = dropout(probs, dropout_rate, dropout_key)
    return jnp.einsum("...hts,...shd->...thd", probs, value)


def _kernels(query: jax.Array, key: jax.Array, value: jax.Array) -> dict[str, Form]:
    """Kernels for attention from [B, T, heads, D] to [B, S, heads, D] by platform, as far as they take the arrays."""
    lengths = *query.shape, *key.shape
    # Exported programs may have symbols for lengths.
    if not kernels_allowed() or query.ndim != 4 or not all(isinstance(length, int) for length in lengths):
        return {}
    shortest = min(query.shape[1], key.shape[1])
    kernels: dict[str, Form] = {}
    if shortest >= FEWEST_FOR_ROWS:
        kernels["cpu"] = attention_by_rows
    if query.dtype not in (jnp.bfloat16, jnp.float16) or not query.dtype == key.dtype == value.dtype:
        return kernels
    if query.shape[-1] % 8 or query.shape[-1] > _LARGEST_HEAD:
        return kernels
    if _has_checked_axes(query) or _is_too_old(jax.devices()[0]):
        return kernels
    if shortest >= FEWEST_FOR_CUDNN and _is_traceable(cudnn_attention, query, key, value):
        kernels["cuda"] = cudnn_attention
    if shortest >= FEWEST_FOR_SPLASH and query.dtype == jnp.bfloat16:
        kernels["tpu"] = splash_attention
    return kernels


def _has_checked_axes(x: jax.Array) -> bool:
    """Whether a shard_map around checks which of its axes arrays vary over, of which Pallas kernels know nothing."""
    kind = jax.typeof(x)
    # `mat` took the place of `vma`.
    return bool(kind.mat.varying if hasattr(kind, "mat") else kind.vma)


def _is_too_old(device: jax.Device) -> bool:
    """Whether a device has no kernels: TPUs before v4 no products of bfloat16 in them, GPUs before Ampere none at all.

    An absent device, for which a program may be compiled, counts as new.
    """
    capability = getattr(device, "compute_capability", "")
    major = capability.partition(".")[0]
    return device.device_kind.startswith(("TPU v2", "TPU v3")) or (major.isdigit() and int(major) < 8)


def _is_traceable(form: Form, *arrays: jax.Array) -> bool:
    """Whether JAX takes a kernel for these arrays; it refuses cuDNN's where cuDNN is not installed."""
    try:
        jax.eval_shape(form, *arrays)
    except (RuntimeError, NotImplementedError):
        return False
    return True


def attention_by_rows(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Attention [B, T, heads, D] for CPUs: a few queries of one head after another, in the gradient, too."""
    batch, length, num_heads, dim = query.shape

    def by_head(x: jax.Array) -> jax.Array:
        return x.swapaxes(1, 2).reshape(batch * num_heads, -1, dim)

    query = _fill(query * dim**-0.5, -(-length // _ROWS) * _ROWS)

    def of_head(arrays: tuple[jax.Array, ...]) -> jax.Array:
        query, key, value = arrays

        # Scores are computed again for the gradient: kept, they would be written to memory.
        @jax.checkpoint
        def of_rows(query: jax.Array) -> jax.Array:
            scores = jax.lax.dot_general(query, key, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
            weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
            # Divided after the product: an output has fewer values than its row of scores.
            sums = jnp.sum(weights, axis=-1, keepdims=True)
            return ((weights.astype(value.dtype) @ value) / sums).astype(value.dtype)

        return jax.lax.map(of_rows, query.reshape(-1, _ROWS, dim)).reshape(-1, dim)

    output = jax.lax.map(of_head, tuple(map(by_head, (query, key, value))))
    return output.reshape(batch, num_heads, -1, dim).swapaxes(1, 2)[:, :length]


def cudnn_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Attention [B, T, heads, D] by cuDNN, for CUDA; float16 or bfloat16, D a multiple of 8 and at most 128."""
    queries, keys = query.shape[1], key.shape[1]
    attend = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    if queries % 2 == keys % 2 == 0:
        return attend(query, key, value)
    # JAX refuses to differentiate odd numbers. One more query is dropped, and cuDNN does not look at one more key.
    # Under vmap, numbers of keys have to be batched as the arrays are, so they are made from an array.
    none = 0 * query[:, 0, 0, 0].astype(jnp.int32)
    query, key, value = (_fill(x, x.shape[1] + x.shape[1] % 2) for x in (query, key, value))
    lengths = {"query_seq_lengths": none + query.shape[1], "key_value_seq_lengths": none + keys}
    return attend(query, key, value, **lengths)[:, :queries]


def splash_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Attention [B, T, heads, D] by the Pallas kernel of JAX, for TPUs."""
    # They take a while to import, and few programs need them.
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    batch, length, num_heads, _ = query.shape
    kernel, (queries, keys) = _splash_kernel(batch * num_heads, length, key.shape[1])

    def by_head(x: jax.Array, length: int) -> jax.Array:
        # The kernel takes one image. Heads of all images are to it the heads of one.
        return _fill(x, length).swapaxes(1, 2).reshape(batch * num_heads, length, -1)

    # Segments hide the filling of the keys.
    is_key = jnp.arange(keys) < key.shape[1]
    segments = SegmentIds(jnp.ones(queries, jnp.int32), is_key.astype(jnp.int32))
    query = query * query.shape[-1] ** -0.5
    output = kernel(by_head(query, queries), by_head(key, keys), by_head(value, keys), segment_ids=segments)
    return output.reshape(batch, num_heads, queries, -1).swapaxes(1, 2)[:, :length]


def _splash_kernel(num_heads: int, queries: int, keys: int) -> tuple[Callable, tuple[int, int]]:
    """The kernel, and the lengths to which it wants queries and keys filled."""
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        BlockSizes,
        FullMask,
        MultiHeadMask,
        QKVLayout,
        make_splash_mha,
    )

    blocks = _block(queries), _block(keys)
    lengths = tuple(-(-length // block) * block for length, block in zip((queries, keys), blocks, strict=True))
    # With the sequence last, heads of 64 channels fill the 128 lanes: a quarter less main memory is moved. The fused
    # backward kernel would keep partial gradients of the queries for each block of keys.
    sizes = BlockSizes(
        block_q=blocks[0],
        block_kv=blocks[1],
        block_q_dkv=blocks[0],
        block_kv_dkv=blocks[1],
        block_q_dq=blocks[0],
        block_kv_dq=blocks[1],
        q_layout=QKVLayout.SEQ_MINOR,
        k_layout=QKVLayout.SEQ_MINOR,
        v_layout=QKVLayout.SEQ_MINOR,
    )
    mask = MultiHeadMask([FullMask(lengths)] * num_heads)
    return make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1), lengths


def _fill(x: jax.Array, length: int) -> jax.Array:
    """[B, length, heads, D] with zeros at the end of a sequence."""
    return jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, 0)))


def _block(length: int) -> int:
    return min(_BLOCKS, key=lambda block: (-length % block, -block))
