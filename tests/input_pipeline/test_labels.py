"""Label files as described by classes.json, and the messages for mistakes."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from etils import epath
from PIL import Image

from maskformer_jax import catalog
from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline.builders import read_png
from maskformer_jax.input_pipeline.labels import label_files_of, read_label_files

NAMES = ["sky", "road", "car"]
COLORS = [[0, 0, 1], [0, 1, 0], [200, 40, 40]]


def files(**values):
    return label_files_of({"names": NAMES, **values}, "mine/classes.json")


def test_values_are_the_positions_of_the_names_unless_listed():
    found = files().to_classes(np.array([[0, 1, 2, 255]], np.uint8), "a.png")
    assert found.tolist() == [[0, 1, 2, -1]]
    found = files(values=[65535, 0, 8], ignore_index=1, void_values=[3]).to_classes(
        np.array([[65535, 0, 8, 1, 3]], np.uint16), "a.png"
    )
    assert found.tolist() == [[0, 1, 2, -1, -1]]


def test_a_void_that_files_cannot_hold_is_allowed():
    assert files(ignore_index=-1).to_classes(np.array([[0, 2]], np.uint8), "a.png").tolist() == [[0, 2]]


def test_colors_that_differ_in_one_channel_are_distinguished():
    colors = np.array([[*COLORS, [1, 0, 0]]], np.uint8)
    found = files(colors=COLORS, void_colors=[[1, 0, 0]]).to_classes(colors, "a.png")
    assert found.tolist() == [[0, 1, 2, -1]]


def test_all_classes_and_values_of_16_bits():
    names = [str(number) for number in range(1000)]
    found = label_files_of({"names": names, "ignore_index": 65535}, "classes.json")
    labels = np.arange(1000, dtype=np.uint16).reshape(20, 50)
    np.testing.assert_array_equal(found.to_classes(labels, "a.png"), labels)


def test_the_encoding_of_void_is_not_part_of_the_classes():
    found = files(values=[4, 5, 6], void_colors=[[9, 9, 9]], colors=COLORS, things=["car"])
    assert catalog.Classes.from_dict(found.classes.to_dict(), "a run") == found.classes
    assert set(found.classes.to_dict()) == {"names", "things", "colors", "ignore_index", "ids", "values"}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"names": []}, ['needs "names"']),
        ({"names": "sky"}, ["\"names\" is 'sky'", "list of names"]),
        ({"names": ["sky", "sky", "car"]}, ["repeated", "sky"]),
        ({"things": ["bus"]}, ['"things"', "bus"]),
        ({"things": "car"}, ["\"things\" is 'car'"]),
        ({"colors": [[1, 2, 3]]}, ["1 entries in colors for 3 names"]),
        ({"colors": [[1, 2, 3], [4, 5], [6, 7, 8]]}, ['"colors" has [4, 5]']),
        ({"colors": [[1, 2, 3], [4, 5, 256], [6, 7, 8]]}, ['"colors" has [4, 5, 256]']),
        ({"colors": ["red", "green", "blue"]}, ["\"colors\" has 'red'"]),
        ({"void_colors": [0, 0, 0]}, ['"void_colors" has 0']),
        ({"ignore_index": "255"}, ["\"ignore_index\" is '255'"]),
        ({"values": [1, 2]}, ["2 entries in values for 3 names"]),
        ({"values": [1, 2, 2]}, ["values must differ", "[2]"]),
        ({"values": [1, 2, 65536]}, ['"values" has 65536', "0 to 65535"]),
        ({"values": [1, 2, "3"]}, ["\"values\" is [1, 2, '3']"]),
        ({"values": [1, 2, 255]}, ["255 means void", "'car'", "ignore_index"]),
        ({"values": [1, 2, 3], "void_values": [9, 1]}, ["1 means void", "'sky'"]),
    ],
)
def test_mistakes_in_classes_json_are_named(tmp_path, values, words):
    path = tmp_path / "classes.json"
    path.write_text(json.dumps({"names": NAMES, **values}))
    with pytest.raises(UserError) as error:
        read_label_files(path)
    for word in (str(path), *words):
        assert word in str(error.value)


@pytest.mark.parametrize(("text", "words"), [("[1]", "holds a list"), ("{", "not valid JSON"), (b"\xff\x00", "JSON")])
def test_a_file_that_is_no_object_is_named(tmp_path, text, words):
    path = tmp_path / "classes.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=f"classes.json.*{words}"):
        read_label_files(path)


def test_repeated_colors_matter_where_labels_are_colors():
    found = files(colors=[[1, 1, 1], [2, 2, 2], [1, 1, 1]])
    found.to_classes(np.zeros((2, 2), np.uint8), "a.png")
    with pytest.raises(UserError, match=r"mine/classes\.json: \(1, 1, 1\) is more than once"):
        found.to_classes(np.ones((2, 2, 3), np.uint8), "a.png")


def test_unknown_values_are_named_with_what_is_known():
    labels = np.zeros((4, 6), np.uint8)
    labels[2, 3] = labels[3, 5] = 9
    with pytest.raises(UserError) as error:
        files(values=[0, 2, 4]).to_classes(labels, "labels/a.png")
    assert str(error.value).startswith("labels/a.png has label 9 at row 2, column 3 (wrong pixels in all: 2)")
    for word in ("0, 2, 4", "void is 255", '"values"', "mine/classes.json"):
        assert word in str(error.value)


def test_unknown_colors_are_named():
    labels = np.tile(np.array(COLORS[2], np.uint8), (4, 6, 1))
    labels[1, 2] = (200, 40, 41)
    with pytest.raises(UserError, match=r"^a\.png has the color \[200, 40, 41\] at row 1, column 2 .*void_colors"):
        files(colors=COLORS).to_classes(labels, "a.png")
    labels[1, 2] = 7
    with pytest.raises(UserError, match=r"channels are equal.*save one of them"):
        files(colors=COLORS).to_classes(labels, "a.png")


def png(values, bits, kind):
    """A PNG with any number of bits and any color type, which PIL cannot write."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + row.tobytes() for row in values)
    height, width = values.shape[:2]
    width = width * 8 // bits if values.ndim == 2 and bits < 8 else width
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (png(np.zeros((2, 1), np.uint8), 1, 0), "1 bits per pixel"),
        (png(np.zeros((2, 1), np.uint8), 4, 0), "4 bits per pixel"),
        (png(np.ones((2, 2, 2), ">u2"), 16, 4), "several channels of 16 bits"),
        (png(np.ones((2, 2, 3), ">u2"), 16, 2), "several channels of 16 bits"),
    ],
    ids=["grey 1", "grey 4", "grey and alpha 16", "color 16"],
)
def test_files_that_programs_read_differently_are_refused(tmp_path, data, words):
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"a\.png has {words}.*Save"):
        files(colors=COLORS).read(path)
    with pytest.raises(UserError, match=rf"a\.png has {words}.*Save"):
        read_png(epath.Path(path))  # the labels of published datasets


def test_files_of_16_bits_and_a_palette_of_few_bits_are_read(tmp_path):
    (tmp_path / "a.png").write_bytes(png(np.array([[0, 2], [300, 1]], ">u2"), 16, 0))
    assert files(ignore_index=300).read(tmp_path / "a.png").tolist() == [[0, 2], [-1, 1]]
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    image.putpalette([9, 9, 9, 80, 80, 80, 7, 7, 7, 0, 0, 0])
    file = io.BytesIO()
    image.save(file, "PNG", bits=2)
    assert file.getvalue()[24] == 2
    (tmp_path / "b.png").write_bytes(file.getvalue())
    assert files().read(tmp_path / "b.png").tolist() == [[0, 1], [2, 1]]
