"""The pictures of the gallery, made by running its code, below the blocks that make them."""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path

import torch
from sphinx.application import Sphinx

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MADE = re.compile(r'"(\w+\.(?:png|gif))"')
LEAST = 15_000
"""Bytes of a picture with something to see."""


def draw(app: Sphinx) -> None:
    """Run the page in the folder of its pictures."""
    page = Path(app.srcdir) / "gallery.md"
    folder = page.with_name("gallery")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    names: dict[str, object] = {"__name__": "gallery"}
    state = torch.random.get_rng_state()
    text = page.read_text(encoding="utf-8")
    with contextlib.chdir(folder):
        for code in BLOCK.findall(text):
            exec(compile(code, str(page), "exec", dont_inherit=True), names)
    torch.random.set_rng_state(state)
    for name in MADE.findall(text):
        path = folder / name
        if not path.exists() or path.stat().st_size < LEAST:
            raise ValueError(f"{name} of the gallery is missing, or there is nothing to see")


def put(app: Sphinx, page: str, text: list[str]) -> None:
    """Put each picture below its code."""
    if page == "gallery":

        def shown(match: re.Match[str]) -> str:
            made = MADE.findall(match[1])
            before = text[0][: match.start()]
            title = re.findall(r"^## (.+)$", before, re.MULTILINE)
            return match[0] + "".join(f"\n\n![{title[-1]}](gallery/{name})" for name in made)

        text[0] = BLOCK.sub(shown, text[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("builder-inited", draw)
    app.connect("source-read", put)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
