"""How images are prepared and results are read: what is published with a trained model."""

import dataclasses

from maskformer_jax.errors import UserError
from maskformer_jax.inference.panoptic import PANOPTIC_RULES
from maskformer_jax.inference.semantic import UPSAMPLE
from maskformer_jax.inference.tiles import check_tiles
from maskformer_jax.ops.image import SIZE_ROUNDING
from maskformer_jax.parsing import check_at_least, check_choice, check_unit_interval


@dataclasses.dataclass(frozen=True)
class InferenceConfig:
    """The section `inference` of the settings.

    Args:
        short_edge: images are resized to this shorter side, unless the longer side would exceed `longest_edge`.
        longest_edge: bound of the longer side.
        size_divisor: an image is padded with zeros to a multiple of this.
        upsample: what is resized to the image for the semantic result: "scores" of classes, as the original does for
            semantic models, or "logits" of masks, as it does for panoptic models.
        score_threshold: a panoptic segment needs a score above it, 0..1.
        overlap_threshold: a panoptic segment needs at least this fraction of its mask for itself, 0..1.
        panoptic_rule: "maskformer" paints all pixels that a query wins, "mask2former" only those inside its mask.
        stretch_to: the height and width that every image is resized to instead, whatever its proportions, as
            transformers does for Mask2Former; empty to keep proportions.
        size_rounding: "half_up" or "half_even", how a side that ends in one half becomes whole pixels.
        window: if not 0, the semantic result comes from square windows of this side: where the resized image is longer,
            windows overlap as little as covers it, and scores are averaged where they do. 0 for the whole image at
            once, from which panoptic segments and instances always come.
        tile: if not 0, an image with a longer side than this is cut into tiles of this side, each is segmented as an
            image of its own, and things are joined over seams. In pixels of the image, before it is resized.
        tile_overlap: pixels that neighboring tiles have in common, at least. Things up to this size are seen whole by
            one of them. 0 for an eighth of a tile.
    """

    short_edge: int
    longest_edge: int
    size_divisor: int
    upsample: str
    score_threshold: float
    overlap_threshold: float
    panoptic_rule: str = "maskformer"
    stretch_to: tuple[int, ...] = ()
    size_rounding: str = "half_up"
    window: int = 0
    tile: int = 0
    tile_overlap: int = 0

    def __post_init__(self):
        check_choice("upsample", self.upsample, UPSAMPLE)
        check_choice("panoptic_rule", self.panoptic_rule, PANOPTIC_RULES)
        check_choice("size_rounding", self.size_rounding, SIZE_ROUNDING)
        check_at_least(0, window=self.window, tile=self.tile, tile_overlap=self.tile_overlap)
        check_tiles(self.tile, self.tile_overlap)
        if self.window and (self.size_divisor, self.upsample) != (self.window, "scores"):
            raise UserError(
                f"window is {self.window}, so size_divisor must be {self.window} and upsample 'scores'; they are "
                f"{self.size_divisor} and {self.upsample!r}"
            )
        check_unit_interval(score_threshold=self.score_threshold, overlap_threshold=self.overlap_threshold)
        sizes = {name: getattr(self, name) for name in ("short_edge", "longest_edge", "size_divisor")}
        check_at_least(1, **sizes)
        if self.stretch_to and (len(self.stretch_to) != 2 or min(self.stretch_to) < 1):
            raise UserError(f"stretch_to is {self.stretch_to}; expected a height and a width, or ()")
