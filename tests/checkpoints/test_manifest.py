"""The manifest of a checkpoint: every change of its files is noticed, whoever reads it."""

import contextlib
import json
import shutil

import jax
import numpy as np
import pytest
from etils import epath

from benchmarks.damage import damages, files
from maskformer_jax import catalog
from maskformer_jax.checkpoints import manifest, workdir
from maskformer_jax.checkpoints.damage import damage, non_finite
from maskformer_jax.checkpoints.published import Description
from maskformer_jax.checkpoints.recovery import recover
from maskformer_jax.checkpoints.store import CheckpointStore
from maskformer_jax.checkpoints.weights import open_weights
from maskformer_jax.errors import UserError
from tests.checkpoints.test_store import age, assert_equal, save_small, small_state


def write_some(folder):
    """A folder with a manifest, but without arrays."""
    (folder / "model" / "d").mkdir(parents=True)
    (folder / "training").mkdir()
    (folder / "metrics").mkdir()
    metadata = {"commit_timestamp_nsecs": None, "custom_metadata": manifest.PROMISE, "init_timestamp_nsecs": 12}
    (folder / "_CHECKPOINT_METADATA").write_text(json.dumps(metadata))
    (folder / "model" / "d" / "a").write_bytes(bytes(range(200)) * 10)
    (folder / "model" / "empty").write_bytes(b"")
    (folder / "training" / "b").write_bytes(b"moments")
    (folder / "metrics" / "metrics").write_text('{"pq": 40.0}')
    manifest.write(epath.Path(folder))
    return epath.Path(folder)


def test_what_was_written_is_accepted_also_after_the_commit(tmp_path):
    folder = write_some(tmp_path / "3")
    assert manifest.difference(folder) == ""
    metadata = folder / "_CHECKPOINT_METADATA"
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "commit_timestamp_nsecs": 1234567}))
    (folder / "commit_success.txt").write_text("yes")
    (folder / "model" / ".DS_Store").write_bytes(b"a window's place")
    (folder / "model" / "d" / "._a").write_bytes(b"attributes")
    assert manifest.difference(folder) == ""


@pytest.mark.parametrize("name", ["model/d/a", "training/b", "metrics/metrics", "_CHECKPOINT_METADATA", manifest.NAME])
def test_every_bit_counts(tmp_path, name):
    folder = write_some(tmp_path / "3")
    whole = (folder / name).read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 40)):
        for bit in (0, 5, 7):
            (folder / name).write_bytes(whole[:place] + bytes([whole[place] ^ (1 << bit)]) + whole[place + 1 :])
            assert manifest.difference(folder), (place, bit)
    (folder / name).write_bytes(whole)
    assert manifest.difference(folder) == ""


def test_files_that_came_or_went_are_named(tmp_path):
    folder = write_some(tmp_path / "3")
    (folder / "model" / "d" / "more").write_bytes(b"")
    assert manifest.difference(folder) == "model/d/more is not of this checkpoint"
    assert manifest.difference(folder, ("training",)) == ""
    (folder / "model" / "d" / "more").unlink()
    (folder / "model" / "empty").unlink()
    assert manifest.difference(folder, contents=False) == "model/empty is missing"
    (folder / "model" / "d" / "a").unlink()
    assert manifest.difference(folder) == "model/d/a and 1 other files are missing"


def test_sizes_are_seen_without_reading(tmp_path):
    folder = write_some(tmp_path / "3")
    (folder / "training" / "b").write_bytes(b"moment")
    assert manifest.difference(folder, contents=False) == "training/b has 6 bytes, and had 7 when it was written"
    (folder / "training" / "b").write_bytes(b"moNents")
    assert manifest.difference(folder, contents=False) == ""
    assert manifest.difference(folder) == "training/b has other content than when it was written (SHA-256)"


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"version": 1, "files": []}', "[" * 10_000, "\ufeff{}"])
def test_a_manifest_of_any_other_content_is_damage(tmp_path, text):
    folder = write_some(tmp_path / "3")
    (folder / manifest.NAME).write_text(text)
    assert manifest.difference(folder).startswith("checksums.json itself is damaged")


def test_a_lost_manifest_is_told_from_one_that_never_was(tmp_path):
    save_small(tmp_path / "c", 2, 4)
    (tmp_path / "c" / "4" / manifest.NAME).unlink()
    step, messages = recover(str(tmp_path / "c"))
    assert step == 2
    assert len(messages) == 1
    assert messages[0].endswith(": checksums.json is missing")
    age(tmp_path / "c" / "2")
    step, messages = recover(str(tmp_path / "c"))
    assert step == 2
    assert len(messages) == 1
    assert "has no checksums.json: an earlier version of this package wrote it" in messages[0]
    store = CheckpointStore(str(tmp_path / "c"))
    with pytest.warns(UserWarning, match="whether each bit is what was written cannot be known"):
        store.read_model(2)
    assert_equal(small_state(2), store.restore(2, small_state(1), checked=True))
    store.close()


@pytest.mark.parametrize("count", [pytest.param(300, marks=pytest.mark.slow), 26])
def test_every_damage_is_noticed_and_the_checkpoint_before_has_the_same_bits(tmp_path, count):
    """Turned bits, zeroed and cut stretches over all files, in turn. 'Harmless': the same bits come back."""
    directory = tmp_path / "c"
    save_small(directory, 2, 4)
    harmless = set()
    for kind, file in damages(directory / "4", count, seed=0):
        found, error = restored(directory, 4)
        if not error:
            harmless.add(str(file.relative_to(directory / "4")))
            assert_equal(small_state(4), found)
            continue
        assert "c/4 is damaged" in error, (kind, file)
        copy = shutil.copytree(directory, tmp_path / "copy")
        step, messages = recover(str(copy))
        assert step == 2, (kind, file)
        assert f"checkpoint {copy}/4 is damaged" in messages[0]
        shutil.rmtree(copy)
    # Orbax reads no more of it than that it exists; of the metadata only the time of the end may change.
    assert harmless <= {"commit_success.txt", "_CHECKPOINT_METADATA"}
    assert_equal(small_state(2), restored(directory, 2)[0])


def restored(directory, step):
    """The state of a checkpoint and the error while it was read, of which one is empty."""
    try:
        with contextlib.closing(CheckpointStore(str(directory))) as store:
            return store.restore(step, small_state(1)), ""
    except UserError as error:
        return None, str(error)


def test_a_checkpoint_that_training_wrote_has_a_manifest_of_all_its_files(tmp_path):
    save_small(tmp_path / "c", 3)
    path = tmp_path / "c" / "3"
    entries = json.loads((path / manifest.NAME).read_text())["files"]
    names = {str(file.relative_to(path)) for file in files(path)}
    assert names - entries.keys() <= {manifest.NAME, "commit_success.txt"}
    assert entries.keys() <= names
    assert {name.split("/")[0] for name in names} >= {"model", "training", "metrics"}


def turn_bit_of_model(directory):
    """Turns a bit in the largest file of a checkpoint's model, where a value is stored."""
    file = max(files(directory / "model"), key=lambda file: file.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    return str(file.relative_to(directory))


def test_a_turned_bit_stops_every_reader(tmp_path):
    save_small(tmp_path / "c", 3)
    name = turn_bit_of_model(tmp_path / "c" / "3")
    store = CheckpointStore(str(tmp_path / "c"))
    like = small_state(1)
    for read in (
        lambda: store.restore(3, like),
        lambda: store.restore_model(3, like.params, like.frozen),
        lambda: store.read_model(3),
    ):
        with pytest.raises(UserError, match=rf"c/3 is damaged: {name} has other content"):
            read()
    with pytest.raises(UserError, match="no checkpoint of this run can be read"):
        recover(str(tmp_path / "c"))
    store.close()


def test_damage_of_the_training_state_does_not_stop_who_reads_the_model(tmp_path):
    save_small(tmp_path / "c", 3)
    (tmp_path / "c" / "3" / "training" / "_METADATA").unlink()
    store = CheckpointStore(str(tmp_path / "c"))
    assert_equal(store.read_model(3)["bias"], small_state(3).params["bias"])
    with pytest.raises(UserError, match="training/_METADATA is missing"):
        store.restore(3, small_state(1))
    store.close()


def test_a_turned_bit_of_a_converted_model_is_noticed(tmp_path):
    state = small_state(0)
    workdir.save_model(
        str(tmp_path), Description({"name": "x"}, {}, catalog.load("shapes")), state.params, state.frozen
    )
    assert_equal(open_weights(str(tmp_path)).read()["kernel"], state.params["kernel"])
    turn_bit_of_model(tmp_path / "checkpoints" / "0")
    with pytest.raises(UserError, match=r"checkpoints/0 is damaged: .* has other content"):
        open_weights(str(tmp_path)).read()


def test_values_that_are_not_finite_are_named(tmp_path):
    state = small_state(3)
    kernel = state.params["kernel"].at[3, 5].set(np.nan)
    state = state.with_arrays({"kernel": kernel})
    assert non_finite({"model": state.params}) == ["model/kernel"]
    moment = jax.tree.map(lambda leaf: leaf.at[..., 0].set(np.inf), state.optimizer)
    store = CheckpointStore(str(tmp_path / "c"))
    store.save(3, state)
    store.save(4, type(state)(state.step, small_state(3).params, state.frozen, moment, {}))
    store.wait()
    for read in (lambda: store.restore(3, state), lambda: store.read_model(3)):
        with pytest.raises(UserError, match=r"c/3 holds values that are not finite: .*kernel"):
            read()
    with pytest.raises(UserError, match=r"not finite: training/optimizer/trace/bias, training/optimizer/trace/kernel"):
        store.restore(4, state)
    store.read_model(4)
    store.close()


def test_an_old_checkpoint_is_renamed_before_it_is_deleted(tmp_path, monkeypatch):
    """A kill while files are deleted must not leave a folder that reads like a checkpoint."""
    directory = tmp_path / "c"
    store = CheckpointStore(str(directory), keep=1)
    deleted = []

    def kill(path):
        deleted.append({found.name: damage(epath.Path(found)) for found in path.iterdir()})
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(type(epath.Path(directory)), "rmtree", kill)
        for step in (1, 2, 3):
            store.save(step, small_state(step))
            store.wait()
        assert {path.name for path in directory.iterdir()} == {"3", "deleted"}
    assert deleted[-1] == {"1": ""}
    assert recover(str(directory)) == (3, [])
    assert [path.name for path in directory.iterdir()] == ["3"]
    store.close()


def test_old_checkpoints_are_gone_in_the_end(tmp_path):
    store = CheckpointStore(str(tmp_path / "c"), keep=1)
    for step in (1, 2, 3):
        store.save(step, small_state(step))
    store.close()
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["3"]


def test_a_checkpoint_that_training_has_replaced_meanwhile_is_not_damaged(tmp_path):
    save_small(tmp_path / "c", 3)
    store = CheckpointStore(str(tmp_path / "c"))
    (tmp_path / "c" / "3").rename(tmp_path / "c" / "deleted")
    with pytest.raises(UserError, match="c/3 is gone: a run that trains there has replaced it"):
        store.read_model(3)
    store.close()


def test_half_of_an_old_checkpoint_is_set_aside(tmp_path):
    save_small(tmp_path / "c", 2, 4)
    shutil.rmtree(tmp_path / "c" / "2" / "training")
    step, messages = recover(str(tmp_path / "c"))
    assert step == 4
    assert "c/2 is damaged" in messages[0]
