"""Results in blocks, from one program for all sizes, against results in a canvas that holds them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskformer_jax.catalog import Classes
from maskformer_jax.inference.blocks import Layout, layout_of
from maskformer_jax.inference.compiled import BlockProgram, View, compile_postprocess
from maskformer_jax.sharding import make_mesh
from maskformer_jax.types import Network, PixelPrediction, Prediction
from tests.samples import slow

CLASSES = Classes.from_dict({"names": list("abcde"), "things": ["a", "b"]}, "test")
PADDED, QUERIES = (32, 64), 9
# Two batches of one program: results larger than one call holds, lower than a block, and narrower than eight pixels.
SIZES = [[(32, 50), (32, 64), (28, 32), (32, 33)], [(32, 40), (8, 64), (32, 1), (16, 16)]]
ORIGINALS = [[(20, 31), (210, 420), (90, 103), (32, 33)], [(61, 77), (1, 9), (300, 5), (16, 17)]]
THRESHOLDS = np.array([0.25, 0.4], np.float32)


def network(per_pixel=False):
    """Queries whose masks are colors of the image, and whose classes depend on its mean."""
    rng = np.random.default_rng(0)
    colors = jnp.array(rng.normal(size=(QUERIES, 3)), jnp.float32) * 4
    classes = jnp.array(rng.normal(size=(QUERIES, 3, len(CLASSES) + 1)), jnp.float32) * 4

    def apply(params, frozen, image, *, valid_size=None, train=None):
        pixels = image[:, 2::4, 2::4]
        if per_pixel:
            return PixelPrediction(jnp.einsum("bhwc,kc->bkhw", pixels, colors[: len(CLASSES)])[None])
        area = image.shape[1] * image.shape[2] if valid_size is None else jnp.prod(valid_size, axis=1)[:, None]
        # Padding is zero, and does not change it.
        class_logits = jnp.einsum("bc,qck->bqk", jnp.sum(image, axis=(1, 2)) / area, classes)
        embed = jnp.broadcast_to(colors, (len(image), *colors.shape))
        return Prediction(class_logits[None], embed[None], pixels[None])

    return Network(
        lambda key: ({}, {}), apply, None, None if per_pixel else QUERIES, True, False, lambda name: None, ({}, {})
    )


def batch(index):
    rng = np.random.default_rng(index)
    coarse = rng.integers(0, 256, (4, 8, 16, 3), dtype=np.uint8)
    image = np.repeat(np.repeat(coarse, 4, axis=1), 4, axis=2)
    sizes = np.array(SIZES[index], np.int32)
    return View(image, sizes, -(-sizes // 16) * 16), np.array(ORIGINALS[index], np.int32)


def close_to_all(one, two):
    """Between two classes or queries rounding decides."""
    assert one.shape == two.shape
    assert np.mean(one == two) > 0.998


@pytest.mark.parametrize(
    ("task", "upsample", "per_pixel"),
    [
        ("semantic", "scores", False),
        ("panoptic", "logits", False),
        ("instance", "logits", False),
        slow("semantic", "logits", False),
        slow("panoptic", "scores", True),
    ],
)
def test_blocks_are_parts_of_the_canvas(task, upsample, per_pixel):
    mesh, options = make_mesh(jax.devices()[:2]), {"upsample": upsample, "panoptic_rule": "mask2former"}
    # Blocks of 24 columns at most: several beside each other.
    program = BlockProgram(network(per_pixel), CLASSES, mesh, Layout(24, 32, 24 * 64 * 12), task=task, **options)
    whole = compile_postprocess(network(per_pixel), CLASSES, mesh, tasks=(task,), **options)
    things = 0
    for index, originals in enumerate(ORIGINALS):
        view, sizes = batch(index)
        found = program({}, {}, view, sizes, THRESHOLDS)
        assert (len(found.calls) > 1) == (index == 0)
        expected = jax.device_get(whole({}, {}, (view,), sizes, THRESHOLDS, (304, 424)))
        for place, (result, (height, width)) in enumerate(zip(found.fetch(originals, task), originals, strict=True)):
            cut = (slice(place, place + 1), slice(height), slice(width))
            if task == "semantic":
                close_to_all(result.class_map, expected.class_map[cut])
                np.testing.assert_allclose(result.class_score, expected.class_score[cut[:1]], atol=1e-3)
            elif task == "panoptic":
                close_to_all(result.panoptic.id_map, expected.panoptic.id_map[cut])
                for name in ("segment_id", "label", "leads"):
                    values = getattr(expected.panoptic, name)[cut[:1]]
                    np.testing.assert_array_equal(getattr(result.panoptic, name), values)
                things += result.panoptic.segment_id.max()
            else:
                masks, of_canvas = result.instances, expected.instances
                unpacked = np.unpackbits(masks.packed_masks, axis=-1)[..., :width]
                canvas = np.unpackbits(of_canvas.packed_masks, axis=-1)[place : place + 1, :, :height, :width]
                close_to_all(unpacked, canvas)
                np.testing.assert_allclose(masks.score, of_canvas.score[cut[:1]], atol=1e-4)
                things += np.count_nonzero(masks.score)
    assert things > 5 or task == "semantic"
    assert program.num_compiled == 1


@pytest.mark.parametrize("padded", [(64, 64), (512, 704), (1344, 800), (96, 2048)])
def test_an_image_of_the_size_of_its_input_takes_one_call(padded):
    layout = layout_of(padded)
    columns = layout.columns(padded[1], padded[1])
    across = -(-padded[1] // columns)
    assert layout.pixels >= across * layout.width * (padded[0] + 63)
    assert across * layout.width < 1.2 * padded[1] + 8
