"""Streams: equal for equal seeds, resumed at the exact example, every evaluation image once."""

import dataclasses
import itertools
import time

import jax
import numpy as np
import pytest
from PIL import Image

from maskformer_jax.errors import UserError
from maskformer_jax.inference import InferenceConfig
from maskformer_jax.input_pipeline import loader, schema
from maskformer_jax.input_pipeline.augment import Augmentation
from maskformer_jax.input_pipeline.loader import Host, Views, eval_batches, train_batches
from maskformer_jax.input_pipeline.padded_shapes import choose_padded_shapes
from maskformer_jax.input_pipeline.resize import resize_image
from maskformer_jax.input_pipeline.sources import open_source
from maskformer_jax.sharding import make_mesh, to_devices
from tests.input_pipeline.folders import write_folder

ALONE = Host()
AUGMENTATION = Augmentation((32, 40), 64, (32, 40))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("loader")
    return open_source("folder", str(write_folder(root / "mine")), str(root / "tfds"))


def stream(source, first_step=0, seed=3, host=ALONE, **changes):
    options = {"batch_size": 4, "max_segments": 3, "augmentation": AUGMENTATION, **changes}
    return train_batches(source, "train", seed=seed, first_step=first_step, host=host, **options)


def assert_equal(first, second):
    assert first.image_ids == second.image_ids
    np.testing.assert_array_equal(first.dropped, second.dropped)
    jax.tree.map(np.testing.assert_array_equal, first.arrays, second.arrays)


def test_contracts(source):
    batch = next(stream(source))
    assert len(batch.image_ids) == 4
    assert batch.dropped.tolist() == [0, 0, 0, 0]
    arrays = batch.arrays
    assert arrays.image.shape == (4, 32, 40, 3)
    assert arrays.image.dtype == np.uint8
    assert arrays.targets.segment_ids.shape == (4, 1, 32, 40)
    assert arrays.targets.segment_ids.dtype == np.int8
    assert arrays.targets.labels.shape == arrays.targets.valid.shape == (4, 3)
    assert arrays.image_size.tolist() == [[32, 40]] * 4


@pytest.mark.parametrize("step", [1, 3, 4, 7])
def test_a_stream_that_starts_late_is_the_same_stream(source, step):
    """Six images in batches of four: batches cross epochs."""
    late = stream(source, first_step=step)
    for expected in itertools.islice(stream(source), step, step + 4):
        assert_equal(next(late), expected)


def test_a_stream_starts_at_any_step_at_once(source):
    next(stream(source))  # opens the files
    started = time.monotonic()
    far = next(stream(source, first_step=1_000_000))
    assert time.monotonic() - started < 2
    np.testing.assert_array_equal(far.arrays.image, next(stream(source, first_step=1_000_000)).arrays.image)


def test_the_seed_decides(source):
    assert_equal(next(stream(source)), next(stream(source)))
    other = next(stream(source, seed=4))
    assert not np.array_equal(other.arrays.image, next(stream(source)).arrays.image)


@pytest.mark.parametrize("cores", [1, 7])
def test_the_number_of_workers_changes_nothing(source, monkeypatch, cores):
    expected = list(itertools.islice(stream(source), 5))
    monkeypatch.setattr(loader, "cores", lambda: cores)
    for first, second in zip(expected, stream(source), strict=False):
        assert_equal(first, second)


def test_every_epoch_has_every_image_once_in_its_own_order(source):
    ids = list(itertools.chain.from_iterable(batch.image_ids for batch in itertools.islice(stream(source), 9)))
    epochs = [ids[start : start + 6] for start in range(0, 36, 6)]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_make_parts_of_the_batches_that_one_host_makes(source, hosts):
    """So hosts never share an image of an epoch, and a run may resume with more or fewer of them."""
    parts = [stream(source, first_step=2, host=Host(index, hosts)) for index in range(hosts)]
    for whole in itertools.islice(stream(source, first_step=2), 4):
        made = [next(part) for part in parts]
        assert list(itertools.chain.from_iterable(part.image_ids for part in made)) == whole.image_ids
        joined = jax.tree.map(lambda *arrays: np.concatenate(arrays), *(part.arrays for part in made))
        jax.tree.map(np.testing.assert_array_equal, joined, whole.arrays)


def test_segments_without_room_are_counted(source):
    batch = next(
        stream(source, max_segments=1, augmentation=dataclasses.replace(AUGMENTATION, keep_empty_segments=True))
    )
    assert batch.dropped.tolist() == [2, 2, 2, 2]
    assert batch.arrays.targets.valid.tolist() == [[True]] * 4


def test_images_without_segments_are_replaced_by_others(source, monkeypatch):
    read = source.example

    def emptied(self, split, index):
        example = read(split, index)
        crowds = np.full(len(example.labels), example.image_id in ("000", "003"))
        return dataclasses.replace(example, is_crowd=crowds)

    monkeypatch.setattr(type(source), "example", emptied)
    every = [batch.image_ids for batch in itertools.islice(stream(source), 9)]
    skipping = stream(source, augmentation=dataclasses.replace(AUGMENTATION, skip_empty_images=True))
    found = [batch.image_ids for batch in itertools.islice(skipping, 9)]
    assert {"000", "003"} <= set(itertools.chain(*every))
    assert {"000", "003"}.isdisjoint(itertools.chain(*found))
    pairs = zip(itertools.chain(*every), itertools.chain(*found), strict=True)
    replaced = [(old, new) for old, new in pairs if old != new]
    assert {old for old, _ in replaced} == {"000", "003"}
    assert len({new for _, new in replaced}) > 1
    late = stream(source, 5, augmentation=dataclasses.replace(AUGMENTATION, skip_empty_images=True))
    assert next(late).image_ids == found[5]


def test_a_failure_is_raised_as_it_was_with_the_image_named(source, monkeypatch):
    def fail(*args):
        raise ZeroDivisionError("no such luck")

    monkeypatch.setattr(loader.augment, "apply_to_image", fail)
    with pytest.raises(ZeroDivisionError, match="no such luck") as caught:
        next(stream(source))
    assert "while making a training image of '00" in caught.value.__notes__[0]


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """One image in each split."""
    root = tmp_path_factory.mktemp("single")
    return open_source("folder", str(write_folder(root / "mine", train=1, val=1)), str(root / "tfds"))


def test_fewer_images_than_hosts_are_drawn_again_by_each(single):
    parts = [next(stream(single, batch_size=8, host=Host(index, 4))) for index in range(4)]
    whole = next(stream(single, batch_size=8))
    assert [name for part in parts for name in part.image_ids] == whole.image_ids == ["000"] * 8
    joined = jax.tree.map(lambda *arrays: np.concatenate(arrays), *(part.arrays for part in parts))
    jax.tree.map(np.testing.assert_array_equal, joined, whole.arrays)
    assert len({image.tobytes() for image in whole.arrays.image}) > 1  # each place has its own augmentation


VIEWS = Views(32, 64)


def padded_shapes_of(source, batch_size=2, most=8, views=VIEWS):
    originals = np.array([source.image_size("val", number) for number in range(source.size("val"))])
    sizes = np.array([views.sizes(tuple(original)) for original in originals])
    return choose_padded_shapes(-(-sizes // 8) * 8, originals, batch_size, most)


def evaluate(source, batch_size=2, host=ALONE, views=VIEWS):
    shapes = padded_shapes_of(source, batch_size, views=views)
    return list(eval_batches(source, "val", views=views, padded_shapes=shapes, batch_size=batch_size, host=host))


def test_evaluation_sees_every_image_once(source):
    batches = evaluate(source)
    assert sorted(t.image_id for b in batches for t in b.truth) == [f"{i:03d}" for i in range(5)]
    for batch in batches:
        assert batch.images[0].shape == (2, *batch.padded_shape.inputs[0], 3)
        for truth, size, original in zip(batch.truth, batch.image_sizes[0], batch.original_size, strict=False):
            assert truth.segment_map.shape == tuple(original)
            assert size.min() == 32
            assert truth.area.sum() == np.sum(truth.segment_map > 0)


@pytest.mark.parametrize("hosts", [2, 4])
def test_evaluation_on_several_hosts_sees_every_image_once_in_equally_many_batches(source, hosts):
    parts = [evaluate(source, batch_size=4, host=Host(index, hosts)) for index in range(hosts)]
    assert len({tuple(b.padded_shape.canvas for b in part) for part in parts}) == 1
    assert len({len(part) for part in parts}) == 1
    seen = [truth.image_id for part in parts for batch in part for truth in batch.truth]
    assert sorted(seen) == [f"{i:03d}" for i in range(5)]


def test_a_host_without_images_evaluates_as_many_batches_as_the_others(single):
    parts = [evaluate(single, batch_size=4, host=Host(index, 4)) for index in range(4)]
    assert [[len(batch.truth) for batch in part] for part in parts] == [[1], [0], [0], [0]]
    for part in parts:
        assert part[0].images[0].shape == parts[0][0].images[0].shape
        assert (part[0].original_size > 0).all()


def test_sizes_are_known_without_decoding(source):
    for number in range(source.size("val")):
        image = schema.decode_image(source.example("val", number).image)
        assert source.image_size("val", number) == image.shape[:2]


def test_images_are_stretched_if_asked():
    image = np.random.default_rng(0).integers(0, 256, (40, 100, 3), np.uint8)
    (alone,) = Views(32, 64, stretch_to=(48, 56)).make(image)
    np.testing.assert_array_equal(alone, resize_image(image, (48, 56)))
    assert Views(32, 64, (0.5, 1.5), (48, 56)).sizes((40, 100)) == ((24, 28), (72, 84))


@pytest.mark.parametrize("stretch_to", [(384,), (384, 0), (1, 2, 3)])
def test_what_images_cannot_be_stretched_to(stretch_to):
    others = {"size_divisor": 32, "upsample": "scores", "score_threshold": 0.8, "overlap_threshold": 0.8}
    with pytest.raises(UserError, match=r"stretch_to is .*; expected a height and a width"):
        InferenceConfig(short_edge=32, longest_edge=64, **others, stretch_to=stretch_to)


def test_views_are_made_from_the_test_image():
    """As the original makes them: a resized image is resized again, by PIL's rules."""
    image = np.random.default_rng(0).integers(0, 256, (50, 75, 3), dtype=np.uint8)
    views = Views(32, 64, (0.5, 1.0, 1.75))
    assert len(views) == 3
    assert views.sizes((50, 75)) == ((16, 24), (32, 48), (56, 84))
    once = Image.fromarray(image).resize((48, 32), Image.Resampling.BILINEAR)
    for view, (height, width) in zip(views.make(image), views.sizes((50, 75)), strict=True):
        np.testing.assert_array_equal(view, np.asarray(once.resize((width, height), Image.Resampling.BILINEAR)))
    (alone,) = Views(32, 64).make(image)
    np.testing.assert_array_equal(alone, np.asarray(once))


def test_each_view_is_padded_to_its_own_input(source):
    views = Views(32, 64, (0.5, 1.5))
    for batch in evaluate(source, views=views):
        assert [image.shape[1:3] for image in batch.images] == list(batch.padded_shape.inputs)
        for image, sizes in zip(batch.images, batch.image_sizes, strict=True):
            for pixels, (height, width) in zip(image, sizes[: len(batch.truth)], strict=False):
                assert pixels[:height, :width].any()
                assert not pixels[height:].any()
                assert not pixels[:, width:].any()


def test_batches_arrive_split_over_the_devices(source):
    mesh = make_mesh(jax.devices()[:4])
    on_devices = to_devices(stream(source), mesh)
    for expected in itertools.islice(stream(source), 3):
        batch = next(on_devices)
        assert batch.arrays.image.sharding.num_devices == 4
        assert_equal(dataclasses.replace(batch, arrays=jax.device_get(batch.arrays)), expected)
