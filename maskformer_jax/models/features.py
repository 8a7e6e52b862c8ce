"""What passes between the parts of a model: feature maps, and the pixel decoder's result."""

import dataclasses

import jax

from maskformer_jax.ops.valid_size import strided
from maskformer_jax.types import Convolution


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Map:
    """A feature map that knows where it came from, so that nobody derives its stride from a name."""

    x: jax.Array  # [B, ceil(H / stride), ceil(W / stride), C]
    stride: int = dataclasses.field(metadata={"static": True})
    valid_size: jax.Array | None = None  # [B, 2] the part of x that is not padding; None for all of it

    @staticmethod
    def of_image(x: jax.Array, stride: int, image_valid_size: jax.Array | None) -> "Map":
        """A map of an image, from the valid size of the image itself."""
        return Map(x, stride, strided(image_valid_size, stride))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pixels:
    """What a pixel decoder gives."""

    embed: Map  # an embedding of each pixel at stride 4, [B, h, w, D]
    maps: dict[str, Map]  # features that a transformer decoder may attend to, the backbone's included
    source: Convolution | None = None  # what gives embed, if it is a convolution
