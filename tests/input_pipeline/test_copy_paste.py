"""Copy-paste: pixels and labels of donors, what they cover, and the stream with it."""

import dataclasses
import itertools

import numpy as np
import pytest

from maskformer_jax.catalog import Classes
from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline import augment, schema
from maskformer_jax.input_pipeline.augment import Augmentation
from maskformer_jax.input_pipeline.copy_paste import TrainImage, draw_things, paste
from maskformer_jax.input_pipeline.loader import Donors, Host, max_targets, train_batches, train_example
from maskformer_jax.types import Batch

IS_THING = np.array([False, True, True])  # the last two of three classes
SIZE = (40, 56)
ALONE = Host()
PLAIN = Augmentation((40,), 200, SIZE, color_jitter=False)


def drawn(seed, things=5, planes=1, crowds=()):
    """An image whose pixels tell the segment, over two kinds of stuff; the last thing may lie on a second plane."""
    rng = np.random.default_rng(seed)
    maps = np.zeros((planes, *SIZE), np.uint8)
    maps[0, :15], maps[0, 15:38] = 1, 2  # void below
    for number in range(things):
        top, left = rng.integers(0, 32), rng.integers(0, 46)
        plane = planes - 1 if number == things - 1 else 0
        maps[plane, top : top + 8, left : left + 10] = 3 + number
    image = rng.integers(0, 256, (*SIZE, 3), np.uint8)
    labels = np.concatenate([[0, 0], 1 + np.arange(things) % 2])
    is_target = ~np.isin(np.arange(2 + things), crowds)
    return TrainImage(image, maps, labels, is_target)


def masks(image):
    """[S, h, w] bool."""
    return np.stack([(image.segment_maps == number + 1).any(axis=0) for number in range(len(image.labels))])


@pytest.mark.parametrize("planes", [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_things_lie_on_top_with_their_own_pixels_and_are_cut_from_all_below(planes):
    for seed in range(20):
        onto, donor = drawn(seed, planes=planes[0], crowds=(3,)), drawn(seed + 100, planes=planes[1])
        before = onto.image.copy(), onto.segment_maps.copy()
        chosen = draw_things(np.random.default_rng(seed), donor, IS_THING, 99)
        made = paste(onto, donor, chosen)
        pasted, found = masks(donor)[chosen], masks(made)
        covered = pasted.any(axis=0)
        np.testing.assert_array_equal(made.image, np.where(covered[..., None], donor.image, onto.image))
        np.testing.assert_array_equal(found, np.concatenate([masks(onto) & ~covered, pasted]))
        assert made.labels.tolist() == [*onto.labels, *donor.labels[chosen]]
        assert not made.is_target[3]  # a crowd stays one
        assert ((found[: len(onto.labels)].sum(axis=0) + covered) <= planes[0]).all()
        np.testing.assert_array_equal(onto.image, before[0])
        np.testing.assert_array_equal(onto.segment_maps, before[1])


def test_any_number_of_things_is_drawn_but_no_stuff_crowd_or_thing_without_a_pixel():
    donor = drawn(0, things=6, crowds=(4,))
    donor.segment_maps[donor.segment_maps == 6] = 0
    every = [draw_things(np.random.default_rng(seed), donor, IS_THING, 99) for seed in range(200)]
    assert {len(chosen) for chosen in every} == {1, 2, 3, 4}
    assert set(np.concatenate(every)) == {2, 3, 6, 7}
    assert all((np.diff(chosen) > 0).all() for chosen in every)
    few = [draw_things(np.random.default_rng(seed), donor, IS_THING, 2) for seed in range(50)]
    assert {len(chosen) for chosen in few} == {1, 2}
    for room, image in ((0, donor), (-3, donor), (9, drawn(0, things=0))):
        assert not len(draw_things(np.random.default_rng(0), image, IS_THING, room))


def test_a_segment_that_is_covered_is_no_target_and_one_that_was_empty_stays_what_it_was():
    onto, donor = drawn(0, things=3), drawn(1, things=1)
    onto.segment_maps[0][onto.segment_maps[0] > 2] = 0
    onto.segment_maps[0, 2:4, 2:4], onto.segment_maps[0, 20:22, 20:22] = 3, 4  # the last thing is beyond the crop
    donor.segment_maps[0, :5, :5] = 3
    made = paste(onto, donor, np.array([2]))
    assert made.is_target.tolist() == [True, True, False, True, True, True]
    assert made.pixels()[[2, 4]].tolist() == [0, 0]


def test_more_segments_than_eight_bits_hold():
    rows = np.arange(1, 201, dtype=np.uint8).repeat(2).reshape(1, 20, 20)
    image = TrainImage(np.zeros((20, 20, 3), np.uint8), rows, np.ones(200, int), np.ones(200, bool))
    below = image._replace(segment_maps=rows[:, ::-1])
    made = paste(below, image, np.arange(100))
    assert len(made.labels) == 300
    np.testing.assert_array_equal(made.pixels(), [2] * 100 + [0] * 100 + [2] * 100)


def encoded(image, image_id):
    """The image as a dataset stores it."""
    planes = tuple(map(schema._encode, image.segment_maps))
    pixels = schema.images.encode_png(image.image)
    return schema.Example(image_id, pixels, planes, image.labels, ~image.is_target, np.ones(len(image.labels), int))


class Drawn:
    """A dataset of drawn images, the first of which has no things."""

    classes = Classes(("sky", "car", "person"), (False, True, True), ((0, 0, 0),) * 3)

    def __init__(self, things=(0, 3, 5, 4), planes=1):
        self.images = [drawn(seed, count, planes, crowds=(0,)) for seed, count in enumerate(things)]
        self.planes = planes

    def example(self, split, index):
        return encoded(self.images[index], f"{index}")

    def size(self, split):
        return len(self.images)

    def max_segments(self, split, limit=0):
        most = max(int(image.is_target.sum()) for image in self.images)
        return min(most, limit or most)

    def max_planes(self, split):
        return self.planes

    def counts(self, split):
        return None


def stream(augmentation, first_step=0, host=ALONE, source=None, max_segments=12):
    options = {"batch_size": 4, "max_segments": max_segments, "augmentation": augmentation, "seed": 3}
    return train_batches(source or Drawn(), "train", first_step=first_step, host=host, **options)


PASTING = dataclasses.replace(PLAIN, short_edges=(30, 40, 60), copy_paste=0.7, right_angles=True, grayscale=0.3)


def test_a_stream_resumes_and_is_divided_over_hosts_with_the_same_bits():
    whole = list(itertools.islice(stream(PASTING), 6))
    assert len({batch.arrays.image.tobytes() for batch in whole}) == 6
    late = stream(PASTING, first_step=3)
    parts = [stream(PASTING, first_step=3, host=Host(index, 4)) for index in range(4)]
    for batch in whole[3:]:
        again, joined = next(late).arrays, [next(part).arrays for part in parts]
        for field in dataclasses.fields(Batch):
            for first, second, *others in zip(
                *(as_arrays(getattr(arrays, field.name)) for arrays in (batch.arrays, again, *joined)), strict=True
            ):
                np.testing.assert_array_equal(first, second)
                np.testing.assert_array_equal(first, np.concatenate(others))


def as_arrays(value):
    return [value] if isinstance(value, np.ndarray) else list(vars(value).values())


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("pad", ["gray", "zero"])
def test_targets_have_pixels_inside_the_image_and_images_without_things_get_some(pad, keep):
    augmentation = dataclasses.replace(PASTING, pad=pad, copy_paste=1.0, keep_empty_segments=keep)
    source = Drawn(planes=2)
    got_things = 0
    for batch in itertools.islice(stream(augmentation, source=source), 8):
        targets, sizes = batch.arrays.targets, batch.arrays.image_size
        assert not batch.dropped.any()
        for image_id, ids, labels, valid, size in zip(
            batch.image_ids, targets.segment_ids, targets.labels, targets.valid, sizes, strict=True
        ):
            numbers = np.unique(ids[ids >= 0])
            assert set(numbers) <= set(np.flatnonzero(valid))
            assert keep or len(numbers) == valid.sum()
            assert (ids[:, size[0] :] == -1).all()
            assert (ids[:, :, size[1] :] == -1).all()
            got_things += image_id == "0" and bool(IS_THING[labels[valid]].any())
    assert got_things


def test_things_are_pasted_with_the_probability_and_only_as_many_as_there_is_room_for():
    half = dataclasses.replace(PLAIN, copy_paste=0.5)
    batches = list(itertools.islice(stream(half, source=Drawn(things=(0,) + (5,) * 3)), 40))
    things = np.concatenate([(IS_THING[b.arrays.targets.labels] & b.arrays.targets.valid).sum(axis=1) for b in batches])
    bare = np.concatenate([b.image_ids for b in batches]) == "0"
    assert 0.3 < np.mean(things[bare] > 0) < 0.7
    assert len(set(things[bare])) > 3
    full = list(itertools.islice(stream(half, max_segments=6, source=Drawn(things=(5,) * 4)), 10))
    assert not any(batch.dropped.any() for batch in full)


def test_what_is_off_draws_nothing():
    example = encoded(drawn(0), "a")
    for transforms in augment.TRANSFORMS:
        off = dataclasses.replace(PLAIN, transforms=transforms, color_jitter=True, right_angles=True)
        ours, theirs = np.random.default_rng(5), np.random.default_rng(5)
        made = train_example(example, ours, 9, 1, off, Donors(Drawn(), "train"))
        plan = augment.draw_plan(theirs, SIZE, off)
        assert ours.bit_generator.state == theirs.bit_generator.state
        assert not plan.gray
        image = augment.apply_to_image(schema.decode_image(example.image), plan)
        np.testing.assert_array_equal(made[0], augment.pad(image, SIZE, augment.PAD_VALUE))
        # The other draws stay what they are.
        also = augment.draw_plan(np.random.default_rng(5), SIZE, dataclasses.replace(off, grayscale=1.0))
        assert dataclasses.replace(also, gray=False) == plan


def test_gray_images_have_three_equal_channels_and_get_gray_things():
    augmentation = dataclasses.replace(PLAIN, grayscale=0.4, copy_paste=1.0, color_jitter=True)
    images = np.concatenate([batch.arrays.image for batch in itertools.islice(stream(augmentation), 20)]).astype(int)
    gray = np.ptp(images, axis=-1).max(axis=(1, 2)) == 0
    assert 0.25 < gray.mean() < 0.55
    colored = np.ptp(images[~gray], axis=-1)
    assert (np.mean(colored == 0, axis=(1, 2)) < 0.25).all()  # and the others get none that is gray


def test_targets_have_room_for_pasted_things_as_far_as_there_are_queries():
    source = Drawn()  # up to 6 segments without crowds
    data = dataclasses.make_dataclass("Data", ["train_split", "max_segments", "copy_paste"])
    found = [
        max_targets(source, data("train", limit, probability), queries)
        for limit, probability, queries in (
            (0, 0.0, 100), (0, 0.5, 100), (0, 0.5, None), (0, 0.5, 8), (8, 0.5, 100), (3, 0.5, 100), (0, 0.5, 4),
        )
    ]  # fmt: skip
    assert found == [6, 12, 12, 8, 8, 3, 6]


def test_data_without_things_are_refused():
    class Stuff(Drawn):
        classes = Classes(("sky", "car", "person"), (False,) * 3, ((0, 0, 0),) * 3)
        builder = type("Builder", (), {"info": type("Info", (), {"full_name": "mine"})})

    data = dataclasses.make_dataclass("Data", ["train_split", "max_segments", "copy_paste"])
    assert max_targets(Stuff(), data("train", 0, 0.0), 100) == 6
    with pytest.raises(UserError, match=r"copy_paste is 0\.5, but mine, split 'train', has no things"):
        max_targets(Stuff(), data("train", 0, 0.5), 100)


@pytest.mark.parametrize("name", ["copy_paste", "grayscale"])
@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_probabilities_are_from_0_to_1(name, value):
    with pytest.raises(UserError, match=f"^{name} is {value}; it must be a probability"):
        dataclasses.replace(PLAIN, **{name: value})
