"""Semantic segmentation by windows: the original's numbers, and invariants that no other library is needed for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskformer_jax.catalog import Classes
from maskformer_jax.errors import UserError
from maskformer_jax.inference import Frame, InferenceConfig, postprocess
from maskformer_jax.inference.compiled import View, compile_postprocess
from maskformer_jax.inference.semantic import mask_scores, pixel_scores
from maskformer_jax.inference.windows import Windows, read_windows, window_scores, window_starts
from maskformer_jax.input_pipeline.resize import resize_to_test_size
from maskformer_jax.ops.image import PIXEL_MEAN, PIXEL_STD, normalize, shortest_edge_size
from maskformer_jax.ops.resize import bilinear
from maskformer_jax.sharding import make_mesh
from maskformer_jax.types import Network, Prediction
from tests.samples import compiled, tiny_network

CLASSES = Classes.from_dict({"names": list("abcde"), "things": ["a", "b"]}, "test")


def starts_of(length, side):
    """The original's rule, in integers; and the number of windows."""
    count = -(-length // side)
    return [j * (length - side) // (count - 1) if count > 1 else 0 for j in range(count)]


def windows_of(class_logits, mask_logits, size, side):
    """Windows of one image [N, ...] whose resized size is known."""
    rows, columns = (np.array([starts_of(length, side)], np.int32) for length in size)
    return Windows((class_logits[None], mask_logits[None]), rows, columns, side)


def frame_of(size, original, side, canvas=None, flipped=False):
    padded = tuple(-(-length // side) * side for length in size)
    return Frame(jnp.array([size]), jnp.array([original]), padded, canvas or original, flipped=flipped)


def reference(class_logits, mask_logits, size, original, side):
    """[K, *original] by sums and counts of whole maps, as the original writes it down."""
    corners = [(top, left) for top in starts_of(size[0], side) for left in starts_of(size[1], side)]
    probs = np.exp(class_logits - class_logits.max(axis=-1, keepdims=True))
    probs = (probs / probs.sum(axis=-1, keepdims=True))[..., :-1]
    masks = 1 / (1 + np.exp(-np.asarray(bilinear(jnp.asarray(mask_logits), side, side), np.float64)))
    sums, counts = np.zeros((probs.shape[-1], *size)), np.zeros(size)
    for number, (top, left) in enumerate(corners):
        scores = np.einsum("qk,qhw->khw", probs[number], masks[number])
        height, width = min(side, size[0]), min(side, size[1])
        sums[:, top : top + side, left : left + side] += scores[:, :height, :width]
        counts[top : top + side, left : left + side] += 1
    return np.asarray(bilinear(jnp.asarray(sums / counts), *original))


def test_the_numbers_of_the_original():
    image = np.random.RandomState(7).randint(0, 256, (3, 20, 33)).astype(np.uint8).transpose(1, 2, 0)
    resized = resize_to_test_size(image, 16, 1000, rounding="half_even")
    assert resized.shape == (16, 26, 3)
    found = read_windows(reader(), {}, {}, np.pad(resized, ((0, 0), (0, 6), (0, 0)))[None], np.array([[16, 26]]), 16)
    assert found.rows.tolist() == [[0]]
    assert found.columns.tolist() == [[0, 10]]
    crops = np.round(
        np.asarray(found.logits[1])[0] * np.array(PIXEL_STD)[:, None, None] + np.array(PIXEL_MEAN)[:, None, None]
    )
    assert crops[0, :, 0, 0].tolist() == [176, 52, 163]
    assert crops[-1, :, -1, -1].tolist() == [113, 96, 143]
    assert crops.sum() == 193565

    class_logits = (np.random.RandomState(1).standard_normal((2, 8, 5)) * 6).astype(np.float32)
    mask_logits = (np.random.RandomState(2).standard_normal((2, 8, 4, 4)) * 3).astype(np.float32)
    windows = windows_of(class_logits, mask_logits, (16, 26), 16)
    scores = np.asarray(window_scores(windows, frame_of((16, 26), (20, 33), 16))(0, 20))[0]
    assert scores.shape == (20, 33, 4)
    assert scores.sum() == pytest.approx(1999.58118, abs=1e-3)
    np.testing.assert_allclose(scores[0, 0], [0.301602, 0.966748, 0.083049, 0.100223], atol=2e-6)
    np.testing.assert_allclose(scores[10, 16], [1.342324, 0.806827, 0.699490, 0.805326], atol=2e-6)
    np.testing.assert_allclose(scores[19, 32], [0.108194, 1.093266, 0.909433, 0.513625], atol=2e-6)
    assert np.bincount(scores.argmax(axis=-1).ravel()).tolist() == [136, 216, 99, 209]


def reader() -> Network:
    """A network whose masks are the channels of its input."""

    def apply(params, frozen, image, *, valid_size=None, train=None):
        eye = jnp.broadcast_to(jnp.eye(3), (1, len(image), 3, 3))
        return Prediction(jnp.zeros((1, len(image), 3, 5)), eye, image[None])

    return dataclasses.replace(tiny_network(), apply=apply, black_padding=True)


@pytest.mark.parametrize(
    ("size", "side", "resized", "starts"),
    [
        ((480, 640), 512, (512, 683), [0, 171]),
        ((300, 1000), 512, (512, 1707), [0, 398, 796, 1195]),
        ((513, 512), 512, (513, 512), [0, 1]),
        ((1024, 2048), 1024, (1024, 2048), [0, 1024]),
        ((512, 512), 512, (512, 512), [0]),
        ((1025, 1024), 512, (512, 512), [0]),  # 512.5, rounded to even
    ],
)
def test_sizes_and_starts_are_the_originals(size, side, resized, starts):
    assert shortest_edge_size(size, side, None, "half_even") == resized
    assert window_starts(np.array([max(resized)]), len(starts), side).tolist() == [starts]


@pytest.mark.parametrize("side", [16, 512])
def test_windows_cover_an_image_evenly(side):
    for length in range(1, 14 * side, max(1, side // 37)):
        count = -(-length // side)
        starts = np.asarray(window_starts(np.array([length]), count, side))[0]
        assert starts[0] == 0
        assert starts[-1] + side == max(length, side)
        assert (np.diff(starts) <= side).all()
        assert (starts[2:] >= starts[:-2] + side).all()  # what `_at_columns` builds on


CASES = {
    "columns": ((16, 41), (20, 51)),
    "rows": ((41, 16), (51, 20)),
    "both": ((24, 40), (19, 33)),
    "one": ((16, 16), (31, 29)),
    "smaller than a window": ((12, 27), (12, 30)),
    "not resized": ((16, 40), (16, 40)),
}


@pytest.mark.parametrize(("size", "original"), CASES.values(), ids=CASES)
def test_scores_are_those_of_whole_maps(size, original):
    rng = np.random.default_rng(0)
    count = len(starts_of(size[0], 16)) * len(starts_of(size[1], 16))
    class_logits = rng.normal(size=(count, 6, 5)).astype(np.float32) * 3
    mask_logits = rng.normal(size=(count, 6, 4, 4)).astype(np.float32) * 3
    expected = reference(class_logits, mask_logits, size, original, 16)
    windows = windows_of(class_logits, mask_logits, size, 16)
    canvas = (original[0] + 3, original[1] + 5)
    scores = window_scores(windows, frame_of(size, original, 16, canvas))
    found = np.moveaxis(np.asarray(scores(0, canvas[0])), -1, 1)[0]
    np.testing.assert_allclose(found[:, : original[0], : original[1]], expected, atol=2e-5)
    some = np.moveaxis(np.asarray(scores(jnp.int32(7), 3)), -1, 1)[0]
    np.testing.assert_allclose(some, found[:, 7:10], atol=1e-6)

    mirrored = window_scores(windows, frame_of(size, original, 16, canvas, flipped=True))
    found = np.moveaxis(np.asarray(mirrored(0, canvas[0])), -1, 1)[0]
    np.testing.assert_allclose(found[:, : original[0], : original[1]], expected[..., ::-1], atol=2e-5)


def test_one_window_is_the_whole_image():
    rng = np.random.default_rng(1)
    class_logits = rng.normal(size=(1, 6, 5)).astype(np.float32)
    mask_logits = rng.normal(size=(1, 6, 4, 4)).astype(np.float32) * 3
    frame = frame_of((16, 16), (25, 21), 16)
    windows = windows_of(class_logits, mask_logits, (16, 16), 16)
    expected = mask_scores(class_logits, mask_logits, frame, "scores")(0, 25)
    np.testing.assert_allclose(window_scores(windows, frame)(0, 25), expected, atol=1e-6)
    pixels = dataclasses.replace(windows, logits=windows.logits[1:])
    np.testing.assert_allclose(window_scores(pixels, frame)(0, 25), pixel_scores(mask_logits, frame)(0, 25), atol=1e-5)


@pytest.mark.parametrize("at_once", [1, 3, 8, 100])
def test_few_windows_at_once_are_all_of_them(at_once, monkeypatch):
    monkeypatch.setattr("maskformer_jax.inference.windows._READ_AT_ONCE", at_once)
    image = np.random.default_rng(2).integers(0, 256, (2, 32, 48, 3), dtype=np.uint8)
    sizes = np.array([[17, 48], [30, 33]], np.int32)
    found = read_windows(reader(), {}, {}, image, sizes, 16)
    black = np.array(normalize(image, sizes, black=True))
    for index, (height, width) in enumerate(sizes):
        tops, lefts = starts_of(height, 16), starts_of(width, 16)
        assert (found.rows[index].tolist(), found.columns[index].tolist()) == (tops, lefts)
        for number, (top, left) in enumerate((top, left) for top in tops for left in lefts):
            expected = black[index, top : top + 16, left : left + 16].transpose(2, 0, 1)
            np.testing.assert_allclose(found.logits[1][index, number], expected, atol=1e-5)


ORIGINALS = [(20, 41), (22, 45)]


def test_images_of_a_batch_have_the_results_of_the_image_alone():
    """Two images of one canvas on two devices, at two scales with their mirror images."""
    network = compiled(tiny_network())
    params, frozen = network.init(jax.random.key(0))
    heads = ("heads.class_head", "heads.mask_head", "decoder.query_embed")
    params = {name: 3.0 * array if name.startswith(heads) else array for name, array in params.items()}
    sizes = {(32, 96): [(32, 66), (32, 65)], (64, 96): [(48, 96), (48, 95)]}
    rng = np.random.default_rng(0)
    views = tuple(
        View(rng.integers(0, 256, (2, *canvas, 3), dtype=np.uint8), np.array(size, np.int32))
        for canvas, size in sizes.items()
    )
    options = {"tasks": ("semantic",), "upsample": "scores", "panoptic_rule": "maskformer", "window": 32}
    run = compile_postprocess(network, CLASSES, make_mesh(jax.devices()[:2]), **options, flips=(False, True))
    canvas = tuple(np.max(ORIGINALS, axis=0).tolist())
    found = run(params, frozen, views, np.array(ORIGINALS, np.int32), np.zeros(2, np.float32), canvas)
    assert found.finite.all()
    for index, original in enumerate(ORIGINALS):
        total = 0
        for view in views:
            height, width = view.image_size[index]
            picture = view.image[index, :height, :width]
            for flip in (False, True):
                image = np.pad(picture[:, ::-1] if flip else picture, ((0, -height % 32), (0, -width % 32), (0, 0)))
                windows = read_windows(network, params, frozen, image[None], view.image_size[index][None], 32)
                logits = (np.asarray(x)[0] for x in windows.logits)
                scores = reference(*logits, (height, width), original, 32)
                total = total + (scores[..., ::-1] if flip else scores)
        first, second = np.sort(total, axis=0)[[-1, -2]]
        certain = first - second > 1e-4
        assert certain.mean() > 0.9
        class_map = np.asarray(found.class_map)[index, : original[0], : original[1]]
        np.testing.assert_array_equal(class_map[certain], total.argmax(axis=0)[certain])
        assert len(np.unique(class_map)) > 1


def test_segments_of_such_a_model_come_from_the_whole_image():
    network = compiled(tiny_network())
    params, frozen = network.init(jax.random.key(0))
    view = View(np.random.default_rng(0).integers(0, 256, (1, 32, 64, 3), dtype=np.uint8), np.array([[32, 50]]))

    def run(window, *tasks):
        options = {"upsample": "scores", "panoptic_rule": "maskformer", "window": window}
        run = compile_postprocess(network, CLASSES, make_mesh(jax.devices()[:1]), tasks=tasks, **options)
        return run(params, frozen, (view,), np.array([[40, 62]]), np.zeros(2, np.float32), (40, 62))

    both = run(32, "panoptic", "semantic")
    jax.tree.map(np.testing.assert_array_equal, both.panoptic, run(0, "panoptic").panoptic)
    jax.tree.map(np.testing.assert_array_equal, run(32, "panoptic").panoptic, both.panoptic)
    windows = run(32, "semantic")
    np.testing.assert_array_equal(both.class_map, windows.class_map)
    assert not np.array_equal(windows.class_score, run(0, "semantic").class_score)
    with pytest.raises(ValueError, match=r"windows are for the semantic task alone, not \('panoptic',\)"):
        postprocess(
            [windows_of(np.zeros((1, 6, 5)), np.zeros((1, 6, 4, 4)), (16, 16), 16)],
            [frame_of((16, 16), (16, 16), 16)],
            jnp.zeros(4, bool),
            tasks=("panoptic",),
            upsample="scores",
            panoptic_rule="maskformer",
            score_threshold=0.5,
            overlap_threshold=0.5,
            top_instances=1,
        )


@pytest.mark.parametrize("size", [(64, 640), (640, 64)])
def test_memory_does_not_hold_the_scores_of_an_image(size):
    """Ten windows of 64 pixels: all scores would take 25 MB, those of masks 16 MB."""
    rng, side = np.random.default_rng(0), 64
    class_logits = rng.normal(size=(10, 100, 151)).astype(np.float32)
    mask_logits = rng.normal(size=(10, 100, 16, 16)).astype(np.float32)
    windows = windows_of(class_logits, mask_logits, size, side)

    def run(windows, monkey=None):
        found = postprocess(
            [windows],
            [frame_of(size, size, side)],
            jnp.zeros(150, bool),
            tasks=("semantic",),
            upsample="scores",
            panoptic_rule="maskformer",
            score_threshold=0.5,
            overlap_threshold=0.5,
            top_instances=1,
        )
        return found.class_map

    temporary = jax.jit(run).lower(windows).compile().memory_analysis().temp_size_in_bytes
    print("temporary", size, temporary)
    assert temporary < 64 * 640 * 150 * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size_divisor": 32}, r"window is 64, so size_divisor must be 64 and upsample 'scores'"),
        ({"upsample": "logits"}, r"window is 64, so size_divisor must be 64 and upsample 'scores'"),
        ({"size_rounding": "down"}, r"size_rounding is 'down'; it must be one of \['half_even', 'half_up'\]"),
        ({"window": -1}, r"window is -1; it must be at least 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    values = {"short_edge": 64, "longest_edge": 640, "size_divisor": 64, "upsample": "scores", "window": 64}
    values.update(score_threshold=0.8, overlap_threshold=0.8)
    InferenceConfig(**values)
    with pytest.raises(UserError, match=message):
        InferenceConfig(**{**values, **changes})
