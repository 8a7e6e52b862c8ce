"""A workdir has one owner at a time, which vanishes with its process."""

import json
import os
import shutil
import signal
import threading
import time

import pytest

from maskformer_jax.checkpoints import ownership
from maskformer_jax.checkpoints.ownership import owned
from maskformer_jax.errors import UserError
from tests.processes import Program

OWN = """
import sys, time
from maskformer_jax.checkpoints.ownership import owned
with owned(sys.argv[1]):
    print("owned", flush=True)
    time.sleep(300)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that owns a workdir."""
    program = Program(["-c", OWN, str(tmp_path / "w")], {**os.environ, "JAX_PLATFORMS": "cpu"})
    program.wait_for("^owned")
    yield program
    program.process.kill()


@pytest.fixture
def patience(monkeypatch):
    monkeypatch.setattr(ownership, "PATIENCE", 0.6)
    monkeypatch.setattr(ownership, "HEARTBEAT", 0.1)


def without_locks(monkeypatch):
    """A disk that has no locks, as cloud storage."""
    monkeypatch.setattr(ownership, "fcntl", None)


def elsewhere(folder, **changes):
    """Changes what the owner file of a folder says about its process."""
    values = json.loads((folder / ownership.NAME).read_text())
    (folder / ownership.NAME).write_text(json.dumps({**values, **changes}))


def leave(folder, **changes):
    """An owner file like that of a run that was killed."""
    with owned(str(folder)):
        text = (folder / ownership.NAME).read_text()
    (folder / ownership.NAME).write_text(text)
    elsewhere(folder, token="another", **changes)


def is_free(folder):
    with owned(str(folder)) as owner:
        (folder / "config.json").write_text("{}")
        owner.check()
    return not (folder / ownership.NAME).exists()


@pytest.mark.parametrize("locks", [True, False])
def test_the_error_names_the_process_and_after_kill_the_folder_is_free(tmp_path, monkeypatch, other, locks):
    if not locks:
        without_locks(monkeypatch)
    before = (tmp_path / "w" / ownership.NAME).read_text()
    with pytest.raises(UserError, match=rf"w is in use by another run: process {other.process.pid} on ") as error:
        owned(str(tmp_path / "w")).__enter__()
    assert "Nothing was changed" in str(error.value)
    assert str(tmp_path / "w") in str(error.value)  # in its command, too
    assert (tmp_path / "w" / ownership.NAME).read_text() == before
    other.process.send_signal(signal.SIGKILL)
    other.process.wait()
    started = time.monotonic()
    assert is_free(tmp_path / "w")
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("locks", [True, False])
def test_two_runs_of_one_process_do_not_share_a_folder(tmp_path, monkeypatch, locks):
    if not locks:
        without_locks(monkeypatch)
    with owned(str(tmp_path)), pytest.raises(UserError, match=f"in use by another run: process {os.getpid()} "):
        owned(str(tmp_path)).__enter__()
    assert is_free(tmp_path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError, UserError])
def test_it_is_free_after_every_way_out(tmp_path, error):
    with pytest.raises(error), owned(str(tmp_path)):
        raise error
    assert os.listdir(tmp_path) == []
    assert is_free(tmp_path)


def test_a_number_that_another_process_has_now_is_no_owner(tmp_path, monkeypatch):
    """In containers every program is process 1."""
    without_locks(monkeypatch)
    leave(tmp_path, started="12")
    assert is_free(tmp_path)


def test_where_this_machine_has_the_lock_a_container_with_another_name_is_gone(tmp_path):
    leave(tmp_path, host="f00ba4", pids="pid:[1]", pid=1)
    started = time.monotonic()
    assert is_free(tmp_path)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("locks", [True, False])
def test_an_owner_elsewhere_without_a_heartbeat_is_gone(tmp_path, monkeypatch, capsys, patience, locks):
    if not locks:
        without_locks(monkeypatch)
    leave(tmp_path, host="node7", boot="another machine")
    assert is_free(tmp_path)
    printed = capsys.readouterr().out
    assert f"{tmp_path} was in use by process {os.getpid()} on node7" in printed
    assert "waiting up to 1 s for a sign of life" in printed


def test_an_owner_elsewhere_with_a_heartbeat_keeps_the_folder(tmp_path, patience):
    leave(tmp_path, host="node7", boot="another machine")
    alive = threading.Event()

    def beat():
        for number in range(1, 50):
            if alive.wait(0.1):
                return
            elsewhere(tmp_path, heartbeat=number)

    heart = threading.Thread(target=beat)
    heart.start()
    with pytest.raises(UserError, match=r"in use by another run: .* on node7"):
        owned(str(tmp_path)).__enter__()
    alive.set()
    heart.join()


def test_the_heart_beats(tmp_path, patience):
    with owned(str(tmp_path)):
        deadline = time.monotonic() + 10
        while json.loads((tmp_path / ownership.NAME).read_text())["heartbeat"] < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_folder_that_is_gone_or_taken_is_noticed(tmp_path, patience):
    root = tmp_path / "w"
    with owned(str(root)) as owner:
        (root / "config.json").write_text("{}")
        owner.check()
        (root / ownership.NAME).unlink()  # by somebody who tidies up
        owner.check()
        assert (root / ownership.NAME).exists()
        elsewhere(root, token="of another", host="node9")
        with pytest.raises(UserError, match=r"has been taken over by process .* on node9"):
            owner.check()
        time.sleep(0.3)
        assert json.loads((root / ownership.NAME).read_text())["token"] == "of another"
        shutil.rmtree(root)
        with pytest.raises(UserError, match="w was removed or replaced while this run was writing there"):
            owner.check()
    assert not root.exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"token": 1}', "\xff", '{"token": "a", "pid": "x"}'])
def test_an_owner_file_of_any_other_content_counts_for_nothing(tmp_path, text):
    (tmp_path / ownership.NAME).write_text(text, encoding="latin-1")
    assert is_free(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "images", "checkpoints", ""])
def test_a_folder_that_cannot_be_written_is_named_before_anything_starts(tmp_path, name):
    path = tmp_path / "w" / name if name else tmp_path / "w"
    path.parent.mkdir(exist_ok=True)
    path.mkdir() if "." in name else path.write_text("mine")
    with pytest.raises(UserError, match=r"w.*(cannot be written|is not a folder|cannot create)"):
        owned(str(tmp_path / "w")).__enter__()
    assert not (tmp_path / "w" / ownership.NAME).exists()
