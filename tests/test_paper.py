"""The map of the paper cannot rot: every equation has one home, and docs/paper.md names it."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
CLAIM = re.compile(r"Paper: eq\. \((\d)\)")
PLACE = re.compile(r"`([\w/]+\.py)`(?:: ((?:`\w+`(?:, | \([^)]*\)(?:, )?)?)+))?")


def claims():
    """(equation, file, function) of every docstring that claims an equation."""
    found = []
    for path in sorted((ROOT / "daisy_jax").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for match in CLAIM.finditer(text):
            function = re.findall(r"^def (\w+)", text[: match.start()], re.MULTILINE)[-1]
            found.append((int(match[1]), str(path.relative_to(ROOT)), function))
    return found


def test_each_equation_is_claimed_by_exactly_one_function():
    assert sorted(equation for equation, _, _ in claims()) == [1, 2, 3, 4]


@pytest.mark.parametrize(("equation", "file", "function"), claims())
def test_the_map_names_the_function_of_each_equation(equation, file, function):
    text = (ROOT / "docs/paper.md").read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith(f"| ({equation}) "))
    assert f"`{file}`" in row
    assert f"`{function}`" in row


def test_every_place_that_the_map_names_exists():
    text = (ROOT / "docs/paper.md").read_text(encoding="utf-8")
    places = PLACE.findall(text)
    assert len(places) > 10
    for file, names in places:
        source = (ROOT / file).read_text(encoding="utf-8")
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^(def|class) {name}\b", source, re.MULTILINE), f"{file}: {name}"
