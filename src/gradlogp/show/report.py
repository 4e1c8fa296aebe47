"""A report: one self-contained HTML file, with the figures and the numbers beside it.

Every figure is drawn for light and for dark pages, and the reader's setting selects one. The page
contains its figures, so it can be mailed; `numbers.json` is for programs.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import struct
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core.files import write_files

if TYPE_CHECKING:
    from .plots import Figure

Draw = Callable[..., "Figure"]
"""draw(theme=…) -> a figure in that theme."""

_DPI = 192  # two pixels for each pixel of the page


class Row(NamedTuple):
    """A table row: a number, the best possible value, and whether it is good enough."""

    name: str
    value: float | str
    standard_error: float | None = None
    floor: float | None = None
    floor_error: float | None = None
    verdict: bool | None = None
    note: str = ""


class Section(NamedTuple):
    """A part of a report: plain paragraphs, separated by blank lines, then figures, then rows.

    A figure is (file stem, caption, function of `theme=`), a page (file stem, caption, function
    that writes it to a path): it is shown inside the report, and is a file beside it.
    """

    title: str
    text: str = ""
    figures: tuple[tuple[str, str, Draw], ...] = ()
    rows: tuple[Row, ...] = ()
    pages: tuple[tuple[str, str, Callable[[Path], object]], ...] = ()


def _power(exponent: int) -> str:
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def format_value(value: float | int | str, standard_error: float | int | None = None) -> str:
    """Write a number with the digits that its standard error allows: two of the error's.

    Without a usable error: four digits, or all digits of an integer. Long numbers are written with
    a power of ten. Text is returned as it is.

    Examples:
        >>> format_value(-1.74312, 0.0213)
        '−1.743 ± 0.021'
        >>> format_value(3.2e-7, 4e-8)
        '(3.20 ± 0.40) × 10⁻⁷'
    """
    if isinstance(value, str):
        return value
    error = 0.0 if standard_error is None else float(standard_error)
    if math.isfinite(value) and 0 < error < math.inf:
        size = math.floor(math.log10(max(abs(value), error)))
        shift = size if size < -4 or (size >= 6 and error >= 1000) else 0
        error, value = float(f"{error:.1e}") * 10.0**-shift, value * 10.0**-shift
        digits = max(0, 1 - math.floor(math.log10(error) + 1e-9))
        # 0.0 + x: no negative zero
        text = f"{0.0 + round(value, digits):.{digits}f} ± {error:.{digits}f}"
        text = f"({text}) × {_power(shift)}" if shift else text
    else:
        text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
        mantissa, _, exponent = text.partition("e")
        text = f"{mantissa} × {_power(int(exponent))}" if exponent else text
        text += "" if standard_error is None else f" ± {error:g}"
    return text.replace("-", "−")


def _picture(light: bytes, dark: bytes) -> dict[str, str | int]:
    """Return a figure in both themes as links that hold it, and its size on the page."""
    width, height = (v * 96 // _DPI for v in struct.unpack(">II", light[16:24]))
    source, fallback = (
        f"data:image/png;base64,{b64encode(data).decode('ascii')}" for data in (dark, light)
    )
    return {"dark": source, "light": fallback, "width": width, "height": height}


def _paragraphs(text: str) -> list[str]:
    parts = (part.strip() for part in re.split(r"\n\s*\n", text))
    return [part for part in parts if part]


def fill_page(stem: str, *files: str, **parts: Any) -> str:
    """Fill a template beside this file, with more style and scripts from files there.

    Everything is escaped but what the template calls safe.
    """
    from jinja2 import Environment, StrictUndefined

    text = lambda name: resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    template, style = text(f"{stem}.html.j2"), text("report.css")
    if files:
        parts |= {"more": text(files[0]), "scripts": [*map(text, files[1:])]}
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["digits"] = format_value
    environment.filters["paragraphs"] = _paragraphs
    return environment.from_string(template).render(style=style, **parts)


def _json_value(value: Any) -> Any:
    """Return the value; numbers that JSON does not know become text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(title: str, sections: Sequence[Section], provenance: Mapping[str, str]) -> str:
    rows = [
        {"section": s.title, **{k: _json_value(v) for k, v in row._asdict().items()}}
        for s in sections
        for row in s.rows
    ]
    whole = {"title": title, "provenance": dict(provenance), "rows": rows}
    return json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def provenance(began: float, **facts: object) -> dict[str, str]:
    """Return what was run and on what, for a run that began at that `time.perf_counter()`."""
    import torch

    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU(s)"
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        **{key.replace("_", " "): str(value) for key, value in facts.items()},
        "time taken": f"{time.perf_counter() - began:.0f} s",
        "finished": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": f"{machine}, {torch.get_num_threads()} PyTorch thread(s)",
        "versions": f"gradlogp {version('gradlogp')}, PyTorch {torch.__version__}, "
        f"Python {platform.python_version()}",
    }


def write(
    directory: Path | str,
    title: str,
    lead: str,
    sections: Sequence[Section],
    provenance: Mapping[str, str],
) -> Path:
    """Write `index.html`, `numbers.json`, the figures `stem.png`, `stem-dark.png` and the pages.

    Everything is drawn before anything is written, and `index.html` is written last, so that an
    existing report is complete.

    Arguments:
        directory: The folder; created if it does not exist.
        title: Title of the page.
        lead: What was done and the result, in a sentence or two.
        sections: The parts.
        provenance: What was run and on what: command, seed, versions, hardware, timings.

    Returns:
        The path of `index.html`.

    Raises:
        ValueError: If two figures have the same stem, or a stem is not a plain file name.
        OSError: If the directory cannot be written to.
    """
    from .plots import DARK, LIGHT, png

    directory = Path(directory)
    stems = [stem for section in sections for stem, _, _ in (*section.figures, *section.pages)]
    bad = [s for s in stems if not re.fullmatch(r"\w[\w.-]*", s) or s.endswith("-dark")]
    if bad or len(set(stems)) < len(stems):
        raise ValueError(
            "file stems must differ, be letters, digits, '.', '_' or '-', and not end in '-dark'; "
            f"got {', '.join(map(repr, bad or stems))}"
        )
    files: dict[str, bytes] = {}
    pictures = {}
    for stem, _, draw in (figure for section in sections for figure in section.figures):
        light, dark = (png(draw(theme=theme), _DPI) for theme in (LIGHT, DARK))
        files |= {f"{stem}.png": light, f"{stem}-dark.png": dark}
        pictures[stem] = _picture(light, dark)
    pages = {}
    with TemporaryDirectory() as folder:
        for stem, _, make in (page for section in sections for page in section.pages):
            make(Path(folder) / f"{stem}.html")
            pages[stem] = (Path(folder) / f"{stem}.html").read_text(encoding="utf-8")
            files[f"{stem}.html"] = pages[stem].encode()
    verdicts = [row.verdict for section in sections for row in section.rows]
    page = fill_page(
        "report", title=title, lead=lead, sections=sections, pictures=pictures, pages=pages,
        provenance=provenance, verdicts=[verdict for verdict in verdicts if verdict is not None],
    )  # fmt: skip
    files["numbers.json"] = _numbers(title, sections, provenance).encode()
    files["index.html"] = page.encode()
    try:
        write_files({directory / name: content for name, content in files.items()})
    except OSError as error:
        why = error.__cause__ or error
        reason = getattr(why, "strerror", None) or str(why)
        raise OSError(f"cannot write the report to {directory}: {reason}") from error
    return directory / "index.html"
