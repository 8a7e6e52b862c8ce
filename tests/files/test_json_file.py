"""JSON files as other programs write them."""

import pytest

from maskformer_jax.errors import UserError
from maskformer_jax.files import json_file


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le"])
def test_encodings_with_and_without_a_byte_order_mark(tmp_path, encoding):
    path = tmp_path / "file.json"
    path.write_bytes('{"name": "Straße"}'.encode(encoding))
    assert json_file.read(path) == {"name": "Straße"}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"a": ', "is not valid JSON"),
        (b"", "is not valid JSON"),
        (b"\xff\x00\xfe{}", "is not valid JSON"),
        (b"9" * 5000, "is not valid JSON"),
        (b"[" * 200_000, "is nested too deeply"),
        (b"[]", "holds a list; expected an object"),
        (b"null", "holds null; expected an object"),
        (b'"text"', "holds a text; expected an object"),
    ],
)
def test_other_content_is_refused_with_the_path(tmp_path, data, reason):
    path = tmp_path / "file.json"
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"file\.json {reason}"):
        json_file.read(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.json is missing. Add it."):
        json_file.read(tmp_path / "none.json", missing="Add it.")
    with pytest.raises(UserError, match="cannot be read"):
        json_file.read(tmp_path)


ANY = [None, True, False, 0, 1, 2, -1, 0.0, 1.0, 0.5, 1e300, float("nan"), float("inf"), 10**400, "", "0", [], {}, [1]]


@pytest.mark.parametrize(
    ("read", "accepted"),
    [
        (json_file.flag, [True, False, 0, 1, 0.0, 1.0]),
        (lambda value, where: json_file.whole(value, where, 0, 9), [0, 1, 2, 0.0, 1.0]),
        (lambda value, where: json_file.number(value, where, -1, 9), [0, 1, 2, -1, 0.0, 1.0, 0.5]),
        (json_file.text, ["0"]),
        (json_file.items, [[]]),
    ],
)
def test_each_reader_accepts_its_type_and_names_the_place_of_others(read, accepted):
    for value in ANY:
        fits = any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in accepted)
        if fits:
            assert read(value, "here") == value
        else:
            with pytest.raises(UserError, match=r"^here"):
                read(value, "here")
