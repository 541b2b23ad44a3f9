"""The convolution explorer in a real browser: its arithmetic, its drawing, mouse, keyboard and words.

The oracles are `repro.receptive_field.output_size` and PyTorch: the input positions that an output unit
reads are those where the gradient of that unit is not zero.
"""

import itertools
import random
import re

import pytest
import torch
import torch.nn.functional as F
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from repro.receptive_field import output_size
from repro.visualization import convolution_explorer
from repro.visualization.explorer import CONVOLUTION_CONTROLS, inlined

NAMES = tuple(CONVOLUTION_CONTROLS)
EVERY_SETTING = [
    dict(zip(NAMES, values, strict=True))
    for values in itertools.product(
        *(range(smallest, largest + 1) for _, smallest, largest in CONVOLUTION_CONTROLS.values())
    )
]
# Different kinds of setting first, then a fixed sample of the rest.
SOME_SETTINGS = [
    dict(zip(NAMES, values, strict=True))
    for values in [
        (7, 3, 1, 0, 1),
        (7, 3, 3, 0, 1),
        (12, 7, 1, 3, 1),
        (9, 3, 2, 1, 2),
        (8, 1, 4, 0, 1),
        (1, 1, 1, 3, 3),
    ]
] + random.Random(0).sample([v for v in EVERY_SETTING if v["padding"] < 2], 30)


def expected_size(setting) -> int:
    """The output size, and 0 where no such convolution exists."""
    try:
        return output_size(**setting)
    except ValueError:
        return 0


def positions_read(setting, unit: int) -> list[int]:
    """Positions of one axis, negative in the padding, that output unit `unit` reads: autograd's answer."""
    padding = setting["padding"]
    x = torch.zeros(1, 1, setting["input_size"] + 2 * padding, requires_grad=True)
    weight = torch.ones(1, 1, setting["kernel_size"])
    F.conv1d(x, weight, stride=setting["stride"], dilation=setting["dilation"])[0, 0, unit].backward()
    return [int(position) - padding for position in x.grad[0, 0].nonzero().flatten()]


def square(positions) -> set[tuple[int, int]]:
    return set(itertools.product(positions, positions))


@pytest.fixture
def explorer(open_html):
    """A factory: opens a page with one explorer and returns its element."""

    def start(**initial):
        return open_html(convolution_explorer(**initial)._repr_html_()).locator("[data-explorer]")

    return start


@pytest.fixture
def arithmetic(open_html):
    """Calls a function of convolution_arithmetic.js: `arithmetic("taps", setting, unit)`."""
    module = inlined("convolution_arithmetic.js")
    functions = "{ outputSize, taps, readers, neverRead }"
    opened = open_html(f'<script type="module">{module}window.arithmetic = {functions};</script>')
    opened.wait_for_function("window.arithmetic")
    return lambda name, calls: opened.evaluate(
        "([name, calls]) => calls.map((values) => arithmetic[name](...values))", [name, calls]
    )


def set_controls(explorer, setting) -> None:
    """Moves each slider as a hand would end up moving it, with its event."""
    explorer.evaluate(
        """(el, setting) => { for (const [name, value] of Object.entries(setting)) {
             const input = el.querySelector(`input[name=${name}]`);
             input.value = value;
             input.dispatchEvent(new Event("input")); } }""",
        setting,
    )


def cells(explorer, grid: str, mark: str = "") -> set[tuple[int, int]]:
    """(row, column) of the cells of `grid`, or of those that carry `mark`."""
    found = explorer.locator(f"[data-grid={grid}]{mark}").evaluate_all(
        "nodes => nodes.map(node => [Number(node.dataset.row), Number(node.dataset.column)])"
    )
    return {(row, column) for row, column in found}


def at(explorer, grid: str, row: int, column: int):
    return explorer.locator(f'[data-grid={grid}][data-row="{row}"][data-column="{column}"]')


def reading(explorer) -> str:
    return explorer.locator(".reading").text_content()


def focused(explorer) -> dict:
    """What has the focus: a control's name, or a cell's grid, row and column."""
    return explorer.page.evaluate("(({ name, dataset }) => name ? { name } : { ...dataset })(document.activeElement)")


def test_size_agrees_for_every_setting(arithmetic):
    """Catches rounding to nearest, padding counted once, and an impossible setting that gets a size."""
    sizes = arithmetic("outputSize", [[setting] for setting in EVERY_SETTING])
    assert sizes == [expected_size(setting) for setting in EVERY_SETTING]
    assert 0 in sizes


def test_windows_agree_with_the_gradient(arithmetic):
    """Catches a window that starts at the wrong pixel, a dilation ignored, and readers off by one unit."""
    possible = [setting for setting in EVERY_SETTING if expected_size(setting)]
    for setting in random.Random(1).sample(possible, 200):
        windows = [positions_read(setting, unit) for unit in range(expected_size(setting))]
        pixels = range(setting["input_size"])
        readers = [[unit for unit, window in enumerate(windows) if x in window] for x in pixels]
        assert arithmetic("taps", [[setting, unit] for unit in range(len(windows))]) == windows
        assert arithmetic("readers", [[setting, x] for x in pixels]) == readers
        assert arithmetic("neverRead", [[setting]]) == [[x for x in pixels if not readers[x]]]


def test_drawing_agrees_for_many_settings(explorer):
    """Catches a picture that shows something else than the arithmetic beside it, and one that is not redrawn."""
    shown = explorer()
    for setting in SOME_SETTINGS:
        set_controls(shown, setting)
        size = expected_size(setting)
        n, padding = setting["input_size"], setting["padding"]
        assert cells(shown, "output") == square(range(size))
        assert cells(shown, "input") == square(range(-padding, n + padding))
        if size == 0:
            assert "Impossible" in shown.locator(".verdict").text_content()
            assert shown.locator(".lit").count() == 0
            continue
        last = at(shown, "output", size - 1, size - 1)
        last.hover()
        assert cells(shown, "input", ".lit") == square(positions_read(setting, size - 1))
        assert shown.locator(".steps span").last.text_content() == f"= {size}"


def test_worked_example(explorer):
    """Catches a formula whose numbers are not those of the controls, and words that miscount the border."""
    shown = explorer(input_size=9, kernel_size=3, stride=3, padding=1, dilation=2)
    steps = shown.locator(".steps span").all_text_contents()
    assert steps[1:] == ["= ⌊(9 + 2·1 − 2·(3 − 1) − 1) / 3⌋ + 1", "= ⌊6 / 3⌋ + 1", "= 3"]
    assert "(0, 0) reads rows −1, 1, 3 and columns −1, 1, 3: 9 values, of which 5 are" in reading(shown)
    set_controls(shown, {"input_size": 7, "stride": 3, "padding": 0, "dilation": 1})
    assert shown.locator(".verdict").text_content().startswith("The last row and the last column are never read")


def test_mouse_lights_both_ways(explorer):
    """Catches a hover that does nothing, and readers of a pixel that are not the transposed windows."""
    shown = explorer(input_size=7, kernel_size=3)
    at(shown, "output", 1, 2).hover()
    assert cells(shown, "input", ".lit") == set(itertools.product([1, 2, 3], [2, 3, 4]))
    at(shown, "input", 0, 3).hover()
    assert cells(shown, "output", ".lit") == set(itertools.product([0], [1, 2, 3]))
    assert "read by 3 of 25 output units" in reading(shown)


def test_keyboard_walks_both_grids(explorer):
    """Catches a grid that Tab can't reach, arrows that leave it, and focus that is not shown."""
    shown = explorer(input_size=5, kernel_size=3)
    keyboard = shown.page.keyboard
    for _ in NAMES:
        keyboard.press("Tab")
    assert focused(shown) == {"name": "dilation"}
    keyboard.press("Tab")
    assert focused(shown) == {"grid": "input", "row": "0", "column": "0"}
    keyboard.press("ArrowRight")
    assert cells(shown, "output", ".lit") == {(0, 0), (0, 1)}
    keyboard.press("Tab")
    for key in ("ArrowDown", "End", "ArrowRight", "ArrowDown", "ArrowDown", "ArrowLeft"):
        keyboard.press(key)
    assert focused(shown) == {"grid": "output", "row": "2", "column": "1"}
    assert cells(shown, "input", ".lit") == set(itertools.product([2, 3, 4], [1, 2, 3]))
    ring = at(shown, "output", 2, 1).locator("rect").evaluate("node => getComputedStyle(node).strokeWidth")
    assert ring == "3px"


def test_keyboard_moves_a_control(explorer):
    """Catches sliders that answer to the mouse alone."""
    shown = explorer(stride=1)
    slider = shown.get_by_role("slider", name="stride")
    slider.press("ArrowRight")
    assert cells(shown, "output") == square(range(output_size(7, 3, stride=2)))
    slider.press("End")
    assert cells(shown, "output") == square(range(output_size(7, 3, stride=4)))
    shown.get_by_role("button", name="Reset").press("Enter")
    assert cells(shown, "output") == square(range(output_size(7, 3)))


def test_what_happened_is_spoken(explorer):
    """Catches a live region that stays silent, or that only repeats what it said before."""
    shown = explorer(input_size=5)
    live = shown.locator("[aria-live=polite]")
    set_controls(shown, {"kernel_size": 7})
    expect(live).to_have_text(re.compile("Impossible: the kernel spans 7 pixels"))
    set_controls(shown, {"kernel_size": 3})
    expect(live).to_have_text(re.compile("Output 3 by 3"))
    shown.get_by_role("button", name="Next output unit").click()
    expect(live).to_have_text(re.compile(r"Output unit \(0, 1\) reads"))


def test_play_runs_to_the_last_unit_and_pauses(explorer):
    """Catches an animation that never ends, can't be stopped, or starts for readers who want no motion."""
    shown = explorer(input_size=4, kernel_size=3)
    play = shown.get_by_role("button", name="Play")
    expect(play).to_be_hidden()  # the fixture's pages prefer reduced motion
    shown.page.emulate_media(reduced_motion="no-preference")
    play.click()
    shown.get_by_role("button", name="Pause").click()
    expect(play).to_be_visible()
    play.click()
    expect(at(shown, "output", 1, 1)).to_have_class("lit")
    expect(play).to_be_visible()


def test_several_on_one_page(open_html):
    """Catches explorers that share an id, a scope or a state, and one that is started twice."""
    opened = open_html("".join(convolution_explorer(stride=s)._repr_html_() for s in (1, 2, 2)))
    first, second, third = opened.locator("[data-explorer]").all()
    set_controls(second, {"input_size": 11})
    assert [len(cells(one, "output")) for one in (first, second, third)] == [25, 25, 9]
    assert [one.locator("button").count() for one in (first, second, third)] == [4, 4, 4]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_themes_are_readable(open_html, theme):
    """Catches a page theme that is ignored where the system prefers the other, and too little contrast."""
    body = "<h1>Explorer</h1>" + convolution_explorer(input_size=3, kernel_size=5)._repr_html_()
    opened = open_html(body, theme=theme, dark=theme == "light")
    scheme = opened.locator("[data-explorer]").evaluate("node => getComputedStyle(node).colorScheme")
    assert scheme == theme
    violations = Axe().run(opened).response["violations"]
    assert [v["id"] for v in violations if v["impact"] in ("serious", "critical")] == []


@pytest.mark.parametrize("n", [1, 7, 12])
def test_fits_a_phone_and_answers_a_tap(open_html, n):
    """Catches a grid wider than the screen, buttons too small for a finger, and a tap that does nothing."""
    setting = {"input_size": n, "kernel_size": 1, "padding": 3}
    opened = open_html(convolution_explorer(**setting)._repr_html_(), phone=True)
    shown = opened.locator("[data-explorer]")
    assert opened.evaluate("document.documentElement.scrollWidth") == opened.viewport_size["width"]
    stage = shown.locator(".stage").bounding_box()
    for grid in ("input", "output"):
        box = shown.get_by_role("grid", name=re.compile(grid)).bounding_box()
        assert stage["x"] <= box["x"]
        assert box["x"] + box["width"] <= stage["x"] + stage["width"]
    for button in shown.locator("button:visible").all():
        assert min(button.bounding_box()["width"], button.bounding_box()["height"]) >= 44
    at(shown, "output", 4, 3).tap()
    assert cells(shown, "input", ".lit") == {(1, 0)}


def test_in_the_built_chapter(site, page):
    """Catches an explorer that the book's own scripts or styles break, and one that was left out of the page."""
    shown = page(site / "chapters" / "01_convolutions.html").locator("[data-explorer]").first
    at(shown, "output", 1, 1).hover()
    assert cells(shown, "input", ".lit") == square([3, 4, 5])
    at(shown, "output", 1, 1).click()
    shown.page.keyboard.press("ArrowUp")
    assert cells(shown, "input", ".lit") == set(itertools.product([0, 1, 2], [3, 4, 5]))
