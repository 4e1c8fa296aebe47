"""The report: self-contained, escaped, true to its rows, whole or not there; and progress."""

import json
import os
import pty
import re
import sys
from base64 import b64decode
from html import unescape
from html.parser import HTMLParser

import pytest

from gradlogp.show import plots, progress
from gradlogp.show.report import Row, Section, format_value, write

PROVENANCE = {"command": "gradlogp demo --seed 0", "hardware": "2 cores < 3", "seed": "0"}


def draw(theme):
    return plots.levels([1.0, 0.1], [0.1, 0.2], [0.02, 0.1], theme=theme)


ROWS = (
    Row("Fisher divergence", 0.02131, 0.00123, verdict=True, note="10,000 points & <no> more"),
    Row("accuracy", 0.5312, 0.0061, 0.5004, 0.0059, False),
    Row("copies", "0 of 500"),
    Row("ratio", float("inf"), None, float("nan"), None, None),
)
SECTIONS = (
    Section(
        "First <b>",
        "One & two.\n\nThree <script>alert('x')</script>.",
        (("one", 'A "caption" <i>', draw),),
    ),
    Section("Second", rows=ROWS),
)


class Page(HTMLParser):
    """Tags with their attributes, and the text of each cell."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.cells, self.depth = [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in {"td", "th"}:
            self.cells.append("")
            self.depth = 1

    def handle_endtag(self, tag):
        if tag in {"td", "th"}:
            self.depth = 0

    def handle_data(self, data):
        if self.depth:
            self.cells[-1] += data


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    directory = tmp_path_factory.mktemp("reports") / "new" / "report"
    path = write(directory, "Title & more", "The lead.", SECTIONS, PROVENANCE)
    assert path == directory / "index.html"
    return directory, path.read_text(encoding="utf-8")


def test_writes_the_page_the_numbers_and_two_of_each_figure(report):
    directory, _ = report
    names = {path.name for path in directory.iterdir()}
    assert names == {"index.html", "numbers.json", "one.png", "one-dark.png"}
    light, dark = ((directory / name).read_bytes() for name in ("one.png", "one-dark.png"))
    assert light == plots.png(draw(plots.LIGHT), 192)
    assert light != dark


def test_asks_for_nothing_from_outside(report):
    _, text = report
    outside = {"src", "href", "srcset", "action", "data", "poster"}
    links = [v for _, attrs in Page(text).tags for k, v in attrs.items() if k in outside]
    assert len(links) == 3
    assert all(link.startswith("data:") for link in links)
    visible = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"https?:|//|url\(|@import|<script|<link rel=\"(?!icon)", visible)


def test_figures_are_embedded_for_both_colour_schemes(report):
    directory, text = report
    tags = Page(text).tags
    (source,) = (attrs for tag, attrs in tags if tag == "source")
    (image,) = (attrs for tag, attrs in tags if tag == "img")
    assert source["media"] == "(prefers-color-scheme: dark)"
    for link, name in [(source["srcset"], "one-dark.png"), (image["src"], "one.png")]:
        assert b64decode(link.partition(",")[2]) == (directory / name).read_bytes()
    assert image["alt"] == 'A "caption" <i>'
    width, height = (round(v * 96) for v in draw(plots.LIGHT).get_size_inches())
    assert abs(int(image["width"]) - width) <= 1
    assert abs(int(image["height"]) - height) <= 1


def test_text_is_escaped(report):
    _, text = report
    for raw in ("<b>", "<script", "<i>", "<no>", "cores < 3"):
        assert raw not in text
    for shown in ("First &lt;b&gt;", "<p>One &amp; two.</p>", "Title &amp; more", "cores &lt; 3"):
        assert shown in text
    assert "alert('x')" in unescape(text)


def test_the_table_holds_every_number_with_its_error_and_verdict(report):
    cells = Page(report[1]).cells
    assert cells[:4] == [
        "verdict",
        "quantity",
        "value ± standard error",
        "floortwo independent real sets",
    ]
    rows = [cells[i : i + 4] for i in range(4, len(cells), 4)]
    assert rows == [
        ["✓ passes", "Fisher divergence10,000 points & <no> more", "0.0213 ± 0.0012", "–"],
        ["✗ fails", "accuracy", "0.5312 ± 0.0061", "0.5004 ± 0.0059"],
        ["–", "copies", "0 of 500", "–"],
        ["–", "ratio", "inf", "nan"],
    ]
    assert "✗ 1 of 2 checks pass" in report[1]


def test_columns_that_would_be_empty_are_left_out(tmp_path):
    text = write(tmp_path, "t", "", [Section("s", rows=(Row("n", 3),))], {}).read_text()
    assert Page(text).cells == ["quantity", "value ± standard error", "n", "3"]
    assert "checks pass" not in text
    assert "<p" not in text


def test_provenance_is_in_the_details(report):
    details = report[1].partition("<details>")[2]
    for key, value in PROVENANCE.items():
        assert f"<dt>{key}</dt>" in details
        assert value in unescape(details)


def test_numbers_are_the_rows(report):
    numbers = json.loads((report[0] / "numbers.json").read_text(encoding="utf-8"))
    assert numbers["title"] == "Title & more"
    assert numbers["provenance"] == PROVENANCE
    assert [row.pop("section") for row in numbers["rows"]] == ["Second"] * 4
    assert [Row(**row) for row in numbers["rows"][:3]] == list(ROWS[:3])
    assert numbers["rows"][3]["value"] == "inf"  # JSON has no such number
    assert numbers["rows"][3]["floor"] == "nan"


def fail(theme):
    if theme is plots.DARK:
        raise RuntimeError("no dark today")
    return draw(theme)


def test_a_figure_that_fails_leaves_nothing(tmp_path, bare_pictures):
    sections = [Section("a", figures=(("one", "c", draw), ("two", "c", fail)))]
    with pytest.raises(RuntimeError, match="no dark today"):
        write(tmp_path / "report", "t", "l", sections, {})
    assert not (tmp_path / "report").exists()


def test_a_figure_that_fails_leaves_the_former_report(tmp_path, bare_pictures):
    old = write(tmp_path, "old", "l", [], {}).read_text()
    with pytest.raises(RuntimeError):
        write(tmp_path, "new", "l", [Section("a", figures=(("one", "c", fail),))], {})
    assert (tmp_path / "index.html").read_text() == old
    assert {path.name for path in tmp_path.iterdir()} == {"index.html", "numbers.json"}
    write(tmp_path, "new", "l", [], {})
    assert "<h1>new</h1>" in (tmp_path / "index.html").read_text()


def test_a_directory_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("kept")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match="cannot write the report to"):
            write(place, "t", "l", SECTIONS[1:], {})
    assert (tmp_path / "file").read_text() == "kept"


def test_a_file_that_cannot_be_replaced_leaves_no_page_and_no_litter(tmp_path):
    (tmp_path / "numbers.json").mkdir()
    with pytest.raises(OSError, match="cannot write the report to"):
        write(tmp_path, "t", "l", SECTIONS[1:], {})
    assert [path.name for path in tmp_path.iterdir()] == ["numbers.json"]


@pytest.mark.parametrize(
    "stems", [("a", "a"), ("../a",), ("",), ("a/b",), ("a", "a-dark"), (".a",)]
)
def test_stems_that_would_collide_or_escape_are_refused(tmp_path, stems):
    section = Section("s", figures=tuple((stem, "c", draw) for stem in stems))
    with pytest.raises(ValueError, match="stems"):
        write(tmp_path, "t", "l", [section], {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (-1.74312, 0.0213, "−1.743 ± 0.021"),
        (0.5, 0.0996, "0.50 ± 0.10"),
        (0.5, 0.0994, "0.500 ± 0.099"),
        (2.0, 1.0, "2.0 ± 1.0"),
        (12345.6, 123.4, "12346 ± 120"),
        (-0.0001, 0.05, "0.000 ± 0.050"),
        (0.0, 0.02, "0.000 ± 0.020"),
        (3.2e-7, 4e-8, "(3.20 ± 0.40) × 10⁻⁷"),
        (1e-9, 4e-8, "(0.1 ± 4.0) × 10⁻⁸"),
        (5.1234567e8, 2e6, "(5.123 ± 0.020) × 10⁸"),
        (1234567.0, 1.0, "1234567.0 ± 1.0"),
        (0.123456, None, "0.1235"),
        (1.5e-9, None, "1.5 × 10⁻⁹"),
        (123456.0, None, "1.235 × 10⁵"),
        (1234567, None, "1,234,567"),
        (-3, None, "−3"),
        (1.5, 0.0, "1.5 ± 0"),
        (1.5, float("nan"), "1.5 ± nan"),
        (float("nan"), 0.1, "nan ± 0.1"),
        (float("-inf"), None, "−inf"),
        ("0 of 500", None, "0 of 500"),
    ],
)
def test_numbers_have_the_digits_of_their_error(value, error, text):
    assert format_value(value, error) == text


def test_a_page_within_a_report(tmp_path):
    """It is whole inside the report, escaped, and lies beside it; its stem is one of the files."""
    make = lambda path: path.write_text('<script>let a = "1" && 2;</script>', encoding="utf-8")
    section = Section("walk", pages=(("explorer", "Walkers.", make),))
    report = write(tmp_path / "r", "t", "lead", [section], {})
    assert (tmp_path / "r" / "explorer.html").read_text(encoding="utf-8").startswith("<script>let")
    text = report.read_text(encoding="utf-8")
    inside = re.search(r'<iframe srcdoc="([^"]*)" title="Walkers."', text)
    assert unescape(inside[1]) == '<script>let a = "1" && 2;</script>'
    with pytest.raises(ValueError, match="file stems must differ"):
        write(tmp_path / "s", "t", "lead", [section, section], {})


def test_plain_lines_tell_what_is_left(capsys, monkeypatch):
    clock = iter([0.0, 1.0, 11.0, 12.0, 20.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.bar("learning") as update:
        update(1, 100)
        update(50, 100, "loss 3")
        update(51, 100)
        update(100, 100)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "learning: 50/100 in 11 s, 11 s left, loss 3",
        "learning: 100/100 in 20 s",
    ]


def test_quiet(capsys):
    with progress.bar("learning", quiet=True) as update:
        update(100, 100)
    assert capsys.readouterr() == ("", "")


def test_live_bar_in_a_terminal(capsys, monkeypatch):
    """In this process: another would spend its time on imports."""
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as terminal, monkeypatch.context() as patch:
        patch.setenv("TERM", "xterm")
        patch.setattr(sys, "stderr", terminal)
        with progress.bar("learning") as update:
            update(1, 4)
            update(4, 4, "done")
    shown = os.read(leader, 65536).decode()
    os.close(leader)
    assert capsys.readouterr() == ("", "")
    assert "learning" in shown
    assert "4/4" in shown
    assert "\x1b[" in shown  # drawn anew, not line by line
