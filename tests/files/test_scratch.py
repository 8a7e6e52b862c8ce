"""Arrays that lie on the disk are what arrays in memory would be."""

import errno
import os

import numpy as np
import pytest

from maskformer_jax.files import scratch, writing


@pytest.fixture
def on_disk(monkeypatch):
    monkeypatch.setattr(scratch, "IN_MEMORY", 100)
    monkeypatch.setattr(scratch, "_BLOCK", 50)


def test_large_arrays_lie_in_files_without_names(on_disk, tmp_path, monkeypatch):
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path))
    array = scratch.zeros((30, 20), np.uint16)
    assert isinstance(array, np.memmap)
    assert not array.any()
    assert list(tmp_path.iterdir()) == []
    array[3:5, 7] = 9
    scratch.release(array)
    scratch.release(array[2:, None])
    assert array.sum() == 18
    assert not isinstance(scratch.zeros((5, 20), np.uint8), np.memmap)


def test_rows_are_changed_and_counted_a_few_at_a_time(on_disk):
    array = np.random.default_rng(0).integers(0, 7, (23, 20))
    table = np.arange(7, dtype=np.uint8) ** 2
    seen = []
    changed = scratch.mapped(array, lambda rows: seen.append(len(rows)) or table[rows], np.uint8)
    assert seen == [2] * 11 + [1]
    np.testing.assert_array_equal(changed, table[array])
    np.testing.assert_array_equal(scratch.counts(array, 9), np.bincount(array.ravel(), minlength=9))


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system reserves no room")
def test_a_full_disk_is_named_before_work_begins(on_disk, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        writing.WriteError, match=r"cannot hold a temporary array of 3\.0 GiB \(TMPDIR .*full"
    ) as caught:
        scratch.zeros((3, 2**30), np.uint8)
    assert caught.value.disk
