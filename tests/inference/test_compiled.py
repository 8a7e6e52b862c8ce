"""From images to results in one compiled function, against its parts by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from maskformer_jax.catalog import Classes
from maskformer_jax.inference import Frame, semantic
from maskformer_jax.inference.compiled import View, compile_postprocess
from maskformer_jax.ops import masks
from maskformer_jax.ops.image import normalize
from maskformer_jax.sharding import make_mesh
from tests.samples import compiled, tiny_network

CLASSES = Classes.from_dict({"names": list("abcde"), "things": ["a", "b"]}, "test")
ORIGINALS = [(30, 41), (22, 17)]
SCALES = {(24, 32): [(24, 32), (24, 19)], (40, 48): [(36, 48), (40, 31)]}  # input of a view: sizes of both pictures
DIVISOR = 8


def scores_alone(network, params, frozen, picture, original, flip):
    """[K, *original] of one picture, which is mirrored, padded and answered by itself."""
    pixels = picture[:, ::-1] if flip else picture
    size = picture.shape[:2]
    bottom, right = (-length % DIVISOR for length in size)
    padded = np.pad(pixels, ((0, bottom), (0, right), (0, 0)))[None]
    last = network.apply(params, frozen, normalize(padded, np.array([size]))).last()
    frame = Frame(jnp.array([size]), jnp.array([original]), padded.shape[1:3], original)
    scores = np.asarray(semantic(last.class_logits[0], masks.logits(last)[0], frame))[0]
    return scores[..., ::-1] if flip else scores


def test_views_of_a_batch_are_the_mean_of_pictures_answered_alone():
    """Two scales and their mirror images of two images of other sizes, in one padded batch."""
    network = compiled(tiny_network())
    params, frozen = network.init(jax.random.key(0))
    # As they start, all queries say nearly the same.
    heads = ("heads.class_head", "heads.mask_head", "decoder.query_embed")
    params = {name: 3.0 * array if name.startswith(heads) else array for name, array in params.items()}
    rng = np.random.default_rng(0)
    views, pictures = [], []
    for canvas, sizes in SCALES.items():
        image = rng.integers(0, 256, (2, *canvas, 3), dtype=np.uint8)  # anything outside of the pictures
        size = np.array(sizes, np.int32)
        views.append(View(image, size, -(-size // DIVISOR) * DIVISOR))
        pictures.append([image[i, :height, :width] for i, (height, width) in enumerate(sizes)])
    options = {"tasks": ("semantic",), "upsample": "scores", "panoptic_rule": "maskformer", "flips": (False, True)}
    run = compile_postprocess(network, CLASSES, make_mesh(jax.devices()[:2]), **options)
    canvas = tuple(np.max(ORIGINALS, axis=0).tolist())
    found = run(params, frozen, tuple(views), np.array(ORIGINALS, np.int32), np.zeros(2, np.float32), canvas)
    for image, original in enumerate(ORIGINALS):
        shown = [(of_scale[image], flip) for of_scale in pictures for flip in (False, True)]
        scores = np.mean([scores_alone(network, params, frozen, p, original, flip) for p, flip in shown], axis=0)
        class_map = np.asarray(found.class_map)[image, : original[0], : original[1]]
        first, second = np.sort(scores, axis=0)[[-1, -2]]
        certain = first - second > 1e-5  # between two classes, rounding decides
        assert certain.mean() > 0.95
        np.testing.assert_array_equal(class_map[certain], scores.argmax(axis=0)[certain])
        assert len(np.unique(class_map)) > 1
