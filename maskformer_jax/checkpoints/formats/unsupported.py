"""Formats that are recognised and not read yet, so that their files are not taken for others or for damaged ones."""

from maskformer_jax.checkpoints.formats.format import Format, has_name

# Its decoder begins a layer with cross-attention, for which it has a list of its own.
MASK2FORMER_ORIGINAL = Format(
    "an original Mask2Former (detectron2)",
    has_name(r"^sem_seg_head\.predictor\.transformer_cross_attention_layers\."),
    table=None,
)
MASK2FORMER_HUGGINGFACE = Format(
    "a Hugging Face Mask2Former", has_name(r"^model\.transformer_module\.queries_features\."), table=None
)
EOMT_ORIGINAL = Format("an original EoMT", has_name(r"^(network\.)?upscale\.\d+\.conv1\."), table=None)
EOMT_HUGGINGFACE = Format("a Hugging Face EoMT", has_name(r"^upscale_block\.block\.\d+\.conv1\."), table=None)
