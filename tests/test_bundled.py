"""Models that come with the package: complete, as good as their cards say, and in the way of nobody's files."""

import hashlib
import json
import pathlib

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools import mask as rle

import maskformer_jax
from maskformer_jax import bundled, convert
from maskformer_jax.data.shapes.scene import draw_scene
from maskformer_jax.errors import UserError
from maskformer_jax.metrics import AveragePrecision, PanopticQuality, SemanticIoU
from maskformer_jax.metrics.runs import class_counts
from maskformer_jax.segmenter.pretrained import open_model
from tests.conftest import ROOT
from tests.segmenter.test_segmenter import write_model

MOST_BYTES = 10 * 2**20  # of all models in the wheel
FILES = {"README.md", "classes.json", "config.json", "examples", "model.safetensors"}


def card(name):
    """What the head of a model card says, and its text."""
    _, head, text = (bundled.folder(name) / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), text


def stated(name, split):
    """The scores on a split that a model card states, by their names."""
    (result,) = [each for each in card(name)[0]["model-index"][0]["results"] if each["dataset"]["split"] == split]
    return {metric["type"]: metric["value"] for metric in result["metrics"]}


@pytest.mark.parametrize("name", bundled.MODELS)
def test_a_model_has_all_its_files_and_its_card_names_it(name):
    assert {path.name for path in bundled.folder(name).iterdir()} == FILES
    settings = json.loads((bundled.folder(name) / "config.json").read_text())
    assert settings.keys() == {"version", "model", "inference"}
    head, text = card(name)
    assert head["license"] == "apache-2.0"
    assert head["model-index"][0]["name"] == name
    assert f'maskformer_jax.load("{name}")' in text
    assert "maskformer-convert --from=" in text
    for path in bundled.examples(name):
        with Image.open(path) as image:
            image.load()
    found = hashlib.sha256((bundled.folder(name) / "model.safetensors").read_bytes()).hexdigest()
    assert f"| `{name}` | `{found}` |\n" in (ROOT / "docs" / "weights.md").read_text(), "add this row"


def test_all_models_are_small():
    folders = [path for path in pathlib.Path(bundled.__file__).parent.iterdir() if (path / "config.json").exists()]
    assert {path.name for path in folders} == set(bundled.MODELS)
    assert sum(file.stat().st_size for path in folders for file in path.rglob("*") if file.is_file()) < MOST_BYTES


@pytest.fixture(scope="module")
def shapes():
    return maskformer_jax.load("shapes")


def scene_scores(segmenter, count, semantic):
    """PQ and, if asked for, mIoU on the first scenes of the validation split, by their names on the card."""
    quality, overlap = PanopticQuality(np.array(segmenter.classes.is_thing)), SemanticIoU(len(segmenter.classes))
    for index in range(count):
        scene = draw_scene(np.random.default_rng([1, index]))
        labels, areas = np.array(scene.labels), np.bincount(scene.segment_map.ravel())[1:]
        found = segmenter.panoptic(scene.image)
        is_crowd = np.zeros(len(labels), bool)
        quality.update(scene.segment_map, labels, is_crowd, areas, found.id_map, found.labels)
        if semantic:
            true = np.append(-1, labels).astype(np.int16)[scene.segment_map]
            overlap.add(class_counts(true, segmenter.semantic(scene.image).class_map, len(overlap.counts)))
    return {**quality.compute(), **(overlap.compute() if semantic else {})}


@pytest.mark.parametrize(
    ("split", "count"),
    [("validation[:32]", 32), pytest.param("validation", 256, marks=pytest.mark.slow)],
)
def test_shapes_has_the_scores_of_its_card(shapes, split, count):
    expected = stated("shapes", split)
    found = scene_scores(shapes, count, semantic="miou" in expected)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=0.1)


def nuclei_scores(segmenter, folder, count):
    """Mask AP on the first validation images, by names on the card."""
    truth = json.loads((folder / "annotations" / "val.json").read_text())
    metric = AveragePrecision(1)
    for image in truth["images"][:count]:
        own = [annotation for annotation in truth["annotations"] if annotation["image_id"] == image["id"]]
        masks = rle.decode([annotation["segmentation"] for annotation in own]).transpose(2, 0, 1).astype(bool)
        labels, areas = np.zeros(len(own), int), np.array([annotation["area"] for annotation in own])
        found = segmenter.instances(folder / "images" / "val" / image["file_name"], threshold=0.0)
        truths = masks, labels, np.zeros(len(own), bool), areas
        metric.update(image["id"], *truths, found.masks, found.labels, found.scores)
    found = metric.compute()
    return {"mask_ap": found["AP"], "mask_ap50": found["AP50"]}


@pytest.mark.parametrize(
    ("split", "count"),
    [("val[:3]", 3), ("val", 79)],
)
@pytest.mark.slow
def test_nuclei_has_the_scores_of_its_card(shared_data, split, count):
    folder = shared_data / "nuclei"
    if not folder.is_dir():
        pytest.skip(f"no data at {folder}")
    found = nuclei_scores(maskformer_jax.load("nuclei"), folder, count)
    assert found == pytest.approx(stated("nuclei", split), abs=0.1)


def test_shapes_finds_the_things_in_its_example(shapes):
    found = shapes.panoptic(Image.open(bundled.examples("shapes")[0])).segments()
    assert {segment["name"] for segment in found} == {"sky", "mountain", "grass", "box", "triangle", "star"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a small model, as a run leaves it."""
    folder = tmp_path_factory.mktemp("models") / "ours"
    write_model(folder)
    return str(folder)


def test_a_path_comes_before_a_name(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").symlink_to(saved)
    assert open_model("shapes")[0].classes.names == tuple("abcde")
    (tmp_path / "shapes").unlink()
    (tmp_path / "shapes").mkdir()
    with pytest.raises(UserError, match=rf"(?s)'shapes' exists here, so .* is {bundled.folder('shapes')}; give that"):
        maskformer_jax.load("shapes")
    with pytest.raises(UserError, match=r"shape does not exist: expected .* comes with the package \(shapes"):
        open_model("shape")


def test_our_safetensors_hold_the_whole_model(saved, tmp_path):
    one = maskformer_jax.load(saved)
    for dtype, exact in (("float32", True), ("float16", False)):
        to = tmp_path / dtype
        assert convert.main([f"--from={saved}", f"--to={to}", "--format=safetensors", f"--dtype={dtype}"]) == 0
        other = maskformer_jax.load(str(to))
        assert (other.model, other.inference, other.classes) == (one.model, one.inference, one.classes)
        assert other.params.keys() == one.params.keys()
        for name, array in one.params.items():
            assert other.params[name].dtype == np.float32
            np.testing.assert_allclose(other.params[name], array, rtol=0 if exact else 1e-3, atol=0 if exact else 1e-6)
        # The file alone is a source, too, and its description is the one next to it.
        assert open_model(str(to / "model.safetensors"))[0].classes == one.classes
        (to / "config.json").unlink()
        with pytest.raises(UserError, match=r"config\.json is missing.* nor a converted model"):
            open_model(str(to))


def test_what_a_dtype_cannot_hold_is_named(saved, tmp_path, capsys):
    segmenter = maskformer_jax.load(saved)
    name = next(iter(segmenter.params))
    segmenter.params = {**segmenter.params, name: segmenter.params[name] + 1e6}
    with pytest.raises(UserError, match=rf"{name} has values that are too large for float16"):
        convert.save(segmenter, str(tmp_path / "to"), "safetensors", "float16")
    assert not (tmp_path / "to").exists()
    with pytest.raises(SystemExit):
        convert.main([f"--from={saved}", f"--to={tmp_path}/to", "--format=orbax", "--dtype=float16"])
    assert "--dtype=float16 applies to --format=safetensors" in capsys.readouterr().err
