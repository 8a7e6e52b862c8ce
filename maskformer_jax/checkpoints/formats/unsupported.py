"""Formats that are recognised and not read yet, so that their files are not taken for others or for damaged ones."""

from maskformer_jax.checkpoints.formats.format import Format, has_name

EOMT_ORIGINAL = Format("an original EoMT", has_name(r"^(network\.)?upscale\.\d+\.conv1\."), table=None)
EOMT_HUGGINGFACE = Format("a Hugging Face EoMT", has_name(r"^upscale_block\.block\.\d+\.conv1\."), table=None)
