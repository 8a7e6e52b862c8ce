"""Training images: sizes, pixels that stay with their labels, and the published recipes on real photos."""

import dataclasses
import io
import itertools

import cv2
import jax
import numpy as np
import pytest
from PIL import Image

from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline import augment, resize, schema
from maskformer_jax.input_pipeline.augment import Augmentation, Plan, Stage
from maskformer_jax.input_pipeline.loader import train_example
from maskformer_jax.input_pipeline.resize import Window
from maskformer_jax.ops.image import normalize, shortest_edge_size
from tests.input_pipeline import reference, torchvision_reference


@pytest.fixture
def photo():
    """Smooth colours with some noise, 60 x 80."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:60, 0:80]
    base = np.stack([y * 4, x * 3, 255 - y * 2 - x], axis=-1)
    return np.clip(base + rng.normal(0, 8, base.shape), 0, 255).astype(np.uint8)


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def example(photo, is_crowd=(False, False, False), maps=None):
    if maps is None:
        maps = np.zeros((1, 60, 80), np.uint8)
        maps[0, :30], maps[0, 30:, :40], maps[0, 30:, 40:] = 1, 2, 3
    labels, areas = np.array([4, 0, 2]), np.array([2400, 1200, 1200])
    return schema.Example("x", png(photo), tuple(map(png, maps)), labels, np.array(is_crowd), areas)


NAMES = ("image", "image_size", "segment_ids", "labels", "valid", "dropped", "image_id")


def make(example, augmentation, seed=0, max_segments=5, planes=1):
    """The training example of the first random draws, from a seed on, that do not mirror the image."""
    size = schema.decode_image(example.image).shape[:2]
    tries = ([seed, number] for number in itertools.count())
    seeds = next(s for s in tries if not augment.draw_plan(np.random.default_rng(s), size, augmentation).flip)
    values = train_example(example, np.random.default_rng(seeds), max_segments, planes, augmentation)
    return dict(zip(NAMES, values, strict=True))


def plain(crop, **options):
    return Augmentation((60,), 200, crop, **{"color_jitter": False, **options})


# The published recipes on real photos, against the reference.

ADE20K = Augmentation(tuple(int(512 * tenths / 10) for tenths in range(5, 21)), 2048, (512, 512))
ADE20K_PANOPTIC = Augmentation(
    tuple(int(640 * tenths / 10) for tenths in range(5, 21)),
    2560,
    (640, 640),
    label_rounding="center",
    keep_empty_segments=True,
)
COCO_PANOPTIC = Augmentation(
    tuple(range(480, 801, 32)),
    1333,
    (1344, 1344),
    early_crop_edges=(400, 500, 600),
    early_crop=(384, 600),
    pad="zero",
    color_jitter=False,
    label_rounding="center",
    keep_empty_segments=True,
)
LARGE_SCALE_JITTER = Augmentation(
    (), 0, (1024, 1024), scale_range=(0.1, 2.0), color_jitter=False, label_rounding="center"
)


def check_recipe(augmentation, image, labels, seeds):
    """Images and labels equal to the reference's, over many draws."""
    file = image.read_bytes()
    stored = np.asarray(Image.open(labels)) if not isinstance(labels, np.ndarray) else labels
    decoded = reference.read_image(file)
    np.testing.assert_array_equal(schema.decode_image(file), decoded)
    rounding = augmentation.label_rounding
    resize_labels = reference.resize_labels_panoptic if rounding == "center" else reference.resize_labels_semantic
    for seed in seeds:
        plan = augment.draw_plan(np.random.default_rng(seed), decoded.shape[:2], augmentation)
        found = augment.pad(augment.apply_to_image(decoded, plan), augmentation.crop, augment.PAD_VALUE)
        positions = augment.label_positions(plan, stored.shape, rounding)
        found_labels = augment.pad(resize.take_labels(stored[None], *positions)[0], augmentation.crop, 0)
        expected, expected_labels = reference.augmented(
            decoded, stored, plan.stages, plan.recolor, plan.flip, augmentation.crop, resize_labels
        )
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(found_labels, expected_labels)


def test_the_recipe_of_ade20k_on_real_photos(shared_data):
    root = shared_data / "ade20k" / "ADEChallengeData2016"
    for image in sorted((root / "images" / "validation").glob("*.jpg")):
        for recipe in (ADE20K, ADE20K_PANOPTIC):
            labels = root / "annotations" / "validation" / f"{image.stem}.png"
            check_recipe(recipe, image, labels, range(12))


def test_the_recipe_of_coco_on_real_photos(shared_data):
    root = shared_data / "coco_panoptic"
    for image in sorted((root / "val2017").glob("*.jpg")):
        labels = root / "annotations" / "panoptic_val2017" / f"{image.stem}.png"
        # One channel stands for all three: they are resized alike.
        check_recipe(COCO_PANOPTIC, image, np.asarray(Image.open(labels))[..., 0].copy(), range(8))


def draws_of_large_scale_jitter(seed):
    """Factor, position and flip, from the same random numbers as a plan."""
    rng = np.random.default_rng(seed)
    return rng.uniform(0.1, 2.0), rng.random(), bool(rng.random() < 0.5)


@pytest.mark.parametrize("size", [(480, 640), (640, 427), (1024, 1024), (61, 640), (1200, 1600)])
def test_large_scale_jitter_draws_the_sizes_and_windows_of_the_original(size):
    canvas = LARGE_SCALE_JITTER.crop
    for seed in range(300):
        plan = augment.draw_plan(np.random.default_rng(seed), size, LARGE_SCALE_JITTER)
        factor, position, flip = draws_of_large_scale_jitter(seed)
        ((resized, window),) = plan.stages
        assert resized == reference.resize_scale(size, canvas, factor)
        top, left = reference.fixed_size_crop(resized, canvas, position)
        assert (window.height, window.width) == tuple(np.minimum(resized, canvas))
        assert (plan.flip, plan.recolor) == (flip, ())
        # The original mirrors first; a plan mirrors what the window shows.
        assert (window.top, window.left) == (top, resized[1] - window.width - left if flip else left)


def test_the_recipe_of_large_scale_jitter_on_real_photos(shared_data):
    root = shared_data / "coco_panoptic"
    for path in sorted((root / "val2017").glob("*.jpg")):
        image = reference.read_image(path.read_bytes())
        labels = np.asarray(Image.open(root / "annotations" / "panoptic_val2017" / f"{path.stem}.png"))[..., 0].copy()
        for seed in range(8):
            plan = augment.draw_plan(np.random.default_rng(seed), labels.shape, LARGE_SCALE_JITTER)
            found = augment.pad(augment.apply_to_image(image, plan), (1024, 1024), augment.PAD_VALUE)
            positions = augment.label_positions(plan, labels.shape, "center")
            found_labels = augment.pad(resize.take_labels(labels[None], *positions)[0], (1024, 1024), 0)
            draws = draws_of_large_scale_jitter(seed)
            expected, expected_labels = reference.large_scale_jitter(image, labels, *draws, (1024, 1024))
            np.testing.assert_array_equal(found, expected)
            # Where a position falls on the border between two labels, mirroring before or after decides which is taken.
            assert np.mean(found_labels != expected_labels) <= (1e-4 if plan.flip else 0)


# Geometry.


@pytest.mark.parametrize(
    ("size", "short", "longest", "expected"),
    [
        ((480, 640), 512, 2048, (512, 683)),
        ((640, 480), 512, 2048, (683, 512)),
        ((300, 1200), 512, 1024, (256, 1024)),
        ((427, 640), 800, 1333, (800, 1199)),
        ((96, 96), 96, 128, (96, 96)),
        ((480, 640), 600, None, (600, 800)),
        ((1, 30_000), 512, 2048, (1, 2048)),
    ],
)
def test_shortest_edge_rounds_as_the_original(size, short, longest, expected):
    assert shortest_edge_size(size, short, longest) == expected


def test_a_window_is_what_pil_shows_there_of_the_whole_image(photo):
    rng = np.random.default_rng(0)
    for _ in range(200):
        size = tuple(int(side) for side in rng.integers(5, 250, 2))
        height, width = (int(rng.integers(1, side, endpoint=True)) for side in size)
        window = Window(int(rng.integers(size[0] - height + 1)), int(rng.integers(size[1] - width + 1)), height, width)
        expected = reference.crop(reference.resize_image(photo, size), window)
        np.testing.assert_array_equal(resize.resize_window(photo, size, window), expected)


def test_a_whole_image_is_resized_as_by_pil(photo):
    for size in [(60, 80), (30, 50), (200, 91), (1, 1), (4, 300)]:
        expected = reference.resize_image(photo, size)
        np.testing.assert_array_equal(resize.resize_image(photo, size), expected)
        np.testing.assert_array_equal(resize.resize_window(photo, size, Window(0, 0, *size)), expected)


@pytest.mark.parametrize(("source", "size", "rows"), [(16, 4, [0, 4, 8, 12]), (10, 4, [0, 2, 5, 7])])
def test_map_resize_reads_at_floor(source, size, rows):
    assert resize.resize_positions(source, size, "floor").tolist() == rows


def test_map_enlarges_as_the_original():
    assert resize.resize_positions(4, 10, "floor").tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]


def test_panoptic_maps_resize_as_pil():
    rng = np.random.default_rng(0)
    for source, size in rng.integers(1, 700, (300, 2)):
        column = np.arange(source, dtype=np.int32)[:, None]
        expected = Image.fromarray(column).resize((1, size), Image.Resampling.NEAREST)
        found = resize.resize_positions(source, size, "center")
        np.testing.assert_array_equal(found, np.asarray(expected)[:, 0])


def test_planes_of_labels_resize_as_pil():
    maps = np.random.default_rng(0).integers(0, 300, (3, 37, 53)).astype(np.int32)
    for size in [(37, 53), (20, 90), (111, 7)]:
        expected = [Image.fromarray(plane).resize(size[::-1], Image.Resampling.NEAREST) for plane in maps]
        np.testing.assert_array_equal(resize.resize_labels(maps, size, "center"), np.stack(expected))


def plans(size, augmentation, count=60):
    return [augment.draw_plan(np.random.default_rng(seed), size, augmentation) for seed in range(count)]


def test_every_short_edge_and_every_offset_is_drawn():
    found = plans((60, 80), Augmentation((60, 90), 200, (57, 200)), 200)
    assert {plan.stages[0].size for plan in found} == {(60, 80), (90, 120)}
    small = [plan.stages[0].window for plan in found if plan.stages[0].size == (60, 80)]
    assert {window.top for window in small} == {0, 1, 2, 3}
    assert {window[1:] for window in small} == {(0, 57, 80)}
    assert 60 <= sum(plan.flip for plan in found) <= 140


def test_the_early_crop_is_taken_half_of_the_time_and_stays_in_its_range():
    augmentation = Augmentation((60,), 10_000, (999, 999), early_crop_edges=(100, 120), early_crop=(30, 90))
    cropped = [plan.stages[0] for plan in plans((60, 80), augmentation) if len(plan.stages) == 2]
    assert 15 <= len(cropped) <= 45
    assert {stage.size for stage in cropped} == {(100, 133), (120, 160)}
    sides = np.array([stage.window[2:] for stage in cropped])
    assert sides.min() >= 30
    assert sides.max() <= 90
    assert (sides[:, 0] != sides[:, 1]).any()
    for plan in plans((60, 80), augmentation):
        assert min(plan.stages[-1].size) == 60


def test_the_early_crop_of_a_small_image_is_all_of_it():
    augmentation = Augmentation((60,), 10_000, (999, 999), early_crop_edges=(60,), early_crop=(384, 600))
    for plan in plans((60, 80), augmentation, 8):
        assert all(stage.window[2:] == stage.size for stage in plan.stages)


def test_large_scale_jitter_fits_the_image_into_the_scaled_canvas(photo):
    augmentation = Augmentation((), 0, (64, 64), scale_range=(0.1, 2.0), color_jitter=False)
    sizes = [plan.stages[0].size for plan in plans((60, 80), augmentation, 200)]
    widths = np.array(sizes)[:, 1]
    assert 0.1 * 64 - 1 <= widths.min() < 20
    assert 110 < widths.max() <= 128
    assert all(abs(height - 0.75 * width) <= 1 for height, width in sizes)
    for seed in range(10):
        made = make(example(photo), augmentation, seed)
        assert made["image"].shape == (64, 64, 3)


def test_crop_and_flip_keep_pixels_with_their_labels():
    ids = (np.arange(60 * 80) % 250).reshape(60, 80).astype(np.uint8)
    image = np.stack([ids] * 3, axis=-1)
    corners = set()
    for plan in plans((60, 80), Augmentation((60,), 200, (32, 48), color_jitter=False), 20):
        found = resize.take_labels(ids[None], *augment.label_positions(plan, (60, 80), "floor"))[0]
        np.testing.assert_array_equal(augment.apply_to_image(image, plan)[..., 0], found)
        assert found.shape == (32, 48)
        corners.add(int(found[0, 0]))
    assert len(corners) > 10


def test_factors_resize_images_of_all_sizes_alike():
    augmentation = Augmentation((), 0, (32, 32), scales=(0.5, 2.0), color_jitter=False)
    sizes = (30, 40), (600, 800)
    drawn = [[plan.stages[0].size[1] / size[1] for plan in plans(size, augmentation, 2000)] for size in sizes]
    np.testing.assert_allclose(drawn[0], drawn[1], atol=0.02)
    factors = np.array(drawn[1])
    assert 0.5 <= factors.min() < 0.52
    assert 1.94 < factors.max() <= 2.0
    assert 0.47 < np.mean(factors < 1.0) < 0.53


def test_right_angles_turn_pixels_with_their_labels():
    ids = (np.arange(60 * 80) % 250).reshape(60, 80).astype(np.uint8)
    image, augmentation = np.stack([ids] * 3, axis=-1), plain((80, 80), right_angles=True)
    turned = {}
    for plan in plans((60, 80), augmentation, 40):
        found = augment.apply_to_labels(ids[None], plan, "floor")[0]
        np.testing.assert_array_equal(augment.apply_to_image(image, plan)[..., 0], found)
        turned[plan.turns, plan.flip] = found
    assert len(turned) == 8
    for (turns, flip), found in turned.items():
        expected = np.rot90(ids, turns)
        np.testing.assert_array_equal(found, expected[:, ::-1] if flip else expected)


def test_two_stages_of_labels_are_one_lookup():
    labels = np.random.default_rng(0).integers(0, 99, (1, 50, 70), dtype=np.uint8)
    stages = (Stage((33, 47), Window(3, 5, 20, 31)), Stage((61, 40), Window(10, 0, 50, 40)))
    step = labels
    for stage in stages:
        step = resize.take_labels(step, *augment.label_positions(Plan((stage,), (), False), step.shape[1:], "center"))
    found = resize.take_labels(labels, *augment.label_positions(Plan(stages, (), False), (50, 70), "center"))
    np.testing.assert_array_equal(found, step)


# Colour.


def test_color_jitter_draws_each_step_half_of_the_time_and_contrast_early_or_late():
    drawn = [augment.draw_color_jitter(np.random.default_rng(seed)) for seed in range(400)]
    names = [[name for name, _ in steps] for steps in drawn]
    for name in ("brightness", "contrast", "saturation", "hue"):
        assert 160 <= sum(name in steps for steps in names) <= 240
    assert ["brightness", "contrast", "saturation", "hue"] in names
    assert ["brightness", "saturation", "hue", "contrast"] in names
    hues = [amount for steps in drawn for name, amount in steps if name == "hue"]
    assert (min(hues), max(hues)) == (-18, 18)


def test_each_step_of_color_jitter_is_opencvs(photo):
    for step in (("brightness", -20.3), ("contrast", 1.37), ("saturation", 0.61), ("hue", -17), ("hue", 9)):
        np.testing.assert_array_equal(augment.recolor(photo, *step), reference.color_jitter(photo, [step]))


def test_grey_has_no_hue_or_saturation():
    grey = np.full((4, 4, 3), 100, np.uint8)
    np.testing.assert_array_equal(augment.recolor(grey, "hue", 9), grey)
    np.testing.assert_array_equal(augment.recolor(grey, "saturation", 1.4), grey)
    assert (augment.recolor(grey, "brightness", 200) == 255).all()


# The rules of torchvision.

TORCHVISION = Augmentation(
    (), 0, (64, 64), scale_range=(0.1, 2.0), pad="zero", transforms="torchvision", redraw_empty_crops=True
)


def torchvision_draws(seed, size):
    """Steps of color jitter, flip, scale factor and corner, from the same random numbers as a plan."""
    rng = np.random.default_rng(seed)
    steps = augment.draw_torchvision_color_jitter(rng)
    flip, factor = bool(rng.random() < 0.5), rng.uniform(0.1, 2.0)
    resized = torchvision_reference.jittered_size(size, (64, 64), factor)
    return steps, flip, factor, tuple(int(rng.integers(max(side - 64, 0), endpoint=True)) for side in resized)


def test_the_recipe_of_torchvision_is_the_reference(photo):
    labels = np.random.default_rng(0).integers(0, 4, (60, 80)).astype(np.uint8)
    flips = 0
    for seed in range(60):
        plan = augment.draw_plan(np.random.default_rng(seed), (60, 80), TORCHVISION)
        draws = torchvision_draws(seed, (60, 80))
        expected, expected_labels = torchvision_reference.augmented(photo, labels, *draws, (64, 64))
        found = augment.pad(augment.apply_to_image(photo, plan), (64, 64), 0)
        found_labels = resize.take_labels(labels[None], *augment.label_positions(plan, (60, 80), "floor"))[0]
        np.testing.assert_array_equal(augment.pad(found_labels, (64, 64), 0), expected_labels)
        # A level whose exact value is whole may round down to the one below in another precision.
        assert np.abs(found.astype(int) - expected).max() <= 2
        assert np.mean(found != expected) < 0.01
        flips += plan.flip
    assert 15 <= flips <= 45


@pytest.mark.parametrize("amount", [0.55, 0.91, 1.1, 1.45])
@pytest.mark.parametrize("step", ["scale", "blend_mean", "blend_gray"])
def test_each_step_of_torchvisions_color_jitter_rounds_down(photo, step, amount):
    expected = torchvision_reference.recolor(photo, step, amount)
    np.testing.assert_array_equal(augment.recolor(photo, step, amount), expected)


@pytest.mark.parametrize("amount", [-0.05, 0.031])
def test_torchvision_turns_hues(photo, amount):
    found, expected = (
        augment.recolor(photo, "turn", amount).astype(int),
        torchvision_reference.recolor(photo, "turn", amount),
    )
    assert np.abs(found - expected).max() <= 1  # OpenCV computes in float32, the reference in float64
    assert np.mean(found != expected) < 2e-3


def test_torchvisions_color_jitter_draws_each_step_half_of_the_time():
    drawn = [augment.draw_torchvision_color_jitter(np.random.default_rng(seed)) for seed in range(400)]
    names = [[name for name, _ in steps] for steps in drawn]
    for name in ("scale", "blend_mean", "blend_gray", "turn"):
        assert 160 <= sum(name in steps for steps in names) <= 240
    assert ["scale", "blend_mean", "blend_gray", "turn"] in names
    assert ["scale", "blend_gray", "turn", "blend_mean"] in names
    bounds = {"scale": (1 - 32 / 255, 1 + 32 / 255), "blend_mean": (0.5, 1.5), "blend_gray": (0.5, 1.5)}
    for name, (low, high) in {**bounds, "turn": (-0.05, 0.05)}.items():
        amounts = [amount for steps in drawn for own, amount in steps if own == name]
        assert low <= min(amounts) < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < max(amounts) <= high


def test_sides_are_rounded_down_and_rows_and_columns_drawn_apart():
    corners = set()
    for plan in plans((333, 500), TORCHVISION, 200):
        ((resized, window),) = plan.stages
        assert resized[0] == int(333 * (resized[1] + 0.5) / 500) or abs(resized[0] - 333 * resized[1] / 500) < 1
        room = tuple(side - part for side, part in zip(resized, window[2:], strict=True))
        corners.add(tuple(at / most for at, most in zip(window[:2], room, strict=True) if most))
    both = np.array([corner for corner in corners if len(corner) == 2])
    assert len(both) > 30
    assert abs(np.corrcoef(both.T)[0, 1]) < 0.5


def test_crops_without_a_segment_are_drawn_anew(photo):
    maps = np.zeros((1, 60, 80), np.uint8)
    maps[0, :8, :8], maps[0, 40:, 40:] = 1, 2
    corner = example(photo, (False, True, False), maps)  # the second is a crowd, the third has no pixel
    options = {"color_jitter": False, "scale_range": (2.0, 2.0)}
    once = dataclasses.replace(TORCHVISION, redraw_empty_crops=False, **options)
    until = dataclasses.replace(TORCHVISION, **options)
    empty = 0
    for seed in range(20):
        shown = dict(zip(NAMES, train_example(corner, np.random.default_rng(seed), 5, 1, once), strict=True))
        found = dict(zip(NAMES, train_example(corner, np.random.default_rng(seed), 5, 1, until), strict=True))
        assert found["valid"].tolist() == [True, False, False, False, False]
        assert (found["segment_ids"] == 0).any()
        if shown["valid"].any():
            jax.tree.map(np.testing.assert_array_equal, shown, found)
        empty += not shown["valid"].any()
    assert 5 < empty < 20
    crowds = example(photo, (True, True, True), maps)
    assert not make(crowds, until)["valid"].any()
    maps[:] = 0
    assert not make(example(photo, maps=maps), until)["valid"].any()  # nothing to draw for, but it ends


def test_the_network_reads_black_beyond_an_image(photo):
    made = make(example(photo), plain((70, 90), pad="zero"))
    normalized = normalize(made["image"][None], made["image_size"][None], black=True)[0]
    black = normalize(np.zeros((1, 1, 1, 3), np.uint8), np.array([[1, 1]]))[0, 0, 0]
    np.testing.assert_array_equal(normalized[60:], np.broadcast_to(black, (10, 90, 3)))
    np.testing.assert_array_equal(normalized[:, 80:], np.broadcast_to(black, (70, 10, 3)))


# Targets.


def test_targets_are_padded(photo):
    made = make(example(photo), plain((60, 80)))
    assert made["labels"].tolist() == [4, 0, 2, 0, 0]
    assert made["valid"].tolist() == [True, True, True, False, False]
    assert made["segment_ids"].dtype == np.int8
    assert made["segment_ids"].shape == (1, 60, 80)
    assert made["segment_ids"][0, 0, 0] == 0
    assert made["dropped"] == 0
    np.testing.assert_array_equal(made["image"], photo)


def test_many_segments_need_two_bytes(photo):
    assert make(example(photo), plain((60, 80)), max_segments=127)["segment_ids"].dtype == np.int8
    assert make(example(photo), plain((60, 80)), max_segments=128)["segment_ids"].dtype == np.int16


@pytest.mark.parametrize(("pad", "size"), [("gray", [70, 90]), ("zero", [60, 80])])
def test_padding_is_part_of_the_image_or_is_not(photo, pad, size):
    made = make(example(photo), plain((70, 90), pad=pad))
    assert made["image_size"].tolist() == size
    assert made["image"].shape == (70, 90, 3)
    assert (made["image"][60:] == 128).all()
    assert (made["segment_ids"][:, :, 80:] == -1).all()
    normalized = normalize(made["image"][None], made["image_size"][None])[0]
    assert bool(np.any(normalized[60:])) == (pad == "gray")


def test_crowds_are_void_and_leave_no_gap(photo):
    made = make(example(photo, is_crowd=(False, True, False)), plain((60, 80)))
    assert made["labels"].tolist() == [4, 2, 0, 0, 0]
    assert made["valid"].tolist() == [True, True, False, False, False]
    assert (made["segment_ids"][0, 30:, :40] == -1).all()
    assert (made["segment_ids"][0, 30:, 40:] == 1).all()


@pytest.mark.parametrize("keep", [False, True])
def test_segments_without_pixels_in_the_crop_are_dropped_or_kept(photo, keep):
    fewest = 3
    for seed in range(30):
        made = make(example(photo), plain((12, 12), keep_empty_segments=keep), seed)
        present = len(np.unique(made["segment_ids"]))
        fewest = min(fewest, present)
        assert made["valid"].sum() == (3 if keep else present)
    assert fewest == 1


def test_of_too_many_segments_the_largest_stay_and_the_others_are_counted(photo):
    made = make(example(photo), plain((60, 80)), max_segments=1)
    assert made["labels"].tolist() == [4]
    assert made["dropped"] == 2
    assert (made["segment_ids"][0, :30] == 0).all()
    assert (made["segment_ids"][0, 30:] == -1).all()


def test_segments_that_overlap_stay_whole(photo):
    maps = np.zeros((2, 60, 80), np.uint8)
    maps[0, :40], maps[1, 20:, :40], maps[0, 50:, 50:] = 1, 2, 3
    made = make(example(photo, maps=maps), plain((64, 80)), planes=3)
    assert made["segment_ids"].shape == (3, 64, 80)
    np.testing.assert_array_equal(made["segment_ids"][:2, :60], maps.astype(int) - 1)
    assert (made["segment_ids"][2] == -1).all()


def test_an_image_without_segments_is_an_image(photo):
    empty = schema.Example("x", png(photo), (png(np.zeros((60, 80), np.uint8)),), *np.zeros((3, 0), np.int64))
    made = make(schema.Example(*list(vars(empty).values())[:4], np.zeros(0, bool), empty.area), plain((60, 80)))
    assert not made["valid"].any()
    assert (made["segment_ids"] == -1).all()


# Decoding, and settings that cannot work.


@pytest.mark.parametrize("options", [{"quality": 90}, {"quality": 60, "progressive": True}, {"subsampling": 0}])
def test_jpegs_decode_as_pil_does(photo, options):
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "JPEG", **options)
    np.testing.assert_array_equal(schema.decode_image(file.getvalue()), np.asarray(Image.open(file)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_as_their_exif_data_say(photo, orientation):
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(photo).save(file, "JPEG", exif=exif)
    np.testing.assert_array_equal(schema.decode_image(file.getvalue()), reference.read_image(file.getvalue()))


@pytest.mark.parametrize("levels", [200, 60_000])
def test_planes_of_eight_and_sixteen_bits_are_read_as_written(levels):
    segment_map = np.arange(40 * 50).reshape(1, 40, 50) * levels // 2000
    made = schema.make_example(np.zeros((40, 50, 3), np.uint8), "x", segment_map, [schema.Segment(0, 1)] * levels)
    (plane,) = [file.read() for file in made["segment_maps"]]
    np.testing.assert_array_equal(schema.decode_maps([plane]), segment_map)
    assert cv2.imdecode(np.frombuffer(plane, np.uint8), cv2.IMREAD_UNCHANGED).itemsize == (1 if levels < 256 else 2)


def test_masks_that_overlap_share_as_few_planes_as_come_first():
    masks = np.zeros((4, 6, 8), bool)
    masks[0, :3], masks[1, 2:4], masks[2, 4:], masks[3, 2:3, :2] = True, True, True, True
    planes = schema.pack_masks(masks, (6, 8))
    assert len(planes) == 3
    for number, mask in enumerate(masks, start=1):
        np.testing.assert_array_equal((planes == number).any(axis=0), mask)
    assert schema.pack_masks([], (6, 8)).shape == (1, 6, 8)


def test_where_planes_overlap_the_smallest_segment_wins():
    planes = schema.pack_masks(np.array([[[1, 1, 1, 0]], [[0, 1, 0, 0]], [[1, 1, 0, 0]]], bool), (1, 4))
    assert schema.flatten_planes(planes, np.array([3, 1, 2])).tolist() == [[3, 2, 1, 0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pad": "mirror"}, "^pad is 'mirror'"),
        ({"label_rounding": "nearest"}, r"^label_rounding is 'nearest'; it must be one of \('floor', 'center'\)"),
        ({"crop": (512,)}, r"^crop is \(512,\)"),
        ({"early_crop": (384,)}, r"^early_crop is \(384,\)"),
        ({"short_edges": ()}, r"^short_edges is \(\); it must hold at least one"),
        ({"early_crop": (384, 600)}, r"^early_crop_edges is \(\)"),
        ({"scale_range": (0.0, 2.0)}, r"^scale_range is \(0.0, 2.0\); its numbers must be above 0"),
    ],
)
def test_settings_that_cannot_work_are_named(options, message):
    with pytest.raises(UserError, match=message):
        Augmentation(**{"short_edges": (60,), "longest_edge": 200, "crop": (60, 80), **options})
