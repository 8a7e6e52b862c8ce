"""How far the outputs of an exported file are from those of the library."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from maskformer_jax import bundled
from maskformer_jax.errors import UserError
from maskformer_jax.files import images

Outputs = Mapping[str, np.ndarray]

# The largest difference that is none, by dtype of computation or by precision of weights, whichever is lower: for
# float32 far above rounding and far below what a wrong operation gives, for the others what their bits make of scores.
# "pixels" is a fraction of all, the others are absolute.
TOLERANCES = {
    "float32": {"pixels": 0.005, "scores": 1e-3, "logits": 1e-3},
    "float16": {"pixels": 0.01, "scores": 0.01, "logits": 0.01},
    "bfloat16": {"pixels": 0.05, "scores": 0.05, "logits": 0.05},
    "int8": {"pixels": 0.1, "scores": 0.1, "logits": 0.1},
}


def check_image(size: tuple[int, int]) -> np.ndarray:
    """[H, W, 3] uint8: a scene with shapes and textures, so that most models find something in it."""
    scene = images.open_image(bundled.examples("shapes")[0])
    return np.asarray(scene.convert("RGB").resize(size[::-1], Image.Resampling.BILINEAR))


def differences(task: str, expected: Outputs, found: Outputs) -> dict[str, float]:
    """The largest difference of each kind of output, by names in TOLERANCES.

    Segments and instances with almost equal scores may come in another order: what is compared is what each pixel says,
    which does not depend on the order.

    Args:
        task: see `ExportedFunction`; both have its outputs.
    """
    return {name: float(value) for name, value in _COMPARE[task](expected, found).items()}


def check(task: str, expected: Outputs, found: Outputs, precision: str, origin: Any) -> dict[str, float]:
    """`differences`; raises UserError if one is above its tolerance, or an output is missing or not finite."""
    if set(found) != set(expected):
        raise UserError(f"{origin} has the outputs {sorted(found)}; the library has {sorted(expected)}. Report it.")
    for name, array in expected.items():
        if found[name].shape != array.shape:
            raise UserError(f"{origin}: {name} has the shape {found[name].shape}; expected {array.shape}. Report it.")
    found_differences = differences(task, expected, found)
    for name, value in found_differences.items():
        allowed = TOLERANCES[precision][name]
        if not value <= allowed:  # NaN, too
            raise UserError(
                f"{origin} differs from the library by {value:.3g} in {name}, above the {allowed:g} of {precision}; it "
                "was not kept. Use another --format or --precision, or report it with the model."
            )
    return found_differences


def _semantic(expected: Outputs, found: Outputs) -> dict[str, Any]:
    return {
        "pixels": np.mean(expected["class_map"] != found["class_map"]),
        "scores": _furthest(expected["class_scores"], found["class_scores"]),
    }


def _panoptic(expected: Outputs, found: Outputs) -> dict[str, Any]:
    (labels, scores), (other_labels, other_scores) = (
        [np.take_along_axis(each[name], _flat(each["id_map"]), axis=1) for name in ("labels", "scores")]
        for each in (expected, found)
    )
    same = labels == other_labels
    return {"pixels": np.mean(~same), "scores": _furthest(scores * same, other_scores * same)}


def _instance(expected: Outputs, found: Outputs) -> dict[str, Any]:
    covered = [
        np.einsum("bt,bthw->bhw", each["scores"], each["masks"].astype(np.float32)) for each in (expected, found)
    ]
    most = max(1.0, np.max(covered[0], initial=0.0))
    return {
        "pixels": np.mean(np.abs(covered[0] - covered[1]) > 1e-2 * most),
        "scores": _furthest(expected["scores"], found["scores"]),
    }


def _logits(expected: Outputs, found: Outputs) -> dict[str, Any]:
    """Relative to the largest logit, whose size is arbitrary."""
    return {"logits": max(_furthest(x, found[name]) / max(1.0, np.abs(x).max()) for name, x in expected.items())}


def _flat(ids: np.ndarray) -> np.ndarray:
    return ids.reshape(len(ids), -1)


def _furthest(one: np.ndarray, other: np.ndarray) -> Any:
    return np.max(np.abs(np.asarray(one, np.float64) - np.asarray(other, np.float64)), initial=0.0)


_COMPARE: dict[str, Callable[[Outputs, Outputs], dict[str, Any]]] = {
    "semantic": _semantic,
    "panoptic": _panoptic,
    "instance": _instance,
    "logits": _logits,
}
