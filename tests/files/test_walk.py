"""Searching folders and patterns: links, loops, brackets, Unicode, folders that cannot be read."""

import os
import unicodedata

import pytest

from maskformer_jax.files import paths, walk


def fail(error):
    raise error


@pytest.fixture
def tree(tmp_path):
    for name in ("b/2.png", "a/1.png", "a/c/3.png", ".hidden/4.png", "photos [2024]/5.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def walked(folder, unreadable=fail):
    found = walk.walk(str(folder), unreadable)
    return [os.path.relpath(os.path.join(parent, name), folder) for parent, names in found for name in names]


def matched(pattern):
    folder, parts = walk.split_pattern(str(pattern))
    return list(walk.matching(folder, parts, fail))


def test_folders_are_walked_in_order_without_hidden_ones(tree):
    assert walked(tree) == ["a/1.png", "a/c/3.png", "b/2.png", "photos [2024]/5.png"]


def test_linked_folders_are_walked_once_and_under_their_own_name_if_they_have_one(tree, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "6.png").touch()
    (tree / "0_link").symlink_to(other)
    (tree / "1_link").symlink_to(other)
    (tree / "2_link").symlink_to(tree / "b")
    assert walked(tree) == ["a/1.png", "a/c/3.png", "b/2.png", "photos [2024]/5.png", "0_link/6.png"]


def test_loops_of_links_end(tree):
    (tree / "a" / "up").symlink_to(tree)
    (tree / "b" / "up").symlink_to(tree)
    (tree / "self").symlink_to(tree / "self")
    (tree / "nowhere").symlink_to(tree / "missing")
    # A link that leads nowhere is a file that cannot be read.
    assert [path for path in walked(tree) if path.endswith(".png")] == [
        *("a/1.png", "a/c/3.png", "b/2.png", "photos [2024]/5.png")
    ]
    assert len(set(map(os.path.realpath, matched(tree / "**" / "*.png")))) == 4


def test_folders_that_cannot_be_read_are_reported(tree, monkeypatch):
    scandir, seen = os.scandir, []

    def refuse(path):
        if os.fspath(path).endswith("a"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert walked(tree, seen.append) == ["b/2.png", "photos [2024]/5.png"]
    assert [error.filename for error in seen] == [str(tree / "a")]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*/*.png", ["a/1.png", "b/2.png", "photos [2024]/5.png"]),
        ("**/*.png", ["a/1.png", "a/c/3.png", "b/2.png", "photos [2024]/5.png"]),
        ("a/**/*.png", ["a/1.png", "a/c/3.png"]),
        ("[ab]", ["a", "b"]),
        ("?/[0-1].png", ["a/1.png"]),
        ("a/**", ["a"]),
        ("photos [2024]/*.png", ["photos [2024]/5.png"]),
        ("*/1.png/*", []),
        ("missing/*", []),
        (".h*/*.png", [".hidden/4.png"]),
    ],
)
def test_patterns(tree, monkeypatch, pattern, expected):
    assert matched(tree / pattern) == [str(tree / path) for path in expected]
    monkeypatch.chdir(tree)
    assert matched(pattern) == expected


def test_patterns_and_paths_match_in_both_compositions_of_unicode(tmp_path):
    for form, other in (("NFD", "NFC"), ("NFC", "NFD")):
        folder = tmp_path / form
        name = unicodedata.normalize(form, "Zoë")
        (folder / name).mkdir(parents=True)
        (folder / name / "é1.png").touch()
        typed = unicodedata.normalize(other, "Zoë")
        assert paths.existing(str(folder / typed)) == str(folder / name)
        assert matched(folder / typed / "*.png") == [str(folder / name / "é1.png")]
        assert matched(folder / unicodedata.normalize(other, "Zo[ë]*") / "*.png") == [str(folder / name / "é1.png")]
    assert paths.existing("Zoë") == "Zoë"
