"""Formulas become MathML, which browsers draw without a script, in a font that lies in the site.

Formulas in the text, x_t or p^{1/τ}, get their raised and lowered letters.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import ziamath
from docutils import nodes
from fontTools import subset
from math_core import LatexError, LatexToMathML
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging

log = logging.getLogger(__name__)
FONT = Path(ziamath.__file__).parent / "fonts" / "STIXTwoMath-Regular.ttf"
convert = LatexToMathML().convert_with_local_state

CHARACTERS = [
    *range(0x20, 0x250), *range(0x2B0, 0x400), *range(0x2000, 0x2300), *range(0x2A00, 0x2B00),
    *range(0x1D400, 0x1D800),
]  # fmt: skip
"""What the font has in the site: Latin, Greek, marks, arrows, operators, letters of mathematics."""


def mathml(latex: str, display: bool) -> str:
    """Return a formula as MathML; ValueError where it is not understood."""
    if display and (r"\\" in latex or "&" in latex):
        latex = rf"\begin{{aligned}}{latex}\end{{aligned}}"
    try:
        return str(convert(latex, displaystyle=display))
    except LatexError as error:
        raise ValueError(f"formula not understood: {latex!r}: {error}") from error


def visit(self: Any, node: nodes.Element) -> None:
    """Write a formula, or a warning, which ends a strict build."""
    display = isinstance(node, nodes.math_block)
    try:
        text = mathml(node.astext(), display)
    except ValueError as error:
        log.warning("%s", error, location=node)
        text = f"<code>{self.encode(node.astext())}</code>"
    self.body.append(f'<div class="formula">{text}</div>' if display else text)
    raise nodes.SkipNode


SCRIPT = re.compile(
    r"(?P<base>(?<!\w)\w[\u0300-\u036f]*|[)\]‖])(?:(?P<mark>[_^])(?:\{(?P<group>[^{}]*)\}|(?P<one>\w)(?![\w_])))"
)
"""A letter of mathematics, and what is raised or lowered behind it: a letter, or a group in braces."""


def scripts(text: str) -> list[nodes.Node] | None:
    """Return text with raised and lowered letters, or None where it has none."""
    parts: list[nodes.Node] = []
    end = 0
    for found in SCRIPT.finditer(text):
        parts.append(nodes.Text(text[end : found.start()] + found["base"]))
        kind = nodes.subscript if found["mark"] == "_" else nodes.superscript
        inner = found["group"] if found["one"] is None else found["one"]
        parts.append(kind("", inner))
        end = found.end()
    return [*parts, nodes.Text(text[end:])] if parts else None


class Scripts(SphinxPostTransform):
    """Raise and lower letters in the text, outside code and marked formulas."""

    default_priority = 200

    def run(self, **arguments: Any) -> None:
        """Replace the pieces of text that have such letters."""
        apart = nodes.literal | nodes.literal_block | nodes.math | nodes.math_block | nodes.raw
        for node in list(self.document.findall(nodes.Text)):
            above = node.parent
            while above is not None and not isinstance(above, apart | addnodes.desc_signature):
                above = above.parent
            new = scripts(node.astext()) if above is None else None
            if new:
                node.parent.replace(node, new)


def write_font(app: Sphinx, error: Exception | None) -> None:
    """Put the font beside the pages."""
    if error is None:
        options = subset.Options(flavor="woff", layout_features=["ssty", "ccmp"], hinting=False)
        font = subset.load_font(str(FONT), options)
        chosen = subset.Subsetter(options)
        chosen.populate(unicodes=CHARACTERS)
        chosen.subset(font)
        subset.save_font(font, str(Path(app.outdir) / "_static" / "math.woff"), options)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register as the renderer of formulas."""
    app.add_html_math_renderer("mathml", (visit, None), (visit, None))
    app.config.html_math_renderer = "mathml"
    app.add_post_transform(Scripts)
    app.connect("build-finished", write_font)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
