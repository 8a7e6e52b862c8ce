"""Transformer decoders: (memory [B, S, D], positions [S, D] or [B, S, D]) -> queries of every layer [L, B, Q, D].

The third argument is the key of dropout; none means inference. The fourth is added to the scores of attention to the
memory and broadcasts to [B, heads, Q, S]; none means that all of the memory counts. A decoder has `dim`, the width D,
and `query_embed`, a parameter with a row for each query, which the loss takes Q from.
"""

from maskformer_jax.models.decoders.detr import DETRDecoder

DECODERS = {"detr": DETRDecoder}
