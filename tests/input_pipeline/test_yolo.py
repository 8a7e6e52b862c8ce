"""Your own files in YOLO's segmentation format, as annotation tools export them."""

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline import schema, splits, yolo
from maskformer_jax.input_pipeline.sources import open_source
from tests.input_pipeline.folders import examples, masks_of

SIZE = (20, 30)  # height, width
SQUARE = "0.1 0.1 0.5 0.1 0.5 0.6 0.1 0.6"
TRIANGLE = "0.5 0.2 0.9 0.2 0.9 0.9"


def open_yolo(folder, tmp_path):
    return open_source("yolo", str(folder), str(tmp_path / "tfds"))


def write_image(path, shade=90, size=SIZE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), shade, np.uint8)).save(path, **options)


def write_text(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines))


def roboflow(root):
    """Names of images with a hash, folders per split, paths beside the folder, and a box that was not outlined."""
    write_text(
        root / "data.yaml",
        *("train: ../train/images", "val: ../valid/images", "test: ../test/images", "", "nc: 2"),
        *("names: ['no', 'cell']", "", "roboflow:", "  workspace: mine", "  project: cells", "  version: 1"),
        *("  license: CC BY 4.0", "  url: https://universe.roboflow.com/mine/cells/dataset/1"),
    )
    write_text(root / "README.roboflow.txt", "exported")
    for place, split in enumerate(("train", "valid", "test")):
        name = f"a_jpg.rf.0{place}e4"
        write_image(root / split / "images" / f"{name}.jpg", 10 * place)
        write_text(root / split / "labels" / f"{name}.txt", f"1 {SQUARE}", "0 0.7 0.7 0.2 0.2", f"0 {TRIANGLE}")
    write_image(root / "train" / "images" / "empty_jpg.rf.77.jpg", 200)
    write_text(root / "train" / "labels" / "empty_jpg.rf.77.txt")


def cvat(root):
    """Lists of images below a folder `data` that is not exported, numbered names, no file for images without labels."""
    write_text(
        root / "data.yaml", "names:", "  0: 'no'", "  1: cell", "path: .", "train: train.txt", "Validation: val.txt"
    )
    for split, kept in (("train", "train"), ("val", "Validation")):
        names = [f"{split}/sub/{number}.png" for number in (1, 2)]
        write_text(root / f"{split}.txt", *(f"data/images/{kept}/{name}" for name in names))
        for shade, name in enumerate(names):
            write_image(root / "images" / kept / name, 50 * shade)
        write_text(
            root / "labels" / kept / names[0].replace(".png", ".txt"), f"1 {SQUARE}", f"0 {TRIANGLE}", f"0 {TRIANGLE}"
        )


def label_studio(root):
    write_text(root / "classes.txt", "no", "cell")
    write_text(root / "notes.json", '{"categories": [{"id": 0, "name": "no"}, {"id": 1, "name": "cell"}]}')
    write_image(root / "images" / "3f1c-a.jpg")
    write_text(root / "labels" / "3f1c-a.txt", f"1 {SQUARE}", f"0 {TRIANGLE}")


def drawn(text):
    points = np.array(text.split(), float).reshape(-1, 2) * (SIZE[1], SIZE[0])
    return rle.decode(rle.frPyObjects([points.ravel().tolist()], *SIZE))[..., 0].astype(bool)


@pytest.mark.parametrize(
    ("export", "sizes", "image_id"),
    [
        (roboflow, {"train": 2, "val": 1, "valid": 1, "test": 1}, "a_jpg.rf.00e4"),
        (cvat, {"train": 2, "val": 2}, "images/train/train/sub/1"),
        (label_studio, {"train": 1}, "3f1c-a"),
    ],
)
def test_exports_of_annotation_tools_are_read_as_they_are(export, sizes, image_id, tmp_path, capsys):
    root = tmp_path / "mine"
    export(root)
    source = open_yolo(root, tmp_path)
    assert source.classes.names == ("no", "cell")  # YAML alone would read the first as false
    assert source.classes.is_thing == (True, True)
    assert {split: source.size(split) for split in sizes} == sizes
    found = examples(source, "train")[image_id]
    of = dict(zip(found.labels[~found.is_crowd].tolist(), np.array(masks_of(found))[~found.is_crowd], strict=True))
    np.testing.assert_array_equal(of[1], drawn(SQUARE))
    np.testing.assert_array_equal(of[0], drawn(TRIANGLE))
    said = capsys.readouterr().out
    if export is roboflow:  # the box is not learned, nor scored
        assert found.is_crowd.tolist() == [False, True, False]
        assert masks_of(found)[1].sum() == 6 * 4
        assert "1 annotations have a box and no outline" in said
        assert "train/labels/a_jpg.rf.00e4.txt:2" in said
        assert source.max_segments("train") == 2
    if export is cvat:
        assert len(examples(source, "train")["images/train/train/sub/2"].labels) == 0
        assert "labels/train/train/sub/1.txt:3" in said  # the repeated line
        assert source.remarks("train", schema.REPEATED)[0] == 1


def test_parts_of_a_split_hold_out_images(tmp_path):
    root = tmp_path / "mine"
    label_studio(root)
    for number in range(9):
        write_image(root / "images" / f"{number}.jpg", number)
    source = open_yolo(root, tmp_path)
    first, rest = (set(examples(source, part)) for part in ("train[:80%]", "train[80%:]"))
    assert (len(first), len(rest), len(first | rest)) == (8, 2, 10)
    assert source.describe("train[80%:]") != source.describe("train[:80%]")
    assert source.max_segments("train[80%:]") == source.max_segments("train") == 2
    assert source.counts("train[:80%]").images == 10
    with pytest.raises(UserError, match=r"no examples in split 'val'.*train\[:90%\]"):
        source.size("val")
    with pytest.raises(UserError, match="no part of a split"):
        source.size("train[:many]")
    with pytest.raises(UserError, match="no examples: 'train' has 10 in all"):
        source.size("train[:0]")


def test_names_of_splits():
    assert splits.meant("val", ["train", "valid"]) == "valid"
    assert splits.meant("val[:5]", ["train", "Validation"]) == "Validation[:5]"
    assert splits.meant("val", ["val", "valid"]) == "val"
    assert splits.meant("val", ["valid", "validation"]) == "val"  # unclear, so not found
    assert splits.meant("mine", ["yours"]) == "mine"


def test_the_order_and_kind_of_classes_can_be_chosen(tmp_path):
    root = tmp_path / "mine"
    label_studio(root)
    (root / "classes.json").write_text('{"names": ["cell", "no"], "things": ["cell"]}')
    source = open_yolo(root, tmp_path)
    assert (source.classes.names, source.classes.is_thing) == (("cell", "no"), (True, False))
    assert examples(source, "train")["3f1c-a"].labels.tolist() == [0, 1]
    (root / "classes.json").write_text('{"names": ["cell"]}')
    with pytest.raises(UserError, match=r"category 'no', which is not in \"names\""):
        open_yolo(root, tmp_path)


def test_outlines_lie_on_photos_as_they_are_shown(tmp_path):
    root = tmp_path / "mine"
    label_studio(root)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    write_image(root / "images" / "3f1c-a.jpg", size=(SIZE[1], SIZE[0]), exif=exif)
    found = examples(open_yolo(root, tmp_path), "train")["3f1c-a"]
    np.testing.assert_array_equal(masks_of(found)[0], drawn(SQUARE))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 " + SQUARE, r"a.txt, line 2 begins with 2; expected a class from 0 to 1"),
        ("0.5 " + SQUARE, "begins with 0.5"),
        ("0 0.1 0.2 0.3 0.4 0.5", "has 5 numbers after the class"),
        ("0 0.1 0.2", "has 2 numbers after the class"),
        ("0 10 12 20 12 20 18", "coordinate 10; expected fractions"),
        ("0 0.1 nan 0.5 0.1 0.5 0.6", "expected numbers"),
        ("cell 0.1 0.1 0.5 0.1 0.5 0.6", "expected numbers"),
        ("0 -0.02 0.1 0.5 0.1 0.5 0.6", "coordinate -0.02"),
    ],
)
def test_a_wrong_line_is_named(line, message, tmp_path):
    write_text(tmp_path / "a.txt", f"0 {SQUARE}", line)
    with pytest.raises(UserError, match=message):
        yolo.read_labels(tmp_path / "a.txt", 2)


def change(path, old, new):
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda root: change(root / "data.yaml", "nc: 2", "nc: 3"), "nc is '3', but there are 2 names"),
        (lambda root: change(root / "data.yaml", "['no', 'cell']", "{0: no, 2: cell}"), "expected 0 to 1"),
        (lambda root: change(root / "data.yaml", "['no', 'cell']", "[no, [a]]"), "expected a list of names"),
        (lambda root: change(root / "data.yaml", "['no', 'cell']", "[no"), "not valid YAML"),
        (lambda root: change(root / "data.yaml", "../valid/images", "../far/away"), "'../far/away', and none of its"),
        (lambda root: change(root / "data.yaml", "val:", "training:"), "the split 'train' twice"),
        (lambda root: (root / "data.yaml").unlink(), "no data in YOLO's format. Expected .*data.yaml"),
        (lambda root: (root / "data.yaml").write_bytes(b"names: [\xe9]"), "no text in UTF-8"),
        (lambda root: write_text(root / "data.yaml", "names: [a]"), "names no split"),
        (lambda root: (root / "test" / "labels").rename(root / "lost"), "none of its 1 images has a file of labels"),
        (
            lambda root: write_text(root / "test" / "labels" / "a_jpg.rf.02e4.txt", "0 0.5 0.5 0.2 0.2"),
            "every object is a box",
        ),
    ],
)
def test_a_wrong_folder_is_named(edit, message, tmp_path):
    root = tmp_path / "mine"
    roboflow(root)
    edit(root)
    with pytest.raises(UserError, match=message):
        open_yolo(root, tmp_path)


def test_paths_of_other_machines_mean_their_ends(tmp_path):
    write_image(tmp_path / "set" / "images" / "train" / "a.jpg")
    for path in ("/content/old/set/images/train", r"C:\old\images\train", "../images/train", "./images/train/"):
        write_text(tmp_path / "set" / "data.yaml", f"train: {path}", "nc: 2")
        export = yolo.find_export(tmp_path / "set")
        assert export.names == ("class_0", "class_1")
        assert export.splits == {"train": [tmp_path / "set" / "images" / "train"]}
