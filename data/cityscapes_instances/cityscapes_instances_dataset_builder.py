"""Cityscapes instances, 8 thing classes: leftImg8bit and gtFine as published."""

from maskformer_jax.data.cityscapes_panoptic import cityscapes_panoptic_dataset_builder


class Builder(cityscapes_panoptic_dataset_builder.Builder):
    """2,975 training and 500 validation images; a group of things without separate instances is a crowd.

    The things of the panoptic dataset, with the pixels of stuff void; some images have none.
    """

    CATALOG = "cityscapes_instances"
