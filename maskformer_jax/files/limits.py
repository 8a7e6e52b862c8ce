"""What one input may take, in every program. An environment variable raises each limit.

A file that is small on disk can take any amount of memory, and a sender of files can be a stranger. So each door
(folders of images, datasets, arrays given to a model, uploads) asks here before it spends memory or time. docs/data.md
lists all limits; a test compares.
"""

import dataclasses
import os

from maskformer_jax.errors import UserError


class LimitError(UserError):
    """An input above a limit."""


@dataclasses.dataclass(frozen=True)
class Limit:
    """The most of something that one input may have."""

    variable: str  # the environment variable that changes it
    default: int
    what: str

    @property
    def value(self) -> int:
        """The limit that holds now; raises UserError if the variable is no positive whole number."""
        text = os.environ.get(self.variable, "")
        if not text.strip():
            return self.default
        try:
            value = int(text)
        except ValueError:
            value = 0
        if value <= 0:
            raise UserError(f"{self.variable}={text!r:.100}: expected a positive whole number of {self.what}")
        return value

    def check(self, found: int, where: object) -> None:
        """Raises UserError, naming where it was found, if `found` is above the limit."""
        if found > self.value:
            raise self.exceeded(f"{found:,}", where)

    def exceeded(self, found: str, where: object) -> "LimitError":
        """The error for an input above the limit."""
        return LimitError(f"{where}: {found} {self.what}; the limit is {self.value:,}. {self.cure}")

    @property
    def cure(self) -> str:
        """How to raise the limit, a sentence."""
        return (
            "If the input is meant to be this large and the memory suffices, set the environment variable "
            f"{self.variable} to a higher number."
        )


# Pillow's own limit. An image of this size takes 0.5 to 1.2 GB to read, and 1.6 GB as JPEG 2000 or WEBP.
IMAGE_PIXELS = Limit("MASKFORMER_MAX_IMAGE_PIXELS", 89_478_485, "pixels in an image")
# What is read by tiles. Its memory is that of a row of tiles; its result takes up to 10 bytes a pixel on the disk.
TILED_IMAGE_PIXELS = Limit("MASKFORMER_MAX_TILED_IMAGE_PIXELS", 2**30, "pixels in an image that is read by tiles")
# What a model keeps compiled, each for one size of images: about 40 MB for a model of the usual size.
PROGRAMS = Limit("MASKFORMER_MAX_PROGRAMS", 16, "compiled programs in memory")
IMAGE_BYTES = Limit("MASKFORMER_MAX_IMAGE_BYTES", 2**29, "bytes in an image file")
# What servers take from strangers: one request, and all uploads to the demo page until they are deleted.
UPLOAD_BYTES = Limit("MASKFORMER_MAX_UPLOAD_BYTES", 2**26, "bytes in an upload")
UPLOADS_BYTES = Limit("MASKFORMER_MAX_UPLOADS_BYTES", 2**31, "bytes of uploads on disk")
