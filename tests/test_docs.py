"""What the documentation names exists, what it prints is what the code says, and the site builds."""

import dataclasses
import importlib
import pathlib
import re
import runpy
import subprocess
import sys
import tomllib

import pytest

from maskformer_jax.configs import base
from tests.conftest import ROOT

ROOT_PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md")
LLMS = ROOT / "llms.txt"
PAGES = sorted([LLMS, *ROOT_PAGES, *(ROOT / "docs").glob("*.md")])
SECTIONS = "data|model|init|loss|optimizer|train|inference|eval|log"
# Parts of a model take other arguments under other names.
PARTS = ("model.backbone.", "model.pixel_decoder.", "model.decoder.")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


def prose(page: pathlib.Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)


def anchors(page: pathlib.Path) -> set[str]:
    """What links to a part of a page may name: its headings as GitHub writes them, and its labels."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    labels = re.findall(r"^\(([\w-]+)\)=$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings} | set(labels)


@each_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"\w+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{target}: there is no {path}"
        assert path.is_relative_to(ROOT), f"{target} leads out of the repository"
        if anchor:
            assert anchor in anchors(path), f"{target}: no such heading"


def test_readers_that_are_programs_find_every_page():
    linked = set(re.findall(r"\]\(([^)\s]+)\)", LLMS.read_text()))
    assert linked == {str(page.relative_to(ROOT)) for page in PAGES if page != LLMS}


@each_page
def test_files_exist(page):
    places = "tests|benchmarks|configs|docs|data|maskformer_jax"
    for path in re.findall(rf"(?<![\w/.~-])(?:{places})/[\w/.-]+", page.read_text()):
        path = path.rstrip(".")
        if not re.search(r"[A-Z]{3}", path):  # data/NAME
            assert (ROOT / path).exists(), f"there is no {path}"


def named_settings(text: str) -> set[str]:
    """Every setting that a text names in full, or, at the start of a piece of code, without `config.` before it."""
    full = re.findall(rf"\bconfig\.((?:{SECTIONS})\.\w+(?:\.\w+)*)", text)
    short = re.findall(rf"`((?:{SECTIONS})\.\w+(?:\.\w+)*)", text)
    files = r"\.(py|json|txt|yaml|safetensors|jax|onnx|tflite|update)$"
    return {name for name in full + short if not re.search(files, name)}


@each_page
def test_settings_exist(page):
    settings = base.get_config()
    text = page.read_text()
    for name in named_settings(text):
        known, missing = settings, None
        for part in name.split("."):
            if part not in known:
                missing = part
                break
            known = known[part]
        assert missing is None or name.startswith(PARTS), f"there is no setting config.{name}"
    # A flag with a section that is not there is not found above.
    assert set(re.findall(r"--config\.(\w+)", text)) <= set(SECTIONS.split("|"))


def test_settings_are_found():
    text = "`--config.train.steps=1`, config.loss.matcher; `data.name` and `eval.json`, data.dir"
    assert named_settings(text) == {"train.steps", "loss.matcher", "data.name"}


@each_page
def test_recipes_exist(page):
    for name, variant in re.findall(r"\bconfigs/([a-z]\w*)\.py(?::(\w+))?", page.read_text()):
        module = importlib.import_module(f"maskformer_jax.configs.{name}")
        if variant and variant.islower():
            assert variant in module.VARIANTS, f"configs/{name}.py has no variant {variant}"


def scripts() -> dict[str, str]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


@each_page
def test_programs_exist(page):
    text = page.read_text()
    for name in re.findall(r"python -m maskformer_jax\.(\w+)", text):
        module = ROOT / "maskformer_jax" / f"{name}.py"
        assert module.exists(), f"there is no module maskformer_jax.{name}"
        assert "__main__" in module.read_text(), f"maskformer_jax.{name} is no program"
    for name in re.findall(r"(?<![\w/-])maskformer-(?:train|predict|convert|inspect|export|demo|serve)[a-z-]*", text):
        assert name in scripts(), f"pyproject.toml has no script {name}"


@pytest.mark.parametrize("name", scripts())
def test_scripts_have_functions(name):
    module, _, function = scripts()[name].partition(":")
    text = (ROOT / f"{module.replace('.', '/')}.py").read_text()
    assert re.search(rf"^def {function}\(", text, re.M)


def test_the_tests_of_each_problem_exist():
    rows = [line for line in (ROOT / "docs" / "problems.md").read_text().splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith(("| reported", "| ---"))]
    assert rows
    for row in rows:
        tests = re.findall(r"`([\w/]+\.py)::(\w+)`", row)
        assert tests, f"no test: {row}"
        for file, name in tests:
            assert f"def {name}(" in (ROOT / "tests" / file).read_text(), f"there is no {file}::{name}"


def test_the_tables_of_recipes_are_those_of_the_recipes():
    tables = runpy.run_path(str(ROOT / "docs" / "recipe_table.py"))["tables"]()
    assert sum(table.count("\n| `") for table in tables) == 30 + 47 + 23
    page = (ROOT / "docs" / "recipes.md").read_text()
    assert all(table in page for table in tables)


@pytest.fixture(scope="module")
def settings_table() -> dict:
    return runpy.run_path(str(ROOT / "docs" / "settings_table.py"))


def test_the_table_of_settings_is_that_of_the_code(settings_table):
    """Write it with `python docs/settings_table.py`."""
    tables = settings_table["tables"]()
    assert tables.count("\n## config.") == len(SECTIONS.split("|")) - 1
    assert tables in (ROOT / "docs" / "settings.md").read_text()


@dataclasses.dataclass(frozen=True)
class Crop:
    """Where images are cut.

    Args:
        height, width: sides of
            the window.
    """

    height: int = 8
    width: int = 8


@dataclasses.dataclass(frozen=True)
class Section(Crop):
    """A section that adds a field.

    Args:
        scale: a factor; "a|b" is cut nowhere.

    Raises:
        scale: is not a setting here.
    """

    scale: tuple[float, ...] = ()


def test_the_table_of_settings_reads_docstrings(settings_table):
    rows = settings_table["rows_of"](Section, {"width": 9, "scale": [0.5, 2.0]}, "data")
    assert settings_table["markdown"](rows).splitlines()[2:] == [
        "| `data.height` | int | `8` | Sides of the window. |",
        "| `data.width` | int | `9` | Sides of the window. |",
        '| `data.scale` | tuple[float, ...] | `(0.5, 2.0)` | A factor; "a\\|b" is cut nowhere. |',
    ]


def test_the_table_of_settings_needs_a_meaning_for_each(settings_table):
    @dataclasses.dataclass(frozen=True)
    class Undocumented:
        """Says nothing of its field."""

        size: int = 1

    with pytest.raises(ValueError, match=r"config\.eval\.size has no meaning"):
        list(settings_table["rows_of"](Undocumented, {}, "eval"))


def test_every_requirement_has_its_licence():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    needed = {re.match(r"[\w-]+", line)[0] for line in lines if line and not line.startswith("#")}
    table = re.findall(r"^\| `([\w.-]+)` \| \S+ \| (\S.*) \|$", (ROOT / "docs" / "licences.md").read_text(), re.M)
    # Where there is no wheel of tensorflow-cpu, tensorflow is needed instead.
    assert needed - {"tensorflow"} <= {name for name, _ in table}


def test_the_site_builds_without_a_warning(tmp_path):
    for module in ("sphinx", "myst_nb", "furo"):
        pytest.importorskip(module, reason="the site needs the extra docs")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Segmenter" in (tmp_path / "site" / "api.html").read_text()
    linked = re.findall(r"\]\((\w+\.html)\)", (tmp_path / "site" / "llms.txt").read_text())
    assert linked
    assert all((tmp_path / "site" / name).exists() for name in linked)
