"""The notebooks run from top to bottom, and what is stored in them is of a whole run.

Makes the stored outputs anew, each in an empty folder W:

    python -m tests.test_notebooks inspect_matching W
    python -m tests.test_notebooks predict W "MODEL='shapes'"
    python -m tests.test_notebooks train_your_own W "WEIGHTS='shapes'" SIZE=96 \\
        "OVERRIDES='--config.optimizer.learning_rate=1e-3'"
"""

import ast
import base64
import json
import os
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = ROOT / "docs" / "notebooks"
NAMES = ("predict", "train_your_own", "inspect_matching")
IMAGES = ("image/jpeg", "image/png")
LARGEST = 1 << 20  # bytes of a file


def path_of(name: str) -> pathlib.Path:
    return NOTEBOOKS / f"{name}.ipynb"


def execute(name: str, folder: pathlib.Path, more: str = "", **parameters):
    """The notebook with its outputs, run in a folder.

    Args:
        more: code for another cell at the end, which stays in the notebook.
        parameters: values that replace those of the cell tagged "parameters".
    """
    import nbclient
    import nbformat
    from nbformat.v4 import new_code_cell

    notebook = nbformat.read(path_of(name), as_version=4)
    tagged = [index for index, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())]
    (place,) = tagged
    for key in parameters:
        assert re.search(rf"\b{key}\b.* = ", notebook.cells[place].source), f"{name} has no parameter {key}"
    values = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
    notebook.cells.insert(place + 1, new_code_cell(values))  # an empty cell gets no number
    if more:
        notebook.cells.append(new_code_cell(more))
    where = {"metadata": {"path": str(folder)}}
    options = {"timeout": 3000, "record_timing": False, "coalesce_streams": True}
    nbclient.NotebookClient(notebook, resources=where, **options).execute()
    del notebook.cells[place + 1]
    return notebook


def text(notebook) -> str:
    """All that the cells printed."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    return "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")


def images(notebook) -> list[bytes]:
    """The pictures that the cells showed."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    found = [output.get("data", {}) for output in outputs]
    return [base64.b64decode("".join(data[kind])) for data in found for kind in IMAGES if kind in data]


@pytest.mark.parametrize("name", NAMES)
def test_stored_outputs_are_of_one_whole_run(name):
    assert path_of(name).stat().st_size < LARGEST
    notebook = json.loads(path_of(name).read_text())
    counts = [cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    # A cell with other parameters, which is not kept, has the second number.
    assert counts in ([1, *range(first, first + len(counts) - 1)] for first in (2, 3))
    kinds = {output["output_type"] for cell in notebook["cells"] for output in cell.get("outputs", ())}
    assert kinds <= {"stream", "display_data", "execute_result"}
    assert images(notebook)
    assert "Traceback" not in text(notebook)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A model of the classes of the drawn scenes that has learned nothing."""
    jax = pytest.importorskip("jax")
    from maskformer_jax import catalog
    from maskformer_jax.checkpoints import workdir
    from maskformer_jax.checkpoints.published import Description
    from maskformer_jax.models import build_network
    from tests.samples import TINY_MODEL

    classes = catalog.load("shapes")
    settings = {"name": "maskformer", "dtype": "float32", **TINY_MODEL}
    inference = {"short_edge": 48, "longest_edge": 96, "size_divisor": 32, "upsample": "scores"}
    inference |= {"score_threshold": 0.05, "overlap_threshold": 0.1}
    folder = str(tmp_path_factory.mktemp("models") / "tiny")
    arrays = build_network(len(classes), **settings).init(jax.random.key(0))
    workdir.save_model(folder, Description(settings, inference, classes), *arrays)
    return folder


@pytest.fixture
def ready(monkeypatch, tmp_path):
    """An environment where kernels start, with one device and all files in the test's folder."""
    for module in ("nbclient", "ipykernel", "matplotlib"):
        pytest.importorskip(module, reason="needs the extra notebooks")
    from tests.conftest import FAST_COMPILE

    monkeypatch.setenv("XLA_FLAGS", FAST_COMPILE)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))


@pytest.mark.usefixtures("ready")
def test_predict(model, tmp_path):
    done = execute("predict", tmp_path, MODEL=model)
    said = text(done)
    assert "This is no tpu. In Colab: Runtime > Change runtime type" in said
    assert f"{model}, checkpoint 0: 10 classes: sky, mountain," in said
    assert "class_logits (1, 8, 11) mask_logits (1, 8, 24, 24)" in said
    assert len(re.findall(r"^query +\d+: ", said, re.M)) == 6
    assert re.search(r"^  1  \w+ +(thing|stuff)  score 0\.\d+ +\d+ pixels  box \[", said, re.M)
    # What is found, classes, instances, masks.
    assert len(images(done)) == 4


@pytest.mark.usefixtures("ready")
@pytest.mark.slow
def test_train_your_own(model, tmp_path):
    done = execute("train_your_own", tmp_path, WEIGHTS=model, STEPS=2, EVERY=2, BATCH=2, SIZE=48)
    said = text(done)
    assert "at random: heads.class_head" in said
    assert "done: 2 steps" in said
    assert "4 steps of 2 images on 1 devices, resuming from step 2" in said
    assert "done: 4 steps" in said
    assert len(list((tmp_path / "found").rglob("*.json"))) == 8
    # Examples, curves, predictions, curves, an overlay.
    assert len(images(done)) == 5


@pytest.mark.usefixtures("ready")
def test_inspect_matching(model, tmp_path):
    from tests.input_pipeline.folders import write_folder

    values = {"MODEL": model, "DATASET": "folder", "FOLDER": str(write_folder(tmp_path / "mine")), "SPLIT": "val"}
    drawn = "DATASET = ''\nprint('drawn', report(0).query.shape[0])"
    done = execute("inspect_matching", tmp_path, drawn, **values, SEEDS=(0, 4), MANY=3)
    said = text(done)
    assert "by scipy" in said
    assert re.search(r"^ +2  \w+ +\d+ +-\d\.\d+", said, re.M), "no table of costs"
    assert re.search(r"^stuff +layer 2: changed +\d+%   p 0\.\d+   IoU 0\.\d+$", said, re.M)
    assert "drawn 2" in said
    assert len(images(done)) == 2


def as_seen(printed: str) -> str:
    """What a terminal shows in the end of text in which progress bars wrote over themselves."""
    lines = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", printed).replace("\r\n", "\n").split("\n")
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)


def test_progress_bars_leave_their_last_state():
    assert as_seen("a\r\nbar 1\rbar 2\r   \r\x1b[1mb\x1b[0m\r\n") == "a\nb\n"


def main() -> None:
    import nbformat

    name, folder, *pairs = sys.argv[1:]
    parameters = {key: ast.literal_eval(value) for key, _, value in (pair.partition("=") for pair in pairs)}
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    notebook = execute(name, pathlib.Path(folder), **parameters)
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if output["output_type"] == "stream":
                output["text"] = as_seen(output["text"])
    nbformat.write(notebook, path_of(name))


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main()
