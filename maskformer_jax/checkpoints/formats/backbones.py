"""ImageNet backbones: ResNets and Swin Transformers of several publishers."""

from maskformer_jax.checkpoints.convert import LEAVES, Table, renumber, translate
from maskformer_jax.checkpoints.formats import huggingface
from maskformer_jax.checkpoints.formats.detectron2 import RESNET, SWIN
from maskformer_jax.checkpoints.formats.format import Format, has_name

_ALONE: Table = [(r"^backbone\.", ""), *LEAVES]
_DETECTRON2_RESNET: Table = [*RESNET, *_ALONE]
_OFFICIAL_SWIN: Table = [*SWIN, *_ALONE]
# timm counts the merging of positions to the stage behind it.
_TIMM_SWIN: Table = [*_OFFICIAL_SWIN, (r"^layers\.(\d)\.downsample", renumber("layers.", 1, ".downsample"))]
_HUGGINGFACE_SWIN: Table = [
    *huggingface.swin_table("", renumber("hidden_states_norms.stage", -1, ".")),
    *LEAVES,
]
_HUGGINGFACE_RESNET: Table = [*huggingface.resnet_table(""), *LEAVES]
_TORCHVISION_RESNET: Table = [
    (r"^backbone\.stem\.0\.conv", "backbone.conv1"),
    (r"^backbone\.stem\.0\.norm", "backbone.bn1"),
    (r"^backbone\.res(\d)\.", renumber("backbone.layer", -1, ".")),
    (r"shortcut\.conv", "downsample.0"),
    (r"shortcut\.norm", "downsample.1"),
    (r"conv(\d)\.norm", r"bn\1"),
    (r"(conv\d)\.conv\.", r"\1."),
    *_ALONE,
]

_SWIN_FILES = {
    "scope": r"^backbone\.",
    "missing_ok": r"^backbone\.res\d_norm\.",  # a classifier has a norm behind its last stage only, which is not ours
    "unused_ok": r"relative_position_index$|attn_mask$|^(swin\.layer|layer)?norm\.|^head\.|^classifier\.",
}
_RESNET_FILES = {"scope": r"^backbone\.", "unused_ok": r"^fc\.|num_batches_tracked$|^stem\.fc\.|^classifier\."}

# Both Swins have layers.1.downsample and layers.2.downsample.
OFFICIAL_SWIN = Format(
    "an official Swin backbone", has_name(r"^layers\.0\.downsample\."), _OFFICIAL_SWIN, **_SWIN_FILES
)
TIMM_SWIN = Format("a timm Swin backbone", has_name(r"^layers\.3\.downsample\."), _TIMM_SWIN, **_SWIN_FILES)
TORCHVISION_RESNET = Format(
    "a torchvision or timm ResNet", has_name(r"^layer1\.0\.conv1\."), _TORCHVISION_RESNET, **_RESNET_FILES
)
# Files such as R-50.pkl, R-101.pkl and R-103.pkl.
DETECTRON2_RESNET = Format(
    "a detectron2 ResNet", has_name(r"^stem\.conv1\.weight$"), _DETECTRON2_RESNET, **_RESNET_FILES
)
# Models and backbones of transformers, in files and in the memory of its version 5.
HUGGINGFACE_SWIN = Format(
    "a Hugging Face Swin backbone",
    has_name(r"^encoder\.layers\.0\.blocks\.0\.layernorm_before\."),
    _HUGGINGFACE_SWIN,
    current_name=lambda name: translate(name, huggingface.SWIN_IN_MEMORY),
    model_type="swin",
    **_SWIN_FILES,
)
HUGGINGFACE_RESNET = Format(
    "a Hugging Face ResNet",
    has_name(r"^embedder\.embedder\.convolution\."),
    _HUGGINGFACE_RESNET,
    model_type="resnet",
    **_RESNET_FILES,
)
