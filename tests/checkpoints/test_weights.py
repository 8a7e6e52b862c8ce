"""Sources of weights: each is opened once, and its tensors are read when they are used."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
import safetensors.numpy
from etils import epath

import maskformer_jax
from maskformer_jax.catalog import Classes
from maskformer_jax.checkpoints import readers, weights, workdir
from maskformer_jax.checkpoints.formats import (
    EOMT_ORIGINAL,
    MASKFORMER_HUGGINGFACE,
    MASKFORMER_ORIGINAL,
    META_DINOV2,
    TORCHVISION_RESNET,
)
from maskformer_jax.checkpoints.published import Description
from maskformer_jax.checkpoints.store import CheckpointStore
from maskformer_jax.checkpoints.weights import open_weights
from maskformer_jax.engine.initialization import initial_arrays, settle_model
from maskformer_jax.engine.settings import Settings
from maskformer_jax.errors import UserError
from maskformer_jax.models import build_network
from tests.checkpoints.test_convert import as_file, random_arrays
from tests.checkpoints.test_formats import hollow, released
from tests.engine.recipe import recipe
from tests.engine.test_finetune import OTHER_MODEL
from tests.parity.golden import eomt, shapes_of

CLASSES = Classes.from_dict({"names": ["sky", "cat", "road"], "things": ["cat"]}, "test")
INFERENCE = {
    "short_edge": 96,
    "longest_edge": 192,
    "size_divisor": 32,
    "upsample": "scores",
    "score_threshold": 0.8,
    "overlap_threshold": 0.8,
}
MODEL = {**OTHER_MODEL, "dtype": "float32"}


@pytest.fixture(scope="module")
def network():
    return build_network(len(CLASSES), **MODEL)


@pytest.fixture(scope="module")
def arrays(network):
    return random_arrays(network)


@pytest.fixture(scope="module")
def sources(network, arrays, tmp_path_factory):
    """The same model in every format."""
    root = tmp_path_factory.mktemp("weights")
    MASKFORMER_HUGGINGFACE.write(str(root / "hub"), arrays, Description(MODEL, INFERENCE, CLASSES))
    tensors = as_file(arrays, MASKFORMER_ORIGINAL)
    (root / "model.pkl").write_bytes(pickle.dumps({"model": tensors}))
    (root / "released.pkl").write_bytes(pickle.dumps(dict(zip(released(tensors), tensors.values(), strict=True))))
    params, frozen = network.shapes
    parts = ({name: arrays[name] for name in part} for part in (params, frozen))
    workdir.save_model(str(root / "ours"), Description(MODEL, INFERENCE, CLASSES), *parts)
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in as_file(arrays, TORCHVISION_RESNET).items()}
    (root / "backbone.safetensors").write_bytes(safetensors.numpy.save(tensors))
    return {path.name: str(path) for path in root.iterdir()}


@pytest.mark.parametrize("kind", ["hub", "model.pkl", "released.pkl", "ours"])
def test_every_format_gives_the_same_model(sources, arrays, kind):
    opened = open_weights(sources[kind])
    assert not opened.is_backbone
    assert opened.describe().model["backbone"]["name"] == "resnet18"
    found = opened.load_into(arrays)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_a_backbone_is_of_no_model(sources, arrays):
    opened = open_weights(sources["backbone.safetensors"])
    assert opened.is_backbone
    assert all(name.startswith("backbone.") for name in opened.load_into(arrays))


def test_a_file_in_a_folder_of_hugging_face_is_described_by_the_folder(sources):
    opened = open_weights(f"{sources['hub']}/model.safetensors")
    assert opened.describe().classes.names == CLASSES.names


class Counter:
    """Counts the calls of a function."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *args, **options):
        self.calls += 1
        return self.function(*args, **options)


def settings_for(source, **init):
    values = recipe("", 1)
    values["init"].update(weights=source, model_from_weights=True, **init)
    return Settings.from_dict(values)


@pytest.mark.parametrize("kind", ["hub", "model.pkl", "ours", "backbone.safetensors"])
def test_a_start_of_training_opens_its_weights_once(sources, arrays, tmp_path, monkeypatch, kind):
    locate, read, restore = Counter(weights.locate), Counter(readers.read_tensors), Counter(CheckpointStore.read_model)
    monkeypatch.setattr(weights, "locate", locate)
    monkeypatch.setattr(readers, "read_tensors", read)
    monkeypatch.setattr(CheckpointStore, "read_model", lambda *args: restore(*args))
    settings, _, opened = settle_model(settings_for(sources[kind]), str(tmp_path))
    origin, found = initial_arrays(settings, arrays, opened)
    assert sources[kind] in origin
    assert found
    assert (locate.calls, read.calls + restore.calls) == (1, 1)


def test_what_does_not_fit_names_the_setting(sources, network, arrays, tmp_path):
    shapes = {**arrays, "heads.class_head.bias": np.zeros(9)}
    settings, _, opened = settle_model(settings_for(sources["hub"]), str(tmp_path))
    with pytest.raises(UserError, match=r"from random values: config\.init\.reinit=\('heads\.class_head',\)"):
        initial_arrays(settings, shapes, opened)
    with pytest.raises(UserError, match=r"config\.init\.reinit has 'x', which is the beginning of no parameter"):
        initial_arrays(settings_for(sources["hub"], reinit=("x",)), shapes)


def test_tensors_of_safetensors_are_read_when_they_are_used(sources):
    tensors = open_weights(sources["hub"]).tensors
    assert all(isinstance(tensor, readers.LazyTensor) for tensor in tensors.values())
    name, tensor = next(iter(tensors.items()))
    assert tensor.shape == np.asarray(tensor).shape, name
    assert np.asarray(tensor, np.float16).dtype == np.float16


def test_safetensors_of_cloud_storage_are_read_at_once(sources):
    path = epath.Path(sources["hub"]) / "model.safetensors"
    whole = readers._whole_safetensors(path.read_bytes(), path)
    lazy = readers.read_tensors(str(path))
    assert whole.keys() == lazy.keys()
    for name, tensor in whole.items():
        np.testing.assert_array_equal(tensor, np.asarray(lazy[name]), err_msg=name)
        assert tensor.dtype == np.asarray(lazy[name]).dtype


# Folders of this package.


def change_settings(folder, change):
    path = folder / "config.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.fixture
def folder(tmp_path):
    """A folder with settings and classes, and a checkpoint folder that nothing has to read."""
    settings = {"model": MODEL, "inference": INFERENCE, "train": {"ema_decay": 0.0, "freeze": ()}}
    workdir.prepare(str(tmp_path / "w"), settings, CLASSES)
    (tmp_path / "w" / "checkpoints").mkdir()
    return tmp_path / "w"


def test_settings_have_a_version(folder):
    assert json.loads((folder / "config.json").read_text())["version"] == workdir.VERSION


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda values: values.pop("version"),
            r"has version none.*made by an earlier version of maskformer_jax.*again",
        ),
        (lambda values: values.update(version=workdir.VERSION + 1), r"made by another version of maskformer_jax"),
        (lambda values: values.update(version="x"), r"has version 'x'"),
    ],
)
def test_folders_of_other_versions_say_so(folder, change, words):
    change_settings(folder, change)
    for use in (
        lambda: maskformer_jax.load(str(folder)),
        lambda: workdir.check(str(folder), {"model": MODEL}, CLASSES),
        lambda: workdir.prepare(str(folder), {"model": MODEL}, CLASSES),
    ):
        with pytest.raises(UserError, match=words):
            use()


@pytest.mark.parametrize("text", ["", "[]", "3", '{"version": 1}', '{"version": 1, "model": 3, "inference": {}}'])
def test_damaged_settings_are_named(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json (is damaged|is not valid JSON|holds a)"):
        workdir.describe(str(folder))


def test_another_model_in_the_folder_of_a_run_is_named(folder):
    other = {**MODEL, "decoder": {**MODEL["decoder"], "num_queries": 7}}
    train = {"ema_decay": 0.5, "freeze": ("backbone",)}
    with pytest.raises(UserError) as caught:
        workdir.check(str(folder), {"model": other, "train": train}, CLASSES)
    for line in (
        "config.model.decoder.num_queries: there 6, now 7",
        "config.train.ema_decay: there 0.0, now 0.5",
        "config.train.freeze: there [], now ('backbone',)",
    ):
        assert line in str(caught.value)


TRAIN = {"ema_decay": 0.0, "freeze": ()}


def recorded(tmp_path, dataset=None):
    """The folder of a run that recorded its settings, with what it recorded."""
    settings = {"model": MODEL, "inference": INFERENCE, "train": {**TRAIN, "freeze": ("a", "b")}}
    workdir.prepare(str(tmp_path / "w"), settings, CLASSES, dataset)
    return str(tmp_path / "w"), settings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("colors", ((9, 8, 7), (6, 5, 4), (3, 2, 1))),
        ("ignore_index", 254),
        ("ids", (70, 71, 72)),
        ("values", (3, 4, 5)),
    ],
)
def test_what_a_model_does_not_learn_of_its_classes_may_change(tmp_path, field, value):
    folder, settings = recorded(tmp_path)
    classes = dataclasses.replace(CLASSES, **{field: value})
    workdir.check(folder, settings, classes)
    assert any(line.startswith(f"classes.{field}: there") for line in workdir.changes(folder, settings, classes))


@pytest.mark.parametrize("change", [{"names": ("sky", "dog", "road")}, {"is_thing": (True, True, False)}])
def test_what_a_model_learns_of_its_classes_may_not_change(tmp_path, change):
    folder, settings = recorded(tmp_path)
    classes = dataclasses.replace(CLASSES, **change)
    assert classes != CLASSES
    with pytest.raises(UserError, match=r"different model:\n  classes\.(names|things)"):
        workdir.check(folder, settings, classes)


def test_settings_of_training_alone_and_the_order_of_patterns_may_change(tmp_path):
    folder, settings = recorded(tmp_path)
    model = {**MODEL, "dtype": "bfloat16", "decoder": {**MODEL["decoder"], "dropout": 0.25}}
    changed = {**settings, "model": model, "train": {**TRAIN, "freeze": ["b", "a"]}}
    workdir.check(folder, changed, CLASSES)
    lines = workdir.changes(folder, changed, CLASSES)
    assert [line.partition(":")[0] for line in lines] == ["config.model.decoder.dropout", "config.model.dtype"]
    with pytest.raises(UserError, match=r"config\.train\.freeze: there \['a', 'b'\], now \('a',\)"):
        workdir.check(folder, {**settings, "train": {**TRAIN, "freeze": ("a",)}}, CLASSES)


def test_changed_data_are_told(tmp_path):
    def described(content, name="mine-1"):
        return {"name": name, "split": "train", "images": 3, "content": content}

    folder, settings = recorded(tmp_path, {"training": described("a"), "validation": described("b")})
    same = {"training": described("a", "renamed-1"), "validation": described("b")}
    assert workdir.changes(folder, settings, CLASSES, same) == []
    other = {**same, "training": {**described("c", "mine-2"), "images": 4}}
    [line] = workdir.changes(folder, settings, CLASSES, other)
    assert "training data are not those" in line
    assert "there 3 images of mine-1, split 'train', now 4 images of mine-2, split 'train'" in line
    workdir.prepare(folder, settings, CLASSES, other)
    assert workdir.changes(folder, settings, CLASSES, other) == []


def test_a_folder_without_a_record_of_its_data_has_no_changes(tmp_path):
    described = {"name": "n", "split": "s", "images": 1, "content": "c"}
    assert workdir.changes(str(tmp_path / "new"), {"model": MODEL, "train": TRAIN}, CLASSES) == []
    folder, settings = recorded(tmp_path)
    assert workdir.changes(folder, settings, CLASSES, {"training": described}) == []


def refusal(path, shapes):
    try:
        opened = open_weights(str(path))
        if not opened.is_backbone:
            opened.describe()
        opened.load_into(shapes)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", ["DINOv2 alone", "EoMT"])
def test_tensors_with_another_number_of_axes_are_named(tmp_path, kind):
    """In a model without a description they show its sizes, too."""
    form = META_DINOV2 if kind == "DINOv2 alone" else EOMT_ORIGINAL
    vit = {"name": "dinov2_small", "dim": 64, "depth": 12, "num_heads": 1, "hidden_dim": 64, "image_size": 64}
    network = eomt(3, vit)
    tensors = hollow(network, form)
    if form is META_DINOV2:  # its table begins with the position of the class token
        tensors["pos_embed"] = np.zeros((1, 17, 64), np.float32)
    shapes = shapes_of(network)
    names = [name for name in tensors if ".blocks." not in f".{name}" or ".0." in name]
    for name in names:
        for shape in [(), (3,), (2, 2, 2)]:
            if len(shape) == tensors[name].ndim:
                continue
            path = tmp_path / "weights.pkl"
            path.write_bytes(pickle.dumps({**tensors, name: np.zeros(shape, np.float32)}))
            message = refusal(path, shapes)
            named = ("of another shape", "tensors of other shapes", "parameters that the file lacks", "no published")
            assert any(words in message for words in named), (name, shape, message)
