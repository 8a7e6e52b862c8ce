"""Streams: the same for a seed, resumed at the exact example, every evaluation image once."""

import itertools

import jax
import numpy as np
import pytest

from maskformer_jax.input_pipeline.loader import Augmentation, eval_batches, train_batches
from maskformer_jax.input_pipeline.sources import open_source
from maskformer_jax.training.sharding import make_mesh, to_devices
from tests.input_pipeline.folders import write_folder

AUGMENTATION = Augmentation((32, 40), 64, (32, 40))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("loader")
    return open_source("folder", str(write_folder(root / "mine")), str(root / "tfds"))


def stream(source, first_step=0, seed=3):
    return train_batches(
        source,
        "train",
        batch_size=4,
        max_segments=3,
        augmentation=AUGMENTATION,
        seed=seed,
        first_step=first_step,
        shuffle_buffer=100,
    )


def assert_equal(first, second):
    assert first[0] == second[0]
    jax.tree.map(np.testing.assert_array_equal, first[1], second[1])


def test_contracts(source):
    image_ids, batch = next(stream(source))
    assert len(image_ids) == 4
    assert batch.image.shape == (4, 32, 40, 3)
    assert batch.image.dtype == np.uint8
    assert batch.targets.segment_ids.shape == (4, 32, 40)
    assert batch.targets.labels.shape == batch.targets.valid.shape == (4, 3)
    assert batch.image_size.tolist() == [[32, 40]] * 4


@pytest.mark.parametrize("step", [1, 3, 4, 7])
def test_a_stream_that_starts_late_is_the_same_stream(source, step):
    """Six images in batches of four: batches cross epochs."""
    late = stream(source, first_step=step)
    for expected in itertools.islice(stream(source), step, step + 4):
        assert_equal(next(late), expected)


def test_the_seed_decides(source):
    assert_equal(next(stream(source)), next(stream(source)))
    other = next(stream(source, seed=4))
    assert not np.array_equal(other[1].image, next(stream(source))[1].image)


def test_every_epoch_has_every_image_once_in_its_own_order(source):
    ids = list(itertools.chain.from_iterable(ids for ids, _ in itertools.islice(stream(source), 9)))
    epochs = [ids[start : start + 6] for start in range(0, 36, 6)]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_hosts_never_share_an_image(source, monkeypatch):
    seen = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for host in range(2):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        seen.append(set(itertools.chain.from_iterable(ids for ids, _ in itertools.islice(stream(source), 6))))
    assert len(seen[0]) == len(seen[1]) == 3
    assert not seen[0] & seen[1]


def evaluate(source):
    options = {"batch_size": 2, "short_edge": 32, "longest_edge": 64, "canvas": (48, 48)}
    return list(eval_batches(source, "val", **options))


def test_evaluation_sees_every_image_once(source):
    batches = evaluate(source)
    assert [len(batch.truth) for batch in batches] == [2, 2, 1]
    assert sorted(t.image_id for b in batches for t in b.truth) == [f"{i:03d}" for i in range(5)]
    for batch in batches:
        assert batch.image.shape == (2, 48, 48, 3)
        for truth, size, original in zip(batch.truth, batch.image_size, batch.original_size, strict=False):
            assert truth.segment_map.shape == tuple(original)
            assert size.min() == 32
            assert truth.area.sum() == np.sum(truth.segment_map > 0)


def test_evaluation_on_two_hosts_sees_every_image_once_in_equally_many_batches(source, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    seen, counts = [], []
    for host in range(2):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        batches = evaluate(source)
        counts.append(len(batches))
        seen += [truth.image_id for batch in batches for truth in batch.truth]
    assert sorted(seen) == [f"{i:03d}" for i in range(5)]
    assert counts[0] == counts[1]


def test_an_image_beyond_the_canvas_is_named(source):
    with pytest.raises(Exception, match=r"image.*has size.*more than eval\.canvas"):
        list(eval_batches(source, "val", batch_size=2, short_edge=32, longest_edge=64, canvas=(32, 32)))


def test_batches_arrive_split_over_the_devices(source):
    mesh = make_mesh(jax.devices()[:4])
    on_devices = to_devices(stream(source), mesh)
    for expected in itertools.islice(stream(source), 3):
        image_ids, batch = next(on_devices)
        assert batch.image.sharding.num_devices == 4
        assert_equal((image_ids, jax.device_get(batch)), expected)
