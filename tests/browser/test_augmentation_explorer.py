"""The augmentation explorer in a real browser: the pixels on its canvases, its controls, keyboard and words.

The oracle for the pixels is `repro.data.augmentation.Batches`, with the same window, reflection and α.
"""

import re

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from repro import data
from repro.data.augmentation import Augmentation, Batches, Draws
from repro.data.color import ColorPCA
from repro.visualization import augmentation_explorer

SIDE, CROP = 16, 12
NOTHING = {"picture": 0, "scale": "root", "top": 2, "left": 2, "mirrored": False, "alphas": [0.0, 0.0, 0.0]}
SETTINGS = [
    NOTHING,
    NOTHING | {"picture": 2, "top": 0, "left": 4, "mirrored": True},
    NOTHING | {"picture": 1, "top": 4, "left": 1, "alphas": [0.2, -0.1, 0.05]},
    NOTHING | {"mirrored": True, "scale": "printed", "alphas": [-0.3, 0.3, 0.3]},
]


@pytest.fixture(scope="module")
def shapes():
    return data.load("shapes", "test", size=SIDE).subset(torch.arange(3))


@pytest.fixture(scope="module")
def pca(shapes):
    return ColorPCA.of(shapes)


@pytest.fixture
def open_explorer(open_html, shapes, pca):
    """A factory: opens a page with the explorer; options as of `open_html`."""
    body = f"<h1>Explorer</h1>{augmentation_explorer(shapes, CROP, pca)._repr_html_()}"
    return lambda **options: open_html(body, **options)


@pytest.fixture
def shown(open_explorer):
    return open_explorer().locator("[data-explorer]")


def put(explorer, setting) -> None:
    """Brings every control to where a hand would, with its event."""
    alphas = {f"alpha{i}": alpha for i, alpha in enumerate(setting["alphas"], 1)}
    explorer.evaluate(
        """(el, values) => { for (const [name, value] of Object.entries(values)) {
             const input = el.querySelector(`[name=${name}]`);
             if (input.type === "checkbox") input.checked = value; else input.value = value;
             input.dispatchEvent(new Event(input.type === "range" ? "input" : "change")); } }""",
        {key: value for key, value in setting.items() if key != "alphas"} | alphas,
    )


def pixels(explorer, which: int) -> torch.Tensor:
    """RGB of a canvas, 0 the stored picture and 1 what the net sees: uint8 (H, W, 3)."""
    values, size = (
        explorer.locator("canvas")
        .nth(which)
        .evaluate(
            """(canvas) => {
             const { data, width } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
             return [[...data], width]; }"""
        )
    )
    return torch.tensor(values, dtype=torch.uint8).view(size, size, 4)[..., :3]


def expected(setting, shapes, pca) -> torch.Tensor:
    batches = Batches(shapes, (0.0,) * 3, (1.0,) * 3, augmentation=Augmentation(crop=CROP))
    color = pca.shifts(torch.tensor([setting["alphas"]]), "code" if setting["scale"] == "root" else "paper")
    place = (torch.tensor([int(setting[key])]) for key in ("top", "left", "mirrored"))
    draws = Draws(*place, color=color)
    return batches.visible(batches.apply(torch.tensor([setting["picture"]]), draws), draws)[0]


@pytest.mark.parametrize("setting", SETTINGS, ids=["centre", "mirrored", "colours", "as printed"])
def test_pixels_are_those_of_the_package(shown, shapes, pca, setting):
    """Catches rows and columns exchanged, a window mirrored about another axis, and readings of λ exchanged."""
    put(shown, setting)
    assert torch.equal(pixels(shown, 0), shapes.images[setting["picture"]])
    # One grey level for rounding: a value half-way may fall to either side.
    difference = pixels(shown, 1).int() - expected(setting, shapes, pca).int()
    assert difference.abs().max() <= (1 if any(setting["alphas"]) else 0)


def test_words_say_what_was_done(shown):
    """Catches words for another window than the one shown, and canvases without a name."""
    put(shown, NOTHING | {"top": 1, "left": 4, "mirrored": True, "alphas": [0.3, 0.0, 0.0]})
    words = shown.locator(".reading").text_content()
    assert words.startswith("Rows 1 to 12 and columns 4 to 15 of 0 to 15, mirrored; ")
    assert re.search(r"[+−]\d+ red, [+−]\d+ green and [+−]\d+ blue are added\.$", words)
    assert shown.get_by_role("img", name="What the net sees. Rows 1 to 12").count() == 1
    expect(shown.locator("[aria-live=polite]")).to_have_text(words)


def test_test_views_come_in_turn(shown, shapes, pca):
    """Catches a button that starts over each time, and views that are not the ten of the package."""
    button = shown.get_by_role("button", name="Next test view")
    batches = Batches(shapes, (0.0,) * 3, (1.0,) * 3, augmentation=Augmentation(crop=CROP))
    views, _ = batches.ten_views(0, 1)
    for view in views[0]:
        button.click()
        assert torch.equal(pixels(shown, 1), (255 * view.permute(1, 2, 0)).round().byte())
    expect(shown.locator("[aria-live=polite]")).to_have_text(re.compile("Test view 10 of 10"))


def test_draws_differ_and_reset_returns(shown):
    """Catches a button that draws once, or never, and a reset that forgets the colours."""
    before, sentence = pixels(shown, 1), shown.locator(".reading")
    drawn = set()
    for _ in range(8):
        shown.get_by_role("button", name="Draw anew").click()
        drawn.add(sentence.text_content())
    assert len(drawn) > 4
    shown.get_by_role("button", name="Reset").press("Enter")
    assert torch.equal(pixels(shown, 1), before)


def test_keyboard_and_pointer_move_the_window(shown):
    """Catches sliders that answer to the mouse alone, and a touch that puts the window elsewhere."""
    shown.get_by_role("slider", name="window from the left").press("ArrowRight")
    assert "columns 3 to 14" in shown.locator(".reading").text_content()
    box = shown.locator("canvas").first.bounding_box()
    shown.page.mouse.click(box["x"] + box["width"] - 2, box["y"] + 2)
    assert shown.locator(".reading").text_content().startswith("Rows 0 to 11 and columns 4 to 15")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_themes_are_readable(open_explorer, theme):
    """Catches too little contrast in either theme, and controls without a name."""
    violations = Axe().run(open_explorer(theme=theme, dark=theme == "light")).response["violations"]
    assert [v["id"] for v in violations if v["impact"] in ("serious", "critical")] == []


def test_fits_a_phone(open_explorer):
    """Catches canvases wider than the screen, and buttons too small for a finger."""
    opened = open_explorer(phone=True)
    assert opened.evaluate("document.documentElement.scrollWidth") == opened.viewport_size["width"]
    for button in opened.locator("[data-explorer] button").all():
        assert min(button.bounding_box()["width"], button.bounding_box()["height"]) >= 44
    opened.get_by_role("button", name="Draw anew").tap()
    assert opened.locator(".outline").is_visible()
