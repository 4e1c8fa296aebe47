"""What a built site would fetch from elsewhere, and which of its own links lead nowhere.

python docs/_ext/outside.py site     prints them, and ends with 1 if there are any
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

FETCHED = {
    "audio": ("src",), "embed": ("src",), "iframe": ("src",), "image": ("href", "xlink:href"),
    "img": ("src", "srcset"), "input": ("src",), "link": ("href",), "object": ("data",),
    "script": ("src",), "source": ("src", "srcset"), "track": ("src",), "use": ("href", "xlink:href"),
    "video": ("src", "poster"),
}  # fmt: skip
"""Attributes whose address a browser fetches by itself, by element."""

OUTSIDE = re.compile(r"\s*(?:https?:)?//", re.IGNORECASE)
CSS = re.compile(r"(?:url\(|@import)\s*[\"']?\s*((?:https?:)?//[^)\"';]*)", re.IGNORECASE)


class Page(HTMLParser):
    """The addresses in a page: what is fetched, what is linked, and the places it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.linked: list[str] = []
        self.places: set[str] = set()
        self.style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the addresses of an element."""
        self.style = tag == "style"
        for key, value in attrs:
            if key == "id" and value:
                self.places.add(value)
            if key in FETCHED.get(tag, ()) and value:
                self.fetched += re.split(r",\s+", value) if key == "srcset" else [value]
            if key == "style" and value:
                self.fetched += CSS.findall(value)
            if (tag, key) == ("a", "href") and value:
                self.linked.append(value)

    def handle_data(self, data: str) -> None:
        """Collect the addresses in styles."""
        self.fetched += CSS.findall(data) if self.style else []


def complaints(site: Path) -> Iterator[str]:
    """Yield what a site fetches from outside, and links of its own that lead nowhere."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    for path in site.rglob("*.css"):
        for address in CSS.findall(path.read_text(encoding="utf-8")):
            yield f"{path.relative_to(site)}: fetches {address}"
    for path, page in pages.items():
        where = path.relative_to(site)
        yield from (f"{where}: fetches {a}" for a in page.fetched if OUTSIDE.match(a))
        for address in (*page.fetched, *page.linked):
            scheme, host, file, _, anchor = urlsplit(address.split(" ")[0])
            if scheme or host:
                continue
            there = (path.parent / unquote(file)).resolve() if file else path
            if not there.is_file():
                yield f"{where}: {address} does not exist"
            elif anchor and there in pages and unquote(anchor) not in pages[there].places:
                if where.parts[0] != "_modules":  # the way back from a source is guessed
                    yield f"{where}: {address} names no place"


if __name__ == "__main__":
    found = list(complaints(Path(sys.argv[1]).resolve()))
    print("\n".join(found))
    sys.exit(bool(found))
