"""Files that appear complete or not at all, and the messages when they cannot."""

import errno
import json
import os
import pathlib
import resource
import signal
import stat

import pytest

from maskformer_jax.errors import UserError
from maskformer_jax.files import writing


@pytest.fixture
def small_disk():
    """A disk that takes files of up to 10,000 bytes."""
    # Python ignores this signal anyway; the libraries of other tests may not.
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def names(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def write_half(path):
    with writing.complete(path) as file:
        file.write(b"half")
        raise KeyError("a defect keeps its type")


def fill_half(folder):
    with writing.new_folder(folder) as partial:
        (partial / "half.bin").write_bytes(b"half")
        raise KeyError("a defect")


def failing(monkeypatch, number: int, function: str = "fsync"):
    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, function, fail)


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "a" / "b.bin"
    with writing.complete(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["a", "b.bin"]


def test_an_error_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(KeyError):
        write_half(path)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_a_full_disk_leaves_no_part_of_a_file(tmp_path, small_disk):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    for data in (bytes(20_000), bytes(10_001)):
        with pytest.raises(writing.WriteError, match=r"a\.bin cannot be written: the file would be larger"):
            writing.write_bytes(path, data)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_of_several_files_none_appears_if_one_cannot(tmp_path, small_disk):
    contents = {tmp_path / "first": b"x", tmp_path / "second": bytes(20_000), tmp_path / "third": b"y"}
    with pytest.raises(writing.WriteError, match="second cannot be written"):
        writing.write_files(contents)
    assert names(tmp_path) == []
    (tmp_path / "third").mkdir()
    with pytest.raises(writing.WriteError, match="third cannot be written: a folder has this name"):
        writing.write_files({**contents, tmp_path / "second": b""})
    assert names(tmp_path) == ["third"]


@pytest.mark.parametrize(
    ("number", "words", "disk"),
    [
        (errno.ENOSPC, "the disk is full", True),
        (errno.EDQUOT, "the quota on this disk is used up", True),
        (errno.EROFS, "the file system is read-only", True),
        (errno.EIO, "the disk reports a defect", True),
        (errno.EACCES, "permission denied", False),
    ],
)
def test_the_reason_is_named(tmp_path, monkeypatch, number, words, disk):
    failing(monkeypatch, number)
    with pytest.raises(writing.WriteError, match=rf"a\.json cannot be written: {words} \(") as caught:
        writing.write_json(tmp_path / "a.json", {})
    assert caught.value.disk == disk
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [("n" * 256, "its name is too long"), ("file/below", "a file has this name, or that of its folder")],
)
def test_names_that_cannot_be(tmp_path, name, words):
    (tmp_path / "file").touch()
    with pytest.raises(writing.WriteError, match=f"cannot be written: {words}"):
        writing.write_text(tmp_path / name, "text")
    assert names(tmp_path) == ["file"]


def test_the_longest_name_that_a_disk_takes_is_written(tmp_path):
    writing.write_text(tmp_path / ("n" * 255), "text")
    assert names(tmp_path) == ["n" * 255]


def test_errors_of_libraries_that_name_a_full_disk_are_explained():
    with (
        pytest.raises(writing.WriteError, match="model cannot be written: the disk is full"),
        writing.explained("model"),
    ):
        raise ValueError("RESOURCE_EXHAUSTED: Error writing: [OS error 28: ENOSPC No space left on device]")
    for defect in (ValueError("no such axis"), FileNotFoundError(errno.ENOENT, "No such file", __file__ + "x")):
        with pytest.raises(type(defect)) as caught, writing.explained("model"):
            raise defect
        assert caught.value is defect


def test_a_link_is_replaced_and_what_it_points_to_is_not(tmp_path):
    own = tmp_path / "own.txt"
    own.write_text("precious")
    (tmp_path / "link.txt").symlink_to(own)
    writing.write_text(tmp_path / "link.txt", "new")
    assert own.read_text() == "precious"
    assert (tmp_path / "link.txt").read_text() == "new"


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_the_umask(tmp_path, mask):
    old = os.umask(mask)
    try:
        writing.write_text(tmp_path / "a" / "b", "text")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o777 & ~mask


def test_json_holds_names_that_are_not_utf_8(tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    writing.write_json(tmp_path / "a.json", {"name": name})
    assert json.loads((tmp_path / "a.json").read_text()) == {"name": name}
    writing.write_text(tmp_path / "a.txt", name)
    assert (tmp_path / "a.txt").read_text() == r"caf\udce9.jpg"


def test_a_folder_is_checked_by_writing(tmp_path, monkeypatch):
    assert writing.check_folder(tmp_path / "new" / "out", "--out").is_dir()
    assert names(tmp_path) == ["new", "out"]
    (tmp_path / "file").touch()
    with pytest.raises(writing.WriteError, match=r"^--out=.*file: cannot create this folder: a file has this name,"):
        writing.check_folder(tmp_path / "file", "--out")
    failing(monkeypatch, errno.ENOSPC)
    with pytest.raises(writing.WriteError, match=r"^--to=.*out: cannot write in this folder: the disk is full"):
        writing.check_folder(tmp_path / "new" / "out", "--to")
    assert names(tmp_path / "new" / "out") == []


@pytest.mark.parametrize("exists", [True, False])
def test_a_new_folder_is_filled_as_a_whole(tmp_path, exists):
    folder = tmp_path / "model"
    if exists:
        folder.mkdir()
    with pytest.raises(KeyError):
        fill_half(folder)
    assert names(tmp_path) == ["model"] * exists
    with writing.new_folder(folder) as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "whole.bin").write_bytes(b"whole")
        assert not (folder / "sub").exists()
    assert names(tmp_path) == ["model", "sub", "whole.bin"]
    with pytest.raises(UserError, match="model exists and is not an empty folder"), writing.new_folder(folder):
        pytest.fail("the block has run")


def test_cloud_storage_gets_whole_objects(monkeypatch):
    written = {}
    cloud = "gs://bucket/run/a.json"

    class Fake:
        """Of `epath.Path`: what writing uses of a path in cloud storage."""

        def __init__(self, path):
            self.path = os.fspath(path)

        def __fspath__(self):
            return self.path

        parent = property(lambda self: Fake(self.path.rpartition("/")[0]))

        def __truediv__(self, name):
            return Fake(f"{self.path}/{name}")

        def mkdir(self, **options):
            pass

        def is_dir(self):
            return False

        def write_bytes(self, data):
            written[self.path] = data

        def unlink(self, missing_ok):
            assert ".partial-" in self.path

    monkeypatch.setattr(writing.epath, "Path", Fake)
    writing.write_text(cloud, "text")
    assert written == {cloud: b"text"}
    with pytest.raises(KeyError):
        write_half(cloud)
    assert written == {cloud: b"text"}
