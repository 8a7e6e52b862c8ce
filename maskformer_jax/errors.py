"""The one kind of error that is the user's to mend; anything else is a defect and keeps its traceback."""

import contextlib
from collections.abc import Iterator


class UserError(ValueError):
    """Settings or files that cannot work. The message names them, what was found, and the cure."""


@contextlib.contextmanager
def naming(where: object, cure: str = "") -> Iterator[None]:
    """Turns whatever goes wrong while a file of the user is read into a UserError that says where.

    Libraries raise errors of any type for damaged files, without the name of the file. A UserError passes unchanged: it
    names its place already.

    Args:
        where: the file or entry, and what it was taken for.
        cure: what to change, a sentence.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{where} ({_described(error)}). {cure}".strip()) from error


def _described(error: Exception) -> str:
    text = " ".join(str(error).split())[:500]
    if isinstance(error, OSError) and error.strerror:  # without the path, which `where` has
        return error.strerror
    return text if isinstance(error, OSError | SyntaxError) and text else f"{type(error).__name__}: {text}"
