"""What the grids of a receptive-field explorer show, read from the page: for its tests and for those of the builder."""

from repro.receptive_field import Box

NOWHERE = Box(0, 0, 0, 0)  # as the package has it for a unit that reads nothing


def rectangle(shape) -> Box:
    """A rectangle of a grid, in units of the grid, as it is drawn; `NOWHERE` where it is not."""
    top, left, height, width = shape.evaluate(
        """(node) => getComputedStyle(node).display === "none" ? [0, 0, 0, 0]
             : ["y", "x", "height", "width"].map((key) => Number(node.getAttribute(key)))"""
    )
    return Box(top, left, top + height, left + width)


def tile(explorer, layer: str):
    return explorer.locator(f'.layer[data-layer="{layer}"]')


def chosen(explorer) -> tuple[str, int, int]:
    """Layer, row and column of the unit that is marked."""
    layer = explorer.locator(".layer.chosen")
    box = rectangle(layer.locator("rect.unit"))
    assert (box.height, box.width) == (1, 1)
    return layer.get_attribute("data-layer"), box.top, box.left


def numbers(explorer) -> dict[str, list[str]]:
    """Name of a line of the table -> its texts for rows and columns."""
    lines = explorer.locator(".facts [role=row]").all()
    texts = [[cell.text_content() for cell in line.locator("span").all()] for line in lines]
    return {name: values for name, *values in texts}
