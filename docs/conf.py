"""Settings of Sphinx for `make docs`: the README, the guides, and a reference from the docstrings.

Pages are the Markdown files where they lie, so that their links work here and in the repository.
"""

import ast
import importlib.metadata
import inspect
import pathlib
import re
import shutil
import textwrap

from sphinx.application import Sphinx

project = "daisy_jax"
author = copyright = "The daisy_jax authors"
release = importlib.metadata.version("daisy-jax")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
GUIDES = [
    "tutorial",
    "corpora",
    "checkpoints",
    "training",
    "downstream",
    "noise",
    "guarantee",
    "paper",
]
PAGES = {
    "Guides": [f"docs/{name}" for name in GUIDES],
    "Reference": ["docs/reference"],
    "Project": [
        *("benchmarks/README", "daisy_jax/models/daisy-tiny/README", "daisy_jax/samples/README"),
        *("CONTRIBUTING", "CHANGELOG"),
    ],
}
include_patterns = [f"{page}.md" for pages in PAGES.values() for page in [root_doc, *pages]]
html_theme = "furo"
myst_heading_anchors = 4
default_role = "code"  # as in Markdown
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": True}
napoleon_use_rtype = False
attributes: dict[str, list[str]] = {}  # as they are written


def add_contents(app: Sphinx, page: str, source: list[str]) -> None:
    """Gives the README the table of contents, which it does not need in the repository."""
    if page == root_doc:
        for title, pages in PAGES.items():
            lines = ["```{toctree}", ":hidden:", f":caption: {title}", "", *pages, "```"]
            source[0] += "\n\n" + "\n".join(lines)


def signature_as_written(
    app: Sphinx, what: str, name: str, thing: object, options: object, signature: str, returns: str
) -> tuple[str, str] | None:
    """Types as the source has them: evaluated, an alias such as ArrayLike fills five lines.

    Classes whose fields are listed one below the other need no signature.
    """
    if what == "class":
        thing = vars(thing).get("__init__")
        if not hasattr(thing, "__code__") or thing.__code__.co_filename.startswith("<"):
            return "", ""
    elif what not in ("function", "method"):
        return None
    function = inspect.unwrap(getattr(thing, "__func__", thing))
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    arguments = ast.unparse(node.args)
    if what != "function":
        arguments = re.sub(r"^(self|cls)(, )?", "", arguments)
    returned = ast.unparse(node.returns) if node.returns and what != "class" else ""
    return f"({arguments})", returned


def examples_as_code(
    app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """What stands below "Example:" is code."""
    for number, line in enumerate(lines):
        if line.strip() == "Example:":
            lines[number] = line.replace("Example:", "Example::")
            lines.insert(number + 1, "")


def attributes_as_written(
    app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Ours may have colons, before which Napoleon would look for a type."""
    if what in ("attribute", "data"):
        lines[:] = attributes.pop(name, None) or attributes.setdefault(name, list(lines))


def copy_first_page(app: Sphinx, error: Exception | None) -> None:
    """Servers look for index.html."""
    if error is None and app.builder.format == "html":
        folder = pathlib.Path(app.outdir)
        shutil.copyfile(folder / f"{root_doc}.html", folder / "index.html")


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", add_contents)
    app.connect("autodoc-process-signature", signature_as_written)
    app.connect("autodoc-process-docstring", examples_as_code, priority=100)
    for priority in (100, 900):  # before Napoleon, and after it
        app.connect("autodoc-process-docstring", attributes_as_written, priority=priority)
    app.connect("build-finished", copy_first_page)
