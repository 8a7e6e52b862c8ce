"""Who may import what."""

import ast
import pathlib
import pkgutil
import re
import subprocess
import sys

import pytest

import maskformer_jax
from tests.conftest import ROOT

WITHOUT_TENSORFLOW = [
    "engine.step_memory",
    "engine.trainer",
    "engine.scoring",
    "engine.submission",
    "input_pipeline.config",
    "input_pipeline.padded_shapes",
    "losses",
    "training",
    "inference",
    "metrics",
    "visualize",
    "predict",
    "convert",
    "demo",
    "serve",
]
BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "tensorflow_datasets", "clu"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
"""


def test_everything_but_the_input_pipeline_and_training_loop_runs_without_tensorflow():
    imports = "".join(f"import maskformer_jax.{name}\n" for name in WITHOUT_TENSORFLOW)
    command = [sys.executable, "-c", BLOCKED + imports + "import maskformer_jax"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["maskformer_jax", "maskformer_jax.ops.resize"])
def test_importing_the_package_or_an_operation_imports_no_heavy_library(module):
    heavy = {"flax", "optax", "orbax", "tensorstore", "pycocotools", "PIL", "cv2", "scipy"}
    heavy |= {"tensorflow", "tensorflow_datasets", "clu"} | ({"jax"} if module == "maskformer_jax" else set())
    program = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert heavy.isdisjoint(done.stdout.split())


def test_the_public_names_are_found_by_programs_and_by_type_checkers():
    path = ROOT / "maskformer_jax" / "__init__.py"
    (block,) = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.If)]
    declared = {name.name: f"{line.module}.{name.name}" for line in block.body for name in line.names}
    assert set(declared) == set(maskformer_jax.__all__) <= set(dir(maskformer_jax))
    for name, place in declared.items():
        assert getattr(maskformer_jax, name) is pkgutil.resolve_name(place)
    with pytest.raises(AttributeError, match="'maskformer_jax' has no attribute 'lode'"):
        _ = maskformer_jax.lode


# A room may import the rooms of the floors below its own, and itself.
FLOORS = [
    ["configs", "data", "errors", "types"],
    ["files"],
    ["parsing"],
    ["bundled", "catalog", "memory", "ops", "programs", "sharding"],
    ["models", "losses", "inference", "metrics", "visualize"],
    ["training"],
    ["checkpoints", "input_pipeline"],
    ["inspection", "segmenter"],
    ["engine"],
    ["convert", "export", "guard", "inspect_data", "predict", "score_cityscapes", "score_lvis", "service", "train"],
    ["demo", "serve"],
]


@pytest.mark.parametrize("path", sorted((ROOT / "maskformer_jax").rglob("*.py")), ids=str)
def test_imports_go_down(path: pathlib.Path):
    rooms = {room: floor for floor, members in enumerate(FLOORS) for room in members}
    relative = path.relative_to(ROOT / "maskformer_jax")
    room = relative.parts[0].removesuffix(".py")
    if room == "__init__":
        return
    for imported in re.findall(r"^\s*(?:from|import) maskformer_jax\.?(?: import )?(\w+)", path.read_text(), re.M):
        assert rooms[imported] < rooms[room] or imported == room, f"{relative} (room {room}) imports {imported}"


@pytest.mark.parametrize(
    ("library", "hosts"),
    [
        ("tensorflow", {"input_pipeline", "export.py"}),
        ("tensorflow_datasets", {"input_pipeline"}),
        ("apache_beam", {"input_pipeline"}),
        ("datasets", {"input_pipeline"}),
        ("flax", {"models"}),
        ("orbax", {"checkpoints"}),
        ("gradio", {"demo.py"}),
        ("starlette", {"demo.py", "service.py"}),
        ("uvicorn", {"serve.py"}),
        ("prometheus_client", {"service.py"}),
        ("huggingface_hub", {"checkpoints"}),
        ("safetensors", {"checkpoints"}),
        ("clu", {"engine"}),
        ("pyvips", {"files"}),
        ("scipy", {"losses"}),
        ("ml_collections", {"engine"}),
    ],
)
def test_each_library_has_one_host(library, hosts):
    found = set()
    for path in (ROOT / "maskformer_jax").rglob("*.py"):
        if re.search(rf"^\s*(?:from|import) {library}\b", path.read_text(), re.M):
            found.add(path.relative_to(ROOT / "maskformer_jax").parts[0])
    assert found == hosts
