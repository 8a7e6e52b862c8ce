"""Images, labels and datasets in cloud storage, accessed by the clients that access real storage."""

import concurrent.futures
import importlib.metadata
import itertools
import multiprocessing
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import pytest

from maskformer_jax.errors import UserError
from maskformer_jax.input_pipeline import schema
from maskformer_jax.input_pipeline.augment import Augmentation
from maskformer_jax.input_pipeline.loader import Host, train_batches
from maskformer_jax.input_pipeline.sources import open_source
from tests.input_pipeline.fake_cloud_storage import FakeCloudStorage
from tests.input_pipeline.folders import write_folder

ARRAY_RECORD = tuple(map(int, importlib.metadata.version("array-record").split(".")[:3]))
pytestmark = [
    pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl for the certificate of the fake server"),
    pytest.mark.skipif(ARRAY_RECORD < (0, 8, 3), reason="array-record reads cloud storage from version 0.8.3 on"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> pathlib.Path:
    """A folder with images and labels in mine/, and the dataset made from them in tfds/."""
    root = tmp_path_factory.mktemp("storage")
    open_source("folder", str(write_folder(root / "mine", train=5, val=2)), str(root / "tfds"))
    return root


@pytest.fixture(scope="module")
def expected(root) -> tuple[Any, ...]:
    return read_all("folder", str(root / "mine"), str(root / "tfds"))


@pytest.fixture(scope="module")
def server(root):
    server = FakeCloudStorage(root)
    yield server
    server.close()


@pytest.fixture
def storage(server) -> FakeCloudStorage:
    """Empty cloud storage."""
    server.objects.clear()
    server.reads.clear()
    server.refused.clear()
    return server


@pytest.fixture(scope="module")
def elsewhere(server):
    """A separate process whose clients use the fake server: they read the environment once, for good."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        pool = concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        pool.submit(int).result()  # starts it
    with pool:
        yield lambda function, *args: pool.submit(function, *args).result(timeout=60)


def read_all(*where: str) -> tuple[Any, ...]:
    """The content of an opened dataset: name, every example from the last to the first, and some training batches."""
    source = open_source(*where)
    places = [(split, index) for split in ("train", "val") for index in reversed(range(source.size(split)))]
    augmentation = Augmentation((32, 40), 64, (32, 40))
    options = {"batch_size": 4, "max_segments": 3, "augmentation": augmentation, "seed": 3, "host": Host()}
    batches = itertools.islice(train_batches(source, "train", first_step=2, **options), 3)
    return (
        source.builder.info.full_name,
        [values(source.example(*place)) for place in places],
        [(batch.image_ids, [array.tobytes() for array in jax.tree.leaves(batch.arrays)]) for batch in batches],
    )


def values(example: schema.Example) -> list[Any]:
    return [value.tolist() if isinstance(value, np.ndarray) else value for value in vars(example).values()]


def test_a_dataset_in_cloud_storage(root, expected, storage, elsewhere):
    storage.upload(root / "tfds", "tfds")
    before = {name: data for name, data in storage.objects.items() if not is_index(name)}
    assert elsewhere(read_all, "folder", str(root / "mine"), "gs://bucket/tfds") == expected
    records = [wanted for name, wanted in storage.reads if ".array_record" in name]
    assert len(records) >= 7  # at least one per example, none for an entire file
    assert all(records)
    assert {name: data for name, data in storage.objects.items() if not is_index(name)} == before


def is_index(name: str) -> bool:
    """Whether an object is the index of a folder's files, which is kept with the datasets."""
    return name.endswith(".index.json")


def test_images_and_labels_in_cloud_storage(root, expected, storage, elsewhere, tmp_path):
    storage.upload(root / "mine", "mine")
    assert elsewhere(read_all, "folder", "gs://bucket/mine", str(tmp_path)) == expected
    del storage.objects["mine/labels/val/001.png"]
    with pytest.raises(UserError, match=r"^gs://bucket/mine/labels/val/001\.png is missing"):
        elsewhere(read_all, "folder", "gs://bucket/mine", str(tmp_path))


def test_an_interrupted_copy_to_cloud_storage_is_replaced(root, expected, storage, elsewhere):
    where = ("folder", str(root / "mine"), "gs://bucket/made")
    storage.refused.append("dataset_info.json")
    with pytest.raises(UserError, match=r"gs://bucket/made/folder/.*dataset_info\.json cannot be written: Permission"):
        elsewhere(read_all, *where)
    [folder] = (root / "tfds").glob("folder/*/*")
    shard = f"made/{folder.relative_to(root / 'tfds')}/folder-train.array_record-00000-of-00001"
    assert shard in storage.objects
    storage.objects[shard] = type(storage.objects[shard])(b"half")
    storage.refused.clear()
    assert elsewhere(read_all, *where) == expected
    assert list(storage.objects)[-1].endswith("/dataset_info.json")
    made = [name for name in storage.objects if not is_index(name)]
    assert {name.rpartition("/")[2] for name in made} == {path.name for path in folder.iterdir()}


def test_datasets_in_other_storage_are_refused(root):
    with pytest.raises(UserError, match=r"data\.tfds_dir is 's3://bucket/tfds', but"):
        open_source("folder", str(root / "mine"), "s3://bucket/tfds")
