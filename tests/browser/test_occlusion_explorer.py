"""The occlusion explorer in a real browser: the window under mouse, finger and keys, and the answers that follow it.

The oracle is `repro.visualization.occlusion.occlusion`, asked for the same place.
"""

import re

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect
from torch import nn

from repro.data.preparation import Preparation
from repro.visualization import occlusion_explorer
from repro.visualization.occlusion import occlusion

CLASSES = ("daisy", "rose", "tulip")
SIDE = 64
WINDOWS = [(16, 8), (24, 15)]  # size and stride; the last places of the second hang over the border by 11 pixels


@pytest.fixture(scope="module")
def images():
    """Two pictures whose parts differ, so that the answers do."""
    return 2 * torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def responses(images):
    torch.manual_seed(1)
    trunk = nn.Conv2d(3, 6, 7, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(3)
    net = nn.Sequential(*trunk, nn.Flatten(), nn.Linear(54, 3))
    with torch.no_grad():
        net[4].weight *= 12  # answers that are worth reading
    return [[occlusion(net, image, *window, target=i) for window in WINDOWS] for i, image in enumerate(images)]


@pytest.fixture
def open_explorer(open_html, images, responses):
    """A factory: opens a page with the explorer; options as of `open_html`."""
    prepare = Preparation(SIDE, SIDE, torch.full((3, 1, 1), 0.5), torch.full((3, 1, 1), 0.25))
    body = f"<h1>Explorer</h1>{occlusion_explorer(prepare, CLASSES, images, responses)._repr_html_()}"
    return lambda **options: open_html(body, **options)


@pytest.fixture
def shown(open_explorer):
    return open_explorer().locator("[data-explorer]")


def brush(explorer):
    return explorer.get_by_role("slider", name="window")


def choose(explorer, picture: int, window: int) -> None:
    explorer.get_by_role("combobox", name="photograph").select_option(str(picture))
    explorer.get_by_role("combobox", name="window (pixels)").select_option(str(window))


def go(explorer, row: int, column: int) -> None:
    """By keys alone, from the top left corner."""
    for key in ["PageUp", "Home", *["ArrowDown"] * row, *["ArrowRight"] * column]:
        brush(explorer).press(key)


def rows_of(explorer) -> list[tuple[str, str]]:
    cells = explorer.locator("tbody tr").evaluate_all(
        "(rows) => rows.map((row) => [row.cells[0].innerText.trim(), row.cells[2].innerText])"
    )
    return [tuple(row) for row in cells]


def hidden(explorer) -> list[float]:
    """Top, left, bottom and right of the window in pixels of the photograph."""
    return explorer.evaluate(
        """(el, side) => { const [photo, window] = [".photo", ".brush"].map((s) => el.querySelector(s)
             .getBoundingClientRect());
           const scale = side / photo.height;
           return [window.top - photo.top, window.left - photo.left, window.bottom - photo.top,
             window.right - photo.left].map((x) => x * scale); }""",
        SIDE,
    )


PLACES = [(0, 0, 0, 0), (0, 0, 4, 1), (1, 0, 6, 6), (1, 1, 3, 2), (0, 1, 1, 3)]


@pytest.mark.parametrize(("picture", "window", "row", "column"), PLACES)
def test_the_answers_are_those_of_occlusion(shown, responses, picture, window, row, column):
    """Catches answers of another place, photograph or size, rows and columns exchanged, a window drawn elsewhere."""
    choose(shown, picture, window)
    go(shown, row, column)
    one = responses[picture][window]
    expected = one.logits[row, column].double().softmax(0).tolist()
    target = picture
    for k, (name, value) in enumerate(rows_of(shown)):
        assert name == CLASSES[k] + (" (true)" if k == target else "")
        assert float(value.split()[0]) == pytest.approx(100 * expected[k], abs=0.052)
    assert hidden(shown) == pytest.approx(one.boxes[row, column].tolist(), abs=0.6)
    words = shown.locator(".reading").text_content()
    assert f"row {row + 1} of {one.logits.shape[0]}, column {column + 1} of {one.logits.shape[1]}" in words
    assert f"most probable class is {CLASSES[int(one.predicted[row, column])]}" in words
    share = 100 * one.activation[row, column].item() / one.clean_activation
    found = float(re.search(r"sum is at ([\d.]+)\s%", words).group(1))
    assert found == pytest.approx(share, abs=0.06)
    expect(shown.locator("[aria-live=polite]")).to_have_text(words)


def cells(explorer, which: int) -> torch.Tensor:
    """RGB of one of the three maps: uint8 (h, w, 3)."""
    values, width = (
        explorer.locator("canvas")
        .nth(which)
        .evaluate(
            """(canvas) => [[...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data],
                            canvas.width]"""
        )
    )
    return torch.tensor(values, dtype=torch.uint8).view(-1, width, 4)[..., :3]


def test_the_maps_are_the_three_panels(shown, responses):
    """Catches panels exchanged, turned on their side, or of another class, and colours that do not rise with values."""
    choose(shown, 1, 0)
    one = responses[1][0]
    for which, values in ((0, one.probability), (2, one.activation)):
        brightness = cells(shown, which).sum(2).flatten()
        order = values.flatten().argsort()
        assert (brightness[order].diff() >= -3).all()  # three channels, each rounded
        assert brightness.max() - brightness.min() > 100
    colours = cells(shown, 1)
    named = {k: colours[one.predicted == k].unique(dim=0) for k in one.predicted.unique().tolist()}
    assert len(named) > 1
    assert all(len(found) == 1 for found in named.values())
    keys = shown.locator(".key").evaluate_all("(all) => all.map((key) => getComputedStyle(key).backgroundColor)")
    for k, found in named.items():
        assert keys[k] == "rgb({}, {}, {})".format(*found[0].tolist())


def test_mouse_drags_and_maps_answer(shown):
    """Catches a window that only jumps, that leaves the photograph, and maps that cannot be pointed at."""
    box = shown.locator(".photo").bounding_box()
    mouse = shown.page.mouse
    mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    mouse.down()
    mouse.move(box["x"] + box["width"] + 40, box["y"] - 40, steps=6)  # held, it follows beyond the border
    assert hidden(shown) == pytest.approx([0, 48, 16, 64], abs=0.6)
    mouse.up()
    mouse.move(box["x"] + 5, box["y"] + 5)
    assert hidden(shown) == pytest.approx([0, 48, 16, 64], abs=0.6)
    grid = shown.locator("canvas").nth(2).bounding_box()
    mouse.click(grid["x"] + grid["width"] * 2.5 / 7, grid["y"] + grid["height"] * 5.5 / 7)
    assert hidden(shown) == pytest.approx([40, 16, 56, 32], abs=0.6)
    for mark in shown.locator(".mark").all():
        place = mark.evaluate("(mark) => [mark.style.top, mark.style.left].map(Number.parseFloat)")
        assert place == pytest.approx([100 * 5 / 7, 100 * 2 / 7], abs=0.01)


def test_keys_stop_at_the_borders_and_go_on_after_a_click(shown):
    """Catches a window that leaves the photograph, keys that scroll the page, and a click that loses the keyboard."""
    brush(shown).focus()
    for key in ("End", "PageDown", "ArrowRight", "ArrowDown"):
        shown.page.keyboard.press(key)
    assert hidden(shown) == pytest.approx([48, 48, 64, 64], abs=0.6)
    assert shown.page.evaluate("[scrollX, scrollY]") == [0, 0]
    shown.page.mouse.click(*[shown.locator(".photo").bounding_box()[key] + 3 for key in ("x", "y")])
    shown.page.keyboard.press("ArrowRight")
    assert hidden(shown) == pytest.approx([0, 8, 16, 24], abs=0.6)
    assert brush(shown).get_attribute("aria-valuetext") == "row 1 of 7, column 2 of 7"
    assert brush(shown).get_attribute("aria-valuenow") == "2"


def test_a_change_of_size_or_photograph_keeps_the_place(shown):
    """Catches a window that jumps to the corner when another photograph is chosen, or stays out of range."""
    go(shown, 6, 6)
    choose(shown, 1, 1)
    assert hidden(shown) == pytest.approx([45, 45, 64, 64], abs=0.6)
    choose(shown, 0, 0)
    assert hidden(shown) == pytest.approx([48, 48, 64, 64], abs=8.6)
    assert shown.get_by_role("img", name="Photograph: daisy").count() == 1


def test_the_window_shows_what_stood_in_it(shown):
    """Catches a window of the page's colour: the net saw the mean, here a middle grey of 127 or 128."""
    address = brush(shown).evaluate("(el) => getComputedStyle(el).backgroundImage")
    grey = shown.evaluate(
        """async (el, address) => { const image = new Image(); image.src = address.slice(5, -2); await image.decode();
             const canvas = document.createElement("canvas"); canvas.width = canvas.height = 1;
             const context = canvas.getContext("2d"); context.drawImage(image, 0, 0);
             return [...context.getImageData(0, 0, 1, 1).data]; }""",
        address,
    )
    assert grey[:3] == pytest.approx([127.5] * 3, abs=1.6)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_themes_are_readable(open_explorer, theme):
    """Catches too little contrast in either theme, and controls without a name."""
    violations = Axe().run(open_explorer(theme=theme, dark=theme == "light")).response["violations"]
    assert [v["id"] for v in violations] == []


def test_fits_a_phone_and_answers_to_a_finger(open_explorer):
    """Catches maps wider than the screen, and a finger that moves nothing."""
    opened = open_explorer(phone=True)
    shown = opened.locator("[data-explorer]")
    assert opened.evaluate("document.documentElement.scrollWidth") == opened.viewport_size["width"]
    box = shown.locator(".photo").bounding_box()
    opened.touchscreen.tap(box["x"] + 4, box["y"] + box["height"] - 4)
    assert hidden(shown) == pytest.approx([48, 0, 64, 16], abs=0.6)
    assert brush(shown).evaluate("(el) => getComputedStyle(el).touchAction") == "none"
    assert shown.locator(".frame").evaluate("(el) => getComputedStyle(el).touchAction") != "none"
    for control in shown.locator("select").all():
        assert control.bounding_box()["height"] >= 44
