"""Headless Chromium over the built book, opened as files, with every other host blocked."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, sync_playwright

from book._tools import gates
from book._tools.notebooks import ROOT

WIDE = {"width": 1400, "height": 900}
PHONE = {"width": 390, "height": 844}
PAPER_AND_INK = {"light": "background: white; color: black", "dark": "background: #121212; color: white"}


@pytest.fixture(scope="session")
def site() -> Path:
    """The folder of the built pages; built now if there are none."""
    if not (ROOT / gates.INDEX).exists():
        built = gates.build_book(ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert built.returncode == 0, f"the book does not build:\n{built.stdout[-3000:]}"
    return (ROOT / gates.INDEX).parent


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium. Where it is missing, CI fails; elsewhere the test is skipped with the reason."""
    chromium = shutil.which("chromium")
    if chromium is None:
        reason = "chromium is not installed (Debian: apt-get install chromium)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=chromium, args=options)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """A factory: ``page(path, dark=False, phone=False)`` opens a local file in a fresh context.

    Requests to any host are blocked. When the test ends it fails if a page reported a problem on the way: an
    error on the console, an uncaught exception, a failed request, or a request that left the disk.
    """
    contexts: list[BrowserContext] = []
    problems: list[str] = []

    def route(route: Route) -> None:
        if route.request.url.startswith(("file:", "data:", "blob:")):
            route.continue_()
        else:
            problems.append(f"request to {route.request.url}")
            route.abort()

    def open_page(path: Path, *, dark: bool = False, phone: bool = False) -> Page:
        context = browser.new_context(
            viewport=PHONE if phone else WIDE,
            color_scheme="dark" if dark else "light",
            has_touch=phone,
            is_mobile=phone,
            reduced_motion="reduce",
        )
        contexts.append(context)
        context.route("**/*", route)
        opened = context.new_page()
        opened.on("console", lambda m: problems.append(f"console: {m.text}") if m.type == "error" else None)
        opened.on("pageerror", lambda error: problems.append(f"exception: {error}"))
        opened.on("requestfailed", lambda request: problems.append(f"failed: {request.url}"))
        opened.goto(path.as_uri())
        return opened

    yield open_page
    for context in contexts:
        context.close()
    assert not problems, "\n".join(problems)


@pytest.fixture
def open_html(page: Callable[..., Page], tmp_path: Path) -> Callable[..., Page]:
    """A factory: opens a page that holds nothing but `body`. Options are those of the fixture `page`."""

    def open_page(body: str, theme: str = "light", **options: bool) -> Page:
        path = tmp_path / "page.html"
        head = "<meta charset=utf-8><meta name=viewport content='width=device-width'><title>Explorer</title>"
        path.write_text(
            f"<!doctype html><html lang=en data-theme={theme}><head>{head}</head>"
            f"<body style='{PAPER_AND_INK[theme]}'><main>{body}</main></body></html>",
            encoding="utf-8",
        )
        return page(path, **options)

    return open_page
