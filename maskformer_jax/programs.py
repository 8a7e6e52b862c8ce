"""What all programs do at their boundary: errors of the user's in one line, interrupts without a traceback."""

import argparse
import contextlib
import errno
import functools
import io
import os
import re
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from maskformer_jax.errors import UserError
from maskformer_jax.files import paths, writing

INTERRUPTED = 130  # exit status after Ctrl-C: 128 and the number of SIGINT, as shells have it
_P, _R = ParamSpec("_P"), TypeVar("_R")


def reporting(main: Callable[_P, _R]) -> Callable[_P, _R]:
    """Makes a function the main function of a program.

    A UserError, or an OSError of a full disk, missing permission or the like, exits with status 1 and a message that
    starts with "error:". Ctrl-C exits with status 130, and a closed pipe (`program | head`) quietly. Anything else is
    a defect and keeps its traceback. Printing never fails because of the terminal's encoding.
    """

    @functools.wraps(main)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        _accept_all_text()
        try:
            result = main(*args, **kwargs)
            sys.stdout.flush()  # here, so that its errors are reported in the same way
        except UserError as error:
            sys.exit(f"error: {paths.printable(error)}")
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(INTERRUPTED)
        except BrokenPipeError:
            _discard_stdout()
            sys.exit(1)
        except OSError as error:
            if "temporary directory" in str(error):  # of `tempfile`, which names the folders that it tried
                sys.exit(f"error: {error.strerror}: set TMPDIR to a folder that can be written")
            why, file = writing.reason(error), error.filename
            # A missing file that nobody expected, or a socket, is a defect.
            if not why or error.errno == errno.ENOENT or (file is None and error.errno not in writing.DISK):
                raise
            if file is None:
                _discard_stdout()  # which cannot be written; Python flushes it again at the end
            sys.exit(f"error: {paths.printable('the output of this program' if file is None else file)}: {why}")
        return result

    return run


def size_of(text: str) -> tuple[int, int]:
    """The type of a flag that is a height and a width, HxW."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text} is not a height and width such as 512x683")
    return int(match[1]), int(match[2])


def _accept_all_text() -> None:
    """Lets stdout escape what its encoding lacks, as stderr does, and says if names of files may be misread."""
    # "surrogateescape", of the C locale, fails for every letter that is not ASCII.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors="backslashreplace")
    if sys.getfilesystemencoding().lower() not in ("utf-8", "utf8"):
        print(
            f"note: this locale encodes the names of files as {sys.getfilesystemencoding()}, so some may not be found. "
            "Set PYTHONUTF8=1.",
            file=sys.stderr,
        )


def _discard_stdout() -> None:
    """Directs stdout to nowhere, so that Python does not report the same error again when it ends."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a file, as in tests and notebooks
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
