"""Every built page, as a reader without a network sees it: wide and narrow, light and dark."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from book._tools.notebooks import ROOT

Open = Callable[..., Page]
# Without `preload: false` axe itself would try to fetch the style sheets, which browsers refuse for files.
AXE_OPTIONS = {"resultTypes": ["violations"], "preload": False}


def toc_pages() -> list[str]:
    """The pages that ``_toc.yml`` promises, and those that Sphinx adds."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    listed = [toc["root"], *(entry["file"] for part in toc["parts"] for entry in part["chapters"])]
    return [f"{name}.html" for name in [*listed, "search", "genindex"]]


def wait_for_mathematics(page: Page) -> None:
    page.evaluate("() => window.MathJax && MathJax.startup ? MathJax.startup.promise.then(() => true) : true")


@pytest.mark.parametrize("name", toc_pages())
def test_page_renders_its_mathematics(site: Path, page: Open, name: str) -> None:
    """Catches TeX that MathJax can't read, MathJax missing from the site, and formulas without a text form."""
    opened = page(site / name)
    wait_for_mathematics(opened)
    article = opened.locator("main")
    formulas = article.locator(".math")
    assert article.locator("mjx-merror, [data-mjx-error]").count() == 0
    assert article.locator("mjx-container").count() >= formulas.count()
    assert article.locator("mjx-container:not(:has(mjx-assistive-mml math))").count() == 0
    raw = opened.evaluate(
        r"""() => [...document.querySelectorAll("main p, main td, main li, main dd, main figcaption")]
            .filter((e) => /\\\(|\\\[/.test(e.innerText)).map((e) => e.innerText)"""
    )
    assert raw == []


@pytest.mark.parametrize("view", [{}, {"dark": True}, {"phone": True}], ids=["light", "dark", "phone"])
@pytest.mark.parametrize("name", toc_pages())
def test_page_is_accessible(site: Path, page: Open, name: str, view: dict[str, bool]) -> None:
    """Catches too little contrast in a theme, controls without a name, and boxes that the keyboard can't scroll."""
    opened = page(site / name, **view)
    wait_for_mathematics(opened)
    violations = Axe().run(opened, options=AXE_OPTIONS).response["violations"]
    grave = [
        f"{v['id']} ({v['impact']}): {v['help']}\n    " + "\n    ".join(n["html"][:200] for n in v["nodes"][:4])
        for v in violations
        if v["impact"] in ("serious", "critical")
    ]
    assert not grave, "\n".join(grave)


@pytest.mark.parametrize("name", toc_pages())
def test_images_are_described(site: Path, page: Open, name: str) -> None:
    """Catches an image in the text without alt text (axe lets an empty one pass as decoration)."""
    opened = page(site / name)
    bare = opened.evaluate(
        """() => [...document.querySelectorAll("article img")]
            .filter((img) => !(img.getAttribute("alt") || "").trim() || img.alt.includes(img.src.split("/").pop()))
            .map((img) => img.outerHTML.slice(0, 160))"""
    )
    assert bare == []


@pytest.mark.parametrize("name", toc_pages())
def test_page_fits_a_phone(site: Path, page: Open, name: str) -> None:
    """Catches a table, formula, cell or figure that pushes the page wider than 390 pixels."""
    opened = page(site / name, phone=True)
    wait_for_mathematics(opened)
    widths = opened.evaluate("() => [document.documentElement.scrollWidth, window.innerWidth]")
    assert widths == [390, 390]


def test_every_built_page_is_tested(site: Path) -> None:
    """Catches a page that the build writes and the tests of this file never open."""
    built = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    served = {name for name in built if not name.startswith(("_static/", "_sources/"))}
    assert served - {"index.html"} == set(toc_pages())


def test_index_leads_to_the_book(site: Path, page: Open) -> None:
    """Catches an index.html that leads nowhere."""
    opened = page(site / "index.html")
    opened.wait_for_url(re.compile(r".*/preface\.html$"))
    expect(opened.locator("h1").first).to_contain_text("Convnets, Reproduced")


def test_search_works_without_a_server(site: Path, page: Open) -> None:
    """Catches a search that needs fetch(), which browsers refuse for files."""
    opened = page(site / "book" / "preface.html")
    opened.keyboard.press("Control+k")
    field = opened.locator("#pst-search-dialog input[type=search]")
    expect(field).to_be_focused()
    field.fill("subsampling")
    field.press("Enter")
    hits = opened.locator("#search-results ul.search li a")
    expect(hits.filter(has_text="Glossary").first).to_be_visible()
    hits.filter(has_text="Glossary").first.click()
    expect(opened.locator("h1").first).to_contain_text("Glossary")


def test_theme_switch_changes_the_theme(site: Path, page: Open) -> None:
    """Catches a switch that does nothing, or a choice that is forgotten on the next page."""
    opened = page(site / "book" / "preface.html")
    theme = "() => document.documentElement.dataset.theme"
    background = "() => getComputedStyle(document.body).backgroundColor"
    seen = {opened.evaluate(theme): opened.evaluate(background)}
    for _ in range(2):
        opened.locator("button.theme-switch-button:visible").first.click()
        seen[opened.evaluate(theme)] = opened.evaluate(background)
    assert {"light", "dark"} <= set(seen)
    assert seen["light"] != seen["dark"]
    chosen = opened.evaluate(theme)
    opened.goto((site / "book" / "notation.html").as_uri())
    assert opened.evaluate(theme) == chosen


def test_keyboard_reaches_the_text(site: Path, page: Open) -> None:
    """Catches a page whose first tab stop is not the link that skips the navigation."""
    opened = page(site / "book" / "preface.html")
    opened.keyboard.press("Tab")
    assert opened.evaluate("() => document.activeElement.getAttribute('href')") == "#main-content"
    opened.keyboard.press("Enter")
    opened.keyboard.press("Tab")
    assert opened.evaluate("() => document.querySelector('main').contains(document.activeElement)")


def test_code_can_be_copied(site: Path, page: Open) -> None:
    """Catches a page of commands without copy buttons, and one that would copy the prompt along."""
    opened = page(site / "book" / "how_to_run.html")
    buttons = opened.locator("button.copybtn")
    expect(buttons.first).to_be_attached()
    assert buttons.count() == opened.locator("div.highlight pre").count()
