"""Transformer decoders: (memory [B, S, D], positions [S, D]) -> queries of every layer [L, B, Q, D]."""

from maskformer_jax.models.decoders.detr import DETRDecoder

DECODERS = {"detr": DETRDecoder}
