"""What every program does with errors, interrupts and streams."""

import errno
import os
import pathlib
import subprocess
import sys
import tempfile

import pytest

from maskformer_jax import convert, programs
from maskformer_jax.errors import UserError
from tests.conftest import ROOT
from tests.samples import slow

PROGRAM = """
import os, signal, sys
from maskformer_jax import convert, programs
from maskformer_jax.errors import UserError
@programs.reporting
def main():
    {body}
sys.exit(main())
"""


def run(body: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", PROGRAM.format(body=body)]
    options = {"stdout": subprocess.PIPE, **options, "env": {**os.environ, **options.get("env", {})}}
    options |= {"stderr": subprocess.PIPE, "text": True, "errors": "replace", "cwd": ROOT}
    return subprocess.run(command, check=False, **options)


def raising(error: BaseException):
    @programs.reporting
    def main():
        raise error

    return main


def test_results_and_exit_statuses_pass_through():
    assert programs.reporting(lambda argv=None: argv)(3) == 3
    with pytest.raises(SystemExit) as caught:
        raising(SystemExit(143))()
    assert caught.value.code == 143


def test_errors_of_the_user_are_one_line_and_escaped():
    with pytest.raises(SystemExit, match=r"^error: \\x1b\[31m caf\\udce9$"):
        raising(UserError("\x1b[31m " + os.fsdecode(b"caf\xe9")))()


def test_errors_of_a_disk_name_file_and_reason():
    with pytest.raises(SystemExit, match=r"^error: /x/y: the disk is full \(No space left on device\)$"):
        raising(OSError(errno.ENOSPC, "", "/x/y"))()


@pytest.mark.parametrize(
    "defect", [KeyError("x"), FileNotFoundError(errno.ENOENT, "", "/no/such"), OSError(errno.EINVAL, "of a socket")]
)
def test_defects_keep_their_traceback(defect):
    with pytest.raises(type(defect)) as caught:
        raising(defect)()
    assert caught.value is defect


def test_an_interrupt_has_its_status_and_no_traceback():
    # Shells let programs in the background, and nohup, ignore it; so may the shell that runs these tests.
    interrupt = "signal.signal(signal.SIGINT, signal.default_int_handler); signal.raise_signal(signal.SIGINT)"
    done = run(interrupt)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_a_closed_pipe_is_quiet():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        assert run("print('text')", stdout=pipe).stderr == ""


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="no /dev/full")
def test_an_output_that_cannot_be_written_is_named():
    with open("/dev/full", "w") as full:
        done = run("print('text')", stdout=full)
    assert done.returncode == 1
    assert done.stderr == "error: the output of this program: the disk is full (No space left on device)\n"


def test_without_any_folder_for_temporary_files_the_variable_is_named(monkeypatch):
    """A full or read-only /tmp, and a TMPDIR that does not exist."""

    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/full", "/missing"])
    main = programs.reporting(lambda: tempfile.mkdtemp(prefix="x"))
    with pytest.raises(SystemExit, match=r"error: No usable temporary directory .*/full.*: set TMPDIR to a folder"):
        main()


@pytest.mark.parametrize(
    "encoding", ["ascii:strict", slow("ascii:surrogateescape"), slow("latin-1:strict"), "utf-8:strict"]
)
def test_printing_never_fails(encoding):
    done = run(r"print('caf\u00e9 \u732b', os.fsdecode(b'\xff'))", env={"PYTHONIOENCODING": encoding})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("caf")


@pytest.mark.parametrize("exists", [True, False])
def test_convert_leaves_nothing_of_a_model_that_cannot_be_written(tmp_path, monkeypatch, exists):
    def save(segmenter, folder, target, dtype):
        (pathlib.Path(folder) / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(convert, "load", lambda source, base: None)
    monkeypatch.setattr(convert, "save", save)
    if exists:
        (tmp_path / "new").mkdir()
    with pytest.raises(SystemExit, match=r"^error: .*/new cannot be written: the disk is full"):
        convert.main(["--from=x", f"--to={tmp_path / 'new'}", "--format=huggingface"])
    assert [path.name for path in tmp_path.rglob("*")] == ["new"] * exists
