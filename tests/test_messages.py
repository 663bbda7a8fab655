"""Errors that people see: each names what it is about, and none is more than a line."""

import ast
import pathlib

import pytest

PROJECT = pathlib.Path(__file__).parents[1]
PLACES = sorted(
    path
    for pattern in ("daisy_jax/**/*.py", "train/*.py", "eval/*.py", "conversions/*.py")
    for path in PROJECT.glob(pattern)
)
ERRORS = {"InputError", "OSError", "FileNotFoundError"}
NAMED_BY_THE_CALLER = {"daisy_jax/conversions": "`read_source` puts the checkpoint in front"}
"""Rooms whose errors get the name of what they are about on their way out."""


def raised(tree):
    """Every error with a message."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            name = getattr(node.exc.func, "id", "")
            if name in ERRORS and node.exc.args:
                yield node


def arguments():
    """Names of all parameters and fields, which is what callers know."""
    for path in PLACES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.arg):
                yield node.arg
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                yield node.target.id


ARGUMENTS = set(arguments())


def texts(node):
    """What stands in quotes in an error's arguments."""
    parts = [part for argument in node.exc.args for part in ast.walk(argument)]
    return [p.value for p in parts if isinstance(p, ast.Constant) and isinstance(p.value, str)]


def names_something(node):
    """Whether a message holds a value or an option, or begins with an argument or a word for one.

    FILES and the like are how --help calls what has no option.
    """
    kinds = (ast.FormattedValue, ast.Name, ast.Attribute, ast.Call)
    if any(isinstance(p, kinds) for argument in node.exc.args for p in ast.walk(argument)):
        return True
    text = " ".join(texts(node))
    first = text.split()[0].rstrip(":")
    return "--" in text or first.isupper() or first in ARGUMENTS


@pytest.mark.parametrize("path", PLACES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_every_error_names_what_it_is_about(path):
    place = str(path.relative_to(PROJECT))
    by_caller = any(place.startswith(room) for room in NAMED_BY_THE_CALLER)
    for node in raised(ast.parse(path.read_text(encoding="utf-8"))):
        where = f"{place}:{node.lineno}: {' '.join(texts(node))}"
        assert by_caller or names_something(node), where
        assert not any("\n" in text for text in texts(node)), where


def test_the_check_sees_what_it_is_made_for():
    for text, good in (
        ("'no branches; train them'", False),
        ("'this model has no branches'", False),
        ("f'{path}: gone'", True),
        ("'--data: gone'", True),
        ("'allowed is empty'", True),
        ("'FILES: none'", True),
        ("text", True),
    ):
        (node,) = raised(ast.parse(f"raise InputError({text})"))
        assert names_something(node) == good, text
