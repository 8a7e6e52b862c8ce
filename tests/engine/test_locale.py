"""Locales whose encoding is not UTF-8, and masks of permissions: files are the same, and printing does not fail."""

import ast
import json
import os
import stat
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.engine.other_locale import NAMES
from tests.input_pipeline.folders import write_folder

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # what Python has for C without its own remedies
SOURCES = [*(ROOT / "maskformer_jax").rglob("*.py"), *(ROOT / "data").rglob("*.py"), ROOT / "main.py"]


def test_files_are_utf_8_and_readable_for_the_group_in_an_ascii_locale(tmp_path):
    folder = write_folder(tmp_path / "mine", train=1, val=1)
    (folder / "classes.json").write_text(json.dumps({"names": NAMES}, ensure_ascii=False), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.other_locale", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, **ASCII},
        umask=0o027,
        capture_output=True,
        check=False,
    )
    told, errors = done.stdout.decode("ascii"), done.stderr.decode("ascii", "replace")
    assert done.returncode == 0, errors
    assert "encoding ANSI_X3.4-1968" in told or "encoding US-ASCII" in told
    assert "note: this locale encodes the names of files as ascii" in errors
    assert r"stra\xdfe" in told
    (result,) = [line.removeprefix("RESULT ") for line in told.splitlines() if line.startswith("RESULT ")]
    assert json.loads(result) == {"described": list(NAMES), "ids": "000"}
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert set(json.loads(line)) == {"step", *(f"iou/{name}" for name in NAMES)}
    for made in ("tfds", "run", "results"):
        for path in (tmp_path / made).rglob("*"):
            if path.is_file() and not path.name.startswith("."):
                assert stat.S_IMODE(path.stat().st_mode) == 0o640, path


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_text_is_read_and_written_as_utf_8(path):
    """`epath` always does; `open` and `pathlib` follow the locale."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        of_path = isinstance(call.func, ast.Attribute) and call.func.attr in ("open", "read_text", "write_text")
        owner = ast.unparse(call.func.value) if of_path else ""
        of_path = of_path and "pathlib" in imported and owner not in ("os", "Image", "self")
        if of_path or ast.unparse(call.func) == "open":
            texts = {argument.value for argument in ast.walk(call) if isinstance(argument, ast.Constant)}
            named = any(keyword.arg == "encoding" for keyword in call.keywords)
            assert named or texts & {"rb", "wb", "ab", "xb", "r+b"}, f"line {call.lineno}: {ast.unparse(call)}"
