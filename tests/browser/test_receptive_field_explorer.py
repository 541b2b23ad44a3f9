"""The receptive-field explorer in a real browser: its arithmetic, lit rectangles, numbers, keys and taps.

The oracle is `repro.receptive_field`, which finds rectangles by another road (in Python, from the traced net; proven
there against gradients).
"""

import itertools
import random
import re

import pytest
import torch
import torchvision
from axe_playwright_python.sync_playwright import Axe
from grids import NOWHERE, chosen, numbers, rectangle, tile
from playwright.sync_api import expect
from torch import nn

from repro import models
from repro.receptive_field import Box, receptive_field
from repro.visualization import receptive_field_builder, receptive_field_explorer
from repro.visualization.explorer import inlined
from repro.visualization.receptive_fields import net_of


class Cross(nn.Module):
    """1×3 beside 3×1, joined, and everything that four numbers cannot say: holes, gaps, uneven windows, overhang."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = nn.Conv2d(1, 2, (1, 3), padding=(0, 1))
        self.tall = nn.Conv2d(1, 2, (3, 1), padding=(1, 0))
        self.even = nn.Conv2d(1, 2, 2, padding=1)
        self.holes = nn.Conv2d(6, 2, 3, dilation=2, padding=2)
        self.pool = nn.MaxPool2d((3, 2), stride=2, ceil_mode=True)
        self.up = nn.ConvTranspose2d(2, 2, 3, stride=2)
        self.uneven = nn.AdaptiveAvgPool2d((5, 4))
        self.out = nn.Linear(40, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        joined = torch.cat([self.flat(x), self.tall(x), self.even(x)[..., 1:, 1:]], dim=1)
        return self.out(self.uneven(self.up(self.pool(self.holes(joined)))).flatten(1))


NETS = {
    "cross": (Cross, (1, 14, 17)),
    "vgg16": (lambda: models.get_model("vgg16_cifar10"), (3, 32, 32)),
    "alexnet": (lambda: models.get_model("alexnet"), (3, 224, 224)),
    "resnet": (torchvision.models.resnet18, (3, 96, 96)),
    "googlenet": (lambda: torchvision.models.googlenet(init_weights=False), (3, 64, 64)),
}


@pytest.fixture(scope="module")
def tables():
    """Name of a net -> its FieldTable, each worked out once."""
    known = {}

    def table(name):
        if name not in known:
            make, size = NETS[name]
            with torch.device("meta"):
                known[name] = receptive_field(make(), size)
        return known[name]

    return table


@pytest.fixture
def explorer(open_html):
    """A factory: opens a page with the explorer of a net of `NETS`; options as of `open_html`."""

    def start(name="cross", **options):
        make, size = NETS[name]
        body = f"<h1>Explorer</h1>{receptive_field_explorer(make(), size)._repr_html_()}"
        return open_html(body, **options).locator("[data-explorer]")

    return start


@pytest.fixture
def arithmetic(open_html):
    """Everything a list of units [node, row, column] of a net reads: [unclipped, [box and count of each node]]."""
    module = inlined("convolution_arithmetic.js") + inlined("receptive_field_arithmetic.js")
    opened = open_html(f'<script type="module">{module}window.found = {{ support, around, unclipped }};</script>')
    opened.wait_for_function("window.found")
    return lambda net, units: opened.evaluate(
        """([net, units]) => units.map(([node, row, column]) => {
             const widths = [net.input, ...net.layers.map(({ units }) => units)].map((size) => size[1]);
             const masks = found.support(net, node, row, column);
             return [found.unclipped(net, node, row, column), widths.map((w, i) => found.around(masks[i], w))]; })""",
        [net, units],
    )


def some_units(table, name, many: int) -> list[tuple[int, int]]:
    """The corners of a layer, and `many` of its other units."""
    height, width = table[name].output_size
    corners = list(itertools.product({0, height - 1}, {0, width - 1}))
    draw = random.Random(f"{name} {height}")
    return corners + [(draw.randrange(height), draw.randrange(width)) for _ in range(many)]


def as_box(found) -> Box:
    return Box(found["top"], found["left"], found["bottom"], found["right"]) if found else NOWHERE


@pytest.mark.parametrize("name", NETS)
def test_rectangles_are_those_of_the_package(arithmetic, tables, name):
    """Catches rows and columns exchanged, holes filled, windows shifted by one, and a path that is forgotten."""
    table, net = tables(name), net_of(tables(name))
    names = [layer.get("name") for layer in net["layers"]]
    asked = [
        (node, *unit)
        for node, layer in enumerate(names, 1)
        if layer
        for unit in some_units(table, layer, 2 if len(names) > 10 else 6)
    ]
    for (node, row, column), (unclipped, found) in zip(asked, arithmetic(net, asked), strict=True):
        layer = names[node - 1]
        expected = table.boxes(layer, row, column)
        assert as_box(unclipped) == table.box(layer, row, column).unclipped
        assert (found[0]["count"] if found[0] else 0) == int(table.support(layer, row, column).sum())
        for earlier, box in zip(["input", *names], found, strict=True):
            assert earlier is None or as_box(box) == expected.get(earlier, NOWHERE), (layer, earlier)


def point_at(explorer, layer: str, down: float, right: float) -> None:
    """The mouse over a place of a layer's grid, both 0…1."""
    grid = tile(explorer, layer).locator("svg")
    grid.scroll_into_view_if_needed()
    box = grid.bounding_box()
    explorer.page.mouse.move(box["x"] + right * box["width"], box["y"] + down * box["height"])


def sides(box: Box) -> list[str]:
    texts = [f"{box.top} to {box.bottom - 1}", f"{box.left} to {box.right - 1}"]
    return [text.replace("-", "−") for text in texts]


@pytest.mark.parametrize("name", ["cross", "vgg16", "resnet"])
def test_what_is_lit_and_what_is_said(explorer, tables, name):
    """Catches a picture that shows another unit than the one under the mouse, and numbers of another layer."""
    shown, table = explorer(name), tables(name)
    layers = [one.get_attribute("data-layer") for one in shown.locator(".layer").all()]
    draw = random.Random(0)
    for layer in draw.sample(layers, min(8, len(layers))):
        down, right = draw.random(), draw.random()
        point_at(shown, layer, down, right)
        found, row, column = chosen(shown)
        height, width = table[layer].output_size
        assert found == layer
        assert abs(row - down * height) <= 1
        assert abs(column - right * width) <= 1
        expected = table.boxes(layer, row, column)
        for other in layers:
            lit = rectangle(tile(shown, other).locator("rect.box"))
            assert lit == (NOWHERE if other == layer else expected.get(other, NOWHERE)), (layer, other)
        box, field = table.box(layer, row, column), table[layer]
        assert rectangle(shown.locator("figure rect.box")) == box.clipped
        assert rectangle(shown.locator("figure rect.reach")) == box.unclipped
        said = numbers(shown)
        where = zip((row, column), (height, width), strict=True)
        assert said["unit, from 0"] == [f"{i} of {n}" if n > 1 else "the only one" for i, n in where]
        assert said["receptive field"] == [str(size) for size in field.size]
        assert said["effective stride"] == [str(stride) for stride in field.effective_stride]
        assert said["effective padding"] == [str(padding).replace("-", "−") for padding in field.effective_padding]
        assert said["reaches"] == sides(box.unclipped)
        assert said["in the image"] == sides(box.clipped)
        count, area = int(table.support(layer, row, column).sum()), box.clipped.height * box.clipped.width
        reads = f"reads all {area:,} " if count == area else f"reads {count:,} of the {area:,} "
        assert reads in shown.locator(".remark").text_content()


def test_paths_that_do_not_agree_are_named(explorer, tables):
    """Catches a join whose paths lie beside each other that is shown as if they did not, and a warning everywhere."""
    shown = explorer()
    warned = {
        layer
        for layer in (one.get_attribute("data-layer") for one in shown.locator(".layer").all())
        if tile(shown, layer).focus() or "different centres" in shown.locator(".remark").text_content()
    }
    assert warned == {row.name for row in tables("cross") if not row.aligned} == {"cat"}


def test_holes_stay_dark(explorer, tables):
    """Catches a support that is painted as its bounding rectangle."""
    shown = explorer()
    point_at(shown, "holes", 0.5, 0.5)
    layer, row, column = chosen(shown)
    drawn = shown.locator("figure path.read").get_attribute("d")
    lit = set()
    for x, y, across, height in re.findall(r"M(\d+) (\d+)h(\d+)v(\d+)", drawn):
        lit |= {(int(y) + i, int(x) + j) for i in range(int(height)) for j in range(int(across))}
    assert lit == {tuple(pixel) for pixel in tables("cross").support(layer, row, column).nonzero().tolist()}


def test_keys_move_the_unit_and_tab_the_layer(explorer):
    """Catches a grid that Tab can't reach, arrows that leave it or turn the wrong way, and focus that is not shown."""
    shown = explorer()
    keyboard = shown.page.keyboard
    layers = [one.get_attribute("data-layer") for one in shown.locator(".layer").all()]
    for layer in layers:
        keyboard.press("Tab")
        assert chosen(shown)[0] == layer
        ring = tile(shown, layer).evaluate("node => getComputedStyle(node).outlineStyle")
        assert ring == "solid"
    tile(shown, "flat").focus()
    for key, place in [
        ("Home", (7, 0)),
        ("PageUp", (0, 0)),
        ("ArrowUp", (0, 0)),
        ("ArrowDown", (1, 0)),
        ("ArrowRight", (1, 1)),
        ("Shift+ArrowRight", (1, 11)),
        ("Shift+ArrowRight", (1, 16)),
        ("PageDown", (13, 16)),
        ("ArrowLeft", (13, 15)),
    ]:
        keyboard.press(key)
        assert chosen(shown) == ("flat", *place), key
    shown.get_by_role("button", name="Unit above").press("Enter")
    assert chosen(shown) == ("flat", 12, 15)


def test_what_happened_is_spoken(explorer):
    """Catches a live region that stays silent, and grids without a name."""
    shown = explorer()
    shown.get_by_role("application", name=re.compile("^tall, Conv2d, 14 × 17 units")).focus()
    shown.page.keyboard.press("PageUp")
    live = shown.locator("[aria-live=polite]")
    expect(live).to_have_text(
        re.compile(r"tall, unit \(0, 8\): receptive field 3 × 1.*rows −1 to 1 and columns 8 to 8")
    )
    image = shown.get_by_role("img").get_attribute("aria-label")
    assert image == "The image. Lit: rows 0 to 1, columns 8 to 8."


def test_several_on_one_page(open_html):
    """Catches explorers that share a state or an id, and one that is started twice."""
    make, size = NETS["cross"]
    one = receptive_field_explorer(make(), size)._repr_html_()
    opened = open_html(one + receptive_field_builder()._repr_html_() + one)
    first, middle, last = opened.locator("[data-explorer]").all()
    before = chosen(last), chosen(middle)
    tile(first, "flat").click(position={"x": 10, "y": 10})
    assert chosen(first)[0] == "flat"
    assert (chosen(last), chosen(middle)) == before
    assert [shown.locator("figure").count() for shown in (first, middle, last)] == [1, 1, 1]
    assert opened.evaluate("document.querySelectorAll('[id]').length") == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_themes_are_readable(open_html, theme):
    """Catches a page theme that is ignored where the system prefers the other, and too little contrast."""
    make, size = NETS["cross"]
    body = receptive_field_explorer(make(), size)._repr_html_() + receptive_field_builder()._repr_html_()
    opened = open_html(f"<h1>Explorer</h1>{body}", theme=theme, dark=theme == "light")
    for shown in opened.locator("[data-explorer]").all():
        assert shown.evaluate("node => getComputedStyle(node).colorScheme") == theme
    violations = Axe().run(opened).response["violations"]
    assert [v["id"] for v in violations if v["impact"] in ("serious", "critical")] == []
    ground, lit = (
        opened.locator(f"figure {shape}").first.evaluate("node => getComputedStyle(node).fill")
        for shape in (".ground", ".read")
    )
    assert contrast(ground, lit) >= 3  # WCAG 1.4.11: parts of a picture


def contrast(*colors: str) -> float:
    """The ratio of WCAG 2 between two colours written as "rgb(r, g, b)"."""

    def luminance(color: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted(map(luminance, colors))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("name", ["cross", "googlenet", "builder"])
def test_fits_a_phone_and_answers_a_tap(open_html, name):
    """Catches a picture wider than the screen, targets too small for a finger, and a tap that does nothing."""
    shown_by = (
        receptive_field_builder() if name == "builder" else receptive_field_explorer(NETS[name][0](), NETS[name][1])
    )
    opened = open_html(shown_by._repr_html_(), phone=True)
    shown = opened.locator("[data-explorer]")
    assert opened.evaluate("document.documentElement.scrollWidth") == opened.viewport_size["width"]
    for target in shown.locator("button, .layer").all():
        box = target.bounding_box()
        assert min(box["width"], box["height"]) >= 44
    layer = shown.locator(".layer").first
    layer.locator("svg").tap(position={"x": 3, "y": 3})
    assert chosen(shown)[0] == layer.get_attribute("data-layer")
    assert max(chosen(shown)[1:]) <= 4


def test_large_maps_are_quick(explorer):
    """Catches a drawing of one node per unit, which a map of 224 × 224 turns into seconds."""
    shown = explorer("alexnet")
    assert shown.locator("*").count() < 600
    slowest = shown.evaluate(
        """(el) => { const times = [...el.querySelectorAll(".layer")].map((layer) => {
             const start = performance.now();
             layer.focus();
             return performance.now() - start; });
           return Math.max(...times); }"""
    )
    assert slowest < 500  # milliseconds; about 10 on an idle machine


def test_in_the_built_chapter(site, page):
    """Catches explorers that the book's own scripts or styles break, and one that was left out of the page."""
    opened = page(site / "chapters" / "13_receptive_fields.html")
    shown = opened.locator("[data-explorer=receptive_field_explorer]:not(:has(fieldset))").first
    built = opened.locator("[data-explorer=receptive_field_explorer]:has(fieldset)").first
    for explorer in (shown, built):
        first, second = (explorer.locator(".layer").nth(i).bounding_box() for i in (0, 1))
        assert first["x"] + first["width"] < second["x"]  # side by side, as the theme's own `.row` would not have them
    shown.locator(".layer").nth(1).focus()
    opened.keyboard.press("Home")
    before = numbers(shown)
    opened.keyboard.press("ArrowRight")
    after = numbers(shown)
    moved = [int(said["reaches"][1].split()[0].replace("−", "-")) for said in (before, after)]
    assert moved[1] - moved[0] == int(after["effective stride"][1])
    assert after["reaches"][0] == before["reaches"][0]
    layers = built.locator(".layer").count()
    built.get_by_role("slider", name="layers").press("Home")
    assert built.locator(".layer").count() == 1 < layers
