"""Prints the table of docs/licences.md: the run-time requirements of the package, as the installed packages state them.

python docs/licence_table.py
"""

import importlib.metadata
import re
from collections.abc import Iterable

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def table(root: str) -> str:
    """A row for each direct or indirect requirement of `root`, without extras."""
    needed = closure(root)
    rows = [("package", "version", "licence"), ("---", "---", "---")]
    rows += [(f"`{name}`", importlib.metadata.version(name), licence(name)) for name in sorted(needed - {root})]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def closure(root: str) -> set[str]:
    """The names of all direct and indirect requirements of a package, and its own."""
    found, waiting = set(), [(root, "")]
    seen = set()
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        found.add(name)
        waiting += requirements(name, extra)
    return found


def requirements(name: str, extra: str) -> Iterable[tuple[str, str]]:
    """The requirements of a package on this machine: each without extras, and with each extra that it asks for."""
    for line in importlib.metadata.requires(name) or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            for wanted in ("", *requirement.extras):
                yield canonicalize_name(requirement.name), wanted


def licence(name: str) -> str:
    """The SPDX expression of a package if it has one, else its classifiers or its licence text."""
    about = importlib.metadata.metadata(name)
    if about["License-Expression"]:
        return about["License-Expression"]
    classifiers = [line.split(" :: ")[-1] for line in about.get_all("Classifier", ()) if line.startswith("License ::")]
    classifiers = [line for line in classifiers if line != "OSI Approved"]
    text = re.sub(r"\s+", " ", (about["License"] or "").strip().partition("\n")[0])
    return ", ".join(classifiers) or text or "not stated"


if __name__ == "__main__":
    print(table("maskformer-jax"))
