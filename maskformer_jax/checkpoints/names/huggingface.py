"""`MaskFormerForInstanceSegmentation` of Hugging Face transformers."""

import re

from maskformer_jax.checkpoints.names import LEAVES, Table, renumber

_ENCODER = "model.pixel_level_module.encoder."
_SWIN = _ENCODER + "model."
_FPN = "model.pixel_level_module.decoder.fpn."
_QUERIES = "model.transformer_module."


def _from_coarse(before: str, after: str):
    """Levels 4, 3, 2 are layers 0, 1, 2 there."""

    def replace(match: re.Match) -> str:
        return f"{before}{4 - int(match.group(1))}{after}"

    return replace


_SWIN_BLOCKS: Table = [
    (r"^backbone\.patch\.", _SWIN + "embeddings.patch_embeddings.projection."),
    (r"^backbone\.patch_norm\.", _SWIN + "embeddings.norm."),
    (r"^backbone\.res(\d)_norm\.", renumber(_ENCODER + "hidden_states_norms.", -2, ".")),
    (r"^backbone\.res(\d)_merge\.", renumber(_SWIN + "encoder.layers.", -2, ".downsample.")),
    (r"^backbone\.res(\d)\.(?=\d+\.(norm|attention|linear))", renumber(_SWIN + "encoder.layers.", -2, ".blocks.")),
    (r"(blocks\.\d+)\.norm1", r"\1.layernorm_before"),
    (r"(blocks\.\d+)\.norm2", r"\1.layernorm_after"),
    (r"(blocks\.\d+)\.attention\.output", r"\1.attention.output.dense"),
    (r"(blocks\.\d+)\.attention\.(query|key|value)", r"\1.attention.self.\2"),
    (r"(blocks\.\d+)\.attention\.position_bias$", r"\1.attention.self.relative_position_bias_table"),
    (r"(blocks\.\d+)\.linear1", r"\1.intermediate.dense"),
    (r"(blocks\.\d+)\.linear2", r"\1.output.dense"),
]

_RESNET_BLOCKS: Table = [
    (r"^backbone\.stem\.0\.", _ENCODER + "embedder.embedder."),
    (r"^backbone\.res(\d)\.", renumber(_ENCODER + "encoder.stages.", -2, ".layers.")),
    (r"(?<=\d\.)conv(\d)\.(?=conv|norm)", renumber("layer.", -1, ".")),
    (r"(layer\.\d|shortcut|embedder)\.conv\.", r"\1.convolution."),
    (r"(layer\.\d|shortcut|embedder)\.norm\.", r"\1.normalization."),
]

HUGGINGFACE: Table = [
    *_SWIN_BLOCKS,
    *_RESNET_BLOCKS,
    (r"^pixel_decoder\.res5\.output_norm", _FPN + "stem.1"),
    (r"^pixel_decoder\.res5\.output", _FPN + "stem.0"),
    (r"^pixel_decoder\.res(\d)\.lateral_norm", _from_coarse(_FPN + "layers.", ".proj.1")),
    (r"^pixel_decoder\.res(\d)\.lateral", _from_coarse(_FPN + "layers.", ".proj.0")),
    (r"^pixel_decoder\.res(\d)\.output_norm", _from_coarse(_FPN + "layers.", ".block.1")),
    (r"^pixel_decoder\.res(\d)\.output", _from_coarse(_FPN + "layers.", ".block.0")),
    (r"^pixel_decoder\.mask_features", "model.pixel_level_module.decoder.mask_projection"),
    (r"^decoder\.query_embed", _QUERIES + "queries_embedder.weight"),
    (r"^decoder\.input_projection", _QUERIES + "input_projection"),
    (r"^heads\.norm", _QUERIES + "decoder.layernorm"),
    (r"^decoder\.", _QUERIES + "decoder."),
    (r"self_attention\.(q|k|v)(uery|ey|alue)", r"self_attn.\1_proj"),
    (r"cross_attention\.(q|k|v)(uery|ey|alue)", r"encoder_attn.\1_proj"),
    (r"self_attention\.output", "self_attn.out_proj"),
    (r"cross_attention\.output", "encoder_attn.out_proj"),
    (r"(decoder\.layers\.\d+)\.linear(\d)", r"\1.fc\2"),
    (r"(decoder\.layers\.\d+)\.norm1", r"\1.self_attn_layer_norm"),
    (r"(decoder\.layers\.\d+)\.norm2", r"\1.encoder_attn_layer_norm"),
    (r"(decoder\.layers\.\d+)\.norm3", r"\1.final_layer_norm"),
    (r"^heads\.class_head", "class_predictor"),
    (r"^heads\.mask_head\.layers\.(\d)", r"mask_embedder.\1.0"),
    *LEAVES,
]
