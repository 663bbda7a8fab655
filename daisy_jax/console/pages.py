"""A Markdown report as one HTML file with its pictures inside."""

import base64
import html
import pathlib

from daisy_jax.reporting import printable
from daisy_jax.whole_files import whole_files

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""For a browser: a page loads nothing from elsewhere and runs nothing."""
MARKS = "`*_[]<>|&"
"""What begins something in Markdown inside a line, beside the backslash."""
STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
       max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; margin: 2rem 0 0.6rem; }
h2 { border-bottom: 1px solid #ccc; padding-bottom: 0.2rem; }
img { max-width: 100%; height: auto; display: block; margin: 1rem 0; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid #ddd; white-space: nowrap; }
th { border-bottom: 2px solid #888; vertical-align: bottom; text-align: left; }
tbody tr:hover { background: #f3f6fa; }
code { background: #f2f2f2; padding: 0 0.2em; }
"""


def html_page(title: str, markdown: str, folder: pathlib.Path, pictures: list[str]) -> str:
    """A whole page that needs no other file.

    Args:
      title: of the page.
      markdown: its text, with tables.
      folder: where the pictures are.
      pictures: names of PNG files that the text shows.
    """
    from markdown_it import MarkdownIt

    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    # No link to elsewhere; pictures come in afterwards, as reading them as Markdown takes seconds.
    reader.validateLink = lambda url: url.startswith("#") or url in pictures  # type: ignore[method-assign]
    body = reader.render(markdown)
    for name in pictures:
        data = base64.b64encode((folder / name).read_bytes()).decode("ascii")
        body = body.replace(f'<img src="{name}"', f'<img src="data:image/png;base64,{data}"')
    body = body.replace("<table>", '<div class="table"><table>')
    body = body.replace("</table>", "</table></div>")
    return html_document(title, STYLE, body, POLICY)


def write_report(folder: pathlib.Path, title: str, markdown: str, pictures: list[str]) -> None:
    """Writes report.md and report.html, both or neither; arguments as of `html_page`."""
    page = html_page(title, markdown, folder, pictures)
    with whole_files(folder / "report.md", folder / "report.html") as (text, html):
        text.write_text(markdown, encoding="utf-8")
        html.write_text(page, encoding="utf-8")


def html_document(title: str, style: str, body: str, policy: str) -> str:
    """A whole page around its body, of which a browser loads what `policy` lets it."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{html.escape(title)}</title>\n<style>{style}</style>\n</head>\n"
        f"<body>\n{body}</body>\n</html>\n"
    )


def escaped(text: str) -> str:
    """A name that is nothing but text in Markdown, whatever it holds."""
    return "".join(f"\\{c}" if c in MARKS else c for c in printable(text).replace("\\", "\\\\"))


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table: the first column is text, the others numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return ["", *(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines), ""]


def ranges(numbers: list[int]) -> str:
    """Rising numbers in words: "3", "3 to 5", or "3, 5, 6" where there are gaps."""
    first, last = numbers[0], numbers[-1]
    if len(numbers) < last - first + 1:
        return ", ".join(map(str, numbers))
    return f"{first} to {last}" if len(numbers) > 1 else f"{first}"


def _cell(text: str) -> str:
    return escaped(text.replace("\n", " "))
