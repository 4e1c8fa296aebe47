"""Pages to explore a score, made by the command of the library and put into the site."""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx

from gradlogp.interfaces.cli import main

SHOWN = {
    "mixture": "two Gaussians",
    "moons": "two half circles",
    "circle": "a circle, whose score has a normal and a tangent part",
    "ring": "a ring, as a table",
}
"""What `gradlogp explore` shows, and what that is."""


def link(app: Sphinx, page: str, text: list[str]) -> None:
    """Link them from the page that says what they are, below its introduction."""
    if page == "explore":
        links = [
            f'<a href="explorer/{name}.html">{name}</a> ({what})' for name, what in SHOWN.items()
        ]
        before, mark, after = text[0].partition("\n```bash")
        text[0] = f"{before}\n<p>Try it here: {', '.join(links)}.</p>\n{mark}{after}"


def embed(app: Sphinx, page: str, text: list[str]) -> None:
    """Put an explorer where a page says so: `<!-- explorer: mixture.html?loss -->`."""
    frame = (
        '<iframe class="explorer" src="explorer/\\1" loading="lazy" title="explorer: \\1"></iframe>\n'
        '<p><a href="explorer/\\1">The explorer on a page of its own</a></p>'
    )
    text[0] = re.sub(r"<!-- explorer: (\S+) -->", frame, text[0])


def write(app: Sphinx, error: Exception | None) -> None:
    """Write the pages beside those of the site."""
    if error is None:
        folder = Path(app.outdir) / "explorer"
        folder.mkdir(exist_ok=True)
        for name in SHOWN:
            code = main(
                ["explore", name, "--out", str(folder / f"{name}.html"), "--force", "--quiet"]
            )
            if code:
                raise RuntimeError(f"gradlogp explore {name} ended with {code}")


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("source-read", link)
    app.connect("source-read", embed)
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
