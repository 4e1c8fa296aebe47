"""A report: one HTML file that needs nothing from outside, the figures beside it, the numbers too.

Every figure is drawn for light and for dark pages and the reader's setting picks one. The page
holds the figures itself, so it can be mailed; `numbers.json` is for programs.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from .plots import (
    DARK,
    LIGHT,
    Figure,
    Theme,
    png,
)

Draw = Callable[[Theme], Figure]
"""A figure in a theme."""

_DPI = 192  # two pixels for each pixel of the page


class Row(NamedTuple):
    """A line of a table: a number, what it could be at best, and whether that is good enough."""

    name: str
    value: float | str
    standard_error: float | None = None
    floor: float | None = None
    floor_error: float | None = None
    verdict: bool | None = None
    note: str = ""


class Section(NamedTuple):
    """A part of a report: plain paragraphs, separated by blank lines, then figures, then rows.

    A figure is (file stem, caption, function of the theme).
    """

    title: str
    text: str = ""
    figures: tuple[tuple[str, str, Draw], ...] = ()
    rows: tuple[Row, ...] = ()


def _power(exponent: int) -> str:
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def format_value(value: float | int | str, standard_error: float | int | None = None) -> str:
    """Write a number with the digits that its standard error allows: two of the error's.

    Without a usable error: four digits, or all of an integer. Powers of ten come in where plain
    digits would be many. Text is returned as it is.

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


def _table(rows: Sequence[Row]) -> str:
    """Return the rows as an HTML table; columns that would be empty are left out."""
    floors = any(row.floor is not None for row in rows)
    verdicts = any(row.verdict is not None for row in rows)
    head = (
        '<th scope="col">quantity</th><th scope="col" class="number">value ± standard error</th>'
    )
    if floors:
        head += '<th scope="col" class="number">floor<small>two independent real sets</small></th>'
    if verdicts:
        head += '<th scope="col">verdict</th>'
    marks = {
        True: '<td class="pass">✓ passes</td>',
        False: '<td class="fail">✗ fails</td>',
        None: '<td class="none">–</td>',
    }
    lines = []
    for row in rows:
        note = f"<small>{escape(row.note)}</small>" if row.note else ""
        value = escape(format_value(row.value, row.standard_error))
        line = f'<th scope="row">{escape(row.name)}{note}</th><td class="number">{value}</td>'
        if floors:
            floor = "–" if row.floor is None else format_value(row.floor, row.floor_error)
            line += f'<td class="number">{floor}</td>'
        lines.append(f"<tr>{line}{marks[row.verdict] if verdicts else ''}</tr>\n")
    body = "".join(lines)
    return (
        f'<div class="table"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody>\n</table></div>\n"
    )


def _picture(caption: str, light: bytes, dark: bytes) -> str:
    """Return a figure that follows the reader's colour scheme."""
    width, height = (v * 96 // _DPI for v in struct.unpack(">II", light[16:24]))
    source, fallback = (
        f"data:image/png;base64,{b64encode(data).decode('ascii')}" for data in (dark, light)
    )
    text = escape(caption)
    return (
        f'<figure style="--width: {width}px">\n<div class="frame"><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="{source}">'
        f'<img src="{fallback}" alt="{text}" width="{width}" height="{height}">'
        f"</picture></div>\n"
        f"<figcaption>{text}</figcaption>\n</figure>\n"
    )


def _paragraphs(text: str, kind: str = "") -> str:
    parts = (part.strip() for part in re.split(r"\n\s*\n", text))
    return "".join(f"<p{kind}>{escape(part)}</p>\n" for part in parts if part)


def _tally(rows: Sequence[Row]) -> str:
    verdicts = [row.verdict for row in rows if row.verdict is not None]
    if not verdicts:
        return ""
    good = all(verdicts)
    text = f"{'✓' if good else '✗'} {sum(verdicts)} of {len(verdicts)} checks pass"
    return f'<p class="tally {"pass" if good else "fail"}">{text}</p>\n'


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


def _replace_all(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write every file under a temporary name, then rename them all in the order given."""
    waiting = {name: directory / f".{name}.{os.getpid()}.tmp" for name in files}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            waiting[name].write_bytes(data)
        for name, temporary in waiting.items():
            os.replace(temporary, directory / name)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"cannot write the report to {directory}: {reason}") from error
    finally:
        for temporary in waiting.values():
            if directory.is_dir():
                temporary.unlink(missing_ok=True)


def write(
    directory: Path | str,
    title: str,
    lead: str,
    sections: Sequence[Section],
    provenance: Mapping[str, str],
) -> Path:
    """Write `index.html`, `numbers.json` and the figures `stem.png` and `stem-dark.png`.

    Everything is drawn before anything is written, and `index.html` comes last: a report that is
    there is whole.

    Arguments:
        directory: Where to; made if it does not exist.
        title: Title of the page.
        lead: What was done and what came out, in a sentence or two.
        sections: The parts.
        provenance: What was run and on what: command, seed, versions, hardware, timings.

    Returns:
        The path of `index.html`.

    Raises:
        ValueError: If two figures have one stem, or a stem is no plain file name.
        OSError: If the directory cannot be written to.
    """
    directory = Path(directory)
    stems = [stem for section in sections for stem, _, _ in section.figures]
    bad = [s for s in stems if not re.fullmatch(r"\w[\w.-]*", s) or s.endswith("-dark")]
    if bad or len(set(stems)) < len(stems):
        raise ValueError(
            "file stems must differ, be letters, digits, '.', '_' or '-', and not end in '-dark'; "
            f"got {', '.join(map(repr, bad or stems))}"
        )
    files: dict[str, bytes] = {}
    body = []
    for section in sections:
        body.append(f"<section>\n<h2>{escape(section.title)}</h2>\n{_paragraphs(section.text)}")
        body.append('<div class="figures">\n' if section.figures else "")
        for stem, caption, draw in section.figures:
            light, dark = (png(draw(theme), _DPI) for theme in (LIGHT, DARK))
            files |= {f"{stem}.png": light, f"{stem}-dark.png": dark}
            body.append(_picture(caption, light, dark))
        body.append("</div>\n" if section.figures else "")
        body.append((_table(section.rows) if section.rows else "") + "</section>\n")
    style = resources.files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    facts = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>\n" for k, v in provenance.items())
    opening = _paragraphs(lead, ' class="lead"')
    tally = _tally([row for section in sections for row in section.rows])
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<header>\n<h1>{escape(title)}</h1>\n{opening}{tally}</header>\n"
        f"<main>\n{''.join(body)}</main>\n"
        f"<details>\n<summary>What was run and on what</summary>\n<dl>\n{facts}</dl>\n</details>\n"
        "<footer>Made by gradlogp. The figures and numbers.json lie beside this page.</footer>\n"
        "</body>\n</html>\n"
    )
    files["numbers.json"] = _numbers(title, sections, provenance).encode()
    files["index.html"] = page.encode()
    _replace_all(directory, files)
    return directory / "index.html"
