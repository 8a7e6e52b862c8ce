"""Paths as users and files write them."""

import unicodedata

import pytest
from etils import epath

from maskformer_jax.errors import UserError
from maskformer_jax.files import paths


def test_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert paths.expand("~/a") == "/home/me/a"
    for same in ("gs://bucket/~/a", "owner/model", "/a/~b", "a~"):
        assert paths.expand(same) == same


@pytest.mark.parametrize(
    "name", ["../b.png", "a/../../b.png", "/etc/passwd", "C:\\b.png", "..\\b.png", "", None, 3, "a\0"]
)
def test_a_name_that_leads_out_of_its_folder_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=r'^a.json: image 1: "file_name" is'):
        paths.inside(epath.Path(tmp_path), name, 'a.json: image 1: "file_name"')


def test_backslashes_and_unicode_composition_find_the_file(tmp_path):
    (tmp_path / "city").mkdir()
    stored = unicodedata.normalize("NFD", "Köln.png")
    (tmp_path / "city" / stored).write_bytes(b"")
    found = paths.inside(epath.Path(tmp_path), "city\\" + unicodedata.normalize("NFC", "Köln.png"), "here")
    assert found == epath.Path(tmp_path) / "city" / stored


def test_names_of_any_bytes_can_be_printed():
    name = b"a\xff\x1b[31m.png".decode("utf-8", "surrogateescape")
    assert paths.printable(name) == "a\\udcff\\x1b[31m.png"
    assert paths.printable("Köln 東京.png") == "Köln 東京.png"
