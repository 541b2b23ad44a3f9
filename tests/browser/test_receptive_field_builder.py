"""The builder of small nets in a real browser: its recurrence, written out, and the grids that follow its sliders.

The oracle is `repro.receptive_field.stack`.
"""

import random

import pytest
from grids import chosen, rectangle
from playwright.sync_api import expect

from repro.receptive_field import output_size, stack
from repro.visualization import receptive_field_builder
from repro.visualization.receptive_fields import BUILDER_LIMITS

PARTS = ("kernel", "stride", "padding")


@pytest.fixture
def builder(open_html):
    def start(**options):
        body = f"<h1>Explorer</h1>{receptive_field_builder(**options)._repr_html_()}"
        return open_html(body).locator("[data-explorer]")

    return start


def put(builder, values) -> None:
    """Moves the sliders as a hand would end up moving them, with their events."""
    builder.evaluate(
        """(el, values) => { for (const [name, value] of Object.entries(values)) {
             const input = el.querySelector(`input[name=${name}]`);
             input.value = value;
             input.dispatchEvent(new Event("input")); } }""",
        values,
    )


def random_stack(draw: random.Random) -> tuple[int, list[tuple[int, int, int]]]:
    """Image and layers within the sliders' limits; the last layers need not fit."""
    image, count = (draw.randint(*BUILDER_LIMITS[name]) for name in ("image", "layers"))
    return image, [tuple(draw.randint(*BUILDER_LIMITS[part]) for part in PARTS) for _ in range(count)]


def what_fits(image: int, layers) -> list[tuple[int, int, int]]:
    size, fitting = image, []
    for layer in layers:
        try:
            size = output_size(size, *layer)
        except ValueError:
            break
        fitting.append(layer)
    return fitting


def test_sliders_redo_the_arithmetic(builder):
    """Catches a recurrence that grows the stride too early or too late, a padding ignored, and grids left behind."""
    shown = builder()
    draw = random.Random(3)
    stopped = 0
    for _ in range(40):
        image, layers = random_stack(draw)
        each = {f"{name}{i}": v for i, layer in enumerate(layers, 1) for name, v in zip(PARTS, layer, strict=True)}
        put(shown, {"image": image, "layers": len(layers), **each})
        fitting = what_fits(image, layers)
        stopped += len(fitting) < len(layers)
        table = stack(fitting, input_size=image)
        assert shown.locator(".layer").count() == len(fitting)
        assert shown.locator("fieldset:visible").count() == len(layers)
        for row, card in zip(table, shown.locator("fieldset").all(), strict=False):
            lines = [line.text_content().rsplit("= ", 1)[1] for line in card.locator(".lines span").all()]
            centre = (row.size[0] - 1) / 2 - row.effective_padding[0]
            expected = [row.size[0], row.effective_stride[0], centre, row.output_size[0]]
            assert [float(text.replace("−", "-")) for text in lines] == expected
        if len(fitting) < len(layers):
            assert "does not fit" in shown.locator("fieldset").nth(len(fitting)).text_content()
        last = len(fitting) - 1
        shown.locator(".layer").nth(last).focus()
        _, row, column = chosen(shown)
        box = table.box(table[last].name, row, column)
        assert rectangle(shown.locator("figure rect.reach")) == box.unclipped
        assert rectangle(shown.locator("figure rect.box")) == box.clipped
    assert stopped >= 3


def test_every_number_of_the_recurrence_is_written_out(builder):
    """Catches lines whose numbers are those of another layer."""
    shown = builder(layers=((5, 2, 1), (3, 2, 0)), image=20)
    lines = shown.locator("fieldset").nth(1).locator(".lines span").all_text_contents()
    assert lines == [
        "r = 5 + (3 − 1)·2 = 9",
        "j = 2·2 = 4",
        "x = 1 + ((3 − 1)/2 − 0)·2 = 3",
        "n = ⌊(9 + 2·0 − 3)/2⌋ + 1 = 4",
    ]


def test_sliders_answer_to_the_keyboard_and_are_spoken(builder):
    """Catches sliders that answer to the mouse alone or have no name, and a change that nobody hears of."""
    shown = builder(layers=((3, 1, 1), (2, 2, 0)), image=24)
    shown.get_by_role("slider", name="kernel of layer 1").press("ArrowRight")
    text = "kernel of layer 1 4. Layer 2: receptive field 5, effective stride 2, 11 by 11 units."
    expect(shown.locator("[aria-live=polite]")).to_have_text(text)
    shown.get_by_role("slider", name="layers").press("Home")
    assert shown.locator(".layer").count() == 1
