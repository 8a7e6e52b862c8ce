"""Datasets of Hugging Face, made here with the layouts of those on the hub."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

datasets = pytest.importorskip("datasets")

from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline import huggingface, schema
from maskformer_jax.input_pipeline.sources import open_source
from tests.checkpoints.hub_server import Repository
from tests.conftest import ROOT
from tests.input_pipeline.dataset_hub import DatasetHub
from tests.input_pipeline.folders import class_map, examples, masks_of

HEIGHT, WIDTH = SIZE = (20, 30)
SQUARE = [2.0, 2.0, 12.0, 2.0, 12.0, 10.0, 2.0, 10.0]
NUMBER, TEXT, IMAGE = datasets.Value("int64"), datasets.Value("string"), datasets.Image()
NUMBERS = datasets.List(datasets.Value("float32"))


def open_folder(folder, tmp_path):
    return open_source("huggingface", str(folder), str(tmp_path / "tfds"))


def photo(index):
    return Image.fromarray(np.random.default_rng(index).integers(0, 255, (*SIZE, 3), np.uint8))


def labels(index=0):
    """[H, W] values 0 to 2."""
    return np.random.default_rng([index, 1]).integers(0, 3, SIZE, np.uint8)


def dataset(features, rows):
    return datasets.Dataset.from_list(rows, features=datasets.Features(features))


def semantic(count=2, encode=Image.fromarray):
    """As scene_parse_150."""
    features = {"image": IMAGE, "annotation": IMAGE, "scene_category": datasets.ClassLabel(names=["kitchen", "street"])}
    rows = [{"image": photo(n), "annotation": encode(labels(n)), "scene_category": 1} for n in range(count)]
    return dataset(features, rows)


def instance_map():
    """[H, W] ids of two segments, and 0 for none."""
    ids = np.zeros(SIZE, np.int64)
    ids[2:10, 2:12], ids[12:17, 4:20] = 70_000, 3
    return ids


def panoptic():
    """As shi-labs and nielsr have ADE20K and COCO: ids as colors."""
    info = {"id": NUMBER, "category_id": NUMBER, "area": NUMBER, "iscrowd": NUMBER, "bbox": datasets.List(NUMBER)}
    segments = [
        {"id": 70_000, "category_id": 7, "area": 80, "iscrowd": 0, "bbox": [2, 2, 10, 8]},
        {"id": 3, "category_id": 200, "area": 80, "iscrowd": 0, "bbox": [4, 12, 16, 5]},
    ]
    ids = instance_map()
    colors = Image.fromarray(np.dstack([ids % 256, ids // 256 % 256, ids // 65536]).astype(np.uint8))
    features = {"image": IMAGE, "label": IMAGE, "segments_info": datasets.List(info), "image_id": TEXT}
    return dataset(features, [{"image": photo(0), "label": colors, "segments_info": segments, "image_id": "a/1.jpg"}])


OBJECT = {"id": NUMBER, "category": datasets.ClassLabel(names=["cat", "dog"]), "bbox": NUMBERS}
OBJECTS = [
    {"id": 4, "category": 1, "bbox": [2.0, 2.0, 10.0, 8.0], "segmentation": [SQUARE]},
    {"id": 9, "category": 0, "bbox": [14.0, 4.0, 3.0, 3.0], "segmentation": []},
]


def objects(as_lists=False):
    """As the datasets of detection and instances that Roboflow uploads; in lists of each key, as older versions."""
    feature = {**OBJECT, "segmentation": datasets.List(NUMBERS)}
    values = {key: [entry[key] for entry in OBJECTS] for key in OBJECTS[0]} if as_lists else OBJECTS
    feature = {key: datasets.List(value) for key, value in feature.items()} if as_lists else datasets.List(feature)
    features = {"image_id": NUMBER, "image": IMAGE, "width": NUMBER, "height": NUMBER, "objects": feature}
    row = {"image_id": 15, "image": photo(0), "width": WIDTH, "height": HEIGHT, "objects": values}
    return dataset(features, [row])


def coded():
    """As qubvel-hf/ade20k-mini: the class in red, the instance in green."""
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[2:10, 2:12], pixels[2:10, 14:20], pixels[12:17, 4:20] = (2, 1, 0), (2, 5, 0), (1, 2, 0)
    numbers = {"background": NUMBER, "person": NUMBER, "car": NUMBER}
    features = {"image": IMAGE, "annotation": IMAGE, "semantic_class_to_id": numbers}
    row = {"image": photo(0), "annotation": Image.fromarray(pixels)}
    return dataset(features, [{**row, "semantic_class_to_id": {"background": 0, "person": 1, "car": 2}}])


def write_classes(root, **values):
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.json").write_text(json.dumps(values))


def test_images_with_the_class_of_each_pixel(tmp_path):
    root = tmp_path / "mine"
    datasets.DatasetDict(train=semantic(), validation=semantic(1)).save_to_disk(root)
    with pytest.raises(UserError, match=r"does not name its classes\. Write FOLDER/classes\.json"):
        open_folder(root, tmp_path)
    write_classes(root, names=["wall", "building"], values=[1, 2], ignore_index=0)
    source = open_folder(root, tmp_path)
    assert (source.size("train"), source.size("val")) == (2, 1)
    assert source.classes.is_thing == (False, False)
    found = examples(source, "train")
    assert list(found) == ["000000", "000001"]
    np.testing.assert_array_equal(class_map(found["000001"]), labels(1).astype(int) - 1)
    np.testing.assert_array_equal(schema.decode_image(found["000001"].image), np.asarray(photo(1)))


def test_folders_of_images_with_their_labels(tmp_path):
    """imagefolder, with the names that a file of classes states; gray labels in three channels."""
    root = tmp_path / "mine"
    for split in ("train", "validation"):
        (root / split / "masks").mkdir(parents=True)
        lines = []
        for n in range(2):
            photo(n).save(root / split / f"{n}.png")
            Image.fromarray(np.repeat(labels(n)[..., None], 3, axis=-1)).save(root / split / "masks" / f"{n}.png")
            lines.append(json.dumps({"file_name": f"{n}.png", "mask_file_name": f"masks/{n}.png"}) + "\n")
        (root / split / "metadata.jsonl").write_text("".join(lines))
    (root / "id2label.json").write_text('{"0": "unlabeled", "2": "road", "1": "car"}')
    source = open_folder(root, tmp_path)
    assert source.classes.names == ("unlabeled", "road", "car")
    assert source.classes.values == (0, 2, 1)
    found = examples(source, "val")
    assert set(found) == {"0", "1"}
    np.testing.assert_array_equal(class_map(found["1"]), np.array([0, 2, 1])[labels(1)])
    assert found["0"].image == (root / "validation" / "0.png").read_bytes()
    Image.fromarray(labels(5)).save(root / "train" / "masks" / "0.png")
    assert open_folder(root, tmp_path).builder.info.full_name != source.builder.info.full_name


def test_panoptic_segments(tmp_path):
    root = tmp_path / "mine"
    write_classes(root, names=["cat", "sky"], values=[7, 200], things=["cat"])
    panoptic().to_parquet(root / "train.parquet")
    source = open_folder(root, tmp_path)
    (example,) = examples(source, "train").values()
    assert (example.image_id, example.labels.tolist(), example.area.tolist()) == ("a/1", [0, 1], [80, 80])
    np.testing.assert_array_equal(
        class_map(example), np.select([instance_map() == 70_000, instance_map() == 3], [0, 1], -1)
    )
    write_classes(root, names=["cat", "sky"], values=[1, 2], ids=[7, 200])  # as of published datasets
    assert [one.labels.tolist() for one in examples(open_folder(root, tmp_path), "train").values()] == [[0, 1]]
    write_classes(root, names=["cat"], ids=[7])
    with pytest.raises(UserError, match="has the class 200, which is none of cat"):
        open_folder(root, tmp_path)


@pytest.mark.parametrize("as_lists", [False, True])
def test_objects_as_of_coco(as_lists, tmp_path, capsys):
    root = tmp_path / "mine"
    (root / "data").mkdir(parents=True)
    for split in ("train", "validation"):
        objects(as_lists).to_parquet(root / "data" / f"{split}-00000-of-00001.parquet")
    if as_lists:
        write_classes(root, names=["dog", "cat"])
    source = open_folder(root, tmp_path)
    assert source.classes.names == (("dog", "cat") if as_lists else ("cat", "dog"))
    assert source.classes.is_thing == (True, True)
    (example,) = examples(source, "val").values()
    assert [source.classes.names[label] for label in example.labels] == ["dog", "cat"]
    assert example.is_crowd.tolist() == [False, True]
    outlined, boxed = masks_of(example)
    assert (outlined.sum(), boxed.sum()) == (80, 9)
    assert outlined[2:10, 2:12].all()
    assert source.coco_ids("val") == {"15": 15}
    assert "1 annotations have a box and no outline" in capsys.readouterr().out


def test_classes_and_instances_in_two_channels(tmp_path):
    root = tmp_path / "mine"
    coded().save_to_disk(root)
    source = open_folder(root, tmp_path)
    assert source.classes.names == ("person", "car")  # nobody predicts the background
    (example,) = examples(source, "train").values()
    found = sorted(zip(example.labels.tolist(), example.area.tolist(), strict=True))
    assert found == [(0, 80), (1, 48), (1, 80)]
    assert sum(mask.sum() for mask in masks_of(example)) == 208


def test_columns_and_colors_of_classes_json(tmp_path):
    root = tmp_path / "mine"
    colors = np.array([[9, 8, 7], [1, 2, 3], [0, 0, 0]], np.uint8)
    table = semantic(encode=lambda values: Image.fromarray(colors[values])).rename_column("annotation", "a")
    table.add_column("b", [None, None], feature=IMAGE).save_to_disk(root)
    described = {"names": ["x", "y"], "colors": colors[:2].tolist(), "void_colors": [[0, 0, 0]]}
    write_classes(root, **described)
    with pytest.raises(UserError, match=r"has these columns: .*a \(Image\), "):
        open_folder(root, tmp_path)
    write_classes(root, **described, columns={"labels": "a"})
    found = examples(open_folder(root, tmp_path), "train")
    np.testing.assert_array_equal(class_map(found["000001"]), np.array([0, 1, -1])[labels(1)])


OPEN = """
import json, sys
from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline.sources import open_source
for name in sys.argv[2:]:
    try:
        source = open_source(name, "", sys.argv[1])
        split = source.example("train", 0)
        print(json.dumps([source.builder.info.full_name, source.classes.names, split.labels.tolist()]))
    except UserError as error:
        print(json.dumps(str(error)))
"""


def test_datasets_of_the_hub(tmp_path):
    """By the real library, from a server on the loopback; the second time without it."""
    hub, table = DatasetHub(), io.BytesIO()
    objects().to_parquet(table)
    hub.repositories["owner/cats"] = Repository({"README.md": b"# cats", "data/train-0-of-1.parquet": table.getvalue()})
    commit = hub.repositories["owner/cats"].commit
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}

    def answers(*names, **more):
        command = [sys.executable, "-c", OPEN, str(tmp_path / "tfds"), *names]
        done = subprocess.run(command, env={**environment, **more}, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith(("[", '"'))]

    try:
        first, pinned, missing = answers("hf:owner/cats", f"hf:owner/cats@{commit}", "hf:owner/dogs")
    finally:
        hub.close()
    assert first[0].startswith("hub_import/owner_cats-")
    assert first[1:] == pinned[1:] == [["cat", "dog"], [1, 0]]
    assert missing.startswith("the dataset 'owner/dogs' of the hub cannot be opened: ")
    assert answers("hf:owner/cats", HF_HUB_OFFLINE="1") == [first]


def test_columns_are_found_or_named():
    def found(*columns, **chosen):
        features = dict(columns)
        return huggingface.find_fields(features, chosen, "mine")

    image, objects_ = ("image", IMAGE), ("objects", datasets.List(OBJECT))
    assert found(image, ("what", IMAGE)) == huggingface.Fields("image", "what")
    assert found(("photo", IMAGE), objects_, ("name", TEXT)) == huggingface.Fields(
        "photo", objects="objects", name="name"
    )
    assert found(image, ("label", datasets.ClassLabel(names=["a"])), ("mask", IMAGE)).labels == "mask"
    assert found(image, ("a", IMAGE), ("b", IMAGE), labels="b").labels == "b"
    both = found(image, ("mask", IMAGE), objects_)
    assert (both.objects, both.labels) == ("objects", "")
    for columns in ([image], [("x", TEXT)], [image, ("a", IMAGE), ("b", IMAGE)]):
        with pytest.raises(UserError, match=r'mine has these columns: .*"columns": \{"image": "photo"'):
            found(*columns)
    with pytest.raises(UserError, match="a column of the dataset"):
        found(image, ("mask", IMAGE), labels="masks")
    with pytest.raises(UserError, match="expected one of image, labels"):
        found(image, ("mask", IMAGE), label="mask")


def test_objects_in_all_their_forms():
    points = [[0.0, 0.0], [4.0, 0.0], [4.0, 4.0]]
    flat = [0.0, 0.0, 4.0, 0.0, 4.0, 4.0]
    for given in (flat, [flat], points, [points], json.dumps([flat])):
        assert huggingface.annotation_of({"segmentation": given}, "1", 0)["segmentation"] == [flat]
    runs = {"size": [2, 3], "counts": b"06"}
    found = huggingface.annotation_of({"segmentation": runs, "is_crowd": True}, "1", 0)
    assert (found["segmentation"], found["iscrowd"]) == ({"size": [2, 3], "counts": "06"}, True)
    assert huggingface.objects_of('[{"id": 1}]', "a") == [{"id": 1}]
    assert huggingface.objects_of(None, "a") == []
    with pytest.raises(UserError, match="lists of different lengths"):
        huggingface.objects_of({"id": [1, 2], "category": [1]}, "a")
    for wrong in ("[1]", [1], 3):
        with pytest.raises(UserError, match="a"):
            huggingface.objects_of(wrong, "a")
    with pytest.raises(UserError, match="its class"):
        huggingface.class_of({"id": 1}, "a")


def test_labels_in_all_their_forms():
    def png(pixels, kind="PNG"):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind)
        return {"bytes": file.getvalue(), "path": None}

    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(huggingface.pixels_of(png(labels(), kind), "a"), labels())
    np.testing.assert_array_equal(huggingface.pixels_of(labels().tolist(), "a"), labels())
    for wrong, message in (
        (png(labels(), "JPEG"), "is no PNG but JPEG"),
        ({"bytes": None, "path": None}, "has no image"),
        ({"bytes": None, "path": "/nothing/here.png"}, "cannot be read"),
        (None, "has no image|has the shape"),
        ([[1.5]], "expected whole numbers"),
        ([[1], [1, 2]], "holds no labels"),
    ):
        with pytest.raises(UserError, match=message):
            huggingface.pixels_of(wrong, "a")
    ids = instance_map()
    assert (huggingface.panoptic_colors(ids) @ (1, 256, 65536) == ids).all()
    with pytest.raises(UserError, match="instances of the class 4, which is none of"):
        huggingface.class_and_instance(np.full((2, 2, 3), (4, 1, 0)), {1: 0}, "a")
