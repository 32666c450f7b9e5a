"""What the tests of HTML pages share: a parser that knows the rules of a page, and a browser."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

_VOID = {"meta", "link", "img", "br", "input", "rect", "line", "circle", "path", "polyline"}
HOSTILE = "<script>alert(1)</script>"


class Page(HTMLParser):
    """The elements of a page as (tag, attributes), and its text; checks that tags are nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.headings: list[int] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in _VOID:
            self._open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self._open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if self._open[-1:] not in (["style"], ["script"]):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        """The attributes of every element of a tag."""
        return [attributes for name, attributes in self.elements if name == tag]


def check_page(path: Path) -> Page:
    """Read a page and check that it stands alone and what a screen reader needs."""
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            value = attributes.get(name, "data:")
            assert value.startswith("data:") or value.removeprefix("#") in ids
        labels = attributes.get("aria-labelledby", "").split()
        assert set(labels) <= set(ids)
    assert not re.search(r"url\((?!#)|@import|https?://", text)
    assert page.all("html")[0]["lang"] == "en" and len(page.all("h1")) == 1
    steps = zip(page.headings, page.headings[1:], strict=False)
    assert all(after <= before + 1 for before, after in steps)
    assert all(image["alt"] for image in page.all("img"))
    assert all("scope" in cell for cell in page.all("th"))
    assert all(
        "aria-hidden" in svg or (svg["role"] == "img" and svg["aria-labelledby"])
        for svg in page.all("svg")
    )
    tables = page.elements
    assert all(tables[i + 1][0] == "caption" for i, (tag, _) in enumerate(tables) if tag == "table")
    assert len(page.all("script")) <= 1
    return page


def find_chromium() -> str | None:
    """The browser of the system, if there is one."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next(filter(None, map(shutil.which, names)), None)


@contextmanager
def opened(path: Path | str, **options: Any) -> Iterator[Any]:
    """Open a page in headless Chromium; on leaving nothing may have gone wrong in it.

    Args:
        path: a file, or the URL of a service, which the page may ask and which may refuse.
        options: of the context, such as `viewport`.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="there is no playwright")
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("there is no chromium")
    wrong: list[str] = []
    url = path if isinstance(path, str) else path.absolute().as_uri()
    known = ("data:", "blob:", url if isinstance(path, str) else "file:")
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []  # which Chromium refuses to root

    def refused(dialog: Any) -> None:
        wrong.append(dialog.message)
        dialog.dismiss()

    def said(message: Any) -> None:
        refusal = "Failed to load resource: the server responded with a status of 4"
        if not (isinstance(path, str) and message.text.startswith(refusal)):
            wrong.append(message.text)

    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=flags)
        context = browser.new_context(**options)
        page = context.new_page()
        page.on("console", said)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", refused)
        page.on(
            "request",
            lambda request: None if request.url.startswith(known) else wrong.append(request.url),
        )
        page.goto(url)
        try:
            yield page
        finally:
            browser.close()
    assert not wrong, wrong
