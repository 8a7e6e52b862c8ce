"""The documentation site: sphinx-build -W --keep-going -b html docs OUT."""

import pathlib
import re

_PACKAGE = pathlib.Path(__file__).parent.parent / "maskformer_jax" / "__init__.py"

project = "maskformer_jax"
author = "The maskformer_jax authors"
project_copyright = author
release = re.search(r'__version__ = "(.+)"', _PACKAGE.read_text())[1]
version = release

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
# The site shows the stored outputs of notebooks; tests/test_notebooks.py runs them.
nb_execution_mode = "off"

myst_heading_anchors = 3
napoleon_numpy_docstring = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
# Longer signatures get one line per argument.
python_maximum_signature_line_length = 88

# Keeps the two hyphens of flags.
smartquotes = False

html_theme = "furo"
html_title = f"maskformer_jax {release}"
html_copy_source = False


def _write_llms(app, error) -> None:
    """Puts llms.txt, for readers that are programs, at the root of the site, with links to its pages."""
    if error is None and app.builder.name == "html":
        text = (pathlib.Path(app.srcdir).parent / "llms.txt").read_text()
        (pathlib.Path(app.outdir) / "llms.txt").write_text(re.sub(r"\]\(docs/(\w+)\.md\)", r"](\1.html)", text))


def setup(app) -> None:
    app.connect("build-finished", _write_llms)
