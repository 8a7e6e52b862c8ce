"""The content of folders: what changes its digest, and what is read again."""

import os
import unicodedata

import pytest
from etils import epath

from maskformer_jax.errors import UserError
from maskformer_jax.files import identity

OLD = 1_600_000_000


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "photos"
    (root / "a").mkdir(parents=True)
    for name, text in (("x.png", "first"), ("a/y.png", "second")):
        (root / name).write_text(text)
    return root


@pytest.fixture
def reads(monkeypatch):
    """The names of all files whose content was read."""
    found, read = [], identity._hash
    monkeypatch.setattr(identity, "_hash", lambda path: found.append(path.name) or read(path))
    return found


def content(root, **options):
    files = [epath.Path(path) for path in root.rglob("*.png")]
    return identity.content(epath.Path(root), files, epath.Path(root.parent / "index.json"), **options)


def settle(monkeypatch):
    """Lets files count as unchanged for long."""
    monkeypatch.setattr(identity, "_RECENT", -(10**12))


def test_neither_place_nor_times_change_a_digest(root):
    before = content(root)
    assert before.size == 11
    os.utime(root / "x.png", (OLD, OLD))
    moved = root.rename(root.parent / "moved")
    assert content(moved) == before


@pytest.mark.parametrize("change", ["bytes", "name", "more", "fewer"])
def test_names_and_bytes_change_a_digest(root, change):
    before, path = content(root).digest, root / "x.png"
    if change == "bytes":  # as long as before, with the time of before
        state = path.stat()
        path.write_text("First")
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    elif change == "name":
        path.rename(root / "z.png")
    elif change == "more":
        (root / "z.png").write_text("")
    else:
        path.unlink()
    assert content(root).digest != before


def test_unchanged_files_are_read_once(root, reads, monkeypatch):
    settle(monkeypatch)
    before = content(root)
    assert sorted(reads) == ["x.png", "y.png"]
    assert content(root) == before
    assert len(reads) == 2
    state = (root / "x.png").stat()
    (root / "x.png").write_text("First")
    os.utime(root / "x.png", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert content(root) != before
    assert reads[2:] == ["x.png"]


def test_files_that_changed_a_moment_ago_are_read_again(root, reads):
    content(root)
    content(root)
    assert len(reads) == 4


@pytest.mark.parametrize("text", ["", "[]", '{"version": 1}', '{"version": 1, "files": {"x.png": [1, "a"]}}', "\xff"])
def test_a_damaged_index_only_costs_time(root, text):
    before = content(root)
    (root.parent / "index.json").write_text(text)
    assert content(root) == before


def test_composed_and_decomposed_names_are_the_same(root, tmp_path):
    digests = []
    for form in ("NFC", "NFD"):
        folder = tmp_path / form
        folder.mkdir()
        (folder / unicodedata.normalize(form, "caf\u00e9.png")).write_text("x")
        digests.append(content(folder).digest)
    assert digests[0] == digests[1]


def test_names_that_are_not_utf8(root):
    before = content(root).digest
    with open(os.path.join(os.fsencode(root), b"caf\xe9.png"), "wb") as file:
        file.write(b"x")
    assert content(root).digest != before


def test_files_that_cannot_be_read_are_named(root, monkeypatch):
    (root / "gone.png").symlink_to(root / "nowhere.png")
    with pytest.raises(UserError, match=r"gone\.png does not exist; it is a link to .*nowhere\.png"):
        content(root)
    (root / "gone.png").unlink()
    os.mkfifo(root / "pipe.png")
    with pytest.raises(UserError, match=r"pipe\.png is no file"):
        content(root)
    (root / "pipe.png").unlink()

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(identity.hashlib, "file_digest", refuse)
    with pytest.raises(UserError, match=r"\.png cannot be read: Permission denied"):
        content(root)


def test_a_folder_for_the_index_that_cannot_be_written_is_no_error(root, tmp_path):
    (tmp_path / "file").write_text("")
    files = [epath.Path(root / "x.png")]
    assert identity.content(epath.Path(root), files, epath.Path(tmp_path / "file" / "index.json")).size == 5


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (2_500_000, "2.5 MB"), (1e9, "1.0 GB"), (3e12, "3000.0 GB")],
)
def test_sizes_in_words(size, words):
    assert identity.size_in_words(size) == words
