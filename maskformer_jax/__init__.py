"""Mask-classification segmentation in JAX: one model, one loss for semantic, instance and panoptic tasks.

    segmenter = maskformer_jax.load("shapes")  # or a folder, a file, "facebook/maskformer-swin-tiny-ade"
    result = segmenter.panoptic(image)

Each name below is imported when it is first used, so that `import maskformer_jax` and the import of one of its modules
cost nothing else.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskformer_jax import bundled, catalog, errors, export, visualize
    from maskformer_jax.catalog import Classes
    from maskformer_jax.errors import UserError
    from maskformer_jax.segmenter.results import InstanceSegmentation, Segmentation
    from maskformer_jax.segmenter.segmenter import Segmenter, load
    from maskformer_jax.segmenter.writers import Picture, open_writer

__version__ = "0.1.0"
__all__ = [  # noqa: RUF022 (by topic)
    # Use a model
    "load",
    "Segmenter",
    # What it returns
    "Segmentation",
    "InstanceSegmentation",
    "Classes",
    # Write results as a dataset
    "open_writer",
    "Picture",
    # What it raises
    "UserError",
    # Modules: models that come with the package, class lists of datasets, errors, export to other runtimes, overlays
    "bundled",
    "catalog",
    "errors",
    "export",
    "visualize",
]

_MODULE_OF = {
    "load": "segmenter.segmenter",
    "Segmenter": "segmenter.segmenter",
    "Segmentation": "segmenter.results",
    "InstanceSegmentation": "segmenter.results",
    "Classes": "catalog",
    "UserError": "errors",
    "open_writer": "segmenter.writers",
    "Picture": "segmenter.writers",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULE_OF.get(name, name)}")
    return getattr(module, name) if name in _MODULE_OF else module


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
