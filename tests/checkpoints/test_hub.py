"""Models of the hub, by its real client from a server on the loopback; and what their own files say of images."""

import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

import maskformer_jax
from maskformer_jax import bundled, catalog
from maskformer_jax.checkpoints.formats import MASKFORMER_HUGGINGFACE
from maskformer_jax.checkpoints.hub import is_id
from maskformer_jax.checkpoints.readers import read_tensors
from maskformer_jax.errors import UserError
from tests.checkpoints.hub_server import TOKEN, FakeHub, Repository
from tests.conftest import ROOT
from tests.engine.recipe import recipe
from tests.input_pipeline.folders import write_folder

CONFIG = {"model_type": "maskformer", "architectures": ["MaskFormerForInstanceSegmentation"]}
# The client reads its environment when it is imported.
LOCATE = """
import json, sys
from maskformer_jax.checkpoints.weights import locate
from maskformer_jax.errors import UserError
def answer(source):
    try:
        return [locate(source), None]
    except UserError as error:
        return [None, str(error)]
print(json.dumps([answer(source) for source in sys.argv[1:]]))
"""
DESCRIBE = """
import json, sys
from maskformer_jax.checkpoints.weights import open_weights
found = [open_weights(source).describe() for source in sys.argv[1:]]
print(json.dumps([[sum(each.classes.is_thing), each.inference["upsample"]] for each in found]))
"""
LOAD = """
import json, sys
import jax, numpy
import maskformer_jax
found = maskformer_jax.load(sys.argv[1])
arrays = jax.device_get({**found.params, **found.frozen})
sums = {name: float(numpy.abs(array).sum()) for name, array in arrays.items()}
print(json.dumps([vars(found.inference), found.classes.names, sums]))
"""


def tensors(seed):
    return safetensors.numpy.save({"weight": np.random.default_rng(seed).normal(size=(100, 100)).astype(np.float32)})


def of(seed, **changes):
    """A model with files of all frameworks, none of which is that of another seed."""
    files = {
        "config.json": json.dumps({**CONFIG, "seed": seed}).encode(),
        "preprocessor_config.json": b"{}",
        "model.safetensors": tensors(seed),
        "pytorch_model.bin": b"pickle" + tensors(seed),
        "tf_model.h5": b"h5",
        "model.fp16.safetensors": tensors(seed + 1000),
        "README.md": b"a card",
    }
    return {name: data for name, data in {**files, **changes}.items() if data is not None}


def sharded(seed):
    index = {"weight_map": {f"part{part}": f"model-0000{part}-of-00002.safetensors" for part in (1, 2)}}
    parts = {
        name: safetensors.numpy.save({key: np.full((20, 1000), seed, np.float32)})
        for key, name in index["weight_map"].items()
    }
    return of(seed, **{"model.safetensors": None, "model.safetensors.index.json": json.dumps(index).encode()}, **parts)


def config(**values):
    return json.dumps(values).encode()


REPOSITORIES = {
    "some/model": Repository(of(0), tags=("v1",)),
    "some/old": Repository(of(1, **{"model.safetensors": None})),
    "some/sharded": Repository(sharded(2)),
    "some/timm": Repository(of(3, **{"config.json": config(architecture="resnet50")})),
    "some/dinov3": Repository(
        of(8, **{"config.json": config(model_type="dinov3_vit", architectures=["DINOv3ViTModel"])})
    ),
    "some/eomt": Repository({"pytorch_model.bin": of(9)["pytorch_model.bin"]}),  # the original's, without a description
    "some/ours": Repository(of(10, **{"config.json": config(version=1), "classes.json": b"{}"})),
    "some/gated": Repository(of(4), access="gated"),
    "some/private": Repository(of(5), access="private"),
    "some/oneformer": Repository(
        of(6, **{"config.json": config(model_type="oneformer", architectures=["OneFormerForUniversalSegmentation"])})
    ),
    "some/body": Repository(
        of(7, **{"config.json": config(model_type="maskformer", architectures=["MaskFormerModel"])})
    ),
    "some/pickle": Repository({"config.json": config(**CONFIG), "model_final.pkl": b"x"}),
}


@pytest.fixture(scope="module")
def hub():
    pytest.importorskip("huggingface_hub")
    hub = FakeHub()
    hub.repositories.update(REPOSITORIES)
    yield hub
    hub.close()


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    """A function that runs a program with the hub's client and gives what it prints; all share a cache."""
    home = str(tmp_path_factory.mktemp("home"))

    def run(*sources, code=LOCATE, **environment):
        hub.requests.clear()
        unset = ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
        kept = {name: value for name, value in os.environ.items() if name not in unset}
        mine = {"HF_ENDPOINT": hub.address, "HF_HOME": home, "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1,localhost"}
        # The client gives up after 10 s, which a server that shares two busy cores may need.
        mine |= {"HF_HUB_DOWNLOAD_TIMEOUT": "120", "HF_HUB_ETAG_TIMEOUT": "120"}
        command = [sys.executable, "-c", code, *sources]
        done = subprocess.run(command, env={**kept, **mine, **environment}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="module")
def answers(client):
    """What becomes of all sources without a token, in one process: {source: (path, error)}."""
    sources = [*REPOSITORIES, "some/model@v1", "some/model@v2", "some/missing", "some--one/model"]
    return dict(zip(sources, client(*sources), strict=True))


def held(path):
    return sorted(file.name for file in pathlib.Path(path).iterdir())


def test_only_what_is_needed_is_fetched_and_only_once(hub, client, tmp_path):
    home = {"HF_HOME": str(tmp_path)}
    ((path, _),) = client("some/model", **home)
    files = REPOSITORIES["some/model"].files
    digest = hashlib.sha256(files["model.safetensors"]).hexdigest()
    assert sorted(hub.downloads()) == sorted([digest, "config.json", "preprocessor_config.json"])
    assert held(path) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    for name in held(path):
        assert (pathlib.Path(path) / name).read_bytes() == files[name]

    assert client("some/model", **home) == [[path, None]]
    assert hub.downloads() == []
    assert any("/api/models/some/model" in asked for _, asked, _ in hub.requests)  # whether there is a newer commit

    assert client("some/model", HF_HUB_OFFLINE="1", **home) == [[path, None]]
    assert hub.requests == []


def test_models_come_in_the_forms_that_the_hub_has(answers):
    assert answers["some/model@v1"] == answers["some/model"]
    assert held(answers["some/old"][0]) == ["config.json", "preprocessor_config.json", "pytorch_model.bin"]
    for backbone in ("some/timm", "some/dinov3"):  # to train from
        assert "model.safetensors" in held(answers[backbone][0])
    assert held(answers["some/eomt"][0]) == ["pytorch_model.bin"]
    assert {"classes.json", "config.json", "model.safetensors"} < set(held(answers["some/ours"][0]))
    found = read_tensors(answers["some/sharded"][0])
    assert {name: np.asarray(tensor).mean() for name, tensor in found.items()} == {"part1": 2.0, "part2": 2.0}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("some/model@v2", r"some/model@v2 does not exist: the model has no such revision"),
        ("some/missing", r"some/missing is not a local path, and http://127\S* shows no such model"),
        ("some/private", r"if it is private, log in with `hf auth login` or set HF_TOKEN"),
        ("some/gated", r"some/gated is gated: ask for access at http://127\S*/some/gated, then log in"),
        ("some/oneformer", r"model_type is 'oneformer'; expected 'maskformer' or .*\(architectures: OneFormerForU"),
        ("some/body", r"lack the heads.*MaskFormerModel.*expected MaskFormerForInstanceSegmentation"),
        ("some/pickle", r"no weights that can be read; .*found \['config.json', 'model_final.pkl'\].*hf download"),
        ("some--one/model", r"some--one/model is neither a path that exists nor a valid hub id"),
    ],
)
def test_why_there_is_no_model_is_said(answers, source, words):
    path, error = answers[source]
    assert path is None
    assert re.search(words, error), error


def test_weights_of_another_model_are_not_fetched(hub, client, tmp_path):
    client("some/oneformer", "some/body", HF_HOME=str(tmp_path))
    assert set(hub.downloads()) == {"config.json", "preprocessor_config.json"}


def test_a_token_opens_what_is_gated_or_private(client, tmp_path):
    found = client("some/gated", "some/private", "some/missing", HF_TOKEN=TOKEN, HF_HOME=str(tmp_path))
    assert [error is None for _, error in found] == [True, True, False]
    ((_, error),) = client("some/model", HF_TOKEN="hf_wrong", HF_HOME=str(tmp_path / "new"))
    assert re.search(r"some/model was refused: http://127\S* does not accept your token", error), error


def test_offline_says_what_the_cache_lacks(hub, client, answers):
    cached, lacking, partial = client("some/model", "some/missing", "some/pickle", HF_HUB_OFFLINE="1")
    assert cached == answers["some/model"]
    assert "some/missing is not in the cache, or only in part, and offline mode is on. Unset HF_HUB_" in lacking[1]
    assert "hf download some/missing --local-dir DIR" in lacking[1]
    assert re.search(r"some/pickle: its weights .* are not in the cache .*without HF_HUB_OFFLINE", partial[1])
    assert hub.requests == []


def test_a_hub_that_cannot_be_reached_is_named_and_the_cache_still_used(client, answers):
    cached, lacking = client("some/model", "some/missing", HF_ENDPOINT="http://127.0.0.1:9")
    assert cached == answers["some/model"]
    assert "some/missing is not in the cache, or only in part, and the connection to http://127.0.0.1:9" in lacking[1]


def test_a_download_that_was_cut_short_goes_on(hub, client, tmp_path):
    """Newer clients go on in the same run; older ones fail, and go on in the next."""
    chunk = 10 * 2**20  # the client keeps whole chunks
    data = b"cut here" + np.random.default_rng(8).bytes(chunk + 10_000)
    digest = hashlib.sha256(data).hexdigest()
    hub.repositories["some/cut"] = Repository(of(8, **{"model.safetensors": data}))
    hub.cut = {b"cut here": chunk + 1000}
    asked, path = [], None
    for _ in range(2):
        ((path, error),) = client("some/cut", HF_HOME=str(tmp_path))
        asked += [ranged for method, name, ranged in hub.requests if method == "GET" and name.endswith(digest)]
        if path:
            break
        assert "Complete files are kept: run again" in error
    assert asked == [None, f"bytes={chunk}-"]
    assert (pathlib.Path(path) / "model.safetensors").read_bytes() == data


def test_a_hub_that_fails_is_named(hub, client, tmp_path):
    hub.broken = 507
    try:
        ((_, error),) = client("some/model", HF_HOME=str(tmp_path))
    finally:
        hub.broken = 0
    assert re.search(r"some/model could not be downloaded from http://127\S* \(.*507.*run again", error), error


def test_bytes_with_another_hash_than_the_hub_states_are_not_used_and_not_kept(hub, client, tmp_path):
    changed = {"some/config": ("config.json", "0" * 40), "some/weights": ("model.safetensors", "0" * 64)}
    right = {name: REPOSITORIES["some/model"].files[file] for name, (file, _) in changed.items()}
    hub.repositories |= {name: Repository(of(0), stated=dict([stated])) for name, stated in changed.items()}
    for _ in range(2):  # the second run does not take the file for complete
        for (name, (file, wrong)), (path, error) in zip(
            changed.items(), client(*changed, HF_HOME=str(tmp_path)), strict=True
        ):
            assert path is None
            assert re.search(rf"{name}: {file} was damaged on its way: its hash is .*the hub states {wrong}", error)
            kept = [found for found in tmp_path.rglob("*") if name.replace("/", "--") in str(found)]
            assert not [found for found in kept if found.is_file() and found.read_bytes() == right[name]]
    hub.repositories |= {name: Repository(of(0)) for name in changed}
    for (name, (file, _)), (path, error) in zip(changed.items(), client(*changed, HF_HOME=str(tmp_path)), strict=True):
        assert error is None
        assert (pathlib.Path(path) / file).read_bytes() == right[name]


def test_nothing_is_written_outside_of_the_cache(hub, client, tmp_path):
    stated = {"some/up": "../../../../escaped", "some/root": "/tmp/escaped", "some/short": "abc", "some/dot": "."}
    hub.repositories |= {name: Repository(of(0), stated={"model.safetensors": text}) for name, text in stated.items()}
    home = tmp_path / "a" / "b" / "home"
    for name, (path, error) in zip(stated, client(*stated, HF_HOME=str(home)), strict=True):
        assert path is None
        assert re.search(rf"{name}: the hub states .* as the hash of 'model.safetensors'.*Nothing was down", error)
    assert not list(tmp_path.rglob("escaped*"))
    assert not [found for found in home.rglob("*") if found.is_file() and found.stat().st_size > 10_000]


@pytest.mark.parametrize("source", ["model", "a/b/c", "/a/b", "./a", "../a/b", "a/b@", "a@b/c", "gs://a/b", "a/b.pkl/"])
def test_what_is_no_id(source):
    assert not is_id(source)


@pytest.mark.parametrize("source", ["a/b", "a_b/c-d.e", "a/b@v1.0", "a/b@refs/pr/1", "a/b@0123abc"])
def test_what_is_an_id(source):
    assert is_id(source)


# What the files of a model say of images and classes.

# The file of facebook/maskformer-swin-* (written in 2022); means went through float32.
PUBLISHED = {
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "MaskFormerFeatureExtractor",
    "ignore_index": 255,
    "image_mean": [0.48500001430511475, 0.4560000002384186, 0.4059999883174896],
    "image_std": [0.2290000021457672, 0.2239999920129776, 0.22499999403953552],
    "max_size": 1333,
    "size": 800,
    "size_divisibility": 32,
}
RECENT = {
    **{"do_normalize": True, "do_rescale": True, "do_resize": True, "do_reduce_labels": True, "ignore_index": 255},
    **{"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "rescale_factor": 1 / 255},
    **{"resample": 2, "size": {"longest_edge": 2560, "shortest_edge": 640}, "size_divisor": 32},
}


def describe(folder, names, processor=None):
    labels = {str(index): name for index, name in enumerate(names)}
    values = {**CONFIG, "backbone_config": {"model_type": "resnet"}, "id2label": labels}
    (folder / "config.json").write_text(json.dumps(values))
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return MASKFORMER_HUGGINGFACE.describe({}, str(folder), str(folder))


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        (PUBLISHED, (800, 1333, 32)),
        (RECENT, (640, 2560, 32)),
        ({"size": 512}, (512, 1333, 32)),
        ({"size": {"shortest_edge": 512, "longest_edge": None}, "_max_size": 2048}, (512, 2048, 32)),
        ({"size_divisor": 64}, (512, 2048, 64)),
        ({"size_divisibility": 0}, (512, 2048, 1)),
        (None, (512, 2048, 32)),
    ],
)
def test_images_are_resized_as_the_models_file_says(tmp_path, processor, expected):
    found = describe(tmp_path, ["a", "b"], processor).inference
    assert (found["short_edge"], found["longest_edge"], found["size_divisor"]) == expected


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": {"shortest_edge": 512}}, r"size is \{'shortest_edge': 512\}; only shortest_edge with longest_edge"),
        ({"size": "512"}, r"size is '512'; only shortest_edge"),
        ({"image_mean": [0.5, 0.5, 0.5]}, r"image_mean is \[0\.5, 0\.5, 0\.5\]; only \[0\.485"),
        ({"image_std": [0.229]}, r"image_std is \[0\.229\]; only \[0\.229"),
        ({"rescale_factor": 1.0}, r"rescale_factor is 1\.0; only 0\.0039"),
        ({"do_normalize": False}, r"do_normalize is False; only True"),
        ({"do_resize": False}, r"do_resize is False; only True"),
        ({"resample": 3}, r"resample is 3; only 2"),
    ],
)
def test_what_cannot_be_done_to_images_is_refused(tmp_path, change, words):
    with pytest.raises(UserError, match=r"preprocessor_config\.json: " + words):
        describe(tmp_path, ["a", "b"], {**RECENT, **change})


def test_classes_of_a_known_dataset_are_known_by_number_and_names(tmp_path):
    known = catalog.load("coco_panoptic")
    written = [f"{name.upper()}, a synonym" if index % 3 else name + " " for index, name in enumerate(known.names)]
    found = describe(tmp_path, written).classes
    assert found.names == tuple(written)
    assert found.is_thing == known.is_thing
    assert describe(tmp_path, [f"LABEL_{index}" for index in range(133)]).classes == known


def test_classes_of_an_unknown_dataset_keep_their_names_and_are_things(tmp_path):
    """Nineteen classes do not make Cityscapes."""
    found = describe(tmp_path, [f"part {index}" for index in range(18)] + ["part 3"])
    assert found.classes.names[2:5] == ("part 2", "part 3 (3)", "part 4")
    assert found.classes.names[18] == "part 3 (18)"
    assert all(found.classes.is_thing)
    assert (found.inference["short_edge"], found.inference["longest_edge"]) == (512, 2048)


# Mask2Former was published for two datasets with Cityscapes' classes, and only its id says which.
MASK2FORMER = {
    "config.json": config(
        model_type="mask2former",
        architectures=["Mask2FormerForUniversalSegmentation"],
        backbone_config={"model_type": "swin"},
        id2label={str(index): name for index, name in enumerate(catalog.load("cityscapes_semantic").names)},
    ),
    "preprocessor_config.json": config(size={"height": 384, "width": 384}),
    "model.safetensors": safetensors.numpy.save(
        {"model.transformer_module.queries_features.weight": np.zeros((100, 256), np.float32)}
    ),
}


def test_an_id_says_for_which_of_two_datasets_a_model_is(hub, client):
    ids = [f"some/mask2former-cityscapes-{task}" for task in ("semantic", "panoptic")]
    hub.repositories |= {name: Repository(MASK2FORMER) for name in ids}
    assert client(*ids, code=DESCRIBE) == [[0, "scores"], [8, "logits"]]


# With transformers.


@pytest.mark.parity
@pytest.mark.slow
def test_a_model_that_transformers_saved_is_the_same_from_the_hub_and_from_its_folder(hub, client, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.MaskFormerForInstanceSegmentation(
        transformers.MaskFormerConfig(
            backbone_config=transformers.ResNetConfig(
                layer_type="basic",
                depths=[2, 2, 2, 2],
                hidden_sizes=[64, 128, 256, 512],
                out_features=["stage1", "stage2", "stage3", "stage4"],
            ),
            decoder_config=transformers.DetrConfig(
                num_queries=3, d_model=32, decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=16
            ),
            fpn_feature_size=32,
            mask_feature_size=32,
            id2label={0: "cat", 1: "dog"},
            label2id={"cat": 0, "dog": 1},
        )
    )
    theirs.save_pretrained(tmp_path, max_shard_size="20MB")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PUBLISHED))
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert "model.safetensors.index.json" in files
    hub.repositories["some/tiny"] = Repository(files)
    inference, names, sums = client("some/tiny@main", code=LOAD)
    local = maskformer_jax.load(str(tmp_path))
    assert names == ["cat", "dog"]
    assert inference == json.loads(json.dumps(vars(local.inference)))
    arrays = jax.device_get({**local.params, **local.frozen})
    assert sums == {name: float(np.abs(array).sum()) for name, array in arrays.items()}
    assert sum(sums.values()) > 1000

    processor = transformers.MaskFormerImageProcessor.from_pretrained(tmp_path)
    assert dict(processor.size) == {"shortest_edge": inference["short_edge"], "longest_edge": inference["longest_edge"]}


PUSH = """
import json, sys
import maskformer_jax
from maskformer_jax.errors import UserError
segmenter = maskformer_jax.load("shapes")
def push(repo, **options):
    try:
        return segmenter.push_to_hub(repo, license="apache-2.0", data="Drawn scenes.", **options)
    except UserError as error:
        return str(error)
pushed = [push(repo) for repo in sys.argv[1:]] + [push("me/shapes", token="hf_wrong")]
segmenter.push_to_hub("me/as-it-is")
again = maskformer_jax.load("me/shapes")
same = all((again.params[name] == array).all() for name, array in segmenter.params.items())
print(json.dumps([pushed, bool(same), again.classes.names == segmenter.classes.names]))
"""


def test_a_model_is_pushed_with_its_card_and_loads_from_there(hub, client):
    (pushed, same, classes) = client("me/shapes", "not an id", code=PUSH, HF_TOKEN=TOKEN, HF_HUB_DISABLE_XET="1")
    files = hub.repositories["me/shapes"].files
    assert pushed[0] == f"{hub.address}/me/shapes/commit/{hub.repositories['me/shapes'].commit}"
    assert "expected 'name/model'" in pushed[1]
    assert re.match(r"me/shapes was not pushed: .*401.*a token that may write there", pushed[2]), pushed[2]
    assert (same, classes) == (True, True)
    assert {"model.safetensors", "config.json", "classes.json", "README.md"} <= set(files)
    card = files["README.md"].decode()
    for words in ("license: apache-2.0", "library_name: maskformer_jax", 'maskformer_jax.load("me/shapes")', "Drawn s"):
        assert words in card
    # A model of the package keeps its card and float16, if nothing else is said of it.
    files, folder = hub.repositories["me/as-it-is"].files, bundled.folder("shapes")
    expected = (folder / "README.md").read_text().replace('load("shapes")', 'load("me/as-it-is")')
    assert files["README.md"].decode() == expected
    before = safetensors.numpy.load_file(folder / "model.safetensors")
    after = safetensors.numpy.load(files["model.safetensors"])
    assert {name: (array.dtype, array.tobytes()) for name, array in after.items()} == {
        name: (array.dtype, array.tobytes()) for name, array in before.items()
    }


PUSH_RUN = """
import json, sys
import numpy as np
import maskformer_jax
segmenter = maskformer_jax.load(sys.argv[1])
segmenter.push_to_hub("me/run", license="mit", data="Drawn bands.")
again = maskformer_jax.load("me/run")
image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
first, second = (each.semantic(image) for each in (segmenter, again))
same = (first.id_map == second.id_map).all() and (first.scores == second.scores).all()
print(json.dumps([segmenter.origin, bool(same)]))
"""


@pytest.mark.slow
def test_a_run_is_trained_scored_and_pushed(hub, client, tmp_path):
    from huggingface_hub import ModelCard

    from maskformer_jax.engine.settings import Settings
    from maskformer_jax.engine.train import evaluate_run, train_and_evaluate

    settings = Settings.from_dict(recipe(write_folder(tmp_path / "mine"), 2))
    run = str(tmp_path / "run")
    train_and_evaluate(settings, run)
    miou = evaluate_run(settings, run).summary["semantic/miou"]
    origin, same = client(run, code=PUSH_RUN, HF_TOKEN=TOKEN, HF_HUB_DISABLE_XET="1")
    assert (origin, same) == (f"{run}, checkpoint 2", True)
    card = ModelCard(hub.repositories["me/run"].files["README.md"].decode())
    assert f"| mIoU | {miou:.2f} |" in card.text
    assert "Checkpoint 2, split `val`" in card.text
    for words in ("Drawn bands.", "Training: 6 images of folder/", "Validation: 5 images of folder/"):
        assert words in card.text
    (found,) = [each for each in card.data.eval_results if each.metric_type == "miou"]
    assert (found.metric_value, found.dataset_split) == (round(miou, 2), "val")


def test_the_card_has_the_scores_and_data_of_the_run(tmp_path):
    pytest.importorskip("huggingface_hub")
    from huggingface_hub import ModelCard

    from maskformer_jax.checkpoints.model_card import model_card
    from maskformer_jax.checkpoints.published import Description

    scores = {"step": 9, "split": "val", "how": "one view", "panoptic/pq": 41.234, "panoptic/pq_things": None}
    (tmp_path / "eval.json").write_text(json.dumps(scores))
    entries = {
        "training": {"name": "mine", "split": "train", "images": 7},
        "validation": {"name": "yours", "split": "val", "images": 3},
    }
    (tmp_path / "dataset.json").write_text(json.dumps(entries))
    described = Description({"name": "maskformer"}, {}, catalog.load("shapes"))
    card = ModelCard(model_card("me/mine", described, 1234, "mit", run=str(tmp_path), step=9))
    assert "Checkpoint 9, split `val`, one view" in card.text
    assert "| PQ | 41.23 |" in card.text
    assert "PQ of things" not in card.text
    assert "Training: 7 images of mine, split `train`." in card.text
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("pq", 41.23, "yours")
    assert card.data.license == "mit"
    # Scores of another checkpoint are not those of this model.
    other = ModelCard(model_card("me/mine", described, 1234, "mit", run=str(tmp_path), step=16))
    assert "None recorded." in other.text
    assert not other.data.eval_results
    assert "Licence\n\nNone stated." in model_card("me/mine", described, 1234, "")
