"""Names that others chose: on a terminal, in Markdown and in HTML they are nothing but text."""

import ast
import pathlib
import re

import pytest

from daisy_jax.console.pages import escaped, html_page, table
from daisy_jax.console.terminal import say

PROJECT = pathlib.Path(__file__).parents[1]
NAMES = (
    "a\x1b[2Jb",
    "a\nerror: faked",
    "![t](http://example.org/x.png)",
    "[t](javascript:alert(1))",
    "<script>alert(1)</script>",
    "<http://example.org>",
    "a | b",
    "**bold** _x_ `y` &amp; \\",
    "\u202eabc",
)


def rendered(markdown, tmp_path):
    pytest.importorskip("markdown_it")
    return html_page("t", markdown, tmp_path, [])


def text_of(page):
    """What a reader sees of a page's body."""
    body = page.partition("<body>")[2]
    shown = re.sub(r"<[^>]*>", "", body)
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        shown = shown.replace(entity, character)
    return shown


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_text_in_a_report(name, tmp_path):
    lines = [f"On {escaped(name)}:", *table(["rule", "value"], [[name, "1"]])]
    page = rendered("\n".join(lines), tmp_path)
    body = page.partition("<body>")[2]
    for tag in ("<img", "<a ", "<script", "<strong", "<em", "<code"):
        assert tag not in body
    shown = escaped(name).replace("\\\\", "\0")
    assert shown.replace("\\", "").replace("\0", "\\") in text_of(page)
    assert body.count("<td") == 2


def test_a_page_loads_nothing_from_elsewhere(tmp_path):
    page = rendered("![t](http://example.org/x.png) [t](http://example.org) ok", tmp_path)
    assert "default-src 'none'; img-src data:;" in page
    body = page.partition("<body>")[2]
    assert "<img" not in body
    assert "<a " not in body


@pytest.mark.parametrize("name", NAMES)
def test_nothing_that_is_said_moves_the_cursor(name, capsys):
    say(f"data: {name}")
    said = capsys.readouterr().out.replace("\n", "")
    assert said.isprintable()


def test_everything_is_said_by_one_function():
    """`print` in our programs would show control characters as they are."""
    folders = ("daisy_jax/commands", "daisy_jax/console", "train", "eval", "conversions")
    printing = []
    for folder in (*folders, "benchmarks"):
        for path in sorted((PROJECT / folder).glob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print":
                    printing.append(str(path.relative_to(PROJECT)))
    assert printing == ["daisy_jax/console/reports.py", "daisy_jax/console/terminal.py"]
